//! [`Checkpointer`]: turns "this log may have something to fold" into runs of a job, few at once and never two of a log.
//!
//! Where a log stands:
//!
//! ```text
//!            notice                    a slot is free, the time has come
//!   (idle) ----------> queued at T --------------------------------------> running, again = no
//!      ^                ^   ^   | notice: nothing changes                    |  | notice: again = yes
//!      |                |   '---'                                            |  |
//!      |                '-- ok, again = yes: T = now ------------------------+--'
//!      |                '-- failed: T = now + backoff(failures in a row) ----'
//!      '------------------- ok, again = no
//! ```
//!
//! So many notices are one run, a notice during a run is exactly one more, and no notice is lost. A job that panics has
//! failed. After [`CHECKPOINT_FAILURES_MAX`] failures in a row a log is an alarm, seen in [`Status`] and said once in the
//! log; it is then tried only once in [`CHECKPOINT_RETRY_LAST`], and any success ends the alarm.
//!
//! Shutdown takes no more notices, reads those already sent, and ends when nothing is queued or running. It waits for no
//! backoff, and a log whose job fails then is given up and named: nothing is lost, since a fold can be done later.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::limits::{CHECKPOINT_FAILURES_MAX, CHECKPOINT_RETRY_FIRST, CHECKPOINT_RETRY_LAST};
use crate::offset::Offset;
use crate::retry::Backoff;

/// How a job that did not fail ended. All of these are successes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Frames up to this one are in the base.
    Folded(Offset),
    /// There was nothing to fold, or readers hold it back.
    Nothing,
    /// The log is not open.
    NotOpen,
}

/// A log whose last job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Its name.
    pub log: String,
    /// Failures in a row.
    pub failures: u32,
    /// Whether these are so many that somebody should look.
    pub alarm: bool,
    /// What went wrong last.
    pub error: String,
    /// How long until it is tried again; none while it is.
    pub retry_in: Option<Duration>,
}

/// Where the checkpointer stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Jobs running.
    pub running: usize,
    /// Logs that wait for a run, those included that run now and will once more.
    pub scheduled: usize,
    /// Jobs that ended well so far.
    pub succeeded: u64,
    /// Jobs that failed so far.
    pub failed: u64,
    /// Logs that failed last, by name.
    pub failing: Vec<Failing>,
}

/// A log that shutdown could not fold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Its name.
    pub log: String,
    /// Why not.
    pub error: String,
}

/// What the task is told.
enum Message {
    Notice(String),
    Shutdown,
}

/// Tells the checkpointer of logs. Cheap to clone, never waits, and holds at most one notice of each log that the
/// checkpointer has not taken yet. When the last one is gone, the checkpointer drains and ends.
#[derive(Clone, Debug)]
pub struct Notifier {
    messages: mpsc::UnboundedSender<Message>,
    sent: Arc<Mutex<HashSet<String>>>,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Notice(log) => write!(f, "Notice({log:?})"),
            Message::Shutdown => write!(f, "Shutdown"),
        }
    }
}

impl Notifier {
    /// Says that `log` may have something to fold. `false`: the checkpointer is shutting down and takes no more.
    pub fn notify(&self, log: &str) -> bool {
        let mut sent = lock(&self.sent);
        if sent.contains(log) {
            return !self.messages.is_closed();
        }
        let taken = self.messages.send(Message::Notice(log.to_owned())).is_ok();
        if taken {
            sent.insert(log.to_owned());
        }
        taken
    }

    /// Asks the checkpointer to drain and end.
    pub fn shut_down(&self) {
        // One that is gone has ended.
        let _ = self.messages.send(Message::Shutdown);
    }
}

/// A running checkpointer.
#[derive(Debug)]
pub struct Checkpointer {
    plan: Arc<Mutex<Plan>>,
    task: JoinHandle<Vec<GivenUp>>,
}

impl Checkpointer {
    /// Starts one on the current runtime, which runs `job` for at most `limit` logs at once. A job that blocks must do so
    /// on a thread for that.
    pub fn start<J, F, E>(limit: NonZeroUsize, job: J) -> (Checkpointer, Notifier)
    where
        J: Fn(String) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Outcome, E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let (messages, inbox) = mpsc::unbounded_channel();
        let notifier = Notifier { messages, sent: Arc::default() };
        let plan = Arc::new(Mutex::new(Plan::default()));
        let runner = Runner {
            limit,
            job: Arc::new(job),
            plan: plan.clone(),
            inbox,
            sent: notifier.sent.clone(),
            jobs: JoinSet::new(),
        };
        (Checkpointer { plan, task: tokio::spawn(runner.run()) }, notifier)
    }

    /// Where it stands now.
    #[must_use]
    pub fn status(&self) -> Status {
        lock(&self.plan).status(Instant::now())
    }

    /// Waits until it has drained after [`Notifier::shut_down`], or after the last notifier is gone. Returns the logs
    /// whose last job failed meanwhile.
    pub async fn ended(self) -> Vec<GivenUp> {
        // Its task runs no foreign code, and ends early only with its runtime.
        self.task.await.unwrap_or_default()
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task.
struct Runner<J> {
    limit: NonZeroUsize,
    job: Arc<J>,
    plan: Arc<Mutex<Plan>>,
    inbox: mpsc::UnboundedReceiver<Message>,
    sent: Arc<Mutex<HashSet<String>>>,
    jobs: JoinSet<Result<Outcome, String>>,
}

impl<J, F, E> Runner<J>
where
    J: Fn(String) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Outcome, E>> + Send + 'static,
    E: fmt::Display + Send + 'static,
{
    async fn run(mut self) -> Vec<GivenUp> {
        let mut names: HashMap<Id, String> = HashMap::new();
        let mut open = true;
        loop {
            let due = lock(&self.plan).due();
            let free = self.jobs.len() < self.limit.get();
            tokio::select! {
                biased;
                Some(joined) = self.jobs.join_next_with_id() => {
                    let (id, result) = match joined {
                        Ok((id, result)) => (id, result),
                        Err(error) => (error.id(), Err(ended_badly(error))),
                    };
                    if let Some(log) = names.remove(&id) {
                        lock(&self.plan).finish(&log, result, Instant::now());
                    }
                }
                message = self.inbox.recv(), if open => match message {
                    Some(Message::Notice(log)) => self.take(log),
                    // What was sent before is still read; then comes `None`.
                    Some(Message::Shutdown) => {
                        self.inbox.close();
                        lock(&self.plan).shut_down(Instant::now());
                    }
                    None => {
                        open = false;
                        lock(&self.plan).shut_down(Instant::now());
                    }
                },
                () = wait_for(due), if free && due.is_some() => {}
                else => {
                    // No job, no message to come, and nothing due.
                    return lock(&self.plan).given_up();
                }
            }
            while self.jobs.len() < self.limit.get() {
                let Some(log) = lock(&self.plan).start(Instant::now()) else { break };
                let (job, name) = (self.job.clone(), log.clone());
                // The job is called inside of its task, so that a panic stays there.
                let task = async move { job(name).await.map_err(|error| error.to_string()) };
                names.insert(self.jobs.spawn(task).id(), log);
            }
        }
    }

    fn take(&self, log: String) {
        // Before it is planned, so that a notice from now on is not taken for this one.
        lock(&self.sent).remove(&log);
        lock(&self.plan).notice(log, Instant::now());
    }
}

async fn wait_for(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn ended_badly(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => {
            let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            format!("panicked: {}", text.unwrap_or("without a text"))
        }
        Err(error) => error.to_string(),
    }
}

/// When a log is to run, and its place among those of the same time.
type Due = (Instant, u64);

#[derive(Debug)]
enum State {
    Queued(Due),
    Running { again: bool },
}

#[derive(Debug)]
struct Entry {
    state: State,
    failures: u32,
    error: Option<String>,
}

/// The state of all logs that are not idle. Pure: told what happens and when, asked what to do.
#[derive(Debug, Default)]
struct Plan {
    logs: HashMap<String, Entry>,
    /// The queued ones, first come first served.
    queue: BTreeSet<(Due, String)>,
    sequence: u64,
    shutting_down: bool,
    given_up: Vec<GivenUp>,
    succeeded: u64,
    failed: u64,
}

impl Plan {
    fn queue(&mut self, log: String, at: Instant, failures: u32, error: Option<String>) {
        self.sequence += 1;
        let due = (at, self.sequence);
        self.queue.insert((due, log.clone()));
        self.logs.insert(log, Entry { state: State::Queued(due), failures, error });
    }

    fn notice(&mut self, log: String, now: Instant) {
        match self.logs.get_mut(&log) {
            None => self.queue(log, now, 0, None),
            Some(Entry { state: State::Running { again }, .. }) => *again = true,
            Some(Entry { state: State::Queued(_), .. }) => {}
        }
    }

    /// When the next log may start.
    fn due(&self) -> Option<Instant> {
        self.queue.first().map(|((at, _), _)| *at)
    }

    /// The log to run now.
    fn start(&mut self, now: Instant) -> Option<String> {
        if self.due()? > now {
            return None;
        }
        let (_, log) = self.queue.pop_first()?;
        if let Some(entry) = self.logs.get_mut(&log) {
            entry.state = State::Running { again: false };
        }
        Some(log)
    }

    fn finish(&mut self, log: &str, result: Result<Outcome, String>, now: Instant) {
        let Some(Entry { state, failures, .. }) = self.logs.remove(log) else {
            return;
        };
        let again = matches!(state, State::Running { again: true });
        self.given_up.retain(|given_up| given_up.log != log);
        match result {
            Ok(_) => {
                self.succeeded += 1;
                if failures >= CHECKPOINT_FAILURES_MAX {
                    log::info!("checkpoint of {log} works again after {failures} failures");
                }
                if again {
                    self.queue(log.to_owned(), now, 0, None);
                }
            }
            Err(error) => {
                self.failed += 1;
                let failures = failures.saturating_add(1);
                if self.shutting_down && !again {
                    log::warn!("checkpoint of {log} failed and is left to the next start: {error}");
                    self.given_up.push(GivenUp { log: log.to_owned(), error });
                    return;
                }
                if failures == CHECKPOINT_FAILURES_MAX {
                    log::error!("checkpoint of {log} failed {failures} times in a row: {error}");
                } else {
                    log::warn!("checkpoint of {log} failed ({failures} in a row): {error}");
                }
                let wait = if self.shutting_down { Duration::ZERO } else { backoff(failures) };
                self.queue(log.to_owned(), now + wait, failures, Some(error));
            }
        }
    }

    /// From here on nobody waits for a better time.
    fn shut_down(&mut self, now: Instant) {
        if std::mem::replace(&mut self.shutting_down, true) {
            return;
        }
        for (_, log) in std::mem::take(&mut self.queue) {
            if let Some(Entry { failures, error, .. }) = self.logs.remove(&log) {
                self.queue(log, now, failures, error);
            }
        }
    }

    fn given_up(&mut self) -> Vec<GivenUp> {
        std::mem::take(&mut self.given_up)
    }

    fn status(&self, now: Instant) -> Status {
        let mut status = Status { succeeded: self.succeeded, failed: self.failed, ..Status::default() };
        for (log, Entry { state, failures, error }) in &self.logs {
            let retry_in = match state {
                State::Queued((at, _)) => Some(at.saturating_duration_since(now)),
                State::Running { .. } => None,
            };
            let again = matches!(state, State::Running { again: true });
            status.running += usize::from(retry_in.is_none());
            status.scheduled += usize::from(retry_in.is_some() || again);
            if let Some(error) = error {
                let (alarm, error) = (*failures >= CHECKPOINT_FAILURES_MAX, error.clone());
                status.failing.push(Failing { log: log.clone(), failures: *failures, alarm, error, retry_in });
            }
        }
        status.failing.sort_by(|a, b| a.log.cmp(&b.log));
        status
    }
}

/// Waits before the checkpoint of a log is tried again.
const RETRY: Backoff = Backoff::new(CHECKPOINT_RETRY_FIRST, CHECKPOINT_RETRY_LAST);

/// How long a log waits after its nth failure in a row.
fn backoff(failures: u32) -> Duration {
    if failures >= CHECKPOINT_FAILURES_MAX { CHECKPOINT_RETRY_LAST } else { RETRY.after(failures) }
}
