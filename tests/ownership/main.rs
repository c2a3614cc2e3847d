//! A directory is written only if it is ours: swapped arguments, two writers, what a crash leaves, and the lock of a database.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod away;
mod beginning;
mod crashes;
mod database;
mod dry_run;
mod foreign;
mod lost_end;
mod record;
mod swapped;
mod unclaimed;
mod writers;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use logmirror::format::{LogFormat, name};
use logmirror::offset::Offset;
use support::process::Ended;
use support::{segments, specimen};
use tempfile::TempDir;

type Segments = BTreeMap<String, Vec<u8>>;

/// Each of the 120 commits of `whole` holds three entries in 218 bytes, and each of its first three segments 37 commits.
const COMMIT_BYTES: u64 = 218;
const ENTRIES: u64 = 3;
const SEGMENT_ENTRIES: u64 = 111;

/// The segments of `whole` up to offset `next`.
fn whole_up_to(next: u64) -> Segments {
    let mut whole = segments(&specimen("whole"));
    for (name, bytes) in &mut whole {
        let start = name::parse_segment(name).unwrap().1.0;
        let commits = (next.min(start + SEGMENT_ENTRIES).saturating_sub(start)) / ENTRIES;
        bytes.truncate((10 + commits * COMMIT_BYTES) as usize);
    }
    whole.retain(|_, bytes| bytes.len() > 10);
    whole
}

fn put(dir: &Path, files: &Segments) {
    fs::create_dir_all(dir).unwrap();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Appends what the files of a directory lack, and creates those that it lacks, as a writer does.
fn grow(dir: &Path, files: &Segments) {
    for (name, bytes) in files {
        let mut file = fs::File::options().append(true).create(true).open(dir.join(name)).unwrap();
        let held = file.metadata().unwrap().len() as usize;
        file.write_all(&bytes[held..]).unwrap();
    }
}

fn directory(files: &Segments) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), files);
    dir
}

fn segment_name(start: u64) -> String {
    name::segment(LogFormat::Commitlog, Offset(start))
}

/// Everything of each file of a directory that a write, a truncation or a rename would change.
fn fingerprint(dir: &Path) -> BTreeMap<String, (u64, u64, i64, i64, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let of = |entry: fs::DirEntry| {
        let meta = fs::metadata(entry.path()).unwrap();
        let bytes = if meta.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        let name = entry.file_name().into_string().unwrap();
        (name, (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), bytes))
    };
    entries.map(of).collect()
}

/// Checks that nothing in a directory changed meanwhile.
fn untouched<T>(dir: &Path, meanwhile: impl FnOnce() -> T) -> T {
    let (before, dir_before) = (fingerprint(dir), fs::metadata(dir).unwrap());
    let done = meanwhile();
    let (after, dir_after) = (fingerprint(dir), fs::metadata(dir).unwrap());
    let names = before.keys().chain(after.keys()).filter(|name| before.get(*name) != after.get(*name));
    assert_eq!(names.collect::<Vec<_>>(), [""; 0], "{} was changed", dir.display());
    let time = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec());
    assert_eq!(time(&dir_before), time(&dir_after), "{} was changed", dir.display());
    done
}

/// Runs a command on a directory. Returns its exit code, what it printed and its errors.
fn run(command: &str, dir: &Path) -> (Option<i32>, String, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_logmirror")).arg(command).arg(dir).output().unwrap();
    let [said, errors] = [out.stdout, out.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (out.status.code(), said, errors)
}

fn is_refused(ended: &Ended, code: i32, error: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(ended.errors.contains(error), "{error:?} in {ended:?}");
}

fn is_done(ended: &Ended, next: u64) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.last("done")["durable"].as_u64(), Some(next), "{ended:?}");
}

/// How often a test repeats what it does; more when the environment says so.
fn rounds(default: u64) -> u64 {
    std::env::var("LOGMIRROR_TEST_ROUNDS").map_or(default, |rounds| rounds.parse().unwrap())
}
