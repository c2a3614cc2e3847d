//! [`Retained`]: what was handed over of a database and is not known to be durable yet. When the log is rolled over meanwhile, it is
//! what has to be sent again to the next generation, from where the one before ended.

use std::collections::VecDeque;
use std::io;

use crate::api::LogSource;
use crate::format::Framing;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, WalHeader};
use crate::limits::{READ_BLOCK, RETAINED_BYTES_MAX};
use crate::offset::Offset;
use crate::stream::{Batch, Run};

/// A part of it.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// Whole transactions.
    Run(Run),
    /// A note of the source, made before what follows.
    Mark(LogSource),
}

/// See the [module](self). Invariant: the runs follow one another without a gap, and the first one follows `from`.
#[derive(Debug, Default)]
pub(super) struct Retained {
    kept: VecDeque<Kept>,
    /// Bytes of it in memory.
    bytes: u64,
    /// The checksum of the log before the first run; none where the log starts with it.
    from: Option<Chain>,
}

impl Retained {
    /// Of a log that goes on after this checksum, if it holds anything.
    pub(super) fn new(from: Option<Chain>) -> Retained {
        Retained { from, ..Retained::default() }
    }

    /// Adds what is handed over. What was added first is forgotten when it becomes too much.
    pub(super) fn add(&mut self, batch: &Batch) {
        for run in batch.runs() {
            self.bytes += held(run);
            self.kept.push_back(Kept::Run(run.clone()));
        }
        while self.bytes > RETAINED_BYTES_MAX && self.forget_first() {}
    }

    pub(super) fn add_mark(&mut self, mark: &LogSource) {
        self.kept.push_back(Kept::Mark(mark.clone()));
    }

    /// Forgets what is durable, which is all before this offset.
    pub(super) fn forget(&mut self, durable: Offset) {
        let is_durable = |kept: &Kept| matches!(kept, Kept::Run(run) if run.end <= durable);
        while self.kept.iter().find(|kept| matches!(kept, Kept::Run(_))).is_some_and(is_durable) {
            self.forget_first();
        }
    }

    /// Forgets the first run with the marks before it; false when there is none.
    fn forget_first(&mut self) -> bool {
        while let Some(kept) = self.kept.pop_front() {
            if let Kept::Run(run) = kept {
                self.bytes -= held(&run);
                self.from = Some(Chain::from_number(run.last.checksum));
                return true;
            }
        }
        false
    }

    /// Takes all that follows the commit with the checksum `end`: the offset after that commit if a run follows, and the parts; the
    /// first run may start before it. None when that commit is not known.
    pub(super) fn after(&mut self, end: Chain) -> Option<(Option<Offset>, VecDeque<Kept>)> {
        let first = self.kept.iter().find_map(|kept| match kept {
            Kept::Run(run) => Some(run.first),
            Kept::Mark(_) => None,
        });
        let mut found = (self.from == Some(end)).then_some((first, 0));
        for (at, kept) in self.kept.iter().enumerate() {
            let Kept::Run(run) = kept else { continue };
            if found.is_some() {
                break;
            }
            let commit = run.commits().find(|(_, commit)| Chain::from_number(commit.checksum) == end);
            found = commit.map(|(_, commit)| {
                let after = commit.end();
                (Some(after), if after == run.end { at + 1 } else { at })
            });
        }
        let (offset, from) = found?;
        let mut kept = std::mem::take(&mut self.kept);
        self.bytes = 0;
        kept.drain(..from);
        Some((offset, kept))
    }
}

fn held(run: &Run) -> u64 {
    run.slices.iter().map(|slice| slice.len() as u64).sum()
}

/// Gives `take` each frame of a run from offset `from` on: the header of its log, what the frame says, its bytes, and the checksum
/// before it.
///
/// # Errors
/// When the bytes of a large commit cannot be read.
pub(super) fn each_frame(
    run: &Run,
    from: Offset,
    mut take: impl FnMut(&WalHeader, &FrameHeader, &[u8], Chain),
) -> io::Result<()> {
    let Framing::Wal(Some(start)) = run.framing else {
        return Err(io::Error::other("frames of a log without a header"));
    };
    let frame_len = start.header.frame_len() as usize;
    let (mut before, mut offset) = (start.chain, run.first);
    let mut each = |bytes: &[u8]| {
        for frame in bytes.chunks_exact(frame_len) {
            let Some(head) = frame.first_chunk::<FRAME_HEADER_LEN>() else { continue };
            let claim = FrameHeader::decode(head);
            if offset >= from {
                take(&start.header, &claim, frame, before);
            }
            (before, offset) = (claim.chain, Offset(offset.0 + 1));
        }
    };
    let Some(large) = &run.large else {
        match &run.slices[..] {
            [one] => each(one),
            several => each(&several.concat()),
        }
        return Ok(());
    };
    let block = (READ_BLOCK / frame_len).max(1) * frame_len;
    let mut at = 0;
    while at < large.bytes() {
        let bytes = large.block(at, block)?;
        each(&bytes);
        at += bytes.len() as u64;
    }
    Ok(())
}
