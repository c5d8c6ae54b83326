//! `uncouple coupling`.

use super::{DeviceArg, output};
use crate::agent::Prompter;
use crate::config::{self, ActionTokens, Config, Prompt};
use crate::coupling::{
    FOLDER, Grams, Means, Measurement, ParameterGroup, Probe, SampleWeights, Side, Spread, measure, pairs,
    rank_correlation, write,
};
use crate::device::Gpu;
use crate::files;
use crate::model::backend::cuda::CudaModel;
use crate::model::{Model, SavedActivations, checkpoint};
use crate::report::results::fitted;
use crate::train::engine::cuda_grams;
use crate::train::{self, checkpoints, run_folder};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct CouplingArgs {
    /// Run whose last checkpoint to measure on its own probe set: its folder, or its name in runs/
    #[arg(long, value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Hugging Face model directory (Qwen2, Qwen3, Llama) to measure on the samples of --probe
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
    /// Which tokens of an action count: those of its command, or all of the turn [default: the run's coupling.tokens]
    #[arg(long, value_enum)]
    pub tokens: Option<TokensArg>,
    /// Of an adapter: also measure the gradients by all weights, as the adapter leaves them, and how well its cosines predict theirs
    #[arg(long)]
    pub full: bool,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokensArg {
    Action,
    All,
}

/// What is measured of a probe set, apart from the model.
struct Subject {
    probe: Probe,
    side: Side,
    weights: SampleWeights,
    tokens: ActionTokens,
}

/// A measurement as JSON says it.
#[derive(Serialize)]
struct Measured<'a> {
    tokens: ActionTokens,
    #[serde(flatten)]
    measurement: &'a Measurement,
    #[serde(skip_serializing_if = "Option::is_none")]
    full: Option<serde_json::Value>,
}

/// The coupling of the gradients by all weights, beside that of an adapter's.
struct Full(Measurement);

impl Full {
    /// Of the model in a folder, to whose weights its adapter is added: that changes no gradient by them.
    fn measured(subject: &Subject, gpu: Option<&Gpu>, (dir, model): (&Path, Model), seed: u64) -> Result<Full> {
        let none = "--full: there is no adapter in";
        ensure!(model.adapter.is_some(), "{none} {}: what is measured are the gradients by all weights", dir.display());
        Ok(Full(subject.measured(gpu, &model.merged(), seed)?.1))
    }

    /// Spearman's, over all pairs.
    fn rank_correlation(&self, adapter: &Measurement) -> Option<f64> {
        let cosines = |m: &Measurement| pairs(&m.cosine_matrix, m.samples);
        rank_correlation(&cosines(adapter), &cosines(&self.0))
    }

    fn json(&self, adapter: &Measurement) -> serde_json::Value {
        serde_json::json!({ "rank_correlation": self.rank_correlation(adapter), "measurement": self.0 })
    }

    fn text(&self, adapter: &Measurement) -> String {
        let Means { pp, nn, pn, .. } = self.0.cosine;
        let count = adapter.samples * adapter.samples.saturating_sub(1) / 2;
        let told = self.rank_correlation(adapter).map_or("none, as all are equal".into(), |r| format!("{r:.3}"));
        format!(
            "gradients by all weights: pp {}, nn {}, pn {}\nrank correlation of the adapter's cosines with theirs: {told} ({count} pairs)",
            cell(pp),
            cell(nn),
            cell(pn)
        )
    }
}

impl Subject {
    /// `settings` are those of the probe's run. Commands that the probe does not tell are read with the tokenizer of the model in `dir`.
    fn new(mut probe: Probe, settings: &config::Coupling, how: &How, dir: &Path) -> Result<Subject> {
        if probe.samples.iter().any(|s| s.command.is_none()) {
            let compact = Prompt { format: config::Format::Compact, ..Prompt::default() };
            train::coupling::complete(&mut probe, &Prompter::new(checkpoint::tokenizer(dir)?, &compact)?)?;
        }
        Ok(Subject {
            probe,
            side: match how.by {
                By::Advantage => Side::Advantage,
                By::Label => Side::Label,
            },
            weights: match how.weights {
                WeightsArg::One => SampleWeights::One,
                WeightsArg::Advantage => SampleWeights::Advantage,
            },
            tokens: match how.tokens {
                Some(TokensArg::Action) => ActionTokens::Action,
                Some(TokensArg::All) => ActionTokens::All,
                None => settings.tokens,
            },
        })
    }

    fn measured(&self, gpu: Option<&Gpu>, model: &Model, seed: u64) -> Result<(Grams, Measurement)> {
        let samples = self.probe.samples(self.tokens);
        let grams = match gpu {
            // It never decodes.
            Some(gpu) => {
                cuda_grams::grams(gpu, &CudaModel::new(gpu, model, 0)?, &samples, SavedActivations::LayerInputs)?
            }
            None => Grams::new(model, &samples, SavedActivations::LayerInputs)?,
        };
        let measurement = measure(&grams, &self.probe.traits(self.side), self.weights, seed)?;
        Ok((grams, measurement))
    }

    /// What the numbers of one measurement rest on, in words.
    fn notes(&self, m: &Measurement) -> String {
        let (positive, negative) = (m.positive.len(), m.negative.len());
        let taken: u32 = self.probe.samples.iter().map(|s| s.count).sum();
        let test = match m.p_value {
            Some(p) => format!("p = {p:.3}, labels of {} samples permuted within their states", m.permuted),
            None => "none, as no state holds samples of both classes".into(),
        };
        format!(
            "{positive} positive and {negative} negative samples of {}, taken {taken} times; {} gradients are zero\n\
             |Σ ±g|² / Σ |g|² = {:.3} signed, {:.3} unsigned (1: gradients share nothing)\npermutation test: {test}",
            m.samples, m.zero, m.sums.signed, m.sums.unsigned
        )
    }

    fn counted(&self) -> &'static str {
        match self.tokens {
            ActionTokens::Action => "counted tokens: those of the command (--tokens action)",
            ActionTokens::All => "counted tokens: all of the turn (--tokens all)",
        }
    }
}

pub fn run(args: CouplingArgs) -> Result<ExitCode> {
    if let Some(CouplingCommand::Compare { a, b, how }) = args.command {
        return compare(&run_folder::named(&a), &run_folder::named(&b), &how);
    }
    match (args.run, args.model, args.probe, args.out) {
        (Some(run), ..) => {
            let run = run_folder::named(&run);
            let (step, dir) = last_checkpoint(&run)?;
            let title = format!("{} at step {step}", run.display());
            let config = own_config(&run)?;
            let subject = Subject::new(Probe::of(&run)?, &config.coupling, &args.how, &dir)?;
            one(&subject, &dir, config.run.seed, &args.how, &title, &run.join(FOLDER).join(format!("step-{step}")))
        }
        (None, Some(model), Some(probe), Some(out)) => {
            let title = model.display().to_string();
            let subject = Subject::new(Probe::read(probe)?, &config::Coupling::default(), &args.how, &model)?;
            one(&subject, &model, 0, &args.how, &title, &out.join("coupling"))
        }
        _ => bail!("say what to measure: --run RUN, --model DIR, or compare RUN_A RUN_B"),
    }
}

/// Measures the model in `dir`; matrices and heat maps go to `files`.*
fn one(subject: &Subject, dir: &Path, seed: u64, how: &How, title: &str, files: &Path) -> Result<ExitCode> {
    let gpu = open(how)?;
    let model = checkpoint::load(dir)?;
    let (grams, measurement) = subject.measured(gpu.as_ref(), &model, seed)?;
    let full = how.full.then(|| Full::measured(subject, gpu.as_ref(), (dir, model), seed)).transpose()?;
    let (folder, stem) = (files.parent().unwrap_or(Path::new("")), files.file_name().unwrap_or_default());
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let title = format!("Gradient coupling of {title}");
    write(folder, &stem.to_string_lossy(), &title, &grams, &measurement)?;
    if how.json {
        let full = full.as_ref().map(|full| full.json(&measurement));
        output::print_json(&Measured { tokens: subject.tokens, measurement: &measurement, full })?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&table(&measurement))?;
    output::print(subject.counted())?;
    output::print(&subject.notes(&measurement))?;
    full.map_or(Ok(()), |full| output::print(&full.text(&measurement)))?;
    output::print(&format!("matrices and heat maps: {}", files.with_extension("html").display()))?;
    Ok(ExitCode::SUCCESS)
}

fn compare(a: &Path, b: &Path, how: &How) -> Result<ExitCode> {
    let probe = Probe::of(a)?;
    let ((_, dir_a), (_, dir_b)) = (last_checkpoint(a)?, last_checkpoint(b)?);
    let tokenizer = |dir: &Path| {
        let file = dir.join("tokenizer.json");
        files::read(&file, files::MOST_KEPT).with_context(|| format!("cannot read {}", file.display()))
    };
    ensure!(
        tokenizer(&dir_a)? == tokenizer(&dir_b)?,
        "{} and {} have different tokenizers, so that they cannot read the same tokens: compare runs of one model and seed",
        a.display(),
        b.display()
    );
    let config = own_config(a)?;
    ensure!(!how.full, "--full measures one model: leave it out, or name one by --run or --model");
    let subject = Subject::new(probe, &config.coupling, how, &dir_a)?;
    let gpu = open(how)?;
    // One seed for both: the same permutations.
    let of = |dir: &Path| {
        Ok::<_, anyhow::Error>(subject.measured(gpu.as_ref(), &checkpoint::load(dir)?, config.run.seed)?.1)
    };
    let (of_a, of_b) = (of(&dir_a)?, of(&dir_b)?);
    if how.json {
        let of = |measurement| Measured { tokens: subject.tokens, measurement, full: None };
        output::print_json(&serde_json::json!({"a": of(&of_a), "b": of(&of_b)}))?;
    } else {
        output::print(&pair_table(&of_a, &of_b))?;
        output::print(subject.counted())?;
        for (name, run, m) in [("A", a, &of_a), ("B", b, &of_b)] {
            output::print(&format!("{name}: {}\n{}", run.display(), subject.notes(m)))?;
        }
        output::print("probe set of A")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn last_checkpoint(run: &Path) -> Result<(u64, PathBuf)> {
    let last = checkpoints::last_model(run)?;
    last.with_context(|| format!("{} has no checkpoint yet, or is not the folder of a run", run.display()))
}

/// The run's, for its seed and its settings.
fn own_config(run: &Path) -> Result<Config> {
    Ok(Config::load(Some(&run.join("config.toml")), &[])?)
}

fn open(how: &How) -> Result<Option<Gpu>> {
    how.device.open().context("coupling --device cuda")
}

/// The rows of a measurement: cosines of everything, each stratum, each kind, each layer, and the states, and projections.
fn rows(m: &Measurement) -> Vec<(String, [Spread; 3])> {
    let of = |name: &str, m: Means| (name.to_string(), [m.pp, m.nn, m.pn]);
    let group = |g: &ParameterGroup| of(&g.name, g.cosine);
    let mut rows = vec![of("all gradients", m.cosine)];
    rows.extend(m.strata.named().iter().map(|(_, title, stratum)| of(title, stratum.cosine)));
    rows.extend(m.kinds.iter().map(group));
    rows.extend(m.layers.iter().filter(|l| l.name.starts_with("layer ")).map(group));
    rows.push(of("states", m.state));
    rows.push(of("projection ⟨i,j⟩/⟨i,i⟩", m.projection));
    let none = Spread { mean: f64::NAN, std: f64::NAN, pairs: 0 };
    rows.push(("projection, i negative".into(), [none, none, m.projection.np]));
    rows
}

/// Of one measurement.
fn table(m: &Measurement) -> String {
    let strata = 1 + m.strata.named().len();
    let row = |(at, (name, spreads)): (usize, (String, [Spread; 3]))| {
        let counts = spreads.map(|s| s.pairs.to_string()).join(", ");
        let name = if at < strata { format!("{name} ({counts})") } else { name };
        [name].into_iter().chain(spreads.map(cell))
    };
    let table = fitted(&["cosine of", "pp", "nn", "pn"], rows(m).into_iter().enumerate().map(row), &[1, 2, 3]);
    format!("{table}\n[mean ± standard deviation over pairs; in brackets the number of pairs of pp, nn and pn]")
}

/// Means of two measurements of one probe set. A layer that the second has not is left blank.
fn pair_table(a: &Measurement, b: &Measurement) -> String {
    let of_b = rows(b);
    let row = |(name, spreads): (String, [Spread; 3])| {
        let others = of_b.iter().find(|(other, _)| *other == name).map(|(_, others)| others.map(mean));
        [name].into_iter().chain(spreads.map(mean)).chain(others.unwrap_or_default())
    };
    let headings = ["mean cosine of", "pp A", "nn A", "pn A", "pp B", "nn B", "pn B"];
    fitted(&headings, rows(a).into_iter().map(row), &[1, 2, 3, 4, 5, 6])
}

fn mean(spread: Spread) -> String {
    if spread.pairs == 0 { "–".into() } else { format!("{:.3}", spread.mean) }
}

fn cell(spread: Spread) -> String {
    if spread.pairs == 0 { "–".into() } else { format!("{:.3} ± {:.3}", spread.mean, spread.std) }
}
