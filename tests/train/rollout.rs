//! Batched episodes: exact log-probs, independence of the batch, every way to end, and the statistics of behaviour.

use crate::emulated;

use half::bf16;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use uncouple::agent::{Episode, Finish, Prompter, Refusal, Turn};
use uncouple::config::{Config, History, Prompt};
use uncouple::env::{EnvError, Environment, Observation, Split, Task};
use uncouple::forest::Forest;
use uncouple::grpo::{self, Sample};
use uncouple::model::backend::cuda::CudaModel;
use uncouple::model::families::QWEN2;
use uncouple::model::{Activations, Architecture, Model, Params, Policy, SavedActivations, Tokenizer};
use uncouple::ops::philox::Stream;
use uncouple::ops::sampling::SamplingParams;
use uncouple::rollout::{
    Actor, Answer, Counts, Open, Played, PrefixCache, RolloutError, RolloutSettings, RolloutTasks, Statistics,
};

/// A world whose course is its task's kind.
struct Scripted {
    kind: String,
    name: String,
    steps: usize,
}

impl Environment for Scripted {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.steps = 0;
        Ok(Observation {
            text: format!("This is {}.", self.name),
            valid: true,
            admissible: vec!["begin".into()],
            ..Observation::default()
        })
    }

    fn step(&mut self, command: &str) -> Result<Observation, EnvError> {
        self.steps += 1;
        assert!(!command.trim().is_empty() && !command.contains('\n'), "only readable commands reach the environment");
        let over = self.steps == 2;
        if over && self.kind == "break" {
            return Err(EnvError::Failed { name: "scripted".into(), reason: "it broke".into() });
        }
        Ok(Observation {
            admissible: vec![format!("look {}", self.steps), "go".into()],
            text: if self.kind == "talk" { "and on ".repeat(40) } else { format!("Step {}.", self.steps) },
            done: over && (self.kind == "win" || self.kind == "lose"),
            won: over && self.kind == "win",
            valid: command.len().is_multiple_of(2),
            reward: 0.5,
        })
    }
}

fn task(kind: &str, number: usize) -> Task {
    Task { id: format!("{kind}-{number}"), kind: kind.into(), split: Split::Train }
}

fn open(task: &Task) -> Result<Box<dyn Environment>, EnvError> {
    match task.kind.as_str() {
        "absent" => Err(EnvError::BadGame { file: "games/absent".into(), reason: "not there".into() }),
        "held-out" => Err(EnvError::HeldOut { id: task.id.clone(), reason: "it is in L2".into() }),
        kind => Ok(Box::new(Scripted { kind: kind.into(), name: task.id.clone(), steps: 0 })),
    }
}

const CONTEXT: usize = 96;

/// All episodes by task and member, those among them that their environment failed.
fn rollout(
    policy: &dyn Policy,
    prompter: &Prompter,
    open: Open<'_>,
    tasks: &[Task],
    group_size: usize,
    settings: &RolloutSettings,
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<Episode>, RolloutError> {
    let played = Actor::new(policy, prompter, settings.clone(), interrupted).rollout(&RolloutTasks {
        open,
        tasks,
        group_size,
    })?;
    let all = every(&played);
    assert_eq!(all.len(), tasks.len() * group_size);
    assert!(all.is_sorted_by_key(|e| (e.group, e.sample)) && played == Played::new(all.clone()));
    Ok(all)
}

fn actor<'a>(policy: &'a dyn Policy, prompter: &'a Prompter, settings: &RolloutSettings) -> Actor<'a> {
    Actor::new(policy, prompter, settings.clone(), NEVER)
}

fn games(tasks: &[Task], group_size: usize) -> RolloutTasks<'_> {
    RolloutTasks { open: &open, tasks, group_size }
}

fn every(played: &Played) -> Vec<Episode> {
    played.all().into_iter().map(|(_, episode)| episode.clone()).collect()
}

/// A random model that ends its turns about once in `odds` tokens: the first component of the residual stream is the same
/// everywhere, and only the end token's head reads it.
fn model(prompter: &Prompter, bias: f32) -> Model {
    sized(prompter, bias, [4, 2, 8])
}

/// With so many heads, and kv heads, of such a width.
fn sized(prompter: &Prompter, bias: f32, [heads, kv_heads, head_dim]: [usize; 3]) -> Model {
    let config = Architecture {
        family: &QWEN2,
        vocab_size: prompter.tokenizer().vocab_size() + 5,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: 48,
        max_position_embeddings: CONTEXT,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: false,
    };
    let width = config.hidden_size;
    let mut params = Params::random(&config, 3);
    // Wide enough that the distributions differ from token to token.
    params.flat.iter_mut().for_each(|x| *x *= 1.79);
    let layout = params.layout.clone();
    for entry in &layout.entries {
        let values = &mut params.flat[entry.range.clone()];
        match entry.name.as_str() {
            "model.embed_tokens.weight" => values.chunks_mut(width).for_each(|row| row[0] = 1.0),
            "lm_head.weight" => {
                values.chunks_mut(width).for_each(|row| row[0] = 0.0);
                values[prompter.end() as usize * width] = bias;
            }
            "model.norm.weight" => values.fill(1.0),
            name if name.ends_with("norm.weight") => values.fill(1.0),
            name if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                let row = values.len() / width;
                values[..row].fill(0.0);
            }
            _ => {}
        }
    }
    Model::new(config, params)
}

fn prompter() -> Prompter {
    remembering(History::Full)
}

fn remembering(history: History) -> Prompter {
    let texts: Vec<String> = (0..40).map(|i| format!("This is a win-{i}. Step {i}. and on and on")).collect();
    Prompter::new(Tokenizer::train(&texts, 300).unwrap(), &Prompt { history, ..Prompt::default() }).unwrap()
}

fn settings() -> RolloutSettings {
    RolloutSettings {
        sampling: SamplingParams { temperature: 0.8, ..SamplingParams::default() },
        max_steps: 4,
        max_turn_tokens: 6,
        max_episode_tokens: 0,
        max_live: 8,
        seed: 1,
        stream: Stream::Rollout(0),
        distances: false,
    }
}

const NEVER: &dyn Fn() -> bool = &|| false;

/// Episodes as if they took no time.
fn without_clocks(mut episodes: Vec<Episode>) -> Vec<Episode> {
    episodes.iter_mut().for_each(|e| e.seconds = 0.0);
    episodes
}

/// A handful of tasks that end in different ways, in groups of three.
fn play(settings: &RolloutSettings) -> (Prompter, Model, Vec<Episode>) {
    let prompter = prompter();
    let model = model(&prompter, 2.5);
    let tasks: Vec<Task> = ["win", "lose", "go", "talk", "break", "absent"].iter().map(|k| task(k, 0)).collect();
    let episodes = rollout(&model, &prompter, &open, &tasks, 3, settings, NEVER).unwrap();
    (prompter, model, episodes)
}

#[test]
fn recorded_logprobs_are_those_of_training() {
    let settings = settings();
    let (_, model, episodes) = play(&settings);
    let forest = Forest::new(&episodes.iter().map(|e| &e.tokens[..]).filter(|t| !t.is_empty()).collect::<Vec<_>>());
    let mut acts = Activations::default();
    model.forward(&forest, SavedActivations::Nothing, &mut acts);
    let mut compared = 0;
    for (episode, path) in episodes.iter().filter(|e| !e.tokens.is_empty()).zip(&forest.paths) {
        let sampled: Vec<usize> = episode.turns.iter().flat_map(|t| t.tokens.clone()).collect();
        let nodes: Vec<u32> = sampled.iter().map(|&at| path[at]).collect();
        let (logprobs, _) = model.logprobs(&forest, &acts, &nodes, settings.sampling.temperature);
        for (&at, logprob) in sampled.iter().zip(logprobs) {
            assert!((episode.logprobs[at] - logprob).abs() < 1e-4, "{} and {logprob}", episode.logprobs[at]);
            compared += 1;
        }
        for at in (0..episode.tokens.len()).filter(|at| !sampled.contains(at)) {
            assert_eq!(episode.logprobs[at], 0.0);
        }
    }
    assert!(compared > 100);
}

/// The device computes in bf16: log-probs are near those of the CPU's forward pass, and behaviour is of the same kind.
#[test]
fn a_gpu_plays_the_same_game() {
    for history in [History::Full, History::Window(1)] {
        let prompter = remembering(history);
        let mut model = sized(&prompter, 2.5, [2, 1, 64]);
        model.params.flat.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
        let settings = RolloutSettings { max_live: 3, max_steps: 2, ..settings() };
        let on_device = CudaModel::new(&emulated::gpu(), &model, settings.max_live).unwrap();
        let tasks = [task("win", 0), task("go", 0)];
        let episodes = rollout(&on_device, &prompter, &open, &tasks, 2, &settings, NEVER).unwrap();
        assert_eq!(episodes.len(), 4);
        let turns: Vec<(&Episode, &Turn)> = episodes.iter().flat_map(|e| e.turns.iter().map(move |t| (e, t))).collect();
        assert!(turns.len() > 4);
        let forest = Forest::new(&turns.iter().map(|(e, t)| e.acted(t)).collect::<Vec<_>>());
        let mut acts = Activations::default();
        model.forward(&forest, SavedActivations::Nothing, &mut acts);
        for ((episode, turn), path) in turns.iter().zip(&forest.paths) {
            let nodes = &path[episode.state(turn).len()..];
            let (logprobs, _) = model.logprobs(&forest, &acts, nodes, settings.sampling.temperature);
            for (old, logprob) in episode.logprobs[turn.tokens.clone()].iter().zip(logprobs) {
                assert!((old - logprob).abs() < 0.1, "{history:?}: {old} and {logprob}");
            }
        }
    }
}

/// Every turn is a sequence of its own: the prompt that its past makes, and what was sampled under it; that is trained on.
#[test]
fn a_windowed_episode_is_trained_on_the_prompts_it_was_played_under() {
    let prompter = remembering(History::Window(1));
    let model = model(&prompter, 2.5);
    let tasks: Vec<Task> = ["win", "lose", "go", "talk", "break"].iter().map(|k| task(k, 0)).collect();
    let play = |max_live| {
        let settings = RolloutSettings { max_live, ..settings() };
        rollout(&model, &prompter, &open, &tasks, 3, &settings, NEVER).unwrap()
    };
    let episodes = play(15);
    let mut turns = 0;
    for (a, b) in episodes.iter().zip(play(2)) {
        assert_eq!((&a.tokens, &a.turns, &a.finish), (&b.tokens, &b.turns, &b.finish), "independent of the batch");
        let past = prompter.past(&a.turns);
        let mut end = 0;
        for (i, (turn, sequence)) in a.turns.iter().zip(a.sequences()).enumerate() {
            let seen = Observation { text: turn.observation.clone(), ..Observation::default() };
            assert_eq!(a.state(turn), prompter.next(&past[..i], &seen).unwrap().now);
            assert_eq!((sequence.start, turn.start), (end, end));
            assert!(a.acted(turn).starts_with(a.state(turn)) && turn.tokens.end <= sequence.end);
            assert!(i == 0 || prompter.tokenizer().decode(a.state(turn), true).unwrap().contains("This is"));
            end = sequence.end;
            turns += 1;
        }
        assert_eq!(end, a.tokens.len());
    }
    assert!(turns > 30);

    let played = Played::new(episodes).episodes;
    let samples = grpo::samples(&played, &Config::default());
    let rows: Vec<Sample> = played.iter().zip(samples).flat_map(|(e, sample)| grpo::parts(e, sample)).collect();
    assert!(
        rows.iter().all(|row| row.mask.iter().filter(|m| **m).count() <= row.trajectory_loss_tokens
            || row.trajectory_loss_tokens == 0)
    );
    let forest = Forest::new(&rows.iter().map(|row| &row.tokens[..]).collect::<Vec<_>>());
    let mut acts = Activations::default();
    model.forward(&forest, SavedActivations::Nothing, &mut acts);
    let mut compared = 0;
    for (row, path) in rows.iter().zip(&forest.paths) {
        let sampled: Vec<usize> = row.loss_positions().collect();
        let nodes: Vec<u32> = sampled.iter().map(|&at| path[at]).collect();
        let (logprobs, _) = model.logprobs(&forest, &acts, &nodes, settings().sampling.temperature);
        let old = row.old_logprobs.as_ref().unwrap();
        for (&at, logprob) in sampled.iter().zip(logprobs) {
            assert!((old[at] - logprob).abs() < 1e-4, "{} and {logprob}", old[at]);
            compared += 1;
        }
    }
    assert!(compared > 60);
}

#[test]
fn admissible_commands_are_read_at_their_turn_only() {
    let texts: Vec<String> =
        (0..40).map(|i| format!("This is win-{i}. Step {i}. Commands: look, go, begin.")).collect();
    let prompt = Prompt { admissible: true, ..Prompt::default() };
    let prompter = Prompter::new(Tokenizer::train(&texts, 300).unwrap(), &prompt).unwrap();
    let model = model(&prompter, 2.5);
    let tasks: Vec<Task> = ["win", "lose", "go"].iter().map(|k| task(k, 0)).collect();
    let play = |max_live| {
        rollout(&model, &prompter, &open, &tasks, 3, &RolloutSettings { max_live, ..settings() }, NEVER).unwrap()
    };
    let mut told = 0;
    for (a, b) in play(9).iter().zip(play(2)) {
        assert_eq!((&a.tokens, &a.turns, &a.finish), (&b.tokens, &b.turns, &b.finish), "independent of the batch");
        let past = prompter.past(&a.turns);
        let mut talk = Vec::new();
        for (i, (turn, sequence)) in a.turns.iter().zip(a.sequences()).enumerate() {
            let silent = Observation { text: turn.observation.clone(), ..Observation::default() };
            let state = prompter.tokenizer().decode(a.state(turn), true).unwrap();
            assert_eq!(state.matches("Commands: ").count(), 1, "{state}");
            assert!(a.state(turn).starts_with(&talk), "the talk so far, without lists");
            // An observation ends where its list would begin, or the agent.
            talk.extend(prompter.next(&past[..i], &silent).unwrap().now);
            talk.extend(&a.tokens[turn.tokens.start..sequence.end]);
            told += i;
        }
    }
    assert!(told > 10);
}

#[test]
fn an_episode_does_not_depend_on_its_batch() {
    let (_, _, wide) = play(&RolloutSettings { max_live: 18, ..settings() });
    for max_live in [1, 2, 5] {
        let (_, _, narrow) = play(&RolloutSettings { max_live, ..settings() });
        for (a, b) in wide.iter().zip(&narrow) {
            assert_eq!((&a.task, a.group, a.sample), (&b.task, b.group, b.sample));
            assert_eq!((&a.tokens, &a.finish), (&b.tokens, &b.finish), "{} with {max_live} live", a.task.id);
            assert_eq!(a.turns, b.turns);
        }
    }
    let (_, _, again) = play(&RolloutSettings { stream: Stream::Rollout(1), ..settings() });
    assert!(wide.iter().zip(&again).any(|(a, b)| a.tokens != b.tokens), "another stream, other random numbers");
}

/// The same worlds at the end of a long wire: every answer takes its time.
struct Distant(Scripted);

const WIRE: Duration = Duration::from_millis(40);

impl Environment for Distant {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        std::thread::sleep(WIRE);
        self.0.reset()
    }

    fn step(&mut self, command: &str) -> Result<Observation, EnvError> {
        std::thread::sleep(WIRE);
        self.0.step(command)
    }

    fn is_remote(&self) -> bool {
        true
    }
}

fn open_distant(task: &Task) -> Result<Box<dyn Environment>, EnvError> {
    open(task)?;
    Ok(Box::new(Distant(Scripted { kind: task.kind.clone(), name: task.id.clone(), steps: 0 })))
}

#[test]
fn distant_environments_are_waited_for_together_and_change_nothing() {
    let settings = RolloutSettings { max_live: 18, ..settings() };
    let (prompter, model, near) = play(&settings);
    let tasks: Vec<Task> = ["win", "lose", "go", "talk", "break", "absent"].iter().map(|k| task(k, 0)).collect();
    let began = Instant::now();
    let far = rollout(&model, &prompter, &open_distant, &tasks, 3, &settings, NEVER).unwrap();
    let took = began.elapsed();
    assert_eq!(far.len(), near.len());
    for (a, b) in far.iter().zip(&near) {
        assert_eq!((&a.task, &a.tokens, &a.turns, &a.finish), (&b.task, &b.tokens, &b.turns, &b.finish));
    }
    let calls: usize = far.iter().map(|e| 1 + e.turns.iter().filter(|t| t.refusal.is_none()).count()).sum();
    assert!(took < WIRE * calls as u32 / 3, "{calls} calls one after the other: {took:?}");

    let held_out = [task("win", 0), task("held-out", 0)];
    let refused = rollout(&model, &prompter, &open_distant, &held_out, 2, &settings, NEVER);
    assert!(matches!(refused, Err(RolloutError::HeldOut(_))));
    let stop = Cell::new(0);
    let after_some = || {
        stop.set(stop.get() + 1);
        stop.get() > 3
    };
    let stopped = rollout(&model, &prompter, &open_distant, &tasks, 3, &settings, &after_some);
    assert!(matches!(stopped, Err(RolloutError::Interrupted)));
}

#[test]
fn members_of_a_group_share_the_prompt_and_nothing_else() {
    let (prompter, _, episodes) = play(&settings());
    for group in episodes.chunks(3).take(4) {
        let prompt = prompter.first(&open(&group[0].task).unwrap().reset().unwrap()).unwrap().now;
        assert!(group.iter().all(|e| e.tokens.starts_with(&prompt)));
        assert!(group[0].tokens != group[1].tokens && group[1].tokens != group[2].tokens);
    }
    // Greedy: no random number is left to tell them apart.
    let greedy =
        RolloutSettings { sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() }, ..settings() };
    let (_, _, episodes) = play(&greedy);
    for group in episodes.chunks(3) {
        assert!(group.iter().all(|e| e.tokens == group[0].tokens));
    }
}

#[test]
fn turns_are_kept_as_sampled() {
    let (prompter, _, episodes) = play(&settings());
    let mut unfinished = 0;
    for episode in episodes.iter().filter(|e| !e.tokens.is_empty()) {
        assert!(episode.turns.len() <= 4);
        for turn in &episode.turns {
            let sampled = &episode.tokens[turn.tokens.clone()];
            assert!(!sampled.is_empty() && sampled.len() <= 6);
            let (last, body) = sampled.split_last().unwrap();
            if turn.refusal == Some(Refusal::Unfinished) {
                unfinished += 1;
                assert!(sampled.iter().all(|t| !prompter.ends_turn(*t)));
                assert_eq!(prompter.read(sampled).unwrap().text, turn.action);
                // The turn is closed by a token that was not sampled.
                if sampled.len() == 6 && turn.tokens.end < episode.tokens.len() {
                    assert_eq!(episode.tokens[turn.tokens.end], prompter.end());
                }
            } else {
                assert!(prompter.ends_turn(*last));
                let action = prompter.read(body).unwrap();
                assert_eq!((action.text, action.command.err()), (turn.action.clone(), turn.refusal));
            }
            if turn.refusal.is_some() {
                assert!(!turn.valid && turn.reward == 0.0);
            }
        }
    }
    assert!(unfinished > 0);
}

#[test]
fn every_way_to_end() {
    let prompter = prompter();
    let model = model(&prompter, 6.0);
    let play = |kind: &str, settings: &RolloutSettings| {
        rollout(&model, &prompter, &open, &[task(kind, 0)], 12, settings, NEVER).unwrap()
    };
    let some = |episodes: &[Episode], finish: Finish| {
        assert!(episodes.iter().any(|e| e.finish == finish), "{finish:?}: {:?}", episodes[0].finish);
    };
    let long = RolloutSettings { max_steps: 30, max_turn_tokens: 12, ..settings() };
    let won = play("win", &long);
    some(&won, Finish::Won);
    assert!(won.iter().all(|e| e.success == (e.finish == Finish::Won)));
    some(&play("lose", &long), Finish::Lost);
    some(&play("break", &long), Finish::EnvFailed("environment scripted: it broke".into()));
    some(&play("go", &settings()), Finish::StepLimit);

    // An observation that does not fit ends the episode before it is shown; so does a token too many.
    for (max_episode_tokens, limit, finish) in
        [(0, CONTEXT, Finish::ContextLimit), (40, 40, Finish::TokenLimit), (5000, CONTEXT, Finish::ContextLimit)]
    {
        let settings = RolloutSettings { max_episode_tokens, max_steps: 200, ..long.clone() };
        for kind in ["talk", "go"] {
            let episodes = play(kind, &settings);
            some(&episodes, finish.clone());
            assert!(episodes.iter().all(|e| e.tokens.len() <= limit && e.finish == finish));
        }
    }

    // What cannot be opened fails alone, beside others that play on.
    let tasks = [task("absent", 0), task("win", 0)];
    let episodes = rollout(&model, &prompter, &open, &tasks, 2, &long, NEVER).unwrap();
    assert_eq!(episodes[0].finish, Finish::EnvFailed("games/absent: not there".into()));
    assert!(episodes[0].tokens.is_empty() && !episodes[2].tokens.is_empty());
}

#[test]
fn a_prompt_longer_than_the_limit_fails_its_episodes_by_name() {
    let prompter = prompter();
    let model = model(&prompter, 2.5);
    let wordy = |t: &Task| -> Result<Box<dyn Environment>, EnvError> {
        let name = if t.id == "go-7" { "far too much to say ".repeat(50) } else { t.id.clone() };
        Ok(Box::new(Scripted { kind: t.kind.clone(), name, steps: 0 }))
    };
    let tasks = [task("go", 7), task("go", 8)];
    let episodes = rollout(&model, &prompter, &wordy, &tasks, 2, &settings(), NEVER).unwrap();
    for episode in &episodes[..2] {
        let Finish::EnvFailed(why) = &episode.finish else { panic!("{:?}", episode.finish) };
        assert!(why.contains("the prompt of task go-7 has") && why.contains("within 96, the model's context"), "{why}");
        assert!(episode.tokens.is_empty() && episode.turns.is_empty());
    }
    let plain = rollout(&model, &prompter, &open, &tasks, 2, &settings(), NEVER).unwrap();
    assert_eq!(without_clocks(episodes.clone())[2..], without_clocks(plain)[2..], "the others play as ever");
    assert_eq!(grpo::samples(&Played::new(episodes).episodes, &Config::default()).len(), 2);
    let tight = RolloutSettings { max_episode_tokens: 3, ..settings() };
    let episodes = rollout(&model, &prompter, &open, &[task("go", 7)], 2, &tight, NEVER).unwrap();
    let Finish::EnvFailed(why) = &episodes[1].finish else { panic!("{:?}", episodes[1].finish) };
    assert!(why.contains("within 3, the limit rollout.max_episode_tokens"), "{why}");
}

/// A world that pays what its task's id says at the second step.
struct Paying(f32, usize);

impl Environment for Paying {
    fn reset(&mut self) -> Result<Observation, EnvError> {
        Ok(Observation { text: "This is a win.".into(), valid: true, ..Observation::default() })
    }

    fn step(&mut self, _: &str) -> Result<Observation, EnvError> {
        self.1 += 1;
        let reward = if self.1 == 2 { self.0 } else { 0.25 };
        Ok(Observation { text: "Step 1.".into(), reward, done: self.1 == 2, valid: true, ..Observation::default() })
    }
}

#[test]
fn rewards_are_kept_and_absurd_ones_fail_the_episode_by_name() {
    let prompter = prompter();
    // It ends its turns soon, so that commands are read and steps are taken.
    let model = model(&prompter, 6.0);
    let paying =
        |t: &Task| -> Result<Box<dyn Environment>, EnvError> { Ok(Box::new(Paying(t.kind.parse().unwrap(), 0))) };
    let long = RolloutSettings { max_steps: 30, max_turn_tokens: 12, ..settings() };
    for (pays, right) in
        [("0.5", true), ("-2", true), ("1e6", true), ("-1e6", true), ("2e6", false), ("-inf", false), ("NaN", false)]
    {
        let episodes = rollout(&model, &prompter, &paying, &[task(pays, 0)], 6, &long, NEVER).unwrap();
        let over: Vec<&Episode> =
            episodes.iter().filter(|e| matches!(e.finish, Finish::Lost | Finish::EnvFailed(_))).collect();
        assert!(!over.is_empty(), "{pays}");
        for episode in over {
            let second = f64::from(pays.parse::<f32>().unwrap());
            match &episode.finish {
                Finish::EnvFailed(why) if !right => {
                    assert!(why.contains(&format!("{pays}-0")) && why.contains("it paid the reward"), "{why}");
                    assert_eq!(episode.paid(), 0.25);
                }
                finish => assert!(right && episode.paid() == 0.25 + second, "{pays}: {finish:?}"),
            }
        }
    }
}

#[test]
fn a_held_out_task_stops_everything() {
    let prompter = prompter();
    let tasks = [task("go", 0), task("held-out", 4)];
    let error = rollout(&model(&prompter, 2.5), &prompter, &open, &tasks, 2, &settings(), NEVER).unwrap_err();
    assert!(matches!(error, RolloutError::HeldOut(_)) && error.to_string().contains("held-out-4"));
}

#[test]
fn members_that_begin_elsewhere_leave_their_group() {
    let prompter = prompter();
    let opened = Arc::new(AtomicUsize::new(0));
    let fickle = |t: &Task| -> Result<Box<dyn Environment>, EnvError> {
        let name = if opened.fetch_add(1, Ordering::SeqCst) == 1 { "another world" } else { "this world" };
        Ok(Box::new(Scripted { kind: t.kind.clone(), name: name.into(), steps: 0 }))
    };
    // One at a time, so that the second one opened is the second member.
    let one = RolloutSettings { max_live: 1, ..settings() };
    let episodes = rollout(&model(&prompter, 2.5), &prompter, &fickle, &[task("go", 0)], 3, &one, NEVER).unwrap();
    let failed: Vec<bool> = episodes.iter().map(|e| e.finish.is_failure()).collect();
    assert_eq!(failed, [false, true, false]);
}

#[test]
fn an_interrupt_is_heard() {
    let prompter = prompter();
    let ticks = Cell::new(0);
    let stop = || {
        ticks.set(ticks.get() + 1);
        ticks.get() > 3
    };
    let out = rollout(&model(&prompter, 2.5), &prompter, &open, &[task("go", 0)], 2, &settings(), &stop);
    assert!(matches!(out, Err(RolloutError::Interrupted)));
    assert_eq!(ticks.get(), 4);
}

#[test]
fn settings_follow_the_configuration() {
    let mut config = Config::default();
    config.rollout.temperature = 0.9;
    config.rollout.top_k = 7;
    config.eval.temperature = 0.3;
    let (train, eval) = (
        RolloutSettings::training(&config, Stream::Rollout(5)),
        RolloutSettings::evaluation(&config, Stream::Evaluation),
    );
    assert_eq!((train.sampling.temperature, train.sampling.top_k, train.stream), (0.9, 7, Stream::Rollout(5)));
    assert_eq!((eval.sampling.temperature, eval.sampling.top_k, eval.stream), (0.3, 0, Stream::Evaluation));
    assert_eq!(train.max_turn_tokens, eval.max_turn_tokens);
}

// ---- answers about turns that were played ----

/// What of each finished sequence is in the cache: all but what was sampled last.
fn left(episodes: &[Episode]) -> Vec<Vec<u32>> {
    let sequences = |e: &Episode| -> Vec<Vec<u32>> {
        let turns = e.turns.chunk_by(|a, b| a.start == b.start);
        turns.map(|turns| e.tokens[turns[0].start..turns[turns.len() - 1].tokens.end - 1].to_vec()).collect()
    };
    episodes.iter().flat_map(sequences).collect()
}

/// A question behind each turn that leaves room for it, but no prompt twice.
fn asked(prompter: &Prompter, episodes: &[Episode]) -> Vec<Vec<u32>> {
    let question = prompter.encode_question("Was it right?").unwrap();
    let turns = episodes.iter().flat_map(|e| e.turns.iter().map(move |turn| e.acted(turn)));
    let mut prompts: Vec<Vec<u32>> = turns.map(|acted| [acted, &question].concat()).collect();
    prompts.retain(|prompt| prompt.len() + 6 <= CONTEXT);
    prompts.sort_unstable();
    prompts.dedup();
    prompts
}

/// Sampled tokens that the model reads: an answer's last is not.
fn written(answers: &[Vec<Answer>]) -> usize {
    answers.iter().flatten().map(|answer| answer.tokens.len() - 1).sum()
}

fn assert_same(a: &[Vec<Answer>], b: &[Vec<Answer>]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        assert_eq!(a.tokens, b.tokens);
        for (a, b) in a.logprobs.iter().zip(&b.logprobs) {
            assert!((a - b).abs() < 1e-5, "{a} and {b}");
        }
    }
}

/// The same answers whether prompts go on from the rollout's sequences, share among themselves, or are read one by one; and as many
/// tokens computed as are not shared.
#[test]
fn answers_go_on_from_the_episodes() {
    const PLENTY: usize = 1 << 20;
    for history in [History::Full, History::Window(1)] {
        let prompter = remembering(history);
        let model = model(&prompter, 2.5);
        let tasks: Vec<Task> = ["win", "lose", "go", "talk", "break"].iter().map(|k| task(k, 0)).collect();
        let playing = RolloutSettings { max_live: 4, ..settings() };
        let mut cache = PrefixCache::new(&model, PLENTY).unwrap();
        let episodes = every(&actor(&model, &prompter, &playing).rollout_on(&mut cache, &games(&tasks, 3)).unwrap());
        let alone = rollout(&model, &prompter, &open, &tasks, 3, &playing, NEVER).unwrap();
        assert!(episodes.iter().zip(&alone).all(|(a, b)| (&a.tokens, &a.logprobs) == (&b.tokens, &b.logprobs)));
        let (prompts, left) = (asked(&prompter, &episodes), left(&episodes));
        assert!(prompts.len() > 20);
        let nodes = |sequences: &[Vec<u32>]| Forest::new(sequences).len();
        let answer = |cache: &mut PrefixCache<'_>, max_live: usize| {
            let settings = RolloutSettings { max_live, stream: Stream::Rollout(9), ..settings() };
            let before = cache.computed_tokens();
            let answers = actor(&model, &prompter, &settings).answers_on(cache, &prompts, 2).unwrap();
            let computed = cache.computed_tokens() - before - written(&answers);
            (answers, computed)
        };

        let (one_by_one, computed) = answer(&mut PrefixCache::new(&model, 0).unwrap(), 1);
        assert_eq!(computed, prompts.iter().map(Vec::len).sum::<usize>());
        let (among_themselves, computed) = answer(&mut PrefixCache::new(&model, PLENTY).unwrap(), 7);
        assert_eq!(computed, nodes(&prompts));
        assert_same(&among_themselves, &one_by_one);
        let (going_on, computed) = answer(&mut cache, 1000);
        assert_eq!(computed, nodes(&[&left[..], &prompts].concat()) - nodes(&left));
        assert_same(&going_on, &one_by_one);
        // The prompts are gone, the episodes still there.
        assert_eq!(answer(&mut cache, 7), (going_on, computed));
        assert!(3 * computed < 2 * nodes(&prompts), "{computed} of {}", nodes(&prompts));

        // With room for a part, the oldest are read again.
        let mut small = PrefixCache::new(&model, 400).unwrap();
        actor(&model, &prompter, &playing).rollout_on(&mut small, &games(&tasks, 3)).unwrap();
        let (partly, more) = answer(&mut small, 1000);
        assert!(computed < more && more < nodes(&prompts), "{computed} < {more} < {}", nodes(&prompts));
        assert_same(&partly, &one_by_one);
    }
}

/// The same on a device whose pages run short: what is kept gives way to what is played.
#[test]
fn a_gpu_keeps_what_it_has_pages_for() {
    let prompter = prompter();
    let mut model = sized(&prompter, 2.5, [2, 1, 64]);
    model.params.flat.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
    let tasks = [task("win", 0), task("go", 0)];
    // Pages for so many whole contexts.
    let play = |contexts: usize| {
        let on_device = CudaModel::new(&emulated::gpu(), &model, contexts).unwrap();
        let playing = RolloutSettings { max_live: 1, max_steps: 3, ..settings() };
        let mut cache = PrefixCache::new(&on_device as &dyn Policy, 1 << 20).unwrap();
        let episodes =
            every(&actor(&on_device, &prompter, &playing).rollout_on(&mut cache, &games(&tasks, 2)).unwrap());
        let prompts = asked(&prompter, &episodes)[..4].to_vec();
        let before = cache.computed_tokens();
        let answering = RolloutSettings { max_live: 2, stream: Stream::Rollout(9), ..settings() };
        let answers = actor(&on_device, &prompter, &answering).answers_on(&mut cache, &prompts, 2).unwrap();
        let computed = cache.computed_tokens() - before - written(&answers);
        (episodes.iter().map(|e| e.tokens.clone()).collect::<Vec<_>>(), prompts, computed, left(&episodes))
    };
    let (episodes, prompts, computed, left) = play(8);
    assert_eq!(computed, Forest::new(&[&left[..], &prompts].concat()).len() - Forest::new(&left).len());
    let (short_episodes, short_prompts, more, _) = play(2);
    assert_eq!((episodes, prompts), (short_episodes, short_prompts));
    assert!(more > computed, "{more} and {computed}");
}

/// Out of pages, the youngest episodes give theirs back, are read again, and go on as if nothing had been.
#[test]
fn preempted_episodes_go_on_token_for_token() {
    let prompter = prompter();
    let mut model = sized(&prompter, 2.5, [2, 1, 64]);
    model.params.flat.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
    let tasks = [task("win", 0), task("go", 0), task("talk", 0)];
    let play = |contexts: usize, max_live: usize| {
        let on_device = CudaModel::new(&emulated::quick_gpu(), &model, contexts).unwrap();
        let mut cache = PrefixCache::new(&on_device as &dyn Policy, 0).unwrap();
        let playing = RolloutSettings { max_live, max_steps: 4, ..settings() };
        let episodes =
            every(&actor(&on_device, &prompter, &playing).rollout_on(&mut cache, &games(&tasks, 3)).unwrap());
        (episodes, cache.computed_tokens())
    };
    let (roomy, once) = play(12, 9);
    for contexts in [1, 2, 4] {
        let (tight, again) = play(contexts, 9);
        assert!(again > once, "{contexts}: nobody was preempted, {again} tokens against {once}");
        for (a, b) in roomy.iter().zip(&tight) {
            assert_eq!((&a.tokens, &a.finish), (&b.tokens, &b.finish), "{contexts}");
            assert!(a.logprobs.iter().zip(&b.logprobs).all(|(a, b)| (a - b).abs() < 0.02), "{contexts}");
        }
    }
}

// ---- statistics ----

/// An episode whose turns are (observation, command, valid), one sampled token each.
fn told(turns: &[(&str, &str, bool)], finish: Finish) -> Episode {
    let mut episode = Episode::new(task("go", 0), 0, 0);
    episode.turns = turns
        .iter()
        .enumerate()
        .map(|(i, (observation, action, valid))| Turn {
            start: 0,
            observation: observation.to_string(),
            action: action.to_string(),
            command: Some(action.trim().to_string()).filter(|a| !a.is_empty()),
            tokens: i..i + 1,
            thought: 0,
            valid: *valid,
            refusal: (action.is_empty()).then_some(Refusal::Empty),
            reward: 0.0,
            progressed: None,
        })
        .collect();
    episode.success = finish == Finish::Won;
    episode.finish = finish;
    episode
}

#[test]
fn repeats_and_loops_by_hand() {
    let count = |turns: &[(&str, &str, bool)]| Counts::of(&told(turns, Finish::StepLimit));
    let c = count(&[("hall", "east", true), ("room", "take key", true), ("got it", "go", true)]);
    assert_eq!((c.turns, c.repeats, c.loops, c.invalid, c.tokens), (3, 0, 0, 0, 3));
    // The same command elsewhere is no repeat; back in the hall is a cycle; "east" in the hall again is a repeat.
    let c = count(&[("hall", "east", true), ("room", "east", true), ("hall", "east", true), ("shed", "look", true)]);
    assert_eq!((c.repeats, c.loops), (1, 2));
    // An answer that was shown before, at once: a loop, but only the second time the same command is a repeat.
    let c = count(&[("hall", "", false), ("hall", "jump", false), ("hall", "jump ", true)]);
    assert_eq!((c.repeats, c.loops, c.invalid), (1, 3, 2));
}

#[test]
fn statistics_tell_won_from_lost() {
    let episodes = [
        told(&[("a", "x", true), ("b", "y", true)], Finish::Won),
        told(&[("a", "x", true), ("a", "x", false), ("a", "", false), ("c", "z", true)], Finish::StepLimit),
        told(&[("a", "x", true)], Finish::EnvFailed("gone".into())),
    ];
    let s = Statistics::of(&Played::new(episodes.into()));
    assert_eq!((s.success, s.env_failed), (0.5, 1));
    assert_eq!((s.all.episodes, s.won.episodes, s.lost.episodes), (2, 1, 1));
    assert_eq!((s.all.episode_length, s.won.episode_length, s.lost.episode_length), (3.0, 2.0, 4.0));
    assert_eq!((s.won.repeat_rate, s.lost.repeat_rate), (0.0, 0.25));
    assert_eq!((s.all.invalid_rate, s.lost.invalid_rate), (2.0 / 6.0, 0.5));
    assert_eq!(s.finishes.into_iter().collect::<Vec<_>>(), [("env-failed", 1), ("step-limit", 1), ("won", 1)]);
    assert_eq!(s.refusals.into_iter().collect::<Vec<_>>(), [("empty", 1)]);
    assert_eq!(Statistics::of(&Played::default()), Statistics::default());
}
