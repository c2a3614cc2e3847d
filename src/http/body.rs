//! Bodies that are taken in whole.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use bytes::BytesMut;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::pace::Pace;
use crate::mirror::Error;

/// What the JSON of a small body says, of which `example` is one.
///
/// # Errors
/// [`Error::TooLarge`] for a body that is not small, [`Error::Invalid`] for one that is late or something else.
pub(super) async fn json<T: DeserializeOwned>(request: Request, patience: Duration, example: &str) -> Result<T, Error> {
    let body = timeout(patience, Bytes::from_request(request, &())).await;
    let body = body.map_err(|_elapsed| Error::Invalid("the body did not come in time (--header-timeout)".into()))?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge(format!("the body; wanted is {example}")),
        _ => Error::Invalid(rejection.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(|error| Error::Invalid(format!("{error}; wanted is {example}")))
}

/// Memory for a body. It is taken as the body is received, never as it is announced.
pub(super) trait Room: Send {
    /// Makes it cover so many bytes of the body; waits until that is possible.
    fn cover(&mut self, bytes: usize) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Receives all of a body that keeps its pace, which `setting` sets, into `received`, as far as there is `room`.
///
/// # Errors
/// [`Error::Invalid`] when it is late, or broke off; those of `room`.
pub(super) async fn whole(
    mut body: Body,
    (mut pace, setting): (Pace, &str),
    mut received: BytesMut,
    room: &mut impl Room,
) -> Result<BytesMut, Error> {
    while let Some(data) = frame(&mut body, &pace, ("the body", setting)).await.map_err(Error::Invalid)? {
        let since = Instant::now();
        room.cover(received.len() + data.len()).await?;
        pace.received(data.len(), since.elapsed());
        received.extend_from_slice(&data);
    }
    Ok(received)
}

/// The next bytes of a body, without counting them for its pace; `None` at its end.
///
/// # Errors
/// `what` is late, which `setting` decides, or broke off.
pub(super) async fn frame(
    body: &mut Body,
    pace: &Pace,
    (what, setting): (&str, &str),
) -> Result<Option<Bytes>, String> {
    loop {
        match timeout_at(pace.deadline(), body.frame()).await {
            Err(_elapsed) => return Err(format!("{what} did not go on in time ({setting}, --min-rate)")),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(format!("{what} broke off: {error}")),
            Ok(Some(Ok(frame))) => {
                // Trailers say nothing here.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
