use crate::*;
use kernel_emulator::{args, launch};
use uncouple::ops::sampling::SamplingParams;

const ROWS: usize = 40;
const VOCAB: usize = 16;

/// Draws from 16 equal tokens, at numbers from all over (0, 1).
fn draw(p: SamplingParams) -> (Vec<u32>, Vec<f32>) {
    let uniform: Vec<f32> = (0..ROWS).map(|r| (r as f32 + 0.5) / ROWS as f32).collect();
    let (logits, uniform) = (Buffer::new(&[1.5f32; ROWS * VOCAB]), Buffer::new(&uniform));
    let (token, logprob) = (Buffer::poisoned::<u32>(ROWS), Buffer::poisoned::<f32>(ROWS));
    let params = [p.temperature.to_bits(), 1f32.to_bits(), p.top_k as u32, p.top_p.to_bits(), p.min_p.ln().to_bits()];
    let args = args![&logits, Arg::Null, Arg::Null, &uniform, &token, &logprob, VOCAB as i32, VOCAB as i32, params];
    launch("sampling_sample_f32", ROWS as u32, 1024, 0, args).unwrap();
    (token.read().unwrap(), logprob.read().unwrap())
}

/// Of equal tokens, top-p 0.6 drops the first 6; top-k keeps all that equal the k-th.
#[test]
fn ties() {
    let plain = SamplingParams::default();
    let (token, logprob) = draw(SamplingParams { top_p: 0.6, ..plain });
    assert!(token.iter().all(|t| *t >= 6) && token.contains(&6) && token.contains(&15), "{token:?}");
    assert_close("log-prob", &logprob, &[-(VOCAB as f32).ln(); ROWS], F32);
    let (token, _) = draw(SamplingParams { top_k: 3, ..plain });
    assert!(token.contains(&0) && token.contains(&15), "{token:?}");
    let (token, _) = draw(SamplingParams { top_p: 0.0, ..plain });
    assert_eq!(token, [15; ROWS]);
    let (token, _) = draw(SamplingParams { temperature: 0.0, ..plain });
    assert_eq!(token, [0; ROWS]);
}
