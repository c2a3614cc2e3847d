//! `POST /logs/N/commits`: a body of any length into a log.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures::stream;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::native::{parse, query};
use super::paths::{App, Timeouts};
use super::reply::Failure;
use crate::api::AckLine;
use crate::limits::{DRAIN_BYTES_MAX, DRAIN_WAIT};
use crate::mirror::{Append, Error};
use crate::offset::Offset;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppendQuery {
    from: Option<Offset>,
    acks: Option<Acks>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Acks {
    Stream,
}

pub(super) async fn append(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, axum::extract::rejection::PathRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let log = app.registry.get(&parse(name)?)?;
    let AppendQuery { from, acks } = query(request.uri())?;
    let refused = |error| Failure { error, next: Some(log.view().durable) };
    let append = app.registry.append(&log, from).map_err(refused)?;
    let body = request.into_body();
    let Some(Acks::Stream) = acks else {
        return Ok(Json(receive(&app, append, body).await?).into_response());
    };
    let (reply, ended) = oneshot::channel();
    tokio::spawn(async move {
        let result = receive(&app, append, body).await;
        let _client_is_gone = reply.send(result);
    });
    let view = log.watch();
    // The first line says where the log stands; each later one that it got further.
    let lines = stream::unfold((view, Some(ended), true), |(mut view, ended, first)| async move {
        let mut ended = ended?;
        let durable = |offset| AckLine::Durable { durable: offset };
        let (line, ended) = tokio::select! {
            biased;
            () = std::future::ready(()), if first => (durable(view.borrow_and_update().durable), Some(ended)),
            result = &mut ended => (last_line(result), None),
            changed = view.changed() => match changed {
                Ok(()) => (durable(view.borrow_and_update().durable), Some(ended)),
                Err(_) => (last_line(ended.await), None),
            }
        };
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(text)), (view, ended, false)))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

type Received = Result<crate::api::AppendOutcome, Failure>;

fn last_line(ended: Result<Received, oneshot::error::RecvError>) -> AckLine {
    match ended {
        Ok(Ok(outcome)) => AckLine::Outcome(outcome),
        Ok(Err(failure)) => AckLine::Error(failure.body()),
        Err(_) => AckLine::Error(Failure::from(Error::Unavailable("the append was interrupted".into())).body()),
    }
}

/// Takes a body in until it ends, fails, or takes too long, and waits until what is kept of it is durable.
async fn receive(app: &App, mut append: Append, mut body: Body) -> Received {
    let Timeouts { idle, commit, .. } = app.timeouts;
    let mut stop = app.registry.stopping();
    // Since when a commit has been coming in.
    let mut since: Option<Instant> = None;
    loop {
        let deadline = since.map_or(Instant::now() + idle, |since| since + commit);
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = append.stopped() => break,
            () = sleep_until(deadline) => {
                if since.is_some() {
                    append.fail(Error::Truncated {
                        offset: None,
                        message: format!("a commit did not come whole within {} s (--commit-timeout)", commit.as_secs()),
                    });
                }
                break;
            }
            _ = stop.changed() => {
                append.fail(Error::Unavailable("the service is shutting down".into()));
                break;
            }
        };
        let Some(Ok(frame)) = frame else {
            // The end, or the connection broke: what came is judged all the same.
            break;
        };
        if let Ok(chunk) = frame.into_data() {
            let before = append.boundary();
            if !append.push(chunk).await {
                break;
            }
            since = match append.is_whole() {
                true => None,
                false if append.boundary() != before => Some(Instant::now()),
                false => since.or_else(|| Some(Instant::now())),
            };
        }
    }
    let ended = append.finish().await.map_err(Failure::from);
    if ended.is_err() {
        // A client that is still writing must get to read the answer, and would not if we closed on it.
        let _took_too_long = timeout(DRAIN_WAIT, drain(&mut body)).await;
    }
    ended
}

async fn drain(body: &mut Body) {
    let mut drained = 0;
    while let Some(Ok(frame)) = body.frame().await {
        drained += frame.data_ref().map_or(0, |data| data.len() as u64);
        if drained > DRAIN_BYTES_MAX {
            return;
        }
    }
}
