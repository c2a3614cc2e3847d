//! What logs look like as bytes. Owns: headers, framing, checksums. Knows no files, no sockets, no history of a log.

pub mod commitlog;
pub mod database;
mod framing;
pub mod name;
mod scan;
pub mod wal;

pub use framing::{Framing, LogFormat, Walk};
pub use scan::{Item, ScanError, Scanner};

use std::fmt;

use crate::offset::{Epoch, Offset};

/// One log format, as the state machine that walks over its bytes.
///
/// A stream of a format is a sequence of *units*: a segment header, or a framed piece that ends with or carries a
/// checksum. One unit or several make a commit: in a commitlog a commit is one unit; in a SQLite WAL it is the run of
/// frames up to a commit frame. The scanner cuts the units out of whatever slices it is fed and hands their bytes to
/// [`absorb`](Format::absorb); a format never sees a chunk border it could mistake for an end.
pub trait Format {
    /// Longest piece [`begin`](Format::begin) may ask for.
    const HEAD_MAX: usize;

    /// What a segment header says.
    type Header: Copy + fmt::Debug + PartialEq;

    /// Decides what starts at `head`, which begins on a unit boundary and holds at least one byte.
    ///
    /// Asks for more with [`Begin::Need`] while it cannot tell; what it asks for never exceeds the unit.
    ///
    /// # Errors
    /// When no unit of this format starts here, or one that we refuse. Nothing of it was taken.
    fn begin(&mut self, head: &[u8]) -> Result<Begin<Self::Header>, FormatError>;

    /// Takes the next bytes of the unit that [`begin`](Format::begin) announced, from its first byte on.
    fn absorb(&mut self, piece: &[u8]);

    /// All bytes of the unit were absorbed. `Some` when it completes a commit.
    ///
    /// # Errors
    /// When the unit's checksum does not match.
    fn end(&mut self) -> Result<Option<Commit>, FormatError>;

    /// The offset that a sound stream would continue with, as far as known.
    fn expected(&self) -> Option<Offset>;
}

/// What starts at a unit boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin<H> {
    /// Cannot tell before this many bytes of the unit are seen.
    Need(usize),
    /// A segment header of this many bytes; all of them were in `head`.
    Header(H, usize),
    /// A unit of this many bytes, head included.
    Unit(u64),
}

/// A verified commit: whole, and its checksum matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Offset of its first entry.
    pub first: Offset,
    /// How many entries it holds; at least 1.
    pub entries: u32,
    /// Who wrote it.
    pub epoch: Epoch,
    /// Its checksum as stored.
    pub checksum: u64,
    /// Its length in bytes, framing included.
    pub bytes: u64,
}

impl Commit {
    /// The offset right after its last entry.
    #[must_use]
    pub fn end(&self) -> Offset {
        Offset(self.first.0 + u64::from(self.entries))
    }
}

/// Why bytes are not what they claim to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A segment header of a version we do not know.
    #[error("log format version {found} is not supported (0 and 1 are)")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// A checksum algorithm we do not know.
    #[error("checksum algorithm {found} is not supported (0, CRC32C, is)")]
    Algorithm {
        /// The algorithm byte.
        found: u8,
    },
    /// A segment header with something in its reserved bytes, or with a damaged magic.
    #[error("damaged segment header: {}", Hex(found))]
    Header {
        /// Its bytes.
        found: Vec<u8>,
    },
    /// Neither a segment header nor the commit that must come next.
    #[error("neither a segment header nor a commit: {}", Hex(found))]
    NotALog {
        /// The first bytes found.
        found: Vec<u8>,
    },
    /// An all-zero commit header: on disk the end of what was written, on the wire an error.
    #[error("all-zero commit header")]
    Zeros,
    /// A commit without entries.
    #[error("commit without entries")]
    NoEntries,
    /// Offsets that do not fit 64 bits.
    #[error("offset {first} + {entries} entries does not fit 64 bits")]
    OffsetOverflow {
        /// Offset of the commit.
        first: Offset,
        /// How many entries it claims.
        entries: u32,
    },
    /// A length over the cap. Nothing was allocated for it.
    #[error("commit length {len} is over the limit of {max} bytes")]
    TooLarge {
        /// The length the commit claims for its records.
        len: u64,
        /// The cap in force for the whole commit.
        max: u64,
    },
    /// A WAL header with other salts: the log was restarted, and what follows is another generation.
    #[error("the log was restarted: its salts are {:08x} {:08x} now and were {:08x} {:08x}", .found[0], .found[1], .salts[0], .salts[1])]
    Restarted {
        /// Those of the log.
        salts: [u32; 2],
        /// Those found.
        found: [u32; 2],
    },
    /// A segment whose checksums go on from one that is not there.
    #[error("the segment before is missing or cut, whose last checksum this one goes on from")]
    Unlinked,
    /// The checksum stored with a unit is not that of its bytes.
    #[error("checksum mismatch")]
    Checksum {
        /// What is stored.
        stored: u64,
        /// What the bytes give.
        computed: u64,
    },
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "found")?;
        for byte in self.0 {
            write!(f, " {byte:02x}")?;
        }
        if self.0.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
            write!(f, " ({:?})", String::from_utf8_lossy(self.0))?;
        }
        Ok(())
    }
}
