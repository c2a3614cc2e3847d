//! How long a client waits for a service. What must be answered or sent without a pause has a limit; a stream that follows a
//! log may be silent for as long as nothing is appended.

use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use hyper::body::{Frame, SizeHint};
use reqwest::{Body, RequestBuilder, Response};
use tokio::time::{Instant, sleep_until, timeout};

use super::ClientError;
use crate::limits::{COMMIT_TIMEOUT, MIN_RATE, STALL_TIMEOUT};

/// How long a request with a body of so many bytes may take: the service is as patient with it.
pub(super) fn patience(bytes: usize) -> Duration {
    COMMIT_TIMEOUT + Duration::from_secs(bytes as u64 / NonZeroU64::get(MIN_RATE))
}

/// How long it may take to check and store so many bytes that were received.
pub(super) fn stored_within(bytes: u64) -> Duration {
    Duration::from_secs(bytes / SYNCED_A_SECOND as u64)
}

/// How much longer the answer may take once so many bytes were sent, of which the last may still be on their way: the service
/// syncs them all.
fn answered_within(sent: usize) -> Duration {
    let received = sent.min(ON_THEIR_WAY_MAX) as u64 / NonZeroU64::get(MIN_RATE);
    Duration::from_secs(received + (sent / SYNCED_A_SECOND) as u64)
}

/// What the network may hold of a body whose last byte was taken.
const ON_THEIR_WAY_MAX: usize = 8 << 20;
/// What the slowest disk syncs in a second.
const SYNCED_A_SECOND: usize = 4 << 20;

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

/// Sends a request with a body of any length, of which some must be taken every `stall`, unless the body itself
/// has no more just then. Then the answer must be received within a time that depends on how many they were.
pub(super) async fn taken<T>(
    request: RequestBuilder,
    body: Body,
    stall: Duration,
    answer: impl AsyncFnOnce(Response) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let taking = Taking::default();
    let body = Watched { inner: body, sent: 0, stall, taking: taking.clone() };
    let answered = async { answer(request.body(Body::wrap(body)).send().await?).await };
    tokio::select! {
        answer = answered => answer,
        after = taking.stalled() => Err(ClientError::Silent { after }),
    }
}

/// How far a body was taken, and since when nothing more is.
#[derive(Clone, Debug, Default)]
struct Taking {
    /// None while the body has no more to give.
    state: Arc<Mutex<Option<(Instant, Duration)>>>,
}

impl Taking {
    fn note(&self, patience: Option<Duration>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) =
            patience.map(|patience| (Instant::now(), patience));
    }

    /// Returns when nothing moved for so long.
    async fn stalled(&self) -> Duration {
        loop {
            let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match state {
                Some((since, patience)) if since.elapsed() >= patience => return patience,
                Some((since, patience)) => sleep_until(since + patience).await,
                // It is polled again before that matters.
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// A body that notes when it is asked for more.
struct Watched {
    inner: Body,
    sent: usize,
    stall: Duration,
    taking: Taking,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        self.taking.note(None);
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.sent += frame.iter().flatten().filter_map(Frame::data_ref).map(Bytes::len).sum::<usize>();
        let is_end = frame.is_none() || self.inner.is_end_stream();
        self.taking.note(Some(if is_end { self.stall + answered_within(self.sent) } else { self.stall }));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    const STALL: Duration = Duration::from_millis(300);

    /// Sends a body to a service that takes `takes` bytes, or all, and never answers.
    fn sent(body: Body, takes: usize) -> Result<(), ClientError> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let service = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a client");
            let (mut piece, mut taken) = ([0; 4096], 0);
            while taken < takes {
                match client.read(&mut piece) {
                    Ok(count @ 1..) => taken += count,
                    _ => return None,
                }
            }
            Some(client)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let request = reqwest::Client::new().put(url);
        let sending = taken(request, body, STALL, async |_| Ok(()));
        let ended = runtime.block_on(async { timeout(Duration::from_secs(30), sending).await });
        drop(runtime);
        drop(service.join());
        ended.expect("it ends by itself")
    }

    #[test]
    fn a_service_that_takes_no_more_of_a_body_or_never_answers_is_silent() {
        let endless = || Body::wrap_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(vec![7; 1 << 16])));
        let short = || Body::wrap_stream(stream::iter([Ok::<_, std::io::Error>("short")]));
        for (body, takes) in [(endless(), 1), (endless(), 4 << 20), (short(), 1)] {
            let ended = sent(body, takes);
            assert!(matches!(ended, Err(ClientError::Silent { .. })), "{takes}: {ended:?}");
        }
    }

    #[test]
    fn a_body_that_has_no_more_for_a_while_is_waited_for() {
        let slow = stream::unfold(0, |at| async move {
            tokio::time::sleep(STALL * 3).await;
            (at < 2).then_some((Ok::<_, std::io::Error>("piece"), at + 1))
        });
        let since = Instant::now();
        assert!(matches!(sent(Body::wrap_stream(slow), 1), Err(ClientError::Silent { .. })));
        assert!(since.elapsed() >= STALL * 9, "{:?}", since.elapsed());
    }
}
