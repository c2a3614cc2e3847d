//! [`CallThreads`]: threads of a worker that receive packets, and run the calls in them.
//!
//! To wake a thread costs as much as a small statement. So a call is received, run and answered by one thread, and what it commits
//! goes to the service together with the answer, which the service passes on once that is durable. Meanwhile the thread receives
//! the next packet; the one that receives what became of the commit goes on with the call.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// See [`offered`].
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

pub(super) struct CallThreads {
    packets: Arc<Packets>,
    broken: mpsc::UnboundedSender<io::Error>,
    worker: Arc<Worker>,
    runtime: Handle,
    /// Those that were not lowered.
    usual: AtomicUsize,
}

impl CallThreads {
    /// Starts them, in the context of the runtime. What breaks the connection is received from the result.
    ///
    /// # Errors
    /// When the system has no thread to spare.
    pub(super) fn start(packets: Arc<Packets>, worker: Arc<Worker>) -> io::Result<mpsc::UnboundedReceiver<io::Error>> {
        let (broken, errors) = mpsc::unbounded_channel();
        let (runtime, usual) = (Handle::current(), AtomicUsize::new(0));
        let threads = Arc::new(CallThreads { packets, broken, worker, runtime, usual });
        (0..WORKER_CALL_THREADS).try_for_each(|_| threads.start_one())?;
        Ok(errors)
    }

    fn start_one(self: &Arc<Self>) -> io::Result<()> {
        self.usual.fetch_add(1, Ordering::Relaxed);
        let (threads, replaced) = (self.clone(), self.clone());
        let thread = std::thread::Builder::new().name("sql-call".into()).stack_size(WORKER_STACK_BYTES);
        let started = thread.spawn(move || {
            let _context = threads.runtime.enter();
            may_be_lowered(move || replaced.replace_one());
            READY.set(Some(VecDeque::new()));
            if let Err(error) = threads.receive() {
                let _ends_already = threads.broken.send(error);
            }
        });
        if started.is_err() {
            self.usual.fetch_sub(1, Ordering::Relaxed);
        }
        started.map(drop)
    }

    /// Another in the place of one that was lowered, which still works.
    fn replace_one(self: &Arc<Self>) {
        self.usual.fetch_sub(1, Ordering::Relaxed);
        let _is_replaced_later = self.start_one();
    }

    /// Receives packets to the end, or until another thread does so instead of this one, which was lowered.
    fn receive(self: &Arc<Self>) -> io::Result<()> {
        let mut buffer = PacketBuffer::new();
        while let Some((message, body)) = self.packets.receive(&mut buffer)? {
            match message {
                ToWorker::Pipeline { id, update, lasting } => self.pipeline(id, update, (body, lasting)),
                ToWorker::Log { id, outcome } => self.worker.logs.answered(id, outcome),
                message => self.worker.take(message, body),
            }
            while let Some(runnable) = READY.with_borrow_mut(|ready| ready.as_mut()?.pop_front()) {
                runnable.run();
            }
            let is_missed = || self.usual.load(Ordering::Relaxed) < WORKER_CALL_THREADS;
            if is_lowered() && (!is_missed() || self.start_one().is_ok()) {
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
        match CALL.sync_scope(id, || self.worker.sql.pipeline_at_once(&log, call, offer)) {
            AtOnce::Ended(answer) => self.go_on(async move { worker.answer(id, Some(&log), answer).await }),
            AtOnce::GoesOn(rest) => self.go_on(OFFERED.scope(
                RefCell::default(),
                CALL.scope(id, async move {
                    let answer = rest.await;
                    if !OFFERED.with(|offer| matches!(*offer.borrow(), Offer::Sent)) {
                        worker.answer(id, Some(&log), answer).await;
                    }
                }),
            )),
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

fn offer(answer: &Bytes) {
    let _no_call = OFFERED.try_with(|offer| *offer.borrow_mut() = Offer::Made(answer.clone()));
}
