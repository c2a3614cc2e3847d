//! Pushes whose answers are damaged.

use logmirror::format::LogFormat;
use logmirror::sync::SyncError;

use crate::proxy::{Change, answer};
use crate::scene::Scene;
use crate::sqlite::{dump, run_and_die};
use crate::support::commitlog::{Draw, seed};
use crate::support::sqlite::run;

/// That no database is to be removed of which this is the only copy.
fn is_harmless(error: &SyncError) {
    let text = error.to_string();
    assert!(!text.contains("remove it with") && !text.contains("rebuild"), "{text}");
}

#[test]
fn an_answer_that_was_damaged_once_is_no_fork_and_nothing_is_taken_for_pushed_that_is_not() {
    let (scene, mut random) = (Scene::new(), Draw(seed()));
    let db = scene.path("a.db");
    for round in 0..40 {
        run_and_die(&db, &format!("INSERT INTO t VALUES('round', {round});"));
        if round % 4 == 3 {
            // What was in the WAL is found by comparing pages.
            run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        let change = (random.below(3) as usize, 1, Change::FlipSome(random.below(u64::MAX)));
        scene.proxy.plan(Some(change.clone()));
        let pushed = scene.try_push(&db, "a");
        let is = |text: &str| format!("round {round}, {change:?}: {text}: {pushed:?}");
        if let Err(error) = &pushed {
            is_harmless(error);
            assert!(!matches!(error, SyncError::Fork { .. } | SyncError::Conflict { .. }), "{}", is("no fork"));
            scene.proxy.plan(None);
            let again = scene.try_push(&db, "a");
            assert!(again.is_ok(), "{}, then {again:?}", is("it does not go on"));
        }
        assert!(scene.held("a") == dump(&db), "{}", is("not what was pushed"));
    }
}

#[test]
fn a_frame_that_stays_another_one_is_a_fork_and_the_database_is_to_be_kept() {
    let scene = Scene::new();
    let db = scene.path("a.db");
    run_and_die(&db, "INSERT INTO t VALUES('more', 1);");
    for (count, is_fork) in [(1, false), (9, true)] {
        let before = dump(&db);
        scene.proxy.plan(Some((0, count, Change::FlipSome(10 * 8))));
        let pushed = scene.try_push(&db, "a");
        assert_eq!(matches!(pushed, Err(SyncError::Fork { .. })), is_fork, "{pushed:?}");
        if let Err(error) = pushed {
            is_harmless(&error);
        }
        assert_eq!(dump(&db), before);
    }
}

/// A log without frames of its own in the scene, and a database for it.
fn log_for_a_database(scene: &Scene) -> std::path::PathBuf {
    scene.service.call(scene.service.client("c").create(LogFormat::Wal, None)).unwrap();
    let db = scene.path("c.db");
    run_and_die(&db, "CREATE TABLE t(a, b);");
    run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    db
}

/// The number of the last frame of log `c`.
fn end_of(scene: &Scene) -> u64 {
    scene.service.call(scene.service.client("c").status()).unwrap().next.unwrap().0 - 1
}

#[test]
fn one_old_answer_that_says_less_ends_no_push() {
    let scene = Scene::new();
    let db = log_for_a_database(&scene);
    let old = answer(scene.service.address(), "/logs/c/sync/1/1/1025");
    assert!(old.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&old));
    scene.push(&db, "c");
    for nth in 0..8 {
        run_and_die(&db, &format!("INSERT INTO t VALUES('missed', {nth});"));
        run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        run_and_die(&db, &format!("INSERT INTO t VALUES('new', {nth});"));
        for count in [1, 2] {
            scene.proxy.plan(Some((nth, count, Change::Say(old.clone()))));
            let pushed = scene.try_push(&db, "c");
            let is_lie = matches!(&pushed, Err(SyncError::Conflict { .. } | SyncError::Fork { .. }));
            assert!(!is_lie || count > 1, "{nth}: {pushed:?}");
        }
        scene.proxy.plan(None);
        let again = scene.try_push(&db, "c");
        assert!(again.is_ok(), "{nth}: it does not go on: {again:?}");
        assert!(scene.held("c") == dump(&db), "{nth}: not what was pushed");
    }
}

#[test]
fn a_service_is_not_believed_without_the_digest_that_it_always_sends_and_no_end_that_was_not_sent() {
    let scene = Scene::new();
    let db = log_for_a_database(&scene);
    scene.push(&db, "c");
    for (round, (nth, beyond)) in (0..5).flat_map(|nth| [(nth, 0), (nth, 1000)]).enumerate() {
        if round % 3 == 1 {
            run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        let before = end_of(&scene);
        run_and_die(&db, &format!("INSERT INTO t VALUES('new', {round});"));
        // One row is one page.
        let said = format!(r#"{{"generation":1,"max_frame_no":{},"status":"ok"}}"#, before + 1 + beyond);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
        let answer = format!("{head}content-length: {}\r\n\r\n{said}", said.len());
        scene.proxy.plan(Some((nth, 1, Change::Say(answer.into_bytes()))));
        let pushed = scene.try_push(&db, "c");
        let is = |text: &str| format!("{nth}, {beyond}: {text}: {pushed:?}");
        if pushed.is_ok() {
            assert!(scene.held("c") == dump(&db), "{}", is("not what was pushed"));
        }
        scene.proxy.plan(None);
        let again = scene.try_push(&db, "c");
        assert!(again.is_ok(), "{}, then {again:?}", is("it does not go on"));
        assert!(scene.held("c") == dump(&db), "{}", is("not what was pushed in the end"));
    }
}
