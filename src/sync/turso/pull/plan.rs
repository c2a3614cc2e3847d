//! Which pages go into an answer, and where their content stands: found in the page indexes, before anything is read.

use bytes::Bytes;
use roaring::{RoaringBitmap, RoaringTreemap};

use super::revision::{Base, Point};
use super::selector;
use crate::format::database::lock_page;
use crate::limits::{LIBSQL_PAGE_SIZE, PAGES_LOOKED_UP_MAX};
use crate::mirror::{Error, Sought};
use crate::offset::Offset;

/// The page that nothing ever writes, the first being 0.
pub(super) const LOCK_PAGE: u32 = lock_page(LIBSQL_PAGE_SIZE) - 1;

/// Pages of a state, by where their content is. The sets of pages take a bit for each page of the database at the most, that
/// of frames two bytes for each page that is due: for all of 4 million pages less than 10 MiB, and 2 MiB if their frames
/// stand close together. An increment takes as little as it is long.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) at: Point,
    pub(super) base: Base,
    /// All pages, the first being 0.
    pub(super) due: RoaringBitmap,
    /// Those of them whose content is in the base; the page with the locks may be behind its end, and is zeros then.
    pub(super) in_base: RoaringBitmap,
    /// The frames with the content of all others.
    pub(super) frames: RoaringTreemap,
}

impl Plan {
    fn new(at: &Point) -> Result<Plan, Error> {
        let base = Base::open(&at.log)?;
        // A size is a claim: each page has to be somewhere, but for the one with the locks.
        let there = base.pages.saturating_add(at.revision.frame.0).saturating_add(1);
        if u64::from(at.size) > there {
            let (size, frame) = (at.size, at.revision.frame);
            let text = format!("frame {frame} says that the database has {size} pages, which are not all there");
            return Err(Error::Damaged(text.into()));
        }
        let (due, in_base) = Default::default();
        Ok(Plan { at: at.clone(), base, due, in_base, frames: RoaringTreemap::new() })
    }

    /// All pages at `at`, or those selected. Blocks.
    ///
    /// # Errors
    /// When the selector is none, or the log cannot be read.
    pub(super) fn whole(at: &Point, selector: &Bytes) -> Result<Plan, Error> {
        let mut plan = Plan::new(at)?;
        let due = selector::select(selector, at.size)?.unwrap_or_else(|| selector::all(at.size));
        plan.add(due, Offset(at.revision.frame.0 + 1))?;
        Ok(plan)
    }

    /// The pages that differ between two states of one generation, or those of them that are selected; a page that was
    /// written and is the same again may be among them. Blocks.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub(super) fn between(from: &Point, at: &Point, selector: &Bytes) -> Result<Plan, Error> {
        let mut plan = Plan::new(at)?;
        let selected = selector::select(selector, at.size)?;
        let after = Offset(from.revision.frame.0 + 1);
        plan.add_written(after, selected.as_ref())?;
        plan.add_rest(grown(from, at), selected, after)?;
        Ok(plan)
    }

    /// As [`between`](Self::between), from a state of an earlier generation: `before` are the pages that may differ between
    /// that and the base of this one.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub(super) fn across(from: &Point, before: RoaringBitmap, at: &Point, selector: &Bytes) -> Result<Plan, Error> {
        let mut plan = Plan::new(at)?;
        let selected = selector::select(selector, at.size)?;
        plan.add_written(Offset(1), selected.as_ref())?;
        plan.add_rest(before | grown(from, at), selected, Offset(1))?;
        Ok(plan)
    }

    /// Adds what was written from frame `after` on.
    fn add_written(&mut self, after: Offset, selected: Option<&RoaringBitmap>) -> Result<(), Error> {
        let (size, due, frames) = (self.at.size, &mut self.due, &mut self.frames);
        let range = after..Offset(self.at.revision.frame.0 + 1);
        self.at.log.newest_frames(&range, Sought::All, |page, frame| {
            let is_due = page <= size && selected.is_none_or(|selected| selected.contains(page - 1));
            if is_due && due.insert(page - 1) {
                frames.insert(frame.0);
            }
            true
        })
    }

    /// Adds pages that were not written from frame `after` on, unless they are not selected.
    fn add_rest(
        &mut self,
        mut rest: RoaringBitmap,
        selected: Option<RoaringBitmap>,
        after: Offset,
    ) -> Result<(), Error> {
        rest.remove_range(self.at.size..);
        rest -= &self.due;
        if let Some(selected) = selected {
            rest &= selected;
        }
        self.add(rest, after)
    }

    /// Adds pages with their content before frame `end`.
    fn add(&mut self, mut rest: RoaringBitmap, end: Offset) -> Result<(), Error> {
        self.due |= &rest;
        // Runs are small, but slow to take single pages out of.
        rest.remove_run_compression();
        let few: Option<Vec<u32>> =
            (rest.len() <= PAGES_LOOKED_UP_MAX).then(|| rest.iter().map(|page| page + 1).collect());
        let sought = few.as_ref().map_or(Sought::All, |pages| Sought::These(pages));
        let (mut left, frames) = (rest.len(), &mut self.frames);
        if left > 0 {
            self.at.log.newest_frames(&(Offset(1)..end), sought, |page, frame| {
                if rest.remove(page - 1) {
                    frames.insert(frame.0);
                    left -= 1;
                }
                left > 0
            })?;
        }
        let end = u32::try_from(self.base.pages).unwrap_or(u32::MAX);
        if let Some(missing) = rest.range(end..).find(|page| *page != LOCK_PAGE) {
            let text = format!("page {} of {} is neither in the base nor in the log", missing + 1, self.at.size);
            return Err(Error::Damaged(text.into()));
        }
        self.in_base |= rest;
        Ok(())
    }
}

/// Pages that the state at `from` does not have, and the one at `at` has.
fn grown(from: &Point, at: &Point) -> RoaringBitmap {
    let mut pages = RoaringBitmap::new();
    pages.insert_range(from.size..at.size.max(from.size));
    pages
}
