//! `uncouple eval`.

use super::agent::Subject;
use super::{EvalArgs, INTERRUPTED, output};
use crate::agent::Prompter;
use crate::config::Config;
use crate::env::baseline::Baselines;
use crate::env::{Split, Suite};
use crate::files;
use crate::gcd::judgment::verdict_rate;
use crate::model::backend::cuda::CudaModel;
use crate::model::checkpoint;
use crate::model::policy::Policy;
use crate::report::progress::say;
use crate::report::results::{self, StageRow, TypeRow, Unreadable};
use crate::report::trajectories::Trajectories;
use crate::rollout::{Actor, Played, RolloutError};
use crate::train::record::evaluated;
use crate::train::run_folder::automatic_name;
use crate::train::{TrainError, evaluate, interrupt, state, suite};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    let Subject { mut config, dir, home } = Subject::of(&args.agent)?;
    if let Some(games) = args.games.or(args.all.then_some(0)) {
        config.eval.games = games;
    }
    let (model, tokenizer) = checkpoint::load_with_tokenizer(&dir)?;
    let model = model.with_dtype(config.model.dtype);
    // After all that may be refused: it takes all memory of the GPU.
    let gpu = args.agent.device.open().context("eval --device cuda")?;
    let on_gpu = gpu.as_ref().map(|gpu| CudaModel::new(gpu, &model, config.rollout.max_live as usize)).transpose()?;
    let policy: &dyn Policy = on_gpu.as_ref().map_or(&model, |model| model);
    let mut prompter = Prompter::new(tokenizer, &config.prompt)?;
    prompter.suggest(&state::suggestions(&dir)?);
    let suite = suite(&config)?;
    let splits = splits(args.split, &*suite)?;
    interrupt::install().context("cannot listen for Ctrl-C")?;
    let folder = folder(args.out.as_deref(), &home)?;
    let Some((played, seconds)) =
        play(&config, &*suite, &evaluate::actor(&config, policy, &prompter), &splits, &folder)?
    else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let results = Results::of(&config, &*suite, &splits, &played, seconds)?;
    let all = results.json(&config, &folder);
    let json = format!("{all:#}\n");
    files::write_file(&folder.join("eval.json"), |w| w.write_all(json.as_bytes()))?;
    if args.json {
        output::print_json(&all)?
    } else {
        results.print(&config, suite.name(), &folder)?
    }
    Ok(ExitCode::SUCCESS)
}

/// The splits to play, one alone or all; refuses one alone that has no games.
fn splits(alone: Option<Split>, suite: &dyn Suite) -> Result<Vec<Split>> {
    let Some(split) = alone else { return Ok(evaluate::SPLITS.to_vec()) };
    let name = suite.name();
    ensure!(suite.len(split) != Some(0), "{name} has no {split} games: nothing is held out, or its data lack them");
    Ok(vec![split])
}

/// Plays the panels, whose trajectories go to `folder`, and the seconds that took; `None` where it was interrupted.
fn play(
    config: &Config,
    suite: &dyn Suite,
    actor: &Actor<'_>,
    splits: &[Split],
    folder: &Path,
) -> Result<Option<(Played, f64)>> {
    let mut trajectories = Trajectories::open(folder, &[])?;
    let began = Instant::now();
    let games = evaluate::panel(config, suite, splits)?.len();
    say(&format!("evaluation: playing {games} games; trajectories go to {}", folder.display()));
    let played = match evaluate::evaluate(config, suite, actor, splits) {
        Err(stopped) => {
            // Nothing was played to its end.
            drop(trajectories);
            let _ = std::fs::remove_dir_all(folder);
            if !matches!(stopped, TrainError::Rollout(RolloutError::Interrupted)) {
                return Err(stopped.into());
            }
            say(&stopped.to_string());
            return Ok(None);
        }
        Ok(played) => played,
    };
    let seconds = began.elapsed().as_secs_f64();
    trajectories.append(&evaluated(config, actor.prompter, &played, 0, "eval")?)?;
    if let Some(line) = evaluate::failures(&played) {
        say(&line);
    }
    Ok(Some((played, seconds)))
}

/// What an evaluation came to.
struct Results {
    rows: Vec<StageRow>,
    returns: BTreeMap<String, f64>,
    verdict_rate: f64,
    unreadable: BTreeMap<String, Unreadable>,
    types: Vec<TypeRow>,
    baselines: BTreeMap<String, Baselines>,
    /// Games of each split, and the hash of what they ask.
    panels: Vec<(Split, usize, String)>,
    seconds: BTreeMap<&'static str, f64>,
}

impl Results {
    fn of(config: &Config, suite: &dyn Suite, splits: &[Split], played: &Played, games: f64) -> Result<Results> {
        let episodes = &played.episodes;
        let began = Instant::now();
        let baselines = evaluate::baselines(config, suite, splits)?;
        let seconds = BTreeMap::from([("games", games), ("baselines", began.elapsed().as_secs_f64())]);
        let panel = |&split: &Split| -> Result<_, TrainError> {
            let panel = evaluate::panel(config, suite, &[split])?;
            Ok((split, panel.len(), evaluate::panel_hash(suite, &panel)))
        };
        Ok(Results {
            rows: results::rows(&[("model", &evaluate::count(episodes))]),
            returns: evaluate::returns(config, episodes),
            verdict_rate: verdict_rate(episodes),
            unreadable: evaluate::unreadable(episodes),
            types: evaluate::types(episodes),
            baselines,
            panels: splits.iter().map(panel).collect::<Result<_, _>>()?,
            seconds,
        })
    }

    fn json(&self, config: &Config, folder: &Path) -> serde_json::Value {
        let panel = |(split, games, hash): &_| serde_json::json!({"split": split, "games": games, "hash": hash});
        serde_json::json!({
            "results": self.rows, "returns": self.returns, "verdict_rate": self.verdict_rate,
            "unreadable": self.unreadable, "types": self.types, "baselines": self.baselines,
            "limits": {"max_steps": config.env.max_steps, "temperature": config.eval.temperature},
            "panels": self.panels.iter().map(panel).collect::<Vec<_>>(), "seconds": self.seconds, "folder": folder,
        })
    }

    fn print(&self, config: &Config, suite: &str, folder: &Path) -> Result<()> {
        output::print(&results::table(&self.rows))?;
        output::print(&results::unreadable_table(&self.unreadable))?;
        output::print(&results::type_table(&self.types))?;
        let means: Vec<String> = self.returns.iter().map(|(split, mean)| format!("{split} {mean:.3}")).collect();
        let verdicts = 100.0 * self.verdict_rate;
        output::print(&format!("mean return {}; verdicts in {verdicts:.2} % of the turns", means.join(", ")))?;
        output::print(&results::baseline_table(&self.baselines))?;
        for (split, games, hash) in &self.panels {
            output::print(&format!("{split}: {games} {suite} games, sha256 {hash}"))?;
        }
        output::print(&format!("at most {} steps, temperature {}", config.env.max_steps, config.eval.temperature))?;
        let seconds = self.seconds["games"];
        output::print(&format!("{seconds:.1} s; trajectories and results: {}", folder.display()))
    }
}

/// Makes the folder of this evaluation: `out`, or one named by the time at `home`.
fn folder(out: Option<&Path>, (home, name): &(PathBuf, String)) -> Result<PathBuf> {
    let create =
        |folder: &Path| std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()));
    if let Some(out) = out {
        ensure!(!out.exists(), "--out {}: exists already: choose another folder, or remove it", out.display());
        create(out)?;
        return Ok(out.into());
    }
    create(home)?;
    let base = automatic_name(name, SystemTime::now());
    for n in 1.. {
        let folder = home.join(if n == 1 { base.clone() } else { format!("{base}-{n}") });
        match std::fs::create_dir(&folder) {
            // Another evaluation began in the same minute.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => {
                return made.map(|()| folder.clone()).with_context(|| format!("cannot create {}", folder.display()));
            }
        }
    }
    unreachable!("the names do not end")
}
