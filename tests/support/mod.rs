//! What the tests share: specimens, what is expected of them, and directories to compare.
#![allow(dead_code, clippy::unwrap_used, reason = "tests, and each file uses its part of this")]

pub mod commitlog;
pub mod failing;
pub mod frames;
pub mod history;
pub mod live_writer;
pub mod log;
pub mod process;
pub mod service;
pub mod sqlite;
pub mod watched;
pub mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use logmirror::format::name;
use logmirror::offset::Generation;
use logmirror::repo::Repo;
use serde::Deserialize;
use tempfile::TempDir;

/// Sets a flag when dropped, also in a panic.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a correct reader finds in a specimen.
#[derive(Debug, Deserialize)]
pub struct Expect {
    #[serde(default)]
    pub name: String,
    pub commits: u64,
    pub next: u64,
    pub trailing: Option<u64>,
    pub error: Option<String>,
}

impl Expect {
    pub fn is_sound(&self) -> bool {
        self.trailing.is_none() && self.error.is_none()
    }
}

pub fn expectations() -> Vec<Expect> {
    let text = fs::read_to_string(root().join("segments/commitlog/EXPECT.json")).unwrap();
    let all: BTreeMap<String, Expect> = serde_json::from_str(&text).unwrap();
    assert_eq!(all.len(), 13);
    all.into_iter().map(|(name, expect)| Expect { name, ..expect }).collect()
}

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn specimen(name: &str) -> PathBuf {
    root().join("segments/commitlog").join(name)
}

pub fn copy_of(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files(&specimen(name)) {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// All files of a directory by name.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// The names of the files of a directory, in order.
pub fn files_named(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The segment files of a directory by name.
pub fn segments(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = files(dir);
    files.retain(|name, _| name::parse_segment(name).is_some());
    files
}

/// The segment files of a repo by name.
pub fn repo_segments(repo: &dyn Repo) -> BTreeMap<String, Vec<u8>> {
    let names = repo.list().unwrap().into_iter().filter(|name| name::parse_segment(name).is_some());
    names.map(|name| (name.clone(), read(repo, &name))).collect()
}

fn read(repo: &dyn Repo, name: &str) -> Vec<u8> {
    let file = repo.open(name).unwrap();
    let mut bytes = vec![0; file.bytes().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// The segments of a specimen one after the other: the raw stream.
pub fn stream_of(name: &str) -> Vec<u8> {
    segments(&specimen(name)).into_values().flatten().collect()
}

/// Memory of this process that is really in use.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Puts the files of a specimen where a service that opens `data` finds them as the log `log`.
pub fn plant(data: &Path, log: &str, specimen_name: &str) -> PathBuf {
    let generation = data.join("logs").join(log).join(name::generation(Generation::FIRST));
    fs::create_dir_all(&generation).unwrap();
    for (file, bytes) in files(&specimen(specimen_name)) {
        fs::write(generation.join(file), bytes).unwrap();
    }
    let meta = format!(r#"{{"format":"commitlog","id":"specimen-{log}","generation":1,"first":0}}"#);
    fs::write(data.join("logs").join(log).join("log.json"), meta).unwrap();
    generation
}

/// Fails with the place where two long byte strings part, and not with the strings.
#[track_caller]
pub fn assert_bytes(found: &[u8], wanted: &[u8], what: impl std::fmt::Display) {
    if found != wanted {
        let parted = found.iter().zip(wanted).take_while(|(found, wanted)| found == wanted).count();
        panic!("{what}: {} bytes, not {}; they part at byte {parted}", found.len(), wanted.len());
    }
}

/// Lets this process open as many files as it may: the usual soft limit is 1,024.
pub fn raise_open_files_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}
