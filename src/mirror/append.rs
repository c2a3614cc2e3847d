//! [`Append`]: one stream into one log.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval_at};

use super::batching;
use super::budget::{Budget, Share};
use super::error::Error;
use super::feeds::OpenFeed;
use super::log::{Log, View};
use super::shard::{Ended, Message, Session};
use super::writers::Writer;
use crate::format::{Framing, LogFormat};
use crate::limits::{ACK_REPEAT, READ_BLOCK};
use crate::offset::{BytePos, Offset};
use crate::repo::RepoFile;
use crate::stream::{Batch, Batcher, LargeCommits};

/// One stream of raw log bytes into a log, in progress. It verifies here, on the caller's thread; the log's writer
/// thread checks each commit against the log when its turn comes, so two appends to one log are safe.
#[derive(Debug)]
pub struct Append {
    log: Arc<Log>,
    budget: Arc<Budget>,
    queue: mpsc::Sender<Message>,
    session: Arc<Session>,
    batcher: Batcher,
    /// Covers the bytes that the batcher holds.
    share: Share,
    from: Option<Offset>,
    /// The offset that comes next in the stream, as far as that is known.
    next: Option<Offset>,
    error: Option<Error>,
    /// Whether the frames are known to fit the base of the generation.
    fits_base: bool,
    /// That its mirror feeds the log, for as long as this lives.
    _feed: Option<OpenFeed>,
}

impl Append {
    pub(super) fn new(
        log: Arc<Log>,
        budget: Arc<Budget>,
        queue: mpsc::Sender<Message>,
        (from, framing): (Option<Offset>, Framing),
        (commit_bytes_max, held_max): (u64, u64),
        (large, writer): (LargeCommits, Writer),
    ) -> Append {
        let view = log.view();
        // Without `from` the stream may start with any commit we hold; a wild first length is refused by its cap. A WAL
        // starts with its header then: its frames do not say which they are.
        let expected = match log.format() {
            LogFormat::Commitlog => Some(from.unwrap_or(view.durable)),
            LogFormat::Wal => from,
        };
        let batcher = Batcher::new(framing, expected, commit_bytes_max).keeping(large, held_max);
        let next = from.or(Some(view.durable).filter(|durable| *durable == log.first()));
        let (share, error) = Default::default();
        let session = Arc::new(Session::of(writer));
        let fits_base = log.format() != LogFormat::Wal;
        let _feed = None;
        Append { log, budget, queue, session, batcher, share, from, next, error, fits_base, _feed }
    }

    /// The same, while which `feed` is open.
    pub(super) fn of_feed(self, feed: Option<OpenFeed>) -> Append {
        Append { _feed: feed, ..self }
    }

    /// Whether the stream is on a boundary: nothing of an unfinished commit was received.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.batcher.is_whole()
    }

    /// Where the last whole commit or header ended, in bytes of the stream.
    #[must_use]
    pub fn boundary(&self) -> BytePos {
        self.batcher.boundary()
    }

    /// How far it is durable.
    #[must_use]
    pub fn acks(&self) -> Acks {
        let (view, session) = (self.log.watch(), self.session.clone());
        let durable = view.borrow().durable;
        let copied = (self.log.copied().clone(), self.log.copied().load(Ordering::Relaxed));
        Acks { view, session, copied, durable: self.from.map_or(durable, |from| from.min(durable)) }
    }

    /// Returns when the append has failed and more bytes are of no use.
    pub async fn stopped(&self) {
        let stopped = self.session.stop.notified();
        if !self.session.is_stopped() && self.error.is_none() {
            stopped.await;
        }
    }

    /// Takes the next bytes; waits while too much is under way. False when more bytes are of no use: the append has
    /// failed, and [`finish`](Self::finish) says why.
    pub async fn push(&mut self, chunk: Bytes) -> bool {
        if self.error.is_some() || self.session.is_stopped() {
            return false;
        }
        let bytes = self.batcher.held() + chunk.len() as u64;
        if let Err(error) = self.budget.cover(&mut self.share, bytes).await {
            self.error = Some(error);
            return false;
        }
        let mut batch = Batch::default();
        let pushed = batching::push(&mut self.batcher, chunk, &mut batch).await;
        self.next = batch.runs().last().map(|run| run.end).or(self.next);
        if let Err(error) = pushed {
            self.fail(error.into());
        }
        if let Err(error) = self.check_base(&batch).await {
            self.fail(error);
            return false;
        }
        // A header alone is no news for the writer: it comes once more with the run behind it.
        if batch.runs().next().is_some() {
            let share = self.share.split(self.batcher.held());
            let (log, session) = (self.log.clone(), self.session.clone());
            if self.queue.send(Message::Append { log, session, batch, share }).await.is_err() {
                self.error = Some(Error::Unavailable("the service is shutting down".into()));
            }
            // What is held of the next commit is not covered if the spare went along; the writer gives it back.
            if let Err(error) = self.budget.cover(&mut self.share, self.batcher.held()).await {
                self.fail(error);
            }
        } else if self.batcher.held() < bytes {
            // The front of a large commit went to a file.
            drop(self.share.split(self.batcher.held()));
        }
        self.error.is_none()
    }

    /// Takes the whole stream, whose bytes `share` covers, and ends it. All of it is verified before any of it is stored;
    /// after Ok it is durable.
    ///
    /// # Errors
    /// Why it failed, with the durable end of the log.
    pub(super) async fn take(mut self, chunks: Vec<Bytes>, share: Share) -> Ended {
        let mut batch = Batch::default();
        let scanned = chunks.into_iter().try_for_each(|chunk| self.batcher.push(chunk, &mut batch));
        let scanned = scanned.map_err(Error::from).and_then(|()| self.batcher.finish().map_err(Error::from));
        if let Err(error) = scanned {
            return Err((error, self.log.view().durable));
        }
        if let Err(error) = self.check_base(&batch).await {
            return Err((error, self.log.view().durable));
        }
        let (reply, ended) = oneshot::channel();
        let (log, session) = (self.log.clone(), self.session);
        let gone = || (Error::Unavailable("the service is shutting down".into()), self.log.view().durable);
        self.queue.send(Message::Whole { log, session, batch, share, reply }).await.map_err(|_| gone())?;
        ended.await.map_err(|_| gone())?
    }

    /// Takes all that is in a file and ends the stream; after Ok it is durable.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub async fn take_file(mut self, file: Arc<dyn RepoFile>) -> Ended {
        let mut at = 0;
        loop {
            let file = file.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut block = vec![0; READ_BLOCK];
                let count = file.read_at(&mut block, at)?;
                block.truncate(count);
                Ok::<_, io::Error>(Bytes::from(block))
            });
            let block = match read.await.map_err(io::Error::other).flatten() {
                Ok(block) => block,
                Err(error) => {
                    self.fail(Error::Unavailable(format!("cannot read what was received: {error}")));
                    break;
                }
            };
            at += block.len() as u64;
            if block.is_empty() || !self.push(block).await {
                break;
            }
        }
        self.finish().await
    }

    /// That the first frames of the stream have pages as the base of the generation has them.
    ///
    /// # Errors
    /// [`Error::Format`].
    async fn check_base(&mut self, batch: &Batch) -> Result<(), Error> {
        let framing = batch.runs().next().map(|run| run.framing);
        let Some(Framing::Wal(Some(start))) = framing.filter(|_| !self.fits_base) else {
            return Ok(());
        };
        self.fits_base = self.log.view().durable > self.log.first();
        if self.fits_base {
            return Ok(());
        }
        let log = self.log.clone();
        let checked = tokio::task::spawn_blocking(move || log.check_page_size(start.header.page_size)).await;
        checked.unwrap_or_else(|_| Err(Error::Unavailable("the work was interrupted".into())))?;
        self.fits_base = true;
        Ok(())
    }

    /// The name of the log.
    pub fn log(&self) -> &str {
        self.log.name()
    }

    /// Fails the append for a reason of the caller's; what came before is kept.
    pub fn fail(&mut self, mut error: Error) {
        if let Error::Corrupt { offset, .. } | Error::Truncated { offset, .. } = &mut error {
            // Behind a segment header the format does not know what comes; we do.
            *offset = offset.or(self.next);
        }
        self.error.get_or_insert(error);
    }

    /// Ends the stream and waits until everything taken from it is durable, also when it failed.
    ///
    /// # Errors
    /// Why it failed, with the durable end of the log.
    pub async fn finish(mut self) -> Ended {
        if self.error.is_none()
            && !self.session.is_stopped()
            && let Err(error) = self.batcher.finish()
        {
            self.fail(error.into());
        }
        let (reply, ended) = oneshot::channel();
        let gone = || (Error::Unavailable("the service is shutting down".into()), self.log.view().durable);
        let message =
            Message::End { log: self.log.clone(), session: self.session.clone(), error: self.error.clone(), reply };
        self.queue.send(message).await.map_err(|_| gone())?;
        ended.await.map_err(|_| gone())?
    }
}

/// How far one append is durable. What others append moves the log, but is no acknowledgement of this one.
#[derive(Debug)]
pub struct Acks {
    view: watch::Receiver<View>,
    session: Arc<Session>,
    /// Bytes of large commits that were copied into the log, and how many when that was last asked.
    copied: (Arc<AtomicU64>, u64),
    durable: Offset,
}

impl Acks {
    /// All that this append sent before this offset is durable in the log.
    #[must_use]
    pub fn durable(&self) -> Offset {
        self.durable
    }

    /// Waits until more is durable, or until a large commit has been copied into the log for a while: the same end again says
    /// then that work goes on.
    pub async fn advanced(&mut self) -> Offset {
        let mut repeats = interval_at(Instant::now() + ACK_REPEAT, ACK_REPEAT);
        loop {
            let durable = self.view.borrow_and_update().durable;
            let durable = self.session.end().map_or(self.durable, |end| end.min(durable));
            if durable > self.durable {
                self.durable = durable;
                return durable;
            }
            tokio::select! {
                // The log goes with the service: its last word is the append's own answer.
                changed = self.view.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = self.session.skipped.notified() => {}
                _ = repeats.tick() => {
                    let copied = self.copied.0.load(Ordering::Relaxed);
                    if std::mem::replace(&mut self.copied.1, copied) != copied {
                        return self.durable;
                    }
                }
            }
        }
    }
}
