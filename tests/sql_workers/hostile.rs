//! Statements that take all memory, overflow a stack or never end, against one log, while another log takes SQL and a commitlog
//! is appended to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::support::SetOnDrop;
use super::support::log::{commits, header};
use super::support::service::Answer;
use super::{Rig, doubling};

/// A statement of the log `app` that ends its worker, or a refusal by name; and what has to be run before.
struct Hostile {
    name: &'static str,
    before: Vec<String>,
    sql: String,
}

fn hostile(name: &'static str, sql: String) -> Hostile {
    Hostile { name, before: Vec::new(), sql }
}

/// Tables in a `WITH`, each made of the one before by `next`.
fn tables(count: usize, next: impl Fn(String) -> String) -> String {
    let table = |n: usize| format!("c{n} AS ({})", next(format!("c{}", n - 1)));
    let tables: Vec<String> = (1..count).map(table).collect();
    format!("WITH c0 AS (SELECT 1 AS a), {} SELECT count(*) FROM c{}", tables.join(", "), count - 1)
}

/// Views `PREFIX0` to `PREFIXn`, each made of the one before by `next`.
fn views(prefix: &str, count: usize, next: impl Fn(String) -> String) -> Vec<String> {
    let first = format!("CREATE VIEW {prefix}0 AS SELECT 1 AS a");
    let view = |n: usize| format!("CREATE VIEW {prefix}{n} AS {}", next(format!("{prefix}{}", n - 1)));
    std::iter::once(first).chain((1..count).map(view)).collect()
}

fn statements() -> Vec<Hostile> {
    vec![
        hostile("sixteen tables that double", tables(16, |c| format!("SELECT a FROM {c} UNION ALL SELECT a FROM {c}"))),
        hostile("tables that grow eightfold", doubling()),
        hostile("joins of tables with themselves", tables(16, |c| format!("SELECT x.a FROM {c} AS x JOIN {c} AS y"))),
        hostile("1,500 tables in a row", tables(1500, |c| format!("SELECT a FROM {c}"))),
        Hostile {
            name: "40 views that double",
            before: views("d", 40, |v| format!("SELECT a FROM {v} UNION ALL SELECT a FROM {v}")),
            sql: "SELECT count(*) FROM d39".into(),
        },
        Hostile {
            name: "250 views in each other",
            before: views("n", 250, |v| format!("SELECT a FROM {v}")),
            sql: "SELECT count(*) FROM n249".into(),
        },
        hostile("a value that grows", "SELECT hex(zeroblob(900000000)) || hex(zeroblob(900000000))".into()),
        hostile(
            "numbers without an end",
            "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n) SELECT count(*) FROM n".into(),
        ),
    ]
}

/// Whether a refusal says that what it was asked for is in the log: its worker ended after the commit, before the answer.
fn says_that_it_is_in_the_log(refusal: &Answer) -> bool {
    refusal.text().contains("what it committed up to frame")
}

#[test]
fn statements_that_no_process_survives_end_no_statement_of_others_after_the_second_worker() {
    // Both logs begin on the same worker.
    let rig = Rig::with_statements_of(1, Duration::from_secs(3));
    assert_eq!(rig.service.put("/logs/commits", r#"{"format":"commitlog"}"#).status, 201);
    rig.run("other", &["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    let (stop, failed, served) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut aborted = 0;
    std::thread::scope(|scope| {
        // Also when this fails: the thread would go on for ever.
        let stopping = SetOnDrop(&stop);
        let innocent = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            let mut stored: i64 = 0;
            while !stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                let answer = rig.try_run("other", &["INSERT INTO t DEFAULT VALUES"]);
                longest = longest.max(since.elapsed());
                served.fetch_add(1, Ordering::Relaxed);
                if answer.status != 200 {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                stored += i64::from(answer.status == 200 || says_that_it_is_in_the_log(&answer));
                let durable = rig.service.status("commits")["durable"].as_u64().unwrap();
                let stream = [header(), commits(durable, 1, 9, 0)].concat();
                assert_eq!(rig.service.append("commits", "", &stream).status, 200);
            }
            (stored, longest)
        });
        let mut failures = Vec::new();
        for Hostile { name, before, sql } in statements() {
            for chunk in before.chunks(50) {
                let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
                let _refused_while_paused = rig.try_run("app", &chunk);
            }
            for _ in 0..2 {
                let answer = rig.try_run("app", &[&sql]);
                aborted += usize::from(answer.status == 500);
                println!("{name}: {} {}", answer.status, answer.text().chars().take(240).collect::<String>());
                failures.push(failed.load(Ordering::Relaxed));
            }
        }
        drop(stopping);
        let (stored, longest) = innocent.join().unwrap();
        println!("{aborted} aborted; others: {served:?} statements, {failed:?} failed, longest {longest:?}");
        assert_eq!(rig.count("other"), stored);
        // At most the two workers that it shared with the hostile log failed it.
        assert!(failures.last().is_some_and(|failed| *failed <= 2), "{failures:?}");
    });
    assert!(aborted > 2);
}

#[test]
fn a_delete_that_never_ends_over_a_broken_base_is_ended_with_its_worker() {
    let rig = Rig::with_statements_of(1, Duration::from_secs(2));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let database = Connection::open(&path).unwrap();
    database.execute_batch("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)").unwrap();
    database
        .execute_batch(
            "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n WHERE a < 2000)
             INSERT INTO t SELECT a, hex(zeroblob(40)) FROM n; PRAGMA journal_mode = WAL",
        )
        .unwrap();
    drop(database);
    let mut bytes = std::fs::read(&path).unwrap();
    // Page 2 is the root of the table, an interior page (5) over others; its second cell gets a child with the number 0.
    let root = 4096;
    assert_eq!(bytes[root], 5);
    let cell = root + usize::from(u16::from_be_bytes([bytes[root + 14], bytes[root + 15]]));
    bytes[cell..cell + 4].fill(0);
    let created = rig.service.put("/logs/broken", r#"{"format":"wal"}"#);
    assert_eq!(created.status, 201);
    let based = rig.service.call("PUT", "/logs/broken/generations/1", "", &bytes);
    assert!(based.status < 300, "{} {}", based.status, based.text());
    let since = Instant::now();
    // The engine does not hear of the interrupt.
    let answer = rig.try_run("broken", &["DELETE FROM t"]);
    assert_eq!(answer.refusal(), (500, "sql-aborted".into()), "{}", answer.text());
    assert!(answer.text().contains("a statement on log broken did not end within the time"), "{}", answer.text());
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    rig.run("other", &["CREATE TABLE t (a)"]);
}
