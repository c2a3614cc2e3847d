//! Where `logmirror mirror` writes to: a directory, or a log of a service.

use std::sync::Arc;

use super::base;
use super::failure::MirrorError;
use super::feeding::Feeding;
use super::source::Extent;
use crate::api::{LastCommit, Positions};
use crate::client::{Client, positions};
use crate::format::LogFormat;
use crate::offset::{Generation, Offset};
use crate::repo::FsRepo;
use crate::stream::{Options, ReadError, StreamWriter, segment_starts};

/// Where a sink stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stand {
    /// The offset it goes on with; none when it takes any.
    pub(super) next: Option<Offset>,
    /// Its last commit, which the source must hold too.
    pub(super) last: Option<LastCommit>,
}

/// Where to write to, and how it is reached.
#[derive(Debug)]
pub(super) enum Sink {
    Dir(FsRepo, Options),
    Url(Client),
}

impl Sink {
    /// The generation it is in, where generations are known and it has begun.
    pub(super) async fn generation(&self) -> Result<Option<Generation>, MirrorError> {
        match self {
            Sink::Dir(..) => Ok(None),
            Sink::Url(client) => Ok(client.find().await?.map(|status| status.generation)),
        }
    }

    /// Whether it must be given the base of a source's generation before frames, creating the log if it is not there.
    pub(super) async fn lacks_base(&self, extent: &Extent) -> Result<bool, MirrorError> {
        match self {
            Sink::Dir(repo, _) => {
                let empty = segment_starts(repo).map_err(ReadError::Io)?.is_empty();
                Ok(empty && !base::is_in(repo)?)
            }
            Sink::Url(client) => {
                let status = match client.find().await? {
                    Some(status) => status,
                    None => client.create(LogFormat::Wal, None).await?,
                };
                let (sink, source_generation) = (status.generation, extent.generation);
                if sink > source_generation {
                    return Err(MirrorError::LaterGeneration { sink, source_generation });
                }
                // An attempt before may have ended right after the log was created.
                let Positions { first, durable, .. } = positions(&status)?;
                Ok(status.format == LogFormat::Wal && (sink < source_generation || durable == first))
            }
        }
    }

    /// Opens it, creating a log that is not there to start at `first`.
    pub(super) async fn open(&self, format: LogFormat, first: Option<Offset>) -> Result<(Stand, Feeding), MirrorError> {
        match self {
            Sink::Dir(repo, options) => {
                let writer = StreamWriter::open(Arc::new(repo.clone()), Options { format, ..*options })?;
                let next = writer.first().map(|_| writer.durable());
                let last = writer.last().map(|last| LastCommit {
                    offset: last.first,
                    entries: last.entries,
                    checksum: last.checksum,
                });
                Ok((Stand { next, last }, Feeding::dir(writer)))
            }
            Sink::Url(client) => {
                let status = match client.find().await? {
                    Some(status) => status,
                    None => client.create(format, first).await?,
                };
                let Positions { durable, last_commit: last, .. } = positions(&status)?;
                Ok((Stand { next: Some(durable), last }, Feeding::url(client.clone(), durable)))
            }
        }
    }
}
