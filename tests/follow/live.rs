//! A mirror without `--follow` of a log that is being written: the end of the file may be inside a commit.

use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::process::{Ended, Mirror, arg, mirror};
use crate::support::{copy_of, segments, specimen};
use crate::{append, commit, put};

fn is_copied_up_to(ended: &Ended, next: u64) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        (&ended.last("done")["next"], &ended.last("done")["durable"]),
        (&next.into(), &next.into()),
        "{ended:?}"
    );
}

#[test]
fn a_source_that_does_not_come_to_rest_is_copied_up_to_its_last_whole_commit() {
    let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let stop = AtomicBool::new(false);
    let long = [7; 100_000];
    std::thread::scope(|scope| {
        // A commit that is larger than what is written of it.
        let mut bytes = Vec::new();
        use logmirror::offset::{Epoch, Offset};
        let version = logmirror::format::commitlog::Version::V1;
        logmirror::format::commitlog::encode_commit(version, Offset(360), Epoch(9), 5, &long, &mut bytes);
        append(source.path(), &bytes[..30]);
        let (path, stop) = (source.path(), &stop);
        scope.spawn(move || {
            for byte in bytes[30..].chunks(1).take(3000) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                append(path, byte);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let ended = mirror(arg(path), arg(copy.path()), &[]);
        stop.store(true, Ordering::Relaxed);
        is_copied_up_to(&ended, 360);
        assert_eq!(ended.last("source-live")["next"], 360, "{ended:?}");
    });
    assert!(segments(copy.path()) == segments(&specimen("whole")));
}

#[test]
fn a_source_whose_database_is_open_may_end_inside_a_commit() {
    for trim in [&[][..], &["--trim"]] {
        let (above, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = above.path().join("clog");
        put("whole", &source);
        append(&source, &commit(360)[..100]);
        let lock = File::create(above.path().join("db.lock")).unwrap();
        lock.lock().unwrap();
        let ended = mirror(arg(&source), arg(copy.path()), trim);
        is_copied_up_to(&ended, 360);
        assert_eq!(ended.last("source-live")["unfinished_bytes"], 100, "{ended:?}");
    }
}

#[test]
fn a_commit_that_is_finished_meanwhile_is_copied_too() {
    let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let commit = commit(360);
    append(source.path(), &commit[..100]);
    let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &[]);
    mirror.wait_for("what is whole", |line| line["event"] == "started");
    append(source.path(), &commit[100..]);
    is_copied_up_to(&mirror.ended(), 365);
}

#[test]
fn an_end_inside_a_commit_that_nobody_writes_is_an_error() {
    let (above, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = above.path().join("clog");
    put("whole", &source);
    append(&source, &commit(360)[..100]);
    // There was a database, and it ended.
    fs::write(above.path().join("db.lock"), "").unwrap();
    let ended = mirror(arg(&source), arg(copy.path()), &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error().contains("100 torn bytes"), "{ended:?}");
    is_copied_up_to(&mirror(arg(&source), arg(copy.path()), &["--trim"]), 360);
}
