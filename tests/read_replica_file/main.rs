//! A database that we write while SQLite reads it: each read sees one state, the newest, and nobody waits for anybody.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod crashes;
mod index;
mod model;
mod mortal;
mod origin;
mod readers;

/// The processes of [`support::sqlite::Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}
