//! [`WorkerLogs`]: the logs of the service as a worker has them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::wire::{self, FromWorker, Id};
use super::wire_error::WireError;
use crate::engine::Logs;
use crate::mirror::{Error, Log, LogUpdate};
use crate::offset::Offset;
use crate::sync::turso::sql::CALL;

/// The logs that this worker has heard of, and the way to the service that owns them.
pub(super) struct WorkerLogs {
    logs: Mutex<HashMap<String, Arc<Log>>>,
    out: AsyncMutex<OwnedWriteHalf>,
    asked: Mutex<HashMap<Id, oneshot::Sender<Result<(), WireError>>>>,
    questions: AtomicU64,
    transaction_bytes_max: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The service is gone, and this process ends.
fn no_service() -> Error {
    Error::Unavailable("the service has ended".into())
}

impl WorkerLogs {
    pub(super) fn new(out: OwnedWriteHalf, transaction_bytes_max: u64) -> WorkerLogs {
        let (logs, asked, questions) = Default::default();
        WorkerLogs { logs, out: AsyncMutex::new(out), asked, questions, transaction_bytes_max }
    }

    /// Sends a message. To be awaited to its end: a part of a message would be the last.
    pub(super) async fn send(&self, message: &FromWorker, body: &[u8]) {
        if let Err(error) = wire::write(&mut *self.out.lock().await, message, body).await {
            log::error!("nothing can be sent to the service: {error}");
        }
    }

    /// Takes in what the service says of a log, and returns its name. Updates must be taken in the order in which they were sent.
    ///
    /// # Errors
    /// When the directory of the log cannot be opened.
    pub(super) fn update(&self, update: LogUpdate) -> Result<String, Error> {
        let mut logs = locked(&self.logs);
        let name = update.name().to_owned();
        let known = logs.get(&name).cloned();
        match update.apply(known) {
            Ok(log) => {
                logs.insert(name.clone(), log);
                Ok(name)
            }
            Err(error) => {
                logs.remove(&name);
                Err(error)
            }
        }
    }

    /// Hands the answer to a question to the one who asked.
    pub(super) fn answered(&self, id: Id, outcome: Result<LogUpdate, WireError>) {
        let outcome = outcome.and_then(|update| self.update(update).map(drop).map_err(WireError::from));
        if let Some(asked) = locked(&self.asked).remove(&id) {
            let _nobody_waits = asked.send(outcome);
        }
    }

    async fn ask(&self, question: impl FnOnce(Id) -> FromWorker, body: &[u8]) -> Result<(), Error> {
        let id = self.questions.fetch_add(1, Ordering::Relaxed);
        let (asked, answer) = oneshot::channel();
        locked(&self.asked).insert(id, asked);
        self.send(&question(id), body).await;
        Ok(answer.await.map_err(|_| no_service())??)
    }
}

impl Logs for WorkerLogs {
    fn get(&self, name: &str) -> Result<Arc<Log>, Error> {
        let log = locked(&self.logs).get(name).cloned();
        log.ok_or_else(|| Error::NotFound(format!("there is no log {name:?}")))
    }

    fn transaction_bytes_max(&self) -> u64 {
        self.transaction_bytes_max
    }

    fn renew<'a>(&'a self, log: &'a Arc<Log>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.ask(|id| FromWorker::Renew { id, log: log.name().to_owned() }, &[]))
    }

    fn append<'a>(&'a self, log: &'a Arc<Log>, at: Option<Offset>, bytes: Bytes) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let call = CALL.try_with(|call| *call).unwrap_or_default();
            let (name, generation) = (log.name().to_owned(), log.generation());
            self.ask(|id| FromWorker::Append { id, call, log: name, generation, at }, &bytes).await
        })
    }
}
