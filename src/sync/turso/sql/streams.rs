//! [`Streams`]: connections to databases that live on between calls, each under a name that only its client knows.
//!
//! A baton names a stream for one call; the answer brings the next one. Between calls a stream is kept for a while, and then
//! rolled back and gone. One in which nothing is open goes earlier when there are many: clients of the sync protocol start a
//! stream with each call, never come back to it, and never close it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use uuid::Uuid;

use super::batch::Stored;
use super::threads::Threads;
use crate::engine::{Session, Turn};
use crate::limits::{SQL_STREAMS_IDLE_MAX, SQL_STREAMS_MAX, SQL_STREAMS_PER_LOG_MAX, SQL_TURN_IDLE};
use crate::mirror::Error;

/// A stream. Dropped, it rolls back what is open and then gives the turn to the next one; where that may block only.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) session: Session,
    /// Held from a statement that may write until the connection is in autocommit again. A transaction that has not
    /// written holds nobody up, unless it was begun to.
    pub(super) turn: Option<Turn>,
    /// Whether what is open was begun to hold up others.
    pub(super) locks: bool,
    pub(super) stored: Stored,
}

impl Stream {
    /// A new one.
    pub(super) fn new(session: Session) -> Stream {
        Stream { session, turn: None, locks: false, stored: Stored::new() }
    }

    /// Nothing would be lost but the state of its connection.
    pub(super) fn is_plain(&self) -> bool {
        self.turn.is_none() && self.stored.is_empty() && self.session.connection().get_auto_commit()
    }

    /// Gives up the turn unless what is open needs it.
    pub(super) fn relax(&mut self) {
        let connection = self.session.connection();
        if connection.get_auto_commit() {
            (self.turn, self.locks) = (None, false);
        } else if !connection.is_in_write_tx() && !self.locks {
            self.turn = None;
        }
    }
}

/// All streams of a service.
#[derive(Debug)]
pub(super) struct Streams {
    table: Mutex<Table>,
    threads: Arc<Threads>,
    idle: Duration,
}

#[derive(Debug, Default)]
struct Table {
    /// By baton.
    places: HashMap<String, Place>,
    /// Counts what is parked, to tell what was parked first.
    parked: u64,
}

#[derive(Debug)]
struct Place {
    log: String,
    /// None while a call has it.
    parked: Option<Parked>,
}

#[derive(Debug)]
struct Parked {
    stream: Stream,
    order: u64,
    expiry: AbortHandle,
}

/// The place of a stream that is in a call. Dropped, the stream's name is forgotten.
#[derive(Debug)]
pub(super) struct Taken {
    streams: Arc<Streams>,
    pub(super) log: String,
    baton: String,
}

impl Taken {
    /// A baton for the next call.
    pub(super) fn next(&self) -> String {
        new_baton()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.streams.table().places.remove(&self.baton);
    }
}

impl Table {
    /// The plain stream that was parked first, of one log or of all.
    fn oldest_plain(&self, log: Option<&str>) -> Option<String> {
        let plain = self.places.iter().filter_map(|(baton, place)| {
            let parked = place.parked.as_ref().filter(|parked| parked.stream.is_plain())?;
            log.is_none_or(|log| log == place.log).then_some((parked.order, baton))
        });
        plain.min().map(|(_, baton)| baton.clone())
    }

    fn of(&self, log: &str) -> impl Iterator<Item = &Place> {
        self.places.values().filter(move |place| place.log == log)
    }

    fn remove(&mut self, baton: &str) -> Option<Stream> {
        let parked = self.places.remove(baton)?.parked?;
        parked.expiry.abort();
        Some(parked.stream)
    }
}

impl Streams {
    /// Streams that are kept for `idle` between calls.
    pub(super) fn new(threads: Arc<Threads>, idle: Duration) -> Streams {
        Streams { table: Mutex::default(), threads, idle }
    }

    pub(super) fn idle(&self) -> Duration {
        self.idle
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new stream. When there are too many one goes for it in which nothing is open.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when all have something open, or are in a call.
    pub(super) fn begin(self: &Arc<Self>, log: &str) -> Result<Taken, Error> {
        let mut table = self.table();
        let (all, of_log) = (table.places.len(), table.of(log).count());
        match (of_log >= SQL_STREAMS_PER_LOG_MAX, all >= SQL_STREAMS_MAX) {
            (false, false) => {}
            (full, _) => {
                let oldest = table.oldest_plain(full.then_some(log));
                let Some(baton) = oldest else {
                    return Err(Error::Unavailable("too many SQL streams are in use, try again later".into()));
                };
                if let Some(stream) = table.remove(&baton) {
                    self.threads.end_later(stream);
                }
            }
        }
        let baton = new_baton();
        table.places.insert(baton.clone(), Place { log: log.to_owned(), parked: None });
        Ok(Taken { streams: self.clone(), log: log.to_owned(), baton })
    }

    /// The stream of a baton, for one call.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is none, or a call has it.
    pub(super) fn take(self: &Arc<Self>, log: &str, baton: &str) -> Result<(Taken, Stream), Error> {
        let mut table = self.table();
        let place = table.places.get_mut(baton).filter(|place| place.log == log).ok_or_else(|| {
            let seconds = self.idle.as_secs_f64();
            Error::Invalid(format!("no stream has this baton: it was used before, closed, or unused for {seconds} s"))
        })?;
        let busy = || Error::Invalid("another call has this stream: a stream takes one call at a time".into());
        let Parked { stream, expiry, .. } = place.parked.take().ok_or_else(busy)?;
        expiry.abort();
        Ok((Taken { streams: self.clone(), log: log.to_owned(), baton: baton.to_owned() }, stream))
    }

    /// Keeps a stream for its next call, and returns the baton for that.
    pub(super) fn park(self: &Arc<Self>, taken: Taken, stream: Stream) -> String {
        let baton = taken.next();
        self.park_as(taken, stream, baton.clone());
        baton
    }

    /// Keeps a stream under a baton that was told already.
    pub(super) fn park_as(self: &Arc<Self>, taken: Taken, stream: Stream, baton: String) {
        stream.session.keep_nothing();
        let evicted = {
            let mut table = self.table();
            table.parked += 1;
            let expiry = tokio::spawn(expire(Arc::downgrade(self), baton.clone(), self.idle)).abort_handle();
            let parked = Parked { stream, order: table.parked, expiry };
            table.places.insert(baton, Place { log: taken.log.clone(), parked: Some(parked) });
            let plain = |place: &&Place| place.parked.as_ref().is_some_and(|parked| parked.stream.is_plain());
            let many = table.of(&taken.log).filter(plain).count() > SQL_STREAMS_IDLE_MAX;
            let oldest = if many { table.oldest_plain(Some(&taken.log)) } else { None };
            oldest.and_then(|baton| table.remove(&baton))
        };
        drop(taken);
        if let Some(stream) = evicted {
            self.threads.end_later(stream);
        }
    }
}

/// Ends a stream that was not used for too long, or for a while in which it held up others.
async fn expire(streams: Weak<Streams>, baton: String, idle: Duration) {
    let since = Instant::now();
    let ended = loop {
        tokio::time::sleep(idle.saturating_sub(since.elapsed()).min(SQL_TURN_IDLE)).await;
        let Some(streams) = streams.upgrade() else { return };
        let mut table = streams.table();
        let Some(Place { parked: Some(Parked { stream, .. }), .. }) = table.places.get(&baton) else { return };
        if since.elapsed() >= idle || stream.turn.as_ref().is_some_and(Turn::is_wanted) {
            break table.places.remove(&baton).and_then(|place| Some((place.log, place.parked?.stream)));
        }
    };
    let (Some((log, stream)), Some(streams)) = (ended, streams.upgrade()) else { return };
    if stream.turn.is_some() {
        log::warn!("{log}: a transaction was left open for {:.1} s and is rolled back", since.elapsed().as_secs_f64());
    }
    streams.threads.end(stream).await;
}

/// A name that nobody can guess.
fn new_baton() -> String {
    Uuid::new_v4().simple().to_string()
}
