//! What is sound of a log that cannot be opened for writing: everything durable before its first fault, and which of its
//! segment files are none of it.

use std::io;

use super::fault::{Fault, FaultKind};
use super::mark::DurableMark;
use super::recover::{Reads, Survey, SurveyError, segment_starts, segments_in, survey_into, survey_segments};
use crate::format::{LogFormat, name};
use crate::offset::{BytePos, Offset};
use crate::repo::Repo;
use crate::segment::SegmentReader;

/// What is sound of a log.
#[derive(Debug)]
pub(crate) struct SoundPrefix {
    /// The log up to there; its end is never after the durable mark.
    pub(crate) found: Survey,
    /// What the durable mark says.
    pub(crate) mark: Option<Offset>,
    /// Whether that is all that may be durable: commits after the mark may be.
    pub(crate) whole: bool,
}

/// Finds what is sound of the log in a repo. Reads only. What lies after the durable mark is not part of it: the disk may
/// not have what the page cache shows.
///
/// # Errors
/// When the directory or the mark cannot be read: nothing is known then.
pub(crate) fn sound_prefix(repo: &dyn Repo, commit_bytes_max: u64, reads: Reads) -> io::Result<SoundPrefix> {
    sound_prefix_of(repo, &segment_starts(repo)?, commit_bytes_max, reads)
}

/// As [`sound_prefix`], of a log that has only the segments that start at `starts`.
///
/// # Errors
/// When the mark cannot be read.
pub(crate) fn sound_prefix_of(
    repo: &dyn Repo,
    starts: &[Offset],
    commit_bytes_max: u64,
    reads: Reads,
) -> io::Result<SoundPrefix> {
    let read = DurableMark::read(repo)?;
    let mark = read.offset();
    let mut found = Survey::default();
    let surveyed = survey_into(&mut found, repo, starts, commit_bytes_max, mark, reads);
    let mut whole = surveyed.is_ok()
        && read.fault(false).is_none()
        && mark.is_none_or(|mark| mark == found.next || found.first.is_none());
    if let Some(end) = mark.filter(|mark| *mark < found.next) {
        whole &= end_at(&mut found, repo, end, commit_bytes_max).is_ok();
    }
    Ok(SoundPrefix { found, mark, whole })
}

/// The segment files in the directory of a log.
#[derive(Debug, Default)]
pub(crate) struct SegmentFiles {
    /// Starts of those that may be its segments, ascending.
    pub(crate) starts: Vec<Offset>,
    /// Names of those that are none, whatever they hold.
    pub(crate) strays: Vec<String>,
}

/// Finds the segment files that fit nowhere in a log of the format `format` that was durable up to `mark`: of another
/// format, or starting inside a sound segment, or after a gap where nothing durable is missing. Reads only.
///
/// # Errors
/// When the directory or a segment cannot be read.
pub(crate) fn segment_files(
    repo: &dyn Repo,
    format: LogFormat,
    commit_bytes_max: u64,
    mark: Option<Offset>,
) -> io::Result<SegmentFiles> {
    let mut files = SegmentFiles::default();
    for (found, start) in segments_in(repo)? {
        match found == format {
            true => files.starts.push(start),
            false => files.strays.push(name::segment(found, start)),
        }
    }
    files.starts.sort_unstable();
    loop {
        let fault = match survey_segments(repo, &files.starts, commit_bytes_max, mark, Reads::Ends) {
            Ok(_) => break,
            Err(SurveyError::Io(error)) => return Err(error),
            Err(SurveyError::Damaged(fault)) => fault,
        };
        let Fault { offset: next, kind: FaultKind::Gap { found }, .. } = fault else { break };
        let is_stray = found < next || mark.is_some_and(|mark| mark <= next);
        let Ok(at) = files.starts.binary_search(&found) else { break };
        if !is_stray {
            break;
        }
        files.starts.remove(at);
        files.strays.push(name::segment(format, found));
    }
    files.strays.sort_unstable();
    Ok(files)
}

/// Shortens what was found to the commits before `end`.
fn end_at(found: &mut Survey, repo: &dyn Repo, end: Offset, commit_bytes_max: u64) -> io::Result<()> {
    while found.segments.pop_if(|segment| segment.start >= end).is_some() {}
    (found.next, found.last) = (end, None);
    let Some(mut last) = found.segments.pop() else {
        found.next = found.first.unwrap_or(end);
        return Ok(());
    };
    // Without its last commit nothing of the segment is known to be whole.
    found.next = last.start;
    let mut reader = SegmentReader::open(repo, last.start)?;
    let (len, framing) = (BytePos(last.bytes), last.framing);
    let Some(place) = reader.seek(Offset(end.0 - 1), len, framing, commit_bytes_max)? else {
        return Ok(());
    };
    if let Some(commit) = reader.commit_at(place.at, framing, commit_bytes_max)? {
        (found.next, found.epoch, found.last) = (commit.end(), commit.epoch, Some(commit));
        (last.end, last.bytes) = (commit.end(), place.at.0 + commit.bytes);
        found.segments.push(last);
    }
    Ok(())
}
