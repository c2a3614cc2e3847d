//! Finding a page of a WAL log as of a frame: in the page indexes of its sealed segments, and in memory for the open one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::error::Error;
use super::log::Log;
use crate::format::Framing;
use crate::format::wal::{FrameHeader, WalHeader, WalStart};
use crate::limits::{HEADERS_READ_MAX, PAGE_INDEX_FRAMES_MAX, PAGE_INDEXES_MAX};
use crate::offset::Offset;
use crate::repo::RepoFile;
use crate::segment::frames::{FrameError, frame_at, read_head, segment_name};
pub use crate::segment::pages::Sought;
use crate::segment::pages::{OpenPages, PageIndex};
use crate::stream::SegmentInfo;

/// The page indexes of a log that are in memory.
#[derive(Debug, Default)]
pub(super) struct Pages {
    sealed: BTreeMap<Offset, Arc<PageIndex>>,
    /// Of the segment that starts there and is still written.
    open: Option<(Offset, OpenPages)>,
}

impl Log {
    /// The newest durable frame that holds `page` at or before `frame`; `None` when that page is as in the base. Blocks:
    /// an index that is missing is built from its segment, once.
    ///
    /// # Errors
    /// When a segment cannot be read, or is damaged.
    pub fn page_at(&self, page: u32, frame: Offset) -> Result<Option<Offset>, Error> {
        self.intact()?;
        let view = self.view();
        let Framing::Wal(Some(WalStart { header, .. })) = view.framing else {
            return Ok(None);
        };
        let last = Offset(view.durable.0.saturating_sub(1)).min(frame);
        if let Some(head) = view.head.filter(|head| head.start <= last)
            && let Some(found) = self.open_pages(&mut self.pages(), &head, &header)?.newest(page, last)
        {
            return Ok(Some(found));
        }
        for segment in view.sealed.iter().rev().filter(|segment| segment.start <= last) {
            let index = self.sealed_pages(segment)?;
            let file = self.repo().open(&segment_name(segment.start))?;
            if let Some(found) = index.locate(&*file, page, last)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Gives `take` the frames of `range` that hold a page for the last time in it: page and frame. Of each page its newest
    /// frame comes before any older one, which may follow too. Ends early when `take` answers false. Frames that are not
    /// durable are left out. Blocks, as [`page_at`](Self::page_at) does; short ranges are told by the frames' own headers.
    ///
    /// # Errors
    /// As [`page_at`](Self::page_at).
    pub fn newest_frames(
        &self,
        range: &Range<Offset>,
        sought: Sought<'_>,
        mut take: impl FnMut(u32, Offset) -> bool,
    ) -> Result<(), Error> {
        self.intact()?;
        let view = self.view();
        let Framing::Wal(Some(WalStart { header, .. })) = view.framing else {
            return Ok(());
        };
        for (segment, sealed) in
            view.head.iter().map(|head| (head, false)).chain(view.sealed.iter().rev().map(|s| (s, true)))
        {
            let part = range.start.max(segment.start)..range.end.min(segment.end);
            if part.is_empty() {
                continue;
            }
            let more = if part.end.0 - part.start.0 <= HEADERS_READ_MAX {
                let file = self.repo().open(&segment_name(segment.start))?;
                let numbers = (part.start.0..part.end.0).rev().map(Offset);
                each(
                    numbers.map(|number| Ok((head_of(&*file, segment, &header, number)?.page, number))),
                    sought,
                    &mut take,
                )?
            } else if sealed {
                self.sealed_pages(segment)?.each_newest(&part, sought, &mut take)
            } else {
                self.open_pages(&mut self.pages(), segment, &header)?.each_newest(&part, sought, &mut take)
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// The index of the open segment, with all its durable frames in it.
    fn open_pages<'a>(
        &self,
        pages: &'a mut Pages,
        head: &SegmentInfo,
        header: &WalHeader,
    ) -> Result<&'a OpenPages, Error> {
        let known = pages.open.take().filter(|(start, _)| *start == head.start);
        let (start, open) = pages.open.insert(known.unwrap_or_else(|| (head.start, OpenPages::new(head.start))));
        let file = self.repo().open(&segment_name(*start))?;
        fill(open, &*file, head, header)?;
        Ok(open)
    }

    fn sealed_pages(&self, segment: &SegmentInfo) -> Result<Arc<PageIndex>, Error> {
        // Held while an index is loaded, so that many who ask at once have it loaded once.
        let mut pages = self.pages();
        if let Some(index) = pages.sealed.get(&segment.start) {
            return Ok(index.clone());
        }
        let frames: u64 = pages.sealed.values().map(|index| index.frames()).sum();
        if pages.sealed.len() >= PAGE_INDEXES_MAX || frames > PAGE_INDEX_FRAMES_MAX {
            pages.sealed.clear();
        }
        let index = Arc::new(self.load_pages(segment)?);
        pages.sealed.insert(segment.start, index.clone());
        Ok(index)
    }

    /// The index of a sealed segment, built and stored if there is none. One that cannot be stored is done without.
    fn load_pages(&self, segment: &SegmentInfo) -> Result<PageIndex, Error> {
        let Framing::Wal(Some(from)) = segment.framing else {
            return Err(Error::Damaged(format!("segment {} is none of a wal", segment.start).into()));
        };
        let damaged = |error: FrameError| match error {
            FrameError::Io { error, .. } => Error::from(error),
            error => Error::Damaged(error.to_string().into()),
        };
        if let Some(index) = PageIndex::load(&**self.repo(), segment.start).map_err(damaged)? {
            return Ok(index);
        }
        let index = PageIndex::build(&**self.repo(), segment.start, from).map_err(damaged)?;
        if let Err(error) = index.store(&**self.repo()) {
            log::warn!("{}: the page index of segment {} was not stored: {error}", self.name(), segment.start);
        }
        Ok(index)
    }

    /// Gives a segment sealed just now its index. What goes wrong is said in the log and no more: the index is built when
    /// it is asked for. So it is when somebody who asks stores the same one now: what two leave who write the same file is
    /// used only if it is whole.
    pub(super) fn index_pages(&self, segment: &SegmentInfo) {
        if let Err(error) = self.store_pages(segment) {
            log::warn!("{}: no page index of segment {}: {error}", self.name(), segment.start);
        }
    }

    fn store_pages(&self, segment: &SegmentInfo) -> Result<(), Error> {
        let Framing::Wal(Some(WalStart { header, .. })) = segment.framing else {
            return Ok(());
        };
        let known = self.pages().open.take_if(|(start, _)| *start == segment.start);
        let mut open = known.map_or_else(|| OpenPages::new(segment.start), |(_, open)| open);
        let file = self.repo().open(&segment_name(segment.start))?;
        fill(&mut open, &*file, segment, &header)?;
        let last = read_head(&*file, frame_at(segment.start, &header, Offset(segment.end.0 - 1)))?;
        if let Some(last) = last {
            open.seal(header, last.chain).store(&**self.repo())?;
        }
        Ok(())
    }
}

/// Adds the frames of a segment that are not in its index yet, by their headers: they were verified when they came.
fn fill(open: &mut OpenPages, file: &dyn RepoFile, segment: &SegmentInfo, header: &WalHeader) -> Result<(), Error> {
    for number in segment.start.0 + open.frames()..segment.end.0 {
        open.push(head_of(file, segment, header, Offset(number))?.page);
    }
    Ok(())
}

/// The header of a durable frame of a segment.
fn head_of(
    file: &dyn RepoFile,
    segment: &SegmentInfo,
    header: &WalHeader,
    number: Offset,
) -> Result<FrameHeader, Error> {
    match read_head(file, frame_at(segment.start, header, number))? {
        Some(frame) if frame.page != 0 && frame.salts == header.salts => Ok(frame),
        _ => Err(Error::Damaged(format!("frame {number} is not where it must be").into())),
    }
}

/// Gives `take` the frames that are sought; false when it wants no more.
fn each(
    frames: impl Iterator<Item = Result<(u32, Offset), Error>>,
    sought: Sought<'_>,
    take: &mut impl FnMut(u32, Offset) -> bool,
) -> Result<bool, Error> {
    for found in frames {
        let (page, frame) = found?;
        let is_sought = match sought {
            Sought::All => true,
            Sought::These(pages) => pages.binary_search(&page).is_ok(),
        };
        if is_sought && !take(page, frame) {
            return Ok(false);
        }
    }
    Ok(true)
}
