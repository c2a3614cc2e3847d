//! The priority of threads that run SQL. One whose statement takes long goes on with less of the processor, so that it holds up no
//! short one.
//!
//! A thread cannot get its priority back without privileges, so a thread that is to be lowered must be one that ends after its
//! work: it [says so](may_be_lowered) when it starts, and asks [whether it was](is_lowered) after each piece of work. Another takes
//! its place at once.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::process::{Pid, getpriority_process, setpriority_process};

use crate::limits::{SQL_LONG, SQL_LONG_NICE, SQL_VERY_LONG, SQL_VERY_LONG_NICE};

/// Between two looks at what runs.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Looks at nothing after which the watch rests until something runs.
const IDLE_LOOKS: u32 = 40;

thread_local! {
    /// This thread, if it may be lowered.
    static REPLACEABLE: Cell<Option<Replaceable>> = const { Cell::new(None) };
    static LOWERED: Cell<bool> = const { Cell::new(false) };
}

/// A thread that may be lowered.
#[derive(Clone, Copy, Debug)]
struct Replaceable {
    thread: Pid,
    /// Another is to take its place.
    is_missed: bool,
}

/// Says that this thread ends once it [was lowered](is_lowered), and whether another is to take its place then.
pub(crate) fn may_be_lowered(is_missed: bool) {
    // PID/task/TID; without it the priority stays.
    let link = std::fs::read_link("/proc/thread-self").ok();
    let id = link.and_then(|link| link.file_name()?.to_str()?.parse().ok());
    REPLACEABLE.set(id.and_then(Pid::from_raw).map(|thread| Replaceable { thread, is_missed }));
}

/// Whether this thread was lowered: it is to end, and another to take its place.
pub(crate) fn is_lowered() -> bool {
    LOWERED.get()
}

/// Work under way on a thread that may be lowered.
#[derive(Debug)]
struct Work {
    on: Replaceable,
    since: Instant,
    /// The steps that were taken.
    lowered: usize,
}

/// What a thread does to run long, and by how much it is lowered then.
const STEPS: [(Duration, i32); 2] = [(SQL_LONG, SQL_LONG_NICE), (SQL_VERY_LONG, SQL_VERY_LONG_NICE)];

/// Lowers threads whose work takes long.
#[derive(Debug)]
pub(super) struct Lowering {
    works: Mutex<Vec<Work>>,
    rests: AtomicBool,
    watch: Thread,
}

impl Lowering {
    /// Calls `replace` when a thread was lowered that is missed.
    ///
    /// # Errors
    /// When the system has no thread to spare.
    pub(super) fn start(replace: impl Fn() + Send + 'static) -> std::io::Result<Arc<Lowering>> {
        let base = getpriority_process(None).unwrap_or_default();
        let (send, receive) = std::sync::mpsc::channel::<Weak<Lowering>>();
        let watch = thread::Builder::new().name("sql-watch".into()).spawn(move || {
            if let Ok(lowering) = receive.recv() {
                watch(&lowering, base, replace);
            }
        })?;
        let watch = watch.thread().clone();
        let lowering = Arc::new(Lowering { works: Mutex::default(), rests: AtomicBool::new(false), watch });
        let _it_waits_for_this = send.send(Arc::downgrade(&lowering));
        Ok(lowering)
    }

    /// Watches the work of this thread, for as long as the result lives; none if the thread [may not be lowered](may_be_lowered).
    pub(super) fn watched(self: &Arc<Self>) -> Option<WatchedWork> {
        let on = REPLACEABLE.get()?;
        self.works().push(Work { on, since: Instant::now(), lowered: 0 });
        if self.rests.swap(false, Ordering::Relaxed) {
            self.watch.unpark();
        }
        Some(WatchedWork { lowering: self.clone(), thread: on.thread })
    }

    fn works(&self) -> std::sync::MutexGuard<'_, Vec<Work>> {
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lowers what has run long, and returns how many threads are missed from now on; none if nothing runs.
    fn look(&self, base: i32) -> Option<usize> {
        // In the lock: a thread whose work has ended must not be lowered.
        let (mut works, mut missed) = (self.works(), 0);
        for work in works.iter_mut() {
            let Some((after, nice)) = STEPS.get(work.lowered) else { continue };
            if work.since.elapsed() >= *after {
                missed += usize::from(work.lowered == 0 && work.on.is_missed);
                work.lowered += 1;
                if let Err(error) = setpriority_process(Some(work.on.thread), base + nice) {
                    log::debug!("the priority of a thread for SQL stays: {error}");
                }
            }
        }
        (!works.is_empty()).then_some(missed)
    }
}

impl Drop for Lowering {
    fn drop(&mut self) {
        self.watch.unpark();
    }
}

fn watch(lowering: &Weak<Lowering>, base: i32, replace: impl Fn()) {
    let mut idle = 0;
    while let Some(lowering) = lowering.upgrade() {
        let missed = lowering.look(base);
        (0..missed.unwrap_or(0)).for_each(|_| replace());
        idle = if missed.is_some() { 0 } else { idle + 1 };
        let rests = idle > IDLE_LOOKS;
        lowering.rests.store(rests, Ordering::Relaxed);
        // What began meanwhile did not see that.
        let rests = rests && lowering.works().is_empty();
        drop(lowering);
        if rests { thread::park() } else { thread::sleep(LOOK_EVERY) }
    }
}

/// See [`Lowering::watched`].
pub(super) struct WatchedWork {
    lowering: Arc<Lowering>,
    thread: Pid,
}

impl Drop for WatchedWork {
    fn drop(&mut self) {
        let mut works = self.lowering.works();
        if let Some(at) = works.iter().position(|work| work.on.thread == self.thread) {
            let work = works.swap_remove(at);
            LOWERED.set(LOWERED.get() || work.lowered > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The priority of this thread.
    fn nice() -> i32 {
        getpriority_process(None).expect("a priority")
    }

    #[test]
    fn a_thread_whose_work_takes_long_is_lowered_and_one_whose_work_is_short_is_not() {
        let (replaced, replacements) = std::sync::mpsc::channel();
        let lowering = Lowering::start(move || replaced.send(()).expect("it is received")).expect("a thread");
        let worker = |work: fn(i32)| {
            let lowering = lowering.clone();
            let thread = thread::spawn(move || {
                may_be_lowered(true);
                let before = nice();
                let watched = lowering.watched();
                assert!(watched.is_some());
                work(before);
                drop(watched);
                is_lowered()
            });
            thread.join().expect("it does not panic")
        };
        assert!(!worker(|_| {}));
        assert!(replacements.try_recv().is_err());
        // The watch may rest.
        thread::sleep(LOOK_EVERY * (IDLE_LOOKS + 4));
        assert!(worker(|before| {
            let since = Instant::now();
            while nice() == before && since.elapsed() < Duration::from_secs(20) {
                thread::yield_now();
            }
            assert!(nice() > before);
        }));
        assert!(!worker(|_| {}));
        assert_eq!(replacements.recv_timeout(Duration::from_secs(20)), Ok(()));
        assert!(replacements.try_recv().is_err());
    }

    #[test]
    fn a_thread_that_others_rely_on_is_never_lowered() {
        let lowering = Lowering::start(|| {}).expect("a thread");
        assert!(lowering.watched().is_none());
        assert!(!is_lowered());
    }
}
