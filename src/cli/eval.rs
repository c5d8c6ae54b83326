//! `uncouple eval`.

use super::{EvalArgs, INTERRUPTED, SplitArg, output};
use crate::agent::Prompter;
use crate::config::{Config, Override};
use crate::env::{Split, Task};
use crate::files;
use crate::gcd::judgment::verdict_rate;
use crate::model::backend::cuda::CudaModel;
use crate::model::checkpoint;
use crate::model::policy::Policy;
use crate::report::progress::say;
use crate::report::results;
use crate::report::trajectories::Trajectories;
use crate::rollout::RolloutError;
use crate::train::record::evaluated;
use crate::train::run_folder::automatic_name;
use crate::train::{TrainError, checkpoints, evaluate, interrupt, memory, state, suite};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

/// The part of a run folder that holds its evaluations by hand.
const EVALUATIONS: &str = "evaluations";

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    let Subject { mut config, dir, home } = subject(&args)?;
    if let Some(games) = args.games.or(args.all.then_some(0)) {
        config.eval.games = games;
    }
    let (model, tokenizer) = checkpoint::load_with_tokenizer(&dir)?;
    // After all that may be refused: it takes all memory of the GPU.
    let gpu = args.device.open().context("eval --device cuda")?;
    let on_gpu = gpu.as_ref().map(|gpu| CudaModel::new(gpu, &model, config.rollout.max_live as usize)).transpose()?;
    let policy: &dyn Policy = on_gpu.as_ref().map_or(&model, |model| model);
    let mut prompter = Prompter::new(tokenizer, &config.prompt)?;
    prompter.suggest(&state::suggestions(&dir)?);
    let suite = suite(&config)?;
    let splits = match args.split {
        SplitArg::All => evaluate::SPLITS.to_vec(),
        SplitArg::L0 => vec![Split::L0],
        SplitArg::L1 => vec![Split::L1],
        SplitArg::L2 => vec![Split::L2],
    };
    if let [split] = splits[..] {
        let name = suite.name();
        ensure!(suite.len(split) != Some(0), "{name} has no {split} games: nothing is held out, or its data lack them");
    }
    interrupt::install().context("cannot listen for Ctrl-C")?;
    let folder = folder(args.out.as_deref(), &home)?;
    let mut trajectories = Trajectories::open(&folder, &[])?;
    let began = Instant::now();
    let games = evaluate::panel(&config, &*suite, &splits)?.len();
    say(&format!("evaluation: playing {games} games; trajectories go to {}", folder.display()));
    let played = match evaluate::evaluate(&config, &*suite, policy, &prompter, &splits) {
        Err(stopped) => {
            // Nothing was played to its end.
            drop(trajectories);
            let _ = std::fs::remove_dir_all(&folder);
            if !matches!(stopped, TrainError::Rollout(RolloutError::Interrupted)) {
                return Err(stopped.into());
            }
            say(&stopped.to_string());
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Ok(played) => played,
    };
    let seconds_played = began.elapsed().as_secs_f64();
    trajectories.append(&evaluated(&config, &prompter, &played, 0, "eval")?)?;
    if let Some(line) = evaluate::failures(&played) {
        say(&line);
    }
    let episodes = &played.episodes;
    let (returns, verdicts) = (evaluate::returns(&config, episodes), verdict_rate(episodes));
    let rows = results::rows(&[("model", &evaluate::count(episodes))]);
    let (unreadable, types) = (evaluate::unreadable(episodes), evaluate::types(episodes));
    let began = Instant::now();
    let baselines = evaluate::baselines(&config, &*suite, &splits)?;
    let seconds = BTreeMap::from([("games", seconds_played), ("baselines", began.elapsed().as_secs_f64())]);
    let panels: Vec<(Split, Vec<Task>)> = splits
        .iter()
        .map(|&split| Ok((split, evaluate::panel(&config, &*suite, &[split])?)))
        .collect::<Result<_, TrainError>>()?;
    let hash = |panel: &[Task]| evaluate::panel_hash(&*suite, panel);
    let limits = serde_json::json!({"max_steps": config.env.max_steps, "temperature": config.eval.temperature});
    let hashes: Vec<_> = panels
        .iter()
        .map(|(split, p)| serde_json::json!({"split": split, "games": p.len(), "hash": hash(p)}))
        .collect();
    let all = serde_json::json!({
        "results": rows, "returns": returns, "verdict_rate": verdicts, "unreadable": unreadable, "types": types, "baselines": baselines, "limits": limits,
        "panels": hashes, "seconds": seconds, "folder": folder,
    });
    let json = format!("{all:#}\n");
    files::write_file(&folder.join("eval.json"), |w| w.write_all(json.as_bytes()))?;
    if args.json {
        output::print_json(&all)?;
    } else {
        output::print(&results::table(&rows))?;
        output::print(&results::unreadable_table(&unreadable))?;
        output::print(&results::type_table(&types))?;
        let means: Vec<String> = returns.iter().map(|(split, mean)| format!("{split} {mean:.3}")).collect();
        let verdicts = 100.0 * verdicts;
        output::print(&format!("mean return {}; verdicts in {verdicts:.2} % of the turns", means.join(", ")))?;
        output::print(&results::baseline_table(&baselines))?;
        for (split, panel) in &panels {
            output::print(&format!("{split}: {} {} games, sha256 {}", panel.len(), suite.name(), hash(panel)))?;
        }
        output::print(&format!("at most {} steps, temperature {}", config.env.max_steps, config.eval.temperature))?;
        output::print(&format!("{seconds_played:.1} s; trajectories and results: {}", folder.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What to evaluate.
struct Subject {
    /// What it is evaluated under.
    config: Config,
    /// The model directory.
    dir: PathBuf,
    /// Where its evaluations are kept, and what they are called but for the time.
    home: (PathBuf, String),
}

fn subject(args: &EvalArgs) -> Result<Subject> {
    let overrides = args.set.iter().map(|s| Override::parse(s)).collect::<Result<Vec<_>, _>>()?;
    match (&args.run, &args.model) {
        (Some(run), _) => {
            let file = run.join("config.toml");
            let config = Config::load(Some(&file), &overrides)
                .with_context(|| format!("{} is not the folder of a run", run.display()))?;
            let Some((step, dir)) = checkpoints::last_model(run)? else {
                bail!("{} has no checkpoint yet: let it train longer", run.display());
            };
            Ok(Subject { config, dir, home: (run.join(EVALUATIONS), format!("step-{step}")) })
        }
        (None, Some(model)) => {
            // A checkpoint of a run is read in the run's own words.
            let own = own_run(model);
            let file = args.config.clone().or_else(|| own.as_ref().map(|(run, _)| run.join("config.toml")));
            let mut config = Config::load(file.as_deref(), &overrides)?;
            if own.is_none() {
                config.model.path = model.display().to_string();
                let defaults = memory::defaults_of_its_model(&config)?;
                config = Config::load_over(&defaults, file.as_deref(), &overrides)?;
            }
            let alone = || (PathBuf::from(&config.run.dir), format!("eval-{}", config.env.suite));
            let home = own.map_or_else(alone, |(run, step)| (run.join(EVALUATIONS), step));
            Ok(Subject { config, dir: model.clone(), home })
        }
        (None, None) => bail!("say what to evaluate: --run DIR or --model DIR"),
    }
}

/// The run and the checkpoint's name, when `model` is RUN/checkpoints/step-N.
fn own_run(model: &Path) -> Option<(PathBuf, String)> {
    let model = model.canonicalize().ok()?;
    let checkpoints = model.parent().filter(|p| p.ends_with("checkpoints"))?;
    let run = checkpoints.parent()?;
    let step = model.file_name()?.to_string_lossy().into_owned();
    run.join("config.toml").exists().then(|| (run.into(), step))
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
