//! The application: connections, and how many frames they wrote.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use rusqlite::Connection;
use rusqlite::hooks::Wal;

/// Frames written since the start, and the length of the WAL at the last commit.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static LENGTH: AtomicU64 = AtomicU64::new(0);
/// What SQLite does by itself.
const AUTOCHECKPOINT: i32 = 1000;

/// Opens a database in WAL mode whose frames are counted, with the checkpoints that SQLite makes by default.
pub fn open(path: &Path) -> Result<Connection> {
    let mut db = plain(path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.wal_hook(Some(counted))?;
    Ok(db)
}

/// Opens a database as it is.
pub fn plain(path: &Path) -> Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(10))?;
    Ok(db)
}

fn counted(wal: &mut Wal, frames: i32) -> rusqlite::Result<()> {
    let (now, before) = (frames as u64, LENGTH.swap(frames as u64, Ordering::Relaxed));
    // A WAL that is shorter than it was was reset.
    WRITTEN.fetch_add(if now > before { now - before } else { now }, Ordering::Relaxed);
    if frames >= AUTOCHECKPOINT {
        wal.checkpoint()?;
    }
    Ok(())
}

/// Frames written so far.
pub fn frames_written() -> u64 {
    WRITTEN.load(Ordering::Relaxed)
}

/// The WAL was removed: what comes next is counted from its start.
pub fn wal_is_gone() {
    LENGTH.store(0, Ordering::Relaxed);
}

/// A checksum of all rows of table `t`.
pub fn content(db: &Connection) -> Result<(i64, i64, String)> {
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    let rows =
        db.query_row("SELECT count(*), coalesce(sum(id), 0) FROM t", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let last: Option<String> = db.query_row(
        "SELECT group_concat(hex(substr(x, 1, 8))) FROM (SELECT x FROM t ORDER BY id DESC LIMIT 500)",
        [],
        |row| row.get(0),
    )?;
    Ok((rows.0, rows.1, format!("{sound} {}", last.unwrap_or_default())))
}
