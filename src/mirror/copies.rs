//! That a source is no copy of the log that it is mirrored to, as it is when the arguments were swapped: the log would follow its
//! own copy from then on, and what feeds it would be refused.

use super::database::off;
use super::endpoint::Mirror;
use super::failure::MirrorError;
use super::ownership;
use super::sink::Sink;
use super::source::Source;
use super::standing::is_unset;
use crate::api::{LogStatus, Positions};
use crate::client::{Client, positions, without_secrets};
use crate::format::LogFormat;
use crate::offset::{Generation, Offset};

/// Where a copy says that it comes from, and up to where it holds that.
struct Origin {
    /// Whether it names the log by its id, so that another one of the same URL is not meant.
    by_id: bool,
    end: (Generation, Offset),
    says: String,
}

/// Checks that `source` is no copy of the log of a service that is `sink`. A log that holds nothing, and one that lost its end, are
/// brought back from their copies, and so is another log under the name of one that was lost.
///
/// # Errors
/// [`MirrorError::CopyOfSink`], also with `--adopt`; and when one of them cannot be read.
pub(super) async fn is_no_copy_of(mirror: &Mirror, source: &Source, sink: &Sink) -> Result<(), MirrorError> {
    let Sink::Url(client) = sink else {
        return Ok(());
    };
    let Some(status) = client.find().await? else {
        return Ok(());
    };
    // It is being brought back already.
    if status.source.as_ref().is_some_and(|noted| noted.identity == mirror.identity()) {
        return Ok(());
    }
    let Some(origin) = origin_of(source, client, &status).await? else {
        return Ok(());
    };
    let Positions { format, generation, first, durable, .. } = positions(&status)?;
    let is_empty = durable == first && (format != LogFormat::Wal || is_unset(client, generation).await?);
    let is_shorter = (generation, durable) < origin.end;
    if is_empty || is_shorter || (mirror.adopt && !origin.by_id) {
        return Ok(());
    }
    let source = match source {
        Source::Dir(dir) => dir.path().display().to_string(),
        Source::Url(client) => client.url().to_string(),
    };
    Err(MirrorError::CopyOfSink { source_place: source, sink: client.url().to_string(), says: origin.says })
}

/// What `source` says of the log of `client` that it is a copy of; `None` when it is not known to be one.
async fn origin_of(source: &Source, client: &Client, status: &LogStatus) -> Result<Option<Origin>, MirrorError> {
    let url = without_secrets(client.url().as_str());
    match source {
        Source::Dir(dir) => {
            let path = dir.path().to_owned();
            let place = path.display().to_string();
            let record = off(move || ownership::record_of(&path)).await?;
            let record = record.map_err(|error| MirrorError::Dir { place, error })?;
            Ok(record.and_then(|record| {
                let by_id = record.log.is_some();
                let is_named = match record.log {
                    Some(log) => log.to_string() == status.id,
                    None => record.names(&url),
                };
                let says = format!("its mirror record names that log{}", if by_id { " by its id" } else { "" });
                is_named.then_some(Origin { by_id, end: (record.generation, record.durable), says })
            }))
        }
        Source::Url(from) => {
            let Some(held) = from.find().await? else {
                return Ok(None);
            };
            let is_named = held.source.as_ref().is_some_and(|noted| noted.identity == url);
            let end = held.positions().map(|held| (held.generation, held.durable));
            Ok(end.filter(|_| is_named).map(|end| Origin {
                by_id: true,
                end,
                says: "it follows that log; `logmirror promote` makes a log of its own of it".to_owned(),
            }))
        }
    }
}
