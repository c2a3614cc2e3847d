//! Requests whose pages a query selects. The query runs elsewhere; here its pages become a selector, of the state that it read.

use bytes::Bytes;
use roaring::RoaringBitmap;

use super::revision::{Point, Revision};
use super::{check, selector};
use crate::mirror::{Error, Registry};
use crate::sync::turso::TouchedPages;
use crate::sync::turso::proto::PullUpdatesRequest;

/// Refuses what no query can be run for, before it is run.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_selected(request: &PullUpdatesRequest) -> Result<(), Error> {
    check(request)?;
    selector::select(&request.server_pages_selector, 0).map(drop)
}

/// The same request of the pages that its query touched, without the query. Blocks for small reads.
///
/// # Errors
/// [`Error::Invalid`] when it asks for another revision than the one that the query read; [`Error::Unavailable`] when that is gone.
pub fn with_touched(
    registry: &Registry,
    log_name: &str,
    request: PullUpdatesRequest,
    touched: TouchedPages,
) -> Result<PullUpdatesRequest, Error> {
    let point = registry.generation(log_name, Some(touched.generation)).and_then(|log| Point::at(&log, touched.frame));
    let point = point.map_err(|error| match error {
        Error::GenerationGone { .. } | Error::NotFound(_) => {
            Error::Unavailable("the log was checkpointed or replaced while the query ran: try again".into())
        }
        error => error,
    })?;
    let (read, asked) = (point.revision, &request.server_revision);
    if !asked.is_empty() && asked.parse::<Revision>()? != read {
        return Err(Error::Invalid(format!(
            "a query selector is run on the newest revision only, which is {read}, and {asked} was asked for: ask without a revision, or \
             for pages"
        )));
    }
    let mut pages = touched.pages;
    if let Some(selected) = selector::select(&request.server_pages_selector, point.size)? {
        pages &= selected;
    }
    Ok(PullUpdatesRequest {
        server_revision: read.to_string(),
        server_pages_selector: written(&pages),
        server_query_selector: String::new(),
        ..request
    })
}

fn written(pages: &RoaringBitmap) -> Bytes {
    let mut bytes = Vec::with_capacity(pages.serialized_size());
    // Memory takes everything.
    let _written = pages.serialize_into(&mut bytes);
    bytes.into()
}
