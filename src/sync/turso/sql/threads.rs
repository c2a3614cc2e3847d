//! [`Threads`]: where SQL runs. Not on the threads of the service: the engine recurses, and a stack that overflows ends the
//! process.
//!
//! One thread more than there are processors does the usual work: more would only get into each other's way. Work that has
//! not begun after a while gets another thread, so that a statement that takes long holds up nobody for long.

use std::cell::RefCell;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::SqlSettings;
use super::shares::LogShares;
use crate::limits::{SQL_BEGIN_WAIT, SQL_PREPARE_TIME_MAX, SQL_THREADS_MAX};
use crate::mirror::Error;

type Job = Box<dyn FnOnce() + Send>;

tokio::task_local! {
    /// The number of the call that a task runs, by which [`overdue_calls`](super::Sql::overdue_calls) names it.
    pub(crate) static CALL: u64;
}

thread_local! {
    /// When the statement must have ended that this thread prepares or runs, and how long one may run.
    static DEADLINE: RefCell<Option<(Arc<Mutex<Instant>>, Duration)>> = const { RefCell::new(None) };
}

/// Starts a task of the same [`CALL`].
pub(super) fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    match CALL.try_with(|call| *call) {
        Ok(call) => tokio::spawn(CALL.scope(call, work)),
        Err(_) => tokio::spawn(work),
    }
}

/// Says that this thread begins to prepare a statement.
pub(super) fn statement_is_prepared() {
    begin(|statement_time_max| statement_time_max.min(SQL_PREPARE_TIME_MAX));
}

/// Says that this thread begins to run a statement.
pub(super) fn statement_runs() {
    begin(|statement_time_max| statement_time_max);
}

fn begin(most: impl FnOnce(Duration) -> Duration) {
    DEADLINE.with_borrow(|deadline| {
        if let Some((deadline, statement_time_max)) = deadline {
            *deadline.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + most(*statement_time_max);
        }
    });
}

/// Work under way, of a call with a number.
#[derive(Debug)]
struct Running {
    call: u64,
    /// When its statement must have ended.
    deadline: Arc<Mutex<Instant>>,
}

/// Work that is watched for as long as this lives, on the thread that made it.
struct Watched {
    deadline: Arc<Mutex<Instant>>,
    all: Arc<Mutex<Vec<Running>>>,
}

impl Watched {
    fn begin(call: u64, all: Arc<Mutex<Vec<Running>>>, statement_time_max: Duration) -> Watched {
        let deadline = Arc::new(Mutex::new(Instant::now() + statement_time_max));
        all.lock().unwrap_or_else(PoisonError::into_inner).push(Running { call, deadline: deadline.clone() });
        DEADLINE.set(Some((deadline.clone(), statement_time_max)));
        Watched { deadline, all }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        DEADLINE.set(None);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|running| !Arc::ptr_eq(&running.deadline, &self.deadline));
    }
}

/// What work came to; none if it panicked. What it had in hand is dropped with it.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(work));
    result.inspect_err(|_| log::error!("the SQL engine failed")).ok()
}

fn panicked() -> Error {
    Error::Unavailable("the SQL engine failed over this call: see the log of the service".into())
}

/// Threads with large stacks.
#[derive(Debug)]
pub(super) struct Threads {
    jobs: Sender<Job>,
    todo: Receiver<Job>,
    stack_bytes: usize,
    statement_time_max: Duration,
    /// How many there are.
    count: Arc<AtomicUsize>,
    running: Arc<Mutex<Vec<Running>>>,
    shares: Arc<LogShares>,
}

impl Threads {
    /// # Errors
    /// When the system has no thread to spare.
    pub(super) fn new(SqlSettings { stack_bytes, statement_time_max, .. }: SqlSettings) -> std::io::Result<Threads> {
        let (jobs, todo) = unbounded::<Job>();
        let (count, running, shares) = (Arc::default(), Arc::default(), Arc::new(LogShares::new(SQL_THREADS_MAX)));
        let threads = Threads { jobs, todo, stack_bytes, statement_time_max, count, running, shares };
        let processors = available_parallelism().map_or(1, NonZero::get);
        for _ in 0..(processors + 1).min(SQL_THREADS_MAX) {
            let todo = threads.todo.clone();
            threads.start(move || todo.iter().for_each(|job| job()))?;
        }
        Ok(threads)
    }

    fn start(&self, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("sql".into()).stack_size(self.stack_bytes);
        let started = thread.spawn(work).map(drop);
        if started.is_err() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        started
    }

    /// Another thread, for as long as there is work that waits; none when there are many already.
    fn help(&self) {
        if self.count.load(Ordering::Relaxed) >= SQL_THREADS_MAX {
            return;
        }
        let (todo, count) = (self.todo.clone(), self.count.clone());
        let work = move || {
            todo.try_iter().for_each(|job| job());
            count.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(error) = self.start(work) {
            log::warn!("no further thread for SQL: {error}");
        }
    }

    /// The calls whose statement should have ended `grace` ago.
    pub(super) fn overdue_calls(&self, grace: Duration) -> Vec<u64> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |running: &Running| running.deadline.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        running.iter().filter(|running| since(running) > grace).map(|running| running.call).collect()
    }

    /// Runs work on the database of a log, once that may have a thread.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) async fn run_for<T: Send + 'static>(
        &self,
        log: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let share = self.shares.thread(log).await;
        // Held by the work: its caller may be gone before it ends.
        self.run(move || {
            let _share = share;
            work()
        })
        .await
    }

    /// Runs work on the database of a log on this thread, which must have the stack for it; none if that log has no thread to spare.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn run_here<T>(&self, log: &str, work: impl FnOnce() -> T) -> Option<Result<T, Error>> {
        let _share = self.shares.try_thread(log)?;
        let call = CALL.try_with(|call| *call).ok();
        let _watched = call.map(|call| Watched::begin(call, self.running.clone(), self.statement_time_max));
        Some(caught(work).ok_or_else(panicked))
    }

    /// Runs work that may block.
    ///
    /// # Errors
    /// When it panicked, as the engine may.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let begun = Arc::new(AtomicBool::new(false));
        let mut done = self.send(work, begun.clone());
        let done = loop {
            match timeout(SQL_BEGIN_WAIT, &mut done).await {
                Ok(done) => break done,
                Err(_elapsed) if begun.load(Ordering::Relaxed) => break done.await,
                Err(_elapsed) => self.help(),
            }
        };
        done.map_err(|_panicked| panicked())
    }

    /// Sends work to the threads; its result comes back unless it panics.
    fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        begun: Arc<AtomicBool>,
    ) -> oneshot::Receiver<T> {
        let (tell, done) = oneshot::channel();
        let (runtime, call, running) = (Handle::try_current(), CALL.try_with(|call| *call), self.running.clone());
        let statement_time_max = self.statement_time_max;
        let job = move || {
            begun.store(true, Ordering::Relaxed);
            let _runtime = runtime.as_ref().map(Handle::enter);
            let _watched = call.ok().map(|call| Watched::begin(call, running, statement_time_max));
            if let Some(result) = caught(work) {
                let _nobody_waits = tell.send(result);
            }
        };
        // The other end is ours as well.
        let _sent = self.jobs.send(Box::new(job));
        done
    }

    /// Drops something where that may block, and waits for nothing.
    pub(super) fn end_later<T: Send + 'static>(&self, thing: T) {
        drop(self.send(move || drop(thing), Arc::default()));
    }

    /// Drops something where that may block, and waits for it.
    pub(super) async fn end<T: Send + 'static>(&self, thing: T) {
        let _is_logged = self.run(move || drop(thing)).await;
    }
}
