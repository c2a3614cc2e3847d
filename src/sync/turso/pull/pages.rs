//! The pages of a plan, read in runs of neighbours and encoded where they were read to.

use std::fmt;
use std::iter::Peekable;
use std::sync::Arc;

use roaring::{RoaringBitmap, bitmap, treemap};

use super::plan::{LOCK_PAGE, Plan};
use super::revision::{Base, Point};
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, WalHeader};
use crate::format::{Framing, database};
use crate::mirror::Error;
use crate::offset::Offset;
use crate::repo::RepoFile;
use crate::segment::frames::{frame_at, segment_name};
use crate::stream::SegmentInfo;
use crate::sync::FRAME_LEN;
use crate::sync::turso::proto::{PAGE_EXTRA_MAX, PAGE_LEN, write_page_head};

/// Pages whose contents stand one after the other.
#[derive(Clone, Copy, Debug)]
struct Run {
    place: Place,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// From this page of the base on, the first being 0.
    Base(u32),
    /// Nowhere: the page with the locks, as zeros.
    Nowhere(u32),
    /// From this frame on, in the segment that starts there.
    Frames(Offset, Offset),
}

/// What is left to be read. Base first, then frames, each in order.
pub(super) struct Pages {
    at: Point,
    header: Option<WalHeader>,
    base: Base,
    in_base: Peekable<bitmap::IntoIter>,
    frames: Peekable<treemap::IntoIter>,
    segments: Vec<SegmentInfo>,
    /// The segment that was read last.
    open: Option<(Offset, Arc<dyn RepoFile>)>,
    /// Pages that were not encoded yet: each is encoded once.
    due: RoaringBitmap,
    /// One that could not be read without waiting.
    pending: Option<Run>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("at", &self.at).field("left", &self.left()).finish_non_exhaustive()
    }
}

/// How far a block was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// As far as it goes.
    Full,
    /// What comes next is not in memory.
    Wait,
}

impl Pages {
    /// Opens what is read first. Blocks.
    ///
    /// # Errors
    /// When that cannot be opened.
    pub(super) fn open(plan: Plan) -> Result<Pages, Error> {
        let Plan { at, base, mut due, in_base, frames } = plan;
        // Runs are small, but slow to take single pages out of.
        due.remove_run_compression();
        let segments = if frames.is_empty() { Vec::new() } else { at.log.view().segments().copied().collect() };
        let header = at.log.wal_end().map(|end| end.header);
        let (in_base, frames) = (in_base.into_iter().peekable(), frames.into_iter().peekable());
        let mut pages = Pages { at, header, base, in_base, frames, segments, open: None, due, pending: None };
        if let Some(first) = pages.frames.peek().copied() {
            let segment = pages.segment_of(first)?;
            pages.segment(segment.start)?;
        }
        Ok(pages)
    }

    fn segment_of(&self, frame: u64) -> Result<SegmentInfo, Error> {
        let nth = self.segments.partition_point(|segment| segment.end.0 <= frame);
        let segment = self.segments.get(nth).copied().filter(|segment| segment.start.0 <= frame);
        segment.ok_or_else(|| Error::Damaged(format!("frame {frame} is in no segment").into()))
    }

    /// Opens the segment that starts at `start`.
    fn segment(&mut self, start: Offset) -> Result<Arc<dyn RepoFile>, Error> {
        let file = self.at.log.repo().open(&segment_name(start))?;
        self.open = Some((start, file.clone()));
        Ok(file)
    }

    /// How many are left.
    pub(super) fn left(&self) -> u64 {
        self.due.len()
    }

    /// Encodes pages into `space` from byte `end` on, and moves that. With `cached` it never waits for a disk.
    ///
    /// # Errors
    /// When they cannot be read, or what is there is not what should be.
    pub(super) fn fill(&mut self, space: &mut [u8], end: &mut usize, cached: bool) -> Result<Filled, Error> {
        loop {
            let room = (space.len() - *end) / FRAME_LEN;
            let run = match self.pending.take() {
                Some(run) => run,
                None => match self.next_run(room)? {
                    Some(run) => run,
                    None => return Ok(Filled::Full),
                },
            };
            match self.read(run, &mut space[*end..], cached)? {
                Some(bytes) => *end += bytes,
                None => {
                    self.pending = Some(run);
                    return Ok(Filled::Wait);
                }
            }
        }
    }

    fn next_run(&mut self, room: usize) -> Result<Option<Run>, Error> {
        if room == 0 {
            return Ok(None);
        }
        if let Some(first) = self.in_base.next() {
            if u64::from(first) >= self.base.pages {
                return Ok(Some(Run { place: Place::Nowhere(first), count: 1 }));
            }
            let end = u32::try_from(self.base.pages).unwrap_or(u32::MAX);
            let mut count = 1;
            while count < room && self.in_base.next_if(|page| *page < end && *page == first + count as u32).is_some() {
                count += 1;
            }
            return Ok(Some(Run { place: Place::Base(first), count }));
        }
        let Some(first) = self.frames.next() else {
            return Ok(None);
        };
        let segment = self.segment_of(first)?;
        let mut count = 1;
        while count < room
            && self.frames.next_if(|frame| *frame < segment.end.0 && *frame == first + count as u64).is_some()
        {
            count += 1;
        }
        Ok(Some(Run { place: Place::Frames(segment.start, Offset(first)), count }))
    }

    /// Reads and encodes a run for which there is room; how many bytes that makes, or none when it would have to wait.
    fn read(&mut self, run: Run, space: &mut [u8], cached: bool) -> Result<Option<usize>, Error> {
        let count = run.count;
        match run.place {
            Place::Base(first) => {
                // Behind where they go, since what stands before each page makes it longer.
                let from = count * PAGE_EXTRA_MAX;
                let target = &mut space[from..from + count * PAGE_LEN];
                let (at, wanted) = (u64::from(first) * PAGE_LEN as u64, target.len());
                let read = match cached {
                    true => self.base.content.read_cached(target, at)?,
                    false => Some(self.base.content.read_at(target, at)?),
                };
                match read {
                    Some(count) if count == wanted => {}
                    Some(count) => {
                        let text = format!("the base ends at byte {}, {wanted} were wanted", at + count as u64);
                        return Err(Error::Damaged(text.into()));
                    }
                    None => return Ok(None),
                }
                let mut end = 0;
                for (nth, page) in (first..).take(count).enumerate() {
                    end = self.encode(page, space, end, from + nth * PAGE_LEN)?;
                }
                Ok(Some(end))
            }
            Place::Nowhere(page) => {
                space[PAGE_EXTRA_MAX..PAGE_EXTRA_MAX + PAGE_LEN].fill(0);
                debug_assert_eq!(page, LOCK_PAGE);
                self.encode(page, space, 0, PAGE_EXTRA_MAX).map(Some)
            }
            Place::Frames(segment, first) => {
                let Some(header) = self.header else {
                    return Err(Error::Damaged("the log has no header".into()));
                };
                let file = match &self.open {
                    Some((start, file)) if *start == segment => file.clone(),
                    _ if cached => return Ok(None),
                    _ => self.segment(segment)?,
                };
                let at = frame_at(segment, &header, first).0;
                let Some(mut chain) = self.chain_before((segment, first), &*file, at, cached)? else {
                    return Ok(None);
                };
                if !read(&*file, &mut space[..count * FRAME_LEN], at, cached)? {
                    return Ok(None);
                }
                let mut end = 0;
                for nth in 0..count {
                    let frame = nth * FRAME_LEN;
                    // Clients have no checksum to look at.
                    let head = space[frame..frame + FRAME_LEN].split_first_chunk();
                    let head = head.and_then(|(head, page)| header.check(chain, head, page).ok());
                    let head = head.ok_or_else(|| {
                        let text =
                            format!("frame {} is not what was stored: its checksum is wrong", first.0 + nth as u64);
                        Error::Damaged(text.into())
                    })?;
                    chain = head.chain;
                    // As in a base: a client keeps it in a database that has a WAL.
                    if head.page == 1 {
                        database::state_wal(&mut space[frame + FRAME_HEADER_LEN..frame + FRAME_LEN]);
                    }
                    end = self.encode(head.page - 1, space, end, frame + FRAME_HEADER_LEN)?;
                }
                Ok(Some(end))
            }
        }
    }

    /// The checksum that the frame `first` continues, which starts at byte `at`; none when reading it would have to wait.
    fn chain_before(
        &self,
        (segment, first): (Offset, Offset),
        file: &dyn RepoFile,
        at: u64,
        cached: bool,
    ) -> Result<Option<Chain>, Error> {
        if first == segment {
            let found = self.segments.iter().find(|found| found.start == segment).map(|found| found.framing);
            return match found {
                Some(Framing::Wal(Some(start))) => Ok(Some(start.chain)),
                _ => Err(Error::Damaged(format!("segment {segment} has no header").into())),
            };
        }
        let mut head = [0; FRAME_HEADER_LEN];
        let there = read(file, &mut head, at - FRAME_LEN as u64, cached)?;
        Ok(there.then(|| FrameHeader::decode(&head).chain))
    }

    /// Encodes the page whose content stands at `from`, so that it starts at `end`; where it ends. What stands before a page
    /// is shorter than the space between `end` and `from`.
    fn encode(&mut self, page: u32, space: &mut [u8], end: usize, from: usize) -> Result<usize, Error> {
        if !self.due.remove(page) {
            return Err(Error::Damaged(format!("page {} is not where the page index says", page + 1).into()));
        }
        let mut head = [0; PAGE_EXTRA_MAX];
        let bytes = write_page_head(page, &mut head);
        space[end..end + bytes].copy_from_slice(&head[..bytes]);
        space.copy_within(from..from + PAGE_LEN, end + bytes);
        Ok(end + bytes + PAGE_LEN)
    }
}

/// Fills `target`; false when that would have to wait.
fn read(file: &dyn RepoFile, target: &mut [u8], at: u64, cached: bool) -> Result<bool, Error> {
    let wanted = target.len();
    if cached {
        return Ok(file.read_cached(target, at)? == Some(wanted));
    }
    match file.read_at(target, at)? {
        count if count == wanted => Ok(true),
        count => Err(Error::Damaged(format!("a file ends at byte {}, {wanted} were wanted", at + count as u64).into())),
    }
}
