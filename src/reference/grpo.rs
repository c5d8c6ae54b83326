//! GRPO: advantages, the policy's log-probs, and every case's losses, gradient and metrics.

use super::forward::l2;
use super::inputs::{Advantages, GrpoCase, GrpoInputs, Level, LossType};
use super::tensors::Tensors;
use super::{GRPO_GRADS_CASE, ReferenceError, echo, sketch};
use crate::config::{self, Aggregation, RatioLevel};
use crate::device;
use crate::forest::Forest;
use crate::grpo::{LossNormalizer, LossReport, Sample};
use crate::model::Params;
use crate::ops::advantage::{Scale, advantages};
use crate::train::learner::Learner;
use serde_json::{Map, Value, json};
use std::path::Path;

pub struct GrpoOutputs {
    pub json: Value,
    /// Gradient of [`GRPO_GRADS_CASE`].
    pub grads: Params,
}

/// The `[rows, longest completion]` tensors that the cases read.
struct StoredInputs {
    old_logps: Vec<f64>,
    ref_logps: Vec<f64>,
    tool_mask: Vec<f64>,
}

impl StoredInputs {
    /// Reads them, and keeps a copy in `tensors`.
    fn read(
        given: &Tensors,
        shape: [usize; 2],
        golden: &Path,
        tensors: &mut Tensors,
    ) -> Result<StoredInputs, ReferenceError> {
        let mut read = |name: &str| {
            let no_input = || ReferenceError::NoInput { file: golden.join("golden.safetensors"), tensor: name.into() };
            let tensor = given.get(name).filter(|t| t.shape == shape).ok_or_else(no_input)?;
            tensors.0.insert(name.into(), tensor.clone());
            Ok::<_, ReferenceError>(tensor.to_f64())
        };
        Ok(StoredInputs {
            old_logps: read("grpo.old_logps")?,
            ref_logps: read("grpo.ref_logps")?,
            tool_mask: read("grpo.tool_mask")?,
        })
    }
}

pub fn compute(
    learner: &mut Learner,
    inputs: &GrpoInputs,
    raw: &Value,
    given: &Tensors,
    golden: &Path,
    tensors: &mut Tensors,
) -> Result<GrpoOutputs, ReferenceError> {
    let (rows, width) = padded(inputs, tensors);
    let given = StoredInputs::read(given, [rows, width], golden, tensors)?;

    let computed = group_advantages(inputs);
    tensors.insert_f32("grpo.advantages_group", &[rows], computed.group.clone());
    tensors.insert_f32("grpo.advantages_none", &[rows], computed.none.clone());
    tensors.insert_f32("grpo.advantages_batch", &[rows], computed.batch.clone());
    policy(learner, inputs, width, tensors)?;

    let fed = inputs.advantages.as_ref().unwrap_or(&computed);
    let mut cases = Map::new();
    let mut whole = Params::zeros(learner.export()?.params.layout.clone());
    for (name, raw) in &inputs.cases {
        let corrupt = |reason: String| ReferenceError::Corrupt {
            file: golden.join("golden.json"),
            reason: format!("grpo case `{name}`: {reason}"),
        };
        let case: GrpoCase = serde_json::from_value(raw.clone()).map_err(|e| corrupt(e.to_string()))?;
        // The ratio is clipped to 1 - lo .. 1 + hi.
        if !(case.lo >= 0.0 && case.hi >= 0.0) {
            return Err(corrupt(format!("lo = {} and hi = {} must not be negative", case.lo, case.hi)));
        }
        let (result, grads) = run_case(learner, inputs, &case, (fed, &given), width)?;
        let shape = [grads.layout.entries.len(), sketch::COLUMNS];
        tensors.insert_f64(format!("grpo.{name}.sketch"), &shape, sketch::of(&grads));
        let parameters = ["loss", "scale", "beta", "lo", "hi", "bc", "level", "old", "temp", "tool", "empty", "micro"];
        let mut json = echo(raw, &parameters);
        json.extend(result);
        cases.insert(name.clone(), json.into());
        if name == GRPO_GRADS_CASE {
            whole = grads;
        }
    }
    let mut json = echo(
        raw,
        &["group_size", "rewards", "advantage_eps", "max_completion_length", "pad_id", "prompts", "completions"],
    );
    json.insert(
        "advantages".into(),
        json!({ "group": computed.group, "none": computed.none, "batch": computed.batch }),
    );
    json.extend(echo(raw, &["empty_row_index"]));
    json.insert("cases".into(), cases.into());
    Ok(GrpoOutputs { json: json.into(), grads: whole })
}

/// Writes prompts (left-padded) and completions (right-padded) with their masks; returns rows and completion width.
fn padded(inputs: &GrpoInputs, tensors: &mut Tensors) -> (usize, usize) {
    let rows = inputs.completions.len();
    let longest = |lists: &[Vec<u32>]| lists.iter().map(Vec::len).max().unwrap_or(0);
    let (before, after) = (longest(&inputs.prompts), longest(&inputs.completions));
    let pad = i64::from(inputs.pad_id);
    let mut pad_all = |name: &str, width: usize, left: bool, list: &dyn Fn(usize) -> Vec<u32>| {
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let own: Vec<i64> = list(row).into_iter().map(i64::from).collect();
            let gap = width - own.len();
            let (head, tail) = if left { (gap, 0) } else { (0, gap) };
            let around = |fill: i64, own: &[i64], out: &mut Vec<i64>| {
                out.extend(std::iter::repeat_n(fill, head));
                out.extend(own);
                out.extend(std::iter::repeat_n(fill, tail));
            };
            around(pad, &own, &mut ids);
            around(0, &vec![1; own.len()], &mut mask);
        }
        tensors.insert_i64(format!("grpo.{name}_ids"), &[rows, width], ids);
        tensors.insert_i64(format!("grpo.{name}_mask"), &[rows, width], mask);
    };
    pad_all("prompt", before, true, &|row| inputs.prompts[row / inputs.group_size].clone());
    pad_all("completion", after, false, &|row| inputs.completions[row].clone());
    (rows, after)
}

fn group_advantages(inputs: &GrpoInputs) -> Advantages {
    let groups = vec![inputs.group_size; inputs.prompts.len()];
    let scaled = |scale| -> Vec<f32> {
        advantages(&inputs.rewards, &groups, scale, inputs.advantage_eps).into_iter().map(|a| a as f32).collect()
    };
    Advantages { group: scaled(Scale::Group), none: scaled(Scale::None), batch: scaled(Scale::Batch) }
}

/// Prompt and completion of a row, and where the completion starts.
fn sequence(inputs: &GrpoInputs, row: usize) -> (Vec<u32>, usize) {
    let prompt = &inputs.prompts[row / inputs.group_size];
    ([prompt.as_slice(), &inputs.completions[row]].concat(), prompt.len())
}

/// The policy's log-probs and entropies at temperature 1, 0 at padding.
fn policy(learner: &mut Learner, inputs: &GrpoInputs, width: usize, tensors: &mut Tensors) -> device::Result<()> {
    let rows = inputs.completions.len();
    let sequences: Vec<Vec<u32>> = (0..rows).map(|row| sequence(inputs, row).0).collect();
    let forest = Forest::new(&sequences);
    let (mut logps, mut entropies) = (vec![0.0; rows * width], vec![0.0; rows * width]);
    for (row, path) in forest.paths.iter().enumerate() {
        let (logp, entropy) = learner.logprobs(&forest, &path[sequence(inputs, row).1..], 1.0)?;
        logps[row * width..][..logp.len()].copy_from_slice(&logp);
        entropies[row * width..][..entropy.len()].copy_from_slice(&entropy);
    }
    tensors.insert_f32("grpo.policy_logps", &[rows, width], logps);
    tensors.insert_f32("grpo.entropy", &[rows, width], entropies);
    Ok(())
}

/// Losses, norm, metrics and the gradient of one case; `width` is that of the completions.
fn run_case(
    learner: &mut Learner,
    inputs: &GrpoInputs,
    case: &GrpoCase,
    (fed, given): (&Advantages, &StoredInputs),
    width: usize,
) -> device::Result<(Map<String, Value>, Params)> {
    let config = config_of(inputs, case);
    let samples = samples_of(inputs, case, fed, given, width);
    let norm = LossNormalizer::new(&samples, case.micro);
    let parts = samples.chunks(samples.len().div_ceil(case.micro.max(1)));
    let reports: Vec<LossReport> = parts
        .map(|part| Ok(learner.backward_policy(&config, part, norm, case.temp, &mut |_, _| {})?.0))
        .collect::<device::Result<_>>()?;
    let grads = learner.take_grads()?;
    let list = |f: fn(&LossReport) -> f64| reports.iter().map(|r| f(r) as f32).collect::<Vec<f32>>();
    let mut metrics = Map::new();
    if case.beta != 0.0 {
        metrics.insert("kl".into(), json!(list(|r| r.kl)));
    }
    metrics.insert("entropy".into(), json!(list(|r| r.entropy)));
    metrics.insert("clip_ratio/low_mean".into(), json!(list(|r| r.clip_ratio_low_mean)));
    metrics.insert("clip_ratio/high_mean".into(), json!(list(|r| r.clip_ratio_high_mean)));
    metrics.insert("clip_ratio/region_mean".into(), json!(list(|r| r.clip_ratio_region_mean)));
    metrics.insert("clip_ratio/low_min".into(), json!(list(|r| r.clip_ratio_low_min)));
    metrics.insert("clip_ratio/high_max".into(), json!(list(|r| r.clip_ratio_high_max)));
    let mut result = Map::new();
    result.insert("losses".into(), json!(list(|r| r.loss)));
    result.insert("grad_l2".into(), json!(l2(&grads.flat)));
    result.insert("num_items_in_batch".into(), json!(norm.tokens()));
    result.insert("metrics".into(), metrics.into());
    Ok((result, grads))
}

/// The loss of a case, in our own terms.
fn config_of(inputs: &GrpoInputs, case: &GrpoCase) -> config::Grpo {
    config::Grpo {
        aggregation: match case.loss {
            LossType::Dapo => Aggregation::TokenMean,
            LossType::Bnpo => Aggregation::MicroTokenMean,
            LossType::Grpo => Aggregation::SequenceMean,
            LossType::DrGrpo => Aggregation::Constant,
        },
        constant_length: inputs.max_completion_length,
        epsilon_low: case.lo,
        epsilon_high: case.hi,
        dual_clip: 0.0,
        beta: case.beta,
        kl_ratio: case.bc,
        entropy_coef: 0.0,
        ratio: match case.level {
            Level::Token => RatioLevel::Token,
            Level::Sequence => RatioLevel::Sequence,
        },
        ..config::Grpo::default()
    }
}

/// The rows of a case.
fn samples_of(
    inputs: &GrpoInputs,
    case: &GrpoCase,
    fed: &Advantages,
    given: &StoredInputs,
    width: usize,
) -> Vec<Sample> {
    let advantage = match case.scale {
        Scale::Group => &fed.group,
        Scale::Batch => &fed.batch,
        Scale::None => &fed.none,
    };
    let sample = |row: usize| {
        let (tokens, start) = sequence(inputs, row);
        let n = tokens.len();
        let at = |t: usize| row * width + t - start;
        let from = |values: &[f64]| (0..n).map(|t| if t < start { 0.0 } else { values[at(t)] as f32 }).collect();
        let empty = case.empty && row == inputs.empty_row_index;
        let carries = |t: usize| t >= start && !empty && !(case.tool && given.tool_mask[at(t)] == 0.0);
        Sample {
            tokens,
            mask: (0..n).map(carries).collect(),
            advantage: vec![advantage[row]; n],
            old_logprobs: case.old.then(|| from(&given.old_logps)),
            ref_logprobs: (case.beta != 0.0).then(|| from(&given.ref_logps)),
            ..Sample::default()
        }
    };
    (0..inputs.completions.len()).map(sample).collect()
}
