//! `/v2/pipeline`, `/v3/pipeline` and `/v3/cursor`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::{Bytes, BytesMut};
use futures::stream;

use crate::http::body::{self, Room};
use crate::http::native::{Parsed, parse};
use crate::http::pace::Pace;
use crate::http::paths::App;
use crate::http::reply::Failure;
use crate::limits::{BODY_BYTES_ROOM, SQL_BODY_BYTES_MAX};
use crate::mirror::Error;
use crate::sync::turso::sql::MemoryShare;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/logs/{log}/v2", get(speaks))
        .route("/logs/{log}/v3", get(speaks))
        .route("/logs/{log}/v2/pipeline", post(pipeline_v2))
        .route("/logs/{log}/v3/pipeline", post(pipeline_v3))
        .route("/logs/{log}/v3/cursor", post(cursor))
        // Bodies are taken in here, with a cap of their own.
        .layer(DefaultBodyLimit::disable())
}

type Answered = Result<Response, Failure>;

/// Clients ask so whether the log is there and takes SQL of this version.
async fn speaks(State(app): State<Arc<App>>, name: Parsed<String>) -> Answered {
    app.registry.get(&parse(name)?)?;
    Ok(json("application/json", "{}"))
}

/// Clients of the sync protocol begin a stream with each call and never come back to it.
async fn pipeline_v2(State(app): State<Arc<App>>, name: Parsed<String>, request: Request) -> Answered {
    pipeline(&app, name, request, false).await
}

async fn pipeline_v3(State(app): State<Arc<App>>, name: Parsed<String>, request: Request) -> Answered {
    pipeline(&app, name, request, true).await
}

async fn pipeline(app: &App, name: Parsed<String>, request: Request, lasting: bool) -> Answered {
    let (log, body, share) = receive(app, name, request).await?;
    let answer = app.sql.pipeline(&log, body, share, lasting).await?;
    Ok(json("application/json", answer))
}

async fn cursor(State(app): State<Arc<App>>, name: Parsed<String>, request: Request) -> Result<Response, Failure> {
    let (log, body, share) = receive(&app, name, request).await?;
    let pieces = app.sql.cursor(&log, body, share).await?;
    let pieces = stream::unfold(pieces, |mut pieces| async move { pieces.recv().await.map(|piece| (piece, pieces)) });
    Ok(json("application/x-ndjson", Body::from_stream(pieces)))
}

fn json(kind: &'static str, body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(kind))], body.into()).into_response()
}

/// The name of the log and the whole body, with the memory it takes.
async fn receive(app: &App, name: Parsed<String>, request: Request) -> Result<(String, Bytes, MemoryShare), Error> {
    let (log, length) = begin(app, name, request.headers())?;
    let (body, share) = take(app, &log, request.into_body(), length).await?;
    Ok((log, body, share))
}

/// Checks what can be checked before the body, and says how long that is, as far as it is known.
fn begin(app: &App, name: Parsed<String>, headers: &HeaderMap) -> Result<(String, usize), Error> {
    let log = parse(name)?;
    app.registry.get(&log)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let length = length.unwrap_or(0);
    if length > SQL_BODY_BYTES_MAX {
        return Err(too_large());
    }
    Ok((log, length))
}

fn too_large() -> Error {
    Error::TooLarge(format!("a body of more than {SQL_BODY_BYTES_MAX} bytes: send it in parts"))
}

async fn take(app: &App, log: &str, body: Body, length: usize) -> Result<(Bytes, MemoryShare), Error> {
    let pace = Pace::new(app.timeouts.commit, app.timeouts.min_rate);
    let (mut room, received) = (SqlRoom(app.sql.share(log)), BytesMut::with_capacity(length.min(BODY_BYTES_ROOM)));
    let body = body::whole(body, (pace, "--commit-timeout"), received, &mut room).await?;
    let SqlRoom(mut share) = room;
    share.cover(body.len()).await?;
    Ok((body.freeze(), share))
}

struct SqlRoom(MemoryShare);

impl Room for SqlRoom {
    async fn cover(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes > SQL_BODY_BYTES_MAX { Err(too_large()) } else { self.0.receive(bytes).await }
    }
}
