//! Of a request with a query the pages come that the query touches, in the state that it read, wherever SQL runs.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use logmirror::http::Timeouts;
use logmirror::repo::{FsRepo, MemRepo};
use logmirror::sync::turso::proto::PullUpdatesRequest;
use logmirror::worker::{WorkerProgram, WorkerSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::service::{Answer, Service, Setup};
use super::support::sqlite::{connect, rows};
use super::support::{SetOnDrop, assert_bytes};
use super::{PAGE, Pulled, Rig, between, real, selector, short};

const ONE_ROW: &str = "SELECT * FROM keyed WHERE key = 1000";

fn query(sql: &str) -> PullUpdatesRequest {
    PullUpdatesRequest { server_query_selector: sql.into(), ..PullUpdatesRequest::default() }
}

/// Rows of a kilobyte, so that most of the database is not needed for one.
fn fill(rig: &Rig) {
    rig.run(&["CREATE TABLE keyed(key INTEGER PRIMARY KEY, value BLOB)"]);
    for first in (1..2000).step_by(100) {
        let range = format!("generate_series({first}, {})", first + 99);
        rig.run(&[&format!("INSERT INTO keyed SELECT value, randomblob(1024) FROM {range}")]);
    }
}

impl Rig {
    /// A service whose SQL runs in processes of its own.
    fn in_workers() -> (Rig, TempDir) {
        let data = tempfile::tempdir().unwrap();
        let repo = Arc::new(FsRepo::open(data.path()).unwrap());
        let program = WorkerProgram { path: env!("CARGO_BIN_EXE_logmirror").into(), args: vec!["sql-worker".into()] };
        let service = Service::start_as(repo, Setup::default(), |server| {
            server.with_sql_workers(WorkerSettings { count: NonZeroUsize::MIN, ..WorkerSettings::of(program) })
        });
        assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
        (Rig { service }, data)
    }

    #[track_caller]
    fn run(&self, sql: &[&str]) {
        let requests: Vec<_> = sql.iter().map(|sql| json!({"type": "execute", "stmt": {"sql": sql}})).collect();
        let body = json!({"requests": requests}).to_string();
        let answer =
            self.service.call("POST", "/logs/app/v2/pipeline", "content-type: application/json\r\n", body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        for (result, sql) in answer.json()["results"].as_array().unwrap().iter().zip(sql) {
            assert_eq!(result["type"], "ok", "{sql}: {result}");
        }
    }

    #[track_caller]
    fn refusal(&self, request: &PullUpdatesRequest) -> String {
        let answer: Answer = self.ask(request);
        assert_eq!(answer.status, 400, "{}", answer.text());
        answer.json()["message"].as_str().unwrap().to_owned()
    }

    /// Fails unless what was pulled is of the state that it names, and all that SQLite needs of it for a query. Returns the rows.
    #[track_caller]
    fn checked(&self, pulled: &Pulled, sql: &str) -> Vec<Vec<Value>> {
        let whole = self.between("", &pulled.revision).applied(&[]);
        assert_eq!(pulled.size as usize * PAGE, whole.len());
        for (page, content) in &pulled.pages {
            assert_bytes(content, &whole[*page as usize * PAGE..][..PAGE], format!("page {page}"));
        }
        let dir = tempfile::tempdir().unwrap();
        let found = [("part.db", pulled.applied(&[])), ("whole.db", whole)].map(|(name, bytes)| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            rows(&connect(&path), sql).unwrap()
        });
        assert_eq!(found[0], found[1], "{sql}");
        found[0].clone()
    }
}

#[track_caller]
fn brings_what_it_touches(rig: &Rig) {
    fill(rig);
    let pulled = rig.pull(&query(ONE_ROW));
    assert_eq!(pulled.revision, rig.bootstrap().revision);
    assert!(pulled.size > 500 && pulled.pages.len() <= 5, "{} of {}", pulled.pages.len(), pulled.size);
    assert_eq!(rig.checked(&pulled, ONE_ROW).len(), 1);
    let all = rig.pull(&query("SELECT sum(length(value)) FROM keyed"));
    assert!(all.pages.len() as u64 > all.size * 9 / 10, "{} of {}", all.pages.len(), all.size);
    rig.checked(&all, "SELECT sum(length(value)) FROM keyed");
    // Asked a second time, nothing is in a cache that hides it.
    assert_eq!(rig.pull(&query(ONE_ROW)), pulled);
}

#[test]
fn a_query_brings_the_pages_that_it_touches_and_no_more() {
    brings_what_it_touches(&Rig::new());
}

#[test]
fn a_query_in_a_worker_brings_the_pages_that_it_touches_and_no_more() {
    let (rig, _data) = Rig::in_workers();
    brings_what_it_touches(&rig);
}

#[test]
fn the_whole_schema_is_brought_also_where_it_takes_many_pages() {
    let rig = Rig::new();
    let long = format!("CREATE TABLE long(a TEXT DEFAULT '{}')", "x".repeat(20_000));
    let many: Vec<String> = (0..200).map(|n| format!("CREATE TABLE t{n}(a INTEGER PRIMARY KEY, b TEXT)")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    fill(&rig);
    rig.run(&[&long]);
    many.chunks(50).for_each(|some| rig.run(some));
    rig.run(&["CREATE INDEX i ON keyed(length(value))", "ANALYZE"]);
    let pulled = rig.pull(&query("SELECT 1"));
    assert!(pulled.pages.len() < 40, "{:?}", pulled.ids());
    let schema = "SELECT count(*), sum(length(sql)) FROM sqlite_schema";
    assert_eq!(rig.checked(&pulled, schema).len(), 1);
    assert!(!rig.checked(&pulled, "SELECT * FROM sqlite_stat1").is_empty());
}

#[test]
fn pages_of_a_base_and_of_frames_that_sqlite_wrote_are_found() {
    let log = real();
    let rig = Rig::holding(&log);
    let newest = rig.bootstrap();
    for sql in ["SELECT a FROM t WHERE id = 3", "SELECT id FROM t WHERE a > '0.5'", "SELECT sum(length(b)) FROM t"] {
        let pulled = rig.pull(&query(sql));
        assert!(pulled.pages.len() < newest.pages.len(), "{sql}");
        rig.checked(&pulled, sql);
    }
    rig.roll();
    rig.checked(&rig.pull(&query("SELECT a FROM t WHERE id = 3")), "SELECT a FROM t WHERE id = 3");
}

#[test]
fn an_answer_is_of_the_state_that_the_query_read_though_others_write() {
    let rig = Rig::new();
    rig.run(&["CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)", "INSERT INTO t VALUES (1, '')"]);
    let (sql, done) = ("SELECT a, b FROM t", AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Also when this fails: the thread would go on for ever.
        let _done = SetOnDrop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                rig.run(&[
                    "INSERT INTO t(b) VALUES (hex(randomblob(700)))",
                    "UPDATE t SET b = b || 'x' WHERE a % 3 = 0",
                    "DELETE FROM t WHERE a < (SELECT max(a) FROM t) - 50",
                ]);
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 20 {
            let pulled = rig.pull(&query(sql));
            rig.checked(&pulled, sql);
            if !seen.contains(&pulled.revision) {
                seen.push(pulled.revision);
            }
        }
    });
}

#[test]
fn what_is_no_query_or_fails_is_refused_in_the_words_of_the_engine() {
    let rig = Rig::new();
    rig.run(&["CREATE TABLE t(a)", "CREATE SEQUENCE s", "CREATE VIEW hidden AS SELECT nextval('s') AS n"]);
    let before = rig.bootstrap();
    for (sql, wanted) in [
        ("INSERT INTO t VALUES (1)", "may only read"),
        ("DELETE FROM t", "may only read"),
        ("CREATE TABLE u(a)", "may only read"),
        ("PRAGMA user_version", "may only read"),
        ("PRAGMA user_version = 7", "may only read"),
        ("EXPLAIN SELECT * FROM t", "may only read"),
        ("BEGIN", "may only read"),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "may only read"),
        ("SELECT nextval('s')", "may only read"),
        ("SELECT n FROM hidden", "may only read"),
        ("SELECT 1; DELETE FROM t", "more than one statement"),
        (" -- nothing", "no statement"),
        ("SELECT * FROM nix", "no such table: nix"),
        ("SELECT nix FROM t", "nix"),
        ("SELEKT 1", "SELEKT"),
        ("VACUUM", "not allowed here"),
    ] {
        let refusal = rig.refusal(&query(sql));
        assert!(refusal.contains("query selector") && refusal.contains(wanted), "{sql}: {refusal}");
    }
    assert_eq!(rig.bootstrap(), before);
}

#[test]
fn a_query_ends_within_the_time_that_a_statement_may_take() {
    let setup = Setup::default();
    let timeouts = Timeouts { statement: Duration::from_millis(100), ..setup.timeouts };
    let service = Service::start_with(Arc::new(MemRepo::default()), Setup { timeouts, ..setup });
    assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let refusal = Rig { service }.refusal(&query(endless));
    assert!(refusal.contains("longer than a statement may"), "{refusal}");
}

#[test]
fn a_query_with_parameters_is_refused_for_a_pull_has_no_arguments() {
    let rig = Rig::new();
    rig.run(&["CREATE TABLE t(a)"]);
    for sql in ["SELECT * FROM t WHERE a = ?", "SELECT * FROM t WHERE a = :a", "SELECT * FROM t LIMIT ?2"] {
        let refusal = rig.refusal(&query(sql));
        assert!(refusal.contains("has parameters"), "{sql}: {refusal}");
    }
}

#[test]
fn a_query_narrows_what_else_is_asked_for() {
    let rig = Rig::new();
    fill(&rig);
    let first = rig.pull(&query(ONE_ROW));
    let of =
        |sql: &str, from: &str, to: &str| PullUpdatesRequest { server_query_selector: sql.into(), ..between(from, to) };
    // The newest revision may be named, and no other one.
    assert_eq!(rig.pull(&of(ONE_ROW, "", &first.revision)), first);
    let pages = (1..3).collect();
    let both =
        PullUpdatesRequest { server_pages_selector: selector(&pages), ..query("SELECT sum(length(value)) FROM keyed") };
    assert_eq!(rig.pull(&both).ids(), [1, 2]);
    let none = PullUpdatesRequest { server_pages_selector: selector(&[9_999].into_iter().collect()), ..query(ONE_ROW) };
    assert!(rig.pull(&none).pages.is_empty());
    let junk = PullUpdatesRequest { server_pages_selector: b"junk".as_slice().into(), ..query(ONE_ROW) };
    assert!(rig.refusal(&junk).contains("roaring bitmap"));
    rig.run(&["UPDATE keyed SET value = zeroblob(1024) WHERE key IN (1000, 2000)"]);
    let refusal = rig.refusal(&of(ONE_ROW, "", &first.revision));
    assert!(refusal.contains("newest revision only") && refusal.contains(&first.revision), "{refusal}");
    let (newer, since) = (rig.pull(&query(ONE_ROW)), rig.pull(&of(ONE_ROW, &first.revision, "")));
    let both_changed = rig.between(&first.revision, "").ids();
    assert_eq!(since.revision, newer.revision);
    assert!(since.pages.len() < newer.pages.len() && since.pages.len() < both_changed.len(), "{:?}", since.ids());
    assert!(since.ids().iter().all(|page| newer.ids().contains(page) && both_changed.contains(page)));
}

#[test]
fn of_a_database_that_was_never_written_the_first_page_is_brought() {
    let rig = Rig::new();
    let pulled = rig.pull(&query("SELECT 1"));
    assert_eq!(pulled.ids(), [0]);
    assert_eq!(pulled, rig.bootstrap());
    assert!(rig.refusal(&query("SELECT * FROM nix")).contains("no such table: nix"));
}

#[test]
fn where_no_sql_can_be_run_a_query_is_refused_with_the_reason_and_all_else_is_served() {
    let rig = Rig::holding(&short());
    let refused = rig.ask(&query("SELECT 1"));
    assert_eq!(refused.refusal(), (409, "format".to_owned()));
    assert!(refused.text().contains("SQL cannot be run on log"), "{}", refused.text());
    assert_eq!(rig.bootstrap().pages.len(), 4);
}
