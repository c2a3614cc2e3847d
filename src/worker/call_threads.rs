//! [`CallThreads`]: threads of a worker that receive packets, and run the calls in them.
//!
//! To wake a thread costs as much as a small statement. So a call is received, run and answered by one thread, and what it commits
//! goes to the service together with the answer, which the service passes on once that is durable. Meanwhile the thread receives
//! the next packet; the one that receives what became of the commit goes on with the call. While all others run calls, the last one
//! runs none itself: it hands those that it receives to the [threads](crate::sync::turso::sql) of all other work.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use async_task::Runnable;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::packets::{PacketBuffer, Packets};
use super::run::Worker;
use super::wire::{Id, ToWorker};
use crate::limits::{WORKER_CALL_THREADS, WORKER_STACK_BYTES};
use crate::mirror::LogUpdate;
use crate::sync::turso::sql::{AtOnce, CALL, is_lowered, may_be_lowered};

thread_local! {
    /// What this thread is to go on with, if it is one that receives packets.
    static READY: RefCell<Option<VecDeque<Runnable>>> = const { RefCell::new(None) };
}

tokio::task_local! {
    /// The answer to the call that a task runs, if what it commits becomes durable; none once it was sent.
    static OFFERED: RefCell<Offer>;
}

/// See [`take_offered`].
#[derive(Debug, Default)]
enum Offer {
    #[default]
    None,
    Made(Bytes),
    Sent,
}

/// The answer to the call that this task runs, to be sent with what it appends.
pub(super) fn take_offered() -> Option<Bytes> {
    let take = |offer: &RefCell<Offer>| match offer.take() {
        Offer::Made(answer) => {
            *offer.borrow_mut() = Offer::Sent;
            Some(answer)
        }
        other => {
            *offer.borrow_mut() = other;
            None
        }
    };
    OFFERED.try_with(take).ok().flatten()
}

/// See the module.
pub(super) struct CallThreads {
    packets: Arc<Packets>,
    broken: mpsc::UnboundedSender<io::Error>,
    worker: Arc<Worker>,
    runtime: Handle,
    /// How many run no call.
    free: AtomicUsize,
}

/// Reports the end of a thread by a panic: without it, calls would be received by fewer, and in the end by none.
struct EndsWithPanic<'a>(&'a CallThreads);

impl Drop for EndsWithPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ends_already = self.0.broken.send(io::Error::other("a thread that runs calls has failed"));
        }
    }
}

impl CallThreads {
    /// Starts them, in the context of the runtime. What breaks the connection is received from the result.
    ///
    /// # Errors
    /// When the system has no thread to spare.
    pub(super) fn start(packets: Arc<Packets>, worker: Arc<Worker>) -> io::Result<mpsc::UnboundedReceiver<io::Error>> {
        let (broken, errors) = mpsc::unbounded_channel();
        let (runtime, free) = (Handle::current(), AtomicUsize::new(WORKER_CALL_THREADS));
        let threads = Arc::new(CallThreads { packets, broken, worker, runtime, free });
        (0..WORKER_CALL_THREADS).try_for_each(|_| threads.start_one())?;
        Ok(errors)
    }

    fn start_one(self: &Arc<Self>) -> io::Result<()> {
        let threads = self.clone();
        let thread = std::thread::Builder::new().name("sql-call".into()).stack_size(WORKER_STACK_BYTES);
        let run = move || {
            let _ends_with_panic = EndsWithPanic(&threads);
            let _context = threads.runtime.enter();
            may_be_lowered(false);
            READY.set(Some(VecDeque::new()));
            if let Err(error) = threads.receive() {
                let _ends_already = threads.broken.send(error);
            }
        };
        thread.spawn(run).map(drop)
    }

    /// Receives packets to the end, or until another thread does so instead of this one, which was lowered.
    fn receive(self: &Arc<Self>) -> io::Result<()> {
        let mut buffer = PacketBuffer::new();
        while let Some((message, body)) = self.packets.receive(&mut buffer)? {
            match message {
                ToWorker::Pipeline { id, update, lasting } => {
                    // One goes on receiving, however long the calls of the others take.
                    let runs =
                        self.free.try_update(AcqRel, Acquire, |free| free.checked_sub(1).filter(|left| *left > 0));
                    if runs.is_ok() {
                        self.pipeline(id, update, (body, lasting));
                        self.free.fetch_add(1, AcqRel);
                    } else {
                        self.worker.take(ToWorker::Pipeline { id, update, lasting }, body);
                    }
                }
                ToWorker::Log { id, outcome } => self.worker.logs.answered(id, outcome),
                message => self.worker.take(message, body),
            }
            run_ready();
            if is_lowered() && self.start_one().is_ok() {
                break;
            }
        }
        Ok(())
    }

    fn pipeline(self: &Arc<Self>, id: Id, update: LogUpdate, call: (Bytes, bool)) {
        let worker = self.worker.clone();
        let log = match worker.logs.update(update) {
            Ok(log) => log,
            Err(error) => return self.go_on(async move { worker.answer(id, None, Err(error)).await }),
        };
        // What waited for the update, and what gets ready meanwhile, does not wait for this call.
        run_ready();
        let ready = READY.take();
        let ran = CALL.sync_scope(id, || self.worker.sql.pipeline_at_once(&log, call, offer));
        READY.set(ready);
        match ran {
            AtOnce::Ended(answer) => self.go_on(async move { worker.answer(id, Some(&log), answer).await }),
            AtOnce::GoesOn(rest) => {
                let rest = async move {
                    let answer = rest.await;
                    if !OFFERED.with(|offer| matches!(*offer.borrow(), Offer::Sent)) {
                        worker.answer(id, Some(&log), answer).await;
                    }
                };
                self.go_on(OFFERED.scope(RefCell::default(), CALL.scope(id, rest)));
            }
        }
    }

    /// Runs a task, the first of it on this thread.
    fn go_on(&self, task: impl Future<Output = ()> + Send + 'static) {
        let runtime = self.runtime.clone();
        let schedule = move |runnable: Runnable| {
            let left = READY.with_borrow_mut(|ready| match ready {
                Some(ready) => {
                    ready.push_back(runnable);
                    None
                }
                None => Some(runnable),
            });
            if let Some(runnable) = left {
                runtime.spawn(async move { runnable.run() });
            }
        };
        let (runnable, task) = async_task::spawn(task, schedule);
        task.detach();
        runnable.run();
    }
}

/// Goes on with what is ready on this thread.
fn run_ready() {
    while let Some(runnable) = READY.with_borrow_mut(|ready| ready.as_mut()?.pop_front()) {
        runnable.run();
    }
}

fn offer(answer: &Bytes) {
    let _no_call = OFFERED.try_with(|offer| *offer.borrow_mut() = Offer::Made(answer.clone()));
}
