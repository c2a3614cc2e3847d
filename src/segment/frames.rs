//! The frames of a WAL segment, read from a repo and verified one by one.
//!
//! A segment is the generation's WAL header and the frames from its start on ([`format::wal`](crate::format::wal) draws
//! them), so frame `n` of the segment that starts at `s` stands at byte `32 + (n - s) * (24 + page size)`. Its checksum
//! goes on from the frame before, which may be the last of another segment: a walk starts from a [`WalStart`].

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader, WalStart};
use crate::format::{FormatError, LogFormat, name};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Offset};
use crate::repo::{Repo, RepoFile};

/// The database at the start of a generation. One that is not there is empty.
pub use crate::format::name::BASE;

/// Name of the segment whose first frame is `start`.
#[must_use]
pub fn segment_name(start: Offset) -> String {
    name::segment(LogFormat::Wal, start)
}

/// The first frame of the segment of that name.
#[must_use]
pub fn parse_segment_name(file: &str) -> Option<Offset> {
    name::parse_segment(file).filter(|(format, _)| *format == LogFormat::Wal).map(|(_, start)| start)
}

/// The first frames of all WAL segments in `repo`, ascending.
///
/// # Errors
/// When the directory cannot be read.
pub fn segment_starts(repo: &dyn Repo) -> io::Result<Vec<Offset>> {
    let mut starts: Vec<Offset> = repo.list()?.iter().filter_map(|name| parse_segment_name(name)).collect();
    starts.sort_unstable();
    Ok(starts)
}

/// Why a walk over frames stops, and where.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The segment cannot be read.
    #[error("segment {segment} cannot be read: {error}")]
    Io {
        /// Its first frame.
        segment: Offset,
        /// Why not.
        error: io::Error,
    },
    /// What stands there is not the frame, or the header, that must.
    #[error("{error} at frame {frame} (segment {segment}, byte {at})")]
    Corrupt {
        /// First frame of the segment.
        segment: Offset,
        /// The frame that should have come.
        frame: Offset,
        /// Where in the segment.
        at: BytePos,
        /// What is wrong.
        error: FormatError,
    },
    /// The segment ends inside a frame or its header.
    #[error("frame {frame} is cut after {trailing} bytes (segment {segment}, byte {at})")]
    Cut {
        /// First frame of the segment.
        segment: Offset,
        /// The frame that was cut.
        frame: Offset,
        /// Where in the segment it starts.
        at: BytePos,
        /// Bytes from there to the end.
        trailing: u64,
    },
}

impl FrameError {
    /// The frame that should have come, unless the disk is at fault.
    #[must_use]
    pub fn frame(&self) -> Option<Offset> {
        match self {
            FrameError::Io { .. } => None,
            FrameError::Corrupt { frame, .. } | FrameError::Cut { frame, .. } => Some(*frame),
        }
    }
}

/// A verified frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub number: Offset,
    /// The page it holds, from 1.
    pub page: u32,
    /// Pages of the database if it ends a commit, else 0.
    pub size: u32,
    /// The checksum that it goes on from.
    pub before: Chain,
}

/// What a walk over the segment that starts at `start` goes on from: its header, and the stored checksum of the frame
/// before it. The walk itself finds out if that is wrong.
///
/// # Errors
/// When the header cannot be read or the frame before is not there.
pub fn start_of(repo: &dyn Repo, start: Offset, first: Offset) -> Result<WalStart, FrameError> {
    let header = Frames::open(repo, start, None)?.from.header;
    if start <= first {
        return Ok(WalStart::first(header));
    }
    let io = |error| FrameError::Io { segment: start, error };
    let starts = segment_starts(repo).map_err(io)?;
    let before = starts.into_iter().rfind(|other| *other < start).unwrap_or(start);
    let file = repo.open(&segment_name(before)).map_err(io)?;
    let at = frame_at(before, &header, Offset(start.0 - 1));
    let head = read_head(&*file, at).map_err(io)?;
    let head = head.filter(|_| before < start).ok_or_else(|| {
        let missing = io::Error::new(io::ErrorKind::NotFound, format!("frame {} before it is missing", start.0 - 1));
        io(missing)
    })?;
    Ok(WalStart { header, chain: head.chain })
}

/// Where `frame` stands in the segment that starts at `start`, which must not be behind it.
#[must_use]
pub fn frame_at(start: Offset, header: &WalHeader, frame: Offset) -> BytePos {
    BytePos(header.byte_after(frame.0.saturating_sub(start.0)))
}

/// The claims of the frame at `at`; `None` when the file ends before.
///
/// # Errors
/// When the file cannot be read.
pub fn read_head(file: &dyn RepoFile, at: BytePos) -> io::Result<Option<FrameHeader>> {
    let mut head = [0; FRAME_HEADER_LEN];
    let whole = file.read_at(&mut head, at.0)? == head.len();
    Ok(whole.then(|| FrameHeader::decode(&head)))
}

/// A walk over the frames of one segment. It reads what is there when it gets there, so a segment may grow meanwhile.
pub struct Frames {
    file: Arc<dyn RepoFile>,
    segment: Offset,
    /// Header of the log, and the checksum before `next`.
    from: WalStart,
    next: Offset,
    /// Where that stands.
    at: BytePos,
    /// Whole frames and perhaps a part of one, of which `used` bytes were handed out.
    block: Vec<u8>,
    filled: usize,
    used: usize,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("segment", &self.segment).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Frames {
    /// Opens the segment that starts at `segment`, which must have the header of `from` and goes on from its checksum.
    /// Without it, the segment is the first of its log.
    ///
    /// # Errors
    /// When there is none, or its header is cut, damaged or another one.
    pub fn open(repo: &dyn Repo, segment: Offset, from: Option<WalStart>) -> Result<Frames, FrameError> {
        let io = |error| FrameError::Io { segment, error };
        let file = repo.open(&segment_name(segment)).map_err(io)?;
        let mut head = [0; HEADER_LEN];
        let count = file.read_at(&mut head, 0).map_err(io)?;
        if count < HEADER_LEN {
            return Err(FrameError::Cut { segment, frame: segment, at: BytePos(0), trailing: count as u64 });
        }
        let corrupt = |error| FrameError::Corrupt { segment, frame: segment, at: BytePos(0), error };
        if head == [0; HEADER_LEN] {
            return Err(corrupt(FormatError::Zeros));
        }
        let header = WalHeader::decode(&head).map_err(corrupt)?;
        let from = from.unwrap_or_else(|| WalStart::first(header));
        if header.salts != from.header.salts {
            return Err(corrupt(FormatError::Restarted { salts: from.header.salts, found: header.salts }));
        }
        if header != from.header {
            return Err(corrupt(FormatError::Header { found: head.to_vec() }));
        }
        let frame_len = header.frame_len() as usize;
        let block = vec![0; (READ_BLOCK / frame_len).max(1) * frame_len];
        Ok(Frames { file, segment, from, next: segment, at: BytePos(HEADER_LEN as u64), block, filled: 0, used: 0 })
    }

    /// Header of the log and the checksum up to here.
    #[must_use]
    pub fn from(&self) -> WalStart {
        self.from
    }

    /// Number of the frame that comes next.
    #[must_use]
    pub fn next_number(&self) -> Offset {
        self.next
    }

    /// The next frame and its page, verified; `None` at the end of the segment.
    ///
    /// # Errors
    /// When what stands there is not the next frame. Asked again, it looks again.
    #[allow(clippy::should_implement_trait, reason = "the page is lent")]
    pub fn next(&mut self) -> Result<Option<(Frame, &[u8])>, FrameError> {
        let (segment, number, at, WalStart { header, chain: before }) = (self.segment, self.next, self.at, self.from);
        let frame_len = header.frame_len() as usize;
        if self.filled - self.used < frame_len {
            self.used = 0;
            self.filled = 0;
            let read = self.file.read_at(&mut self.block, at.0);
            self.filled = read.map_err(|error| FrameError::Io { segment, error })?;
        }
        let bytes = &self.block[self.used..self.filled];
        if bytes.is_empty() {
            return Ok(None);
        }
        let corrupt = |error| FrameError::Corrupt { segment, frame: number, at, error };
        let unit = bytes.get(..frame_len).and_then(|unit| unit.split_first_chunk::<FRAME_HEADER_LEN>());
        let Some((head, page)) = unit else {
            return Err(FrameError::Cut { segment, frame: number, at, trailing: bytes.len() as u64 });
        };
        let claim = header.check(before, head, page).map_err(corrupt)?;
        let overflow = || corrupt(FormatError::OffsetOverflow { first: number, entries: 1 });
        self.next = Offset(number.0.checked_add(1).ok_or_else(overflow)?);
        self.from.chain = claim.chain;
        self.at = at.plus(frame_len as u64);
        self.used += frame_len;
        Ok(Some((Frame { number, page: claim.page, size: claim.size, before }, page)))
    }

    /// Whether a sound transaction comes after the next frame, which is not sound. See [`WalHeader::sound_run`].
    ///
    /// # Errors
    /// When the segment cannot be read.
    pub fn sound_behind(&self) -> Result<bool, FrameError> {
        let header = self.from.header;
        let found = header.sound_run(self.next.0 - self.segment.0..u64::MAX, |buf, at| self.file.read_at(buf, at));
        found.map(|run| run.is_some()).map_err(|error| FrameError::Io { segment: self.segment, error })
    }

    /// Bytes of the segment from byte `at` on.
    ///
    /// # Errors
    /// When the segment cannot be asked.
    pub fn bytes_from(&self, at: BytePos) -> Result<u64, FrameError> {
        let bytes = self.file.bytes().map_err(|error| FrameError::Io { segment: self.segment, error })?;
        Ok(bytes.saturating_sub(at.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_names_read_back_and_nothing_else_does() {
        for start in [1, 360, u64::MAX] {
            assert_eq!(parse_segment_name(&segment_name(Offset(start))), Some(Offset(start)));
        }
        assert_eq!(segment_name(Offset(333)), "00000000000000000333.wal");
        for foreign in ["333.wal", "app.db-wal", "+0000000000000000333.wal", "99999999999999999999.wal", "base.db"] {
            assert_eq!(parse_segment_name(foreign), None, "{foreign}");
        }
    }
}
