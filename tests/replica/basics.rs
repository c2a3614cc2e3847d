//! One replica or two, and nothing in their way.

use super::Rig;

#[test]
fn changes_go_to_the_remote_and_come_home() {
    let rig = Rig::new();
    let one = rig.open("one");
    one.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b, c BLOB)");
    one.run("INSERT INTO t VALUES (1, 'x', x'00ff'), (2, NULL, NULL), (3, 1.5, 'ü')");
    let report = one.sync();
    assert!(report.conflicts.is_empty(), "{report:?}");
    assert_eq!(rig.dump(), one.dump());
    let two = rig.open("two");
    assert_eq!(two.dump(), one.dump());
    two.run("UPDATE t SET b = 'two' WHERE a = 1");
    two.run("DELETE FROM t WHERE a = 2");
    two.run("INSERT INTO t(b) VALUES ('new')");
    one.run("UPDATE t SET c = x'aa' WHERE a = 1");
    two.sync();
    let report = one.sync();
    assert!(report.conflicts.is_empty(), "{report:?}");
    two.sync();
    assert_eq!(one.dump(), rig.dump());
    assert_eq!(two.dump(), rig.dump());
    assert_eq!(rig.dump()["rows of t"].len(), 3, "{:?}", rig.dump());
}

#[test]
fn a_sync_with_nothing_to_do_is_one_request() {
    let rig = Rig::new();
    let one = rig.open("one");
    assert!(one.sync().requests <= 2);
    one.run("CREATE TABLE t(a)");
    one.sync();
    for _ in 0..3 {
        assert_eq!(one.sync().requests, 1);
    }
    drop(one);
    let one = rig.open("one");
    assert_eq!(one.sync().requests, 1);
}

#[test]
fn a_replica_that_was_away_for_three_generations_comes_home_with_its_changes() {
    let rig = Rig::new();
    rig.ask("CREATE TABLE t(a TEXT PRIMARY KEY, b)");
    rig.ask("CREATE TABLE n(x)");
    let one = rig.open("one");
    one.run("INSERT INTO t VALUES ('one', 1)");
    one.run("INSERT INTO n VALUES ('one')");
    for round in 0..3 {
        rig.ask(&format!("INSERT INTO t VALUES ('there {round}', {round})"));
        rig.ask(&format!("INSERT INTO n VALUES ('there {round}')"));
        assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    }
    assert_eq!(rig.service.status("app")["generation"], 4);
    let report = one.sync();
    assert!(report.conflicts.is_empty(), "{report:?}");
    assert_eq!(one.dump(), rig.dump());
    assert_eq!((rig.dump()["rows of t"].len(), rig.dump()["rows of n"].len()), (4, 4));
    assert_eq!(one.sync().requests, 1);
}
