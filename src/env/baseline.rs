//! How players without a model do on a split: the floor and the ceiling that stand beside every result.

use super::{EnvError, Environment, Split, Suite};
pub use crate::report::results::Baselines;

/// Plays the first `games` tasks of a split (fewer where the split ends) with at most `limit` steps each.
/// The random player's choices depend on `seed` only. Games that the environment fails count for nothing.
///
/// # Errors
/// If the suite refuses a task of the split, or cannot open one.
pub fn baselines(suite: &dyn Suite, split: Split, games: u64, limit: usize, seed: u64) -> Result<Baselines, EnvError> {
    let all = suite.len(split).map_or(games, |len| len.min(games));
    let mut games = 0u64;
    let mut won = [None::<u64>; 3];
    let mut random = super::household::Random::new(&[5, seed]);
    for index in 0..all {
        let task = suite.task(split, index)?;
        let mut play_all = || -> Result<[Option<bool>; 3], EnvError> {
            let mut game = suite.open(&task)?;
            Ok([
                play(game.as_mut(), limit, |_, admissible| random.pick(admissible).cloned())?,
                play(game.as_mut(), limit, |game, _| game.expert())?,
                play(game.as_mut(), limit, |game, _| game.demonstrate())?,
            ])
        };
        let played = match play_all() {
            Ok(played) => played,
            Err(refused @ EnvError::HeldOut { .. }) => return Err(refused),
            Err(_) => continue,
        };
        games += 1;
        for (won, played) in won.iter_mut().zip(played) {
            if let Some(played) = played {
                *won = Some(won.unwrap_or(0) + u64::from(played));
            }
        }
    }
    let [random, oracle, demonstrator] = won.map(|won| won.map(|won| won as f64 / games as f64));
    Ok(Baselines { random, oracle, demonstrator, games })
}

/// One episode; `choose` returning `None` gives up. Whether it was won; `None` when there was nobody to begin it.
fn play(
    game: &mut dyn Environment,
    limit: usize,
    mut choose: impl FnMut(&mut dyn Environment, &[String]) -> Option<String>,
) -> Result<Option<bool>, EnvError> {
    let mut observation = game.reset()?;
    for step in 0..limit {
        if observation.done {
            break;
        }
        match choose(game, &observation.admissible) {
            Some(command) => observation = game.step(&command)?,
            None if step == 0 => return Ok(None),
            None => break,
        }
    }
    Ok(Some(observation.won))
}
