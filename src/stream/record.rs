//! The mirror record: the file in a plain directory that says that it is a mirror of ours, of which source, and up to where it is durable.
//!
//! ```text
//! 0       8         12     14      16   32        40      48        56         64           72        76       78       460      476    508
//! | magic | version | kind | flags | id | durable | first | last at | last sum | generation | entries | length | source | log id | base | crc32c |
//! ```
//!
//! One sector, little-endian; the checksum covers all before it. It is written in place after each sync of the log, and synced
//! only when the log is opened: after a power failure it may be behind, but never ahead. As with the [durable mark](super::mark),
//! incomplete bytes after the durable end are those of a write that a crash cut, and damage before it is corruption. Whole
//! commits after it may be another writer's: they count once they were compared with the source.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use crate::format::{Commit, LogFormat};
use crate::offset::{Generation, Offset};
use crate::repo::{Repo, RepoFile};
use crate::segment::base::BaseDigest;

/// The record's file name. It does not parse as that of a segment, so SpacetimeDB passes it over.
pub(crate) const NAME: &str = ".logmirror";

const MAGIC: &[u8; 8] = b"logmirr\0";
const VERSION: u32 = 1;
const SECTOR: usize = 512;
const CHECKSUM_AT: usize = SECTOR - 4;
const SOURCE_AT: usize = 78;
const LOG_AT: usize = 460;
const BASE_AT: usize = 476;
const SOURCE_MAX: usize = LOG_AT - SOURCE_AT;

const HAS_FIRST: u16 = 1;
const HAS_LAST: u16 = 2;
/// Without these two the source may reach up to the checksum, as records had it before there was a log id.
const HAS_LOG: u16 = 4;
const HAS_BASE: u16 = 8;

/// What a directory says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MirrorRecord {
    /// Made when the directory became a mirror.
    pub(crate) id: Uuid,
    /// Where its content comes from, for people: checksums decide.
    pub(crate) source: String,
    pub(crate) format: LogFormat,
    /// The source's generation its base is of.
    pub(crate) generation: Generation,
    /// The lowest offset that it was known to start with, once that is known: what starts later has lost commits.
    pub(crate) first: Option<Offset>,
    /// Everything before it is durable.
    pub(crate) durable: Offset,
    /// The last commit before `durable`: its offset, entries and checksum.
    pub(crate) last: Option<(Offset, u32, u64)>,
    /// The id of the log of a service that its content comes from; none where that is not known.
    pub(crate) log: Option<Uuid>,
    /// The SHA-256 of its base; none where that is not known.
    pub(crate) base: Option<BaseDigest>,
}

impl MirrorRecord {
    pub(crate) fn new(source: &str, format: LogFormat, generation: Generation) -> MirrorRecord {
        let (id, source, durable) = (Uuid::new_v4(), source.to_owned(), Offset::ZERO);
        MirrorRecord { id, source, format, generation, first: None, durable, last: None, log: None, base: None }
    }

    /// Whether it says that `source` is where its content comes from, of which it holds only the start if it is long.
    pub(crate) fn names(&self, source: &str) -> bool {
        let cut_at = source.floor_char_boundary(SOURCE_MAX);
        source == self.source || (self.source.len() >= cut_at && source.starts_with(&self.source))
    }

    /// The same with other positions: everything before `durable`, which `last` ends at, is durable.
    pub(super) fn durable_up_to(self, first: Option<Offset>, durable: Offset, last: Option<Commit>) -> MirrorRecord {
        let last = last.map(|last| (last.first, last.entries, last.checksum));
        let first = self.first.into_iter().chain(first).min();
        MirrorRecord { first, durable, last, ..self }
    }

    /// The offsets at its start that a mirror which begins with a segment at `found` has lost; none where that is not known.
    pub(crate) fn missing(&self, found: Option<Offset>) -> Option<Range<Offset>> {
        self.first.zip(found).map(|(first, found)| first..found).filter(|missing| !missing.is_empty())
    }

    /// What the record in `repo` says; `None` when there is none, or none that can be believed.
    ///
    /// # Errors
    /// When it cannot be read, or was written by a later version of the program.
    pub(crate) fn read(repo: &dyn Repo) -> io::Result<Option<MirrorRecord>> {
        let file = match repo.open(NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut sector = [0; SECTOR];
        if file.read_at(&mut sector, 0)? < SECTOR {
            return Ok(None);
        }
        MirrorRecord::decode(&sector)
    }

    fn encode(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        let (at, entries, checksum) = self.last.unwrap_or_default();
        let flags = self.first.map_or(0, |_| HAS_FIRST)
            | self.last.map_or(0, |_| HAS_LAST)
            | self.log.map_or(0, |_| HAS_LOG)
            | self.base.map_or(0, |_| HAS_BASE);
        let kind: u16 = match self.format {
            LogFormat::Commitlog => 0,
            LogFormat::Wal => 1,
        };
        let source = &self.source.as_bytes()[..self.source.floor_char_boundary(SOURCE_MAX)];
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &kind.to_le_bytes());
        put(14, &flags.to_le_bytes());
        put(16, self.id.as_bytes());
        put(32, &self.durable.0.to_le_bytes());
        put(40, &self.first.unwrap_or_default().0.to_le_bytes());
        put(48, &at.0.to_le_bytes());
        put(56, &checksum.to_le_bytes());
        put(64, &self.generation.0.to_le_bytes());
        put(72, &entries.to_le_bytes());
        put(76, &(source.len() as u16).to_le_bytes());
        put(SOURCE_AT, source);
        put(LOG_AT, self.log.unwrap_or_default().as_bytes());
        put(BASE_AT, &self.base.map_or([0; 32], |base| base.0));
        let checksum = crc32c::crc32c(&sector[..CHECKSUM_AT]);
        sector[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        sector
    }

    fn decode(sector: &[u8; SECTOR]) -> io::Result<Option<MirrorRecord>> {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| sector[at + i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| sector[at + i]));
        let half = |at: usize| u16::from_le_bytes(std::array::from_fn(|i| sector[at + i]));
        if &sector[..8] != MAGIC || word(CHECKSUM_AT) != crc32c::crc32c(&sector[..CHECKSUM_AT]) {
            return Ok(None);
        }
        let (version, flags) = (word(8), half(14));
        let source_end = if flags & (HAS_LOG | HAS_BASE) == 0 { CHECKSUM_AT } else { LOG_AT };
        let source_end = source_end.min(SOURCE_AT + usize::from(half(76)));
        let format = match half(12) {
            0 => LogFormat::Commitlog,
            1 => LogFormat::Wal,
            _ => return Err(later(version)),
        };
        if version != VERSION {
            return Err(later(version));
        }
        Ok(Some(MirrorRecord {
            id: Uuid::from_bytes(std::array::from_fn(|i| sector[16 + i])),
            source: String::from_utf8_lossy(&sector[SOURCE_AT..source_end]).into_owned(),
            format,
            generation: Generation(long(64)),
            first: (flags & HAS_FIRST != 0).then(|| Offset(long(40))),
            durable: Offset(long(32)),
            last: (flags & HAS_LAST != 0).then(|| (Offset(long(48)), word(72), long(56))),
            log: (flags & HAS_LOG != 0).then(|| Uuid::from_bytes(std::array::from_fn(|i| sector[LOG_AT + i]))),
            base: (flags & HAS_BASE != 0).then(|| BaseDigest(std::array::from_fn(|i| sector[BASE_AT + i]))),
        }))
    }
}

fn later(version: u32) -> io::Error {
    let text = format!("{NAME} is of version {version}: a later version of logmirror wrote it");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// The record of a directory that is being written.
#[derive(Debug)]
pub(crate) struct RecordFile {
    file: Arc<dyn RepoFile>,
    record: MirrorRecord,
}

impl RecordFile {
    /// Opens or creates the file and writes `record` into it. After Ok the record survives power loss, once the directory
    /// is synced.
    pub(crate) fn open(repo: &dyn Repo, record: MirrorRecord) -> io::Result<RecordFile> {
        let file = match repo.open_write(NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => repo.create(NAME),
            file => file,
        };
        let opened = RecordFile { file: file?, record };
        opened.write()?;
        opened.file.sync()?;
        Ok(opened)
    }

    /// What it says.
    pub(super) fn record(&self) -> &MirrorRecord {
        &self.record
    }

    /// Records that everything before `durable`, which `last` ends at, is durable. Synced only when it begins.
    pub(super) fn note(&mut self, first: Option<Offset>, durable: Offset, last: Option<Commit>) -> io::Result<()> {
        let begins = self.record.first.is_none() && first.is_some();
        self.record = self.record.clone().durable_up_to(first, durable, last);
        self.write()?;
        // Where it begins is known for good once it is known.
        if begins { self.file.sync() } else { Ok(()) }
    }

    fn write(&self) -> io::Result<()> {
        self.file.write_at(&mut [IoSlice::new(&self.record.encode())], 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn record() -> MirrorRecord {
        MirrorRecord {
            first: Some(Offset(3)),
            durable: Offset(700),
            last: Some((Offset(697), 3, 0xfeed_beef)),
            ..MirrorRecord::new("host:/var/lib/stdb/clog", LogFormat::Wal, Generation(7))
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let none = MirrorRecord { first: None, last: None, ..record() };
        let of_a_service = MirrorRecord { log: Some(Uuid::new_v4()), base: Some(BaseDigest([7; 32])), ..record() };
        for record in [record(), none, of_a_service] {
            assert_eq!(MirrorRecord::decode(&record.encode()).unwrap(), Some(record));
        }
    }

    #[test]
    fn a_record_with_a_flipped_bit_is_none() {
        for bit in 0..SECTOR * 8 {
            let mut sector = record().encode();
            sector[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(MirrorRecord::decode(&sector).unwrap(), None, "bit {bit}");
        }
    }

    #[test]
    fn a_long_source_is_cut_between_characters() {
        let long = MirrorRecord { source: "ä".repeat(400), ..record() };
        let read = MirrorRecord::decode(&long.encode()).unwrap().unwrap();
        assert_eq!(read.source, "ä".repeat(SOURCE_MAX / 2));
    }

    #[test]
    fn a_record_names_a_source_of_any_length_that_was_written_into_it_by_any_version() {
        for length in [1, SOURCE_MAX / 2 - 1, SOURCE_MAX / 2, SOURCE_MAX / 2 + 1, 215, 400] {
            let source = "ä".repeat(length);
            let written = MirrorRecord { source: source.clone(), ..record() };
            let read = MirrorRecord::decode(&written.encode()).unwrap().unwrap();
            // As they were cut before there were log ids.
            let cut = source.floor_char_boundary(CHECKSUM_AT - SOURCE_AT);
            let older = MirrorRecord { source: source[..cut].to_owned(), ..record() };
            for record in [written, read, older] {
                assert!(record.names(&source), "{length}");
                assert!(!record.names(&format!("x{source}")) && !record.names(""), "{length}");
            }
            assert!(!record().names(&format!("{}/a", record().source)));
        }
    }

    #[test]
    fn a_record_of_a_later_version_is_an_error() {
        let mut sector = record().encode();
        sector[8] = 9;
        let checksum = crc32c::crc32c(&sector[..CHECKSUM_AT]);
        sector[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(MirrorRecord::decode(&sector).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
