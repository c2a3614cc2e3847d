//! [`Reopenings`]: the logs of a shard that failed or are damaged, and when each is opened again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::log::{Log, State};
use crate::limits::{REOPEN_DAMAGED, REOPEN_FIRST, REOPEN_LAST};
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
    /// Of a damaged log: the names in its directory, and when it was opened last.
    damaged: Option<(Option<Vec<String>>, Instant)>,
}

/// Attempts to open logs again, without end. The waits grow up to a limit, also when each attempt succeeds and the log
/// fails again right after it, as on a full disk.
#[derive(Debug, Default)]
pub(super) struct Reopenings(HashMap<String, Reopening>);

impl Reopenings {
    /// Has `log` opened again, later.
    pub(super) fn schedule(&mut self, log: &Arc<Log>) {
        let now = Instant::now();
        let is_damaged = matches!(log.watch().borrow().state, State::Damaged(_));
        let damaged = is_damaged.then(|| (log.names(), now));
        let before =
            self.0.get(log.name()).filter(|before| before.log.is_some() || before.at.elapsed() < 2 * REOPEN_LAST);
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        let next = Reopening { log: Some(log.clone()), at: now + RETRY.after(attempts), attempts, damaged };
        self.0.insert(log.name().to_owned(), next);
    }

    /// Records that a log is open.
    pub(super) fn opened(&mut self, log: &Log) {
        if let Some(reopening) = self.0.get_mut(log.name()) {
            (reopening.log, reopening.at, reopening.damaged) = (None, Instant::now(), None);
        }
    }

    /// How long until the next one is due.
    pub(super) fn next(&self) -> Option<Duration> {
        let waiting = self.0.values().filter(|reopening| reopening.log.is_some());
        waiting.map(|reopening| reopening.at.saturating_duration_since(Instant::now())).min()
    }

    /// The logs to open now. Blocks for a look into the directories of damaged ones.
    pub(super) fn due(&mut self) -> Vec<Arc<Log>> {
        let now = Instant::now();
        let mut due = Vec::new();
        for reopening in self.0.values_mut().filter(|reopening| reopening.at <= now) {
            let Some(log) = &reopening.log else {
                continue;
            };
            reopening.attempts = reopening.attempts.saturating_add(1);
            reopening.at = now + RETRY.after(reopening.attempts);
            let changed = |(names, opened): &(Option<Vec<String>>, Instant)| {
                opened.elapsed() >= REOPEN_DAMAGED || log.names() != *names
            };
            if reopening.damaged.as_ref().is_none_or(changed) {
                due.push(log.clone());
            }
        }
        // What was opened and has been well since, and generations that have ended.
        self.0.retain(|_, reopening| match &reopening.log {
            Some(log) => !matches!(log.watch().borrow().state, State::Ended(_)),
            None => reopening.at.elapsed() < 2 * REOPEN_LAST,
        });
        due
    }
}
