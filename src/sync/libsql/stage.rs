//! Frames of transactions that are not whole yet, per sender. They are in no log and are not pulled; a crash may lose them,
//! and the sender is asked for them again. Of a large transaction all but the last frames are in a file without a name, as the
//! log would hold them.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::pushed::{FRAME_LEN, OtherOrder, Pushed, Sum, chained, last_chain};
use super::sequence::Sequences;
use crate::format::wal::{Chain, WalHeader, WalStart};
use crate::limits::{LIBSQL_PAGE_SIZE, STAGE_IDLE, STAGED_BYTES_MAX, STAGED_SENDERS_MAX};
use crate::mirror::Share;
use crate::offset::Offset;
use crate::repo::{Repo, RepoFile};
use crate::sqlite::wal_frames::committed_frames;
use crate::stream::create_spool;

/// The unfinished transaction of one sender.
#[derive(Debug)]
pub(super) struct Stage {
    /// The end of the log when it began.
    base: Offset,
    /// The frames in front, if it is large.
    spool: Option<StageSpool>,
    /// The number of the first frame in memory.
    first: Offset,
    /// The sender's checksum before that.
    origin: Sum,
    /// The frames in memory, header and page each, with checksums that are right.
    frames: BytesMut,
    /// The memory they take.
    share: Share,
    used: Instant,
}

/// The front of a large transaction, in a file: the bytes of a stream for the log.
#[derive(Debug)]
pub(super) struct StageSpool {
    file: Arc<dyn RepoFile>,
    bytes: u64,
    /// How the log goes on after them.
    end: WalStart,
}

impl StageSpool {
    /// Adds frames in which the checksums of the sender go on from `theirs`, if it sums up words of the order of the log.
    fn append(&mut self, frames: BytesMut, theirs: Option<Chain>) -> io::Result<()> {
        for piece in chained(self.end, theirs, vec![frames]) {
            self.file.write_at(&mut [IoSlice::new(&piece)], self.bytes)?;
            self.bytes += piece.len() as u64;
            self.end.chain = last_chain(&piece).unwrap_or(self.end.chain);
        }
        Ok(())
    }

    /// The file, with `whole` at its end: a stream of transactions, where the sender's checksum is `theirs` before them.
    pub(super) fn finish(mut self, whole: Vec<BytesMut>, mut theirs: Option<Chain>) -> io::Result<Arc<dyn RepoFile>> {
        for piece in whole {
            let next = theirs.and(last_chain(&piece)).or(theirs);
            self.append(piece, theirs)?;
            theirs = next;
        }
        Ok(self.file)
    }
}

/// What became of a stage with more frames.
pub(super) struct Extended {
    /// The transactions that are whole now, one piece after the other.
    pub(super) whole: Vec<BytesMut>,
    /// What comes before them, if that is in a file.
    pub(super) spool: Option<StageSpool>,
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
        let (spool, first, frames, share) = (None, base, BytesMut::new(), Share::default());
        Stage { base, spool, first, origin, frames, share, used: Instant::now() }
    }

    pub(super) fn base(&self) -> Offset {
        self.base
    }

    /// The number after its last frame.
    pub(super) fn end(&self) -> Offset {
        Offset(self.first.0 + (self.frames.len() / FRAME_LEN) as u64)
    }

    /// The bytes of its frames in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.frames.len() as u64
    }

    /// The sender's checksum before the frame `number`, which must be one in memory or the next.
    pub(super) fn sum_before(&self, number: Offset) -> Sum {
        self.origin.told_by(&self.frames, number.0.saturating_sub(self.first.0) as usize)
    }

    /// Whether what is pushed once more of it is the same. Where it is not, the sender has begun anew; so it has when it pushes
    /// frames again that are in a file.
    pub(super) fn holds(&self, pushed: &Pushed) -> bool {
        if self.spool.is_some() && pushed.start < self.first {
            return false;
        }
        let from = |frames: u64| frames as usize * FRAME_LEN;
        let ours = self.frames.get(from(pushed.start.0.saturating_sub(self.first.0))..).unwrap_or(&[]);
        let theirs = pushed.body.get(from(self.first.0.saturating_sub(pushed.start.0))..).unwrap_or(&[]);
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
        let (origin, mut whole, mut spool) = (self.origin, Vec::new(), None);
        // What was there before ended no transaction.
        let count = committed_frames(&added, LIBSQL_PAGE_SIZE);
        if count > 0 {
            let front = added.split_to(count * FRAME_LEN);
            self.origin = origin.told_by(&front, count);
            self.base.0 = self.end().0 + count as u64;
            self.first = self.base;
            spool = self.spool.take();
            whole.extend([std::mem::take(&mut self.frames), front].into_iter().filter(|piece| !piece.is_empty()));
        }
        // The body that these are of may be long, and they are kept for longer.
        self.frames.extend_from_slice(&added);
        let share = self.share.split(self.bytes());
        Extended { whole, spool, origin, share, rest: self }
    }

    /// Whether the memory that its frames take is part of the budget.
    pub(super) fn is_covered(&self) -> bool {
        self.share.covers(self.bytes())
    }

    /// The bytes of all of its frames.
    pub(super) fn bytes_in_all(&self) -> u64 {
        (self.end().0 - self.base.0) * FRAME_LEN as u64
    }

    /// Whether frames of it are in a file.
    pub(super) fn has_file(&self) -> bool {
        self.spool.is_some()
    }

    /// Whether so many bytes more make it so large that frames of it go to a file.
    pub(super) fn is_large_with(&self, bytes: u64, held_max: u64) -> bool {
        self.bytes() + bytes > held_max
    }

    /// Puts all but the last frames in a file in `dir`, if more than `held_max` bytes of them are in memory. `start` is how the
    /// log went on when the transaction began; `is_new` says that its header comes first then. Blocks.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn spill(&mut self, dir: &dyn Repo, held_max: u64, (start, is_new): (WalStart, bool)) -> io::Result<()> {
        if !self.is_large_with(0, held_max) {
            return Ok(());
        }
        let mut spool = match self.spool.take() {
            Some(spool) => spool,
            None => {
                let (file, header) =
                    (create_spool(dir)?, if is_new { start.header.encode().to_vec() } else { Vec::new() });
                file.write_at(&mut [IoSlice::new(&header)], 0)?;
                StageSpool { file, bytes: header.len() as u64, end: start }
            }
        };
        // A push that is sent again is compared with those.
        let kept = (held_max / 2) as usize / FRAME_LEN;
        let count = (self.frames.len() / FRAME_LEN).saturating_sub(kept);
        let front = self.frames.split_to(count * FRAME_LEN);
        let after = self.origin.told_by(&front, count);
        let theirs = (self.origin.big_endian == start.header.big_endian).then_some(self.origin.chain);
        spool.append(front, theirs)?;
        (self.origin, self.first.0, self.spool) = (after, self.first.0 + count as u64, Some(spool));
        // What is left must not keep alive the memory of all.
        self.frames = BytesMut::from(&self.frames[..]);
        drop(self.share.split(self.bytes()));
        Ok(())
    }

    /// How the log went on when the transaction began, if that was fixed by frames in a file.
    pub(super) fn header(&self) -> Option<WalHeader> {
        self.spool.as_ref().map(|spool| spool.end.header)
    }
}

/// What is known of the senders of one generation.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// Their stages, those used last at the end.
    staged: Vec<([u32; 2], Stage)>,
    /// Files of what was forgotten. To close one frees all of it on the disk, which may take long.
    unclosed: Vec<Arc<dyn RepoFile>>,
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
            let (_, oldest) = self.staged.remove(0);
            bytes -= oldest.bytes();
            self.discard(oldest);
        }
    }

    /// Forgets what the sender with these salts has staged.
    pub(super) fn forget(&mut self, salts: [u32; 2]) {
        if let Some(stage) = self.take(salts) {
            self.discard(stage);
        }
    }

    /// Forgets those whose senders have been silent for long.
    pub(super) fn prune(&mut self) {
        let silent: Vec<_> = self.staged.extract_if(.., |(_, stage)| stage.used.elapsed() >= STAGE_IDLE).collect();
        silent.into_iter().for_each(|(_, stage)| self.discard(stage));
    }

    /// How long the sender has been silent that holds memory and was silent for longest.
    pub(super) fn idle(&self) -> Option<Duration> {
        self.staged.iter().find(|(_, stage)| stage.bytes() > 0).map(|(_, stage)| stage.used.elapsed())
    }

    /// Forgets what that sender has staged.
    pub(super) fn give_up_idlest(&mut self) {
        if let Some(at) = self.staged.iter().position(|(_, stage)| stage.bytes() > 0) {
            let (_, idlest) = self.staged.remove(at);
            self.discard(idlest);
        }
    }

    /// Gives back the memory of a stage, and keeps its file, if it has one, to be closed.
    fn discard(&mut self, stage: Stage) {
        self.unclosed.extend(stage.spool.map(|spool| spool.file));
    }

    /// Keeps a file until it is closed where that may block.
    pub(super) fn close_later(&mut self, file: Arc<dyn RepoFile>) {
        self.unclosed.push(file);
    }

    /// The files that are to be closed, where that may block.
    pub(super) fn take_unclosed(&mut self) -> Vec<Arc<dyn RepoFile>> {
        std::mem::take(&mut self.unclosed)
    }

    /// Whether anything is staged, or a file of it is still open.
    pub(super) fn has_staged(&self) -> bool {
        !self.staged.is_empty() || !self.unclosed.is_empty()
    }

    /// Whether nothing would be lost with it.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_staged() && self.other_order == OtherOrder::default() && self.sequences == Sequences::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::{self, ThreadId};

    use tokio::sync::Mutex;
    use tokio::time::advance;

    use super::*;
    use crate::limits::STAGED_WAIT;
    use crate::mirror::{Registry, Settings};
    use crate::offset::Generation;
    use crate::repo::MemRepo;
    use crate::sqlite::wal_append::new_header;
    use crate::sync::libsql::LibSql;

    /// A file that says where it is closed.
    #[derive(Debug)]
    struct Closing(Sender<ThreadId>);

    impl Drop for Closing {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }

    impl RepoFile for Closing {
        fn bytes(&self) -> io::Result<u64> {
            Ok(0)
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }

        fn write_at(&self, _: &mut [IoSlice<'_>], _: u64) -> io::Result<()> {
            Ok(())
        }

        fn truncate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A server where a sender has staged a large transaction, of which this much is in memory, and where its file is closed.
    async fn staged(memory: u64) -> (LibSql, Receiver<ThreadId>) {
        let settings = Settings { memory_max: 2 << 20, ..Settings::default() };
        let registry = Arc::new(Registry::open(Arc::new(MemRepo::default()), settings).unwrap());
        let libsql = LibSql::new(registry);
        let ((closing, closed), chain) = (channel(), Chain::default());
        let spool = StageSpool {
            file: Arc::new(Closing(closing)),
            bytes: 0,
            end: WalStart::first(new_header(LIBSQL_PAGE_SIZE, 0)),
        };
        let stage = Stage {
            spool: Some(spool),
            frames: BytesMut::zeroed(memory as usize),
            share: libsql.registry.reserve(memory).await.unwrap(),
            ..Stage::new(Offset(1), Sum { chain, big_endian: false })
        };
        let mut stages = Stages::default();
        stages.put([1, 2], stage);
        libsql.stages.lock().unwrap().insert(("id".to_owned(), Generation(1)), Arc::new(Mutex::new(stages)));
        libsql.watch();
        (libsql, closed)
    }

    /// Time goes on until the file is closed.
    async fn closed_by(closed: &Receiver<ThreadId>) -> ThreadId {
        loop {
            tokio::task::yield_now().await;
            if let Ok(thread) = closed.try_recv() {
                return thread;
            }
            advance(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_of_a_silent_sender_is_closed_where_that_may_block() {
        let (_libsql, closed) = staged(0).await;
        assert_ne!(closed_by(&closed).await, thread::current().id());
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_of_a_sender_whose_memory_another_one_needs_is_closed_where_that_may_block() {
        let memory = 100 << 10;
        let (libsql, closed) = staged(memory).await;
        advance(STAGED_WAIT).await;
        assert!(libsql.give_up_idlest());
        assert!(closed.try_recv().is_err(), "it must not be closed here");
        assert_ne!(closed_by(&closed).await, thread::current().id());
    }
}
