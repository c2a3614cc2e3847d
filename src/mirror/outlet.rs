//! The frames of a database on their way to a log: given its checksums, put together to commits, handed over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;

use super::failure::MirrorError;
use super::retained::{self, Kept, Retained};
use super::source::{Out, Piece};
use super::step::{Step, Steps};
use crate::api::LogSource;
use crate::format::Framing;
use crate::format::wal::{Chain, FIRST_FRAME, FRAME_HEADER_LEN, FrameHeader, WalHeader, WalStart};
use crate::limits::{COMMIT_HELD_MAX, READ_BLOCK, RETAINED_BYTES_MAX, WAITING_MAX};
use crate::offset::{Generation, Offset};
use crate::sqlite::page_sums::PageSums;
use crate::stream::{Batch, BatchError, Batcher, LargeCommits};

/// How long a sink may take nothing before the locks of a database that is followed are let go.
pub(super) const STALL: Duration = Duration::from_millis(100);
/// For a database that is read once: what is held is held until the sink has it.
pub(super) const NO_STALL: Duration = Duration::from_hours(24 * 365);

/// What became of what was handed over.
#[derive(Debug)]
pub(super) enum Handed {
    Over,
    /// The sink takes nothing now: [`Outlet::wait`] goes on.
    Stalled,
    /// Nobody takes anything any more.
    Gone,
}

/// Where the frames of a database become those of a log.
pub(super) struct Outlet {
    out: Out,
    /// How long the sink may take nothing.
    stall: Duration,
    batcher: Batcher,
    commit_bytes_max: u64,
    /// The generation of the log.
    generation: Generation,
    /// How the log goes on; none while it has no header.
    end: Option<WalStart>,
    next: Offset,
    /// The same after the last commit.
    committed: (Option<WalStart>, Offset),
    bytes: Vec<u8>,
    /// Sums of the pages of the transaction that is under way.
    touched: Vec<(u32, u64)>,
    /// What is known of the pages of the log's database after the last commit.
    pub(super) sums: Option<PageSums>,
    /// Pieces that wait to be taken, and how many bytes of batches.
    waiting: VecDeque<Piece>,
    waiting_bytes: u64,
    /// So many may wait without keeping others up.
    room: u64,
    /// When a piece was taken last, or none waited.
    taken: Instant,
    retained: Retained,
    steps: Arc<Steps>,
    /// Whether the log went on to a generation that this cannot go on in.
    left: bool,
}

impl Outlet {
    pub(super) fn new(
        (out, stall): (Out, Duration),
        (generation, end, next): (Generation, Option<WalStart>, Offset),
        commit_bytes_max: u64,
        sums: Option<PageSums>,
        steps: Arc<Steps>,
    ) -> Outlet {
        let batcher = batcher(end, next, commit_bytes_max);
        let (bytes, touched, waiting) = (Vec::new(), Vec::new(), VecDeque::new());
        let room = if stall == NO_STALL { 0 } else { RETAINED_BYTES_MAX };
        let retained = Retained::new(end.map(|end| end.chain));
        Outlet {
            out,
            stall,
            batcher,
            commit_bytes_max,
            generation,
            end,
            next,
            committed: (end, next),
            bytes,
            touched,
            sums,
            waiting,
            waiting_bytes: 0,
            room,
            taken: Instant::now(),
            retained,
            steps,
            left: false,
        }
    }

    /// The generation of the log.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// How the log goes on after the last commit, and where.
    pub(super) fn committed(&self) -> (Option<WalStart>, Offset) {
        self.committed
    }

    /// The offset of the frame that is added next.
    pub(super) fn next(&self) -> Offset {
        self.next
    }

    /// Forgets what belongs to a transaction that is not whole.
    pub(super) fn give_up(&mut self) {
        (self.end, self.next) = self.committed;
        self.bytes.clear();
        self.touched.clear();
        self.batcher = batcher(self.end, self.next, self.commit_bytes_max);
    }

    /// Adds a frame of a WAL with this header, as it is there after the checksum `before`.
    pub(super) fn frame(&mut self, header: &WalHeader, claim: &FrameHeader, frame: &[u8], before: Chain) {
        let end = self.begin(header);
        let page = &frame[FRAME_HEADER_LEN..];
        if end.header == *header && end.chain == before {
            self.bytes.extend_from_slice(frame);
            self.added(claim.page, claim.size, self.sum_of(page), claim.chain);
        } else if end.header.big_endian == header.big_endian {
            // After the same bytes two sums differ by what became of their difference.
            let chain = claim.chain.plus(end.chain.minus(before).carried(8 + page.len() as u64));
            self.bytes.extend_from_slice(&FrameHeader { salts: end.header.salts, chain, ..*claim }.encode());
            self.bytes.extend_from_slice(page);
            self.added(claim.page, claim.size, self.sum_of(page), chain);
        } else {
            self.page(header, claim.page, claim.size, (page, self.sum_of(page)));
        }
    }

    fn sum_of(&self, content: &[u8]) -> Option<u64> {
        self.sums.as_ref().map(|sums| sums.sum_of(content))
    }

    /// Adds a page, with its sum if that is known; `size` is that of the database when it ends a transaction, else 0. A log that
    /// has no header yet takes this one.
    pub(super) fn page(&mut self, header: &WalHeader, number: u32, size: u32, (content, sum): (&[u8], Option<u64>)) {
        let end = self.begin(header);
        let (head, chain) = end.header.frame(end.chain, number, size, content);
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(content);
        self.added(number, size, sum, chain);
    }

    fn begin(&mut self, header: &WalHeader) -> WalStart {
        if self.end.is_none() {
            self.bytes.extend_from_slice(&header.encode());
        }
        *self.end.get_or_insert(WalStart::first(*header))
    }

    fn added(&mut self, page: u32, size: u32, sum: Option<u64>, chain: Chain) {
        if let Some(end) = &mut self.end {
            end.chain = chain;
        }
        self.next = Offset(self.next.0 + 1);
        self.touched.extend(sum.map(|sum| (page, sum)));
        if size > 0 {
            self.committed = (self.end, self.next);
            self.note(size);
        }
    }

    fn note(&mut self, size: u32) {
        let touched = std::mem::take(&mut self.touched);
        let noted = self.sums.as_mut().map(|sums| {
            touched.iter().try_for_each(|(page, sum)| sums.set(*page, *sum)).and_then(|()| sums.resize(size))
        });
        if let Some(Err(error)) = noted {
            log::warn!("the checksums of pages cannot be kept, and are asked for again when they are needed: {error}");
            self.sums = None;
        }
    }

    /// Whether so much was added that it should be handed over.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= READ_BLOCK
    }

    /// Hands over what was added, as far as it makes whole commits.
    ///
    /// # Errors
    /// When it is not sound.
    pub(super) fn hand_over(&mut self) -> Result<Handed, MirrorError> {
        self.gather()?;
        Ok(self.send(self.stall))
    }

    /// Has what was added wait to be taken.
    fn gather(&mut self) -> Result<(), MirrorError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        let sound = self.batcher.push(std::mem::take(&mut self.bytes).into(), &mut batch);
        sound.map_err(|error| match error {
            BatchError::Stream(error) => MirrorError::Received(error),
            error @ BatchError::Spool { .. } => MirrorError::Interrupted(error.to_string()),
        })?;
        if !batch.is_empty() {
            self.retained.add(&batch);
            self.waiting_bytes += bytes_of(&batch);
            self.waiting.push_back(Piece::Batch(batch));
        }
        Ok(())
    }

    /// Hands over something else, after what was handed over before.
    pub(super) fn piece(&mut self, piece: Piece) -> Handed {
        if let Piece::Mark(mark) = &piece {
            self.retained.add_mark(mark);
        }
        self.waiting.push_back(piece);
        self.send(self.stall)
    }

    /// Waits a while for the sink to take all that waits.
    pub(super) fn wait(&mut self, patience: Duration) -> Handed {
        let deadline = Instant::now() + patience;
        loop {
            match self.offer() {
                Some(handed) => return handed,
                None if Instant::now() >= deadline => return Handed::Stalled,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Whether something waits to be taken.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Lets some wait, for a while; when it is too much or too long, waits itself until the sink takes nothing for `stall`.
    fn send(&mut self, stall: Duration) -> Handed {
        loop {
            match self.offer() {
                Some(handed) => return handed,
                None if self.waiting_bytes < self.room && self.taken.elapsed() < WAITING_MAX => return Handed::Over,
                None if self.taken.elapsed() >= stall => return Handed::Stalled,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Hands over what the sink takes at once; none while something is left.
    fn offer(&mut self) -> Option<Handed> {
        self.retained.forget(self.steps.durable());
        self.step_if_wanted();
        if self.left {
            return Some(Handed::Gone);
        }
        while !self.waiting.is_empty() {
            let place = match self.out.try_reserve() {
                Ok(place) => place,
                Err(TrySendError::Closed(())) => return Some(Handed::Gone),
                Err(TrySendError::Full(())) => return None,
            };
            if let Some(piece) = self.waiting.pop_front() {
                if let Piece::Batch(batch) = &piece {
                    self.waiting_bytes -= bytes_of(batch);
                }
                place.send(Ok(piece));
            }
            self.taken = Instant::now();
        }
        self.taken = Instant::now();
        Some(if self.out.is_closed() { Handed::Gone } else { Handed::Over })
    }

    /// Goes on in the next generation of the log if that is wanted, once a transaction is whole.
    fn step_if_wanted(&mut self) {
        if !self.bytes.is_empty() || self.next != self.committed.1 {
            return;
        }
        let Some(step) = self.steps.take() else {
            return;
        };
        match self.step(step) {
            Ok(true) => {}
            Ok(false) => {
                log::info!(
                    "generation {} starts from what was not sent here: asking what the sink holds",
                    step.generation
                );
                self.left = true;
            }
            Err(error) => {
                log::warn!("cannot send again what is not in generation {}: {error}", step.generation);
                self.left = true;
            }
        }
    }

    /// False when it is not known what follows the end of the generation before.
    fn step(&mut self, step: Step) -> Result<bool, MirrorError> {
        let Some((after, kept)) = self.retained.after(step.folded) else {
            return Ok(false);
        };
        let after = after.unwrap_or(self.next);
        self.generation = step.generation;
        (self.end, self.next, self.committed) = (None, FIRST_FRAME, (None, FIRST_FRAME));
        self.batcher = batcher(None, FIRST_FRAME, self.commit_bytes_max);
        self.retained = Retained::default();
        self.steps.set_durable(FIRST_FRAME);
        self.waiting.retain(|piece| matches!(piece, Piece::Compared { .. }));
        self.waiting_bytes = 0;
        self.waiting.push_back(Piece::Stepped(after));
        for kept in kept {
            match kept {
                Kept::Mark(mark) => self.mark_again(mark),
                Kept::Run(run) => {
                    let mut failed = None;
                    let read = retained::each_frame(&run, after, |header, claim, frame, before| {
                        self.frame(header, claim, frame, before);
                        if self.is_full() {
                            failed = failed.take().or(self.gather().err());
                        }
                    });
                    failed.map_or(Ok(()), Err)?;
                    read.map_err(|error| MirrorError::Interrupted(error.to_string()))?;
                    self.gather()?;
                }
            }
        }
        Ok(true)
    }

    /// The same note for where the log is now.
    fn mark_again(&mut self, mark: LogSource) {
        let (end, offset) = self.committed;
        // Before the first frame the checksum is that of whichever header the log takes.
        let log_checksum = end.map_or(mark.log_checksum, |end| format!("{:016x}", end.chain.number()));
        let mark = LogSource { generation: self.generation, offset, log_checksum, ..mark };
        self.retained.add_mark(&mark);
        self.waiting.push_back(Piece::Mark(Box::new(mark)));
    }
}

/// Bytes of a batch in memory.
fn bytes_of(batch: &Batch) -> u64 {
    batch.slices().map(|slice| slice.len() as u64).sum()
}

/// A large transaction is kept in a temporary file until it is whole: where it comes from it may be written over.
fn batcher(end: Option<WalStart>, next: Offset, commit_bytes_max: u64) -> Batcher {
    Batcher::new(Framing::Wal(end), Some(next), commit_bytes_max).keeping(LargeCommits::Temporary, COMMIT_HELD_MAX)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::format::database;

    const HEADER: WalHeader = WalHeader { big_endian: false, page_size: 4096, sequence: 3, salts: [5, 6] };

    fn outlet(stall: Duration, end: Option<WalStart>) -> (Outlet, mpsc::Receiver<Result<Piece, MirrorError>>) {
        let (out, pieces) = mpsc::channel(1);
        let next = end.map_or(Offset(1), |_| Offset(7));
        let log = (Generation::FIRST, end, next);
        (Outlet::new((out, stall), log, u64::MAX, Some(PageSums::new(1)), Arc::default()), pieces)
    }

    /// A transaction of page 1 in the log of a source, and the checksum after it.
    fn add(outlet: &mut Outlet, before: Chain) -> Chain {
        let page = database::empty(4096);
        let (head, after) = HEADER.frame(before, 1, 1, &page);
        outlet.frame(&HEADER, &FrameHeader::decode(&head), &[&head[..], &page].concat(), before);
        after
    }

    #[test]
    fn a_sink_that_takes_nothing_is_waited_for_only_where_no_lock_is_to_be_let_go() {
        let (mut outlet, mut pieces) = outlet(Duration::from_millis(1), None);
        let chain = add(&mut outlet, HEADER.seed());
        assert!(matches!(outlet.hand_over(), Ok(Handed::Over)));
        let chain = add(&mut outlet, chain);
        assert!(matches!(outlet.hand_over(), Ok(Handed::Over)), "some may wait");
        assert!(matches!(pieces.try_recv(), Ok(Ok(Piece::Batch(_)))) && outlet.is_waiting());
        assert!(matches!(outlet.wait(Duration::ZERO), Handed::Over) && !outlet.is_waiting());
        outlet.room = 0;
        add(&mut outlet, chain);
        assert!(matches!(outlet.hand_over(), Ok(Handed::Stalled)));
        assert!(pieces.blocking_recv().is_some());
        assert!(matches!(outlet.wait(Duration::ZERO), Handed::Over));
        drop(pieces);
        assert!(matches!(outlet.wait(Duration::ZERO), Handed::Gone));

        let (mut outlet, mut pieces) = self::outlet(NO_STALL, None);
        let chain = add(&mut outlet, HEADER.seed());
        assert!(matches!(outlet.hand_over(), Ok(Handed::Over)));
        add(&mut outlet, chain);
        let taker = std::thread::spawn(move || {
            std::thread::sleep(STALL * 2);
            (pieces.blocking_recv().is_some(), pieces)
        });
        assert!(matches!(outlet.hand_over(), Ok(Handed::Over)));
        assert!(taker.join().expect("it has ended").0);
    }

    #[test]
    fn frames_of_any_wal_continue_the_checksums_of_the_log() {
        for big_endian in [false, true] {
            let log = WalHeader { big_endian, page_size: 4096, sequence: 0, salts: [1, 2] };
            let (mut outlet, mut pieces) = outlet(STALL, Some(WalStart { header: log, chain: Chain::from_number(77) }));
            add(&mut outlet, Chain::from_number(99));
            // The batcher checks them once more.
            assert!(matches!(outlet.hand_over(), Ok(Handed::Over)));
            let Some(Ok(Piece::Batch(batch))) = pieces.blocking_recv() else { panic!("a batch") };
            assert_eq!(batch.runs().map(|run| (run.first, run.end)).collect::<Vec<_>>(), [(Offset(7), Offset(8))]);
            let sums = outlet.sums.as_ref().expect("kept");
            assert_eq!((sums.pages(), sums.get(1)), (1, Some(sums.sum_of(&database::empty(4096)))));
        }
    }

    #[test]
    fn what_is_given_up_leaves_no_trace() {
        let (mut outlet, _pieces) = outlet(STALL, None);
        add(&mut outlet, HEADER.seed());
        let committed = outlet.committed();
        outlet.page(&HEADER, 2, 0, (&[9; 4096], Some(9)));
        assert_ne!(outlet.next(), committed.1);
        outlet.give_up();
        assert_eq!((outlet.committed(), outlet.next()), (committed, committed.1));
        assert!(outlet.touched.is_empty() && outlet.bytes.is_empty());
    }
}
