//! When suggestions are updated, and how: flawed actions are sampled again, and what is likely is put into words.

use super::TrainError;
use crate::agent::Episode;
use crate::config::{Author, Config, SuggestionMode};
use crate::gcd::suggestion::{self, Candidate, Evidence, Topic};
use crate::gcd::{Flaw, Judge, Labelled, Suggestion};
use crate::grpo::Sample;
use crate::ops::philox::{self, Stream};
use crate::rollout::{Actor, Answer, RolloutSettings};
use serde::{Deserialize, Serialize};

/// Most tokens of a suggestion that the policy writes.
const SENTENCE: usize = 40;
const INSTRUCTION: &str = "You advise an agent that acts in a text world. Answer with one short sentence.";

/// The suggestions made after an iteration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuggestionUpdate {
    /// Iterations done by then.
    pub iterations: u32,
    /// The suggestions.
    pub suggestions: Vec<Suggestion>,
}

impl SuggestionUpdate {
    /// The suggestions in one line.
    pub fn line(&self) -> String {
        let sentences: Vec<&str> = self.suggestions.iter().map(|s| &s.text[..]).collect();
        match sentences.is_empty() {
            true => "suggestions: none, no flawed action is in the danger zone".into(),
            false => format!("suggestions: {}", sentences.join(" ")),
        }
    }
}

/// Whether suggestions are updated after iteration number `done`, counted from 1; `similarity` is the gradient similarity of good
/// and bad actions, each time it was measured.
pub fn due(config: &Config, done: u32, made: &[SuggestionUpdate], similarity: &[f64]) -> bool {
    let s = &config.suggestions;
    let whole = done.is_multiple_of(s.every.max(1));
    match s.mode {
        SuggestionMode::Off => false,
        SuggestionMode::Fixed => whole,
        SuggestionMode::Adaptive => whole && (made.is_empty() || suggestion::stopped_falling(similarity)),
    }
}

/// Makes suggestions from the episodes of an iteration.
pub struct Suggester<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The policy that played, under training's settings.
    pub actor: &'a Actor<'a>,
    /// The judge, where it writes the sentences.
    pub judge: Option<&'a Judge>,
    /// Iterations done.
    pub iterations: u32,
}

impl Suggester<'_> {
    /// Makes suggestions, to follow the `active` ones; `samples` are those of the episodes. The inner error is why there are none where
    /// an author could not be asked.
    ///
    /// # Errors
    /// A game that is not training's, a failing device, an interrupt.
    pub fn update(
        &self,
        of: Labelled<'_>,
        samples: &[Sample],
        active: &[Suggestion],
    ) -> Result<Result<SuggestionUpdate, String>, TrainError> {
        let advantage = |e: usize, t: usize| {
            let last = of.episodes[e].turns[t].tokens.end - 1;
            f64::from(samples[e].advantage[last])
        };
        let candidates = suggestion::candidates(of, &advantage, self.config)?;
        let evidence = self.resample(of.episodes, candidates)?;
        let s = &self.config.suggestions;
        let topics = suggestion::topics(evidence, s.threshold.into(), active, s.most as usize);
        let said = |topic: &Topic| active.iter().find(|s| s.is_about(topic)).map(|s| s.text.clone());
        let new: Vec<Topic> = topics.iter().filter(|topic| said(topic).is_none()).cloned().collect();
        let mut sentences = match self.write(&new)? {
            Ok(sentences) => sentences.into_iter(),
            Err(why) => return Ok(Err(why)),
        };
        let mut text = |topic: &Topic| said(topic).or_else(|| sentences.next().flatten());
        let written = topics.into_iter().filter_map(|topic| text(&topic).map(|text| (topic, text)));
        let suggestions = suggestion::suggestions(written);
        Ok(Ok(SuggestionUpdate { iterations: self.iterations, suggestions }))
    }

    /// Samples each candidate's state again, and counts its action.
    fn resample(&self, episodes: &[Episode], candidates: Vec<Candidate>) -> Result<Vec<Evidence>, TrainError> {
        let states: Vec<(usize, usize)> = candidates.iter().map(|c| c.at).collect();
        let actor = self.actor.with(RolloutSettings::training(self.config, Stream::Resampling(self.iterations)));
        let again = actions(&actor, episodes, &states, self.config.suggestions.resamples)?;
        let mut evidence: Vec<Evidence> = candidates.into_iter().map(|c| c.evidence).collect();
        for (evidence, again) in evidence.iter_mut().zip(again) {
            let same = again.iter().filter(|action| action.as_deref() == Some(&evidence.action)).count();
            evidence.resampled = same as f64 / again.len().max(1) as f64;
        }
        Ok(evidence)
    }

    /// A sentence for each topic, by the configured author; `None` where nothing that was written can be read as one.
    fn write(&self, topics: &[Topic]) -> Result<Result<Vec<Option<String>>, String>, TrainError> {
        match self.config.suggestions.author {
            Author::Template => Ok(Ok(topics.iter().map(|t| Some(suggestion::template(&t.verb, t.flaw))).collect())),
            Author::Policy => Ok(Ok(self.write_by_policy(topics)?)),
            Author::Judge => {
                let Some(judge) = self.judge else { return Ok(Err("there is no judge".into())) };
                let written = topics.iter().map(|topic| judge.write(INSTRUCTION, &suggestion::question(topic)));
                Ok(written.map(|text| Ok(suggestion::read(&text?))).collect())
            }
        }
    }

    /// The policy's own sentences.
    fn write_by_policy(&self, topics: &[Topic]) -> Result<Vec<Option<String>>, TrainError> {
        let prompter = self.actor.prompter;
        let ask = |topic| prompter.encode_prompt(&suggestion::question(topic));
        let prompts: Vec<Vec<u32>> = topics.iter().map(ask).collect::<Result<_, _>>()?;
        let context = self.actor.policy.config().max_position_embeddings;
        let room = |prompt: &&Vec<u32>| prompt.len() + SENTENCE <= context;
        let fitting: Vec<Vec<u32>> = prompts.iter().filter(room).cloned().collect();
        let settings = RolloutSettings::training(self.config, Stream::Sentences(self.iterations));
        let actor = self.actor.with(RolloutSettings { max_turn_tokens: SENTENCE, ..settings });
        let mut answers = actor.answers(&fitting, 1)?.into_iter();
        let sentence = |prompt: &Vec<u32>| -> Result<Option<String>, TrainError> {
            let answer = if room(&prompt) { answers.next().and_then(|mut of| of.pop()) } else { None };
            let Some(answer) = answer.filter(|a| a.ended) else { return Ok(None) };
            let text = prompter.tokenizer().decode(&answer.tokens[..answer.tokens.len() - 1], false)?;
            Ok(suggestion::read(&text))
        };
        prompts.iter().map(sentence).collect()
    }
}

/// The commands of `count` new answers in each of the states (episode, turn); `None` where there is none to read. A state that leaves
/// no room for an answer has no answers.
///
/// # Errors
/// As [`Actor::answers`].
pub fn actions(
    actor: &Actor<'_>,
    episodes: &[Episode],
    states: &[(usize, usize)],
    count: u32,
) -> Result<Vec<Vec<Option<String>>>, TrainError> {
    let context = actor.policy.config().max_position_embeddings;
    let state = |&(e, t): &(usize, usize)| episodes[e].state(&episodes[e].turns[t]);
    let fits = |at: &&(usize, usize)| state(at).len() + actor.settings.max_turn_tokens <= context;
    let prompts: Vec<Vec<u32>> = states.iter().filter(fits).map(|at| state(at).to_vec()).collect();
    let mut answers = actor.answers(&prompts, count as usize)?.into_iter();
    let command = |answer: Answer| -> Result<Option<String>, TrainError> {
        let Some((_, text)) = answer.tokens.split_last().filter(|_| answer.ended) else { return Ok(None) };
        Ok(actor.prompter.read(text)?.command.ok())
    };
    let of = |at| match fits(&at) {
        true => answers.next().into_iter().flatten().map(command).collect(),
        false => Ok(Vec::new()),
    };
    states.iter().map(of).collect()
}

/// Made-up suggestions for demonstration `index` of the cold start, whose commands are `commands`; often none.
pub fn made_up(config: &Config, index: u64, commands: &[&str]) -> Vec<String> {
    let s = &config.suggestions;
    let [chance, count, ..] = philox::block(config.run.seed, Stream::MadeUpSuggestions.part(index), 0);
    if s.mode == SuggestionMode::Off || philox::uniform(chance) >= s.cold_start || commands.is_empty() {
        return Vec::new();
    }
    let sentence = |i: u32| {
        let [verb, flaw, ..] = philox::block(config.run.seed, Stream::MadeUpSuggestions.part(index), 1 + u64::from(i));
        let verb = commands[verb as usize % commands.len()].split(' ').next().unwrap_or_default();
        suggestion::template(verb, Flaw::ALL[flaw as usize % Flaw::ALL.len()])
    };
    (0..1 + count % s.most.max(1)).map(sentence).collect()
}
