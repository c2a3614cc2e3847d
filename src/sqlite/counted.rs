//! [`Counted`]: what the connections that have a database open count of its WAL.
//!
//! They go by the wal-index that they share, and not by checksums: those are for whoever recovers after a crash. The two differ
//! after a `ROLLBACK TO` of a transaction that was larger than the page cache, up to SQLite 3.40.1: frames that count have
//! checksums that do not fit. A file that was removed, cut or replaced under its users differs too.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::DatabaseError;
use super::follow::WalPosition;
use super::lock::beside_users::before;
use super::lock::hand_over_hand::{is_in_use, user};
use super::source::{Opened, Places};
use super::wal_index::{BLOCK_LEN, WalIndex, head_of, place_of};
use crate::format::wal::{FRAME_HEADER_LEN, HEADER_LEN, WalHeader};
use crate::repo::read_at;

/// How long a wal-index that makes no sense is taken for one that is being written.
const BEING_WRITTEN: Duration = Duration::from_millis(20);

/// What the connections count, at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    /// Their last commit, with the checksum that the next frame continues.
    pub(super) position: WalPosition,
    /// Pages of the database after it.
    pub(super) db_pages: u32,
    /// Whether the database file holds all of it.
    is_copied: bool,
    page_size: u32,
}

impl Counted {
    /// None when no connection has the wal-index in use, or none has filled it. The caller must hold the locks that keep the WAL
    /// from being reset: then frames are in the WAL before they count.
    pub(super) fn of(index: &Opened) -> Result<Option<Counted>, DatabaseError> {
        if !index.ask(is_in_use)? {
            return Ok(None);
        }
        // A commit writes it within microseconds.
        let found = before(Instant::now() + BEING_WRITTEN, || index.ask(WalIndex::read))?;
        Ok(found.as_ref().map(Counted::by))
    }

    /// Whether a connection has the wal-index in use, and it is filled.
    pub(super) fn by_any(index: &Opened) -> Result<bool, DatabaseError> {
        Ok(index.ask(is_in_use)? && index.ask(WalIndex::read)?.is_some())
    }

    /// The same of what was read.
    pub(super) fn by(now: &WalIndex) -> Counted {
        let position = WalPosition { salts: now.salts, frames: now.frames, chain: now.chain };
        Counted { position, db_pages: now.db_pages, is_copied: now.is_copied(), page_size: now.page_size }
    }

    /// Whether a WAL with this header is to be restarted: the wal-index says so first, and then nothing of it counts any more. What
    /// counted is in the database file, and what is not there is of a commit that failed.
    pub(super) fn restarts(&self, header: WalHeader) -> bool {
        self.position.frames == 0 && header.salts != self.position.salts
    }

    /// Bytes of a WAL up to the last frame that is counted. A transaction is counted once its frames are written and synced, so there
    /// may be more.
    pub(super) fn bytes(&self) -> u64 {
        HEADER_LEN as u64 + self.position.frames * (FRAME_HEADER_LEN as u64 + u64::from(self.page_size))
    }

    /// Whether a WAL of so many bytes with this header has all frames that are counted.
    pub(super) fn are_in(&self, header: Option<WalHeader>, bytes: u64) -> bool {
        if self.position.frames == 0 {
            return true;
        }
        header.is_some_and(|header| header.salts == self.position.salts) && bytes >= self.bytes()
    }

    /// What to do where they are not in the WAL that is found: nothing if the database file holds them.
    ///
    /// # Errors
    /// [`DatabaseError::WalAway`].
    pub(super) fn are_elsewhere(&self, places: &Places) -> Result<(), DatabaseError> {
        match self.is_copied {
            true => Ok(()),
            false => Err(DatabaseError::WalAway { path: places.database.clone(), frames: self.position.frames }),
        }
    }
}

/// How many frames of the WAL with this header count for the connections that have the database at `path` open; `None` where there
/// are none, and all count that a recovery would find.
///
/// # Errors
/// When the wal-index cannot be read.
pub(crate) fn frames_that_count(path: &Path, header: WalHeader) -> Result<Option<u64>, DatabaseError> {
    let Some(index) = Opened::find(&Places::of(path).index)? else {
        return Ok(None);
    };
    let counted = Counted::of(&index)?.map(|counted| counted.position);
    let is_of_it = |position: &WalPosition| position.frames == 0 || position.salts == header.salts;
    Ok(counted.filter(is_of_it).map(|position| position.frames))
}

/// The page that a wal-index names for a frame; 0 where it ends before.
pub(super) fn page_of(index: &Opened, frame: u64) -> Result<u32, DatabaseError> {
    let (block, nth) = place_of(frame);
    let (mut page, at) = ([0; 4], block * BLOCK_LEN as u64 + (head_of(block) + 4 * nth) as u64);
    let read = index.ask(|file| read_at(file, &mut page, at))?;
    Ok(if read == page.len() { u32::from_ne_bytes(page) } else { 0 })
}

/// That whoever has the wal-index in use has this database file open, and not one that was there before, as far as the system
/// says.
///
/// # Errors
/// [`DatabaseError::FileAway`].
pub(super) fn have_it_open(places: &Places, database: &Opened, index: &Opened) -> Result<(), DatabaseError> {
    let Some(pid) = index.ask(user)? else {
        return Ok(());
    };
    let has_it = database.ask(|file| {
        let ours = file.metadata()?;
        has_open(pid, (ours.dev(), ours.ino()))
    });
    // Of a process of another user or container it is not known, and one that has just ended has nothing open.
    let is_known = has_it.is_ok_and(|has_it| !has_it);
    if is_known && index.ask(user)? == Some(pid) && database.is_in_place()? {
        return Err(DatabaseError::FileAway { path: places.database.clone(), pid });
    }
    Ok(())
}

/// Whether a process has a file open, by its device and inode.
pub(super) fn has_open(pid: i32, file: (u64, u64)) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        if fs::metadata(entry?.path()).is_ok_and(|found| (found.dev(), found.ino()) == file) {
            return Ok(true);
        }
    }
    Ok(false)
}
