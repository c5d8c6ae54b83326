//! `uncouple study`.

use super::{DeviceArg, INTERRUPTED, output};
use crate::files;
use crate::report::progress::say;
use crate::study::plan::{Study, StudyOverrides};
use crate::study::{StudyError, estimate, figures, gate, launch, slurm, status, tables, task, text};
use crate::train::{TrainError, interrupt};
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, arg_required_else_help = true)]
pub struct StudyArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(subcommand)]
    pub command: Option<StudyCommand>,
}

#[derive(Debug, Subcommand)]
pub enum StudyCommand {
    /// How far each run of a study is
    Status(LookArgs),
    /// Write report.md, report.json and figures of what is finished
    Report(LookArgs),
    /// Measure what the methods would begin with: success, and the coupling of good and bad actions
    Gate(GateArgs),
    /// Run one cold start or cell in this process, as the launchers do
    Cell(CellArgs),
}

/// Which study.
#[derive(Debug, Args)]
pub struct StudyArg {
    /// Study file (TOML), e.g. studies/first-light.toml
    #[arg(value_name = "FILE", required = true)]
    pub file: Option<PathBuf>,
    /// Folder that holds the study's folder, in place of the file's `dir`
    #[arg(long)]
    pub dir: Option<String>,
    /// Set one value of every run, e.g. --set run.iterations=2 (repeatable; wins over the file)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Hugging Face model directory to start from [config: model.path]
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceArg,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub study: StudyArg,
    /// Runs at once; they share the processor's threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
    /// Where runs are started
    #[arg(long, value_enum, default_value_t)]
    pub launcher: LauncherArg,
    /// With --launcher slurm: the program that takes scripts
    #[arg(long, value_name = "FILE", default_value = "sbatch")]
    pub sbatch: PathBuf,
    /// Print runs, time, memory and power as far as they are known, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Hold the plan of --dry-run against so much memory, e.g. 80GB, instead of this machine's
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes, requires = "dry_run")]
    pub memory: Option<u64>,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LauncherArg {
    /// Processes on this machine
    #[default]
    Local,
    /// Two job arrays, one task a run
    Slurm,
}

#[derive(Debug, Args)]
pub struct LookArgs {
    #[command(flatten)]
    pub study: StudyArg,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct GateArgs {
    #[command(flatten)]
    pub look: LookArgs,
    /// Cold starts at once; they share the processor's threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
}

#[derive(Debug, Args)]
pub struct CellArgs {
    #[command(flatten)]
    pub study: StudyArg,
    /// Name of its run folder, e.g. gcd-seed-1
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Save and stop when stdin ends
    #[arg(long, hide = true)]
    pub attached: bool,
}

impl StudyArg {
    fn load(self) -> Result<Study> {
        let mut set = self.set;
        set.extend(self.model.map(|dir| format!("model.path={dir}")));
        let file = self.file.context("name a study file")?;
        Ok(Study::load(&file, StudyOverrides { dir: self.dir, set, place: self.device.place() })?)
    }
}

pub fn run(args: StudyArgs) -> Result<ExitCode> {
    match args.command {
        None => start(args.run),
        Some(StudyCommand::Status(args)) => {
            let all = status::all(&args.study.load()?)?;
            if args.json {
                output::print_json(&all)?
            } else {
                output::print(&status::table(&all))?
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(StudyCommand::Report(args)) => report(&args.study.load()?, args.json),
        Some(StudyCommand::Gate(args)) => measure_gates(args),
        Some(StudyCommand::Cell(args)) => cell(args),
    }
}

/// Runs a study and reports it.
fn start(args: RunArgs) -> Result<ExitCode> {
    let study = args.study.load()?;
    if args.dry_run {
        let estimate = estimate::estimate(&study, args.memory)?;
        if args.json {
            output::print_json(&estimate)?;
        } else {
            output::print(&estimate::table(&study, &estimate, output::bytes))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.launcher == LauncherArg::Slurm {
        return submit(&study, &args.sbatch);
    }
    let tasks = study.tasks();
    let failed = launch(&study, tasks, args.jobs)?;
    match failed {
        Some(code) if code == ExitCode::from(INTERRUPTED) => Ok(code),
        code => {
            report(&study, args.json)?;
            Ok(code.unwrap_or(ExitCode::SUCCESS))
        }
    }
}

/// Runs tasks on this machine; the exit code, where not all came to their end.
fn launch(study: &Study, tasks: Vec<crate::study::plan::StudyTask>, jobs: u16) -> Result<Option<ExitCode>> {
    let jobs = usize::from(jobs);
    ensure!(
        jobs == 1 || study.place() == crate::train::memory::Placement::Cpu,
        "--jobs {jobs} with --device cuda: each run takes all memory of the GPU; leave --jobs out"
    );
    interrupt::install_with(|| {
        say("stopping: what runs saves at its next safe point; press Ctrl-C again to stop at once")
    })
    .context("cannot listen for Ctrl-C")?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let launcher = launch::Launcher { program, jobs, threads: (rayon::current_num_threads() / jobs).max(1) };
    let outcome = launch::run(study, &launcher, tasks)?;
    if outcome.interrupted {
        say("interrupted; everything so far is saved. Go on with the same command");
        return Ok(Some(ExitCode::from(INTERRUPTED)));
    }
    let names: Vec<&str> = outcome.failed.iter().map(|(name, _)| &name[..]).collect();
    if names.is_empty() {
        return Ok(None);
    }
    say(&format!("{} of the runs failed: {}; the same command tries them again", names.len(), names.join(", ")));
    Ok(Some(ExitCode::FAILURE))
}

fn submit(study: &Study, sbatch: &std::path::Path) -> Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let submitted = slurm::submit(study, &program, sbatch)?;
    for job in &submitted {
        output::print(&format!("job {}: {} runs, {}", job.id, job.tasks, job.script.display()))?;
    }
    if submitted.is_empty() {
        return report(study, false);
    }
    output::print(&format!("see how far they are: uncouple study status {}", study.file.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the report beside the runs, and prints its main results.
fn report(study: &Study, json: bool) -> Result<ExitCode> {
    let tables = tables::tables(study)?;
    std::fs::create_dir_all(&study.folder).with_context(|| format!("cannot create {}", study.folder.display()))?;
    let figures = figures::write(&study.folder, &tables.curves)?;
    let write =
        |name: &str, text: String| files::write_file(&study.folder.join(name), |w| w.write_all(text.as_bytes()));
    write("report.json", format!("{:#}\n", serde_json::json!(tables)))?;
    write("report.md", text::markdown(study, &tables, &figures))?;
    if json {
        output::print_json(&tables)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !tables.gates.is_empty() {
        output::print(&gate::table(&tables.gates))?;
    }
    if !tables.success.is_empty() {
        output::print(&text::in_short(&tables))?;
    }
    let report = study.folder.join("report.md");
    output::print(&format!("{} of {} cells are finished: {}", tables.finished, tables.planned, report.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the cold starts that have a gate, and prints what they begin with.
fn measure_gates(args: GateArgs) -> Result<ExitCode> {
    let (json, study) = (args.look.json, args.look.study.load()?);
    let gated = study.tasks().into_iter().filter(|task| study.is_gated(task)).collect();
    let failed = launch(&study, gated, args.jobs)?;
    let gates = gate::all(&study)?;
    if json {
        output::print_json(&gates)?;
    } else if !gates.is_empty() {
        output::print(&gate::table(&gates))?;
    }
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

fn cell(args: CellArgs) -> Result<ExitCode> {
    let study = args.study.load()?;
    let task = study.task_named(&args.name)?;
    interrupt::install().context("cannot listen for Ctrl-C")?;
    if args.attached {
        std::thread::spawn(|| {
            // Nothing is ever said there: it ends with the process at its other end.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            interrupt::request();
        });
    }
    match task::run(&study, &task) {
        Err(StudyError::Train(stopped)) if is_interruption(&stopped) => {
            say(&stopped.to_string());
            Ok(ExitCode::from(INTERRUPTED))
        }
        done => Ok(done.map(|()| ExitCode::SUCCESS)?),
    }
}

fn is_interruption(error: &TrainError) -> bool {
    matches!(error, TrainError::Interrupted(_) | TrainError::Rollout(crate::rollout::RolloutError::Interrupted))
}
