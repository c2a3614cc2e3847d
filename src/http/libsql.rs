//! The libSQL sync protocol over HTTP: `/info`, `/export/G` and `/sync/G/S/E[/BATON]` under a log's URL.
//!
//! Clients take a 400 or 500 on a pull for "nothing new", so real trouble is never told with one of these.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::BytesMut;
use futures::{StreamExt, stream};
use serde_json::json;

use super::body::{self, Room};
use super::encryption;
use super::native::{Parsed, blocking, parse};
use super::pace::Pace;
use super::paths::App;
use super::reply::{self, Failure};
use crate::limits::{BODY_BYTES_ROOM, PUSH_BYTES_MAX};
use crate::mirror::{BaseFeed, Error, Share};
use crate::offset::Generation;
use crate::repr_digest::{self, ReprDigest};
use crate::segment::base::BaseDigest;
use crate::sync::libsql::{LibSql, PullAnswer, PushAnswer, facts};
use crate::sync::wal_facts::{self, WalFacts};

type Range = (String, u64, u64, u64);
type Batons = (String, u64, u64, u64, String);

/// Its routes. Databases are not encrypted here, and a client that encrypts is refused.
pub(super) fn routes() -> Router<Arc<App>> {
    let pulls = get(pull).route_layer(from_fn(encryption::refused_pull));
    let pushes = Router::new()
        .route("/logs/{log}/info", get(info))
        .route("/logs/{log}/export/{generation}", get(export))
        .route("/logs/{log}/sync/{generation}/{start}/{end}", post(push))
        .route("/logs/{log}/sync/{generation}/{start}/{end}/{baton}", post(push_with_baton))
        .route_layer(from_fn(encryption::refused));
    pushes.merge(Router::new().route("/logs/{log}/sync/{generation}/{start}/{end}", pulls))
}

async fn info(State(app): State<Arc<App>>, name: Parsed<String>) -> Result<Response, Failure> {
    let (name, libsql) = (parse(name)?, app.libsql.clone());
    let (generation, facts) = blocking(move || libsql.info_with_facts(&name)).await?;
    Ok(with_facts(digested(&json!({ "current_generation": generation })), &facts))
}

async fn export(State(app): State<Arc<App>>, path: Parsed<(String, u64)>) -> Result<Response, Failure> {
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

async fn pull(State(app): State<Arc<App>>, path: Parsed<Range>) -> Result<Response, Failure> {
    pulled(&app, path).await.map_err(|error| not_taken_for_an_end(error).into())
}

/// What clients take for "nothing new" as something that they do not.
pub(super) fn not_taken_for_an_end(error: Error) -> Error {
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

async fn push(State(app): State<Arc<App>>, path: Parsed<Range>, request: Request) -> Result<Response, Failure> {
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
async fn push_with_baton(
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
    let ((name, generation, start, end), length) = begin(app, parse(path)?, request.headers())?;
    let received = receive(app, request.into_body(), length).await?;
    let push = app.libsql.push(&name, Generation(generation), (start, end), received).await?;
    let PushAnswer { conflict, generation, max_frame_no } = push;
    let status = if conflict { "conflict" } else { "ok" };
    Ok(Json(json!({"status": status, "generation": generation, "max_frame_no": max_frame_no})))
}

/// Checks what can be checked before the body.
fn begin(app: &App, range: Range, headers: &HeaderMap) -> Result<(Range, usize), Error> {
    app.libsql.info(&range.0)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let length = length.ok_or_else(|| Error::Invalid("a push needs a content-length".into()))?;
    if length > PUSH_BYTES_MAX {
        return Err(Error::TooLarge(format!("a push of {length} bytes; at most {PUSH_BYTES_MAX} are taken at once")));
    }
    Ok((range, length as usize))
}

/// The whole body, of the length that the head said, and the memory that it takes.
async fn receive(app: &App, body: Body, length: usize) -> Result<(BytesMut, Share), Error> {
    let pace = Pace::new(app.timeouts.commit, app.timeouts.min_rate);
    let mut room = PushRoom { libsql: &app.libsql, share: Share::default() };
    let received = app.libsql.body(length.min(BODY_BYTES_ROOM));
    let body = body::whole(body, (pace, "--commit-timeout"), received, &mut room).await?;
    Ok((body, room.share))
}

struct PushRoom<'a> {
    libsql: &'a LibSql,
    share: Share,
}

impl Room for PushRoom<'_> {
    async fn cover(&mut self, bytes: usize) -> Result<(), Error> {
        self.libsql.cover(&mut self.share, bytes as u64).await
    }
}
