//! Bodies that are taken in whole.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::timeout_at;

use super::pace::Pace;
use crate::mirror::Error;

/// The next bytes of a body that keeps its pace, which `setting` sets; `None` at its end.
///
/// # Errors
/// [`Error::Invalid`] when it is late, or broke off.
pub(super) async fn next(body: &mut Body, pace: &mut Pace, setting: &str) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = timeout_at(pace.deadline(), body.frame()).await;
        let late = |_elapsed| Error::Invalid(format!("the body did not go on in time ({setting}, --min-rate)"));
        match frame.map_err(late)? {
            None => return Ok(None),
            Some(Err(error)) => return Err(Error::Invalid(format!("the body broke off: {error}"))),
            Some(Ok(frame)) => {
                // Trailers say nothing here.
                if let Ok(data) = frame.into_data() {
                    pace.received(data.len(), Duration::ZERO);
                    return Ok(Some(data));
                }
            }
        }
    }
}
