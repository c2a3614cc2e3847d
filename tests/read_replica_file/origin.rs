//! A database of SQLite's whose transactions a replica takes over, frame by frame.

use std::fs;
use std::path::{Path, PathBuf};

use logmirror::format::wal::{FrameHeader, HEADER_LEN};
use logmirror::sqlite::read_replica::ReadReplicaFile;
use logmirror::sqlite::wal_frames::{frame_len, frames_of};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::sqlite::{connect, dump};

/// The database, in WAL mode, and how far its WAL was taken over.
pub struct Origin {
    pub dir: TempDir,
    pub db: Connection,
    path: PathBuf,
    page_size: u32,
    taken: usize,
}

impl Origin {
    /// A database after these statements.
    pub fn new(page_size: u32, sql: &str) -> Origin {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("origin.db");
        let db = connect(&path);
        db.pragma_update(None, "page_size", page_size).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        db.pragma_update(None, "synchronous", "OFF").unwrap();
        db.execute_batch(sql).unwrap();
        let mut origin = Origin { dir, db, path, page_size, taken: 0 };
        origin.restart();
        origin
    }

    /// Has everything in the database file.
    fn restart(&mut self) {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        self.taken = 0;
    }

    /// A replica of the database as it is.
    pub fn replica(&mut self, name: &str) -> ReadReplicaFile {
        self.restart();
        let (path, draft) = (self.dir.path().join(name), self.dir.path().join(format!("{name}.draft")));
        fs::copy(&self.path, &draft).unwrap();
        ReadReplicaFile::create(&path, &draft).unwrap()
    }

    /// Runs statements, and returns the frames of what they changed.
    pub fn run(&mut self, sql: &str) -> Vec<u8> {
        if self.taken > 20_000 * frame_len(self.page_size) || self.taken > 64 << 20 {
            self.restart();
        }
        self.db.execute_batch(sql).unwrap();
        let wal = fs::read(Path::new(&format!("{}-wal", self.path.display()))).unwrap_or_default();
        let frames = wal.get(HEADER_LEN..).unwrap_or_default();
        // What is after them is of before the last restart.
        let (fresh, salts) = (&frames[self.taken.min(frames.len())..], wal.get(16..24).unwrap_or_default());
        let is_sound = |frame: &&[u8]| frame[8..16] == *salts;
        let count = fresh.chunks_exact(frame_len(self.page_size)).take_while(is_sound).count();
        let fresh = fresh[..count * frame_len(self.page_size)].to_vec();
        self.taken += fresh.len();
        fresh
    }

    /// Runs statements here and takes over what they changed.
    pub fn run_both(&mut self, replica: &mut ReadReplicaFile, sql: &str) {
        let frames = self.run(sql);
        append(replica, &frames);
        replica.commit().unwrap();
    }

    pub fn dump(&self) -> String {
        dump(&self.db)
    }
}

/// What [`ReadReplicaFile::append`] takes.
pub fn claims(frames: &[u8], page_size: u32) -> impl Iterator<Item = (u32, u32, &[u8])> {
    frames_of(frames, page_size).map(|(FrameHeader { page, size, .. }, content)| (page, size, content))
}

pub fn append(replica: &mut ReadReplicaFile, frames: &[u8]) {
    let page_size = replica.page_size();
    replica.append(claims(frames, page_size)).unwrap();
}
