//! [`Backoff`]: how long to wait before another attempt. Knows nothing of what is attempted.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use crate::limits::{BACKOFF_FIRST, BACKOFF_LAST};

/// Waits between attempts to reach a service, or a source or sink that is missing or failed.
pub(crate) const RECONNECT: Backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_LAST).with_jitter();

/// Waits that double with each failure in a row, up to a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    jitter: bool,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, last: Duration) -> Backoff {
        Backoff { first, last, jitter: false }
    }

    /// The same, each wait shortened at random by up to half, so that many clients do not come back at once.
    pub(crate) const fn with_jitter(self) -> Backoff {
        Backoff { jitter: true, ..self }
    }

    /// The wait after so many failures in a row, counted from 1.
    pub(crate) fn after(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.first.saturating_mul(1 << doublings).min(self.last);
        if !self.jitter {
            return full;
        }
        let chance = RandomState::new().build_hasher().finish() % 1024;
        full.mul_f64(0.5 + chance as f64 / 2048.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_the_first_to_the_last() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let waits = [0, 1, 2, 3, 6, 7, 1000, u32::MAX].map(|failures| backoff.after(failures).as_millis());
        assert_eq!(waits, [100, 100, 200, 400, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn jitter_shortens_a_wait_by_up_to_half() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5)).with_jitter();
        for failures in (1..100).chain([u32::MAX]) {
            let (wait, full) = (backoff.after(failures), Backoff { jitter: false, ..backoff }.after(failures));
            assert!(wait <= full && wait * 2 >= full, "{failures}: {wait:?}");
        }
    }
}
