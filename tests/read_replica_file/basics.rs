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

#[test]
fn frames_that_came_after_a_mark_can_be_read_and_all_pages_be_copied() {
    let mut origin = Origin::new(4096, SCHEMA);
    let mut replica = origin.replica("replica.db");
    let path = replica.path().to_owned();
    for round in 0..4 {
        let mark = replica.mark().unwrap();
        assert_eq!(replica.added_since(&mark).unwrap(), Some(replica.frames() + 1..replica.frames() + 1));
        let frames = origin.run(INSERT);
        append(&mut replica, &frames);
        replica.commit().unwrap();
        drop(replica);
        replica = ReadReplicaFile::open(&path).unwrap().unwrap();
        assert_eq!(replica.touched_since(&mark), Touched::Maybe);
        let added = replica.added_since(&mark).unwrap().unwrap();
        let mut page = vec![0; 4096];
        let mut found = Vec::new();
        for frame in added {
            let (number, size) = replica.read_frame(frame, &mut page).unwrap();
            found.push((number, size, page.clone()));
        }
        let wanted: Vec<_> =
            crate::origin::claims(&frames, 4096).map(|(n, size, page)| (n, size, page.to_vec())).collect();
        assert!(found == wanted);
        assert!(replica.read_frame(replica.frames() + 1, &mut page).is_err());
        let copy = origin.dir.path().join(format!("copy-{round}.db"));
        replica.copy_to(&copy).unwrap();
        assert_eq!(dump(&connect(&copy)), origin.dump());
        if round == 1 {
            assert!(replica.checkpoint().unwrap().restarted);
            assert_eq!(replica.added_since(&mark).unwrap(), None, "the database file is another one");
        }
    }
}

#[test]
fn a_wal_whose_frames_are_kept_is_copied_but_does_not_start_again() {
    let mut origin = Origin::new(4096, SCHEMA);
    let mut replica = origin.replica("replica.db");
    replica.keep_frames(true);
    replica.set_sequence(7);
    for _ in 0..5 {
        origin.run_both(&mut replica, INSERT);
        let (before, done) = (replica.frames(), replica.checkpoint().unwrap());
        assert_eq!(done, Checkpointed { frames: before, copied: before, restarted: false });
    }
    let wal = fs::read(format!("{}-wal", replica.path().display())).unwrap();
    assert_eq!(wal[12..16], [0, 0, 0, 7]);
    let frames = replica.frames();
    replica.keep_frames(false);
    origin.run_both(&mut replica, INSERT);
    assert!(replica.frames() < frames);
    replica.keep_frames(true);
    let mut other = Sqlite::open(replica.path());
    other.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    let refused = replica.append(crate::origin::claims(&origin.run(INSERT), 4096)).unwrap_err();
    assert!(matches!(refused, DatabaseError::WrittenByOthers { .. }), "{refused}");
}

#[test]
fn whatever_is_no_replica_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("replica.db");
    assert!(ReadReplicaFile::open(&path).unwrap().is_none());
    fs::write(&path, "no database").unwrap();
    assert!(matches!(ReadReplicaFile::open(&path).unwrap_err(), DatabaseError::NotADatabase { .. }));
    let taken = ReadReplicaFile::create(&path, &path).unwrap_err();
    assert!(taken.to_string().contains("exists"), "{taken}");
    fs::remove_file(&path).unwrap();
    connect(&path).execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(ReadReplicaFile::open(&path).unwrap_err(), DatabaseError::WrittenByOthers { .. }));
    assert_eq!(crate::support::files_named(dir.path()), ["replica.db"]);
    // As a draft it is one: what was left of another replica goes.
    let draft = dir.path().join("draft");
    fs::rename(&path, &draft).unwrap();
    fs::write(dir.path().join("replica.db-wal"), "left").unwrap();
    fs::write(dir.path().join("replica.db-shm"), "left").unwrap();
    let replica = ReadReplicaFile::create(&path, &draft).unwrap();
    assert_eq!((replica.frames(), replica.pages().unwrap(), draft.exists()), (0, 2, false));
    assert_eq!(
        rows(&connect(&path), "PRAGMA journal_mode; SELECT count(*) FROM t").unwrap(),
        [[json!("wal")], [json!(0)]]
    );
    drop(replica);
    // Whoever has it open sees the file that has its name, not one that took its place.
    let mut replica = ReadReplicaFile::open(&path).unwrap().unwrap();
    fs::copy(&path, &draft).unwrap();
    fs::rename(&draft, &path).unwrap();
    assert!(matches!(replica.checkpoint().unwrap_err(), DatabaseError::WrittenByOthers { .. }));
}

#[test]
fn a_file_that_takes_the_place_of_another_keeps_its_wal_when_those_who_read_that_one_leave() {
    let mut origin = Origin::new(4096, SCHEMA);
    let mut first = origin.replica("replica.db");
    origin.run_both(&mut first, INSERT);
    let path = first.path().to_owned();
    let mut old = Sqlite::open(&path);
    assert_eq!(old.rows("SELECT count(*) FROM t"), json!([[2]]));
    drop(first);
    let mut other = Origin::new(8192, SCHEMA);
    other.run(INSERT);
    let made = other.replica("other.db");
    made.copy_to(&origin.dir.path().join("draft.db")).unwrap();
    let mut second = ReadReplicaFile::replace(&path, &origin.dir.path().join("draft.db")).unwrap();
    other.run_both(&mut second, INSERT);
    assert_eq!(old.rows("SELECT count(*) FROM t"), json!([[2]]));
    let mut new = Sqlite::open(&path);
    assert_eq!(new.rows("SELECT count(*) FROM t"), json!([[3]]));
    old.close();
    second.check().unwrap();
    other.run_both(&mut second, INSERT);
    assert_eq!(new.rows("SELECT count(*) FROM t"), json!([[4]]));
    assert_eq!(new.rows("PRAGMA integrity_check"), json!([["ok"]]));
}

#[test]
fn a_database_file_that_was_cut_is_noticed_before_anything_is_made_of_it() {
    for copied in [false, true] {
        let mut origin = Origin::new(4096, SCHEMA);
        (0..20).for_each(|_| drop(origin.run(INSERT)));
        let mut replica = origin.replica("replica.db");
        origin.run_both(&mut replica, INSERT);
        if copied {
            replica.keep_frames(true);
            replica.checkpoint().unwrap();
        }
        replica.check().unwrap();
        fs::File::options().write(true).open(replica.path()).unwrap().set_len(12_288).unwrap();
        let frames = origin.run(INSERT);
        for refused in [
            replica.check(),
            replica.mark().map(drop),
            replica.append(crate::origin::claims(&frames, 4096)),
            replica.checkpoint().map(drop),
            replica.close().map(drop),
        ] {
            let refused = refused.unwrap_err();
            assert!(refused.to_string().contains("its file was cut"), "{refused}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_connection_is_not_taken_for_a_cut() {
    let mut origin = Origin::new(4096, SCHEMA);
    (0..20).for_each(|_| drop(origin.run(INSERT)));
    let mut replica = origin.replica("replica.db");
    let other = connect(replica.path());
    for (sql, mode) in [("DELETE FROM t WHERE n > 3; VACUUM", "FULL"), (INSERT, "TRUNCATE"), (INSERT, "PASSIVE")] {
        origin.run_both(&mut replica, sql);
        other.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
        replica.check().unwrap();
        replica.mark().unwrap();
        origin.run_both(&mut replica, INSERT);
        replica.checkpoint().unwrap();
        assert_eq!(dump(&other), origin.dump(), "{mode}");
    }
}

#[test]
fn a_file_that_has_another_name_does_not_change_under_it() {
    let mut origin = Origin::new(4096, SCHEMA);
    let mut replica = origin.replica("replica.db");
    origin.run_both(&mut replica, INSERT);
    assert!(replica.checkpoint().unwrap().restarted);
    let kept = origin.dir.path().join("kept.db");
    fs::hard_link(replica.path(), &kept).unwrap();
    let bytes = fs::read(&kept).unwrap();
    // Also by a WAL that is due.
    while replica.wal_bytes() < 5 << 20 {
        origin.run_both(&mut replica, "INSERT INTO t (x) VALUES (randomblob(300000))");
        replica.checkpoint_if_due().unwrap();
    }
    let (frames, linked) = (replica.frames(), replica.linked());
    assert_eq!(replica.checkpoint().unwrap(), Checkpointed { frames, copied: 0, restarted: false });
    assert_eq!((linked, dump(&connect(replica.path()))), (Some(2), origin.dump()));
    assert!(fs::read(&kept).unwrap() == bytes);
    fs::remove_file(&kept).unwrap();
    assert_eq!(replica.checkpoint().unwrap(), Checkpointed { frames, copied: frames, restarted: true });
    assert_eq!(replica.linked(), None);
    // Nor when it ends.
    origin.run_both(&mut replica, INSERT);
    fs::hard_link(replica.path(), &kept).unwrap();
    let (path, bytes) = (replica.path().to_owned(), fs::read(&kept).unwrap());
    replica.close().unwrap();
    assert!(fs::read(&kept).unwrap() == bytes);
    assert_eq!(dump(&connect(&path)), origin.dump());
}
