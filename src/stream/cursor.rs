//! [`Cursor`]: the verified commits of a log one by one, from any offset.

use std::io;
use std::sync::Arc;

use super::fault::{Fault, FaultKind};
use super::recover::{SegmentInfo, SurveyError, is_repeat};
use crate::format::{Commit, Format, Item, ScanError, Scanner, Walk};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Offset};
use crate::repo::Repo;
use crate::segment::SegmentReader;

/// A commit and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The commit.
    pub commit: Commit,
    /// Start of its segment.
    pub segment: Offset,
    /// Where in the segment it starts.
    pub at: BytePos,
}

/// Walks over the commits of a log whose segments are known.
#[derive(Debug)]
pub struct Cursor {
    repo: Arc<dyn Repo>,
    segments: std::vec::IntoIter<SegmentInfo>,
    open: Option<Open>,
    /// The commit that a search stopped at, which is the next to hand out.
    found: Option<Placed>,
    commit_bytes_max: u64,
}

#[derive(Debug)]
struct Open {
    info: SegmentInfo,
    reader: SegmentReader,
    scanner: Scanner<Walk>,
    /// Where in the segment the scanner started.
    base: BytePos,
    block: Vec<u8>,
    /// The part of the block not scanned yet.
    fresh: std::ops::Range<usize>,
    read: BytePos,
    last: Option<Commit>,
}

impl Cursor {
    /// A cursor on the commit that holds `from`, or the first behind it.
    ///
    /// # Errors
    /// When the log cannot be read, or is not what `segments` says.
    pub fn open(
        repo: &Arc<dyn Repo>,
        segments: &[SegmentInfo],
        from: Offset,
        commit_bytes_max: u64,
    ) -> Result<Cursor, SurveyError> {
        let skipped = segments.partition_point(|segment| segment.end <= from);
        let segments = Vec::from(&segments[skipped..]).into_iter();
        let mut cursor = Cursor { repo: repo.clone(), segments, open: None, found: None, commit_bytes_max };
        cursor.open_next(from)?;
        Ok(cursor)
    }

    /// The next commit; `None` at the end of the log.
    ///
    /// # Errors
    /// When a commit is damaged or the log cannot be read.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Placed>, SurveyError> {
        if let Some(found) = self.found.take() {
            return Ok(Some(found));
        }
        while let Some(open) = &mut self.open {
            if let Some(placed) = open.next()? {
                return Ok(Some(placed));
            }
            self.open_next(Offset::ZERO)?;
        }
        Ok(None)
    }

    fn open_next(&mut self, from: Offset) -> Result<(), SurveyError> {
        self.open = None;
        let Some(info) = self.segments.next() else {
            return Ok(());
        };
        let mut reader = SegmentReader::open(&*self.repo, info.start)?;
        let entry = if from > info.start {
            reader.indexed(from, BytePos(info.bytes), info.framing, self.commit_bytes_max)?
        } else {
            None
        };
        let (expected, base) =
            entry.map_or((info.start, BytePos(info.framing.header_len() as u64)), |e| (e.key, e.value));
        let framing = reader.framing_at(base, info.framing)?;
        let scanner = Scanner::new(Walk::new(framing, Some(expected), self.commit_bytes_max));
        let block = vec![0; READ_BLOCK.min(usize::try_from(info.bytes).unwrap_or(READ_BLOCK))];
        let mut open = Open { info, reader, scanner, base, block, fresh: 0..0, read: base, last: None };
        // Commits before `from` are walked over: at most an index interval of them when the index is whole.
        if from > info.start {
            self.found = loop {
                match open.next()? {
                    Some(placed) if placed.commit.end() <= from => {}
                    found => break found,
                }
            };
        }
        self.open = Some(open);
        Ok(())
    }
}

impl Open {
    fn next(&mut self) -> Result<Option<Placed>, SurveyError> {
        let fault = |offset, at, kind| SurveyError::Damaged(Fault { segment: self.info.start, offset, at, kind });
        loop {
            let at = BytePos(self.base.0 + self.scanner.boundary().0);
            if at.0 >= self.info.bytes {
                return Ok(None);
            }
            let expected = self.scanner.format().expected().unwrap_or(self.info.start);
            let mut input = &self.block[self.fresh.clone()];
            let item = self.scanner.next(&mut input);
            self.fresh.start = self.fresh.end - input.len();
            match item {
                Ok(Some(Item::Commit(commit))) if is_repeat(self.last, &commit) => {}
                Ok(Some(Item::Commit(commit))) => {
                    self.last = Some(commit);
                    return Ok(Some(Placed { commit, segment: self.info.start, at }));
                }
                Ok(Some(Item::Header(_))) => {}
                Ok(None) => {
                    let count = self.reader.read_at(&mut self.block, self.read)?;
                    if count == 0 {
                        return Err(fault(expected, at, FaultKind::Cut));
                    }
                    self.read = self.read.plus(count as u64);
                    self.fresh = 0..count;
                }
                Err(ScanError::Corrupt { error, .. }) => return Err(fault(expected, at, FaultKind::Format(error))),
                Err(ScanError::Truncated { .. }) => return Err(fault(expected, at, FaultKind::Cut)),
            }
        }
    }
}

impl From<SurveyError> for io::Error {
    fn from(error: SurveyError) -> Self {
        match error {
            SurveyError::Io(error) => error,
            SurveyError::Damaged(fault) => io::Error::new(io::ErrorKind::InvalidData, fault.to_string()),
        }
    }
}
