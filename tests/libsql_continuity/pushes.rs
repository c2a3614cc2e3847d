//! Pushes whose answers are damaged.

use logmirror::sync::SyncError;

use crate::proxy::Change;
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
