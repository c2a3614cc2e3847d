//! What can be wrong with a log on disk, and where.

use std::fmt;

use crate::format::FormatError;
use crate::offset::{BytePos, Epoch, Offset};

/// How a segment ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// Right behind its last commit.
    #[default]
    Clean,
    /// In zeros: preallocated space, not damage.
    Zeros {
        /// How many bytes from the last commit to the end of the file.
        bytes: u64,
    },
    /// In bytes that are no whole commit, with nothing sound behind them: what a crash leaves.
    Torn {
        /// How many bytes.
        bytes: u64,
    },
}

/// A fault in a log on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Start of the segment it is in.
    pub segment: Offset,
    /// The offset that should have come there.
    pub offset: Offset,
    /// Where in the segment.
    pub at: BytePos,
    /// What it is.
    pub kind: FaultKind,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Bytes that are not what they claim to be, and not the end of the log either.
    Format(FormatError),
    /// A commit that claims to be longer than a commit may be or than the rest of the segment.
    Length {
        /// The length it claims for its records.
        len: u64,
    },
    /// A commit that is cut although it was durable, or although sound commits follow it.
    Cut,
    /// A segment header where a commit should be.
    Header,
    /// Commits are missing.
    Gap {
        /// What comes instead of [`Fault::offset`].
        found: Offset,
    },
    /// A commit that goes back: its offset was there before with other content.
    Fork {
        /// Its offset.
        found: Offset,
    },
    /// The term of the writer falls.
    StaleEpoch {
        /// The epoch before.
        current: Epoch,
        /// The epoch of the commit.
        found: Epoch,
    },
    /// The last segment ends in torn bytes. Trimming them is safe.
    Torn {
        /// How many.
        bytes: u64,
    },
    /// Commits that were durable once are gone from the end of the log.
    Lost {
        /// The offset up to which it was durable.
        durable: Offset,
    },
    /// The segments that a mirror began with are gone.
    Missing {
        /// Where what is left starts; [`Fault::offset`] is where the mirror began.
        found: Offset,
    },
    /// A whole commit is there twice, in a log that nobody but us writes.
    Repeat {
        /// Its offset.
        found: Offset,
    },
    /// A sealed segment does not decompress.
    Sealed {
        /// What the decoder says.
        text: String,
    },
}

impl FaultKind {
    /// One word for it, as in the errors of the API.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            FaultKind::Format(_)
            | FaultKind::Length { .. }
            | FaultKind::Cut
            | FaultKind::Header
            | FaultKind::Sealed { .. } => "corrupt",
            FaultKind::Gap { .. } => "gap",
            FaultKind::Fork { .. } => "fork",
            FaultKind::StaleEpoch { .. } => "stale-epoch",
            FaultKind::Torn { .. } => "torn",
            FaultKind::Lost { .. } => "lost",
            FaultKind::Missing { .. } => "missing",
            FaultKind::Repeat { .. } => "repeat",
        }
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { segment, offset, at, kind } = self;
        match kind {
            FaultKind::Format(error) => write!(f, "{error} at offset {offset}")?,
            FaultKind::Length { len } => {
                write!(f, "commit length {len} runs past the end of the segment at offset {offset}")?;
            }
            FaultKind::Cut => write!(
                f,
                "the commit at offset {offset} is cut, and was whole: it was durable, or sound commits follow it"
            )?,
            FaultKind::Header => write!(f, "segment header in the middle of a segment at offset {offset}")?,
            FaultKind::Lost { durable } => {
                write!(f, "the log ends at offset {offset}, but was durable up to {durable}")?;
            }
            FaultKind::Gap { found } => write!(f, "expected offset {offset}, found {found}")?,
            FaultKind::Fork { found } => write!(f, "offset {found} comes again with other content, expected {offset}")?,
            FaultKind::StaleEpoch { current, found } => {
                write!(f, "epoch falls from {current} to {found} at offset {offset}")?;
            }
            FaultKind::Missing { found } => {
                write!(f, "offsets {offset} to {found} are missing: the log began at offset {offset}")?;
            }
            FaultKind::Repeat { found } => write!(f, "the commit at offset {found} is there twice")?,
            FaultKind::Torn { bytes } => write!(f, "{bytes} torn bytes behind offset {offset}")?,
            FaultKind::Sealed { text } => write!(f, "{text} at offset {offset}")?,
        }
        write!(f, " (segment {segment}, byte {at})")
    }
}
