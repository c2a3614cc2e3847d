//! Following: current within a second, through everything the source does, beside readers that never wait.

use std::fs;
use std::time::{Duration, Instant};

use super::support::process::{Mirror, until};
use super::support::sqlite::Sqlite;
use super::{World, content, is_done, logmirror};

/// Waits until a reader sees so many rows.
fn sees(reader: &mut Sqlite, rows: u64) {
    until(&format!("{rows} rows"), || {
        let said = reader.ask("SELECT count(*) FROM t");
        assert!(said["error"].is_null(), "{said}");
        (said["rows"][0][0] == rows).then_some(())
    });
}

fn count(world: &mut World) -> u64 {
    world.app.rows("SELECT count(*) FROM t")[0][0].as_u64().unwrap()
}

/// A reader of the replica, once it is there.
fn reader(world: &World) -> Sqlite {
    until("the replica to be there", || world.replica().exists().then_some(()));
    Sqlite::open(&world.replica())
}

#[test]
fn each_commit_is_seen_within_a_second_beside_readers() {
    let mut world = World::new();
    let (feeding, following) = world.follow();
    let mut readers: Vec<Sqlite> = (0..5).map(|_| reader(&world)).collect();
    for round in 0..50 {
        world.insert(&format!("row {round}"));
        let since = Instant::now();
        let rows = count(&mut world);
        for reader in &mut readers {
            sees(reader, rows);
        }
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    }
    for reader in &mut readers {
        assert_eq!(reader.rows("PRAGMA integrity_check")[0][0], "ok");
    }
    feeding.terminate();
    following.terminate();
    readers.into_iter().for_each(Sqlite::close);
    assert_eq!(content(&world.replica()), content(&world.source()));
    is_done(&world.pull(&[]));
    assert_eq!(world.aside().len(), 0);
}

#[test]
fn a_reader_in_a_transaction_keeps_its_state_and_holds_nobody_up() {
    let mut world = World::new();
    let (_feeding, _following) = world.follow();
    let (mut old, mut new) = (reader(&world), reader(&world));
    sees(&mut old, 1);
    old.rows("BEGIN; SELECT count(*) FROM t");
    for round in 0..20 {
        world.fill(500, 1000);
        sees(&mut new, 501 + round * 500);
        assert_eq!(old.rows("SELECT count(*) FROM t")[0][0], 1);
    }
    old.rows("COMMIT");
    sees(&mut old, 10_001);
    assert_eq!(old.rows("PRAGMA integrity_check")[0][0], "ok");
    // Nothing holds the WAL any more: it starts again.
    until("the WAL to start again", || {
        world.insert("again");
        std::thread::sleep(Duration::from_millis(5));
        let bytes = fs::metadata(world.path("replica.db-wal")).map_or(0, |found| found.len());
        let pages = fs::metadata(world.replica()).unwrap().len() / 4096;
        (pages > 2500 || bytes < 8 << 20).then_some(())
    });
}

#[test]
fn roll_overs_and_a_vacuum_of_the_source_are_followed() {
    let mut world = World::new();
    world.fill(1000, 1000);
    let (feeding, following) = world.follow();
    let mut reader = reader(&world);
    sees(&mut reader, 1001);
    world.app.run(&["DELETE FROM t WHERE n % 2 = 0", "VACUUM"]);
    let rows = count(&mut world);
    sees(&mut reader, rows);
    assert_eq!(reader.rows("PRAGMA integrity_check")[0][0], "ok");
    // The feeder of the log ends with its generation, and is no part of this.
    feeding.terminate();
    for round in 0..3 {
        world.insert(&format!("row {round}"));
        world.feed();
        assert!(logmirror(&["checkpoint", &world.url()]).status.success());
        world.insert(&format!("another {round}"));
        world.feed();
        let rows = count(&mut world);
        sees(&mut reader, rows);
        assert_eq!(reader.rows("PRAGMA integrity_check")[0][0], "ok");
    }
    following.terminate();
    reader.close();
    assert_eq!(content(&world.replica()), content(&world.source()));
    assert_eq!(world.aside().len(), 0);
}

#[test]
fn a_service_that_goes_away_is_waited_for() {
    let mut world = World::new();
    world.feed();
    let following = Mirror::start(world.url(), super::arg(&world.replica()), &["--follow"]);
    let mut reader = reader(&world);
    sees(&mut reader, 1);
    world.service.kill();
    following.wait_for("it to wait", |line| line["event"] == "retrying");
    sees(&mut reader, 1);
    world.service.restart();
    world.insert("second");
    world.feed();
    sees(&mut reader, 2);
    following.terminate();
}

#[test]
fn what_another_process_writes_meanwhile_is_set_aside() {
    let mut world = World::new();
    world.feed();
    let following = Mirror::start(world.url(), super::arg(&world.replica()), &["--follow"]);
    let mut other = reader(&world);
    sees(&mut other, 1);
    other.rows("INSERT INTO t (n, x) VALUES (1000, 'theirs')");
    let warned = following.wait_for("a warning", |line| line["event"] == "warning");
    assert!(warned["text"].as_str().unwrap().contains(".aside-"), "{warned}");
    assert_eq!(other.rows("SELECT count(*) FROM t")[0][0], 2);
    world.insert("second");
    world.feed();
    let mut reader = Sqlite::open(&world.replica());
    sees(&mut reader, 2);
    assert_eq!(reader.rows("SELECT count(*) FROM t WHERE x = 'theirs'")[0][0], 0);
    following.terminate();
}
