//! SQL over HTTP (Hrana): `/v2/pipeline`, `/v3/pipeline` and `/v3/cursor`, without the HTTP.
//!
//! A call runs on a stream, which is a connection of its own: what one leaves open no other ever sees. A call that may write
//! waits for its turn first, and keeps it for as long as a transaction is open on its stream; one that only reads waits for
//! nobody. What is answered is durable in the log, reads included. A call that has begun runs to its end, whether or not
//! its client is still there.

mod answer;
mod batch;
mod batons;
mod cursor;
mod decltype;
mod execute;
mod guard;
mod memory;
mod numbers;
mod pipeline;
mod priority;
mod request;
mod shares;
mod spelling;
mod streams;
mod threads;
mod touched;
mod transaction;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::engine::Engines;
use crate::limits::{
    SQL_ATTEMPTS_MAX, SQL_CURSOR_PIECE, SQL_INTERRUPT_WAIT, SQL_STACK_BYTES, SQL_STATEMENT_TIME_MAX, SQL_STREAM_IDLE,
    SQL_THREADS_MAX, WRITE_TURN_WAIT,
};
use crate::mirror::Error;
use answer::CursorHead;
use batch::Foreseen;
use batons::Loss;
use cursor::{Came, Cursor};
use guard::Leaves;
pub(crate) use memory::Memory;
pub use memory::MemoryShare;
pub(crate) use pipeline::AtOnce;
pub(crate) use priority::{is_lowered, may_be_lowered};
use request::CursorCall;
use streams::{Found, Stream, Streams, Taken};
pub(crate) use threads::CALL;
use threads::Threads;

/// SQL over HTTP, for all logs of a service.
#[derive(Debug)]
pub struct Sql {
    engines: Arc<Engines>,
    streams: Arc<Streams>,
    threads: Arc<Threads>,
    memory: Memory,
    settings: SqlSettings,
}

/// What SQL may take.
#[derive(Clone, Copy, Debug)]
pub struct SqlSettings {
    /// How long a stream is kept between two calls, and the reader of a cursor is waited for that holds up writers.
    pub stream_idle: Duration,
    /// Longest time that a statement may run, and that the reader of a cursor may take for one piece.
    pub statement_time_max: Duration,
    /// Stack of a thread that runs SQL.
    pub stack_bytes: usize,
    /// Threads that run SQL, and so statements at once.
    pub threads_max: usize,
}

impl Default for SqlSettings {
    fn default() -> Self {
        SqlSettings {
            stream_idle: SQL_STREAM_IDLE,
            statement_time_max: SQL_STATEMENT_TIME_MAX,
            stack_bytes: SQL_STACK_BYTES,
            threads_max: SQL_THREADS_MAX,
        }
    }
}

/// Pieces of the answer of a cursor: lines of JSON. An error ends it, and what came before it is not all.
pub type Pieces = mpsc::Receiver<Result<Bytes, Error>>;

impl Sql {
    /// On these engines, with the defaults.
    ///
    /// # Errors
    /// When the system has no thread to spare.
    pub fn new(engines: Arc<Engines>) -> std::io::Result<Sql> {
        Sql::with(engines, SqlSettings::default())
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(engines: Arc<Engines>, settings: SqlSettings) -> std::io::Result<Sql> {
        let threads = Arc::new(Threads::new(settings)?);
        let streams = Arc::new(Streams::new(threads.clone(), settings.stream_idle));
        Ok(Sql { engines, streams, threads, memory: Memory::new(), settings })
    }

    /// The [`CALL`]s whose statement takes longer than any may, and was not ended by an interrupt.
    pub(crate) fn overdue_calls(&self) -> Vec<u64> {
        self.threads.overdue_calls(SQL_INTERRUPT_WAIT)
    }

    /// A share of the memory for a body that is for `log`, and its answer; of nothing yet.
    #[must_use]
    pub fn share(&self, log: &str) -> MemoryShare {
        self.memory.share(log)
    }

    /// Runs the requests in `body`, which `share` covers, and returns the JSON of the answer. After Ok all that was seen or
    /// committed is durable. Where it is not `lasting`, a stream that the call begins ends with it, unless something is open.
    ///
    /// # Errors
    /// When the body makes no sense, the baton names no stream, or the turn to write did not come or the log did not take
    /// what was committed; then the stream is gone. Statements that fail are no errors.
    pub async fn pipeline(
        self: &Arc<Self>,
        log: &str,
        (body, share): (Bytes, MemoryShare),
        lasting: bool,
    ) -> Result<Bytes, Error> {
        let (sql, log) = (self.clone(), log.to_owned());
        whole(sql.run_pipeline(log, (body, share), lasting)).await
    }

    /// Begins the batch in `body`, and returns its answer piece by piece. Errors as those of [`pipeline`](Self::pipeline).
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline), for what is known before the first statement.
    pub async fn cursor(self: &Arc<Self>, log: &str, body: Bytes, share: MemoryShare) -> Result<Pieces, Error> {
        let (sql, log) = (self.clone(), log.to_owned());
        whole(async move { sql.begin_cursor(&log, body, share).await }).await
    }

    /// The stream of a call, a new one if it names none; true if its connection was opened just now. Blocks.
    fn stream(&self, log: &str, baton: Option<&str>, foreseen: &Foreseen) -> Result<(Taken, Stream, bool), Error> {
        let (taken, found) = match baton {
            Some(baton) => self.streams.take(log, baton)?,
            None => (self.streams.begin(log)?, Found::Idle { forgot: false }),
        };
        let (stream, opened) = match found {
            Found::Kept(stream) => (*stream, false),
            Found::Idle { forgot } => {
                // A client that comes back has one of its own.
                let personal = foreseen.personal || baton.is_some();
                (Stream { forgot, ..self.open(log, personal, foreseen.pushes)? }, true)
            }
        };
        if stream.forgot && foreseen.recalls && foreseen.leaves == Leaves::Nothing {
            let text = "this stream was unused for a while and goes on with a new connection: what changes() and \
                        last_insert_rowid() say of its statements before is lost";
            return Err(Error::NotFound(text.into()));
        }
        if foreseen.changes {
            stream.session.takes_changes()?;
        }
        Ok((taken, stream, opened))
    }

    fn open(&self, log: &str, personal: bool, pushes: bool) -> Result<Stream, Error> {
        let engines = &self.engines;
        let session = if pushes { engines.pushing(log, personal)? } else { engines.session(log, personal)? };
        session.connection().set_query_timeout(self.settings.statement_time_max);
        let keys_after = pushes.then(|| session.checks_keys());
        Ok(Stream { keys_after, ..Stream::new(session) })
    }

    /// Whether the turn to write was free. Trouble with it comes again when it is waited for.
    fn turned(&self, stream: &mut Stream) -> bool {
        stream.turn = stream.session.try_turn().unwrap_or_default();
        stream.turn.is_some()
    }

    async fn begin_cursor(self: Arc<Self>, log: &str, body: Bytes, share: MemoryShare) -> Result<Pieces, Error> {
        let (sql, name) = (self.clone(), log.to_owned());
        let begin = move || {
            let CursorCall { baton, batch } = request::read(&body)?;
            let foreseen = Foreseen { personal: true, ..Foreseen::of_batch(&batch) };
            let (taken, mut stream, opened) = sql.stream(&name, baton.as_deref(), &foreseen)?;
            stream.locks |= foreseen.locks;
            let fresh = opened || stream.is_fresh_for(&foreseen);
            stream.expects(&foreseen);
            // What it is at the end is not known before that.
            let loss = if foreseen.opens { Loss::More } else { stream.loss() };
            let baton = taken.next(loss);
            Ok::<_, Error>(((taken, baton), stream, fresh, batch, foreseen.writes))
        };
        let (taken, stream, fresh, batch, writes) = self.threads.run_for(log, begin).await??;
        let stream = self.ready(stream, writes, fresh).await?;
        // The last piece is on its way while the stream is parked.
        let (pieces, answer) = mpsc::channel(1);
        let sql = self.clone();
        threads::spawn(async move {
            let log = taken.0.log.clone();
            let ended = sql.run_cursor(taken, stream, Cursor::new(batch), &pieces).await;
            drop(share);
            match ended {
                Ok(()) => {}
                Err(_) if pieces.is_closed() => log::debug!("{log}: a cursor was given up by its reader"),
                Err(error) => {
                    log::error!("{log}: a cursor has ended: {error}");
                    let _nobody_reads = pieces.send(Err(error)).await;
                }
            }
        });
        Ok(answer)
    }

    async fn run_cursor(
        self: &Arc<Self>,
        (taken, baton): (Taken, String),
        mut stream: Stream,
        mut cursor: Cursor,
        pieces: &mpsc::Sender<Result<Bytes, Error>>,
    ) -> Result<(), Error> {
        let (since, log, steps) = (Instant::now(), taken.log.clone(), cursor.batch().steps.len());
        let connection = stream.session.connection().clone();
        // For all pieces while others may wait, and otherwise for each.
        let (mut patience, patience_with_one) = (self.streams.idle(), self.settings.statement_time_max);
        let mut out = Vec::with_capacity(SQL_CURSOR_PIECE);
        cursor::line(&mut out, &CursorHead { baton, base_url: None });
        loop {
            let work = move || {
                let came = cursor.advance(&stream.runner(), &stream.stored, &mut out);
                (stream, cursor, out, came)
            };
            let came;
            (stream, cursor, out, came) = self.within_time((&log, &connection), work).await?;
            match came {
                Came::End => break,
                Came::NeedsTurn => stream = self.ready(stream, true, false).await?,
                Came::Piece => {
                    if let Err(error) = stream.session.settle().await {
                        self.threads.end((cursor, stream)).await;
                        return Err(error);
                    }
                    let piece = std::mem::replace(&mut out, Vec::with_capacity(SQL_CURSOR_PIECE));
                    let (asked, writes) = (Instant::now(), stream.turn.is_some());
                    let longest = if writes { patience } else { patience_with_one };
                    let sent = timeout(longest, pieces.send(Ok(piece.into()))).await;
                    if writes {
                        patience = patience.saturating_sub(asked.elapsed());
                    }
                    if !matches!(sent, Ok(Ok(()))) {
                        self.threads.end((cursor, stream)).await;
                        let waited = asked.elapsed().as_secs_f64();
                        let for_whom = if writes { ", while others may wait to write" } else { "" };
                        return Err(Error::Unavailable(format!(
                            "its reader took nothing for {waited:.1} s{for_whom}: read faster, or ask for fewer rows"
                        )));
                    }
                }
            }
        }
        stream = self.settled(stream).await?;
        self.streams.park_as(taken, stream);
        let (rows, ms) = (cursor.rows, since.elapsed().as_secs_f64() * 1000.0);
        log::debug!("{log}: cursor of {steps} steps, {rows} rows, {ms:.1} ms");
        let _nobody_reads = pieces.send(Ok(out.into())).await;
        Ok(())
    }

    /// Runs a part of a cursor, and interrupts it when it takes too long. The engine's own clock would go on while the
    /// reader reads.
    async fn within_time<T: Send + 'static>(
        &self,
        (log, connection): (&str, &turso_core::Connection),
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let mut running = std::pin::pin!(self.threads.run_for(log, work));
        if let Ok(done) = timeout(self.settings.statement_time_max, &mut running).await {
            return done;
        }
        connection.interrupt();
        running.await
    }

    /// Has the database as the log is, and the turn to write if that is needed. A stream that is `fresh` gets another connection
    /// when its engine was closed under it, because others appended to the log or its generation ended: nothing is lost with it.
    async fn ready(self: &Arc<Self>, mut stream: Stream, writes: bool, fresh: bool) -> Result<Stream, Error> {
        let (since, mut attempts) = (Instant::now(), 1);
        loop {
            let ready = match (&stream.turn, writes) {
                (Some(_), _) => Ok(()),
                (None, true) => stream.session.turn().await.map(|turn| stream.turn = Some(turn)),
                (None, false) => stream.session.refresh().await,
            };
            let again = fresh && attempts < SQL_ATTEMPTS_MAX && since.elapsed() < WRITE_TURN_WAIT;
            match ready {
                Err(Error::Unavailable(_)) if again => {
                    attempts += 1;
                    let (sql, log) = (self.clone(), stream.session.log_name().to_owned());
                    let (leaves, forgot, keys_after) = (stream.leaves, stream.counts_before, stream.keys_after);
                    self.threads.end_later(stream);
                    let opened = self.threads.run(move || sql.open(&log, true, keys_after.is_some())).await??;
                    stream = Stream { leaves, forgot, counts_before: forgot, keys_after, ..opened };
                }
                ready => return self.kept(stream, ready).await,
            }
        }
    }

    /// Has all durable that was committed, and gives up the turn unless a transaction is open.
    async fn settled(&self, mut stream: Stream) -> Result<Stream, Error> {
        let settled = stream.session.settle().await;
        if settled.is_ok() {
            stream.relax();
        }
        self.kept(stream, settled).await
    }

    /// The stream, unless it is of no use any more.
    async fn kept(&self, stream: Stream, outcome: Result<(), Error>) -> Result<Stream, Error> {
        match outcome {
            Ok(()) => Ok(stream),
            Err(error) => {
                self.threads.end(stream).await;
                Err(error)
            }
        }
    }
}

/// Runs work to its end, whether or not its caller is dropped.
pub(crate) async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let done = threads::spawn(work).await;
    done.unwrap_or_else(|_| Err(Error::Unavailable("the call was interrupted".into())))
}
