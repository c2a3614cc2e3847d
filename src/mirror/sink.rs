//! Where `logmirror mirror` writes to: a directory, or a log of a service.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::base;
use super::run::MirrorError;
use super::source::Extent;
use crate::api::{AckLine, LastCommit};
use crate::client::{Acks, Client};
use crate::format::LogFormat;
use crate::limits::{BATCHES_UNDER_WAY, SYNC_EVERY};
use crate::offset::{Generation, Offset};
use crate::repo::FsRepo;
use crate::stream::{Appended, Batch, Options, ReadError, StreamWriter, SyncJob, Synced, segment_starts};

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
                Ok(status.format == LogFormat::Wal && (sink < source_generation || status.durable == status.first))
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
                let (durable, last) = (status.durable, status.last_commit);
                Ok((Stand { next: Some(durable), last }, Feeding::url(client.clone(), durable)))
            }
        }
    }
}

/// A sink that is being fed. It runs by itself; [`send`](Feeding::send) waits only while too much is under way.
#[derive(Debug)]
pub(super) struct Feeding {
    input: Input,
    durable: watch::Receiver<Offset>,
    /// None once it was heard.
    ended: Option<oneshot::Receiver<Result<Offset, MirrorError>>>,
}

#[derive(Debug)]
enum Input {
    Dir(mpsc::Sender<ToWriter>),
    Url(mpsc::Sender<Result<Bytes, io::Error>>),
}

#[derive(Debug)]
enum ToWriter {
    Batch(Batch),
    Synced(Synced),
    End,
}

impl Feeding {
    fn dir(writer: StreamWriter) -> Feeding {
        let (input, messages) = mpsc::channel(BATCHES_UNDER_WAY);
        let (told, durable) = watch::channel(writer.durable());
        let (end, ended) = oneshot::channel();
        // Weak, so that the channel closes when the feeder is gone.
        let back = input.downgrade();
        tokio::task::spawn_blocking(move || {
            let _nobody_waits = end.send(write(writer, messages, back, &told));
        });
        Feeding { input: Input::Dir(input), durable, ended: Some(ended) }
    }

    fn url(client: Client, from: Offset) -> Feeding {
        let (input, mut bytes) = mpsc::channel::<Result<Bytes, io::Error>>(BATCHES_UNDER_WAY);
        let (told, durable) = watch::channel(from);
        let (end, ended) = oneshot::channel();
        let body = futures::stream::poll_fn(move |cx| bytes.poll_recv(cx));
        tokio::spawn(async move {
            let ended = match client.append_live(from, body).await {
                Ok(acks) => take_acks(acks, &told).await,
                Err(error) => Err(error.into()),
            };
            let _nobody_waits = end.send(ended);
        });
        Feeding { input: Input::Url(input), durable, ended: Some(ended) }
    }

    /// Everything before this offset is durable in the sink.
    pub(super) fn durable(&self) -> watch::Receiver<Offset> {
        self.durable.clone()
    }

    /// Hands over a batch; false when the sink has ended, and [`end`](Self::end) says why.
    pub(super) async fn send(&mut self, batch: Batch) -> bool {
        match &self.input {
            Input::Dir(input) => input.send(ToWriter::Batch(batch)).await.is_ok(),
            Input::Url(input) => {
                for bytes in batch.slices() {
                    if input.send(Ok(bytes.clone())).await.is_err() {
                        return false;
                    }
                }
                true
            }
        }
    }

    /// Returns when the sink has ended by itself.
    pub(super) async fn failed(&mut self) -> MirrorError {
        let ended = match &mut self.ended {
            Some(ended) => ended.await.unwrap_or_else(|_| Err(gone())),
            None => Err(gone()),
        };
        self.ended = None;
        ended.err().unwrap_or_else(|| MirrorError::Interrupted("the sink ended the stream".into()))
    }

    /// Ends the stream and waits until all of it is durable. Returns where that ends.
    pub(super) async fn end(self) -> Result<Offset, MirrorError> {
        match self.input {
            Input::Dir(input) => {
                // A writer that is gone has said why.
                let _ = input.send(ToWriter::End).await;
            }
            Input::Url(input) => drop(input),
        }
        match self.ended {
            Some(ended) => ended.await.unwrap_or_else(|_| Err(gone())),
            None => Err(gone()),
        }
    }
}

fn gone() -> MirrorError {
    MirrorError::Interrupted("the sink is gone".into())
}

async fn take_acks(mut acks: Acks, told: &watch::Sender<Offset>) -> Result<Offset, MirrorError> {
    loop {
        match acks.next().await? {
            Some(AckLine::Durable { durable }) => told.send_replace(durable),
            Some(AckLine::Outcome(outcome)) => {
                told.send_replace(outcome.durable);
                return Ok(outcome.durable);
            }
            Some(AckLine::Error(body)) => return Err(MirrorError::Refused(Box::new(body))),
            None => return Err(MirrorError::Interrupted("the service ended the answer early".into())),
        };
    }
}

/// Writes batches and syncs them, on another thread, while it goes on writing.
fn write(
    mut writer: StreamWriter,
    mut messages: mpsc::Receiver<ToWriter>,
    back: mpsc::WeakSender<ToWriter>,
    told: &watch::Sender<Offset>,
) -> Result<Offset, MirrorError> {
    let (jobs, todo) = std::sync::mpsc::channel::<SyncJob>();
    std::thread::spawn(move || {
        for job in todo {
            let synced = job.run();
            match back.upgrade() {
                Some(back) if back.blocking_send(ToWriter::Synced(synced)).is_ok() => {}
                _ => return,
            }
        }
    });
    let mut done = Appended::default();
    let (mut syncing, mut unsynced) = (false, 0);
    while let Some(message) = messages.blocking_recv() {
        match message {
            ToWriter::Batch(batch) => {
                let before = done.bytes;
                writer.append_batch(&batch, &mut done)?;
                unsynced += done.bytes - before;
            }
            ToWriter::Synced(synced) => {
                told.send_replace(writer.finish_sync(synced)?);
                syncing = false;
            }
            ToWriter::End => break,
        }
        // When nothing more is waiting, or enough has come, what there is gets synced.
        if !syncing
            && (messages.is_empty() || unsynced >= SYNC_EVERY)
            && let Some(job) = writer.begin_sync()?
        {
            unsynced = 0;
            syncing = jobs.send(job).is_ok();
        }
    }
    let durable = writer.sync()?;
    told.send_replace(durable);
    Ok(durable)
}
