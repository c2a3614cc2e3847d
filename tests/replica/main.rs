//! What an offline-first replica promises, against a service in this process.
#![cfg(feature = "turso")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod away;
mod basics;
mod beside;
mod conflicts;
mod crashes;
mod damage;
mod edges;
mod faults;
mod foreign;
mod journals;
mod kills;
mod parts;
mod seeds;
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use logmirror::mirror::Settings;
use logmirror::replica::{Options, ReplicaError, Report, SyncEngine, Value};
use logmirror::repo::MemRepo;
use logmirror::sync::Remote;
use serde_json::json;
use support::service::{Service, Setup};
use tempfile::TempDir;

/// The processes of [`support::sqlite::Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// A service with the log `app`, and a directory for replicas of it.
struct Rig {
    service: Service,
    dir: TempDir,
}

/// The rows of each table, sorted, and how everything was made.
type Dump = BTreeMap<String, Vec<String>>;

/// An open replica.
struct Replica<'a> {
    rig: &'a Rig,
    engine: SyncEngine,
    connection: Arc<turso_core::Connection>,
}

impl Rig {
    fn new() -> Rig {
        Rig::with_commits_of(32 << 20)
    }

    /// The same with a service that takes commits of so many bytes.
    fn with_commits_of(commit_bytes_max: u64) -> Rig {
        let usual = Setup::default();
        let settings = Settings { commit_bytes_max, ..usual.settings };
        let service = Service::start_with(Arc::new(MemRepo::default()), Setup { settings, ..usual });
        let answer = service.put("/logs/app", r#"{"format":"wal"}"#);
        assert_eq!(answer.status, 201, "{}", answer.text());
        Rig { service, dir: tempfile::tempdir().unwrap() }
    }

    fn remote(&self) -> Remote {
        Remote::new(&self.service.url("/logs/app"), None).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn try_open(&self, name: &str, options: Options) -> Result<Replica<'_>, ReplicaError> {
        let engine = self.service.runtime.block_on(SyncEngine::open(&self.path(name), self.remote(), options))?;
        let connection = engine.connect()?;
        Ok(Replica { rig: self, engine, connection })
    }

    #[track_caller]
    fn open(&self, name: &str) -> Replica<'_> {
        self.try_open(name, Options::default()).unwrap()
    }

    /// Rows of a query on the remote.
    #[track_caller]
    fn ask(&self, sql: &str) -> Vec<Vec<Value>> {
        self.ask_log("app", sql)
    }

    #[track_caller]
    fn ask_log(&self, log: &str, sql: &str) -> Vec<Vec<Value>> {
        serde_json::from_value(self.execute(log, sql)["rows"].clone()).unwrap()
    }

    /// Rows that a statement on the remote changes.
    #[track_caller]
    fn change_log(&self, log: &str, sql: &str) -> u64 {
        self.execute(log, sql)["affected_row_count"].as_u64().unwrap()
    }

    #[track_caller]
    fn execute(&self, log: &str, sql: &str) -> serde_json::Value {
        let call = json!({"requests": [{"type": "execute", "stmt": {"sql": sql}}]}).to_string();
        let answer = self.service.call("POST", &format!("/logs/{log}/v2/pipeline"), "", call.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let result = &answer.json()["results"][0];
        assert_eq!(result["type"], "ok", "{sql}: {result}");
        result["response"]["result"].clone()
    }

    fn dump(&self) -> Dump {
        dump(|sql| self.ask(sql))
    }
}

impl Replica<'_> {
    #[track_caller]
    fn run(&self, sql: &str) {
        if let Err(error) = self.connection.execute(sql) {
            panic!("{sql}: {error}");
        }
    }

    #[track_caller]
    fn ask(&self, sql: &str) -> Vec<Vec<Value>> {
        rows(&self.connection, sql)
    }

    fn dump(&self) -> Dump {
        dump(|sql| self.ask(sql))
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, ReplicaError>>) -> Result<T, ReplicaError> {
        self.rig.service.runtime.block_on(work)
    }

    #[track_caller]
    fn sync(&self) -> Report {
        self.wait(self.engine.sync()).unwrap()
    }

    #[track_caller]
    fn pull(&self) -> Report {
        self.wait(self.engine.pull()).unwrap()
    }

    #[track_caller]
    fn push(&self) -> Report {
        self.wait(self.engine.push()).unwrap()
    }
}

/// Rows of a query.
#[track_caller]
fn rows(connection: &Arc<turso_core::Connection>, sql: &str) -> Vec<Vec<Value>> {
    let rows = connection.prepare(sql).and_then(|mut query| query.run_collect_rows());
    let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.iter().map(|row| row.iter().map(Value::from).collect()).collect()
}

/// All that is in a database but what is nobody's.
fn dump(ask: impl Fn(&str) -> Vec<Vec<Value>>) -> Dump {
    let text = |value: &Value| match serde_json::to_string(value).unwrap() {
        // Long ones would hide in a message what differs.
        long if long.len() > 200 => format!("{} bytes, {:08x}", long.len(), crc32c::crc32c(long.as_bytes())),
        short => short,
    };
    let mut dump = Dump::new();
    for made in ask("SELECT type, name, sql FROM sqlite_schema") {
        let [Value::Text(kind), Value::Text(name), sql] = &made[..] else { panic!("{made:?}") };
        if name.starts_with("sqlite_") || name.starts_with("turso_") || name.starts_with("__turso") {
            continue;
        }
        dump.insert(format!("{kind} {name}"), vec![text(sql)]);
        if kind == "table" {
            let mut rows: Vec<String> = ask(&format!("SELECT * FROM \"{}\"", name.replace('"', "\"\"")))
                .iter()
                .map(|row| row.iter().map(text).collect::<Vec<_>>().join(","))
                .collect();
            rows.sort();
            dump.insert(format!("rows of {name}"), rows);
        }
    }
    dump
}
