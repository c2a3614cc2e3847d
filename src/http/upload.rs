//! Parts of uploads: `POST /logs/N/commits?from=O&upload=ID&at=BYTE[&total=BYTES]` and `PUT /logs/N/generations/G?upload=…`.
//!
//! A part is answered with 202 and how much of the upload is here. The part with which it has `total` bytes is answered as
//! the same bytes in one request would be. A part may be sent again, the last one too.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::body;
use super::generations::{self, BaseClaims, ReceivedBase};
use super::native::{blocking, described};
use super::pace::Pace;
use super::paths::App;
use super::reply::{self, Failure};
use crate::api::PartReceived;
use crate::format::name::BASE_DRAFT;
use crate::limits::{EXPORT_BYTES_MAX, READ_BLOCK};
use crate::mirror::{Draft, Error, LastPart, Log, Staged, Upload, UploadProgress, Writer};
use crate::offset::{Generation, Offset};

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

/// Takes a part of commits that start at `from`; appends them when they are whole.
pub(super) async fn commits(
    app: &Arc<App>,
    log: &Arc<Log>,
    from: Option<Offset>,
    (part, writer): (Part, Writer),
    mut body: Body,
) -> Result<Response, Failure> {
    let (app, log) = (app.clone(), log.clone());
    to_the_end(async move { take_commits(&app, &log, from, (&part, writer), &mut body).await }).await
}

async fn take_commits(
    app: &App,
    log: &Arc<Log>,
    from: Option<Offset>,
    (part, writer): (&Part, Writer),
    body: &mut Body,
) -> Result<Response, Failure> {
    let from = from.ok_or_else(|| Error::Invalid("a part of commits needs from=OFFSET".into()))?;
    log.readable()?;
    log.admit(&writer)?;
    let durable = log.view().durable;
    if from > durable {
        return Err((Error::Gap { expected: durable, found: from }, durable).into());
    }
    // What was begun for one generation is nothing in the next.
    let upload = app.uploads.get(&format!("{}/{}", log.id(), log.generation()), &part.upload)?;
    let mut progress = upload.turn().await;
    if let UploadProgress::Done(last, Some(outcome)) = *progress
        && is_again(app, &upload, last, (from.0, part), body, &mut progress).await?
    {
        return Ok(Json(outcome).into_response());
    }
    // What stands before and after the commits of an upload is at most a header.
    let bytes_max = app.registry.settings().commit_bytes_max.saturating_add(READ_BLOCK as u64);
    let registry = app.registry.clone();
    let draft = {
        let log = log.clone();
        move || registry.stage(&log)
    };
    let received = receive(app, &upload, &mut progress, part, body, (bytes_max, "upload", draft)).await?;
    let last = match received {
        Received::Part(received) => return Ok(reply::accepted(received)),
        Received::Whole { total, digest } => LastPart { goal: from.0, at: part.at, total, digest },
    };
    let UploadProgress::Staged(staged) = &*progress else {
        return Err(Error::PartMissing { received: 0 }.into());
    };
    let appended = match app.registry.append_file(log, Some(from), staged.file.clone(), writer).await {
        Ok(append) => append.take_file(staged.file.clone()).await.map_err(Failure::from),
        Err(error) => Err(error.into()),
    };
    match &appended {
        Ok(outcome) => discard(std::mem::replace(&mut *progress, UploadProgress::Done(last, Some(*outcome)))).await,
        // The last part may be sent again: the others are kept for it.
        Err(Failure { error: Error::Unavailable(_) | Error::Failed(_) | Error::InDoubt(_), .. }) => {}
        Err(_) => discard(std::mem::replace(&mut *progress, UploadProgress::Empty)).await,
    }
    Ok(Json(appended?).into_response())
}

/// Takes a part of the base of a generation; starts that when it is whole.
pub(super) async fn base(
    app: &Arc<App>,
    log: &Arc<Log>,
    (generation, claims): (Generation, BaseClaims),
    part: Part,
    mut body: Body,
) -> Result<Response, Failure> {
    let (app, log) = (app.clone(), log.clone());
    to_the_end(async move { take_base(&app, &log, (generation, claims), &part, &mut body).await }).await
}

async fn take_base(
    app: &App,
    log: &Arc<Log>,
    (generation, claims): (Generation, BaseClaims),
    part: &Part,
    body: &mut Body,
) -> Result<Response, Failure> {
    let upload = app.uploads.get(log.id(), &part.upload)?;
    let mut progress = upload.turn().await;
    if let UploadProgress::Done(last, None) = *progress
        && is_again(app, &upload, last, (generation.0, part), body, &mut progress).await?
    {
        return Ok(reply::created(true, described(app, log)));
    }
    let registry = app.registry.clone();
    let draft = {
        let log = log.clone();
        move || registry.draft_generation(&log, Some(generation))
    };
    let limits = (EXPORT_BYTES_MAX, BASE_DRAFT, draft);
    let last = match receive(app, &upload, &mut progress, part, body, limits).await? {
        Received::Part(received) => return Ok(reply::accepted(received)),
        Received::Whole { total, digest } => LastPart { goal: generation.0, at: part.at, total, digest },
    };
    let UploadProgress::Staged(Staged { draft, file, received }) = &*progress else {
        return Err(Error::PartMissing { received: 0 }.into());
    };
    let base = ReceivedBase::Staged(file.clone(), *received);
    let started = generations::start_from(app, log.clone(), draft.clone(), (base, claims)).await;
    let next = if started.is_ok() { UploadProgress::Done(last, None) } else { UploadProgress::Empty };
    discard(std::mem::replace(&mut *progress, next)).await;
    Ok(reply::created(true, described(app, &*started?)))
}

/// Handles a part in a task of its own: a connection that breaks off ends its body, but never the work on what was received.
async fn to_the_end(
    work: impl Future<Output = Result<Response, Failure>> + Send + 'static,
) -> Result<Response, Failure> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Error::Unavailable("the work was interrupted".into()).into()))
}

/// Removes the files of an upload that is over.
async fn discard(progress: UploadProgress) {
    // It cannot fail: what is left behind is logged, and removed when the log is opened.
    let _ = tokio::task::spawn_blocking(move || drop(progress)).await;
}

/// What a part brought.
enum Received {
    /// More is to come.
    Part(PartReceived),
    /// All of it is here.
    Whole { total: u64, digest: [u8; 32] },
}

/// Whether a part is the last one of an upload that is over, sent again. Any other part begins the upload anew, under the
/// same name.
///
/// # Errors
/// [`Error::Invalid`] for other bytes in its place; then, too, it begins anew.
async fn is_again(
    app: &App,
    upload: &Upload,
    last: LastPart,
    (goal, part): (u64, &Part),
    body: &mut Body,
    progress: &mut UploadProgress,
) -> Result<bool, Error> {
    if (goal, part.at, part.total) != (last.goal, last.at, Some(last.total)) {
        *progress = UploadProgress::Empty;
        return Ok(false);
    }
    let (mut digest, mut pace) = (Sha256::new(), Pace::new(app.timeouts.commit, app.timeouts.min_rate));
    while let Some(data) = next(body, &pace).await? {
        digest.update(&data);
        pace.received(data.len(), Duration::ZERO);
        upload.touch();
    }
    if <[u8; 32]>::from(digest.finalize()) == last.digest {
        return Ok(true);
    }
    *progress = UploadProgress::Empty;
    let text = format!("the upload {} ended with other bytes: another upload needs another name", part.upload);
    Err(Error::Invalid(text))
}

/// The next bytes of the body of a part; `None` at its end.
async fn next(body: &mut Body, pace: &Pace) -> Result<Option<Bytes>, Error> {
    let cut = |message| Error::Truncated { offset: None, message };
    body::frame(body, pace, ("the part", "--commit-timeout")).await.map_err(cut)
}

/// Takes the bytes of a part. When they cannot be stored the upload is given up.
async fn receive(
    app: &App,
    upload: &Upload,
    progress: &mut UploadProgress,
    part: &Part,
    body: &mut Body,
    (bytes_max, name, draft): (u64, &'static str, impl FnOnce() -> Result<Draft, Error> + Send + 'static),
) -> Result<Received, Error> {
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
    let mut digest = Sha256::new();
    while let Some(data) = next(body, &pace).await? {
        let (bytes, received) = (data.len(), Instant::now());
        let end = at.checked_add(bytes as u64).filter(|end| *end <= bytes_max);
        let end = end.ok_or_else(|| Error::TooLarge(format!("an upload of more than {bytes_max} bytes")))?;
        if let Some(total) = part.total.filter(|total| end > *total) {
            return Err(Error::Invalid(format!("the part goes on after the {total} bytes that the upload has")));
        }
        if part.total.is_some() {
            digest.update(&data);
        }
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
        Some(total) if received == total => Ok(Received::Whole { total, digest: digest.finalize().into() }),
        Some(total) if at == total => Err(Error::Invalid(format!("the upload has {received} bytes, not {total}"))),
        _ => Ok(Received::Part(PartReceived { received })),
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
