//! The frames of a WAL log by their numbers.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
#[cfg(feature = "turso")]
use tokio::sync::OwnedSemaphorePermit;

use super::budget::Share;
use super::error::Error;
use super::feed::Feed;
use super::log::Log;
use super::registry::Registry;
#[cfg(feature = "turso")]
use crate::block::Block;
use crate::format::Framing;
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, WalStart};
use crate::offset::{BytePos, Offset};
use crate::segment::SegmentReader;
use crate::segment::frames::{read_head, segment_name};
use crate::stream::SegmentInfo;

/// A run of bytes in one segment.
type Piece = (SegmentInfo, Range<u64>);

impl Log {
    /// How the log goes on at its durable end; `None` when it is no WAL or has no frames yet.
    #[must_use]
    pub fn wal_end(&self) -> Option<WalStart> {
        match self.view().framing {
            Framing::Wal(start) => start,
            Framing::Commitlog(_) => None,
        }
    }

    /// Where the durable frames of `range` are.
    pub(super) fn pieces(&self, range: &Range<Offset>) -> Vec<Piece> {
        let view = self.view();
        let Framing::Wal(Some(WalStart { header, .. })) = view.framing else {
            return Vec::new();
        };
        let mut pieces = Vec::new();
        for segment in view.segments() {
            let (from, to) = (range.start.max(segment.start), range.end.min(segment.end));
            if from < to {
                let at = |offset: Offset| header.byte_after(offset.0 - segment.start.0);
                pieces.push((*segment, at(from)..at(to)));
            }
        }
        pieces
    }

    /// The checksum stored with a durable frame; `None` when there is no such frame. Blocks for a small read.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn chain_at(&self, frame: Offset) -> Result<Option<WalStart>, Error> {
        let view = self.view();
        if let Framing::Wal(Some(end)) = view.framing
            && view.durable.0 == frame.0 + 1
        {
            return Ok(Some(end));
        }
        let (pieces, end) = (self.pieces(&(frame..Offset(frame.0 + 1))), self.wal_end());
        let (Some((segment, bytes)), Some(WalStart { header, .. })) = (pieces.first(), end) else {
            return Ok(None);
        };
        let mut head = [0; FRAME_HEADER_LEN];
        SegmentReader::open(&**self.repo(), segment.start)?.read_at(&mut head, BytePos(bytes.start))?;
        Ok(Some(WalStart { header, chain: FrameHeader::decode(&head).chain }))
    }

    /// The header of a durable frame; `None` when there is no such frame. Blocks for a small read.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn frame_head(&self, frame: Offset) -> Result<Option<FrameHeader>, Error> {
        let pieces = self.pieces(&(frame..Offset(frame.0.saturating_add(1))));
        let Some((segment, bytes)) = pieces.first() else {
            return Ok(None);
        };
        let file = self.repo().open(&segment_name(segment.start))?;
        let head = read_head(&*file, BytePos(bytes.start))?;
        head.map(Some).ok_or_else(|| Error::Damaged(format!("segment {} lacks frame {frame}", segment.start).into()))
    }

    /// Gives the bytes of durable frames to `take`, in pieces of any length, until it answers false. Blocks.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read_frames(&self, range: &Range<Offset>, mut take: impl FnMut(&[u8]) -> bool) -> Result<(), Error> {
        let mut block = vec![0; crate::limits::READ_BLOCK];
        for (segment, bytes) in self.pieces(range) {
            let mut reader = SegmentReader::open(&**self.repo(), segment.start)?;
            let mut at = bytes.start;
            while at < bytes.end {
                let want = block.len().min(usize::try_from(bytes.end - at).unwrap_or(usize::MAX));
                let count = reader.read_at(&mut block[..want], BytePos(at))?;
                if count == 0 {
                    let text = format!("segment {} ends at byte {at} of {}", segment.start, bytes.end);
                    return Err(Error::Damaged(text.into()));
                }
                if !take(&block[..count]) {
                    return Ok(());
                }
                at += count as u64;
            }
        }
        Ok(())
    }
}

impl Registry {
    /// The raw bytes of durable frames, and how many bytes that is.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn frames(&self, log: &Arc<Log>, range: &Range<Offset>) -> Result<Frames, Error> {
        log.intact()?;
        let mut feeds = Vec::new();
        let mut bytes = 0;
        for (segment, piece) in log.pieces(range) {
            bytes += piece.end - piece.start;
            feeds.push(self.segment(log, segment.start, piece)?);
        }
        Ok(Frames { feeds: feeds.into_iter(), feed: None, bytes })
    }

    /// Waits for a block of memory to read into, of `wanted` bytes or fewer, out of the readers' half of the budget.
    ///
    /// # Errors
    /// When nothing came free for a while.
    #[cfg(feature = "turso")]
    pub(crate) async fn block(&self, wanted: u64) -> Result<Block<OwnedSemaphorePermit>, Error> {
        self.budget.block(wanted).await
    }

    /// A share of the memory budget for `bytes` received, given back when dropped; waits until there is one.
    ///
    /// # Errors
    /// When nothing came free for a while.
    pub async fn reserve(&self, bytes: u64) -> Result<Share, Error> {
        let mut share = Share::default();
        self.cover(&mut share, bytes).await?;
        Ok(share)
    }

    /// Makes `share` cover `bytes` received; waits until that is possible.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub(crate) async fn cover(&self, share: &mut Share, bytes: u64) -> Result<(), Error> {
        self.budget.cover(share, bytes).await
    }

    /// The same without waiting, out of what may be held for long; false if it cannot be.
    pub(crate) fn try_cover(&self, share: &mut Share, bytes: u64) -> bool {
        self.budget.try_cover(share, bytes)
    }
}

/// Raw bytes of frames, without headers in between.
#[derive(Debug)]
pub struct Frames {
    feeds: std::vec::IntoIter<Feed>,
    feed: Option<Feed>,
    bytes: u64,
}

impl Frames {
    /// How many bytes come in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(feed) = &mut self.feed
                && let Some(bytes) = feed.next().await?
            {
                return Ok(Some(bytes));
            }
            self.feed = self.feeds.next();
            if self.feed.is_none() {
                return Ok(None);
            }
        }
    }
}
