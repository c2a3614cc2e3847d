//! `/logs/N/base` and `/logs/N/generations/G`: what a generation starts from.

use std::io::IoSlice;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::Uri;
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::libsql::base;
use super::native::{GenerationQuery, Parsed, blocking, in_generation, parse, query};
use super::paths::App;
use super::reply::{self, Failure, drain};
use crate::format::{database, name};
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::mirror::{Draft, Error};
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
    let (mut body, begun) = (request.into_body(), begin(&app, path).await);
    let received = match begun {
        Ok((log, draft)) => receive(&app, &mut body, &draft).await.map(|()| (log, draft)),
        Err(error) => Err(error),
    };
    let (log, draft) = match received {
        Ok(received) => received,
        Err(error) => {
            drain(body);
            return Err(error.into());
        }
    };
    let registry = app.registry.clone();
    let log = blocking(move || registry.start_generation(&log, &draft, |_, _| Ok(()))).await?;
    Ok(reply::created(true, log.status()))
}

async fn begin(app: &App, path: Parsed<(String, u64)>) -> Result<(Arc<crate::mirror::Log>, Draft), Error> {
    let (name, generation) = parse(path)?;
    let registry = app.registry.clone();
    blocking(move || {
        let log = registry.get(&name)?;
        let draft = registry.draft_generation(&log, Some(Generation(generation)))?;
        Ok((log, draft))
    })
    .await
}

/// Writes the body down as the base, synced, and looks whether it is a database.
async fn receive(app: &App, body: &mut Body, draft: &Draft) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Unavailable(format!("cannot store the base: {error}"));
    let dir = draft.dir().clone();
    let file: Arc<dyn RepoFile> = blocking(move || dir.create(name::BASE).map_err(failed)).await?;
    let (mut at, mut head) = (0, Vec::new());
    loop {
        let frame = timeout(app.timeouts.commit, body.frame()).await;
        let late = |_elapsed| Error::Invalid("the base did not go on in time (--commit-timeout)".into());
        let frame = match frame.map_err(late)? {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err(Error::Invalid(format!("the base broke off: {error}"))),
        };
        let Ok(data) = frame.into_data() else { continue };
        head.extend_from_slice(&data[..data.len().min(database::HEADER_LEN.saturating_sub(head.len()))]);
        let bytes = data.len() as u64;
        let _share = app.registry.reserve(bytes).await?;
        write(&file, data, at).await.map_err(failed)?;
        at += bytes;
    }
    if at == 0 {
        // No database is an empty one.
        write(&file, database::empty(LIBSQL_PAGE_SIZE).into(), 0).await.map_err(failed)?;
    } else {
        database::check(&head, at).map_err(|message| Error::Corrupt { offset: None, message })?;
    }
    blocking(move || file.sync().map_err(failed)).await
}

async fn write(file: &Arc<dyn RepoFile>, data: Bytes, at: u64) -> std::io::Result<()> {
    let file = file.clone();
    let written = tokio::task::spawn_blocking(move || file.write_at(&mut [IoSlice::new(&data)], at));
    written.await.map_err(std::io::Error::other)?
}
