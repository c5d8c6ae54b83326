//! What a run shows for each split, and what it does not.

use crate::report::results::Estimate;
use crate::report::stats;
use crate::report::trajectories::EvaluatedEpisode;
use serde::Serialize;
use std::collections::BTreeMap;

/// z of a two-sided 95 % interval.
const Z: f64 = 1.96;
/// Fewer games than this cannot tell a rise of twenty points.
const FEW: usize = 50;

/// The comparison of two evaluations on the games that both played.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    pub split: String,
    pub games: usize,
    /// Success rates, with Wilson intervals.
    pub before: Estimate,
    pub after: Estimate,
    /// Difference of the success rates, game by game.
    pub change: Estimate,
    pub text: String,
    /// `rise`, `fall` or `none`.
    pub kind: &'static str,
}

/// By split, the evaluation (phase, iteration) `after` against `before`.
pub fn verdicts(episodes: &[EvaluatedEpisode], before: (&str, u64), after: (&str, u64)) -> Vec<Verdict> {
    let (first, last) = (games(episodes, before), games(episodes, after));
    let of = |(split, first): (&String, &BTreeMap<&str, bool>)| {
        let last = last.get(split)?;
        let pairs: Vec<(bool, bool)> = first.iter().filter_map(|(task, won)| Some((*won, *last.get(task)?))).collect();
        (!pairs.is_empty()).then(|| verdict(split, &pairs))
    };
    first.iter().filter_map(of).collect()
}

/// Success by split and game.
fn games<'a>(
    episodes: &'a [EvaluatedEpisode],
    (phase, iteration): (&str, u64),
) -> BTreeMap<String, BTreeMap<&'a str, bool>> {
    let mut all: BTreeMap<String, BTreeMap<&str, bool>> = BTreeMap::new();
    for e in episodes.iter().filter(|e| e.phase == phase && e.iteration == iteration) {
        all.entry(e.split.clone()).or_default().insert(&e.task, e.episode.success);
    }
    all
}

fn verdict(split: &str, pairs: &[(bool, bool)]) -> Verdict {
    let count = |which: fn(&(bool, bool)) -> bool| pairs.iter().filter(|pair| which(pair)).count() as f64;
    let n = pairs.len() as f64;
    let (gained, lost) = (count(|(before, after)| !before & after), count(|(before, after)| before & !after));
    let value = (gained - lost) / n;
    // Of the mean of paired differences, each −1, 0 or 1.
    let half = Z * ((gained + lost) / n - value * value).max(0.0).sqrt() / n.sqrt();
    let change = Estimate { value, ci: [value - half, value + half] };
    let (kind, says) = match change.ci {
        _ if gained + lost == 0.0 => ("none", "no game ended otherwise than before"),
        [low, _] if low > 0.0 => ("rise", "training raised success on these games"),
        [_, high] if high < 0.0 => ("fall", "training lowered success on these games"),
        _ => ("none", "the interval holds 0, so that no change is shown"),
    };
    let few = if pairs.len() < FEW { "; with so few games only large changes could be" } else { "" };
    let points = |share: f64| format!("{:+.1}", 100.0 * share).replace('-', "−");
    let text = format!(
        "{} points [{}, {}], {} games gained and {} lost of {}: {says}{few}.",
        points(value),
        points(change.ci[0]),
        points(change.ci[1]),
        gained,
        lost,
        pairs.len()
    );
    let rate = |which: fn(&(bool, bool)) -> bool| {
        let won = count(which);
        Estimate { value: won / n, ci: stats::wilson(won as u64, pairs.len() as u64) }
    };
    let (before, after) = (rate(|pair| pair.0), rate(|pair| pair.1));
    Verdict { split: split.into(), games: pairs.len(), before, after, change, text, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_the_paired_games() {
        let of = |gained: usize, lost: usize, same: usize| {
            let pairs = [vec![(false, true); gained], vec![(true, false); lost], vec![(true, true); same]].concat();
            verdict("L0", &pairs)
        };
        let rise = of(30, 5, 65);
        assert_eq!((rise.kind, rise.before.value, rise.after.value), ("rise", 0.7, 0.95));
        // (b − c)/n ± 1.96 √((b + c)/n − ((b − c)/n)²)/√n
        assert!((rise.change.ci[0] - 0.1449).abs() < 1e-3 && (rise.change.ci[1] - 0.3551).abs() < 1e-3, "{rise:?}");
        assert_eq!(of(5, 30, 65).kind, "fall");
        assert!(of(6, 5, 89).text.contains("no change is shown"));
        assert!(of(0, 0, 9).text.contains("no game ended otherwise") && of(0, 0, 9).text.contains("so few games"));
    }
}
