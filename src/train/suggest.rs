//! When suggestions are made anew, and how: flawed actions are sampled again, and what is likely is put into words.

use super::{TrainError, interrupt};
use crate::agent::{Episode, Prompter};
use crate::config::{Author, Config, SuggestionMode};
use crate::gcd::suggestion::{self, Candidate, Evidence, Topic};
use crate::gcd::{Asked, Flaw, Judge, Suggestion};
use crate::grpo::Sample;
use crate::model::Policy;
use crate::ops::philox::{self, Stream};
use crate::rollout::{Answer, Settings, answers};
use serde::{Deserialize, Serialize};
/// Most tokens of a suggestion that the policy writes.
const SENTENCE: usize = 40;
const INSTRUCTION: &str = "You advise an agent that acts in a text world. Answer with one short sentence.";

/// The suggestions made after an iteration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Renewal {
    /// Iterations done by then.
    pub iterations: u32,
    pub suggestions: Vec<Suggestion>,
}

/// Whether suggestions are made after iteration number `done`, counted from 1; `similarity` is the gradient similarity of good
/// and bad actions, each time it was measured.
pub fn due(config: &Config, done: u32, made: &[Renewal], similarity: &[f64]) -> bool {
    let s = &config.suggestions;
    let whole = done.is_multiple_of(s.every.max(1));
    match s.mode {
        SuggestionMode::Off => false,
        SuggestionMode::Fixed => whole,
        SuggestionMode::Adaptive => whole && (made.is_empty() || suggestion::stopped_falling(similarity)),
    }
}

/// Makes suggestions from the episodes of an iteration, to follow those `standing`; `samples` are those that the environment did
/// not fail. The second value is why there are none where an author could not be asked.
#[allow(clippy::too_many_arguments)]
pub fn renew(
    config: &Config,
    policy: &dyn Policy,
    prompter: &Prompter,
    judge: Option<&Judge>,
    episodes: &[Episode],
    samples: &[Sample],
    asked: &Asked,
    standing: &[Suggestion],
    done: u32,
) -> Result<Result<Renewal, String>, TrainError> {
    let advantage = |e: usize, t: usize| {
        let last = episodes[e].turns[t].tokens.end - 1;
        f64::from(samples[e].advantage[last])
    };
    let candidates = suggestion::candidates(episodes, asked, &advantage, config)?;
    let evidence = resample(config, policy, prompter, episodes, candidates, done)?;
    let s = &config.suggestions;
    let topics = suggestion::topics(evidence, s.threshold.into(), standing, s.most as usize);
    let said = |topic: &Topic| standing.iter().find(|s| s.is_about(topic)).map(|s| s.text.clone());
    let new: Vec<Topic> = topics.iter().filter(|topic| said(topic).is_none()).cloned().collect();
    let mut sentences = match write(config, policy, prompter, judge, &new, done)? {
        Ok(sentences) => sentences.into_iter(),
        Err(why) => return Ok(Err(why)),
    };
    let mut text = |topic: &Topic| said(topic).or_else(|| sentences.next().flatten());
    let written = topics.into_iter().filter_map(|topic| text(&topic).map(|text| (topic, text)));
    Ok(Ok(Renewal { iterations: done, suggestions: suggestion::suggestions(written) }))
}

/// Samples each candidate's state again, and counts its action.
fn resample(
    config: &Config,
    policy: &dyn Policy,
    prompter: &Prompter,
    episodes: &[Episode],
    candidates: Vec<Candidate>,
    done: u32,
) -> Result<Vec<Evidence>, TrainError> {
    let states: Vec<(usize, usize)> = candidates.iter().map(|c| c.at).collect();
    let again =
        actions(config, policy, prompter, episodes, &states, config.suggestions.resamples, Stream::Resampling(done))?;
    let mut evidence: Vec<Evidence> = candidates.into_iter().map(|c| c.evidence).collect();
    for (evidence, again) in evidence.iter_mut().zip(again) {
        let same = again.iter().filter(|action| action.as_deref() == Some(&evidence.action)).count();
        evidence.resampled = same as f64 / again.len().max(1) as f64;
    }
    Ok(evidence)
}

/// The commands of `count` new answers in each of the states (episode, turn), at training's temperature; `None` where there is
/// none to read. A state that leaves no room for an answer has no answers.
pub fn actions(
    config: &Config,
    policy: &dyn Policy,
    prompter: &Prompter,
    episodes: &[Episode],
    states: &[(usize, usize)],
    count: u32,
    stream: Stream,
) -> Result<Vec<Vec<Option<String>>>, TrainError> {
    let settings = Settings::training(config, stream);
    let context = policy.config().max_position_embeddings;
    let state = |&(e, t): &(usize, usize)| episodes[e].state(&episodes[e].turns[t]);
    let fits = |at: &&(usize, usize)| state(at).len() + settings.max_turn_tokens <= context;
    let prompts: Vec<Vec<u32>> = states.iter().filter(fits).map(|at| state(at).to_vec()).collect();
    let answered = answers(policy, prompter, &prompts, count as usize, &settings, &interrupt::interrupted)?;
    let mut answered = answered.into_iter();
    let command = |answer: Answer| -> Result<Option<String>, TrainError> {
        let Some((_, text)) = answer.tokens.split_last().filter(|_| answer.ended) else { return Ok(None) };
        Ok(prompter.read(text)?.command.ok())
    };
    let of = |at| match fits(&at) {
        true => answered.next().into_iter().flatten().map(command).collect(),
        false => Ok(Vec::new()),
    };
    states.iter().map(of).collect()
}

/// A sentence for each topic, by the configured author; `None` where nothing that was written can be read as one.
fn write(
    config: &Config,
    policy: &dyn Policy,
    prompter: &Prompter,
    judge: Option<&Judge>,
    topics: &[Topic],
    done: u32,
) -> Result<Result<Vec<Option<String>>, String>, TrainError> {
    match config.suggestions.author {
        Author::Template => Ok(Ok(topics.iter().map(|t| Some(suggestion::template(&t.verb, t.flaw))).collect())),
        Author::Policy => {
            let ask = |topic| prompter.ask_alone(&suggestion::question(topic));
            let prompts: Vec<Vec<u32>> = topics.iter().map(ask).collect::<Result<_, _>>()?;
            let room = |prompt: &&Vec<u32>| prompt.len() + SENTENCE <= policy.config().max_position_embeddings;
            let asked: Vec<Vec<u32>> = prompts.iter().filter(room).cloned().collect();
            let settings =
                Settings { max_turn_tokens: SENTENCE, ..Settings::training(config, Stream::Sentences(done)) };
            let answered = answers(policy, prompter, &asked, 1, &settings, &interrupt::interrupted)?;
            let mut answered = answered.into_iter();
            let sentence = |prompt: &Vec<u32>| -> Result<Option<String>, TrainError> {
                let answer = if room(&prompt) { answered.next().and_then(|mut of| of.pop()) } else { None };
                let Some(answer) = answer.filter(|a| a.ended) else { return Ok(None) };
                let text = prompter.tokenizer().decode(&answer.tokens[..answer.tokens.len() - 1], false)?;
                Ok(suggestion::read(&text))
            };
            Ok(Ok(prompts.iter().map(sentence).collect::<Result<_, _>>()?))
        }
        Author::Judge => {
            let Some(judge) = judge else { return Ok(Err("there is no judge".into())) };
            let written = topics.iter().map(|topic| judge.write(INSTRUCTION, &suggestion::question(topic)));
            Ok(written.map(|text| Ok(suggestion::read(&text?))).collect())
        }
    }
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
