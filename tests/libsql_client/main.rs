//! Pushing local databases to a libSQL sync server and pulling replicas, against a fake server that counts the frames.
//! Databases are made, and read back, by SQLite in processes of its own.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod batches;
mod both_ways;
mod checkpoints;
mod command;
mod damage;
mod fake;
mod generations;
mod halves;
mod names;
mod options;
mod ownership;
mod pruned;
mod pull;
mod push;
mod readers;
mod sqlite;
mod together;

use std::path::{Path, PathBuf};

use logmirror::mirror::Progress;
use logmirror::sync::{Direction, LocalLog, Position, Remote, Replicate, SyncError, metadata};
use tempfile::TempDir;

use fake::Fake;

/// The processes of [`support::sqlite::Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// Both ends of a mirror, and a directory for the databases.
struct Stage {
    fake: Fake,
    dir: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    fn new() -> Stage {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Stage { fake: Fake::start(), dir: tempfile::tempdir().unwrap(), runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A database whose WAL is kept, after these statements.
    fn database(&self, sql: &str) -> PathBuf {
        let path = self.path("app.db");
        sqlite::run_and_die(&path, sql);
        path
    }

    fn run(&self, direction: Direction, database: &Path, batch: u32) -> Result<Progress, SyncError> {
        let remote = Remote::new(&self.fake.url(), None)?.retry_first(std::time::Duration::from_millis(1));
        let what = Replicate { batch, ..Replicate::new(direction, database.to_owned(), remote) };
        self.runtime.block_on(logmirror::sync::run(&what, |_| ()))
    }

    fn push(&self, database: &Path) -> Result<Progress, SyncError> {
        self.run(Direction::Push, database, 128)
    }

    fn pull(&self, replica: &Path) -> Result<Progress, SyncError> {
        self.run(Direction::Pull, replica, 128)
    }
}

/// The file beside a database.
fn beside(database: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", database.display()))
}

/// What the metadata say; as (generation, frame).
fn info(database: &Path) -> (u32, u32) {
    let Position { generation, frame } = metadata::decode(&std::fs::read(beside(database, "-info")).unwrap()).unwrap();
    (generation, frame)
}

fn set_info(database: &Path, generation: u32, frame: u32) {
    std::fs::write(beside(database, "-info"), metadata::encode(Position { generation, frame })).unwrap();
}

/// Frames of a database's WAL, up to its last commit.
fn frames(database: &Path) -> u32 {
    LocalLog::open(database).unwrap().frames()
}

/// Files beside a database that are none of it.
fn litter(database: &Path) -> Vec<String> {
    let stem = database.file_name().unwrap().to_str().unwrap();
    let known = ["", "-wal", "-shm", "-info"].map(|ending| format!("{stem}{ending}"));
    let names = std::fs::read_dir(database.parent().unwrap()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !known.contains(name) && (name.starts_with(stem) || name.starts_with(".tmp.")));
    names
}

/// The databases that were set aside.
fn set_aside(database: &Path) -> Vec<PathBuf> {
    let is_beside = |name: &String| ["-wal", "-shm", "-info"].iter().any(|ending| name.ends_with(ending));
    let names = litter(database).into_iter().filter(|name| name.contains(".aside-") && !is_beside(name));
    names.map(|name| database.with_file_name(name)).collect()
}
