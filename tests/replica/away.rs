//! Replicas that were away for longer than the remote keeps what they have, that start without the remote, and that have
//! one that speaks of nothing but updates.

use std::net::TcpListener;

use logmirror::replica::{During, Options, ReplicaError, SyncEngine};
use logmirror::sync::Remote;

use super::Rig;
use super::wire::{Left, Wire};

const T: &str = "CREATE TABLE t(id TEXT PRIMARY KEY, v, u UNIQUE)";
const N: &str = "CREATE TABLE n(x, y)";

fn keep_one_generation(rig: &Rig) {
    let policy = r#"{"policy":"roll","frames":1099511627776,"keep":1}"#;
    assert_eq!(rig.service.put("/logs/app/checkpoint", policy).status, 200);
}

fn roll_over(rig: &Rig) {
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
}

#[test]
fn a_replica_that_was_away_for_longer_than_generations_are_kept_comes_home_with_its_changes() {
    // Nothing was pushed, a push was made, or one and its answer was lost.
    for pushed in ["no", "yes", "lost"] {
        let rig = Rig::new();
        keep_one_generation(&rig);
        rig.ask(T);
        rig.ask(N);
        rig.ask("INSERT INTO t VALUES ('old', 0, 0), ('gone', 0, 1)");
        let wire = Wire::to(rig.service.address);
        let remote = Remote::new(&format!("http://{}/logs/app", wire.address), None).unwrap();
        let path = rig.path("one");
        let opening = SyncEngine::open(&path, remote, Options::default());
        let engine = rig.service.runtime.block_on(opening).unwrap();
        let connection = engine.connect().unwrap();
        for sql in ["INSERT INTO n VALUES ('one', 1), ('one', 1)", "UPDATE t SET v = 1 WHERE id = 'old'"] {
            connection.execute(sql).unwrap();
        }
        match pushed {
            "yes" => drop(rig.service.runtime.block_on(engine.push()).unwrap()),
            "lost" => {
                wire.set(Left { after: Some(("\"COMMIT\"", super::wire::Answered::No)), ..Left::default() });
                rig.service.runtime.block_on(engine.push()).unwrap_err();
                wire.set(Left::default());
            }
            _ => {}
        }
        for sql in ["INSERT INTO n VALUES ('one', 2)", "INSERT INTO t VALUES ('one', 1, 'same'), ('fine', 1, 'one')"] {
            connection.execute(sql).unwrap();
        }
        for round in 0..3 {
            rig.ask(&format!("INSERT INTO n VALUES ('there', {round})"));
            roll_over(&rig);
        }
        rig.ask("INSERT INTO t VALUES ('there', 1, 'same')");
        rig.ask("DELETE FROM t WHERE id = 'gone'");
        let report = rig.service.runtime.block_on(engine.sync()).unwrap();
        let [conflict] = &report.conflicts[..] else { panic!("{pushed}: {report:?}") };
        assert_eq!((conflict.during, &*conflict.about.table), (During::Pull, "t"), "{pushed}");
        assert!(conflict.error.contains("UNIQUE"), "{pushed}: {}", conflict.error);
        drop((connection, engine));
        let one = rig.open("one");
        assert_eq!(one.dump(), rig.dump(), "{pushed}");
        assert_eq!((rig.dump()["rows of t"].len(), rig.dump()["rows of n"].len()), (3, 6), "{pushed}");
        assert_eq!(one.sync().requests, 1, "{pushed}");
        // It goes on from there, frame by frame.
        rig.ask("INSERT INTO n VALUES ('there', 'again')");
        one.run("INSERT INTO n VALUES ('one', 'again')");
        assert_eq!(one.sync().conflicts, [], "{pushed}");
        assert_eq!(one.dump(), rig.dump(), "{pushed}");
        assert_eq!(rig.dump()["rows of n"].len(), 8, "{pushed}");
    }
}

#[test]
fn a_push_of_a_replica_that_was_away_for_longer_than_generations_are_kept_is_made() {
    let rig = Rig::new();
    keep_one_generation(&rig);
    rig.ask(N);
    let one = rig.open("one");
    one.run("INSERT INTO n VALUES ('one', 1)");
    roll_over(&rig);
    roll_over(&rig);
    assert_eq!(one.push().changes_pushed, 1);
    one.pull();
    assert_eq!((one.dump(), rig.dump()["rows of n"].len()), (rig.dump(), 1));
}

#[test]
fn the_state_of_another_log_is_not_fetched_in_the_place_of_what_is_gone() {
    let rig = Rig::new();
    rig.ask(N);
    let one = rig.open("one");
    one.run("INSERT INTO n VALUES ('one', 1)");
    one.sync();
    one.run("INSERT INTO n VALUES ('one', 2)");
    drop(one);
    // A log with that name that somebody else made, and rolled over.
    let other = Rig::new();
    keep_one_generation(&other);
    for round in 0..3 {
        other.ask(&format!("CREATE TABLE other{round}(x)"));
        roll_over(&other);
    }
    let remote = other.remote();
    let path = rig.path("one");
    let engine = other.service.runtime.block_on(SyncEngine::open(&path, remote, Options::default())).unwrap();
    let refused = other.service.runtime.block_on(engine.sync());
    assert!(matches!(refused, Err(ReplicaError::Diverged { .. })), "{refused:?}");
    drop(engine);
    // The right one again.
    let one = rig.open("one");
    one.sync();
    assert_eq!((one.dump(), rig.dump()["rows of n"].len()), (rig.dump(), 2));
}

/// An address where nobody is.
fn nowhere() -> Remote {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Remote::new(&format!("http://{address}/logs/app"), None).unwrap()
}

#[test]
fn a_replica_starts_empty_without_the_remote_if_asked_and_meets_it_later() {
    for rolled_over in [false, true] {
        let rig = Rig::new();
        let open =
            |options: Options| rig.service.runtime.block_on(SyncEngine::open(&rig.path("one"), nowhere(), options));
        assert!(matches!(open(Options::default()), Err(ReplicaError::Remote(_))));
        assert!(!rig.path("one-draft").exists());
        let engine = open(Options { start_offline: true, ..Options::default() }).unwrap();
        let connection = engine.connect().unwrap();
        for sql in [T, N, "INSERT INTO t VALUES ('one', 1, 1), ('both', 1, 2)", "INSERT INTO n VALUES (1, 2)"] {
            connection.execute(sql).unwrap();
        }
        assert!(matches!(rig.service.runtime.block_on(engine.sync()), Err(ReplicaError::Remote(_))));
        drop((connection, engine));
        rig.ask(T);
        rig.ask("INSERT INTO t VALUES ('there', 1, 3), ('both', 2, 2)");
        if rolled_over {
            roll_over(&rig);
            rig.ask("INSERT INTO t VALUES ('there too', 1, 4)");
        }
        let one = rig.open("one");
        let report = one.sync();
        let [conflict] = &report.conflicts[..] else { panic!("{report:?}") };
        assert!(conflict.error.contains("overwritten"), "{}", conflict.error);
        assert_eq!(one.dump(), rig.dump());
        assert_eq!(rig.dump()["rows of t"].len(), if rolled_over { 4 } else { 3 });
        assert_eq!(rig.dump()["rows of n"].len(), 1);
        one.run("INSERT INTO n VALUES (2, 2)");
        assert_eq!(one.sync().conflicts, []);
        assert_eq!((one.dump(), rig.dump()["rows of n"].len()), (rig.dump(), 2));
        assert_eq!(one.sync().requests, 1);
    }
}

#[test]
fn a_remote_that_speaks_of_updates_only_is_a_remote() {
    let rig = Rig::new();
    rig.ask(T);
    rig.ask("INSERT INTO t VALUES ('base', zeroblob(100000), 1)");
    roll_over(&rig);
    rig.ask("INSERT INTO t VALUES ('frames', 1, 2)");
    let wire = Wire::to(rig.service.address);
    wire.set(Left { no_gets: true, ..Left::default() });
    let remote = || Remote::new(&format!("http://{}/logs/app", wire.address), None).unwrap();
    let mut pulled = 0;
    for round in 0..3 {
        let path = rig.path("one");
        let opening = SyncEngine::open(&path, remote(), Options::default());
        let engine = rig.service.runtime.block_on(opening).unwrap();
        pulled += rig.service.runtime.block_on(engine.sync()).unwrap().frames_pulled;
        let connection = engine.connect().unwrap();
        connection.execute(format!("INSERT INTO t VALUES ('one {round}', 1, 'one {round}')")).unwrap();
        connection.execute("UPDATE t SET v = v || 'x' WHERE id = 'frames'").unwrap();
        rig.ask(&format!("INSERT INTO t VALUES ('there {round}', 1, 'there {round}')"));
        let report = rig.service.runtime.block_on(engine.sync()).unwrap();
        assert_eq!((report.changes_pushed, &report.conflicts[..]), (2, &[][..]), "{report:?}");
        assert_eq!(super::dump(|sql| super::rows(&connection, sql)), rig.dump(), "{round}");
        assert_eq!(rig.dump()["rows of t"].len(), 4 + 2 * round);
        roll_over(&rig);
    }
    assert!(pulled > 25, "{pulled}");
}
