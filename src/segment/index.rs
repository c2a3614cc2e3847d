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
//!
//! Our own writer adds an entry only once its commit is durable. Without that, a power loss could take a commit and leave
//! a later one with its entry, and recovery, which starts at the last entry that holds, would not see the hole.

use std::io;
use std::sync::Arc;

use crate::format::{LogFormat, name};
use crate::limits::{INDEX_BYTES_START, INDEX_BYTES_STEP_MAX, INDEX_INTERVAL};
use crate::offset::{BytePos, Offset};
use crate::repo::{Repo, RepoFile, RepoMap};

const ENTRY_LEN: u64 = 16;

/// Bytes read at once when all entries are.
const ENTRIES_BLOCK: usize = 64 << 10;

/// Wrong entries looked at before an index is given up for lost.
const WRONG_ENTRIES_MAX: u64 = 64;

/// A slot not used.
const EMPTY: Entry = Entry { key: Offset(0), value: BytePos(0) };

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

/// An index that is only read, through plain reads: its owner may cut the file at any time.
#[derive(Debug)]
pub struct IndexFile(Arc<dyn RepoFile>);

impl IndexFile {
    /// Opens the index of the segment that starts at `start`; `None` when there is none that can be read.
    #[must_use]
    pub fn open(repo: &dyn Repo, format: LogFormat, start: Offset) -> Option<IndexFile> {
        repo.open(&name::index(format, start)).ok().map(IndexFile)
    }

    /// The last entry at or before `at`, pointing before byte `end`, for which `holds` answers yes; it is given the entry
    /// before as well. An unreadable index has none.
    ///
    /// # Errors
    /// Those of `holds`.
    pub fn find(
        &self,
        at: Offset,
        end: BytePos,
        mut holds: impl FnMut(Option<Entry>, Entry) -> io::Result<bool>,
    ) -> io::Result<Option<Entry>> {
        let candidates = self.before(|entry| entry.key == Offset(0) || entry.key > at || entry.value >= end);
        for slot in (candidates.saturating_sub(WRONG_ENTRIES_MAX)..candidates).rev() {
            let (before, entry) = (slot.checked_sub(1).map(|before| self.slot(before)), self.slot(slot));
            // In an index out of order the search may stop anywhere.
            if entry.key <= at && entry.value < end && holds(before, entry)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Its entries from the first of offset `from` or later on, up to the first empty slot. Not one of them is checked.
    pub fn entries(&self, from: Offset) -> impl Iterator<Item = Entry> + use<> {
        let file = self.0.clone();
        let first = self.before(|entry| entry.key == Offset(0) || entry.key >= from);
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

    /// How many slots lead up to `last` and include it. `None` when it is not where a search finds it, or the slots
    /// before it, as many as a crash can have touched, do not ascend: such an index is better made anew.
    #[must_use]
    pub fn slots_to(&self, last: Entry) -> Option<u64> {
        let used = self.before(|entry| entry.key == Offset(0) || entry.key > last.key);
        let from = used.saturating_sub(INDEX_BYTES_START / ENTRY_LEN);
        let mut block = vec![0; ((used - from) * ENTRY_LEN) as usize];
        let count = self.0.read_at(&mut block, from * ENTRY_LEN).unwrap_or(0);
        let (slots, _) = block[..count].as_chunks();
        let entries: Vec<Entry> = slots.iter().map(|slot| Entry::decode(*slot)).collect();
        let ascend = entries.is_sorted_by(|a, b| a.key < b.key && a.value < b.value);
        let ends = entries.first().is_some_and(|first| *first != EMPTY) && entries.last() == Some(&last);
        (ascend && ends).then_some(used)
    }

    /// Slots before the first that satisfies `stop`, if they are sorted by it.
    fn before(&self, stop: impl Fn(Entry) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.0.bytes().unwrap_or(0) / ENTRY_LEN);
        while low < high {
            let middle = low + (high - low) / 2;
            if stop(self.slot(middle)) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    fn slot(&self, at: u64) -> Entry {
        let mut bytes = [0; ENTRY_LEN as usize];
        let _unreadable_is_empty = self.0.read_at(&mut bytes, at * ENTRY_LEN);
        Entry::decode(bytes)
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
    /// Opens or creates the index of the segment that starts at `start`, keeping the entries up to `last`, which the
    /// caller has checked, and none behind it.
    ///
    /// # Errors
    /// When there is no space for it or it cannot be mapped.
    pub fn open(repo: Arc<dyn Repo>, format: LogFormat, start: Offset, last: Option<Entry>) -> io::Result<OffsetIndex> {
        let name = name::index(format, start);
        let found = IndexFile::open(&*repo, format, start);
        let used = found.as_ref().zip(last).and_then(|(index, last)| index.slots_to(last)).unwrap_or(0);
        if let Some(found) = found {
            let stale = found.slot(used) != EMPTY;
            let file = repo.open_write(&name)?;
            file.truncate(used * ENTRY_LEN)?;
            // Were a stale entry to come back after a power loss, it could name a commit that took the place of its own.
            if stale {
                file.sync()?;
            }
        }
        let map = repo.map(&name, INDEX_BYTES_START)?;
        let last = last.filter(|_| used > 0).unwrap_or(EMPTY);
        Ok(OffsetIndex { repo, name, map, used, last })
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
