//! The tables of `trajectories.sqlite`, which docs/trajectories.md explains, and their version.

use rusqlite::{Connection, TransactionBehavior, params};
use std::io;

/// Number of the tables' layout. It grows with every change of them.
pub(super) const VERSION: i64 = 2;
const SCHEMA: &str = include_str!("schema.sql");

/// Why a database cannot be opened.
pub(super) enum Unopened {
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

pub(super) fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
}

/// Makes the tables of a new database, all or none; refuses one of another layout, and leaves that as it is.
pub(super) fn prepare(db: &mut Connection) -> Result<(), Unopened> {
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

pub(super) fn other_version(found: i64) -> String {
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
