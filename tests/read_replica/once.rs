//! Lone runs: made, gone on with, and what state the file is in then.

use std::fs;

use super::support::process::{arg, mirror};
use super::support::sqlite::Sqlite;
use super::{World, content, is_done, logmirror, record, warnings};

#[test]
fn a_log_becomes_a_plain_file_with_what_the_source_holds() {
    let mut world = World::new();
    world.insert("second");
    world.feed();
    let ended = world.pull(&[]);
    is_done(&ended);
    assert!(world.replica().is_file());
    assert_eq!(ended.last("done")["durable"], record(&world)["now"]["next"]);
    assert!(fs::metadata(world.path("replica.db-wal")).map_or(0, |found| found.len()) == 0, "one plain file");
    assert_eq!(content(&world.replica()), content(&world.source()));
}

#[test]
fn a_second_run_fetches_only_what_is_new() {
    let mut world = World::new();
    world.fill(500, 1000);
    world.feed();
    is_done(&world.pull(&[]));
    let inode = inode(&world);
    world.insert("one more");
    world.feed();
    let ended = world.pull(&[]);
    is_done(&ended);
    assert_eq!(ended.last("done")["commits"], 1, "{ended:?}");
    assert!(ended.last("done")["bytes"].as_u64().unwrap() < 20_000, "{ended:?}");
    assert_eq!(inode, self::inode(&world), "the same file");
    assert_eq!(content(&world.replica()), content(&world.source()));
    // And nothing at all where there is nothing.
    let ended = world.pull(&[]);
    is_done(&ended);
    assert_eq!((&ended.last("done")["commits"], warnings(&ended).len()), (&0.into(), 0), "{ended:?}");
}

fn inode(world: &World) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(world.replica()).unwrap().ino()
}

#[test]
fn a_reader_that_was_the_last_to_close_the_file_changed_nothing() {
    let mut world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    for round in 0..3 {
        // SQLite checkpoints and removes the WAL as it closes.
        assert_eq!(content(&world.replica()), content(&world.source()));
        let mut reader = Sqlite::open(&world.replica());
        reader.rows("SELECT count(*) FROM t");
        world.insert(&format!("round {round}"));
        world.feed();
        let ended = world.pull(&[]);
        is_done(&ended);
        assert_eq!((&ended.last("done")["commits"], world.aside().len()), (&1.into(), 0), "{ended:?}");
        reader.rows("SELECT count(*) FROM t");
        reader.close();
    }
    assert_eq!(content(&world.replica()), content(&world.source()));
}

#[test]
fn pages_of_every_size_and_bases_with_a_rollback_journal() {
    for page_size in [512, 1024, 8192, 65_536] {
        for mode in ["WAL", "DELETE"] {
            let (size, mode) = (format!("PRAGMA page_size = {page_size}"), format!("PRAGMA journal_mode = {mode}"));
            let mut world = World::with(&[&size, &mode]);
            world.feed();
            is_done(&world.pull(&[]));
            assert_eq!(fs::read(world.replica()).unwrap()[18..20], [2, 2], "readers never block the writer");
            world.fill(300, 700);
            world.feed();
            let ended = world.pull(&[]);
            is_done(&ended);
            assert_eq!((&ended.last("done")["commits"], world.aside().len()), (&1.into(), 0), "{ended:?}");
            assert_eq!(content(&world.replica()), content(&world.source()), "{page_size}, {mode}");
        }
    }
}

#[test]
fn a_database_that_shrinks_is_shorter_in_the_replica_too() {
    let mut world = World::new();
    world.fill(2000, 1000);
    world.feed();
    is_done(&world.pull(&[]));
    let before = fs::metadata(world.replica()).unwrap().len();
    world.app.run(&["DELETE FROM t WHERE n > 20", "VACUUM"]);
    world.feed();
    is_done(&world.pull(&[]));
    assert!(fs::metadata(world.replica()).unwrap().len() < before / 10);
    world.fill(300, 1000);
    world.feed();
    is_done(&world.pull(&[]));
    // The sum that followed all of this is that of the file.
    assert_eq!(content(&world.replica()), content(&world.source()));
    is_done(&world.pull(&[]));
    assert_eq!(world.aside().len(), 0);
}

#[test]
fn a_directory_of_a_log_is_a_source_too() {
    let mut world = World::new();
    let log = world.path("log");
    is_done(&mirror(arg(&world.source()), arg(&log), &[]));
    is_done(&mirror(arg(&log), arg(&world.replica()), &[]));
    assert_eq!(content(&world.replica()), content(&world.source()));
    world.insert("second");
    is_done(&mirror(arg(&world.source()), arg(&log), &[]));
    let ended = mirror(arg(&log), arg(&world.replica()), &[]);
    is_done(&ended);
    assert_eq!(ended.last("done")["commits"], 1);
    assert_eq!(content(&world.replica()), content(&world.source()));
}

#[test]
fn a_roll_over_makes_no_new_file_and_sends_no_base() {
    let mut world = World::new();
    world.fill(1000, 1000);
    world.feed();
    is_done(&world.pull(&[]));
    let inode = inode(&world);
    for round in 0..3 {
        world.insert(&format!("before {round}"));
        world.feed();
        assert!(logmirror(&["checkpoint", &world.url()]).status.success());
        let ended = world.pull(&[]);
        is_done(&ended);
        assert_eq!(ended.last("done")["durable"], 1, "{ended:?}");
        assert!(ended.last("done")["bytes"].as_u64().unwrap() < 100_000, "{ended:?}");
        assert_eq!((inode, record(&world)["now"]["generation"].as_u64()), (self::inode(&world), Some(round + 2)));
        assert_eq!(content(&world.replica()), content(&world.source()));
    }
    assert_eq!(world.aside().len(), 0);
}

#[test]
fn generations_that_are_gone_and_another_base_are_stepped_over_page_by_page() {
    let mut world = World::new();
    world.fill(1000, 1000);
    world.feed();
    is_done(&world.pull(&[]));
    let inode = inode(&world);
    world.app.run(&["UPDATE t SET x = 'changed' WHERE n % 100 = 0", "PRAGMA wal_checkpoint(TRUNCATE)"]);
    // The base of a later generation, which no frame of ours leads to.
    let base = fs::read(world.source()).unwrap();
    let client = world.service.client("app").of_source(&world.identity());
    world.service.call(client.start_generation(logmirror::offset::Generation(5), base)).unwrap();
    let ended = world.pull(&[]);
    is_done(&ended);
    let compared = ended.last("compared");
    assert!((1..200).contains(&compared["pages"].as_u64().unwrap()), "{compared}");
    assert_eq!((inode, record(&world)["now"]["generation"].as_u64()), (self::inode(&world), Some(5)));
    assert_eq!(content(&world.replica()), content(&world.source()));
    is_done(&world.pull(&[]));
    assert_eq!(world.aside().len(), 0);
}

#[test]
fn another_page_size_makes_the_file_again() {
    let mut world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    let mut reader = Sqlite::open(&world.replica());
    reader.rows("BEGIN; SELECT count(*) FROM t");
    world.app.run(&["PRAGMA journal_mode = DELETE", "PRAGMA page_size = 1024", "VACUUM"]);
    let base = fs::read(world.source()).unwrap();
    let client = world.service.client("app").of_source(&world.identity());
    world.service.call(client.start_generation(logmirror::offset::Generation(2), base)).unwrap();
    is_done(&world.pull(&[]));
    assert_eq!(reader.rows("SELECT count(*) FROM t")[0][0], 1, "it keeps what it had");
    reader.close();
    assert_eq!(content(&world.replica()), content(&world.source()));
    assert_eq!(world.aside().len(), 0, "it was ours");
    is_done(&world.pull(&[]));
}
