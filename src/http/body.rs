//! Bodies that are taken in whole.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::mirror::Error;

/// The next bytes of a body that must be here by `deadline`, which `setting` is for; `None` at its end.
///
/// # Errors
/// [`Error::Invalid`] when it is late, or broke off.
pub(super) async fn next(body: &mut Body, deadline: Instant, setting: &str) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = timeout_at(deadline, body.frame()).await;
        let late = |_elapsed| Error::Invalid(format!("the body did not come whole in time ({setting})"));
        match frame.map_err(late)? {
            None => return Ok(None),
            Some(Err(error)) => return Err(Error::Invalid(format!("the body broke off: {error}"))),
            Some(Ok(frame)) => {
                // Trailers say nothing here.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
