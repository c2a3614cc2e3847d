//! `logmirror mirror SRC replica.db`: a plain SQLite file that follows a log, by the real binary, the real SQLite and readers in
//! other processes.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod crashes;
mod follows;
mod once;
mod others;
mod refusals;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::process::{Ended, Mirror, Service, arg, mirror, until};
use support::sqlite::{Sqlite, assert_sound, connect, dump};
use tempfile::TempDir;

/// The processes of [`Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// An application with a database, a service with the log of it, and a place for the replica.
struct World {
    service: Service,
    app: Sqlite,
    dir: TempDir,
}

impl World {
    /// An application in WAL mode with pages of 4,096 bytes.
    fn new() -> World {
        World::with(&["PRAGMA journal_mode = WAL"])
    }

    /// What feeds its log, as the service names it.
    fn identity(&self) -> String {
        let client = self.service.client("app");
        self.service.call(client.status()).unwrap().source.unwrap().identity
    }

    /// One whose database starts with these statements.
    fn with(statements: &[&str]) -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut app = Sqlite::open_within(&dir.path().join("app.db"), 10);
        app.run(statements);
        app.run(&["CREATE TABLE t (n INTEGER PRIMARY KEY, x)", "INSERT INTO t (x) VALUES ('first')"]);
        let service = Service::start(&dir.path().join("data"));
        World { service, app, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("app.db")
    }

    fn replica(&self) -> PathBuf {
        self.path("replica.db")
    }

    fn url(&self) -> String {
        self.service.url("app")
    }

    fn insert(&mut self, text: &str) {
        self.app.rows(&format!("INSERT INTO t (x) VALUES ('{text}')"));
    }

    /// Inserts rows with so many random bytes each, in one transaction.
    fn fill(&mut self, rows: u64, bytes: u64) {
        let numbers = format!("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows})");
        self.app.rows(&format!("{numbers} INSERT INTO t (x) SELECT randomblob({bytes}) FROM c"));
    }

    /// Brings the log to where the application is.
    #[track_caller]
    fn feed(&self) {
        is_done(&mirror(arg(&self.source()), self.url(), &[]));
    }

    /// Brings the replica to where the log is.
    fn pull(&self, flags: &[&str]) -> Ended {
        mirror(self.url(), arg(&self.replica()), flags)
    }

    fn follow(&self) -> (Mirror, Mirror) {
        let feeding = Mirror::start(arg(&self.source()), self.url(), &["--follow"]);
        // Before there is a log it would wait for one, with growing pauses.
        until("the log to be there", || {
            let status = self.service.status(&self.service.client("app")).ok()??;
            status.durable.filter(|durable| durable.0 > 1)
        });
        (feeding, Mirror::start(self.url(), arg(&self.replica()), &["--follow"]))
    }

    /// The content of the log's database, as `restore` makes it.
    fn restored(&self) -> String {
        let out = self.path("restored.db");
        let output = logmirror(&["restore", &self.url(), arg(&out), "--force"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        content(&out)
    }

    /// Names of what was set aside beside the replica.
    fn aside(&self) -> Vec<String> {
        let mut names = support::files_named(self.dir.path());
        names.retain(|name| name.starts_with("replica.db.aside-"));
        names
    }
}

fn logmirror(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.env_remove("LOGMIRROR_TOKEN").args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// The content of a database that is in order.
#[track_caller]
fn content(path: &Path) -> String {
    let db = connect(path);
    assert_sound(&db);
    dump(&db)
}

#[track_caller]
fn is_done(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.last("done");
}

#[track_caller]
fn is_refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for words in words {
        assert!(ended.error().contains(words), "{words:?} in {:?}", ended.error());
    }
}

/// The texts of the warnings.
fn warnings(ended: &Ended) -> Vec<&str> {
    let warnings = ended.lines.iter().filter(|line| line["event"] == "warning");
    warnings.map(|line| line["text"].as_str().unwrap()).collect()
}

fn record(world: &World) -> Value {
    serde_json::from_slice(&fs::read(world.path("replica.db-logmirror")).unwrap()).unwrap()
}
