//! What a log, a directory and a file come from changes only where that is meant: swapped arguments, copies of a database, and logs
//! that were handed over, by the real binary.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod copies;
mod directories;
mod gone;
mod handed_over;
mod links;
mod messages;
mod owners;
mod rolls;
mod swapped;
mod unusable;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use logmirror::api::LogStatus;
use support::process::{Ended, Service, arg};
use support::sqlite::{connect, rows};
use tempfile::TempDir;

/// A service and a directory for everything else.
fn scene() -> (TempDir, TempDir, Service) {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    (data, dir, service)
}

/// Makes a database in WAL mode with one row in it, which nobody has open.
fn database(path: &Path) {
    write(path, &["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES ('first')"]);
}

/// Runs statements on a database, and closes it.
fn write(path: &Path, statements: &[&str]) {
    let db = connect(path);
    db.busy_timeout(support::process::PATIENCE).unwrap();
    for sql in statements {
        rows(&db, sql).unwrap();
    }
}

fn logmirror(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.env_remove("LOGMIRROR_TOKEN").args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// A command that must go well.
#[track_caller]
fn done(args: &[&str]) -> String {
    let output = logmirror(args);
    let [said, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}{errors}");
    said + &errors
}

fn status(service: &Service, log: &str) -> LogStatus {
    service.status(&service.client(log)).unwrap().unwrap()
}

/// What a log is fed from.
fn source_of(service: &Service, log: &str) -> String {
    status(service, log).source.map(|source| source.identity).unwrap_or_default()
}

/// The rows of what is restored from a place; none where there is nothing to restore yet.
fn restored(place: &str) -> Option<Vec<Vec<serde_json::Value>>> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("restored.db");
    let output = logmirror(&["restore", place, arg(&out)]);
    (output.status.code() == Some(0)).then(|| rows(&connect(&out), "SELECT x FROM t").ok()).flatten()
}

#[track_caller]
fn is_refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for words in words {
        assert!(ended.error().contains(words), "{words:?} in {:?}", ended.error());
    }
}

/// The processes of `Sqlite`, and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}
