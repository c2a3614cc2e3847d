//! What other processes wrote is set aside, and never written over.

use std::fs;
use std::path::Path;

use super::support::process::{arg, mirror};
use super::support::sqlite::Sqlite;
use super::{World, content, is_done, is_refused, record, warnings};

/// Writes a row into the replica, as an application would, and returns its content.
fn write(world: &World) -> String {
    let mut other = Sqlite::open_within(&world.replica(), 10);
    other.rows("INSERT INTO t (n, x) VALUES (1000, 'theirs')");
    other.close();
    content(&world.replica())
}

#[test]
fn a_file_that_was_written_meanwhile_is_set_aside_and_made_again() {
    let mut world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    let theirs = write(&world);
    world.insert("second");
    world.feed();
    let ended = world.pull(&[]);
    is_done(&ended);
    let aside = world.aside();
    assert!(warnings(&ended).iter().any(|text| text.contains(&aside[0])), "{ended:?}");
    assert_eq!(content(&world.replica()), content(&world.source()));
    assert_eq!(content(&world.path(&aside[0])), theirs);
    let count = world.aside().len();
    is_done(&world.pull(&[]));
    assert_eq!(world.aside().len(), count);
}

#[test]
fn a_file_that_was_published_and_not_settled_is_made_again_as_our_own() {
    let mut world = World::new();
    let log = world.path("log");
    let bring = |world: &World| {
        is_done(&mirror(arg(&world.source()), arg(&log), &[]));
        let ended = mirror(arg(&log), arg(&world.replica()), &[]);
        is_done(&ended);
        assert_eq!(content(&world.replica()), content(&world.source()));
        ended
    };
    bring(&world);
    let before = record(&world);
    world.insert("second");
    bring(&world);
    // As a process leaves it that was killed after it had published a transaction.
    let mut killed = record(&world);
    killed["mark"] = before["mark"].clone();
    fs::write(world.path("replica.db-logmirror"), killed.to_string()).unwrap();
    // Another generation of a directory makes the file again.
    world.app.run(&["PRAGMA journal_mode = DELETE", "PRAGMA page_size = 1024", "VACUUM"]);
    let ended = bring(&world);
    assert_eq!((world.aside(), warnings(&ended)), (vec![], vec![]), "no other process wrote it");
}

#[test]
fn what_is_still_in_its_wal_is_set_aside_with_it() {
    let world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    let mut other = Sqlite::open_within(&world.replica(), 10);
    other.rows("INSERT INTO t (n, x) VALUES (1000, 'theirs')");
    // It is open, and nothing is checkpointed.
    let ended = world.pull(&[]);
    is_done(&ended);
    assert_eq!(content(&world.replica()), content(&world.source()));
    assert_eq!(other.rows("SELECT count(*) FROM t")[0][0], 2, "they keep what they have");
    other.kill();
    let aside: Vec<_> =
        world.aside().into_iter().filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")).collect();
    assert!(content(&world.path(&aside[0])).contains("theirs"));
}

#[test]
fn a_file_that_was_deleted_is_made_again() {
    let world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    fs::remove_file(world.replica()).unwrap();
    is_done(&world.pull(&[]));
    assert_eq!(content(&world.replica()), content(&world.source()));
}

#[test]
fn another_journal_mode_is_a_write() {
    let world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    let mut other = Sqlite::open_within(&world.replica(), 10);
    other.rows("PRAGMA journal_mode = DELETE");
    other.close();
    is_done(&world.pull(&[]));
    assert_eq!((world.aside().len(), content(&world.replica())), (1, content(&world.source())));
}

type Damage = fn(&Path);

#[test]
fn a_file_that_is_no_database_any_more_is_set_aside_and_made_again() {
    let damages: [(&str, Damage); 3] = [
        ("emptied", |file| fs::write(file, "").unwrap()),
        ("another first byte", |file| {
            let mut bytes = fs::read(file).unwrap();
            bytes[3] ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("cut in its header", |file| fs::File::options().write(true).open(file).unwrap().set_len(50).unwrap()),
    ];
    for (what, damage) in damages {
        let mut world = World::new();
        world.feed();
        is_done(&world.pull(&[]));
        damage(&world.replica());
        let damaged = fs::read(world.replica()).unwrap();
        world.insert("more");
        world.feed();
        let ended = world.pull(&[]);
        is_done(&ended);
        assert!(warnings(&ended).iter().any(|text| text.contains("set aside")), "{what}: {ended:?}");
        assert_eq!(content(&world.replica()), content(&world.source()), "{what}");
        let aside = world.aside();
        assert_eq!(fs::read(world.path(&aside[0])).unwrap(), damaged, "{what}");
        is_done(&world.pull(&[]));
        assert_eq!(world.aside(), aside, "{what}: once");
    }
}

#[test]
fn a_file_with_another_name_is_not_written() {
    let mut world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    let backup = world.path("backup.db");
    fs::hard_link(world.replica(), &backup).unwrap();
    let before = fs::read(&backup).unwrap();
    world.insert("more");
    world.feed();
    is_refused(&world.pull(&[]), 1, &["has 2 hard links", "replace it by a copy"]);
    assert!(fs::read(&backup).unwrap() == before);
    // As the message says.
    let copy = world.path("copy.db");
    fs::copy(world.replica(), &copy).unwrap();
    fs::rename(&copy, world.replica()).unwrap();
    is_done(&world.pull(&[]));
    assert_eq!(content(&world.replica()), content(&world.source()));
    assert!(fs::read(&backup).unwrap() == before && world.aside().is_empty());
}
