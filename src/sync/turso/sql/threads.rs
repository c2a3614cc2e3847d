//! [`Threads`]: where SQL runs. Not on the threads of the service: the engine recurses, and a stack that overflows ends the
//! process.
//!
//! One thread more than there are processors does the usual work: more would only get into each other's way. Work that has
//! not begun after a while gets another thread, so that a statement that takes long holds up nobody for long, and it goes on with
//! [less of the processor](super::priority).

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
use super::priority::{Lowering, is_lowered, may_be_lowered};
use super::shares::LogShares;
use crate::limits::{SQL_BEGIN_WAIT, SQL_PREPARE_TIME_MAX};
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
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(work));
    result.inspect_err(|_| log::error!("the SQL engine failed")).ok()
}

pub(super) fn panicked() -> Error {
    Error::Unavailable("the SQL engine failed over this call: see the log of the service".into())
}

/// Threads with large stacks.
#[derive(Debug)]
pub(super) struct Threads {
    jobs: Sender<Job>,
    pool: Arc<Pool>,
    statement_time_max: Duration,
    running: Arc<Mutex<Vec<Running>>>,
    shares: Arc<LogShares>,
    lowering: Arc<Lowering>,
}

/// What threads work on, and how many there are.
#[derive(Debug)]
struct Pool {
    todo: Receiver<Job>,
    stack_bytes: usize,
    most: usize,
    count: AtomicUsize,
    /// Those that do the usual work and were not lowered, and how many there are to be.
    usual: AtomicUsize,
    usual_wanted: usize,
}

impl Pool {
    fn start(self: &Arc<Self>, work: impl FnOnce(&Arc<Pool>) + Send + 'static) -> std::io::Result<()> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("sql".into()).stack_size(self.stack_bytes);
        let pool = self.clone();
        let started = thread.spawn(move || {
            work(&pool);
            pool.count.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        started.map(drop)
    }

    /// A thread for the usual work, until it was lowered.
    fn start_usual(self: &Arc<Self>) -> std::io::Result<()> {
        self.usual.fetch_add(1, Ordering::Relaxed);
        let started = self.start(|pool| {
            may_be_lowered(true);
            for job in &pool.todo {
                job();
                let is_missed = || pool.usual.load(Ordering::Relaxed) < pool.usual_wanted;
                // One that was not replaced when it was lowered is now, or stays.
                if is_lowered() && (!is_missed() || pool.start_usual().is_ok()) {
                    break;
                }
            }
        });
        if started.is_err() {
            self.usual.fetch_sub(1, Ordering::Relaxed);
        }
        started
    }

    /// Another thread in the place of one that was lowered, which still works.
    fn replace_usual(self: &Arc<Self>) {
        self.usual.fetch_sub(1, Ordering::Relaxed);
        if self.count.load(Ordering::Relaxed) < self.most {
            let _is_replaced_later = self.start_usual();
        }
    }

    /// A thread for what waits.
    fn start_helper(self: &Arc<Self>) -> std::io::Result<()> {
        self.start(|pool| {
            may_be_lowered(false);
            for job in pool.todo.try_iter() {
                job();
                if is_lowered() {
                    break;
                }
            }
        })
    }
}

impl Threads {
    /// # Errors
    /// When the system has no thread to spare.
    pub(super) fn new(settings: SqlSettings) -> std::io::Result<Threads> {
        let SqlSettings { stack_bytes, statement_time_max, threads_max: most, .. } = settings;
        let (jobs, todo) = unbounded::<Job>();
        let usual_wanted = (available_parallelism().map_or(1, NonZero::get) + 1).min(most);
        let (count, usual) = Default::default();
        let pool = Arc::new(Pool { todo, stack_bytes, most, count, usual, usual_wanted });
        for _ in 0..usual_wanted {
            pool.start_usual()?;
        }
        let replaced = pool.clone();
        let lowering = Lowering::start(move || replaced.replace_usual())?;
        let (running, shares) = (Arc::default(), Arc::new(LogShares::new(most)));
        Ok(Threads { jobs, pool, statement_time_max, running, shares, lowering })
    }

    /// Another thread, for as long as there is work that waits; none when there are many already.
    fn help(&self) {
        if self.pool.count.load(Ordering::Relaxed) >= self.pool.most {
            return;
        }
        let is_missed = self.pool.usual.load(Ordering::Relaxed) < self.pool.usual_wanted;
        let started = if is_missed { self.pool.start_usual() } else { self.pool.start_helper() };
        if let Err(error) = started {
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
        let _goes_on_lowered = self.lowering.watched();
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
        let (statement_time_max, lowering) = (self.statement_time_max, self.lowering.clone());
        let job = move || {
            begun.store(true, Ordering::Relaxed);
            let _goes_on_lowered = lowering.watched();
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
