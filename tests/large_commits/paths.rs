//! A large commit goes from a directory to a service, on to another one, into directories and through every check, and is the
//! same everywhere.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use logmirror::format::LogFormat;
use logmirror::format::commitlog::Version;
use logmirror::format::name;
use logmirror::limits::{COMMIT_BYTES_DOUBTED, WAL_SEGMENT_BYTES};
use logmirror::offset::Offset;

use crate::support::commitlog::header;
use crate::support::process::{Mirror, Service, arg, mirror};
use crate::{assert_same, large_bytes, peak_bytes, write_commit, write_wal};

/// What a service may have of memory: far less than a large commit.
const BUDGET: [&str; 2] = ["--memory-max", "4MiB"];

/// Runs a command that must end well.
fn succeeds(args: &[&str]) -> String {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{args:?}: {errors}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn is_whole(ended: &crate::support::process::Ended, next: Offset) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.last("done")["durable"], next.0, "{ended:?}");
}

/// Sends the log in `from`, one segment that ends at `next`, through everything.
fn goes_everywhere(from: &Path, segment: &str, next: Offset) {
    let (data, second, dirs) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut service = Service::start_with(data.path(), &BUDGET);
    let relay = Service::start_with(second.path(), &BUDGET);
    let original = from.join(segment);

    is_whole(&mirror(arg(from), service.url("app"), &[]), next);
    assert_same(&service.segments_of("app").join(segment), &original);
    is_whole(&mirror(arg(from), arg(&dirs.path().join("copy")), &[]), next);
    assert_same(&dirs.path().join("copy").join(segment), &original);

    // What was durable is found again.
    service.kill();
    service.restart();
    is_whole(&mirror(arg(from), service.url("app"), &[]), next);

    is_whole(&mirror(service.url("app"), relay.url("app"), &[]), next);
    assert_same(&relay.segments_of("app").join(segment), &original);
    is_whole(&mirror(relay.url("app"), arg(&dirs.path().join("far")), &[]), next);
    assert_same(&dirs.path().join("far").join(segment), &original);

    for place in [arg(&dirs.path().join("far")), &relay.url("app")] {
        let report = succeeds(&["verify", place]);
        assert!(report.contains(&next.0.to_string()), "{report}");
    }
    for (place, process) in [("service", &service), ("relay", &relay)] {
        let peak = peak_bytes(process.id());
        println!("{place}: at most {} MiB of memory", peak >> 20);
        assert!(peak < 16 << 20, "{place}: {peak} bytes of memory");
    }
}

/// A directory with one segment: a small commit, a large one, a small one.
fn commitlog() -> (tempfile::TempDir, String) {
    let (dir, segment) = (tempfile::tempdir().unwrap(), name::segment(LogFormat::Commitlog, Offset(0)));
    let mut out = BufWriter::new(File::create(dir.path().join(&segment)).unwrap());
    out.write_all(&header(Version::V1)).unwrap();
    for (first, records) in [(0, 100), (1, large_bytes()), (2, 5000)] {
        write_commit(&mut out, first, records);
    }
    out.flush().unwrap();
    (dir, segment)
}

#[test]
fn a_large_commit_of_a_commitlog_goes_through_every_path() {
    let (dir, segment) = commitlog();
    goes_everywhere(dir.path(), &segment, Offset(3));
}

#[test]
fn a_large_transaction_of_a_wal_goes_through_every_path() {
    let dir = tempfile::tempdir().unwrap();
    let frames = u32::try_from(large_bytes() / 4096).unwrap();
    // What comes after a segment's worth of frames is in another segment.
    let after: &[u32] = if large_bytes() < WAL_SEGMENT_BYTES { &[3] } else { &[] };
    let next = write_wal(dir.path(), &[&[2, frames], after].concat());
    goes_everywhere(dir.path(), &name::segment(LogFormat::Wal, Offset(1)), next);
}

#[test]
fn a_follower_that_is_killed_inside_a_large_commit_sends_it_again() {
    let (dir, segment) = commitlog();
    let data = tempfile::tempdir().unwrap();
    let mut service = Service::start_with(data.path(), &BUDGET);
    for _ in 0..3 {
        let follower = Mirror::start(arg(dir.path()), service.url("app"), &["--follow"]);
        follower.wait_for("the start", |line| line["event"] == "started");
        follower.kill();
        service.kill();
        service.restart();
    }
    is_whole(&mirror(arg(dir.path()), service.url("app"), &[]), Offset(3));
    assert_same(&service.segments_of("app").join(&segment), &dir.path().join(&segment));
    let names = crate::support::files_named(&service.segments_of("app"));
    assert!(names.iter().all(|name| !name.ends_with(".spool")), "{names:?}");
}

#[test]
fn a_follower_waits_for_a_commit_that_is_still_being_written_whatever_its_size() {
    let above = tempfile::tempdir().unwrap();
    let (clog, copy) = (above.path().join("clog"), above.path().join("copy"));
    std::fs::create_dir(&clog).unwrap();
    // Its database is running.
    let lock = File::create(above.path().join("db.lock")).unwrap();
    lock.lock().unwrap();
    let segment = name::segment(LogFormat::Commitlog, Offset(0));
    let mut bytes = header(Version::V1);
    write_commit(&mut bytes, 0, 100);
    let begun = bytes.len() + 1000;
    write_commit(&mut bytes, 1, COMMIT_BYTES_DOUBTED + 1000);
    std::fs::write(clog.join(&segment), &bytes[..begun]).unwrap();
    let follower = Mirror::start(arg(&clog), arg(&copy), &["--follow"]);
    follower.wait_durable(1);
    follower.wait_for("it to say that it goes on", |line| line["event"] == "heartbeat");
    let mut file = File::options().append(true).open(clog.join(&segment)).unwrap();
    file.write_all(&bytes[begun..]).unwrap();
    follower.wait_durable(2);
    follower.terminate();
    assert_same(&copy.join(&segment), &clog.join(&segment));
}
