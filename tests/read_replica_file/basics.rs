//! What a commit, a checkpoint and a restart of the WAL mean to readers.

use std::fs;

use logmirror::sqlite::DatabaseError;
use logmirror::sqlite::read_replica::{Checkpointed, ReadReplicaFile, Touched};
use serde_json::json;

use crate::origin::{Origin, append};
use crate::support::sqlite::{Sqlite, assert_sound, connect, dump, rows};

const SCHEMA: &str = "CREATE TABLE t (n INTEGER PRIMARY KEY, x); INSERT INTO t (x) VALUES (randomblob(100))";
const INSERT: &str = "INSERT INTO t (x) VALUES (randomblob(3000))";

#[test]
fn readers_that_are_connected_see_each_commit_as_soon_as_it_returns() {
    let mut origin = Origin::new(4096, SCHEMA);
    let mut replica = origin.replica("replica.db");
    let here = connect(replica.path());
    let mut there = Sqlite::open(replica.path());
    for count in 2..300 {
        origin.run_both(&mut replica, INSERT);
        assert_eq!(rows(&here, "SELECT count(*) FROM t").unwrap(), [[json!(count)]]);
        assert_eq!(there.rows("SELECT count(*) FROM t"), json!([[count]]));
        if count % 50 == 0 {
            assert_sound(&here);
            let frames = replica.frames();
            assert_eq!(replica.checkpoint().unwrap(), Checkpointed { frames, copied: frames, restarted: true });
            assert_eq!(dump(&here), origin.dump());
        }
    }
    assert_eq!(dump(&here), origin.dump());
    assert_eq!(there.rows("PRAGMA integrity_check"), json!([["ok"]]));
    there.close();
    drop(here);
    let path = replica.path().to_owned();
    replica.close().unwrap();
    assert_eq!(fs::metadata(format!("{}-wal", path.display())).unwrap().len(), 0);
    let copy = origin.dir.path().join("copy.db");
    fs::copy(&path, &copy).unwrap();
    assert_eq!(dump(&connect(&copy)), origin.dump());
}

#[test]
fn a_transaction_is_not_seen_before_it_is_committed_and_an_old_read_sees_the_old_state() {
    let mut origin = Origin::new(4096, SCHEMA);
    let mut replica = origin.replica("replica.db");
    let (old, new) = (connect(replica.path()), connect(replica.path()));
    old.execute_batch("BEGIN").unwrap();
    let count = |db| rows(db, "SELECT count(*) FROM t").unwrap()[0][0].as_i64().unwrap();
    assert_eq!(count(&old), 1);
    for round in 0..5 {
        let frames = origin.run(INSERT);
        append(&mut replica, &frames);
        assert_eq!((count(&old), count(&new)), (1, round + 1));
        replica.commit().unwrap();
        assert_eq!((count(&old), count(&new)), (1, round + 2));
        let done = replica.checkpoint().unwrap();
        assert_eq!((done.copied, done.restarted), (0, false), "somebody reads the file as it was");
    }
    old.execute_batch("COMMIT; BEGIN").unwrap();
    assert_eq!(count(&old), 6);
    origin.run_both(&mut replica, INSERT);
    let done = replica.checkpoint().unwrap();
    assert!(0 < done.copied && done.copied < done.frames, "{done:?}");
    assert_eq!((count(&old), count(&new)), (6, 7));
    old.execute_batch("COMMIT").unwrap();
    assert!(replica.checkpoint().unwrap().restarted);
    origin.run_both(&mut replica, INSERT);
    assert_eq!((count(&old), count(&new), replica.frames() < 10), (8, 8, true));
    drop((old, new));
}

#[test]
fn what_another_program_writes_is_noticed_and_not_written_over() {
    let mut origin = Origin::new(4096, SCHEMA);
    let mut replica = origin.replica("replica.db");
    origin.run_both(&mut replica, INSERT);
    let mark = replica.mark().unwrap();
    assert_eq!(replica.touched_since(&mark), Touched::No);
    let mut other = Sqlite::open(replica.path());
    other.rows("SELECT * FROM t");
    assert_eq!(replica.touched_since(&mark), Touched::No);
    other.rows("DELETE FROM t");
    assert_eq!(replica.touched_since(&mark), Touched::Maybe);
    let frames = origin.run(INSERT);
    let refused = replica.append(crate::origin::claims(&frames, 4096)).unwrap_err();
    assert!(matches!(refused, DatabaseError::WrittenByOthers { .. }), "{refused}");
    assert!(matches!(replica.checkpoint().unwrap_err(), DatabaseError::WrittenByOthers { .. }));
    assert_eq!(other.rows("SELECT count(*) FROM t"), json!([[0]]));
    other.rows("INSERT INTO t (x) VALUES (7)");
}

#[test]
fn it_goes_on_where_it_was_closed_and_the_mark_says_whether_anybody_wrote() {
    let mut origin = Origin::new(4096, SCHEMA);
    let mut replica = origin.replica("replica.db");
    let path = replica.path().to_owned();
    for close in [false, true, true, false, false] {
        origin.run_both(&mut replica, INSERT);
        let mark = if close {
            replica.close().unwrap()
        } else {
            let mark = replica.mark().unwrap();
            drop(replica);
            mark
        };
        replica = ReadReplicaFile::open(&path).unwrap().unwrap();
        assert_eq!(replica.touched_since(&mark), Touched::No, "{close}");
    }
    origin.run_both(&mut replica, INSERT);
    let mark = replica.close().unwrap();
    // A reader that comes and goes while nobody is there.
    let mut reader = Sqlite::open(&path);
    assert_eq!(reader.rows("SELECT count(*) FROM t"), json!([[7]]));
    reader.close();
    let replica = ReadReplicaFile::open(&path).unwrap().unwrap();
    assert_eq!(replica.touched_since(&mark), Touched::No);
    drop(replica);
    let mut writer = Sqlite::open(&path);
    writer.rows("UPDATE t SET x = 1");
    writer.close();
    let replica = ReadReplicaFile::open(&path).unwrap().unwrap();
    assert_eq!(replica.touched_since(&mark), Touched::Maybe);
}
