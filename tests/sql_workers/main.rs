//! SQL in processes of its own: a statement that ends its process ends nothing else.
#![cfg(feature = "turso")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod hostile;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use logmirror::http::Timeouts;
use logmirror::repo::FsRepo;
use logmirror::sync::turso::proto::PullUpdatesRequest;
use logmirror::worker::{WorkerProgram, WorkerSettings};
use prost::Message;
use serde_json::{Value, json};
use support::service::{Answer, Service, Setup};
use tempfile::TempDir;

/// Each of these takes much memory, or ends processes: one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Of a worker: with more it takes longer until it is used up.
const MEMORY: u64 = 768 << 20;

struct Rig {
    data: TempDir,
    service: Service,
    _alone: MutexGuard<'static, ()>,
}

fn program() -> WorkerProgram {
    WorkerProgram { path: env!("CARGO_BIN_EXE_logmirror").into(), args: vec!["sql-worker".into()] }
}

impl Rig {
    fn new(workers: usize) -> Rig {
        Rig::with_statements_of(workers, Duration::from_secs(60))
    }

    /// Statements may run for `statement`.
    fn with_statements_of(workers: usize, statement: Duration) -> Rig {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let data = tempfile::tempdir().unwrap();
        let setup = Setup::default();
        let setup =
            Setup { timeouts: Timeouts { stream: Duration::from_secs(60), statement, ..setup.timeouts }, ..setup };
        let count = NonZeroUsize::new(workers).unwrap();
        let repo = Arc::new(FsRepo::open(data.path()).unwrap());
        let settings = WorkerSettings { count, memory_bytes_max: MEMORY, ..WorkerSettings::of(program()) };
        let service = Service::start_as(repo, setup, |server| server.with_sql_workers(settings));
        for log in ["app", "other"] {
            assert_eq!(service.put(&format!("/logs/{log}"), r#"{"format":"wal"}"#).status, 201);
        }
        Rig { data, service, _alone }
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.service.call("POST", path, "content-type: application/json\r\n", body.to_string().as_bytes())
    }

    fn try_run(&self, log: &str, sql: &[&str]) -> Answer {
        let requests: Vec<_> = sql.iter().map(|sql| json!({"type": "execute", "stmt": {"sql": sql}})).collect();
        self.post(&format!("/logs/{log}/v2/pipeline"), &json!({"requests": requests}))
    }

    #[track_caller]
    fn run(&self, log: &str, sql: &[&str]) -> Vec<Value> {
        let answer = self.try_run(log, sql);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let results = answer.json()["results"].as_array().unwrap().clone();
        for result in &results {
            assert_eq!(result["type"], "ok", "{result}");
        }
        results.iter().map(|result| result["response"]["result"].clone()).collect()
    }

    #[track_caller]
    fn count(&self, log: &str) -> i64 {
        let rows = self.run(log, &["SELECT count(*) FROM t"])[0]["rows"].clone();
        rows[0][0]["value"].as_str().unwrap().parse().unwrap()
    }
}

/// One row doubled, again and again: sixteen tables, each the union of the one before with itself.
fn doubling() -> String {
    let tables: Vec<String> = (1..=16)
        .map(|n| {
            let before = (0..8).map(|_| format!("SELECT * FROM c{}", n - 1)).collect::<Vec<_>>().join(" UNION ALL ");
            format!("c{n} AS ({before})")
        })
        .collect();
    format!("WITH c0 AS (SELECT 1), {} SELECT count(*) FROM c16", tables.join(", "))
}

#[test]
fn what_workers_commit_is_in_the_log_and_is_read_by_all() {
    let rig = Rig::new(2);
    rig.run("app", &["CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)"]);
    for n in 0..20 {
        rig.run("app", &[&format!("INSERT INTO t (b) VALUES ('row {n}')")]);
        assert_eq!(rig.count("app"), n + 1);
    }
    let durable = rig.service.status("app")["durable"].as_u64().unwrap();
    assert!(durable > 20, "{durable}");
    let cursor = rig.post(
        "/logs/app/v3/cursor",
        &json!({"baton": null, "batch": {"steps": [{"stmt": {"sql": "SELECT a, b FROM t"}}]}}),
    );
    assert_eq!(cursor.status, 200, "{}", cursor.text());
    assert_eq!(cursor.text().matches("\"type\":\"row\"").count(), 20, "{}", cursor.text());
    // The same is read out of the log by one without workers.
    let Rig { data, service, _alone } = rig;
    service.stop();
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    let rig = Rig { data, service, _alone };
    assert_eq!(rig.count("app"), 20);
}

#[test]
fn a_stream_goes_on_in_its_worker_and_what_it_leaves_open_is_rolled_back_with_that() {
    let rig = Rig::new(1);
    rig.run("app", &["CREATE TABLE t (a)"]);
    let begin = json!({"baton": null, "requests": [
        {"type": "execute", "stmt": {"sql": "BEGIN"}}, {"type": "execute", "stmt": {"sql": "INSERT INTO t VALUES (1)"}}]});
    let begun = rig.post("/logs/app/v3/pipeline", &begin).json();
    let commit = json!({"baton": begun["baton"], "requests": [{"type": "execute", "stmt": {"sql": "COMMIT"}}]});
    assert_eq!(rig.post("/logs/app/v3/pipeline", &commit).json()["results"][0]["type"], "ok");
    assert_eq!(rig.count("app"), 1);
    rig.post("/logs/app/v3/pipeline", &begin);
    let aborted = rig.try_run("other", &[&doubling()]);
    assert_eq!(aborted.refusal(), (500, "sql-aborted".into()), "{}", aborted.text());
    assert!(aborted.text().contains("nothing of this request is in the log"), "{}", aborted.text());
    assert_eq!(rig.count("app"), 1);
    rig.run("app", &["INSERT INTO t VALUES (2)"]);
    assert_eq!(rig.count("app"), 2);
}

#[test]
fn a_statement_that_takes_all_memory_ends_its_worker_and_nothing_else() {
    let rig = Rig::new(1);
    rig.run("other", &["CREATE TABLE t (a)"]);
    let hostile = doubling();
    let mut paused = 0;
    for round in 0..5 {
        let answer = rig.try_run("app", &[&hostile]);
        assert_eq!(answer.refusal(), (500, "sql-aborted".into()), "{}", answer.text());
        assert!(answer.text().contains("used up the memory that a worker may have"), "{}", answer.text());
        paused += usize::from(answer.text().contains("goes on in"));
        rig.run("other", &[&format!("INSERT INTO t VALUES ({round})")]);
    }
    assert_eq!(rig.count("other"), 5);
    assert!(paused > 0);
}

#[test]
fn what_a_pipeline_ran_before_its_worker_ended_is_not_in_the_log_and_the_error_says_so() {
    let rig = Rig::new(1);
    rig.run("app", &["CREATE TABLE t (a)"]);
    let hostile = doubling();
    let execute = |sql: &str| json!({"type": "execute", "stmt": {"sql": sql}});
    // A pipeline commits to the log at its end.
    let requests = [execute("INSERT INTO t VALUES (1)"), execute("INSERT INTO t VALUES (2)"), execute(&hostile)];
    let answer = rig.post("/logs/app/v2/pipeline", &json!({"requests": requests}));
    assert_eq!(answer.refusal(), (500, "sql-aborted".into()), "{}", answer.text());
    assert!(answer.text().contains("nothing of this request is in the log"), "{}", answer.text());
    assert_eq!(rig.count("app"), 0);
}

/// Ends the workers of the services of this process.
fn kill_workers() {
    let me = std::process::id().to_string();
    let workers: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_string_lossy().parse().ok())
        .filter(|pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().unwrap_or_default().split_whitespace().nth(1).unwrap_or_default();
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            parent == me && line.contains("sql-worker")
        })
        .collect();
    assert!(!workers.is_empty());
    for pid in workers {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // One of the test before may just have ended.
        let _has_ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[test]
fn a_baton_stays_good_when_its_process_ends_if_nothing_is_lost_and_says_so_if_something_is() {
    let rig = Rig::new(1);
    rig.run("app", &["CREATE TABLE t (a)"]);
    let execute = |sql: &str| json!({"type": "execute", "stmt": {"sql": sql}});
    let call = |rig: &Rig, baton: &Value, requests: Value| {
        rig.post("/logs/app/v3/pipeline", &json!({"baton": baton, "requests": requests}))
    };
    let begin = |rig: &Rig, requests: Value| {
        let answer = call(rig, &Value::Null, requests);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["baton"].clone()
    };
    let streams = |rig: &Rig| {
        let batch = json!({"baton": null, "batch": {"steps": [{"stmt": {"sql": "SELECT 1"}}]}});
        let cursor = rig.post("/logs/app/v3/cursor", &batch).text();
        let cursor: Value = serde_json::from_str(cursor.lines().next().unwrap()).unwrap();
        let idle = [begin(rig, json!([execute("SELECT 1")])), cursor["baton"].clone()];
        let counted = begin(rig, json!([execute("INSERT INTO t VALUES (1), (2)")]));
        let stored = begin(rig, json!([{"type": "store_sql", "sql_id": 1, "sql": "SELECT 1"}]));
        let open = begin(rig, json!([execute("BEGIN"), execute("INSERT INTO t VALUES (3)")]));
        (idle, counted, [stored, open])
    };
    let check = |rig: &Rig, (idle, counted, lost): ([Value; 2], Value, [Value; 2])| {
        let refused = |baton: &Value, requests: Value, says: &str| {
            let answer = call(rig, baton, requests);
            assert_eq!(answer.refusal(), (404, "not-found".into()), "{}", answer.text());
            assert!(answer.text().contains(says), "{}", answer.text());
        };
        for baton in &idle {
            let answer = call(rig, baton, json!([execute("INSERT INTO t VALUES (4)")]));
            assert_eq!(answer.status, 200, "{}", answer.text());
            // It is good for one call still.
            refused(baton, json!([execute("INSERT INTO t VALUES (4)")]), "used before");
        }
        refused(&counted, json!([execute("SELECT changes()")]), "last_insert_rowid");
        assert_eq!(call(rig, &counted, json!([execute("SELECT 1")])).status, 200);
        for baton in &lost {
            refused(baton, json!([execute("COMMIT")]), "the process that ran its stream has ended");
        }
    };
    let before = streams(&rig);
    kill_workers();
    let since = Instant::now();
    while rig.try_run("app", &["SELECT 1"]).status != 200 {
        assert!(since.elapsed() < Duration::from_secs(20));
    }
    check(&rig, before);
    assert_eq!(rig.count("app"), 4);
    // A service that was started again may have no workers.
    let before = streams(&rig);
    let Rig { data, service, _alone } = rig;
    service.stop();
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    let rig = Rig { data, service, _alone };
    check(&rig, before);
    assert_eq!(rig.count("app"), 8);
}

#[test]
fn a_worker_that_is_killed_is_started_again() {
    let rig = Rig::new(1);
    rig.run("app", &["CREATE TABLE t (a)"]);
    for round in 1..=3 {
        kill_workers();
        let since = Instant::now();
        // The service may not have heard of it yet.
        while rig.try_run("app", &[&format!("INSERT INTO t VALUES ({round})")]).status != 200 {
            assert!(since.elapsed() < Duration::from_secs(20));
        }
    }
    assert_eq!(rig.count("app"), 3);
}

#[test]
fn a_worker_that_no_service_started_says_what_starts_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let worker = std::process::Command::new(env!("CARGO_BIN_EXE_logmirror"))
        .arg("sql-worker")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&worker.stderr).into_owned();
    assert_eq!(worker.status.code(), Some(2), "{errors}");
    assert!(errors.contains("not a connection to a service") && errors.contains("serve --sql-workers"), "{errors}");
}

#[test]
fn the_query_of_a_pull_ends_its_worker_and_not_the_service() {
    let rig = Rig::new(1);
    rig.run("app", &["CREATE TABLE t (a INTEGER PRIMARY KEY)", "INSERT INTO t VALUES (7)"]);
    let pull = |sql: String| {
        let request = PullUpdatesRequest { server_query_selector: sql, ..PullUpdatesRequest::default() };
        rig.service.call("POST", "/logs/app/pull-updates", "", &request.encode_to_vec())
    };
    let answer = pull(doubling());
    assert_eq!((answer.status, answer.json()["error"].as_str()), (500, Some("sql-aborted")), "{}", answer.text());
    assert_eq!(rig.count("app"), 1);
    let answer = pull("SELECT * FROM t".into());
    assert_eq!(answer.status, 200, "{}", answer.text());
}
