//! The wal-index that we write is the one that SQLite makes of the same WAL, byte for byte, in WALs of several blocks and with
//! every page size.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::origin::{Origin, append};
use crate::support::assert_bytes;
use crate::support::sqlite::{assert_sound, connect, dump, rows};

/// The blocks of a wal-index that frames are in, without what is before the first.
fn blocks(index: &[u8], frames: u64) -> &[u8] {
    let count = (frames as usize + 34).div_ceil(4096);
    &index[136..32_768 * count]
}

/// Compares the wal-index at `path` with that which SQLite makes for a copy.
fn compare(path: &Path, frames: u64, what: &str) {
    let ours = fs::read(format!("{}-shm", path.display())).unwrap();
    let copy = path.with_file_name("copy.db");
    let _is_not_there = fs::remove_file(path.with_file_name("copy.db-shm"));
    for ending in ["", "-wal"] {
        fs::copy(format!("{}{ending}", path.display()), format!("{}{ending}", copy.display())).unwrap();
    }
    let db = connect(&copy);
    rows(&db, "SELECT count(*) FROM sqlite_schema").unwrap();
    let theirs = fs::read(path.with_file_name("copy.db-shm")).unwrap();
    assert_bytes(blocks(&ours, frames), blocks(&theirs, frames), what);
    // All of the header but the count of changes and its own checksum.
    assert_eq!((&ours[..8], &ours[12..40]), (&theirs[..8], &theirs[12..40]), "{what}");
    assert_bytes(&ours[..48], &ours[48..96], what);
}

#[test]
fn the_index_is_the_one_that_sqlite_makes_of_the_same_wal() {
    for page_size in [512, 4096, 65_536] {
        let mut origin =
            Origin::new(page_size, "CREATE TABLE t (n INTEGER PRIMARY KEY, x, y); CREATE INDEX i ON t (y)");
        let mut replica = origin.replica("replica.db");
        let path = replica.path().to_owned();
        let reader = connect(&path);
        let wanted = if page_size == 65_536 { 600 } else { 9_000 };
        let mut round = 0;
        while replica.frames() < wanted {
            round += 1;
            let count = [1, 40, 700][round % 3];
            let sql = format!(
                "WITH r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < {count})
                 INSERT INTO t (x, y) SELECT randomblob({}), abs(random()) % 1000 FROM r",
                page_size / 3,
            );
            origin.run_both(&mut replica, &sql);
            let is_last = replica.frames() >= wanted;
            if round % 10 == 1 || is_last {
                compare(&path, replica.frames(), &format!("pages of {page_size}, {} frames", replica.frames()));
                assert_eq!(
                    rows(&reader, "SELECT count(*), sum(y) FROM t"),
                    rows(&origin.db, "SELECT count(*), sum(y) FROM t")
                );
            }
        }
        assert_sound(&reader);
        assert!(dump(&reader) == origin.dump());
        // What others copied, and a writer that gave up, changes nothing.
        let frames = replica.frames();
        assert_eq!(
            rows(&reader, "PRAGMA wal_checkpoint(PASSIVE)").unwrap(),
            [[json!(0), json!(frames), json!(frames)]]
        );
        reader.execute_batch("BEGIN; UPDATE t SET y = y + 1; ROLLBACK").unwrap();
        origin.run_both(&mut replica, "UPDATE t SET y = 3 WHERE n % 100 = 1");
        assert!(replica.frames() < frames, "everything was copied, so the WAL starts again");
        compare(&path, replica.frames(), "after a restart");
        assert!(dump(&reader) == origin.dump());
        drop(reader);
        replica.close().unwrap();
        assert!(dump(&connect(&path)) == origin.dump());
    }
}

#[test]
fn frames_that_a_dead_writer_left_are_not_found_in_place_of_later_ones() {
    let mut origin = Origin::new(512, "CREATE TABLE t (n INTEGER PRIMARY KEY, x); INSERT INTO t (x) VALUES (0)");
    let mut replica = origin.replica("replica.db");
    let path = replica.path().to_owned();
    for round in 0..20 {
        let mut writer = crate::support::sqlite::Sqlite::open(&path);
        writer.rows("PRAGMA cache_size = 2");
        writer.rows("PRAGMA cache_spill = 1");
        writer.rows("BEGIN; INSERT INTO t (x) SELECT randomblob(700) FROM t, t AS u, t AS v LIMIT 300");
        writer.kill();
        origin.run_both(&mut replica, "UPDATE t SET x = randomblob(900); INSERT INTO t (x) VALUES (randomblob(400))");
        compare(&path, replica.frames(), &format!("round {round}"));
        if round % 7 == 6 {
            replica.checkpoint().unwrap();
        }
    }
    append(&mut replica, &origin.run("VACUUM"));
    replica.commit().unwrap();
    let db = connect(&path);
    assert_sound(&db);
    assert_eq!(dump(&db), origin.dump());
    drop(db);
}
