//! `POST /logs/N/commits`: a body of any length into a log.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use futures::stream;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::native::{Parsed, parse, query};
use super::pace::Pace;
use super::paths::{App, Timeouts};
use super::reply::Failure;
use super::request_log::Notes;
use super::upload::{self, Part, PartQuery};
use super::writers::writer_of;
use crate::api::AckLine;
use crate::mirror::{Append, Error, Log, Writer};
use crate::offset::Offset;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppendQuery {
    from: Option<Offset>,
    acks: Option<Acks>,
    upload: Option<String>,
    at: Option<u64>,
    total: Option<u64>,
}

/// What an append begins with.
enum Begun {
    Stream(Box<Append>, Option<Acks>),
    Part(Arc<Log>, Option<Offset>, Part, Writer),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Acks {
    Stream,
}

pub(super) async fn append(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    request: Request,
) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let (append, acks) = match begin(&app, name, &head).await? {
        Begun::Stream(append, acks) => (*append, acks),
        Begun::Part(log, from, part, writer) => {
            return upload::commits(&app, &log, from, (part, writer), body).await;
        }
    };
    let Some(Acks::Stream) = acks else {
        return Ok(Json(receive(&app, append, body).await?).into_response());
    };
    let durable = append.acks();
    let notes = head.extensions.get::<Notes>().cloned().unwrap_or_default();
    let (reply, ended) = oneshot::channel();
    tokio::spawn(async move {
        let result = receive(&app, append, body).await;
        let _client_is_gone = reply.send(result);
    });
    // The first line says where the append starts; each later one that it got further.
    let lines = stream::unfold((durable, Some(ended), true), move |(mut durable, ended, first)| {
        let notes = notes.clone();
        async move {
            let mut ended = ended?;
            let (line, ended) = tokio::select! {
                biased;
                () = std::future::ready(()), if first => (AckLine::Durable { durable: durable.durable() }, Some(ended)),
                result = &mut ended => (last_line(result, &notes), None),
                durable = durable.advanced() => (AckLine::Durable { durable }, Some(ended)),
            };
            let mut text = serde_json::to_vec(&line).unwrap_or_default();
            text.push(b'\n');
            Some((Ok::<_, Infallible>(Bytes::from(text)), (durable, ended, false)))
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

async fn begin(app: &App, name: Parsed<String>, head: &Parts) -> Result<Begun, Failure> {
    let log = app.registry.get(&parse(name)?)?;
    let refused = |error| Failure { error, next: log.durable() };
    let AppendQuery { from, acks, upload, at, total } = query(&head.uri).map_err(refused)?;
    let writer = writer_of(&head.headers).map_err(refused)?;
    if let Some(part) = (PartQuery { upload, at, total }).part().map_err(refused)? {
        return Ok(Begun::Part(log, from, part, writer));
    }
    let append = app.registry.append_by(writer, &log, from).await.map_err(refused)?;
    Ok(Begun::Stream(Box::new(append), acks))
}

type Received = Result<crate::api::AppendOutcome, Failure>;

fn last_line(ended: Result<Received, oneshot::error::RecvError>, notes: &Notes) -> AckLine {
    let failure = match ended {
        Ok(Ok(outcome)) => return AckLine::Outcome(outcome),
        Ok(Err(failure)) => failure,
        Err(_) => Failure::from(Error::Unavailable("the append was interrupted".into())),
    };
    let body = failure.body();
    notes.refused(&body);
    AckLine::Error(body)
}

/// Takes a body in until it ends, fails, or takes too long, and waits until what is kept of it is durable.
async fn receive(app: &App, mut append: Append, mut body: Body) -> Received {
    let Timeouts { idle, commit, min_rate, .. } = app.timeouts;
    let mut stop = app.registry.stopping();
    // Of the commit that is being received.
    let mut pace: Option<Pace> = None;
    loop {
        let deadline = pace.as_ref().map_or_else(|| Instant::now() + idle, Pace::deadline);
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = append.stopped() => break,
            () = sleep_until(deadline) => {
                if pace.is_some() {
                    append.fail(Error::Truncated {
                        offset: None,
                        message: format!("a commit was cut off: nothing of it was received for {} s (--commit-timeout), or less than {min_rate} bytes/s after that (--min-rate)", commit.as_secs()),
                    });
                }
                break;
            }
            _ = stop.wait_for(|stop| *stop) => {
                append.fail(Error::Unavailable("the service is shutting down".into()));
                break;
            }
        };
        let frame = match frame {
            None => break,
            Some(Ok(frame)) => frame,
            // What is whole of it is kept all the same.
            Some(Err(error)) => {
                append.fail(Error::Truncated { offset: None, message: format!("the body broke off: {error}") });
                break;
            }
        };
        if let Ok(chunk) = frame.into_data() {
            let (before, bytes, received) = (append.boundary(), chunk.len(), Instant::now());
            if !append.push(chunk).await {
                break;
            }
            pace = match append.is_whole() {
                true => None,
                false if append.boundary() != before => Some(Pace::new(commit, min_rate)),
                false => {
                    let mut pace = pace.unwrap_or_else(|| Pace::new(commit, min_rate));
                    // While the sender waits for us, for memory or the disk, its time stands still.
                    pace.received(bytes, received.elapsed());
                    Some(pace)
                }
            };
        }
    }
    let (log, counters) = (append.log().to_owned(), app.registry.counters());
    let ended = append.finish().await.map_err(Failure::from);
    if let Ok(outcome) = &ended
        && outcome.skipped > 0
    {
        let (skipped, next) = (outcome.skipped, outcome.next);
        log::info!("log {log}: {skipped} commits were sent that it holds: skipped, and it ends at offset {next}");
        counters.skipped(&log, skipped);
    }
    ended
}
