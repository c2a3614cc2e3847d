//! Mirrors of which a crash, a disk or a person took the end: whatever is left, the same command makes them whole again.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use logmirror::checkpoint::{Wanted, restore_dir};
use logmirror::mirror::{Mirror, MirrorError, Place, run};
use logmirror::repo::FsRepo;
use tokio::runtime::Runtime;

use crate::support::frames::FrameLog;
use crate::support::service::Service;
use crate::support::{files, segments, specimen};

fn mirrored(runtime: &Runtime, source: &Place, sink: &Path, adopt: bool) -> Result<(), MirrorError> {
    let mirror = Mirror { adopt, ..Mirror::new(source.clone(), Place::Dir(sink.to_owned())) };
    runtime.block_on(run(&mirror, |_| ())).map(drop)
}

/// Cuts the last segment of a mirror of `source` to each of `lengths`, and mirrors again.
fn heals(runtime: &Runtime, source: &Place, lengths: impl Fn(usize) -> Vec<usize>, adopt: bool) {
    let whole = tempfile::tempdir().unwrap();
    mirrored(runtime, source, whole.path(), false).unwrap();
    let expected = segments(whole.path());
    let (last, bytes) = expected.last_key_value().unwrap();
    for length in lengths(bytes.len()) {
        for index in [true, false].into_iter().filter(|index| *index || length % 7 == 0) {
            let copy = tempfile::tempdir().unwrap();
            for (name, bytes) in files(whole.path()) {
                if index || !name.ends_with(".ofs") {
                    fs::write(copy.path().join(name), bytes).unwrap();
                }
            }
            fs::File::options().write(true).open(copy.path().join(last)).unwrap().set_len(length as u64).unwrap();
            mirrored(runtime, source, copy.path(), adopt)
                .unwrap_or_else(|error| panic!("cut to {length} of {}, index: {index}: {error}", bytes.len()));
            assert!(segments(copy.path()) == expected, "cut to {length} of {}, index: {index}", bytes.len());
        }
    }
}

/// A log of a service, and a directory, that hold the same frames.
fn wal(runtime: &Runtime) -> (tempfile::TempDir, Service, [Place; 2]) {
    let data = tempfile::tempdir().unwrap();
    let log = FrameLog::new(512, false).with_base(4).commit(&[1, 2], 4).commit(&[3], 4);
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
    assert_eq!(service.call("PUT", "/logs/app/generations/1", "", &log.base).status, 201);
    assert_eq!(service.append("app", "?from=1", &log.stream(&[])).status, 200);
    let (url, dir) = (Place::Url(service.url("/logs/app")), data.path().join("dir"));
    mirrored(runtime, &url, &dir, false).unwrap();
    (data, service, [url, Place::Dir(dir)])
}

#[test]
fn a_mirror_of_a_wal_that_was_cut_at_any_byte_is_made_whole_again() {
    let runtime = Runtime::new().unwrap();
    let (_data, _service, sources) = wal(&runtime);
    let [url, dir] = sources;
    // The header, the ends of frames and of what stands before a page, and some more.
    let some = |bytes: usize| {
        let near = (0..bytes).filter(|at| *at <= 33 || [0, 1, 23, 24, 25, 535].contains(&((at - 32) % 536)));
        near.chain((0..bytes).step_by(97)).collect::<Vec<_>>()
    };
    // All of its last transaction.
    heals(&runtime, &dir, |bytes| [some(bytes), (bytes - 537..bytes).collect()].concat(), false);
    heals(&runtime, &url, some, false);
    heals(&runtime, &url, some, true);
}

#[test]
fn a_mirror_of_a_commitlog_that_was_cut_at_any_byte_is_made_whole_again() {
    let runtime = Runtime::new().unwrap();
    let source = Place::Dir(specimen("whole"));
    // All of the first two commits, and some of the rest.
    let lengths = |bytes: usize| (0..460.min(bytes)).chain((460..bytes).step_by(101)).collect();
    heals(&runtime, &source, lengths, false);
}

#[test]
fn a_mirror_that_was_cut_is_not_filled_from_a_source_with_other_commits() {
    let runtime = Runtime::new().unwrap();
    let (data, _service, [url, _]) = wal(&runtime);
    let copy = data.path().join("copy");
    mirrored(&runtime, &url, &copy, false).unwrap();
    let other = FrameLog::new(512, false).with_base(4).commit(&[1, 2], 4).commit(&[4], 4);
    let place = data.path().join("other");
    fs::create_dir(&place).unwrap();
    for (name, bytes) in other.files(&[]) {
        fs::write(place.join(name), bytes).unwrap();
    }
    let wal = copy.join("00000000000000000001.wal");
    let length = fs::metadata(&wal).unwrap().len();
    fs::File::options().write(true).open(&wal).unwrap().set_len(length - 100).unwrap();
    let before = files(&copy);
    let refused = mirrored(&runtime, &Place::Dir(place), &copy, false).unwrap_err();
    assert!(matches!(refused, MirrorError::NotOurs { .. } | MirrorError::Fork { .. }), "{refused}");
    assert!(files(&copy) == before);
}

#[test]
fn a_mirror_of_a_database_that_was_cut_is_refused_and_adopt_starts_a_new_generation_in_it() {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (app, copy) = (dir.path().join("app.db"), dir.path().join("copy"));
    let db = rusqlite::Connection::open(&app).unwrap();
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(9000))").unwrap();
    let source = Place::Dir(app);
    mirrored(&runtime, &source, &copy, false).unwrap();
    db.execute_batch("INSERT INTO t VALUES (randomblob(9000)); INSERT INTO t VALUES (1)").unwrap();
    mirrored(&runtime, &source, &copy, false).unwrap();
    let (wal, bytes) = segments(&copy).into_iter().next_back().unwrap();
    fs::File::options().write(true).open(copy.join(wal)).unwrap().set_len(bytes.len() as u64 - 100).unwrap();
    let before = files(&copy);
    let refused = mirrored(&runtime, &source, &copy, false).unwrap_err();
    assert!(matches!(refused, MirrorError::NotAsLeft { .. }) && refused.to_string().contains("--adopt"), "{refused}");
    assert!(files(&copy) == before);
    mirrored(&runtime, &source, &copy, true).unwrap();
    let out = dir.path().join("out.db");
    let wanted = Wanted { to: None, generation: None, out: out.clone(), overwrite: false, plain: false };
    restore_dir(&copy, &wanted).unwrap();
    let count =
        |db: &rusqlite::Connection| db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count(&rusqlite::Connection::open(out).unwrap()), count(&db));
}
