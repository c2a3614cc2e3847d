//! Lanes: threads of a worker that run calls themselves, each for a socket of its own.
//!
//! To wake a thread costs as much as a small statement. A lane has a call read, run and answered by one thread, and what that
//! commits goes to the service together with the answer, which the service passes on once that is durable. A call that has to
//! wait for something else leaves its lane and goes on as others do.

use std::cell::RefCell;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::run::Worker;
use super::wire::{self, FromLane, ToLane};
use super::wire_error::WireError;
use crate::limits::{WORKER_LANE_READ_BYTES, WORKER_LANES, WORKER_STACK_BYTES};
use crate::mirror::{Log, LogUpdate};
use crate::offset::Offset;
use crate::sync::turso::sql::{AtOnce, CALL, is_lowered, may_be_lowered};

thread_local! {
    /// The lane that this thread is.
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

struct Lane {
    socket: BufReader<UnixStream>,
    /// The answer to the call if what it commits becomes durable.
    offered: Option<Bytes>,
    /// It was sent with that.
    is_answered: bool,
}

impl Lane {
    fn read(&mut self) -> io::Result<Option<(ToLane, Bytes)>> {
        (self.offered, self.is_answered) = (None, false);
        wire::read_blocking(&mut self.socket)
    }

    fn send(&mut self, message: &FromLane, body: &[u8]) -> io::Result<()> {
        wire::write_blocking(self.socket.get_mut(), message, body)
    }

    fn append(&mut self, log: &Log, at: Option<Offset>, bytes: &[u8]) -> io::Result<Result<LogUpdate, WireError>> {
        let (log_id, generation) = (log.id().to_owned(), log.generation());
        let offered = self.offered.take();
        let answer = offered.as_deref().unwrap_or_default();
        self.send(&FromLane::Append { log_id, generation, at, answer: answer.len() }, &[bytes, answer].concat())?;
        self.is_answered = offered.is_some();
        match wire::read_blocking(&mut self.socket)? {
            Some((ToLane::Log { outcome }, _)) => Ok(outcome),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the service did not say what became of an append")),
        }
    }
}

fn with_lane<T>(work: impl FnOnce(&mut Lane) -> io::Result<T>) -> io::Result<T> {
    LANE.with_borrow_mut(|lane| lane.as_mut().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), work))
}

/// Appends to the log of the call that this thread runs, if it is a lane.
pub(super) fn append(log: &Log, at: Option<Offset>, bytes: &[u8]) -> Option<Result<LogUpdate, WireError>> {
    let is_lane = LANE.with_borrow(Option::is_some);
    is_lane.then(|| {
        let appended = with_lane(|lane| lane.append(log, at, bytes));
        appended.unwrap_or_else(|error| Err(WireError::Unavailable(format!("the service cannot be reached: {error}"))))
    })
}

/// Starts a lane for each socket.
///
/// # Errors
/// When the system has no thread to spare.
pub(super) fn start(sockets: Vec<UnixStream>, worker: &Arc<Worker>) -> io::Result<()> {
    for socket in sockets.into_iter().take(WORKER_LANES) {
        start_thread(BufReader::with_capacity(WORKER_LANE_READ_BYTES, socket), worker.clone(), Handle::current())?;
    }
    Ok(())
}

fn start_thread(socket: BufReader<UnixStream>, worker: Arc<Worker>, runtime: Handle) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("sql-lane".into()).stack_size(WORKER_STACK_BYTES);
    let run = move || {
        let _context = runtime.enter();
        may_be_lowered(false);
        LANE.set(Some(Lane { socket, offered: None, is_answered: false }));
        let goes_on = run(&worker, &runtime);
        let lane = LANE.take();
        let ended = match (goes_on, lane) {
            (Ok(true), Some(Lane { socket, .. })) => start_thread(socket, worker, runtime.clone()),
            (ended, _) => ended.map(drop),
        };
        if let Err(error) = ended {
            log::error!("a lane to the service is broken: {error}");
        }
    };
    thread.spawn(run).map(drop)
}

/// Runs calls to the end of the socket; or, and then it is true, until another thread is to go on because the priority of this one
/// was lowered.
fn run(worker: &Arc<Worker>, runtime: &Handle) -> io::Result<bool> {
    while let Some((message, body)) = with_lane(Lane::read)? {
        let ToLane::Pipeline { id, update, lasting } = message else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that nothing asked for"));
        };
        let log = match worker.logs.update(update) {
            Ok(log) => log,
            Err(error) => {
                let outcome = Err(WireError::from(error));
                with_lane(|lane| lane.send(&FromLane::Answer { outcome }, &[]))?;
                continue;
            }
        };
        match CALL.sync_scope(id, || at_once(worker, &log, (body, lasting), runtime)) {
            AtOnce::Ended(answer) => {
                let (outcome, body) = worker.outcome(&log, answer);
                with_lane(|lane| match lane.is_answered {
                    true => Ok(()),
                    false => lane.send(&FromLane::Answer { outcome }, &body),
                })?;
            }
            AtOnce::Waits(rest) => {
                with_lane(|lane| lane.send(&FromLane::Waits, &[]))?;
                let worker = worker.clone();
                runtime.spawn(CALL.scope(id, async move {
                    let answer = rest.await;
                    worker.answer(id, Some(&log), answer).await;
                }));
            }
        }
        if is_lowered() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn at_once(worker: &Worker, log: &str, call: (Bytes, bool), runtime: &Handle) -> AtOnce {
    let offer = |answer: &Bytes| {
        LANE.with_borrow_mut(|lane| {
            if let Some(lane) = lane {
                lane.offered = Some(answer.clone());
            }
        });
    };
    worker.sql.pipeline_at_once(log, call, runtime, offer)
}
