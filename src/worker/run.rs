//! A worker: it runs SQL for a service until that closes the connection.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FileType, fstat};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::interval;

use super::call_threads::CallThreads;
use super::descriptors;
use super::logs::WorkerLogs;
use super::packets::Packets;
use super::wire::{self, FromWorker, Id, ToWorker, WorkerStart};
use super::wire_error::WireError;
use crate::engine::{Engines, Logs};
use crate::limits::{
    SQL_THREADS_MAX, WORKER_CALL_THREADS, WORKER_CHECK_EVERY, WORKER_READ_BYTES, WORKER_STACK_BYTES, WORKER_THREADS_MIN,
};
use crate::mirror::{Error, LogUpdate};
use crate::sync::turso::sql::{CALL, Pieces, Sql, SqlSettings};

/// Runs SQL for the service at the other end of the standard input, a socket, until that closes it.
///
/// # Errors
/// `InvalidInput` when the standard input is no such socket; when the connection breaks.
pub fn run_worker() -> io::Result<()> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    if FileType::from_raw_mode(fstat(&input)?.st_mode) != FileType::Socket {
        let text = "the standard input is not a connection to a service: `logmirror serve --sql-workers N` starts this program \
                    itself";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let socket = StdUnixStream::from(input);
    let packets = Arc::new(Packets::from(descriptors::receive(&socket)?));
    socket.set_nonblocking(true)?;
    // One thread: a message that wakes another costs more than what is done with it.
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(serve(socket, packets));
    // Statements that still run are of no use to anyone.
    runtime.shutdown_background();
    served
}

/// What asks the service to end is not for its workers: it drains first. And a file that may not be so large is an error for the
/// statement that writes it.
fn ignore_signals() -> io::Result<[Signal; 4]> {
    let too_large = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    let [interrupt, terminate, hangup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    Ok([signal(interrupt)?, signal(terminate)?, signal(hangup)?, signal(too_large)?])
}

async fn serve(socket: StdUnixStream, packets: Arc<Packets>) -> io::Result<()> {
    let _ignored = ignore_signals()?;
    let (input, out) = UnixStream::from_std(socket)?.into_split();
    let mut input = BufReader::with_capacity(WORKER_READ_BYTES, input);
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let Some((ToWorker::WorkerStart(start), _)) = wire::read(&mut input).await? else {
        return Err(invalid("the service sent something else than what a worker may do"));
    };
    limit(&start)?;
    let logs = Arc::new(WorkerLogs::new((out, packets.clone()), start.transaction_bytes_max));
    let engines = Arc::new(Engines::new(logs.clone()));
    let settings = SqlSettings {
        stream_idle: Duration::from_millis(start.stream_idle_ms),
        statement_time_max: Duration::from_millis(start.statement_ms_max),
        stack_bytes: WORKER_STACK_BYTES,
        threads_max: threads_max(start.memory_bytes_max),
    };
    let sql = Arc::new(Sql::with(engines, settings)?);
    let worker = Arc::new(Worker { logs, sql, cursors: Mutex::default() });
    let mut broken = CallThreads::start(packets, worker.clone())?;
    tokio::spawn(watch(worker.clone()));
    tokio::select! {
        read = worker.read(&mut input) => read,
        Some(error) = broken.recv() => Err(error),
    }
}

/// How many threads run SQL: their stacks take two thirds of the memory at most.
fn threads_max(memory_bytes_max: u64) -> usize {
    let stacks = usize::try_from(memory_bytes_max / 3 * 2).unwrap_or(usize::MAX);
    (stacks / WORKER_STACK_BYTES).clamp(WORKER_THREADS_MIN, SQL_THREADS_MAX)
}

/// What the system lets this process have. Where all of the machine's memory is used up, it ends this process before others.
fn limit(start: &WorkerStart) -> io::Result<()> {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "1000") {
        log::debug!("this process is ended for memory in its turn only: {error}");
    }
    let data = start.memory_bytes_max.saturating_add((WORKER_CALL_THREADS * WORKER_STACK_BYTES) as u64);
    for (resource, most) in [(Resource::Data, data), (Resource::Fsize, start.file_bytes_max), (Resource::Core, 0)] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// Reports calls that do not end, and forgets logs that are unused.
async fn watch(worker: Arc<Worker>) {
    let mut looks = interval(WORKER_CHECK_EVERY);
    loop {
        looks.tick().await;
        worker.logs.forget_unused();
        let calls = worker.sql.overdue_calls();
        if !calls.is_empty() {
            worker.logs.send(&FromWorker::Stuck { calls }, &[]).await;
        }
    }
}

pub(super) struct Worker {
    pub(super) logs: Arc<WorkerLogs>,
    pub(super) sql: Arc<Sql>,
    /// The readers of cursors under way.
    cursors: Mutex<HashMap<Id, Arc<Reader>>>,
}

/// The reader of a cursor, at the service.
#[derive(Default)]
struct Reader {
    wants_more: Notify,
    is_gone: Notify,
}

impl Reader {
    /// The next piece, once the reader wants it; `None` at the end, or when the reader is gone.
    async fn next(&self, pieces: &mut Pieces) -> Option<Result<Bytes, Error>> {
        let next = async {
            self.wants_more.notified().await;
            pieces.recv().await
        };
        tokio::select! {
            piece = next => piece,
            () = self.is_gone.notified() => None,
        }
    }
}

impl Worker {
    fn cursors(&self) -> MutexGuard<'_, HashMap<Id, Arc<Reader>>> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(self: &Arc<Self>, input: &mut BufReader<OwnedReadHalf>) -> io::Result<()> {
        while let Some((message, body)) = wire::read(input).await? {
            self.take(message, body);
        }
        Ok(())
    }

    /// Takes a message. That never waits for something to be sent: the service may be waiting for the same.
    pub(super) fn take(self: &Arc<Self>, message: ToWorker, body: Bytes) {
        match message {
            ToWorker::WorkerStart(_) => {}
            ToWorker::Ping => {
                let worker = self.clone();
                tokio::spawn(async move { worker.logs.send(&FromWorker::Pong, &[]).await });
            }
            ToWorker::Log { id, outcome } => {
                let worker = self.clone();
                tokio::spawn(async move { worker.logs.answered_later(id, outcome).await });
            }
            ToWorker::More { id } => {
                if let Some(reader) = self.cursors().get(&id) {
                    reader.wants_more.notify_one();
                }
            }
            ToWorker::Gone { id } => {
                if let Some(reader) = self.cursors().remove(&id) {
                    reader.is_gone.notify_one();
                }
            }
            ToWorker::Pipeline { id, update, lasting } => {
                self.spawn((id, update), move |worker, log| async move { worker.pipeline(&log, body, lasting).await });
            }
            ToWorker::Touched { id, update } => {
                self.spawn((id, update), move |worker, log| async move { worker.touched(&log, &body).await });
            }
            ToWorker::Cursor { id, update } => {
                let reader = Arc::<Reader>::default();
                self.cursors().insert(id, reader.clone());
                self.spawn((id, update), move |worker, log| async move {
                    worker.cursor((id, &reader), &log, body).await.map(|()| Bytes::new())
                });
            }
        }
    }

    /// Runs a call in a task, once what the service says of its log is taken in.
    fn spawn<F>(
        self: &Arc<Self>,
        (id, update): (Id, LogUpdate),
        run: impl FnOnce(Arc<Worker>, String) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<Bytes, Error>> + Send,
    {
        let worker = self.clone();
        tokio::spawn(CALL.scope(id, async move {
            let log = worker.logs.updated(update).await;
            let answer = match &log {
                Ok(log) => run(worker.clone(), log.clone()).await,
                Err(error) => Err(error.clone()),
            };
            worker.cursors().remove(&id);
            worker.answer(id, log.ok().as_deref(), answer).await;
        }));
    }

    /// Answers a call.
    pub(super) async fn answer(&self, id: Id, log: Option<&str>, answer: Result<Bytes, Error>) {
        let (outcome, body) = match answer {
            Ok(body) => (Ok(()), body),
            // The service is to know where, so that its status says so.
            Err(Error::Damaged(cause)) => {
                let at = log.and_then(|log| self.logs.get(log).ok()?.base_fault_at());
                (Err(WireError::Damaged(cause.as_ref().to_owned(), at)), Bytes::new())
            }
            Err(error) => (Err(WireError::from(error)), Bytes::new()),
        };
        self.logs.send_any(&FromWorker::Answer { id, outcome }, [&body, &[]]).await;
    }

    async fn pipeline(&self, log: &str, body: Bytes, lasting: bool) -> Result<Bytes, Error> {
        let mut share = self.sql.share(log);
        share.cover(body.len()).await?;
        self.sql.pipeline(log, (body, share), lasting).await
    }

    async fn touched(&self, log: &str, query: &[u8]) -> Result<Bytes, Error> {
        let query = String::from_utf8_lossy(query).into_owned();
        Ok(self.sql.touched(log, query).await?.encode())
    }

    async fn cursor(&self, (id, reader): (Id, &Reader), log: &str, body: Bytes) -> Result<(), Error> {
        let mut share = self.sql.share(log);
        share.cover(body.len()).await?;
        let mut pieces = self.sql.cursor(log, body, share).await?;
        self.logs.send(&FromWorker::Started { id }, &[]).await;
        while let Some(piece) = reader.next(&mut pieces).await {
            self.logs.send(&FromWorker::Piece { id }, &piece?).await;
        }
        Ok(())
    }
}
