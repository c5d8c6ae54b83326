//! `uncouple coupling`.

use super::{DeviceArg, output};
use crate::config::Config;
use crate::coupling::{FOLDER, Grams, Group, Means, Measurement, Probe, Weights, measure, write};
use crate::device::Gpu;
use crate::model::cuda::CudaModel;
use crate::model::{Keep, checkpoint};
use crate::train::{checkpoints, cuda_coupling};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct CouplingArgs {
    /// Run folder whose last checkpoint to measure on its own probe set
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Hugging Face Qwen2 directory to measure on the samples of --probe
    #[arg(long, value_name = "DIR", conflicts_with = "run", requires = "probe", requires = "out")]
    pub model: Option<PathBuf>,
    /// Samples as a run's coupling/probe.json holds them
    #[arg(long, value_name = "FILE", requires = "model")]
    pub probe: Option<PathBuf>,
    /// Folder for the model's matrices and heat maps
    #[arg(long, value_name = "DIR", requires = "model")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub how: How,
    #[command(subcommand)]
    pub command: Option<CouplingCommand>,
}

#[derive(Debug, Subcommand)]
pub enum CouplingCommand {
    /// The probe set of RUN_A through the last checkpoints of both runs
    Compare {
        #[arg(value_name = "RUN_A")]
        a: PathBuf,
        #[arg(value_name = "RUN_B")]
        b: PathBuf,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Args)]
pub struct How {
    /// What makes a sample positive or negative
    #[arg(long, value_enum, default_value = "advantage")]
    pub by: By,
    /// What a sample's gradient is multiplied by
    #[arg(long, value_enum, default_value = "one")]
    pub weights: WeightsArg,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    Advantage,
    Label,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightsArg {
    One,
    Advantage,
}

pub fn run(args: CouplingArgs) -> Result<ExitCode> {
    if let Some(CouplingCommand::Compare { a, b, how }) = args.command {
        return compare(&a, &b, &how);
    }
    match (args.run, args.model, args.probe, args.out) {
        (Some(run), ..) => {
            let (step, dir) = last_checkpoint(&run)?;
            let title = format!("{} at step {step}", run.display());
            one(&Probe::of(&run)?, &dir, seed(&run)?, &args.how, &title, &run.join(FOLDER), &format!("step-{step}"))
        }
        (None, Some(model), Some(probe), Some(out)) => {
            let title = model.display().to_string();
            one(&Probe::read(probe)?, &model, 0, &args.how, &title, &out, "coupling")
        }
        _ => bail!("say what to measure: --run DIR, --model DIR, or compare RUN_A RUN_B"),
    }
}

/// Measures the model in `dir`; matrices and heat maps go to `folder` as `stem`.*
fn one(probe: &Probe, dir: &Path, seed: u64, how: &How, title: &str, folder: &Path, stem: &str) -> Result<ExitCode> {
    let gpu = open(how)?;
    let (grams, measurement) = measured(gpu.as_ref(), probe, dir, seed, how)?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    write(folder, stem, &format!("Gradient coupling of {title}"), &grams, &measurement)?;
    if how.json {
        output::print_json(&measurement)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&table(&[("", &measurement)]))?;
    let (zero, p) = (measurement.zero, measurement.p_value);
    let (positive, negative) = (measurement.positive.len(), measurement.negative.len());
    output::print(&format!(
        "{positive} positive and {negative} negative samples; {zero} gradients are zero; permutation test p = {p:.3}"
    ))?;
    output::print(&format!("matrices and heat maps: {}", folder.join(format!("{stem}.html")).display()))?;
    Ok(ExitCode::SUCCESS)
}

fn compare(a: &Path, b: &Path, how: &How) -> Result<ExitCode> {
    let probe = Probe::of(a)?;
    let ((_, dir_a), (_, dir_b)) = (last_checkpoint(a)?, last_checkpoint(b)?);
    let tokenizer = |dir: &Path| {
        let file = dir.join("tokenizer.json");
        std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    ensure!(
        tokenizer(&dir_a)? == tokenizer(&dir_b)?,
        "{} and {} have different tokenizers, so that they cannot read the same tokens: compare runs of one model and seed",
        a.display(),
        b.display()
    );
    let gpu = open(how)?;
    let of = |run, dir: &Path| Ok::<_, anyhow::Error>(measured(gpu.as_ref(), &probe, dir, seed(run)?, how)?.1);
    let (of_a, of_b) = (of(a, &dir_a)?, of(b, &dir_b)?);
    if how.json {
        output::print_json(&serde_json::json!({"a": of_a, "b": of_b}))?;
    } else {
        output::print(&table(&[(" A", &of_a), (" B", &of_b)]))?;
        output::print(&format!("A: {}\nB: {}\nprobe set of A", a.display(), b.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn last_checkpoint(run: &Path) -> Result<(u64, PathBuf)> {
    let last = checkpoints::last_model(run)?;
    last.with_context(|| format!("{} has no checkpoint yet, or is not the folder of a run", run.display()))
}

/// Of the permutation test.
fn seed(run: &Path) -> Result<u64> {
    Ok(Config::load(Some(&run.join("config.toml")), &[])?.run.seed)
}

fn open(how: &How) -> Result<Option<Gpu>> {
    how.device.open().context("coupling --device cuda")
}

fn measured(gpu: Option<&Gpu>, probe: &Probe, dir: &Path, seed: u64, how: &How) -> Result<(Grams, Measurement)> {
    let (model, samples) = (checkpoint::load(dir)?, probe.samples());
    let grams = match gpu {
        // It never decodes.
        Some(gpu) => cuda_coupling::grams(gpu, &CudaModel::new(gpu, &model, 0)?, &samples, Keep::LayerInputs)?,
        None => Grams::new(&model, &samples, Keep::LayerInputs)?,
    };
    let sides = match how.by {
        By::Advantage => probe.advantages(),
        By::Label => probe.labels(),
    };
    let weights = match how.weights {
        WeightsArg::One => Weights::One,
        WeightsArg::Advantage => Weights::Advantage,
    };
    let measurement = measure(&grams, &sides, weights, seed)?;
    Ok((grams, measurement))
}

/// Mean cosines (and their spread) of everything, each kind, each layer, and the states; a column group for each measurement.
fn table(measurements: &[(&str, &Measurement)]) -> String {
    let mut table = Table::new();
    let headings = measurements.iter().flat_map(|(suffix, _)| ["pp", "nn", "pn"].map(|name| format!("{name}{suffix}")));
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["cosine of".to_string()].into_iter().chain(headings));
    let mut row = |name: &str, of: &dyn Fn(&Measurement) -> Option<Means>| {
        let cells = measurements.iter().flat_map(|(_, m)| match of(m) {
            Some(m) => [m.pp, m.nn, m.pn].map(|s| format!("{:.3} ± {:.3}", s.mean, s.std)),
            None => Default::default(),
        });
        table.add_row([name.to_string()].into_iter().chain(cells));
    };
    row("all gradients", &|m| Some(m.cosine));
    let find = |groups: &[Group], name: &str| groups.iter().find(|g| g.name == name).map(|g| g.cosine);
    if let Some((_, first)) = measurements.first() {
        first.kinds.iter().for_each(|k| row(&k.name, &|m| find(&m.kinds, &k.name)));
        let layers = first.layers.iter().filter(|l| l.name.starts_with("layer "));
        layers.for_each(|l| row(&l.name, &|m| find(&m.layers, &l.name)));
    }
    row("states", &|m| Some(m.state));
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    format!("{table}\n[mean ± standard deviation over pairs]")
}
