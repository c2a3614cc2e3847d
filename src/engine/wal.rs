//! [`Wal`]: the `-wal` file that an engine sees. Its front are the frames of the log, its end what the engine has written and
//! the log does not hold yet.
//!
//! A log's segments are one SQLite WAL in pieces, so the engine's frames go on from ours byte for byte: with our salts and
//! in our chain of checksums. What it commits is appended to the log as it is.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN};
use crate::limits::{LIBSQL_PAGE_SIZE, OPEN_SEGMENTS_MAX};
use crate::mirror::Log;
use crate::offset::Offset;
use crate::repo::RepoFile;
use crate::segment::frames::segment_name;
use crate::sqlite::wal_frames::committed_frames;

/// Bytes of a frame.
pub(super) const FRAME_LEN: usize = FRAME_HEADER_LEN + LIBSQL_PAGE_SIZE as usize;

pub(super) struct Wal {
    log: Arc<Log>,
    written: Mutex<Written>,
    files: Mutex<BTreeMap<Offset, Arc<dyn RepoFile>>>,
    /// Most bytes that are kept of one transaction.
    transaction_max: u64,
}

/// Where the log's part of the file ends, and what stands behind it.
#[derive(Default)]
struct Written {
    /// The header, once the log has one; until then it is part of the tail.
    header: Option<[u8; HEADER_LEN]>,
    /// How many frames of the log the engine knows.
    known: u64,
    tail: Vec<u8>,
}

/// Commits of the engine that the log does not hold.
pub(super) struct Pending {
    /// The frame after which they come, if the log has any header.
    pub(super) behind: Option<Offset>,
    /// The header if the log has none, and frames.
    pub(super) bytes: Bytes,
    frames: u64,
}

impl Written {
    /// Where the tail begins.
    fn base(&self) -> u64 {
        self.header.map_or(0, |_| HEADER_LEN as u64 + self.known * FRAME_LEN as u64)
    }

    /// Where the frames of the tail begin in it.
    fn first_frame(&self) -> usize {
        if self.header.is_some() { 0 } else { HEADER_LEN }
    }

    /// The bytes of the tail up to the last frame in it that ends a transaction, and how many frames these are.
    fn committed(&self) -> (usize, u64) {
        let first = self.first_frame();
        match committed_frames(self.tail.get(first..).unwrap_or(&[]), LIBSQL_PAGE_SIZE) {
            0 => (0, 0),
            frames => (first + frames * FRAME_LEN, frames as u64),
        }
    }
}

impl Wal {
    /// Of a log as it is now.
    pub(super) fn of(log: Arc<Log>, transaction_max: u64) -> Wal {
        let header = log.wal_end().map(|end| end.header.encode());
        let known = log.view().durable.0.saturating_sub(1);
        let written = Written { header, known, tail: Vec::new() };
        Wal { log, written: written.into(), files: Mutex::default(), transaction_max }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many frames of the log the engine knows; none while the log was empty when the engine was opened.
    pub(super) fn known(&self) -> Option<u64> {
        let written = self.written();
        written.header.map(|_| written.known)
    }

    /// Whether so many frames are more than are kept.
    pub(super) fn is_too_much(&self, frames: u64) -> bool {
        frames.saturating_mul(FRAME_LEN as u64) > self.transaction_max
    }

    pub(super) fn bytes(&self) -> u64 {
        let written = self.written();
        written.base() + written.tail.len() as u64
    }

    /// Reads into `buf` from `at`; fewer bytes than asked for only at the end.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut read = 0;
        let base = {
            let written = self.written();
            let (base, len) = (written.base(), buf.len() as u64);
            if at + len > base {
                let from = at.max(base);
                let there = written.tail.get((from - base) as usize..).unwrap_or(&[]);
                let wanted = &mut buf[(from - at) as usize..];
                read = there.len().min(wanted.len());
                wanted[..read].copy_from_slice(&there[..read]);
            }
            if at < HEADER_LEN as u64
                && let Some(header) = written.header
            {
                let header = &header[at as usize..];
                let count = header.len().min(buf.len());
                buf[..count].copy_from_slice(&header[..count]);
            }
            base
        };
        // What the log holds does not change.
        let end = base.min(at + buf.len() as u64);
        let mut pos = at.max(HEADER_LEN as u64);
        while pos < end {
            let count = self.read_log(&mut buf[(pos - at) as usize..(end - at) as usize], pos)?;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the log is shorter than it was"));
            }
            pos += count as u64;
        }
        Ok(read + end.saturating_sub(at) as usize)
    }

    /// Reads frames of the log, as far as one segment holds them.
    fn read_log(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        let behind_header = pos - HEADER_LEN as u64;
        let frame = Offset(behind_header / FRAME_LEN as u64 + 1);
        let Some(segment) = self.log.watch().borrow().segment_of(frame) else {
            return Ok(0);
        };
        let start = (segment.start.0 - 1) * FRAME_LEN as u64;
        let at = HEADER_LEN as u64 + behind_header.saturating_sub(start);
        let there = usize::try_from(segment.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let count = buf.len().min(there);
        self.file(segment.start)?.read_at(&mut buf[..count], at)
    }

    fn file(&self, start: Offset) -> io::Result<Arc<dyn RepoFile>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&start) {
            return Ok(file.clone());
        }
        if files.len() >= OPEN_SEGMENTS_MAX {
            files.clear();
        }
        let file = self.log.repo().open(&segment_name(start))?;
        files.insert(start, file.clone());
        Ok(file)
    }

    /// Takes what the engine writes at `at`. Frames of the log are not changed by it.
    pub(super) fn write<'a>(&self, slices: impl Iterator<Item = &'a [u8]>, at: u64) -> io::Result<usize> {
        let mut written = self.written();
        let Some(mut at) = at.checked_sub(written.base()).map(|at| at as usize) else {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the log is only appended to"));
        };
        let begun = at;
        if at as u64 > self.transaction_max {
            let text = format!(
                "a transaction of more than {} bytes, the most that the SQL engine takes (it is less with a lower \
                 --commit-bytes-max): write it in several, or with SQLite or a libSQL client",
                self.transaction_max
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        for slice in slices {
            let end = at + slice.len();
            if written.tail.len() < end {
                written.tail.resize(end, 0);
            }
            written.tail[at..end].copy_from_slice(slice);
            at = end;
        }
        Ok(at - begun)
    }

    /// Cuts what the engine has written.
    pub(super) fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut written = self.written();
        match bytes.checked_sub(written.base()) {
            Some(bytes) => written.tail.truncate(bytes as usize),
            None => return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the log is only appended to")),
        }
        Ok(())
    }

    /// What the engine has committed and the log does not hold. Nobody may be committing meanwhile.
    pub(super) fn pending(&self) -> Option<Pending> {
        let written = self.written();
        let (bytes, frames) = written.committed();
        let behind = written.header.map(|_| Offset(written.known + 1));
        (frames > 0).then(|| Pending { behind, bytes: Bytes::copy_from_slice(&written.tail[..bytes]), frames })
    }

    /// Whether there is any.
    pub(super) fn has_pending(&self) -> bool {
        self.written().committed().1 > 0
    }

    /// Takes note that the log holds what was pending.
    pub(super) fn hold(&self, pending: &Pending) {
        let mut written = self.written();
        if written.header.is_none() {
            written.header = pending.bytes.first_chunk().copied();
        }
        written.known += pending.frames;
        written.tail.drain(..pending.bytes.len());
        written.tail.shrink_to(FRAME_LEN * 16);
    }

    /// Takes note that the engine knows the frames of the log up to `last`, which it has just written again; false when
    /// what it wrote is not what the log has.
    pub(super) fn absorb(&self, last: u64, stored: &FrameHeader) -> bool {
        let mut written = self.written();
        let bytes = last.saturating_sub(written.known) as usize * FRAME_LEN;
        let head = bytes.checked_sub(FRAME_LEN).and_then(|at| written.tail.get(at..)?.first_chunk());
        let same = written.header.is_some() && head.is_some_and(|head| FrameHeader::decode(head) == *stored);
        if same {
            written.tail.drain(..bytes);
            written.known = last;
        }
        same
    }
}
