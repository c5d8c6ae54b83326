//! `uncouple train`.

use super::{INTERRUPTED, TrainArgs, doctor, output};
use crate::config::{Config, Override};
use crate::device::Dtype;
use crate::device::cpu;
use crate::report::progress::say;
use crate::report::results::{self, Summary};
use crate::train::memory::{self, Fit, MemoryUse, Placement};
use crate::train::run_folder::{Existing, RunFolder};
use crate::train::{self, TrainError, interrupt, suite, train_on};
use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let mut config = configuration(&args)?;
    if args.dry_run {
        return dry_run(&args, &config);
    }
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    interrupt::install().context("cannot listen for Ctrl-C")?;
    let suite = suite(&config)?;
    // Last: it takes all memory of the GPU.
    let gpu = args.device.open().context("train --device cuda")?;
    config.env.hash = suite.content_hash().unwrap_or_default();
    let outcome = match train_on(gpu.as_ref(), config, &*suite, existing) {
        Err(stopped @ TrainError::Interrupted(_)) => {
            say(&stopped.to_string());
            return Ok(ExitCode::from(INTERRUPTED));
        }
        other => other?,
    };
    if args.json {
        output::print_json(&outcome.summary)?;
    } else {
        let Summary { seconds, env_steps, tokens, baselines, .. } = outcome.summary;
        output::print(&results::table(&outcome.rows))?;
        output::print(&results::baseline_table(&baselines))?;
        output::print(&format!("{seconds:.0} s, {env_steps} environment steps, {tokens} tokens"))?;
        output::print(&format!("everything is in {}: begin with report.html", outcome.folder.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what a run would be, and whether it fits.
fn dry_run(args: &TrainArgs, config: &Config) -> Result<ExitCode> {
    let shape = memory::model_shape(config).context("the model cannot be used")?;
    let place = args.device.place();
    let here = match place {
        Placement::Cpu => cpu::memory().map(|memory| memory.available),
        Placement::Gpu => {
            config.validate_for_gpu()?;
            None
        }
    };
    let plan = memory::plan(config, &shape, place);
    let fit = memory::fit(&plan, args.memory.or(here));
    if args.json {
        output::print_json(&serde_json::json!({ "config": config, "memory": plan, "fit": fit }))?;
    } else {
        let of = if args.memory.is_some() { "given by --memory" } else { "available on this machine" };
        output::print(&format!("{}\n{}", config.to_toml(), plan_as_comments(&plan, &fit, of)))?;
        let real = !config.model.path.is_empty() && config.model.dtype == Dtype::F32;
        if place == Placement::Cpu && real && doctor::faster_in_bf16() {
            output::print("# model.dtype = \"bf16\" would be faster on this processor")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Defaults, those of a given model, file, `--set`, flags. A resumed run goes on with its own configuration; what it computes cannot change.
fn configuration(args: &TrainArgs) -> Result<Config> {
    let mut overrides = args.set.iter().map(|s| Override::parse(s)).collect::<Result<Vec<_>, _>>()?;
    for (flag, key, value) in
        [("--model", "model.path", &args.model), ("--name", "run.name", &args.name), ("--dir", "run.dir", &args.dir)]
    {
        overrides.extend(value.iter().map(|v| Override::flag(flag, key, v.clone())));
    }
    let load = |file: Option<&Path>| train::configuration(file, &overrides, args.device.place());
    let config = load(args.config.as_deref())?;
    if !args.resume {
        return Ok(config);
    }
    let saved = RunFolder::saved_config(&config.run.dir, &config.run.name);
    if config.run.name.is_empty() || !saved.exists() {
        // Opening the folder says what is wrong.
        return Ok(config);
    }
    let before = Config::load(Some(&saved), &[])?;
    let mut config = load(Some(args.config.as_deref().unwrap_or(&saved)))?;
    if config.env.hash.is_empty() {
        config.env.hash.clone_from(&before.env.hash);
    }
    let changed = config.changed_since(&before);
    ensure!(
        changed.is_empty(),
        "--resume cannot change what the run {} computes ({}): take the change back, or start another --name",
        config.run.name,
        changed.join(", ")
    );
    Ok(config)
}

/// The memory plan and whether it fits, each line a comment, so that the whole output is a configuration file.
fn plan_as_comments(plan: &[MemoryUse], fit: &Fit, of: &str) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["memory", "bytes", "how they come about"]);
    for part in plan {
        table.add_row([part.name, &output::bytes(part.bytes), &part.formula]);
    }
    table.add_row(["total", &output::bytes(fit.needed), ""]);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let available = fit.available.map(|bytes| format!("{} {of}", output::bytes(bytes)));
    let verdict = match (&available, &fit.advice) {
        (Some(available), None) => format!("fits: {available}"),
        (Some(available), Some(advice)) => format!("does not fit: {available}; {advice}"),
        (None, _) => "how much memory there is is not known: say so by --memory, e.g. --memory 80GB".into(),
    };
    let lines = table.lines().map(|line| format!("#{}\n", line.trim_end()));
    lines.chain([format!("# {verdict}")]).collect()
}
