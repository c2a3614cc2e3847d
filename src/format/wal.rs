//! The SQLite WAL format. All integers are big-endian but the words that the checksum sums up.
//!
//! ```text
//! log     := header frame*
//!
//! header  0       4         8           12         16      20      24           28           32
//!         | magic | version | page size | sequence | salt1 | salt2 | checksum-1 | checksum-2 |
//!
//! frame   0      4      8       12      16           20           24       24 + page size
//!         | page | size | salt1 | salt2 | checksum-1 | checksum-2 | page ... |
//! ```
//!
//! `size` is the length of the database in pages after a commit; 0 in a frame that does not end one. A commit is the run of
//! frames up to and with a commit frame, and its entries are its frames. Frames are numbered from 1 in each generation.
//!
//! The checksum runs on from frame to frame: it starts with that of the header (over its first 24 bytes), and each frame
//! adds its bytes 0..8 and its page. So a commit's checksum tells its whole history apart from any other. The last bit
//! of the magic says whether the words are summed up as big-endian; sums are stored big-endian either way.
//!
//! A log in several segments has the header in front of each, and the checksums run on across them: the header and all
//! frames in order are one `-wal` file. Source: `specs/libsql-sync.md`, section 9, and <https://sqlite.org/fileformat2.html>.

mod chain;
mod search;

pub(crate) use chain::Carry;
pub use chain::Chain;
pub use search::SoundRun;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{Begin, Commit, Format, FormatError};
use crate::offset::{Epoch, Offset};

/// The magic of a log whose checksums sum up little-endian words; the lowest bit set: big-endian ones.
pub const MAGIC: u32 = 0x377f_0682;
/// The only version there is.
pub const VERSION: u32 = 3_007_000;
/// Bytes of a WAL header.
pub const HEADER_LEN: usize = 32;
/// Bytes of a frame before its page.
pub const FRAME_HEADER_LEN: usize = 24;
/// Those of them that the checksum sums up: page number and size.
pub const SUMMED_HEAD_LEN: usize = 8;
/// Page sizes, of which powers of two only.
pub const PAGE_SIZES: RangeInclusive<u32> = 512..=65_536;
/// The highest number of a page, and so the most pages that a database has.
pub const PAGE_MAX: u32 = u32::MAX - 1;

/// Whether a database may have pages of so many bytes.
#[must_use]
pub fn is_page_size(bytes: u32) -> bool {
    PAGE_SIZES.contains(&bytes) && bytes.is_power_of_two()
}
/// Number of the first frame of a generation.
pub const FIRST_FRAME: Offset = Offset(1);

/// What the header of a WAL says, apart from magic number and checksum, which follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalHeader {
    /// Whether checksums sum up big-endian words.
    pub big_endian: bool,
    /// Bytes of a page.
    pub page_size: u32,
    /// How many checkpoints came before.
    pub sequence: u32,
    /// What each frame of this log repeats.
    pub salts: [u32; 2],
}

impl WalHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// When it is none, or its checksum is wrong.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<WalHeader, FormatError> {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| u32::from_be_bytes(words[at]);
        let (magic, version, page_size) = (word(0), word(1), word(2));
        let sound = is_page_size(page_size);
        if magic & !1 != MAGIC || version != VERSION || !sound {
            return Err(FormatError::Header { found: bytes.to_vec() });
        }
        let header = WalHeader { big_endian: magic & 1 == 1, page_size, sequence: word(3), salts: [word(4), word(5)] };
        let (computed, stored) = (header.seed().number(), u64::from(word(6)) << 32 | u64::from(word(7)));
        if stored != computed {
            return Err(FormatError::Checksum { stored, computed });
        }
        Ok(header)
    }

    /// Whether `bytes` start like a header. No frame does: it would be one for page 931 million of a database of 3 million.
    fn starts(bytes: &[u8]) -> bool {
        let magic = bytes.first_chunk().map(|magic| u32::from_be_bytes(*magic) & !1);
        magic == Some(MAGIC) && bytes.get(4..8) == Some(&VERSION.to_be_bytes())
    }

    /// Its bytes, checksum included.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..24].copy_from_slice(&self.summed());
        bytes[24..].copy_from_slice(&self.seed().encode());
        bytes
    }

    /// Its checksum, which the first frame goes on from.
    #[must_use]
    pub fn seed(&self) -> Chain {
        Chain::default().over(&self.summed(), self.big_endian)
    }

    fn summed(&self) -> [u8; 24] {
        let magic = MAGIC | u32::from(self.big_endian);
        let words = [magic, VERSION, self.page_size, self.sequence, self.salts[0], self.salts[1]];
        let mut bytes = [0; 24];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        bytes
    }

    /// Bytes of a frame.
    #[must_use]
    pub fn frame_len(&self) -> u64 {
        FRAME_HEADER_LEN as u64 + u64::from(self.page_size)
    }

    /// The checksum that a log with this header has after its first `frames` frames, told from `ours`, that of another log
    /// with the same frames but other salts or another sequence. Both must sum up words of the same order.
    #[must_use]
    pub fn chain_like(&self, frames: u64, ours: WalStart) -> Chain {
        let summed = frames * (u64::from(self.page_size) + SUMMED_HEAD_LEN as u64);
        ours.chain.plus(self.seed().minus(ours.header.seed()).carried(summed))
    }

    /// The frame that continues `chain` with a page, and the checksum after it.
    #[must_use]
    pub fn frame(&self, chain: Chain, page: u32, size: u32, content: &[u8]) -> ([u8; FRAME_HEADER_LEN], Chain) {
        let mut head = FrameHeader { page, size, salts: self.salts, chain }.encode();
        let chain = chain.over_frame(&head, content, self.big_endian);
        head[16..].copy_from_slice(&chain.encode());
        (head, chain)
    }

    /// Where the frame that comes after so many others starts in a file that begins with this header.
    #[must_use]
    pub fn byte_after(&self, frames: u64) -> u64 {
        frames.saturating_mul(self.frame_len()).saturating_add(HEADER_LEN as u64)
    }

    /// What the header of a frame claims, if such a frame can be of this log: it has its salts, the number of a page and a size
    /// that databases can have. Its checksum is not looked at.
    ///
    /// # Errors
    /// [`FormatError::Zeros`] or [`FormatError::NotALog`].
    #[inline]
    pub fn claim(&self, head: &[u8; FRAME_HEADER_LEN]) -> Result<FrameHeader, FormatError> {
        let claim = FrameHeader::decode(head);
        if claim.is_possible() && claim.salts == self.salts {
            return Ok(claim);
        }
        let zeros = head.iter().all(|byte| *byte == 0);
        Err(if zeros { FormatError::Zeros } else { FormatError::NotALog { found: head[..16].to_vec() } })
    }

    /// Checks that header and page are a frame of this log that continues the checksum `before`. After Ok the claims are
    /// true, and the next frame continues the checksum in them.
    ///
    /// # Errors
    /// Those of [`claim`](Self::claim), and [`FormatError::Checksum`].
    #[inline]
    pub fn check(&self, before: Chain, head: &[u8; FRAME_HEADER_LEN], page: &[u8]) -> Result<FrameHeader, FormatError> {
        let claim = self.claim(head)?;
        claim.check(before.over_frame(head, page, self.big_endian))?;
        Ok(claim)
    }
}

/// The header of a frame as it stands on disk: claims, until the checksum is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Which page of the database it holds; the first is 1.
    pub page: u32,
    /// Pages of the database after the commit that this frame ends; 0 when it ends none.
    pub size: u32,
    /// Those of the log it belongs to.
    pub salts: [u32; 2],
    /// The checksum of the log up to and with this frame.
    pub chain: Chain,
}

impl FrameHeader {
    /// Whether a database can have such a page and such a size.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        (1..=PAGE_MAX).contains(&self.page) && self.size <= PAGE_MAX
    }

    /// Checks the stored checksum against the one that header and page give.
    #[inline]
    fn check(&self, computed: Chain) -> Result<(), FormatError> {
        if self.chain == computed {
            return Ok(());
        }
        Err(FormatError::Checksum { stored: self.chain.number(), computed: computed.number() })
    }

    /// Reads a frame's header.
    #[must_use]
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> FrameHeader {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| u32::from_be_bytes(words[at]);
        let chain = Chain { s0: word(4), s1: word(5) };
        FrameHeader { page: word(0), size: word(1), salts: [word(2), word(3)], chain }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let words = [self.page, self.size, self.salts[0], self.salts[1], self.chain.s0, self.chain.s1];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        bytes
    }
}

/// What a walk over frames must know to start at some frame: the log's header, and the checksum of the frame before (at
/// the first frame, that of the header).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalStart {
    /// The header of the log.
    pub header: WalHeader,
    /// The checksum up to there.
    pub chain: Chain,
}

impl WalStart {
    /// The start of the log.
    #[must_use]
    pub fn first(header: WalHeader) -> WalStart {
        WalStart { header, chain: header.seed() }
    }
}

/// As text: header and checksum in hexadecimal.
impl fmt::Display for WalStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.header.encode().into_iter().chain(self.chain.encode()) {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for WalStart {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let damaged = || FormatError::Header { found: text.as_bytes()[..text.len().min(80)].to_vec() };
        let mut bytes = [0; HEADER_LEN + 8];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(damaged());
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
            let digits = std::str::from_utf8(digits).map_err(|_| damaged())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| damaged())?;
        }
        let (header, chain) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let chain = *chain.first_chunk().ok_or_else(damaged)?;
        Ok(WalStart { header: WalHeader::decode(header)?, chain: Chain::decode(chain) })
    }
}

/// The walk over a WAL: see [`Format`].
#[derive(Clone, Debug)]
pub struct Wal {
    start: Option<WalStart>,
    /// The offset that must come next, when known.
    expected: Option<Offset>,
    commit_bytes_max: u64,
    /// The unfinished commit: its frames and their bytes.
    frames: u32,
    bytes: u64,
    /// The running checksum, over all that was absorbed.
    chain: Chain,
    /// Header of the frame under way.
    head: [u8; FRAME_HEADER_LEN],
    /// Bytes of it absorbed, and of its page a rest that does not fill 8.
    seen: u64,
    rest: [u8; 8],
}

impl Wal {
    /// A walk that goes on from `start` with the frame `expected`; without a start, what comes first must be a header.
    #[must_use]
    pub fn new(start: Option<WalStart>, expected: Option<Offset>, commit_bytes_max: u64) -> Self {
        Wal {
            start,
            expected: expected.or(start.is_none().then_some(FIRST_FRAME)),
            commit_bytes_max,
            frames: 0,
            bytes: 0,
            chain: start.map_or(Chain::default(), |start| start.chain),
            head: [0; FRAME_HEADER_LEN],
            seen: 0,
            rest: [0; 8],
        }
    }

    /// What a walk would need to start where this one stands: behind the last whole commit.
    #[must_use]
    pub fn start(&self) -> Option<WalStart> {
        self.start
    }

    fn take_header(&mut self, header: WalHeader) -> Result<Begin<WalStart>, FormatError> {
        match self.start {
            None => self.start = Some(WalStart::first(header)),
            // Between two segments; the checksums run on.
            Some(start) if start.header == header && self.frames == 0 => {}
            Some(start) if start.header == header => {
                return Err(FormatError::Header { found: header.encode().to_vec() });
            }
            // A header that no frame followed says nothing: a crash leaves it.
            Some(start) if start == WalStart::first(start.header) && self.frames == 0 => {
                self.start = Some(WalStart::first(header));
            }
            Some(start) => {
                return Err(FormatError::Restarted { salts: start.header.salts, found: header.salts });
            }
        }
        let start = self.start.unwrap_or_else(|| WalStart::first(header));
        self.chain = start.chain;
        Ok(Begin::Header(start, HEADER_LEN))
    }

    #[inline]
    fn sum(&mut self, big_endian: bool, bytes: &[u8]) {
        self.chain = self.chain.over(bytes, big_endian);
    }
}

impl Format for Wal {
    const HEAD_MAX: usize = HEADER_LEN;
    type Header = WalStart;

    #[inline]
    fn begin(&mut self, head: &[u8]) -> Result<Begin<WalStart>, FormatError> {
        let Some(first) = head.first_chunk::<HEADER_LEN>() else {
            return Ok(Begin::Need(HEADER_LEN));
        };
        if WalHeader::starts(first) {
            return self.take_header(WalHeader::decode(first)?);
        }
        let Some(WalStart { header, .. }) = self.start else {
            return Err(FormatError::NotALog { found: first[..16].to_vec() });
        };
        let (frame, _) = first.split_first_chunk::<FRAME_HEADER_LEN>().unwrap_or((&[0; FRAME_HEADER_LEN], &[]));
        header.claim(frame)?;
        let len = self.bytes + header.frame_len();
        if len > self.commit_bytes_max {
            return Err(FormatError::TooLarge { len, max: self.commit_bytes_max });
        }
        if self.frames == u32::MAX || self.expected.is_some_and(|at| at.0.checked_add(self.frames.into()).is_none()) {
            let (first, entries) = (self.expected.unwrap_or_default(), self.frames);
            return Err(FormatError::OffsetOverflow { first, entries });
        }
        self.seen = 0;
        Ok(Begin::Unit(header.frame_len()))
    }

    #[inline]
    fn absorb(&mut self, mut piece: &[u8]) {
        let Some(WalStart { header, .. }) = self.start else {
            return;
        };
        if self.seen < FRAME_HEADER_LEN as u64 {
            let at = self.seen as usize;
            let (head, page) = piece.split_at(piece.len().min(FRAME_HEADER_LEN - at));
            self.head[at..at + head.len()].copy_from_slice(head);
            self.seen += head.len() as u64;
            piece = page;
            if self.seen < FRAME_HEADER_LEN as u64 {
                return;
            }
            let head = self.head;
            self.sum(header.big_endian, &head[..SUMMED_HEAD_LEN]);
        }
        // The header has 24 bytes, so whole eights of the page are whole eights of the frame.
        let rest = (self.seen % 8) as usize;
        self.seen += piece.len() as u64;
        if rest > 0 {
            let (fill, others) = piece.split_at(piece.len().min(8 - rest));
            self.rest[rest..rest + fill.len()].copy_from_slice(fill);
            piece = others;
            if rest + fill.len() == 8 {
                let filled = self.rest;
                self.sum(header.big_endian, &filled);
            }
        }
        let (eights, rest) = piece.as_chunks::<8>();
        self.sum(header.big_endian, eights.as_flattened());
        self.rest[..rest.len()].copy_from_slice(rest);
    }

    #[inline]
    fn end(&mut self) -> Result<Option<Commit>, FormatError> {
        let claim = FrameHeader::decode(&self.head);
        claim.check(self.chain)?;
        let Some(start) = &mut self.start else {
            return Ok(None);
        };
        self.frames += 1;
        self.bytes += start.header.frame_len();
        if claim.size == 0 {
            return Ok(None);
        }
        start.chain = self.chain;
        let (entries, bytes) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.bytes));
        let first = self.expected.unwrap_or(FIRST_FRAME);
        let commit = Commit { first, entries, epoch: Epoch(0), checksum: self.chain.number(), bytes };
        self.expected = Some(commit.end());
        Ok(Some(commit))
    }

    fn expected(&self) -> Option<Offset> {
        self.expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> ([u8; 4096], [u8; 4096]) {
        (std::array::from_fn(|at| (at % 251) as u8), [0; 4096])
    }

    #[test]
    fn a_page_or_a_size_that_no_database_has_is_no_frame() {
        let header = WalHeader { big_endian: false, page_size: 512, sequence: 0, salts: [1, 2] };
        let claimed = |page, size| {
            let (head, _) = header.frame(header.seed(), page, size, &[0; 512]);
            header.check(header.seed(), &head, &[0; 512]).is_ok()
        };
        assert!(claimed(PAGE_MAX, PAGE_MAX) && claimed(1, 0));
        assert!(!claimed(u32::MAX, 1) && !claimed(0, 1) && !claimed(1, u32::MAX));
    }

    #[test]
    fn checksums_are_those_of_sqlite() {
        for (big_endian, sums) in [
            (false, [0xd8ea_0514_98d8_e2be, 0x0391_d555_1996_78f9, 0x7a63_9839_0eb2_9205]),
            (true, [0x1706_e9db_c2e5_d89c, 0x2a29_1cf0_d25d_3785, 0xa1b9_0a98_dac0_2733_u64]),
        ] {
            let header = WalHeader { big_endian, page_size: 4096, sequence: 0, salts: [0x0102_0304, 0x0506_0708] };
            let (first, second) = content();
            let (_, one) = header.frame(header.seed(), 1, 0, &first);
            let (_, two) = header.frame(one, 2, 2, &second);
            assert_eq!([header.seed(), one, two].map(Chain::number), sums, "big endian: {big_endian}");
        }
    }

    #[test]
    fn the_checksum_of_another_log_with_the_same_frames_follows_from_ours() {
        let ours = WalHeader { big_endian: false, page_size: 512, sequence: 0, salts: [1, 2] };
        let theirs = WalHeader { sequence: 3, salts: [0xdead_beef, 77], ..ours };
        let (mut start, mut chain) = (WalStart::first(ours), theirs.seed());
        for n in 0..1000_u32 {
            assert_eq!(theirs.chain_like(n.into(), start), chain, "after {n} frames");
            let page: [u8; 512] = std::array::from_fn(|at| (at as u32).wrapping_mul(n ^ 0x9e37) as u8);
            start.chain = ours.frame(start.chain, n + 1, n % 3, &page).1;
            chain = theirs.frame(chain, n + 1, n % 3, &page).1;
        }
    }

    #[test]
    fn headers_read_back_and_damaged_ones_do_not() {
        let header = WalHeader { big_endian: true, page_size: 65_536, sequence: 7, salts: [1, 2] };
        let bytes = header.encode();
        assert_eq!(WalHeader::decode(&bytes), Ok(header));
        for at in 0..HEADER_LEN {
            let mut damaged = bytes;
            damaged[at] ^= 0x10;
            assert!(WalHeader::decode(&damaged).is_err(), "a flip in byte {at}");
        }
        let start = WalStart { header, chain: Chain { s0: 3, s1: 4 } };
        assert_eq!(start.to_string().parse(), Ok(start));
        for bad in ["", "00", &"é".repeat(40), &format!("{}x", &start.to_string()[1..])] {
            assert!(bad.parse::<WalStart>().is_err(), "{bad}");
        }
    }
}
