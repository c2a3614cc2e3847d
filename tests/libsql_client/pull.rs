//! Replicas: what is pulled, written and refused.

use std::fs;

use logmirror::sqlite::DatabaseError;
use logmirror::sync::{Direction, Replica, SyncError};

use crate::fake::{Fault, calls, pulled};
use crate::sqlite::{self, dump, large, rows};
use crate::support::sqlite::Sqlite;
use crate::{Stage, beside, frames, info, litter, set_aside, set_info};

#[test]
fn a_replica_is_made_and_kept_up() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    let total = frames(&db);
    stage.fake.seen();
    let progress = stage.pull(&replica).unwrap();
    assert_eq!((progress.commits, progress.next.0), (11, u64::from(total) + 1));
    let last = format!("GET sync/1/{}/{}", total + 1, total + 129);
    let seen = stage.fake.seen();
    assert_eq!(calls(&seen), ["GET info", "GET export/1", "GET sync/1/1/129", &last]);
    assert_eq!((pulled(&seen), info(&replica), frames(&replica)), (total, (1, total), total));
    assert_eq!(dump(&replica), dump(&db));
    assert_eq!(litter(&replica), Vec::<String>::new());

    sqlite::run_and_die(&db, &large(300));
    stage.push(&db).unwrap();
    let more = frames(&db);
    stage.fake.seen();
    stage.pull(&replica).unwrap();
    let seen = stage.fake.seen();
    assert_eq!(seen[0].call, format!("GET sync/1/{total}/{}", total + 1), "the last frame held is compared");
    assert_eq!((pulled(&seen), info(&replica)), (more - total + 1, (1, more)));
    assert_eq!(dump(&replica), dump(&db));
    let salts = |path| fs::read(beside(path, "-wal")).unwrap()[16..24].to_vec();
    assert_ne!(salts(&replica), salts(&db), "salts of its own");
}

#[test]
fn an_empty_log_makes_an_empty_replica() {
    let stage = Stage::new();
    let replica = stage.path("replica.db");
    stage.pull(&replica).unwrap();
    assert_eq!((info(&replica), dump(&replica).contains("CREATE")), ((1, 0), false));
    // It can be the first to be written to.
    sqlite::run_and_die(&replica, &rows(3));
    stage.push(&replica).unwrap();
    assert_eq!((stage.fake.frames(), info(&replica)), (frames(&replica), (1, frames(&replica))));
}

#[test]
fn a_replica_opens_in_place_and_pulls_on_after_sqlite_checkpointed_it() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!(sqlite::run(&replica, "PRAGMA integrity_check; SELECT count(*) FROM t").unwrap(), "ok\n10\n");
    assert!(!beside(&replica, "-wal").exists(), "SQLite took it for its own");
    let before = frames(&db);
    sqlite::run_and_die(&db, &rows(5));
    stage.push(&db).unwrap();
    stage.fake.seen();
    stage.pull(&replica).unwrap();
    let seen = stage.fake.seen();
    assert_eq!(pulled(&seen), frames(&db) - before + 1, "what is new, and the last frame of before, to compare it");
    assert!(!calls(&seen).iter().any(|call| call.starts_with("GET export")), "{seen:?}");
    assert_eq!((dump(&replica), info(&replica)), (dump(&db), (1, frames(&db))));
    assert_eq!(litter(&replica), Vec::<String>::new());
}

#[test]
fn what_only_a_checkpointed_replica_has_is_set_aside() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    sqlite::run(&replica, "INSERT INTO t VALUES('mine', 1)").unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!(dump(&replica), dump(&db));
    let aside = set_aside(&replica);
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(dump(&aside[0]).contains("mine"));
}

#[test]
fn a_replica_with_frames_of_its_own_is_not_touched_while_they_may_be_pushed() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    sqlite::run_and_die(&replica, "INSERT INTO t VALUES('mine', 1);");
    let (before, total) = (dump(&replica), frames(&db));
    let error = stage.pull(&replica).unwrap_err();
    assert!(matches!(error, SyncError::Ahead { server, .. } if server == total) && error.is_data(), "{error}");
    assert_eq!((dump(&replica), info(&replica)), (before.clone(), (1, total)));
    sqlite::run_and_die(&db, "INSERT INTO t VALUES('theirs', 1);");
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!(dump(&replica), dump(&db));
    let aside: Vec<_> = set_aside(&replica).iter().map(|aside| dump(aside)).collect();
    assert_eq!(aside, [before], "what cannot be pushed any more");
}

#[test]
fn a_server_that_lost_its_end_or_has_another_log_is_an_error() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    let total = frames(&db);
    let lost = stage.fake.store().generations[0].frames.split_off(4);
    let error = stage.pull(&replica).unwrap_err();
    assert!(matches!(error, SyncError::Ahead { local, .. } if local == total), "{error}");
    stage.fake.store().generations[0].frames.extend(lost);
    stage.fake.store().generations[0].frames[total as usize - 1][4000] ^= 1;
    let error = stage.pull(&replica).unwrap_err();
    assert!(matches!(error, SyncError::Fork { frame, .. } if frame == total), "{error}");
    set_info(&replica, 3, total);
    stage.fake.store().generations[0].frames[total as usize - 1][4000] ^= 1;
    let error = stage.pull(&replica).unwrap_err();
    assert!(matches!(error, SyncError::Ahead { generation: 3, .. }), "{error}");
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn those_who_have_it_open_read_what_is_pulled_and_stop_nothing() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    let (mut idle, mut busy) = (Sqlite::open(&replica), Sqlite::open(&replica));
    let count = |sqlite: &mut Sqlite| sqlite.rows("SELECT count(*) FROM t")[0][0].as_i64().unwrap();
    busy.rows("BEGIN");
    assert_eq!((count(&mut idle), count(&mut busy)), (10, 10));
    for round in 1..4 {
        sqlite::run_and_die(&db, &rows(5));
        stage.push(&db).unwrap();
        stage.pull(&replica).unwrap();
        assert_eq!((count(&mut idle), count(&mut busy)), (10 + 5 * round, 10));
    }
    busy.rows("COMMIT");
    assert_eq!(count(&mut busy), 25);
    // A generation ends: what was read is moved into the database file, in sight of both.
    stage.fake.roll();
    stage.pull(&replica).unwrap();
    assert_eq!((info(&replica), frames(&replica), count(&mut idle)), ((2, 0), 0, 25));
    assert_eq!(idle.rows("PRAGMA integrity_check"), serde_json::json!([["ok"]]));
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn a_base_that_is_not_in_wal_mode_makes_a_replica_that_is() {
    let stage = Stage::new();
    let (base, replica) = (stage.path("base.db"), stage.path("replica.db"));
    sqlite::run(&base, &rows(50)).unwrap();
    assert_eq!(fs::read(&base).unwrap()[18..20], [1, 1]);
    stage.fake.store().generations[0].base = fs::read(&base).unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!((fs::read(&replica).unwrap()[18..20].to_vec(), dump(&replica)), (vec![2, 2], dump(&base)));
    // Without metadata it is known by its pages.
    fs::remove_file(beside(&replica, "-info")).unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!((litter(&replica), info(&replica)), (Vec::<String>::new(), (1, 0)));
    // One of before, which is not.
    fs::copy(&base, &replica).unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!(fs::read(&replica).unwrap()[18..20], [2, 2]);
}

#[test]
fn a_generation_ends_once_reads_that_started_in_it_have_ended() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    let mut reader = Sqlite::open(&replica);
    reader.rows("BEGIN; SELECT count(*) FROM t");
    // It reads from the WAL: all of that can be copied, but its frames must stay.
    let (mut held, known) = Replica::open(&replica).unwrap().unwrap();
    held.resume(known.unwrap());
    held.fold().unwrap();
    assert_eq!((info(&replica), held.frames(), frames(&replica)), ((2, 0), 0, frames(&db)));
    let frame = [&[0, 0, 0, 1, 0, 0, 0, 2][..], &[0; 16], &fs::read(&replica).unwrap()[..4096]].concat();
    let error = held.apply(&frame).unwrap_err();
    assert!(matches!(error, SyncError::Database(DatabaseError::ReadInTheWay { .. })), "{error}");
    assert!(error.is_busy() && error.is_transient() && !error.is_data());
    drop(held);
    let (mut held, known) = Replica::open(&replica).unwrap().unwrap();
    held.resume(known.unwrap());
    assert!(held.apply(&frame).unwrap_err().is_busy());
    assert_eq!(reader.rows("SELECT count(*) FROM t"), serde_json::json!([[10]]));
    reader.rows("COMMIT");
    held.apply(&frame).unwrap();
    assert_eq!((info(&replica), frames(&replica)), ((2, 1), 1));
    assert_eq!(reader.rows("SELECT count(*) FROM t"), serde_json::json!([[10]]));
}

#[test]
fn sqlite_reads_a_replica_that_is_held_and_only_one_of_us_writes_it() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    let (held, _) = Replica::open(&replica).unwrap().unwrap();
    assert_eq!(sqlite::run(&replica, "SELECT count(*) FROM t").unwrap(), "10\n");
    assert!(beside(&replica, "-wal").exists(), "it was not the last to leave");
    let twice = Replica::open(&replica).unwrap_err();
    assert!(matches!(twice, SyncError::Database(DatabaseError::Busy { .. })) && twice.is_transient(), "{twice}");
    drop(held);
    sqlite::run(&replica, "SELECT 1 FROM t").unwrap();
    assert!(!beside(&replica, "-wal").exists());
}

#[test]
fn an_empty_file_as_libsql_leaves_it_gets_its_first_page() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    fs::write(&replica, "").unwrap();
    set_info(&replica, 1, 0);
    stage.pull(&replica).unwrap();
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn bodies_that_are_no_frames_are_refused() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    let empty = frames(&db) as usize * 4120;
    for cut in [1, 4119, empty] {
        stage.fake.fault("GET sync", Fault::Cut(cut));
        let error = stage.pull(&replica).unwrap_err();
        assert!(matches!(error, SyncError::Protocol { .. }), "{error}");
        assert_eq!(info(&replica), (1, 0));
    }
    stage.fake.fault("GET sync", Fault::Answer(200, "\0".repeat(4120)));
    let error = stage.pull(&replica).unwrap_err();
    assert!(matches!(error, SyncError::Protocol { .. }), "{error}");
    stage.fake.fault("GET sync", Fault::Answer(200, "x".repeat(129 * 4120)));
    let error = stage.pull(&replica).unwrap_err();
    assert!(error.to_string().contains("more frames than were asked for"), "{error}");
    for (status, text) in [(400, "what?"), (500, "{}"), (404, ""), (410, "")] {
        stage.fake.fault("GET sync", Fault::Answer(status, text.into()));
        let error = stage.pull(&replica).unwrap_err();
        assert!(matches!(error, SyncError::Status { status: found, .. } if found == status), "{error}");
    }
    // An answer that ends inside a transaction is no end.
    stage.fake.fault("GET sync", Fault::Cut((frames(&db) as usize - 1) * 4120));
    stage.fake.fault("GET sync", Fault::Answer(500, r#"{"generation":1}"#.into()));
    stage.pull(&replica).unwrap();
    assert_eq!((frames(&replica), info(&replica)), (0, (1, 0)));
    stage.pull(&replica).unwrap();
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn a_server_of_another_kind_leaves_nothing_here() {
    let stage = Stage::new();
    let replica = stage.path("replica.db");
    for _ in 0..2 {
        stage.fake.fault("GET", Fault::Answer(404, "no such page".into()));
    }
    let error = stage.pull(&replica).unwrap_err();
    assert!(matches!(error, SyncError::Status { status: 404, .. }), "{error}");
    assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 0);
}

#[test]
fn exports_are_the_base_and_must_be_databases() {
    let stage = Stage::new();
    let replica = stage.path("replica.db");
    for (export, wanted) in [("x".repeat(8192), "does not start like one"), ("x".repeat(50), "it has 50 bytes")] {
        stage.fake.store().generations[0].base = export.into_bytes();
        let error = stage.pull(&replica).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(wanted) && !text.contains("-export.tmp"), "{text}");
        assert!(!replica.exists() && !beside(&replica, "-info").exists());
        assert_eq!(litter(&replica), Vec::<String>::new());
    }
    let base = stage.path("base.db");
    sqlite::run(&base, &format!("PRAGMA journal_mode=WAL; {}", rows(50))).unwrap();
    stage.fake.store().generations[0].base = fs::read(&base).unwrap();
    // Left by another database of that name.
    fs::write(beside(&replica, "-wal"), "left over").unwrap();
    set_info(&replica, 1, 77);
    stage.pull(&replica).unwrap();
    assert_eq!(fs::read(&replica).unwrap(), fs::read(&base).unwrap());
    assert_eq!(info(&replica), (1, 0));
    // It is a full replica of that server: what it adds can be pushed.
    sqlite::run_and_die(&replica, &rows(1));
    stage.push(&replica).unwrap();
    let second = stage.path("second.db");
    stage.run(Direction::Pull, &second, 1).unwrap();
    assert_eq!(dump(&second), dump(&replica));
}
