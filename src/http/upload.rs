//! Parts of uploads: `POST /logs/N/commits?from=O&upload=ID&at=BYTE[&total=BYTES]` and `PUT /logs/N/generations/G?upload=…`.
//!
//! A part is answered with 202 and how much of the upload is here. The part with which it has `total` bytes is answered as
//! the same bytes in one request would be. A part may be sent again, the last one too.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::generations;
use super::native::blocking;
use super::pace::Pace;
use super::paths::App;
use super::reply::{self, Failure};
use crate::api::{AppendOutcome, PartReceived};
use crate::limits::{EXPORT_BYTES_MAX, READ_BLOCK};
use crate::mirror::{Draft, Error, Log, Staged, Upload, UploadProgress};
use crate::offset::{Generation, Offset};
use crate::repo::RepoFile;

/// What a query says of a part.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PartQuery {
    pub(super) upload: Option<String>,
    pub(super) at: Option<u64>,
    pub(super) total: Option<u64>,
}

/// A part of an upload.
#[derive(Clone, Debug)]
pub(super) struct Part {
    upload: String,
    at: u64,
    total: Option<u64>,
}

impl PartQuery {
    /// The part it describes; none for a request that is whole by itself.
    ///
    /// # Errors
    /// When it makes no sense.
    pub(super) fn part(self) -> Result<Option<Part>, Error> {
        match self {
            PartQuery { upload: Some(upload), at: Some(at), total } => Ok(Some(Part { upload, at, total })),
            PartQuery { upload: None, at: None, total: None } => Ok(None),
            _ => Err(Error::Invalid("a part needs upload=ID and at=BYTE, the last one total=BYTES too".into())),
        }
    }
}

/// Takes a part of commits that start at `from`; appends them when they are whole. Returns what is left of the body too.
pub(super) async fn commits(
    app: &Arc<App>,
    log: &Arc<Log>,
    from: Option<Offset>,
    part: Part,
    body: Body,
) -> (Result<Response, Failure>, Option<Body>) {
    let (app, log) = (app.clone(), log.clone());
    to_the_end(async move {
        let mut body = body;
        (take_commits(&app, &log, from, &part, &mut body).await, body)
    })
    .await
}

async fn take_commits(
    app: &App,
    log: &Arc<Log>,
    from: Option<Offset>,
    part: &Part,
    body: &mut Body,
) -> Result<Response, Failure> {
    let from = from.ok_or_else(|| Error::Invalid("a part of commits needs from=OFFSET".into()))?;
    log.readable()?;
    let durable = log.view().durable;
    if from > durable {
        return Err((Error::Gap { expected: durable, found: from }, durable).into());
    }
    let upload = app.uploads.get(log.id(), &part.upload)?;
    let mut progress = upload.turn().await;
    if let UploadProgress::Done(Some(outcome)) = *progress {
        return Ok(Json(outcome).into_response());
    }
    // What stands before and after the commits of an upload is at most a header.
    let bytes_max = app.registry.settings().commit_bytes_max + READ_BLOCK as u64;
    let registry = app.registry.clone();
    let draft = {
        let log = log.clone();
        move || registry.stage(&log)
    };
    if let Some(response) = receive(app, &upload, &mut progress, part, body, (bytes_max, "upload", draft)).await? {
        return Ok(response);
    }
    let UploadProgress::Staged(staged) = &*progress else {
        return Err(Error::PartMissing { received: 0 }.into());
    };
    let appended = append(app, log, from, &staged.file).await;
    match &appended {
        Ok(outcome) => discard(std::mem::replace(&mut *progress, UploadProgress::Done(Some(*outcome)))).await,
        // The last part may be sent again: the others are kept for it.
        Err(Failure { error: Error::Unavailable(_) | Error::Failed(_), .. }) => {}
        Err(_) => discard(std::mem::replace(&mut *progress, UploadProgress::Empty)).await,
    }
    Ok(Json(appended?).into_response())
}

/// Takes a part of the base of a generation; starts that when it is whole. Returns what is left of the body too.
pub(super) async fn base(
    app: &Arc<App>,
    log: &Arc<Log>,
    generation: Generation,
    part: Part,
    body: Body,
) -> (Result<Response, Failure>, Option<Body>) {
    let (app, log) = (app.clone(), log.clone());
    to_the_end(async move {
        let mut body = body;
        (take_base(&app, &log, generation, &part, &mut body).await, body)
    })
    .await
}

async fn take_base(
    app: &App,
    log: &Arc<Log>,
    generation: Generation,
    part: &Part,
    body: &mut Body,
) -> Result<Response, Failure> {
    let upload = app.uploads.get(log.id(), &part.upload)?;
    let mut progress = upload.turn().await;
    if let UploadProgress::Done(None) = *progress {
        return Ok(reply::created(true, log.status()));
    }
    let registry = app.registry.clone();
    let draft = {
        let log = log.clone();
        move || registry.draft_generation(&log, Some(generation))
    };
    let name = crate::format::name::BASE;
    let limits = (EXPORT_BYTES_MAX, name, draft);
    if let Some(response) = receive(app, &upload, &mut progress, part, body, limits).await? {
        return Ok(response);
    }
    let UploadProgress::Staged(Staged { draft, file, received }) = &*progress else {
        return Err(Error::PartMissing { received: 0 }.into());
    };
    let started = generations::start_from(app, log.clone(), draft.clone(), file.clone(), *received).await;
    let next = if started.is_ok() { UploadProgress::Done(None) } else { UploadProgress::Empty };
    discard(std::mem::replace(&mut *progress, next)).await;
    Ok(reply::created(true, started?.status()))
}

/// Handles a part in a task of its own: a connection that breaks off ends its body, but never the work on what was received.
async fn to_the_end(
    work: impl Future<Output = (Result<Response, Failure>, Body)> + Send + 'static,
) -> (Result<Response, Failure>, Option<Body>) {
    match tokio::spawn(work).await {
        Ok((answer, body)) => (answer, Some(body)),
        Err(_) => (Err(Error::Unavailable("the work was interrupted".into()).into()), None),
    }
}

/// Removes the files of an upload that is over.
async fn discard(progress: UploadProgress) {
    // It cannot fail: what is left behind is logged, and removed when the log is opened.
    let _ = tokio::task::spawn_blocking(move || drop(progress)).await;
}

/// Takes the bytes of a part. The answer, unless the upload is whole now. When they cannot be stored the upload is given up.
async fn receive(
    app: &App,
    upload: &Upload,
    progress: &mut UploadProgress,
    part: &Part,
    body: &mut Body,
    (bytes_max, name, draft): (u64, &'static str, impl FnOnce() -> Result<Draft, Error> + Send + 'static),
) -> Result<Option<Response>, Error> {
    if part.total.is_some_and(|total| total > bytes_max) {
        return Err(Error::TooLarge(format!("an upload of more than {bytes_max} bytes")));
    }
    if !matches!(progress, UploadProgress::Staged(_)) {
        if part.at > 0 {
            return Err(Error::PartMissing { received: 0 });
        }
        let failed = |error: std::io::Error| Error::Unavailable(format!("cannot store the part: {error}"));
        let staged = blocking(move || {
            let draft = Arc::new(draft()?);
            let file = draft.dir().create(name).map_err(failed)?;
            Ok(Staged { draft, file, received: 0 })
        });
        *progress = UploadProgress::Staged(staged.await?);
    }
    let UploadProgress::Staged(staged) = progress else {
        return Err(Error::PartMissing { received: 0 });
    };
    let (mut pace, mut at) = (Pace::new(app.timeouts.commit, app.timeouts.min_rate), part.at);
    let end_max = part.total.unwrap_or(bytes_max);
    loop {
        let cut = |message: String| Error::Truncated { offset: None, message };
        let data = match timeout_at(pace.deadline(), body.frame()).await {
            Err(_elapsed) => {
                return Err(cut("the part did not go on in time (--commit-timeout, --min-rate)".into()));
            }
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(cut(format!("the part broke off: {error}"))),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        let (bytes, received) = (data.len(), Instant::now());
        let end = at.checked_add(bytes as u64).filter(|end| *end <= end_max);
        let end = end.ok_or_else(|| Error::TooLarge(format!("the part goes on after byte {end_max}")))?;
        let share = app.registry.reserve(bytes as u64).await?;
        match write(staged, data, at).await {
            // A disk without space gets back what the upload took.
            Err(error @ Error::Unavailable(_)) => {
                discard(std::mem::replace(progress, UploadProgress::Empty)).await;
                return Err(error);
            }
            written => written?,
        }
        drop(share);
        at = end;
        pace.received(bytes, received.elapsed());
        upload.touch();
    }
    let received = staged.received;
    match part.total {
        Some(total) if received == total => Ok(None),
        Some(total) if at == total => Err(Error::Invalid(format!("the upload has {received} bytes, not {total}"))),
        _ => Ok(Some(reply::accepted(PartReceived { received }))),
    }
}

async fn write(staged: &mut Staged, data: Bytes, at: u64) -> Result<(), Error> {
    let mut grown = staged.clone();
    *staged = blocking(move || {
        grown.write(&data, at)?;
        Ok(grown)
    })
    .await?;
    Ok(())
}

/// Appends the commits in a file.
async fn append(app: &App, log: &Arc<Log>, from: Offset, file: &Arc<dyn RepoFile>) -> Result<AppendOutcome, Failure> {
    let mut append = app.registry.append(log, Some(from))?;
    let mut at = 0;
    loop {
        let file = file.clone();
        let block = blocking(move || {
            let mut block = vec![0; READ_BLOCK];
            let count = file.read_at(&mut block, at)?;
            block.truncate(count);
            Ok(block)
        })
        .await?;
        at += block.len() as u64;
        if block.is_empty() || !append.push(block.into()).await {
            break;
        }
    }
    Ok(append.finish().await?)
}
