//! The schema as tools read it: without the tables that the engine keeps for itself.

use logmirror::checkpoint::{Wanted, restore_url};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::{Rig, execute, result};

const INTERNAL: &str = "__turso_internal_";

#[test]
fn tools_that_read_the_schema_do_not_see_internal_tables() {
    let rig = Rig::new();
    rig.results(&json!([
        execute("CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, x)"),
        execute("INSERT INTO a(x) VALUES (1)"),
        execute("CREATE INDEX ax ON a(x)"),
    ]));
    let tables = json!([["a"], ["sqlite_sequence"]]);
    for sql in [
        "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
        "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name",
        "SELECT m.name FROM `main`.`sqlite_master` AS m WHERE m.type = 'table' ORDER BY m.name",
        "SELECT main.sqlite_schema.name FROM sqlite_schema WHERE main.sqlite_schema.type = 'table' ORDER BY 1",
        "SELECT DISTINCT m.name FROM sqlite_master AS m JOIN pragma_table_xinfo(m.name) AS p WHERE m.type = 'table' ORDER BY 1",
        "SELECT tbl_name FROM (SELECT * FROM \"sqlite_master\") WHERE type = 'table' ORDER BY rowid",
        "SELECT name FROM (SELECT name FROM sqlite_master WHERE type = 'table' UNION SELECT name FROM sqlite_schema WHERE type = 'table') ORDER BY 1",
    ] {
        let mut rows = rig.rows(sql);
        rows.as_array_mut().unwrap().sort_by_key(ToString::to_string);
        assert_eq!(rows, tables, "{sql}");
    }
    for sql in [
        "SELECT * FROM sqlite_master",
        "PRAGMA table_list",
        "PRAGMA main.table_list",
        "SELECT * FROM pragma_table_list",
    ] {
        let found = rig.run(sql);
        assert!(found["rows"].to_string().contains("sqlite_sequence"), "{sql}");
        assert!(!found["rows"].to_string().contains(INTERNAL), "{sql}");
        let described = rig.results(&json!([{"type": "describe", "sql": sql}]));
        assert_eq!(result(&described[0])["cols"].as_array().unwrap().len(), found["cols"].as_array().unwrap().len());
    }
    let names = |found: &Value| -> Vec<String> {
        found["cols"].as_array().unwrap().iter().map(|col| col["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&rig.run("SELECT * FROM sqlite_schema")), ["type", "name", "tbl_name", "rootpage", "sql"]);
    assert_eq!(names(&rig.run("PRAGMA table_list")), ["schema", "name", "type", "ncol", "wr", "strict"]);
    // They are there, and the counter goes on where it was.
    rig.results(&json!([execute("DELETE FROM a"), execute("INSERT INTO a(x) VALUES (2)")]));
    assert_eq!(rig.rows("SELECT id, seq FROM a, sqlite_sequence"), json!([["2", "2"]]));
}

/// The database that a restore makes of the log, in a directory of its own.
fn restored(rig: &Rig, plain: bool) -> (tempfile::TempDir, Connection, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("restored.db");
    let wanted = Wanted { to: None, generation: None, out: out.clone(), overwrite: false, plain };
    let client = rig.service.client("app");
    rig.service.runtime.block_on(restore_url(&client, &wanted)).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    (dir, Connection::open(out).unwrap(), bytes)
}

fn ask<T: rusqlite::types::FromSql>(database: &Connection, sql: &str) -> Vec<T> {
    let mut statement = database.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_plain_restore_has_sqlites_own_counters_and_nothing_of_the_engines() {
    let rig = Rig::new();
    // More tables than a page of the schema holds, and pages that were free before.
    rig.results(&json!([
        execute("CREATE TABLE gone(a)"),
        execute("INSERT INTO gone VALUES (zeroblob(30000))"),
        execute("DROP TABLE gone"),
    ]));
    for table in 0..40 {
        rig.results(&json!([
            execute(&format!("CREATE TABLE t{table}(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT)")),
            execute(&format!("CREATE INDEX i{table} ON t{table}(name)")),
            execute(&format!("INSERT INTO t{table}(id, name) VALUES ({}, 'x'), ({}, 'y')", 10 + table, 70 + table)),
            execute(&format!("DELETE FROM t{table} WHERE id >= 70")),
        ]));
    }
    let (_dir, exact, bytes) = restored(&rig, false);
    let internal = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '\\_\\_turso%' ESCAPE '\\'";
    assert_eq!(ask::<i64>(&exact, internal), [40]);
    assert_eq!(restored(&rig, false).2, bytes, "a restore is what the log holds");
    let (_dir, plain, _) = restored(&rig, true);
    assert_eq!(ask::<i64>(&plain, internal), [0]);
    assert_eq!(ask::<String>(&plain, "PRAGMA integrity_check"), ["ok"]);
    assert!(ask::<i64>(&plain, "PRAGMA freelist_count")[0] >= ask::<i64>(&exact, "PRAGMA freelist_count")[0] + 40);
    let others = "SELECT sql FROM sqlite_schema WHERE name NOT LIKE '\\_\\_turso%' ESCAPE '\\' ORDER BY name";
    assert_eq!(ask::<String>(&plain, others), ask::<String>(&exact, others));
    for table in 0..40 {
        plain.execute(&format!("INSERT INTO t{table}(name) VALUES ('z')"), []).unwrap();
        assert_eq!(ask::<i64>(&plain, &format!("SELECT id FROM t{table} ORDER BY id")), [10 + table, 71 + table]);
    }
    plain.execute_batch("VACUUM").unwrap();
    assert_eq!(ask::<String>(&plain, "PRAGMA integrity_check"), ["ok"]);
}

#[test]
fn a_plain_restore_of_a_database_without_counters_is_the_exact_one() {
    let rig = Rig::new();
    rig.results(&json!([execute("CREATE TABLE t(a)"), execute("INSERT INTO t VALUES (1)")]));
    assert_eq!(restored(&rig, true).2, restored(&rig, false).2);
}
