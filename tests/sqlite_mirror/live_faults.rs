//! What happens to databases while they are open: frames that only their users count, files that are removed, cut or replaced
//! under them. A mirror never passes what it saw last for what is there now.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use logmirror::sqlite::{DatabaseError, HeldDatabase, Snapshot};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::process::{Ended, Mirror, Service, arg, mirror, until};
use super::support::sqlite::{Sqlite, assert_sound, connect, rows};
use super::{beside, logmirror};

const INSERT: &str = "INSERT INTO t (x) VALUES (randomblob(6000))";

/// A service, and a database in WAL mode that a process has open.
fn in_use() -> (TempDir, Service, PathBuf, Sqlite) {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&dir.path().join("srv"));
    let app = dir.path().join("app.db");
    let sqlite = opened(&app);
    (dir, service, app, sqlite)
}

fn opened(app: &Path) -> Sqlite {
    let mut sqlite = Sqlite::open_within(app, 10);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, x)", INSERT]);
    sqlite
}

fn numbers(rows: &[Vec<Value>]) -> Vec<Value> {
    rows.iter().map(|row| row[0].clone()).collect()
}

/// The rows of what is restored, if it can be.
fn restored(place: &str) -> Option<Vec<Value>> {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out.db");
    if !logmirror(&["restore", place, arg(&out)]).status.success() {
        return None;
    }
    let db = connect(&out);
    assert_sound(&db);
    // It may be from before the table.
    Some(numbers(&rows(&db, "SELECT n FROM t ORDER BY n").ok()?))
}

/// What the application sees.
fn seen(sqlite: &mut Sqlite) -> Vec<Value> {
    let found = sqlite.rows("SELECT n FROM t ORDER BY n");
    found.as_array().unwrap().iter().map(|row| row[0].clone()).collect()
}

#[track_caller]
fn is_mirrored(place: &str, sqlite: &mut Sqlite) {
    let content = seen(sqlite);
    until("the mirror to hold what the application sees", || (restored(place)? == content).then_some(()));
}

/// Frames in the WAL of a database that is open.
fn frames(app: &Path) -> u64 {
    (fs::metadata(beside(app, "-wal")).unwrap().len() - 32) / 4120
}

/// Takes salts and checksum from the last frame, as SQLite up to 3.40.1 leaves them out after a `ROLLBACK TO`.
fn spoil_last_frame(app: &Path) {
    let wal = File::options().write(true).open(beside(app, "-wal")).unwrap();
    wal.write_all_at(&[0; 16], 32 + (frames(app) - 1) * 4120 + 8).unwrap();
}

#[track_caller]
fn is_good(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

fn reasons(ended: &Ended) -> Vec<&str> {
    let compared = ended.lines.iter().filter(|line| line["event"] == "compared");
    compared.map(|line| line["reason"].as_str().unwrap_or_default()).collect()
}

#[test]
fn frames_that_connections_count_are_mirrored_although_their_checksums_do_not_fit() {
    let (dir, service, app, mut sqlite) = in_use();
    let copy = dir.path().join("copy");
    let places = [service.url("app"), arg(&copy).to_owned()];
    // In a first base.
    spoil_last_frame(&app);
    for place in &places {
        is_good(&mirror(arg(&app), place, &[]));
        is_mirrored(place, &mut sqlite);
    }
    // What follows continues the checksum that was counted.
    sqlite.run(&[INSERT, INSERT]);
    for place in &places {
        let ended = mirror(arg(&app), place, &[]);
        is_good(&ended);
        assert_eq!(reasons(&ended), Vec::<&str>::new(), "each frame is passed on");
        is_mirrored(place, &mut sqlite);
    }
    // Among what is new.
    sqlite.rows(INSERT);
    spoil_last_frame(&app);
    sqlite.rows(INSERT);
    for place in &places {
        let ended = mirror(arg(&app), place, &[]);
        is_good(&ended);
        assert!(matches!(&reasons(&ended)[..], [reason] if reason.contains("checksum")), "{ended:?}");
        is_mirrored(place, &mut sqlite);
    }
    is_good(&mirror(arg(&app), service.url("app"), &["--no-hold"]));
    // Once they are checkpointed they are like all others.
    sqlite.run(&["PRAGMA wal_checkpoint(TRUNCATE)", INSERT]);
    is_good(&mirror(arg(&app), service.url("app"), &[]));
    is_mirrored(&service.url("app"), &mut sqlite);
}

#[test]
fn a_follower_goes_on_over_frames_whose_checksums_do_not_fit() {
    for flags in [&["--follow"][..], &["--follow", "--no-hold"]] {
        let (_dir, service, app, mut sqlite) = in_use();
        let follower = Mirror::start(arg(&app), service.url("app"), flags);
        is_mirrored(&service.url("app"), &mut sqlite);
        for _ in 0..3 {
            follower.stopped(|| {
                sqlite.run(&[INSERT, INSERT]);
                spoil_last_frame(&app);
            });
            is_mirrored(&service.url("app"), &mut sqlite);
            sqlite.run(&[INSERT, INSERT]);
            is_mirrored(&service.url("app"), &mut sqlite);
        }
        let ended = follower.interrupt();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let unfit = reasons(&ended).into_iter().filter(|reason| reason.contains("checksum")).count();
        assert!(unfit >= 3, "{ended:?}");
    }
}

#[test]
fn frames_whose_checksums_do_not_fit_do_not_count_when_nobody_has_the_database_open() {
    let (_dir, service, app, mut sqlite) = in_use();
    is_good(&mirror(arg(&app), service.url("app"), &[]));
    let before = seen(&mut sqlite);
    sqlite.rows(INSERT);
    spoil_last_frame(&app);
    sqlite.kill();
    is_good(&mirror(arg(&app), service.url("app"), &[]));
    assert_eq!(restored(&service.url("app")), Some(before.clone()));
    assert_eq!(seen(&mut Sqlite::open(&app)), before, "as SQLite itself finds after the crash");
}

/// Waits for a line that says that the source cannot be read, and why.
fn wait_for_reason(follower: &Mirror, part: &str) -> Value {
    follower.wait_for(part, |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|error| error.contains(part))
    })
}

#[test]
fn a_wal_that_is_removed_or_cut_under_an_application_is_reported_and_what_is_checkpointed_is_mirrored() {
    for cut in [false, true] {
        let (_dir, service, app, mut sqlite) = in_use();
        let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
        is_mirrored(&service.url("app"), &mut sqlite);
        let wal = beside(&app, "-wal");
        match cut {
            true => File::options().write(true).open(&wal).unwrap().set_len(0).unwrap(),
            false => fs::remove_file(&wal).unwrap(),
        }
        sqlite.run(&[INSERT]);
        let line = wait_for_reason(&follower, "its WAL");
        assert!(line["error"].as_str().unwrap().contains("checkpoint"), "{line}");
        let lone = mirror(arg(&app), service.url("app"), &[]);
        assert_ne!(lone.code, Some(0), "{lone:?}");
        if cut {
            // What it would checkpoint is gone.
            continue;
        }
        sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)");
        is_mirrored(&service.url("app"), &mut sqlite);
        let reported = || follower.lines().iter().filter(|line| line["event"] == "retrying").count();
        let before = reported();
        sqlite.rows(INSERT);
        until("the mirror to say that it misses commits", || (reported() > before).then_some(()));
        sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)");
        sqlite.reopen();
        sqlite.rows(INSERT);
        is_mirrored(&service.url("app"), &mut sqlite);
        assert_eq!(follower.interrupt().code, Some(0));
    }
}

#[test]
fn a_path_that_is_switched_to_another_database_ends_a_follower_that_cannot_prove_it() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&dir.path().join("srv"));
    let release = |name: &str| dir.path().join(name);
    ["one", "two"].iter().for_each(|name| fs::create_dir(release(name)).unwrap());
    let switch = |to: &str| {
        symlink(to, release("new")).unwrap();
        fs::rename(release("new"), release("current")).unwrap();
    };
    switch("one");
    let app = release("current").join("app.db");
    let mut one = opened(&app);
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    is_mirrored(&service.url("app"), &mut one);
    // A copy goes on.
    let held = seen(&mut one);
    one.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    is_mirrored(&service.url("app"), &mut one);
    fs::copy(&app, release("two").join("app.db")).unwrap();
    switch("two");
    wait_for_reason(&follower, "leads to");
    // Its pages are compared before they are written.
    let started = || follower.lines().iter().filter(|line| line["event"] == "started").count();
    until("it to start with the other", || (started() > 1).then_some(()));
    let mut two = Sqlite::open_within(&app, 10);
    assert_eq!(seen(&mut two), held);
    two.rows(INSERT);
    is_mirrored(&service.url("app"), &mut two);
    // Another database does not.
    one.rows("DELETE FROM t");
    switch("one");
    let ended = follower.ended();
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(ended.error().contains("holds other pages"), "{}", ended.error());
    is_mirrored(&service.url("app"), &mut two);
}

#[test]
fn a_database_file_that_is_replaced_under_its_wal_is_reported() {
    let (dir, service, app, mut sqlite) = in_use();
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    is_mirrored(&service.url("app"), &mut sqlite);
    let before = seen(&mut sqlite);
    sqlite.rows("PRAGMA wal_checkpoint(PASSIVE)");
    let other = dir.path().join("other.db");
    fs::copy(&app, &other).unwrap();
    fs::rename(&other, &app).unwrap();
    sqlite.rows(INSERT);
    wait_for_reason(&follower, "was replaced under it");
    assert_eq!(restored(&service.url("app")), Some(before), "nothing is put together from two databases");
    sqlite.kill();
    let mut sqlite = Sqlite::open_within(&app, 10);
    is_mirrored(&service.url("app"), &mut sqlite);
}

#[test]
fn a_wal_index_that_is_removed_under_an_application_costs_no_commit() {
    let (_dir, service, app, mut sqlite) = in_use();
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    is_mirrored(&service.url("app"), &mut sqlite);
    fs::remove_file(beside(&app, "-shm")).unwrap();
    for checkpoint in ["SELECT 1", "PRAGMA wal_checkpoint(PASSIVE)", "PRAGMA wal_checkpoint(TRUNCATE)"] {
        sqlite.run(&[INSERT, checkpoint, INSERT]);
        is_mirrored(&service.url("app"), &mut sqlite);
    }
    assert_eq!(follower.interrupt().code, Some(0));
}

#[test]
fn another_database_in_a_directory_of_the_same_name_is_found_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&dir.path().join("srv"));
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let app = data.join("app.db");
    let mut sqlite = opened(&app);
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    is_mirrored(&service.url("app"), &mut sqlite);
    fs::rename(&data, dir.path().join("before")).unwrap();
    fs::create_dir(&data).unwrap();
    let mut other = opened(&app);
    other.run(&["DELETE FROM t", "INSERT INTO t VALUES (77, 'other')"]);
    is_mirrored(&service.url("app"), &mut other);
    assert_eq!(seen(&mut other), [json!(77)]);
    let ended = follower.interrupt();
    assert!(!reasons(&ended).is_empty(), "{ended:?}");
}

#[test]
fn a_reader_lets_a_writer_with_a_rollback_journal_go_first_after_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open_within(&app, 60);
    sqlite.run(&["CREATE TABLE t (n INTEGER PRIMARY KEY, x)", INSERT]);
    for insists in [false, true] {
        let snapshot = Snapshot::open(&app).unwrap();
        if insists {
            snapshot.insist();
        }
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| sqlite.rows(INSERT));
            let since = Instant::now();
            let given = loop {
                if let Err(error) = snapshot.give_way() {
                    break Some(error);
                }
                if insists && since.elapsed() > Duration::from_secs(2) {
                    break None;
                }
                assert!(since.elapsed() < Duration::from_secs(30), "the writer waits");
                std::thread::sleep(Duration::from_millis(5));
            };
            assert!(since.elapsed() >= Duration::from_secs(1));
            assert_eq!(matches!(given, Some(DatabaseError::Writing { .. })), !insists, "{given:?}");
            assert!(!writer.is_finished(), "it waits for the reader");
            drop(snapshot);
            writer.join().unwrap();
        });
    }
}

#[test]
fn an_application_with_a_rollback_journal_commits_while_its_pages_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&dir.path().join("srv"));
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open_within(&app, 5);
    sqlite.run(&[
        "PRAGMA synchronous = OFF",
        "CREATE TABLE t (n INTEGER PRIMARY KEY, x)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000) INSERT INTO t (x) SELECT randomblob(4000) FROM n",
    ]);
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    let mut longest = Duration::ZERO;
    for _ in 0..40 {
        let since = Instant::now();
        sqlite.rows("INSERT INTO t (x) VALUES ('short')");
        longest = longest.max(since.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    is_mirrored(&service.url("app"), &mut sqlite);
    assert_eq!(follower.interrupt().code, Some(0));
}

/// Something in front of a service that changes a bit in the next `times` notes of the source. The URL of a log behind it.
fn flipping_notes(service: &Service, times: i32) -> String {
    let (to, listener) = (service.address().to_owned(), TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("http://{}/logs/app", listener.local_addr().unwrap());
    let left = Arc::new(AtomicI32::new(times));
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let Ok(mut service) = TcpStream::connect(&to) else { continue };
            let (mut back_from, mut back_to) = (service.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(std::net::Shutdown::Both);
            });
            let left = left.clone();
            thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(count @ 1..) = client.read(&mut bytes) {
                    let note = bytes[..count].windows(11).position(|found| found == b"\"identity\":");
                    if let Some(at) = note.filter(|_| left.fetch_sub(1, Ordering::Relaxed) > 0) {
                        bytes[at] ^= 1;
                    }
                    if service.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
                let _ = service.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    url
}

#[test]
fn a_note_of_the_source_that_changed_on_its_way_ends_no_mirror() {
    let (_dir, service, app, _sqlite) = in_use();
    is_good(&mirror(arg(&app), flipping_notes(&service, 1), &[]));
    let (_dir, service, app, mut sqlite) = in_use();
    let ended = mirror(arg(&app), flipping_notes(&service, i32::MAX), &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let following = Mirror::start(arg(&app), flipping_notes(&service, 5), &["--follow"]);
    is_mirrored(&service.url("app"), &mut sqlite);
    sqlite.rows(INSERT);
    is_mirrored(&service.url("app"), &mut sqlite);
    is_good(&following.terminate());
}
