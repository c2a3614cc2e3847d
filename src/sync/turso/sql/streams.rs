//! [`Streams`]: connections to databases that live on between calls, each under a name that only its client knows.
//!
//! A baton names a stream for one call; the answer brings the next one. Between calls a stream is kept for a while, and then
//! rolled back and gone. One in which nothing is open goes earlier when there are too many, and its baton stays good, also where
//! its process has ended: the next call has a new connection. Clients of the sync protocol start a stream with each call, never come back to it, and never
//! close it; others keep one for each of their connections, and come back at any time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use uuid::Uuid;

use super::batch::{Foreseen, Stored};
use super::batons::{Baton, Batons, Gone, GoneStreams, Loss, USED};
use super::execute::Runner;
use super::guard::Leaves;
use super::shares;
use super::threads::Threads;
use super::transaction::Transaction;
use crate::engine::{Session, Turn};
use crate::limits::{
    SQL_STREAMS_MAX, SQL_STREAMS_MORE_MAX, SQL_STREAMS_PER_LOG_MAX, SQL_STREAMS_WARM_MAX, SQL_TURN_IDLE,
};
use crate::mirror::Error;

/// A stream. Dropped, it rolls back what is open and then gives the turn to the next one; where that may block only.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) session: Session,
    pub(super) transaction: Transaction,
    /// Held from a statement that may write until the connection is in autocommit again. A transaction that has not
    /// written holds nobody up, unless it was begun to.
    pub(super) turn: Option<Turn>,
    /// Whether what is open was begun to hold up others.
    pub(super) locks: bool,
    pub(super) stored: Stored,
    /// What its connection remembers.
    pub(super) leaves: Leaves,
    /// The counts of its statements were lost with an earlier connection.
    pub(super) forgot: bool,
    /// There are counts of earlier calls, which this one does not replace.
    pub(super) counts_before: bool,
    /// While its calls push rows of a client of the sync protocol, which did not check foreign keys: whether they are checked
    /// again afterwards.
    pub(super) keys_after: Option<bool>,
}

impl Stream {
    /// A new one.
    pub(super) fn new(session: Session) -> Stream {
        let (turn, locks, leaves, forgot, counts_before, keys_after) =
            (None, false, Leaves::Nothing, false, false, None);
        let (transaction, stored) = Default::default();
        Stream { session, transaction, turn, locks, stored, leaves, forgot, counts_before, keys_after }
    }

    /// Nothing would be lost but the state of its connection.
    pub(super) fn is_plain(&self) -> bool {
        self.turn.is_none() && self.is_plain_without_turn()
    }

    /// The same once the turn is given up, if it has that.
    pub(super) fn is_plain_without_turn(&self) -> bool {
        self.stored.is_empty() && self.is_over()
    }

    /// No transaction is open, as far as its client knows.
    fn is_over(&self) -> bool {
        self.transaction.is_over(self.session.connection())
    }

    /// Another connection would do as well, but for counts of its last statements.
    pub(super) fn is_replaceable(&self) -> bool {
        self.is_plain() && self.leaves < Leaves::Settings
    }

    /// For a call, before it runs, another connection would do as well.
    pub(super) fn is_fresh_for(&self, foreseen: &Foreseen) -> bool {
        self.is_plain() && (self.leaves == Leaves::Nothing || self.is_replaceable() && !foreseen.recalls)
    }

    /// What runs its statements.
    pub(super) fn runner(&self) -> Runner<'_> {
        Runner { session: &self.session, transaction: &self.transaction, may_write: self.turn.is_some() }
    }

    /// Prepares for its next call, and notes what that leaves behind.
    pub(super) fn expects(&mut self, foreseen: &Foreseen) {
        // In a transaction it is too late; a client that says itself what is checked has the last word.
        let connection = self.session.connection();
        if foreseen.pushes && self.keys_after.is_none() && connection.get_auto_commit() {
            self.keys_after = Some(connection.foreign_keys_enabled());
            self.session.check_keys(false);
        }
        self.counts_before = (self.forgot || self.leaves == Leaves::Counts) && foreseen.leaves == Leaves::Nothing;
        self.leaves = self.leaves.max(foreseen.leaves);
        self.forgot &= foreseen.leaves == Leaves::Nothing;
    }

    /// What is lost if it ends now.
    pub(super) fn loss(&self) -> Loss {
        match self.is_replaceable() {
            false => Loss::More,
            true if self.forgot || self.leaves == Leaves::Counts => Loss::Counts,
            true => Loss::Nothing,
        }
    }

    /// What is to be remembered of it if it ends now, unused for so long.
    fn gone(&self, unused: Duration) -> Gone {
        if self.is_replaceable() {
            Gone::Idle
        } else if self.is_over() {
            Gone::Expired(unused)
        } else {
            Gone::RolledBack(unused)
        }
    }

    /// Gives up the turn unless what is open needs it.
    pub(super) fn relax(&mut self) {
        let connection = self.session.connection();
        if connection.get_auto_commit() {
            (self.turn, self.locks) = (None, false);
            self.stored.unlock();
        } else if !connection.is_in_write_tx() && !self.locks && !self.stored.locks() {
            self.turn = None;
        }
    }
}

/// All streams of a service.
#[derive(Debug)]
pub(super) struct Streams {
    table: Mutex<Table>,
    batons: Batons,
    threads: Arc<Threads>,
    idle: Duration,
}

#[derive(Debug, Default)]
struct Table {
    places: HashMap<Uuid, Place>,
    /// Counts what is parked, to tell what was parked first.
    parked: u64,
    gone: GoneStreams,
}

#[derive(Debug)]
struct Place {
    log: String,
    /// The number of the baton that the next call has, or that a call under way had.
    number: u64,
    /// None while a call has it.
    parked: Option<Parked>,
}

#[derive(Debug)]
struct Parked {
    stream: Stream,
    order: u64,
    /// Nothing is open in it, and it has the cache of its connection.
    warm: bool,
    expiry: AbortHandle,
}

/// The place of a stream that is in a call. Dropped before the stream is parked, the place is free again.
#[derive(Debug)]
pub(super) struct Taken {
    streams: Arc<Streams>,
    pub(super) log: String,
    stream: Uuid,
    /// The number of the baton that led to it.
    number: u64,
    /// What is remembered of the stream if it is not parked; nothing where no client knows it.
    ending: Option<Gone>,
    parked: bool,
}

/// What a baton led to.
pub(super) enum Found {
    /// The stream.
    Kept(Box<Stream>),
    /// One that ended with nothing open: it goes on with a new connection. See [`Stream::forgot`].
    Idle { forgot: bool },
}

impl Taken {
    /// The baton for the next call, where so much is lost with the stream then.
    pub(super) fn next(&self, loss: Loss) -> String {
        self.streams.batons.write(&self.log, self.stream, self.number + 1, loss)
    }

    /// Ends the stream's name: its client closed it.
    pub(super) fn close(mut self) {
        self.ending = Some(Gone::Closed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.parked {
            let mut table = self.streams.table();
            table.places.remove(&self.stream);
            if let Some(gone) = self.ending {
                table.gone.remember(self.stream, self.number, gone);
            }
        }
    }
}

impl Table {
    /// The stream that is given up for another one, of one log or of all: one whose connection remembers nothing if there is
    /// one, and of those the one that was parked first.
    fn replaceable(&self, log: Option<&str>) -> Option<Uuid> {
        let replaceable = self.places.iter().filter_map(|(stream, place)| {
            let parked = place.parked.as_ref().filter(|parked| parked.stream.is_replaceable())?;
            log.is_none_or(|log| log == place.log).then_some((parked.stream.leaves, parked.order, *stream))
        });
        replaceable.min().map(|(_, _, stream)| stream)
    }

    /// How many streams a log may have, that has `of_log`. What is given up for another one is left by the other logs.
    fn share(&self, log: &str, of_log: usize) -> usize {
        let share = |of_others: usize| shares::share(SQL_STREAMS_MAX, of_others).min(SQL_STREAMS_PER_LOG_MAX);
        let least = share(self.places.len() - of_log);
        if of_log < least {
            return least;
        }
        let is_left = |place: &Place| place.parked.as_ref().is_some_and(|parked| parked.stream.is_replaceable());
        share(self.places.values().filter(|place| place.log != log && !is_left(place)).count())
    }

    fn of(&self, log: &str) -> impl Iterator<Item = &Place> {
        self.places.values().filter(move |place| place.log == log)
    }

    /// Ends a parked stream that was unused for so long, and remembers what became of it.
    fn end(&mut self, stream: Uuid, unused: Duration) -> Option<(String, Stream)> {
        let Place { log, number, parked } = self.places.remove(&stream)?;
        let parked = parked?;
        parked.expiry.abort();
        self.gone.remember(stream, number, parked.stream.gone(unused));
        Some((log, parked.stream))
    }
}

impl Streams {
    /// Streams that are kept for `idle` between calls.
    pub(super) fn new(threads: Arc<Threads>, idle: Duration) -> Streams {
        Streams { table: Mutex::default(), batons: Batons::new(), threads, idle }
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
    /// [`Error::Unavailable`] when all that the log may have have something open, or are in a call.
    pub(super) fn begin(self: &Arc<Self>, log: &str) -> Result<Taken, Error> {
        self.place(&mut self.table(), log, (Uuid::new_v4(), 0), None)
    }

    fn place(
        self: &Arc<Self>,
        table: &mut Table,
        log: &str,
        (stream, number): (Uuid, u64),
        ending: Option<Gone>,
    ) -> Result<Taken, Error> {
        let (of_log, most) = (table.of(log).count(), SQL_STREAMS_MAX + SQL_STREAMS_MORE_MAX);
        let full = of_log >= table.share(log, of_log);
        if full || table.places.len() >= SQL_STREAMS_MAX {
            match table.replaceable(full.then_some(log)) {
                Some(replaced) => {
                    if let Some((_, stream)) = table.end(replaced, Duration::ZERO) {
                        self.threads.end_later(stream);
                    }
                }
                // All have something open: the first one of a log is one more.
                None if of_log == 0 && table.places.len() < most => {}
                None => return Err(Error::Unavailable("too many SQL streams are in use, try again later".into())),
            }
        }
        table.places.insert(stream, Place { log: log.to_owned(), number, parked: None });
        Ok(Taken { streams: self.clone(), log: log.to_owned(), stream, number, ending, parked: false })
    }

    /// The stream of a baton, for one call.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, or its baton is another one now; [`Error::Invalid`] when a call has it.
    pub(super) fn take(self: &Arc<Self>, log: &str, text: &str) -> Result<(Taken, Found), Error> {
        let none = |text: &str| Err(Error::NotFound(format!("{text}: begin a stream with a call without a baton")));
        let baton = self.batons.read(log, text);
        let Some(Baton { stream: id, number, loss, is_ours }) = baton else {
            return none("no stream of this log has this baton");
        };
        let mut table = self.table();
        let Some(place) = table.places.get_mut(&id) else {
            let unknown = if is_ours { Gone::Forgotten } else { Gone::WithItsProcess };
            return match table.gone.get(id) {
                Some((last, _)) if number < last => none(USED),
                None if loss == Loss::More => none(&unknown.to_string()),
                Some((_, Gone::Idle)) | None => {
                    let taken = self.place(&mut table, log, (id, number), Some(Gone::Idle))?;
                    Ok((taken, Found::Idle { forgot: loss != Loss::Nothing }))
                }
                Some((_, gone)) => none(&gone.to_string()),
            };
        };
        if number < place.number {
            return none(USED);
        }
        let busy = || Error::Invalid("another call has this stream: a stream takes one call at a time".into());
        let Parked { stream, expiry, .. } = place.parked.take().ok_or_else(busy)?;
        expiry.abort();
        let ending = if stream.is_replaceable() { Gone::Idle } else { Gone::Failed };
        let log = log.to_owned();
        let taken = Taken { streams: self.clone(), log, stream: id, number, ending: Some(ending), parked: false };
        Ok((taken, Found::Kept(Box::new(stream))))
    }

    /// Keeps a stream for its next call, and returns the baton for that.
    pub(super) fn park(self: &Arc<Self>, taken: Taken, stream: Stream) -> String {
        let baton = taken.next(stream.loss());
        self.park_as(taken, stream);
        baton
    }

    /// Keeps a stream whose [`next`](Taken::next) baton was told already.
    pub(super) fn park_as(self: &Arc<Self>, mut taken: Taken, mut stream: Stream) {
        stream.session.keep_nothing();
        let over = stream.is_over();
        if let Some(checked) = stream.keys_after.take_if(|_| over) {
            stream.session.check_keys(checked);
        }
        let (plain, is_warm) = (stream.is_plain(), |place: &&Place| place.parked.as_ref().is_some_and(|it| it.warm));
        let warm = plain && self.table().of(&taken.log).filter(is_warm).count() < SQL_STREAMS_WARM_MAX;
        if plain && !warm {
            stream.session.drop_cache();
        }
        let mut table = self.table();
        table.parked += 1;
        let (order, id, number) = (table.parked, taken.stream, taken.number + 1);
        let expiry = tokio::spawn(expire(Arc::downgrade(self), (id, order), self.idle)).abort_handle();
        let parked = Some(Parked { stream, order, warm, expiry });
        table.places.insert(id, Place { log: taken.log.clone(), number, parked });
        taken.parked = true;
    }
}

/// Ends a stream that was not used for too long, or for a while in which it held up others.
async fn expire(streams: Weak<Streams>, (id, order): (Uuid, u64), idle: Duration) {
    let since = Instant::now();
    let ended = loop {
        tokio::time::sleep(idle.saturating_sub(since.elapsed()).min(SQL_TURN_IDLE)).await;
        let Some(streams) = streams.upgrade() else { return };
        let mut table = streams.table();
        let parked = table.places.get(&id).and_then(|place| place.parked.as_ref());
        let Some(Parked { stream, .. }) = parked.filter(|parked| parked.order == order) else { return };
        if since.elapsed() >= idle || stream.turn.as_ref().is_some_and(Turn::is_wanted) {
            break table.end(id, since.elapsed());
        }
    };
    let (Some((log, stream)), Some(streams)) = (ended, streams.upgrade()) else { return };
    if stream.turn.is_some() {
        log::warn!("{log}: a transaction was left open for {:.1} s and is rolled back", since.elapsed().as_secs_f64());
    }
    streams.threads.end(stream).await;
}
