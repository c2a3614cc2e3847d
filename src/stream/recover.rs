//! What is in a repo: its segments, where the log ends, and how. Reads only; it never changes a file.

use std::io;

use super::fault::{Fault, FaultKind, Tail};
use crate::format::commitlog::{CommitHeader, Version};
use crate::format::wal::{self, SoundRun, WalStart};
use crate::format::{Commit, FormatError, Framing, Item, LogFormat, ScanError, Scanner, Walk, name};
use crate::limits::{COMMIT_BYTES_DOUBTED, INDEX_INTERVAL, READ_BLOCK};
use crate::offset::{BytePos, Epoch, Offset};
use crate::repo::Repo;
use crate::segment::{Entry, SegmentReader};

/// One segment of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its first offset.
    pub start: Offset,
    /// The offset right after its last commit.
    pub end: Offset,
    /// Its bytes up to there, uncompressed.
    pub bytes: u64,
    /// How its commits are framed, from its first on.
    pub framing: Framing,
    /// Whether the file is compressed.
    pub compressed: bool,
}

/// Where a log stands.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Its segments, in order, without an empty head.
    pub segments: Vec<SegmentInfo>,
    /// Start of a last segment that holds no commit.
    pub empty_head: Option<Offset>,
    /// Its format, when any segment says so.
    pub format: Option<LogFormat>,
    /// Its first offset, when any segment says so.
    pub first: Option<Offset>,
    /// The offset right after its last commit.
    pub next: Offset,
    /// Term of the last commit.
    pub epoch: Epoch,
    /// The last commit.
    pub last: Option<Commit>,
    /// How its last segment ends.
    pub tail: Tail,
    /// The last entry of the last segment's index that holds, and commits behind it that the index lacks.
    pub(crate) indexed: (Option<Entry>, Vec<Entry>),
}

/// Why a log cannot be surveyed.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The log is damaged, and not just torn at its end.
    #[error("{0}")]
    Damaged(Fault),
    /// It cannot be read.
    #[error("cannot read the log")]
    Io(#[from] io::Error),
}

/// How much of a log a survey reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// What lies after the last valid index entry of each segment.
    Ends,
    /// Every commit.
    All,
}

/// Starts of the segments in a repo, ascending. Names that are not ours are passed over.
///
/// # Errors
/// When the repo cannot be listed.
pub fn segment_starts(repo: &dyn Repo) -> io::Result<Vec<Offset>> {
    let mut starts: Vec<Offset> = segments_in(repo)?.map(|(_, start)| start).collect();
    starts.sort_unstable();
    Ok(starts)
}

/// The format of the log in a repo, as the names of its segments tell; `None` without any.
///
/// # Errors
/// When the repo cannot be listed.
pub fn format_of(repo: &dyn Repo) -> io::Result<Option<LogFormat>> {
    Ok(segments_in(repo)?.map(|(format, _)| format).next())
}

pub(super) fn segments_in(repo: &dyn Repo) -> io::Result<impl Iterator<Item = (LogFormat, Offset)>> {
    Ok(repo.list()?.into_iter().filter_map(|file| name::parse_segment(&file)))
}

/// Finds out where a log stands. Costs what lies behind the last index entry that holds in each segment, not the
/// segments. `floor`, if known, is an offset up to which the log was durable once: damage before it is corruption and
/// damage behind it is torn, whatever their shapes; and everything after it is read, since an index entry there proves
/// nothing about the commits before it. Without it the shape decides: see [`Tail::Torn`].
///
/// # Errors
/// When a segment is damaged other than at the torn end of the log, or offsets are missing between segments.
pub fn survey(repo: &dyn Repo, commit_bytes_max: u64, floor: Option<Offset>) -> Result<Survey, SurveyError> {
    survey_segments(repo, &segment_starts(repo)?, commit_bytes_max, floor, Reads::Ends)
}

/// As [`survey`], of a log that has only the segments that start at `starts`. With [`Reads::All`] damage anywhere is found.
///
/// # Errors
/// As [`survey`].
pub(crate) fn survey_segments(
    repo: &dyn Repo,
    starts: &[Offset],
    commit_bytes_max: u64,
    floor: Option<Offset>,
    reads: Reads,
) -> Result<Survey, SurveyError> {
    let mut found = Survey::default();
    survey_into(&mut found, repo, starts, commit_bytes_max, floor, reads)?;
    Ok(found)
}

/// As [`survey_segments`]. After Err `found` has what is sound before the fault.
pub(super) fn survey_into(
    found: &mut Survey,
    repo: &dyn Repo,
    starts: &[Offset],
    commit_bytes_max: u64,
    floor: Option<Offset>,
    reads: Reads,
) -> Result<(), SurveyError> {
    let indexed_to = floor.map_or(Offset(u64::MAX), |floor| Offset(floor.0.saturating_sub(1)));
    found.first = starts.first().copied();
    found.next = found.first.unwrap_or_default();
    for (at, start) in starts.iter().copied().enumerate() {
        let following = starts.get(at + 1).copied();
        if start != found.next {
            let (segment, bytes) = found.segments.last().map_or((start, 0), |segment| (segment.start, segment.bytes));
            let kind = FaultKind::Gap { found: start };
            return Err(SurveyError::Damaged(Fault { segment, offset: found.next, at: BytePos(bytes), kind }));
        }
        let mut reader = SegmentReader::open(repo, start).map_err(|error| sealed(start, start, error))?;
        found.format.get_or_insert(reader.format());
        let framing = framing_of(&mut reader)?;
        let last = match reads {
            Reads::Ends => reader.indexed(indexed_to, BytePos(u64::MAX), framing, commit_bytes_max)?,
            Reads::All => None,
        };
        // The index that goes on is rebuilt where it is out of order.
        let last = last.filter(|last| following.is_some() || reader.index_leads_to(*last));
        let mut marks = Vec::new();
        let end = walk(&mut reader, last, found.epoch, commit_bytes_max, floor, |at: BytePos, commit: &Commit| {
            if marks.last().or(last.as_ref()).is_none_or(|mark: &Entry| at.0 >= mark.value.0 + INDEX_INTERVAL) {
                marks.push(Entry { key: commit.first, value: at });
            }
        })?;
        found.next = end.next;
        found.epoch = end.last.map_or(found.epoch, |last| last.epoch);
        found.last = end.last.or(found.last);
        let continued = following == Some(end.next);
        let fault = end.fault.filter(|_| !continued);
        if end.last.is_none() && (following.is_none() || fault.is_some()) {
            found.empty_head = Some(start);
        } else {
            let end_at = end.repeat.filter(|_| following.is_none()).unwrap_or(end.bytes);
            let (bytes, compressed) = (end_at.0, reader.is_compressed());
            found.segments.push(SegmentInfo { start, end: end.next, bytes, framing: end.framing, compressed });
        }
        if let Some(fault) = fault {
            return Err(SurveyError::Damaged(fault));
        }
        if following.is_none() {
            found.tail = match end.repeat {
                Some(at) => Tail::Torn { bytes: reader.len()?.saturating_sub(at.0) },
                None => end.tail,
            };
            found.indexed = (last, marks);
        }
    }
    Ok(())
}

fn framing_of(reader: &mut SegmentReader) -> Result<Framing, SurveyError> {
    let start = reader.start();
    let header = reader.header().map_err(|error| sealed(start, start, error))?;
    Ok(header.ok().flatten().unwrap_or(Framing::of(reader.format())))
}

fn sealed(segment: Offset, offset: Offset, error: io::Error) -> SurveyError {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            let kind = FaultKind::Sealed { text: error.to_string() };
            SurveyError::Damaged(Fault { segment, offset, at: BytePos(0), kind })
        }
        _ => SurveyError::Io(error),
    }
}

/// Where and how a segment ends.
#[derive(Clone, Debug)]
pub(crate) struct SegmentEnd {
    /// The offset right after its last commit.
    pub(crate) next: Offset,
    /// The byte right after it.
    pub(crate) bytes: BytePos,
    /// Its last commit, if it has any.
    pub(crate) last: Option<Commit>,
    /// What follows.
    pub(crate) tail: Tail,
    /// Where it is there again, if it is: readers pass over that, but no writer of ours leaves it.
    pub(crate) repeat: Option<BytePos>,
    /// Damage that is not a torn end.
    pub(crate) fault: Option<Fault>,
    /// How its commits are framed, from its first on.
    pub(crate) framing: Framing,
}

impl SegmentEnd {
    /// Nothing was found behind the start of `span` yet.
    fn at(span: &Span) -> SegmentEnd {
        let (next, bytes, framing) = (span.from.key, span.from.value, span.framing);
        SegmentEnd { next, bytes, last: None, tail: Tail::Clean, repeat: None, fault: None, framing }
    }
}

/// Told what a walk comes by.
pub(crate) trait Visit {
    /// A sound commit starts at `at`.
    fn commit(&mut self, at: BytePos, commit: &Commit);

    /// A commit that was just there is there again at `at`.
    fn repeated(&mut self, _at: BytePos, _commit: &Commit) {}

    /// So many bytes more were read.
    fn read(&mut self, _bytes: u64) {}
}

impl<F: FnMut(BytePos, &Commit)> Visit for F {
    fn commit(&mut self, at: BytePos, commit: &Commit) {
        self(at, commit);
    }
}

/// The part of a segment to walk over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// The commit to start with.
    pub(crate) from: Entry,
    /// A place to stop at, where a commit is thought to end; `None` is the end of the segment. How the span ends is
    /// not looked into then.
    pub(crate) to: Option<BytePos>,
    /// How the segment's commits are framed, from its first on.
    pub(crate) framing: Framing,
    /// Term of the commit before it; 0 when that is not known.
    pub(crate) epoch: Epoch,
}

/// Walks over the commits of a segment from its start, or from a checked index entry, to its end.
///
/// # Errors
/// When it cannot be read. Damage is part of the answer.
pub(crate) fn walk(
    reader: &mut SegmentReader,
    from: Option<Entry>,
    epoch: Epoch,
    commit_bytes_max: u64,
    floor: Option<Offset>,
    visit: impl Visit,
) -> Result<SegmentEnd, SurveyError> {
    let start = reader.start();
    let framing = Framing::of(reader.format());
    let whole = Span { from: Entry { key: start, value: BytePos(0) }, to: None, framing, epoch };
    let mut end = SegmentEnd::at(&whole);
    let fault = |kind| Some(Fault { segment: start, offset: start, at: BytePos(0), kind });
    match reader.header().map_err(|error| sealed(start, start, error))? {
        Ok(Some(framing)) => {
            let first = Entry { key: start, value: BytePos(framing.header_len() as u64) };
            let span = match from {
                Some(from) => Span { from, framing, epoch: Epoch(0), ..whole },
                None => Span { from: first, framing, ..whole },
            };
            walk_span(reader, &span, commit_bytes_max, floor, visit)
        }
        Ok(None) => {
            let bytes = reader.len()?;
            if bytes < framing.header_len() as u64 || blank(reader, BytePos(0), u64::MAX)? {
                end.tail = if bytes == 0 { Tail::Clean } else { Tail::Zeros { bytes } };
                return Ok(end);
            }
            let error = ScanError::Corrupt { offset: Some(start), at: BytePos(0), error: FormatError::Zeros };
            let edge = Edge { next: start, at: BytePos(0), framing: end.framing };
            let (tail, kind) = judge(reader, edge, commit_bytes_max, floor, u64::MAX, &error)?;
            (end.tail, end.fault) = (tail, kind.and_then(fault));
            Ok(end)
        }
        Err(error) => {
            end.fault = fault(FaultKind::Format(error));
            Ok(end)
        }
    }
}

/// Walks over the commits of a span of a segment.
///
/// # Errors
/// When it cannot be read. Damage is part of the answer.
pub(crate) fn walk_span(
    reader: &mut SegmentReader,
    span: &Span,
    commit_bytes_max: u64,
    floor: Option<Offset>,
    mut visit: impl Visit,
) -> Result<SegmentEnd, SurveyError> {
    let segment = reader.start();
    let fault = |offset, at, kind| Some(Fault { segment, offset, at, kind });
    let mut end = SegmentEnd::at(span);
    let base = end.bytes;
    let mut epoch = span.epoch;
    let framing = reader.framing_at(base, span.framing)?;
    let mut scanner = Scanner::new(Walk::new(framing, Some(end.next), commit_bytes_max));
    let stop = span.to.map_or(u64::MAX, |to| to.0);
    let mut block = vec![0; READ_BLOCK];
    let mut pos = base;
    let error = 'read: loop {
        let want = usize::try_from(stop.saturating_sub(pos.0)).unwrap_or(usize::MAX).min(block.len());
        let count = match reader.read_at(&mut block[..want], pos) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                end.fault = fault(end.next, end.bytes, FaultKind::Sealed { text: error.to_string() });
                return Ok(end);
            }
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            break scanner.finish().err();
        }
        pos = pos.plus(count as u64);
        visit.read(count as u64);
        let mut input = &block[..count];
        loop {
            let at = BytePos(base.0 + scanner.boundary().0);
            let item = match scanner.next(&mut input) {
                Ok(Some(item)) => item,
                Ok(None) => break,
                Err(error) => break 'read Some(error),
            };
            let kind = match item {
                Item::Commit(commit) if is_repeat(end.last, &commit) => {
                    visit.repeated(at, &commit);
                    end.repeat.get_or_insert(at);
                    None
                }
                Item::Commit(commit) if commit.first > end.next => Some(FaultKind::Gap { found: commit.first }),
                Item::Commit(commit) if commit.first < end.next => Some(FaultKind::Fork { found: commit.first }),
                Item::Commit(commit) if commit.epoch < epoch => {
                    Some(FaultKind::StaleEpoch { current: epoch, found: commit.epoch })
                }
                Item::Commit(commit) => {
                    visit.commit(at, &commit);
                    (end.next, end.last, epoch) = (commit.end(), Some(commit), commit.epoch);
                    end.repeat = None;
                    None
                }
                Item::Header(_) => Some(FaultKind::Header),
            };
            if let Some(kind) = kind {
                if floor.is_some_and(|floor| end.next >= floor) {
                    end.tail = Tail::Torn { bytes: reader.len()?.saturating_sub(at.0) };
                } else {
                    end.fault = fault(end.next, at, kind);
                }
                return Ok(end);
            }
            end.bytes = BytePos(base.0 + scanner.boundary().0);
        }
    };
    if let Some(error) = error.filter(|_| span.to.is_none()) {
        let edge = Edge { next: end.next, at: end.bytes, framing: end.framing };
        let (tail, kind) = judge(reader, edge, commit_bytes_max, floor, u64::MAX, &error)
            .map_err(|error| sealed(segment, end.next, error))?;
        end.tail = tail;
        end.fault = kind.and_then(|kind| fault(end.next, end.bytes, kind));
    }
    Ok(end)
}

/// Whether `commit` is `last` once more: harmless, says the format.
pub(crate) fn is_repeat(last: Option<Commit>, commit: &Commit) -> bool {
    last.is_some_and(|last| {
        (last.first, last.entries, last.checksum) == (commit.first, commit.entries, commit.checksum)
    })
}

/// The end of what is sound in a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    /// The offset that should come there.
    pub(crate) next: Offset,
    /// Where it is.
    pub(crate) at: BytePos,
    /// How the segment's commits are framed, from its first on.
    pub(crate) framing: Framing,
}

/// Tells a torn end, which a crash leaves, from corruption: behind a torn end nothing sound follows. `look` is how far
/// zeros are followed before they are taken to go on to the end.
pub(crate) fn judge(
    reader: &mut SegmentReader,
    edge: Edge,
    commit_bytes_max: u64,
    floor: Option<Offset>,
    look: u64,
    error: &ScanError,
) -> io::Result<(Tail, Option<FaultKind>)> {
    let Edge { next, at, framing } = edge;
    let bytes = reader.len()?.saturating_sub(at.0);
    let torn = (Tail::Torn { bytes }, None);
    let short = bytes < framing.head_len() as u64;
    let kind = match error {
        ScanError::Corrupt { error: FormatError::Zeros, .. } if blank(reader, at, look)? => {
            return Ok((Tail::Zeros { bytes }, None));
        }
        ScanError::Truncated { .. } if short && blank(reader, at, look)? => {
            return Ok((Tail::Zeros { bytes }, None));
        }
        // Behind the floor everything is torn, but for a whole commit that is merely larger than the cap of today.
        ScanError::Corrupt { error: error @ FormatError::TooLarge { len, .. }, .. }
            if floor.is_none_or(|floor| next < floor) || reader.commit_at(at, framing, bytes)?.is_some() =>
        {
            let kind = if *len > bytes { FaultKind::Length { len: *len } } else { FaultKind::Format(error.clone()) };
            return Ok((Tail::Clean, Some(kind)));
        }
        _ if floor.is_some_and(|floor| next >= floor) => return Ok(torn),
        ScanError::Corrupt { error, .. } => FaultKind::Format(error.clone()),
        ScanError::Truncated { .. } => match claimed_len(reader, at, framing)? {
            // Of two that are rare, a damaged length is the likelier one.
            Some(len) if len > COMMIT_BYTES_DOUBTED => return Ok((Tail::Clean, Some(FaultKind::Length { len }))),
            _ => FaultKind::Cut,
        },
    };
    // Where a segment's header is damaged, its first commit is behind that.
    let later = Offset(next.0.saturating_add(u64::from(at.0 > 0)));
    if floor.is_some()
        || sound_commit_behind(reader, at, later, framing, commit_bytes_max)?.is_some()
        || at.0 == framing.header_len() as u64 && of_other_version(reader, next, framing, commit_bytes_max)?
    {
        return Ok((Tail::Clean, Some(kind)));
    }
    Ok(torn)
}

/// How many bytes of records the commit at `at` claims to have, in a format in which a commit says so.
fn claimed_len(reader: &mut SegmentReader, at: BytePos, framing: Framing) -> io::Result<Option<u64>> {
    let Framing::Commitlog(version) = framing else {
        return Ok(None);
    };
    let mut head = vec![0; version.commit_header_len()];
    let count = reader.read_at(&mut head, at)?;
    Ok(CommitHeader::decode(version, &head[..count]).map(|unit| unit.len.into()))
}

/// Whether a segment holds nothing but zeros from `at` on, as far as `look` bytes tell.
fn blank(reader: &mut SegmentReader, at: BytePos, look: u64) -> io::Result<bool> {
    let mut block = vec![0; READ_BLOCK];
    let mut pos = at;
    while pos.0 - at.0 < look {
        let count = reader.read_at(&mut block, pos)?;
        if !is_zero(&block[..count]) {
            return Ok(false);
        }
        if count < block.len() {
            break;
        }
        pos = pos.plus(count as u64);
    }
    Ok(true)
}

/// Whether a segment without a sound commit has some in the framing of the other version: then its header is damaged,
/// which no checksum covers.
fn of_other_version(reader: &mut SegmentReader, start: Offset, framing: Framing, max: u64) -> io::Result<bool> {
    let other = match framing {
        Framing::Commitlog(Version::V0) => Version::V1,
        Framing::Commitlog(Version::V1) => Version::V0,
        Framing::Wal(_) => return Ok(false),
    };
    Ok(sound_commit_behind(reader, BytePos(0), start, other.into(), max)?.is_some())
}

/// What a search for sound commits spends on those that nothing sound follows: it must end, also in records made to look
/// like commits.
const DOUBTFUL_BYTES_MAX: u64 = 1 << 30;
/// The least that looking at one costs.
const HEADER_LOOK_BYTES: u64 = 4096;

/// Looks for the first whole commit anywhere behind `at` whose offset is `from` or somewhat later.
pub(crate) fn sound_commit_behind(
    reader: &mut SegmentReader,
    at: BytePos,
    from: Offset,
    framing: Framing,
    commit_bytes_max: u64,
) -> io::Result<Option<(BytePos, Commit)>> {
    let version = match framing {
        Framing::Commitlog(version) => version,
        Framing::Wal(None) => return Ok(None),
        Framing::Wal(Some(start)) => return sound_frames_behind(reader, at, start),
    };
    let offsets = from.0..=from.0.saturating_add(u64::from(u32::MAX));
    let len = reader.len()?;
    let head_len = version.commit_header_len();
    let mut doubtful = DOUBTFUL_BYTES_MAX;
    let mut block = vec![0; READ_BLOCK];
    let mut pos = at.plus(1);
    loop {
        let count = reader.read_at(&mut block, pos)?;
        let read = if is_zero(&block[..count]) { &[] } else { &block[..count] };
        for (i, head) in read.windows(head_len).enumerate() {
            let at = pos.plus(i as u64);
            let Some(head) = CommitHeader::decode(version, head).filter(|head| {
                let fits = at.0.saturating_add(head.commit_len(version)) <= len;
                offsets.contains(&head.first.0) && head.entries > 0 && fits
            }) else {
                continue;
            };
            // Records may look like the heads of long commits over and over.
            let cost = head.commit_len(version).max(HEADER_LOOK_BYTES);
            if !goes_on(reader, at, &head, version)? {
                if doubtful < cost {
                    continue;
                }
                doubtful -= cost;
            }
            if let Some(commit) = reader.commit_at(at, framing, commit_bytes_max)? {
                return Ok(Some((at, commit)));
            }
        }
        if count < block.len() {
            return Ok(None);
        }
        // Heads that start in the last bytes are looked at with the next block.
        pos = pos.plus((count - (head_len - 1)) as u64);
    }
}

/// Looks for the first sound frames after the one at `at`, up to one that ends a transaction.
fn sound_frames_behind(
    reader: &mut SegmentReader,
    at: BytePos,
    start: WalStart,
) -> io::Result<Option<(BytePos, Commit)>> {
    let (segment, header) = (reader.start(), start.header);
    let damaged = at.0.saturating_sub(wal::HEADER_LEN as u64) / header.frame_len();
    let found = header.sound_run(damaged..u64::MAX, |buf, at| reader.read_at(buf, BytePos(at)))?;
    Ok(found.map(|SoundRun { before, frames, chain }| {
        let entries = u32::try_from(frames).unwrap_or(u32::MAX);
        let (first, bytes) = (Offset(segment.0 + before), frames * header.frame_len());
        let commit = Commit { first, entries, epoch: Epoch(0), checksum: chain.number(), bytes };
        (BytePos(header.byte_after(before)), commit)
    }))
}

/// Whether behind the commit that starts at `at`, if it is one, comes what comes behind a commit: the next one, zeros, or
/// the end of the segment.
fn goes_on(reader: &mut SegmentReader, at: BytePos, head: &CommitHeader, version: Version) -> io::Result<bool> {
    let mut next = [0; Version::V1.commit_header_len()];
    let count = reader.read_at(&mut next, at.plus(head.commit_len(version)))?;
    let end = head.first.0.checked_add(head.entries.into());
    let follows = CommitHeader::decode(version, &next[..count]).is_some_and(|next| Some(next.first.0) == end);
    Ok(follows || is_zero(&next[..count]))
}

/// Whether all bytes are zero. Preallocated space is skipped at the speed of memory.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}
