//! Frames of transactions that are not whole yet, per sender. They are in no log and are not pulled; a crash may lose them,
//! and the sender is asked for them again.

use std::time::Instant;

use bytes::Bytes;

use super::pushed::{OtherOrder, Pushed};
use crate::format::wal::Chain;
use crate::limits::{STAGE_IDLE, STAGED_BYTES_MAX, STAGED_SENDERS_MAX};
use crate::mirror::Share;
use crate::offset::Offset;

/// The unfinished transaction of one sender.
#[derive(Debug)]
pub(super) struct Stage {
    /// The end of the log when it began.
    base: Offset,
    /// Its frames, header and page each.
    frames: Vec<Bytes>,
    bytes: u64,
    /// The sender's checksum after the last of them, and the order of the words it sums up.
    chain: Option<(Chain, bool)>,
    /// The memory they take.
    share: Share,
    used: Instant,
}

impl Stage {
    pub(super) fn new(base: Offset) -> Stage {
        Stage { base, frames: Vec::new(), bytes: 0, chain: None, share: Share::default(), used: Instant::now() }
    }

    pub(super) fn base(&self) -> Offset {
        self.base
    }

    /// The number after its last frame.
    pub(super) fn end(&self) -> Offset {
        Offset(self.base.0 + self.frames.len() as u64)
    }

    /// The bytes of its frames.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The sender's checksum after its last frame.
    pub(super) fn chain(&self) -> Option<(Chain, bool)> {
        self.chain
    }

    /// Whether what is pushed once more of it is the same. Where it is not, the sender has begun anew.
    pub(super) fn holds(&self, pushed: &Pushed) -> bool {
        let skip = pushed.start.0.saturating_sub(self.base.0) as usize;
        let again = pushed.frames().skip(self.base.0.saturating_sub(pushed.start.0) as usize);
        // The sender's own frames are equal in all their bytes.
        self.frames.iter().skip(skip).zip(again).all(|(ours, theirs)| *ours == theirs)
    }

    /// Adds the frames of a push behind its end, which `share` covers. Returns the transactions that are whole with them,
    /// and what is left. Costs what is added, however much was there.
    pub(super) fn extended(mut self, pushed: &Pushed, share: Share) -> (Vec<Bytes>, Stage) {
        self.share.merge(share);
        self.used = Instant::now();
        let before = self.frames.len();
        let held = self.end().0.saturating_sub(pushed.start.0) as usize;
        self.frames.extend(pushed.frames().skip(held));
        self.chain = Some(pushed.last_chain());
        // What was there before ended no transaction.
        let last = self.frames[before..].iter().rposition(|frame| frame[4..8] != [0; 4]);
        let mut whole = Vec::new();
        if let Some(last) = last {
            whole = std::mem::take(&mut self.frames);
            // The body that these are of may be long, and they are kept for longer.
            let rest = whole.split_off(before + last + 1);
            self.frames = rest.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
            self.base.0 += whole.len() as u64;
        }
        self.bytes = self.frames.iter().map(|frame| frame.len() as u64).sum();
        drop(self.share.split(self.bytes));
        (whole, self)
    }
}

/// What is known of the senders of one generation.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// Their stages, those used last at the end.
    staged: Vec<([u32; 2], Stage)>,
    /// The sum of our frames for senders whose words have the other order.
    pub(super) other_order: OtherOrder,
}

impl Stages {
    /// Takes out the stage of the sender with these salts.
    pub(super) fn take(&mut self, salts: [u32; 2]) -> Option<Stage> {
        let at = self.staged.iter().position(|(known, _)| *known == salts)?;
        Some(self.staged.remove(at).1)
    }

    /// Keeps a stage. Those that were not used for the longest time make room.
    pub(super) fn put(&mut self, salts: [u32; 2], stage: Stage) {
        self.forget(salts);
        self.staged.push((salts, stage));
        let mut bytes: u64 = self.staged.iter().map(|(_, stage)| stage.bytes).sum();
        while self.staged.len() > STAGED_SENDERS_MAX || bytes > STAGED_BYTES_MAX && self.staged.len() > 1 {
            bytes -= self.staged.remove(0).1.bytes;
        }
    }

    /// Forgets what the sender with these salts has staged.
    pub(super) fn forget(&mut self, salts: [u32; 2]) {
        self.staged.retain(|(known, _)| *known != salts);
    }

    /// Forgets those whose senders have been silent for long.
    pub(super) fn prune(&mut self) {
        self.staged.retain(|(_, stage)| stage.used.elapsed() < STAGE_IDLE);
    }

    /// Forgets all that is staged.
    pub(super) fn clear(&mut self) {
        self.staged.clear();
    }

    /// Whether nothing would be lost with it.
    pub(super) fn is_empty(&self) -> bool {
        self.staged.is_empty() && self.other_order == OtherOrder::default()
    }
}
