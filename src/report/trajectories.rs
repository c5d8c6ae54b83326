//! Every episode and turn of a run, in SQLite: `trajectories.sqlite` answers questions that metrics cannot.
//!
//! ```sql
//! select task, avg(success) from episodes where phase = 'grpo' group by task;
//! ```
//!
//! The layout of the tables has a number, `pragma user_version`, which `meta` repeats in words.

use crate::files::{self, FileError};
use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One episode as it is kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Episode {
    /// GRPO iteration; 0 before the first.
    pub iteration: u64,
    /// E.g. `grpo`, `eval`.
    pub phase: String,
    pub split: String,
    /// The task's id.
    pub task: String,
    /// Which group of the iteration, and which of its episodes.
    pub group: u32,
    pub sample: u32,
    pub reward: f64,
    pub success: bool,
    /// Why it ended, e.g. `won`, `max_steps`.
    pub finish: String,
    pub seconds: f64,
    pub turns: Vec<Turn>,
}

/// One turn: what the agent saw, what it wrote, what came of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Turn {
    pub observation: String,
    pub action: String,
    /// Whether the environment understood the action.
    pub valid: bool,
    /// The action's tokens as sampled.
    pub tokens: Vec<u32>,
    /// Sum of their log-probs (nats) when sampled; not-a-number is kept as null.
    pub logprob_sum: f64,
    pub reward: f64,
    /// Absent outside training.
    pub advantage: Option<f64>,
}

/// The open database of a run folder.
pub struct Trajectories {
    path: PathBuf,
    db: Connection,
}

const FILE: &str = "trajectories.sqlite";
/// Number of the tables' layout. It grows with every change of them.
const VERSION: i64 = 1;
const SCHEMA: &str = "
    create table meta (key text primary key, value text not null) without rowid;
    create table episodes (
        id integer primary key, iteration integer not null, phase text not null, split text not null, task text not null,
        group_id integer not null, sample integer not null, reward real not null, success integer not null,
        finish text not null, steps integer not null, seconds real not null);
    create table turns (
        episode integer not null references episodes(id) on delete cascade, turn integer not null,
        observation text not null, action text not null, valid integer not null, tokens text not null,
        logprob_sum real, reward real not null, advantage real,
        primary key (episode, turn)) without rowid;
    create index episodes_by_iteration on episodes(iteration);";

/// Why a database cannot be opened.
enum Unopened {
    File(io::Error),
    Sqlite(rusqlite::Error),
    /// It has another layout.
    Version(i64),
}

impl From<rusqlite::Error> for Unopened {
    fn from(error: rusqlite::Error) -> Unopened {
        Unopened::Sqlite(error)
    }
}

impl Trajectories {
    /// Opens the database of a run folder. `next` names for each phase the first iteration that the run will write: its
    /// episodes and later ones, left by an earlier process, are deleted, so that none is kept twice.
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
                db.execute(
                    "delete from episodes where phase = ?1 and iteration >= ?2",
                    params![phase, *iteration as i64],
                )?;
            }
            Ok(db)
        };
        let db = open().map_err(|e| match e {
            Unopened::Sqlite(e) => error("open", &path, e),
            Unopened::File(e) => FileError::new("open", &path, e),
            Unopened::Version(found) => FileError::new("open", &path, io::Error::other(other_version(found))),
        })?;
        Ok(Trajectories { path, db })
    }

    /// Adds episodes: all of them or, on an error, none.
    pub fn append(&mut self, episodes: &[Episode]) -> Result<(), FileError> {
        insert(&mut self.db, episodes).map_err(|e| error("append to", &self.path, e))
    }

    /// Makes what was appended survive a power cut.
    pub fn sync(&self) -> Result<(), FileError> {
        // The log is fsynced before any of it is moved into the database; a reader may keep some of it from being moved.
        let moved = self.db.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(()));
        moved.map_err(|e| error("sync", &self.path, e))
    }

    /// At most `count` episodes of the last iteration of `phase`, failures and successes in turn, shortest first.
    pub fn examples(&self, phase: &str, count: u32) -> Result<Vec<Episode>, FileError> {
        examples(&self.db, phase, count).map_err(|e| error("read", &self.path, e))
    }
}

/// Makes the tables of a new database, all or none; refuses one of another layout, and leaves that as it is.
fn prepare(db: &mut Connection) -> Result<(), Unopened> {
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    if version(db)? == VERSION {
        return Ok(());
    }
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let tables: i64 = transaction.query_row("select count(*) from sqlite_master", [], |row| row.get(0))?;
    match (version(&transaction)?, tables) {
        // Another process was quicker.
        (VERSION, _) => return Ok(()),
        (0, 0) => {}
        (other, _) => return Err(Unopened::Version(other)),
    }
    transaction.execute_batch(SCHEMA)?;
    let meta = [("schema", VERSION.to_string()), ("program", program())];
    for (key, value) in meta {
        transaction.execute("insert into meta values (?1, ?2)", params![key, value])?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}

fn program() -> String {
    format!("uncouple {}", env!("CARGO_PKG_VERSION"))
}

fn other_version(found: i64) -> String {
    let (who, mend) = match found > VERSION {
        true => ("a newer", "open it with that version"),
        false => ("an older", "go on with that version"),
    };
    format!(
        "it was written by {who} version of uncouple (schema {found}; {} has schema {VERSION}): {mend}, or move the file away and go \
         on with --resume",
        program()
    )
}

fn insert(db: &mut Connection, episodes: &[Episode]) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    {
        let mut episode = transaction.prepare_cached(
            "insert into episodes (iteration, phase, split, task, group_id, sample, reward, success, finish, steps, seconds)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?;
        let mut turn = transaction.prepare_cached("insert into turns values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
        for e in episodes {
            let (iteration, steps) = (e.iteration as i64, e.turns.len() as i64);
            let id = episode.insert(params![
                iteration, e.phase, e.split, e.task, e.group, e.sample, e.reward, e.success, e.finish, steps, e.seconds
            ])?;
            for (i, t) in e.turns.iter().enumerate() {
                let tokens = serde_json::to_string(&t.tokens).unwrap_or_default();
                turn.execute(params![
                    id,
                    i as i64,
                    t.observation,
                    t.action,
                    t.valid,
                    tokens,
                    t.logprob_sum,
                    t.reward,
                    t.advantage
                ])?;
            }
        }
    }
    transaction.commit()
}

fn examples(db: &Connection, phase: &str, count: u32) -> rusqlite::Result<Vec<Episode>> {
    let mut episodes = db.prepare(
        "select id, iteration, phase, split, task, group_id, sample, reward, success, finish, seconds,
                row_number() over (partition by success order by steps, id) as place
         from episodes
         where phase = ?1 and iteration = (select max(iteration) from episodes where phase = ?1)
         order by place, success limit ?2",
    )?;
    let mut turns = db.prepare(
        "select observation, action, valid, tokens, logprob_sum, reward, advantage from turns where episode = ?1 order by turn",
    )?;
    let rows = episodes.query_map(params![phase, count], |row| {
        let episode = Episode {
            iteration: row.get::<_, i64>(1)? as u64,
            phase: row.get(2)?,
            split: row.get(3)?,
            task: row.get(4)?,
            group: row.get(5)?,
            sample: row.get(6)?,
            reward: row.get(7)?,
            success: row.get(8)?,
            finish: row.get(9)?,
            seconds: row.get(10)?,
            turns: Vec::new(),
        };
        Ok((row.get::<_, i64>(0)?, episode))
    })?;
    rows.map(|row| {
        let (id, mut episode) = row?;
        let rows = turns.query_map([id], |row| {
            Ok(Turn {
                observation: row.get(0)?,
                action: row.get(1)?,
                valid: row.get(2)?,
                tokens: serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default(),
                logprob_sum: row.get::<_, Option<f64>>(4)?.unwrap_or(f64::NAN),
                reward: row.get(5)?,
                advantage: row.get(6)?,
            })
        })?;
        episode.turns = rows.collect::<rusqlite::Result<_>>()?;
        Ok(episode)
    })
    .collect()
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
        let turn = Turn { observation: "x".repeat(10_000), ..Turn::default() };
        let episode = Episode { phase: "grpo".into(), turns: vec![turn], ..Episode::default() };
        kept.append(std::slice::from_ref(&episode)).unwrap();
        kept.db.pragma_update(None, "max_page_count", 12).unwrap();
        let error = kept.append(&vec![episode.clone(); 50]).unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert_eq!(error.to_string().matches("the disk is full").count(), 1, "{error}");
        assert_eq!(kept.examples("grpo", 100).unwrap(), [episode]);
    }
}
