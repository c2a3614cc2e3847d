//! The frames of a database on their way to a log: given its checksums, put together to commits, handed over.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;

use super::failure::MirrorError;
use super::source::{Out, Piece};
use crate::format::Framing;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, WalHeader, WalStart};
use crate::limits::{COMMIT_HELD_MAX, READ_BLOCK};
use crate::offset::Offset;
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
    /// Pieces that wait to be taken.
    waiting: Vec<Piece>,
}

impl Outlet {
    pub(super) fn new(
        (out, stall): (Out, Duration),
        end: Option<WalStart>,
        next: Offset,
        commit_bytes_max: u64,
        sums: Option<PageSums>,
    ) -> Outlet {
        let batcher = batcher(end, next, commit_bytes_max);
        let (bytes, touched, waiting) = (Vec::new(), Vec::new(), Vec::new());
        Outlet {
            out,
            stall,
            batcher,
            commit_bytes_max,
            end,
            next,
            committed: (end, next),
            bytes,
            touched,
            sums,
            waiting,
        }
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
        if !self.bytes.is_empty() {
            let mut batch = Batch::default();
            let sound = self.batcher.push(std::mem::take(&mut self.bytes).into(), &mut batch);
            sound.map_err(|error| match error {
                BatchError::Stream(error) => MirrorError::Received(error),
                error @ BatchError::Spool { .. } => MirrorError::Interrupted(error.to_string()),
            })?;
            if !batch.is_empty() {
                self.waiting.push(Piece::Batch(batch));
            }
        }
        Ok(self.send(self.stall))
    }

    /// Hands over something else, after what was handed over before.
    pub(super) fn piece(&mut self, piece: Piece) -> Handed {
        self.waiting.push(piece);
        self.send(self.stall)
    }

    /// Waits a while for the sink to take what waits.
    pub(super) fn wait(&mut self, patience: Duration) -> Handed {
        self.send(patience)
    }

    fn send(&mut self, patience: Duration) -> Handed {
        let deadline = Instant::now() + patience;
        while !self.waiting.is_empty() {
            match self.out.try_reserve() {
                Ok(place) => place.send(Ok(self.waiting.remove(0))),
                Err(TrySendError::Closed(())) => return Handed::Gone,
                Err(TrySendError::Full(())) if Instant::now() >= deadline => return Handed::Stalled,
                Err(TrySendError::Full(())) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        if self.out.is_closed() { Handed::Gone } else { Handed::Over }
    }
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
        (Outlet::new((out, stall), end, next, u64::MAX, Some(PageSums::new(1))), pieces)
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
