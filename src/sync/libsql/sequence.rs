//! How often a sender's database was checkpointed: a number in the header of its WAL, which is never sent, and without
//! which its checksums cannot be checked.
//!
//! It is found by trying. That alone proves nothing: there are flips of a single bit in a push's first frame that make
//! another number fit. So a number is believed when it is the usual one, when the first frame is one that we hold and can
//! compare, or when the same number comes out of what was sent twice. From then on the sender has that number and no other.

use crate::limits::{SENDERS_KNOWN_MAX, SEQUENCES_TRIED};

/// That of nearly all replicas, whose databases were never checkpointed.
const USUAL: u32 = 0;

/// What is known of the senders of one generation, those used last at the end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sequences(Vec<Known>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    salts: [u32; 2],
    sequence: u32,
    proven: bool,
}

impl Sequences {
    /// The numbers that a sender may have, the usual one first; `own` is that of a replica made by logmirror.
    pub(super) fn candidates(&self, salts: [u32; 2], own: u32) -> impl Iterator<Item = u32> + use<> {
        let proven = self.of(salts).filter(|known| known.proven).map(|known| known.sequence);
        let tried = if proven.is_none() { USUAL..SEQUENCES_TRIED } else { 0..0 };
        let own = proven.is_none().then_some(own);
        proven.into_iter().chain(tried).chain(own)
    }

    /// Whether a number that fits is to be believed; `compared` says that it fits a frame that we hold. One that is not is
    /// believed when it comes again.
    pub(super) fn believe(&mut self, salts: [u32; 2], sequence: u32, compared: bool) -> bool {
        let known = self.of(salts).is_some_and(|known| known.sequence == sequence);
        if !known {
            self.put(Known { salts, sequence, proven: false });
        }
        known || compared || sequence == USUAL
    }

    /// Takes note that frames of this sender were checked with that number.
    pub(super) fn prove(&mut self, salts: [u32; 2], sequence: u32) {
        self.put(Known { salts, sequence, proven: true });
    }

    /// Forgets a sender.
    pub(super) fn forget(&mut self, salts: [u32; 2]) {
        self.0.retain(|known| known.salts != salts);
    }

    fn of(&self, salts: [u32; 2]) -> Option<Known> {
        self.0.iter().find(|known| known.salts == salts).copied()
    }

    fn put(&mut self, known: Known) {
        self.forget(known.salts);
        if self.0.len() >= SENDERS_KNOWN_MAX {
            self.0.remove(0);
        }
        self.0.push(known);
    }
}
