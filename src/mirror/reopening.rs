//! [`Reopenings`]: the logs of a shard that failed or are damaged, and when each is opened again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::log::{Log, State};
use super::opening::DamagedLog;
use crate::limits::{REOPEN_FIRST, REOPEN_LAST};
use crate::retry::Backoff;

const RETRY: Backoff = Backoff::new(REOPEN_FIRST, REOPEN_LAST);

#[derive(Debug)]
struct Reopening {
    /// The log to be opened; none while it is open again.
    log: Option<Arc<Log>>,
    /// When it is due, or when it was opened.
    at: Instant,
    /// How often it was scheduled or due in a row.
    attempts: u32,
    /// Of a damaged log: how it was found.
    damaged: Option<DamagedLog>,
    /// Whether an attempt is under way.
    attempting: bool,
}

/// Attempts to open logs again, without end. The waits grow up to a limit, also when each attempt succeeds and the log
/// fails again right after it, as on a full disk.
#[derive(Debug, Default)]
pub(super) struct Reopenings(HashMap<String, Reopening>);

impl Reopenings {
    /// Has `log` opened again, later.
    pub(super) fn schedule(&mut self, log: &Arc<Log>) {
        let (now, name) = (Instant::now(), log.name().to_owned());
        let is_damaged = matches!(log.watch().borrow().state, State::Damaged(_));
        let damaged = is_damaged.then(|| DamagedLog { names: log.names(), opened: now });
        let before =
            self.0.get(log.name()).filter(|before| before.log.is_some() || before.at.elapsed() < 2 * REOPEN_LAST);
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        let (log, at) = (Some(log.clone()), now + RETRY.after(attempts));
        self.0.insert(name, Reopening { log, at, attempts, damaged, attempting: false });
    }

    /// Records that a log is open.
    pub(super) fn opened(&mut self, log: &Log) {
        if let Some(reopening) = self.0.get_mut(log.name()) {
            (reopening.log, reopening.at, reopening.damaged) = (None, Instant::now(), None);
        }
    }

    /// Records that an attempt to open `log` has ended. False when it is not the one to be opened any more.
    pub(super) fn attempted(&mut self, log: &Arc<Log>) -> bool {
        let reopening = self.0.get_mut(log.name()).filter(|reopening| reopening.attempting);
        let reopening = reopening.filter(|reopening| reopening.log.as_ref().is_some_and(|it| Arc::ptr_eq(it, log)));
        reopening.map(|reopening| reopening.attempting = false).is_some()
    }

    /// How long until the next one is due.
    pub(super) fn next(&self) -> Option<Duration> {
        let waiting = self.0.values().filter(|reopening| reopening.log.is_some() && !reopening.attempting);
        waiting.map(|reopening| reopening.at.saturating_duration_since(Instant::now())).min()
    }

    /// The logs to open now, and how they were found if they are damaged. They are not due again before
    /// [`attempted`](Self::attempted) or [`schedule`](Self::schedule).
    pub(super) fn due(&mut self) -> Vec<(Arc<Log>, Option<DamagedLog>)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for reopening in self.0.values_mut().filter(|reopening| reopening.at <= now && !reopening.attempting) {
            let Some(log) = &reopening.log else {
                continue;
            };
            reopening.attempts = reopening.attempts.saturating_add(1);
            reopening.at = now + RETRY.after(reopening.attempts);
            if log.is_unloaded() || matches!(log.watch().borrow().state, State::Ended(_)) {
                continue;
            }
            reopening.attempting = true;
            due.push((log.clone(), reopening.damaged.clone()));
        }
        // What was opened and has been well since, and generations that have ended.
        self.0.retain(|_, reopening| match &reopening.log {
            Some(log) => !matches!(log.watch().borrow().state, State::Ended(_)),
            None => reopening.at.elapsed() < 2 * REOPEN_LAST,
        });
        due
    }
}
