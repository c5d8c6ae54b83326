//! `uncouple eval`.

use super::{EvalArgs, INTERRUPTED, SplitArg, output};
use crate::agent::Prompter;
use crate::config::{Config, Override};
use crate::env::{Split, Task};
use crate::model::checkpoint;
use crate::model::cuda::CudaModel;
use crate::model::policy::Policy;
use crate::report::progress::say;
use crate::report::results;
use crate::rollout::RolloutError;
use crate::train::run_folder::RunFolder;
use crate::train::{TrainError, evaluate, interrupt, state, suite};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    let gpu = args.device.open().context("eval --device cuda")?;
    let (mut config, dir) = subject(&args)?;
    if let Some(games) = args.games.or(args.all.then_some(0)) {
        config.eval.games = games;
    }
    let (model, tokenizer) = checkpoint::load_with_tokenizer(&dir)?;
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
    let episodes = match evaluate::evaluate(&config, &*suite, policy, &prompter, &splits) {
        Err(stopped @ TrainError::Rollout(RolloutError::Interrupted)) => {
            say(&stopped.to_string());
            return Ok(ExitCode::from(INTERRUPTED));
        }
        other => other?,
    };
    if let Some(line) = evaluate::failures(&episodes) {
        say(&line);
    }
    let rows = results::rows(&[("model", &evaluate::count(&episodes))]);
    let baselines = evaluate::baselines(&config, &*suite, &splits)?;
    let panels: Vec<(Split, Vec<Task>)> = splits
        .iter()
        .map(|&split| Ok((split, evaluate::panel(&config, &*suite, &[split])?)))
        .collect::<Result<_, TrainError>>()?;
    let hash = |panel: &[Task]| evaluate::panel_hash(&*suite, panel);
    if args.json {
        let limits = serde_json::json!({"max_steps": config.env.max_steps, "temperature": config.eval.temperature});
        let panels: Vec<_> = panels
            .iter()
            .map(|(split, p)| serde_json::json!({"split": split, "games": p.len(), "hash": hash(p)}))
            .collect();
        let all = serde_json::json!({"results": rows, "baselines": baselines, "limits": limits, "panels": panels});
        output::print_json(&all)?;
    } else {
        output::print(&results::table(&rows))?;
        output::print(&results::baseline_table(&baselines))?;
        for (split, panel) in &panels {
            output::print(&format!("{split}: {} {} games, sha256 {}", panel.len(), suite.name(), hash(panel)))?;
        }
        output::print(&format!("at most {} steps, temperature {}", config.env.max_steps, config.eval.temperature))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration to evaluate under, and the model directory.
fn subject(args: &EvalArgs) -> Result<(Config, PathBuf)> {
    let overrides = args.set.iter().map(|s| Override::parse(s)).collect::<Result<Vec<_>, _>>()?;
    match (&args.run, &args.model) {
        (Some(run), _) => {
            let file = run.join("config.toml");
            let config = Config::load(Some(&file), &overrides)
                .with_context(|| format!("{} is not the folder of a run", run.display()))?;
            let Some((_, dir)) = RunFolder::finished_checkpoints(run)?.pop() else {
                bail!("{} has no checkpoint yet: let it train longer", run.display());
            };
            Ok((config, dir))
        }
        (None, Some(model)) => {
            // A checkpoint of a run is read in the run's own words.
            let own = own_config(model);
            let defaults = if own.is_some() { Vec::new() } else { Config::for_a_given_model() };
            let file = args.config.as_ref().or(own.as_ref());
            Ok((Config::load_over(&defaults, file.map(PathBuf::as_path), &overrides)?, model.clone()))
        }
        (None, None) => bail!("say what to evaluate: --run DIR or --model DIR"),
    }
}

/// The run's configuration, when `model` is RUN/checkpoints/step-N.
fn own_config(model: &Path) -> Option<PathBuf> {
    let model = model.canonicalize().ok()?;
    let checkpoints = model.parent().filter(|p| p.ends_with("checkpoints"))?;
    let file = checkpoints.parent()?.join("config.toml");
    file.exists().then_some(file)
}
