//! `POST /pull-updates`.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use prost::Message;
use tokio::task::spawn_blocking;

use crate::http::body::{self, Room};
use crate::http::native::{Parsed, parse};
use crate::http::pace::Pace;
use crate::http::paths::App;
use crate::http::reply::Failure;
use crate::limits::{PULL_BYTES_MAX, PULL_BYTES_SMALL};
use crate::mirror::{Error, Registry, Share};
use crate::sync::turso::proto::PullUpdatesRequest;
use crate::sync::turso::pull::{self, Answer, Pulls};

pub(super) fn routes() -> Router<Arc<App>> {
    let pulls = Extension(Arc::new(Pulls::default()));
    Router::new().route("/logs/{log}/pull-updates", post(pull_updates).layer(pulls))
}

async fn pull_updates(
    State(app): State<Arc<App>>,
    Extension(pulls): Extension<Arc<Pulls>>,
    name: Parsed<String>,
    request: Request,
) -> Result<Response, Failure> {
    let begun = Instant::now();
    let name = parse(name)?;
    app.registry.get(&name)?;
    let answered = async {
        let (received, share) = receive(&app, request).await?;
        let request = PullUpdatesRequest::decode(received);
        let request = request.map_err(|error| Error::Invalid(format!("this is no request to pull: {error}")))?;
        let request =
            if request.server_query_selector.is_empty() { request } else { select(&app, &name, request).await? };
        let answer = pulls.pull(&app.registry, &name, request).await?;
        drop(share);
        respond(Sending { log: name.clone(), answer, sent: 0, begun }).await
    };
    answered.await.map_err(|error| {
        log::debug!("POST /logs/{name}/pull-updates: {error}, {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
        error.into()
    })
}

/// What a request with a query asks for: the query is run, where SQL runs.
async fn select(app: &App, name: &str, mut request: PullUpdatesRequest) -> Result<PullUpdatesRequest, Error> {
    pull::check_selected(&request)?;
    let touched = app.sql.touched(name, mem::take(&mut request.server_query_selector)).await?;
    let (registry, name) = (app.registry.clone(), name.to_owned());
    let selected = spawn_blocking(move || pull::with_touched(&registry, &name, request, touched)).await;
    selected.unwrap_or_else(|_| Err(Error::Unavailable("a read was interrupted".into())))
}

/// The whole body, and the memory that it takes.
async fn receive(app: &App, request: Request) -> Result<(Bytes, Share), Error> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > PULL_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let pace = Pace::new(app.timeouts.header, app.timeouts.min_rate);
    let mut room = PullRoom { registry: &app.registry, share: Share::default() };
    let body = body::whole(request.into_body(), (pace, "--header-timeout"), BytesMut::new(), &mut room).await?;
    Ok((body.freeze(), room.share))
}

fn too_large() -> Error {
    Error::TooLarge(format!("a pull takes at most {PULL_BYTES_MAX} bytes"))
}

struct PullRoom<'a> {
    registry: &'a Registry,
    share: Share,
}

impl Room for PullRoom<'_> {
    async fn cover(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes > PULL_BYTES_MAX {
            return Err(too_large());
        }
        // It is held as it was received and once more as what it says.
        let held = if bytes > PULL_BYTES_SMALL { 2 * bytes as u64 } else { 0 };
        self.registry.cover(&mut self.share, held).await
    }
}

/// An answer under way. However it ends, it is said in the log.
struct Sending {
    log: String,
    answer: Answer,
    sent: u64,
    begun: Instant,
}

impl Sending {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let next = self.answer.next().await.inspect_err(|error| log::error!("reading {}: {error}", self.log))?;
        self.sent += next.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Ok(next)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Sending { log, answer, sent, begun } = self;
        let (to, pages, bytes, took) = (answer.to(), answer.pages(), answer.bytes(), begun.elapsed());
        let from = answer.from().map_or("nothing".to_owned(), |from| from.to_string());
        let part = if *sent < bytes { format!(" ({sent} sent)") } else { String::new() };
        let took = took.as_secs_f64() * 1e3;
        log::debug!("POST /logs/{log}/pull-updates: {from} to {to}, {pages} pages, {bytes} bytes{part}, {took:.1} ms");
    }
}

/// The first part is read before the answer begins: trouble with it is told in so many words then, and not by a stream that
/// breaks off.
async fn respond(mut sending: Sending) -> Result<Response, Error> {
    let bytes = sending.answer.bytes();
    let first = sending.next().await?.unwrap_or_default();
    let body = if first.len() as u64 == bytes {
        Body::from(first)
    } else {
        let rest = stream::try_unfold(sending, |mut sending| async move {
            Ok::<_, Error>(sending.next().await?.map(|bytes| (bytes, sending)))
        });
        Body::from_stream(stream::iter([Ok(first)]).chain(rest))
    };
    let kind = HeaderValue::from_static("application/protobuf");
    Ok(([(CONTENT_TYPE, kind), (CONTENT_LENGTH, HeaderValue::from(bytes))], body).into_response())
}
