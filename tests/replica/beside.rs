//! A push beside programs that have the draft open.

use std::sync::Arc;

use logmirror::replica::{Action, Event, Options, Outcome, ReplicaError, Rounds, run};
use logmirror::sync::Remote;
use serde_json::json;

use super::Rig;
use super::support::process::until;
use super::support::sqlite::Sqlite;
use super::wire::{Left, Wire};

fn push(rig: &Rig, wire: &Wire) -> Rounds {
    let remote = Remote::new(&format!("http://{}/logs/app", wire.address), None).unwrap();
    Rounds { path: rig.path("one"), remote, options: Options::default(), action: Action::Push, every: None }
}

fn pushed(event: &Event<'_>) -> Option<u64> {
    match event {
        Event::Done(Outcome::Done { report, .. }) => Some(report.changes_pushed),
        _ => None,
    }
}

#[test]
fn readers_and_writers_of_the_draft_wait_for_nothing_while_it_is_pushed() {
    for mode in ["WAL", "DELETE"] {
        let rig = Rig::new();
        rig.ask("CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
        drop(rig.open("one"));
        // Waits for no lock.
        let mut app = Sqlite::open(&rig.path("one-draft"));
        app.run(&[&format!("PRAGMA journal_mode = {mode}"), "INSERT INTO t(b) VALUES ('first')"]);
        let wire = Wire::to(rig.service.address);
        wire.set(Left { holds: Some("\"COMMIT\""), ..Left::default() });
        let rounds = push(&rig, &wire);
        let pushing = rig.service.runtime.spawn(async move {
            let (tell, told) = std::sync::mpsc::channel();
            let watch = move |event: Event<'_>| pushed(&event).into_iter().for_each(|count| tell.send(count).unwrap());
            run(&rounds, Arc::new(watch)).await.map(|()| told.recv().unwrap())
        });
        until("the push to be under way", || wire.is_holding().then_some(()));
        assert_eq!(app.rows("SELECT b FROM t"), json!([["first"]]), "{mode}");
        app.run(&["INSERT INTO t(b) VALUES ('meanwhile')", "UPDATE t SET b = 'first again' WHERE a = 1"]);
        app.reopen();
        app.run(&["INSERT INTO t(b) VALUES ('meanwhile too')"]);
        if mode == "WAL" {
            app.run(&["PRAGMA wal_checkpoint(TRUNCATE)"]);
        }
        wire.set(Left::default());
        assert_eq!(rig.service.runtime.block_on(pushing).unwrap().unwrap(), 1, "{mode}");
        assert_eq!(rig.dump()["rows of t"].len(), 1, "{mode}");
        assert!(rig.dump()["rows of t"][0].contains("\"first\""), "{mode}");
        // What was written meanwhile is pushed next, once.
        let wire = Wire::to(rig.service.address);
        rig.service.runtime.block_on(run(&push(&rig, &wire), Arc::new(|_| {}))).unwrap();
        assert_eq!(rig.dump()["rows of t"].len(), 3, "{mode}");
        app.close();
        let one = rig.open("one");
        assert_eq!(one.sync().conflicts, [], "{mode}");
        assert_eq!((one.dump(), one.dump()["rows of t"].len()), (rig.dump(), 3), "{mode}");
    }
}

#[test]
fn two_pushes_of_one_replica_at_once_are_one_after_the_other() {
    let rig = Rig::new();
    rig.ask("CREATE TABLE t(a)");
    let one = rig.open("one");
    one.run("INSERT INTO t VALUES (1)");
    drop(one);
    let (held, free) = (Wire::to(rig.service.address), Wire::to(rig.service.address));
    held.set(Left { holds: Some("\"COMMIT\""), ..Left::default() });
    let rounds = push(&rig, &held);
    let pushing = rig.service.runtime.spawn(async move { run(&rounds, Arc::new(|_| {})).await });
    until("the push to be under way", || held.is_holding().then_some(()));
    for action in [Action::Push, Action::Sync, Action::Pull] {
        let rounds = Rounds { action, ..push(&rig, &free) };
        let refused = rig.service.runtime.block_on(run(&rounds, Arc::new(|_| {})));
        assert!(matches!(refused, Err(ReplicaError::Busy { .. })), "{action:?}: {refused:?}");
    }
    held.set(Left::default());
    rig.service.runtime.block_on(pushing).unwrap().unwrap();
    assert_eq!(rig.dump()["rows of t"].len(), 1);
}

/// The draft has to be brought to the next generation first, for which others have to let go of it.
#[test]
fn a_push_into_a_generation_that_ended_goes_on_in_the_next() {
    let rig = Rig::new();
    rig.ask("CREATE TABLE t(a)");
    let one = rig.open("one");
    one.run("INSERT INTO t VALUES (1)");
    drop(one);
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    let wire = Wire::to(rig.service.address);
    rig.service.runtime.block_on(run(&push(&rig, &wire), Arc::new(|_| {}))).unwrap();
    assert_eq!(rig.dump()["rows of t"].len(), 1);
}
