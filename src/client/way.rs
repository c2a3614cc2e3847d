//! [`Way`]: what was learnt about the way to a service: whether it passes on what is sent as it comes, and how large a
//! request may be. Shared by the clones of a client. Knows no log.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{
    FIRST_ACK_DOUBLINGS, FIRST_ACK_WAIT, LIVE_AGAIN, REQUEST_BYTES_MAX, REQUEST_BYTES_MIN, REQUEST_BYTES_START,
};

/// What stands between a client and a service, as far as it matters.
#[derive(Debug)]
pub(crate) struct Way {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Since when only bounded requests are sent, and how often that was decided.
    bounded: Option<Instant>,
    decided: u32,
    /// Live appends in a row that broke off early.
    broken: u32,
    /// Live appends in a row that failed while the service did not answer at all.
    unanswered: u32,
    /// Largest body of a request.
    request_bytes: usize,
    /// A body that was refused as too large.
    refused_bytes: Option<usize>,
    /// Whether an answer with page checksums had their proof.
    proves_sums: bool,
}

impl Default for Way {
    fn default() -> Self {
        let state = State {
            bounded: None,
            decided: 0,
            broken: 0,
            unanswered: 0,
            request_bytes: REQUEST_BYTES_START,
            refused_bytes: None,
            proves_sums: false,
        };
        Way { state: Mutex::new(state) }
    }
}

impl Way {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a live stream is worth an attempt: nothing holds it back as far as is known, or that was found long ago.
    pub(crate) fn may_be_live(&self) -> bool {
        let state = self.state();
        let again = LIVE_AGAIN.saturating_mul(1 << state.decided.saturating_sub(1).min(8));
        state.bounded.is_none_or(|since| since.elapsed() > again)
    }

    /// Records that a live stream is held back. From now on requests are bounded.
    pub(crate) fn is_held_back(&self) {
        let mut state = self.state();
        (state.bounded, state.decided, state.broken) = (Some(Instant::now()), state.decided.saturating_add(1), 0);
    }

    /// How long a live append waits for its first line of answer, and then for an answer about the status.
    pub(crate) fn first_ack_wait(&self) -> Duration {
        FIRST_ACK_WAIT * (1 << self.state().unanswered.min(FIRST_ACK_DOUBLINGS))
    }

    /// Records that a live append failed while the service did not answer a request for its status either: it is slow or
    /// hangs, and nothing between is at fault. The next one waits longer.
    pub(crate) fn is_unanswered(&self) {
        let mut state = self.state();
        state.unanswered = state.unanswered.saturating_add(1);
    }

    /// Records that a live append broke off early; true when that was the second in a row, so that something is likely to
    /// be in the way of all of them.
    pub(crate) fn broke_off(&self) -> bool {
        let mut state = self.state();
        state.broken = state.broken.saturating_add(1);
        state.broken > 1
    }

    /// Records that a live append went well for long, or to its end.
    pub(crate) fn is_live(&self) {
        let mut state = self.state();
        (state.bounded, state.decided, state.broken, state.unanswered) = (None, 0, 0, 0);
    }

    /// Records whether an answer with page checksums has their proof. False when it does not and an earlier one did: something on the
    /// way removed it.
    pub(crate) fn keeps_proof(&self, is_proven: bool) -> bool {
        let mut state = self.state();
        state.proves_sums |= is_proven;
        state.proves_sums == is_proven
    }

    /// Largest body of a request that is sent.
    pub(crate) fn request_bytes(&self) -> usize {
        self.state().request_bytes
    }

    /// Records that a body of so many bytes was taken in so long. Requests grow while they are full, quick and not refused.
    pub(crate) fn taken(&self, bytes: usize, took: Duration) {
        let mut state = self.state();
        let grown = (state.request_bytes * 2).min(REQUEST_BYTES_MAX);
        let full = bytes * 4 > state.request_bytes * 3 && took < Duration::from_secs(1);
        if full && state.refused_bytes.is_none_or(|refused| grown < refused) {
            state.request_bytes = grown;
        }
    }

    /// Records that a body of so many bytes was refused as too large. False when no smaller one is worth an attempt.
    pub(crate) fn refused(&self, bytes: usize) -> bool {
        let mut state = self.state();
        if bytes <= REQUEST_BYTES_MIN {
            return false;
        }
        state.refused_bytes = Some(state.refused_bytes.map_or(bytes, |refused| refused.min(bytes)));
        state.request_bytes = state.request_bytes.min(bytes / 2).max(REQUEST_BYTES_MIN);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_grow_while_they_are_taken_and_never_again_to_what_was_refused() {
        let way = Way::default();
        way.taken(way.request_bytes(), Duration::ZERO);
        assert_eq!(way.request_bytes(), REQUEST_BYTES_START * 2);
        assert!(way.refused(REQUEST_BYTES_START * 2));
        assert_eq!(way.request_bytes(), REQUEST_BYTES_START);
        way.taken(way.request_bytes(), Duration::ZERO);
        assert_eq!(way.request_bytes(), REQUEST_BYTES_START);
        while way.request_bytes() > REQUEST_BYTES_MIN {
            assert!(way.refused(way.request_bytes()));
        }
        assert!(!way.refused(way.request_bytes()));
    }

    #[test]
    fn the_second_live_stream_in_a_row_that_breaks_off_early_is_the_last() {
        let way = Way::default();
        assert!(!way.broke_off());
        way.is_live();
        assert!(!way.broke_off());
        assert!(way.broke_off());
        way.is_held_back();
        assert!(!way.may_be_live());
    }

    #[test]
    fn the_next_live_append_waits_longer_after_a_service_that_did_not_answer_until_one_goes_well() {
        let way = Way::default();
        assert_eq!(way.first_ack_wait(), FIRST_ACK_WAIT);
        way.is_unanswered();
        assert_eq!(way.first_ack_wait(), FIRST_ACK_WAIT * 2);
        (0..100).for_each(|_| way.is_unanswered());
        assert_eq!(way.first_ack_wait(), FIRST_ACK_WAIT * 16);
        assert!(way.may_be_live());
        way.is_live();
        assert_eq!(way.first_ack_wait(), FIRST_ACK_WAIT);
    }
}
