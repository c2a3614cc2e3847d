//! [`Feed`]: the database as of a frame, from a base and raw log bytes that come in pieces.
//!
//! There is nothing to read twice here, so each page is written as its frame comes, verified. The file is right exactly
//! when the feed stands on a commit, and only there is it finished.

use super::draft::Draft;
use super::fold::{FoldError, Folded};
use crate::format::FormatError;
use crate::format::wal::{FIRST_FRAME, FRAME_HEADER_LEN, HEADER_LEN, WalHeader, WalStart};
use crate::offset::{BytePos, Offset};
use crate::segment::frames::{FrameError, frame_at};

/// Base first, then the log from its header on. The header comes again wherever a segment starts.
pub(super) struct Feed {
    draft: Draft,
    to: Option<Offset>,
    from: Option<WalStart>,
    head: [u8; HEADER_LEN],
    /// First frame of the segment under way, as the headers between tell.
    segment: Offset,
    next: Offset,
    /// The last commit frame, and the size it says.
    end: Offset,
    size: Option<u32>,
    /// A frame whose checksum is to be compared, and the checksum once it was received.
    watched: Option<(Offset, Option<u64>)>,
    /// The start of a frame whose end is still to come.
    rest: Vec<u8>,
}

impl Feed {
    /// Up to frame `to`, or the last.
    pub(super) fn new(draft: Draft, to: Option<Offset>) -> Feed {
        let (from, head, rest) = (None, [0; HEADER_LEN], Vec::new());
        let (segment, next, end) = (FIRST_FRAME, FIRST_FRAME, Offset(0));
        Feed { draft, to, from, head, segment, next, end, size: None, watched: None, rest }
    }

    /// The same, keeping the checksum of this frame for [`watched`](Self::watched).
    pub(super) fn watching(self, frame: Option<Offset>) -> Feed {
        Feed { watched: frame.map(|frame| (frame, None)), ..self }
    }

    /// The frame that is watched and its checksum, once it was received.
    pub(super) fn watched(&self) -> Option<(Offset, u64)> {
        let (frame, found) = self.watched?;
        Some((frame, found?))
    }

    /// The next bytes of the base.
    pub(super) fn base(&mut self, bytes: &[u8]) -> Result<(), FoldError> {
        Ok(self.draft.append_base(bytes)?)
    }

    /// Whether no more frames are needed.
    pub(super) fn reached(&self) -> bool {
        self.to.is_some_and(|to| to <= self.end)
    }

    /// The next bytes of the log.
    pub(super) fn log(&mut self, bytes: &[u8]) -> Result<(), FoldError> {
        if self.rest.is_empty() {
            let used = self.units(bytes)?;
            self.rest.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let used = self.units(&all)?;
        all.drain(..used);
        self.rest = all;
        Ok(())
    }

    /// The log is over, or as far as it was asked for.
    pub(super) fn finish(&mut self) -> Result<Folded, FoldError> {
        if !self.reached() {
            let unfinished = self.next.0 - self.end.0 - 1;
            if unfinished > 0 || !self.rest.is_empty() {
                let frame_len = self.from.map_or(0, |from| from.header.frame_len());
                let (segment, frame, at) = (self.segment, self.next, self.at());
                let trailing = unfinished * frame_len + self.rest.len() as u64;
                return Err(self.damaged(FrameError::Cut { segment, frame, at, trailing }));
            }
            if let Some(frame) = self.to {
                return Err(FoldError::NotACommit { frame, before: self.end, after: None });
            }
        }
        let bytes = self.draft.finish(self.size)?;
        let page_size = self.from.map(|from| from.header.page_size);
        Ok(Folded { frame: self.end, page_size, bytes, torn: 0 })
    }

    /// What was written so far.
    pub(super) fn into_draft(self) -> Draft {
        self.draft
    }

    /// Takes in what is whole; returns how many bytes that were.
    fn units(&mut self, bytes: &[u8]) -> Result<usize, FoldError> {
        let mut used = 0;
        while let Some(first) = bytes[used..].first_chunk::<HEADER_LEN>()
            && !self.reached()
        {
            let Some(from) = self.from else {
                let header = WalHeader::decode(first).map_err(|error| self.corrupt(error))?;
                (self.from, self.head) = (Some(WalStart::first(header)), *first);
                self.draft.base_done(header.page_size)?;
                used += HEADER_LEN;
                continue;
            };
            if *first == self.head && self.next.0 == self.end.0 + 1 {
                self.segment = self.next;
                used += HEADER_LEN;
                continue;
            }
            let unit = bytes[used..].get(..from.header.frame_len() as usize);
            let Some((head, page)) = unit.and_then(|unit| unit.split_first_chunk::<FRAME_HEADER_LEN>()) else {
                break;
            };
            let claim = from.header.check(from.chain, head, page).map_err(|error| self.corrupt(error))?;
            let number = self.next;
            if claim.size != 0 && self.to.is_some_and(|to| to < number) {
                let frame = self.to.unwrap_or_default();
                return Err(FoldError::NotACommit { frame, before: self.end, after: Some(number) });
            }
            self.draft.write(claim.page, page)?;
            self.from = Some(WalStart { chain: claim.chain, ..from });
            if let Some((_, found)) = self.watched.as_mut().filter(|(frame, _)| *frame == number) {
                *found = Some(claim.chain.number());
            }
            self.next = Offset(number.0 + 1);
            if claim.size != 0 {
                (self.end, self.size) = (number, Some(claim.size));
            }
            used += from.header.frame_len() as usize;
        }
        Ok(if self.reached() { bytes.len() } else { used })
    }

    fn at(&self) -> BytePos {
        self.from.map_or(BytePos(0), |from| frame_at(self.segment, &from.header, self.next))
    }

    fn corrupt(&self, error: FormatError) -> FoldError {
        self.damaged(FrameError::Corrupt { segment: self.segment, frame: self.next, at: self.at(), error })
    }

    fn damaged(&self, error: FrameError) -> FoldError {
        FoldError::Damaged { error, last: self.end }
    }
}
