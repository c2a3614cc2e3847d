//! [`Follower`]: all transactions of a database in use, in order, through every reset of its WAL, without writing to it.
//!
//! SQLite resets its WAL once all of it is in the database file; whoever was not looking then cannot tell what he missed, and
//! salts do not say. Locks do. A follower holds one of these at any time, never none:
//!
//! - a **slot**: one of the read marks 1 to 4, shared. The WAL can grow and be copied, but not be reset;
//! - **zero**: read mark 0, shared, taken while all frames were copied and read. Nothing can be copied any more, so the WAL
//!   either grows past our position, or was reset exactly there: then the first frame of the new WAL follows our last one.
//!
//! From the slot to zero: take zero, look again; frames and copied frames are as they were, so nothing was added, and the slot
//! can go. From zero to a slot: take the slot first, then let go of zero, then look. Both by [`Follower::look`].
//!
//! Besides it holds SHARED on the database file (whoever closes last does not remove the WAL) and the wal-index's byte that
//! says that it is in use (whoever opens next does not make it anew). All with descriptors opened for reading.
//!
//! What others feel: while zero is held a PASSIVE checkpoint copies nothing, and while a slot is held a RESTART or TRUNCATE
//! waits, each until the follower looks again. Changes of the journal mode are refused. Facts: <https://sqlite.org/walformat.html>
//! section 2.3, and SQLite's wal.c.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::counted::{Counted, have_it_open, page_of};
use super::error::DatabaseError;
use super::held::{HeldDatabase, broken, each_frame, holds};
use super::lock::beside_users::before;
use super::lock::hand_over_hand as lock;
use super::snapshot;
use super::source::{Opened, Places, page_size};
use super::wal_index::WalIndex;
use super::wal_scan::read_header;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use crate::repo::read_at;

/// How far the WAL of a database was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPosition {
    /// What tells the WAL from those before and after it.
    pub salts: [u32; 2],
    /// Frames that were read, from the first on.
    pub frames: u64,
    /// The checksum after them; means nothing while there are none.
    pub chain: Chain,
}

/// Which of the locks is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// A read mark: the WAL is not reset.
    Slot(usize),
    /// Read mark 0: nothing is copied into the database file.
    Zero,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Nothing new.
    Not,
    /// There are frames up to this one, which ends a transaction.
    To(u64),
}

/// How long a wal-index that makes no sense is taken for one that is being written.
const UNFILLED: Duration = Duration::from_millis(200);

/// All transactions of a database that others have open in WAL mode, in order, through every reset of its WAL. It holds SQLite's read
/// locks hand over hand and never writes. The process must not have the same database open through SQLite.
#[derive(Debug)]
pub struct Follower {
    places: Places,
    database: Opened,
    wal: Opened,
    index: Opened,
    held: Held,
    at: WalPosition,
    /// Frames of the WAL up to its last commit, when it was looked at last.
    seen: WalIndex,
}

impl Follower {
    /// Attaches to the database at `path` while another process has it open in WAL mode; `None` when none has. It is before the
    /// first frame of the WAL. Locks that are in the way are waited for until `patience` is over.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub fn attach(path: &Path, patience: Duration) -> Result<Option<Follower>, DatabaseError> {
        let places = Places::of(path);
        let deadline = Instant::now() + patience;
        let Some(database) = Opened::find(&places.database)? else {
            return Err(DatabaseError::io("opening", &places.database, io::ErrorKind::NotFound.into()));
        };
        snapshot::hold(&places, &database, deadline)?;
        let (Some(index), Some(wal)) = (Opened::find(&places.index)?, Opened::find(&places.wal)?) else {
            return Ok(None);
        };
        // A wal-index that nobody uses may be a dead one's: it says nothing.
        let busy = || DatabaseError::Checkpoint { path: places.database.clone() };
        if !index.ask(lock::is_in_use)? {
            return Ok(None);
        }
        let share = || index.ask(lock::share_in_use).map(|shared| shared.then_some(()));
        before(deadline, share)?.ok_or_else(busy)?;
        let taken = before(deadline.min(Instant::now() + UNFILLED), || take_slot(&index, None))?;
        let (slot, seen) = match taken {
            Some(taken) => taken,
            // A connection that has read nothing yet leaves it as it is.
            None if index.ask(WalIndex::read)?.is_none() => return Ok(None),
            None => return Err(busy()),
        };
        let at = WalPosition { salts: seen.salts, frames: 0, chain: Chain::default() };
        have_it_open(&places, &database, &index)?;
        let follower = Follower { places, database, wal, index, held: Held::Slot(slot), at, seen };
        follower.check_files()?;
        // Frames that are all in the database file need no WAL.
        Ok(follower.has_what_counts()?.then_some(follower))
    }

    /// Which lock is held.
    #[must_use]
    pub fn held(&self) -> Held {
        self.held
    }

    /// How far it was read.
    #[must_use]
    pub fn position(&self) -> WalPosition {
        self.at
    }

    /// Bytes of the WAL up to its last commit.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        HEADER_LEN as u64 + self.seen.frames * (FRAME_HEADER_LEN as u64 + u64::from(self.seen.page_size))
    }

    /// Looks whether there are more frames, and moves from lock to lock where that is due: after it every transaction up to the
    /// returned one follows the position without a gap.
    ///
    /// # Errors
    /// [`DatabaseError::Changed`] when that cannot be known any more: the follower must be dropped, and pages be compared.
    pub fn look(&mut self) -> Result<Moved, DatabaseError> {
        self.check_files()?;
        let Some(now) = self.index.ask(WalIndex::read)? else {
            // It is being written; whoever does that wakes us again.
            return Ok(Moved::Not);
        };
        if let Held::Zero = self.held {
            if now.salts == self.at.salts && now.frames == self.at.frames {
                self.seen = now;
                return Ok(Moved::Not);
            }
            // Nothing was copied since, and nothing can be until zero goes: the slot comes first.
            let Some((slot, now)) = take_slot(&self.index, None)? else {
                return Ok(Moved::Not);
            };
            self.held = Held::Slot(slot);
            self.index.ask(|file| lock::release_mark(file, 0))?;
            if now.salts != self.at.salts {
                self.at = WalPosition { salts: now.salts, frames: 0, chain: Chain::default() };
            }
            self.seen = now;
            return self.moved();
        }
        if now.salts != self.at.salts {
            if self.seen.frames > 0 {
                return Err(broken(&self.database.path, "the WAL was reset although it was held"));
            }
            // The first to write into an empty WAL may draw new salts: no frame went before.
            self.at = WalPosition { salts: now.salts, frames: 0, chain: Chain::default() };
        }
        self.seen = now;
        self.change_used_slot(&now)?;
        if now.frames == self.at.frames && now.is_copied() {
            self.take_zero(&now)?;
        }
        self.moved()
    }

    fn moved(&self) -> Result<Moved, DatabaseError> {
        match self.seen.frames.checked_sub(self.at.frames) {
            None => Err(broken(&self.database.path, "the WAL lost frames")),
            Some(0) => Ok(Moved::Not),
            Some(_) => Ok(Moved::To(self.seen.frames)),
        }
    }

    /// From a slot to zero, if nothing moved meanwhile.
    fn take_zero(&mut self, seen: &WalIndex) -> Result<(), DatabaseError> {
        let Held::Slot(slot) = self.held else {
            return Ok(());
        };
        if !self.index.ask(|file| lock::share_mark(file, 0))? {
            return Ok(());
        }
        let now = self.index.ask(WalIndex::read)?;
        let same = |now: &WalIndex| (now.salts, now.frames, now.copied) == (seen.salts, seen.frames, seen.copied);
        if now.as_ref().is_some_and(same) {
            self.held = Held::Zero;
            self.index.ask(|file| lock::release_mark(file, slot))
        } else {
            self.index.ask(|file| lock::release_mark(file, 0))
        }
    }

    /// A slot whose mark is in use limits checkpoints to it: another one is taken first.
    fn change_used_slot(&mut self, now: &WalIndex) -> Result<(), DatabaseError> {
        let Held::Slot(slot) = self.held else {
            return Ok(());
        };
        if now.is_unused(slot) {
            return Ok(());
        }
        if let Some((other, _)) = take_slot(&self.index, Some(slot))? {
            self.held = Held::Slot(other);
            self.index.ask(|file| lock::release_mark(file, slot))?;
        }
        Ok(())
    }

    /// The files that are held are still those of the database.
    fn check_files(&self) -> Result<(), DatabaseError> {
        if !self.database.is_in_place()? {
            return Err(broken(&self.database.path, "the database file was replaced"));
        }
        if !self.index.is_in_place()? {
            return Err(broken(&self.database.path, "the -shm file was replaced"));
        }
        if !self.wal.is_in_place()? {
            return Err(broken(&self.database.path, "the WAL was replaced"));
        }
        self.check_database()?;
        if self.has_what_counts()? {
            return Ok(());
        }
        // It may have been reset and cut since it was looked at, while nothing of it was held.
        let counted = self.index.ask(WalIndex::read)?.as_ref().map(Counted::by);
        match counted {
            Some(counted) if counted.position == self.counted_when_seen() => counted.are_elsewhere(&self.places),
            _ => Ok(()),
        }
    }

    /// The file is a database: SQLite has written its header before it has a WAL, so one that is empty or starts otherwise was
    /// emptied or overwritten by another program.
    fn check_database(&self) -> Result<(), DatabaseError> {
        // A checkpoint may be writing that page just now.
        match page_size(&self.database).or_else(|_| page_size(&self.database))? {
            Some(_) => Ok(()),
            None if self.seen.frames == 0 => Err(broken(&self.database.path, "the database file was emptied")),
            None => Err(DatabaseError::Orphan { path: self.database.path.clone(), frames: self.seen.frames }),
        }
    }

    /// Whether the frames that count are in the WAL.
    fn has_what_counts(&self) -> Result<bool, DatabaseError> {
        let counted = Counted::by(&self.seen);
        let header = self.wal.ask(read_header)?.and_then(Result::ok);
        Ok(counted.are_in(header, self.wal.stamp()?.bytes))
    }

    fn counted_when_seen(&self) -> WalPosition {
        WalPosition { salts: self.seen.salts, frames: self.seen.frames, chain: self.seen.chain }
    }

    /// Reads frames up to `to`, which must have been seen: see [`each_frame`].
    ///
    /// # Errors
    /// [`DatabaseError::Changed`] when a frame is not what it should be.
    pub fn read(
        &mut self,
        to: u64,
        take: impl FnMut(&WalHeader, &FrameHeader, &[u8], Chain) -> bool,
    ) -> Result<(), DatabaseError> {
        let mut at = self.at;
        let read = each_frame(self, &mut at, to.min(self.seen.frames), take);
        self.at = at;
        read
    }

    /// Moves to a position that was read up to, in the WAL that is held.
    pub fn advance(&mut self, at: WalPosition) {
        self.at = at;
    }

    /// Moves to a position that was reached before, if the WAL holds it. What was read up to there must be all that was
    /// committed up to there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn go_on_from(&mut self, position: &WalPosition) -> Result<bool, DatabaseError> {
        // A WAL that nobody wrote to has no salts yet, as the next one, whatever was done to the database in between.
        let is_same_wal = || position.salts == self.seen.salts && position.salts != [0, 0];
        let there = if position.frames == 0 { is_same_wal() } else { holds(self, position)? };
        if there {
            self.at = *position;
        }
        Ok(there)
    }
}

impl HeldDatabase for Follower {
    fn path(&self) -> &Path {
        &self.database.path
    }

    fn wal_header(&self) -> Result<Option<WalHeader>, DatabaseError> {
        if self.seen.frames == 0 {
            return Ok(None);
        }
        let mut head = [0; HEADER_LEN];
        let read = self.wal.ask(|file| read_at(file, &mut head, 0))?;
        let header =
            WalHeader::decode(&head).ok().filter(|header| read == HEADER_LEN && header.salts == self.seen.salts);
        header
            .map(Some)
            .ok_or_else(|| broken(&self.database.path, "the header of the WAL is not the one that was held"))
    }

    fn wal_frames(&self) -> u64 {
        self.seen.frames
    }

    fn counted(&self) -> Option<WalPosition> {
        Some(self.counted_when_seen())
    }

    fn counted_page(&self, frame: u64) -> Result<u32, DatabaseError> {
        page_of(&self.index, frame)
    }

    fn bytes_of_page(&self) -> Option<u32> {
        // Before the first frame the wal-index says nothing of it.
        let stated = || page_size(&self.database).ok().flatten();
        Some(self.seen.page_size).filter(|bytes| *bytes > 0).or_else(stated)
    }

    fn page_count(&self) -> Result<u32, DatabaseError> {
        if self.seen.frames > 0 && self.seen.db_pages > 0 {
            return Ok(self.seen.db_pages);
        }
        let (bytes, page_bytes) = (self.database.stamp()?.bytes, self.bytes_of_page().unwrap_or(0));
        Ok(bytes.checked_div(page_bytes.into()).map_or(0, |pages| u32::try_from(pages).unwrap_or(u32::MAX)))
    }

    fn read_frames(&self, at: u64, buf: &mut [u8]) -> Result<usize, DatabaseError> {
        self.wal.ask(|file| read_at(file, buf, at))
    }

    fn read_database(&self, at: u64, buf: &mut [u8]) -> Result<usize, DatabaseError> {
        self.database.ask(|file| read_at(file, buf, at))
    }
}

/// Takes a slot, if possible one that limits no checkpoint, and looks: what it shows stays in the WAL from then on. None when
/// all are taken, or the wal-index is being written.
fn take_slot(index: &Opened, but: Option<usize>) -> Result<Option<(usize, WalIndex)>, DatabaseError> {
    let Some(before) = index.ask(WalIndex::read)? else {
        return Ok(None);
    };
    let free = |slot: &&usize| Some(**slot) != but && before.is_unused(**slot);
    // One that is in use will do where no other is there: it is changed at the next look.
    let used = |slot: &&usize| but.is_none() && !before.is_unused(**slot);
    for slot in lock::SLOTS.iter().filter(free).chain(lock::SLOTS.iter().filter(used)) {
        if !index.ask(|file| lock::share_mark(file, *slot))? {
            continue;
        }
        match index.ask(WalIndex::read)? {
            // Somebody may have begun to use it in between.
            Some(now) if now.is_unused(*slot) || !before.is_unused(*slot) => return Ok(Some((*slot, now))),
            _ => index.ask(|file| lock::release_mark(file, *slot))?,
        }
    }
    Ok(None)
}
