//! The native API, but for appends.

use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, LAST_MODIFIED, RANGE,
};
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::body;
use super::conditional::{Outcome, Validators};
use super::paths::App;
use super::range::{self, Wanted};
use super::reply::{self, Failure};
use crate::api::{BASE_FIELD, CreateLog, FRAMING_FIELD, GENERATION_FIELD, LogStatus, SegmentStatus};
use crate::format::LogFormat;
use crate::limits::BODY_ERROR_DELAY;
use crate::mirror::{Error, Feed, Log, State as Health};
use crate::offset::{Generation, Offset};

pub(super) type Parsed<T> = Result<Path<T>, PathRejection>;

/// A part of the path, or a 400 in our own words.
pub(super) fn parse<T>(path: Parsed<T>) -> Result<T, Error> {
    path.map(|Path(part)| part).map_err(|rejection| Error::Invalid(rejection.body_text()))
}

/// The query, or a 400 in our own words.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Error> {
    Query::try_from_uri(uri).map(|Query(query)| query).map_err(|rejection| Error::Invalid(rejection.body_text()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadQuery {
    from: Option<Offset>,
    to: Option<Offset>,
    #[serde(default)]
    follow: bool,
    generation: Option<Generation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentsQuery {
    generation: Option<Generation>,
    #[serde(default)]
    sha256: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerationQuery {
    pub(super) generation: Option<Generation>,
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Vec<LogStatus>>, Failure> {
    // What cannot be checked says so in its status.
    let _ = checked(&app).await?;
    Ok(Json(app.registry.logs().iter().map(|log| described(&app, log)).collect()))
}

/// Has all logs checked. Err when their directory cannot be read.
async fn checked(app: &App) -> Result<std::io::Result<()>, Error> {
    let registry = app.registry.clone();
    blocking(move || Ok(registry.check())).await
}

pub(super) async fn status(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    uri: Uri,
) -> Result<Json<LogStatus>, Failure> {
    let GenerationQuery { generation } = query(&uri)?;
    let log = in_generation(&app, parse(name)?, generation).await?;
    let checked = log.clone();
    let _its_status_says_so = blocking(move || Ok(checked.check())).await?;
    Ok(Json(described(&app, &log)))
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    request: Request,
) -> Result<Response, Failure> {
    let (name, GenerationQuery { generation }) = (parse(name)?, query(request.uri())?);
    let wanted: CreateLog = body::json(request, app.timeouts.header, r#"{"format":"commitlog","first":0}"#).await?;
    let (registry, generation) = (app.registry.clone(), generation.unwrap_or(Generation::FIRST));
    let (log, new) = blocking(move || registry.create_in(&name, wanted, generation)).await?;
    Ok(reply::created(new, described(&app, &log)))
}

pub(super) async fn read(State(app): State<Arc<App>>, name: Parsed<String>, uri: Uri) -> Result<Response, Failure> {
    let ReadQuery { from, to, follow, generation } = query(&uri)?;
    let log = in_generation(&app, parse(name)?, generation).await?;
    let from = from.unwrap_or(log.first());
    let feed = app.registry.feed(&log, (from, to), follow).await?;
    let framing = app.registry.framing_at(&log, from).await?;
    let there = from < log.view().durable && to.is_none_or(|to| from < to);
    let body = body(log.clone(), feed, there).await?;
    let mut response = ([(CONTENT_TYPE, "application/octet-stream")], body).into_response();
    response.headers_mut().insert(HeaderName::from_static(FRAMING_FIELD), reply::header(&framing.to_string())?);
    response.headers_mut().insert(HeaderName::from_static(GENERATION_FIELD), HeaderValue::from(log.generation().0));
    let base = match log.known_base_digest() {
        None if log.format() == LogFormat::Wal => blocking(move || Ok(log.base_digest())).await?,
        known => known,
    };
    if let Some(base) = base {
        response.headers_mut().insert(HeaderName::from_static(BASE_FIELD), reply::header(&base.to_string())?);
    }
    Ok(response)
}

pub(super) async fn segments(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    uri: Uri,
) -> Result<Json<Vec<SegmentStatus>>, Failure> {
    let SegmentsQuery { generation, sha256 } = query(&uri)?;
    let log = in_generation(&app, parse(name)?, generation).await?;
    Ok(Json(blocking(move || log.segments(sha256)).await?))
}

pub(super) async fn segment(
    State(app): State<Arc<App>>,
    path: Parsed<(String, Offset)>,
    uri: Uri,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (name, start) = parse(path)?;
    let GenerationQuery { generation } = query(&uri)?;
    let log = in_generation(&app, name.clone(), generation).await?;
    log.readable()?;
    let view = log.view();
    let found = view.segment(start);
    let segment = found.ok_or_else(|| Error::NotFound(format!("no segment of log {name:?} starts at {start}")))?;
    // A segment starts with its offset, so history and length decide the bytes.
    let etag = format!("\"{}-{start}-{}\"", log.history(), segment.bytes);
    let sealed = view.head.is_none_or(|head| head.start != start);
    let cache = if sealed { "public, max-age=31536000, immutable" } else { "no-cache" };
    let validators = Validators::new(etag, app.registry.modified(&log, start).await?);
    let ranged = match validators.outcome(&headers) {
        Outcome::Failed => return Ok(reply::precondition_failed(validators.etag())),
        Outcome::NotModified => return reply::not_modified(&validators, cache),
        // Nothing but a GET has a range.
        Outcome::Answer { ranged } => ranged && method == Method::GET,
    };
    let text = headers.get(RANGE).filter(|_| ranged).and_then(|range| range.to_str().ok());
    let wanted = text.map_or(Wanted::All, |text| range::wanted(text, segment.bytes));
    let (range, partial) = match wanted {
        Wanted::All => (0..segment.bytes, false),
        Wanted::Part(range) => (range, true),
        Wanted::Nothing => return Ok(reply::no_such_range(segment.bytes)),
    };
    let feed = app.registry.segment(&log, start, range.clone())?;
    let mut response = body(log, feed, !range.is_empty()).await?.into_response();
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    fields.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    fields.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    fields.insert(ETAG, reply::header(validators.etag())?);
    if let Some(modified) = validators.last_modified() {
        fields.insert(LAST_MODIFIED, reply::header(&modified)?);
    }
    fields.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    if partial {
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, segment.bytes);
        fields.insert(CONTENT_RANGE, reply::header(&text)?);
        *response.status_mut() = reply::PARTIAL;
    }
    Ok(response)
}

/// Whether the service as a whole works, with all that is wrong: 503 when it drains, cannot read its directory, or has
/// logs and none that can be used. Single logs that are not well are listed.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let directory = checked(&app).await?;
    let logs = app.registry.logs();
    let mut problems: Vec<String> = logs.iter().filter_map(problem).collect();
    let mut works = problems.is_empty() || problems.len() < logs.len();
    if let Err(error) = directory {
        works = false;
        problems.insert(0, format!("the data directory cannot be read: {error}"));
    }
    if is_draining(&app) {
        works = false;
        problems.insert(0, "the service is shutting down".to_owned());
    }
    Ok(reply::health(works, &problems))
}

/// That the process runs.
pub(super) async fn livez() -> Response {
    reply::health(true, &[])
}

/// Whether requests should be sent here: the service listens only when its logs have been opened.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    match is_draining(&app) {
        true => reply::health(false, &["the service is shutting down".to_owned()]),
        false => reply::health(true, &[]),
    }
}

fn is_draining(app: &App) -> bool {
    *app.registry.stopping().borrow()
}

fn problem(log: &Arc<Log>) -> Option<String> {
    match log.view().state {
        Health::Ok | Health::Ended(_) => {
            log.base_fault().map(|fault| format!("log {} is damaged: {fault}", log.name()))
        }
        Health::Failed(cause) => Some(format!("log {} has failed: {cause}", log.name())),
        Health::Damaged(cause) => Some(format!("log {} is damaged: {cause}", log.name())),
    }
}

/// The status of a log, with what only the service knows: which one it is, and how the log's checkpoints fare.
pub(super) fn described(app: &App, log: &Log) -> LogStatus {
    let checkpoints = app.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
    let checkpoint_failing = checkpoints.as_ref().and_then(|checkpoints| checkpoints.state_of(log.name()));
    LogStatus { service: app.instance.clone(), checkpoint_failing, ..log.status() }
}

/// The log of that name, in an older generation if one is wanted.
pub(super) async fn in_generation(app: &App, name: String, wanted: Option<Generation>) -> Result<Arc<Log>, Error> {
    let current = app.registry.get(&name)?;
    if wanted.is_none_or(|wanted| wanted == current.generation()) {
        return Ok(current);
    }
    let registry = app.registry.clone();
    blocking(move || registry.generation(&name, wanted)).await
}

/// A feed as a body. Of what is `there` already the first part is read before the answer begins: trouble with it is told
/// in so many words then, and not by a stream that breaks off.
async fn body(log: Arc<Log>, mut feed: Feed, there: bool) -> Result<Body, Error> {
    let said = |log: &Log, error: &Error| log::error!("reading {}: {error}", log.name());
    let first = if there { feed.next().await.inspect_err(|error| said(&log, error))? } else { None };
    let rest = stream::try_unfold((log, feed), move |(log, mut feed)| async move {
        match feed.next().await {
            Ok(next) => Ok::<_, Error>(next.map(|bytes| (bytes, (log, feed)))),
            Err(error) => {
                said(&log, &error);
                // An error drops what the connection has buffered, which is sound: it is sent while we wait.
                sleep(BODY_ERROR_DELAY).await;
                Err(error)
            }
        }
    });
    Ok(Body::from_stream(stream::iter(first.map(Ok)).chain(rest)))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::Unavailable("the work was interrupted".into())))
}
