//! Every episode and turn of a run, in SQLite: `trajectories.sqlite` answers questions that metrics cannot.
//!
//! ```sql
//! select task, avg(success) from episodes where phase = 'grpo' group by task;
//! ```
//!
//! The layout of the tables has a number, `pragma user_version`, which `meta` repeats in words. docs/trajectories.md explains them.

mod read;
mod schema;

pub use read::{Confusion, EpisodeIndex, EvaluatedEpisode, TrajectoryReader};

use crate::files::{self, FileError};
use rusqlite::{Connection, ErrorCode, Statement, params};
use schema::{Unopened, other_version, prepare};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One episode as it is kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EpisodeRecord {
    /// GRPO iteration; 0 before the first.
    pub iteration: u64,
    /// E.g. `grpo`, `eval`.
    pub phase: String,
    /// The task's split.
    pub split: String,
    /// The task's id.
    pub task: String,
    /// The task's type.
    pub kind: String,
    /// The group of the iteration.
    pub group: u32,
    /// The episode's number within its group.
    pub sample: u32,
    /// The return: the sum of its rewards.
    pub reward: f64,
    /// Whether the game was won.
    pub success: bool,
    /// Why it ended, e.g. `won`, `max_steps`.
    pub finish: String,
    /// Wall time.
    pub seconds: f64,
    /// Turns that repeat a command already tried at the same observation.
    pub repeats: u32,
    /// Turns that repeat a command, or come back to an observation.
    pub loops: u32,
    /// The suggestions in its prompt.
    pub suggestions: Vec<String>,
    /// All that the model read and wrote, in order.
    pub tokens: Vec<u32>,
    /// Its turns, in order.
    pub turns: Vec<TurnRecord>,
}

/// One turn: what the agent saw, what it wrote, what came of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TurnRecord {
    /// What the agent was shown.
    pub observation: String,
    /// What the agent wrote.
    pub action: String,
    /// What the environment was told; `None` where nothing could be read.
    pub command: Option<String>,
    /// Whether the environment understood the action.
    pub valid: bool,
    /// What the agent had before the action, as a range of the episode's tokens.
    pub prompt: Range<usize>,
    /// The action as sampled, as a range of the episode's tokens.
    pub sampled: Range<usize>,
    /// Sum of the action's log-probs (nats) when sampled; not-a-number is kept as null.
    pub logprob_sum: f64,
    /// Probability of the action when sampled, given its thought where there is one.
    pub q: f64,
    /// `good` or `bad`; absent where no source knows.
    pub label: Option<String>,
    /// How a bad action is flawed.
    pub flaw: Option<String>,
    /// What the environment paid.
    pub reward: f64,
    /// Absent outside training.
    pub advantage: Option<f64>,
    /// What the policy said of the action.
    pub judgments: Vec<JudgmentRecord>,
}

/// What the policy said of its own action.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JudgmentRecord {
    /// The label it was held against.
    pub label: String,
    /// `good` or `bad`; absent where there is none in the text.
    pub verdict: Option<String>,
    /// The judgment as it was written.
    pub text: String,
}

/// A suggestion and the flawed actions it rests on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SuggestionRecord {
    /// The sentence.
    pub text: String,
    /// The flawed actions.
    pub evidence: Vec<EvidenceRecord>,
}

/// A flawed action in a state.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EvidenceRecord {
    /// The task's id.
    pub task: String,
    /// The beginning of what the agent was shown.
    pub observation: String,
    /// The command.
    pub action: String,
    /// How the command is flawed.
    pub flaw: String,
    /// Times it was taken.
    pub count: u64,
    /// Its mean probability when sampled.
    pub sampled: f64,
    /// Its share among samples that are taken again in the same state.
    pub resampled: f64,
    /// Its mean advantage.
    pub advantage: f64,
}

/// The open database of a run folder.
pub struct Trajectories {
    path: PathBuf,
    db: Connection,
}

const FILE: &str = "trajectories.sqlite";
/// The phase whose iterations suggestions are counted by.
const TRAINING: &str = "grpo";

impl Trajectories {
    /// Opens the database of a run folder. `next` names for each phase the first iteration that the run will write: its
    /// episodes and later ones, left by an earlier process, are deleted, so that none is kept twice.
    ///
    /// # Errors
    /// If the database cannot be opened or changed, or is of another version.
    pub fn open(run: &Path, next: &[(&str, u64)]) -> Result<Trajectories, FileError> {
        let path = run.join(FILE);
        let open = || -> Result<Connection, Unopened> {
            files::check_regular(&path).map_err(Unopened::File)?;
            let mut db = Connection::open(&path)?;
            db.busy_timeout(Duration::from_secs(2))?;
            prepare(&mut db)?;
            // WAL lets people read while training writes; its checkpoints are what NORMAL fsyncs.
            db.pragma_update(None, "journal_mode", "wal")?;
            db.pragma_update(None, "synchronous", "normal")?;
            db.pragma_update(None, "foreign_keys", true)?;
            for (phase, iteration) in next {
                let from = *iteration as i64;
                db.execute("delete from episodes where phase = ?1 and iteration >= ?2", params![phase, from])?;
                if *phase == TRAINING {
                    db.execute("delete from suggestions where made >= ?1", [from])?;
                }
            }
            Ok(db)
        };
        let db = open().map_err(|e| unopened(&path, e))?;
        Ok(Trajectories { path, db })
    }

    /// Adds episodes: all of them or, on an error, none.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn append(&mut self, episodes: &[EpisodeRecord]) -> Result<(), FileError> {
        insert(&mut self.db, episodes).map_err(|e| error("append to", &self.path, e))
    }

    /// Adds the suggestions made after iteration `made`: all of them or, on an error, none.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn suggest(&mut self, made: u64, suggestions: &[SuggestionRecord]) -> Result<(), FileError> {
        insert_suggestions(&mut self.db, made, suggestions).map_err(|e| error("append to", &self.path, e))
    }

    /// Makes what was appended survive a power cut.
    ///
    /// # Errors
    /// If the database cannot be flushed.
    pub fn sync(&self) -> Result<(), FileError> {
        // The log is fsynced before any of it is moved into the database; a reader may keep some of it from being moved.
        let moved = self.db.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(()));
        moved.map_err(|e| error("sync", &self.path, e))
    }
}

fn insert(db: &mut Connection, episodes: &[EpisodeRecord]) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    {
        let mut episode = transaction.prepare_cached(
            "insert into episodes (iteration, phase, split, task, kind, group_id, sample, reward, success, finish, steps, repeats, loops,
                                   seconds, suggestions, tokens)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?;
        let mut turn = transaction.prepare_cached(
            "insert into turns values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?;
        let mut judgment = transaction.prepare_cached("insert into judgments values (?1, ?2, ?3, ?4, ?5, ?6)")?;
        for e in episodes {
            let (iteration, steps) = (e.iteration as i64, e.turns.len() as i64);
            let (said, tokens) = (json(&e.suggestions), json(&e.tokens));
            let id = episode.insert(params![
                iteration, e.phase, e.split, e.task, e.kind, e.group, e.sample, e.reward, e.success, e.finish, steps,
                e.repeats, e.loops, e.seconds, said, tokens
            ])?;
            for (i, t) in e.turns.iter().enumerate() {
                insert_turn(&mut turn, (id, i as i64), t)?;
                for (sample, j) in t.judgments.iter().enumerate() {
                    judgment.execute(params![id, i as i64, sample as i64, j.label, j.verdict, j.text])?;
                }
            }
        }
    }
    transaction.commit()
}

fn insert_turn(turn: &mut Statement<'_>, (episode, place): (i64, i64), t: &TurnRecord) -> rusqlite::Result<()> {
    turn.execute(params![
        episode,
        place,
        t.observation,
        t.action,
        t.command,
        t.valid,
        t.prompt.start as i64,
        t.sampled.start as i64,
        t.sampled.end as i64,
        t.logprob_sum,
        t.q,
        t.label,
        t.flaw,
        t.reward,
        t.advantage
    ])?;
    Ok(())
}

fn insert_suggestions(db: &mut Connection, made: u64, suggestions: &[SuggestionRecord]) -> rusqlite::Result<()> {
    let (transaction, made) = (db.transaction()?, made as i64);
    for (place, suggestion) in suggestions.iter().enumerate() {
        let place = place as i64;
        transaction.execute("insert into suggestions values (?1, ?2, ?3)", params![made, place, suggestion.text])?;
        let mut evidence =
            transaction.prepare_cached("insert into evidence values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?;
        for (item, e) in suggestion.evidence.iter().enumerate() {
            let (item, count) = (item as i64, e.count as i64);
            evidence.execute(params![
                made,
                place,
                item,
                e.task,
                e.observation,
                e.action,
                e.flaw,
                count,
                e.sampled,
                e.resampled,
                e.advantage
            ])?;
        }
    }
    transaction.commit()
}

/// A list as JSON, which SQLite's `json_each` reads.
fn json(list: &impl serde::Serialize) -> String {
    serde_json::to_string(list).unwrap_or_default()
}

fn unopened(path: &Path, why: Unopened) -> FileError {
    match why {
        Unopened::Sqlite(e) => error("open", path, e),
        Unopened::File(e) => FileError::new("open", path, e),
        Unopened::Version(found) => FileError::new("open", path, io::Error::other(other_version(found))),
    }
}

fn error(action: &'static str, path: &Path, error: rusqlite::Error) -> FileError {
    let cause = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => io::ErrorKind::StorageFull.into(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            io::Error::other("another program holds it locked: close that program, then go on with --resume")
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            io::Error::other(format!("{error}: move the file away, then go on with --resume"))
        }
        _ => io::Error::other(error),
    };
    FileError::new(action, path, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_and_loses_nothing_earned() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = Trajectories::open(dir.path(), &[]).unwrap();
        let turn = TurnRecord { observation: "x".repeat(10_000), ..TurnRecord::default() };
        let episode = EpisodeRecord { phase: "grpo".into(), turns: vec![turn], ..EpisodeRecord::default() };
        kept.append(std::slice::from_ref(&episode)).unwrap();
        kept.db.pragma_update(None, "max_page_count", 20).unwrap();
        let error = kept.append(&vec![episode.clone(); 50]).unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert_eq!(error.to_string().matches("the disk is full").count(), 1, "{error}");
        assert_eq!(TrajectoryReader::open(dir.path()).unwrap().unwrap().group("grpo", 0, 0).unwrap(), [episode]);
    }
}
