//! Checking one piece of a segment, and putting the pieces of one segment together.

use std::io;

use super::index::{IndexCheck, IndexVerdict};
use super::plan::Piece;
use crate::format::{Commit, Framing};
use crate::limits::SEGMENT_FAULTS_MAX;
use crate::offset::{BytePos, Epoch, Offset};
use crate::repo::Repo;
use crate::segment::{Entry, SegmentReader};
use crate::stream::{Fault, FaultKind, Placed, Span, SurveyError, Tail, Visit, sound_commit_behind, walk, walk_span};

/// Commits counted, and where they end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) commits: u64,
    pub(super) entries: u64,
    /// The offset right after the last of them.
    pub(super) next: Offset,
    /// The byte right after it.
    pub(super) at: BytePos,
    /// Terms of the first and the last of them.
    pub(super) epochs: Option<(Epoch, Epoch)>,
}

impl Tally {
    fn extend(&mut self, later: &Tally) {
        self.commits += later.commits;
        self.entries += later.entries;
        (self.next, self.at) = (later.next, later.at);
        self.epochs = match (self.epochs, later.epochs) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (ours, theirs) => ours.or(theirs),
        };
    }
}

/// What a piece of a segment, or all of it, holds.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    /// Up to the first fault.
    pub(super) sound: Tally,
    /// All that is sound, behind faults too.
    pub(super) all: Tally,
    /// How it ends, when it does not end in a fault.
    pub(super) tail: Tail,
    /// What is wrong, in order.
    pub(super) faults: Vec<Fault>,
    /// Commits that are there twice, in a log that somebody else writes: readers pass over them.
    pub(super) repeats: u64,
    /// Whether nothing sound was found behind the last fault, so that it explains all that is missing.
    pub(super) lost: bool,
    pub(super) framing: Framing,
    pub(super) compressed: bool,
    /// `None` without an index.
    pub(super) index: Option<IndexVerdict>,
}

impl Checked {
    /// Puts the pieces of one segment together as far as each ends exactly where the next begins. What does not fit is
    /// given back as a piece to check again, up to the end of the segment: a cut was wrong, or there is damage.
    pub(super) fn join(pieces: Vec<(Piece, Checked)>) -> (Option<Checked>, Option<Piece>) {
        let mut joined: Option<Checked> = None;
        for (piece, checked) in pieces {
            let before = joined.as_ref().and_then(|joined| joined.all.epochs);
            let goes_on = before.zip(checked.all.epochs).is_none_or(|((_, ours), (theirs, _))| ours <= theirs);
            if !goes_on || piece.to.is_some_and(|to| !checked.reaches(to)) {
                let epoch = before.map_or(piece.epoch, |(_, last)| last);
                return (joined, Some(Piece { to: None, epoch, ..piece }));
            }
            match &mut joined {
                Some(joined) => joined.extend(checked),
                None => joined = Some(checked),
            }
        }
        (joined, None)
    }

    fn reaches(&self, to: Entry) -> bool {
        self.faults.is_empty() && self.all.next == to.key && self.all.at == to.value
    }

    /// Adds what follows directly.
    pub(super) fn extend(&mut self, later: Checked) {
        self.sound.extend(&later.sound);
        self.all.extend(&later.all);
        (self.tail, self.faults, self.lost) = (later.tail, later.faults, later.lost);
        self.repeats += later.repeats;
        if let (Some(ours), Some(theirs)) = (&mut self.index, &later.index) {
            ours.add(theirs);
        }
    }
}

/// Checks pieces of the segments of one log.
pub(super) struct Checker<'a, R, C> {
    pub(super) repo: &'a dyn Repo,
    pub(super) starts: &'a [Offset],
    /// Up to where the log was durable once, if that is known.
    pub(super) durable: Option<Offset>,
    pub(super) commit_bytes_max: u64,
    /// Told how many bytes more were read.
    pub(super) on_read: R,
    /// Given each sound commit.
    pub(super) on_commit: C,
}

impl<R: Fn(u64), C: FnMut(Placed)> Checker<'_, R, C> {
    /// Reads and checks a piece.
    ///
    /// # Errors
    /// When it cannot be read; the text names the segment.
    pub(super) fn check(mut self, piece: &Piece) -> io::Result<Checked> {
        let start = self.starts[piece.segment];
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot read segment {start}: {error}"));
        match SegmentReader::open(self.repo, start) {
            Ok(mut reader) => self.read(&mut reader, piece).map_err(named),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let kind = FaultKind::Sealed { text: error.to_string() };
                Ok(unreadable(Fault { segment: start, offset: start, at: BytePos(0), kind }))
            }
            Err(error) => Err(named(error)),
        }
    }

    fn read(&mut self, reader: &mut SegmentReader, piece: &Piece) -> io::Result<Checked> {
        let start = reader.start();
        // Damage before the start of the next segment is damage; behind it, it is what a failed write left there.
        let floor = self.starts.get(piece.segment + 1).copied().or(self.durable);
        let max = self.commit_bytes_max;
        let from = piece.from.map_or(start, |(from, _)| from.key);
        let index = IndexCheck::open(self.repo, reader.format(), start, from);
        let (on_read, on_commit) = (&self.on_read, &mut self.on_commit);
        let repeats = Vec::new();
        let mut meter = Meter { segment: start, tally: Tally::default(), index, repeats, on_read, on_commit };
        let to = piece.to.map(|to| to.value);
        let mut span = piece.from.map(|(from, framing)| Span { from, to, framing, epoch: piece.epoch });
        let mut sound: Option<Tally> = None;
        let mut faults: Vec<Fault> = Vec::new();
        let (mut end, lost) = loop {
            let walked = match &span {
                Some(span) => walk_span(reader, span, max, floor, &mut meter),
                None => walk(reader, None, piece.epoch, max, floor, &mut meter),
            };
            let mut end = match walked {
                Ok(end) => end,
                Err(SurveyError::Io(error)) => return Err(error),
                Err(SurveyError::Damaged(fault)) => return Ok(unreadable(fault)),
            };
            (meter.tally.next, meter.tally.at) = (end.next, end.bytes);
            let mut epoch = meter.tally.epochs.map_or(piece.epoch, |(_, last)| last);
            let resumed = match end.fault.take() {
                // A writer at work may have completed meanwhile what looked torn.
                None if matches!(end.tail, Tail::Torn { bytes } if reader.len()? > end.bytes.0 + bytes) => {
                    Some(Entry { key: end.next, value: end.bytes })
                }
                None => break (end, false),
                Some(fault) => {
                    sound.get_or_insert(meter.tally);
                    let more = piece.to.is_none() && faults.len() < SEGMENT_FAULTS_MAX;
                    let resumed = if more { resume(reader, &fault, end.framing, max)? } else { None };
                    if let FaultKind::StaleEpoch { found, .. } = fault.kind {
                        epoch = found;
                    }
                    faults.push(fault);
                    resumed
                }
            };
            let Some(from) = resumed else {
                break (end, true);
            };
            span = Some(Span { from, to: None, framing: end.framing, epoch });
        };
        // What follows the end of a mirror or a service's log and repeats its last commit is not ours.
        let is_last = piece.to.is_none() && piece.segment + 1 == self.starts.len();
        let foreign = end.repeat.filter(|_| self.durable.is_some() && is_last && faults.is_empty());
        if let Some(at) = foreign {
            end.tail = Tail::Torn { bytes: reader.len()?.saturating_sub(at.0) };
            meter.tally.at = at;
            meter.repeats.retain(|(repeat, _)| *repeat < at);
        }
        let repeats = std::mem::take(&mut meter.repeats);
        if self.durable.is_some() {
            faults.extend(repeats.iter().map(|(at, found)| Fault {
                segment: start,
                offset: *found,
                at: *at,
                kind: FaultKind::Repeat { found: *found },
            }));
            faults.sort_by_key(|fault| fault.at);
            faults.truncate(SEGMENT_FAULTS_MAX);
        }
        let repeats = if self.durable.is_some() { 0 } else { repeats.len() as u64 };
        let all = meter.tally;
        let until = piece.to.map(|to| to.key).or(lost.then_some(all.next));
        Ok(Checked {
            sound: sound.unwrap_or(all),
            all,
            tail: end.tail,
            faults,
            repeats,
            lost,
            framing: end.framing,
            compressed: reader.is_compressed(),
            index: meter.index.map(|index| index.end(until)),
        })
    }
}

/// Counts what a walk comes by.
struct Meter<'a, R, C> {
    segment: Offset,
    tally: Tally,
    index: Option<IndexCheck>,
    /// Where commits are there again, and their offsets.
    repeats: Vec<(BytePos, Offset)>,
    on_read: &'a R,
    on_commit: &'a mut C,
}

impl<R: Fn(u64), C: FnMut(Placed)> Visit for &mut Meter<'_, R, C> {
    #[inline]
    fn commit(&mut self, at: BytePos, commit: &Commit) {
        self.tally.commits += 1;
        self.tally.entries += u64::from(commit.entries);
        match &mut self.tally.epochs {
            Some((_, last)) => *last = commit.epoch,
            none => *none = Some((commit.epoch, commit.epoch)),
        }
        if let Some(index) = &mut self.index
            && commit.first >= index.due()
        {
            index.meet(at, commit);
        }
        (self.on_commit)(Placed { commit: *commit, segment: self.segment, at });
    }

    fn repeated(&mut self, at: BytePos, commit: &Commit) {
        if self.repeats.len() < SEGMENT_FAULTS_MAX {
            self.repeats.push((at, commit.first));
        }
    }

    fn read(&mut self, bytes: u64) {
        (self.on_read)(bytes);
    }
}

/// The commit to go on with behind a fault, if there is one.
fn resume(reader: &mut SegmentReader, fault: &Fault, framing: Framing, max: u64) -> io::Result<Option<Entry>> {
    let later = Offset(fault.offset.0.saturating_add(1));
    let from = match fault.kind {
        FaultKind::Gap { found } | FaultKind::Fork { found } => {
            return Ok(Some(Entry { key: found, value: fault.at }));
        }
        FaultKind::StaleEpoch { .. } => return Ok(Some(Entry { key: fault.offset, value: fault.at })),
        FaultKind::Torn { .. } | FaultKind::Lost { .. } | FaultKind::Sealed { .. } => return Ok(None),
        FaultKind::Missing { .. } | FaultKind::Repeat { .. } => return Ok(None),
        // Behind a header comes the very commit that was expected.
        FaultKind::Header => fault.offset,
        FaultKind::Format(_) | FaultKind::Length { .. } | FaultKind::Cut if fault.at == BytePos(0) => fault.offset,
        FaultKind::Format(_) | FaultKind::Length { .. } | FaultKind::Cut => later,
    };
    match sound_commit_behind(reader, fault.at, from, framing, max) {
        Ok(found) => Ok(found.map(|(value, commit)| Entry { key: commit.first, value })),
        // What does not decompress is lost, and named already.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

/// A sealed segment of which nothing can be had.
fn unreadable(fault: Fault) -> Checked {
    let nothing = Tally { next: fault.offset, ..Tally::default() };
    Checked {
        sound: nothing,
        all: nothing,
        tail: Tail::Clean,
        faults: vec![fault],
        repeats: 0,
        lost: true,
        framing: Framing::default(),
        compressed: true,
        index: None,
    }
}
