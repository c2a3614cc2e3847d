//! A log whose database has a rollback journal at its source: its header says so, in the base and in frames.

use logmirror::replica::Value;

use crate::Rig;
use crate::support::frames::FrameLog;
use crate::support::sqlite::connect;

#[test]
fn a_replica_of_a_database_with_a_rollback_journal_pushes_and_pulls() {
    for with_frames in [false, true] {
        let rig = Rig::new();
        let path = rig.path("source.db");
        let made = |sql: &str| {
            let db = connect(&path);
            db.execute_batch(sql).unwrap();
            db.close().unwrap();
            std::fs::read(&path).unwrap()
        };
        let base = made(
            "PRAGMA journal_mode = DELETE; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, 'base')",
        );
        assert_eq!(base[18..20], [1, 1]);
        let answer = rig.service.call("PUT", "/logs/app/generations/1", "", &base);
        assert_eq!(answer.status, 201, "{}", answer.text());
        if with_frames {
            let after = made("CREATE TABLE u(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (2, 'frame')");
            let log = FrameLog { base, ..FrameLog::new(4096, false) }.becomes(&after);
            let answer = rig.service.append("app", "?from=1", &log.stream(&[]));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let (one, two) = (rig.open("one"), rig.open("two"));
        one.run("INSERT INTO t(b) VALUES ('of one')");
        assert_eq!(one.sync().conflicts, []);
        two.run("UPDATE t SET b = 'of two' WHERE a = 1");
        assert_eq!(two.sync().conflicts, []);
        assert_eq!(one.sync().conflicts, []);
        assert_eq!((one.dump(), two.dump()), (rig.dump(), rig.dump()), "with frames: {with_frames}");
        let written = rig.ask("SELECT count(*) FROM t WHERE b IN ('of one', 'of two')");
        assert_eq!(written, [[Value::Integer(2)]], "with frames: {with_frames}");
    }
}
