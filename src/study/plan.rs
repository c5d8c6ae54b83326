//! The study file: what is compared, on which seeds, and what was chosen on which others.

use super::StudyError;
use super::statistics::Design;
use crate::config::{Config, Override};
use crate::files::{self, MOST_WRITTEN};
use crate::train::{self, memory::Placement};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A study file as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Name of the study's folder (empty: the file's).
    #[serde(default)]
    name: String,
    /// What it asks, for the report.
    question: String,
    /// The base configuration: `recipe:NAME`, or a file beside the study's (empty: the defaults).
    #[serde(default)]
    config: String,
    /// Folder that holds the study's.
    #[serde(default = "runs")]
    dir: String,
    seeds: Vec<u64>,
    /// Seeds that anything in the study was chosen on, and what that was.
    tuned_on: Vec<u64>,
    #[serde(default)]
    chosen: String,
    /// Environment steps after which the GRPO of every cell ends (0: after run.iterations).
    #[serde(default)]
    env_steps: u64,
    /// Keys of the configuration, for all cells.
    #[serde(default)]
    set: Table,
    #[serde(default, rename = "start")]
    starts: Vec<StudyStart>,
    #[serde(default, rename = "variant")]
    variants: Vec<Variant>,
    #[serde(default)]
    expect: Expect,
    #[serde(default)]
    slurm: Slurm,
}

fn runs() -> String {
    "runs".into()
}

/// Where cells begin: one cold start a seed. A study has one without a name, or several with names, which are compared
/// each for itself.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyStart {
    /// The start's name; empty where there is only one.
    pub name: String,
    /// In place of the study's.
    #[serde(default)]
    pub config: String,
    /// In place of all the study's seeds, some of them.
    #[serde(default)]
    pub seeds: Vec<u64>,
    /// Keys that its runs set.
    #[serde(default)]
    pub set: Table,
}

/// One of the methods that are compared.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The variant's name.
    pub name: String,
    /// The variant that it is compared with (empty: the first).
    #[serde(default)]
    pub against: String,
    /// Keys that its runs set.
    #[serde(default)]
    pub set: Table,
}

/// What is assumed before anything is measured: for the power of the comparison, and for a prediction of its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Success rate of the variants.
    pub success: f64,
    /// Correlation of two variants' outcomes in one game.
    pub correlation: f64,
    /// Standard deviation, between seeds, of the variants' true difference.
    pub spread: f64,
    /// Minutes of a cold start and of a cell, measured before (0: not).
    pub cold_start_minutes: f64,
    /// Minutes that a cell takes.
    pub cell_minutes: f64,
    /// Turns of an episode, tokens read in a turn that were not read before, and tokens written (0: no prediction).
    pub turns: f64,
    /// Tokens that a cell reads.
    pub read_tokens: f64,
    /// Tokens that a cell writes.
    pub written_tokens: f64,
    /// Sustained TFLOP/s of training and prefill, and tokens written in a second by all sequences together.
    pub tflops: f64,
    /// Tokens a second when decoding.
    pub decode: f64,
}

impl Default for Expect {
    fn default() -> Expect {
        Expect {
            success: 0.5,
            correlation: 0.3,
            spread: 0.05,
            cold_start_minutes: 0.0,
            cell_minutes: 0.0,
            turns: 0.0,
            read_tokens: 0.0,
            written_tokens: 0.0,
            tflops: 0.0,
            decode: 0.0,
        }
    }
}

/// What `--launcher slurm` needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slurm {
    /// Lines of `#SBATCH`, e.g. `--partition=gpu`.
    pub options: Vec<String>,
    /// Shell commands before the program, e.g. `module load cuda`.
    pub setup: Vec<String>,
}

/// What a command line adds to a study file.
#[derive(Debug, Clone, PartialEq)]
pub struct StudyOverrides {
    /// In place of the file's `dir`.
    pub dir: Option<String>,
    /// As the program's `--set` has them; they go before the file.
    pub set: Vec<String>,
    /// On what device tasks run.
    pub place: Placement,
}

/// A study, resolved.
#[derive(Debug, Clone)]
pub struct Study {
    /// The study file.
    pub file: PathBuf,
    /// The study's name, which its folder has.
    pub name: String,
    /// What it asks.
    pub question: String,
    /// The seeds of its cells.
    pub seeds: Vec<u64>,
    /// The seeds that settings were chosen on.
    pub tuned_on: Vec<u64>,
    /// How settings were chosen.
    pub chosen: String,
    /// The starts.
    pub starts: Vec<StudyStart>,
    /// The variants.
    pub variants: Vec<Variant>,
    /// What is assumed of its outcome and time.
    pub expect: Expect,
    /// How it runs on Slurm.
    pub slurm: Slurm,
    /// What the command line added.
    pub given: StudyOverrides,
    /// Where everything is kept.
    pub folder: PathBuf,
    base: File,
}

/// A cold start (no variant) or a cell.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct StudyTask {
    /// Place of the start in [`Study::starts`].
    pub start: usize,
    /// The seed.
    pub seed: u64,
    /// Place of the variant in [`Study::variants`].
    pub variant: Option<usize>,
}

/// A variant begins from a cold start that others share, so it may change only what comes after it; and it must meet
/// the same games.
const AFTER_THE_COLD_START: [&str; 6] = ["grpo.", "gcd.", "suggestions.", "decouple.", "optim.", "rollout."];
const SHARED: [&str; 4] = ["gcd.cold_start", "suggestions.cold_start", "rollout.groups", "rollout.group_size"];

impl Study {
    /// Reads a study file, and refuses what could not be compared.
    ///
    /// ```
    /// use std::path::Path;
    /// use uncouple::study::plan::{Study, StudyOverrides};
    /// use uncouple::train::memory::Placement;
    ///
    /// let given = StudyOverrides { dir: None, set: Vec::new(), place: Placement::Cpu };
    /// let study = Study::load(Path::new("studies/first-light.toml"), given)?;
    /// // Three seeds: a cold start and two variants of each.
    /// assert_eq!(study.tasks().len(), 3 + 3 * 2);
    /// # Ok::<(), uncouple::study::StudyError>(())
    /// ```
    ///
    /// # Errors
    /// If the file cannot be read, is not a study, or its parts could not be compared.
    pub fn load(file: &Path, given: StudyOverrides) -> Result<Study, StudyError> {
        let text =
            files::read_text(file, MOST_WRITTEN).map_err(|cause| StudyError::Read { file: file.into(), cause })?;
        let base: File = toml::from_str(&text).map_err(|e| StudyError::Syntax {
            file: file.into(),
            at: e.span().map(|span| 1 + text[..span.start].matches('\n').count()),
            reason: e.message().to_string(),
        })?;
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = if base.name.is_empty() { stem } else { base.name.clone() };
        let starts = if base.starts.is_empty() { vec![StudyStart::default()] } else { base.starts.clone() };
        let study = Study {
            file: file.into(),
            folder: Path::new(given.dir.as_ref().unwrap_or(&base.dir)).join(&name),
            name,
            question: base.question.clone(),
            seeds: base.seeds.clone(),
            tuned_on: base.tuned_on.clone(),
            chosen: base.chosen.clone(),
            starts,
            variants: base.variants.clone(),
            expect: base.expect.clone(),
            slurm: base.slurm.clone(),
            given,
            base,
        };
        study.validate()?;
        Ok(study)
    }

    fn need(&self, ok: bool, key: &str, reason: &str) -> Result<(), StudyError> {
        let wrong = || StudyError::Invalid { file: self.file.clone(), key: key.into(), reason: reason.into() };
        if ok { Ok(()) } else { Err(wrong()) }
    }

    fn validate(&self) -> Result<(), StudyError> {
        let unique = |seeds: &[u64]| seeds.iter().collect::<BTreeSet<_>>().len() == seeds.len();
        self.need(!self.seeds.is_empty() && unique(&self.seeds), "seeds", "must name one seed or more, each once")?;
        if let Some(seed) = self.seeds.iter().find(|seed| self.tuned_on.contains(seed)) {
            let reason = format!(
                "{seed} is in tuned_on as well: what was chosen on a seed looks better there than it is; leave it out of seeds, or \
                 choose again on others"
            );
            self.need(false, "seeds", &reason)?;
        }
        let names = |names: Vec<&String>| {
            let plain = |name: &String| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            names.iter().all(|name| plain(name) && *name != "cold-start")
                && names.iter().collect::<BTreeSet<_>>().len() == names.len()
        };
        let named = "needs a `name` of its own, of letters, digits, `-`, `_` and `.`, other than `cold-start`";
        self.need(names(vec![&self.name]), "name", named)?;
        self.need(names(self.variants.iter().map(|v| &v.name).collect()), "variant", named)?;
        self.need(self.starts.len() == 1 || names(self.starts.iter().map(|s| &s.name).collect()), "start", named)?;
        for start in &self.starts {
            let known = start.seeds.iter().all(|seed| self.seeds.contains(seed)) && unique(&start.seeds);
            self.need(known, "start.seeds", "must be some of the study's seeds, each once")?;
        }
        self.validate_variants()?;
        self.validate_expectations()?;
        self.tasks().iter().try_for_each(|task| self.config(task).map(drop))
    }

    fn validate_variants(&self) -> Result<(), StudyError> {
        for Variant { name, against, set } in &self.variants {
            let known = against.is_empty() || self.variants.iter().any(|v| v.name == *against && v.name != *name);
            self.need(known, "variant.against", &format!("of `{name}`: must name another variant"))?;
            for key in keys(set) {
                let after = AFTER_THE_COLD_START.iter().any(|section| key.starts_with(section));
                let reason = format!(
                    "of the variant `{name}`: all variants share their cold start, their games and their evaluation; set it in [set] for all, \
                     or make a [[start]] of it"
                );
                self.need(after && !SHARED.contains(&&key[..]), &key, &reason)?;
            }
        }
        Ok(())
    }

    fn validate_expectations(&self) -> Result<(), StudyError> {
        let e = &self.expect;
        let share = |x: f64| (0.0..=1.0).contains(&x);
        self.need(share(e.success), "expect.success", "must be a share from 0 to 1")?;
        self.need((-1.0..1.0).contains(&e.correlation), "expect.correlation", "must be from -1 to below 1")?;
        self.need(share(e.spread), "expect.spread", "must be a share from 0 to 1")?;
        let numbers =
            [e.cold_start_minutes, e.cell_minutes, e.turns, e.read_tokens, e.written_tokens, e.tflops, e.decode];
        let plain = numbers.iter().all(|x| x.is_finite() && *x >= 0.0);
        self.need(plain, "expect", "its numbers must be 0 or more (0: not known)")
    }

    /// All cold starts and cells, seed by seed, so that whole comparisons are there early; each cell after its cold
    /// start.
    pub fn tasks(&self) -> Vec<StudyTask> {
        let mut tasks = Vec::new();
        for seed in &self.seeds {
            for (start, of) in self.starts.iter().enumerate() {
                if of.seeds.is_empty() || of.seeds.contains(seed) {
                    let variants = [None].into_iter().chain((0..self.variants.len()).map(Some));
                    tasks.extend(variants.map(|variant| StudyTask { start, seed: *seed, variant }));
                }
            }
        }
        tasks
    }

    /// The variant that `variant` is compared with; none for the first.
    pub fn against(&self, variant: usize) -> Option<usize> {
        match &self.variants[variant].against {
            name if name.is_empty() => (variant > 0).then_some(0),
            name => self.variants.iter().position(|v| v.name == *name),
        }
    }

    /// Whether a cold start's coupling is measured before any cell begins: that of each start's first seed; of all
    /// seeds, where nothing else is asked.
    pub fn is_gated(&self, task: &StudyTask) -> bool {
        let first = self.tasks().into_iter().find(|t| t.start == task.start);
        task.variant.is_none() && (self.variants.is_empty() || first.as_ref() == Some(task))
    }

    /// The name of a task's run folder.
    pub fn name_of(&self, task: &StudyTask) -> String {
        let start = match &self.starts[task.start].name {
            name if name.is_empty() => String::new(),
            name => format!("{name}-"),
        };
        let variant = task.variant.map_or("cold-start", |variant| &self.variants[variant].name);
        format!("{start}{variant}-seed-{}", task.seed)
    }

    /// The task whose run folder has this name.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn task_named(&self, name: &str) -> Result<StudyTask, StudyError> {
        let found = self.tasks().into_iter().find(|task| self.name_of(task) == name);
        let names = || self.tasks().iter().map(|task| self.name_of(task)).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| StudyError::Invalid {
            file: self.file.clone(),
            key: name.into(),
            reason: format!("no such cell; there are {}", names()),
        })
    }

    /// The folder of a task's run.
    pub fn run_folder(&self, task: &StudyTask) -> PathBuf {
        self.folder.join(self.name_of(task))
    }

    /// Where numbers live.
    pub fn place(&self) -> Placement {
        self.given.place
    }

    /// The configuration of a task's run.
    ///
    /// # Errors
    /// If the settings of start, variant and command line do not make a valid configuration.
    pub fn config(&self, task: &StudyTask) -> Result<Config, StudyError> {
        let start = &self.starts[task.start];
        let mut overrides = of_table(&self.origin("[set]"), &self.base.set);
        overrides.extend(of_table(&self.origin("[[start]]"), &start.set));
        if let Some(variant) = task.variant {
            overrides.extend(of_table(&self.origin("[[variant]]"), &self.variants[variant].set));
        }
        overrides.extend(self.given.set.iter().map(|text| Override::parse(text)).collect::<Result<Vec<_>, _>>()?);
        let of_study = |key: &str, value: Value| Override::flag(&self.origin("the study"), key, value);
        overrides.push(of_study("run.dir", self.folder.display().to_string().into()));
        overrides.push(of_study("run.name", self.name_of(task).into()));
        overrides.push(of_study("run.seed", (task.seed as i64).into()));
        overrides.push(of_study("run.env_steps", (self.base.env_steps as i64).into()));
        if task.variant.is_none() {
            overrides.push(of_study("run.iterations", 0.into()));
        }
        let given = if start.config.is_empty() { &self.base.config } else { &start.config };
        let beside = || self.file.parent().unwrap_or(Path::new("")).join(given);
        let file = match &given[..] {
            "" => None,
            recipe if recipe.starts_with("recipe:") => Some(PathBuf::from(recipe)),
            _ => Some(beside()),
        };
        Ok(train::configuration(file.as_deref(), &overrides, self.place())?)
    }

    fn origin(&self, part: &str) -> String {
        format!("{}, {part}", self.file.display())
    }

    /// The comparison of two variants on one split, as it is expected.
    pub fn design(&self, seeds: usize, games: usize) -> Design {
        let Expect { success, correlation, spread, .. } = self.expect;
        Design { seeds, games, success, correlation, spread }
    }
}

/// A table's sections as overrides.
fn of_table(origin: &str, table: &Table) -> Vec<Override> {
    table.iter().map(|(key, value)| Override::flag(origin, key, value.clone())).collect()
}

/// The dotted keys of a table's leaves.
fn keys(table: &Table) -> Vec<String> {
    let of = |(key, value): (&String, &Value)| match value {
        Value::Table(inner) => keys(inner).into_iter().map(|rest| format!("{key}.{rest}")).collect(),
        _ => vec![key.clone()],
    };
    table.iter().flat_map(of).collect()
}
