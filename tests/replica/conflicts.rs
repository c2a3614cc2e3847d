//! What others did is in the way, and whoever asks is told.

use logmirror::replica::{During, Options, ReplicaError, SyncEngine};
use logmirror::sync::Remote;

use super::Rig;
use super::wire::{Answered, Left, Wire};

/// Two replicas in sync, one of which has pushed a value that the other has too.
fn clash(rig: &Rig) {
    let one = rig.open("one");
    one.run("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT UNIQUE)");
    one.sync();
    let two = rig.open("two");
    one.run("INSERT INTO t VALUES (1, 'clash')");
    two.run("INSERT INTO t VALUES (2, 'clash'), (3, 'other')");
    one.sync();
}

fn over(wire: &Wire) -> Remote {
    Remote::new(&format!("http://{}/logs/app", wire.address), None).unwrap()
}

#[test]
fn a_change_that_is_given_up_is_told_with_table_key_and_error() {
    let rig = Rig::new();
    clash(&rig);
    let two = rig.open("two");
    let report = two.sync();
    let [conflict] = &report.conflicts[..] else { panic!("{report:?}") };
    assert_eq!((conflict.during, &*conflict.about.table), (During::Push, "t"));
    assert_eq!(serde_json::to_value(&conflict.about.key).unwrap()[0][1]["value"], "2");
    assert!(conflict.error.contains("UNIQUE constraint failed: t.name"), "{}", conflict.error);
    assert_eq!(two.dump(), rig.dump());
    assert_eq!(two.sync().conflicts, []);
}

#[test]
fn conflicts_of_a_push_are_told_though_its_answer_was_lost() {
    for answered in [Answered::No, Answered::Yes] {
        let rig = Rig::new();
        clash(&rig);
        let wire = Wire::to(rig.service.address);
        let path = rig.path("two");
        let opening = SyncEngine::open(&path, over(&wire), Options::default());
        let engine = rig.service.runtime.block_on(opening).unwrap();
        wire.set(Left { after: Some(("\"COMMIT\"", answered)), ..Left::default() });
        let failed = rig.service.runtime.block_on(engine.sync());
        assert!(matches!(failed, Err(ReplicaError::Remote(_))), "{answered:?}: {failed:?}");
        drop(engine);
        wire.set(Left::default());
        let two = rig.open("two");
        let report = two.sync();
        assert_eq!(report.conflicts.len(), 1, "{answered:?}: {report:?}");
        assert_eq!(two.dump(), rig.dump());
        assert_eq!(rig.dump()["rows of t"].len(), 2);
        assert_eq!(two.sync().conflicts, []);
    }
}

#[test]
fn conflicts_of_a_pull_are_told() {
    let rig = Rig::new();
    clash(&rig);
    let two = rig.open("two");
    let report = two.pull();
    let [conflict] = &report.conflicts[..] else { panic!("{report:?}") };
    assert_eq!(conflict.during, During::Pull);
    assert_eq!(two.ask("SELECT count(*) FROM t").len(), 1);
    assert_eq!(two.sync().conflicts, []);
    assert_eq!(two.dump(), rig.dump());
}

/// Of a table, or a column, that somebody else gave another name or dropped.
#[test]
fn changes_of_what_is_not_there_any_more_are_told_and_all_others_come_home() {
    for (sql, table) in [
        ("ALTER TABLE t RENAME TO u", "t"),
        ("DROP TABLE t", "t"),
        ("ALTER TABLE t RENAME COLUMN name TO label", "t"),
        ("ALTER TABLE t DROP COLUMN extra", "t"),
    ] {
        let rig = Rig::new();
        rig.ask("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, extra)");
        rig.ask("CREATE TABLE other(x)");
        rig.ask("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)");
        let one = rig.open("one");
        one.run("UPDATE t SET name = 'changed', extra = 3 WHERE id = 1");
        one.run("INSERT INTO t VALUES (3, 'new', 4)");
        one.run("INSERT INTO other VALUES ('here')");
        rig.ask(sql);
        let report = one.sync();
        assert_eq!(report.conflicts.len(), 2, "{sql}: {:?}", report.conflicts);
        assert!(report.conflicts.iter().all(|conflict| conflict.about.table == table), "{sql}: {report:?}");
        assert_eq!(one.dump(), rig.dump(), "{sql}");
        assert_eq!(rig.dump()["rows of other"].len(), 1, "{sql}");
        assert_eq!(one.sync().conflicts, [], "{sql}");
    }
}

#[test]
fn a_row_that_both_added_is_overwritten_by_the_last_and_told() {
    let rig = Rig::new();
    let one = rig.open("one");
    one.run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    one.sync();
    let two = rig.open("two");
    one.run("INSERT INTO t(v) VALUES ('one')");
    two.run("INSERT INTO t(v) VALUES ('two')");
    assert_eq!(one.sync().conflicts, []);
    let report = two.sync();
    let [conflict] = &report.conflicts[..] else { panic!("{report:?}") };
    assert!(conflict.error.contains("overwritten"), "{}", conflict.error);
    one.sync();
    assert_eq!(one.dump()["rows of t"], [r#"{"type":"integer","value":"1"},{"type":"text","value":"two"}"#]);
    assert_eq!(one.dump(), two.dump());
}

#[test]
fn an_update_that_comes_after_a_delete_brings_the_row_back_and_is_told() {
    let rig = Rig::new();
    let one = rig.open("one");
    one.run("CREATE TABLE t(id TEXT PRIMARY KEY, v, w)");
    one.run("INSERT INTO t VALUES ('a', 1, 2), ('b', 1, 2)");
    one.sync();
    let two = rig.open("two");
    one.run("DELETE FROM t");
    two.run("UPDATE t SET v = 9 WHERE id = 'a'");
    one.sync();
    let report = two.sync();
    assert_eq!(report.conflicts.len(), 1, "{report:?}");
    assert_eq!(two.dump(), rig.dump());
    assert_eq!(rig.ask("SELECT id || v || w FROM t").len(), 1);
}

/// Whether somebody else changed it or removed it cannot be known of a row without a key.
#[test]
fn a_delete_of_a_row_without_a_key_that_is_not_as_it_was_is_told() {
    let rig = Rig::new();
    let one = rig.open("one");
    one.run("CREATE TABLE t(a, b)");
    one.run("INSERT INTO t VALUES ('x', 1), ('y', 2)");
    one.sync();
    let two = rig.open("two");
    one.run("UPDATE t SET b = 7 WHERE a = 'x'");
    two.run("DELETE FROM t");
    assert_eq!(one.sync().conflicts, []);
    let report = two.sync();
    let [conflict] = &report.conflicts[..] else { panic!("{report:?}") };
    let line = "delete from t (rowid = 1), on the remote: somebody else changed or deleted the row; nothing is deleted";
    assert_eq!(conflict.to_string(), line);
    assert_eq!(two.dump(), rig.dump());
    assert_eq!(rig.dump()["rows of t"].len(), 1);
}
