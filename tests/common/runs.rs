//! Very small training runs, and what must be equal when two of them computed the same.

use std::path::Path;
use uncouple::config::{Config, Override};
use uncouple::report::metrics::{self, Record};

/// A run of well under a second, as a configuration file; it learns enough that the episodes of a group differ.
pub const TINY: &str = "
[run]
iterations = 2
[model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 48
vocab_size = 300
max_position_embeddings = 512
[sft]
steps = 40
batch = 4
lr = 0.01
games = 6
[env]
max_steps = 3
[rollout]
groups = 2
group_size = 4
max_turn_tokens = 12
temperature = 1
invalid_reward = -0.1
[grpo]
advantage = 'group'
aggregation = 'token-mean'
epochs = 1
[gcd]
mode = 'off'
[suggestions]
mode = 'off'
[optim]
beta2 = 0.95
# A run made longer on resume keeps its schedule.
lr_end = 1
[eval]
games = 2
";

/// The tiny run `name` in `dir`, with some values changed (`key=value`).
pub fn tiny(dir: &Path, name: &str, set: &[&str]) -> Config {
    let file = dir.join("tiny.toml");
    std::fs::write(&file, TINY).unwrap();
    let mut overrides: Vec<Override> = set.iter().map(|s| Override::parse(s).unwrap()).collect();
    overrides.push(Override::flag("--dir", "run.dir", dir.display().to_string()));
    overrides.push(Override::flag("--name", "run.name", name));
    Config::load(Some(&file), &overrides).unwrap()
}

/// Everything a run leaves behind that does not tell the time.
#[derive(Debug, PartialEq)]
pub struct Left {
    /// Name and bytes of the files of the last checkpoint.
    pub files: Vec<(String, Vec<u8>)>,
    pub records: Vec<Record>,
    pub episodes: Vec<String>,
    pub summary: serde_json::Value,
}

/// What the finished run at `run` left.
pub fn left(run: &Path) -> Left {
    Left { files: files(run), records: records(run), episodes: episodes(run), summary: summary(run) }
}

/// The numbers of the finished checkpoints, ascending.
pub fn checkpoints(run: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return Vec::new() };
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> = names.filter_map(|n| n.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// `state.json` of the last checkpoint, without the wall time.
pub fn state(run: &Path) -> serde_json::Value {
    let step = checkpoints(run).pop().expect("the run has a checkpoint");
    let file = run.join(format!("checkpoints/step-{step}/state.json"));
    timeless(serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap())
}

fn timeless(mut json: serde_json::Value) -> serde_json::Value {
    json.as_object_mut().unwrap().remove("seconds").expect("it says how long it took");
    json.as_object_mut().unwrap().remove("phase_seconds");
    json.as_object_mut().unwrap().remove("provenance");
    json
}

fn summary(run: &Path) -> serde_json::Value {
    timeless(serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap())
}

fn files(run: &Path) -> Vec<(String, Vec<u8>)> {
    let step = checkpoints(run).pop().expect("the run has a checkpoint");
    let folder = std::fs::read_dir(run.join(format!("checkpoints/step-{step}"))).unwrap();
    let mut files: Vec<(String, Vec<u8>)> = folder
        .map(|e| e.unwrap().path())
        .filter(|path| !path.ends_with("state.json"))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files.push(("state.json".into(), state(run).to_string().into_bytes()));
    files
}

fn records(run: &Path) -> Vec<Record> {
    let told = |mut r: Record| {
        r.seconds = 0.0;
        r.values.retain(|name, _| !name.starts_with("seconds/") && name != "tokens_per_second");
        r
    };
    metrics::read(run).unwrap().into_iter().map(told).collect()
}

fn episodes(run: &Path) -> Vec<String> {
    let db = rusqlite::Connection::open(run.join("trajectories.sqlite")).unwrap();
    let sql = "select concat_ws('|', phase, iteration, split, task, kind, group_id, sample, reward, success, finish, steps, repeats, loops, suggestions, tokens,
                      (select group_concat(concat_ws('|', observation, action, command, valid, prompt_start, action_start, action_end, logprob_sum,
                                                     q, label, flaw, reward, advantage),
                                           '|' order by turn) from turns where episode = id),
                      (select group_concat(concat_ws('|', turn, sample, label, verdict, text), '|' order by turn, sample)
                       from judgments where episode = id))
               from episodes order by phase, iteration, group_id, sample, id";
    let mut statement = db.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}
