//! What one log may have of that which logs share: half of what the others leave, and one at least. So the first log may have half of
//! all, and the next finds some free, while there are fewer such logs than there is to share. [`LogShares`]: of the threads that run
//! statements.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How many a log may have of `most`, where others have `of_others`.
pub(super) fn share(most: usize, of_others: usize) -> usize {
    (most.saturating_sub(of_others) / 2).max(1)
}

/// The threads that are in use, by log.
#[derive(Debug)]
pub(crate) struct LogShares {
    most: usize,
    used: Mutex<HashMap<String, usize>>,
    /// Notified when one is free again.
    freed: Notify,
}

/// The right to one thread, for as long as it lives.
#[derive(Debug)]
pub(crate) struct ThreadShare {
    shares: Arc<LogShares>,
    log: String,
}

impl LogShares {
    /// Of `most` threads.
    pub(crate) fn new(most: usize) -> LogShares {
        LogShares { most, used: Mutex::default(), freed: Notify::new() }
    }

    fn used(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a statement on `log` may have a thread.
    pub(crate) async fn thread(self: &Arc<Self>, log: &str) -> ThreadShare {
        loop {
            // From here on: one that comes free after the attempt must not be missed.
            let freed = self.freed.notified();
            if let Some(share) = self.try_thread(log) {
                return share;
            }
            freed.await;
        }
    }

    /// The right to a thread, if a statement on `log` may have one now.
    pub(crate) fn try_thread(self: &Arc<Self>, log: &str) -> Option<ThreadShare> {
        let mut used = self.used();
        let of_log = used.get(log).copied().unwrap_or(0);
        let of_others = used.values().sum::<usize>() - of_log;
        if of_log >= share(self.most, of_others) {
            return None;
        }
        match used.get_mut(log) {
            Some(count) => *count += 1,
            None => drop(used.insert(log.to_owned(), 1)),
        }
        Some(ThreadShare { shares: self.clone(), log: log.to_owned() })
    }
}

impl Drop for ThreadShare {
    fn drop(&mut self) {
        {
            let mut used = self.shares.used();
            if let Some(count) = used.get_mut(&self.log) {
                *count -= 1;
                if *count == 0 {
                    used.remove(&self.log);
                }
            }
        }
        self.shares.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_log_gets_half_of_what_the_others_leave_and_one_at_least() {
        let shares = Arc::new(LogShares::new(8));
        let mut held = Vec::new();
        let mut counts = Vec::new();
        for log in ["a", "b", "c", "d", "e"] {
            let before = held.len();
            held.extend(std::iter::from_fn(|| shares.try_thread(log)));
            counts.push(held.len() - before);
        }
        assert_eq!(counts, [4, 2, 1, 1, 1]);
        drop(held);
        assert!(shares.used().is_empty());
    }

    #[tokio::test]
    async fn one_that_waits_gets_the_thread_that_comes_free() {
        let shares = Arc::new(LogShares::new(2));
        let first = shares.thread("a").await;
        let waiting = tokio::spawn({
            let shares = shares.clone();
            async move { drop(shares.thread("a").await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.expect("it goes on");
    }
}
