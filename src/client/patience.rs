//! How long a client waits for a service. What must be answered or sent without a pause has a limit; a stream that follows a
//! log may be silent for as long as nothing is appended.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use reqwest::{RequestBuilder, Response};
use tokio::time::timeout;

use super::ClientError;
use crate::limits::{COMMIT_TIMEOUT, MIN_RATE, STALL_TIMEOUT};

/// How long a request with a body of so many bytes may take: the service is as patient with it.
pub(super) fn patience(bytes: usize) -> Duration {
    COMMIT_TIMEOUT + Duration::from_secs(bytes as u64 / NonZeroU64::get(MIN_RATE))
}

/// Sends a request whose answer must begin within [`STALL_TIMEOUT`].
pub(super) async fn begun(request: RequestBuilder) -> Result<Response, ClientError> {
    match timeout(STALL_TIMEOUT, request.send()).await {
        Ok(response) => Ok(response?),
        Err(_elapsed) => Err(ClientError::Silent { after: STALL_TIMEOUT }),
    }
}

/// The bytes of an answer, of which some must be received every [`STALL_TIMEOUT`]. Ends after an error.
pub(super) fn steady<S>(bytes: S) -> impl Stream<Item = Result<Bytes, ClientError>> + Send
where
    S: Stream<Item = reqwest::Result<Bytes>> + Send,
{
    stream::unfold(Some(Box::pin(bytes)), |bytes| async move {
        let mut bytes = bytes?;
        match timeout(STALL_TIMEOUT, bytes.next()).await {
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(bytes))),
            Ok(Some(Err(error))) => Some((Err(error.into()), None)),
            Ok(None) => None,
            Err(_elapsed) => Some((Err(ClientError::Silent { after: STALL_TIMEOUT }), None)),
        }
    })
}
