//! What an append did, and why it may have stopped.

use std::sync::Arc;

use super::batch::BatchError;
use super::claim::ForeignWrite;
use super::fault::Fault;
use crate::format::ScanError;
use crate::offset::{Epoch, Offset};

/// Why an append stopped. Everything before the offending commit is kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The stream is not a sound log.
    #[error(transparent)]
    Stream(#[from] ScanError),
    /// A large commit cannot be read where it is kept, or is another one there now. It may be sent again.
    #[error("cannot read the commit at offset {at} where it is kept: {reason}")]
    Unread {
        /// Its offset.
        at: Offset,
        /// Why not.
        reason: Arc<str>,
    },
    /// There is no space to keep a large commit until it is whole. It may be sent again.
    #[error("{0}")]
    Spool(BatchError),
    /// The stream starts with a commit, and there is no open segment of its version to put it into.
    #[error("no segment is open for the commit at offset {found}: a segment header must come first")]
    NoHeader {
        /// The commit's offset.
        found: Offset,
    },
    /// Commits are missing between the log and the stream.
    #[error("expected offset {expected}, found {found}")]
    Gap {
        /// Where the log ends.
        expected: Offset,
        /// Where the stream goes on.
        found: Offset,
    },
    /// The stream starts before the log does.
    #[error("offset {found} is before the start of the log, {first}")]
    Pruned {
        /// The first offset of the log.
        first: Offset,
        /// Where the stream starts.
        found: Offset,
    },
    /// The stream has another commit at an offset the log holds.
    #[error("the commit at offset {at} is not the one the log holds")]
    Fork {
        /// The offset.
        at: Offset,
    },
    /// The term of the writer falls.
    #[error("epoch falls from {current} to {found} at offset {at}")]
    StaleEpoch {
        /// Where.
        at: Offset,
        /// The log's.
        current: Epoch,
        /// The commit's.
        found: Epoch,
    },
    /// The log's own commits, needed for a comparison, are damaged.
    #[error("{0}")]
    Damaged(Fault),
    /// Another process writes the same directory. It was left as found.
    #[error(
        "{file}: written by another process since ({found}): the mirror stopped and changed nothing; if that process is to go \
         on, mirror into another directory, else stop it and restore this one or mirror into a new one"
    )]
    Foreign {
        /// The segment's file.
        file: String,
        /// What shows it.
        found: ForeignWrite,
    },
    /// A write, a sync or a read of our own failed, now or before. The log must be reopened, which recovers it.
    #[error("{cause}")]
    Poisoned {
        /// What failed.
        cause: Arc<str>,
    },
}

impl From<BatchError> for AppendError {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Stream(error) => AppendError::Stream(error),
            error @ BatchError::Spool { .. } => AppendError::Spool(error),
        }
    }
}

/// What appends did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Commits stored.
    pub commits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Commits that were there already, with the same checksum.
    pub skipped: u64,
}

/// Told after each batch of commits is handed to the operating system.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Commits in the batch.
    pub commits: u64,
    /// Bytes in the batch.
    pub bytes: u64,
    /// The offset after the last commit stored.
    pub next: Offset,
    /// The offset after the last commit known durable.
    pub durable: Offset,
}
