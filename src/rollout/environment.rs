//! How an episode plays its environment: on the spot where that is quick, on a thread of its own where it may take long.

use crate::env::{EnvError, Environment, Observation};
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// What an environment shows, and the fewest steps from there to the goal where that is asked and known.
pub(super) type Response = Result<(Observation, Option<u32>), EnvError>;

/// A response that comes later, with the number of its episode.
pub(super) type Event = (usize, Response);

/// An open environment.
pub(super) enum OpenEnvironment {
    /// Played on the spot.
    Inline { env: Box<dyn Environment>, distances: bool },
    /// On a thread of its own, which ends when this is dropped.
    Threaded(Sender<String>),
}

impl OpenEnvironment {
    /// Resets the environment of episode `index`: the first response, or `None` when it will come through `sender`.
    pub fn begin(
        mut env: Box<dyn Environment>,
        distances: bool,
        index: usize,
        sender: &Sender<Event>,
    ) -> Result<(OpenEnvironment, Option<Response>), EnvError> {
        if !env.is_remote() {
            let seen = env.reset();
            let response = measured(seen, &mut *env, distances);
            return Ok((OpenEnvironment::Inline { env, distances }, Some(response)));
        }
        let (commands, receiver) = channel::<String>();
        let responses = Responses { sender: sender.clone(), index };
        let play = move || {
            let mut seen = env.reset();
            loop {
                let response = measured(seen, &mut *env, distances);
                if !responses.send(response) {
                    return;
                }
                let Ok(command) = receiver.recv() else { return };
                seen = env.step(&command);
            }
        };
        thread::Builder::new().name(format!("episode {index}")).spawn(play).map_err(|e| EnvError::Failed {
            name: format!("episode {index}"),
            reason: format!("no thread can be started for it: {e}; lower rollout.max_live"),
        })?;
        Ok((OpenEnvironment::Threaded(commands), None))
    }

    /// The response to a command, or `None` when it will come later.
    pub fn step(&mut self, command: String) -> Option<Response> {
        match self {
            OpenEnvironment::Inline { env, distances } => {
                let seen = env.step(&command);
                Some(measured(seen, &mut **env, *distances))
            }
            OpenEnvironment::Threaded(commands) => commands
                .send(command)
                .err()
                .map(|_| Err(EnvError::Failed { name: "episode".into(), reason: "its thread has ended".into() })),
        }
    }
}

/// Where an environment's thread sends its responses; should the thread panic, that is its last one.
struct Responses {
    sender: Sender<Event>,
    index: usize,
}

impl Responses {
    /// Whether anybody still listens.
    fn send(&self, response: Response) -> bool {
        self.sender.send((self.index, response)).is_ok()
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        if thread::panicking() {
            let (name, reason) = (format!("episode {}", self.index), "its thread panicked".into());
            self.send(Err(EnvError::Failed { name, reason }));
        }
    }
}

fn measured(seen: Result<Observation, EnvError>, env: &mut dyn Environment, distances: bool) -> Response {
    let seen = seen?;
    Ok((seen, if distances { env.distance() } else { None }))
}
