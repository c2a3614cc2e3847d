//! Following: current within a second, through everything the source does, beside readers that never wait.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::support::process::{Mirror, until};
use super::support::sqlite::{Sqlite, run};
use super::{World, content, is_done, logmirror, record};

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
fn the_record_says_what_a_large_transaction_made_of_the_file() {
    let mut world = World::new();
    let (_feeding, _following) = world.follow();
    let mut reader = reader(&world);
    sees(&mut reader, 1);
    let settled =
        |world: &World| until("the record to be settled", || record(world)["upcoming"].is_null().then_some(()));
    for (rows, bytes) in [(1, 10), (10_000, 1000)] {
        world.fill(rows, bytes);
        let rows = count(&mut world);
        sees(&mut reader, rows);
        settled(&world);
    }
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

/// Cuts the replica to its first pages, as a copy that was broken off leaves it.
fn cut(world: &World) {
    let file = fs::File::options().write(true).open(world.replica()).unwrap();
    assert!(file.metadata().unwrap().len() > 12_288);
    file.set_len(12_288).unwrap();
}

#[test]
fn a_file_that_is_cut_while_it_is_followed_is_set_aside_and_made_again() {
    let mut world = World::new();
    world.fill(200, 1000);
    world.feed();
    let following = Mirror::start(world.url(), super::arg(&world.replica()), &["--follow"]);
    sees(&mut reader(&world), 201);
    // Nothing is written meanwhile: it is looked at.
    cut(&world);
    let warned = following.wait_for("a warning", |line| line["event"] == "warning");
    assert!(warned["text"].as_str().unwrap().contains(".aside-"), "{warned}");
    until("the file to be made again", || (fs::metadata(world.replica()).ok()?.len() > 12_288).then_some(()));
    // The next transaction comes before the next look.
    cut(&world);
    world.insert("more");
    world.feed();
    let is_made = |world: &World| {
        world.aside().iter().filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")).count() == 2
    };
    until("the file to be made again", || is_made(&world).then_some(()));
    sees(&mut Sqlite::open(&world.replica()), 202);
    following.terminate();
    assert_eq!(content(&world.replica()), content(&world.source()));
}

#[test]
fn a_file_that_another_program_writes_again_and_again_is_made_again_only_so_often() {
    let mut world = World::new();
    world.fill(20, 1000);
    world.feed();
    let following = Mirror::start(world.url(), super::arg(&world.replica()), &["--follow"]);
    sees(&mut reader(&world), 21);
    let wanted = Arc::new(());
    let (is_wanted, path) = (Arc::downgrade(&wanted), world.replica());
    let writing = thread::spawn(move || {
        while is_wanted.upgrade().is_some() {
            // It may find it locked.
            let _ = run(&path, "INSERT INTO t (x) VALUES ('theirs')");
        }
    });
    let waits = following.wait_for("that it waits", |line| {
        line["event"] == "retrying"
            && line["error"].as_str().is_some_and(|text| text.contains("writes to this replica"))
    });
    assert!(waits["error"].as_str().unwrap().contains("remove what was set aside"), "{waits}");
    drop(wanted);
    writing.join().unwrap();
    let asides = world.aside();
    assert!((1..=2).contains(&asides.iter().filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")).count()));
    // Whoever has looked at them need not wait.
    for name in asides {
        fs::remove_file(world.replica().with_file_name(name)).unwrap();
    }
    until("it is made again", || (content(&world.replica()) == content(&world.source())).then_some(()));
    following.terminate();
}

#[test]
fn a_file_that_was_cut_just_before_its_mirror_ended_is_made_again_at_the_next_start() {
    for kill in [true, false] {
        let mut world = World::new();
        world.fill(200, 1000);
        world.feed();
        let following = Mirror::start(world.url(), super::arg(&world.replica()), &["--follow"]);
        sees(&mut reader(&world), 201);
        cut(&world);
        if kill {
            following.kill();
        } else {
            following.terminate();
        }
        let ended = world.pull(&[]);
        is_done(&ended);
        assert_eq!(content(&world.replica()), content(&world.source()), "killed: {kill}: {ended:?}");
        assert!(!world.aside().is_empty(), "killed: {kill}: what was cut is kept");
    }
}

#[test]
fn a_file_that_was_given_another_name_does_not_change_under_it() {
    let mut world = World::new();
    world.fill(1000, 1000);
    let (feeding, following) = world.follow();
    sees(&mut reader(&world), 1001);
    let (kept, inode) = (world.path("kept.db"), |path: &Path| fs::metadata(path).unwrap().ino());
    fs::hard_link(world.replica(), &kept).unwrap();
    let before = fs::read(&kept).unwrap();
    for _ in 0..10 {
        world.app.rows("UPDATE t SET x = randomblob(1000)");
    }
    world.insert("more");
    sees(&mut reader(&world), 1002);
    assert!(fs::read(&kept).unwrap() == before && inode(&kept) == inode(&world.replica()));
    // A WAL that is larger than a new file by far is none to keep.
    let is_made_again = |world: &mut World| {
        world.app.rows("UPDATE t SET x = randomblob(1000)");
        inode(&kept) != inode(&world.replica())
    };
    assert!((0..1000).any(|_| is_made_again(&mut world)), "it was never made again");
    world.insert("last");
    sees(&mut reader(&world), 1003);
    assert!(fs::read(&kept).unwrap() == before);
    feeding.terminate();
    let ended = following.terminate();
    assert!(ended.errors.contains("has 2 names (hard links)"), "{ended:?}");
    assert_eq!(content(&world.replica()), content(&world.source()));
    assert_eq!(world.aside().len(), 0);
}
