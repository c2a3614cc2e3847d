//! Databases that are pushed and pulled by turns: nothing that was committed to one is taken for pushed unseen.

use std::fs;

use logmirror::sync::SyncError;

use crate::fake::Fault;
use crate::sqlite::{self, dump, rows};
use crate::support::process::{arg, mirror};
use crate::{Stage, beside, frames, info, litter, set_aside, set_info};

/// What SQLite commits and puts into the database file: the connection that closes it last removes the WAL.
fn commit_and_close(database: &std::path::Path, value: &str) {
    sqlite::run(database, &format!("INSERT INTO t VALUES('{value}', 1)")).unwrap();
    assert!(!beside(database, "-wal").exists());
}

/// That the server holds what the database does, and nothing is sent twice.
fn is_pushed(stage: &Stage, database: &std::path::Path) {
    stage.push(database).unwrap();
    let other = stage.path("other.db");
    stage.pull(&other).unwrap();
    assert_eq!(dump(&other), dump(database));
    assert_eq!(stage.push(database).unwrap().bytes, 0, "nothing is sent twice");
}

/// The same of what the application commits now, and of so many rows that are in its next WAL.
fn what_it_commits_is_pushed(stage: &Stage, database: &std::path::Path, in_another_wal: u32) {
    commit_and_close(database, "mine");
    if in_another_wal > 0 {
        sqlite::run_and_die(database, &rows(in_another_wal));
    }
    is_pushed(stage, database);
}

#[test]
fn what_is_committed_after_a_pull_over_a_pushed_database_is_pushed() {
    for in_another_wal in [0, 1, 30] {
        let stage = Stage::new();
        let db = stage.database(&rows(10));
        stage.push(&db).unwrap();
        stage.pull(&db).unwrap();
        what_it_commits_is_pushed(&stage, &db, in_another_wal);
    }
}

#[test]
fn what_is_committed_after_a_pull_of_what_others_pushed_is_pushed() {
    let stage = Stage::new();
    let (db, writer) = (stage.database(&rows(10)), stage.path("writer.db"));
    stage.push(&db).unwrap();
    stage.pull(&writer).unwrap();
    sqlite::run_and_die(&writer, &rows(3));
    stage.push(&writer).unwrap();
    stage.pull(&db).unwrap();
    commit_and_close(&db, "mine");
    is_pushed(&stage, &db);
}

#[test]
fn a_pushed_database_stays_an_applications_when_it_was_pulled_over() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    stage.push(&db).unwrap();
    stage.pull(&db).unwrap();
    commit_and_close(&db, "mine");
    let before = (fs::read(&db).unwrap(), fs::read(beside(&db, "-info")).unwrap());
    let ended = mirror(stage.fake.url(), arg(&db), &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.error().contains("may be an application's"), "{ended:?}");
    assert_eq!((fs::read(&db).unwrap(), fs::read(beside(&db, "-info")).unwrap()), before);
    assert_eq!(litter(&db), Vec::<String>::new());
}

#[test]
fn what_is_committed_to_a_replica_is_pushed_wherever_its_wal_went() {
    for rolled in [false, true] {
        for in_another_wal in [0, 1, 30] {
            let stage = Stage::new();
            let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
            stage.push(&db).unwrap();
            if rolled {
                stage.fake.roll();
            }
            stage.pull(&replica).unwrap();
            assert_eq!(info(&replica).1, if rolled { 0 } else { frames(&db) });
            what_it_commits_is_pushed(&stage, &replica, in_another_wal);
        }
    }
}

#[test]
fn without_a_wal_and_a_mark_only_equal_pages_show_that_all_was_pushed() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    stage.push(&db).unwrap();
    let total = frames(&db);
    sqlite::run(&db, "SELECT 1 FROM t").unwrap();
    // As libSQL's own client writes it.
    set_info(&db, 1, total);
    assert_eq!(stage.push(&db).unwrap().bytes, 0);
    for frame in [total, 0] {
        commit_and_close(&db, "mine");
        set_info(&db, 1, frame);
        let error = stage.push(&db).unwrap_err();
        assert!(matches!(error, SyncError::Base { .. }), "{error}");
        assert_eq!((stage.fake.frames(), info(&db)), (total, (1, frame)));
    }
}

#[test]
fn a_frame_that_one_answer_has_otherwise_is_no_fork() {
    for adopt in [false, true] {
        let stage = Stage::new();
        let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
        stage.push(&db).unwrap();
        stage.pull(&replica).unwrap();
        sqlite::run_and_die(&db, &rows(1));
        stage.push(&db).unwrap();
        stage.fake.fault("GET sync", Fault::Flip(1000));
        let flags: &[&str] = if adopt { &["--adopt"] } else { &[] };
        let ended = mirror(stage.fake.url(), arg(&replica), flags);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!((dump(&replica), litter(&replica)), (dump(&db), Vec::new()));
        assert!(stage.fake.store().faults.is_empty());
    }
}

#[test]
fn a_replica_is_made_again_once_and_not_again_and_again() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    for _ in 0..20 {
        let answer = r#"{"status":"checkpoint_needed","generation":0}"#;
        stage.fake.fault("GET sync", Fault::Answer(400, answer.into()));
    }
    // Two servers answer at that URL.
    let ended = mirror(stage.fake.url(), arg(&replica), &["--adopt"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(set_aside(&replica).len() <= 1, "{:?}", litter(&replica));
}
