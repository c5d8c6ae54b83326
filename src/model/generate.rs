//! Continues one text.

use super::{Policy, SampleRequest};
use crate::device::Result;
use crate::ops::philox::{self, Stream};
use crate::ops::sampling::SamplingParams;

/// What a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Without the token that ended it.
    pub tokens: Vec<u32>,
    /// Whether a token of `stop` ended it, and not the limit.
    pub ended: bool,
}

/// Samples at most `most` tokens that follow `prompt`, which is not empty, until one of `stop`. Random numbers are a function of the
/// seed and the token's place.
///
/// # Errors
/// A failing device.
pub fn generate(
    policy: &dyn Policy,
    prompt: &[u32],
    stop: &[u32],
    most: usize,
    sampling: &SamplingParams,
    seed: u64,
) -> Result<Continuation> {
    let mut decoder = policy.decoder()?;
    let id = decoder.new_sequence();
    let (mut seen, mut fed) = (prompt.to_vec(), 0);
    for place in 0..most {
        decoder.append(&[(id, &seen[fed..])])?;
        fed = seen.len();
        let block = philox::block(seed, Stream::Continuation.part(0), place as u64);
        let request = SampleRequest { sequence: id, seen: &seen, uniform: philox::uniform(block[0]) };
        let Some(next) = decoder.sample(&[request], sampling)?.pop().filter(|next| !stop.contains(&next.token)) else {
            return Ok(Continuation { tokens: seen.split_off(prompt.len()), ended: true });
        };
        seen.push(next.token);
    }
    Ok(Continuation { tokens: seen.split_off(prompt.len()), ended: false })
}
