//! Judgments: the policy says of its own actions whether they were good, and learns from being right.
//!
//! A judgment goes on where the judged action ended, with a question, so that in the forest it shares the whole trajectory up
//! to there. The answer is a short reasoning, and on a line of its own `Verdict: good` or `Verdict: bad`.

use super::judge::Question;
use super::label::{Label, LabelCounts, Labelled, labels, share};
use crate::agent::{Episode, PromptError, Prompter};
use crate::config::{Baseline, Config, Format, GcdMode};
use crate::grpo::Sample;
use crate::ops::advantage::advantages;
use crate::ops::philox;
use crate::rollout::{Actor, Answer, PrefixCache, RolloutError, RolloutSettings};
use std::collections::HashSet;

const VERDICT: &str = "Verdict: ";

/// The question about the action just taken. A compact model has been taught what it means; others are told.
pub fn question(format: Format) -> &'static str {
    match format {
        Format::Compact => "Was it right?",
        Format::Chat | Format::Think => {
            "Judge your last action: was it good (it brought the goal nearer) or bad (it did not)? Say in one line what you \
             would do in its place, then write a last line that is exactly `Verdict: good` or `Verdict: bad`."
        }
    }
}

/// What an answer begins with that is not sampled. A compact model that finds here what it finds before a command begins commands
/// as judgments.
pub fn opening(format: Format) -> &'static str {
    match format {
        Format::Compact => "judge: ",
        Format::Chat | Format::Think => "",
    }
}

/// The question's tokens, from the end of the judged turn to the first sampled token of the answer.
///
/// # Errors
/// If the question cannot be tokenised.
pub fn ask(prompter: &Prompter, format: Format) -> Result<Vec<u32>, PromptError> {
    let mut tokens = prompter.encode_question(question(format))?;
    tokens.extend(prompter.tokenizer().encode(opening(format))?);
    Ok(tokens)
}

/// The answer that the cold start teaches.
pub fn taught_answer(better: &str, label: Label) -> String {
    format!("I would {better}.\n{VERDICT}{}", label.name())
}

/// The verdict of an answer: its last line, the only verdict in it, after at least one line of reasoning.
pub fn verdict(text: &str) -> Option<Label> {
    let (reasoning, last) = text.split_once(&format!("\n{VERDICT}"))?;
    match last {
        _ if reasoning.trim().is_empty() || reasoning.contains(VERDICT) => None,
        "good" => Some(Label::Good),
        "bad" => Some(Label::Bad),
        _ => None,
    }
}

/// Share of the turns in which the agent, who is to act, writes a verdict: there judging leaks into acting.
pub fn verdict_rate(episodes: &[Episode]) -> f64 {
    let turns = || episodes.iter().flat_map(|e| &e.turns);
    let holds = |text: &str| text.to_lowercase().contains("verdict:");
    share(turns().filter(|turn| holds(&turn.action)).count(), turns().count()).unwrap_or_default()
}

/// A labelled (state, action): which turn of which episode, and the prompt of its judgments.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Index of the episode.
    pub episode: usize,
    /// Index of the turn in the episode.
    pub turn: usize,
    /// The label, good or bad.
    pub label: Label,
    /// Tokens up to the first sampled token of a judgment.
    pub prompt: Vec<u32>,
}

/// How pairs are drawn.
#[derive(Debug, Clone, Copy)]
pub struct PairDraw {
    /// Most pairs.
    pub count: usize,
    /// Most tokens of a judgment with its prompt.
    pub context: usize,
    /// Where its random numbers come from.
    pub seed: u64,
    /// The random stream by which pairs are chosen.
    pub stream: u64,
}

/// Draws different labelled pairs, as many good ones as bad ones where the labels allow, in the order of the episodes; a function of
/// the episodes and `draw`. Also counts the labels of all turns.
///
/// # Errors
/// A chat template under which the policy cannot be asked, where it will be.
pub fn pairs(
    of: Labelled<'_>,
    prompter: &Prompter,
    config: &Config,
    draw: PairDraw,
) -> Result<(Vec<Pair>, LabelCounts), PromptError> {
    let Labelled { episodes, judge_labels } = of;
    let question = match ask(prompter, config.prompt.format) {
        // Where nobody asks, actions are only drawn.
        Err(PromptError::Judgments(_)) if config.gcd.mode != GcdMode::Generate => Vec::new(),
        question => question?,
    };
    let (mut counts, mut seen) = (LabelCounts::default(), HashSet::new());
    let [mut good, mut bad] = [Vec::new(), Vec::new()];
    for (e, episode) in episodes.iter().enumerate() {
        for (t, (turn, label)) in episode.turns.iter().zip(labels(episode, e, judge_labels, &config.gcd)).enumerate() {
            counts.add(label);
            let acted = episode.acted(turn);
            let fits = acted.len() + 1 + question.len() + config.gcd.max_tokens as usize <= draw.context;
            let Some(label) = label.filter(|_| fits && seen.insert(acted)) else { continue };
            let [key, ..] = philox::block(draw.seed, draw.stream, (e << 16 | t) as u64);
            match label {
                Label::Good => good.push((key, e, t, label)),
                Label::Bad => bad.push((key, e, t, label)),
            }
        }
    }
    good.sort_unstable_by_key(|(key, e, t, _)| (*key, *e, *t));
    bad.sort_unstable_by_key(|(key, e, t, _)| (*key, *e, *t));
    good.truncate((draw.count / 2).max(draw.count.saturating_sub(bad.len())));
    bad.truncate(draw.count - good.len());
    good.append(&mut bad);
    good.sort_unstable_by_key(|(_, e, t, _)| (*e, *t));
    let pair = |(_, episode, turn, label): (u32, usize, usize, Label)| {
        let played = &episodes[episode];
        let mut prompt = played.acted(&played.turns[turn]).to_vec();
        // A turn that ran too long is closed, as it was in the episode.
        if !prompt.last().is_some_and(|last| prompter.ends_turn(*last)) {
            prompt.push(prompter.end());
        }
        prompt.extend_from_slice(&question);
        Pair { episode, turn, label, prompt }
    };
    Ok((good.into_iter().map(pair).collect(), counts))
}

/// At most `count` turns drawn for the judge, as (episode, turn) with what it is asked; none twice by what came before and
/// the action. A function of the episodes, `seed` and `stream`.
pub fn questions(
    episodes: &[Episode],
    count: usize,
    (seed, stream): (u64, u64),
) -> (Vec<(usize, usize)>, Vec<Question>) {
    let (mut seen, mut drawn) = (HashSet::new(), Vec::new());
    for (e, episode) in episodes.iter().enumerate() {
        for (t, turn) in episode.turns.iter().enumerate() {
            if seen.insert(episode.acted(turn)) {
                drawn.push((philox::block(seed, stream, (e << 16 | t) as u64)[1], e, t));
            }
        }
    }
    drawn.sort_unstable();
    drawn.truncate(count);
    let ask = |&(_, e, t): &(u32, usize, usize)| {
        let turns = &episodes[e].turns;
        let mut state = String::new();
        for turn in &turns[..t] {
            state += &format!("Observation: {}\nAction: {}\n", turn.observation, turn.command());
        }
        Question { state: state + "Observation: " + &turns[t].observation, action: turns[t].command().into() }
    };
    let asked = drawn.iter().map(ask).collect();
    (drawn.into_iter().map(|(_, e, t)| (e, t)).collect(), asked)
}

/// The judgments of an iteration or an evaluation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Judged {
    /// How many turns have which label.
    pub counts: LabelCounts,
    /// The pairs that were judged.
    pub pairs: Vec<Pair>,
    /// For each pair its judgments and their verdicts (`None`: there is none in the answer).
    pub judgments: Vec<Vec<(Answer, Option<Label>)>>,
}

/// Lets the policy judge at most `pair_count` actions, `judgments` times each (0: they are only drawn), in one batch, under the actor's
/// settings but for the length of an answer. What `cache` keeps of the episodes is not read again.
///
/// # Errors
/// As [`Actor::answers_on`], and those of [`pairs`].
pub fn judge(
    config: &Config,
    actor: &Actor<'_>,
    cache: &mut PrefixCache<'_>,
    of: Labelled<'_>,
    [pair_count, judgments]: [usize; 2],
) -> Result<Judged, RolloutError> {
    let actor =
        actor.with(RolloutSettings { max_turn_tokens: config.gcd.max_tokens as usize, ..actor.settings.clone() });
    let (seed, stream) = (actor.settings.seed, actor.settings.stream.part(u32::MAX.into()));
    let draw = PairDraw { count: pair_count, context: cache.config().max_position_embeddings, seed, stream };
    let (pairs, counts) = pairs(of, actor.prompter, config, draw)?;
    if judgments == 0 {
        return Ok(Judged { counts, pairs, judgments: Vec::new() });
    }
    let prompts: Vec<Vec<u32>> = pairs.iter().map(|p| p.prompt.clone()).collect();
    let answers = actor.answers_on(cache, &prompts, judgments)?;
    let read = |answer: Answer| -> Result<_, RolloutError> {
        let written = answer.tokens.split_last().filter(|_| answer.ended).map(|(_, text)| text);
        let text = written.map(|tokens| actor.prompter.tokenizer().decode(tokens, false)).transpose()?;
        let verdict = text.and_then(|text| verdict(&text));
        Ok((answer, verdict))
    };
    let judgments =
        answers.into_iter().map(|of| of.into_iter().map(read).collect()).collect::<Result<_, RolloutError>>()?;
    Ok(Judged { counts, pairs, judgments })
}

/// How good judgments were, in shares of judgments.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Accuracy {
    /// Verdicts that equal the label; without a verdict a judgment is wrong. `None`: nothing was judged.
    pub all: Option<f64>,
    /// The same of good actions.
    pub good: Option<f64>,
    /// The same of bad actions.
    pub bad: Option<f64>,
    /// Judgments without a verdict.
    pub unparsable: Option<f64>,
}

impl Judged {
    /// Judgments by label and verdict.
    fn count(&self, which: impl Fn(Label, Option<Label>) -> bool) -> usize {
        let verdicts = self.pairs.iter().zip(&self.judgments);
        verdicts.map(|(p, of)| of.iter().filter(|(_, verdict)| which(p.label, *verdict)).count()).sum()
    }

    /// How often the judgments were right.
    pub fn accuracy(&self) -> Accuracy {
        let of = |class: Label| {
            let right = self.count(|label, verdict| label == class && verdict == Some(label));
            share(right, self.count(|label, _| label == class))
        };
        let all = self.count(|_, _| true);
        Accuracy {
            all: share(self.count(|label, verdict| verdict == Some(label)), all),
            good: of(Label::Good),
            bad: of(Label::Bad),
            unparsable: share(self.count(|_, verdict| verdict.is_none()), all),
        }
    }

    /// Sampled tokens.
    pub fn tokens(&self) -> usize {
        self.judgments.iter().flatten().map(|(answer, _)| answer.tokens.len()).sum()
    }

    /// The rows of L_GCD: reward 1 for a right verdict, else 0; advantage over `gcd.baseline`.
    pub fn samples(&self, config: &Config) -> Vec<Sample> {
        let reward = |label, verdict: &Option<Label>| f64::from(u8::from(*verdict == Some(label)));
        let rewards: Vec<f64> = self
            .pairs
            .iter()
            .zip(&self.judgments)
            .flat_map(|(p, of)| of.iter().map(move |(_, verdict)| reward(p.label, verdict)))
            .collect();
        let groups: Vec<usize> = match config.gcd.baseline {
            Baseline::Pair => self.judgments.iter().map(Vec::len).collect(),
            Baseline::Batch => vec![rewards.len()],
        };
        let advantage = advantages(&rewards, &groups, config.grpo.advantage, config.grpo.advantage_eps.into());
        let answers = self.pairs.iter().zip(&self.judgments).flat_map(|(p, of)| of.iter().map(move |(a, _)| (p, a)));
        answers.zip(advantage).map(|((pair, answer), a)| sample(pair, answer, a as f32)).collect()
    }
}

fn sample(pair: &Pair, answer: &Answer, advantage: f32) -> Sample {
    let prompt = &pair.prompt[..];
    let n = prompt.len() + answer.tokens.len();
    Sample {
        tokens: [prompt, &answer.tokens].concat(),
        mask: (0..n).map(|t| t >= prompt.len()).collect(),
        advantage: vec![advantage; n],
        old_logprobs: Some([&vec![0.0; prompt.len()][..], &answer.logprobs].concat()),
        ref_logprobs: None,
        episode: pair.episode,
        judgment: true,
        trajectory_loss_tokens: 0,
    }
}
