//! The bytes of the wal-index (`app.db-shm`). It is read with `pread`: a map would fault when another process truncates the
//! file.
//!
//! ```text
//! 0        48        96         100           120     128         132      136
//! | header | header | copied | read mark × 5 | locks | attempted | unused | first block ...
//!
//! header   0         4        8        12       13           14          16       20      24        32      40         48
//!          | version | unused | change | in use | big-endian | page size | frames | pages | chain   | salts | checksum |
//!
//! block    0                     16384             32768
//!          | page number × 4096 | slot × 8192     |
//! ```
//!
//! In the byte order of the machine, but for the salts, which are as in the WAL. The header is there twice: the two are equal
//! while it is not being written.
//!
//! The blocks find the newest frame of a page: one after the other they hold the page number of each frame, and slots of two
//! bytes, in which a page number is looked up by its hash. A slot holds the place of a frame in its block, from 1; 0 is free,
//! and the search goes on to the next slot until one is. The head takes the place of the first page numbers of the first
//! block. Source: <https://sqlite.org/walformat.html>, section 2.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::format::wal::Chain;
use crate::repo::read_at;

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 48;
/// Where the number of copied frames is.
pub(super) const COPIED_AT: usize = 2 * HEADER_LEN;
const MARKS_AT: usize = COPIED_AT + 4;
/// Read marks.
pub(super) const MARKS: usize = 5;
const LEN: usize = MARKS_AT + 4 * MARKS;
/// Where the number of frames is that a checkpoint wants to copy: after a byte for each lock.
pub(super) const ATTEMPTED_AT: usize = LEN + LOCKS;
const LOCKS: usize = 8;
/// Bytes before the first page number: the above and a word that is not used.
pub(super) const HEAD_LEN: usize = ATTEMPTED_AT + 8;
/// A read mark that is not in use: it limits no checkpoint.
pub(super) const UNUSED: u32 = u32::MAX;

/// The only version there is.
const VERSION: u32 = 3_007_000;
/// Bytes of a block.
pub(super) const BLOCK_LEN: usize = SLOTS_AT + 2 * SLOTS;
/// Frames of a block.
pub(super) const BLOCK_FRAMES: usize = 4096;
/// Frames that the head takes the place of.
const HEAD_FRAMES: usize = HEAD_LEN / 4;
/// Where the slots of a block are.
pub(super) const SLOTS_AT: usize = 4 * BLOCK_FRAMES;
/// Slots of a block.
pub(super) const SLOTS: usize = 8192;

const _: () = assert!(HEAD_LEN == 136 && BLOCK_LEN == 32_768 && HEAD_LEN.is_multiple_of(4));

/// Where the read mark `slot` is.
pub(super) fn mark_at(slot: usize) -> usize {
    MARKS_AT + 4 * slot
}

/// The block of frame `frame`, from 1, and how many frames of the block are before it.
pub(super) fn place_of(frame: u64) -> (u64, usize) {
    let at = frame + HEAD_FRAMES as u64 - 1;
    let (block, nth) = (at / BLOCK_FRAMES as u64, (at % BLOCK_FRAMES as u64) as usize);
    (block, if block == 0 { nth - HEAD_FRAMES } else { nth })
}

/// The first and the last frame of a block.
pub(super) fn frames_of(block: u64) -> (u64, u64) {
    let last = (block + 1) * BLOCK_FRAMES as u64 - HEAD_FRAMES as u64;
    (if block == 0 { 1 } else { last + 1 - BLOCK_FRAMES as u64 }, last)
}

/// The bytes of a block before its page numbers.
pub(super) fn head_of(block: u64) -> usize {
    if block == 0 { HEAD_LEN } else { 0 }
}

/// The slot where the search for a page starts.
pub(super) fn slot_of(page: u32) -> usize {
    page.wrapping_mul(383) as usize % SLOTS
}

/// What the header says: the committed part of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexHeader {
    /// Changes with each commit.
    pub(super) change: u32,
    /// The order of the words that the checksums of the WAL sum up.
    pub(super) big_endian: bool,
    pub(super) page_size: u32,
    pub(super) salts: [u32; 2],
    /// Frames up to the last commit.
    pub(super) frames: u64,
    /// Pages of the database after the last commit; 0 where there is none, and the file says it.
    pub(super) db_pages: u32,
    /// The checksum after the last commit; means nothing while there are no frames.
    pub(super) chain: Chain,
}

impl IndexHeader {
    /// Reads a header; none where it is not in use, or its checksum is wrong.
    pub(super) fn decode(header: &[u8; HEADER_LEN]) -> Option<IndexHeader> {
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| header[at + i]));
        let stored = u64::from(word(40)) << 32 | u64::from(word(44));
        if header[12] == 0 || checksum(header).number() != stored {
            return None;
        }
        let page_size = match u16::from_ne_bytes([header[14], header[15]]) {
            // 65,536 does not fit.
            1 => 65_536,
            size => u32::from(size),
        };
        let salt = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        Some(IndexHeader {
            change: word(8),
            big_endian: header[13] != 0,
            page_size,
            salts: [salt(32), salt(36)],
            frames: word(16).into(),
            db_pages: word(20),
            chain: Chain::from_number(u64::from(word(24)) << 32 | u64::from(word(28))),
        })
    }

    /// Its bytes, checksum included. There must be fewer than 2^32 frames.
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let mut put = |at: Range<usize>, bytes: &[u8]| header[at].copy_from_slice(bytes);
        put(0..4, &VERSION.to_ne_bytes());
        put(8..12, &self.change.to_ne_bytes());
        let page_size = if self.page_size == 65_536 { 1 } else { self.page_size as u16 };
        put(12..14, &[1, u8::from(self.big_endian)]);
        put(14..16, &page_size.to_ne_bytes());
        put(16..20, &(self.frames as u32).to_ne_bytes());
        put(20..24, &self.db_pages.to_ne_bytes());
        put(24..32, &native(self.chain));
        put(32..36, &self.salts[0].to_be_bytes());
        put(36..40, &self.salts[1].to_be_bytes());
        let sum = native(checksum(&header));
        header[40..].copy_from_slice(&sum);
        header
    }
}

fn checksum(header: &[u8; HEADER_LEN]) -> Chain {
    Chain::default().over(&header[..40], cfg!(target_endian = "big"))
}

/// The two words of a checksum in the byte order of the machine.
fn native(chain: Chain) -> [u8; 8] {
    let [first, second] = [(chain.number() >> 32) as u32, chain.number() as u32].map(u32::to_ne_bytes);
    std::array::from_fn(|i| if i < 4 { first[i] } else { second[i - 4] })
}

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
    pub(super) marks: [u32; MARKS],
    change: u32,
    big_endian: bool,
}

impl WalIndex {
    /// What it says now; `None` while it is being written, or before it was filled.
    pub(super) fn read(file: &File) -> io::Result<Option<WalIndex>> {
        let mut bytes = [0; LEN];
        if read_at(file, &mut bytes, 0)? < LEN {
            return Ok(None);
        }
        Ok(WalIndex::decode(&bytes))
    }

    fn decode(bytes: &[u8; LEN]) -> Option<WalIndex> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        if rest[..HEADER_LEN] != *header {
            return None;
        }
        let header = IndexHeader::decode(header)?;
        let IndexHeader { change, big_endian, page_size, salts, frames, chain, db_pages } = header;
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        let (copied, marks) = (word(COPIED_AT).into(), std::array::from_fn(|slot| word(mark_at(slot))));
        Some(WalIndex { page_size, salts, frames, chain, db_pages, copied, marks, change, big_endian })
    }

    /// What the header says.
    pub(super) fn header(&self) -> IndexHeader {
        let WalIndex { page_size, salts, frames, chain, db_pages, change, big_endian, .. } = *self;
        IndexHeader { change, big_endian, page_size, salts, frames, db_pages, chain }
    }

    /// Whether all frames are in the database file.
    pub(super) fn is_copied(&self) -> bool {
        self.copied == self.frames
    }

    /// Whether the read mark `slot` limits no checkpoint.
    pub(super) fn is_unused(&self, slot: usize) -> bool {
        self.marks.get(slot).is_some_and(|mark| *mark == UNUSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_a_damaged_one_does_not() {
        for page_size in [512, 4096, 65_536] {
            let chain = Chain::from_number(0x0102_0304_a0b0_c0d0);
            let (salts, big_endian) = ([7, 0xf000_0001], page_size == 512);
            let header = IndexHeader { change: 9, big_endian, page_size, salts, frames: 70_000, db_pages: 3, chain };
            let mut bytes = header.encode();
            assert_eq!(IndexHeader::decode(&bytes), Some(header));
            bytes[16] ^= 1;
            assert_eq!(IndexHeader::decode(&bytes), None);
        }
        assert_eq!(IndexHeader::decode(&[0; HEADER_LEN]), None);
    }

    #[test]
    fn frames_are_in_blocks_of_4096_but_for_the_first() {
        assert_eq!((place_of(1), place_of(4062)), ((0, 0), (0, 4061)));
        assert_eq!((place_of(4063), place_of(8158)), ((1, 0), (1, 4095)));
        assert_eq!(
            (place_of(8159), frames_of(0), frames_of(1), frames_of(2)),
            ((2, 0), (1, 4062), (4063, 8158), (8159, 12_254))
        );
        assert_eq!((slot_of(1), slot_of(22)), (383, 22 * 383 - 8192));
    }
}
