//! The libSQL sync protocol over HTTP: `/info`, `/export/G` and `/sync/G/S/E[/BATON]` under a log's URL.
//!
//! Clients take a 400 or 500 on a pull for "nothing new", so real trouble is never told with one of these.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use futures::{StreamExt, stream};
use serde_json::json;

use super::body::next;
use super::native::{Parsed, blocking, parse};
use super::pace::Pace;
use super::paths::App;
use super::reply::{self, Failure, drain, turn_down};
use crate::limits::PUSH_BYTES_MAX;
use crate::mirror::{BaseFeed, Error, Share};
use crate::offset::Generation;
use crate::repr_digest::{self, ReprDigest};
use crate::segment::base::BaseDigest;
use crate::sync::libsql::{PullAnswer, PushAnswer, facts};
use crate::sync::wal_facts::{self, WalFacts};

type Range = (String, u64, u64, u64);
type Batons = (String, u64, u64, u64, String);

pub(super) async fn info(State(app): State<Arc<App>>, name: Parsed<String>) -> Result<Response, Failure> {
    let (name, libsql) = (parse(name)?, app.libsql.clone());
    let (generation, facts) = blocking(move || libsql.info_with_facts(&name)).await?;
    Ok(with_facts(digested(&json!({ "current_generation": generation })), &facts))
}

pub(super) async fn export(State(app): State<Arc<App>>, path: Parsed<(String, u64)>) -> Result<Response, Failure> {
    let (name, generation) = parse(path)?;
    let log = app.libsql.export(&name, Generation(generation))?;
    let of = log.clone();
    let facts = blocking(move || Ok(facts(&of, &of.view(), of.generation()))).await?;
    Ok(with_facts(base(app.registry.base(&log)?).await?, &facts))
}

/// A database as a body, with its digest where that is known. What is damaged at its start is refused; further on the answer
/// ends before the first byte that is not right.
pub(super) async fn base(mut feed: BaseFeed) -> Result<Response, Error> {
    let first = feed.next().await?;
    let (bytes, unproven) = (feed.base().bytes(), feed.base().is_unproven());
    let digest = feed.base().id().map(|id| ReprDigest { sha256: id.sha256, unproven });
    let rest = stream::try_unfold(feed, |mut feed| async move {
        let next = feed.next().await.inspect_err(|error| log::error!("reading a base: {error}"))?;
        Ok::<_, Error>(next.map(|bytes| (bytes, feed)))
    });
    let body = Body::from_stream(stream::iter(first.map(Ok)).chain(rest));
    let mut response = sized(bytes, body);
    if let Some(value) = digest.and_then(|digest| HeaderValue::from_str(&digest.to_string()).ok()) {
        response.headers_mut().insert(HeaderName::from_static(repr_digest::FIELD), value);
    }
    Ok(response)
}

/// A body of so many bytes.
pub(super) fn sized(bytes: u64, body: Body) -> Response {
    let kind = HeaderValue::from_static("application/octet-stream");
    ([(CONTENT_TYPE, kind), (CONTENT_LENGTH, HeaderValue::from(bytes))], body).into_response()
}

pub(super) async fn pull(State(app): State<Arc<App>>, path: Parsed<Range>) -> Result<Response, Failure> {
    pulled(&app, path).await.map_err(|error| not_taken_for_an_end(error).into())
}

/// What clients take for "nothing new" as something that they do not.
fn not_taken_for_an_end(error: Error) -> Error {
    match error {
        Error::Damaged(cause) => Error::Unavailable(format!("this log is damaged: {cause}")),
        Error::Invalid(text) => Error::NotFound(text),
        error => error,
    }
}

async fn pulled(app: &App, path: Parsed<Range>) -> Result<Response, Error> {
    let (name, generation, start, end) = parse(path)?;
    if (generation, start, end) == (0, 0, 0) {
        // So 0.9.1's embedded replicas ask whether this protocol is spoken; frame by frame they pull then.
        app.libsql.info(&name)?;
        return Ok(sized(0, Body::empty()));
    }
    let libsql = app.libsql.clone();
    let (answer, facts) = blocking(move || libsql.pull(&name, Generation(generation), (start, end))).await?;
    let response = match answer {
        PullAnswer::Nothing { generation, max_frame_no } => reply::nothing_to_pull(
            &json!({"status": "checkpoint_needed", "generation": generation, "max_frame_no": max_frame_no}),
        ),
        PullAnswer::Frames(frames) => {
            let bytes = frames.bytes();
            let body = stream::try_unfold(frames, |mut frames| async move {
                let next = frames.next().await.inspect_err(|error| log::error!("reading frames: {error}"))?;
                Ok::<_, Error>(next.map(|bytes| (bytes, frames)))
            });
            sized(bytes, Body::from_stream(body))
        }
    };
    Ok(with_facts(response, &facts))
}

/// An answer that says of which log it is, for those who check that.
fn with_facts(mut response: Response, facts: &WalFacts) -> Response {
    if let Ok(value) = HeaderValue::from_str(&facts.to_string()) {
        response.headers_mut().insert(HeaderName::from_static(wal_facts::FIELD), value);
    }
    response
}

pub(super) async fn push(
    State(app): State<Arc<App>>,
    path: Parsed<Range>,
    request: Request,
) -> Result<Response, Failure> {
    take(&app, path, request).await.map(|Json(answer)| digested(&answer))
}

/// JSON with its digest: a number in it that was damaged on the way would be believed.
fn digested(answer: &serde_json::Value) -> Response {
    let body = answer.to_string();
    let digest = ReprDigest { sha256: BaseDigest::of(body.as_bytes()), unproven: false };
    let mut response = ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response();
    if let Ok(value) = HeaderValue::from_str(&digest.to_string()) {
        response.headers_mut().insert(HeaderName::from_static(repr_digest::FIELD), value);
    }
    response
}

/// A baton tells one sender's requests from another's. Their salts do that as well.
pub(super) async fn push_with_baton(
    State(app): State<Arc<App>>,
    path: Parsed<Batons>,
    request: Request,
) -> Result<Response, Failure> {
    let range = path.map(|Path((name, generation, start, end, baton))| (Path((name, generation, start, end)), baton));
    let (range, baton) = match range {
        Ok((range, baton)) => (Ok(range), Some(baton)),
        Err(rejection) => (Err(rejection), None),
    };
    let Json(mut answer) = take(&app, range, request).await?;
    if let (Some(answer), Some(baton)) = (answer.as_object_mut(), baton) {
        answer.insert("baton".into(), baton.into());
    }
    Ok(digested(&answer))
}

async fn take(app: &App, path: Parsed<Range>, request: Request) -> Result<Json<serde_json::Value>, Failure> {
    let (head, body) = request.into_parts();
    let begun = match parse(path) {
        Ok(range) => begin(app, range, &head.headers).await,
        Err(error) => Err(error),
    };
    let ((name, generation, start, end), length, share) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            turn_down(&head.headers, body);
            return Err(error.into());
        }
    };
    let body = receive(app, body, length).await?;
    let push = app.libsql.push(&name, Generation(generation), (start, end), (body, share)).await?;
    let PushAnswer { conflict, generation, max_frame_no } = push;
    let status = if conflict { "conflict" } else { "ok" };
    Ok(Json(json!({"status": status, "generation": generation, "max_frame_no": max_frame_no})))
}

/// Checks what can be checked before the body, and reserves memory for it.
async fn begin(app: &App, range: Range, headers: &HeaderMap) -> Result<(Range, usize, Share), Error> {
    app.libsql.info(&range.0)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let length = length.ok_or_else(|| Error::Invalid("a push needs a content-length".into()))?;
    if length > PUSH_BYTES_MAX {
        return Err(Error::TooLarge(format!("a push of {length} bytes; at most {PUSH_BYTES_MAX} are taken at once")));
    }
    let share = app.libsql.reserve(length).await?;
    Ok((range, length as usize, share))
}

/// The whole body, of the length that the head said and that memory was reserved for.
async fn receive(app: &App, mut body: Body, length: usize) -> Result<BytesMut, Error> {
    let mut pace = Pace::new(app.timeouts.commit, app.timeouts.min_rate);
    let mut received = app.libsql.body(length);
    loop {
        match next(&mut body, &mut pace, "--commit-timeout").await {
            Ok(None) => return Ok(received),
            Ok(Some(data)) => received.extend_from_slice(&data),
            Err(error) => {
                drain(body);
                return Err(error);
            }
        }
    }
}
