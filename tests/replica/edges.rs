//! Rows, tables and values at the edge of what SQLite takes: each comes home as it is, or is refused by name before
//! anything is pushed, and nothing else waits for it.

use std::collections::BTreeSet;

use logmirror::replica::{Doing, Options, Value};
use serde_json::json;

use super::support::sqlite::Sqlite;
use super::{Replica, Rig};

/// SQLite runs statements on the draft of a closed replica.
fn with_sqlite(rig: &Rig, name: &str, sql: &[&str]) {
    let mut sqlite = Sqlite::open_within(&rig.path(&format!("{name}-draft")), 5);
    sqlite.run(sql);
    sqlite.close();
}

fn sqlite_rows(rig: &Rig, name: &str, sql: &str) -> serde_json::Value {
    let mut sqlite = Sqlite::open_within(&rig.path(&format!("{name}-draft")), 5);
    let rows = sqlite.rows(sql);
    sqlite.close();
    rows
}

#[track_caller]
fn number(rows: &[Vec<Value>]) -> i64 {
    match rows {
        [row] if let [Value::Integer(number)] = row[..] => number,
        rows => panic!("{rows:?}"),
    }
}

#[test]
fn a_text_that_is_not_utf_8_is_refused_by_name_and_stays_as_it_is() {
    for (table, row, all) in [
        ("k", "the key", "INSERT INTO k VALUES (CAST(x'61ff' AS TEXT), 1), (CAST(x'61fe' AS TEXT), 2), ('fine', 3)"),
        ("k", "fine", "INSERT INTO k VALUES ('fine', CAST(x'62ff' AS TEXT))"),
        ("n", "rowid", "INSERT INTO n VALUES ('fine'), (CAST(x'c3' AS TEXT))"),
    ] {
        let rig = Rig::new();
        rig.ask("CREATE TABLE k(id TEXT PRIMARY KEY, v)");
        rig.ask("CREATE TABLE n(x)");
        drop(rig.open("one"));
        with_sqlite(&rig, "one", &[all]);
        let look = "SELECT * FROM (SELECT hex(id), hex(v) FROM k UNION ALL SELECT hex(x), 0 FROM n) ORDER BY 1";
        let before = sqlite_rows(&rig, "one", look);
        for sync in [true, false] {
            let one = rig.open("one");
            rig.ask("INSERT INTO k VALUES (hex(randomblob(8)), 'of another')");
            let refused = if sync { one.wait(one.engine.sync()) } else { one.wait(one.engine.pull()) };
            let text = refused.expect_err(row).to_string();
            assert!(text.contains(&format!("table \"{table}\"")) && text.contains("UTF-8"), "{text}");
        }
        assert_eq!(number(&rig.ask("SELECT count(*) FROM k WHERE v <> 'of another'")), 0, "{row}");
        assert_eq!(number(&rig.ask("SELECT count(*) FROM n")), 0, "{row}");
        assert_eq!(sqlite_rows(&rig, "one", look), before, "{row}");
        // Once they are mended all goes on.
        let mend = "UPDATE k SET id = hex(id) WHERE hex(id) LIKE '61F%'";
        with_sqlite(&rig, "one", &[mend, "UPDATE k SET v = hex(v)", "UPDATE n SET x = hex(x)"]);
        let one = rig.open("one");
        assert_eq!(one.sync().conflicts, []);
        assert_eq!(one.dump(), rig.dump());
    }
}

#[test]
fn rows_of_wide_tables_are_found_with_and_without_a_key() {
    for columns in [99, 130, 900] {
        let names: Vec<String> = (0..columns).map(|at| format!("c{at}")).collect();
        let values = |row: usize| (0..columns).map(|at| (row * at).to_string()).collect::<Vec<_>>().join(", ");
        let rig = Rig::new();
        let one = rig.open("one");
        one.run(&format!("CREATE TABLE n({})", names.join(", ")));
        one.run(&format!("CREATE TABLE k({0}, v, PRIMARY KEY({0}))", names[..99].join(", ")));
        for row in 0..4 {
            one.run(&format!("INSERT INTO n VALUES ({})", values(row)));
            one.run(&format!("INSERT INTO k({}) VALUES ({})", names[..99].join(", "), {
                (0..99).map(|at| (row * at).to_string()).collect::<Vec<_>>().join(", ")
            }));
        }
        assert_eq!(one.sync().conflicts, [], "{columns}");
        // In place, and once after a push without a pull.
        for round in 1..3 {
            one.run(&format!("UPDATE n SET c7 = 'changed {round}' WHERE c1 = {round}"));
            one.run(&format!("UPDATE k SET v = 'changed {round}' WHERE c1 = {round}"));
            one.run(&format!("INSERT INTO n(c1) VALUES ('new {round}')"));
            assert_eq!(one.push().conflicts, [], "{columns}");
            one.run(&format!("DELETE FROM n WHERE c1 = 'new {round}'"));
        }
        one.run("DELETE FROM n WHERE c1 = 3");
        one.run("DELETE FROM k WHERE c1 = 3");
        rig.ask("INSERT INTO n(c0) VALUES ('of another')");
        assert_eq!(one.sync().conflicts, [], "{columns}");
        assert_eq!(one.dump(), rig.dump(), "{columns}");
        assert_eq!((rig.dump()["rows of n"].len(), rig.dump()["rows of k"].len()), (4, 3), "{columns}");
    }
}

#[test]
fn a_table_of_the_user_is_synced_whatever_it_is_called() {
    let rig = Rig::new();
    drop(rig.open("one"));
    let names = ["turso_cdc_notes", "turso_cdcs", "turso_sync_last_change_ids", "turso_cdc_version_2"];
    for name in names {
        with_sqlite(&rig, "one", &[&format!("CREATE TABLE {name}(a INTEGER PRIMARY KEY, b)")]);
        with_sqlite(&rig, "one", &[&format!("INSERT INTO {name}(b) VALUES ('{name}')")]);
    }
    rig.ask("CREATE TABLE other(a)");
    let one = rig.open("one");
    assert_eq!(one.sync().conflicts, []);
    let two = rig.open("two");
    for name in names {
        let sql = format!("SELECT b FROM {name}");
        for rows in [rig.ask(&sql), one.ask(&sql), two.ask(&sql)] {
            assert_eq!(rows, [[Value::Text(name.into())]], "{name}");
        }
    }
}

/// Ids of rows that were removed before they were pushed count too.
#[test]
fn an_id_of_autoincrement_is_given_once() {
    for by_sqlite in [false, true] {
        let rig = Rig::new();
        let mut given = BTreeSet::new();
        let mut insert = |rig: &Rig, name: &str| {
            let (add, last) = ("INSERT INTO a(v) VALUES ('x')", "SELECT max(id) FROM a");
            let id = if by_sqlite {
                with_sqlite(rig, name, &[add]);
                sqlite_rows(rig, name, last)[0][0].as_i64().unwrap()
            } else {
                let replica = rig.open(name);
                replica.run(add);
                number(&replica.ask(last))
            };
            assert!(given.insert(id), "{id} is given twice, of {given:?}; by SQLite: {by_sqlite}");
        };
        let remove = |rig: &Rig, name: &str| {
            let delete = "DELETE FROM a WHERE id = (SELECT max(id) FROM a)";
            if by_sqlite { with_sqlite(rig, name, &[delete]) } else { rig.open(name).run(delete) }
        };
        let sync = |rig: &Rig, name: &str| {
            let replica: Replica<'_> = rig.open(name);
            assert_eq!(replica.sync().conflicts, []);
        };
        sync(&rig, "one");
        let create = "CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, v NOT NULL CHECK (v <> ''))";
        if by_sqlite {
            with_sqlite(&rig, "one", &[create])
        } else {
            rig.open("one").run(create)
        }
        for round in 0..3 {
            insert(&rig, "one");
            insert(&rig, "one");
            remove(&rig, "one");
            rig.ask(&format!("CREATE TABLE other{round}(a)"));
            sync(&rig, "one");
            insert(&rig, "one");
            remove(&rig, "one");
            sync(&rig, "one");
            // Another replica goes on from there.
            sync(&rig, "two");
            insert(&rig, "two");
            sync(&rig, "two");
            sync(&rig, "one");
        }
    }
}

#[test]
fn a_value_that_is_too_large_is_named_and_all_else_goes_on() {
    let rig = Rig::with_commits_of(u64::MAX);
    let one = rig.open("one");
    one.run("CREATE TABLE k(id TEXT PRIMARY KEY, v)");
    one.run("INSERT INTO k VALUES ('small', 1)");
    one.sync();
    one.run("INSERT INTO k VALUES ('large', zeroblob(41943041)), ('fine', 2)");
    one.run("UPDATE k SET v = 3 WHERE id = 'small'");
    let report = one.sync();
    let [conflict] = &report.conflicts[..] else { panic!("{report:?}") };
    assert_eq!((&*conflict.about.table, conflict.about.doing), ("k", Doing::Insert));
    assert_eq!(serde_json::to_value(&conflict.about.key).unwrap(), json!([["id", {"type": "text", "value": "large"}]]));
    assert!(conflict.error.contains("41943046") && conflict.error.contains("41943040"), "{}", conflict.error);
    assert_eq!(number(&rig.ask("SELECT sum(v) FROM k")), 5);
    assert_eq!(one.sync().conflicts, []);
}

#[test]
fn files_set_aside_in_the_same_second_keep_apart() {
    let rig = Rig::new();
    rig.ask("CREATE TABLE t(a)");
    let rebuild = Options { rebuild: true, ..Options::default() };
    for round in 0..4 {
        let one = rig.try_open("one", rebuild.clone()).unwrap();
        one.run(&format!("INSERT INTO t VALUES ({round})"));
    }
    let names =
        std::fs::read_dir(rig.dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let aside: Vec<String> = names.filter(|name| name.starts_with("one.set-aside.")).collect();
    for ending in ["-draft", "-info", "-synced"] {
        assert_eq!(aside.iter().filter(|name| name.ends_with(ending)).count(), 3, "{ending}: {aside:?}");
    }
    let mut rows = BTreeSet::new();
    for draft in aside.iter().filter(|name| name.ends_with("-draft")) {
        let mut sqlite = Sqlite::open_within(&rig.path(draft), 5);
        rows.insert(sqlite.rows("SELECT a FROM t").to_string());
        sqlite.close();
    }
    assert_eq!(rows, BTreeSet::from(["[[0]]".to_owned(), "[[1]]".to_owned(), "[[2]]".to_owned()]));
}

#[test]
fn a_draft_that_was_vacuumed_has_changed_nothing_whatever_numbers_its_rows_have_now() {
    let rig = Rig::new();
    rig.ask("CREATE TABLE t(a, b)");
    rig.ask("CREATE TABLE k(id TEXT PRIMARY KEY, b)");
    for table in ["t", "k"] {
        rig.ask(&format!("INSERT INTO {table} VALUES ('r1', 1), ('r2', 2), ('r3', 3), ('r4', 4), ('r5', 5)"));
        rig.ask(&format!("DELETE FROM {table} WHERE b IN (1)"));
    }
    drop(rig.open("one"));
    let look = "SELECT a, b FROM t UNION ALL SELECT 'k' || id, b FROM k ORDER BY 1, 2";
    // What is changed here beside it goes home as it is.
    for (here, there, rows) in [
        (&["VACUUM"][..], "DELETE FROM t WHERE a = 'r4'; UPDATE t SET b = 30 WHERE a = 'r3'", 3),
        (
            &["DELETE FROM t WHERE a = 'r2'", "VACUUM", "INSERT INTO t VALUES ('r2', 2)"],
            "UPDATE k SET b = 20 WHERE id = 'r2'",
            3,
        ),
        (
            &[
                "DELETE FROM t WHERE a = 'r2'",
                "VACUUM",
                "INSERT INTO t VALUES ('r6', 6)",
                "UPDATE t SET b = 50 WHERE a = 'r5'",
            ],
            "DELETE FROM k WHERE id = 'r3'",
            3,
        ),
    ] {
        with_sqlite(&rig, "one", here);
        there.split("; ").for_each(|sql| drop(rig.ask(sql)));
        let one = rig.open("one");
        let report = one.wait(one.engine.sync()).expect("in step");
        assert!(report.conflicts.is_empty(), "{here:?}: {report:?}");
        drop(one);
        let log = rig.ask(look);
        assert_eq!(number(&rig.ask("SELECT count(*) FROM t")), rows, "{here:?}: {log:?}");
        assert_eq!(format!("{:?}", rig.ask("SELECT a FROM t GROUP BY a HAVING count(*) > 1")), "[]");
        assert_eq!(sqlite_rows(&rig, "one", look).as_array().map(Vec::len), Some(log.len()), "{here:?}");
    }
    assert_eq!(number(&rig.ask("SELECT count(*) FROM t WHERE (a, b) IN (('r3', 30), ('r5', 50), ('r6', 6))")), 3);
    assert_eq!(number(&rig.ask("SELECT count(*) FROM k WHERE (id, b) IN (('r2', 20), ('r4', 4), ('r5', 5))")), 3);
}
