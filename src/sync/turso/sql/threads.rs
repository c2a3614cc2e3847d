//! [`Threads`]: where SQL runs. Not on the threads of the service: the engine recurses, and a stack that overflows ends the
//! process.
//!
//! One thread more than there are processors does the usual work: more would only get into each other's way. Work that has
//! not begun after a while gets another thread, so that a statement that takes long holds up nobody for long.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::available_parallelism;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::limits::{SQL_BEGIN_WAIT, SQL_STACK_BYTES, SQL_THREADS_MAX};
use crate::mirror::Error;

type Job = Box<dyn FnOnce() + Send>;

/// Threads with large stacks.
#[derive(Debug)]
pub(super) struct Threads {
    jobs: Sender<Job>,
    todo: Receiver<Job>,
    /// How many there are.
    count: Arc<AtomicUsize>,
}

impl Threads {
    /// # Errors
    /// When the system has no thread to spare.
    pub(super) fn new() -> std::io::Result<Threads> {
        let (jobs, todo) = unbounded::<Job>();
        let threads = Threads { jobs, todo, count: Arc::default() };
        let processors = available_parallelism().map_or(1, NonZero::get);
        for _ in 0..(processors + 1).min(SQL_THREADS_MAX) {
            let todo = threads.todo.clone();
            threads.start(move || todo.iter().for_each(|job| job()))?;
        }
        Ok(threads)
    }

    fn start(&self, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("sql".into()).stack_size(SQL_STACK_BYTES);
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
        let text = "the SQL engine failed over this call: see the log of the service";
        done.map_err(|_panicked| Error::Unavailable(text.into()))
    }

    /// Sends work to the threads; its result comes back unless it panics.
    fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        begun: Arc<AtomicBool>,
    ) -> oneshot::Receiver<T> {
        let (tell, done) = oneshot::channel();
        let runtime = Handle::try_current();
        let job = move || {
            begun.store(true, Ordering::Relaxed);
            let _runtime = runtime.as_ref().map(Handle::enter);
            // What it had in hand is dropped with it.
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(result) => drop(tell.send(result)),
                Err(_) => log::error!("the SQL engine failed"),
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
