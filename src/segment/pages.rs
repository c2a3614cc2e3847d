//! The page index of a WAL segment: which frames hold a page, so that the newest one at or before some frame is found
//! by binary search. `{start:020}.idx` beside a sealed segment:
//!
//! ```text
//! 0       8         12          16      24      32     40       44  48
//! | magic | version | page size | start | count | last | crc32c | 0 | entry*
//!
//! entry := | page u32 | frame - start u32 |      sorted by page, then frame; one for each frame of the segment
//! ```
//!
//! All little-endian. `start` is the segment's first frame, `count` how many it has, and `last` the checksum stored with
//! the last of them, which no other history shares. The CRC32C covers all other bytes of the file.
//!
//! The file is a hint: one that is missing, short, damaged or of other frames than those in the segment is not used, and
//! the index is built again from the frames. What it finds is checked against the header of the frame itself.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;

use super::frames::{FrameError, Frames, frame_at, read_head, segment_name};
use crate::format::wal::{Chain, HEADER_LEN as WAL_HEADER_LEN, WalHeader, WalStart};
use crate::offset::Offset;
use crate::repo::{Repo, RepoFile};

const MAGIC: [u8; 8] = *b"LMPAGES\0";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 48;
const ENTRY_LEN: usize = 8;

/// Name of the page index of the segment whose first frame is `start`.
#[must_use]
pub fn index_name(start: Offset) -> String {
    format!("{start:020}.idx")
}

/// A page and a frame after the segment's start, in the order of the index.
fn key(page: u32, nth: u32) -> u64 {
    u64::from(page) << 32 | u64::from(nth)
}

/// The greatest key at which `page` may be found at or before frame `at`; `None` when the segment starts behind it.
fn last_key(start: Offset, page: u32, at: Offset) -> Option<u64> {
    let nth = at.0.checked_sub(start.0)?;
    Some(key(page, u32::try_from(nth).unwrap_or(u32::MAX)))
}

fn frame_of(start: Offset, page: u32, key: u64) -> Option<Offset> {
    let holds = (key >> 32) as u32 == page;
    holds.then_some(Offset(start.0.saturating_add(key & u64::from(u32::MAX))))
}

/// Pages that are looked for, the first being 1.
#[derive(Clone, Copy, Debug)]
pub enum Sought<'a> {
    /// All there are.
    All,
    /// A few, ascending: each is looked up by itself.
    These(&'a [u32]),
}

/// The page index of a segment that is still written, in memory. Frames go in as they are appended.
#[derive(Clone, Debug)]
pub struct OpenPages {
    start: Offset,
    keys: BTreeSet<u64>,
}

impl OpenPages {
    /// Of a segment without frames.
    #[must_use]
    pub fn new(start: Offset) -> OpenPages {
        OpenPages { start, keys: BTreeSet::new() }
    }

    /// Notes that the next frame holds `page`. A segment of 2^32 frames takes no more.
    pub fn push(&mut self, page: u32) {
        if let Ok(nth) = u32::try_from(self.keys.len()) {
            self.keys.insert(key(page, nth));
        }
    }

    /// Frames noted.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.keys.len() as u64
    }

    /// The newest frame of `page` at or before frame `at`.
    #[must_use]
    pub fn newest(&self, page: u32, at: Offset) -> Option<Offset> {
        let found = self.keys.range(..=last_key(self.start, page, at)?).next_back()?;
        frame_of(self.start, page, *found)
    }

    /// Gives `take` each sought page with its newest frame in `range`, if it has one there. False when `take` wants no more.
    pub fn each_newest(
        &self,
        range: &Range<Offset>,
        sought: Sought<'_>,
        take: &mut impl FnMut(u32, Offset) -> bool,
    ) -> bool {
        match sought {
            Sought::All => each_newest(self.keys.iter().copied(), self.start, range, take),
            Sought::These(pages) => each_of(pages, range, |page, at| self.newest(page, at), take),
        }
    }

    /// The index of the segment, now sealed: its log's header and the checksum of its last frame.
    #[must_use]
    pub fn seal(self, header: WalHeader, last: Chain) -> PageIndex {
        PageIndex { start: self.start, header, last, keys: self.keys.into_iter().collect() }
    }
}

/// The page index of a sealed segment.
#[derive(Clone, PartialEq, Eq)]
pub struct PageIndex {
    start: Offset,
    header: WalHeader,
    last: Chain,
    keys: Vec<u64>,
}

impl fmt::Debug for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageIndex")
            .field("start", &self.start)
            .field("frames", &self.keys.len())
            .finish_non_exhaustive()
    }
}

impl PageIndex {
    /// The index of the segment that starts at `start`, from its file; `None` when there is none that belongs to the
    /// frames in the segment, byte for byte what was stored.
    ///
    /// # Errors
    /// When the segment itself cannot be read.
    pub fn load(repo: &dyn Repo, start: Offset) -> Result<Option<PageIndex>, FrameError> {
        let header = Frames::open(repo, start, None)?.from().header;
        let io = |error| FrameError::Io { segment: start, error };
        let segment = repo.open(&segment_name(start)).map_err(io)?;
        let Some(frames) = whole_frames(segment.bytes().map_err(io)?, &header) else {
            return Ok(None);
        };
        let last = match frames.checked_sub(1) {
            None => Some(header.seed()),
            Some(nth) => {
                let at = frame_at(Offset(0), &header, Offset(nth.into()));
                read_head(&*segment, at).map_err(io)?.map(|head| head.chain)
            }
        };
        let found = read_whole(repo, start, frames).and_then(|bytes| decode(&bytes));
        Ok(found
            .filter(|index| {
                let same = (index.start, Some(index.last), index.keys.len()) == (start, last, frames as usize);
                same && index.header.page_size == header.page_size
            })
            .map(|index| PageIndex { header, ..index }))
    }

    /// Builds the index of the segment that starts at `start` from its frames, each verified. `from` is what the
    /// segment goes on from.
    ///
    /// # Errors
    /// When a frame is damaged or cut: only a sound segment gets an index.
    pub fn build(repo: &dyn Repo, start: Offset, from: WalStart) -> Result<PageIndex, FrameError> {
        let mut frames = Frames::open(repo, start, Some(from))?;
        let mut pages = OpenPages::new(start);
        while let Some((frame, _)) = frames.next()? {
            pages.push(frame.page);
        }
        Ok(pages.seal(from.header, frames.from().chain))
    }

    /// Loads the index, or builds it when that cannot be. Nothing is written.
    ///
    /// # Errors
    /// As [`build`](PageIndex::build).
    pub fn open(repo: &dyn Repo, start: Offset, from: WalStart) -> Result<PageIndex, FrameError> {
        match PageIndex::load(repo, start)? {
            Some(index) => Ok(index),
            None => PageIndex::build(repo, start, from),
        }
    }

    /// Writes it beside its segment. It is not synced: one that a crash tears is found out and built again.
    ///
    /// # Errors
    /// As the repo says; readers do without it then.
    pub fn store(&self, repo: &dyn Repo) -> io::Result<()> {
        let name = index_name(self.start);
        let draft = format!("{name}.tmp");
        match repo.remove(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        repo.create(&draft)?.write_at(&mut [IoSlice::new(&self.encode())], 0)?;
        repo.rename(&draft, &name)
    }

    /// The segment's first frame.
    #[must_use]
    pub fn start(&self) -> Offset {
        self.start
    }

    /// How many frames the segment has.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.keys.len() as u64
    }

    /// The newest frame of `page` at or before frame `at`.
    #[must_use]
    pub fn newest(&self, page: u32, at: Offset) -> Option<Offset> {
        let last = last_key(self.start, page, at)?;
        let behind = self.keys.partition_point(|key| *key <= last);
        frame_of(self.start, page, *self.keys.get(behind.checked_sub(1)?)?)
    }

    /// As [`OpenPages::each_newest`].
    pub fn each_newest(
        &self,
        range: &Range<Offset>,
        sought: Sought<'_>,
        take: &mut impl FnMut(u32, Offset) -> bool,
    ) -> bool {
        match sought {
            Sought::All => each_newest(self.keys.iter().copied(), self.start, range, take),
            Sought::These(pages) => each_of(pages, range, |page, at| self.newest(page, at), take),
        }
    }

    /// As [`newest`](PageIndex::newest), checked against the header of the frame in `segment`.
    ///
    /// # Errors
    /// `InvalidData` when that frame holds another page, or is of another log: the index is wrong, or the segment
    /// damaged.
    pub fn locate(&self, segment: &dyn RepoFile, page: u32, at: Offset) -> io::Result<Option<Offset>> {
        let Some(frame) = self.newest(page, at) else {
            return Ok(None);
        };
        let head = read_head(segment, frame_at(self.start, &self.header, frame))?;
        match head {
            Some(head) if head.page == page && head.salts == self.header.salts => Ok(Some(frame)),
            _ => {
                let found = head.map_or("nothing".to_owned(), |head| format!("page {}", head.page));
                let text = format!("frame {frame} should hold page {page}, but holds {found} (segment {})", self.start);
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.keys.len() * ENTRY_LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.header.page_size.to_le_bytes());
        bytes.extend(self.start.0.to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.last.number().to_le_bytes());
        bytes.extend([0; 8]);
        for key in &self.keys {
            bytes.extend(((key >> 32) as u32).to_le_bytes());
            bytes.extend((*key as u32).to_le_bytes());
        }
        let sum = checksum(&bytes).to_le_bytes();
        bytes[40..44].copy_from_slice(&sum);
        bytes
    }
}

/// Each page of `keys`, which are in order, with its newest frame in `range`.
fn each_newest(
    keys: impl Iterator<Item = u64>,
    start: Offset,
    range: &Range<Offset>,
    take: &mut impl FnMut(u32, Offset) -> bool,
) -> bool {
    let mut newest: Option<(u32, Offset)> = None;
    for key in keys {
        let (page, frame) = ((key >> 32) as u32, Offset(start.0.saturating_add(key & u64::from(u32::MAX))));
        if !range.contains(&frame) {
            continue;
        }
        if let Some((before, found)) = newest.filter(|(before, _)| *before != page)
            && !take(before, found)
        {
            return false;
        }
        newest = Some((page, frame));
    }
    newest.is_none_or(|(page, frame)| take(page, frame))
}

/// Each of `pages` that has a frame in `range`, with its newest one there.
fn each_of(
    pages: &[u32],
    range: &Range<Offset>,
    newest: impl Fn(u32, Offset) -> Option<Offset>,
    take: &mut impl FnMut(u32, Offset) -> bool,
) -> bool {
    let Some(last) = range.end.0.checked_sub(1) else {
        return true;
    };
    pages.iter().all(|page| match newest(*page, Offset(last)) {
        Some(frame) if frame >= range.start => take(*page, frame),
        _ => true,
    })
}

/// Over all bytes but those where it stands itself.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..40]), &bytes[44..])
}

/// How many frames a segment of that length has; `None` when it ends inside one or has more than an index can name.
fn whole_frames(bytes: u64, header: &WalHeader) -> Option<u32> {
    let bytes = bytes.checked_sub(WAL_HEADER_LEN as u64)?;
    let whole = bytes.is_multiple_of(header.frame_len());
    u32::try_from(bytes / header.frame_len()).ok().filter(|_| whole)
}

/// The file, if it is as long as an index of that many frames; never more is held than such a one has.
fn read_whole(repo: &dyn Repo, start: Offset, frames: u32) -> Option<Vec<u8>> {
    let file = repo.open(&index_name(start)).ok()?;
    let len = HEADER_LEN + frames as usize * ENTRY_LEN;
    if file.bytes().ok()? != len as u64 {
        return None;
    }
    let mut bytes = vec![0; len];
    (file.read_at(&mut bytes, 0).ok()? == len).then_some(bytes)
}

/// What is in these bytes, if they are an index that is sound in itself. Of the log's header it holds only the page size.
fn decode(bytes: &[u8]) -> Option<PageIndex> {
    let (head, entries) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|nth| head[at + nth]));
    let whole = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
    let (entries, rest) = entries.as_chunks::<ENTRY_LEN>();
    let sound = head[..8] == MAGIC && half(8) == VERSION && half(40) == checksum(bytes) && half(44) == 0;
    if !sound || !rest.is_empty() || whole(24) != entries.len() as u64 {
        return None;
    }
    let entry = |[a, b, c, d, e, f, g, h]: &[u8; ENTRY_LEN]| {
        key(u32::from_le_bytes([*a, *b, *c, *d]), u32::from_le_bytes([*e, *f, *g, *h]))
    };
    let keys: Vec<u64> = entries.iter().map(entry).collect();
    let named = keys.iter().all(|key| (*key & u64::from(u32::MAX)) < keys.len() as u64);
    let header = WalHeader { big_endian: false, page_size: half(12), sequence: 0, salts: [0; 2] };
    let last = Chain::decode(whole(32).to_be_bytes());
    (named && keys.is_sorted_by(|a, b| a < b)).then_some(PageIndex { start: Offset(whole(16)), header, last, keys })
}
