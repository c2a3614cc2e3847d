//! Bodies that are taken in whole.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::{timeout, timeout_at};

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

/// The next bytes of a body that keeps its pace, which `setting` sets; `None` at its end.
///
/// # Errors
/// [`Error::Invalid`] when it is late, or broke off.
pub(super) async fn next(body: &mut Body, pace: &mut Pace, setting: &str) -> Result<Option<Bytes>, Error> {
    let data = frame(body, pace, ("the body", setting)).await.map_err(Error::Invalid)?;
    if let Some(data) = &data {
        pace.received(data.len(), Duration::ZERO);
    }
    Ok(data)
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
