//! The inner products of per-sample gradients, measured on a GPU: the passes and the products of the layers' matrices there; those
//! of norm weights and biases, of the embedding's rows and of the head on the host, from what the passes leave.

use crate::coupling::CouplingError;
use crate::coupling::gram::{Grams, Pass, SampleBatch, StateAction, columns};
use crate::device::{Dtype, Gpu, Result, Slice, Tensor};
use crate::model::SavedActivations;
use crate::model::backend::Sink;
use crate::model::backend::cuda::CudaModel;
use crate::model::backend::cuda_sink::{Add, Cuda, part};
use crate::model::params::Layout;
use crate::ops::embedding::cuda::Tokens;
use crate::ops::gradient_cosine::cuda::Samples;
use crate::ops::gradient_cosine::{GramMethod, InputGrads};
use crate::ops::grouped_logprob;
use crate::ops::grouped_logprob::cuda::{self as head, Gradients, Head, Targets};
use crate::ops::linear::cuda::WeightGrad;
use crate::train::TrainError;
use half::bf16;
use std::collections::BTreeMap;
use std::ops::Range;

/// As [`Grams::new`]. Matrices are counted as the layout has them: query, key and value apart, gate and up too.
///
/// # Errors
/// If a sample is too long or holds an unknown token, or the device fails.
pub fn grams(
    gpu: &Gpu,
    model: &CudaModel,
    samples: &[StateAction],
    keep: SavedActivations,
) -> Result<Grams, TrainError> {
    let (layout, trained, width) = (&*model.layout, &**model.trained().0, model.config.hidden_size);
    let batch = SampleBatch::new(&model.config, samples).map_err(CouplingError::from)?;
    let packed = model.forest(&batch.forest)?;
    let mut acts = model.forward(&packed, keep)?;
    let weight = part(&model.weights, &layout.head);
    let targets = Targets::new(gpu, &batch.targets, batch.forest.len())?;
    let (logprobs, d_hidden) = {
        let head = Head { weight: &weight, hidden: &acts.hidden, width, temperature: 1.0 };
        let scores = head::forward(gpu, head, &targets)?;
        let ordered: Vec<f32> = targets.order.iter().map(|&i| -batch.scale[i]).collect();
        let (d_logprob, d_entropy) = (gpu.tensor(&ordered)?, gpu.zeros(ordered.len())?);
        let d_hidden = gpu.zeros::<bf16>(acts.hidden.len())?;
        let sums = Gradients { d_logprob: &d_logprob, d_entropy: &d_entropy, d_weight: None, d_hidden: &d_hidden };
        head::backward(gpu, head, &targets, &scores, sums)?;
        (scores.read(gpu, &targets)?.0, d_hidden)
    };
    let mut sink = GramSink::new(gpu, trained, batch.rows())?;
    model.backward_into(&packed, &mut acts, &d_hidden, &mut sink)?;
    let GramSink { samples: Samples { ends, .. }, grams, vectors, inputs, methods, .. } = sink;
    let vectors = vectors.into_values().map(|(range, d)| Ok((range, gpu.read(&*d)?)));
    let (grams, square) = (gpu.read(&*grams)?, ends.len() * ends.len());
    let pass = Pass {
        vectors: vectors.collect::<Result<_>>()?,
        grams: (0..trained.entries.len()).map(|t| grams[t * square..(t + 1) * square].to_vec()).collect(),
        inputs: model.adapter.is_none().then(|| InputGrads::new(&batch.forest.tokens, &inputs, width, &ends)),
        methods,
        logprobs: &logprobs,
        // What is read was rounded on the device.
        head: grouped_logprob::Head {
            weight: &read(gpu, &weight)?,
            hidden: &read(gpu, &acts.hidden)?,
            width,
            temperature: 1.0,
            dtype: Dtype::F32,
        },
    };
    Ok(batch.grams(trained, pass))
}

fn read(gpu: &Gpu, from: &Slice<bf16>) -> Result<Vec<f32>> {
    Ok(gpu.read(from)?.into_iter().map(f32::from).collect())
}

/// Forms Gram matrices of what the backward pass hands over.
struct GramSink<'a> {
    gpu: &'a Gpu,
    layout: &'a Layout,
    samples: Samples,
    /// `[tensors, samples, samples]`
    grams: Tensor<f64>,
    /// Norm weights and biases by place in the flat buffer: their gradients `[samples, len]`.
    vectors: BTreeMap<usize, (Range<usize>, Tensor<f32>)>,
    /// The embedding's, `[tokens, hidden]`.
    inputs: Vec<f32>,
    methods: [usize; 2],
}

impl<'a> GramSink<'a> {
    fn new(gpu: &'a Gpu, layout: &'a Layout, ends: Vec<usize>) -> Result<GramSink<'a>> {
        let grams = gpu.zeros(layout.entries.len() * ends.len() * ends.len())?;
        let samples = Samples::new(gpu, ends)?;
        Ok(GramSink { gpu, layout, samples, grams, vectors: BTreeMap::new(), inputs: Vec::new(), methods: [0; 2] })
    }
}

impl Sink<Cuda> for GramSink<'_> {
    fn spans(&self) -> &[usize] {
        &self.samples.ends
    }

    fn vector(&mut self, range: &Range<usize>, span: usize, add: Add<'_>) -> Result<()> {
        let len = range.len();
        if !self.vectors.contains_key(&range.start) {
            let zeros = self.gpu.zeros(self.samples.ends.len() * len)?;
            self.vectors.insert(range.start, (range.clone(), zeros));
        }
        add(&part(&self.vectors[&range.start].1, &(span * len..(span + 1) * len)))
    }

    fn matrices(&mut self, grads: &[(Range<usize>, WeightGrad<'_>)]) -> Result<()> {
        let square = self.samples.ends.len() * self.samples.ends.len();
        let tensors =
            grads.iter().flat_map(|(range, g)| columns(self.layout, range, g.in_features).map(move |t| (*g, t)));
        for (g, (tensor, columns)) in tensors {
            let columns = g.first + columns.start..g.first + columns.end;
            let method = self.samples.method(g.in_features, columns.len());
            self.methods[usize::from(method == GramMethod::Ghost)] += 1;
            let gram = part(&self.grams, &(tensor * square..(tensor + 1) * square));
            self.samples.add(self.gpu, method, g, columns, &gram)?;
        }
        Ok(())
    }

    fn embedding(&mut self, _range: &Range<usize>, _tokens: &Tokens, d: &Slice<bf16>) -> Result<()> {
        self.inputs = read(self.gpu, d)?;
        Ok(())
    }
}
