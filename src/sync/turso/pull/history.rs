//! From one generation to a later one. The base of a generation need not be what the one before ended with: whoever starts
//! a generation gives it any base. So unless this process folded the one into the other itself, the two are compared, page
//! by page, once for all who step over.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use prost::Message;
use roaring::RoaringBitmap;
use tokio::sync::{OnceCell, watch};

use super::blocking;
use super::pages::Pages;
use super::plan::Plan;
use super::revision::{Base, Point};
use crate::limits::READ_BLOCK;
use crate::mirror::{Error, Log};
use crate::offset::Offset;
use crate::sync::turso::proto::{PAGE_LEN, PageData};

type Differing = Arc<OnceCell<RoaringBitmap>>;

/// What is known of the ends of generations and the bases of later ones. It takes a bit for a page at the most, for each
/// two that somebody stepped between, and forgets what no log needs any more.
#[derive(Debug, Default)]
pub(super) struct Steps(Mutex<Vec<Step>>);

#[derive(Debug)]
struct Step {
    /// Not held, so that they can be deleted.
    from: Weak<Log>,
    to: Weak<Log>,
    differing: Differing,
}

impl Steps {
    /// The pages that differ between the end of `from` and the base of `to`, the first being 0. Only the first one who asks has
    /// them compared, which reads both.
    ///
    /// # Errors
    /// When one of the two cannot be read, or the service shuts down meanwhile.
    pub(super) async fn between(
        &self,
        from: &Arc<Log>,
        to: &Arc<Log>,
        stop: watch::Receiver<bool>,
    ) -> Result<RoaringBitmap, Error> {
        if to.is_folded_from(from) {
            return Ok(RoaringBitmap::new());
        }
        let differing = self.find(from, to);
        let (from, to) = (from.clone(), to.clone());
        // A task of its own: a client that leaves must not have the next one begin from the start.
        let finding = tokio::spawn(async move {
            let found = differing.get_or_try_init(|| blocking(move || compare(&from, &to, &stop)));
            found.await.cloned()
        });
        finding.await.unwrap_or_else(|_| Err(Error::Unavailable("the comparison was interrupted".into())))
    }

    fn find(&self, from: &Arc<Log>, to: &Arc<Log>) -> Differing {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.retain(|step| step.from.strong_count() > 0 && step.to.strong_count() > 0);
        let is = |step: &&Step| step.from.as_ptr() == Arc::as_ptr(from) && step.to.as_ptr() == Arc::as_ptr(to);
        if let Some(step) = steps.iter().find(is) {
            return step.differing.clone();
        }
        let differing = Differing::default();
        let (from, to) = (Arc::downgrade(from), Arc::downgrade(to));
        steps.push(Step { from, to, differing: differing.clone() });
        differing
    }
}

/// Pages that a base of fewer pages lacks are left out: what holds them later is a frame.
fn compare(from: &Arc<Log>, to: &Arc<Log>, stop: &watch::Receiver<bool>) -> Result<RoaringBitmap, Error> {
    let (end, base) = (Point::newest(from)?, Base::open(to)?);
    let mut pages = Pages::open(Plan::whole(&end, &Bytes::new())?)?;
    let mut differing = RoaringBitmap::new();
    if let Ok(grown) = u32::try_from(base.pages) {
        differing.insert_range(end.size..grown.max(end.size));
    }
    let (mut block, mut other) = (vec![0; READ_BLOCK], [0; PAGE_LEN]);
    while pages.left() > 0 {
        if *stop.borrow() {
            return Err(Error::Unavailable("the service is shutting down".into()));
        }
        let mut filled = 0;
        pages.fill(&mut block, &mut filled, false)?;
        let mut encoded = &block[..filled];
        if encoded.is_empty() {
            return Err(Error::Damaged(format!("{} pages are not there", pages.left()).into()));
        }
        while !encoded.is_empty() {
            let page = PageData::decode_length_delimited(&mut encoded);
            let page = page.map_err(|error| Error::Unavailable(format!("a page was not encoded well: {error}")))?;
            if page.page_id < base.pages {
                base.read(page.page_id, &mut other)?;
                if page.encoded_page[..] != other {
                    differing.insert(page.page_id as u32);
                }
            }
        }
    }
    let (name, first, second) = (from.name(), from.generation(), to.generation());
    let (count, size) = (differing.len(), base.pages);
    log::debug!(
        "{name}: {count} of {size} pages differ between the end of generation {first} and the base of {second}"
    );
    Ok(differing)
}

/// Whether one state comes before another one of the same log.
pub(super) fn is_before(one: &Point, other: &Point) -> bool {
    let order = |point: &Point| -> (u64, Offset) { (point.revision.generation.0, point.revision.frame) };
    order(one) < order(other)
}
