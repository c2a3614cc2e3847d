//! Databases that the real SQLite writes and reads, in processes of their own.

use std::path::Path;

use tempfile::TempDir;

use crate::beside;
use crate::support::sqlite::{Sqlite, assert_sound, connect};

#[allow(unused_imports, reason = "each program uses its part of this")]
pub use crate::support::sqlite::run;

/// What every writer here starts with: nothing is ever checkpointed.
const START: &str = "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF;";

/// Runs statements and is killed with the database open, so that its WAL stays.
pub fn run_and_die(database: &Path, sql: &str) {
    let mut sqlite = Open::start(database);
    sqlite.run(START);
    sqlite.run(sql);
}

/// The content of a database as SQL, once its integrity is checked. A copy is read: SQLite would checkpoint the WAL away.
pub fn dump(database: &Path) -> String {
    let dir = TempDir::new().unwrap();
    let copy = dir.path().join("copy.db");
    for ending in ["", "-wal"] {
        if beside(database, ending).exists() {
            std::fs::copy(beside(database, ending), beside(&copy, ending)).unwrap();
        }
    }
    let db = connect(&copy);
    assert_sound(&db);
    crate::support::sqlite::dump(&db)
}

/// Has a database open until it is dropped, which kills it.
pub struct Open(Sqlite);

impl Open {
    pub fn start(database: &Path) -> Open {
        Open(Sqlite::open(database))
    }

    /// Runs statements to their end.
    pub fn run(&mut self, sql: &str) {
        self.0.rows(sql);
    }
}

/// Statements that make a table and so many rows, each a transaction.
pub fn rows(count: u32) -> String {
    let inserts = (0..count).map(|row| format!("INSERT INTO t VALUES({row}, hex(zeroblob(100)));\n"));
    format!("CREATE TABLE IF NOT EXISTS t(a, b);\n{}", inserts.collect::<String>())
}

/// One transaction of more pages than that.
pub fn large(pages: u32) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS t(a, b);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {pages})
        INSERT INTO t SELECT i, randomblob(4000) FROM n;"
    )
}
