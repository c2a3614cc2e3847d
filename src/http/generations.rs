//! `/logs/N/base` and `/logs/N/generations/G`: what a generation starts from.

use std::io::IoSlice;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use hyper::body::Body as _;
use serde::Deserialize;
use tokio::time::Instant;

use super::body;
use super::libsql::{base, sized};
use super::native::{GenerationQuery, Parsed, blocking, described, in_generation, parse, query};
use super::pace::Pace;
use super::paths::App;
use super::reply::{self, Failure};
use super::upload::{self, PartQuery};
use super::writers::writer_of;
use crate::api::{GENERATION_FIELD, LogSource, SUMS_FIELD};
use crate::format::database::{self, DatabaseHeader};
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::mirror::{Draft, Error, Log, Share, Writer};
use crate::offset::Generation;
use crate::repo::RepoFile;
use crate::repr_digest::{self, ReprDigest};
use crate::segment::base::{BaseBuilder, BaseDigest, FinishedBase, seen};

pub(super) async fn read_base(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    uri: Uri,
) -> Result<Response, Failure> {
    let GenerationQuery { generation } = query(&uri)?;
    let log = in_generation(&app, parse(name)?, generation).await?;
    let mut response = base(app.registry.base(&log)?).await?;
    response.headers_mut().insert(HeaderName::from_static(GENERATION_FIELD), HeaderValue::from(log.generation().0));
    Ok(response)
}

/// A base that was received, and is not checked yet.
pub(super) enum ReceivedBase {
    /// With the sums that were made meanwhile.
    Streamed(BaseBuilder),
    /// So many bytes in a file of the draft.
    Staged(Arc<dyn RepoFile>, u64),
}

/// What a request says of its base.
#[derive(Clone, Debug)]
pub(super) struct BaseClaims {
    /// The digest that it has.
    digest: Option<BaseDigest>,
    /// Who sends it.
    pub(super) writer: Writer,
}

impl BaseClaims {
    fn of(headers: &HeaderMap) -> Result<BaseClaims, Error> {
        Ok(BaseClaims { digest: claimed_digest(headers)?, writer: writer_of(headers)? })
    }
}

/// That a request has a body. An empty one is a database without a page, as SQLite makes it, and its head says that it is empty.
fn has_body(request: &Request) -> Result<(), Error> {
    if request.headers().contains_key(CONTENT_LENGTH) || !request.body().is_end_stream() {
        return Ok(());
    }
    let text = "the database goes into the body, and this request has none: one without a page has content-length: 0";
    Err(Error::Invalid(text.into()))
}

/// The digest that a request says its base has.
fn claimed_digest(headers: &HeaderMap) -> Result<Option<BaseDigest>, Error> {
    let Some(field) = headers.get(repr_digest::FIELD) else {
        return Ok(None);
    };
    let digest = field.to_str().map_err(|error| error.to_string()).and_then(ReprDigest::parse);
    let digest = digest.map_err(|error| Error::Invalid(format!("{}: {error}", repr_digest::FIELD)))?;
    Ok(digest.map(|digest| digest.sha256))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SumsQuery {
    key: u64,
    generation: Option<Generation>,
}

/// The checksums of the pages of the database as of the last durable commit.
pub(super) async fn page_sums(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    uri: Uri,
) -> Result<Response, Failure> {
    let SumsQuery { key, generation } = query(&uri)?;
    let log = in_generation(&app, parse(name)?, generation).await?;
    let sums = blocking(move || log.page_sums(key)).await?;
    let (bytes, proof) = (sums.bytes(), reply::header(&sums.proof())?);
    let body = Body::from_stream(stream::try_unfold(sums, |mut sums| async move {
        let next = blocking(move || Ok((sums.next()?, sums))).await;
        let (next, sums) = next.inspect_err(|error| log::error!("summing up pages: {error}"))?;
        Ok::<_, Error>(next.map(|bytes| (bytes, sums)))
    }));
    let mut response = sized(bytes, body);
    response.headers_mut().insert(HeaderName::from_static(SUMS_FIELD), proof);
    Ok(response)
}

/// Starts a generation from the database in the body.
pub(super) async fn start(
    State(app): State<Arc<App>>,
    path: Parsed<(String, u64)>,
    request: Request,
) -> Result<Response, Failure> {
    let part = query::<PartQuery>(request.uri()).and_then(PartQuery::part)?;
    let claims = BaseClaims::of(request.headers())?;
    // A part says itself where it starts, and the last one how long all of it is.
    if let Some(part) = part {
        let (name, generation) = parse(path)?;
        let log = app.registry.get(&name)?;
        return upload::base(&app, &log, (Generation(generation), claims), part, request.into_body()).await;
    }
    has_body(&request)?;
    let mut body = request.into_body();
    let (log, draft) = begin(&app, path, &claims.writer).await?;
    let _feeding = app.registry.feeding(log.name(), &claims.writer);
    let base = match receive(&app, &mut body, &draft).await {
        Ok(base) => base,
        Err(error) => {
            // Removing its files blocks.
            blocking(move || {
                drop(draft);
                Ok(())
            })
            .await?;
            return Err(error.into());
        }
    };
    let log = start_from(&app, log, Arc::new(draft), (ReceivedBase::Streamed(base), claims)).await?;
    Ok(reply::created(true, described(&app, &log)))
}

/// Starts the generation of a draft whose base was received, if that is a database, and the one that it is said to be.
pub(super) async fn start_from(
    app: &App,
    log: Arc<Log>,
    draft: Arc<Draft>,
    (base, claims): (ReceivedBase, BaseClaims),
) -> Result<Arc<Log>, Error> {
    let registry = app.registry.clone();
    blocking(move || {
        let failed = |error: std::io::Error| Error::Unavailable(format!("cannot store the base: {error}"));
        let finished = match base {
            ReceivedBase::Streamed(mut base) => {
                if base.bytes() == 0 {
                    // No database is an empty one.
                    base.write(database::empty(LIBSQL_PAGE_SIZE)).map_err(failed)?;
                }
                check_database(&**base.file(), base.bytes())?;
                base.finish(true)
            }
            ReceivedBase::Staged(file, bytes) => {
                if bytes == 0 {
                    file.write_at(&mut [IoSlice::new(&database::empty(LIBSQL_PAGE_SIZE))], 0).map_err(failed)?;
                }
                check_database(&*file, bytes)?;
                FinishedBase::of_draft(draft.dir().clone(), &*file)
            }
        };
        let finished = finished.map_err(failed)?;
        if let Some(claimed) = claims.digest.filter(|claimed| *claimed != finished.id().sha256) {
            let found = finished.id().sha256;
            let message = format!("the base that was received has the SHA-256 {found}, and the request says {claimed}");
            return Err(Error::Corrupt { offset: None, message });
        }
        finished.publish().map_err(failed)?;
        let started = registry.start_generation(&log, &draft, |log, _| {
            log.admit(&claims.writer)?;
            Ok(log.source().map(|source| LogSource { awaits_base: false, ..source }))
        })?;
        // Nobody here reads the old generation any more.
        drop((log, draft));
        registry.prune_now(started.name());
        Ok(started)
    })
    .await
}

/// That SQLite would open the file. What follows its last page is kept.
fn check_database(file: &dyn RepoFile, bytes: u64) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Unavailable(format!("cannot store the base: {error}"));
    let mut head = [0; database::HEADER_LEN];
    let count = file.read_at(&mut head, 0).map_err(failed)?;
    if bytes == 0 {
        return Ok(());
    }
    let head = &head[..count];
    let reason = match (DatabaseHeader::decode(head), seen(head, bytes)) {
        (Err(reason), _) => format!("this is no SQLite database: {reason}"),
        (_, Err(reason)) => reason,
        (_, Ok(Some(_))) => return Ok(()),
        (_, Ok(None)) => match DatabaseHeader::of_file(head, bytes) {
            Ok(_) => return Ok(()),
            Err(reason) => format!("this is no SQLite database: {reason}"),
        },
    };
    Err(Error::Corrupt { offset: None, message: reason })
}

async fn begin(app: &App, path: Parsed<(String, u64)>, writer: &Writer) -> Result<(Arc<Log>, Draft), Error> {
    let (name, generation) = parse(path)?;
    let (registry, writer) = (app.registry.clone(), writer.clone());
    blocking(move || {
        let log = registry.get(&name)?;
        log.admit(&writer)?;
        let draft = registry.draft_generation(&log, Some(Generation(generation)))?;
        Ok((log, draft))
    })
    .await
}

/// Bytes, and the memory that they take.
struct Reserved {
    data: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Writes the body down as the base.
async fn receive(app: &App, body: &mut Body, draft: &Draft) -> Result<BaseBuilder, Error> {
    let failed = |error: std::io::Error| Error::Unavailable(format!("cannot store the base: {error}"));
    let dir = draft.dir().clone();
    let mut base = blocking(move || BaseBuilder::create(dir).map_err(failed)).await?;
    let mut pace = Pace::new(app.timeouts.commit, app.timeouts.min_rate);
    let cut = |message| Error::Truncated { offset: None, message };
    while let Some(data) = body::frame(body, &pace, ("the base", "--commit-timeout")).await.map_err(cut)? {
        let (bytes, received) = (data.len(), Instant::now());
        // Until it is summed: that may be a while after it was written.
        let block = Bytes::from_owner(Reserved { data, _share: app.registry.reserve(bytes as u64).await? });
        base = blocking(move || base.write(block).map(|()| base).map_err(failed)).await?;
        pace.received(bytes, received.elapsed());
    }
    Ok(base)
}
