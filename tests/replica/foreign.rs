//! Whoever writes the draft is followed: SQLite while the replica is closed, and the engine while it is open.
//!
//! `LOGMIRROR_TEST_CASES` says how many random cases are tried, `LOGMIRROR_TEST_SEED` which one is the first.

mod author;
mod look;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use author::{Author, Limits};
use logmirror::replica::{Options, SyncEngine};
use look::{assert_same, look};
use serde_json::json;

use super::support::commitlog::{Draw, seed};
use super::support::sqlite::Sqlite;
use super::{Replica, Rig};

/// Tries random cases, each with a seed of its own.
fn cases(usual: u64, case: impl Fn(u64)) {
    let first = seed();
    let count = std::env::var("LOGMIRROR_TEST_CASES").map_or(usual, |count| count.parse().unwrap());
    for seed in (first..).take(count as usize) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(seed))) {
            println!("it fails with LOGMIRROR_TEST_CASES=1 LOGMIRROR_TEST_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// Shows each statement where `LOGMIRROR_TEST_SQL` is set.
fn show(sql: &str, error: Option<&str>) {
    if std::env::var_os("LOGMIRROR_TEST_SQL").is_some() {
        let sql: String = sql.chars().take(600).collect();
        println!("{sql};{}", error.map_or(String::new(), |error| format!(" -- {error}")));
    }
}

/// SQLite works on the draft of a replica that is closed.
fn work(rig: &Rig, name: &str, author: &mut Author, draw: &mut Draw) {
    let draft = rig.path(&format!("{name}-draft"));
    for _ in 0..1 + draw.below(3) {
        let mut sqlite = Sqlite::open_within(&draft, 5);
        let mut run = |sql: &str| {
            let said = sqlite.ask(sql);
            let error = said["error"].as_str();
            show(sql, error);
            error.map_or(Ok(()), |error| Err(error.to_owned()))
        };
        let mut is_wal = true;
        match draw.below(6) {
            0 => drop(run("PRAGMA journal_mode = WAL")),
            1 => is_wal = run("PRAGMA journal_mode = DELETE").is_err(),
            2 => is_wal = run("PRAGMA journal_mode = TRUNCATE").is_err(),
            _ => {}
        }
        for _ in 0..1 + draw.below(3) {
            let steps = 1 + draw.below(12);
            author.write(steps, &mut run);
            match draw.below(9) {
                0 => drop(run("PRAGMA wal_checkpoint(PASSIVE)")),
                1 => drop(run("PRAGMA wal_checkpoint(TRUNCATE)")),
                2 => drop(run("PRAGMA wal_checkpoint(RESTART)")),
                3 => run("VACUUM").unwrap(),
                4 => drop(run("REINDEX")),
                _ => {}
            }
        }
        // Whoever closes last takes the WAL with him.
        if is_wal && draw.one_in(2) { sqlite.kill() } else { sqlite.close() }
    }
}

/// A sync takes all that there was, and nothing is left to do.
fn sync_all(rig: &Rig, replica: Replica<'_>, name: &str, before: &look::Found) {
    let report = replica.sync();
    assert!(report.conflicts.is_empty(), "{:#?}", report.conflicts);
    assert_eq!(replica.dump(), rig.dump());
    let again = replica.sync();
    assert_eq!((again.changes_pushed, again.frames_pulled), (0, 0), "{again:?}");
    drop(replica);
    let after = look(&rig.path(&format!("{name}-draft")));
    assert_same(&after, before, "the draft after the sync");
}

#[test]
fn what_sqlite_writes_to_a_closed_replica_is_synced() {
    cases(8, |seed| {
        let (rig, mut draw) = (Rig::new(), Draw(seed));
        let mut author = Author::new(Draw(seed ^ 1), Limits::default());
        drop(rig.open("two"));
        for _ in 0..1 + draw.below(3) {
            drop(rig.open("one"));
            work(&rig, "one", &mut author, &mut draw);
            let before = look(&rig.path("one-draft"));
            assert_eq!(before["integrity"][0], "ok");
            sync_all(&rig, rig.open("one"), "one", &before);
            if draw.one_in(2) {
                let two = rig.open("two");
                two.pull();
                assert_eq!(two.dump(), rig.dump());
                drop(two);
                assert_same(&look(&rig.path("two-draft")), &before, "another replica");
            }
        }
    });
}

#[test]
fn what_the_engine_writes_is_synced() {
    cases(8, |seed| {
        let (rig, mut draw) = (Rig::new(), Draw(seed));
        let mut author = Author::new(Draw(seed ^ 1), Limits { is_engine: true });
        for _ in 0..1 + draw.below(3) {
            let one = rig.open("one");
            author.write(1 + draw.below(40), &mut |sql| {
                show(sql, None);
                let ran = one.connection.execute(sql).map_err(|error| error.to_string());
                show("", ran.as_ref().err().map(String::as_str));
                ran
            });
            drop(one);
            let before = look(&rig.path("one-draft"));
            assert_eq!(before["integrity"][0], "ok");
            sync_all(&rig, rig.open("one"), "one", &before);
        }
    });
}

/// The engine can neither change nor remove rows without rowids: a replica copies their table, with what others did to it.
#[test]
fn rows_without_rowids_are_changed_on_top_of_what_others_did() {
    let rig = Rig::new();
    let one = rig.open("one");
    one.run("CREATE TABLE log(what)");
    one.run("CREATE TABLE t(b INT, a TEXT, c, d, PRIMARY KEY (b, a)) WITHOUT ROWID");
    one.run("INSERT INTO t VALUES (1, 'x', 'c', 'd'), (2, 'y', 'c', 'd'), (3, 'z', 'c', 'd'), (4, 'w', 'c', 'd')");
    one.run("CREATE VIEW v AS SELECT count(*) AS n FROM t");
    one.run("CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO log VALUES (new.a); END");
    one.sync();
    drop(one);
    drop(rig.open("two"));
    let write = |name: &str, statements: &[&str]| {
        let mut sqlite = Sqlite::open(&rig.path(&format!("{name}-draft")));
        sqlite.run(statements);
        sqlite.close();
    };
    write(
        "one",
        &[
            "UPDATE t SET c = 'of one' WHERE b = 1",
            "DELETE FROM t WHERE b = 2",
            "INSERT INTO t VALUES (5, 'one', 0, 0)",
            "ALTER TABLE t ADD COLUMN e",
            "UPDATE t SET e = 'of one' WHERE b >= 3",
        ],
    );
    write(
        "two",
        &[
            "UPDATE t SET d = 'of two' WHERE b <= 3",
            "UPDATE t SET a = 'W' WHERE b = 4",
            "INSERT INTO t VALUES (6, 'two', 0, 0)",
        ],
    );
    assert_eq!(rig.open("one").sync().conflicts, []);
    let told = rig.open("two").sync().conflicts;
    let [conflict] = &told[..] else { panic!("{told:#?}") };
    let line = "update of t (b = 2, a = 'y'), on the remote: somebody else deleted or replaced the row";
    assert!(conflict.to_string().starts_with(line), "{conflict}");
    assert_eq!(rig.open("one").sync().conflicts, []);
    let mut found = Vec::new();
    for name in ["one", "two"] {
        let mut sqlite = Sqlite::open(&rig.path(&format!("{name}-draft")));
        let asked = [
            "SELECT * FROM t ORDER BY b",
            "SELECT n FROM v",
            "SELECT what FROM log ORDER BY 1",
            "PRAGMA integrity_check",
        ];
        found.push(asked.map(|sql| sqlite.rows(sql)));
        sqlite.close();
    }
    let wanted = [
        json!([
            [1, "x", "of one", "of two", null],
            [2, "y", "c", "of two", null],
            [3, "z", "c", "of two", "of one"],
            [4, "W", "c", "d", null],
            [5, "one", 0, 0, "of one"],
            [6, "two", 0, 0, null],
        ]),
        json!([[6]]),
        json!([["one"], ["two"]]),
        json!([["ok"]]),
    ];
    assert_eq!(found, [wanted.clone(), wanted]);
    assert_eq!(rig.dump()["rows of t"].len(), 6);
    let left = rig.ask("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'logmirror%'");
    assert_eq!(serde_json::to_value(left).unwrap(), json!([[{"type": "integer", "value": "0"}]]));
}

/// What the engine cannot make or write is said before anything is given up.
#[test]
fn what_the_engine_has_not_is_an_error_and_stays_in_the_draft() {
    for (made, wanted) in [
        ("CREATE TABLE t(a, b INT PRIMARY KEY) WITHOUT ROWID", "rows of t cannot be replicated"),
        ("CREATE TABLE t(b INT PRIMARY KEY, a UNIQUE) WITHOUT ROWID", "UNIQUE constraint on table t"),
        ("CREATE TABLE t(b INT PRIMARY KEY, a TEXT) WITHOUT ROWID, STRICT", "WITHOUT ROWID"),
    ] {
        let rig = Rig::new();
        drop(rig.open("one"));
        let draft = rig.path("one-draft");
        let mut sqlite = Sqlite::open(&draft);
        sqlite.run(&[made, "INSERT INTO t(a, b) VALUES ('x', 1)"]);
        sqlite.close();
        let before = look(&draft);
        for _ in 0..2 {
            let synced = rig.service.runtime.block_on(async {
                let engine = SyncEngine::open(&rig.path("one"), rig.remote(), Options::default()).await?;
                engine.sync().await
            });
            let error = synced.unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert_same(&look(&draft), &before, "the draft");
        let mut sqlite = Sqlite::open(&draft);
        sqlite.run(&[
            "CREATE TABLE u(b INT PRIMARY KEY, a) WITHOUT ROWID",
            "INSERT INTO u SELECT b, a FROM t",
            "DROP TABLE t",
        ]);
        sqlite.close();
        assert_eq!(rig.open("one").sync().conflicts, []);
        assert_eq!(rig.dump()["rows of u"].len(), 1);
    }
}
