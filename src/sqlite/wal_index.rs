//! What the wal-index (`app.db-shm`) says, read with `pread`: a map would fault when somebody truncates the file.
//!
//! ```text
//! 0        48        96         100           120      128
//! | header | header | copied | read mark × 5 | locks  |
//!
//! header   0         12       13           14          16       20      24        32      40         48
//!          | ...     | in use | big-endian | page size | frames | pages | chain   | salts | checksum |
//! ```
//!
//! In the byte order of the machine, but for the salts, which stand as in the WAL. The header is there twice: the two are
//! equal while nobody is writing it. Source: <https://sqlite.org/walformat.html>, section 2.

use std::fs::File;
use std::io;

use crate::format::wal::Chain;
use crate::repo::read_at;

const HEADER_LEN: usize = 48;
const COPIED_AT: usize = 96;
const MARKS_AT: usize = 100;
const MARKS: usize = 5;
const LEN: usize = MARKS_AT + 4 * MARKS;
/// A read mark that nobody uses: it limits no checkpoint.
const UNUSED: u32 = u32::MAX;

/// One consistent state of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WalIndex {
    pub(super) page_size: u32,
    pub(super) salts: [u32; 2],
    /// Frames up to the last commit.
    pub(super) frames: u64,
    /// The checksum after them; means nothing while there are none.
    pub(super) chain: Chain,
    /// Pages of the database after the last commit.
    pub(super) db_pages: u32,
    /// How many of these frames are in the database file.
    pub(super) copied: u64,
    unused: [bool; MARKS],
}

impl WalIndex {
    /// What it says now; `None` while it is being written, or when nobody has filled it.
    pub(super) fn read(file: &File) -> io::Result<Option<WalIndex>> {
        let mut bytes = [0; LEN];
        if read_at(file, &mut bytes, 0)? < LEN {
            return Ok(None);
        }
        Ok(WalIndex::decode(&bytes))
    }

    fn decode(bytes: &[u8; LEN]) -> Option<WalIndex> {
        let (header, second) = (&bytes[..HEADER_LEN], &bytes[HEADER_LEN..COPIED_AT]);
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        let summed = Chain::default().over(&header[..40], cfg!(target_endian = "big")).number();
        let stored = u64::from(word(40)) << 32 | u64::from(word(44));
        if header != second || header[12] == 0 || summed != stored {
            return None;
        }
        let page_size = match u16::from_ne_bytes([header[14], header[15]]) {
            // 65,536 does not fit.
            1 => 65_536,
            size => u32::from(size),
        };
        let salt = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        Some(WalIndex {
            page_size,
            salts: [salt(32), salt(36)],
            frames: word(16).into(),
            chain: Chain::from_number(u64::from(word(24)) << 32 | u64::from(word(28))),
            db_pages: word(20),
            copied: word(COPIED_AT).into(),
            unused: std::array::from_fn(|mark| word(MARKS_AT + 4 * mark) == UNUSED),
        })
    }

    /// Whether all frames are in the database file.
    pub(super) fn is_copied(&self) -> bool {
        self.copied == self.frames
    }

    /// Whether the read mark `slot` limits no checkpoint.
    pub(super) fn is_unused(&self, slot: usize) -> bool {
        self.unused.get(slot).copied().unwrap_or(false)
    }
}
