//! The training groups that the page holds: which, what can be searched, and each group's turns, packed by themselves.

use super::embed::packed;
use crate::files::FileError;
use crate::report::trajectories::{EpisodeIndex, EpisodeRecord, SuggestionRecord, TrajectoryReader, TurnRecord};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Turns that the page holds at most, and bytes of packed text.
const MOST_TURNS: u32 = 20_000;
const MOST_BYTES: usize = 1_300_000;

/// What the browser searches.
#[derive(Debug, Default, Serialize)]
pub struct BrowserIndex {
    pub groups: Vec<BrowserGroup>,
    /// Of how many groups and turns of the run these are.
    pub of_groups: usize,
    pub of_turns: u64,
    pub threshold: f64,
    pub suggestions: Vec<Made>,
}

/// A group of the page; its turns are packed apart.
#[derive(Debug, Serialize)]
pub struct BrowserGroup {
    pub iteration: u64,
    pub group: u32,
    pub task: String,
    pub kind: String,
    pub episodes: Vec<Member>,
}

#[derive(Debug, Serialize)]
pub struct Member {
    pub sample: u32,
    pub won: bool,
    pub reward: f64,
    pub turns: u32,
    pub flawed: u32,
    pub likely: u32,
    pub judged: u32,
}

/// Suggestions that were made at one time.
#[derive(Debug, Serialize)]
pub struct Made {
    pub iteration: u64,
    pub text: String,
    pub evidence: Vec<Value>,
}

/// The index, and a packed text for each of its groups.
pub fn select(
    reader: &TrajectoryReader,
    threshold: f64,
    decode: &dyn Fn(&[u32]) -> String,
) -> Result<(BrowserIndex, Vec<String>), FileError> {
    let episodes = reader.index("grpo", threshold)?;
    let suggestions = reader.suggestions()?;
    let all: Vec<&[EpisodeIndex]> =
        episodes.chunk_by(|a, b| (a.iteration, a.group) == (b.iteration, b.group)).collect();
    let mut chosen: Vec<(&[EpisodeIndex], String)> = Vec::new();
    let (mut turns, mut bytes) = (0, 0);
    for group in in_order(&all, &suggestions) {
        let length: u32 = group.iter().map(|e| e.turns).sum();
        let first = &group[0];
        if turns + length > MOST_TURNS || bytes > MOST_BYTES {
            continue;
        }
        let members = reader.group("grpo", first.iteration, first.group)?;
        let text = packed(&members.iter().map(|e| member(e, decode)).collect::<Vec<_>>()).unwrap_or_default();
        if bytes + text.len() > MOST_BYTES {
            continue;
        }
        (turns, bytes) = (turns + length, bytes + text.len());
        chosen.push((group, text));
    }
    chosen.sort_by_key(|(group, _)| (group[0].iteration, group[0].group));
    let (groups, texts): (Vec<_>, Vec<_>) = chosen.into_iter().map(|(group, text)| (shown(group), text)).unzip();
    let index = BrowserIndex {
        groups,
        of_groups: all.len(),
        of_turns: episodes.iter().map(|e| u64::from(e.turns)).sum(),
        threshold,
        suggestions: suggestions.into_iter().map(made).collect(),
    };
    Ok((index, texts))
}

/// Groups, most wanted first: one of every iteration before a second of any; of iterations, the first, the last, those whose flawed
/// actions suggestions rest on, and then the middle of the widest gap; within an iteration those with likely flaws, and those in which some won.
fn in_order<'a>(all: &[&'a [EpisodeIndex]], suggestions: &[(u64, SuggestionRecord)]) -> Vec<&'a [EpisodeIndex]> {
    let mut iterations: BTreeMap<u64, Vec<&[EpisodeIndex]>> = BTreeMap::new();
    all.iter().for_each(|group| iterations.entry(group[0].iteration).or_default().push(group));
    for groups in iterations.values_mut() {
        let mixed = |g: &[EpisodeIndex]| g.iter().any(|e| e.success) && !g.iter().all(|e| e.success);
        groups.sort_by_key(|g| std::cmp::Reverse((g.iter().map(|e| e.likely).sum::<u32>(), mixed(g))));
    }
    let numbers: Vec<u64> = iterations.keys().copied().collect();
    let mut order: Vec<u64> = numbers.first().into_iter().chain(numbers.last()).copied().collect();
    order.extend(suggestions.iter().map(|(made, _)| made));
    order.extend(spread(&numbers));
    let mut seen = std::collections::HashSet::new();
    order.retain(|iteration| iterations.contains_key(iteration) && seen.insert(*iteration));
    let most = iterations.values().map(Vec::len).max().unwrap_or(0);
    (0..most).flat_map(|n| order.iter().filter_map(|i| iterations[i].get(n).copied()).collect::<Vec<_>>()).collect()
}

/// The numbers in an order in which every beginning is spread over all of them.
fn spread(numbers: &[u64]) -> Vec<u64> {
    let (mut order, mut ranges) = (Vec::new(), std::collections::VecDeque::from([numbers]));
    while let Some(range) = ranges.pop_front() {
        let middle = range.len() / 2;
        if let Some(number) = range.get(middle) {
            order.push(*number);
            ranges.extend([&range[..middle], &range[middle + 1..]]);
        }
    }
    order
}

fn shown(group: &[EpisodeIndex]) -> BrowserGroup {
    let episode = |e: &EpisodeIndex| Member {
        sample: e.sample,
        won: e.success,
        reward: e.reward,
        turns: e.turns,
        flawed: e.flawed,
        likely: e.likely,
        judged: e.judged,
    };
    let first = &group[0];
    BrowserGroup {
        iteration: first.iteration,
        group: first.group,
        task: first.task.clone(),
        kind: first.kind.clone(),
        episodes: group.iter().map(episode).collect(),
    }
}

fn made((iteration, suggestion): (u64, SuggestionRecord)) -> Made {
    let evidence = suggestion.evidence.iter().map(|e| {
        json!({
            "task": e.task, "observation": e.observation, "action": e.action, "flaw": e.flaw, "count": e.count,
            "sampled": e.sampled, "resampled": e.resampled, "advantage": e.advantage,
        })
    });
    Made { iteration, evidence: evidence.collect(), text: suggestion.text }
}

/// An episode with the text of its prompts: of each turn, what came before the action since the turn before, or since the sequence began.
fn member(episode: &EpisodeRecord, decode: &dyn Fn(&[u32]) -> String) -> Value {
    let text = |range: std::ops::Range<usize>| episode.tokens.get(range).map(decode).unwrap_or_default();
    let mut before: Option<&TurnRecord> = None;
    let turns: Vec<Value> = episode
        .turns
        .iter()
        .map(|t| {
            let goes_on = before.is_some_and(|b| b.prompt.start == t.prompt.start && b.sampled.end <= t.prompt.end);
            let from = before.filter(|_| goes_on).map_or(t.prompt.start, |b| b.sampled.end);
            before = Some(t);
            let judgments: Vec<_> = t.judgments.iter().map(|j| json!([j.label, j.verdict, j.text])).collect();
            json!({
                "observation": t.observation, "action": t.action, "command": t.command, "valid": t.valid,
                "prompt": text(from..t.prompt.end), "sampled": text(t.sampled.clone()), "goes_on": goes_on,
                "range": [t.prompt.start, t.prompt.end, t.sampled.end],
                "q": finite(t.q), "advantage": t.advantage, "reward": t.reward, "label": t.label, "flaw": t.flaw,
                "judgments": judgments,
            })
        })
        .collect();
    json!({
        "sample": episode.sample, "won": episode.success, "reward": episode.reward, "finish": episode.finish,
        "suggestions": episode.suggestions, "turns": turns,
    })
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_beginning_of_the_order_is_spread() {
        assert_eq!(spread(&[1, 2, 3, 4, 5, 6, 7]), [4, 2, 6, 1, 3, 5, 7]);
        assert!(spread(&[]).is_empty());
    }
}
