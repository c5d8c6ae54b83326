//! The agent that a command is about: a run's last checkpoint, or a model's folder.

use super::DeviceArg;
use crate::config::{Config, Override};
use crate::train::{checkpoints, memory, run_folder};
use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use std::path::{Path, PathBuf};

/// The part of a run folder that holds its evaluations by hand.
const EVALUATIONS: &str = "evaluations";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("agent").required(true).args(["run", "model"])))]
pub(crate) struct AgentArgs {
    /// Run whose last checkpoint acts: its folder, or its name in runs/
    #[arg(long, value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Hugging Face model directory (Qwen2, Qwen3, Llama) that acts: any, or a checkpoint of a run
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// TOML file, or recipe:NAME, for --model [default: of a run's checkpoint, the run's]
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub config: Option<PathBuf>,
    /// Set one value, e.g. --set eval.temperature=0 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
}

/// The agent, and what it acts under.
pub(crate) struct Subject {
    /// The run's, or that of --config and --set.
    pub config: Config,
    /// The model directory.
    pub dir: PathBuf,
    /// Where its evaluations are kept, and what they are called but for the time.
    pub home: (PathBuf, String),
}

impl Subject {
    /// The agent that the arguments name.
    pub fn of(args: &AgentArgs) -> Result<Subject> {
        let overrides = args.set.iter().map(|s| Override::parse(s)).collect::<Result<Vec<_>, _>>()?;
        match (args.run.as_deref(), args.model.as_deref()) {
            (Some(run), _) => {
                let run = &run_folder::named(run);
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
                Ok(Subject { config, dir: model.into(), home })
            }
            (None, None) => bail!("name the agent: --run RUN or --model DIR"),
        }
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
