//! [`Pace`]: patience with a body that is being received.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

/// When a body counts as stalled: when nothing was received for a while, or when, after that while, it is slower than a
/// minimal rate. However large it is, a body that keeps that rate is never cut off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    silence: Duration,
    rate: NonZeroU64,
    since: Instant,
    last: Instant,
    bytes: u64,
}

impl Pace {
    /// Starts now. `silence` is the longest time without a byte, and the time after which `rate` bytes a second count.
    pub(super) fn new(silence: Duration, rate: NonZeroU64) -> Pace {
        let now = Instant::now();
        Pace { silence, rate, since: now, last: now, bytes: 0 }
    }

    /// When the body counts as stalled unless more of it is received.
    pub(super) fn deadline(&self) -> Instant {
        let due = Duration::from_millis(self.bytes.saturating_mul(1000) / self.rate);
        (self.last + self.silence).min(self.since + self.silence + due)
    }

    /// Records that `bytes` were received, and that the sender had to wait for `waited` meanwhile.
    pub(super) fn received(&mut self, bytes: usize, waited: Duration) {
        self.bytes += bytes as u64;
        self.since += waited;
        self.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const SILENCE: Duration = Duration::from_secs(60);
    const RATE: NonZeroU64 = NonZeroU64::new(16 << 10).unwrap();

    #[tokio::test(start_paused = true)]
    async fn twenty_mib_at_250_kb_a_second_are_in_time() {
        let mut pace = Pace::new(SILENCE, RATE);
        for _ in 0..84 {
            advance(Duration::from_secs(1)).await;
            assert!(Instant::now() < pace.deadline());
            pace.received(250_000, Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_whatever_was_received_before() {
        let mut pace = Pace::new(SILENCE, RATE);
        pace.received(1 << 30, Duration::ZERO);
        assert_eq!(pace.deadline(), Instant::now() + SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_below_the_rate_is_cut_off_soon_after_the_first_silence() {
        let mut pace = Pace::new(SILENCE, RATE);
        let start = Instant::now();
        while Instant::now() < pace.deadline() {
            pace.received(100, Duration::ZERO);
            advance(Duration::from_secs(1)).await;
        }
        assert!(start.elapsed() < SILENCE + Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_sender_waits_for_us_does_not_count() {
        let mut pace = Pace::new(SILENCE, RATE);
        advance(SILENCE * 2).await;
        pace.received(1, SILENCE * 2);
        assert!(Instant::now() < pace.deadline());
    }
}
