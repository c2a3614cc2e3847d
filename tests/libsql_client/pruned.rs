//! Generations that the server has deleted, and what its errors say.

use std::fs;

use crate::fake::{Fault, pulled};
use crate::sqlite::{self, dump, rows};
use crate::support::process::{Mirror, arg, mirror, until};
use crate::support::sqlite::Sqlite;
use crate::{Stage, beside, frames, info, litter, set_aside, set_info};

const GONE: &str = r#"{"error":"pruned","message":"generation 1 is no longer here: this log is in generation 3"}"#;

/// A server whose first two generations are gone, a writer at its end, and a replica at the end of the first.
fn pruned() -> (Stage, std::path::PathBuf, std::path::PathBuf) {
    let stage = Stage::new();
    let (db, replica, writer) = (stage.database(&rows(10)), stage.path("replica.db"), stage.path("writer.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    for _ in 0..2 {
        stage.fake.roll();
        stage.pull(&writer).unwrap();
        sqlite::run_and_die(&writer, &rows(20));
        sqlite::run_and_die(&writer, "DELETE FROM t WHERE a < 3;");
        stage.push(&writer).unwrap();
    }
    for generation in 0..2 {
        stage.fake.store().generations[generation].gone = true;
    }
    stage.fake.seen();
    (stage, writer, replica)
}

#[test]
fn a_replica_whose_generation_was_deleted_goes_on_from_the_base_of_the_current_one() {
    let (stage, writer, replica) = pruned();
    let mut reader = Sqlite::open(&replica);
    assert_eq!(reader.rows("SELECT count(*) FROM t"), serde_json::json!([[10]]));
    let ended = mirror(stage.fake.url(), arg(&replica), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!((info(&replica).0, dump(&replica)), (3, dump(&writer)));
    assert_eq!(litter(&replica), Vec::<String>::new(), "all that it held was the server's");
    let count = Sqlite::open(&writer).rows("SELECT count(*) FROM t");
    assert_eq!(reader.rows("SELECT count(*) FROM t"), count, "who has it open goes along");
    stage.fake.seen();
    stage.pull(&replica).unwrap();
    assert_eq!(pulled(&stage.fake.seen()), 1, "it is as any other replica now");
}

#[test]
fn a_follower_whose_generation_was_deleted_while_it_was_away_goes_on() {
    let (stage, writer, replica) = pruned();
    let follower = Mirror::start(stage.fake.url(), arg(&replica), &["--follow"]);
    until("it has caught up", || (dump(&replica) == dump(&writer)).then_some(()));
    let before = frames(&replica);
    sqlite::run_and_die(&writer, &rows(5));
    stage.push(&writer).unwrap();
    until("it follows", || (frames(&replica) > before && dump(&replica) == dump(&writer)).then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
    assert_eq!(litter(&replica), Vec::<String>::new());
}

#[test]
fn a_replica_at_the_start_of_a_deleted_generation_goes_on_too() {
    let (stage, writer, replica) = pruned();
    stage.fake.store().generations[0].gone = false;
    stage.fake.store().generations[1].gone = false;
    let first = stage.fake.store().generations[1].frames.clone();
    stage.fake.store().generations[1].frames.clear();
    stage.fake.fault("GET sync/2", Fault::Answer(404, String::new()));
    stage.pull(&replica).unwrap_err();
    assert_eq!(info(&replica), (2, 0));
    stage.fake.store().generations[1].frames = first;
    stage.fake.store().generations[1].gone = true;
    stage.pull(&replica).unwrap();
    assert_eq!((info(&replica).0, dump(&replica)), (3, dump(&writer)));
}

#[test]
fn a_crash_before_the_position_was_noted_costs_nothing_when_a_generation_was_deleted() {
    let (stage, writer, replica) = pruned();
    let before = info(&replica);
    // The pages are there, the position is that of before.
    stage.pull(&replica).unwrap();
    set_info(&replica, before.0, before.1);
    let ended = mirror(stage.fake.url(), arg(&replica), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!((info(&replica).0, dump(&replica)), (3, dump(&writer)));
}

#[test]
fn what_was_written_here_is_set_aside_when_the_generation_was_deleted() {
    let (stage, writer, replica) = pruned();
    sqlite::run_and_die(&replica, "INSERT INTO t VALUES('mine', 1);");
    let ended = mirror(stage.fake.url(), arg(&replica), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!((info(&replica).0, dump(&replica)), (3, dump(&writer)));
    assert!(dump(&set_aside(&replica)[0]).contains("mine"));
}

#[test]
fn a_pushed_database_is_not_replaced_unasked_when_the_generation_was_deleted() {
    let stage = Stage::new();
    let (db, writer) = (stage.database(&rows(10)), stage.path("writer.db"));
    stage.push(&db).unwrap();
    stage.fake.roll();
    stage.pull(&writer).unwrap();
    sqlite::run_and_die(&writer, &rows(20));
    stage.push(&writer).unwrap();
    stage.fake.store().generations[0].gone = true;
    sqlite::run_and_die(&db, "INSERT INTO t VALUES('mine', 1);");
    let before = (fs::read(&db).unwrap(), fs::read(beside(&db, "-wal")).unwrap(), info(&db));
    let ended = mirror(stage.fake.url(), arg(&db), &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.error().contains("--adopt"), "{ended:?}");
    assert_eq!((fs::read(&db).unwrap(), fs::read(beside(&db, "-wal")).unwrap(), info(&db)), before);
    assert_eq!(litter(&db), Vec::<String>::new());
    assert_eq!(mirror(stage.fake.url(), arg(&db), &["--adopt"]).code, Some(0));
    assert_eq!(dump(&db), dump(&writer));
    assert!(dump(&set_aside(&db)[0]).contains("mine"));
}

#[test]
fn a_push_whose_generation_was_deleted_says_what_to_do() {
    for checkpointed in [false, true] {
        let stage = Stage::new();
        let db = stage.database(&rows(10));
        stage.push(&db).unwrap();
        if checkpointed {
            sqlite::run(&db, &rows(3)).unwrap();
        }
        let before = (fs::read(beside(&db, "-info")).unwrap(), dump(&db));
        stage.fake.fault("GET sync", Fault::Answer(410, GONE.into()));
        let ended = mirror(arg(&db), stage.fake.url(), &[]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for part in ["this log is in generation 3", "empty log", "pull"] {
            assert!(ended.error().contains(part), "{part:?} is not in {ended:?}");
        }
        assert!(!ended.error().contains(['{', '\\']), "{ended:?}");
        assert_eq!((fs::read(beside(&db, "-info")).unwrap(), dump(&db)), before);
    }
}

/// As a policy that keeps one generation deletes it at the first roll-over.
#[test]
fn a_push_whose_generation_is_deleted_while_it_follows_says_what_to_do() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    let mut application = Sqlite::open(&db);
    let follower = Mirror::start(arg(&db), stage.fake.url(), &["--follow"]);
    until("it has pushed", || (stage.fake.frames() > 0).then_some(()));
    application.run(&["INSERT INTO t VALUES('live', 1)"]);
    let pushed = frames(&db);
    until("it follows", || (stage.fake.frames() == pushed).then_some(()));
    for call in ["POST sync", "GET sync"] {
        stage.fake.fault(call, Fault::Answer(410, GONE.into()));
    }
    application.run(&["INSERT INTO t VALUES('more', 1)"]);
    let ended = follower.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in ["this log is in generation 3", "empty log", "pull"] {
        assert!(ended.error().contains(part), "{part:?} is not in {ended:?}");
    }
}

#[test]
fn the_message_of_an_error_is_shown_and_not_its_json() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(3)), stage.path("replica.db"));
    for (body, wanted) in [
        (r#"{"error":"corrupt-log","message":"log \"app\" is damaged at byte 7"}"#, "log \"app\" is damaged at byte 7"),
        (r#"{"error":"no such namespace"}"#, "no such namespace"),
        (r#"{"message":"no"}"#, "no"),
        ("plain\ntext", "plain text"),
    ] {
        stage.fake.fault("POST sync", Fault::Answer(404, body.into()));
        stage.fake.store().faults.push_front(("GET info", Fault::Answer(404, body.into())));
        let pushed = mirror(arg(&db), stage.fake.url(), &[]);
        stage.fake.store().faults.clear();
        stage.fake.fault("GET info", Fault::Answer(403, body.into()));
        let pulled = mirror(stage.fake.url(), arg(&replica), &[]);
        for ended in [pushed, pulled] {
            let error = ended.error();
            assert!(error.contains(wanted) && !error.contains(['{', '\\']), "{body}: {error}");
        }
    }
}
