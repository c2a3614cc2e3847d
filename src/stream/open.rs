//! How a log is opened for writing, and why it may not be.

use std::io;

use super::fault::Fault;
use super::recover::SurveyError;
use crate::format::LogFormat;
use crate::limits::{COMMIT_BYTES_MAX, COMMIT_HELD_MAX, WAL_SEGMENT_BYTES};
use crate::offset::Offset;

/// What to do with torn bytes at the end of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTrailing {
    /// Refuse to open.
    #[default]
    Error,
    /// Cut them off. Anything that is not a torn end is refused all the same.
    Trim,
}

/// How to open a log for writing.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What to do with torn bytes at the end.
    pub on_trailing: OnTrailing,
    /// The format of an empty log; a log that is there says itself.
    pub format: LogFormat,
    /// Largest commit taken.
    pub commit_bytes_max: u64,
    /// Bytes of a commit that [`StreamWriter::append`](super::StreamWriter::append) holds in memory until it is whole.
    pub commit_held_max: u64,
    /// From this length on a segment of a WAL is followed by another. A commitlog rotates where its source did.
    pub segment_bytes_max: u64,
    /// The offset an empty log starts with; `None` takes it from the first commit that comes.
    pub first: Option<Offset>,
    /// An offset up to which the caller knows the log to be durable: a log that ends before it is refused, as one that
    /// ends before its durable mark is.
    pub durable: Option<Offset>,
    /// Whether to keep a durable mark beside the segments. It makes recovery certain where the shape of the damage
    /// would have to be interpreted; a directory that must hold nothing but SpacetimeDB's files goes without.
    pub durable_mark: bool,
    /// Whether the log is known to have had a durable mark: then one that is missing or empty is damage.
    pub durable_mark_expected: bool,
    /// Whether what is durable need not stay in the page cache: for a copy that nobody reads at once. It leaves the
    /// memory to those who need it, and is written into the same few pages over and over.
    pub forget: bool,
    /// Whether a sync fails when the segment is not in the directory under its name any more. Nothing is acknowledged then
    /// that a restart would not find.
    pub in_place: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            on_trailing: OnTrailing::Error,
            format: LogFormat::default(),
            commit_bytes_max: COMMIT_BYTES_MAX,
            commit_held_max: COMMIT_HELD_MAX,
            segment_bytes_max: WAL_SEGMENT_BYTES,
            first: None,
            durable: None,
            durable_mark: false,
            durable_mark_expected: false,
            forget: false,
            in_place: false,
        }
    }
}

/// Why a log cannot be opened for writing. Nothing was changed, but after [`Io`](OpenError::Io): torn bytes may have been cut
/// and set aside then, and what was not known to be durable written again. No commit is lost by that.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another writer has it.
    #[error("{place} is in use by another writer")]
    Locked {
        /// Where it is.
        place: String,
    },
    /// Its last segment ends in torn bytes and trimming was not asked for.
    #[error("{0}; trimming would remove them")]
    Torn(Fault),
    /// It is damaged.
    #[error("{0}")]
    Damaged(Fault),
    /// Commits that were durable once are gone.
    #[error("the log ends at offset {next}, but was durable up to {durable}")]
    Lost {
        /// Where it ends.
        next: Offset,
        /// What the durable mark says.
        durable: Offset,
    },
    /// The durable mark is missing or damaged: up to where the log was durable is not known.
    #[error("the durable mark {path} {what}")]
    Mark {
        /// Its file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A mirror's directory changed after it was compared with the source.
    #[error("{place} was written by another process while it was compared with the source: nothing was changed")]
    Changed {
        /// Where it is.
        place: String,
    },
    /// The files cannot be used.
    #[error("cannot open the log")]
    Io(#[from] io::Error),
}

impl From<SurveyError> for OpenError {
    fn from(error: SurveyError) -> Self {
        match error {
            SurveyError::Damaged(fault) => OpenError::Damaged(fault),
            SurveyError::Io(error) => OpenError::Io(error),
        }
    }
}
