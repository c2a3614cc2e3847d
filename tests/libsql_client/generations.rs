//! A server that goes on to other generations.

use std::fs;

use logmirror::sync::SyncError;

use crate::fake::{Fault, calls};
use crate::sqlite::{self, dump, rows};
use crate::{Stage, beside, frames, info, litter};

/// A replica that stands at the end of generation 1, and a server at the start of 2.
fn rolled() -> (Stage, std::path::PathBuf, std::path::PathBuf) {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    stage.fake.roll();
    (stage, db, replica)
}

#[test]
fn a_replica_folds_its_log_and_goes_on_one_generation_at_a_time() {
    let (stage, db, replica) = rolled();
    let total = frames(&db);
    stage.fake.seen();
    stage.pull(&replica).unwrap();
    let wanted = [
        format!("GET sync/1/{total}/{}", total + 1),
        format!("GET sync/1/{}/{}", total + 1, total + 129),
        "GET sync/2/1/129".into(),
    ];
    assert_eq!(calls(&stage.fake.seen()), wanted);
    assert_eq!((info(&replica), frames(&replica)), ((2, 0), 0));
    assert_eq!(fs::read(&replica).unwrap(), stage.fake.store().generations[1].base);
    assert_eq!(dump(&replica), dump(&db));

    // Another one writes and pushes in generation 2; two more pass meanwhile.
    let writer = stage.path("writer.db");
    stage.pull(&writer).unwrap();
    for generation in 2..5 {
        sqlite::run_and_die(&writer, &rows(5));
        stage.push(&writer).unwrap();
        stage.fake.roll();
        stage.pull(&writer).unwrap();
        assert_eq!(info(&writer), (generation + 1, 0));
    }
    stage.pull(&replica).unwrap();
    assert_eq!((info(&replica), dump(&replica)), ((5, 0), dump(&writer)));
    assert_eq!(fs::read(&replica).unwrap(), fs::read(&writer).unwrap());
    assert_eq!(litter(&replica), Vec::<String>::new());
}

#[test]
fn a_current_generation_that_is_gone_is_an_error() {
    let (stage, db, replica) = rolled();
    stage.fake.store().generations.pop();
    stage.fake.store().generations[0].gone = true;
    let error = stage.pull(&replica).unwrap_err();
    assert!(matches!(error, SyncError::Status { status: 410, .. }) && error.is_data(), "{error}");
    assert_eq!((info(&replica), dump(&replica)), ((1, frames(&db)), dump(&db)));
    assert_eq!(litter(&replica), Vec::<String>::new());
}

#[test]
fn a_server_that_fell_back_is_an_error() {
    let (stage, _, replica) = rolled();
    stage.pull(&replica).unwrap();
    stage.fake.store().generations.pop();
    let error = stage.pull(&replica).unwrap_err();
    assert!(matches!(error, SyncError::EarlierGeneration { ours: 2, server: 1, .. }), "{error}");
    stage.fake.fault("GET info", Fault::Answer(200, r#"{"current_generation":0}"#.into()));
    let error = stage.pull(&stage.path("other.db")).unwrap_err();
    assert!(matches!(error, SyncError::Protocol { .. }), "{error}");
}

#[test]
fn a_crash_at_any_step_of_a_fold_is_repeated_harmlessly() {
    let (stage, db, replica) = rolled();
    let before: Vec<_> = ["", "-wal", "-info"].map(|ending| fs::read(beside(&replica, ending)).unwrap()).into();
    stage.pull(&replica).unwrap();
    let after: Vec<_> = ["", "-wal", "-info"].map(|ending| fs::read(beside(&replica, ending)).unwrap()).into();
    let mut partial = before[0].clone();
    partial.extend_from_slice(&after[0][before[0].len()..before[0].len() + 4096]);
    // Which state of the database, the WAL and the metadata a crash leaves, in the order of the steps.
    let steps = [
        ("before", [&before[0], &before[1], &before[2]]),
        ("some pages", [&partial, &before[1], &before[2]]),
        ("all pages", [&after[0], &before[1], &before[2]]),
        ("metadata", [&after[0], &before[1], &after[2]]),
        ("WAL emptied", [&after[0], &after[1], &after[2]]),
    ];
    let writer = stage.path("writer.db");
    stage.pull(&writer).unwrap();
    sqlite::run_and_die(&writer, &rows(5));
    stage.push(&writer).unwrap();
    for (step, files) in steps {
        for (ending, content) in ["", "-wal", "-info"].iter().zip(files) {
            fs::write(beside(&replica, ending), content).unwrap();
        }
        assert_eq!(dump(&replica), dump(&db), "a crash after {step} leaves a sound database");
        stage.fake.seen();
        stage.pull(&replica).unwrap();
        let seen = stage.fake.seen();
        assert!(!calls(&seen).iter().any(|call| call.starts_with("GET export")), "{step}: {seen:?}");
        let of_second: u32 = seen.iter().filter(|seen| seen.call.contains("sync/2/")).map(|seen| seen.pulled).sum();
        assert_eq!(of_second, frames(&writer), "{step}");
        assert_eq!((info(&replica), dump(&replica)), ((2, frames(&writer)), dump(&writer)), "{step}");
        assert_eq!(litter(&replica), Vec::<String>::new(), "{step}");
    }
}
