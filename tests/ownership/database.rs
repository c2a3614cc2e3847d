//! `db.lock`, which a running SpacetimeDB holds beside its `clog`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use logmirror::mirror::{DbLock, db_lock_state};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use logmirror::format::commitlog::Version;

use crate::support::commitlog::commit;
use crate::support::process::{Mirror, arg, mirror, until};
use crate::support::segments;
use crate::{directory, grow, is_done, is_refused, put, segment_name, untouched, whole_up_to};

/// A replica directory whose `clog` holds `files`, with the lock of its database, held.
fn replica(files: &crate::Segments) -> (tempfile::TempDir, PathBuf, File) {
    let root = tempfile::tempdir().unwrap();
    let clog = root.path().join("clog");
    put(&clog, files);
    let lock = File::create(root.path().join("db.lock")).unwrap();
    lock.try_lock().unwrap();
    (root, clog, lock)
}

fn is_locked(path: &Path) -> bool {
    matches!(File::open(path).unwrap().try_lock(), Err(fs::TryLockError::WouldBlock))
}

#[test]
fn a_sink_whose_database_runs_is_refused_and_named_and_waited_for_by_a_follower() {
    let (root, clog, lock) = replica(&whole_up_to(240));
    let source = directory(&whole_up_to(360));
    for flags in [&[][..], &["--adopt"], &["--trim"]] {
        let ended = untouched(root.path(), || untouched(&clog, || mirror(arg(source.path()), arg(&clog), flags)));
        is_refused(&ended, 3, "SpacetimeDB or another mirror");
        is_refused(&ended, 3, "has it open: ");
        // Where /proc/locks shows it.
        if let DbLock::Held { pid } = db_lock_state(&clog) {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
            is_refused(&ended, 3, &format!("another mirror (pid {pid}, {})", command.trim_end()));
        }
        is_refused(&ended, 3, "db.lock is locked");
    }
    let follower = Mirror::start(arg(source.path()), arg(&clog), &["--follow"]);
    untouched(root.path(), || untouched(&clog, || waits_for_lock(&follower)));
    drop(lock);
    follower.wait_durable(360);
    assert_eq!(follower.terminate().code, Some(0));
    assert!(segments(&clog) == whole_up_to(360));
}

/// Waits until `follower` has waited twice for the lock of a database.
fn waits_for_lock(follower: &Mirror) {
    let held = |line: &&serde_json::Value| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|error| error.contains("db.lock is locked"))
    };
    until("the lock is waited for", || (follower.lines().iter().filter(held).count() >= 2).then_some(()));
}

#[test]
fn a_second_follower_waits_and_goes_on_when_the_first_has_ended() {
    let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let clog = root.path().join("clog");
    let start = || Mirror::start(arg(source.path()), arg(&clog), &["--follow"]);
    let first = start();
    first.wait_durable(240);
    let second = start();
    waits_for_lock(&second);
    assert_eq!(first.terminate().code, Some(0));
    grow(source.path(), &whole_up_to(360));
    second.wait_durable(360);
    assert_eq!(second.terminate().code, Some(0));
    assert!(segments(&clog) == whole_up_to(360));
}

#[test]
fn what_a_database_wrote_while_it_was_waited_for_is_found() {
    let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let clog = root.path().join("clog");
    is_done(&mirror(arg(source.path()), arg(&clog), &[]), 240);
    let lock = File::open(root.path().join("db.lock")).unwrap();
    lock.try_lock().unwrap();
    let follower = Mirror::start(arg(source.path()), arg(&clog), &["--follow"]);
    waits_for_lock(&follower);
    let path = clog.join(segment_name(222));
    let other = commit(Version::V1, 240, 0, 3, b"the database that was started here");
    fs::write(&path, [fs::read(&path).unwrap(), other].concat()).unwrap();
    grow(source.path(), &whole_up_to(300));
    let ended = untouched(&clog, || {
        drop(lock);
        follower.ended()
    });
    is_refused(&ended, 1, "fork: ");
    is_refused(&ended, 1, "240");
}

#[test]
fn a_sink_named_clog_is_locked_against_a_database_until_its_mirror_ends() {
    let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let (clog, lock) = (root.path().join("clog"), root.path().join("db.lock"));
    let follower = Mirror::start(arg(source.path()), arg(&clog), &["--follow"]);
    follower.wait_durable(240);
    assert!(is_locked(&lock));
    assert_eq!(follower.terminate().code, Some(0));
    assert!(!is_locked(&lock));
    // A directory of another name has no such file.
    let other = root.path().join("other/copy");
    is_done(&mirror(arg(source.path()), arg(&other), &[]), 240);
    assert!(!root.path().join("other/db.lock").exists());
}

#[test]
fn the_database_of_a_source_may_start_while_it_is_followed() {
    let (root, clog, lock) = replica(&whole_up_to(240));
    let copy = tempfile::tempdir().unwrap();
    let follower = Mirror::start(arg(&clog), arg(copy.path()), &["--follow"]);
    follower.wait_durable(240);
    drop(lock);
    grow(&clog, &whole_up_to(300));
    follower.wait_durable(300);
    File::open(root.path().join("db.lock")).unwrap().try_lock().unwrap();
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_directory_that_another_was_put_in_place_of_is_locked_again() {
    let root = tempfile::tempdir().unwrap();
    let [source, away, replica, moved] = ["source", "away", "replica", "moved"].map(|name| root.path().join(name));
    let clog = replica.join("clog");
    put(&source, &whole_up_to(240));
    let follower = Mirror::start(arg(&source), arg(&clog), &["--follow"]);
    follower.wait_durable(240);
    // The mirror waits for its source while a backup is put in the place of the replica, and its database is started.
    fs::rename(&source, &away).unwrap();
    follower.wait_for("a wait", |line| line["event"] == "retrying");
    fs::rename(&replica, &moved).unwrap();
    fs::create_dir_all(&clog).unwrap();
    for entry in fs::read_dir(moved.join("clog")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), clog.join(entry.file_name())).unwrap();
    }
    let lock = File::create(replica.join("db.lock")).unwrap();
    lock.try_lock().unwrap();
    grow(&away, &whole_up_to(300));
    untouched(&clog, || {
        fs::rename(&away, &source).unwrap();
        waits_for_lock(&follower);
    });
    assert!(!is_locked(&moved.join("db.lock")));
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_lock_that_is_no_regular_file_is_refused_and_never_waited_for() {
    let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let (clog, lock) = (root.path().join("clog"), root.path().join("db.lock"));
    mknodat(CWD, &lock, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    is_refused(&mirror(arg(source.path()), arg(&clog), &[]), 3, "db.lock: it is a FIFO");
    assert!(segments(&clog).is_empty());
}

fn verify(path: &Path) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_logmirror")).args(["verify", arg(path)]).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn verify_of_a_clog_whose_database_runs_advises_no_trim() {
    let mut files = whole_up_to(357);
    files.get_mut(&segment_name(333)).unwrap().extend(&[7; 50]);
    let (root, clog, lock) = replica(&files);
    let said = untouched(root.path(), || untouched(&clog, || verify(&clog)));
    assert!(said.contains("torn: 50 bytes") && said.contains("db.lock") && !said.contains("--trim"), "{said}");
    assert!(!said.contains("cut"), "{said}");
    drop(lock);
    fs::remove_file(root.path().join("db.lock")).unwrap();
    let said = verify(&clog);
    assert!(said.contains("torn: 50 bytes") && !said.contains("db.lock"), "{said}");
}
