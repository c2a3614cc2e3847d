//! What is in a repo: its segments, where the log ends, and how. Reads only; it never changes a file.

use std::io;

use super::fault::{Fault, FaultKind, Tail};
use crate::format::commitlog::{CommitHeader, Commitlog, HEADER_LEN, Version};
use crate::format::{Commit, FormatError, Item, ScanError, Scanner, name};
use crate::limits::{INDEX_INTERVAL, READ_BLOCK};
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
    /// How its commits are framed.
    pub version: Version,
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

/// Starts of the segments in a repo, ascending. Names that are not ours are passed over.
///
/// # Errors
/// When the repo cannot be listed.
pub fn segment_starts(repo: &dyn Repo) -> io::Result<Vec<Offset>> {
    let mut starts: Vec<Offset> = repo.list()?.iter().filter_map(|file| name::parse_segment(file)).collect();
    starts.sort_unstable();
    Ok(starts)
}

/// Finds out where a log stands. Costs what lies behind the last index entry that holds in each segment, not the
/// segments. `floor`, if known, is an offset up to which the log was durable once: damage before it is corruption and
/// damage behind it is torn, whatever their shapes. Without it the shape decides: see [`Tail::Torn`].
///
/// # Errors
/// When a segment is damaged other than at the torn end of the log, or offsets are missing between segments.
pub fn survey(repo: &dyn Repo, commit_bytes_max: u64, floor: Option<Offset>) -> Result<Survey, SurveyError> {
    let starts = segment_starts(repo)?;
    let mut found = Survey { first: starts.first().copied(), ..Survey::default() };
    found.next = found.first.unwrap_or_default();
    for (at, start) in starts.iter().copied().enumerate() {
        let following = starts.get(at + 1).copied();
        if start != found.next {
            let (segment, bytes) = found.segments.last().map_or((start, 0), |segment| (segment.start, segment.bytes));
            let kind = FaultKind::Gap { found: start };
            return Err(SurveyError::Damaged(Fault { segment, offset: found.next, at: BytePos(bytes), kind }));
        }
        let mut reader = SegmentReader::open(repo, start).map_err(|error| sealed(start, start, error))?;
        let version = version_of(&mut reader)?;
        let mut last = reader.indexed(Offset(u64::MAX), BytePos(u64::MAX), version, commit_bytes_max)?;
        if following.is_none() {
            // The index that goes on is rebuilt if it is not sound from its first entry on.
            last = last.filter(|last| reader.index_leads_to(*last));
        }
        let mut marks = Vec::new();
        let end = walk(&mut reader, last, found.epoch, commit_bytes_max, floor, |at, commit| {
            if marks.last().or(last.as_ref()).is_none_or(|mark: &Entry| at.0 >= mark.value.0 + INDEX_INTERVAL) {
                marks.push(Entry { key: commit.first, value: at });
            }
        })?;
        found.next = end.next;
        found.epoch = end.last.map_or(found.epoch, |last| last.epoch);
        found.last = end.last.or(found.last);
        let continued = following == Some(end.next);
        match end.fault {
            Some(fault) if !continued => return Err(SurveyError::Damaged(fault)),
            _ => {}
        }
        if end.last.is_none() && following.is_none() {
            found.empty_head = Some(start);
        } else {
            let (bytes, compressed) = (end.bytes.0, reader.is_compressed());
            found.segments.push(SegmentInfo { start, end: end.next, bytes, version: end.version, compressed });
        }
        if following.is_none() {
            found.tail = end.tail;
            found.indexed = (last, marks);
        }
    }
    Ok(found)
}

fn version_of(reader: &mut SegmentReader) -> Result<Version, SurveyError> {
    let start = reader.start();
    let header = reader.header().map_err(|error| sealed(start, start, error))?;
    Ok(header.ok().flatten().map_or(Version::V1, |header| header.version))
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
    /// Damage that is not a torn end.
    pub(crate) fault: Option<Fault>,
    /// How its commits are framed.
    pub(crate) version: Version,
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
    mut on_commit: impl FnMut(BytePos, &Commit),
) -> Result<SegmentEnd, SurveyError> {
    let start = reader.start();
    let fault = |offset, at, kind| Some(Fault { segment: start, offset, at, kind });
    let header = reader.header().map_err(|error| sealed(start, start, error))?;
    let mut end =
        SegmentEnd { next: start, bytes: BytePos(0), last: None, tail: Tail::Clean, fault: None, version: Version::V1 };
    match header {
        Ok(Some(header)) => (end.version, end.bytes) = (header.version, BytePos(HEADER_LEN as u64)),
        Ok(None) => {
            let bytes = reader.len()?;
            if bytes < HEADER_LEN as u64 || blank(reader, BytePos(0), u64::MAX)? {
                end.tail = if bytes == 0 { Tail::Clean } else { Tail::Zeros { bytes } };
                return Ok(end);
            }
            let error = FormatError::Header { found: vec![0; HEADER_LEN] };
            let error = ScanError::Corrupt { offset: Some(start), at: BytePos(0), error };
            let edge = Edge { next: start, at: BytePos(0), version: end.version };
            let (tail, kind) = judge(reader, edge, commit_bytes_max, floor, u64::MAX, &error)?;
            (end.tail, end.fault) = (tail, kind.and_then(|kind| fault(start, BytePos(0), kind)));
            return Ok(end);
        }
        Err(error) => {
            end.fault = fault(start, BytePos(0), FaultKind::Format(error));
            return Ok(end);
        }
    }
    if let Some(entry) = from {
        (end.next, end.bytes) = (entry.key, entry.value);
    }
    let base = end.bytes;
    let mut epoch = if from.is_some() { Epoch(0) } else { epoch };
    let mut scanner = Scanner::new(Commitlog::new(end.version, Some(end.next), commit_bytes_max));
    let mut block = vec![0; READ_BLOCK];
    let mut pos = base;
    let error = 'read: loop {
        let count = match reader.read_at(&mut block, pos) {
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
        let mut input = &block[..count];
        loop {
            let at = BytePos(base.0 + scanner.boundary().0);
            let item = match scanner.next(&mut input) {
                Ok(Some(item)) => item,
                Ok(None) => break,
                Err(error) => break 'read Some(error),
            };
            let kind = match item {
                Item::Commit(commit) if is_repeat(end.last, &commit) => None,
                Item::Commit(commit) if commit.first > end.next => Some(FaultKind::Gap { found: commit.first }),
                Item::Commit(commit) if commit.first < end.next => Some(FaultKind::Fork { found: commit.first }),
                Item::Commit(commit) if commit.epoch < epoch => {
                    Some(FaultKind::StaleEpoch { current: epoch, found: commit.epoch })
                }
                Item::Commit(commit) => {
                    on_commit(at, &commit);
                    (end.next, end.last, epoch) = (commit.end(), Some(commit), commit.epoch);
                    None
                }
                Item::Header(header) => {
                    Some(FaultKind::Format(FormatError::Header { found: header.encode().to_vec() }))
                }
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
    if let Some(error) = error {
        let edge = Edge { next: end.next, at: end.bytes, version: end.version };
        let (tail, kind) = judge(reader, edge, commit_bytes_max, floor, u64::MAX, &error)?;
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
    /// How the segment's commits are framed.
    pub(crate) version: Version,
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
    let bytes = reader.len()?.saturating_sub(edge.at.0);
    let torn = (Tail::Torn { bytes }, None);
    let short = bytes < Version::V1.commit_header_len() as u64;
    let kind = match error {
        ScanError::Corrupt { error: FormatError::Zeros, .. } if blank(reader, edge.at, look)? => {
            return Ok((Tail::Zeros { bytes }, None));
        }
        ScanError::Truncated { .. } if short && blank(reader, edge.at, look)? => {
            return Ok((Tail::Zeros { bytes }, None));
        }
        _ if floor.is_some_and(|floor| edge.next >= floor) => return Ok(torn),
        ScanError::Corrupt { error: FormatError::TooLarge { len, .. }, .. } => {
            return Ok((Tail::Clean, Some(FaultKind::Length { len: *len })));
        }
        ScanError::Corrupt { error, .. } => FaultKind::Format(error.clone()),
        ScanError::Truncated { .. } => FaultKind::Cut,
    };
    if floor.is_some() || sound_commit_behind(reader, edge, commit_bytes_max)? {
        return Ok((Tail::Clean, Some(kind)));
    }
    Ok(torn)
}

/// Whether a segment holds nothing but zeros from `at` on, as far as `look` bytes tell.
fn blank(reader: &mut SegmentReader, at: BytePos, look: u64) -> io::Result<bool> {
    let mut block = vec![0; READ_BLOCK];
    let mut pos = at;
    while pos.0 - at.0 < look {
        let count = reader.read_at(&mut block, pos)?;
        if block[..count].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        if count < block.len() {
            break;
        }
        pos = pos.plus(count as u64);
    }
    Ok(true)
}

/// Looks for a whole commit of a later offset anywhere behind `edge`.
fn sound_commit_behind(reader: &mut SegmentReader, edge: Edge, commit_bytes_max: u64) -> io::Result<bool> {
    // Where a segment's header is damaged, its first commit is behind that.
    let later = edge.next.0.saturating_add(u64::from(edge.at.0 > 0));
    let later = later..=later.saturating_add(u64::from(u32::MAX));
    let (version, bytes) = (edge.version, reader.len()?);
    let mut block = vec![0; READ_BLOCK];
    let mut pos = edge.at.plus(1);
    loop {
        let count = reader.read_at(&mut block, pos)?;
        for (i, window) in block[..count].windows(version.commit_header_len()).enumerate() {
            let Some(head) = CommitHeader::decode(version, window).filter(|head| later.contains(&head.first.0)) else {
                continue;
            };
            let at = pos.plus(i as u64);
            if head.entries > 0
                && head.commit_len(version) <= bytes.saturating_sub(at.0)
                && reader.commit_at(at, version, commit_bytes_max)?.is_some()
            {
                return Ok(true);
            }
        }
        if count < block.len() {
            return Ok(false);
        }
        // A header that starts in the last bytes is looked at with the next block.
        pos = pos.plus((count - (version.commit_header_len() - 1)) as u64);
    }
}
