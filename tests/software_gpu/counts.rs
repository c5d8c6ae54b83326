//! How often the host makes the GPU wait for it, or waits for the GPU: exactly as often as it must. A copy or a wait that somebody
//! adds fails here.

use crate::device::{Device, Trace};
use crate::training;

/// The words of a trace that are work or waits.
const COUNTED: [&str; 8] = ["launch", "product", "upload", "download", "wait", "copy", "zero", "replay"];

fn count(lines: &[Vec<String>]) -> Vec<usize> {
    COUNTED.iter().map(|word| lines.iter().filter(|line| line[0] == *word).count()).collect()
}

/// From one optimizer step's end to the next one's, where nothing is decoded in between.
fn optimizer_steps(trace: &Trace) -> Vec<&[Vec<String>]> {
    let updates: Vec<usize> =
        (0..trace.0.len()).filter(|i| trace.0[*i][0] == "launch" && trace.0[*i][1].starts_with("adamw_step")).collect();
    // The parts of an update follow each other.
    let ends: Vec<usize> = updates.iter().copied().filter(|i| !updates.contains(&(i + 1))).collect();
    let steps = ends.windows(2).map(|pair| &trace.0[pair[0] + 1..=pair[1]]);
    steps.filter(|step| step.iter().all(|line| line[0] != "replay" && line[0] != "graph")).collect()
}

#[test]
fn a_training_step_uploads_three_times_and_waits_twice() {
    let Some(device) = Device::new() else { return };
    let run = training::train(&device, "counted", &["--set", "run.iterations=1", "--set", "grpo.epochs=1"]);
    let steps = optimizer_steps(&run.trace);
    assert!(steps.len() >= 2, "{} steps", steps.len());
    for step in steps {
        // Tokens and who sees whom, targets, gradients of the log-probs; log-probs and entropies, the gradient's norm.
        let counted: Vec<(&str, usize)> = COUNTED.into_iter().zip(count(step)).collect();
        let expected = [
            ("launch", 41),
            ("product", 28),
            ("upload", 3),
            ("download", 2),
            ("wait", 2),
            ("copy", 0),
            ("zero", 3),
            ("replay", 0),
        ];
        assert_eq!(counted, expected);
    }
}

#[test]
fn a_decoded_token_is_one_upload_one_graph_one_download_and_one_wait() {
    let Some(device) = Device::new() else { return };
    let run = device.succeeds(&["bench", "decode", "--small", "--device", "cuda"]);
    let replays: Vec<usize> = (0..run.trace.0.len()).filter(|i| run.trace.0[*i][0] == "replay").collect();
    let words = |from: usize, to: usize| run.trace.0[from..to].iter().map(|line| &line[0][..]).collect::<Vec<_>>();
    // Two batches, generated twice, in steps of the prompts and of a token each: the first of either is captured then.
    assert_eq!(replays.len(), 2 * (2 * 3 - 2));
    for replay in replays {
        assert_eq!(words(replay - 1, replay + 3), ["upload", "replay", "download", "wait"]);
    }
    assert_eq!(run.trace.of("graph").count(), 4, "of one sequence and of four, prompts and tokens");
}

/// The next rollout finds its memory where the last one had it: whatever is captured is captured once. Steps of up to 32 rows have ten
/// sizes; their tokens are sampled as in training, as in evaluations, or not at once.
#[test]
fn graphs_serve_every_rollout() {
    let Some(device) = Device::new() else { return };
    let graphs = |iterations: &str| {
        let set = format!("run.iterations={iterations}");
        let run = training::train(&device, &format!("rollouts-{iterations}"), &["--set", &set]);
        ["graph", "replay"].map(|word| run.trace.of(word).count())
    };
    let ([few, _], [captured, replayed]) = (graphs("2"), graphs("6"));
    assert!(captured <= few + 4, "{few} graphs in two iterations, {captured} in six");
    assert!(replayed > 4 * captured, "{replayed} replays of {captured} graphs");
}
