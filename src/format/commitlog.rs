//! The SpacetimeDB commitlog format, versions 0 and 1. All integers are little-endian.
//!
//! ```text
//! segment    := header commit*
//!
//! header        0        6         7           8          10
//!               | (ds)^2 | version | algorithm | reserved |      algorithm 0 = CRC32C; reserved = 0
//!
//! commit v1     0         8       16    18     22            22+len     26+len
//!               | first   | epoch | n   | len  | records ... | crc32c   |
//!
//! commit v0     0         8     10     14            14+len     18+len
//!               | first   | n   | len  | records ... | crc32c   |         epoch is 0
//! ```
//!
//! The checksum covers everything of the commit before it. A commit holds the offsets `first .. first + n`. An all-zero
//! commit header marks the end of what was written to a preallocated segment. Source: `specs/spacetimedb-commitlog.md`,
//! checked against files of the published writer.

use super::{Begin, Commit, Format, FormatError};
use crate::limits::{COMMIT_BYTES_DOUBTED, COMMIT_BYTES_MAX};
use crate::offset::{Epoch, Offset};

/// First bytes of every segment.
pub const MAGIC: [u8; 6] = *b"(ds)^2";
/// Bytes of a segment header.
pub const HEADER_LEN: usize = MAGIC.len() + 1 + 1 + 2;
/// Bytes of a commit's checksum.
pub const CHECKSUM_LEN: usize = 4;
/// Bytes of a commit header, version 0.
pub const COMMIT_HEADER_LEN_V0: usize = 8 + 2 + 4;
/// Bytes of a commit header, version 1.
pub const COMMIT_HEADER_LEN_V1: usize = COMMIT_HEADER_LEN_V0 + 8;

const _: () = assert!(HEADER_LEN == 10 && COMMIT_HEADER_LEN_V0 == 14 && COMMIT_HEADER_LEN_V1 == 22);
/// The first decision is taken on a segment header's length, which the shortest commit must not fall below.
const _: () = assert!(HEADER_LEN <= COMMIT_HEADER_LEN_V0 + CHECKSUM_LEN);

/// `log_format_version` of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// Commits without an epoch.
    V0,
    /// Today's.
    #[default]
    V1,
}

impl Version {
    /// Its number, as in a segment header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Version::V0 => 0,
            Version::V1 => 1,
        }
    }

    /// The version of that number.
    #[must_use]
    pub const fn of_number(number: u8) -> Option<Version> {
        match number {
            0 => Some(Version::V0),
            1 => Some(Version::V1),
            _ => None,
        }
    }

    /// Bytes of a commit header.
    #[must_use]
    pub const fn commit_header_len(self) -> usize {
        match self {
            Version::V0 => COMMIT_HEADER_LEN_V0,
            Version::V1 => COMMIT_HEADER_LEN_V1,
        }
    }
}

/// What a segment header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentHeader {
    /// How its commits are framed.
    pub version: Version,
}

impl SegmentHeader {
    /// The header as it stands on disk.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        bytes[MAGIC.len()] = self.version.number();
        bytes
    }

    /// Reads a header; `None` when the bytes do not start with the magic, or nearly so.
    ///
    /// # Errors
    /// When it is a header, but not one we can read.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Option<SegmentHeader>, FormatError> {
        let alike = bytes.iter().zip(MAGIC).filter(|(found, magic)| **found == *magic).count();
        if alike + 1 < MAGIC.len() {
            return Ok(None);
        }
        let damaged = || FormatError::Header { found: bytes.to_vec() };
        let [.., version, algorithm, r0, r1] = *bytes;
        if alike < MAGIC.len() {
            return Err(damaged());
        }
        if algorithm != 0 {
            return Err(FormatError::Algorithm { found: algorithm });
        }
        let version = Version::of_number(version).ok_or(FormatError::Version { found: version })?;
        if [r0, r1] != [0, 0] {
            return Err(damaged());
        }
        Ok(Some(SegmentHeader { version }))
    }
}

/// A commit header as it stands on disk: claims, until the checksum is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// `min_tx_offset`.
    pub first: Offset,
    /// Term of the writer; 0 in version 0.
    pub epoch: Epoch,
    /// `n`: how many entries.
    pub entries: u16,
    /// Bytes of records.
    pub len: u32,
}

impl CommitHeader {
    /// Reads the header at the front of `bytes`; `None` when they are too few.
    #[must_use]
    #[inline]
    pub fn decode(version: Version, bytes: &[u8]) -> Option<CommitHeader> {
        let (first, rest) = bytes.split_first_chunk()?;
        let (epoch, rest) = match version {
            Version::V0 => (&[0; 8], rest),
            Version::V1 => rest.split_first_chunk()?,
        };
        let (entries, rest) = rest.split_first_chunk()?;
        let len = rest.first_chunk()?;
        Some(CommitHeader {
            first: Offset(u64::from_le_bytes(*first)),
            epoch: Epoch(u64::from_le_bytes(*epoch)),
            entries: u16::from_le_bytes(*entries),
            len: u32::from_le_bytes(*len),
        })
    }

    /// Bytes of the whole commit: header, records and checksum.
    #[must_use]
    pub fn commit_len(&self, version: Version) -> u64 {
        (version.commit_header_len() + CHECKSUM_LEN) as u64 + u64::from(self.len)
    }
}

/// Appends a commit to `out`, as it stands on disk.
///
/// # Panics
/// When `records` is longer than its length field can say.
pub fn encode_commit(version: Version, first: Offset, epoch: Epoch, entries: u16, records: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(records.len()).expect("records of a commit must fit 32 bits");
    let start = out.len();
    out.extend_from_slice(&first.0.to_le_bytes());
    if version == Version::V1 {
        out.extend_from_slice(&epoch.0.to_le_bytes());
    }
    out.extend_from_slice(&entries.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(records);
    let checksum = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&checksum.to_le_bytes());
}

/// The walk over a commitlog: see [`Format`].
#[derive(Clone, Debug)]
pub struct Commitlog {
    version: Version,
    commit_bytes_max: u64,
    /// What a commit may claim to have without a second look.
    undoubted_max: u64,
    expected: Option<Offset>,
    /// It is a commit that comes next: a header came last.
    headed: bool,
    unit: CommitHeader,
    unit_len: u64,
    seen: u64,
    crc: u32,
    checksum: [u8; CHECKSUM_LEN],
}

impl Default for Commitlog {
    /// A stream that starts with a segment header, with the default cap on a commit.
    fn default() -> Self {
        Commitlog::new(Version::V1, None, COMMIT_BYTES_MAX)
    }
}

impl Commitlog {
    /// A walk that starts in a segment of `version`, at `expected` if that is known. A commit over `commit_bytes_max`
    /// bytes is refused before anything is taken of it.
    #[must_use]
    pub fn new(version: Version, expected: Option<Offset>, commit_bytes_max: u64) -> Self {
        let unit = CommitHeader { first: Offset(0), epoch: Epoch(0), entries: 0, len: 0 };
        Commitlog {
            version,
            commit_bytes_max,
            undoubted_max: commit_bytes_max.min(COMMIT_BYTES_DOUBTED),
            expected,
            headed: false,
            unit,
            unit_len: 0,
            seen: 0,
            crc: 0,
            checksum: [0; CHECKSUM_LEN],
        }
    }

    /// A walk that starts at a commit, whatever its offset: what comes first is not taken for a header.
    #[must_use]
    pub fn at_commit(version: Version, commit_bytes_max: u64) -> Self {
        Commitlog { headed: true, ..Commitlog::new(version, None, commit_bytes_max) }
    }

    /// The version of the segment the walk is in.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Refuses what no checksum is needed to refuse. So a large commit is whose offset is nowhere near the one expected: all but
    /// certainly it is something else, such as a page of HTML.
    #[cold]
    fn refuse(&self, head: &[u8]) -> Option<FormatError> {
        let unit = &self.unit;
        let is_far = match self.expected {
            Some(expected) => expected.0.abs_diff(unit.first.0) > u64::from(u32::MAX),
            // No log has come so far.
            None => unit.first.0 >> 48 != 0,
        };
        let overflows = unit.first.0.checked_add(unit.entries.into()).is_none();
        let is_refused = self.unit_len > self.commit_bytes_max || unit.entries == 0 || overflows || is_far;
        is_refused.then(|| self.reason(head))
    }

    fn reason(&self, head: &[u8]) -> FormatError {
        let unit = &self.unit;
        if head[..self.version.commit_header_len()].iter().all(|byte| *byte == 0) {
            return FormatError::Zeros;
        }
        if self.expected.is_some_and(|expected| expected != unit.first) {
            return FormatError::NotALog { found: head[..head.len().min(16)].to_vec() };
        }
        if unit.commit_len(self.version) > self.commit_bytes_max {
            return FormatError::TooLarge { len: unit.len.into(), max: self.commit_bytes_max };
        }
        if unit.entries == 0 {
            return FormatError::NoEntries;
        }
        FormatError::OffsetOverflow { first: unit.first, entries: unit.entries.into() }
    }
}

impl Format for Commitlog {
    const HEAD_MAX: usize = COMMIT_HEADER_LEN_V1;
    type Header = SegmentHeader;

    #[inline(always)]
    fn begin(&mut self, head: &[u8]) -> Result<Begin<SegmentHeader>, FormatError> {
        let Some(start) = head.first_chunk::<HEADER_LEN>() else {
            return Ok(Begin::Need(HEADER_LEN));
        };
        // Real offsets have neither byte there, so the common path pays two compares; a flip in one leaves the other.
        if start[1] == MAGIC[1] || start[2] == MAGIC[2] {
            match SegmentHeader::decode(start) {
                Ok(None) => {}
                Ok(Some(header)) => {
                    self.version = header.version;
                    (self.expected, self.headed) = (None, true);
                    return Ok(Begin::Header(header, HEADER_LEN));
                }
                // Offset 404422353960 and some later ones look like a damaged magic.
                Err(_) if self.headed || self.expected.is_some_and(|at| start.starts_with(&at.0.to_le_bytes())) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(unit) = CommitHeader::decode(self.version, head) else {
            return Ok(Begin::Need(self.version.commit_header_len()));
        };
        self.unit = unit;
        self.unit_len = unit.commit_len(self.version);
        let fits = unit.first.0.checked_add(unit.entries.into()).is_some();
        if (self.unit_len > self.undoubted_max || unit.entries == 0 || !fits)
            && let Some(error) = self.refuse(head)
        {
            return Err(error);
        }
        (self.seen, self.crc) = (0, 0);
        Ok(Begin::Unit(self.unit_len))
    }

    #[inline(always)]
    fn absorb(&mut self, piece: &[u8]) {
        // Most commits come in one piece, and short ones by the million: no arithmetic on what was seen, no copy loop.
        if piece.len() as u64 == self.unit_len
            && let Some((body, checksum)) = piece.split_last_chunk()
        {
            (self.crc, self.checksum) = (crc32c::crc32c_append(0, body), *checksum);
            return;
        }
        let covered_len = self.unit_len - CHECKSUM_LEN as u64;
        let covered = covered_len.saturating_sub(self.seen).min(piece.len() as u64);
        let (body, checksum) = piece.split_at(covered as usize);
        if !body.is_empty() {
            self.crc = crc32c::crc32c_append(self.crc, body);
        }
        if !checksum.is_empty() {
            let at = (self.seen + covered - covered_len) as usize;
            self.checksum[at..at + checksum.len()].copy_from_slice(checksum);
        }
        self.seen += piece.len() as u64;
    }

    #[inline(always)]
    fn end(&mut self) -> Result<Option<Commit>, FormatError> {
        let stored = u32::from_le_bytes(self.checksum);
        if stored != self.crc {
            return Err(FormatError::Checksum { stored: stored.into(), computed: self.crc.into() });
        }
        let CommitHeader { first, epoch, entries, .. } = self.unit;
        let commit = Commit { first, entries: entries.into(), epoch, checksum: stored.into(), bytes: self.unit_len };
        (self.expected, self.headed) = (Some(commit.end()), false);
        Ok(Some(commit))
    }

    fn expected(&self) -> Option<Offset> {
        self.expected
    }
}
