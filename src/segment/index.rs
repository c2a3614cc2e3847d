//! The offset index of a segment: where commits start, about one in every 4 KiB.
//!
//! ```text
//! slot 0       16                     16 * used
//! | key  value | key  value | ... |   | 0 0 ...   keys ascend; key 0 is an empty slot, so offset 0 is never indexed
//! ```
//!
//! `key` is the offset of a commit and `value` its byte position in the segment, both `u64`, little-endian. SpacetimeDB
//! reads and writes the same file. It is a hint and never the truth: it may name commits that a crash took away, or be
//! missing, short, stale or wrong, so every entry is checked against the commit it points at before it is used.

use std::io;
use std::sync::Arc;

use crate::format::name;
use crate::limits::{INDEX_BYTES_START, INDEX_BYTES_STEP_MAX, INDEX_INTERVAL};
use crate::offset::{BytePos, Offset};
use crate::repo::{Repo, RepoFile, RepoMap};

const ENTRY_LEN: u64 = 16;

/// Bytes read at once when all entries are.
const ENTRIES_BLOCK: usize = 64 << 10;

/// Wrong entries looked at before an index is given up for lost.
const WRONG_ENTRIES_MAX: u64 = 64;

/// One entry: a commit's offset and its byte position in the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Offset of the commit; never 0.
    pub key: Offset,
    /// Its byte position, segment header included.
    pub value: BytePos,
}

impl Entry {
    fn encode(self) -> [u8; ENTRY_LEN as usize] {
        let mut bytes = [0; ENTRY_LEN as usize];
        bytes[..8].copy_from_slice(&self.key.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.value.0.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; ENTRY_LEN as usize]) -> Entry {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Entry { key: Offset(number(0)), value: BytePos(number(8)) }
    }
}

/// Slots to look into, wherever they are.
trait Slots {
    fn slots(&self) -> io::Result<u64>;
    fn slot(&self, at: u64) -> io::Result<Entry>;

    /// Slots before the first whose key satisfies `stop`; they must be sorted by it.
    fn before(&self, stop: impl Fn(Offset) -> bool) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.slots()?);
        while low < high {
            let middle = low + (high - low) / 2;
            if stop(self.slot(middle)?.key) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }

    /// The last entry at or before `at` that `holds`, walking back over those that do not.
    fn find(&self, at: Offset, mut holds: impl FnMut(Entry) -> io::Result<bool>) -> io::Result<Option<Entry>> {
        let candidates = self.before(|key| key == Offset(0) || key > at)?;
        for slot in (candidates.saturating_sub(WRONG_ENTRIES_MAX)..candidates).rev() {
            let entry = self.slot(slot)?;
            if holds(entry)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// An index that is only read, through plain reads: its owner may cut the file at any time.
#[derive(Debug)]
pub struct IndexFile(Arc<dyn RepoFile>);

impl IndexFile {
    /// Opens the index of the segment that starts at `start`; `None` when there is none that can be read.
    #[must_use]
    pub fn open(repo: &dyn Repo, start: Offset) -> Option<IndexFile> {
        repo.open(&name::index(start)).ok().map(IndexFile)
    }

    /// The last entry at or before `at` for which `holds` answers yes. An unreadable index has none.
    ///
    /// # Errors
    /// Those of `holds`.
    pub fn find(&self, at: Offset, holds: impl FnMut(Entry) -> io::Result<bool>) -> io::Result<Option<Entry>> {
        Slots::find(self, at, holds)
    }

    /// Its entries from the first of offset `from` or later on, up to the first empty slot. Not one of them is checked.
    pub fn entries(&self, from: Offset) -> impl Iterator<Item = Entry> + use<> {
        let file = self.0.clone();
        let first = self.before(|key| key == Offset(0) || key >= from).unwrap_or(0);
        let mut at = first * ENTRY_LEN;
        let mut block = Vec::new().into_iter();
        std::iter::from_fn(move || {
            if block.len() == 0 {
                let mut bytes = vec![0; ENTRIES_BLOCK];
                let count = file.read_at(&mut bytes, at).unwrap_or(0);
                at += count as u64;
                let (slots, _) = bytes[..count].as_chunks();
                block = slots.iter().map(|slot| Entry::decode(*slot)).collect::<Vec<_>>().into_iter();
            }
            block.next().filter(|entry| entry.key != Offset(0))
        })
        .fuse()
    }
}

impl Slots for IndexFile {
    fn slots(&self) -> io::Result<u64> {
        Ok(self.0.bytes().unwrap_or(0) / ENTRY_LEN)
    }

    fn slot(&self, at: u64) -> io::Result<Entry> {
        let mut bytes = [0; ENTRY_LEN as usize];
        let _unreadable_is_empty = self.0.read_at(&mut bytes, at * ENTRY_LEN);
        Ok(Entry::decode(bytes))
    }
}

/// The index of a segment being written: entries go to the memory map without a system call.
#[derive(Debug)]
pub struct OffsetIndex {
    repo: Arc<dyn Repo>,
    name: String,
    map: Box<dyn RepoMap>,
    used: u64,
    last: Entry,
}

impl OffsetIndex {
    /// Opens or creates the index of the segment that starts at `start`, keeping only what is before byte `end` of the
    /// segment. Only the last of those entries has been checked by the caller, which passes it as `last`.
    ///
    /// # Errors
    /// When there is no space for it or it cannot be mapped.
    pub fn open(repo: Arc<dyn Repo>, start: Offset, last: Option<Entry>) -> io::Result<OffsetIndex> {
        let name = name::index(start);
        let map = repo.map(&name, INDEX_BYTES_START)?;
        let empty = Entry { key: Offset(0), value: BytePos(0) };
        let mut index = OffsetIndex { repo, name, map, used: 0, last: last.unwrap_or(empty) };
        if let Some(last) = last {
            index.used = index.before(|key| key == Offset(0) || key > last.key)?;
        }
        let stale = (index.used..index.slots()?).take_while(|slot| index.slot(*slot).is_ok_and(|e| e != empty)).count();
        for slot in index.used..index.used + stale as u64 {
            index.map.write_at(&empty.encode(), slot * ENTRY_LEN);
        }
        Ok(index)
    }

    /// Notes that a commit starts at `entry`, if it is far enough behind the last one noted.
    ///
    /// # Errors
    /// When the index must grow and cannot. The segment is not harmed: the caller goes on without an index.
    pub fn note(&mut self, entry: Entry) -> io::Result<()> {
        if entry.key <= self.last.key || entry.value.0 < self.last.value.0 + INDEX_INTERVAL {
            return Ok(());
        }
        if (self.used + 1) * ENTRY_LEN > self.map.bytes() {
            let bytes = self.map.bytes() + self.map.bytes().clamp(INDEX_BYTES_START, INDEX_BYTES_STEP_MAX);
            self.map = self.repo.map(&self.name, bytes)?;
        }
        self.map.write_at(&entry.encode(), self.used * ENTRY_LEN);
        self.used += 1;
        self.last = entry;
        Ok(())
    }

    /// Ends the index with its segment: gives back the space not used and syncs it. One empty slot stays, since a
    /// reader cannot map an empty file.
    ///
    /// # Errors
    /// As the repo says; the index may be short or missing then, which its readers can bear.
    pub fn seal(self) -> io::Result<()> {
        drop(self.map);
        let file = self.repo.open_write(&self.name)?;
        file.truncate((self.used + 1) * ENTRY_LEN)?;
        file.sync()
    }
}

impl Slots for OffsetIndex {
    fn slots(&self) -> io::Result<u64> {
        Ok(self.map.bytes() / ENTRY_LEN)
    }

    fn slot(&self, at: u64) -> io::Result<Entry> {
        let mut bytes = [0; ENTRY_LEN as usize];
        self.map.read_at(&mut bytes, at * ENTRY_LEN);
        Ok(Entry::decode(bytes))
    }
}
