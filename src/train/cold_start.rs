//! Cold start: supervised learning on demonstrations, and on judgments of their actions for GCD, played in training games only.

use super::{TrainError, interrupt, suggest};
use crate::agent::{Exchange, Memory, Next, Prompter, Tag, lead, turn_text};
use crate::config::{Config, Format, GcdMode};
use crate::env::{EnvError, Environment, Observation, Split, Suite};
use crate::gcd::{Label, judgment};
use crate::ops::philox::{self, Stream};
use crate::rollout::{RolloutError, too_long};
use rayon::prelude::*;

/// One demonstrated episode as tokens.
pub struct Demonstration {
    /// The sequences of the episode, in which the commands are taught.
    episode: Vec<SftSequence>,
    /// Judgments of the demonstrated commands, and of others in their place.
    good: Vec<SftSequence>,
    bad: Vec<SftSequence>,
}

/// A sequence to learn from; `mask` marks what is taught: what the agent writes, its end tokens included.
#[derive(Default)]
struct SftSequence {
    tokens: Vec<u32>,
    mask: Vec<bool>,
}

/// One demonstrated episode as text.
pub struct Trajectory {
    /// The task's id.
    task: String,
    /// Not empty.
    turns: Vec<DemonstrationTurn>,
}

struct DemonstrationTurn {
    observation: Observation,
    /// The command given in answer.
    command: String,
    /// A noise action is played but not taught.
    noise: bool,
    /// What the demonstrator would have done.
    better: String,
    /// A command off the plan, to be judged bad (for GCD only).
    worse: Option<String>,
}

/// The demonstrations of `config.sft.games` training games, the first ones of the split, or of the file of demonstrations.
pub fn trajectories(config: &Config, suite: &dyn Suite) -> Result<Vec<Trajectory>, TrainError> {
    let listed = suite.demonstrated();
    let games = listed.map_or(config.sft.games as usize, |tasks| tasks.len().min(config.sft.games as usize));
    let play = |index: usize| -> Result<Trajectory, TrainError> {
        if interrupt::interrupted() {
            return Err(RolloutError::Interrupted.into());
        }
        let task = listed.map_or_else(|| suite.task(Split::Train, index as u64), |tasks| Ok(tasks[index].clone()))?;
        let index = index as u64;
        let mut env = suite.open_for_training(&task)?;
        let plan = rehearse(config, &mut *env)?;
        let (mut observation, mut turns) = (env.reset()?, Vec::<DemonstrationTurn>::new());
        while turns.len() < config.env.max_steps as usize
            && !observation.done
            && let Some(command) = env.demonstrate().or_else(|| random_action(config, index, &turns, &observation))
        {
            let others =
                Others { last: turns.last().map(|turn| &turn.command), plan: &plan, any: &observation.admissible };
            let noise = noise_action(config, index, turns.len(), &others);
            let worse = match teaches_judgments(config) {
                true => off_plan(config, index, turns.len(), &others, &[Some(&command), env.expert().as_ref()]),
                false => None,
            };
            let (is_noise, played) = (noise.is_some(), noise.unwrap_or_else(|| command.clone()));
            let turn = DemonstrationTurn { observation, command: played, noise: is_noise, better: command, worse };
            observation = env.step(&turn.command)?;
            turns.push(turn);
        }
        if turns.is_empty() && config.sft.steps > 0 {
            let reason =
                "it demonstrates nothing: set sft.steps = 0, leave this task out, or record demonstrations of others \
                          (env.demonstrations)"
                    .into();
            return Err(EnvError::Failed { name: task.id, reason }.into());
        }
        Ok(Trajectory { task: task.id, turns })
    };
    (0..games).into_par_iter().map(play).collect()
}

/// The commands of a demonstration without a mistake; none where nothing needs them, or where the demonstration is a recorded one.
fn rehearse(config: &Config, env: &mut dyn Environment) -> Result<Vec<String>, EnvError> {
    let mut plan = Vec::new();
    if config.sft.steps == 0 || !config.env.demonstrations.is_empty() {
        return Ok(plan);
    }
    let mut observation = env.reset()?;
    while plan.len() < config.env.max_steps as usize
        && !observation.done
        && let Some(command) = env.demonstrate()
    {
        observation = env.step(&command)?;
        plan.push(command);
    }
    Ok(plan)
}

/// Commands other than the demonstrator's next one.
struct Others<'a> {
    last: Option<&'a String>,
    /// All of the demonstration, whatever their turn.
    plan: &'a [String],
    /// All that would do something.
    any: &'a [String],
}

impl Others<'_> {
    /// The last command once more, one of the demonstration out of its turn, or any that would do something: a learner stays where it is,
    /// goes on as if what failed had worked, or goes astray.
    fn choose(&self, [kind, choice]: [u32; 2]) -> Option<String> {
        let one_of = |commands: &[String]| commands.get(choice as usize % commands.len().max(1)).cloned();
        match kind % 3 {
            0 => self.last.cloned(),
            1 => one_of(self.plan),
            _ => None,
        }
        .or_else(|| one_of(self.any))
    }
}

/// Now and then another command than the demonstrator's. What the demonstrator does next teaches how to recover; without noise actions a
/// learner's first mistake leads where nothing was ever taught (Laskey et al. 2017, noise injection).
fn noise_action(config: &Config, index: u64, turn: usize, others: &Others<'_>) -> Option<String> {
    let [chance, kind, choice, _] = philox::block(config.run.seed, Stream::NoiseActions.part(index), turn as u64);
    // A recorded demonstration does not know how to go on after another command.
    if philox::uniform(chance) >= config.sft.noise_action || !config.env.demonstrations.is_empty() {
        None
    } else {
        others.choose([kind, choice])
    }
}

/// Any command that would do something, where nothing is taught: then a trajectory only shows a new tokenizer the words of the game.
fn random_action(
    config: &Config,
    index: u64,
    turns: &[DemonstrationTurn],
    observation: &Observation,
) -> Option<String> {
    if config.sft.steps > 0 || observation.admissible.is_empty() {
        return None;
    }
    let [kind, choice, ..] = philox::block(config.run.seed, Stream::OffPlan.part(index), turns.len() as u64);
    Others { last: turns.last().map(|turn| &turn.command), plan: &[], any: &observation.admissible }
        .choose([kind, choice])
}

fn teaches_judgments(config: &Config) -> bool {
    config.gcd.mode == GcdMode::Generate && config.gcd.cold_start > 0
}

/// A command that nobody who knows the way would give here, drawn as noise actions are.
fn off_plan(
    config: &Config,
    index: u64,
    turn: usize,
    others: &Others<'_>,
    plans: &[Option<&String>],
) -> Option<String> {
    let [kind, choice, ..] = philox::block(config.run.seed, Stream::OffPlan.part(index), turn as u64);
    others.choose([kind, choice]).filter(|command| !plans.contains(&Some(command)))
}

/// The tag of `command` as the answer to turn `at`'s observation.
fn tag(turns: &[DemonstrationTurn], at: usize, command: &str) -> Tag {
    let before: Vec<&str> = turns[..at].iter().map(|turn| &turn.command[..]).collect();
    Tag::taught(&before, turns[at].observation.valid, command)
}

/// The texts of the demonstrations, to train a tokenizer on.
pub fn texts(config: &Config, trajectories: &[Trajectory]) -> Vec<String> {
    let turns = || trajectories.iter().flat_map(|trajectory| &trajectory.turns);
    let mut texts = Vec::new();
    for (index, trajectory) in trajectories.iter().enumerate() {
        texts.extend(Some(lead(&suggested(config, index, trajectory))).filter(|lead| !lead.is_empty()));
        for (at, DemonstrationTurn { observation, command, .. }) in trajectory.turns.iter().enumerate() {
            let tag = config.prompt.tags.then(|| tag(&trajectory.turns, at, command));
            // What every format writes around a command is not for the tokenizer to learn.
            texts.extend([observation.text.clone(), turn_text(Format::Compact, tag, command)]);
        }
    }
    if teaches_judgments(config) {
        let question = judgment::question(config.prompt.format);
        texts.extend(turns().enumerate().flat_map(|(i, turn)| {
            let label = if i % 2 == 0 { Label::Good } else { Label::Bad };
            [question.to_string(), judgment::taught_answer(&turn.better, label)]
        }));
    }
    texts
}

/// Lays trajectories out; those that the model cannot begin to read are left out, by name.
pub fn demonstrations(
    config: &Config,
    prompter: &Prompter,
    trajectories: &[Trajectory],
    context: usize,
    say: &dyn Fn(&str),
) -> Result<Vec<Demonstration>, TrainError> {
    let (mut all, mut left_out) = (Vec::new(), Vec::new());
    for (index, trajectory) in trajectories.iter().enumerate() {
        match demonstration(config, prompter, (index, trajectory), context)? {
            Ok(demonstration) => all.push(demonstration),
            Err(reason) => left_out.push(reason),
        }
    }
    let Some(first) = left_out.first() else { return Ok(all) };
    let line = format!("{} of {} demonstrations are left out, first: {first}", left_out.len(), trajectories.len());
    if all.is_empty() {
        return Err(TrainError::NoDemonstrations(line));
    }
    say(&line);
    Ok(all)
}

/// Lays trajectory number `index` out exactly as an episode of the same words would be; at most `context` tokens in a sequence.
/// `Err(reason)` when the first prompt leaves no room for an answer.
fn demonstration(
    config: &Config,
    prompter: &Prompter,
    (index, trajectory): (usize, &Trajectory),
    context: usize,
) -> Result<Result<Demonstration, String>, TrainError> {
    let (mut episode, mut past) = (Vec::<SftSequence>::new(), Vec::new());
    let [mut good, mut bad] = [Vec::new(), Vec::new()];
    let (mut memory, mut written) = (Memory::default(), Vec::new());
    let suggestions = suggested(config, index, trajectory);
    for (turn, DemonstrationTurn { observation, command, noise, better, worse }) in trajectory.turns.iter().enumerate()
    {
        let next = memory.show(&written, prompter.next_under(&suggestions, &past, observation)?);
        if matches!(next, Next::Sequence(_)) {
            episode.push(SftSequence::default());
        }
        let (Next::More(shown) | Next::Sequence(shown)) = next;
        if turn == 0 && shown.len() >= context {
            return Ok(Err(too_long(&trajectory.task, shown.len(), context, "model's context")));
        }
        past.push(Exchange { observation: &observation.text, action: command.clone() });
        let last = episode.len() - 1;
        let sequence = &mut episode[last];
        sequence.extend(&shown, false);
        if teaches_judgments(config) {
            let state = &sequence.tokens;
            let answer = |command: &str| prompter.encode_action(tag(&trajectory.turns, turn, command), command);
            good.push(judged(config, prompter, state, &answer(better)?, better, Label::Good)?);
            if let Some(worse) = worse {
                bad.push(judged(config, prompter, state, &answer(worse)?, better, Label::Bad)?);
            }
        }
        written = prompter.encode_action(tag(&trajectory.turns, turn, command), command)?;
        sequence.extend(&written, !noise);
    }
    for sequence in &mut episode {
        sequence.tokens.truncate(context);
        sequence.mask.truncate(context);
    }
    [&mut good, &mut bad].into_iter().for_each(|of| of.retain(|sequence| sequence.tokens.len() <= context));
    Ok(Ok(Demonstration { episode, good, bad }))
}

/// What demonstration number `index` is shown with.
fn suggested(config: &Config, index: usize, trajectory: &Trajectory) -> Vec<String> {
    let commands: Vec<&str> = trajectory.turns.iter().map(|turn| &turn.command[..]).collect();
    suggest::made_up(config, index as u64, &commands)
}

/// The judgment of the turn `written` in `state`, where `better` is the thing to do.
fn judged(
    config: &Config,
    prompter: &Prompter,
    state: &[u32],
    written: &[u32],
    better: &str,
    label: Label,
) -> Result<SftSequence, TrainError> {
    let mut sequence = SftSequence { tokens: state.to_vec(), mask: vec![false; state.len()] };
    sequence.extend(written, false);
    sequence.extend(&judgment::ask(prompter, config.prompt.format)?, false);
    sequence.extend(&prompter.encode_turn(&judgment::taught_answer(better, label))?, true);
    Ok(sequence)
}

impl SftSequence {
    fn extend(&mut self, tokens: &[u32], taught: bool) {
        self.tokens.extend_from_slice(tokens);
        self.mask.resize(self.tokens.len(), taught);
    }

    fn parts(&self) -> (&[u32], &[bool]) {
        (&self.tokens, &self.mask)
    }
}

/// The demonstrations of step `step`, each with its `gcd.cold_start` judgments, good and bad by turns: drawn with replacement,
/// a function of the seed and the step alone.
pub fn batch<'a>(config: &Config, all: &'a [Demonstration], step: u32) -> Vec<(&'a [u32], &'a [bool])> {
    let draw = |index: u64| philox::block(config.run.seed, Stream::ColdStart(step).part(0), index)[0] as usize;
    let judgments = if teaches_judgments(config) { config.gcd.cold_start } else { 0 };
    let mut batch = Vec::new();
    for i in 0..config.sft.batch {
        let demo = &all[draw(i.into()) % all.len()];
        batch.extend(demo.episode.iter().map(SftSequence::parts));
        for j in 1..=judgments {
            let sequences = if (i + j) % 2 == 0 { &demo.good } else { &demo.bad };
            let chosen = draw(u64::from(j) << 32 | u64::from(i)) % sequences.len().max(1);
            batch.extend(sequences.get(chosen).map(SftSequence::parts));
        }
    }
    batch
}

/// Learning rate of step `step`: linear warm-up over a twentieth of the steps, then linear decay to a tenth.
pub fn learning_rate(config: &Config, step: u32) -> f32 {
    let (step, steps) = (step as f32 + 1.0, config.sft.steps as f32);
    let warmup = (steps / 20.0).max(1.0);
    let decay = 1.0 - 0.9 * ((step - warmup) / (steps - warmup).max(1.0)).clamp(0.0, 1.0);
    config.sft.lr * (step / warmup).min(1.0) * decay
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::household::Household;

    #[test]
    fn noise_actions_stay_go_on_too_soon_or_go_astray() {
        let mut config = Config::default();
        config.sft.games = 300;
        let played = trajectories(&config, &Household::new(0)).unwrap();
        let [mut turns, mut again, mut early, mut astray] = [0; 4];
        for Trajectory { turns: of, .. } in &played {
            for (at, turn) in of.iter().enumerate() {
                turns += 1;
                assert_ne!(turn.worse.as_ref(), Some(&turn.better));
                if !turn.noise {
                    assert_eq!(turn.command, turn.better);
                } else if at > 0 && turn.command == of[at - 1].command {
                    again += 1;
                } else if !turn.observation.admissible.contains(&turn.command) {
                    early += 1;
                } else {
                    astray += 1;
                }
            }
        }
        let share = |count: usize| count as f64 / turns as f64;
        assert!((share(again + early + astray) - 0.15).abs() < 0.02, "{again} {early} {astray} of {turns}");
        // Some of the demonstration's commands are possible out of their turn, too.
        assert!((share(again) - 0.05).abs() < 0.015 && share(early) > 0.02 && share(astray) > 0.04);

        config.sft.noise_action = 0.0;
        let faultless = trajectories(&config, &Household::new(0)).unwrap();
        assert!(faultless.iter().flat_map(|t| &t.turns).all(|turn| !turn.noise));
    }

    #[test]
    fn the_learning_rate_rises_in_a_twentieth_and_falls_to_a_tenth() {
        let mut config = Config::default();
        (config.sft.lr, config.sft.steps) = (0.2, 100);
        let at = |step| f64::from(learning_rate(&config, step));
        // Five steps of warm-up; then 1 - 0.9 (step - 5) / 95.
        let expected = [(0, 0.04), (1, 0.08), (4, 0.2), (23, 0.2 * 0.82), (99, 0.02), (200, 0.02)];
        for (step, rate) in expected {
            assert!((at(step) - rate).abs() < 1e-6, "step {step}: {} for {rate}", at(step));
        }
        config.sft.steps = 1;
        assert_eq!(learning_rate(&config, 0), 0.2);
    }
}
