//! Comparing an offset index with the commits it should point at, while they go by.

use crate::format::{Commit, LogFormat};
use crate::offset::{BytePos, Offset};
use crate::repo::Repo;
use crate::segment::{Entry, IndexFile};

/// No commit starts there, so this entry is never reached.
const NONE: Entry = Entry { key: Offset(u64::MAX), value: BytePos(u64::MAX) };

/// What an index is worth.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IndexVerdict {
    /// Entries that point at the commit they name.
    pub(super) right: u64,
    /// Entries that do not.
    pub(super) wrong: u64,
    /// The first of those.
    pub(super) first_wrong: Option<Entry>,
}

impl IndexVerdict {
    /// How many entries there are.
    pub(super) fn entries(&self) -> u64 {
        self.right + self.wrong
    }

    pub(super) fn add(&mut self, other: &IndexVerdict) {
        self.right += other.right;
        self.wrong += other.wrong;
        self.first_wrong = self.first_wrong.or(other.first_wrong);
    }
}

/// The entries of an index, to be met by the commits in their order.
pub(super) struct IndexCheck {
    entries: Box<dyn Iterator<Item = Entry>>,
    next: Entry,
    verdict: IndexVerdict,
}

impl IndexCheck {
    /// The index of the segment that starts at `start`, from offset `from` on; `None` when there is none.
    pub(super) fn open(repo: &dyn Repo, format: LogFormat, start: Offset, from: Offset) -> Option<IndexCheck> {
        let mut entries = Box::new(IndexFile::open(repo, format, start)?.entries(from));
        let next = entries.next().unwrap_or(NONE);
        Some(IndexCheck { entries, next, verdict: IndexVerdict::default() })
    }

    /// The offset of the next commit that an entry names, so that the many others cost one compare.
    #[inline]
    pub(super) fn due(&self) -> Offset {
        self.next.key
    }

    /// A commit at or behind [`due`](Self::due) starts at `at`.
    #[cold]
    pub(super) fn meet(&mut self, at: BytePos, commit: &Commit) {
        while self.next.key <= commit.first && self.next != NONE {
            self.judge(self.next == Entry { key: commit.first, value: at });
        }
    }

    /// No more commits come before offset `end`. Entries for later ones are wrong if nothing follows at all.
    pub(super) fn end(mut self, end: Option<Offset>) -> IndexVerdict {
        while self.next != NONE && end.is_none_or(|end| self.next.key < end) {
            self.judge(false);
        }
        self.verdict
    }

    fn judge(&mut self, right: bool) {
        if right {
            self.verdict.right += 1;
        } else {
            self.verdict.wrong += 1;
            self.verdict.first_wrong.get_or_insert(self.next);
        }
        self.next = self.entries.next().unwrap_or(NONE);
    }
}
