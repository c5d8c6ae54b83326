//! Decoding on the emulated device: in pieces and forks what the forward pass computes at once.

use crate::emulated;

use half::bf16;
use uncouple::device::Error;
use uncouple::forest::Forest;
use uncouple::model::backend::cuda::CudaModel;
use uncouple::model::backend::cuda_decode::CudaDecoder;
use uncouple::model::families::QWEN2;
use uncouple::model::{Architecture, Decoder, Model, Params, Policy, SampleRequest, SavedActivations, SequenceId};
use uncouple::ops::sampling::SamplingParams;

const HIDDEN: usize = 64;

fn model() -> Model {
    let config = Architecture {
        family: &QWEN2,
        vocab_size: 96,
        hidden_size: HIDDEN,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        intermediate_size: 72,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: true,
    };
    let mut params = Params::random(&config, 3);
    params.flat.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
    Model::new(config, params)
}

/// The final hidden state of the last token of each sequence, by the training forward pass on the same device.
fn at_once(model: &CudaModel, gpu: &uncouple::device::Gpu, sequences: &[&[u32]]) -> Vec<f32> {
    let forest = Forest::new(sequences);
    let acts = model.forward(&model.forest(&forest).unwrap(), SavedActivations::Nothing).unwrap();
    let hidden = gpu.read(&acts.hidden).unwrap();
    let last = forest.paths.iter().map(|path| path[path.len() - 1] as usize);
    last.flat_map(|row| hidden[row * HIDDEN..(row + 1) * HIDDEN].iter().map(|x| x.to_f32())).collect()
}

/// ‖got − want‖ ≤ 1 % of ‖want‖, the noise of bf16 (see tests/cuda/model.rs).
fn assert_near(what: &str, got: &[f32], want: &[f32]) {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
    assert!(got.len() == want.len() && error < 0.01, "{what}: {error}");
}

#[test]
fn pieces_and_forks_are_the_whole() {
    let gpu = emulated::quick_gpu();
    let model = CudaModel::new(&gpu, &model(), 128).unwrap();
    let prompt: Vec<u32> = (0..45).map(|i| i * 7 % 96).collect();
    let mut decoder = CudaDecoder::new(&model, 8).unwrap();
    let one = decoder.new_sequence();
    decoder.append(&[(one, &prompt)]).unwrap();
    let states = |decoder: &mut CudaDecoder, ids: &[SequenceId]| -> Vec<f32> {
        gpu.read(&decoder.hidden(ids).unwrap()).unwrap().iter().map(|x| x.to_f32()).collect()
    };
    assert_near("prefill", &states(&mut decoder, &[one]), &at_once(&model, &gpu, &[&prompt]));

    // Both go on from a page that they share, at different speeds, beside a sequence of their own.
    let (two, three) = (decoder.fork(one).unwrap(), decoder.new_sequence());
    assert_eq!(states(&mut decoder, &[two]), states(&mut decoder, &[one]), "a fork goes on from the same state");
    let (mut first, mut second, mut third) = (prompt.clone(), prompt.clone(), vec![5]);
    decoder.append(&[(three, &[5])]).unwrap();
    for step in 0..4u32 {
        let (token, pair, other) = ([10 + step], [60 + step, 70 + step], [step]);
        decoder.append(&[(one, &token), (two, &pair), (three, &other)]).unwrap();
        first.extend(token);
        second.extend(pair);
        third.extend(other);
    }
    let want = at_once(&model, &gpu, &[&first, &second, &third]);
    let got = states(&mut decoder, &[one, two, three]);
    for (i, (got, want)) in got.chunks(HIDDEN).zip(want.chunks(HIDDEN)).enumerate() {
        assert_near(&format!("sequence {i}"), got, want);
    }

    // A fork in the middle of a page goes on otherwise, and the sequence that it came from as before.
    let middle = decoder.fork_at(one, 40).unwrap();
    decoder.append(&[(middle, &[50, 51]), (one, &[7])]).unwrap();
    first.push(7);
    let (forked, got) = ([&prompt[..40], &[50, 51]].concat(), states(&mut decoder, &[middle, one]));
    assert_near("forked in the middle", &got, &at_once(&model, &gpu, &[&forked, &first]));
    decoder.free(middle);
    first.pop();

    // Pages that were given back serve again.
    decoder.free(one);
    decoder.free(two);
    let again = decoder.new_sequence();
    decoder.append(&[(again, &first[..33])]).unwrap();
    decoder.append(&[(again, &first[33..])]).unwrap();
    assert_near("again", &states(&mut decoder, &[again]), &want[..HIDDEN]);
}

#[test]
fn tokens_are_drawn_as_on_the_cpu() {
    let gpu = emulated::quick_gpu();
    let on_cpu = model();
    let model = CudaModel::new(&gpu, &on_cpu, 128).unwrap();
    let params = SamplingParams { temperature: 0.7, top_k: 20, repetition_penalty: 1.2, ..SamplingParams::default() };
    // More requests than one batch of logits holds, of sequences in any order, some of them often.
    let seen = [3, 4, 3];
    let sampled = |decoder: &mut dyn Decoder| {
        let ids = [decoder.new_sequence(), decoder.new_sequence(), decoder.new_sequence()];
        let inputs: [(SequenceId, &[u32]); 3] = [(ids[0], &[1, 2, 3]), (ids[1], &[9; 40]), (ids[2], &[77])];
        decoder.append(&inputs).unwrap();
        let request =
            |i: usize| SampleRequest { sequence: ids[i * 2 % 3], seen: &seen, uniform: (i as f32 + 0.5) / 260.0 };
        decoder.sample(&(0..260).map(request).collect::<Vec<_>>(), &params).unwrap()
    };
    let (got, want) = (sampled(&mut CudaDecoder::new(&model, 4).unwrap()), sampled(&mut *on_cpu.decoder().unwrap()));
    assert_eq!(got.len(), want.len());
    // States differ by the noise of bf16, so a few numbers fall on the other side of a boundary between two tokens.
    let other = got.iter().zip(&want).filter(|(g, w)| g.token != w.token).count();
    assert!(other <= 13, "{other} of 260 tokens differ");
    for (g, w) in got.iter().zip(&want).filter(|(g, w)| g.token == w.token) {
        assert!((g.logprob - w.logprob).abs() < 0.02, "{g:?} and {w:?}");
    }
}

/// Steps that are replayed from graphs, in one of which a sequence is fed two tokens, and the same tokens in passes of their own, which
/// a sequence of many makes them: to the bit, over the end of a split, where there is another graph.
#[test]
fn graphs_decode_as_passes_do() {
    let gpu = emulated::quick_gpu();
    let mut on_cpu = model();
    on_cpu = Model::new(Architecture { max_position_embeddings: 600, ..on_cpu.config }, on_cpu.params);
    let model = CudaModel::new(&gpu, &on_cpu, 4).unwrap();
    let (prompt, short): (Vec<u32>, [u32; 3]) = ((0..510).map(|i| i * 7 % 96).collect(), [7, 8, 9]);
    let played = |company: bool| {
        let mut decoder = CudaDecoder::new(&model, 32).unwrap();
        let (one, two, other) = (decoder.new_sequence(), decoder.new_sequence(), decoder.new_sequence());
        decoder.append(&[(one, &prompt), (two, &short)]).unwrap();
        let three = decoder.fork(one).unwrap();
        let ids = [one, two, three];
        let mut all = Vec::new();
        for step in 0..4 {
            let request =
                |id: &SequenceId| SampleRequest { sequence: *id, seen: &[], uniform: 0.2 + 0.2 * step as f32 };
            let sampled = decoder.sample(&ids.each_ref().map(request), &SamplingParams::default()).unwrap();
            let tokens: Vec<[u32; 1]> = sampled.iter().map(|s| [s.token]).collect();
            all.extend(sampled);
            // The last step is one sequence's alone.
            let playing = if step < 3 { 3 } else { 1 };
            let mut inputs: Vec<(SequenceId, &[u32])> =
                ids.into_iter().zip(tokens.iter().map(|t| &t[..])).take(playing).collect();
            match (company, step) {
                (true, _) => inputs.insert(1, (other, &[1; 40])),
                (false, 0) => inputs.insert(1, (other, &[1, 2])),
                _ => {}
            }
            decoder.append(&inputs).unwrap();
        }
        (all, gpu.read(&decoder.hidden(&ids).unwrap()).unwrap())
    };
    let by_pass = played(true);
    assert_eq!(model.graphs(), 0);
    let by_graph = played(false);
    assert_eq!(model.graphs(), 4, "of six rows; of three, with contexts of one part and of two; of one");
    assert_eq!(by_graph, by_pass);
}

#[test]
fn limits_are_named() {
    let gpu = emulated::quick_gpu();
    let model = CudaModel::new(&gpu, &model(), 128).unwrap();
    let mut decoder = CudaDecoder::new(&model, 2).unwrap();
    let id = decoder.new_sequence();
    let error = decoder.append(&[(id, &[1; 65])]).unwrap_err();
    assert!(error.to_string().contains("rollout.max_live"), "{error}");
    // What is refused changes nothing: another is still empty, and there is room for what fits.
    let other = decoder.new_sequence();
    assert!(decoder.append(&[(other, &[1; 10]), (id, &[1; 60])]).is_err());
    decoder.append(&[(other, &[1; 32]), (id, &[1; 32])]).unwrap();
    assert!(matches!(decoder.append(&[(id, &[1; 129])]), Err(Error::Shape { .. })));
    assert!(matches!(decoder.append(&[(id, &[96])]), Err(Error::Shape { .. })), "not in the vocabulary");
}
