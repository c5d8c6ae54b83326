//! Reading `trajectories.sqlite`, also while training writes it.

use super::schema::{self, Unopened};
use super::{EpisodeRecord, EvidenceRecord, FILE, JudgmentRecord, SuggestionRecord, TurnRecord, error, unopened};
use crate::files::{self, FileError};
use crate::report::results::EvalEpisode;
use rusqlite::{Connection, OpenFlags, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The database of a run folder, opened to be read.
pub struct TrajectoryReader {
    path: PathBuf,
    db: Connection,
}

/// What an episode came to, without its turns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EpisodeIndex {
    /// The iteration.
    pub iteration: u64,
    /// The group in the iteration.
    pub group: u32,
    /// The episode in its group.
    pub sample: u32,
    /// The split.
    pub split: String,
    /// The task's id.
    pub task: String,
    /// The task's type.
    pub kind: String,
    /// The return.
    pub reward: f64,
    /// Whether the game was won.
    pub success: bool,
    /// Why the episode ended.
    pub finish: String,
    /// Number of turns.
    pub turns: u32,
    /// Turns with a flawed action.
    pub flawed: u32,
    /// Turns with a flawed action whose probability was above the threshold.
    pub likely: u32,
    /// Turns that were judged.
    pub judged: u32,
    /// Characters of its observations and actions.
    pub length: u64,
}

/// Judgments of an iteration by label and verdict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Confusion {
    /// `grpo`, or the evaluation.
    pub phase: String,
    /// The iteration.
    pub iteration: u64,
    /// The label.
    pub label: String,
    /// Absent where the text held none.
    pub verdict: Option<String>,
    /// Number of judgments.
    pub count: u64,
}

/// An episode of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluatedEpisode {
    /// The evaluation's name.
    pub phase: String,
    /// The iteration after which it was made.
    pub iteration: u64,
    /// The split.
    pub split: String,
    /// The task's id.
    pub task: String,
    /// The task's type.
    pub kind: String,
    /// What came of it.
    pub episode: EvalEpisode,
}

impl TrajectoryReader {
    /// `None` where the run has no database yet.
    ///
    /// # Errors
    /// If the database cannot be opened, or is of another version.
    pub fn open(run: &Path) -> Result<Option<TrajectoryReader>, FileError> {
        let path = run.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let open = || -> Result<Connection, Unopened> {
            files::check_regular(&path).map_err(Unopened::File)?;
            let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            db.busy_timeout(Duration::from_secs(2))?;
            db.pragma_update(None, "query_only", true)?;
            match schema::version(&db)? {
                schema::VERSION => Ok(db),
                other => Err(Unopened::Version(other)),
            }
        };
        match open() {
            Ok(db) => Ok(Some(TrajectoryReader { path, db })),
            Err(why) => Err(unopened(&path, why)),
        }
    }

    /// Writes a whole copy of the database into another run's folder, which has none.
    ///
    /// # Errors
    /// If the copy cannot be written.
    pub fn copy_to_run(&self, run: &Path) -> Result<(), FileError> {
        let copy = || -> rusqlite::Result<()> {
            // The copy is another file: this one stays closed to writers.
            self.db.pragma_update(None, "query_only", false)?;
            self.db.execute("vacuum into ?1", [run.join(FILE).to_string_lossy()])?;
            self.db.pragma_update(None, "query_only", true)
        };
        copy().map_err(|e| error("copy", &self.path, e))
    }

    /// The episodes of a phase, group by group; flawed actions above the probability `threshold` are likely ones.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn index(&self, phase: &str, threshold: f64) -> Result<Vec<EpisodeIndex>, FileError> {
        let sql = "select iteration, group_id, sample, split, task, kind, e.reward, success, finish, steps,
                          count(flaw), count(case when flaw is not null and q > ?2 then 1 end),
                          (select count(distinct turn) from judgments j where j.episode = e.id),
                          coalesce(sum(length(observation) + length(action)), 0)
                   from episodes e left join turns t on t.episode = e.id where phase = ?1
                   group by e.id order by iteration, group_id, sample";
        self.all(sql, params![phase, threshold], |row| {
            Ok(EpisodeIndex {
                iteration: unsigned(row, 0)?,
                group: row.get(1)?,
                sample: row.get(2)?,
                split: row.get(3)?,
                task: row.get(4)?,
                kind: row.get(5)?,
                reward: row.get(6)?,
                success: row.get(7)?,
                finish: row.get(8)?,
                turns: row.get(9)?,
                flawed: row.get(10)?,
                likely: row.get(11)?,
                judged: row.get(12)?,
                length: unsigned(row, 13)?,
            })
        })
    }

    /// The episodes of a group, with all that is kept of them.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn group(&self, phase: &str, iteration: u64, group: u32) -> Result<Vec<EpisodeRecord>, FileError> {
        let sql = "select id, iteration, phase, split, task, kind, group_id, sample, reward, success, finish, repeats, loops, seconds,
                          suggestions, tokens
                   from episodes where phase = ?1 and iteration = ?2 and group_id = ?3 order by sample";
        let episodes =
            self.all(sql, params![phase, iteration as i64, group], |row| Ok((row.get::<_, i64>(0)?, episode(row)?)))?;
        episodes
            .into_iter()
            .map(|(id, mut episode)| {
                episode.turns = self.turns(id)?;
                Ok(episode)
            })
            .collect()
    }

    fn turns(&self, episode: i64) -> Result<Vec<TurnRecord>, FileError> {
        let sql = "select observation, action, command, valid, prompt_start, action_start, action_end, logprob_sum, q, label, flaw,
                          reward, advantage
                   from turns where episode = ?1 order by turn";
        let mut turns = self.all(sql, [episode], turn)?;
        let sql = "select turn, label, verdict, text from judgments where episode = ?1 order by turn, sample";
        let judgments = self.all(sql, [episode], |row| {
            let judgment = JudgmentRecord { label: row.get(1)?, verdict: row.get(2)?, text: row.get(3)? };
            Ok((unsigned(row, 0)? as usize, judgment))
        })?;
        for (at, judgment) in judgments {
            turns.get_mut(at).into_iter().for_each(|turn: &mut TurnRecord| turn.judgments.push(judgment.clone()));
        }
        Ok(turns)
    }

    /// The suggestions of the run with the iterations that had been done when they were made.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn suggestions(&self) -> Result<Vec<(u64, SuggestionRecord)>, FileError> {
        let sql = "select made, place, text from suggestions order by made, place";
        let made = self.all(sql, [], |row| Ok((unsigned(row, 0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?)))?;
        let sql = "select task, observation, action, flaw, count, sampled, resampled, advantage
                   from evidence where made = ?1 and place = ?2 order by item";
        let with_evidence = |(made, place, text): (u64, i64, String)| {
            let evidence = self.all(sql, params![made as i64, place], evidence)?;
            Ok((made, SuggestionRecord { text, evidence }))
        };
        made.into_iter().map(with_evidence).collect()
    }

    /// Judgments by phase and iteration.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn confusion(&self) -> Result<Vec<Confusion>, FileError> {
        let sql = "select phase, iteration, label, verdict, count(*) from judgments join episodes on episode = id
                   group by phase, iteration, label, verdict order by phase, iteration";
        self.all(sql, [], |row| {
            let (label, verdict) = (row.get(2)?, row.get(3)?);
            Ok(Confusion { phase: row.get(0)?, iteration: unsigned(row, 1)?, label, verdict, count: unsigned(row, 4)? })
        })
    }

    /// The episodes of all evaluations; what the environment failed counts for nothing.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn evaluated(&self) -> Result<Vec<EvaluatedEpisode>, FileError> {
        let sql = "select phase, iteration, split, task, kind, success, steps, repeats, loops from episodes
                   where phase <> 'grpo' and finish <> 'env-failed' order by phase, iteration, split, group_id, sample";
        self.all(sql, [], |row| {
            let [success, turns, repeats, loops] = [5, 6, 7, 8].map(|column| row.get::<_, u32>(column));
            let episode = EvalEpisode { success: success? > 0, turns: turns?, repeats: repeats?, loops: loops? };
            let (split, task, kind) = (row.get(2)?, row.get(3)?, row.get(4)?);
            Ok(EvaluatedEpisode { phase: row.get(0)?, iteration: unsigned(row, 1)?, split, task, kind, episode })
        })
    }

    /// Episodes, tokens read and tokens sampled, by phase.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn volume(&self) -> Result<Vec<(String, [u64; 3])>, FileError> {
        let sql = "select phase, count(*), sum(json_array_length(tokens)),
                          sum((select sum(action_end - action_start) from turns where episode = id))
                   from episodes group by phase order by min(id)";
        self.all(sql, [], |row| {
            let [episodes, all, sampled] = [1, 2, 3].map(|column| row.get::<_, Option<i64>>(column));
            let [episodes, all, sampled] = [episodes?, all?, sampled?].map(|n| n.unwrap_or(0).max(0) as u64);
            Ok((row.get(0)?, [episodes, all.saturating_sub(sampled), sampled]))
        })
    }

    fn all<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, FileError> {
        let rows = || -> rusqlite::Result<Vec<T>> {
            self.db.prepare_cached(sql)?.query_map(parameters, |row| read(row))?.collect()
        };
        rows().map_err(|e| error("read", &self.path, e))
    }
}

fn episode(row: &Row<'_>) -> rusqlite::Result<EpisodeRecord> {
    Ok(EpisodeRecord {
        iteration: unsigned(row, 1)?,
        phase: row.get(2)?,
        split: row.get(3)?,
        task: row.get(4)?,
        kind: row.get(5)?,
        group: row.get(6)?,
        sample: row.get(7)?,
        reward: row.get(8)?,
        success: row.get(9)?,
        finish: row.get(10)?,
        repeats: row.get(11)?,
        loops: row.get(12)?,
        seconds: row.get(13)?,
        suggestions: list(row, 14)?,
        tokens: list(row, 15)?,
        turns: Vec::new(),
    })
}

fn turn(row: &Row<'_>) -> rusqlite::Result<TurnRecord> {
    let [from, action, end] = [4, 5, 6].map(|column| unsigned(row, column));
    let (from, action, end) = (from? as usize, action? as usize, end? as usize);
    Ok(TurnRecord {
        observation: row.get(0)?,
        action: row.get(1)?,
        command: row.get(2)?,
        valid: row.get(3)?,
        prompt: from..action,
        sampled: action..end,
        logprob_sum: row.get::<_, Option<f64>>(7)?.unwrap_or(f64::NAN),
        q: row.get::<_, Option<f64>>(8)?.unwrap_or(f64::NAN),
        label: row.get(9)?,
        flaw: row.get(10)?,
        reward: row.get(11)?,
        advantage: row.get(12)?,
        judgments: Vec::new(),
    })
}

fn evidence(row: &Row<'_>) -> rusqlite::Result<EvidenceRecord> {
    Ok(EvidenceRecord {
        task: row.get(0)?,
        observation: row.get(1)?,
        action: row.get(2)?,
        flaw: row.get(3)?,
        count: unsigned(row, 4)?,
        sampled: row.get(5)?,
        resampled: row.get(6)?,
        advantage: row.get(7)?,
    })
}

/// A count; SQLite has no unsigned numbers.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}

/// A list that was kept as JSON; one that cannot be read is empty.
fn list<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<T>> {
    Ok(serde_json::from_str(&row.get::<_, String>(column)?).unwrap_or_default())
}
