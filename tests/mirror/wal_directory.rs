//! What a directory with one generation of a WAL says of itself, and what its readers see while it goes into the next one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use logmirror::format::{LogFormat, name};

use crate::generations::{history, restored};
use crate::support::frames::FrameLog;
use crate::support::process::{Mirror, Service, arg, mirror, until};
use crate::support::sqlite::{connect, rows};

fn said(command: &str, place: &Path) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_logmirror")).args([command, arg(place)]).output().unwrap();
    (out.status.code(), String::from_utf8(out.stdout).unwrap())
}

#[test]
fn who_reads_a_directory_while_it_goes_on_sees_one_generation_and_never_a_mixture() {
    let (data, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let client = service.client("app");
    service.call(client.create(LogFormat::Wal, None)).unwrap();
    let follower = Mirror::start(client.url(), arg(to.path()), &["--follow"]);
    follower.wait_durable(1);
    let (mut states, over) = (BTreeSet::from([restored(client.url())]), AtomicBool::new(false));
    let seen = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !over.load(Ordering::Relaxed) {
                seen.insert(restored(arg(to.path())));
                let (code, text) = said("verify", to.path());
                // A commit may be in the middle of being written.
                assert!(code == Some(0) || text.contains("torn at its end"), "{text}");
            }
            seen
        });
        for number in 1..=10 {
            let log = FrameLog { base: restored(client.url()), ..history(number) };
            states.extend(log.commits().into_iter().map(|frame| log.state(frame)));
            service.call(client.append(None, log.stream(&[]))).unwrap();
            service.call(client.checkpoint(false)).unwrap();
        }
        until("it is current", || (restored(arg(to.path())) == restored(client.url())).then_some(()));
        over.store(true, Ordering::Relaxed);
        reading.join().unwrap()
    });
    let (many, mixed) = (seen.len(), seen.difference(&states).count());
    assert!(mixed == 0, "{mixed} of {many} states are none that the log had");
    assert!(many > 2, "only {many} states were seen");
    follower.terminate();
}

#[test]
fn a_directory_with_a_base_alone_is_a_whole_wal() {
    let (data, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    service.call(service.client("app").create(LogFormat::Wal, None)).unwrap();
    let done = mirror(service.url("app"), arg(to.path()), &[]);
    assert_eq!((done.code, &done.last("done")["durable"]), (Some(0), &1.into()), "{done:?}");
    let (code, verified) = said("verify", to.path());
    assert_eq!(code, Some(0));
    for line in ["verdict   whole", "offsets   1..1", "base      4,096 bytes, SHA-256"] {
        assert!(verified.contains(line), "{line:?} in {verified}");
    }
    let (code, status) = said("status", to.path());
    assert_eq!(code, Some(0));
    for line in ["format       wal", "generation   1", "next         1"] {
        assert!(status.contains(line), "{line:?} in {status}");
    }
}

#[test]
fn the_segments_of_a_generation_are_the_wal_of_its_base_for_any_sqlite() {
    let (dir, data, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path().join("app.db");
    let db = connect(&path);
    for sql in [
        "PRAGMA journal_mode = WAL",
        "PRAGMA wal_autocheckpoint = 0",
        "CREATE TABLE t (x)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) INSERT INTO t SELECT randomblob(3000) FROM n",
        "UPDATE t SET x = 'changed' WHERE rowid % 7 = 0",
    ] {
        rows(&db, sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    let service = Service::start(data.path());
    let mirrored = mirror(arg(&path), service.url("app"), &[]);
    assert_eq!(mirrored.code, Some(0), "{mirrored:?}");
    assert_eq!(mirror(service.url("app"), arg(to.path()), &[]).code, Some(0));
    for generation in [service.segments_of("app"), to.path().to_owned()] {
        let copy = tempfile::tempdir().unwrap();
        let at = copy.path().join("copy.db");
        std::fs::copy(generation.join("base.db"), &at).unwrap();
        let segments = crate::support::files(&generation).into_iter();
        let segments = segments.filter(|(name, _)| name::parse_segment(name).is_some()).map(|(_, bytes)| bytes);
        std::fs::write(copy.path().join("copy.db-wal"), segments.collect::<Vec<_>>().concat()).unwrap();
        let found = connect(&at);
        assert_eq!(rows(&found, "PRAGMA integrity_check").unwrap(), [["ok"]]);
        let all = "SELECT rowid, hex(x) FROM t ORDER BY rowid";
        assert_eq!(rows(&found, all).unwrap(), rows(&db, all).unwrap(), "{}", generation.display());
    }
}
