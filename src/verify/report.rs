//! What a verification found, as it is shown and as it goes out as JSON.

use serde::{Deserialize, Serialize};

use crate::offset::{BytePos, Epoch, Offset};
use crate::stream::Fault;

/// What a verification found. The totals are those of the contiguous, sound beginning of the log: up to its end, or to
/// the first fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The first offset; `None` when there is no segment.
    pub first: Option<Offset>,
    /// The offset right after the last commit.
    pub next: Offset,
    /// How many commits.
    pub commits: u64,
    /// How many entries they hold.
    pub entries: u64,
    /// Bytes of segments up to their last commits, uncompressed.
    pub bytes: u64,
    /// Term of the last commit.
    pub epoch: Epoch,
    /// The base that a WAL starts from, read as far as it is there; none where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseReport>,
    /// Every segment there is, also behind a fault.
    pub segments: Vec<SegmentReport>,
    /// Torn bytes at the end of the last segment, which a crash leaves and which may be trimmed.
    pub trailing: Option<u64>,
    /// The message of the first fault.
    pub error: Option<String>,
    /// Everything that is wrong, in the order of the log.
    pub faults: Vec<FoundFault>,
    /// What is worth knowing and does no harm.
    pub notes: Vec<Note>,
}

impl Report {
    /// Whether nothing at all is wrong, not even a torn end.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty() && self.trailing.is_none()
    }
}

/// The database before the first segment of a WAL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseReport {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, as it was read.
    pub sha256: String,
    /// Whether nothing says what it was before its checksums were made, or it has none.
    pub unproven: bool,
    /// How many pages SQLite sees in it; none where that is not known.
    pub pages: Option<u32>,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentReport {
    /// Its first offset, by its name.
    pub start: Offset,
    /// The offset right after the last sound commit in it.
    pub end: Offset,
    /// How many sound commits it holds, those behind a fault included.
    pub commits: u64,
    /// Where the last of them ends, uncompressed.
    pub bytes: u64,
    /// Version of the format.
    pub version: u32,
    /// Whether the file is compressed.
    pub compressed: bool,
    /// How many entries its offset index has; `None` when it has no index.
    pub index_entries: Option<u64>,
}

/// One fault and its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundFault {
    /// Start of the segment it is in.
    pub segment: Offset,
    /// The offset that should have come there.
    pub offset: Offset,
    /// Where in the segment, uncompressed.
    pub at: BytePos,
    /// One word for it: `corrupt`, `gap`, `fork`, `stale-epoch`, `lost`; `base` for one of the base, of which `at` is a byte.
    pub code: String,
    /// All of it in words.
    pub message: String,
}

impl FoundFault {
    /// The code of a fault of the base.
    pub const BASE: &str = "base";
}

impl From<&Fault> for FoundFault {
    fn from(fault: &Fault) -> Self {
        let Fault { segment, offset, at, ref kind } = *fault;
        FoundFault { segment, offset, at, code: kind.code().to_owned(), message: fault.to_string() }
    }
}

/// Something that is not as usual and no fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Start of the segment it is about.
    pub segment: Offset,
    /// What it is.
    pub message: String,
}
