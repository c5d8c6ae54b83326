//! The command line: parse, call, print. What a command does is elsewhere.

mod agent;
mod bench;
mod config;
mod counters;
mod coupling;
mod doctor;
mod env;
mod eval;
mod generate;
mod merge;
mod output;
mod play;
pub mod reference;
mod report;
mod selftest;
mod study;
mod theory;
mod train;

use crate::device::{Dtype, Gpu, cuda::Cuda};
use crate::env::Split;
use crate::train::memory::Placement;
use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Trains language-model agents on one device with GRPO and Generative Classification Disentanglement (GCD).
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train an agent; without arguments: the embedded model on the embedded household games
    Train(TrainArgs),
    /// Compare methods over seeds, from shared cold starts; goes on where it stopped
    Study(study::StudyArgs),
    /// Evaluate a run or a model on the evaluation splits
    Eval(EvalArgs),
    /// Play a game beside an agent: at each turn see its command, let it act or give another
    Play(play::PlayArgs),
    /// Continue a text with a model
    Generate(generate::GenerateArgs),
    /// Add a LoRA adapter to the weights of its model, for who loads models without PEFT
    Merge(merge::MergeArgs),
    /// Write the report of a run, at any time; of several: a page that compares them
    Report(ReportArgs),
    /// Compare the results of runs in a table
    Compare(CompareArgs),
    /// Print every key of the configuration with its default and what it does; explain one; show the recipes
    Config(ConfigArgs),
    /// Gradient coupling of a run's samples: cosines of all pairs of their gradients
    Coupling(coupling::CouplingArgs),
    /// Look at this machine and say what training will find here
    Doctor(DoctorArgs),
    /// Check every CUDA kernel on this machine's GPU against the CPU
    Selftest(SelftestArgs),
    /// Play games, list data sets, serve games to others
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// Write or check reference numbers for other backends
    #[command(subcommand)]
    Reference(reference::ReferenceCommand),
    /// Measure speed
    Bench(BenchArgs),
    /// What kernels did on the software GPU (kernels/driver): bytes, coalescing, bank conflicts, flops, and a roofline bound
    Counters(CountersArgs),
    /// Expected advantage of a flawed action by its probability, q r (q - 1), with a simulation
    Theory(TheoryArgs),
}

/// Exit code of a command that Ctrl-C ended: 128 + SIGINT, as shells report it.
pub const INTERRUPTED: u8 = 130;

/// Where the numbers live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum DeviceArg {
    #[default]
    Cpu,
    Cuda,
}

/// As `model.dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    F32,
    Bf16,
}

impl From<DtypeArg> for Dtype {
    fn from(arg: DtypeArg) -> Dtype {
        match arg {
            DtypeArg::F32 => Dtype::F32,
            DtypeArg::Bf16 => Dtype::Bf16,
        }
    }
}

impl DeviceArg {
    /// Where a run's numbers live then.
    fn place(self) -> Placement {
        match self {
            DeviceArg::Cpu => Placement::Cpu,
            DeviceArg::Cuda => Placement::Gpu,
        }
    }

    /// The GPU, with `--device cuda`.
    pub fn open(self) -> Result<Option<Gpu>> {
        match self {
            DeviceArg::Cpu => Ok(None),
            DeviceArg::Cuda => Ok(Some(Gpu::new(Cuda::open(None)?))),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// TOML file, or recipe:NAME (`uncouple config recipes`); keys it leaves out keep their defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Hugging Face model directory (Qwen2, Qwen3, Llama) to start from [config: model.path]
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// Set one value, e.g. --set rollout.group_size=16 (repeatable; wins over --config)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Name of the run's folder [config: run.name; default: suite and time]
    #[arg(long)]
    pub name: Option<String>,
    /// Folder that holds the run folders [config: run.dir]
    #[arg(long)]
    pub dir: Option<String>,
    /// Continue the run of this name where it stopped
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace the run of this name
    #[arg(long)]
    pub overwrite: bool,
    /// Print the resolved configuration and the memory plan, and stop; with --device cuda, no GPU is needed for it
    #[arg(long)]
    pub dry_run: bool,
    /// Hold the plan of --dry-run against so much memory, e.g. 80GB, instead of this machine's
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes, requires = "dry_run")]
    pub memory: Option<u64>,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub agent: agent::AgentArgs,
    /// One split alone [default: L0, L1 and L2]
    #[arg(long, value_parser = one_of(&["L0", "L1", "L2"]))]
    pub split: Option<Split>,
    /// Games per split (0: the whole panel) [default: the configuration's eval.games]
    #[arg(long)]
    pub games: Option<u32>,
    /// The whole panel of each split
    #[arg(long, conflicts_with = "games")]
    pub all: bool,
    /// New folder for the trajectories and results [default: in the run's evaluations/; of a model alone, in run.dir]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

/// Reads one of these splits.
fn one_of(splits: &'static [&'static str]) -> impl TypedValueParser<Value = Split> {
    PossibleValuesParser::new(splits).map(|name| match &name[..] {
        "train" => Split::Train,
        "L0" => Split::L0,
        "L1" => Split::L1,
        _ => Split::L2,
    })
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Runs: their folders, or their names in runs/
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// The page's file [default: report.html in the run; of several, comparison.html here]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Runs, by their folders or their names in runs/; differences are from the first
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub command: Option<ConfigCommand>,
    /// Print a recipe, as --config recipe:NAME takes it
    #[arg(long, value_name = "NAME")]
    pub recipe: Option<String>,
    /// Print docs/configuration.md
    #[arg(long, conflicts_with = "recipe")]
    pub markdown: bool,
    /// Print the keys as JSON
    #[arg(long, conflicts_with_all = ["recipe", "markdown"])]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// What one key does, its default, and what it may hold; of a section: all its keys
    Explain {
        /// E.g. rollout.group_size, or rollout
        #[arg(value_name = "KEY")]
        key: String,
        /// Print results as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the configurations that come with the program
    Recipes,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Folder where runs will be kept
    #[arg(long, default_value = "runs")]
    pub dir: PathBuf,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SelftestArgs {
    /// What to check against the CPU
    #[arg(long, value_enum, default_value = "cuda")]
    pub device: DeviceArg,
    /// Shapes that a simulated device gets through
    #[arg(long)]
    pub small: bool,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure
    #[arg(value_enum)]
    pub what: BenchArg,
    /// Where: kernels, step and decode need cuda, the others are measured on the CPU
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceArg,
    /// Measure this Hugging Face model directory: train-step, generate, prefill or gradient-cosine, on the CPU
    #[arg(long, value_name = "DIR", conflicts_with = "small")]
    pub model: Option<PathBuf>,
    /// With --model: what its products are of
    #[arg(long, value_enum, default_value = "f32", requires = "model")]
    pub dtype: DtypeArg,
    /// With --device cuda: shapes that a simulated device gets through
    #[arg(long)]
    pub small: bool,
    /// Measure the PyTorch peer in the same run
    #[arg(long)]
    pub peer: bool,
    /// Python that has torch, transformers and trl
    #[arg(long, value_name = "FILE", default_value = "python3")]
    pub python: PathBuf,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CountersArgs {
    /// What SOFTWARE_GPU_TRACE named, of a software GPU that was built with --features counters
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TheoryArgs {
    /// Share of success that the flawed action costs
    #[arg(long, default_value_t = 0.5)]
    pub risk: f64,
    /// Also draw the curve (line) and the simulation (dots) into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchArg {
    TrainStep,
    Generate,
    GrpoStep,
    /// Prompts into a KV cache
    Prefill,
    /// All pairs of per-sample gradient cosines, 16 x 256 tokens
    GradientCosine,
    /// What GCD adds to a training step's time, with the judgments' prompts shared and without
    Gcd,
    /// Every CUDA kernel, beside the GPU's measured ceilings
    Kernels,
    /// Training steps of Qwen2.5-shaped models on a GPU, 16k packed tokens
    Step,
    /// Generation by a Qwen2.5-0.5B-shaped model on a GPU, 64 and 256 sequences at once
    Decode,
}

/// Runs a parsed command; the exit code is the command's own verdict.
///
/// # Errors
/// The command's: one line that names what was wrong, and then its causes.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Train(args) => train::run(args),
        Command::Study(args) => study::run(args),
        Command::Report(args) => report::report(args),
        Command::Compare(args) => report::compare(args),
        Command::Config(args) => config::run(args),
        Command::Coupling(args) => coupling::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Selftest(args) => selftest::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Play(args) => play::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Env(command) => env::run(command),
        Command::Reference(command) => reference::run(command),
        Command::Bench(args) => bench::run(args),
        Command::Counters(args) => counters::run(args),
        Command::Theory(args) => theory::run(args),
    }
}
