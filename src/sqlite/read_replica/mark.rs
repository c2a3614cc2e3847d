//! [`StateMark`]: what a read replica looked like when it was written last, to notice that it was written by others since.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::super::wal_index::IndexHeader;
use crate::format::wal::FrameHeader;

/// Which state the files of a [`ReadReplicaFile`](super::ReadReplicaFile) are in. The caller keeps it beside its own position in
/// the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMark {
    device: u64,
    inode: u64,
    bytes: u64,
    /// When the database file was modified: seconds, and nanoseconds that are random unless another program wrote it.
    modified: (i64, i64),
    /// Frames of the WAL; where there are none, what follows is 0.
    frames: u64,
    salts: [u32; 2],
    chain: u64,
}

impl StateMark {
    pub(super) fn of(database: &Metadata, wal: &IndexHeader) -> StateMark {
        let (salts, chain) = if wal.frames > 0 { (wal.salts, wal.chain.number()) } else { ([0; 2], 0) };
        StateMark {
            device: database.dev(),
            inode: database.ino(),
            bytes: database.len(),
            modified: (database.mtime(), database.mtime_nsec()),
            frames: wal.frames,
            salts,
            chain,
        }
    }
}

impl StateMark {
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether the file system keeps times that say whether a file was written: some have whole seconds only.
    pub(super) fn is_exact(&self) -> bool {
        self.modified.1 != 0
    }

    /// Whether the other one has the same database file, and a WAL that may have grown from this one.
    pub(super) fn is_before(&self, other: &StateMark) -> bool {
        let file = |mark: &StateMark| (mark.device, mark.inode, mark.bytes, mark.modified);
        self.is_exact()
            && file(self) == file(other)
            && self.frames <= other.frames
            && (self.frames == 0 || self.salts == other.salts)
    }

    /// Whether its last frame is this one.
    pub(super) fn ends_with(&self, last: &FrameHeader) -> bool {
        (self.salts, self.chain) == (last.salts, last.chain.number())
    }
}

/// Whether a replica was written by another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// It was not.
    No,
    /// It may have been, or a connection that closed it put its WAL into the database file, or a crash came between a write of
    /// ours and the mark. Its pages say what it holds.
    Maybe,
}
