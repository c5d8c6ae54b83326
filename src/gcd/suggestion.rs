//! Suggestions: flawed actions so likely that their own gradient no longer drives them out, named in the prompt.
//!
//! A flawed action of probability q has the expected advantage q r (q − 1), which vanishes as q → 1 ([`super::theory`]). Above
//! q = 1/2 lies the danger zone: there the policy is told. q is the mean of two estimates, the action's probability when it was
//! sampled and its share among samples drawn again in the same state.

use super::Label;
use super::label::{Flaw, flaws, labels};
use super::label::{JudgeLabels, Labelled};
use crate::agent::{Episode, Turn};
use crate::config::{Config, Gcd};
use crate::env::{EnvError, Split};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

/// Longest suggestion, in characters.
const LONGEST: usize = 160;
/// Longest quotation of an observation, in characters.
const EXCERPT: usize = 200;

/// A sentence for the prompt, and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The sentence.
    pub text: String,
    /// The flawed actions it rests on.
    pub evidence: Vec<Evidence>,
}

impl Suggestion {
    /// Whether it was made about this.
    pub fn is_about(&self, topic: &Topic) -> bool {
        self.evidence.iter().any(|e| (e.verb(), e.flaw) == (&topic.verb[..], topic.flaw))
    }
}

/// A flawed action in a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// A training game in which it was taken.
    pub task: String,
    /// What the agent was shown.
    pub observation: String,
    /// The command.
    pub action: String,
    /// What was wrong with it.
    pub flaw: Flaw,
    /// Times it was taken.
    pub count: usize,
    /// Its mean probability when it was sampled.
    pub sampled: f64,
    /// Its share among samples drawn again.
    pub resampled: f64,
    /// Its mean advantage.
    pub advantage: f64,
}

impl Evidence {
    /// Probability of the action.
    pub fn q(&self) -> f64 {
        (self.sampled + self.resampled) / 2.0
    }

    fn verb(&self) -> &str {
        self.action.split_whitespace().next().unwrap_or_default()
    }
}

/// A flawed action before it is sampled again; `at` is an (episode, turn) where it was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// An (episode, turn) where the action was taken.
    pub at: (usize, usize),
    /// The action, and how often it was taken.
    pub evidence: Evidence,
}

/// Probability of a turn's action when it was sampled, its end token included: given its thought, where there is one.
pub fn probability(episode: &Episode, turn: &Turn) -> f64 {
    episode.logprobs[turn.tokens.start + turn.thought..turn.tokens.end]
        .iter()
        .map(|lp| f64::from(*lp))
        .sum::<f64>()
        .exp()
}

/// The flawed turns of an episode, in order: (turn, flaw).
pub fn flawed(episode: &Episode, index: usize, judge_labels: &JudgeLabels, config: &Gcd) -> Vec<(usize, Flaw)> {
    let labels = labels(episode, index, judge_labels, config);
    let flaws = flaws(episode, config.cycle as usize);
    let flawed = labels.iter().zip(flaws).enumerate().filter(|(_, (label, _))| **label == Some(Label::Bad));
    flawed.map(|(turn, (_, flaw))| (turn, flaw.unwrap_or(Flaw::Astray))).collect()
}

/// The flawed actions that are likeliest by how they were sampled, at most `config.suggestions.candidates`. `advantage` is that of
/// a turn, by (episode, turn). Refuses evidence from games that are not training's.
///
/// # Errors
/// If an episode is not of a training game.
pub fn candidates(
    of: Labelled<'_>,
    advantage: &dyn Fn(usize, usize) -> f64,
    config: &Config,
) -> Result<Vec<Candidate>, EnvError> {
    let mut found: BTreeMap<(&str, &str), Candidate> = BTreeMap::new();
    for (e, episode) in of.episodes.iter().enumerate() {
        if episode.task.split != Split::Train {
            let reason = format!("suggestions rest on training games only, and this one is of {}", episode.task.split);
            return Err(EnvError::HeldOut { id: episode.task.id.clone(), reason });
        }
        for (t, flaw) in flawed(episode, e, of.judge_labels, &config.gcd) {
            let turn = &episode.turns[t];
            // What cannot be read as a command has no verb to speak of.
            if turn.refusal.is_some() {
                continue;
            }
            let new = || Candidate {
                at: (e, t),
                evidence: Evidence {
                    task: episode.task.id.clone(),
                    observation: turn.observation.chars().take(EXCERPT).collect(),
                    action: turn.command().into(),
                    flaw,
                    count: 0,
                    sampled: 0.0,
                    resampled: 0.0,
                    advantage: 0.0,
                },
            };
            let of = &mut found.entry((&turn.observation, turn.command())).or_insert_with(new).evidence;
            of.count += 1;
            of.sampled += probability(episode, turn);
            of.advantage += advantage(e, t);
        }
    }
    let mut found: Vec<Candidate> = found.into_values().collect();
    // Sums until here: what is both likely and frequent comes first.
    found.sort_by(|a, b| b.evidence.sampled.total_cmp(&a.evidence.sampled).then(a.at.cmp(&b.at)));
    found.truncate(config.suggestions.candidates as usize);
    for Candidate { evidence, .. } in &mut found {
        evidence.sampled /= evidence.count as f64;
        evidence.advantage /= evidence.count as f64;
    }
    Ok(found)
}

/// Evidence about one verb and flaw, what weighs most first.
#[derive(Debug, Clone, PartialEq)]
pub struct Topic {
    /// The verb of the commands.
    pub verb: String,
    /// What was wrong with them.
    pub flaw: Flaw,
    /// The flawed actions.
    pub evidence: Vec<Evidence>,
}

/// What in `evidence` lies in the danger zone, by verb and flaw, `most` topics. Those of suggestions `active` in the prompt come
/// first, in their places, because a policy has to get used to every change of its prompt; then those with the most evidence.
pub fn topics(evidence: Vec<Evidence>, threshold: f64, active: &[Suggestion], most: usize) -> Vec<Topic> {
    let mut topics: Vec<Topic> = Vec::new();
    for evidence in evidence.into_iter().filter(|e| e.q() > threshold) {
        let verb = evidence.verb();
        // The agent's words are quoted as plain ones or not at all.
        if verb.is_empty() || verb.len() > 20 || !verb.chars().all(char::is_alphanumeric) {
            continue;
        }
        match topics.iter_mut().find(|t| t.verb == verb && t.flaw == evidence.flaw) {
            Some(topic) => topic.evidence.push(evidence),
            None => topics.push(Topic { verb: verb.into(), flaw: evidence.flaw, evidence: vec![evidence] }),
        }
    }
    let weight = |e: &Evidence| e.q() * e.count as f64;
    for topic in &mut topics {
        topic.evidence.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    }
    let sum = |t: &Topic| t.evidence.iter().map(weight).sum::<f64>();
    let place = |t: &Topic| active.iter().position(|s| s.is_about(t)).unwrap_or(active.len());
    topics.sort_by(|a, b| place(a).cmp(&place(b)).then(sum(b).total_cmp(&sum(a))));
    topics.truncate(most);
    topics
}

/// The fixed sentence of a topic.
pub fn template(verb: &str, flaw: Flaw) -> String {
    match flaw {
        Flaw::Idle => format!("{verb} often does nothing: look first."),
        Flaw::Repeated => format!("do not {verb} the same twice."),
        Flaw::Circular => format!("{verb} leads you in circles."),
        Flaw::Astray => format!("{verb} often leads away from the task."),
    }
}

/// What an author in words is asked.
pub fn question(topic: &Topic) -> String {
    let mut text = String::from("An agent in a text world made these mistakes:\n");
    for e in topic.evidence.iter().take(3) {
        // As JSON strings, so that neither text can end its quotation.
        let (shown, said) = (json!(e.observation), json!(e.action));
        text += &format!("- Shown {shown}, it said {said}, which {}.\n", e.flaw.description());
    }
    text + "Write one short sentence of advice that would have prevented them, and nothing else."
}

/// An author's answer as a suggestion: its first line that says anything, shortened.
pub fn read(answer: &str) -> Option<String> {
    let line = answer.lines().map(str::trim).find(|line| !line.is_empty())?;
    let text: String =
        line.chars().filter(|c| !c.is_control() && *c != char::REPLACEMENT_CHARACTER).take(LONGEST).collect();
    text.chars().any(char::is_alphabetic).then_some(text)
}

/// Puts topics and their sentences together; a sentence that was written twice stands once, on all its evidence.
pub fn suggestions(written: impl IntoIterator<Item = (Topic, String)>) -> Vec<Suggestion> {
    let mut all: Vec<Suggestion> = Vec::new();
    for (topic, text) in written {
        match all.iter_mut().find(|s| s.text.eq_ignore_ascii_case(&text)) {
            Some(same) => same.evidence.extend(topic.evidence),
            None => all.push(Suggestion { text, evidence: topic.evidence }),
        }
    }
    all
}

/// Whether the gradient similarity of good and bad actions, measured now and then, has stopped falling.
pub fn stopped_falling(measured: &[f64]) -> bool {
    matches!(measured, [.., before, now] if now >= before)
}
