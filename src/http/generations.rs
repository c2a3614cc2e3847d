//! `/logs/N/base` and `/logs/N/generations/G`: what a generation starts from.

use std::io::IoSlice;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::Uri;
use axum::response::Response;
use tokio::time::Instant;

use super::body;
use super::libsql::base;
use super::native::{GenerationQuery, Parsed, blocking, described, in_generation, parse, query};
use super::pace::Pace;
use super::paths::App;
use super::reply::{self, Failure, drain};
use super::upload::{self, PartQuery};
use crate::format::database::{self, DatabaseHeader};
use crate::format::name;
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::mirror::{Draft, Error, Log};
use crate::offset::Generation;
use crate::repo::RepoFile;

pub(super) async fn read_base(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    uri: Uri,
) -> Result<Response, Failure> {
    let GenerationQuery { generation } = query(&uri)?;
    let log = in_generation(&app, parse(name)?, generation).await?;
    Ok(base(app.registry.base(&log)?))
}

/// Starts a generation from the database in the body.
pub(super) async fn start(
    State(app): State<Arc<App>>,
    path: Parsed<(String, u64)>,
    request: Request,
) -> Result<Response, Failure> {
    let part = query::<PartQuery>(request.uri()).and_then(PartQuery::part);
    let mut body = request.into_body();
    if let Some(part) = part? {
        let found = parse(path).and_then(|(name, generation)| Ok((app.registry.get(&name)?, generation)));
        let (answer, rest) = match found {
            Ok((log, generation)) => upload::base(&app, &log, Generation(generation), part, body).await,
            Err(error) => (Err(error.into()), Some(body)),
        };
        if let (Err(_), Some(rest)) = (&answer, rest) {
            drain(rest);
        }
        return answer;
    }
    let begun = begin(&app, path).await;
    let received = match begun {
        Ok((log, draft)) => match receive(&app, &mut body, &draft).await {
            Ok((file, bytes)) => Ok((log, draft, file, bytes)),
            Err(error) => {
                // Removing its files blocks.
                blocking(move || {
                    drop(draft);
                    Ok(())
                })
                .await?;
                Err(error)
            }
        },
        Err(error) => Err(error),
    };
    let (log, draft, file, bytes) = match received {
        Ok(received) => received,
        Err(error) => {
            drain(body);
            return Err(error.into());
        }
    };
    let log = start_from(&app, log, Arc::new(draft), file, bytes).await?;
    Ok(reply::created(true, described(&app, &log)))
}

/// Starts the generation of a draft whose base was received: `bytes` bytes in `file`, if that is a database.
pub(super) async fn start_from(
    app: &App,
    log: Arc<Log>,
    draft: Arc<Draft>,
    file: Arc<dyn RepoFile>,
    bytes: u64,
) -> Result<Arc<Log>, Error> {
    let registry = app.registry.clone();
    blocking(move || {
        let failed = |error: std::io::Error| Error::Unavailable(format!("cannot store the base: {error}"));
        if bytes == 0 {
            // No database is an empty one.
            let empty = database::empty(LIBSQL_PAGE_SIZE);
            file.write_at(&mut [IoSlice::new(&empty)], 0).map_err(failed)?;
        } else {
            let mut head = [0; database::HEADER_LEN];
            let count = file.read_at(&mut head, 0).map_err(failed)?;
            DatabaseHeader::of_file(&head[..count], bytes).map_err(|reason| {
                let message = format!("this is no SQLite database: {reason}");
                Error::Corrupt { offset: None, message }
            })?;
        }
        file.sync().map_err(failed)?;
        registry.start_generation(&log, &draft, |_, _| Ok(()))
    })
    .await
}

async fn begin(app: &App, path: Parsed<(String, u64)>) -> Result<(Arc<Log>, Draft), Error> {
    let (name, generation) = parse(path)?;
    let registry = app.registry.clone();
    blocking(move || {
        let log = registry.get(&name)?;
        let draft = registry.draft_generation(&log, Some(Generation(generation)))?;
        Ok((log, draft))
    })
    .await
}

/// Writes the body down as the base; how many bytes it has.
async fn receive(app: &App, body: &mut Body, draft: &Draft) -> Result<(Arc<dyn RepoFile>, u64), Error> {
    let failed = |error: std::io::Error| Error::Unavailable(format!("cannot store the base: {error}"));
    let dir = draft.dir().clone();
    let file: Arc<dyn RepoFile> = blocking(move || dir.create(name::BASE).map_err(failed)).await?;
    let mut at = 0;
    let mut pace = Pace::new(app.timeouts.commit, app.timeouts.min_rate);
    let cut = |message| Error::Truncated { offset: None, message };
    while let Some(data) = body::frame(body, &pace, ("the base", "--commit-timeout")).await.map_err(cut)? {
        let (bytes, received) = (data.len() as u64, Instant::now());
        let _share = app.registry.reserve(bytes).await?;
        write(&file, data, at).await.map_err(failed)?;
        pace.received(bytes as usize, received.elapsed());
        at += bytes;
    }
    Ok((file, at))
}

async fn write(file: &Arc<dyn RepoFile>, data: Bytes, at: u64) -> std::io::Result<()> {
    let file = file.clone();
    let written = tokio::task::spawn_blocking(move || file.write_at(&mut [IoSlice::new(&data)], at));
    written.await.map_err(std::io::Error::other)?
}
