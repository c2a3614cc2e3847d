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
