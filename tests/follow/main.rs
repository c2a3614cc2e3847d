//! Mirrors that nobody has to nurse: what is not there now is waited for, a source in use is no error, what was typed is
//! checked before anything changes, and the distance to the source is always known. By the real binary.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod live;
mod places;
mod progress;
mod waits;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use logmirror::format::commitlog::{Version, encode_commit};
use logmirror::format::{LogFormat, name};
use logmirror::offset::{Epoch, Offset};

/// The last segment of the specimen `whole`, which ends at offset 360.
const LAST_SEGMENT: u64 = 333;

fn last_segment(dir: &Path) -> PathBuf {
    dir.join(name::segment(LogFormat::Commitlog, Offset(LAST_SEGMENT)))
}

/// Appends bytes to the last segment of a copy of `whole`.
fn append(dir: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(last_segment(dir)).unwrap().write_all(bytes).unwrap();
}

/// A commit of five entries and 300 bytes of records.
fn commit(first: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_commit(Version::V1, Offset(first), Epoch(9), 5, &[7; 300], &mut bytes);
    bytes
}

/// Copies the files of a specimen to a place.
fn put(specimen: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in support::files(&support::specimen(specimen)) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

/// Runs a command in a directory: exit code, output, errors.
fn run_in(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOGMIRROR_")) {
        command.env_remove(name);
    }
    let output = command.args(args).current_dir(dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}
