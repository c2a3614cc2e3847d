//! [`Batcher`]: verified runs of commits cut out of chunks of a stream, without copying them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::large::{LargeCommit, LargeCommits, Spill};
use crate::format::{Commit, Format, Framing, Item, ScanError, Scanner, Walk};
use crate::limits::{COMMIT_HELD_MAX, INDEX_INTERVAL, READ_BLOCK};
use crate::offset::{BytePos, Epoch, Offset};
use crate::segment::Entry;

/// A chunk shorter than this is small.
const SMALL_PIECE: usize = 1024;
/// Small chunks kept as they came; as many together are not small.
const SMALL_PIECES_MAX: usize = SMALL_PIECE;

/// Part of a verified stream, in order.
#[derive(Clone, Debug)]
pub enum Part {
    /// A segment header, with its bytes as they came.
    Header(Framing, Bytes),
    /// Commits.
    Run(Run),
}

/// Commits that follow one another without a gap, epochs not falling, each verified.
#[derive(Clone, Debug)]
pub struct Run {
    /// Offset of the first commit.
    pub first: Offset,
    /// The offset right after the last.
    pub end: Offset,
    /// Epoch of the first commit.
    pub epoch_first: Epoch,
    /// How many commits.
    pub commits: u64,
    /// Their bytes, as they came in from the network or a file; none of a large commit.
    pub slices: Vec<Bytes>,
    /// The only commit of the run, when it is too large for its bytes to be in memory.
    pub large: Option<LargeCommit>,
    /// How many bytes that is.
    pub bytes: u64,
    /// Where some of the commits start within the run: the first, then one in every 4 KiB or so.
    pub marks: Vec<Entry>,
    /// The last commit.
    pub last: Commit,
    /// What a walk over them starts with.
    pub framing: Framing,
    /// The header right before them, when they start a segment.
    pub header: Option<Bytes>,
}

/// What one or more chunks held.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Headers and runs, in stream order.
    pub parts: Vec<Part>,
}

impl Batch {
    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The runs in it.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.parts.iter().filter_map(|part| match part {
            Part::Run(run) => Some(run),
            Part::Header(..) => None,
        })
    }

    /// The raw bytes of all of it that are in memory, in order: those of a [large](Run::large) commit are not.
    pub fn slices(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter().flat_map(|part| match part {
            Part::Header(_, bytes) => std::slice::from_ref(bytes),
            Part::Run(run) => &run.slices,
        })
    }
}

/// Why a stream cannot be cut into batches any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It is not a sound log.
    #[error(transparent)]
    Stream(#[from] ScanError),
    /// A large commit cannot be kept until it is whole: there is no space for it.
    #[error("cannot keep a commit that is not whole yet, {received} bytes of it so far: {reason}")]
    Spool {
        /// How much of it was received.
        received: u64,
        /// Why not.
        reason: Arc<str>,
    },
}

/// Cuts a stream into [`Batch`]es. Chunks are kept, not copied, until the commits in them are whole.
#[derive(Debug)]
pub struct Batcher {
    scanner: Scanner<Walk>,
    /// Where large commits are kept.
    large: LargeCommits,
    /// A commit is large from here on.
    held_max: u64,
    /// The front of a large commit; the rope goes on after it.
    spill: Option<Spill>,
    /// Why a large commit could not be kept.
    failed: Option<BatchError>,
    /// The bytes from the last cut on.
    rope: VecDeque<Bytes>,
    /// How many pieces at the end of the rope are small.
    small: usize,
    /// Where in the stream the rope starts.
    cut: u64,
    /// A header that came and was not followed by a commit yet.
    header: Option<Bytes>,
}

impl Batcher {
    /// For a stream that goes on with `framing`, at offset `expected` if that is known. A WAL whose offset is not known
    /// must start with its header, and so with its first frame. Commits are held in memory until they are whole, whatever their
    /// size up to `commit_bytes_max`, unless they are [kept](Self::keeping) elsewhere.
    #[must_use]
    pub fn new(framing: impl Into<Framing>, expected: Option<Offset>, commit_bytes_max: u64) -> Self {
        let scanner = Scanner::new(Walk::new(framing.into(), expected, commit_bytes_max));
        let (large, held_max) = (LargeCommits::InMemory, COMMIT_HELD_MAX);
        let (rope, spill, failed, header) = Default::default();
        Batcher { scanner, large, held_max, spill, failed, rope, small: 0, cut: 0, header }
    }

    /// Keeps commits elsewhere than in memory of which more than `held_max` bytes are received before they are whole.
    #[must_use]
    pub fn keeping(self, large: LargeCommits, held_max: u64) -> Batcher {
        // Up to that it may be a header.
        let held_max = held_max.max(Walk::HEAD_MAX as u64);
        Batcher { large, held_max, ..self }
    }

    /// Bytes held in memory of a commit or header that is not whole yet.
    #[must_use]
    pub fn held(&self) -> u64 {
        match &self.failed {
            Some(_) => 0,
            None => self.scanner.trailing() - self.spill.as_ref().map_or(0, Spill::bytes),
        }
    }

    /// Whether the stream is on a boundary: nothing of an unfinished commit or header was received.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.scanner.trailing() == 0
    }

    /// Whether taking a chunk of `bytes` may write to a file, and so block.
    #[must_use]
    pub fn may_block(&self, bytes: usize) -> bool {
        let is_large = self.spill.is_some() || self.scanner.trailing() + bytes as u64 > self.held_max;
        is_large && matches!(self.large, LargeCommits::Spooled(_) | LargeCommits::Temporary)
    }

    /// Where the last whole commit or header ended, counted from the start of the stream.
    #[must_use]
    pub fn boundary(&self) -> BytePos {
        self.scanner.boundary()
    }

    /// What another stream would need to go on behind the last whole commit.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.scanner.format().framing()
    }

    /// Takes a chunk and adds to `batch` what became whole with it.
    ///
    /// # Errors
    /// When the chunk is not a sound continuation, or a large commit cannot be kept; `batch` holds all that was sound before.
    pub fn push(&mut self, chunk: Bytes, batch: &mut Batch) -> Result<(), BatchError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let sound = self.scan(chunk, batch)?;
        sound?;
        self.spill().map_err(|error| self.fail(&error))
    }

    /// Remembers that a large commit could not be kept: the stream cannot go on without it.
    fn fail(&mut self, error: &io::Error) -> BatchError {
        let failed = BatchError::Spool { received: self.scanner.trailing(), reason: error.to_string().into() };
        self.spill = None;
        self.failed.insert(failed).clone()
    }

    /// Adds to `batch` what becomes whole with a chunk.
    fn scan(&mut self, chunk: Bytes, batch: &mut Batch) -> Result<Result<(), ScanError>, BatchError> {
        self.hold(chunk.clone());
        let mut input = &chunk[..];
        let mut open: Option<Run> = None;
        let mut framing = self.framing();
        let result = loop {
            let at = self.scanner.boundary().0;
            match self.scanner.next(&mut input) {
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
                Ok(Some(Item::Header(header))) => {
                    self.close(open.take(), at, batch);
                    let bytes = join(self.split_to(self.scanner.boundary().0));
                    self.header = Some(bytes.clone());
                    framing = header;
                    batch.parts.push(Part::Header(header, bytes));
                }
                Ok(Some(Item::Commit(commit))) if self.spill.is_some() => {
                    self.close_large(commit, framing, batch).map_err(|error| self.fail(&error))?;
                    framing = self.framing();
                }
                Ok(Some(Item::Commit(commit))) => {
                    let run = match &mut open {
                        Some(run) if run.end == commit.first && run.last.epoch <= commit.epoch => run,
                        _ => {
                            self.close(open.take(), at, batch);
                            open.insert(Run::new(&commit, framing, self.header.take()))
                        }
                    };
                    run.extend(commit, at - self.cut);
                }
            }
        };
        self.close(open, self.scanner.boundary().0, batch);
        Ok(result)
    }

    /// Puts what is held of a large commit where that is kept, a block at a time.
    fn spill(&mut self) -> io::Result<()> {
        let is_due = match &self.spill {
            Some(_) => self.held() >= READ_BLOCK as u64,
            None => self.held() > self.held_max && !matches!(self.large, LargeCommits::InMemory),
        };
        if is_due { self.spill_to(self.cut + self.held()) } else { Ok(()) }
    }

    fn spill_to(&mut self, end: u64) -> io::Result<()> {
        let mut spill = match self.spill.take() {
            Some(spill) => spill,
            None => Spill::begin(&self.large, self.cut)?,
        };
        let pieces = self.split_to(end);
        spill.write(&pieces)?;
        self.spill = Some(spill);
        Ok(())
    }

    /// Ends a large commit, whose last bytes are at the front of the rope.
    fn close_large(&mut self, commit: Commit, framing: Framing, batch: &mut Batch) -> io::Result<()> {
        self.spill_to(self.scanner.boundary().0)?;
        let mut run = Run::new(&commit, framing, self.header.take());
        run.extend(commit, 0);
        run.bytes = commit.bytes;
        run.large = self.spill.take().and_then(Spill::finish);
        batch.parts.push(Part::Run(run));
        Ok(())
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// [`ScanError::Truncated`] when it ends inside a commit or header; the error of a push that failed.
    pub fn finish(&self) -> Result<(), ScanError> {
        self.scanner.finish()
    }

    /// Adds a chunk to the rope. A commit that comes in small chunks is put together now and then: each piece costs
    /// memory of its own, and keeps alive all that was received with it.
    fn hold(&mut self, chunk: Bytes) {
        if self.small == SMALL_PIECES_MAX {
            let pieces = self.rope.split_off(self.rope.len() - self.small);
            self.rope.push_back(join(pieces.into()));
            self.small = 0;
        }
        self.small = if chunk.len() < SMALL_PIECE { self.small + 1 } else { 0 };
        self.rope.push_back(chunk);
    }

    fn close(&mut self, run: Option<Run>, end: u64, batch: &mut Batch) {
        if let Some(mut run) = run {
            run.bytes = end - self.cut;
            run.slices = self.split_to(end);
            batch.parts.push(Part::Run(run));
        }
    }

    /// Takes the front of the rope up to `pos` of the stream.
    fn split_to(&mut self, pos: u64) -> Vec<Bytes> {
        let mut taken = Vec::with_capacity(self.rope.len());
        while self.cut < pos {
            let Some(front) = self.rope.front_mut() else { break };
            let want = usize::try_from(pos - self.cut).unwrap_or(usize::MAX);
            let piece = if front.len() <= want { self.rope.pop_front() } else { Some(front.split_to(want)) };
            let piece = piece.unwrap_or_default();
            self.cut += piece.len() as u64;
            taken.push(piece);
        }
        if self.rope.front().is_some_and(Bytes::is_empty) {
            self.rope.pop_front();
        }
        self.small = self.small.min(self.rope.len());
        taken
    }
}

fn join(slices: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(slices) {
        Ok([one]) => one,
        Err(several) => several.concat().into(),
    }
}

impl Run {
    fn new(first: &Commit, framing: Framing, header: Option<Bytes>) -> Run {
        Run {
            first: first.first,
            end: first.first,
            epoch_first: first.epoch,
            commits: 0,
            slices: Vec::new(),
            large: None,
            bytes: 0,
            marks: Vec::new(),
            last: *first,
            framing,
            header,
        }
    }

    #[inline]
    fn extend(&mut self, commit: Commit, at: u64) {
        if self.marks.last().is_none_or(|mark| at >= mark.value.0 + INDEX_INTERVAL) {
            self.marks.push(Entry { key: commit.first, value: BytePos(at) });
        }
        self.end = commit.end();
        self.commits += 1;
        self.last = commit;
    }

    /// Its commits one by one, each with its position in the run; checksums are checked once more on the way.
    pub fn commits(&self) -> impl Iterator<Item = (BytePos, Commit)> {
        let mut scanner = Scanner::new(Walk::new(self.framing, Some(self.first), u64::MAX));
        let mut slices = self.slices.iter();
        let mut input: &[u8] = &[];
        // A large one is checked again by those who read its bytes.
        let mut large = self.slices.is_empty().then_some((BytePos(0), self.last));
        std::iter::from_fn(move || {
            if let Some(large) = large.take() {
                return Some(large);
            }
            loop {
                let at = scanner.boundary();
                match scanner.next(&mut input) {
                    Ok(Some(Item::Commit(commit))) => return Some((at, commit)),
                    Ok(None) => input = slices.next()?,
                    _ => return None,
                }
            }
        })
    }

    /// The rest of the run from the commit that starts at byte `at` of it with `next`, epoch `epoch`, `skipped`
    /// commits into it.
    #[must_use]
    pub fn after(&self, at: BytePos, next: &Commit, skipped: u64) -> Run {
        let mut skip = at.0;
        let mut slices = Vec::with_capacity(self.slices.len());
        for slice in &self.slices {
            let count = skip.min(slice.len() as u64);
            skip -= count;
            if count < slice.len() as u64 {
                slices.push(slice.slice(count as usize..));
            }
        }
        let framing = match self.framing {
            Framing::Commitlog(_) => self.framing,
            Framing::Wal(_) => {
                let before = self.commits().take_while(|(pos, _)| *pos < at).last();
                before.map_or(self.framing, |(_, commit)| self.framing.behind(&commit))
            }
        };
        let kept = self.marks.iter().filter(|mark| mark.value >= at);
        let marks = kept.map(|mark| Entry { key: mark.key, value: BytePos(mark.value.0 - at.0) }).collect();
        Run {
            first: next.first,
            epoch_first: next.epoch,
            commits: self.commits - skipped,
            slices,
            large: self.large.clone().filter(|_| at == BytePos(0)),
            bytes: self.bytes - at.0,
            marks,
            framing,
            header: self.header.clone().filter(|_| at == BytePos(0)),
            ..*self
        }
    }

    /// Cuts the run before the first commit that starts at byte `at` of it or later, and not at its front; `None` when
    /// there is none.
    #[must_use]
    pub fn split(&self, at: BytePos) -> Option<(Run, Run)> {
        let mut last = None;
        for (commits, (pos, commit)) in self.commits().enumerate() {
            if let Some(last) = last.filter(|_| pos >= at) {
                let (mut left, mut slices) = (pos.0, Vec::new());
                for slice in &self.slices {
                    let count = left.min(slice.len() as u64);
                    left -= count;
                    if count > 0 {
                        slices.push(slice.slice(..count as usize));
                    }
                }
                let marks = self.marks.iter().copied().filter(|mark| mark.value < pos).collect();
                let (end, header, commits) = (commit.first, self.header.clone(), commits as u64);
                let large = None;
                let front = Run { end, commits, slices, large, bytes: pos.0, marks, last, header, ..*self };
                return Some((front, self.after(pos, &commit, commits)));
            }
            last = Some(commit);
        }
        None
    }
}
