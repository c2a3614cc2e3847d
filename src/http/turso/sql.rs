//! `/v2/pipeline`, `/v3/pipeline` and `/v3/cursor`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::{Bytes, BytesMut};
use futures::stream;

use crate::http::body::next;
use crate::http::native::{Parsed, parse};
use crate::http::pace::Pace;
use crate::http::paths::App;
use crate::http::reply::{Failure, drain, turn_down};
use crate::limits::SQL_BODY_BYTES_MAX;
use crate::mirror::Error;
use crate::sync::turso::sql::MemoryShare;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/logs/{log}/v2/pipeline", post(pipeline_v2))
        .route("/logs/{log}/v3/pipeline", post(pipeline_v3))
        .route("/logs/{log}/v3/cursor", post(cursor))
        // Bodies are taken in here, with a cap of their own.
        .layer(DefaultBodyLimit::disable())
}

type Answered = Result<Response, Failure>;

/// Clients of the sync protocol begin a stream with each call and never come back to it.
async fn pipeline_v2(State(app): State<Arc<App>>, name: Parsed<String>, request: Request) -> Answered {
    pipeline(&app, name, request, false).await
}

async fn pipeline_v3(State(app): State<Arc<App>>, name: Parsed<String>, request: Request) -> Answered {
    pipeline(&app, name, request, true).await
}

async fn pipeline(app: &App, name: Parsed<String>, request: Request, lasting: bool) -> Answered {
    let (log, body, share) = receive(app, name, request).await?;
    let answer = app.sql.pipeline(&log, (body, share), lasting).await?;
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
    let (head, body) = request.into_parts();
    match begin(app, name, &head.headers).await {
        Ok((log, share, length)) => take(app, body, length, share).await.map(|(body, share)| (log, body, share)),
        Err(error) => {
            turn_down(&head.headers, body);
            Err(error)
        }
    }
}

/// Checks what can be checked before the body, and reserves memory for it if it says how long it is.
async fn begin(app: &App, name: Parsed<String>, headers: &HeaderMap) -> Result<(String, MemoryShare, usize), Error> {
    let log = parse(name)?;
    app.registry.get(&log)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut share = app.sql.share();
    let length = length.unwrap_or(0);
    if length > SQL_BODY_BYTES_MAX {
        return Err(too_large());
    }
    share.grow(length).await?;
    Ok((log, share, length))
}

fn too_large() -> Error {
    Error::TooLarge(format!("a body of more than {SQL_BODY_BYTES_MAX} bytes: send it in parts"))
}

async fn take(app: &App, mut body: Body, length: usize, mut share: MemoryShare) -> Result<(Bytes, MemoryShare), Error> {
    let mut pace = Pace::new(app.timeouts.commit, app.timeouts.min_rate);
    let mut received = BytesMut::with_capacity(length);
    let taken = async {
        while let Some(data) = next(&mut body, &mut pace, "--commit-timeout").await? {
            let bytes = received.len() + data.len();
            if bytes > SQL_BODY_BYTES_MAX {
                return Err(too_large());
            }
            share.grow(bytes.saturating_sub(length.max(received.len()))).await?;
            received.extend_from_slice(&data);
        }
        Ok(())
    };
    if let Err(error) = taken.await {
        drain(body);
        return Err(error);
    }
    Ok((received.freeze(), share))
}
