//! A follower of databases that the real SQLite writes, checkpoints and closes: no commit is missed, and nobody waits for it.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logmirror::sqlite::page_sums::PageSums;
use logmirror::sqlite::{DatabaseError, Follower, Held, HeldDatabase, Moved, Snapshot, each_difference};
use logmirror::sync::LocalLog;
use rusqlite::Connection;
use serde_json::{Value, json};
use support::commitlog::{Draw, seed};
use support::sqlite::Sqlite;
use tempfile::TempDir;

/// The processes of [`Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

const PATIENCE: Duration = Duration::from_secs(5);

/// A database in WAL mode that a process has open.
fn in_use() -> (TempDir, PathBuf, Sqlite) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&path);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (n INTEGER PRIMARY KEY, x)"]);
    (dir, path, sqlite)
}

fn attach(path: &Path) -> Follower {
    Follower::attach(path, PATIENCE).unwrap().expect("somebody has it open")
}

/// A database put together from the frames that a follower reads.
#[derive(Default)]
struct Image {
    pages: BTreeMap<u32, Vec<u8>>,
    open: BTreeMap<u32, Vec<u8>>,
    commits: u64,
    resets: u64,
}

impl Image {
    /// Takes all there is; whether anything was.
    fn take(&mut self, follower: &mut Follower) -> Result<bool, DatabaseError> {
        let salts = follower.position().salts;
        let moved = follower.look()?;
        self.resets += u64::from(follower.position().salts != salts);
        let Moved::To(frame) = moved else {
            return Ok(false);
        };
        follower.read(frame, |_, head, frame, _| {
            self.open.insert(head.page, frame[24..].to_vec());
            if head.size > 0 {
                self.pages.append(&mut self.open);
                self.pages.retain(|page, _| *page <= head.size);
                self.commits += 1;
            }
            true
        })?;
        assert!(self.open.is_empty(), "it ends with a commit");
        Ok(true)
    }

    fn take_all(&mut self, follower: &mut Follower) {
        while self.take(follower).unwrap() {}
    }

    fn rows(&self) -> Vec<i64> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.db");
        fs::write(&path, self.pages.values().flatten().copied().collect::<Vec<u8>>()).unwrap();
        let db = Connection::open(&path).unwrap();
        let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        let mut rows = db.prepare("SELECT n FROM t ORDER BY n").unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

fn numbers(rows: &Value) -> Vec<i64> {
    rows.as_array().unwrap().iter().map(|row| row[0].as_i64().unwrap()).collect()
}

/// Waits until a follower has moved on to read mark 0.
fn settle(follower: &mut Follower) {
    assert_eq!(follower.look().unwrap(), Moved::Not);
    assert_eq!(follower.held(), Held::Zero);
}

#[test]
fn a_database_that_was_only_read_since_it_was_opened_is_compared_as_any_other() {
    let (_dir, path, mut app) = in_use();
    app.rows("INSERT INTO t (x) VALUES (randomblob(9000))");
    app.reopen();
    app.rows("SELECT count(*) FROM t");
    assert_eq!(fs::metadata(path.with_file_name("app.db-wal")).unwrap().len(), 0, "no frame was written yet");
    let mut follower = attach(&path);
    let (sums, mut pages) = (PageSums::new(7), 0);
    let found = each_difference(&follower, &sums, |_, content, _| {
        assert_eq!(content.len(), 4096);
        pages += 1;
        Ok::<_, DatabaseError>(())
    })
    .unwrap();
    assert_eq!(u64::from(found.pages) * 4096, fs::metadata(&path).unwrap().len());
    assert_eq!((pages, found.unproven), (found.pages, None));
    // And followed from there on.
    app.rows("INSERT INTO t (x) VALUES (1)");
    let mut image = Image::default();
    assert!(image.take(&mut follower).unwrap());
}

#[test]
fn the_first_frame_of_a_new_wal_follows_the_last_of_the_old_one() {
    let (_dir, path, mut app) = in_use();
    let (mut follower, mut image) = (attach(&path), Image::default());
    assert!(matches!(follower.held(), Held::Slot(_)));
    image.take_all(&mut follower);
    for round in 0..5_i64 {
        app.rows("INSERT INTO t (x) VALUES (randomblob(3000))");
        image.take_all(&mut follower);
        app.rows("PRAGMA wal_checkpoint(PASSIVE)");
        settle(&mut follower);
        // The next writer resets the WAL: nothing holds it back.
        app.rows("INSERT INTO t (x) VALUES (randomblob(3000))");
        image.take_all(&mut follower);
        assert_eq!(image.resets, round as u64 + 1, "the WAL was reset");
        assert_eq!(image.rows(), (1..=2 * round + 2).collect::<Vec<_>>());
    }
}

#[test]
fn a_wal_is_not_reset_while_frames_of_it_are_not_read() {
    let (_dir, path, mut app) = in_use();
    let (mut follower, mut image) = (attach(&path), Image::default());
    app.rows("INSERT INTO t (x) VALUES (1)");
    // All of it is copied, and the writer would start anew.
    assert_eq!(app.rows("PRAGMA wal_checkpoint(PASSIVE)")[0][0], 0);
    app.rows("INSERT INTO t (x) VALUES (2)");
    assert_eq!(app.rows("PRAGMA wal_checkpoint(RESTART)")[0][0], 1, "it is held");
    let salts = follower.position().salts;
    image.take_all(&mut follower);
    assert_eq!((image.rows(), follower.position().salts), (vec![1, 2], salts));
    settle(&mut follower);
    assert_eq!(app.rows("PRAGMA wal_checkpoint(RESTART)")[0][0], 0, "it goes on as soon as they are");
    app.rows("INSERT INTO t (x) VALUES (3)");
    image.take_all(&mut follower);
    assert_eq!((image.rows(), image.resets), (vec![1, 2, 3], 1));
}

#[test]
fn nothing_is_copied_between_the_last_look_and_a_reset() {
    let (_dir, path, mut app) = in_use();
    let (mut follower, mut image) = (attach(&path), Image::default());
    image.take_all(&mut follower);
    app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    image.take_all(&mut follower);
    settle(&mut follower);
    // Frames that come now cannot be copied, and so not be lost in a reset, before they were seen.
    app.rows("INSERT INTO t (x) VALUES (1)");
    app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    app.rows("INSERT INTO t (x) VALUES (2)");
    app.rows("PRAGMA wal_checkpoint(PASSIVE)");
    app.rows("INSERT INTO t (x) VALUES (3)");
    image.take_all(&mut follower);
    assert_eq!(image.rows(), vec![1, 2, 3]);
    assert_eq!(image.commits, 4);
}

#[test]
fn a_slot_that_nobody_else_uses_limits_no_checkpoint() {
    let (_dir, path, mut app) = in_use();
    let mut follower = attach(&path);
    for _ in 0..3 {
        app.rows("INSERT INTO t (x) VALUES (randomblob(3000))");
        let said = app.rows("PRAGMA wal_checkpoint(PASSIVE)");
        assert_eq!(said[0][1], said[0][2], "all frames are copied: {said}");
    }
    assert!(matches!(follower.look().unwrap(), Moved::To(_)));
    assert!(matches!(follower.held(), Held::Slot(_)));
}

#[test]
fn applications_that_open_write_and_close_are_followed_too() {
    let (_dir, path, mut app) = in_use();
    let (mut follower, mut image) = (attach(&path), Image::default());
    image.take_all(&mut follower);
    for n in 1..=40_i64 {
        app.rows("INSERT INTO t (x) VALUES (randomblob(5000))");
        app.reopen();
        if n % 3 == 0 {
            image.take_all(&mut follower);
            assert_eq!(image.rows().len() as i64, n);
        }
        if n % 7 == 0 {
            app.rows("PRAGMA wal_checkpoint");
            image.take_all(&mut follower);
        }
    }
    image.take_all(&mut follower);
    assert_eq!(image.rows(), (1..=40).collect::<Vec<_>>());
    assert!(image.resets > 2, "{} resets", image.resets);
}

#[test]
fn a_killed_writer_is_recovered_by_the_next_and_nothing_is_missed() {
    let (_dir, path, mut app) = in_use();
    let (mut follower, mut image) = (attach(&path), Image::default());
    for n in 1..=10_i64 {
        app.rows("INSERT INTO t (x) VALUES (randomblob(5000))");
        app.rows("BEGIN; INSERT INTO t (x) VALUES (randomblob(50000))");
        app.kill();
        app = Sqlite::open_within(&path, 5);
        if n % 2 == 0 {
            image.take_all(&mut follower);
        }
        app.rows("INSERT INTO t (x) VALUES (1)");
        app.rows("PRAGMA wal_checkpoint");
    }
    image.take_all(&mut follower);
    assert_eq!(image.rows(), numbers(&app.rows("SELECT n FROM t ORDER BY n")));
}

#[test]
fn no_commit_is_missed_whatever_writers_and_checkpoints_do_meanwhile() {
    for _ in 0..4 {
        let mut draw = Draw(seed());
        let (_dir, path, app) = in_use();
        let mut apps = [app, Sqlite::open(&path)];
        let (mut follower, mut image) = (attach(&path), Image::default());
        image.take_all(&mut follower);
        let before = image.commits;
        let mut written = 0;
        for _ in 0..400 {
            let app = &mut apps[draw.below(2) as usize];
            match draw.below(12) {
                0..=5 => {
                    let bytes = draw.below(20_000);
                    app.rows(&format!("INSERT INTO t (x) VALUES (randomblob({bytes}))"));
                    written += 1;
                }
                6 => drop(app.ask("PRAGMA wal_checkpoint(PASSIVE)")),
                7 => drop(app.ask("PRAGMA wal_checkpoint(TRUNCATE)")),
                8 => app.reopen(),
                _ => image.take_all(&mut follower),
            }
        }
        image.take_all(&mut follower);
        assert_eq!(image.rows(), numbers(&apps[0].rows("SELECT n FROM t ORDER BY n")));
        assert_eq!(image.commits - before, written, "each commit is there once");
        assert!(image.resets > 0);
    }
}

#[test]
fn what_cannot_be_known_any_more_is_an_error_and_no_guess() {
    let (_dir, path, mut app) = in_use();
    let (mut follower, mut image) = (attach(&path), Image::default());
    image.take_all(&mut follower);
    let position = follower.position();
    assert!(follower.go_on_from(&position).unwrap());
    app.rows("INSERT INTO t (x) VALUES (1)");
    drop(follower);
    app.rows("PRAGMA wal_checkpoint(RESTART)");
    app.rows("INSERT INTO t (x) VALUES (2)");
    let mut follower = attach(&path);
    assert!(!follower.go_on_from(&position).unwrap(), "the WAL is another one");
    fs::copy(&path, path.with_extension("copy")).unwrap();
    fs::rename(path.with_extension("copy"), &path).unwrap();
    assert!(matches!(follower.look(), Err(DatabaseError::Changed { .. })));
    drop(follower);
    app.close();
    assert!(Follower::attach(&path, Duration::ZERO).unwrap().is_none(), "nobody has it open");
}

#[test]
fn a_database_that_nobody_wrote_to_since_it_was_opened_has_the_pages_that_its_file_says() {
    let (_dir, path, mut app) = in_use();
    app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    app.close();
    let mut app = Sqlite::open(&path);
    app.rows("SELECT count(*) FROM t");
    let follower = attach(&path);
    let pages = fs::metadata(&path).unwrap().len() / 4096;
    assert_eq!((follower.bytes_of_page(), u64::from(follower.page_count().unwrap())), (Some(4096), pages));
}

#[test]
fn a_wal_that_nobody_wrote_to_yet_does_not_prove_that_nothing_was_missed() {
    let (_dir, path, app) = in_use();
    app.close();
    let mut app = Sqlite::open(&path);
    app.rows("SELECT count(*) FROM t");
    let position = attach(&path).position();
    assert_eq!(position.frames, 0);
    app.run(&["PRAGMA journal_mode = DELETE", "INSERT INTO t (x) VALUES (1)", "PRAGMA journal_mode = WAL"]);
    app.close();
    let mut app = Sqlite::open(&path);
    app.rows("SELECT count(*) FROM t");
    assert!(!attach(&path).go_on_from(&position).unwrap());
}

#[test]
fn a_connection_that_has_read_nothing_yet_is_nobody_to_follow() {
    let (_dir, path, _app) = in_use();
    // As the wal-index is before the first connection has read.
    let index = fs::File::options().write(true).open(path.with_extension("db-shm")).unwrap();
    index.write_all_at(&[0; 136], 0).unwrap();
    let since = Instant::now();
    assert!(Follower::attach(&path, PATIENCE).unwrap().is_none());
    assert!(since.elapsed() < PATIENCE, "nothing is waited for");
}

#[test]
fn checkpoints_and_writers_do_not_wait_for_a_follower_that_looks() {
    let (_dir, path, _first) = in_use();
    let mut app = Sqlite::open_within(&path, 5);
    app.rows("PRAGMA wal_autocheckpoint = 100");
    let mut follower = attach(&path);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut waits = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut image = Image::default();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                image.take(&mut follower).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let mut waits = Vec::new();
        for n in 0..600 {
            app.rows("INSERT INTO t (x) VALUES (randomblob(9000))");
            let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][n % 4];
            let since = Instant::now();
            let said = app.rows(&format!("PRAGMA wal_checkpoint({mode})"));
            waits.push(since.elapsed());
            assert!(n % 4 == 0 || said[0][0] == json!(0), "{mode} gave up: {said}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        waits
    });
    waits.sort_unstable();
    let p99 = waits[waits.len() * 99 / 100];
    println!("checkpoints: p50 {:?}, p99 {p99:?}, longest {:?}", waits[waits.len() / 2], waits.last().unwrap());
    assert!(p99 < Duration::from_millis(500), "{p99:?}");
}

/// The headers of a wal-index.
fn index_headers(path: &Path) -> (fs::File, [u8; 96]) {
    let index = fs::File::options().read(true).write(true).open(format!("{}-shm", path.display())).unwrap();
    let mut headers = [0; 96];
    index.read_exact_at(&mut headers, 0).unwrap();
    (index, headers)
}

/// SQLite writes the frames of a commit, syncs the WAL, and only then counts them in the wal-index. Should the sync fail they never
/// count, and the next transaction is written over them.
#[test]
fn a_commit_that_does_not_count_yet_is_in_no_snapshot() {
    for earlier in [0, 1, 3] {
        let (_dir, path, mut sqlite) = in_use();
        sqlite.run(&["PRAGMA wal_checkpoint(TRUNCATE)"]);
        for _ in 0..earlier {
            sqlite.run(&["INSERT INTO t (x) VALUES (1)"]);
        }
        let frames = Snapshot::open(&path).unwrap().frames();
        let (index, before) = index_headers(&path);
        sqlite.run(&["INSERT INTO t (x) VALUES (2)"]);
        let (_, after) = index_headers(&path);
        index.write_all_at(&before, 0).unwrap();
        let snapshot = Snapshot::open(&path).unwrap();
        assert_eq!((snapshot.frames(), snapshot.wal_frames()), (frames, frames), "after {earlier} others");
        snapshot.check().unwrap();
        assert_eq!(attach(&path).wal_frames(), frames, "as for a follower");
        index.write_all_at(&after, 0).unwrap();
        assert!(Snapshot::open(&path).unwrap().frames() > frames);
        // Without anybody to count them, all that a recovery would find count.
        index.write_all_at(&before, 0).unwrap();
        sqlite.kill();
        assert!(Snapshot::open(&path).unwrap().frames() > frames);
    }
}

/// A checkpoint that truncates the WAL has the wal-index count nothing first. Where the file was not cut, it still has frames that
/// counted, which the database file holds, and perhaps those of a commit that failed, which it does not.
#[test]
fn a_failed_commit_does_not_count_once_its_wal_is_to_be_restarted() {
    let (_dir, path, mut sqlite) = in_use();
    sqlite.run(&["INSERT INTO t (x) VALUES (1)"]);
    let (index, before) = index_headers(&path);
    sqlite.run(&["INSERT INTO t (x) VALUES (2)"]);
    index.write_all_at(&before, 0).unwrap();
    let wal = path.with_file_name("app.db-wal");
    let frames = fs::read(&wal).unwrap();
    assert_eq!(sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0], 0);
    fs::File::options().write(true).open(&wal).unwrap().write_all_at(&frames, 0).unwrap();
    let (snapshot, database) = (Snapshot::open(&path).unwrap(), fs::metadata(&path).unwrap().len());
    assert_eq!((snapshot.frames(), snapshot.header(), snapshot.db_pages() * 4096), (0, None, database));
    snapshot.check().unwrap();
    drop(snapshot);
    assert_eq!(LocalLog::open(&path).unwrap().frames(), 0, "nor is it pushed");
    sqlite.run(&["INSERT INTO t (x) VALUES (3)"]);
    assert!(Snapshot::open(&path).unwrap().frames() > 0);
    assert_eq!(numbers(&sqlite.rows("SELECT x FROM t ORDER BY n")), [1, 3]);
}
