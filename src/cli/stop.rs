//! How a command is asked to end, and how it does end although something in it may be stuck.

use std::io;
use std::num::NonZero;
use std::sync::RwLock;
use std::thread::Builder;
use std::time::Duration;

use logmirror::system_limits;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::Exit;
use super::output;

/// How long a command waits at its end for threads that are in the middle of a call, such as a write to a disk that hangs.
const THREADS_WAIT: Duration = Duration::from_secs(1);

/// From when on a second signal counts. Those who stop a process may send several at once: a shell its own SIGHUP after the
/// terminal's, a terminal SIGINT to a wrapper that passes it on.
const SECOND_AFTER: Duration = Duration::from_secs(1);

/// How long a command that is not a service has from a signal to its end. Whatever it is busy with, it ends then.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// Runs async work to its end. Threads that are still at work afterwards are waited for only for a moment.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Exit> {
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let runtime =
        can_start_threads(workers + 1).and_then(|()| tokio::runtime::Builder::new_multi_thread().enable_all().build());
    match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(work);
            runtime.shutdown_timeout(THREADS_WAIT);
            Ok(done)
        }
        Err(error) => {
            let what = system_limits::met(&error).unwrap_or_default();
            Err(Exit::Io.because(format_args!("cannot start threads: {what} ({error})")))
        }
    }
}

/// Whether there can be so many more threads at once. A runtime panics where it cannot start one.
pub(crate) fn can_start_threads(count: usize) -> io::Result<()> {
    let gate = RwLock::new(());
    let closed = gate.write();
    std::thread::scope(|scope| {
        // All at once: each waits until the last has started.
        let wait = || drop(gate.read());
        let started = (0..count).try_for_each(|_| Builder::new().spawn_scoped(scope, wait).map(drop));
        drop(closed);
        started
    })
}

/// Has a write that makes a file larger than the process may (`ulimit -f`) fail as on a full disk: it would end the process.
pub(crate) fn outlive_large_files() {
    let too_large = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    if let Err(error) = runtime.and_then(|runtime| runtime.block_on(async { signal(too_large).map(drop) })) {
        log::debug!("a file that is too large will end this process: {error}");
    }
}

/// What ends a command.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None where it is ignored, as under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> Result<Signals, Exit> {
        let listen = |kind| signal(kind).map_err(|error| Exit::Io.because_of("cannot listen for signals", error));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: if hangup_is_ignored() { None } else { Some(listen(SignalKind::hangup())?) },
        })
    }

    async fn received(&mut self) {
        let Signals { terminate, interrupt, hangup } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {}, _ = hangup => {} }
    }
}

/// Completes on a signal that is meant to end what does not end by itself.
async fn insisted(signals: &mut Signals) {
    tokio::time::sleep(SECOND_AFTER).await;
    let Signals { terminate, interrupt, .. } = signals;
    while futures::poll!(std::pin::pin!(terminate.recv())).is_ready() {}
    while futures::poll!(std::pin::pin!(interrupt.recv())).is_ready() {}
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
}

/// Whether this process was started with SIGHUP ignored: it is to outlive its terminal then.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

/// Completes when we are asked to end: SIGTERM, SIGINT as from Ctrl-C, or SIGHUP as when the terminal goes, unless that is
/// ignored. On a second signal, or when the command is too busy to end soon, the process ends all the same.
pub(crate) fn asked_to_stop() -> Result<impl Future<Output = ()>, Exit> {
    asked(Some(BUSY_WAIT))
}

/// The same for a service, which has all the time it needs to drain, until a second signal ends it at once.
pub(crate) fn asked_to_drain() -> Result<impl Future<Output = ()>, Exit> {
    asked(None)
}

fn asked(busy_wait: Option<Duration>) -> Result<impl Future<Output = ()>, Exit> {
    let mut signals = Signals::listen()?;
    let (asked, mut is_asked) = tokio::sync::watch::channel(false);
    // A task of its own: the command may be too busy to look.
    tokio::spawn(async move {
        signals.received().await;
        output::end_promptly();
        asked.send_replace(true);
        let too_late = async {
            match busy_wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = insisted(&mut signals) => Exit::Io.because("ended by a second signal").at_once(),
            () = too_late => Exit::Io.because("interrupted while busy").at_once(),
        }
    });
    Ok(async move {
        // The task only ends with the process.
        let _ = is_asked.wait_for(|asked| *asked).await;
    })
}

/// Does work that blocks, until it is done or a signal asks the command to end: None. Then the work goes on until the process
/// ends.
pub(crate) fn unless_stopped<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Some(work());
    };
    let done = runtime.block_on(async {
        let mut signals = Signals::listen().ok()?;
        tokio::select! {
            done = tokio::task::spawn_blocking(work) => done.ok(),
            () = signals.received() => None,
        }
    });
    runtime.shutdown_background();
    if done.is_none() {
        output::end_promptly();
    }
    done
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_hangs_does_not_hold_up_the_end() {
        let since = Instant::now();
        let (_never, hangs) = std::sync::mpsc::channel::<()>();
        let done = block_on(async move {
            tokio::task::spawn_blocking(move || hangs.recv());
            tokio::task::yield_now().await;
            7
        });
        assert!(matches!(done, Ok(7)));
        assert!(since.elapsed() < BUSY_WAIT, "{:?}", since.elapsed());
    }
}
