//! `logmirror mirror` by the real binary: every specimen through a service and back, resuming, refusing, and what it says.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod generations;
mod output;
mod refusals;
mod resume;
mod specimens;
mod wal_directory;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use logmirror::format::{LogFormat, name};
use logmirror::offset::Offset;
use support::process::Ended;
use support::{segments, specimen};
use tempfile::TempDir;

type Segments = BTreeMap<String, Vec<u8>>;

/// Each of the 120 commits of `whole` holds three entries in 218 bytes, and each of its first three segments 37 commits.
const COMMITS: u64 = 120;
const ENTRIES: u64 = 3;
const COMMIT_BYTES: u64 = 218;
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

/// A directory with those files.
fn directory(files: &Segments) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn segment_name(start: u64) -> String {
    name::segment(LogFormat::Commitlog, Offset(start))
}

/// Commits that were moved, and where the sink ends, as a mirror says when it ends.
fn moved(ended: &Ended, event: &str) -> (u64, u64) {
    let line = ended.last(event);
    assert_eq!(line["next"], line["durable"], "{ended:?}");
    (line["commits"].as_u64().unwrap(), line["next"].as_u64().unwrap())
}

fn is_done(ended: &Ended, commits: u64, next: u64) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(moved(ended, "done"), (commits, next), "{ended:?}");
}

/// Checks that nothing in a directory changed meanwhile.
fn untouched<T>(dir: &Path, meanwhile: impl FnOnce() -> T) -> T {
    let before = support::files(dir);
    let done = meanwhile();
    assert!(support::files(dir) == before, "{} was changed", dir.display());
    done
}
