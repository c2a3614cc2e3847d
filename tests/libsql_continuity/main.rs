//! A libSQL pull through a network that damages, swaps, repeats and cuts answers: the replica is a state of its log or the
//! command fails, and it goes on when the answers are right again.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../libsql_client/sqlite.rs"]
#[allow(dead_code, reason = "each program uses its part of this")]
mod sqlite;
#[path = "../support/mod.rs"]
mod support;

mod answers;
mod proxy;
mod pushes;
mod restored;
mod scene;

use std::path::{Path, PathBuf};

/// The processes of [`support::sqlite::Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// The file beside a database.
fn beside(database: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", database.display()))
}
