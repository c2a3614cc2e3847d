//! Frames of transactions that are not whole yet, per sender. They are in no log and are not pulled; a crash may lose them,
//! and the sender is asked for them again.

use std::time::Instant;

use bytes::Bytes;

use super::pushed::Pushed;
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
    shares: Vec<Share>,
    used: Instant,
}

impl Stage {
    pub(super) fn new(base: Offset) -> Stage {
        Stage { base, frames: Vec::new(), bytes: 0, chain: None, shares: Vec::new(), used: Instant::now() }
    }

    pub(super) fn base(&self) -> Offset {
        self.base
    }

    /// The number after its last frame.
    pub(super) fn end(&self) -> Offset {
        Offset(self.base.0 + self.frames.len() as u64)
    }

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

    /// Adds the frames behind its end; `share` covers them.
    pub(super) fn add(&mut self, pushed: &Pushed, share: Share) {
        self.shares.push(share);
        self.used = Instant::now();
        let held = self.end().0.saturating_sub(pushed.start.0) as usize;
        for frame in pushed.frames().skip(held) {
            self.bytes += frame.len() as u64;
            self.frames.push(frame);
        }
        self.chain = Some(pushed.last_chain());
    }

    /// The transactions that are whole, and what is left.
    pub(super) fn cut(mut self) -> (Vec<Bytes>, Stage) {
        let last = self.frames.iter().rposition(|frame| frame[4..8] != [0; 4]);
        let rest = self.frames.split_off(last.map_or(0, |last| last + 1));
        let bytes = rest.iter().map(|frame| frame.len() as u64).sum();
        let base = Offset(self.base.0 + self.frames.len() as u64);
        // The last body may be long and the rest of it short.
        let frames = rest.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
        (self.frames, Stage { base, frames, bytes, chain: self.chain, shares: self.shares, used: self.used })
    }
}

/// The stages of one log, those used last at the end.
#[derive(Debug, Default)]
pub(super) struct Stages(Vec<([u32; 2], Stage)>);

impl Stages {
    /// Takes out the stage of the sender with these salts.
    pub(super) fn take(&mut self, salts: [u32; 2]) -> Option<Stage> {
        let at = self.0.iter().position(|(known, _)| *known == salts)?;
        Some(self.0.remove(at).1)
    }

    /// Keeps a stage. Those that were not used for the longest time make room.
    pub(super) fn put(&mut self, salts: [u32; 2], stage: Stage) {
        self.forget(salts);
        self.0.push((salts, stage));
        let mut bytes: u64 = self.0.iter().map(|(_, stage)| stage.bytes).sum();
        while self.0.len() > STAGED_SENDERS_MAX || bytes > STAGED_BYTES_MAX && self.0.len() > 1 {
            bytes -= self.0.remove(0).1.bytes;
        }
    }

    /// Forgets what the sender with these salts has staged.
    pub(super) fn forget(&mut self, salts: [u32; 2]) {
        self.0.retain(|(known, _)| *known != salts);
    }

    /// Forgets those whose senders have been silent for long.
    pub(super) fn prune(&mut self) {
        self.0.retain(|(_, stage)| stage.used.elapsed() < STAGE_IDLE);
    }
}
