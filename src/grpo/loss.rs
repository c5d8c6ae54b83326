//! The clipped policy loss over a forest (docs/method.md; TRL's definitions).
//!
//! With `d = logp - old`, `r = exp(d)` (sequence level: `r = exp(mean of d over the row's loss tokens)`):
//!
//! ```text
//! l  = -min(r A, clip(r, 1 - low, 1 + high) A),  A < 0 and dual clip c: l = min(l, -c A)
//! l += beta k3 (r if kl_ratio),  k3 = exp(ref - logp) - (ref - logp) - 1
//! l -= entropy_coef H
//! loss = sum of weight(row) l over the loss tokens
//! ```
//!
//! Trajectories and judgments are two terms, each aggregated over its own rows: `loss = L_GRPO + lambda L_GCD`.

use crate::config::{Aggregation, Grpo, RatioLevel};
use crate::forest::Forest;
use crate::ops::grouped_logprob::TokenGrad;
use std::ops::Range;

/// One sequence as the loss sees it. Every array runs over all tokens; entry 0 (nothing precedes it) is never read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// The whole sequence, prompt and answers.
    pub tokens: Vec<u32>,
    /// Which tokens carry loss (the agent's own; never the environment's).
    pub mask: Vec<bool>,
    /// The advantage of each token.
    pub advantage: Vec<f32>,
    /// Log-probs when sampled; `None`: the current policy's own, detached (ratio 1).
    pub old_logprobs: Option<Vec<f32>>,
    /// The frozen reference's log-probs; needed when `beta > 0`.
    pub ref_logprobs: Option<Vec<f32>>,
    /// Which episode of the batch it is, or judges.
    pub episode: usize,
    /// A judgment: a row of L_GCD, not of L_GRPO.
    pub judgment: bool,
    /// One of several sequences of a trajectory that has so many loss tokens (0: the only one). The loss of a trajectory weighs
    /// the same, however it is laid out; a ratio at sequence level is one for each sequence.
    pub trajectory_loss_tokens: usize,
}

impl Sample {
    /// The sequence in `range`, one of those that the sample's tokens are, end to end.
    pub fn part(&self, range: Range<usize>) -> Sample {
        let logprobs = |of: &Option<Vec<f32>>| of.as_ref().map(|all| all[range.clone()].to_vec());
        Sample {
            tokens: self.tokens[range.clone()].to_vec(),
            mask: self.mask[range.clone()].to_vec(),
            advantage: self.advantage[range.clone()].to_vec(),
            old_logprobs: logprobs(&self.old_logprobs),
            ref_logprobs: logprobs(&self.ref_logprobs),
            episode: self.episode,
            judgment: self.judgment,
            trajectory_loss_tokens: self.loss_positions().count(),
        }
    }

    /// Positions of the tokens that carry loss, ascending.
    pub fn loss_positions(&self) -> impl Iterator<Item = usize> + '_ {
        (1..self.tokens.len()).filter(|&t| self.mask[t])
    }
}

/// The loss tokens whose terms a pass takes; the others are counted, but add nothing to loss and gradient. The parts' losses
/// and gradients add up to those of `All`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossPart {
    /// All loss tokens.
    #[default]
    All,
    /// Trajectories' tokens whose advantage is negative.
    Negative,
    /// Trajectories' other tokens.
    Positive,
    /// The tokens of judgments.
    Judgments,
}

/// What the aggregation divides by: totals of the whole generation batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossNormalizer {
    trajectories: Totals,
    judgments: Totals,
    /// Micro-batches the generation batch is split into.
    micro_batches: usize,
    /// Weight of the judgments' term.
    lambda: f64,
    part: LossPart,
}

/// The rows of one term of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Totals {
    /// Loss tokens.
    tokens: usize,
    /// Trajectories or judgments, those without a loss token included; a part counts by its share of the loss tokens.
    sequences: f64,
}

impl Totals {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> Totals {
        samples.fold(Totals { tokens: 0, sequences: 0.0 }, |sum, s| {
            let tokens = s.loss_positions().count();
            let share =
                if s.trajectory_loss_tokens == 0 { 1.0 } else { tokens as f64 / s.trajectory_loss_tokens as f64 };
            Totals { tokens: sum.tokens + tokens, sequences: sum.sequences + share }
        })
    }
}

impl LossNormalizer {
    /// The totals of `samples`, the whole generation batch.
    pub fn new(samples: &[Sample], micro_batches: usize) -> LossNormalizer {
        LossNormalizer {
            trajectories: Totals::of(samples.iter().filter(|s| !s.judgment)),
            judgments: Totals::of(samples.iter().filter(|s| s.judgment)),
            micro_batches,
            lambda: 1.0,
            part: LossPart::All,
        }
    }

    /// Loss tokens of all trajectories.
    pub fn tokens(&self) -> usize {
        self.trajectories.tokens
    }

    /// The same with another weight of the judgments' term than 1.
    pub fn with_lambda(self, lambda: f32) -> LossNormalizer {
        LossNormalizer { lambda: lambda.into(), ..self }
    }

    /// The same for a pass that takes only a part of the tokens.
    pub fn with_part(self, part: LossPart) -> LossNormalizer {
        LossNormalizer { part, ..self }
    }
}

/// The loss of one micro-batch, fed token by token by the head's single pass.
pub struct PolicyLoss<'a> {
    config: &'a Grpo,
    samples: &'a [Sample],
    nodes: Vec<u32>,
    /// `uses[offsets[i]..offsets[i + 1]]` are the loss tokens that lie on `nodes[i]`.
    offsets: Vec<usize>,
    uses: Vec<Use>,
    rows: Vec<SampleSums>,
    part: LossPart,
    logprobs_set: bool,
    loss: f64,
    kl: f64,
    entropy: f64,
}

/// What a kernel reads of one use of a token by a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UseInput {
    /// The advantage.
    pub advantage: f32,
    /// The log-prob when it was sampled; not a number: the policy's own, detached.
    pub old: f32,
    /// The frozen reference's log-prob; read if `beta` is not 0.
    pub reference: f32,
    /// The use's share of the loss; 0 where it belongs to another pass.
    pub weight: f32,
    /// Sequence level: the sequence's ratio.
    pub ratio: f32,
    /// Sequence level: the gradient that reaches the log-prob by the ratio.
    pub through: f32,
}

/// What a kernel found of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UseFound {
    /// The weighted loss.
    pub term: f32,
    /// The token's KL estimate k3, in nats.
    pub kl: f32,
    /// −1 at the lower bound of the ratio, 1 at the upper, else 0.
    pub clipped: f32,
}

/// Token `at` of sample `row`.
#[derive(Clone, Copy)]
struct Use {
    row: usize,
    at: usize,
}

/// Per-sample state.
#[derive(Default)]
struct SampleSums {
    tokens: usize,
    /// Weight of each of the row's token losses in the total.
    weight: f64,
    /// Sequence level: the row's ratio, and the derivative of the sum of its token losses by that ratio.
    ratio: f64,
    d_ratio: f64,
    clipped_low: usize,
    clipped_high: usize,
}

/// What one micro-batch's loss came to; field names as TRL's metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossReport {
    /// This micro-batch's share of the loss: the shares of all micro-batches add up.
    pub loss: f64,
    /// Mean over loss tokens, after the ratio factor where `kl_ratio` is on.
    pub kl: f64,
    /// Mean over loss tokens, nats.
    pub entropy: f64,
    /// Share of loss tokens (sequence-level ratio: of sequences) where the lower clip binds: `r < 1 - low` and `A < 0`.
    pub clip_ratio_low_mean: f64,
    /// The same for the upper clip: `r > 1 + high` and `A > 0`.
    pub clip_ratio_high_mean: f64,
    /// Either side.
    pub clip_ratio_region_mean: f64,
    /// Smallest share among sequences that have loss tokens.
    pub clip_ratio_low_min: f64,
    /// Largest share among sequences.
    pub clip_ratio_high_max: f64,
}

/// What a token of a sample weighs that has `tokens` of them in the loss, of `here` such tokens of its term in the micro-batch.
fn token_weight(config: &Grpo, sample: &Sample, tokens: usize, here: usize, norm: &LossNormalizer) -> f64 {
    let (term, factor) = match sample.judgment {
        false => (norm.trajectories, 1.0),
        true => (norm.judgments, norm.lambda),
    };
    let tokens = if sample.trajectory_loss_tokens == 0 { tokens.max(1) } else { sample.trajectory_loss_tokens };
    factor
        * match config.aggregation {
            Aggregation::TokenMean => 1.0 / term.tokens as f64,
            Aggregation::MicroTokenMean => 1.0 / (here * norm.micro_batches) as f64,
            Aggregation::SequenceMean => 1.0 / (term.sequences * tokens as f64),
            Aggregation::Constant => 1.0 / (term.sequences * f64::from(config.constant_length)),
        }
}

impl<'a> PolicyLoss<'a> {
    /// `samples[i]` is the forest's sequence `i`.
    ///
    /// # Panics
    /// When the forest is not that of the samples, or `beta > 0` and a sample has no reference log-probs.
    pub fn new(config: &'a Grpo, forest: &Forest, samples: &'a [Sample], norm: LossNormalizer) -> PolicyLoss<'a> {
        assert_eq!(forest.paths.len(), samples.len(), "policy loss: one sample for each sequence of the forest");
        assert!(
            config.beta == 0.0 || samples.iter().all(|s| s.ref_logprobs.is_some()),
            "policy loss: grpo.beta > 0 needs the reference's log-probs in every sample"
        );
        let mut keyed: Vec<(u32, Use)> = Vec::new();
        let mut rows: Vec<SampleSums> = Vec::with_capacity(samples.len());
        for (row, (sample, path)) in samples.iter().zip(&forest.paths).enumerate() {
            let before = keyed.len();
            keyed.extend(sample.loss_positions().map(|at| (path[at], Use { row, at })));
            rows.push(SampleSums { tokens: keyed.len() - before, ratio: 1.0, ..SampleSums::default() });
        }
        // Stable, so that the terms of a shared token add up in the order of the samples.
        keyed.sort_by_key(|(node, _)| *node);
        let (mut nodes, mut offsets): (Vec<u32>, Vec<usize>) = (Vec::new(), Vec::new());
        for (k, (node, _)) in keyed.iter().enumerate() {
            if nodes.last() != Some(node) {
                nodes.push(*node);
                offsets.push(k);
            }
        }
        offsets.push(keyed.len());
        let judged = keyed.iter().filter(|(_, u)| samples[u.row].judgment).count();
        for (row, sample) in rows.iter_mut().zip(samples) {
            let here = if sample.judgment { judged } else { keyed.len() - judged };
            row.weight = token_weight(config, sample, row.tokens, here, &norm);
        }
        PolicyLoss {
            config,
            samples,
            nodes,
            offsets,
            uses: keyed.into_iter().map(|(_, u)| u).collect(),
            rows,
            part: norm.part,
            logprobs_set: false,
            loss: 0.0,
            kl: 0.0,
            entropy: 0.0,
        }
    }

    /// The nodes whose log-probs the loss reads, ascending.
    pub fn nodes(&self) -> &[u32] {
        &self.nodes
    }

    /// Whether [`PolicyLoss::set_logprobs`] must be called before the pass (sequence-level ratio).
    pub fn needs_logprobs(&self) -> bool {
        self.config.ratio == RatioLevel::Sequence
    }

    /// The current policy's log-prob of each of [`PolicyLoss::nodes`].
    ///
    /// # Panics
    /// When there is not one for each node.
    pub fn set_logprobs(&mut self, logprobs: &[f32]) {
        assert_eq!(logprobs.len(), self.nodes.len(), "policy loss: one log-prob for each node");
        self.logprobs_set = true;
        for row in &mut self.rows {
            (row.ratio, row.d_ratio) = (0.0, 0.0);
        }
        for (i, &logprob) in logprobs.iter().enumerate() {
            for u in &self.uses[self.offsets[i]..self.offsets[i + 1]] {
                self.rows[u.row].ratio += log_ratio(&self.samples[u.row], u.at, logprob.into());
            }
        }
        for row in &mut self.rows {
            row.ratio = (row.ratio / row.tokens.max(1) as f64).exp();
        }
        for (i, &logprob) in logprobs.iter().enumerate() {
            for k in self.offsets[i]..self.offsets[i + 1] {
                let Use { row, at } = self.uses[k];
                if !self.takes(row, at) {
                    continue;
                }
                let term = self.term(row, at, logprob.into(), self.rows[row].ratio);
                self.rows[row].d_ratio += term.d_ratio;
            }
        }
    }

    /// The loss gradient at `nodes()[i]`; adds the token's terms to the report. A shared token carries the sum of its terms.
    pub fn token(&mut self, i: usize, logprob: f32, entropy: f32) -> TokenGrad {
        debug_assert!(self.logprobs_set || !self.needs_logprobs(), "policy loss: set_logprobs comes first");
        let (mut d_logprob, mut d_entropy) = (0.0, 0.0);
        let coef = f64::from(self.config.entropy_coef);
        let (logprob, entropy) = (f64::from(logprob), f64::from(entropy));
        for k in self.offsets[i]..self.offsets[i + 1] {
            let Use { row, at } = self.uses[k];
            let taken = self.takes(row, at);
            let (term, through_ratio) = match self.config.ratio {
                RatioLevel::Token => {
                    let ratio = log_ratio(&self.samples[row], at, logprob).exp();
                    let term = self.term(row, at, logprob, ratio);
                    (term, if taken { term.d_ratio * ratio } else { 0.0 })
                }
                RatioLevel::Sequence => {
                    let r = &self.rows[row];
                    (self.term(row, at, logprob, r.ratio), r.d_ratio * r.ratio / r.tokens as f64)
                }
            };
            let row = &mut self.rows[row];
            row.clipped_low += usize::from(term.low);
            row.clipped_high += usize::from(term.high);
            self.kl += term.kl;
            self.entropy += entropy;
            // A sequence's ratio depends on all its tokens, whatever part they belong to.
            d_logprob += row.weight * (if taken { term.d_logprob } else { 0.0 } + through_ratio);
            if taken {
                self.loss += row.weight * (term.loss - coef * entropy);
                d_entropy -= row.weight * coef;
            }
        }
        TokenGrad { logprob: d_logprob as f32, entropy: d_entropy as f32 }
    }

    /// The uses of `nodes()[i]` by samples, as a kernel reads them.
    pub fn uses(&self, i: usize) -> impl Iterator<Item = UseInput> + '_ {
        self.uses[self.offsets[i]..self.offsets[i + 1]].iter().map(|&Use { row, at }| {
            let (sample, r) = (&self.samples[row], &self.rows[row]);
            UseInput {
                advantage: sample.advantage[at],
                old: sample.old_logprobs.as_ref().map_or(f32::NAN, |old| old[at]),
                reference: sample.ref_logprobs.as_ref().map_or(0.0, |reference| reference[at]),
                weight: if self.takes(row, at) { r.weight as f32 } else { 0.0 },
                ratio: r.ratio as f32,
                through: (r.weight * r.d_ratio * r.ratio / r.tokens as f64) as f32,
            }
        })
    }

    /// Adds to the report what a kernel found of the uses of `nodes()[i]`, in their order.
    pub fn add(&mut self, i: usize, entropy: f32, found: impl IntoIterator<Item = UseFound>) {
        for (k, UseFound { term, kl, clipped }) in (self.offsets[i]..self.offsets[i + 1]).zip(found) {
            let row = &mut self.rows[self.uses[k].row];
            row.clipped_low += usize::from(clipped < 0.0);
            row.clipped_high += usize::from(clipped > 0.0);
            self.loss += f64::from(term);
            self.kl += f64::from(kl);
            self.entropy += f64::from(entropy);
        }
    }

    /// The settings of the loss.
    pub fn config(&self) -> &Grpo {
        self.config
    }

    /// The loss and its statistics over all tokens that were added.
    pub fn finish(self) -> LossReport {
        let tokens = self.uses.len().max(1) as f64;
        // Shares of clipped tokens: over tokens, or over rows when a row has one ratio.
        let mean = |count: fn(&SampleSums) -> usize| match self.config.ratio {
            RatioLevel::Token => self.rows.iter().map(count).sum::<usize>() as f64 / tokens,
            RatioLevel::Sequence => {
                self.rows.iter().map(|r| share(r, count)).sum::<f64>() / self.rows.len().max(1) as f64
            }
        };
        let with_tokens = || self.rows.iter().filter(|r| r.tokens > 0);
        LossReport {
            loss: self.loss,
            kl: self.kl / tokens,
            entropy: self.entropy / tokens,
            clip_ratio_low_mean: mean(|r| r.clipped_low),
            clip_ratio_high_mean: mean(|r| r.clipped_high),
            clip_ratio_region_mean: mean(|r| r.clipped_low + r.clipped_high),
            clip_ratio_low_min: with_tokens().map(|r| share(r, |r| r.clipped_low)).reduce(f64::min).unwrap_or(0.0),
            clip_ratio_high_max: with_tokens().map(|r| share(r, |r| r.clipped_high)).reduce(f64::max).unwrap_or(0.0),
        }
    }

    /// Whether token `at` of sample `row` belongs to the pass.
    fn takes(&self, row: usize, at: usize) -> bool {
        let sample = &self.samples[row];
        match self.part {
            LossPart::All => true,
            LossPart::Negative => !sample.judgment && sample.advantage[at] < 0.0,
            LossPart::Positive => !sample.judgment && sample.advantage[at] >= 0.0,
            LossPart::Judgments => sample.judgment,
        }
    }

    /// One token's loss and its partial derivatives, given the ratio that applies to it.
    fn term(&self, row: usize, at: usize, logprob: f64, ratio: f64) -> Term {
        let (c, sample) = (self.config, &self.samples[row]);
        let a = f64::from(sample.advantage[at]);
        let (lowest, highest) = (1.0 - f64::from(c.epsilon_low), 1.0 + f64::from(c.epsilon_high));
        let mut term = Term {
            loss: -(ratio * a),
            d_ratio: -a,
            low: ratio < lowest && a < 0.0,
            high: ratio > highest && a > 0.0,
            ..Term::default()
        };
        if term.low || term.high {
            (term.loss, term.d_ratio) = (-(ratio.clamp(lowest, highest) * a), 0.0);
        }
        let dual = -f64::from(c.dual_clip) * a;
        if c.dual_clip > 0.0 && a < 0.0 && term.loss > dual {
            (term.loss, term.d_ratio) = (dual, 0.0);
        }
        if let (true, Some(reference)) = (c.beta != 0.0, &sample.ref_logprobs) {
            let (beta, x) = (f64::from(c.beta), f64::from(reference[at]) - logprob);
            let (k3, d_k3) = (x.exp() - x - 1.0, 1.0 - x.exp());
            let factor = if c.kl_ratio { ratio } else { 1.0 };
            term.kl = k3 * factor;
            term.loss += beta * term.kl;
            term.d_logprob = beta * d_k3 * factor;
            term.d_ratio += if c.kl_ratio { beta * k3 } else { 0.0 };
        }
        term
    }
}

#[derive(Clone, Copy, Default)]
struct Term {
    loss: f64,
    kl: f64,
    /// By the ratio.
    d_ratio: f64,
    /// By the token's own log-prob, the ratio held fixed.
    d_logprob: f64,
    low: bool,
    high: bool,
}

fn log_ratio(sample: &Sample, at: usize, logprob: f64) -> f64 {
    sample.old_logprobs.as_ref().map_or(0.0, |old| logprob - f64::from(old[at]))
}

fn share(row: &SampleSums, count: fn(&SampleSums) -> usize) -> f64 {
    count(row) as f64 / row.tokens.max(1) as f64
}
