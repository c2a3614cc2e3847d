//! All formats behind one type, for those who carry logs of any of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::commitlog::{self, CommitHeader, Commitlog, SegmentHeader, Version};
use super::wal::{self, Wal, WalHeader, WalStart};
use super::{Begin, Commit, Format, FormatError};
use crate::offset::Offset;

/// Formats a log can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A SpacetimeDB commitlog.
    #[default]
    Commitlog,
    /// A SQLite WAL, with the database it starts from.
    Wal,
}

impl LogFormat {
    /// Its name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Commitlog => "commitlog",
            LogFormat::Wal => "wal",
        }
    }

    /// Bytes of a segment header.
    #[must_use]
    pub fn header_len(self) -> usize {
        match self {
            LogFormat::Commitlog => commitlog::HEADER_LEN,
            LogFormat::Wal => wal::HEADER_LEN,
        }
    }

    /// The offset a log of this format must start with; `None` where any will do.
    #[must_use]
    pub fn first(self) -> Option<Offset> {
        match self {
            LogFormat::Commitlog => None,
            LogFormat::Wal => Some(wal::FIRST_FRAME),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a walk over a log must know to start at some commit of it. As text it is the value of a header of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// How the commits of a commitlog's segment are framed.
    Commitlog(Version),
    /// The header of a WAL and the checksum of the frame before; `None` while the log has no header.
    Wal(Option<WalStart>),
}

impl Default for Framing {
    fn default() -> Self {
        Framing::of(LogFormat::default())
    }
}

impl From<Version> for Framing {
    fn from(version: Version) -> Self {
        Framing::Commitlog(version)
    }
}

impl Framing {
    /// How a log of this format starts.
    #[must_use]
    pub fn of(format: LogFormat) -> Framing {
        match format {
            LogFormat::Commitlog => Framing::Commitlog(Version::default()),
            LogFormat::Wal => Framing::Wal(None),
        }
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> LogFormat {
        match self {
            Framing::Commitlog(_) => LogFormat::Commitlog,
            Framing::Wal(_) => LogFormat::Wal,
        }
    }

    /// Bytes of a segment header.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.format().header_len()
    }

    /// Bytes at the front of a commit, without which nothing can be said of it.
    #[must_use]
    pub fn head_len(&self) -> usize {
        match self {
            Framing::Commitlog(version) => version.commit_header_len(),
            Framing::Wal(_) => wal::FRAME_HEADER_LEN,
        }
    }

    /// The segment header that says so; `None` for a WAL whose header is not known.
    #[must_use]
    pub fn encode_header(&self) -> Option<Vec<u8>> {
        match self {
            Framing::Commitlog(version) => Some(SegmentHeader { version: *version }.encode().to_vec()),
            Framing::Wal(start) => start.map(|start| start.header.encode().to_vec()),
        }
    }

    /// Whether commits framed like this may follow commits framed like `other` in one segment.
    #[must_use]
    pub fn is_like(&self, other: &Framing) -> bool {
        match (self, other) {
            (Framing::Commitlog(ours), Framing::Commitlog(theirs)) => ours == theirs,
            (Framing::Wal(ours), Framing::Wal(theirs)) => ours.map(|at| at.header) == theirs.map(|at| at.header),
            _ => false,
        }
    }

    /// The same, right behind `commit`.
    #[must_use]
    pub fn behind(self, commit: &Commit) -> Framing {
        match self {
            Framing::Commitlog(_) | Framing::Wal(None) => self,
            Framing::Wal(Some(start)) => {
                Framing::Wal(Some(WalStart { chain: wal::Chain::from_number(commit.checksum), ..start }))
            }
        }
    }

    /// The version of the format that a header names.
    #[must_use]
    pub fn version(&self) -> u32 {
        match self {
            Framing::Commitlog(version) => version.number().into(),
            Framing::Wal(_) => wal::VERSION,
        }
    }

    /// How many bytes the unit at `head` claims to have: a guess, to read as much.
    #[must_use]
    pub(crate) fn unit_len(&self, head: &[u8]) -> u64 {
        match self {
            Framing::Commitlog(version) => {
                CommitHeader::decode(*version, head).map_or(0, |unit| unit.commit_len(*version))
            }
            Framing::Wal(start) => start.map_or(0, |start| start.header.frame_len()),
        }
    }

    /// Reads a segment header at the front of a segment; `None` when there is none.
    ///
    /// # Errors
    /// When it is one, but damaged or unknown.
    pub(crate) fn decode_header(format: LogFormat, bytes: &[u8]) -> Result<Option<Framing>, FormatError> {
        match format {
            LogFormat::Commitlog => match bytes.first_chunk() {
                Some(header) => Ok(SegmentHeader::decode(header)?.map(|header| Framing::Commitlog(header.version))),
                None => Ok(None),
            },
            LogFormat::Wal => match bytes.first_chunk() {
                Some(header) => {
                    WalHeader::decode(header).map(|header| Some(Framing::Wal(Some(WalStart::first(header)))))
                }
                None => Ok(None),
            },
        }
    }
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Framing::Commitlog(version) => version.number().fmt(f),
            Framing::Wal(None) => f.write_str("wal"),
            Framing::Wal(Some(start)) => start.fmt(f),
        }
    }
}

impl FromStr for Framing {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        if text == "wal" {
            return Ok(Framing::Wal(None));
        }
        match text.parse::<u8>() {
            Ok(found) => {
                let version = Version::of_number(found).ok_or(FormatError::Version { found })?;
                Ok(Framing::Commitlog(version))
            }
            Err(_) => text.parse().map(|start| Framing::Wal(Some(start))),
        }
    }
}

/// The walk over a log of any format.
#[derive(Clone, Debug)]
pub enum Walk {
    /// Over a commitlog.
    Commitlog(Commitlog),
    /// Over a WAL.
    Wal(Wal),
}

impl Walk {
    /// A walk that goes on with `framing`, at offset `expected` if that is known. A WAL whose offset is not known must
    /// start with its header.
    #[must_use]
    pub fn new(framing: Framing, expected: Option<Offset>, commit_bytes_max: u64) -> Walk {
        match framing {
            Framing::Commitlog(version) => Walk::Commitlog(Commitlog::new(version, expected, commit_bytes_max)),
            Framing::Wal(start) => {
                let start = start.filter(|_| expected.is_some());
                Walk::Wal(Wal::new(start, expected, commit_bytes_max))
            }
        }
    }

    /// A walk that starts at a commit, whatever its offset: what comes first is not taken for a header.
    #[must_use]
    pub fn at_commit(framing: Framing, commit_bytes_max: u64) -> Walk {
        match framing {
            Framing::Commitlog(version) => Walk::Commitlog(Commitlog::at_commit(version, commit_bytes_max)),
            Framing::Wal(start) => Walk::Wal(Wal::new(start, None, commit_bytes_max)),
        }
    }

    /// What another walk would need to start right behind the last whole commit.
    #[must_use]
    pub fn framing(&self) -> Framing {
        match self {
            Walk::Commitlog(walk) => Framing::Commitlog(walk.version()),
            Walk::Wal(walk) => Framing::Wal(walk.start()),
        }
    }
}

impl Format for Walk {
    const HEAD_MAX: usize = {
        let (commitlog, wal) = (<Commitlog as Format>::HEAD_MAX, <Wal as Format>::HEAD_MAX);
        if commitlog > wal { commitlog } else { wal }
    };
    type Header = Framing;

    // Once a commit, and left out of line now and then.
    #[inline(always)]
    fn begin(&mut self, head: &[u8]) -> Result<Begin<Framing>, FormatError> {
        Ok(match self {
            Walk::Commitlog(walk) => match walk.begin(head)? {
                Begin::Need(bytes) => Begin::Need(bytes),
                Begin::Unit(bytes) => Begin::Unit(bytes),
                Begin::Header(header, bytes) => Begin::Header(Framing::Commitlog(header.version), bytes),
            },
            Walk::Wal(walk) => match walk.begin(head)? {
                Begin::Need(bytes) => Begin::Need(bytes),
                Begin::Unit(bytes) => Begin::Unit(bytes),
                Begin::Header(start, bytes) => Begin::Header(Framing::Wal(Some(start)), bytes),
            },
        })
    }

    #[inline(always)]
    fn absorb(&mut self, piece: &[u8]) {
        match self {
            Walk::Commitlog(walk) => walk.absorb(piece),
            Walk::Wal(walk) => walk.absorb(piece),
        }
    }

    #[inline(always)]
    fn end(&mut self) -> Result<Option<Commit>, FormatError> {
        match self {
            Walk::Commitlog(walk) => walk.end(),
            Walk::Wal(walk) => walk.end(),
        }
    }

    fn expected(&self) -> Option<Offset> {
        match self {
            Walk::Commitlog(walk) => walk.expected(),
            Walk::Wal(walk) => walk.expected(),
        }
    }
}
