//! [`WorkerLogs`]: the logs of the service as a worker has them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};

use super::call_threads::take_offered;
use super::locked;
use super::packets::{Packets, Sent};
use super::wire::{self, FromWorker, Id};
use super::wire_error::WireError;
use crate::engine::Logs;
use crate::mirror::{Error, Log, LogUpdate};
use crate::offset::Offset;
use crate::sync::turso::sql::CALL;

/// The logs that this worker has heard of and that are in use, and the way to the service that owns them.
pub(super) struct WorkerLogs {
    logs: Mutex<HashMap<String, Known>>,
    /// Notified when something was taken in.
    taken_in: Condvar,
    taken_in_for_tasks: Notify,
    out: AsyncMutex<OwnedWriteHalf>,
    packets: Arc<Packets>,
    asked: Mutex<HashMap<Id, oneshot::Sender<Result<TakenIn, WireError>>>>,
    questions: AtomicU64,
    transaction_bytes_max: u64,
}

/// What became of the update that an answer brought. Without it the service did what it was asked for all the same.
type TakenIn = Result<String, Error>;

/// A log, as of the update with this number; none where that could not be taken in.
#[derive(Default)]
struct Known {
    number: u64,
    log: Option<Arc<Log>>,
    /// The service says so: it is forgotten when nothing here uses it.
    is_unused: bool,
}

/// The service is gone, and this process ends.
fn no_service() -> Error {
    Error::Unavailable("the service has ended".into())
}

impl WorkerLogs {
    pub(super) fn new((out, packets): (OwnedWriteHalf, Arc<Packets>), transaction_bytes_max: u64) -> WorkerLogs {
        let (logs, taken_in, taken_in_for_tasks, asked, questions) = Default::default();
        WorkerLogs {
            logs,
            taken_in,
            taken_in_for_tasks,
            out: AsyncMutex::new(out),
            packets,
            asked,
            questions,
            transaction_bytes_max,
        }
    }

    /// Sends a message that has no order with others, as a packet if it is short, and its body in two pieces. As [`send`](Self::send).
    pub(super) async fn send_any(&self, message: &FromWorker, body: [&[u8]; 2]) {
        match self.packets.send(message, body) {
            Ok(Sent::Whole) => {}
            Ok(Sent::Not) => self.send(message, &body.concat()).await,
            Err(error) => log::error!("nothing can be sent to the service: {error}"),
        }
    }

    /// Sends a message, after those that were sent so before. To be awaited to its end: a part of a message would be the last.
    pub(super) async fn send(&self, message: &FromWorker, body: &[u8]) {
        if let Err(error) = wire::write(&mut *self.out.lock().await, message, body).await {
            log::error!("nothing can be sent to the service: {error}");
        }
    }

    /// Takes in what the service says of a log, and returns its name. One that came before the one ahead of it waits for that, which
    /// blocks: it is about to be read from another socket.
    ///
    /// # Errors
    /// When the directory of the log cannot be opened.
    pub(super) fn update(&self, update: LogUpdate) -> Result<String, Error> {
        let mut logs = locked(&self.logs);
        while logs.get(update.name()).map_or(0, |known| known.number) < update.numbers().1 {
            logs = self.taken_in.wait(logs).unwrap_or_else(PoisonError::into_inner);
        }
        self.take_in(&mut logs, update)
    }

    /// The same for a task.
    pub(super) async fn updated(&self, update: LogUpdate) -> Result<String, Error> {
        loop {
            // From here on: one that is taken in after the attempt must not be missed.
            let taken_in = self.taken_in_for_tasks.notified();
            {
                let mut logs = locked(&self.logs);
                if logs.get(update.name()).map_or(0, |known| known.number) >= update.numbers().1 {
                    return self.take_in(&mut logs, update);
                }
            }
            taken_in.await;
        }
    }

    fn take_in(&self, logs: &mut HashMap<String, Known>, mut update: LogUpdate) -> Result<String, Error> {
        let (name, (number, _)) = (update.name().to_owned(), update.numbers());
        let unused = update.unused();
        if !unused.is_empty() {
            for (name, last) in unused {
                if let Some(known) = logs.get_mut(&name).filter(|known| known.number == last) {
                    known.is_unused = true;
                }
            }
        }
        let known = logs.entry(name.clone()).or_default();
        // Of an older log of this name, which is deleted.
        if known.number > number {
            return Ok(name);
        }
        let taken = update.apply((known.number, known.log.take()));
        *known = Known { number, log: taken.as_ref().ok().cloned(), is_unused: false };
        self.taken_in.notify_all();
        self.taken_in_for_tasks.notify_waiters();
        taken.map(|_| name)
    }

    /// Hands the answer to a question to the one who asked. Blocks as [`update`](Self::update) does.
    pub(super) fn answered(&self, id: Id, outcome: Result<LogUpdate, WireError>) {
        self.hand(id, outcome.map(|update| self.update(update)));
    }

    /// The same for a task.
    pub(super) async fn answered_later(&self, id: Id, outcome: Result<LogUpdate, WireError>) {
        let outcome = match outcome {
            Ok(update) => Ok(self.updated(update).await),
            Err(error) => Err(error),
        };
        self.hand(id, outcome);
    }

    fn hand(&self, id: Id, outcome: Result<TakenIn, WireError>) {
        let asked = locked(&self.asked).remove(&id);
        if let Some(asked) = asked {
            let _nobody_waits = asked.send(outcome);
        }
    }

    async fn ask(&self, question: impl FnOnce(Id) -> FromWorker, body: [&[u8]; 2]) -> Result<TakenIn, Error> {
        let id = self.questions.fetch_add(1, Ordering::Relaxed);
        let (asked, answer) = oneshot::channel();
        locked(&self.asked).insert(id, asked);
        self.send_any(&question(id), body).await;
        Ok(answer.await.map_err(|_| no_service())??)
    }

    /// Forgets logs that the service said are unused, and that nothing here uses any more.
    pub(super) fn forget_unused(&self) {
        let is_used = |log: &Option<Arc<Log>>| log.as_ref().is_some_and(|log| Arc::strong_count(log) > 1);
        locked(&self.logs).retain(|_, known| !known.is_unused || is_used(&known.log));
    }
}

impl Logs for WorkerLogs {
    fn get(&self, name: &str) -> Result<Arc<Log>, Error> {
        let log = locked(&self.logs).get(name).and_then(|known| known.log.clone());
        log.ok_or_else(|| Error::NotFound(format!("there is no log {name:?}")))
    }

    fn transaction_bytes_max(&self) -> u64 {
        self.transaction_bytes_max
    }

    fn renew<'a>(&'a self, log: &'a Arc<Log>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let renewed = self.ask(|id| FromWorker::Renew { id, log: log.name().to_owned() }, [&[], &[]]).await?;
            renewed.map(drop)
        })
    }

    fn append<'a>(&'a self, log: &'a Arc<Log>, at: Option<Offset>, bytes: Bytes) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let (call, generation) = (CALL.try_with(|call| *call).unwrap_or_default(), log.generation());
            let (log, log_id, offered) =
                (log.name().to_owned(), log.id().to_owned(), take_offered().unwrap_or_default());
            let answer = offered.len();
            let append = |id| FromWorker::Append { id, call, log, log_id, generation, at, answer };
            let appended = self.ask(append, [&bytes, &offered]).await?;
            // It is stored: to say that it is not would have it sent again.
            appended.map(drop).map_err(|error| Error::InDoubt(error.to_string().into()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use tokio::net::UnixStream;

    use super::*;
    use crate::api::CreateLog;
    use crate::engine::Engines;
    use crate::format::LogFormat;
    use crate::mirror::{LogUpdates, Registry, Settings, State, View};
    use crate::repo::FsRepo;

    fn registry(dir: &tempfile::TempDir) -> Registry {
        let repo = Arc::new(FsRepo::open(dir.path()).expect("that directory"));
        Registry::open(repo, Settings::default()).expect("an empty data directory")
    }

    fn created(registry: &Registry, name: &str) -> Arc<Log> {
        let wal = CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None };
        registry.create(name, wal).expect("a new log");
        registry.get(name).expect("that log")
    }

    /// Logs of a worker that nothing is sent to but by hand. Needs a runtime.
    fn worker_logs() -> (WorkerLogs, UnixStream) {
        let (service, worker) = UnixStream::pair().expect("a pair");
        let (_, out) = worker.into_split();
        let (packets, _) = Packets::pair().expect("a pair");
        (WorkerLogs::new((out, Arc::new(packets)), 1 << 20), service)
    }

    #[test]
    fn a_log_that_is_unused_is_forgotten_unless_something_uses_it_and_known_again_when_it_is_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let registry = registry(&dir);
        let (one, two) = (created(&registry, "one"), created(&registry, "two"));
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let _context = runtime.enter();
        let (logs, _service) = worker_logs();
        // Each is unused as soon as another is used.
        let mut updates = LogUpdates::new(Duration::ZERO);
        let mut use_of = |log: &Arc<Log>| {
            logs.update(updates.next(log).expect("an update")).expect("taken in");
            logs.forget_unused();
        };
        use_of(&one);
        use_of(&two);
        assert!(logs.get("one").is_err() && logs.get("two").is_ok());
        assert_eq!(locked(&logs.logs).len(), 1);
        // What is in use stays, and is the same afterwards.
        let used = logs.get("two").expect("that log");
        use_of(&one);
        assert!(Arc::ptr_eq(&used, &logs.get("two").expect("that log")));
        use_of(&two);
        assert!(Arc::ptr_eq(&used, &logs.get("two").expect("that log")));
        assert_eq!(used.view().state, State::Ok);
        use_of(&one);
        use_of(&one);
        drop(used);
        use_of(&two);
        use_of(&two);
        assert_eq!(logs.get("two").expect("that log").id(), two.id());
    }

    #[test]
    fn updates_of_a_log_are_taken_in_in_their_order_whichever_socket_is_read_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let registry = registry(&dir);
        let (app, other, mut updates) = (created(&registry, "app"), created(&registry, "other"), LogUpdates::default());
        let mut next = |log: &Arc<Log>| updates.next(log).expect("an update");
        let (first, second, of_other, third) = (next(&app), next(&app), next(&other), next(&app));
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let _context = runtime.enter();
        let (logs, _service) = worker_logs();
        // Nothing is known of the log before its first update: taken in before that, the others would be refused.
        thread::scope(|scope| {
            let late = [third, second].map(|update| scope.spawn(|| logs.update(update)));
            logs.update(of_other).expect("it waits for no other log's");
            logs.update(first).expect("the first");
            for late in late {
                late.join().expect("a thread").expect("in its turn");
            }
        });
        assert!(logs.get("app").is_ok() && logs.get("other").is_ok());
    }

    #[test]
    fn a_worker_knows_of_a_log_what_the_service_knows_however_little_an_update_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let registry = Arc::new(registry(&dir));
        let app = created(&registry, "app");
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let _context = runtime.enter();
        let (logs, _service) = worker_logs();
        let engines = Arc::new(Engines::new(registry));
        let session = engines.session("app", false).expect("a session");
        let mut updates = LogUpdates::default();
        let mut sizes = Vec::new();
        let mut is_known = || {
            let update = updates.next(&app).expect("an update");
            let sent = wire::head(&update, 0).expect("bytes");
            logs.update(wire::message(&sent).expect("an update")).expect("taken in");
            let known = |view: View| {
                let View { first, sealed, head, durable, epoch, framing, state, opened, cut_short, openings, .. } =
                    view;
                (first, sealed, head, durable, epoch, framing, state, opened, cut_short, openings)
            };
            let theirs = logs.get("app").expect("that log");
            assert_eq!(known(theirs.view()), known(app.view()));
            assert_eq!(theirs.foreign_keys(), app.foreign_keys());
            sizes.push(sent.len());
        };
        is_known();
        for sql in ["CREATE TABLE t(a)", "INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)", "DELETE FROM t"] {
            let turn = runtime.block_on(session.turn()).expect("the turn");
            session.connection().execute(sql).expect("it runs");
            runtime.block_on(session.settle()).expect("durable");
            drop(turn);
            is_known();
            is_known();
        }
        // All, and all once there are frames; then nothing and growth by turns.
        assert!(sizes[2..].iter().all(|size| size * 4 < sizes[0].min(sizes[1])), "{sizes:?}");
    }
}
