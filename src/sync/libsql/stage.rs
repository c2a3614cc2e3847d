//! Frames of transactions that are not whole yet, per sender. They are in no log and are not pulled; a crash may lose them,
//! and the sender is asked for them again.

use std::time::Instant;

use bytes::BytesMut;

use super::pushed::{FRAME_LEN, OtherOrder, Pushed, Sum};
use super::sequence::Sequences;
use crate::limits::{LIBSQL_PAGE_SIZE, STAGE_IDLE, STAGED_BYTES_MAX, STAGED_SENDERS_MAX};
use crate::mirror::Share;
use crate::offset::Offset;
use crate::sqlite::wal_frames::committed_frames;

/// The unfinished transaction of one sender.
#[derive(Debug)]
pub(super) struct Stage {
    /// The end of the log when it began.
    base: Offset,
    /// The sender's checksum there.
    origin: Sum,
    /// Its frames, header and page each, with checksums that are right.
    frames: BytesMut,
    /// The memory they take.
    share: Share,
    used: Instant,
}

/// What became of a stage with more frames.
pub(super) struct Extended {
    /// The transactions that are whole now, one piece after the other.
    pub(super) whole: Vec<BytesMut>,
    /// The sender's checksum before them.
    pub(super) origin: Sum,
    /// The memory that they take.
    pub(super) share: Share,
    /// What is left.
    pub(super) rest: Stage,
}

impl Stage {
    /// Without a frame yet.
    pub(super) fn new(base: Offset, origin: Sum) -> Stage {
        Stage { base, origin, frames: BytesMut::new(), share: Share::default(), used: Instant::now() }
    }

    pub(super) fn base(&self) -> Offset {
        self.base
    }

    /// The number after its last frame.
    pub(super) fn end(&self) -> Offset {
        Offset(self.base.0 + (self.frames.len() / FRAME_LEN) as u64)
    }

    /// The bytes of its frames.
    pub(super) fn bytes(&self) -> u64 {
        self.frames.len() as u64
    }

    /// The sender's checksum before the frame `number`, which must be one of its own or the next.
    pub(super) fn sum_before(&self, number: Offset) -> Sum {
        self.origin.told_by(&self.frames, number.0.saturating_sub(self.base.0) as usize)
    }

    /// Whether what is pushed once more of it is the same. Where it is not, the sender has begun anew.
    pub(super) fn holds(&self, pushed: &Pushed) -> bool {
        let from = |frames: u64| frames as usize * FRAME_LEN;
        let ours = self.frames.get(from(pushed.start.0.saturating_sub(self.base.0))..).unwrap_or(&[]);
        let theirs = pushed.body.get(from(self.base.0.saturating_sub(pushed.start.0))..).unwrap_or(&[]);
        // The sender's own frames are equal in all their bytes.
        let both = ours.len().min(theirs.len());
        ours[..both] == theirs[..both]
    }

    /// Adds the frames of a push behind its end, which `share` covers. Costs what is added, however much was there.
    pub(super) fn extended(mut self, pushed: Pushed, share: Share) -> Extended {
        let mut added = pushed.body;
        let held = self.end().0.saturating_sub(pushed.start.0) as usize;
        drop(added.split_to(added.len().min(held * FRAME_LEN)));
        self.share.merge(share);
        self.used = Instant::now();
        let (origin, mut whole) = (self.origin, Vec::new());
        // What was there before ended no transaction.
        let count = committed_frames(&added, LIBSQL_PAGE_SIZE);
        if count > 0 {
            let front = added.split_to(count * FRAME_LEN);
            self.origin = origin.told_by(&front, count);
            self.base.0 = self.end().0 + count as u64;
            whole.extend([std::mem::take(&mut self.frames), front].into_iter().filter(|piece| !piece.is_empty()));
        }
        // The body that these are of may be long, and they are kept for longer.
        self.frames.extend_from_slice(&added);
        let share = self.share.split(self.bytes());
        Extended { whole, origin, share, rest: self }
    }
}

/// What is known of the senders of one generation.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// Their stages, those used last at the end.
    staged: Vec<([u32; 2], Stage)>,
    /// The sum of our frames for senders whose words have the other order.
    pub(super) other_order: OtherOrder,
    /// How many checkpoints their databases have had.
    pub(super) sequences: Sequences,
}

impl Stages {
    /// The stage of the sender with these salts.
    pub(super) fn of(&self, salts: [u32; 2]) -> Option<&Stage> {
        self.staged.iter().find(|(known, _)| *known == salts).map(|(_, stage)| stage)
    }

    /// Takes out the stage of the sender with these salts.
    pub(super) fn take(&mut self, salts: [u32; 2]) -> Option<Stage> {
        let at = self.staged.iter().position(|(known, _)| *known == salts)?;
        Some(self.staged.remove(at).1)
    }

    /// Keeps a stage. Those that were not used for the longest time make room.
    pub(super) fn put(&mut self, salts: [u32; 2], stage: Stage) {
        self.forget(salts);
        self.staged.push((salts, stage));
        let mut bytes: u64 = self.staged.iter().map(|(_, stage)| stage.bytes()).sum();
        while self.staged.len() > STAGED_SENDERS_MAX || bytes > STAGED_BYTES_MAX && self.staged.len() > 1 {
            bytes -= self.staged.remove(0).1.bytes();
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
        self.staged.is_empty() && self.other_order == OtherOrder::default() && self.sequences == Sequences::default()
    }
}
