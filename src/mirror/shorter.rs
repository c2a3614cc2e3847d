//! A source that ends before its sink: whether it was reset, which its last commit shows, or does not show its end now.

use std::sync::Arc;

use super::database::off;
use super::failure::MirrorError;
use super::sink::Sink;
use super::source::{Piece, Reading, Source};
use crate::api::LastCommit;
use crate::client::Client;
use crate::format::LogFormat;
use crate::offset::{Generation, Offset};
use crate::repo::{FsRepo, Repo};
use crate::stream::{Cursor, OpenError, survey};

/// What `ahead`, that the source ends before the sink, comes to: a fork when the last commit of the source is another one in the
/// sink. Otherwise, or where that cannot be found out, the same.
pub(super) async fn judged(source: &Source, sink: &Sink, max: u64, ahead: MirrorError) -> MirrorError {
    match parted_at(source, sink, max).await {
        Ok(Some(at)) => MirrorError::Fork { at, is_first: false },
        Ok(None) => ahead,
        Err(error) => {
            log::debug!("the last commit of the source cannot be compared: {error}");
            ahead
        }
    }
}

async fn parted_at(source: &Source, sink: &Sink, max: u64) -> Result<Option<Offset>, MirrorError> {
    let last = match source {
        Source::Url(client) => last_in_log(client).await?,
        Source::Dir(repo) => last_in_dir(repo.clone(), max).await?,
    };
    let Some(last) = last else {
        return Ok(None);
    };
    let held = match sink {
        Sink::Url(client) => held_by_log(client, last.offset, max).await?,
        Sink::Dir(dir) => {
            let dir = dir.clone();
            off(move || {
                let Some(found) = dir.status()? else {
                    return Ok(None);
                };
                let repo: Arc<dyn Repo> = Arc::new(found.repo.clone());
                let damaged = |error| MirrorError::Open(OpenError::from(error));
                let mut cursor = Cursor::open(&repo, &found.survey.segments, last.offset, max).map_err(damaged)?;
                Ok::<_, MirrorError>(cursor.next().map_err(damaged)?.map(|placed| LastCommit::from(&placed.commit)))
            })
            .await??
        }
    };
    // A sink that starts later holds nothing to compare.
    let held = held.filter(|held| held.offset <= last.offset);
    Ok(held.filter(|held| *held != last).map(|held| held.offset))
}

/// The frames of a WAL do not say which generation they are of, so only a commitlog is compared.
async fn last_in_log(client: &Client) -> Result<Option<LastCommit>, MirrorError> {
    let status = client.status().await?;
    Ok(status.last_commit.filter(|_| status.format == Some(LogFormat::Commitlog)))
}

async fn last_in_dir(repo: FsRepo, max: u64) -> Result<Option<LastCommit>, MirrorError> {
    let found = off(move || survey(&repo, max, None)).await?;
    let found = found.map_err(|error| MirrorError::Open(OpenError::from(error)))?;
    Ok(found.last.as_ref().map(LastCommit::from).filter(|_| found.format == Some(LogFormat::Commitlog)))
}

async fn held_by_log(client: &Client, at: Offset, max: u64) -> Result<Option<LastCommit>, MirrorError> {
    commit_at(&Source::Url(client.clone()), Generation::FIRST, at, max).await
}

/// The commit at `at` in a source; `None` when it ends before.
pub(super) async fn commit_at(
    source: &Source,
    generation: Generation,
    at: Offset,
    max: u64,
) -> Result<Option<LastCommit>, MirrorError> {
    let reading = Reading { generation, from: at, held: true, follow: false, base: None, log: None };
    let mut pieces = source.stream(reading, max);
    while let Some(piece) = pieces.recv().await {
        if let Piece::Batch(batch) = piece?
            && let Some((_, commit)) = batch.runs().flat_map(|run| run.commits()).next()
        {
            return Ok(Some(LastCommit::from(&commit)));
        }
    }
    Ok(None)
}
