//! What SQL over HTTP promises, against a service in this process.
#![cfg(feature = "turso")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod batches;
mod batons;
mod clients;
mod cursors;
mod failures;
mod foreign_keys;
mod hostile;
mod prepared;
mod pushes;
mod refusals;
mod requests;
mod rot;
mod schema;
mod streams;
mod transactions;
mod unusual;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use logmirror::http::Timeouts;
use logmirror::repo::{FsRepo, MemRepo, Repo};
use logmirror::worker::{WorkerProgram, WorkerSettings};
use serde_json::{Value, json};
use support::service::{Answer, PATIENCE, Service, Setup};
use tempfile::TempDir;

/// A service with the log `app`.
struct Rig {
    service: Service,
    _data: Option<TempDir>,
}

/// Whether SQL is to run in processes of its own: as the name of this test program says.
fn is_in_workers() -> bool {
    env!("CARGO_CRATE_NAME").ends_with("_in_workers")
}

/// A service whose SQL runs where this test program is to test it.
fn start(setup: Setup) -> (Service, Option<TempDir>) {
    start_on(setup, |disk| disk)
}

/// The same, whose disk does what `adjust` makes of it.
fn start_on(setup: Setup, adjust: impl FnOnce(Arc<dyn Repo>) -> Arc<dyn Repo>) -> (Service, Option<TempDir>) {
    if !is_in_workers() {
        return (Service::start_with(adjust(Arc::new(MemRepo::default())), setup), None);
    }
    let data = tempfile::tempdir().unwrap();
    let repo = adjust(Arc::new(FsRepo::open(data.path()).unwrap()));
    let program = WorkerProgram { path: env!("CARGO_BIN_EXE_logmirror").into(), args: vec!["sql-worker".into()] };
    let service = Service::start_as(repo, setup, |server| {
        server.with_sql_workers(WorkerSettings { count: NonZeroUsize::MIN, ..WorkerSettings::of(program) })
    });
    (service, Some(data))
}

/// A stream, with the baton for its next call.
struct Stream<'a> {
    rig: &'a Rig,
    baton: Value,
}

impl Rig {
    fn new() -> Rig {
        Rig::with_idle(PATIENCE)
    }

    /// Streams are kept for `idle` between calls.
    fn with_idle(idle: Duration) -> Rig {
        Rig::with_timeouts(|timeouts| Timeouts { stream: idle, ..timeouts })
    }

    fn with_timeouts(adjust: impl FnOnce(Timeouts) -> Timeouts) -> Rig {
        let setup = Setup::default();
        Rig::of(start(Setup { timeouts: adjust(setup.timeouts), ..setup }))
    }

    /// On this service, with the log.
    fn of((service, _data): (Service, Option<TempDir>)) -> Rig {
        let answer = service.put("/logs/app", r#"{"format":"wal"}"#);
        assert_eq!(answer.status, 201, "{}", answer.text());
        Rig { service, _data }
    }

    fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.service.call("POST", &format!("/logs/app/{path}"), "content-type: application/json\r\n", body)
    }

    /// A pipeline as it is answered.
    fn try_call(&self, baton: &Value, requests: &Value) -> Answer {
        self.post("v3/pipeline", json!({"baton": baton, "requests": requests}).to_string().as_bytes())
    }

    #[track_caller]
    fn call(&self, baton: &Value, requests: &Value) -> (Value, Vec<Value>) {
        let answer = self.try_call(baton, requests);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let results = json["results"].as_array().unwrap().clone();
        assert_eq!(results.len(), requests.as_array().unwrap().len());
        assert_eq!(json["base_url"], Value::Null);
        (json["baton"].clone(), results)
    }

    /// The results of a call on a stream of its own, which it leaves open.
    #[track_caller]
    fn results(&self, requests: &Value) -> Vec<Value> {
        self.call(&Value::Null, requests).1
    }

    /// The result of one statement.
    #[track_caller]
    fn run(&self, sql: &str) -> Value {
        result(&self.results(&json!([execute(sql)]))[0])
    }

    /// The rows of one statement.
    #[track_caller]
    fn rows(&self, sql: &str) -> Value {
        plain(&self.run(sql)["rows"])
    }

    /// Why one statement fails.
    #[track_caller]
    fn error(&self, sql: &str) -> String {
        error(&self.results(&json!([execute(sql)]))[0])
    }

    /// The result of a batch.
    #[track_caller]
    fn batch(&self, steps: &Value) -> Value {
        let batch = json!([{"type": "batch", "batch": {"steps": steps, "replication_index": null}}]);
        result(&self.results(&batch)[0])
    }

    fn stream(&self) -> Stream<'_> {
        Stream { rig: self, baton: Value::Null }
    }

    /// The number of durable frames.
    fn durable(&self) -> u64 {
        self.service.status("app")["durable"].as_u64().unwrap() - 1
    }
}

impl Stream<'_> {
    #[track_caller]
    fn call(&mut self, requests: &Value) -> Vec<Value> {
        let (baton, results) = self.rig.call(&self.baton, requests);
        assert_ne!(baton, self.baton, "a baton is good for one call");
        self.baton = baton;
        results
    }

    #[track_caller]
    fn run(&mut self, sql: &str) -> Value {
        result(&self.call(&json!([execute(sql)]))[0])
    }

    #[track_caller]
    fn rows(&mut self, sql: &str) -> Value {
        plain(&self.run(sql)["rows"])
    }
}

fn execute(sql: &str) -> Value {
    json!({"type": "execute", "stmt": {"sql": sql}})
}

fn execute_with(sql: &str, args: &Value) -> Value {
    json!({"type": "execute", "stmt": {"sql": sql, "args": args}})
}

#[track_caller]
fn result(outcome: &Value) -> Value {
    assert_eq!(outcome["type"], "ok", "{outcome}");
    outcome["response"]["result"].clone()
}

#[track_caller]
fn error(outcome: &Value) -> String {
    assert_eq!(outcome["type"], "error", "{outcome}");
    assert!(outcome["error"]["code"].is_string(), "{outcome}");
    outcome["error"]["message"].as_str().unwrap().to_owned()
}

/// Rows without the types of their values.
fn plain(rows: &Value) -> Value {
    let value = |value: &Value| value.get("value").or(value.get("base64")).cloned().unwrap_or_default();
    let row = |row: &Value| row.as_array().unwrap().iter().map(value).collect::<Value>();
    rows.as_array().unwrap().iter().map(row).collect()
}
