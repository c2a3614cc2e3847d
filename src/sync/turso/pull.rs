//! `/pull-updates`: the pages that changed since a revision, or all of them, as of a newer one. They come out of the log's
//! own frames and its base; no SQL engine takes part, and no writer is waited for.
//!
//! An answer is planned first, from page indexes alone: which frame or page of the base holds the content of each page. Then
//! the contents are read in the order of the files, in large blocks out of the memory budget, as the client takes them.

mod history;
mod pages;
mod plan;
mod query;
mod revision;
mod selector;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::time::timeout;

use super::proto::{
    PageEncoding, Protocol, PullUpdatesRequest, PullUpdatesResponse, RawEncoding, StreamKind, page_bytes,
};
use crate::limits::{LONG_POLL_MAX, PULL_BYTES_SMALL};
use crate::mirror::{Error, Log, Registry};
use crate::sync::FRAME_LEN;
use history::{Steps, is_before};
use pages::{Filled, Pages};
use plan::Plan;
pub use query::{check_selected, with_touched};
use revision::Point;
pub use revision::Revision;

/// Pulls, for all logs of a service.
#[derive(Debug, Default)]
pub struct Pulls {
    steps: Steps,
}

/// An answer on its way.
#[derive(Debug)]
pub struct Answer {
    registry: Arc<Registry>,
    from: Option<Revision>,
    to: Revision,
    head: Option<Bytes>,
    pages: Option<Box<Pages>>,
    count: u64,
    bytes: u64,
}

/// What a request asks for: the lower end, unless it wants all, and the upper end.
struct Ends {
    from: Option<Point>,
    to: Point,
}

/// The newest revision of a log. Blocks for small reads.
///
/// # Errors
/// When there is no such log, it is none that Turso's clients could sync, or it cannot be read.
pub fn newest(registry: &Registry, log_name: &str) -> Result<Revision, Error> {
    Ok(Point::newest(&registry.get(log_name)?)?.revision)
}

impl Pulls {
    /// The answer to a request. If it asks for that and has the newest revision, it waits for the next: until something
    /// becomes durable, another generation begins, the service shuts down, or the time is up.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the request makes no sense, or names a revision that this log does not have;
    /// [`Error::GenerationGone`] when it once had it; otherwise when the log is none that Turso's clients could sync, or
    /// cannot be read.
    pub async fn pull(
        &self,
        registry: &Arc<Registry>,
        log_name: &str,
        request: PullUpdatesRequest,
    ) -> Result<Answer, Error> {
        check(&request)?;
        let request = Arc::new(request);
        let mut patience = patience(&request);
        loop {
            let next = {
                let (registry, log_name, request) = (registry.clone(), log_name.to_owned(), request.clone());
                blocking(move || begin(registry, &log_name, &request, patience.is_some())).await?
            };
            let (from, to) = match next {
                Next::Answer(answer) => return Ok(answer),
                Next::News(have) => {
                    let _is_up = timeout(patience.take().unwrap_or_default(), news(registry, log_name, &have)).await;
                    continue;
                }
                Next::Step(from, to) => (from, to),
            };
            let mut before = self.steps.between(&from.log, &to.log, registry.stopping()).await?;
            let registry = registry.clone();
            return blocking(move || {
                let end = Point::newest(&from.log)?;
                before |= Plan::between(&from, &end, &Bytes::new())?.due;
                let plan = Plan::across(&from, before, &to, &request.server_pages_selector)?;
                Answer::new(registry, Some(from.revision), &to, Some(plan))
            })
            .await;
        }
    }
}

/// What becomes of a request that was looked at.
enum Next {
    Answer(Answer),
    /// Something newer than this is to be waited for.
    News(Point),
    /// Two generations are to be compared.
    Step(Point, Point),
}

/// Answers what can be answered from one generation, and with `waits` has a request for news wait. Blocks.
fn begin(registry: Arc<Registry>, log_name: &str, request: &PullUpdatesRequest, waits: bool) -> Result<Next, Error> {
    let Ends { from, to } = resolve(&registry, log_name, request)?;
    let selector = &request.server_pages_selector;
    let plan = match &from {
        None => Some(Plan::whole(&to, selector)?),
        Some(from) if from.revision == to.revision => {
            if waits {
                return Ok(Next::News(to));
            }
            None
        }
        Some(from) if from.revision.generation < to.revision.generation => return Ok(Next::Step(from.clone(), to)),
        Some(from) => Some(Plan::between(from, &to, selector)?),
    };
    Answer::new(registry, from.map(|from| from.revision), &to, plan).map(Next::Answer)
}

/// Refuses what is not spoken here.
fn check(request: &PullUpdatesRequest) -> Result<(), Error> {
    if StreamKind::try_from(request.stream_kind) != Ok(StreamKind::Pages) {
        let kind = request.stream_kind;
        return Err(Error::Invalid(format!("streams of kind {kind} are not served here, only pages (0)")));
    }
    if PageEncoding::try_from(request.encoding) != Ok(PageEncoding::Raw) {
        let encoding = request.encoding;
        return Err(Error::Invalid(format!("pages are not served in encoding {encoding} here, only raw (0)")));
    }
    Ok(())
}

/// How long a request wants to wait for news. One with a large body is not kept.
fn patience(request: &PullUpdatesRequest) -> Option<Duration> {
    let waits = request.server_revision.is_empty() && request.encoded_len() <= PULL_BYTES_SMALL;
    let patience = Duration::from_millis(request.long_poll_timeout_ms.into()).min(LONG_POLL_MAX);
    Some(patience).filter(|patience| waits && !patience.is_zero())
}

/// The states that a request names.
fn resolve(registry: &Registry, log_name: &str, request: &PullUpdatesRequest) -> Result<Ends, Error> {
    let named = |text: &str| Point::named(registry, log_name, text);
    let to = match request.server_revision.as_str() {
        "" => Point::newest(&registry.get(log_name)?)?,
        text => named(text)?,
    };
    let from = match request.client_revision.as_str() {
        "" => None,
        text if text == to.revision.to_string() => Some(to.clone()),
        text => Some(named(text)?),
    };
    if let Some(from) = from.as_ref().filter(|from| is_before(&to, from)) {
        let text = format!("revision {} is ahead of {}, up to which is asked for", from.revision, to.revision);
        return Err(Error::Invalid(text));
    }
    if from.as_ref().is_some_and(|from| from.revision.generation == to.revision.generation && !from.is_beside(&to)) {
        return Err(Error::Unavailable("the log was given another base just now".into()));
    }
    Ok(Ends { from, to })
}

/// Completes when there is something newer than `have`, or the service shuts down.
async fn news(registry: &Registry, log_name: &str, have: &Point) {
    let (mut view, mut stop) = (have.log.watch(), registry.stopping());
    let is_current = |log: Arc<Log>| Arc::ptr_eq(&log, &have.log);
    loop {
        // In this order: another generation is announced on the view of the old one once it can be found.
        let durable = view.borrow_and_update().durable;
        let is_newer = durable.0 > have.revision.frame.0 + 1 || !registry.get(log_name).is_ok_and(is_current);
        if is_newer || *stop.borrow_and_update() {
            return;
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            stopping = stop.changed() => if stopping.is_err() { return },
        }
    }
}

impl Answer {
    fn new(registry: Arc<Registry>, from: Option<Revision>, to: &Point, plan: Option<Plan>) -> Result<Answer, Error> {
        let head = PullUpdatesResponse {
            server_revision: to.revision.to_string(),
            db_size: to.size.into(),
            raw_encoding: Some(RawEncoding {}),
            stream_kind: StreamKind::Pages.into(),
            protocol: Protocol::Pages.into(),
        };
        let head = Bytes::from(head.encode_length_delimited_to_vec());
        let (mut bytes, mut count) = (head.len() as u64, 0);
        if let Some(plan) = &plan {
            count = plan.due.len();
            let ends = [0, 1, 1 << 7, 1 << 14, 1 << 21, 1 << 28, u64::from(u32::MAX) + 1];
            for end in ends.windows(2) {
                let (first, last) = (end[0] as u32, (end[1] - 1) as u32);
                bytes += page_bytes(first, plan.due.range_cardinality(first..=last));
            }
        }
        let pages = plan.map(Pages::open).transpose()?.map(Box::new);
        Ok(Answer { registry, from, to: to.revision, head: Some(head), pages, count, bytes })
    }

    /// The lower end of what is sent; none for all.
    #[must_use]
    pub fn from(&self) -> Option<Revision> {
        self.from
    }

    /// The upper end.
    #[must_use]
    pub fn to(&self) -> Revision {
        self.to
    }

    /// How many pages come in all.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.count
    }

    /// How many bytes come in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the log cannot be read. The stream is over then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(mut pages) = self.pages.take().filter(|pages| pages.left() > 0) else {
            return Ok(self.head.take());
        };
        let head = self.head.take().unwrap_or_default();
        let mut block = self.registry.block(head.len() as u64 + pages.left() * FRAME_LEN as u64).await?;
        let space = block.space();
        if space.len() < head.len() + FRAME_LEN {
            return Err(Error::Unavailable("the memory budget (--memory-max) has no room for a page".into()));
        }
        space[..head.len()].copy_from_slice(&head);
        let mut end = head.len();
        // What is in the page cache is copied here and now; only a real read from disk is worth a thread.
        if pages.fill(space, &mut end, true)? == Filled::Wait {
            (pages, block, end) = blocking(move || {
                pages.fill(block.space(), &mut end, false)?;
                Ok((pages, block, end))
            })
            .await?;
        }
        if end == head.len() {
            return Err(Error::Damaged(format!("{} pages are not there", pages.left()).into()));
        }
        self.pages = Some(pages);
        Ok(Some(block.filled(end)))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::Unavailable("a read was interrupted".into())))
}
