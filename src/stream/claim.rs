//! A plain directory that becomes, or is, a mirror of ours: what was seen of it before, and whether another process writes it.

use std::collections::HashSet;
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
    remove_draft(repo)?;
    let copied = copy_aside(repo, &*file, cut);
    if copied.is_err() {
        // The error of the copy is the one to report; the next attempt removes what this could not.
        let _ = remove_draft(repo);
    }
    cut.aside = Some(copied?);
    Ok(())
}

/// The name of a copy that is being made: always the same, so that copies that fail do not pile up.
const ASIDE_DRAFT: &str = "aside.tmp";

fn remove_draft(repo: &dyn Repo) -> io::Result<()> {
    match repo.remove(ASIDE_DRAFT) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies `file` from where it is cut on. Returns the copy's name, which it gets when it is whole and synced.
fn copy_aside(repo: &dyn Repo, file: &dyn RepoFile, cut: &CutTail) -> io::Result<String> {
    let copy = repo.create(ASIDE_DRAFT)?;
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
    let name = free_aside(repo, &cut.file, cut.at)?;
    repo.rename(ASIDE_DRAFT, &name)?;
    if let Err(error) = repo.sync_dir() {
        let _ = repo.remove(&name);
        return Err(error);
    }
    Ok(name)
}

fn free_aside(repo: &dyn Repo, file: &str, at: BytePos) -> io::Result<String> {
    const ASIDE_MAX: u32 = 1000;
    let names: HashSet<String> = repo.list()?.into_iter().collect();
    let mut numbered = (1..ASIDE_MAX).map(|number| format!("{file}.aside-{at}-{number}"));
    let free = numbered.find(|name| !names.contains(name));
    free.ok_or_else(|| io::Error::other(format!("{file} has {ASIDE_MAX} files set aside beside it")))
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
    /// Its name belongs to another file, or to none.
    #[error("the file was replaced or removed")]
    Replaced,
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
        if let Some(head) = head
            && !is_same(repo, head)?
        {
            return Ok(Err((head.file_name(), ForeignWrite::Replaced)));
        }
        self.checked = changed.filter(|at| now.duration_since(*at).is_ok_and(|since| since > RECENT));
        Ok(Ok(()))
    }
}

/// Whether the name of the open segment is still that of our file.
///
/// # Errors
/// When that is not known now.
fn is_same(repo: &dyn Repo, head: &SegmentWriter) -> io::Result<bool> {
    let named = match repo.open(&head.file_name()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        named => named?,
    };
    let identity = |file: &dyn RepoFile| -> io::Result<_> {
        Ok(file.plain().map(std::fs::File::metadata).transpose()?.map(|found| (found.dev(), found.ino())))
    };
    Ok(identity(&*named)? == identity(&**head.file())?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::limits::COMMIT_BYTES_MAX;
    use crate::offset::Generation;
    use crate::repo::{Faults, Loss, MemRepo, Op};
    use crate::stream::{OpenError, Options, StreamWriter, survey};

    const SEGMENT: &str = "segments/commitlog/whole/00000000000000000000.stdb.log";
    const COMMIT_BYTES: usize = 218;

    fn open(repo: &MemRepo) -> StreamWriter {
        try_open(repo).expect("opened")
    }

    fn try_open(repo: &MemRepo) -> Result<StreamWriter, OpenError> {
        let record = MirrorRecord::read(repo).expect("read");
        let floor = record.map(|record| record.durable);
        let found = survey(repo, COMMIT_BYTES_MAX, floor).expect("sound");
        let record = MirrorRecord::new("test", LogFormat::Commitlog, Generation::FIRST);
        let floor = floor.filter(|_| found.first.is_some());
        let claim = Claim { record, floor, seen: LogEnd::of(&found) };
        let options = Options { on_trailing: crate::stream::OnTrailing::Trim, ..Options::default() };
        StreamWriter::open_mirror(Arc::new(repo.clone()), options, &claim)
    }

    #[test]
    fn copies_that_cannot_be_set_aside_do_not_pile_up() {
        let repo = MemRepo::new(Faults::default());
        let stream = std::fs::read(SEGMENT).expect("the specimen");
        let (sound, tail) = stream[..10 + 14 * COMMIT_BYTES].split_at(10 + 10 * COMMIT_BYTES);
        let mut writer = open(&repo);
        writer.append(sound.to_vec()).expect("appended");
        writer.finish().expect("synced");
        drop(writer);
        let segment = name::segment(LogFormat::Commitlog, Offset::ZERO);
        let mut tail = tail.to_vec();
        tail[30] ^= 1;
        let file = repo.open_write(&segment).expect("opened");
        file.write_at(&mut [io::IoSlice::new(&tail)], sound.len() as u64).expect("written");
        let before = repo.list().expect("listed");
        for (op, nth) in [(Op::Write, 0), (Op::Sync, 0), (Op::Rename, 0), (Op::SyncDir, 0)].repeat(2) {
            repo.set_faults(Faults { fail_nth: Some((op, nth)), ..Faults::default() });
            try_open(&repo).expect_err("it cannot be set aside");
            assert_eq!(repo.list().expect("listed"), before, "after {op:?} failed");
        }
        repo.set_faults(Faults::default());
        let aside = open(&repo).cut_tail().and_then(|cut| cut.aside.clone()).expect("set aside");
        let mut kept = vec![0; tail.len() + 1];
        assert_eq!(repo.open(&aside).expect("opened").read_at(&mut kept, 0).expect("read"), tail.len());
        assert_eq!(kept[..tail.len()], tail);
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
