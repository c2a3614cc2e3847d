//! A plain directory that becomes, or is, a mirror of ours: what was seen of it before, and whether another process writes it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use super::fault::Tail;
use super::record::MirrorRecord;
use super::recover::{SegmentInfo, Survey, segment_starts, sound_commit_behind};
use crate::format::{Commit, Framing, LogFormat, name};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Offset};
use crate::repo::{Repo, RepoFile};
use crate::segment::{SegmentReader, SegmentWriter};

/// What gives the right to write a directory: its record, and what it held when that was compared with the source.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The record to write.
    pub(crate) record: MirrorRecord,
    /// The durable end of the record that was there; `None` without one.
    pub(crate) floor: Option<Offset>,
    /// What was compared.
    pub(crate) seen: LogEnd,
}

/// Where a log ended and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogEnd {
    next: Offset,
    last: Option<Commit>,
    tail: Tail,
    empty_head: Option<Offset>,
    segments: usize,
}

impl LogEnd {
    pub(crate) fn of(survey: &Survey) -> LogEnd {
        let Survey { next, last, tail, empty_head, ref segments, .. } = *survey;
        LogEnd { next, last, tail, empty_head, segments: segments.len() }
    }
}

/// What was cut off the end of a mirror when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTail {
    /// The segment's file.
    pub file: String,
    /// Where it ends now.
    pub at: BytePos,
    /// How many bytes were cut.
    pub bytes: u64,
    /// The file that holds them now, unless they were only the incomplete end of our own write.
    pub aside: Option<String>,
}

/// What opening a log for writing would cut.
pub(super) fn torn_tail(found: &Survey, format: LogFormat) -> Option<CutTail> {
    let (Tail::Torn { bytes } | Tail::Zeros { bytes }) = found.tail else {
        return None;
    };
    let (segment, at) = match (found.empty_head, found.segments.last()) {
        (None, Some(last)) => (last.start, last.bytes),
        (head, _) => (head.unwrap_or(found.next), 0),
    };
    Some(CutTail { file: name::segment(format, segment), at: BytePos(at), bytes, aside: None })
}

/// Copies what is about to be cut into a file beside, if it may be more than the incomplete end of our own write: without a
/// record anything may be another writer's, and with one whole commits may be. After Ok the copy is durable.
pub(super) fn set_aside(
    repo: &dyn Repo,
    found: &Survey,
    cut: &mut CutTail,
    floor: Option<Offset>,
    commit_bytes_max: u64,
) -> io::Result<()> {
    let segment = found.empty_head.or(found.segments.last().map(|last| last.start)).unwrap_or(found.next);
    let mut reader = SegmentReader::open(repo, segment)?;
    let framing = reader.header()?.ok().flatten().unwrap_or(Framing::of(reader.format()));
    if matches!(found.tail, Tail::Zeros { .. })
        || floor.is_some() && sound_commit_behind(&mut reader, cut.at, found.next, framing, commit_bytes_max)?.is_none()
    {
        return Ok(());
    }
    let file = repo.open(&cut.file)?;
    let (copy, name) = create_aside(repo, &cut.file, cut.at)?;
    let (mut block, mut done) = (vec![0; READ_BLOCK], 0);
    loop {
        let count = file.read_at(&mut block, cut.at.0 + done)?;
        if count == 0 {
            break;
        }
        copy.write_at(&mut [io::IoSlice::new(&block[..count])], done)?;
        done += count as u64;
    }
    copy.sync()?;
    repo.sync_dir()?;
    cut.aside = Some(name);
    Ok(())
}

fn create_aside(repo: &dyn Repo, file: &str, at: BytePos) -> io::Result<(std::sync::Arc<dyn RepoFile>, String)> {
    const ASIDE_MAX: u32 = 1000;
    for number in 1..ASIDE_MAX {
        let name = format!("{file}.aside-{at}-{number}");
        match repo.create(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            file => return Ok((file?, name)),
        }
    }
    Err(io::Error::other(format!("{file} has {ASIDE_MAX} files set aside beside it")))
}

/// What shows that another process writes a directory of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignWrite {
    /// The open segment is not as long as we left it.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// What we left.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// It is a segment that we did not create.
    #[error("we did not create this segment")]
    Segment,
}

/// Directory times are as coarse as the kernel's clock tick: one as recent as this may hide a later change.
const RECENT: Duration = Duration::from_millis(50);

/// Looks for the writes of other processes before each of ours.
#[derive(Debug)]
pub(super) struct ForeignWriteCheck {
    /// A segment without a header that was there when the log was opened.
    empty_head: Option<Offset>,
    /// When the directory was last changed, if what it held was looked at since and no later change can hide behind it.
    checked: Option<SystemTime>,
}

impl ForeignWriteCheck {
    pub(super) fn new(empty_head: Option<Offset>) -> ForeignWriteCheck {
        ForeignWriteCheck { empty_head, checked: None }
    }

    /// Ok while no other process has written: the open segment is as long as we left it, and there is no segment but ours.
    /// Otherwise the file and what is wrong with it.
    pub(super) fn check(
        &mut self,
        repo: &dyn Repo,
        head: Option<&SegmentWriter>,
        sealed: &[SegmentInfo],
    ) -> io::Result<Result<(), (String, ForeignWrite)>> {
        if let Some(head) = head {
            let (expected, found) = (head.end().0, head.file().bytes()?);
            if expected != found {
                return Ok(Err((head.file_name(), ForeignWrite::Length { expected, found })));
            }
        }
        let changed = repo.changed()?;
        if changed.is_none() || changed == self.checked {
            return Ok(Ok(()));
        }
        let ours = |start: Offset| {
            head.is_some_and(|head| head.start() == start)
                || self.empty_head == Some(start)
                || sealed.binary_search_by_key(&start, |segment| segment.start).is_ok()
        };
        let now = SystemTime::now();
        if let Some(start) = segment_starts(repo)?.into_iter().find(|start| !ours(*start)) {
            let known = head.map(SegmentWriter::framing).or(sealed.last().map(|segment| segment.framing));
            let format = known.map_or(LogFormat::default(), |framing| framing.format());
            return Ok(Err((name::segment(format, start), ForeignWrite::Segment)));
        }
        if let Some(head) = head {
            check_same(repo, head)?;
        }
        self.checked = changed.filter(|at| now.duration_since(*at).is_ok_and(|since| since > RECENT));
        Ok(Ok(()))
    }
}

/// Checks that the name of the open segment is still that of our file.
///
/// # Errors
/// When it is not, or not known now. A directory that was moved away, or brought back from a copy, is no other writer's: the log
/// must be opened again, and what it holds then compared.
fn check_same(repo: &dyn Repo, head: &SegmentWriter) -> io::Result<()> {
    let identity = |file: &dyn RepoFile| -> io::Result<_> {
        Ok(file.plain().map(std::fs::File::metadata).transpose()?.map(|found| (found.dev(), found.ino())))
    };
    let named = repo.open(&head.file_name())?;
    if identity(&*named)? == identity(&**head.file())? {
        return Ok(());
    }
    Err(io::Error::other(format!("{}/{} is another file than the one that was opened", repo.place(), head.file_name())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::limits::COMMIT_BYTES_MAX;
    use crate::offset::Generation;
    use crate::repo::{Faults, Loss, MemRepo};
    use crate::stream::{Options, StreamWriter, survey};

    const SEGMENT: &str = "segments/commitlog/whole/00000000000000000000.stdb.log";
    const COMMIT_BYTES: usize = 218;

    fn open(repo: &MemRepo) -> StreamWriter {
        let record = MirrorRecord::read(repo).expect("read");
        let floor = record.map(|record| record.durable);
        let found = survey(repo, COMMIT_BYTES_MAX, floor).expect("sound");
        let record = MirrorRecord::new("test", LogFormat::Commitlog, Generation::FIRST);
        let floor = floor.filter(|_| found.first.is_some());
        let claim = Claim { record, floor, seen: LogEnd::of(&found) };
        let options = Options { on_trailing: crate::stream::OnTrailing::Trim, ..Options::default() };
        StreamWriter::open_mirror(Arc::new(repo.clone()), options, &claim).expect("opened")
    }

    /// Where the record and the log end after a power failure.
    fn after(repo: &MemRepo, loss: Loss) -> (Offset, Offset) {
        let found = repo.after_power_loss(loss);
        let record = MirrorRecord::read(&found).expect("read").expect("a record");
        let end = survey(&found, COMMIT_BYTES_MAX, Some(record.durable)).expect("sound");
        (record.durable, end.next)
    }

    #[test]
    fn a_record_is_never_ahead_of_what_a_power_failure_leaves() {
        let repo = MemRepo::new(Faults::default());
        let stream = std::fs::read(SEGMENT).expect("the specimen");
        let mut writer = open(&repo);
        let mut acknowledged = Offset::ZERO;
        for (at, chunk) in stream.chunks(COMMIT_BYTES * 2 + 50).enumerate() {
            writer.append(chunk.to_vec()).expect("appended");
            if at % 3 == 0 {
                acknowledged = writer.sync().expect("synced");
            }
            let torn = (0..8).map(|seed| Loss::Torn { seed: seed + at as u64 * 8 });
            for loss in torn.chain([Loss::All, Loss::Nothing]) {
                let (durable, end) = after(&repo, loss);
                assert!(durable <= end && acknowledged <= end, "{durable} {acknowledged} {end}");
            }
        }
        let end = writer.finish().expect("synced");
        drop(writer);
        // What opening found is in the record for good, whatever happens to the notes after it.
        drop(open(&repo));
        assert_eq!(after(&repo, Loss::All), (end, end));
    }
}
