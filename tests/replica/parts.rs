//! Pushes that are larger than the remote's transactions: they come to their end, whatever comes between two parts, and each
//! change is made once.

use std::time::Duration;

use logmirror::replica::{Doing, Options, ReplicaError, Report, SyncEngine, Value};
use logmirror::sync::Remote;

use super::support::sqlite::Sqlite;
use super::wire::{Left, Lost, Wire};
use super::{Replica, Rig};

/// A service whose transactions have at most so many bytes of frames.
const SMALL: u64 = 256 << 10;

#[track_caller]
fn number(rows: &[Vec<Value>]) -> i64 {
    match rows {
        [row] if let [Value::Integer(number)] = row[..] => number,
        rows => panic!("{rows:?}"),
    }
}

/// Rows with and without a key, which no two replicas share, each with so many bytes that nothing makes smaller.
fn insert(replica: &Replica<'_>, from: i64, rows: i64, bytes: i64) {
    replica.run("BEGIN");
    for row in from..from + rows {
        replica.run(&format!("INSERT INTO k VALUES ({row}, randomblob({bytes}))"));
        replica.run(&format!("INSERT INTO n VALUES ({row}, randomblob({bytes}))"));
    }
    replica.run("COMMIT");
}

const SCHEMA: [&str; 5] = [
    "CREATE TABLE k(id INTEGER PRIMARY KEY, v)",
    "CREATE TABLE n(x, v)",
    "CREATE TABLE seen(id)",
    "CREATE INDEX k_v ON n(x)",
    "CREATE TRIGGER noted AFTER INSERT ON k BEGIN INSERT INTO seen VALUES (new.id); END",
];

const COUNTS: &str = "SELECT (SELECT count(*) FROM n) * 1000 + (SELECT count(*) FROM k)";

fn all_once(rig: &Rig, replica: &Replica<'_>, context: &str) {
    for rows in [
        rig.ask("SELECT count(*) - count(DISTINCT x) FROM n"),
        replica.ask("SELECT count(*) - count(DISTINCT x) FROM n"),
    ] {
        assert_eq!(number(&rows), 0, "{context}");
    }
    assert_eq!(replica.dump(), rig.dump(), "{context}");
}

#[test]
fn a_push_larger_than_a_transaction_of_the_remote_comes_home_once() {
    for there_before in [false, true] {
        let rig = Rig::with_commits_of(SMALL);
        if there_before {
            SCHEMA.iter().for_each(|sql| drop(rig.ask(sql)));
        }
        let one = rig.open("one");
        if !there_before {
            SCHEMA.iter().for_each(|sql| one.run(sql));
        }
        insert(&one, 0, 100, 3000);
        let report = one.sync();
        assert_eq!(report.conflicts, []);
        all_once(&rig, &one, "inserted");
        assert_eq!(number(&rig.ask("SELECT count(*) FROM k")), 100);
        assert_eq!(number(&rig.ask("SELECT count(*) FROM seen")), 100);
        // Large rows that are there change, and many go.
        one.run("UPDATE k SET v = randomblob(3000)");
        one.run("DELETE FROM n WHERE x % 10 > 0");
        assert_eq!(one.sync().conflicts, []);
        all_once(&rig, &one, "updated");
        assert_eq!(number(&rig.ask("SELECT count(*) FROM n")), 10);
        one.run("ALTER TABLE k ADD COLUMN more DEFAULT 7");
        one.run("UPDATE k SET more = id, v = randomblob(2900)");
        one.run("CREATE INDEX k_more ON k(more)");
        one.run("DROP TRIGGER noted");
        one.run("CREATE TRIGGER noted AFTER UPDATE ON k BEGIN INSERT INTO seen VALUES (-new.id); END");
        assert_eq!(one.push().conflicts, []);
        assert_eq!(one.sync().conflicts, []);
        all_once(&rig, &one, "altered");
        assert_eq!(number(&rig.ask("SELECT count(*) FROM seen WHERE id < 0")), 0);
        assert_eq!(one.sync().requests, 1);
        assert_eq!(rig.open("two").dump(), rig.dump());
    }
}

#[test]
fn many_small_changes_on_as_many_pages_come_home() {
    let rig = Rig::with_commits_of(SMALL);
    let one = rig.open("one");
    one.run("CREATE TABLE k(id INTEGER PRIMARY KEY, v, c)");
    for part in 0..4 {
        one.run(&format!(
            "WITH RECURSIVE i(n) AS (SELECT {} UNION ALL SELECT n + 1 FROM i WHERE n < {}) INSERT INTO k SELECT n, randomblob(3000), 0 FROM i",
            part * 50,
            part * 50 + 49
        ));
        one.sync();
    }
    assert_eq!(number(&rig.ask("SELECT count(*) FROM k")), 200);
    one.run("UPDATE k SET c = 1");
    assert_eq!(one.sync().conflicts, []);
    assert_eq!(one.dump(), rig.dump());
    one.run("DELETE FROM k");
    assert_eq!(one.sync().conflicts, []);
    assert_eq!(number(&rig.ask("SELECT count(*) FROM k")), 0);
}

#[test]
fn a_row_that_the_remote_takes_in_no_transaction_is_named_and_all_others_come_home() {
    let rig = Rig::with_commits_of(SMALL);
    let one = rig.open("one");
    SCHEMA.iter().for_each(|sql| one.run(sql));
    insert(&one, 0, 20, 3000);
    one.run("INSERT INTO k VALUES (100, randomblob(1000000))");
    insert(&one, 200, 60, 3000);
    let report = one.sync();
    let [conflict] = &report.conflicts[..] else { panic!("{:?}", report.conflicts) };
    assert_eq!((&*conflict.about.table, conflict.about.doing), ("k", Doing::Insert));
    assert!(conflict.error.contains("1000016") && conflict.error.contains("transaction"), "{}", conflict.error);
    all_once(&rig, &one, "one is given up");
    assert_eq!(number(&rig.ask("SELECT count(*) FROM k")), 80);
    assert_eq!(one.sync().conflicts, []);
}

#[test]
fn what_no_transaction_takes_and_nothing_can_part_is_an_error_that_names_it() {
    let rig = Rig::with_commits_of(SMALL);
    let one = rig.open("one");
    SCHEMA.iter().for_each(|sql| one.run(sql));
    insert(&one, 0, 150, 3000);
    one.sync();
    one.run("CREATE INDEX large ON k(v)");
    let error = one.wait(one.engine.push()).unwrap_err();
    let ReplicaError::TooLarge { what: Some(what), .. } = &error else { panic!("{error}") };
    assert!(what.contains("\"large\"") && error.is_data() && !error.is_transient(), "{error}");
    one.run("DROP INDEX large");
    one.run("INSERT INTO n VALUES (-1, 0)");
    assert_eq!(one.sync().conflicts, []);
    all_once(&rig, &one, "without it");
}

fn over(wire: &Wire) -> Remote {
    let remote = Remote::new(&format!("http://{}/logs/app", wire.address), None).unwrap();
    remote.retry_first(Duration::from_millis(1))
}

fn open<'a>(rig: &'a Rig, wire: &Wire) -> Replica<'a> {
    let path = rig.path("one");
    let engine = rig.service.runtime.block_on(SyncEngine::open(&path, over(wire), Options::default())).unwrap();
    let connection = engine.connect().unwrap();
    Replica { rig, engine, connection }
}

fn sync(rig: &Rig, engine: &SyncEngine) -> Result<Report, ReplicaError> {
    rig.service.runtime.block_on(engine.sync())
}

/// The nth request of a push in parts is lost, or its answer. The same engine goes on, or another, with a push, or with a pull
/// first; meanwhile both sides write. Whether the push was whole before, and whether it was cut between two parts.
fn cut_at(nth: u64, lost: Lost) -> (bool, bool) {
    let context = format!("{lost:?} {nth}");
    let rig = Rig::with_commits_of(128 << 10);
    let wire = Wire::to(rig.service.address);
    let mut one = open(&rig, &wire);
    SCHEMA.iter().for_each(|sql| one.run(sql));
    insert(&one, 0, 8, 3000);
    sync(&rig, &one.engine).unwrap();
    // Some of each kind.
    one.run("UPDATE k SET v = randomblob(3000)");
    one.run("DELETE FROM n WHERE x > 5");
    insert(&one, 100, 24, 3000);
    let end = one.dump();
    wire.set(Left { nth: Some((nth, lost)), ..Left::default() });
    let is_past_the_end = sync(&rig, &one.engine).is_ok();
    wire.set(Left::default());
    let there = number(&rig.ask(COUNTS));
    assert_eq!(rig.ask("SELECT name FROM sqlite_schema WHERE type = 'trigger'").len(), 1, "{context}");
    let is_in_parts = there != 8_008 && there != 30_032;
    rig.ask("INSERT INTO n VALUES (-1, 'there')");
    one.run("INSERT INTO n VALUES (-2, 'here')");
    one.run("UPDATE k SET v = 'later' WHERE id IN (3, 103)");
    if nth % 2 == 1 {
        let Replica { connection, engine, .. } = one;
        drop((connection, engine));
        one = open(&rig, &wire);
    }
    if nth % 4 > 1 {
        assert_eq!(one.pull().conflicts, [], "{context}");
    }
    let report = one.sync();
    assert_eq!(report.conflicts, [], "{context}");
    all_once(&rig, &one, &context);
    assert_eq!(number(&rig.ask(COUNTS)), 32_032, "{context}");
    assert_eq!(rig.dump()["rows of seen"], end["rows of seen"], "{context}");
    assert_eq!(number(&rig.ask("SELECT count(*) FROM k WHERE v = 'later'")), 2, "{context}");
    assert_eq!(one.sync().requests, 1, "{context}");
    (is_past_the_end, is_in_parts)
}

#[test]
fn a_push_that_is_cut_between_its_parts_goes_on_where_the_last_one_ended() {
    let (mut cuts, mut in_parts) = (0, 0);
    // Most of the time the service waits for the transaction that was cut.
    const AT_ONCE: u64 = 8;
    for first in (0..).step_by(AT_ONCE as usize) {
        let outcomes: Vec<(bool, bool)> = std::thread::scope(|scope| {
            let each = (first..first + AT_ONCE).flat_map(|nth| [(nth, Lost::Request), (nth, Lost::Answer)]);
            let running: Vec<_> = each.map(|(nth, lost)| scope.spawn(move || cut_at(nth, lost))).collect();
            running.into_iter().map(|case| case.join().unwrap()).collect()
        });
        cuts += outcomes.len();
        in_parts += outcomes.iter().filter(|(_, is_in_parts)| *is_in_parts).count();
        if outcomes.iter().any(|(is_past_the_end, _)| *is_past_the_end) {
            break;
        }
    }
    assert!(cuts > 20 && in_parts > 4, "{cuts} cuts, {in_parts} between parts");
}

#[test]
fn a_push_in_parts_goes_on_in_the_next_generation_of_the_remote() {
    let cut_in_parts = (4..).any(|nth| {
        let rig = Rig::with_commits_of(128 << 10);
        SCHEMA.iter().for_each(|sql| drop(rig.ask(sql)));
        let wire = Wire::to(rig.service.address);
        let one = open(&rig, &wire);
        insert(&one, 0, 40, 3000);
        wire.set(Left { nth: Some((nth, Lost::Answer)), ..Left::default() });
        sync(&rig, &one.engine).expect_err("a cut in the middle");
        wire.set(Left::default());
        let there = number(&rig.ask(COUNTS));
        assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
        rig.ask("INSERT INTO n VALUES (-1, 'there')");
        assert_eq!(one.sync().conflicts, []);
        all_once(&rig, &one, "in the next generation");
        assert_eq!(number(&rig.ask(COUNTS)), 41_040);
        there > 0 && there < 40_040
    });
    assert!(cut_in_parts);
}

/// Between what one transaction of the service takes (64 MiB of frames) and 40 MiB of values; written by SQLite, pushed beside it.
#[test]
fn changes_of_36_mb_come_home() {
    let rig = Rig::with_commits_of(u64::MAX);
    rig.ask("CREATE TABLE k(id INTEGER PRIMARY KEY, v)");
    drop(rig.open("one"));
    let mut sqlite = Sqlite::open_within(&rig.path("one-draft"), 60);
    sqlite.run(&["WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 16000) INSERT INTO k SELECT n, randomblob(2250) FROM i"]);
    sqlite.close();
    let one = rig.open("one");
    let report = one.sync();
    assert_eq!(report.conflicts, []);
    assert_eq!(number(&rig.ask("SELECT count(*) FROM k")), 16_000);
    assert_eq!(one.ask("SELECT sum(length(v)) FROM k"), rig.ask("SELECT sum(length(v)) FROM k"));
    assert_eq!(one.sync().requests, 1);
}
