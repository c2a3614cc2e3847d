//! Finding a page of a WAL log as of a frame: in the page indexes of its sealed segments, and in memory for the open one.

use std::collections::BTreeMap;

use super::error::Error;
use super::log::Log;
use crate::format::Framing;
use crate::format::wal::{WalHeader, WalStart};
use crate::limits::PAGE_INDEXES_MAX;
use crate::offset::Offset;
use crate::repo::RepoFile;
use crate::segment::frames::{FrameError, frame_at, read_head, segment_name};
use crate::segment::pages::{OpenPages, PageIndex};
use crate::stream::SegmentInfo;

/// The page indexes of a log that are in memory.
#[derive(Debug, Default)]
pub(super) struct Pages {
    sealed: BTreeMap<Offset, PageIndex>,
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
        self.readable()?;
        let view = self.view();
        let Framing::Wal(Some(WalStart { header, .. })) = view.framing else {
            return Ok(None);
        };
        let last = Offset(view.durable.0.saturating_sub(1)).min(frame);
        let mut pages = self.pages();
        if let Some(head) = view.head.filter(|head| head.start <= last)
            && let Some(found) = self.open_pages(&mut pages, &head, &header)?.newest(page, last)
        {
            return Ok(Some(found));
        }
        for segment in view.sealed.iter().rev().filter(|segment| segment.start <= last) {
            let index = self.sealed_pages(&mut pages, segment)?;
            let file = self.repo().open(&segment_name(segment.start))?;
            if let Some(found) = index.locate(&*file, page, last)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
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

    fn sealed_pages<'a>(&self, pages: &'a mut Pages, segment: &SegmentInfo) -> Result<&'a PageIndex, Error> {
        if !pages.sealed.contains_key(&segment.start) {
            if pages.sealed.len() >= PAGE_INDEXES_MAX {
                pages.sealed.clear();
            }
            let index = self.load_pages(segment)?;
            pages.sealed.insert(segment.start, index);
        }
        pages.sealed.get(&segment.start).ok_or_else(|| Error::Unavailable("the page index is gone".into()))
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
        match read_head(file, frame_at(segment.start, header, Offset(number)))? {
            Some(frame) if frame.page != 0 && frame.salts == header.salts => open.push(frame.page),
            _ => return Err(Error::Damaged(format!("frame {number} is not where it must be").into())),
        }
    }
    Ok(())
}
