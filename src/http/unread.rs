//! Drains what a handler leaves unread of a request's body.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::EXPECT;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::limits::{DRAIN_BYTES_MAX, DRAIN_WAIT};

/// The same request. What its handler leaves unread of the body is read and dropped beside the answer, for a while: a client
/// that is still writing must get to read the answer, and would not if the connection closed on it.
pub(super) fn drained(request: Request<Body>) -> Request<Body> {
    // A client that waits for `100 Continue` sends its body only if a handler asked for it.
    let is_sent = !request.headers().contains_key(EXPECT);
    request.map(|body| if body.is_end_stream() { body } else { Body::new(Drained { body, is_sent, is_at_end: false }) })
}

struct Drained {
    body: Body,
    /// The client sends it: it asked for no leave, or has it.
    is_sent: bool,
    /// All of it was read, or it broke off.
    is_at_end: bool,
}

impl HttpBody for Drained {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.is_sent = true;
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.is_at_end |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Handlers end in many places, and all of them drop the body.
impl Drop for Drained {
    fn drop(&mut self) {
        if !self.is_sent || self.is_at_end || self.body.is_end_stream() {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(DRAIN_WAIT, drain(std::mem::take(&mut self.body))));
        }
    }
}

async fn drain(mut body: Body) {
    let mut drained = 0;
    while let Some(Ok(frame)) = body.frame().await {
        drained += frame.data_ref().map_or(0, |data| data.len() as u64);
        if drained > DRAIN_BYTES_MAX {
            return;
        }
    }
}
