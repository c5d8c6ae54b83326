//! How an episode speaks with its environment: at once where that is quick, by mail where it may take long.

use crate::env::{EnvError, Environment, Observation};
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// What an environment shows, and the fewest steps from there to the goal where that is asked and known.
pub(super) type Answer = Result<(Observation, Option<u32>), EnvError>;

/// An answer that comes later, with the number of its episode.
pub(super) type Letter = (usize, Answer);

/// An open environment.
pub(super) enum Stepper {
    /// Asked on the spot.
    Here { env: Box<dyn Environment>, distances: bool },
    /// On a thread of its own, which ends when this is dropped.
    Away(Sender<String>),
}

impl Stepper {
    /// Resets the environment of episode `index`: the first answer, or `None` when it will come by `mail`.
    pub fn begin(
        mut env: Box<dyn Environment>,
        distances: bool,
        index: usize,
        mail: &Sender<Letter>,
    ) -> Result<(Stepper, Option<Answer>), EnvError> {
        if !env.is_remote() {
            let seen = env.reset();
            let answer = measured(seen, &mut *env, distances);
            return Ok((Stepper::Here { env, distances }, Some(answer)));
        }
        let (commands, inbox) = channel::<String>();
        let mail = Mailbox { mail: mail.clone(), index };
        let play = move || {
            let mut seen = env.reset();
            loop {
                let answer = measured(seen, &mut *env, distances);
                if !mail.send(answer) {
                    return;
                }
                let Ok(command) = inbox.recv() else { return };
                seen = env.step(&command);
            }
        };
        thread::Builder::new().name(format!("episode {index}")).spawn(play).map_err(|e| EnvError::Failed {
            name: format!("episode {index}"),
            reason: format!("no thread can be started for it: {e}; lower rollout.max_live"),
        })?;
        Ok((Stepper::Away(commands), None))
    }

    /// The answer to a command, or `None` when it will come by mail.
    pub fn step(&mut self, command: String) -> Option<Answer> {
        match self {
            Stepper::Here { env, distances } => {
                let seen = env.step(&command);
                Some(measured(seen, &mut **env, *distances))
            }
            Stepper::Away(commands) => commands
                .send(command)
                .err()
                .map(|_| Err(EnvError::Failed { name: "episode".into(), reason: "its thread has ended".into() })),
        }
    }
}

/// Where an environment's thread sends its answers; should the thread panic, that is its last one.
struct Mailbox {
    mail: Sender<Letter>,
    index: usize,
}

impl Mailbox {
    /// Whether anybody still listens.
    fn send(&self, answer: Answer) -> bool {
        self.mail.send((self.index, answer)).is_ok()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        if thread::panicking() {
            let (name, reason) = (format!("episode {}", self.index), "its thread panicked".into());
            self.send(Err(EnvError::Failed { name, reason }));
        }
    }
}

fn measured(seen: Result<Observation, EnvError>, env: &mut dyn Environment, distances: bool) -> Answer {
    let seen = seen?;
    Ok((seen, if distances { env.distance() } else { None }))
}
