//! A plain directory that becomes, or is, a mirror of ours: what was seen of it before, and whether another process writes it.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::fault::Tail;
use super::record::MirrorRecord;
use super::recover::{SegmentInfo, Survey, segment_starts, sound_commit_behind};
use crate::format::{Commit, Framing, LogFormat, name};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Offset};
use crate::repo::{Repo, RepoFile, persist_names};
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

/// What was cut off the end of a log when it was opened.
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
    /// What they are.
    pub content: TornContent,
    /// How many whole commits were found in them.
    pub commits: u64,
}

/// Where bytes are kept that are cut and may be another writer's.
#[derive(Debug)]
pub(crate) enum Aside {
    /// In the directory of the segments, as `FILE.aside-BYTE-NUMBER`.
    Beside,
    /// In `aside/TIME-REASON/` of the directory of a log, under the name of the file.
    Under(Arc<dyn Repo>),
}

/// The directory for what is kept aside, in that of a log.
pub(crate) const ASIDE: &str = "aside";

/// Whether a directory in [`ASIDE`] holds commits that were cut when the log was opened.
pub(crate) fn holds_cut_commits(name: &str) -> bool {
    [TornContent::CommitsAfterDamage.reason(), OTHER_COMMITS].iter().any(|reason| name.contains(&format!("-{reason}")))
}

const OTHER_COMMITS: &str = "other-commits";

/// What the bytes are that a log ends in after its last commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TornContent {
    /// No whole commit: the incomplete end of a write.
    Incomplete,
    /// Damage, and whole commits after it, as a power failure may leave them.
    CommitsAfterDamage,
    /// A whole commit right at the end of the log that does not continue it: another writer's.
    OtherCommit(BytePos, Commit),
}

impl TornContent {
    /// What a directory that holds them is named after.
    fn reason(self) -> &'static str {
        match self {
            TornContent::Incomplete => "incomplete",
            TornContent::CommitsAfterDamage => "commits-after-damage",
            TornContent::OtherCommit(..) => OTHER_COMMITS,
        }
    }
}

/// Finds out what the bytes are that a log ends in. Reads them all.
///
/// # Errors
/// As the repo says.
pub fn torn_content(repo: &dyn Repo, found: &Survey, commit_bytes_max: u64) -> io::Result<TornContent> {
    torn_commits(repo, found, commit_bytes_max).map(|(content, ..)| content)
}

/// The same, and how many whole commits there are, in how many bytes.
pub(crate) fn torn_commits(
    repo: &dyn Repo,
    found: &Survey,
    commit_bytes_max: u64,
) -> io::Result<(TornContent, u64, u64)> {
    let (Tail::Torn { bytes }, Some(format)) = (found.tail, found.format) else {
        return Ok((TornContent::Incomplete, 0, 0));
    };
    let Some(CutTail { at, .. }) = torn_tail(found, format) else {
        return Ok((TornContent::Incomplete, 0, bytes));
    };
    let segment = found.empty_head.or(found.segments.last().map(|last| last.start)).unwrap_or(found.next);
    let mut reader = SegmentReader::open(repo, segment)?;
    // With the header of a segment that is nothing else.
    let bytes = reader.len()?.saturating_sub(at.0);
    let framing = reader.header()?.ok().flatten().unwrap_or(Framing::of(reader.format()));
    // Also those of another history, which may go back.
    let from = Offset(found.next.0.saturating_sub(u64::from(u32::MAX / 2)));
    // The frames of a WAL say nothing of where they belong.
    if let Framing::Commitlog(_) = framing {
        let first = at.max(BytePos(framing.header_len() as u64));
        if let Some(commit) = reader.commit_at(first, framing, commit_bytes_max)? {
            let count = count_commits(&mut reader, (first, commit), from, framing, commit_bytes_max)?;
            return Ok((TornContent::OtherCommit(first, commit), count, bytes));
        }
    }
    let Some(later) = sound_commit_behind(&mut reader, at, from, framing, commit_bytes_max)? else {
        return Ok((TornContent::Incomplete, 0, bytes));
    };
    let count = count_commits(&mut reader, later, from, framing, commit_bytes_max)?;
    Ok((TornContent::CommitsAfterDamage, count, bytes))
}

/// Counts the whole commits from one on.
fn count_commits(
    reader: &mut SegmentReader,
    first: (BytePos, Commit),
    from: Offset,
    framing: Framing,
    commit_bytes_max: u64,
) -> io::Result<u64> {
    // Each search may read all that is left.
    const SEARCHES_MAX: u32 = 16;
    let (mut count, mut searches, mut next) = (0, 0, Some(first));
    while let Some((at, commit)) = next {
        count += 1;
        let end = at.plus(commit.bytes);
        next = reader.commit_at(end, framing, commit_bytes_max)?.map(|commit| (end, commit));
        if next.is_none() && searches < SEARCHES_MAX {
            searches += 1;
            next = sound_commit_behind(reader, BytePos(end.0 - 1), from, framing, commit_bytes_max)?;
        }
    }
    Ok(count)
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
    Some(CutTail {
        file: name::segment(format, segment),
        at: BytePos(at),
        bytes,
        aside: None,
        content: TornContent::Incomplete,
        commits: 0,
    })
}

/// Copies what is about to be cut into a file of its own, if it may be more than the incomplete end of our own write: unless
/// the log is known to be `ours` anything may be another writer's, and otherwise whole commits may be. After Ok the copy is
/// durable.
pub(super) fn set_aside(
    repo: &dyn Repo,
    found: &Survey,
    cut: &mut CutTail,
    (ours, aside): (bool, &Aside),
    commit_bytes_max: u64,
) -> io::Result<()> {
    if matches!(found.tail, Tail::Zeros { .. }) {
        return Ok(());
    }
    (cut.content, cut.commits, cut.bytes) = torn_commits(repo, found, commit_bytes_max)?;
    if ours && cut.content == TornContent::Incomplete {
        return Ok(());
    }
    let file = repo.open(&cut.file)?;
    let Aside::Under(log_dir) = aside else {
        remove_draft(repo)?;
        let copied = copy_aside(repo, &*file, cut, || free_aside(repo, &cut.file, cut.at));
        if copied.is_err() {
            // The error of the copy is the one to report; the next attempt removes what this could not.
            let _ = remove_draft(repo);
        }
        cut.aside = Some(copied?);
        return Ok(());
    };
    let all = existing_or_new(&**log_dir, ASIDE)?;
    let (name, dir) = new_aside(&*all, cut.content.reason())?;
    let copied = copy_aside(&*dir, &*file, cut, || Ok(cut.file.clone())).and_then(|name| {
        persist_names(&*all)?;
        Ok(name)
    });
    if copied.is_err() {
        // The error of the copy is the one to report.
        let _ = remove_draft(&*dir).and_then(|()| all.remove(&name));
    }
    cut.aside = Some(format!("{}/{}", dir.place(), copied?));
    Ok(())
}

/// The directory `name` in `parent`; its name is durable after Ok.
pub(crate) fn existing_or_new(parent: &dyn Repo, name: &str) -> io::Result<Arc<dyn Repo>> {
    let dir = match parent.dir(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => parent.create_dir(name)?,
        dir => dir?,
    };
    persist_names(parent)?;
    Ok(dir)
}

/// Creates a directory `TIME-REASON` that is not there yet in `all`, the [`ASIDE`] of a log.
pub(crate) fn new_aside(all: &dyn Repo, reason: &str) -> io::Result<(String, Arc<dyn Repo>)> {
    const NUMBERS_MAX: u32 = 1000;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    for number in 1..NUMBERS_MAX {
        let name = match number {
            1 => format!("{seconds}-{reason}"),
            number => format!("{seconds}-{reason}-{number}"),
        };
        match all.create_dir(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            dir => return Ok((name, dir?)),
        }
    }
    Err(io::Error::other(format!("{} has {NUMBERS_MAX} directories of one second", all.place())))
}

/// The name of a copy that is being made: always the same, so that copies that fail do not pile up.
const ASIDE_DRAFT: &str = "aside.tmp";

fn remove_draft(repo: &dyn Repo) -> io::Result<()> {
    match repo.remove(ASIDE_DRAFT) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies `file` from where it is cut on. Returns the copy's name, which it gets from `name` when it is whole and synced.
fn copy_aside(
    repo: &dyn Repo,
    file: &dyn RepoFile,
    cut: &CutTail,
    name: impl FnOnce() -> io::Result<String>,
) -> io::Result<String> {
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
    let name = name()?;
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
        let starts = segment_starts(repo)?;
        // The first ones may have been removed on purpose.
        let is_lost = |start: &Offset| starts.first().is_some_and(|first| first < start) && !starts.contains(start);
        if let Some(lost) = sealed.iter().map(|segment| segment.start).find(is_lost) {
            let text = format!("segment {lost} is missing: it was there when the directory was opened");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        if let Some(start) = starts.into_iter().find(|start| !ours(*start)) {
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
