//! All inner products of per-sample gradients over every parameter, from one batched forward and backward pass.
//!
//! The samples lie one behind the other in the batch and share nothing. As the backward pass hands over a layer's matrices,
//! their products are formed by the cheaper of two exact methods ([`crate::ops::gradient_cosine`]), so that no more than a tile of each
//! sample's gradient ever exists; norm weights and biases are summed within a sample and kept. A tied embedding is one
//! matrix: its head's gradients are formed again, some tokens of the vocabulary at a time, when the input side's are known.
//!
//! The gradient of −A · mean log p is A times that of −mean log p, so advantages come in only afterwards.
//!
//! What a 3B model (36 layers, hidden 2048, ffn 11008, vocabulary 151936, tied) costs on one H100, 32 samples of 512 tokens:
//! forward and backward 307 TFLOP; slabs and their Gram matrices 104 TFLOP, of which the ordinary dW are most, and which
//! take their place (ghost products would be 484 TFLOP: they pay below 2·in·out / (in + out), here 2k to 4k, tokens). At 800
//! TFLOP/s that is 0.38 s for the passes (dW included) and 0.01 s more for the Gram products; a layer's slab in bf16 is 4.9 GB and
//! crosses memory twice if it does not stay in the cache, 132 ms at 3 TB/s for all layers.

use crate::forest::{Forest, ROOT};
use crate::model::backend::Sink;
use crate::model::backend::cpu_sink::Cpu;
use crate::model::params::Layout;
use crate::model::{Activations, Architecture, Model, SavedActivations};
use crate::ops::gradient_cosine::{self as op, GramEntries, GramMethod, HeadRows, InputGrads};
use crate::ops::grouped_logprob::{self, Head, HeadGrads, Target, TokenGrad};
use crate::ops::linear::WeightGrad;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

/// A state and the action taken in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateAction {
    /// The state's tokens, then the action's.
    pub tokens: Vec<u32>,
    /// Where the action begins: the tokens before it are the state.
    pub action: usize,
}

/// Why samples cannot be measured.
#[derive(Debug, thiserror::Error, PartialEq)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum SampleError {
    #[error(
        "sample {sample} has {tokens} tokens, but the model's context is {context}: leave it out or shorten its state"
    )]
    TooLong { sample: usize, tokens: usize, context: usize },
    #[error(
        "sample {sample}: token {token} is not in the model's vocabulary of {vocab}: take the tokenizer of this model"
    )]
    Token { sample: usize, token: u32, vocab: usize },
}

/// The Gram matrix of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorGram {
    /// Hugging Face's name.
    pub name: String,
    /// `[samples, samples]`
    pub gram: Vec<f64>,
}

/// Inner products of the gradients of −mean log p(action | state), A = 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Grams {
    /// Number of samples n; every matrix is `[n, n]`.
    pub samples: usize,
    /// In the order of the layout of what is trained: all of a model, or its adapters.
    pub tensors: Vec<TensorGram>,
    /// Cosine of the final hidden states that the actions begin from, `[samples, samples]`.
    pub state: Vec<f64>,
    /// Mean log-prob of each action.
    pub logprob: Vec<f64>,
    /// Matrices by slabs, and by ghost products.
    pub methods: [usize; 2],
}

impl Grams {
    /// Measures `samples`. An action of no tokens has gradient 0.
    ///
    /// # Errors
    /// If a sample is longer than the model's context, or holds a token outside its vocabulary.
    pub fn new(model: &Model, samples: &[StateAction], keep: SavedActivations) -> Result<Grams, SampleError> {
        let batch = SampleBatch::new(&model.config, samples)?;
        let (layout, width) = (&model.params.layout, model.config.hidden_size);
        let trained = &model.trained().layout;
        let mut acts = Activations::default();
        model.forward(&batch.forest, keep, &mut acts);

        // The head, without its weight's gradient.
        let weight = &model.params.flat[layout.head.clone()];
        let head = Head { weight, hidden: &[], width, temperature: 1.0, dtype: model.dtype() };
        let mut d_hidden = vec![0.0; acts.hidden.len()];
        let mut logprobs = vec![0.0; batch.targets.len()];
        grouped_logprob::forward_backward(
            Head { hidden: &acts.hidden, ..head },
            &batch.targets,
            HeadGrads { weight: &mut [], hidden: &mut d_hidden },
            &mut |i, logprob, _| {
                logprobs[i] = logprob;
                TokenGrad { logprob: -batch.scale[i], entropy: 0.0 }
            },
        );

        let mut sink = GramSink::new(trained, batch.rows());
        model.backward_into(&batch.forest, &mut acts, &mut d_hidden, &mut sink);
        let GramSink { grams, vectors, inputs, methods, .. } = sink;
        let vectors = vectors.into_values().collect();
        let head = Head { hidden: &acts.hidden, ..head };
        let inputs = model.adapter.is_none().then_some(inputs);
        Ok(batch.grams(trained, Pass { grams, vectors, inputs, methods, logprobs: &logprobs, head }))
    }

    /// Sum over the tensors that `wanted` (by name) picks, `[samples, samples]`.
    pub fn sum(&self, wanted: impl Fn(&str) -> bool) -> Vec<f64> {
        let mut sum = vec![0.0; self.samples * self.samples];
        for tensor in self.tensors.iter().filter(|t| wanted(&t.name)) {
            sum.iter_mut().zip(&tensor.gram).for_each(|(s, g)| *s += g);
        }
        sum
    }

    /// Inner products of the gradients of −A · mean log p.
    pub fn weighted(&self, advantages: &[f64]) -> Grams {
        let n = self.samples;
        let weigh = |g: &[f64]| (0..n * n).map(|ij| advantages[ij / n] * advantages[ij % n] * g[ij]).collect();
        let tensor = |t: &TensorGram| TensorGram { name: t.name.clone(), gram: weigh(&t.gram) };
        Grams { tensors: self.tensors.iter().map(tensor).collect(), ..self.clone() }
    }
}

/// Samples packed for one pass, sharing nothing.
pub struct SampleBatch<'a> {
    samples: &'a [StateAction],
    /// The packed samples.
    pub forest: Forest,
    /// The actions' tokens, sample by sample.
    pub targets: Vec<Target>,
    /// The loss is Σ `scale` · (−log p) over them.
    pub scale: Vec<f32>,
    /// Where the targets of each sample end.
    ends: Vec<usize>,
}

/// What one pass over a batch found.
pub struct Pass<'a> {
    /// Of the tensors that are trained, `[samples, samples]`; zeros but for matrices of layers.
    pub grams: Vec<Vec<f64>>,
    /// Norm weights and biases: their place in the flat buffer, and their gradients `[samples, len]`.
    pub vectors: Vec<(Range<usize>, Vec<f32>)>,
    /// Gradients of the embedding, by sample; `None` where it and the head are frozen.
    pub inputs: Option<InputGrads>,
    /// How many matrices were measured by each [`crate::ops::gradient_cosine::GramMethod`].
    pub methods: [usize; 2],
    /// Of the batch's targets.
    pub logprobs: &'a [f32],
    /// The head that made them, and the final hidden states that it read.
    pub head: Head<'a>,
}

impl<'a> SampleBatch<'a> {
    /// Packs `samples` for a model of this architecture.
    ///
    /// # Errors
    /// If a sample is longer than the model's context, or holds a token outside its vocabulary.
    pub fn new(config: &Architecture, samples: &'a [StateAction]) -> Result<SampleBatch<'a>, SampleError> {
        check(config, samples)?;
        let tokens: Vec<&[u32]> = samples.iter().map(|s| &s.tokens[..]).collect();
        let forest = Forest::unshared(&tokens);
        let (mut targets, mut scale, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (sample, path) in samples.iter().zip(&forest.paths) {
            let action = path.get(sample.action.max(1)..).unwrap_or_default();
            let target = |&n: &u32| Target { row: forest.parent[n as usize], token: forest.tokens[n as usize] };
            debug_assert!(action.iter().all(|n| forest.parent[*n as usize] != ROOT));
            targets.extend(action.iter().map(target));
            scale.resize(targets.len(), 1.0 / action.len().max(1) as f32);
            ends.push(targets.len());
        }
        Ok(SampleBatch { samples, forest, targets, scale, ends })
    }

    /// Where the packed rows of each sample end.
    pub fn rows(&self) -> Vec<usize> {
        let mut end = 0;
        let rows = self.forest.paths.iter().map(|path| {
            end += path.len();
            end
        });
        rows.collect()
    }

    /// What a pass leaves to be done: vectors, embedding and head, and the states.
    pub fn grams(&self, layout: &Layout, mut pass: Pass<'_>) -> Grams {
        let n = self.samples.len();
        let mut grams = std::mem::take(&mut pass.grams);
        for (range, d) in &pass.vectors {
            for tensor in layout.within(range) {
                let own = &layout.entries[tensor].range;
                let columns = own.start - range.start..own.end - range.start;
                let slab: Vec<f32> =
                    d.chunks_exact(range.len()).flat_map(|row| &row[columns.clone()]).copied().collect();
                op::add_parts(&mut grams[tensor], n, &op::gram(&slab, n));
            }
        }
        if let Some(inputs) = pass.inputs.take() {
            self.add_head(layout, &mut pass, &inputs, &mut grams);
        }
        let first = |i: usize| if i == 0 { 0 } else { self.ends[i - 1] };
        let mean = |i: usize| {
            let own = &pass.logprobs[first(i)..self.ends[i]];
            own.iter().map(|lp| f64::from(*lp)).sum::<f64>() / own.len().max(1) as f64
        };
        let named = layout.entries.iter().zip(grams);
        Grams {
            samples: n,
            tensors: named.map(|(e, gram)| TensorGram { name: e.name.clone(), gram }).collect(),
            state: state_cosines(pass.head.hidden, pass.head.width, &self.forest, self.samples),
            logprob: (0..n).map(mean).collect(),
            methods: pass.methods,
        }
    }

    /// Adds the products of the head's gradients, and of the embedding's.
    fn add_head(&self, layout: &Layout, pass: &mut Pass<'_>, inputs: &InputGrads, grams: &mut [Vec<f64>]) {
        let width = pass.head.width;
        let row = |t: &Target| &pass.head.hidden[t.row as usize * width..][..width];
        let hidden: Vec<f32> = self.targets.iter().flat_map(row).copied().collect();
        let target: Vec<u32> = self.targets.iter().map(|t| t.token).collect();
        let rows = HeadRows {
            weight: pass.head.weight,
            width,
            hidden: &hidden,
            target: &target,
            logprob: pass.logprobs,
            scale: &self.scale,
            ends: &self.ends,
            dtype: pass.head.dtype,
        };
        pass.methods[usize::from(rows.method() == GramMethod::Ghost)] += 1;
        let tied = layout.head == layout.embed;
        grams[layout.within(&layout.head).start] = rows.gram(Some(inputs).filter(|_| tied));
        if !tied {
            op::add_parts(&mut grams[layout.within(&layout.embed).start], self.samples.len(), &inputs.gram());
        }
    }
}

fn check(config: &Architecture, samples: &[StateAction]) -> Result<(), SampleError> {
    let (context, vocab) = (config.max_position_embeddings, config.vocab_size);
    for (i, s) in samples.iter().enumerate() {
        if s.tokens.len() > context {
            return Err(SampleError::TooLong { sample: i, tokens: s.tokens.len(), context });
        }
        if let Some(&token) = s.tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(SampleError::Token { sample: i, token, vocab });
        }
    }
    Ok(())
}

fn state_cosines(hidden: &[f32], width: usize, forest: &Forest, samples: &[StateAction]) -> Vec<f64> {
    let row = |(sample, path): (&StateAction, &Vec<u32>)| {
        let last = path.get(sample.action.clamp(1, path.len().max(1)) - 1);
        last.map_or(vec![0.0; width], |n| {
            hidden[*n as usize * width..][..width].iter().map(|x| f64::from(*x)).collect()
        })
    };
    let rows: Vec<Vec<f64>> = samples.iter().zip(&forest.paths).map(row).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let gram: Vec<f64> = rows.iter().flat_map(|a| rows.iter().map(move |b| dot(a, b))).collect();
    cosines(&gram, samples.len())
}

/// Cosines from inner products `[n, n]`; 0 where a gradient is zero.
///
/// ```
/// use std::path::Path;
/// use uncouple::coupling::{Grams, StateAction, gram::cosines};
/// use uncouple::model::{SavedActivations, checkpoint};
///
/// let model = checkpoint::load(Path::new("tests/fixtures/golden/models/tiny-tied"))?;
/// // Two states of three tokens, and an action of two in each.
/// let samples = [[1, 2, 3, 8, 9], [1, 2, 4, 8, 9]].map(|tokens| StateAction { tokens: tokens.to_vec(), action: 3 });
/// let grams = Grams::new(&model, &samples, SavedActivations::All)?;
/// let cosine = cosines(&grams.sum(|_tensor| true), 2);
/// assert!((cosine[0] - 1.0).abs() < 1e-6, "a gradient with itself");
/// assert!(cosine[1] > 0.0 && cosine[1] < 1.0, "the same action in two states is coupled");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn cosines(inner: &[f64], n: usize) -> Vec<f64> {
    let norm = |i: usize| inner[i * (n + 1)].max(0.0).sqrt();
    let cosine = |ij: usize| {
        let scale = norm(ij / n) * norm(ij % n);
        if scale > 0.0 { inner[ij] / scale } else { 0.0 }
    };
    (0..n * n).map(cosine).collect()
}

/// ⟨g_i, g_j⟩ / ⟨g_i, g_i⟩: by how much a step along −g_j does sample i's work, in sample i's own steps; 0 where g_i is zero.
pub fn projections(inner: &[f64], n: usize) -> Vec<f64> {
    let own = |ij: usize| inner[ij / n * (n + 1)];
    (0..n * n).map(|ij| if own(ij) > 0.0 { inner[ij] / own(ij) } else { 0.0 }).collect()
}

/// The tensors of a fused matrix (query, key and value; gate and up), and which columns of its `dy` belong to each.
pub fn columns(
    layout: &Layout,
    range: &Range<usize>,
    in_features: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    layout.within(range).map(move |tensor| {
        let own = &layout.entries[tensor].range;
        (tensor, (own.start - range.start) / in_features..(own.end - range.start) / in_features)
    })
}

/// Forms Gram matrices of what the backward pass hands over. A GPU's is another (`train/engine/cuda_grams.rs`): the CPU cuts all
/// matrices of a layer in tiles for all cores, a GPU gets launches in order, and what is cheaper differs, as its tiles are filled up.
/// What follows the backward pass is the same code, [`SampleBatch::grams`].
struct GramSink<'a> {
    layout: &'a Layout,
    /// Where the rows of each sample end.
    ends: Vec<usize>,
    /// One for each of the layout's tensors.
    grams: Vec<Vec<f64>>,
    /// Norm weights and biases by place in the flat buffer: their gradients `[samples, len]`.
    vectors: BTreeMap<usize, (Range<usize>, Vec<f32>)>,
    inputs: InputGrads,
    methods: [usize; 2],
}

impl<'a> GramSink<'a> {
    fn new(layout: &'a Layout, ends: Vec<usize>) -> GramSink<'a> {
        let grams = vec![vec![0.0; ends.len() * ends.len()]; layout.entries.len()];
        GramSink { layout, ends, grams, vectors: BTreeMap::new(), inputs: InputGrads::default(), methods: [0; 2] }
    }
}

/// A tile of work; its matrix, and the first of the tensors that it adds to.
enum Job {
    Slab(usize, usize, Range<usize>),
    Ghost(usize, (usize, usize)),
}

impl Sink<Cpu> for GramSink<'_> {
    fn spans(&self) -> &[usize] {
        &self.ends
    }

    fn vector(&mut self, range: &Range<usize>, span: usize, d: &[f32]) -> Result<(), Infallible> {
        let samples = self.ends.len();
        let (_, sums) =
            self.vectors.entry(range.start).or_insert_with(|| (range.clone(), vec![0.0; samples * range.len()]));
        sums[span * d.len()..].iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
        Ok(())
    }

    /// One list of tiles for all of them, so that no core waits for another.
    fn matrices(&mut self, grads: &[(Range<usize>, WeightGrad<'_>)]) -> Result<(), Infallible> {
        let (samples, rows) = (self.ends.len(), self.ends.last().copied().unwrap_or(0));
        let mut jobs = Vec::new();
        // For each matrix its first tensor, and the columns of dy that belong to each of its tensors.
        let group = |(range, g): &(Range<usize>, WeightGrad<'_>)| {
            let columns = columns(self.layout, range, g.in_features).map(|(_, c)| g.first + c.start..g.first + c.end);
            (self.layout.within(range).start, columns.collect())
        };
        let groups: Vec<(usize, Vec<Range<usize>>)> = grads.iter().map(group).collect();
        for (matrix, ((range, g), (first, groups))) in grads.iter().zip(&groups).enumerate() {
            let method = op::cheaper(rows, samples, g.in_features, range.len() / g.in_features);
            self.methods[usize::from(method == GramMethod::Ghost)] += 1;
            match method {
                GramMethod::Ghost => jobs.extend(op::ghost_tiles(rows).map(|tile| Job::Ghost(matrix, tile))),
                GramMethod::Materialized => {
                    for (i, columns) in groups.iter().enumerate() {
                        let tiles = op::slab_tiles(columns.clone(), g.in_features, samples);
                        jobs.extend(tiles.map(|tile| Job::Slab(matrix, first + i, tile)));
                    }
                }
            }
        }
        let ends = &self.ends;
        let work = |job: &Job| match job {
            Job::Slab(matrix, tensor, tile) => vec![(*tensor, op::slab(grads[*matrix].1, tile.clone(), ends))],
            Job::Ghost(matrix, tile) => {
                let (first, groups) = &groups[*matrix];
                (*first..).zip(op::ghost(grads[*matrix].1, groups, ends, *tile)).collect()
            }
        };
        let parts: Vec<Vec<(usize, GramEntries)>> = jobs.par_iter().with_max_len(1).map(work).collect();
        let samples = self.ends.len();
        parts.iter().flatten().for_each(|(tensor, part)| op::add_parts(&mut self.grams[*tensor], samples, part));
        Ok(())
    }

    fn embedding(&mut self, _range: &Range<usize>, tokens: &[u32], d: &[f32]) -> Result<(), Infallible> {
        let width = d.len() / tokens.len().max(1);
        self.inputs = InputGrads::new(tokens, d, width, &self.ends);
        Ok(())
    }
}
