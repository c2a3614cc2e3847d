//! [`SegmentWriter`]: appends to the open segment.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::index::{Entry, OffsetIndex};
use super::reader::SegmentReader;
use crate::format::{Framing, LogFormat, name};
use crate::limits::INDEX_INTERVAL;
use crate::offset::{BytePos, Offset};
use crate::repo::{Repo, RepoFile};

/// The open segment of a log, positioned at its end. It does not latch failures: its owner stops using it after one.
#[derive(Debug)]
pub struct SegmentWriter {
    start: Offset,
    framing: Framing,
    file: Arc<dyn RepoFile>,
    end: BytePos,
    index: Option<OffsetIndex>,
    /// Commits for the index that are not known to be durable.
    unsettled: VecDeque<Entry>,
}

impl SegmentWriter {
    /// Creates the segment that starts at `start` with its header in it. Nothing is durable yet. An existing file of that
    /// name is used if it is empty or holds a segment header and nothing else.
    ///
    /// # Errors
    /// `AlreadyExists` when a file of that name holds anything else, which stays as it is. Otherwise as the repo says; a file
    /// without a whole header may be left, which recovery takes for an empty head.
    pub fn create(repo: &Arc<dyn Repo>, start: Offset, framing: Framing, header: &[u8]) -> io::Result<SegmentWriter> {
        let file_name = name::segment(framing.format(), start);
        let file = match repo.create(&file_name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let bytes = repo.open(&file_name)?.bytes()?;
                if !holds_no_commit(repo, start, bytes)? {
                    let text = format!("{file_name} exists and holds {bytes} bytes that this writer did not write");
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
                }
                repo.open_write(&file_name)?
            }
            file => file?,
        };
        SegmentWriter::begin(repo, file, start, framing, header)
    }

    /// Opens the segment that starts at `start`, of which recovery found that it holds no whole commit, cutting what it holds.
    ///
    /// # Errors
    /// As the repo says.
    pub(crate) fn reset(
        repo: &Arc<dyn Repo>,
        start: Offset,
        framing: Framing,
        header: &[u8],
    ) -> io::Result<SegmentWriter> {
        let file = repo.open_write(&name::segment(framing.format(), start))?;
        file.truncate(0)?;
        SegmentWriter::begin(repo, file, start, framing, header)
    }

    fn begin(
        repo: &Arc<dyn Repo>,
        file: Arc<dyn RepoFile>,
        start: Offset,
        framing: Framing,
        header: &[u8],
    ) -> io::Result<SegmentWriter> {
        file.write_at(&mut [IoSlice::new(header)], 0)?;
        let (index, end) = (index(repo, framing.format(), start, None), BytePos(header.len() as u64));
        Ok(SegmentWriter { start, framing, file, end, index, unsettled: VecDeque::new() })
    }

    /// Opens the segment that starts at `start` for appending at byte `end`, cutting what is behind it. `last` is the
    /// last index entry that holds, and `marks` are commits behind it that the index lacks.
    ///
    /// # Errors
    /// As the repo says.
    pub fn open(
        repo: &Arc<dyn Repo>,
        start: Offset,
        framing: Framing,
        end: BytePos,
        last: Option<Entry>,
        marks: &[Entry],
    ) -> io::Result<SegmentWriter> {
        let file = repo.open_write(&name::segment(framing.format(), start))?;
        // Also where it ends there already: an earlier cut may not have reached the disk, if its sync failed.
        file.truncate(end.0)?;
        let index = index(repo, framing.format(), start, last);
        let unsettled = marks.iter().copied().collect();
        Ok(SegmentWriter { start, framing, file, end, index, unsettled })
    }

    /// The offset it starts at.
    #[must_use]
    pub fn start(&self) -> Offset {
        self.start
    }

    /// How its commits are framed, from its first on.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        name::segment(self.framing.format(), self.start)
    }

    /// Where the next commit goes.
    #[must_use]
    pub fn end(&self) -> BytePos {
        self.end
    }

    /// The file, to sync it from elsewhere.
    #[must_use]
    pub fn file(&self) -> &Arc<dyn RepoFile> {
        &self.file
    }

    /// Appends whole, verified commits of `bytes` bytes in all. After Ok they are handed to the operating system,
    /// nothing more; after Err the part that was written, as on a full disk, was cut off again if the repo allowed that.
    ///
    /// # Errors
    /// As the repo says.
    pub fn append(&mut self, slices: &mut [IoSlice<'_>], bytes: u64) -> io::Result<()> {
        if let Err(error) = self.file.write_at(slices, self.end.0) {
            let _reopening_cuts_it = self.file.truncate(self.end.0);
            return Err(error);
        }
        self.end = self.end.plus(bytes);
        Ok(())
    }

    /// Whether its file is known to end where the next commit goes, also after a power failure. Blocks.
    pub(crate) fn is_cut(&self) -> bool {
        self.file.bytes().is_ok_and(|bytes| bytes <= self.end.0) && self.file.sync().is_ok()
    }

    /// Writes a part of a commit `at` bytes after the end, which it does not move: nobody reads there, and recovery cuts it.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub(crate) fn write_ahead(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_at(&mut [IoSlice::new(bytes)], self.end.0 + at).inspect_err(|_| {
            let _reopening_cuts_it = self.cut_ahead();
        })
    }

    /// Counts `bytes` that were [written ahead](Self::write_ahead), which must be whole, verified commits.
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.end = self.end.plus(bytes);
    }

    /// Cuts what was written ahead.
    ///
    /// # Errors
    /// As the repo says.
    pub(crate) fn cut_ahead(&self) -> io::Result<()> {
        self.file.truncate(self.end.0)
    }

    /// Offers commits to the index, which takes them once they are durable.
    pub fn note(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            let far = |last: &Entry| entry.value.0 >= last.value.0 + INDEX_INTERVAL;
            if self.index.is_some() && self.unsettled.back().is_none_or(far) {
                self.unsettled.push_back(entry);
            }
        }
    }

    /// Takes note that all before byte `end` is durable. An index that cannot grow is given up until the segment is
    /// opened again.
    pub fn settle(&mut self, end: BytePos) {
        while let Some(entry) = self.unsettled.front().copied().filter(|entry| entry.value < end) {
            self.unsettled.pop_front();
            if let Some(index) = &mut self.index
                && let Err(error) = index.note(entry)
            {
                log::warn!("offset index of segment {} stops at offset {}: {error}", self.start, entry.key);
                self.index = None;
            }
        }
    }

    /// Ends the index and syncs it: the last step of a segment. The segment's own bytes are synced by its owner.
    pub fn seal_index(&mut self) {
        if let Some(index) = self.index.take()
            && let Err(error) = index.seal()
        {
            log::warn!("offset index of segment {} was not sealed: {error}", self.start);
        }
    }
}

/// Whether an existing segment file is empty or only a segment header.
fn holds_no_commit(repo: &Arc<dyn Repo>, start: Offset, bytes: u64) -> io::Result<bool> {
    if bytes == 0 {
        return Ok(true);
    }
    let mut reader = SegmentReader::open(&**repo, start)?;
    let header = reader.header()?.ok().flatten();
    Ok(header.is_some_and(|framing| bytes == framing.header_len() as u64))
}

/// An index is a hint: a log without one works, so trouble with it is logged and not an error.
fn index(repo: &Arc<dyn Repo>, format: LogFormat, start: Offset, last: Option<Entry>) -> Option<OffsetIndex> {
    match OffsetIndex::open(repo.clone(), format, start, last) {
        Ok(index) => Some(index),
        Err(error) => {
            log::warn!("no offset index for segment {start} in {}: {error}", repo.place());
            // Without one nothing is wrong; entries that were to be cut from it and were not might be.
            let _there_may_be_none = repo.remove(&name::index(format, start));
            None
        }
    }
}
