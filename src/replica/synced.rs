//! `P-synced`: what the remote has, and nothing else. Owns: how its frames are cut and folded. It is never open in an engine
//! while this writes it.
//!
//! Frames of the remote are numbered in their generation; those up to `folded` are in the database file already, and frame
//! `folded + n` is the nth of the WAL. What follows the last frame that counts in the WAL is scratch: local changes are
//! replayed there, and cut off before anything else is done.

use std::io;
use std::sync::Arc;

use super::image::{PAGE_SIZE, image};
use crate::format::wal::{FrameHeader, HEADER_LEN};
use crate::repo::{Repo, RepoFile};
use crate::sqlite::image::Image;
use crate::sqlite::wal_append::{WalAppender, empty, new_header};
use crate::sqlite::wal_frames::{frame_len, frames_of, heads};

/// The files of the remote's image.
#[derive(Debug)]
pub(super) struct Synced {
    dir: Arc<dyn Repo>,
    name: String,
    wal_name: String,
    database: Arc<dyn RepoFile>,
    /// Holds the frames that count.
    wal: Option<WalAppender>,
}

impl Synced {
    /// The image of that name, with so many frames in its WAL: what follows them is cut off.
    ///
    /// # Errors
    /// `InvalidData` when the WAL does not have that many; otherwise as the file system says.
    pub(super) fn open(dir: Arc<dyn Repo>, name: &str, frames: u64) -> io::Result<Synced> {
        let database = dir.open_write(name)?;
        let mut synced = Synced { dir, name: name.to_owned(), wal_name: format!("{name}-wal"), database, wal: None };
        synced.reset(frames)?;
        Ok(synced)
    }

    /// Cuts off what follows so many frames.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn reset(&mut self, frames: u64) -> io::Result<()> {
        self.wal = None;
        match frames {
            0 => empty(&*self.dir, &self.wal_name)?,
            _ => self.wal = Some(WalAppender::open(&*self.dir, &self.wal_name, frames)?),
        }
        Ok(())
    }

    /// Frames of the WAL that count.
    pub(super) fn frames(&self) -> u64 {
        self.wal.as_ref().map_or(0, WalAppender::frames)
    }

    /// Adds whole frames after those that count, which they do from now on; the last must end a transaction before the
    /// image is used. They are not synced.
    ///
    /// # Errors
    /// As the file system says; the image must be opened again then.
    pub(super) fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        let wal = match &mut self.wal {
            Some(wal) => wal,
            None => self.wal.insert(WalAppender::create(&*self.dir, &self.wal_name, new_header(PAGE_SIZE, 0))?),
        };
        wal.append(frames_of(frames, PAGE_SIZE)).map(drop)
    }

    /// After Ok all frames that count survive power loss.
    ///
    /// # Errors
    /// Nothing is known then.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.wal.as_mut().map_or(Ok(()), WalAppender::sync)
    }

    /// The database as of a frame of the WAL, which must end a transaction; scratch frames can be asked for too.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn image(&self, frames: u64) -> io::Result<Image> {
        image(&*self.dir, &self.name, frames)
    }

    /// The headers of frames after `after` up to `last`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn heads(&self, after: u64, last: u64) -> io::Result<Vec<FrameHeader>> {
        self.file()?.map_or(Ok(Vec::new()), |wal| heads(&*wal, PAGE_SIZE, after, last))
    }

    /// Frames of the WAL up to the last that ends a transaction, scratch included.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn with_scratch(&self) -> io::Result<u64> {
        let Some(wal) = self.file()? else { return Ok(0) };
        let there = wal.bytes()?.saturating_sub(HEADER_LEN as u64) / frame_len(PAGE_SIZE) as u64;
        let after = self.frames();
        let scratch = heads(&*wal, PAGE_SIZE, after, there)?;
        let ends = scratch.iter().rposition(|head| head.size > 0);
        Ok(ends.map_or(after, |last| after + last as u64 + 1))
    }

    /// The WAL, scratch included.
    fn file(&self) -> io::Result<Option<Arc<dyn RepoFile>>> {
        match self.dir.open(&self.wal_name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        }
    }

    /// Puts the pages of all frames into the database file, and syncs that. The WAL stays as it is, so that this can be
    /// repeated: the result is the same.
    ///
    /// # Errors
    /// When it cannot be done; nothing is lost then.
    pub(super) fn fold(&self) -> io::Result<()> {
        self.image(self.frames())?.fold_into(&*self.database)
    }
}
