//! Statements that would break revisions, by every way in.

use serde_json::{Value, json};

use super::{Rig, error, execute};

const BAD: [&str; 14] = [
    "PRAGMA wal_checkpoint",
    "pragma wal_CHECKPOINT(TRUNCATE);",
    "/* harmless */ PRAGMA -- really\n main . 'wal_checkpoint' ( restart )",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA\tjournal_mode('mvcc')",
    "EXPLAIN PRAGMA page_size = 512",
    "PRAGMA wal_autocheckpoint = 1",
    "PRAGMA cache_size = 100000000",
    "VACUUM",
    ";;vacuum into '/tmp/logmirror-must-not-be.db'",
    "ATTACH '/tmp/logmirror-must-not-be.db' AS x",
    "aTTaCh DATABASE ':memory:' AS x",
    "DETACH main",
    "PRAGMA auto_vacuum = full",
];

#[test]
fn they_are_refused_by_every_way_in_and_the_rest_goes_on() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    for (round, bad) in BAD.iter().enumerate() {
        let results = rig.results(&json!([
            execute(bad),
            {"type": "batch", "batch": {"steps": [{"stmt": {"sql": bad}}, {"stmt": {"sql": "INSERT INTO t VALUES (1)"}}]}},
            {"type": "sequence", "sql": format!("INSERT INTO t VALUES (2); {bad}; INSERT INTO t VALUES (3)")},
            {"type": "describe", "sql": bad},
            {"type": "store_sql", "sql_id": 1, "sql": bad},
            {"type": "execute", "stmt": {"sql_id": 1}},
        ]));
        assert!(error(&results[0]).contains("not allowed"), "{bad}");
        let batch = &results[1]["response"]["result"];
        assert!(batch["step_errors"][0]["message"].as_str().unwrap().contains("not allowed"), "{bad}");
        assert_eq!(batch["step_errors"][1], Value::Null);
        for outcome in [2, 3, 5] {
            assert!(error(&results[outcome]).contains("not allowed"), "{bad}");
        }
        assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([[((round + 1) * 2).to_string()]]));
    }
    assert!(!std::path::Path::new("/tmp/logmirror-must-not-be.db").exists());
}

#[test]
fn several_statements_in_one_text_are_refused_whole() {
    let rig = Rig::new();
    for sql in ["SELECT 1; PRAGMA wal_checkpoint", "CREATE TABLE t(a); VACUUM"] {
        assert!(rig.error(sql).contains("more than one"));
    }
    assert!(rig.error("SELECT * FROM t").contains("no such table"));
}

#[test]
fn what_clients_ask_stays_allowed() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)");
    assert_eq!(rig.rows("PRAGMA table_info(t)")[1][1], "b");
    assert_eq!(rig.rows("SELECT name FROM pragma_table_info('t')"), json!([["a"], ["b"]]));
    assert_eq!(rig.rows("PRAGMA user_version"), json!([["0"]]));
    rig.run("PRAGMA user_version = 7");
    assert_eq!(rig.rows("PRAGMA user_version"), json!([["7"]]));
    assert_eq!(rig.rows("PRAGMA journal_mode"), json!([["wal"]]));
    assert_eq!(rig.rows("PRAGMA page_size"), json!([["4096"]]));
    assert_eq!(rig.rows("PRAGMA integrity_check"), json!([["ok"]]));
    let before = rig.durable();
    assert_eq!(rig.rows("PRAGMA journal_mode = WAL"), json!([["wal"]]));
    for sql in [
        "PRAGMA busy_timeout = 5000",
        "PRAGMA synchronous = NORMAL",
        "PRAGMA foreign_keys = ON",
        "PRAGMA mmap_size = 1",
    ] {
        rig.run(sql);
    }
    assert_eq!(rig.durable(), before);
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["0"]]));
}

#[test]
fn a_transaction_larger_than_the_engine_takes_is_refused_as_that_and_nothing_of_it_is_stored() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    let durable = rig.service.status("app")["durable"].clone();
    let error = rig.error("INSERT INTO t(b) SELECT zeroblob(3000) FROM generate_series(1, 3000)");
    assert!(
        error.contains("larger than the SQL engine takes") && error.contains("nothing of it was stored"),
        "{error}"
    );
    assert_eq!(rig.service.status("app")["durable"], durable);
    rig.run("INSERT INTO t(b) VALUES ('x')");
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["1"]]));
}
