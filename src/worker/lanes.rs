//! [`Lanes`]: the [lanes](super::lane) of a worker as the service has them.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::io::BufReader;
use tokio::net::UnixStream;

use super::connection::{Connection, Event, answer};
use super::just_ended;
use super::wire::{self, FromLane, Id, ToLane, ToWorker};
use super::wire_error::WireError;
use crate::engine::of_append;
use crate::limits::WORKER_LANE_READ_BYTES;
use crate::mirror::{Error, Log};
use crate::sync::turso::sql::{LogShares, ThreadShare};

type Lane = BufReader<UnixStream>;

/// The lanes of a worker, of which each log has its share: statements of one that take long leave some to the others.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Those that run no call. What is sent over one that has just answered waits there until its thread reads again.
    free: Mutex<Vec<Lane>>,
    shares: Arc<LogShares>,
}

impl Lanes {
    /// # Errors
    /// When the runtime cannot watch a socket.
    pub(super) fn new(sockets: Vec<StdUnixStream>) -> io::Result<Lanes> {
        let lane = |socket: StdUnixStream| {
            socket.set_nonblocking(true)?;
            Ok(BufReader::with_capacity(WORKER_LANE_READ_BYTES, UnixStream::from_std(socket)?))
        };
        let shares = Arc::new(LogShares::new(sockets.len()));
        let free = sockets.into_iter().map(lane).collect::<io::Result<_>>()?;
        Ok(Lanes { free: Mutex::new(free), shares })
    }

    fn free(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, log: &Log) -> Option<(Lane, ThreadShare)> {
        let share = self.shares.try_thread(log.name())?;
        Some((self.free().pop()?, share))
    }
}

/// A pipeline as it was called.
struct Call<'a> {
    id: Id,
    log: &'a Arc<Log>,
    body: &'a [u8],
    lasting: bool,
}

impl Connection {
    /// Runs a pipeline, on a lane if one is free. To be awaited to its end: a part of a message would be the last.
    ///
    /// # Errors
    /// As [`Sql::pipeline`](crate::sync::turso::sql::Sql::pipeline); [`Error::Aborted`] when the worker ended.
    pub(super) async fn pipeline(&self, log: &Arc<Log>, body: &[u8], lasting: bool) -> Result<Bytes, Error> {
        let (id, mut events) = self.begin(log)?;
        if let Some((mut lane, share)) = self.lanes.take(log) {
            match self.on_lane(&mut lane, &Call { id, log, body, lasting }).await {
                Ok(answer) => {
                    self.lanes.free().push(lane);
                    drop(share);
                    if let Some(answer) = answer {
                        self.forget(id);
                        return answer;
                    }
                }
                // With the worker ends the call.
                Err(error) => self.lost("a lane is broken", &error),
            }
        } else {
            let message = |id, update| ToWorker::Pipeline { id, update, lasting };
            self.call((id, log), message, body).await?;
        }
        match events.recv().await {
            Some(Event::Ended(answer)) => answer,
            _ => Err(just_ended()),
        }
    }

    /// The answer to a pipeline; none if that has left the lane.
    async fn on_lane(&self, lane: &mut Lane, call: &Call<'_>) -> io::Result<Option<Result<Bytes, Error>>> {
        let Call { id, log, body, lasting } = *call;
        let update = match self.update(log) {
            Ok(update) => update,
            Err(error) => return Ok(Some(Err(error))),
        };
        wire::write(lane.get_mut(), &ToLane::Pipeline { id, update, lasting }, body).await?;
        loop {
            let Some((message, mut body)) = wire::read(lane).await? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            match message {
                FromLane::Answer { outcome } => return Ok(Some(answer(log.clone(), outcome, body))),
                FromLane::Waits => return Ok(None),
                FromLane::Append { log_id, generation, at, answer } => {
                    let answer = body.split_off(body.len().saturating_sub(answer));
                    // The call is answered already, as one that appended nothing.
                    let held = self.appends().await.ok_or(io::ErrorKind::BrokenPipe)?;
                    let appended = self.append(id, (log.name(), &log_id, generation), at, body).await;
                    let outcome = match &appended {
                        Ok(log) => self.update(log).map_err(WireError::from),
                        Err(error) => Err(WireError::from(error.clone())),
                    };
                    let told = wire::write(lane.get_mut(), &ToLane::Log { outcome }, &[]).await;
                    if answer.is_empty() {
                        drop(held);
                        told?;
                        continue;
                    }
                    // It has its answer, even if the worker ends now.
                    self.forget(id);
                    drop(held);
                    if let Err(error) = told {
                        self.lost("it cannot be told of its log", &error);
                    }
                    return Ok(Some(appended.map(|_| answer).map_err(of_append)));
                }
            }
        }
    }
}
