//! Judges a replay: one row per quantity of a golden set.
//!
//! The limit of every quantity is ten of the set's own noise floors. Where a set states no floor, it follows from one it
//! states, as said beside each quantity; where a floor is exactly 0 it is f32's spacing times the quantity's magnitude.
//! Every tensor and file of the stored outputs is either an input or judged: a name that no rule knows fails.

use super::compare::{self, EPS, Floor, QuantityRow};
use super::tensors::{Tensor, Tensors};
use super::{ADAMW_PARAMS, CE_GRADS, GRPO_GRADS, GRPO_GRADS_CASE, Outputs, ReferenceError};
use super::{compute, models, read_json, tokenizer};
use crate::model::checkpoint;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// The rows of a check, each with the model (or `tokenizer`) it belongs to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// (model, row).
    pub rows: Vec<(String, QuantityRow)>,
}

impl CheckReport {
    /// Whether every quantity is within its limit.
    pub fn passed(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|(_, row)| row.pass)
    }
}

/// Replays every model of the set, and the tokenizer, and compares with the stored outputs.
///
/// # Errors
/// If a file of the set is missing or damaged, or its parts do not fit together.
pub fn check(set: &Path) -> Result<CheckReport, ReferenceError> {
    let mut report = CheckReport::default();
    for name in models(set)? {
        let ours = compute(set, &name, None)?;
        let rows = Checker::new(set, &name, &ours)?.run()?;
        report.rows.extend(rows.into_iter().map(|row| (name.clone(), row)));
    }
    let (ours, golden) = (tokenizer::compute(set)?, read_json(&set.join(tokenizer::FILE))?);
    report.rows.extend(tokenizer_rows(&ours, &golden).into_iter().map(|row| ("tokenizer".to_string(), row)));
    Ok(report)
}

fn tokenizer_rows(ours: &Value, golden: &Value) -> Vec<QuantityRow> {
    let fields = golden.as_object().into_iter().flatten();
    fields
        .map(|(field, golden)| match (golden, &ours[field]) {
            (Value::Array(golden), Value::Array(ours)) if golden.len() == ours.len() => {
                QuantityRow::exact(field, golden.iter().zip(ours).filter(|(a, b)| a != b).count())
            }
            (golden, ours) => QuantityRow::exact(field, usize::from(golden != ours)),
        })
        .collect()
}

/// One model's outputs, ours and the stored.
struct Checker<'a> {
    set: &'a Path,
    name: &'a str,
    ours: &'a Outputs,
    json: Value,
    tensors: Tensors,
    rows: Vec<QuantityRow>,
}

impl<'a> Checker<'a> {
    fn new(set: &'a Path, name: &'a str, ours: &'a Outputs) -> Result<Checker<'a>, ReferenceError> {
        let dir = set.join("golden").join(name);
        let json = read_json(&dir.join("golden.json"))?;
        let tensors = Tensors::read(&dir.join("golden.safetensors"))?;
        Ok(Checker { set, name, ours, json, tensors, rows: Vec::new() })
    }

    fn run(mut self) -> Result<Vec<QuantityRow>, ReferenceError> {
        self.forward();
        self.whole_gradients()?;
        self.adamw()?;
        self.persample();
        self.generate();
        self.grpo();
        self.sketches();
        self.unknown();
        Ok(self.rows)
    }

    /// The stored noise floor at a JSON pointer; one that is missing judges by f32's spacing.
    fn floor(&self, pointer: &str) -> Floor {
        let floor = self.json.pointer(pointer);
        let measure = |name: &str| Some(floor.and_then(|f| f[name].as_f64()).unwrap_or(0.0));
        Floor { rel_l2: measure("rel_l2"), max_abs: measure("max_abs") }
    }

    fn push(&mut self, quantity: &str, ours: Option<Vec<f64>>, golden: Option<Vec<f64>>, floor: Floor) {
        self.rows.push(match (ours, golden) {
            (Some(ours), Some(golden)) => compare::values(quantity, &ours, &golden, floor),
            _ => QuantityRow::absent(quantity),
        });
    }

    fn tensor(&mut self, name: &str, floor: Floor) {
        let values = |t: &Tensors| t.get(name).map(Tensor::to_f64);
        self.push(name, values(&self.ours.tensors), values(&self.tensors), floor);
    }

    /// Numbers of golden.json at a JSON pointer, nested lists and objects flattened.
    fn numbers(&mut self, pointer: &str, floor: Floor) {
        let quantity = pointer.trim_start_matches('/').replace('/', ".");
        let get = |json: &Value| json.pointer(pointer).map(flatten);
        self.push(&quantity, get(&self.ours.json), get(&self.json), floor);
    }

    fn exact(&mut self, pointer: &str) {
        let (ours, golden) = (self.ours.json.pointer(pointer), self.json.pointer(pointer));
        let differences = match (ours, golden) {
            (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
                a.iter().zip(b).filter(|(a, b)| a != b).count()
            }
            (a, b) => usize::from(a != b || b.is_none()),
        };
        self.rows.push(QuantityRow::exact(&pointer.trim_start_matches('/').replace('/', "."), differences));
    }

    fn forward(&mut self) {
        self.exact("/parameters");
        let logits = self.floor("/forward/noise_floor/logits");
        self.tensor("logits", logits);
        // No floor of their own: hidden states are one matrix product away from the logits.
        if self.tensors.get("hidden_states").is_some() {
            self.tensor("hidden_states", Floor { max_abs: None, ..logits });
        }
        for kind in ["logprobs", "entropy"] {
            let floor = self.floor(&format!("/forward/noise_floor/{kind}"));
            let all = |t: &Tensors| {
                let of_kind = t.0.iter().filter(|(n, _)| n.starts_with("seq") && n.ends_with(kind));
                Some(of_kind.flat_map(|(_, t)| t.to_f64()).collect())
            };
            self.push(&format!("seq*.{kind}"), all(&self.ours.tensors), all(&self.tensors), floor);
        }
        // The tables are f32 functions of few roundings.
        for name in ["rope.inv_freq", "rope.cos", "rope.sin"] {
            self.tensor(name, Floor::abs(EPS));
        }
        let ce = self.json["forward"]["ce_loss"].as_f64().unwrap_or(0.0);
        let ce_f64 = self.json["forward"]["ce_loss_f64"].as_f64().unwrap_or(ce);
        // A mean of log-probs; by luck the reference may have hit the float64 value exactly.
        self.numbers("/forward/ce_loss", Floor::abs((ce - ce_f64).abs().max(EPS * ce.abs())));
        self.exact("/forward/completion_tokens");
        let grads = self.floor("/forward/noise_floor/ce_grads");
        let scale = self.tensors.get("ce.sketch").map_or(0.0, compare::sketch_norm);
        let whole = Floor::abs(grads.rel_l2.unwrap_or(0.0) * scale);
        self.numbers("/forward/padding_idx_effect/pad_row_grad_l2", whole);
        self.numbers("/forward/padding_idx_effect/pad_row_grad_l2_if_config_pad_token_id_set", whole);
    }

    fn whole_gradients(&mut self) -> Result<(), ReferenceError> {
        let case = format!("/grpo/cases/{GRPO_GRADS_CASE}/noise_floor_grads");
        for (stem, floor) in [(CE_GRADS, self.floor("/forward/noise_floor/ce_grads")), (GRPO_GRADS, self.floor(&case))]
        {
            if let Some((ours, golden)) = self.whole(stem)? {
                self.push(stem, ours, Some(golden), floor);
            }
        }
        Ok(())
    }

    /// Values of a file of whole tensors, ours and the stored, by name; `None` when the set has no such file.
    #[allow(clippy::type_complexity)]
    fn whole(&self, stem: &str) -> Result<Option<(Option<Vec<f64>>, Vec<f64>)>, ReferenceError> {
        let file = self.set.join("golden").join(self.name).join(format!("{stem}.safetensors"));
        if !file.exists() {
            return Ok(None);
        }
        let golden = Tensors::read(&file)?;
        let ours = self.ours.whole.iter().find(|(s, _)| *s == stem).map(|(_, t)| t);
        let same = ours.filter(|o| o.0.keys().eq(golden.0.keys()));
        let values = |t: &Tensors| t.0.values().flat_map(Tensor::to_f64).collect();
        Ok(Some((same.map(values), values(&golden))))
    }

    /// Parameters are judged by how they moved: p - p0.
    fn adamw(&mut self) -> Result<(), ReferenceError> {
        let floor = self.floor("/adamw/noise_floor/update");
        // Single elements with a gradient near 0 move by up to the learning rate either way: no max_abs here.
        let floor = Floor { max_abs: None, ..floor };
        for k in 0..self.ours.update_l2.len() {
            let name = format!("adamw.step{}.sketch", k + 1);
            let row = match (self.ours.tensors.get(&name), self.tensors.get(&name)) {
                (Some(ours), Some(golden)) => compare::sketches(&name, ours, golden, self.ours.update_l2[k], floor),
                _ => QuantityRow::absent(&name),
            };
            self.rows.push(row);
        }
        if let Some((Some(ours), golden)) = self.whole(ADAMW_PARAMS)? {
            let model = checkpoint::load(&self.set.join("models").join(self.name))?;
            let first: Vec<f64> = super::named(&model.params).0.values().flat_map(Tensor::to_f64).collect();
            let moved = |p: Vec<f64>| p.iter().zip(&first).map(|(p, p0)| p - p0).collect::<Vec<f64>>();
            self.push("adamw_params (update)", Some(moved(ours)), Some(moved(golden)), floor);
        }
        let grads = self.floor("/forward/noise_floor/ce_grads").rel_l2.unwrap_or(0.0);
        for k in 0..self.ours.update_l2.len() {
            let at = format!("/adamw/steps/{k}");
            let stored = |field: &str| {
                let of =
                    |steps: &str| self.json.pointer(&format!("/adamw/{steps}/{k}/{field}")).and_then(Value::as_f64);
                let value = of("steps").unwrap_or(0.0);
                (value, (value - of("steps_f64").unwrap_or(value)).abs())
            };
            let ((loss, loss_floor), (norm, norm_floor)) = (stored("loss"), stored("grad_norm_before_clip"));
            self.numbers(&format!("{at}/loss"), Floor::abs(loss_floor.max(EPS * loss)));
            self.numbers(&format!("{at}/grad_norm_before_clip"), Floor::abs(norm_floor.max(grads * norm)));
        }
        Ok(())
    }

    fn persample(&mut self) {
        let inner = self.floor("/persample/noise_floor/inner");
        let cosine = self.floor("/persample/noise_floor/cosine");
        self.exact("/persample/positive");
        self.exact("/persample/negative");
        self.tensor("persample.inner", inner);
        self.tensor("persample.inner_per_tensor", inner);
        self.tensor("persample.inner_unweighted", Floor { max_abs: None, ..inner });
        self.tensor("persample.cosine", cosine);
        self.tensor("persample.cosine_unweighted", cosine);
        // P_ij = cos_ij |g_j| / |g_i|: judged as the cosine it is, so that short gradients do not drown the others. The two
        // norms add a rounding each.
        let norms: Vec<f64> = {
            let k = self.tensors.get("persample.inner").map(Tensor::to_f64).unwrap_or_default();
            let n = k.len().isqrt();
            (0..n).map(|i| k[i * (n + 1)].max(0.0).sqrt()).collect()
        };
        let n = norms.len();
        let as_cosine = |t: &Tensors| {
            let p = t.get("persample.projection")?.to_f64();
            let scale = |ij: usize| if norms[ij % n] > 0.0 { norms[ij / n] / norms[ij % n] } else { 1.0 };
            (p.len() == n * n).then(|| p.iter().enumerate().map(|(ij, p)| p * scale(ij)).collect())
        };
        let limit = Floor::abs(cosine.max_abs.unwrap_or(0.0).max(EPS));
        self.push("persample.projection", as_cosine(&self.ours.tensors), as_cosine(&self.tensors), limit);

        let inner_abs = Floor { rel_l2: None, ..inner };
        let stretch = norms.iter().copied().fold(0.0, f64::max)
            / norms.iter().copied().filter(|n| *n > 0.0).fold(f64::INFINITY, f64::min);
        self.numbers("/persample/inner_by_layer", inner);
        self.numbers("/persample/inner_by_kind", inner);
        self.numbers("/persample/inner_means", inner_abs);
        self.numbers("/persample/cosine_means", Floor { rel_l2: None, ..cosine });
        self.numbers("/persample/cosine_unweighted_means", Floor { rel_l2: None, ..cosine });
        self.numbers("/persample/projection_means", Floor::abs(cosine.max_abs.unwrap_or(0.0).max(EPS) * stretch));
    }

    fn generate(&mut self) {
        for field in ["new_tokens_greedy", "new_tokens_repetition_penalty_1.1", "new_tokens_stop_case"] {
            self.exact(&format!("/generate/{field}"));
        }
        let logits = self.floor("/forward/noise_floor/logits").max_abs.unwrap_or(0.0);
        // Differences of two logits.
        for field in ["min_top1_top2_gap", "repetition_penalty_min_gap"] {
            self.numbers(&format!("/generate/{field}"), Floor::abs(2.0 * logits));
        }
        self.exact("/generate/sampling_cases");
        self.tensor("sampling.logits", Floor::abs(logits));
        // dp = p (dl - mean dl) / temperature: no more than the logits' own error at the temperatures in use.
        self.tensor("sampling.probs", Floor::abs(logits));
    }

    fn grpo(&mut self) {
        for name in ["prompt_ids", "prompt_mask", "completion_ids", "completion_mask"] {
            let name = format!("grpo.{name}");
            self.rows
                .push(QuantityRow::exact(&name, usize::from(self.ours.tensors.get(&name) != self.tensors.get(&name))));
        }
        for scale in ["group", "none", "batch"] {
            let floor = self.floor(&format!("/grpo/noise_floor_advantages/{scale}"));
            self.numbers(&format!("/grpo/advantages/{scale}"), floor);
            self.tensor(&format!("grpo.advantages_{scale}"), floor);
        }
        let (logprobs, entropy) =
            (self.floor("/forward/noise_floor/logprobs"), self.floor("/forward/noise_floor/entropy"));
        for (name, floor) in [("grpo.policy_logps", logprobs), ("grpo.entropy", entropy)] {
            // Padding is nobody's: TRL leaves what it happens to compute there.
            let real = |t: &Tensors| {
                let mask = self.tensors.get("grpo.completion_mask")?.to_f64();
                let values = t.get(name)?.to_f64();
                Some(values.iter().zip(&mask).filter(|(_, m)| **m > 0.0).map(|(v, _)| *v).collect())
            };
            self.push(name, real(&self.ours.tensors), real(&self.tensors), floor);
        }

        let cases = self.json["grpo"]["cases"].as_object().cloned().unwrap_or_default();
        // The losses of all cases are sums of the same terms; alone, a case may by luck have no error at all.
        let error = |case: &Value| {
            let (f32s, f64s) = (flatten(&case["losses"]), flatten(&case["losses_f64_plain"]));
            f32s.iter().zip(&f64s).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        let losses = cases.values().map(error).fold(0.0, f64::max);
        for (name, case) in &cases {
            let at = format!("/grpo/cases/{name}");
            self.numbers(&format!("{at}/losses"), Floor::abs(losses));
            let norm = case["grad_l2"].as_f64().unwrap_or(0.0);
            let rel = case["noise_floor_grads"]["rel_l2"].as_f64().unwrap_or(0.0);
            self.numbers(&format!("{at}/grad_l2"), Floor::abs(rel * norm));
            self.exact(&format!("{at}/num_items_in_batch"));
            for metric in case["metrics"].as_object().into_iter().flatten().map(|(m, _)| m) {
                let floor = match metric.as_str() {
                    "entropy" => Floor::abs(entropy.max_abs.unwrap_or(0.0)),
                    "kl" => Floor::abs(logprobs.max_abs.unwrap_or(0.0)),
                    _ => Floor::abs(EPS), // shares of tokens: exact counts
                };
                self.numbers(&format!("{at}/metrics/{}", metric.replace('/', "~1")), floor);
            }
        }
    }

    /// Gradient sketches, against the floor of the gradient they stand for.
    fn sketches(&mut self) {
        let names: Vec<String> = self.tensors.0.keys().filter(|n| n.ends_with(".sketch")).cloned().collect();
        for name in names.iter().filter(|n| !n.starts_with("adamw.")) {
            let ce = self.floor("/forward/noise_floor/ce_grads");
            let floor = match name.strip_prefix("grpo.").and_then(|n| n.strip_suffix(".sketch")) {
                Some(case) => self.floor(&format!("/grpo/cases/{case}/noise_floor_grads")),
                // A sample's gradient has no floor of its own: relatively it is as noisy as the batch's.
                None if name.starts_with("persample.") => Floor { max_abs: None, ..ce },
                None => ce,
            };
            let row = match (self.ours.tensors.get(name), self.tensors.get(name)) {
                (Some(ours), Some(golden)) if compare::sketch_norm(golden) > 0.0 => {
                    compare::sketches(name, ours, golden, compare::sketch_norm(golden), floor)
                }
                (Some(ours), Some(golden)) => QuantityRow::exact(name, usize::from(ours != golden)),
                _ => QuantityRow::absent(name),
            };
            self.rows.push(row);
        }
    }

    /// Stored tensors that nothing above has judged.
    fn unknown(&mut self) {
        let inputs = ["grpo.old_logps", "grpo.ref_logps", "grpo.tool_mask"];
        let known = |name: &str| {
            inputs.contains(&name)
                || (name.starts_with("seq") && (name.ends_with(".logprobs") || name.ends_with(".entropy")))
                || self.rows.iter().any(|row| row.quantity == name)
        };
        let unknown: Vec<QuantityRow> =
            self.tensors.0.keys().filter(|n| !known(n)).map(|n| QuantityRow::absent(n)).collect();
        self.rows.extend(unknown);
    }
}

/// All numbers of a JSON value, in order; of an object, by key.
fn flatten(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(flatten).collect(),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            entries.into_iter().flat_map(|(_, v)| flatten(v)).collect()
        }
        other => other.as_f64().into_iter().collect(),
    }
}
