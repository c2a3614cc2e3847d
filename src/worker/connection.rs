//! [`Connection`]: one worker as the service has it, and the calls that it runs.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::BufReader;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixDatagram, UnixStream};
use tokio::sync::{Mutex as AsyncMutex, RwLock, mpsc, oneshot};
use tokio::time::{interval, timeout};

use super::packets::{PacketBuffer, Packets, Sent};
use super::pool::WorkerProgram;
use super::process::{Process, Started};
use super::wire::{self, FromWorker, Id, ToWorker, WorkerStart};
use super::wire_error::WireError;
use super::{just_ended, locked};
use crate::engine::{Logs, of_append};
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN};
use crate::limits::{LIBSQL_PAGE_SIZE, WORKER_PING_EVERY, WORKER_READ_BYTES, WORKER_SILENCE_MAX, WORKER_START_WAIT};
use crate::mirror::{Error, Log, LogUpdate, LogUpdates, Registry};
use crate::offset::{Generation, Offset};
use crate::sync::turso::sql::MemoryShare;
use crate::system_limits;

/// What is received of the answer to a call.
#[derive(Debug)]
pub(super) enum Event {
    /// A cursor has begun.
    Started,
    /// A piece of its answer.
    Piece(Bytes),
    /// The call has ended; with the answer of a pipeline.
    Ended(Result<Bytes, Error>),
}

/// Events of one call are so few at once: the worker sends no piece before it is asked for.
const EVENTS: usize = 4;

/// A call under way.
#[derive(Debug)]
struct Call {
    log: Arc<Log>,
    events: mpsc::Sender<Event>,
    appended: Option<Appended>,
    /// Whether an append failed of which nobody knows whether it is stored.
    in_doubt: bool,
    /// Of the memory for its body and its answer; a cursor needs none once it has begun.
    share: Option<MemoryShare>,
}

/// What a call has appended.
#[derive(Clone, Copy, Debug)]
struct Appended {
    first: Offset,
    end: Offset,
    transactions: usize,
}

/// A worker that runs.
#[derive(Debug)]
pub(super) struct Connection {
    registry: Arc<Registry>,
    process: Process,
    /// The second socket.
    packets: Packets<UnixDatagram>,
    out: AsyncMutex<OwnedWriteHalf>,
    /// Held while a packet with an update is sent: none is received before the one ahead of it.
    updates: Mutex<LogUpdates>,
    /// None once it has ended.
    calls: Mutex<Option<HashMap<Id, Call>>>,
    ids: AtomicU64,
    /// It ends once it runs no calls.
    closing: AtomicBool,
    heard: Mutex<Instant>,
    /// Why it was ended.
    killed_for: Mutex<Option<String>>,
    /// Shared by appends under way.
    appending: Arc<RwLock<()>>,
}

/// How a worker ended.
#[derive(Debug)]
pub(super) struct Death {
    pub(super) cause: String,
    /// The logs whose calls it ran.
    pub(super) logs: Vec<Arc<Log>>,
}

fn cannot_start(error: &io::Error) -> Error {
    let what = system_limits::met(error).map(|what| format!("{what}: ")).unwrap_or_default();
    Error::Unavailable(format!("no SQL worker can be started: {what}{error}"))
}

impl Connection {
    /// Starts a worker. `died` is called once when it has ended, unless that was by [`close`](Self::close).
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn start(
        registry: Arc<Registry>,
        program: &WorkerProgram,
        start: WorkerStart,
        died: impl FnOnce(Death) + Send + 'static,
    ) -> Result<Arc<Connection>, Error> {
        let started = Process::start(program).map_err(|error| cannot_start(&error))?;
        let Started { process, socket, packets, ended } = started;
        socket.set_nonblocking(true).map_err(|error| cannot_start(&error))?;
        let (input, half) = UnixStream::from_std(socket).map_err(|error| cannot_start(&error))?.into_split();
        let mut input = BufReader::with_capacity(WORKER_READ_BYTES, input);
        let connection = Arc::new(Connection {
            registry,
            process,
            packets: packets.watched().map_err(|error| cannot_start(&error))?,
            out: AsyncMutex::new(half),
            updates: Mutex::default(),
            calls: Mutex::new(Some(HashMap::new())),
            ids: AtomicU64::new(1),
            closing: AtomicBool::new(false),
            heard: Mutex::new(Instant::now()),
            killed_for: Mutex::default(),
            appending: Arc::default(),
        });
        connection.send(&ToWorker::WorkerStart(start), &[]).await.map_err(|error| cannot_start(&error))?;
        connection.send(&ToWorker::Ping, &[]).await.map_err(|error| cannot_start(&error))?;
        // Another program than ours says nothing, or something else.
        match timeout(WORKER_START_WAIT, wire::read::<FromWorker>(&mut input)).await {
            Ok(Ok(Some((FromWorker::Pong, _)))) => {}
            answer => {
                connection.process.kill();
                let path = program.path.display();
                let answer = match answer {
                    Ok(Ok(None)) => ended.await.unwrap_or_default(),
                    Ok(Err(error)) => error.to_string(),
                    Ok(Ok(Some(_))) => "it says something else than a worker does".into(),
                    Err(_elapsed) => "it does not answer".into(),
                };
                return Err(Error::Unavailable(format!("no SQL worker can be started: {path}: {answer}")));
            }
        }
        tokio::spawn(connection.clone().run(input, ended, died));
        Ok(connection)
    }

    async fn send(&self, message: &ToWorker, body: &[u8]) -> io::Result<()> {
        wire::write(&mut *self.out.lock().await, message, body).await
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        locked(&self.calls).is_none()
    }

    /// Begins a call on a log. Its events end without [`Event::Ended`] only if the service ends.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the connection has ended.
    pub(super) fn begin(&self, log: &Arc<Log>, share: MemoryShare) -> Result<(Id, mpsc::Receiver<Event>), Error> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (events, received) = mpsc::channel(EVENTS);
        let call = Call { log: log.clone(), events, appended: None, in_doubt: false, share: Some(share) };
        locked(&self.calls).as_mut().ok_or_else(just_ended)?.insert(id, call);
        Ok((id, received))
    }

    /// Sends a call that has begun, where `message` has its number and what is new of the log.
    ///
    /// # Errors
    /// When the log has no files that the worker can open: then the call has ended.
    pub(super) fn call(
        self: &Arc<Self>,
        (id, log): (Id, &Arc<Log>),
        message: impl FnOnce(Id, LogUpdate) -> ToWorker,
        body: Bytes,
    ) -> Result<(), Error> {
        self.send_update(log, |update| message(id, update), body).inspect_err(|_| self.forget(id))
    }

    /// Sends a message with what is new of a log. With the worker ends what waits for it.
    ///
    /// # Errors
    /// When the log has no files that the worker can open.
    fn send_update(
        self: &Arc<Self>,
        log: &Arc<Log>,
        message: impl FnOnce(LogUpdate) -> ToWorker,
        body: Bytes,
    ) -> Result<(), Error> {
        let mut updates = locked(&self.updates);
        let message = message(updates.next(log)?);
        match self.packets.send(&message, [&body, &[]]) {
            Ok(Sent::Whole) => {}
            Ok(Sent::Not) => self.send_later(message, body),
            Err(error) => self.lost("nothing can be sent to it", &error),
        }
        Ok(())
    }

    /// Sends a message over the first socket, after those that were sent so before.
    fn send_later(self: &Arc<Self>, message: ToWorker, body: Bytes) {
        let connection = self.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.send(&message, &body).await {
                connection.lost("nothing can be sent to it", &error);
            }
        });
    }

    /// Runs a call on a log, and returns its answer. It runs to its end, whether or not that is awaited.
    ///
    /// # Errors
    /// Those of the call; [`Error::Aborted`] when the worker ended.
    pub(super) async fn run_call(
        self: &Arc<Self>,
        log: &Arc<Log>,
        message: impl FnOnce(Id, LogUpdate) -> ToWorker,
        (body, share): (Bytes, MemoryShare),
    ) -> Result<Bytes, Error> {
        let (id, mut events) = self.begin(log, share)?;
        self.call((id, log), message, body)?;
        match events.recv().await {
            Some(Event::Ended(answer)) => answer,
            _ => Err(just_ended()),
        }
    }

    /// Asks for the next piece of a cursor.
    pub(super) fn more(self: &Arc<Self>, id: Id) {
        self.send_later(ToWorker::More { id }, Bytes::new());
    }

    /// Ends a cursor that has no reader any more.
    pub(super) fn gone(self: &Arc<Self>, id: Id) {
        self.send_later(ToWorker::Gone { id }, Bytes::new());
    }

    /// Has it end once it runs no calls.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.end_if_unused();
    }

    fn end_if_unused(&self) {
        if !self.closing.load(Ordering::Acquire) {
            return;
        }
        // In one step: a call that began meanwhile would be lost.
        let ended = locked(&self.calls).take_if(|calls| calls.is_empty());
        if ended.is_some() {
            self.process.kill();
        }
    }

    /// Ends it, and with it the calls that it runs, which is not reported.
    pub(super) fn end(&self) {
        locked(&self.calls).take();
        self.process.kill();
    }

    /// Ends a call.
    fn forget(&self, id: Id) {
        if let Some(calls) = &mut *locked(&self.calls) {
            calls.remove(&id);
        }
        self.end_if_unused();
    }

    /// Ends the worker, over a socket that is broken.
    fn lost(&self, what: &str, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match error.kind() {
            // It has ended: how is said elsewhere.
            UnexpectedEof | ConnectionReset | BrokenPipe => self.process.kill(),
            _ => self.kill(format!("{what}: {error}")),
        }
    }

    /// Ends the worker.
    pub(super) fn kill(&self, cause: String) {
        locked(&self.killed_for).get_or_insert(cause);
        self.process.kill();
    }

    async fn run(
        self: Arc<Self>,
        mut input: BufReader<OwnedReadHalf>,
        ended: oneshot::Receiver<String>,
        died: impl FnOnce(Death) + Send + 'static,
    ) {
        let mut pings = interval(WORKER_PING_EVERY);
        let mut reading = std::pin::pin!(self.read(&mut input));
        let mut receiving = std::pin::pin!(self.receive());
        let broken = loop {
            tokio::select! {
                read = &mut reading => break read.err(),
                received = &mut receiving => break received.err(),
                _ = pings.tick() => self.ping(),
            }
        };
        self.process.kill();
        let cause = ended.await.unwrap_or_default();
        self.receive_last_answers();
        // One that ended by itself breaks the connection as well.
        let broken = broken.filter(|error| error.kind() == io::ErrorKind::InvalidData).map(|error| error.to_string());
        let cause = locked(&self.killed_for).take().or(broken).unwrap_or(cause);
        // What is appended now is known then, and nothing after it.
        let _nothing = self.appending.write().await;
        let Some(calls) = locked(&self.calls).take() else { return };
        let logs: Vec<_> = calls.values().map(|call| call.log.clone()).collect();
        died(Death { cause: cause.clone(), logs });
        for call in calls.into_values() {
            let _nobody_waits = call.events.try_send(Event::Ended(Err(aborted(&cause, call.appended, call.in_doubt))));
        }
    }

    /// Receives the answers that a worker which has ended sent before that.
    fn receive_last_answers(&self) {
        let mut buffer = PacketBuffer::new();
        while let Ok(Some((message, body))) = self.packets.receive(&mut buffer) {
            if let FromWorker::Answer { id, outcome } = message {
                self.answered(id, outcome, body);
            }
        }
    }

    /// Ends a worker that is silent.
    fn ping(self: &Arc<Self>) {
        let silent = locked(&self.heard).elapsed();
        if silent > WORKER_SILENCE_MAX {
            return self.kill(format!("it said nothing for {:.0} s", silent.as_secs_f64()));
        }
        self.send_later(ToWorker::Ping, Bytes::new());
    }

    /// Reads to the end.
    async fn read(self: &Arc<Self>, input: &mut BufReader<OwnedReadHalf>) -> io::Result<()> {
        while let Some((message, body)) = wire::read(input).await? {
            self.take(message, body);
        }
        Ok(())
    }

    /// Receives packets to the end.
    async fn receive(self: &Arc<Self>) -> io::Result<()> {
        let mut buffer = PacketBuffer::new();
        while let Some((message, body)) = self.packets.next(&mut buffer).await? {
            self.take(message, body);
        }
        Ok(())
    }

    /// Takes a message. That never waits for something to be sent: the worker may be waiting for the same.
    fn take(self: &Arc<Self>, message: FromWorker, body: Bytes) {
        *locked(&self.heard) = Instant::now();
        match message {
            FromWorker::Pong => {}
            FromWorker::Started { id } => self.started(id),
            FromWorker::Piece { id } => self.notify(id, Event::Piece(body)),
            FromWorker::Answer { id, outcome } => self.answered(id, outcome, body),
            FromWorker::Renew { id, log } => self.answer(id, self.registry.get(&log)),
            FromWorker::Append { id, call, log, log_id, generation, at, answer } => {
                // Once the worker has ended its calls have their answers.
                let Ok(held) = self.appending.clone().try_read_owned() else { return };
                if self.has_ended() {
                    return;
                }
                let connection = self.clone();
                tokio::spawn(async move {
                    let mut frames = body;
                    let answer = frames.split_off(frames.len().saturating_sub(answer));
                    let appended = connection.append(call, (&log, &log_id, generation), at, frames).await;
                    if !answer.is_empty() {
                        // It has its answer, even if the worker ends now.
                        let answer = appended.as_ref().map(|_| answer).map_err(|error| of_append(error.clone()));
                        connection.ended(call, |_| answer);
                    }
                    drop(held);
                    connection.answer(id, appended);
                });
            }
            FromWorker::Stuck { calls } => {
                let logs: BTreeSet<_> = {
                    let all = locked(&self.calls);
                    let call = |id| Some(all.as_ref()?.get(id)?.log.name().to_owned());
                    calls.iter().filter_map(call).collect()
                };
                self.kill(format!(
                    "a statement on log {} did not end within the time that it may take, and could not be interrupted",
                    Vec::from_iter(logs).join(", ")
                ));
            }
        }
    }

    fn started(&self, id: Id) {
        if let Some(call) = locked(&self.calls).as_mut().and_then(|calls| calls.get_mut(&id)) {
            call.share = None;
        }
        self.notify(id, Event::Started);
    }

    fn notify(&self, id: Id, event: Event) {
        if let Some(call) = locked(&self.calls).as_ref().and_then(|calls| calls.get(&id)) {
            let _nobody_waits = call.events.try_send(event);
        }
    }

    fn answered(&self, id: Id, outcome: Result<(), WireError>, body: Bytes) {
        self.ended(id, |log| answer(log, outcome, body));
    }

    /// Ends a call with its answer.
    fn ended(&self, id: Id, answer: impl FnOnce(Arc<Log>) -> Result<Bytes, Error>) {
        let call = locked(&self.calls).as_mut().and_then(|calls| calls.remove(&id));
        self.end_if_unused();
        let Some(Call { log, events, .. }) = call else { return };
        let _nobody_waits = events.try_send(Event::Ended(answer(log)));
    }

    /// Answers a question about a log.
    fn answer(self: &Arc<Self>, id: Id, log: Result<Arc<Log>, Error>) {
        let update = |log| self.send_update(&log, |update| ToWorker::Log { id, outcome: Ok(update) }, Bytes::new());
        if let Err(error) = log.and_then(update) {
            self.send_later(ToWorker::Log { id, outcome: Err(WireError::from(error)) }, Bytes::new());
        }
    }

    /// Appends what a call committed.
    async fn append(
        &self,
        call: Id,
        (name, log_id, generation): (&str, &str, Generation),
        at: Option<Offset>,
        bytes: Bytes,
    ) -> Result<Arc<Log>, Error> {
        let log = self.registry.get(name)?;
        // Another log may have the name now.
        if log.id() != log_id || log.generation() != generation {
            return Err(Error::Ended { generation, current: log.generation() });
        }
        let frame = (FRAME_HEADER_LEN + LIBSQL_PAGE_SIZE as usize) as u64;
        let header = if at.is_some() { 0 } else { HEADER_LEN as u64 };
        let (first, count) = (at.unwrap_or(Offset(1)), (bytes.len() as u64).saturating_sub(header) / frame);
        let frames = bytes.get(header as usize..).unwrap_or_default().chunks_exact(frame as usize);
        let ends = |frame: &&[u8]| frame.first_chunk().is_some_and(|head| FrameHeader::decode(head).size > 0);
        let transactions = frames.filter(ends).count();
        let appended = Logs::append(&*self.registry, &log, at, bytes).await;
        if let Some(call) = locked(&self.calls).as_mut().and_then(|calls| calls.get_mut(&call)) {
            if let Err(error) = appended {
                call.in_doubt = matches!(error, Error::InDoubt(_));
                return Err(error);
            }
            let end = Offset(first.0 + count);
            let before = call.appended.unwrap_or(Appended { first, end, transactions: 0 });
            call.appended = Some(Appended { end, transactions: before.transactions + transactions, ..before });
        }
        appended.map(|()| log)
    }
}

/// The answer to a call on a log, as it was sent.
fn answer(log: Arc<Log>, outcome: Result<(), WireError>, body: Bytes) -> Result<Bytes, Error> {
    if let Err(WireError::Damaged(_, Some(at))) = &outcome {
        // It is found here as well, and kept.
        let at = *at;
        tokio::task::spawn_blocking(move || log.base().and_then(|base| base.read_at(&mut [0], at)));
    }
    outcome.map(|()| body).map_err(Error::from)
}

/// The error for a call whose worker ended.
fn aborted(cause: &str, appended: Option<Appended>, in_doubt: bool) -> Error {
    let rest = if in_doubt {
        "whether what it committed last is there is known once the log is reopened"
    } else {
        "nothing after that is"
    };
    let kept = match appended {
        None if in_doubt => rest.to_owned(),
        None => "nothing of this request is in the log".to_owned(),
        Some(Appended { first, end, transactions }) => format!(
            "what it committed up to frame {} is in the log (frames {first} on; its first {transactions} transactions that \
             changed something), {rest}",
            end.0 - 1
        ),
    };
    Error::Aborted(format!(
        "the SQL worker that ran this has ended: {cause}; {kept}; transactions left open are rolled back"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_a_call_whose_worker_ended_says_what_of_it_is_in_the_log() {
        let text = |appended, in_doubt| aborted("signal 9", appended, in_doubt).to_string();
        assert!(text(None, false).contains("signal 9; nothing of this request is in the log"));
        let (appended, doubt) =
            (Appended { first: Offset(5), end: Offset(9), transactions: 2 }, "known once the log is reopened");
        let known = "up to frame 8 is in the log (frames 5 on; its first 2 transactions that changed something), ";
        let (certain, doubtful) = (text(Some(appended), false), text(Some(appended), true));
        assert!(certain.contains(&format!("{known}nothing after that is")), "{certain}");
        assert!(doubtful.contains(known) && doubtful.contains(doubt), "{doubtful}");
        let doubtful = text(None, true);
        assert!(doubtful.contains(doubt) && !doubtful.contains("nothing of this request"), "{doubtful}");
    }
}
