//! The checksums of the pages of a WAL log's database, as of its last durable commit: with them a mirror finds the pages in
//! which a database differs from the log, without sending it over.
//!
//! ```text
//! 0      8           12      16
//! | next | page size | pages | sum u64 * pages |      little-endian
//! ```
//!
//! `next` is the offset after that commit. A sum is [`PageSums::sum_of`] of the page, under the key that was asked for; of a
//! page that is neither in the base nor in a frame, that of zeros.
//!
//! A page that is not the one of its sum shows, but nothing in the sums shows how many there must be: so the answer has
//! [the sum of the first 16 bytes](proof_of), under the same key, in a field of its own.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::error::Error;
use super::log::Log;
use super::log_base::LogBase;
use super::pages::Sought;
use crate::format::database;
use crate::format::wal::FRAME_HEADER_LEN;
use crate::format::{Framing, LogFormat};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Offset};
use crate::segment::SegmentReader;
use crate::segment::base::seen;
use crate::sqlite::page_sums::PageSums;

/// Bytes before the sums.
pub(super) const HEAD_LEN: usize = 16;

/// What the field says of the bytes before sums under `key`. Without the key it cannot be made.
pub(super) fn proof_of(head: &[u8], key: u64) -> String {
    format!("{:016x}", PageSums::new(key).sum_of(head))
}

/// The sums of one state, in pieces.
#[derive(Debug)]
pub struct PageSumFeed {
    log: Arc<Log>,
    sums: PageSums,
    base: LogBase,
    /// The newest frame of each page that is not as in the base.
    newest: HashMap<u32, Offset>,
    next: Offset,
    page_size: u32,
    pages: u32,
    /// Pages whose sums were given out; none before the head was.
    done: Option<u32>,
    /// The segment that was read last, which starts there.
    segment: Option<(Offset, SegmentReader)>,
}

impl Log {
    /// The sums of the pages of its database as of its last durable commit, under `key`. Blocks.
    ///
    /// # Errors
    /// [`Error::Format`] for a log that is no WAL, and when it cannot be read.
    pub fn page_sums(self: &Arc<Log>, key: u64) -> Result<PageSumFeed, Error> {
        if self.format() != LogFormat::Wal {
            return Err(Error::Format(format!("log {:?} is a {}: it has no pages", self.name(), self.format())));
        }
        self.intact()?;
        let (view, base) = (self.view(), self.base()?);
        let (mut newest, mut pages) = (HashMap::new(), None);
        let frames = view.first..view.durable;
        let found = self.newest_frames(&frames, Sought::All, |page, frame| {
            newest.entry(page).or_insert(frame);
            true
        });
        found.map_err(|error| self.met_damage(error))?;
        if !frames.is_empty() {
            let last = self.frame_head(Offset(view.durable.0 - 1))?;
            pages = last.map(|last| last.size);
        }
        let (page_size, in_base) = match view.framing {
            Framing::Wal(Some(start)) if pages.is_some() => (start.header.page_size, 0),
            _ if base.bytes() == 0 => (0, 0),
            _ => {
                let mut head = [0; database::HEADER_LEN];
                let count = base.read_at(&mut head, 0)?;
                let found = seen(&head[..count], base.bytes()).map_err(|error| Error::Damaged(error.into()))?;
                let unknown =
                    || Error::Format("the base is no database that SQLite opens: its pages are not known".into());
                let found = found.ok_or_else(unknown)?;
                (found.page_size, found.pages)
            }
        };
        let (sums, next, pages) = (PageSums::new(key), view.durable, pages.unwrap_or(in_base));
        Ok(PageSumFeed { log: self.clone(), sums, base, newest, next, page_size, pages, done: None, segment: None })
    }
}

impl PageSumFeed {
    /// How many bytes come in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        HEAD_LEN as u64 + 8 * u64::from(self.pages)
    }

    fn head(&self) -> [u8; HEAD_LEN] {
        let mut head = [0; HEAD_LEN];
        head[..8].copy_from_slice(&self.next.0.to_le_bytes());
        head[8..12].copy_from_slice(&self.page_size.to_le_bytes());
        head[12..].copy_from_slice(&self.pages.to_le_bytes());
        head
    }

    /// What the field beside the answer says.
    #[must_use]
    pub(crate) fn proof(&self) -> String {
        proof_of(&self.head(), self.sums.key())
    }

    /// The next piece; `None` at the end. Blocks.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(done) = self.done else {
            self.done = Some(0);
            return Ok(Some(Bytes::copy_from_slice(&self.head())));
        };
        if done == self.pages {
            return Ok(None);
        }
        let page_size = self.page_size as usize;
        let count = (READ_BLOCK / page_size.max(1)).max(1).min((self.pages - done) as usize);
        let mut block = vec![0; count * page_size];
        // What is behind the end of the base is in frames, or zeros.
        self.base.read_at(&mut block, u64::from(done) * page_size as u64)?;
        let mut sums = Vec::with_capacity(8 * count);
        for (content, page) in block.chunks_exact_mut(page_size).zip(done + 1..) {
            if let Some(frame) = self.newest.get(&page).copied() {
                self.read_frame(frame, content)?;
            }
            sums.extend_from_slice(&self.sums.sum_of(content).to_le_bytes());
        }
        self.done = Some(done + count as u32);
        Ok(Some(sums.into()))
    }

    /// Reads the page in a frame.
    fn read_frame(&mut self, frame: Offset, content: &mut [u8]) -> Result<(), Error> {
        let pieces = self.log.pieces(&(frame..Offset(frame.0 + 1)));
        let lacking = || Error::Damaged(format!("frame {frame} is not where it must be").into());
        let (segment, bytes) = pieces.first().ok_or_else(lacking)?;
        if self.segment.as_ref().is_none_or(|(start, _)| *start != segment.start) {
            self.segment = Some((segment.start, SegmentReader::open(&**self.log.repo(), segment.start)?));
        }
        let (_, reader) = self.segment.as_mut().ok_or_else(lacking)?;
        let mut read = 0;
        while read < content.len() {
            let at = BytePos(bytes.start + (FRAME_HEADER_LEN + read) as u64);
            match reader.read_at(&mut content[read..], at)? {
                0 => return Err(lacking()),
                count => read += count,
            }
        }
        Ok(())
    }
}
