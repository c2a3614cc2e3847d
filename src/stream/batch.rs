//! [`Batcher`]: verified runs of commits cut out of chunks of a stream, without copying them.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::format::{Commit, Framing, Item, ScanError, Scanner, Walk};
use crate::limits::INDEX_INTERVAL;
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
    /// Their bytes, as they came in from the network or a file.
    pub slices: Vec<Bytes>,
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

    /// The raw bytes of all of it, in order.
    pub fn slices(&self) -> impl Iterator<Item = &Bytes> {
        self.parts.iter().flat_map(|part| match part {
            Part::Header(_, bytes) => std::slice::from_ref(bytes),
            Part::Run(run) => &run.slices,
        })
    }
}

/// Cuts a stream into [`Batch`]es. Chunks are kept, not copied, until the commits in them are whole.
#[derive(Debug)]
pub struct Batcher {
    scanner: Scanner<Walk>,
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
    /// must start with its header, and so with its first frame.
    #[must_use]
    pub fn new(framing: impl Into<Framing>, expected: Option<Offset>, commit_bytes_max: u64) -> Self {
        let scanner = Scanner::new(Walk::new(framing.into(), expected, commit_bytes_max));
        Batcher { scanner, rope: VecDeque::new(), small: 0, cut: 0, header: None }
    }

    /// Bytes held of a commit or header that is not whole yet; 0 on a boundary.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.scanner.trailing()
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
    /// When the chunk is not a sound continuation; `batch` holds all that was sound before it.
    pub fn push(&mut self, chunk: Bytes, batch: &mut Batch) -> Result<(), ScanError> {
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
        result
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
        std::iter::from_fn(move || {
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
                let front = Run { end, commits, slices, bytes: pos.0, marks, last, header, ..*self };
                return Some((front, self.after(pos, &commit, commits)));
            }
            last = Some(commit);
        }
        None
    }
}
