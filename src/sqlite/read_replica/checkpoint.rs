//! Checkpoints of a [`ReadReplicaFile`] that no reader waits for: SQLite's PASSIVE ones. Owns: how far frames may be copied while
//! others read, and when the WAL can start again.
//!
//! A reader uses the database file and the frames up to its read mark. So frames up to the lowest mark in use may be copied: all
//! readers see them, in the WAL or in the file. A reader with mark 0 uses the file alone, and nothing may be copied while
//! there is one. Once everything is copied new readers take mark 0, so those that use the WAL become fewer, and when there are
//! none it starts again. All of it is tried once and left for the next checkpoint where a reader is in the way.

use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::super::image::Newest;
use super::super::lock::beside_users::before;
use super::super::lock::one_writer::{self, Exclusive};
use super::super::wal_index::{IndexHeader, MARKS, UNUSED, WalIndex};
use super::{DatabaseError, ReadReplicaFile};
use crate::format::database::{VERSIONS, WAL_VERSIONS};
use crate::format::wal::Chain;

/// Bytes of a WAL that is to be checkpointed, or of what was added to it since that was tried.
pub(super) const WAL_BYTES_DUE: u64 = 4 << 20;
/// How long commits wait for readers then. Most reads take less.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a checkpoint did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpointed {
    /// Frames that the WAL had.
    pub frames: u64,
    /// How many of them are in the database file.
    pub copied: u64,
    /// Whether the WAL starts again with its next frame.
    pub restarted: bool,
}

impl ReadReplicaFile {
    /// Copies what no reader needs any more as it was into the database file, and lets the WAL start again if no reader uses
    /// it. Waits for no reader and lets none wait. Between two transactions only: while one is appended nothing is done. Nothing is
    /// copied either while the file has another name: see [`linked`](Self::linked).
    ///
    /// # Errors
    /// [`DatabaseError::WrittenByOthers`]; as the file system says.
    pub fn checkpoint(&mut self) -> Result<Checkpointed, DatabaseError> {
        self.usable()?;
        let mut done = Checkpointed { frames: self.frames(), ..Checkpointed::default() };
        if self.write.is_some() {
            return Ok(done);
        }
        let lock = Exclusive::lock(&self.files.index, one_writer::CHECKPOINT);
        let Some(_checkpoint) = lock.map_err(|error| self.io("locking", error))? else {
            // Another connection is at it.
            return Ok(done);
        };
        let write = self.lock_write()?;
        let now = self.confirm()?;
        // Others may write from here on, after the frames that are copied.
        drop(write);
        self.sync()?;
        let copied = match self.has_one_name()? {
            true => self.copy(&now),
            false => Ok(now.copied),
        };
        let copied = self.latch(copied)?;
        if copied > now.copied {
            self.copied = copied;
        }
        let bytes = self.files.database.bytes();
        let bytes = self.latch(bytes)?;
        self.least = if now.db_pages > 0 { bytes.min(self.bytes_of(now.db_pages)) } else { bytes };
        done = Checkpointed { frames: now.frames, copied, restarted: now.frames == 0 };
        if done.copied == now.frames && now.frames > 0 && !self.keeps_frames {
            let _write = self.lock_write()?;
            let now = self.confirm()?;
            done.restarted = now.frames == 0 || self.restart(&now)?;
        }
        Ok(done)
    }

    /// The same again and again until the WAL starts again, or `patience` is over. While nothing is committed, readers that come
    /// and go get out of the way within the time that a read takes: first those that use the file alone, so that everything can
    /// be copied, and then those that use the WAL. A read that takes longer is not waited for.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn checkpoint_within(&mut self, patience: Duration) -> Result<Checkpointed, DatabaseError> {
        let mut done = Checkpointed::default();
        before(Instant::now() + patience, || -> Result<_, DatabaseError> {
            done = self.checkpoint()?;
            Ok((done.restarted || self.linked.is_some()).then_some(()))
        })?;
        Ok(done)
    }

    /// The same until everything is copied, where [frames are kept](Self::keep_frames).
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn copy_within(&mut self, patience: Duration) -> Result<Checkpointed, DatabaseError> {
        let mut done = Checkpointed::default();
        before(Instant::now() + patience, || -> Result<_, DatabaseError> {
            done = self.checkpoint()?;
            Ok((done.copied == done.frames || self.linked.is_some()).then_some(()))
        })?;
        Ok(done)
    }

    /// For the caller to call after each commit: a checkpoint when the WAL has 4 MiB, or so much more than at the last one
    /// where a reader was in the way.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn checkpoint_if_due(&mut self) -> Result<Option<Checkpointed>, DatabaseError> {
        if self.wal_bytes() < self.checkpoint_at || self.write.is_some() {
            return Ok(None);
        }
        let done = self.checkpoint_within(PATIENCE)?;
        self.checkpoint_at = WAL_BYTES_DUE + if done.restarted { 0 } else { self.wal_bytes() };
        Ok(Some(done))
    }

    /// Ends it: everything is put into the database file, and the WAL emptied, unless readers are in the way. Where nobody reads,
    /// the database file is all that there is. It returns the mark of what is left.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn close(mut self) -> Result<super::StateMark, DatabaseError> {
        self.forget_open();
        self.commit()?;
        if self.checkpoint_within(PATIENCE)?.restarted {
            let _write = self.lock_write()?;
            if self.confirm()?.frames == 0 {
                let wal = &self.files.wal;
                wal.truncate(0).and_then(|()| wal.sync()).map_err(|error| self.io("emptying the WAL of", error))?;
            }
        }
        self.mark()
    }

    /// Whether the database file has no other name. A copy that was made as a hard link would change with it: as long as there is
    /// one, nothing is copied, and the WAL grows. Reports when that starts and ends.
    fn has_one_name(&mut self) -> Result<bool, DatabaseError> {
        let found = self.database()?.metadata().map_err(|error| self.io("reading", error))?;
        let (links, path) = (found.nlink(), self.files.path.display());
        match (links > 1, self.linked) {
            (true, None) => log::warn!(
                "{path} has {links} names (hard links): what is committed stays in its WAL, because the file under its other name would \
                 change too; remove that name, or replace that file by a copy"
            ),
            (false, Some(_)) => log::info!("{path} has one name again: its WAL is copied into it"),
            _ => {}
        }
        self.linked = Some(links).filter(|links| *links > 1);
        Ok(self.linked.is_none())
    }

    /// How many names the database file had at the last checkpoint, if it had more than one: nothing was copied into it then.
    #[must_use]
    pub fn linked(&self) -> Option<u64> {
        self.linked
    }

    /// With CKPT: copies frames as far as readers let it, and returns how many are copied.
    fn copy(&self, now: &WalIndex) -> io::Result<u64> {
        if now.is_copied() {
            return Ok(now.copied);
        }
        let safe = self.raise_marks(now)?;
        if safe <= now.copied {
            return Ok(now.copied);
        }
        let Some(_database) = Exclusive::lock(&self.files.index, one_writer::read_mark(0))? else {
            return Ok(now.copied);
        };
        self.index.set_attempted(safe)?;
        self.write_pages(now.copied, safe)?;
        if safe == now.frames {
            self.files.database.truncate(u64::from(now.db_pages) * u64::from(self.page_size))?;
        }
        self.files.database.sync()?;
        self.files.stamp()?;
        self.index.set_copied(safe)?;
        Ok(safe)
    }

    /// The last frame that all readers see. Read marks that no reader holds are moved out of the way.
    fn raise_marks(&self, now: &WalIndex) -> io::Result<u64> {
        let mut safe = now.frames;
        for slot in 1..MARKS {
            let mark = u64::from(now.marks[slot]);
            if mark >= safe {
                continue;
            }
            match Exclusive::lock(&self.files.index, one_writer::read_mark(slot))? {
                // Readers that cannot write the wal-index need one mark that they can use.
                Some(_free) => self.index.set_mark(slot, if slot == 1 { safe as u32 } else { UNUSED })?,
                None => safe = mark,
            }
        }
        Ok(safe)
    }

    /// Writes the pages whose newest frame is after `copied` up to `safe`.
    fn write_pages(&self, copied: u64, safe: u64) -> io::Result<()> {
        let wal = &self.files.wal;
        let page_size = self.page_size;
        let read = |page: u32, frame: u64, run: &mut Vec<u8>| {
            let from = run.len();
            run.resize(from + page_size as usize, 0);
            let read = wal.read_at(&mut run[from..], self.page_in(frame))?;
            let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("page {page} is cut in frame {frame}"));
            (read == page_size as usize).then_some(()).ok_or_else(cut)?;
            if page == 1 {
                // Without frames in the WAL a connection goes by what the file says.
                run[from..][VERSIONS].copy_from_slice(&WAL_VERSIONS);
            }
            Ok(())
        };
        let write = |first: u32, run: &[u8]| {
            self.files.database.write_at(&mut [IoSlice::new(run)], u64::from(first - 1) * u64::from(page_size))
        };
        self.newest.fold_where(|frame| copied < frame && frame <= safe, page_size, read, write)
    }

    /// With WRITE, where everything is copied: lets the WAL start again, if no reader uses it.
    pub(super) fn restart(&mut self, now: &WalIndex) -> Result<bool, DatabaseError> {
        let lock = Exclusive::lock(&self.files.index, one_writer::READ_WAL);
        let Some(_readers) = lock.map_err(|error| self.io("locking", error))? else {
            return Ok(false);
        };
        if self.copied < now.frames {
            // The connection that copied them may not have synced the database file.
            let synced = self.files.database.sync();
            self.latch(synced)?;
        }
        // As SQLite does it: the first salt counts, the second is random.
        let random = Uuid::new_v4().into_bytes();
        let salts = [now.salts[0].wrapping_add(1), u32::from_be_bytes(std::array::from_fn(|i| random[i]))];
        let header = IndexHeader { frames: 0, salts, chain: Chain::default(), ..now.header() };
        // The header comes after what goes with it: a reader that found fewer frames in the WAL than are said to be copied would
        // not look for those that come next. The file comes last: an empty one says after a crash that nothing is in it.
        let restarted = self.index.set_copied(0).and_then(|()| {
            self.index.set_attempted(0)?;
            self.index.set_mark(1, 0)?;
            (2..MARKS).try_for_each(|slot| self.index.set_mark(slot, UNUSED))?;
            self.index.publish(header)?;
            self.files.wal.truncate(0)
        });
        self.latch(restarted)?;
        self.index.adopt(header);
        (self.wal, self.newest, self.copied) = (None, Newest::default(), 0);
        Ok(true)
    }
}
