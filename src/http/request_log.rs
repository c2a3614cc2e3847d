//! One line in the log for each request, written when its answer's body has ended, and the counts of the same.
//!
//! The line is of `key=value` pairs in a fixed order; a value with a space, a quote or a control character is a JSON string:
//!
//! ```text
//! method=POST path=/logs/app/commits?from=9 status=409 in=126 out=121 ms=0.412 peer=127.0.0.1:51034 who=token error=gap reason="…"
//! ```
//!
//! `in` and `out` are bytes of the bodies, `who` is `token` for a request that carried the service's token. A status of 499
//! says that the client went away before there was an answer; `aborted=true` that it did not receive all of it.

use std::fmt::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{Method, StatusCode, Uri, request};
use axum::response::Response;
use bytes::{Buf, Bytes};
use hyper::body::{Frame, Incoming, SizeHint};

use crate::api::ErrorBody;
use crate::limits::LOG_VALUE_CHARS_MAX;
use crate::mirror::{Counters, RefusalLabels, RequestLabels};

/// The target of these lines, by which they are told from others and may be filtered.
pub const REQUESTS: &str = "logmirror::request";

/// What the route is called where none matched.
const OTHER: &str = "other";

/// Routes that are asked for all the time by those who watch over a service.
const WATCHED: [&str; 4] = ["/health", "/livez", "/readyz", "/metrics"];

/// Parameters of queries that may be shown: all of ours. Others may be secrets that a client put in the wrong place.
const SHOWN: [&str; 9] = ["from", "to", "follow", "generation", "sha256", "acks", "dry_run", "upload", "at"];

/// The status of a request whose client went away before there was an answer.
const CLIENT_GONE: u16 = 499;

/// What becomes known of a request while it is served. Handlers find it in the extensions of the request.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    route: OnceLock<String>,
    refusal: OnceLock<Refusal>,
    received: AtomicU64,
}

/// Why a request was refused. An answer that says so carries it in its extensions.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    code: String,
    message: String,
}

impl From<&ErrorBody> for Refusal {
    fn from(body: &ErrorBody) -> Refusal {
        Refusal { code: body.error.clone(), message: body.message.clone() }
    }
}

impl Notes {
    /// Notes why a request was refused whose answer had begun.
    pub(super) fn refused(&self, body: &ErrorBody) {
        let _only_the_first_counts = self.0.refusal.set(Refusal::from(body));
    }
}

/// Notes the pattern of the route that a request took. A layer of the router, so that the pattern is known.
pub(super) async fn note_route(request: Request) -> Request {
    let extensions = request.extensions();
    if let (Some(Notes(noted)), Some(route)) = (extensions.get::<Notes>(), extensions.get::<MatchedPath>()) {
        let _only_the_first_counts = noted.route.set(route.as_str().to_owned());
    }
    request
}

/// A request under way. Dropped, it is written to the log and counted.
#[derive(Debug)]
pub(super) struct Entry {
    method: Method,
    target: String,
    peer: SocketAddr,
    pub(super) has_token: bool,
    since: Instant,
    notes: Notes,
    counters: Arc<Counters>,
    status: Option<StatusCode>,
    sent: u64,
    /// Whether the answer's body was handed over to its end.
    whole: bool,
}

impl Entry {
    /// Begins the entry of a request from `peer`.
    pub(super) fn begin(head: &request::Parts, peer: SocketAddr, counters: Arc<Counters>) -> Entry {
        let (method, target) = (head.method.clone(), shown(&head.uri));
        if head.uri.query().is_some_and(|query| query.contains("follow=true") || query.contains("acks=stream")) {
            log::debug!(target: REQUESTS, "method={method} path={} peer={peer} began=true", value(&target));
        }
        let (notes, since) = (Notes::default(), Instant::now());
        Entry { method, target, peer, has_token: false, since, notes, counters, status: None, sent: 0, whole: false }
    }

    /// The request for the router, which counts what is read of its body.
    pub(super) fn observe(&self, mut head: request::Parts, body: Incoming) -> Request {
        head.extensions.insert(self.notes.clone());
        let body = Received { body, notes: self.notes.clone() };
        Request::from_parts(head, Body::new(body))
    }

    /// The answer for the connection; the entry ends with its body.
    pub(super) fn answer(mut self, response: Response) -> Response {
        let (head, body) = response.into_parts();
        self.status = Some(head.status);
        if let Some(refusal) = head.extensions.get::<Refusal>() {
            let _only_the_first_counts = self.notes.0.refusal.set(refusal.clone());
        }
        // Nothing is read of the body of an answer to HEAD.
        self.whole = self.method == Method::HEAD || hyper::body::Body::is_end_stream(&body);
        Response::from_parts(head, Body::new(Sent { body, entry: self }))
    }

    fn line(&self, status: u16) -> String {
        let Entry { method, target, peer, sent, .. } = self;
        let received = self.notes.0.received.load(Ordering::Relaxed);
        let (ms, who) = (self.since.elapsed().as_secs_f64() * 1e3, if self.has_token { "token" } else { "-" });
        let path = value(target);
        let mut line = format!(
            "method={method} path={path} status={status} in={received} out={sent} ms={ms:.3} peer={peer} who={who}"
        );
        if let Some(Refusal { code, message }) = self.notes.0.refusal.get() {
            let _never_fails = write!(line, " error={} reason={}", value(code), value(message));
        }
        if !self.whole {
            line.push_str(" aborted=true");
        }
        line
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let status = self.status.map_or(CLIENT_GONE, |status| status.as_u16());
        let route = self.notes.0.route.get().map_or(OTHER, String::as_str);
        let level = match status {
            _ if WATCHED.contains(&route) && self.whole => log::Level::Debug,
            CLIENT_GONE => log::Level::Info,
            500.. => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(target: REQUESTS, level, "{}", self.line(status));
        let counters = &self.counters;
        let method = if known(&self.method) { self.method.as_str() } else { OTHER };
        let labels = RequestLabels { route: route.to_owned(), method: method.to_owned(), status };
        counters.requests.get_or_create(&labels).inc();
        counters.received_bytes.inc_by(self.notes.0.received.load(Ordering::Relaxed));
        counters.sent_bytes.inc_by(self.sent);
        let code = match self.notes.0.refusal.get() {
            Some(refusal) => Some(refusal.code.as_str()),
            None => (status >= 400 && status != CLIENT_GONE).then_some(OTHER),
        };
        if let Some(code) = code {
            counters.refusals.get_or_create(&RefusalLabels { code: code.to_owned() }).inc();
        }
    }
}

/// The methods that HTTP defines. A client may send any other word.
fn known(method: &Method) -> bool {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH];
    known.contains(method)
}

/// What a request asks for, without any parameter that we do not know.
fn shown(uri: &Uri) -> String {
    let Some(query) = uri.query() else { return uri.path().to_owned() };
    let (known, others): (Vec<&str>, Vec<&str>) = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .partition(|pair| SHOWN.contains(&pair.split('=').next().unwrap_or_default()));
    let others = if others.is_empty() { None } else { Some("…") };
    let query: Vec<&str> = known.into_iter().chain(others).collect();
    format!("{}?{}", uri.path(), query.join("&"))
}

/// A value as it stands in a line: cut, and in quotes where it would not be read back as one.
fn value(text: &str) -> String {
    let mut text = match text.char_indices().nth(LOG_VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    };
    if text.is_empty() || text.contains(|char: char| char.is_whitespace() || char.is_control() || char == '"') {
        text = serde_json::Value::String(text).to_string();
    }
    text
}

/// The body of a request, whose bytes are counted.
struct Received {
    body: Incoming,
    notes: Notes,
}

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            self.notes.0.received.fetch_add(bytes, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, whose bytes are counted, and with whose end the entry ends.
struct Sent {
    body: Body,
    entry: Entry,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.entry.sent += frame.data_ref().map_or(0, |data| data.remaining() as u64);
                self.entry.whole = hyper::body::Body::is_end_stream(&self.body);
            }
            Poll::Ready(None) => self.entry.whole = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        hyper::body::Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        hyper::body::Body::size_hint(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_shown_without_what_may_be_a_secret() {
        for (uri, wanted) in [
            ("/logs/a", "/logs/a"),
            ("/logs/a/commits?from=1&follow=true", "/logs/a/commits?from=1&follow=true"),
            ("/logs/a/commits?token=s3cret&from=1", "/logs/a/commits?from=1&…"),
            ("/logs/a?s3cret", "/logs/a?…"),
            ("/logs/a?from_=s3cret", "/logs/a?…"),
        ] {
            assert_eq!(shown(&uri.parse().expect("a URI")), wanted, "{uri}");
        }
    }

    #[test]
    fn a_value_stays_one_value_on_one_line() {
        assert_eq!(value("/logs/a?from=1"), "/logs/a?from=1");
        assert_eq!(value(""), r#""""#);
        assert_eq!(value("two words"), r#""two words""#);
        assert_eq!(value("a\nb\u{1b}[2J"), r#""a\nb\u001b[2J""#);
        assert!(value(&"x".repeat(10_000)).len() <= LOG_VALUE_CHARS_MAX + "…".len());
    }
}
