//! Bases are part of the log: every byte of one is checked whenever it is read, and they are what SQLite sees in them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod crashes;
mod flips;
mod missing;
mod old;
mod reader;
#[cfg(feature = "turso")]
mod seen;
mod sums;
mod travel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use logmirror::repo::FsRepo;
use sha2::{Digest, Sha256};
use support::frames::FrameLog;
use support::service::Service;

const GENERATION: &str = "logs/app/0000000001";

/// A database of so many pages of 512 bytes and a transaction of frames after it.
fn log(pages: u32) -> FrameLog {
    log_of(512, pages)
}

fn log_of(page_size: u32, pages: u32) -> FrameLog {
    FrameLog::new(page_size, false).with_base(pages).commit(&[2, 3], pages.max(3))
}

fn serve(data: &Path) -> Service {
    Service::start(Arc::new(FsRepo::open(data).unwrap()))
}

/// A service with the wal log `app`, which starts from `base` and has `frames`.
fn service_with(data: &Path, base: &[u8], frames: &[u8]) -> Service {
    let service = serve(data);
    assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
    let put = service.call("PUT", "/logs/app/generations/1", "", base);
    assert_eq!(put.status, 201, "{}", put.text());
    if !frames.is_empty() {
        let appended = service.append("app", "?from=1", frames);
        assert_eq!(appended.status, 200, "{}", appended.text());
    }
    service
}

fn base_of(data: &Path) -> PathBuf {
    data.join(GENERATION).join("base.db")
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The program, with these arguments.
fn logmirror(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.args(args).env_remove("LOGMIRROR_TOKEN").stdin(Stdio::null()).output().unwrap()
}

/// Exit code, and all that it printed.
fn said(args: &[&str]) -> (i32, String) {
    let output = logmirror(args);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}
