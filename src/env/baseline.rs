//! How players without a model do on a split: the floor and the ceiling that stand beside every result.

use super::{EnvError, Environment, Split, Suite};
pub use crate::report::results::Baselines;

/// Plays the first `games` tasks of a split (fewer where the split ends) with at most `limit` steps each.
/// The random player's choices depend on `seed` only.
pub fn baselines(suite: &dyn Suite, split: Split, games: u64, limit: usize, seed: u64) -> Result<Baselines, EnvError> {
    let games = suite.len(split).map_or(games, |len| len.min(games));
    let mut won = [0u64; 3];
    let mut random = super::household::Random::new(&[5, seed]);
    for index in 0..games {
        let mut game = suite.open(&suite.task(split, index)?)?;
        won[0] += u64::from(play(game.as_mut(), limit, |_, admissible| random.pick(admissible).cloned())?);
        won[1] += u64::from(play(game.as_mut(), limit, |game, _| game.expert())?);
        won[2] += u64::from(play(game.as_mut(), limit, |game, _| game.demonstrate())?);
    }
    let rate = |won: u64| won as f64 / games.max(1) as f64;
    Ok(Baselines { random: rate(won[0]), oracle: rate(won[1]), demonstrator: rate(won[2]), games })
}

/// One episode; `choose` returning `None` gives up. Whether it was won.
fn play(
    game: &mut dyn Environment,
    limit: usize,
    mut choose: impl FnMut(&mut dyn Environment, &[String]) -> Option<String>,
) -> Result<bool, EnvError> {
    let mut observation = game.reset()?;
    for _ in 0..limit {
        if observation.done {
            break;
        }
        let Some(command) = choose(game, &observation.admissible) else { break };
        observation = game.step(&command)?;
    }
    Ok(observation.won)
}
