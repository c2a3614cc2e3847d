//! What a [`ReadReplicaFile`] holds: its pages, and the frames that its WAL has had since a mark.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use super::super::lock::one_writer::plain;
use super::super::wal_frames::{frame_at, heads};
use super::{DatabaseError, ReadReplicaFile, StateMark, Touched};
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader};
use crate::repo::give_owner;

impl ReadReplicaFile {
    /// Pages of the database after the last commit frame that was appended.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn pages(&self) -> Result<u32, DatabaseError> {
        match self.last_header().db_pages {
            0 => {
                let bytes = self.files.database.bytes().map_err(|error| self.io("reading", error))?;
                Ok(u32::try_from(bytes / u64::from(self.page_size)).unwrap_or(u32::MAX))
            }
            pages => Ok(pages),
        }
    }

    /// Reads page `number`, from 1, as of the last commit frame that was appended, into `page`, which has the length of one.
    /// False when it is not there.
    ///
    /// # Errors
    /// As the file system says.
    pub fn read_page(&self, number: u32, page: &mut [u8]) -> Result<bool, DatabaseError> {
        let is_there = (1..=self.pages()?).contains(&number);
        let read = match self.newest.get(number) {
            Some(frame) => self.files.wal.read_at(page, self.page_in(frame)),
            None => {
                let before = u64::from(number.saturating_sub(1));
                self.files.database.read_at(page, before * u64::from(self.page_size))
            }
        };
        Ok(read.map_err(|error| self.io("reading", error))? == page.len() && is_there)
    }

    /// Writes all pages into a new file at `to`: a plain database, which survives power loss then.
    ///
    /// # Errors
    /// `AlreadyExists`; as the file system says. What was made of the file is removed.
    pub fn copy_to(&self, to: &Path) -> Result<(), DatabaseError> {
        let io = |error| DatabaseError::io("writing", to, error);
        let file = fs::File::create_new(to).map_err(io)?;
        let copied = self.copy_into(&file, to);
        if copied.is_err() {
            // The first error counts.
            let _ = fs::remove_file(to);
        }
        copied
    }

    fn copy_into(&self, file: &fs::File, to: &Path) -> Result<(), DatabaseError> {
        let io = |error| DatabaseError::io("writing", to, error);
        let mut out = io::BufWriter::with_capacity(1 << 20, file);
        let mut page = vec![0; self.page_size as usize];
        for number in 1..=self.pages()? {
            if !self.read_page(number, &mut page)? {
                page.fill(0);
            }
            out.write_all(&page).map_err(io)?;
        }
        out.flush().map_err(io)?;
        let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let database = plain(&*self.files.database).and_then(fs::File::metadata).map_err(io)?;
        give_owner(file, &database, to).map_err(io)?;
        file.sync_all().and_then(|()| fs::File::open(dir)?.sync_all()).map_err(io)
    }

    /// The frames that the WAL has had since this mark, if that is all that changed: their transactions, on top of what was
    /// there, make what is there now. They are what a crash kept from being marked, or another program wrote.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn added_since(&self, mark: &StateMark) -> Result<Option<Range<u64>>, DatabaseError> {
        let now = self.mark()?;
        if !mark.is_before(&now) || self.touched_since(&now) != Touched::No {
            return Ok(None);
        }
        let after = match mark.frames() {
            0 => 0,
            frames => {
                let last = heads(&*self.files.wal, self.page_size, frames - 1, frames)
                    .map_err(|error| self.io("reading", error))?;
                if last.first().is_none_or(|last| !mark.ends_with(last)) {
                    return Ok(None);
                }
                frames
            }
        };
        Ok(Some(after + 1..self.frames() + 1))
    }

    /// Reads frame `number`, from 1, of the WAL: its page into `page`, which has the length of one. Returns the number of the
    /// page, and the pages of the database if it ends a transaction, else 0.
    ///
    /// # Errors
    /// As the file system says, and when there is no such frame.
    pub fn read_frame(&self, number: u64, page: &mut [u8]) -> Result<(u32, u32), DatabaseError> {
        let mut read = || -> io::Result<(u32, u32)> {
            let (wal, mut head) = (&self.files.wal, [0; FRAME_HEADER_LEN]);
            let read = wal.read_at(&mut head, frame_at(self.page_size, number))?;
            if number == 0
                || number > self.frames()
                || read < head.len()
                || wal.read_at(page, self.page_in(number))? < page.len()
            {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let FrameHeader { page, size, .. } = FrameHeader::decode(&head);
            Ok((page, size))
        };
        read().map_err(|error| self.io("reading the WAL of", error))
    }

    /// Where the page of a frame is in the WAL.
    pub(super) fn page_in(&self, frame: u64) -> u64 {
        frame_at(self.page_size, frame) + FRAME_HEADER_LEN as u64
    }
}
