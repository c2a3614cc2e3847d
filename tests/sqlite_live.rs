//! Snapshots of databases that the real SQLite is using meanwhile.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use logmirror::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN};
use logmirror::sqlite::{DatabaseError, Snapshot, take};
use serde_json::{Value, json};
use support::commitlog::{Draw, seed};
use support::sqlite::{Sqlite, blob, connect, rows};
use tempfile::TempDir;

/// The processes of [`Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// Patience where a lock is held all the time.
const SHORT: Duration = Duration::from_millis(50);

fn open(path: &Path) -> Snapshot {
    Snapshot::open(path).unwrap()
}

fn refused(path: &Path) -> DatabaseError {
    Snapshot::open_within(path, SHORT).unwrap_err()
}

/// A new database in WAL mode with rows in it, all of them in the WAL.
fn in_use() -> (TempDir, PathBuf, Sqlite) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&path);
    sqlite.run(&["PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE t (x)"]);
    for _ in 0..10 {
        sqlite.rows("INSERT INTO t VALUES (randomblob(5000))");
    }
    (dir, path, sqlite)
}

/// Base and WAL of a snapshot, the latter up to and with a frame.
fn content(snapshot: &Snapshot, frames: u64) -> (Vec<u8>, Vec<u8>) {
    let mut base = vec![0; snapshot.base_bytes().unwrap() as usize];
    assert_eq!(snapshot.read_base(0, &mut base).unwrap(), base.len());
    let wal_bytes = snapshot.header().map_or(0, |header| HEADER_LEN as u64 + frames * header.frame_len());
    let mut wal = vec![0; wal_bytes as usize];
    assert_eq!(snapshot.read_wal(0, &mut wal).unwrap(), wal.len());
    (base, wal)
}

/// What `integrity_check` and a statement say of a copy.
fn ask_copy((base, wal): &(Vec<u8>, Vec<u8>), sql: &str) -> (Value, Value) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.db");
    fs::write(&path, base).unwrap();
    fs::write(dir.path().join("copy.db-wal"), wal).unwrap();
    let db = connect(&path);
    rows(&db, "PRAGMA synchronous = OFF").unwrap();
    match rows(&db, "PRAGMA integrity_check").and_then(|check| Ok((check, rows(&db, sql)?))) {
        Ok((check, rows)) => (json!(check), json!(rows)),
        Err(error) => (json!(error.to_string()), Value::Null),
    }
}

/// The frames that end a commit.
fn commits(wal: &[u8], page_size: usize) -> Vec<u64> {
    let frames = wal.get(HEADER_LEN..).unwrap_or_default().chunks_exact(FRAME_HEADER_LEN + page_size);
    let ends = frames.map(|frame| FrameHeader::decode(frame.first_chunk().unwrap()).size != 0);
    ends.zip(1..).filter(|(ends, _)| *ends).map(|(_, number)| number).collect()
}

/// Writes the same count of rows into two tables in each transaction, of very different sizes, gives some up, checkpoints
/// in every way, and closes and opens the database now and then. Returns how often it did what, when it is stopped.
fn write(path: &Path, seed: u64, stop: &AtomicBool, ready: &mpsc::Sender<()>) -> BTreeMap<&'static str, u64> {
    let mut draw = Draw(seed);
    let mut did = BTreeMap::new();
    let mut sqlite = Sqlite::open(path);
    let connected = "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = 10; \
                     PRAGMA wal_autocheckpoint = 40";
    sqlite.run(&[
        connected,
        "CREATE TABLE IF NOT EXISTS a (id INTEGER PRIMARY KEY, x)",
        "CREATE TABLE IF NOT EXISTS b (id INTEGER PRIMARY KEY, x)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ]);
    ready.send(()).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let mut count = |what, times: u64| *did.entry(what).or_default() += times;
        let mut sql = "BEGIN IMMEDIATE;".to_owned();
        for _ in 0..[1, 1, 2, 30][draw.below(4) as usize] {
            let bytes = draw.below(3000);
            let content = blob(&mut draw, bytes);
            sql += &format!("INSERT INTO a (x) VALUES ({content}); INSERT INTO b (x) VALUES ({content});");
        }
        for table in ["a", "b"] {
            sql += &format!("DELETE FROM {table} WHERE id % 7 = 0 OR id < (SELECT max(id) FROM {table}) - 100;");
        }
        sql += if draw.below(10) == 0 { "ROLLBACK" } else { "COMMIT" };
        if !sqlite.ask(&sql)["error"].is_null() {
            count("busy", 1);
            // It may have failed before it began.
            sqlite.ask("ROLLBACK");
            continue;
        }
        count("commits", 1);
        if draw.below(5) == 0 {
            let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][draw.below(4) as usize];
            let said = sqlite.ask(&format!("PRAGMA wal_checkpoint({kind})"));
            let done = said["rows"][0][0] == 0;
            count("busy", u64::from(!done));
            count("checkpoints", u64::from(done));
            count("truncated", u64::from(done && kind == "TRUNCATE"));
        }
        if draw.below(50) == 0 {
            sqlite.reopen();
            count("closed", 1);
            count("busy", u64::from(!sqlite.ask(connected)["error"].is_null()));
        }
    }
    did
}

#[test]
fn every_snapshot_beside_a_busy_writer_is_a_committed_state() {
    let seed = seed();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (stop, (ready, is_ready)) = (Arc::<AtomicBool>::default(), mpsc::channel());
    let writer = std::thread::spawn({
        let (path, stop) = (path.clone(), stop.clone());
        move || write(&path, seed, &stop, &ready)
    });
    is_ready.recv().unwrap();
    let counts = "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b), (SELECT total(length(x)) FROM a), \
                  (SELECT total(length(x)) FROM b)";
    let (mut folded_some, mut restarts, mut salts) = (0, 0, None);
    for round in 0..60 {
        let (copy, frames, folded, header) = take(&path, |snapshot| {
            // Once in a while, time enough for the writer to get to anything it could do meanwhile.
            if round % 4 == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            let frames = snapshot.frames();
            Ok::<_, DatabaseError>((content(snapshot, frames), frames, snapshot.folded()?, snapshot.header()))
        })
        .unwrap();
        let sound = |copy: &(Vec<u8>, Vec<u8>), frames: u64| {
            let (check, rows) = ask_copy(copy, counts);
            assert_eq!(check, json!([["ok"]]), "round {round}, up to frame {frames}");
            assert_eq!((&rows[0][0], &rows[0][2]), (&rows[0][1], &rows[0][3]), "round {round}, up to frame {frames}");
        };
        sound(&copy, frames);
        let ends = commits(&copy.1, 4096);
        assert_eq!(ends.last().copied().unwrap_or(0), frames);
        // Any commit from the last one folded in on will do.
        if let Some(end) = ends.iter().find(|end| **end >= folded) {
            let part = (copy.0.clone(), copy.1[..HEADER_LEN + *end as usize * (FRAME_HEADER_LEN + 4096)].to_vec());
            sound(&part, *end);
        }
        folded_some += u32::from(folded > 0);
        restarts +=
            u32::from(salts.replace(header.map(|header| header.salts)) != Some(header.map(|header| header.salts)));
    }
    stop.store(true, Ordering::Relaxed);
    let did = writer.join().unwrap();
    println!("writer: {did:?}; {folded_some} snapshots with folded frames, {restarts} changes of the log");
    for what in ["commits", "checkpoints", "truncated", "closed"] {
        assert!(did.get(what).is_some_and(|times| *times > 0), "the writer did too little: {did:?}");
    }
    assert!(restarts > 1);
}

#[test]
fn no_checkpoint_changes_the_database_while_a_snapshot_is_held() {
    let (dir, path, mut sqlite) = in_use();
    let snapshot = open(&path);
    let before = (fs::read(&path).unwrap(), content(&snapshot, snapshot.frames()));
    let names = || support::files(dir.path()).into_keys().collect::<Vec<_>>();
    let files = names();
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        let row = sqlite.rows(&format!("PRAGMA wal_checkpoint({kind})"))[0].take();
        assert_eq!(row[2], 0, "{kind}: {row}");
        assert!(kind == "PASSIVE" || row[0] == 1, "{kind}: {row}");
        // Writers and readers go on.
        sqlite.rows("INSERT INTO t VALUES (randomblob(5000))");
        assert_eq!(fs::read(&path).unwrap(), before.0, "{kind}");
    }
    assert_eq!(sqlite.rows("SELECT count(*) FROM t"), json!([[14]]));
    snapshot.check().unwrap();
    assert_eq!(content(&snapshot, snapshot.frames()), before.1);
    assert_eq!(names(), files);
    let (check, rows) = ask_copy(&before.1, "SELECT count(*) FROM t");
    assert_eq!((check, rows), (json!([["ok"]]), json!([[10]])));
    drop(snapshot);
    assert_eq!(sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)"), json!([[0, 0, 0]]));
    let snapshot = open(&path);
    assert_eq!((snapshot.frames(), snapshot.header()), (0, None));
    assert_eq!(ask_copy(&content(&snapshot, 0), "SELECT count(*) FROM t").1, json!([[14]]));
}

#[test]
fn the_last_connection_to_close_leaves_everything_as_it_is() {
    let (_dir, path, sqlite) = in_use();
    let snapshot = open(&path);
    let before = content(&snapshot, snapshot.frames());
    sqlite.close();
    snapshot.check().unwrap();
    assert_eq!(content(&snapshot, snapshot.frames()), before);
    assert_eq!(fs::read(&path).unwrap(), before.0);
    drop(snapshot);
    // Without a snapshot it would have folded the WAL in and removed it.
    Sqlite::open(&path).run(&["SELECT count(*) FROM t"]);
    let mut sqlite = Sqlite::open(&path);
    sqlite.rows("SELECT count(*) FROM t");
    sqlite.close();
    assert!(!path.with_extension("db-wal").exists());
}

#[test]
fn a_log_is_not_started_anew_while_a_snapshot_is_held() {
    let (_dir, path, mut sqlite) = in_use();
    // All is in the database now, so the next writer would start at frame 1.
    let row = sqlite.rows("PRAGMA wal_checkpoint(PASSIVE)")[0].take();
    assert_eq!(row[1], row[2]);
    let snapshot = open(&path);
    let (before, header) = (content(&snapshot, snapshot.frames()), snapshot.header().unwrap());
    assert_eq!(snapshot.folded().unwrap(), snapshot.frames());
    sqlite.rows("INSERT INTO t VALUES (11)");
    snapshot.check().unwrap();
    assert_eq!(content(&snapshot, snapshot.frames()), before);
    let more = open(&path);
    assert!(more.frames() > snapshot.frames());
    assert_eq!((more.header(), more.folded().unwrap()), (Some(header), snapshot.frames()));
    drop((snapshot, more));
    sqlite.run(&["PRAGMA wal_checkpoint(PASSIVE)", "INSERT INTO t VALUES (12)"]);
    let anew = open(&path);
    let found = anew.header().unwrap();
    assert_eq!((found.salts[0], found.sequence), (header.salts[0].wrapping_add(1), header.sequence + 1));
    assert_ne!(found.salts[1], header.salts[1]);
    assert_eq!((anew.frames(), anew.transactions()), (1, 1));
}

#[test]
fn base_and_wal_give_every_commit_from_the_last_one_folded_in_on() {
    let (_dir, path, mut sqlite) = in_use();
    assert_eq!(open(&path).folded().unwrap(), 0);
    // A reader keeps the log from being started anew.
    let mut reader = Sqlite::open(&path);
    reader.run(&["BEGIN", "SELECT count(*) FROM t"]);
    sqlite.rows("PRAGMA wal_checkpoint(PASSIVE)");
    for _ in 0..10 {
        sqlite.rows("INSERT INTO t VALUES (randomblob(5000))");
    }
    let snapshot = open(&path);
    let whole = content(&snapshot, snapshot.frames());
    let (ends, folded) = (commits(&whole.1, 4096), snapshot.folded().unwrap());
    // The table's and ten rows'.
    assert_eq!((ends.len(), ends[10]), (21, folded));
    for (index, end) in ends.iter().enumerate() {
        let copy = content(&snapshot, *end);
        if *end < folded {
            continue;
        }
        let (check, rows) = ask_copy(&copy, "SELECT count(*) FROM t");
        assert_eq!((check, rows), (json!([["ok"]]), json!([[index]])), "frame {end}");
    }
}

#[test]
fn whoever_opens_a_database_after_a_crash_is_let_in() {
    let (_dir, path, sqlite) = in_use();
    sqlite.kill();
    assert!(path.with_extension("db-shm").exists());
    let snapshot = open(&path);
    let before = content(&snapshot, snapshot.frames());
    let since = Instant::now();
    let mut sqlite = Sqlite::open(&path);
    assert_eq!(sqlite.rows("SELECT count(*) FROM t"), json!([[10]]));
    sqlite.rows("INSERT INTO t VALUES (11)");
    // He recovers at once, and does not wait for us.
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0], 1);
    snapshot.check().unwrap();
    assert_eq!(content(&snapshot, snapshot.frames()), before);
}

#[test]
fn whoever_opens_a_database_that_nobody_had_open_makes_the_snapshot_void() {
    let (dir, path, sqlite) = in_use();
    sqlite.kill();
    fs::remove_file(path.with_extension("db-shm")).unwrap();
    let snapshot = open(&path);
    assert_eq!(snapshot.transactions(), 11);
    snapshot.check().unwrap();
    let mut sqlite = Sqlite::open(&path);
    sqlite.rows("SELECT count(*) FROM t");
    assert!(matches!(snapshot.check(), Err(DatabaseError::Changed { .. })));
    drop(snapshot);
    // It is read again, and with locks this time.
    let mut times = 0;
    take(&path, |snapshot| {
        times += 1;
        assert_eq!(sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0], 1);
        Ok::<_, DatabaseError>(snapshot.frames())
    })
    .unwrap();
    assert_eq!(times, 1);
    // A file that changes each time it is read is given up.
    let path = dir.path().join("other.db");
    fs::copy(support::root().join("segments/wal/page512.db"), &path).unwrap();
    let mut times = 0;
    let given_up = take(&path, |_| {
        times += 1;
        fs::copy(&path, dir.path().join("moving")).unwrap();
        fs::rename(dir.path().join("moving"), &path).unwrap();
        Ok::<_, DatabaseError>(())
    });
    assert!(matches!(given_up, Err(DatabaseError::Unsettled { rounds, .. }) if rounds == times));
}

#[test]
fn a_connection_that_has_the_database_for_itself_is_waited_for_in_vain() {
    let (_dir, path, sqlite) = in_use();
    sqlite.close();
    let mut sqlite = Sqlite::open(&path);
    sqlite.run(&["PRAGMA locking_mode = EXCLUSIVE", "INSERT INTO t VALUES (11)"]);
    let since = Instant::now();
    let error = refused(&path);
    assert!(matches!(error, DatabaseError::Exclusive { .. }) && error.is_transient(), "{error}");
    assert!(since.elapsed() >= SHORT && since.elapsed() < Duration::from_secs(5));
    sqlite.close();
    assert_eq!(ask_copy(&content(&open(&path), 0), "SELECT count(*) FROM t").1, json!([[11]]));
}

#[test]
fn a_checkpoint_is_waited_for_and_then_named() {
    let (_dir, path, _sqlite) = in_use();
    let index = path.with_extension("db-shm");
    // As a checkpoint does.
    let checkpoint = Sqlite::lock_byte(&index, 123);
    let error = refused(&path);
    assert!(matches!(error, DatabaseError::Checkpoint { .. }) && error.is_transient(), "{error}");
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || open(&path).transactions()
    });
    checkpoint.close();
    assert_eq!(waiting.join().unwrap(), 11);
}

#[test]
fn a_rollback_mode_writer_is_refused_in_mid_transaction() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let mut sqlite = Sqlite::open(&path);
        sqlite.run(&[&format!("PRAGMA journal_mode = {mode}"), "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
        let idle = open(&path);
        assert_eq!((idle.header(), idle.wal_bytes(), idle.page_size()), (None, 0, Some(4096)), "{mode}");
        assert_eq!(ask_copy(&content(&idle, 0), "SELECT count(*) FROM t"), (json!([["ok"]]), json!([[1]])), "{mode}");
        // A writer may begin while it is held, but not commit.
        sqlite.run(&["BEGIN", "INSERT INTO t VALUES (2)"]);
        assert!(sqlite.ask("COMMIT")["error"].is_string());
        idle.check().unwrap();
        drop(idle);
        sqlite.run(&["COMMIT", "BEGIN", "INSERT INTO t VALUES (3)"]);
        let error = refused(&path);
        assert!(matches!(error, DatabaseError::Writing { .. }) && error.is_transient(), "{mode}: {error}");
        sqlite.run(&["ROLLBACK"]);
        assert_eq!(ask_copy(&content(&open(&path), 0), "SELECT count(*) FROM t").1, json!([[2]]), "{mode}");
        // One that writes more than it keeps in memory has the database for itself.
        sqlite.run(&["PRAGMA cache_size = 2", "BEGIN"]);
        for _ in 0..40 {
            sqlite.rows("INSERT INTO t VALUES (randomblob(3000))");
        }
        sqlite.rows("UPDATE t SET x = 0");
        let error = refused(&path);
        assert!(matches!(error, DatabaseError::Exclusive { .. }), "{mode}: {error}");
        // Its journal stays when it is killed: what it wrote is not rolled back yet.
        sqlite.kill();
        let before = support::files(dir.path());
        let error = refused(&path);
        assert!(matches!(error, DatabaseError::HotJournal { .. }) && !error.is_transient(), "{mode}: {error}");
        assert_eq!(support::files(dir.path()), before, "{mode}");
        let mut sqlite = Sqlite::open(&path);
        assert_eq!(sqlite.rows("SELECT count(*) FROM t"), json!([[2]]));
        assert_eq!(ask_copy(&content(&open(&path), 0), "SELECT count(*) FROM t").1, json!([[2]]), "{mode}");
    }
}
