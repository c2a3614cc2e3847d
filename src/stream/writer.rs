//! [`StreamWriter`]: appends a raw stream to a log, checking all of it first.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::batch::{Batch, Batcher, Part, Run};
use super::claim::{Aside, Claim, CutTail, ForeignWriteCheck, LogEnd, set_aside, torn_tail};
use super::cursor::Cursor;
use super::fault::{Fault, FaultKind, Tail};
use super::large::{self, CopyError, LargeCommit, LargeCommits};
use super::mark::DurableMark;
use super::open::{OnTrailing, OpenError, Options};
use super::outcome::{AppendError, Appended, Progress};
use super::record::{MirrorRecord, RecordFile};
use super::recover::{SegmentInfo, SurveyError, survey};
use super::rewrite::make_durable;
use super::sync::{Frontier, SyncJob, SyncLatch, Synced};
use crate::format::{Commit, Framing, LogFormat, name};
use crate::limits::UNSYNCED_MAX;
use crate::offset::{BytePos, Offset};
use crate::repo::{Repo, RepoLock, persist_names};
use crate::segment::{Entry, SegmentReader, SegmentWriter};

/// Bytes gathered before they are written in one go: few enough to be in the L2 cache still.
const WRITE_BYTES: u64 = 1 << 20;

type OnProgress = Box<dyn FnMut(&Progress) + Send>;

/// Appends raw log bytes to the log in a repo.
///
/// It checks every checksum, that offsets are contiguous and that epochs do not fall, before a byte is stored. The
/// frontiers are `durable ≤ next`: [`append`](Self::append) moves `next`, [`sync`](Self::sync) moves `durable`; only
/// what is before `durable` may be acknowledged. After a failed write or sync every call errs with
/// [`AppendError::Poisoned`] until the log is opened anew.
///
/// ```
/// use logmirror::repo::FsRepo;
/// use logmirror::stream::{Options, StreamWriter};
/// use std::sync::Arc;
///
/// let dir = tempfile::tempdir()?;
/// let mut writer = StreamWriter::open(Arc::new(FsRepo::open(dir.path())?), Options::default())?;
/// for chunk in std::fs::read("segments/commitlog/whole/00000000000000000000.stdb.log")?.chunks(1000) {
///     writer.append(chunk.to_vec())?;
/// }
/// assert_eq!(writer.finish()?.0, 111); // durable
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StreamWriter {
    repo: Arc<dyn Repo>,
    options: Options,
    _lock: Option<RepoLock>,
    sealed: Vec<SegmentInfo>,
    head: Option<SegmentWriter>,
    /// The offset of the first entry; `None` while an empty log takes any.
    first: Option<Offset>,
    /// What was staged or written.
    reached: Frontier,
    durable: Frontier,
    /// The end of what its files may hold.
    written: Offset,
    staged: Vec<Bytes>,
    staged_bytes: u64,
    staged_marks: Vec<Entry>,
    staged_commits: u64,
    batcher: Batcher,
    /// Why the stream given to `append` cannot go on.
    stopped: Option<AppendError>,
    mark: Option<Mark>,
    /// In a plain directory, where others may write.
    foreign: Option<ForeignWriteCheck>,
    cut: Option<CutTail>,
    latch: SyncLatch,
    /// Bytes of large commits that were copied.
    copied: Arc<AtomicU64>,
    poison: Option<Arc<str>>,
    on_progress: Option<OnProgress>,
}

impl std::fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("StreamWriter");
        shown.field("place", &self.repo.place()).field("next", &self.reached.next);
        shown.field("durable", &self.durable.next).field("poison", &self.poison).finish_non_exhaustive()
    }
}

impl StreamWriter {
    /// Opens the log in `repo` and takes its lock. After Ok, all that it holds is durable and nothing torn is left; what is
    /// not known to be durable, because a sync may have failed before, was written again for that. What was cut off its end
    /// and is more than the incomplete end of a write is kept in a file beside: see [`cut_tail`](Self::cut_tail).
    ///
    /// # Errors
    /// See [`OpenError`], which says when something may have been changed.
    pub fn open(repo: Arc<dyn Repo>, options: Options) -> Result<StreamWriter, OpenError> {
        let lock = lock(&*repo)?;
        let mut writer = StreamWriter::open_claimed(repo, options, None, &Aside::Beside)?;
        writer._lock = Some(lock);
        Ok(writer)
    }

    /// As [`open`](Self::open), for a log of a service: what is kept of its end goes below `log_dir`.
    pub(crate) fn open_in(
        repo: Arc<dyn Repo>,
        options: Options,
        log_dir: Arc<dyn Repo>,
    ) -> Result<StreamWriter, OpenError> {
        let lock = lock(&*repo)?;
        let mut writer = StreamWriter::open_claimed(repo, options, None, &Aside::Under(log_dir))?;
        writer._lock = Some(lock);
        Ok(writer)
    }

    /// As [`open`](Self::open), for a plain directory that is a mirror: with its record for a durable mark, and on the watch
    /// for other writers. Torn bytes at its end are cut if [`Options::on_trailing`] says so, and set aside if they may be
    /// anything but the incomplete end of our own write.
    ///
    /// # Errors
    /// [`OpenError::Changed`] when the directory is not as it was seen, before anything is changed; see [`OpenError`] for the
    /// others.
    #[cfg(test)]
    pub(crate) fn open_mirror(repo: Arc<dyn Repo>, options: Options, claim: &Claim) -> Result<StreamWriter, OpenError> {
        let lock = lock(&*repo)?;
        StreamWriter::open_locked_mirror(repo, options, claim, lock)
    }

    /// The same with the lock of the directory, which the caller holds already.
    pub(crate) fn open_locked_mirror(
        repo: Arc<dyn Repo>,
        options: Options,
        claim: &Claim,
        lock: RepoLock,
    ) -> Result<StreamWriter, OpenError> {
        let mut writer = StreamWriter::open_claimed(repo, options, Some(claim), &Aside::Beside)?;
        writer._lock = Some(lock);
        Ok(writer)
    }

    fn open_claimed(
        repo: Arc<dyn Repo>,
        options: Options,
        claim: Option<&Claim>,
        aside: &Aside,
    ) -> Result<StreamWriter, OpenError> {
        let floor = match claim {
            Some(claim) => claim.floor,
            None if options.durable_mark => {
                let mark = DurableMark::read(&*repo)?;
                if let Some(what) = mark.fault(options.durable_mark_expected) {
                    return Err(OpenError::Mark { path: format!("{}/{}", repo.place(), DurableMark::NAME), what });
                }
                mark.offset()
            }
            None => None,
        };
        let floor = floor.max(options.durable);
        let mut found = survey(&*repo, options.commit_bytes_max, floor)?;
        if claim.is_some_and(|claim| claim.seen != LogEnd::of(&found)) {
            return Err(OpenError::Changed { place: repo.place() });
        }
        if let Tail::Torn { bytes } = found.tail
            && options.on_trailing == OnTrailing::Error
        {
            let at = found.segments.last().filter(|_| found.empty_head.is_none());
            let (segment, at) = at.map_or((found.next, BytePos(0)), |s| (s.start, BytePos(s.bytes)));
            return Err(OpenError::Torn(Fault { segment, offset: found.next, at, kind: FaultKind::Torn { bytes } }));
        }
        if found.first.is_none() {
            found.next = options.first.unwrap_or_default();
        }
        if let Some(durable) = floor.filter(|floor| found.next < *floor) {
            return Err(OpenError::Lost { next: found.next, durable });
        }
        let mut cut = torn_tail(&found, found.format.unwrap_or(options.format));
        if let Some(cut) = &mut cut {
            let ours = floor.is_some() || claim.is_none();
            set_aside(&*repo, &found, cut, (ours, aside), options.commit_bytes_max)?;
        }
        let empty_head = found.empty_head;
        let head = open_head(&repo, &mut found)?;
        let first = found.first.or(options.first);
        let segment = head.as_ref().map(|head| (head.start(), head.end()));
        let reached = Frontier { next: found.next, epoch: found.epoch, last: found.last, segment };
        let format = found.format.unwrap_or(options.format);
        let framing = framing_behind(head.as_ref(), found.last.as_ref(), format);
        let batcher = batcher(&repo, &options, framing, first.map(|_| found.next));
        make_durable(&*repo, format, (&found, head.as_ref()), floor, options.commit_bytes_max)?;
        if floor.is_some_and(|floor| floor < found.next) {
            // What was written again was read again, and a page whose write had failed may have left the cache meanwhile.
            let written = survey(&*repo, options.commit_bytes_max, floor)?;
            if (written.next, written.last) != (found.next, found.last) {
                let text = "the disk holds other bytes than were read before: what is not known to be durable was lost";
                return Err(OpenError::Io(io::Error::new(io::ErrorKind::InvalidData, text)));
            }
        }
        let mark = match claim {
            Some(claim) => {
                let record = claim.record.clone().durable_up_to(first, found.next, found.last);
                Some(Mark::Record(RecordFile::open(&*repo, record)?))
            }
            None if options.durable_mark => Some(Mark::Durable(DurableMark::open(&*repo, found.next)?)),
            None => None,
        };
        // The names of an empty head and of a new mark may be what an earlier sync of the directory failed to write.
        if mark.is_some() || found.empty_head.is_some() {
            persist_names(&*repo)?;
        } else if found.first.is_some() {
            repo.sync_dir()?;
        }
        let mut writer = StreamWriter {
            repo,
            options: Options { format, ..options },
            _lock: None,
            sealed: found.segments,
            head,
            first,
            reached,
            durable: reached,
            written: reached.next,
            staged: Vec::new(),
            staged_bytes: 0,
            staged_marks: Vec::new(),
            staged_commits: 0,
            batcher,
            stopped: None,
            mark,
            foreign: claim.map(|_| ForeignWriteCheck::new(empty_head)),
            cut,
            latch: SyncLatch::default(),
            copied: Arc::default(),
            poison: None,
            on_progress: None,
        };
        writer.settle();
        if let Err(error) = large::remove_spools(&*writer.repo) {
            log::warn!("{}: files that a crash left cannot be removed: {error}", writer.repo.place());
        }
        Ok(writer)
    }

    /// What opening it cut off its end.
    #[must_use]
    pub fn cut_tail(&self) -> Option<&CutTail> {
        self.cut.as_ref()
    }

    /// Adds the bytes of large commits to `copied` as they are copied.
    pub(crate) fn count_copied(&mut self, copied: Arc<AtomicU64>) {
        self.copied = copied;
    }

    /// Calls `told` after each batch of commits that was handed to the operating system.
    pub fn on_progress(&mut self, told: impl FnMut(&Progress) + Send + 'static) {
        self.on_progress = Some(Box::new(told));
    }

    /// The offset after the last commit taken.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.reached.next
    }

    /// The offset after the last commit known durable.
    #[must_use]
    pub fn durable(&self) -> Offset {
        self.durable.next
    }

    /// The end of what its files may hold, also after a failure: what was taken at this offset or after it is not stored then.
    #[must_use]
    pub fn written(&self) -> Offset {
        self.written
    }

    /// The last commit known durable.
    #[must_use]
    pub fn last(&self) -> Option<Commit> {
        self.durable.last
    }

    /// The offset the log starts with, once it is known.
    #[must_use]
    pub fn first(&self) -> Option<Offset> {
        self.first
    }

    /// How a stream without a header goes on at [`next`](Self::next).
    #[must_use]
    pub fn framing(&self) -> Framing {
        framing_behind(self.head.as_ref(), self.reached.last.as_ref(), self.options.format)
    }

    /// How a stream without a header goes on at [`durable`](Self::durable).
    #[must_use]
    pub fn durable_framing(&self) -> Framing {
        framing_behind(self.head.as_ref(), self.durable.last.as_ref(), self.options.format)
    }

    pub(crate) fn durable_frontier(&self) -> &Frontier {
        &self.durable
    }

    /// The mirror record of its directory, as it was written last; `None` without one.
    pub(crate) fn mirror_record(&self) -> Option<&MirrorRecord> {
        match &self.mark {
            Some(Mark::Record(file)) => Some(file.record()),
            Some(Mark::Durable(_)) | None => None,
        }
    }

    /// The sealed segments; all of them are durable.
    #[must_use]
    pub fn sealed(&self) -> &[SegmentInfo] {
        &self.sealed
    }

    /// The open segment up to `durable`, if it holds a durable commit.
    #[must_use]
    pub fn durable_head(&self) -> Option<SegmentInfo> {
        let (head, (start, end)) = (self.head.as_ref()?, self.durable.segment?);
        let held = head.start() == start && self.durable.next > start;
        let (bytes, framing) = (end.0, head.framing());
        held.then_some(SegmentInfo { start, end: self.durable.next, bytes, framing, compressed: false })
    }

    /// Appends the next chunk of a stream, of any size. After Ok its whole commits are handed to the operating system;
    /// bytes of a commit that is not whole yet are kept in memory, or if they are many in a file without a name.
    ///
    /// # Errors
    /// See [`AppendError`]. All commits before the offending one are stored. The stream cannot go on after that; a new
    /// one may start after [`restart`](Self::restart).
    pub fn append(&mut self, chunk: impl Into<Bytes>) -> Result<Appended, AppendError> {
        if let Some(error) = &self.stopped {
            return Err(error.clone());
        }
        let mut batch = Batch::default();
        let sound = self.batcher.push(chunk.into(), &mut batch);
        let mut done = Appended::default();
        let appended = self.append_batch(&batch, &mut done);
        self.flush()?;
        match appended.and(sound.map_err(AppendError::from)) {
            Ok(()) => Ok(done),
            Err(error) => Err(self.stopped.insert(error).clone()),
        }
    }

    /// Forgets an unfinished commit and any error of the stream: the next chunk starts a new stream at `next`.
    pub fn restart(&mut self) {
        self.stopped = None;
        let expected = self.first.map(|_| self.reached.next);
        self.batcher = batcher(&self.repo, &self.options, self.framing(), expected);
    }

    /// The same for a stream that tells by itself where it starts: a commitlog anywhere, a WAL with its header and so with
    /// its first frame. What is held already is skipped if it is the same.
    pub fn restart_from_header(&mut self) {
        self.stopped = None;
        self.batcher = batcher(&self.repo, &self.options, self.framing(), None);
    }

    /// Ends the stream: checks that it stops on a boundary, and syncs. Returns the durable end.
    ///
    /// # Errors
    /// [`AppendError::Stream`] when it ended inside a commit: what came before is durable all the same.
    pub fn finish(&mut self) -> Result<Offset, AppendError> {
        let durable = self.sync()?;
        self.batcher.finish()?;
        Ok(durable)
    }

    /// Stages verified commits; they reach the operating system at [`flush`](Self::flush) at the latest. `done` counts
    /// also what was taken before an error.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn append_batch(&mut self, batch: &Batch, done: &mut Appended) -> Result<(), AppendError> {
        self.check()?;
        for part in &batch.parts {
            // A header comes with the run behind it; one without is no news.
            if let Part::Run(run) = part {
                self.append_run(run, done)?;
            }
            if self.staged_bytes >= WRITE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes out what is staged. After Ok it is handed to the operating system, nothing more.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`].
    pub fn flush(&mut self) -> Result<(), AppendError> {
        self.check()?;
        if self.staged_bytes > 0 {
            self.check_foreign()?;
        }
        let Some(head) = self.head.as_mut().filter(|_| self.staged_bytes > 0) else {
            return Ok(());
        };
        let mut slices: Vec<IoSlice<'_>> = self.staged.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let written = head.append(&mut slices, self.staged_bytes);
        drop(slices);
        if written.is_ok() || !head.is_cut() {
            self.written = self.reached.next;
        }
        head.note(self.staged_marks.drain(..));
        self.staged.clear();
        let (bytes, commits) = (std::mem::take(&mut self.staged_bytes), std::mem::take(&mut self.staged_commits));
        self.poisoning("write", written)?;
        if let Some(told) = &mut self.on_progress {
            told(&Progress { commits, bytes, next: self.reached.next, durable: self.durable.next });
        }
        Ok(())
    }

    /// Makes everything taken so far durable and returns where that ends.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`].
    pub fn sync(&mut self) -> Result<Offset, AppendError> {
        if let Some(job) = self.begin_sync()? {
            self.finish_sync(job.run())?;
        }
        Ok(self.durable.next)
    }

    /// Writes out what is staged and hands back the sync that would make it durable; `None` when all is. It may run on
    /// another thread while this one goes on appending.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`].
    pub fn begin_sync(&mut self) -> Result<Option<SyncJob>, AppendError> {
        self.flush()?;
        let head = self.head.as_ref().filter(|_| self.durable.next < self.reached.next);
        Ok(head.map(|head| SyncJob {
            file: head.file().clone(),
            latch: self.latch.clone(),
            reached: self.reached,
            forget: self.options.forget,
            place: self.place_of(head),
        }))
    }

    /// Where the file of the open segment must be for a sync of it to count.
    fn place_of(&self, head: &SegmentWriter) -> Option<(Arc<dyn Repo>, String)> {
        self.options.in_place.then(|| (self.repo.clone(), name::segment(self.framing().format(), head.start())))
    }

    /// Takes note of a sync that was done.
    ///
    /// # Errors
    /// [`AppendError::Poisoned`] when it failed.
    pub fn finish_sync(&mut self, synced: Synced) -> Result<Offset, AppendError> {
        self.poisoning("sync", synced.result)?;
        self.check()?;
        if synced.reached.next > self.durable.next {
            self.durable = synced.reached;
            self.settle();
        }
        Ok(self.durable.next)
    }

    /// Notes what is durable in the index and in the mark.
    fn settle(&mut self) {
        if let (Some(head), Some((start, end))) = (&mut self.head, self.durable.segment)
            && head.start() == start
        {
            head.settle(end);
        }
        let Frontier { next, last, .. } = self.durable;
        let noted = match &mut self.mark {
            Some(Mark::Durable(mark)) => mark.note(next),
            Some(Mark::Record(record)) => record.note(self.first, next, last),
            None => Ok(()),
        };
        if let Err(error) = noted {
            log::warn!("durable mark in {} was not written: {error}", self.repo.place());
        }
    }

    fn append_run(&mut self, run: &Run, done: &mut Appended) -> Result<(), AppendError> {
        let next = self.reached.next;
        if let Some(first) = self.first.filter(|first| run.first < *first) {
            return Err(AppendError::Pruned { first, found: run.first });
        }
        if self.first.is_some() && run.first < next {
            return self.skip_held(run, done);
        }
        if self.first.is_some() && run.first > next {
            return Err(AppendError::Gap { expected: next, found: run.first });
        }
        if run.epoch_first < self.reached.epoch {
            let (current, found) = (self.reached.epoch, run.epoch_first);
            return Err(AppendError::StaleEpoch { at: run.first, current, found });
        }
        if let Some(header) = &run.header {
            self.rotate(run.first, run.framing, header)?;
        }
        let Some(head) = self.head.as_ref().filter(|head| head.framing().is_like(&run.framing)) else {
            return Err(AppendError::NoHeader { found: run.first });
        };
        let base = head.end().0 + self.staged_bytes;
        if let Framing::Wal(start) = run.framing {
            // The run was verified on from another end of the log than this one has.
            if Framing::Wal(start) != self.framing() {
                return Err(AppendError::Fork { at: run.first });
            }
            let room = BytePos(self.options.segment_bytes_max.saturating_sub(base));
            if room == BytePos(0) && self.reached.next > head.start() {
                let header = run.framing.encode_header().unwrap_or_default();
                self.rotate(run.first, run.framing, &header)?;
                return self.append_run(run, done);
            }
            if run.bytes > room.0
                && let Some((front, rest)) = run.split(room)
            {
                self.append_run(&front, done)?;
                return self.append_run(&rest, done);
            }
        }
        if let Some(large) = &run.large {
            return self.append_large(run, large, done);
        }
        self.staged_marks.extend(run.marks.iter().map(|m| Entry { key: m.key, value: m.value.plus(base) }));
        self.staged.extend(run.slices.iter().cloned());
        self.staged_bytes += run.bytes;
        self.staged_commits += run.commits;
        let segment = Some((head.start(), BytePos(base + run.bytes)));
        self.first.get_or_insert(run.first);
        self.reached = Frontier { next: run.end, epoch: run.last.epoch, last: Some(run.last), segment };
        done.commits += run.commits;
        done.bytes += run.bytes;
        Ok(())
    }

    /// Appends the one commit of a run, whose bytes are in a file. They are written after the end of the open segment, synced on
    /// the way so that the next sync is short, and count once all of them were checked again.
    fn append_large(&mut self, run: &Run, large: &LargeCommit, done: &mut Appended) -> Result<(), AppendError> {
        self.flush()?;
        self.check_foreign()?;
        let Some(head) = self.head.as_mut() else {
            return Err(AppendError::NoHeader { found: run.first });
        };
        let base = head.end().0;
        let (latch, copied, mut unsynced) = (&self.latch, &self.copied, 0);
        let write = |bytes: &[u8], at| {
            head.write_ahead(bytes, at)?;
            copied.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            unsynced += bytes.len() as u64;
            if unsynced < UNSYNCED_MAX {
                return Ok(());
            }
            unsynced = 0;
            latch.sync(&**head.file(), None)
        };
        match large::copy(large, run.framing, &run.last, write) {
            Ok(()) => {}
            Err(CopyError::Write(error)) => return self.poisoning("write", Err(error)),
            Err(CopyError::Source(error)) => {
                let cut = head.cut_ahead();
                self.poisoning("write", cut)?;
                return Err(AppendError::Unread { at: run.first, reason: error.to_string().into() });
            }
        }
        head.advance(run.bytes);
        head.note(run.marks.iter().map(|mark| Entry { key: mark.key, value: mark.value.plus(base) }));
        let segment = Some((head.start(), head.end()));
        self.first.get_or_insert(run.first);
        self.reached = Frontier { next: run.end, epoch: run.last.epoch, last: Some(run.last), segment };
        self.written = run.end;
        done.commits += run.commits;
        done.bytes += run.bytes;
        if let Some(told) = &mut self.on_progress {
            let (commits, bytes) = (run.commits, run.bytes);
            told(&Progress { commits, bytes, next: self.reached.next, durable: self.durable.next });
        }
        Ok(())
    }

    /// Compares the commits of a run that starts before `next` with those we hold, and appends the rest.
    fn skip_held(&mut self, run: &Run, done: &mut Appended) -> Result<(), AppendError> {
        self.flush()?;
        let mut segments = self.sealed.clone();
        if let (Some(head), Some(start)) = (&self.head, self.head.as_ref().map(SegmentWriter::start)) {
            let (end, bytes, framing) = (self.reached.next, head.end().0, head.framing());
            segments.push(SegmentInfo { start, end, bytes, framing, compressed: false });
        }
        let held = Cursor::open(&self.repo, &segments, run.first, self.options.commit_bytes_max);
        let mut held = held.map_err(|error| self.unreadable(error))?;
        for (skipped, (at, commit)) in run.commits().enumerate() {
            if commit.first == self.reached.next {
                return self.append_run(&run.after(at, &commit, skipped as u64), done);
            }
            let ours = held.next().map_err(|error| self.unreadable(error))?.map(|placed| placed.commit);
            let same = |ours: Commit| (ours.first, ours.entries, ours.checksum);
            if ours.map(same) != Some(same(commit)) {
                return Err(AppendError::Fork { at: commit.first });
            }
            done.skipped += 1;
        }
        Ok(())
    }

    /// Seals the open segment and starts a new one at `start`, durably, before anything is put into it: were a segment's
    /// end lost to a power failure while its successor stays, the log would have a hole.
    fn rotate(&mut self, start: Offset, framing: Framing, header: &[u8]) -> Result<(), AppendError> {
        self.flush()?;
        self.check_foreign()?;
        if let Some(head) = &self.head {
            let synced = self.latch.sync(&**head.file(), self.place_of(head).as_ref());
            self.poisoning("sync", synced)?;
            self.durable = self.reached;
            self.settle();
        }
        if let Some(head) = self.head.as_ref().filter(|_| self.options.forget) {
            head.file().forget(head.end().0);
        }
        if let Some(mut head) = self.head.take()
            && self.reached.next > head.start()
        {
            head.seal_index();
            let (end, bytes, framing) = (self.reached.next, head.end().0, head.framing());
            self.sealed.push(SegmentInfo { start: head.start(), end, bytes, framing, compressed: false });
        }
        let created = SegmentWriter::create(&self.repo, start, framing, header);
        let head = self.poisoning("create a segment", created)?;
        let synced = head.file().sync().and_then(|()| self.repo.sync_dir());
        self.poisoning("sync the directory", synced)?;
        self.head = Some(head);
        Ok(())
    }

    /// Looks whether another process has written to a plain directory, also while there is nothing to write.
    ///
    /// # Errors
    /// [`AppendError::Foreign`], or [`AppendError::Poisoned`] when the directory cannot be looked at or its open segment is
    /// another file.
    pub(crate) fn look(&mut self) -> Result<(), AppendError> {
        self.check()?;
        self.check_foreign()
    }

    /// In a plain directory: that no other process has written to it. After Err nothing more is written.
    fn check_foreign(&mut self) -> Result<(), AppendError> {
        let Some(foreign) = &mut self.foreign else {
            return Ok(());
        };
        let checked = foreign.check(&*self.repo, self.head.as_ref(), &self.sealed);
        let Err((file, found)) = self.poisoning("look at the directory", checked)? else {
            return Ok(());
        };
        let error = AppendError::Foreign { file: format!("{}/{file}", self.repo.place()), found };
        self.poison = Some(error.to_string().into());
        Err(error)
    }

    fn check(&self) -> Result<(), AppendError> {
        match &self.poison {
            Some(cause) => Err(AppendError::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn unreadable(&mut self, error: SurveyError) -> AppendError {
        match error {
            SurveyError::Damaged(fault) => AppendError::Damaged(fault),
            SurveyError::Io(error) => {
                let cause: Arc<str> = format!("read failed: {error}").into();
                AppendError::Poisoned { cause: self.poison.get_or_insert(cause).clone() }
            }
        }
    }

    fn poisoning<T>(&mut self, what: &str, result: io::Result<T>) -> Result<T, AppendError> {
        result.map_err(|error| {
            // A service names its log otherwise.
            let place =
                self.foreign.as_ref().map(|_| format!(" of the log in {}", self.repo.place())).unwrap_or_default();
            let cause: Arc<str> = format!("{what}{place} failed: {error}").into();
            AppendError::Poisoned { cause: self.poison.get_or_insert(cause).clone() }
        })
    }
}

/// What remembers up to where the log is durable.
#[derive(Debug)]
enum Mark {
    Durable(DurableMark),
    Record(RecordFile),
}

/// What cuts a stream for a log in `repo` that goes on with `framing`, at offset `expected` if that is known.
fn batcher(repo: &Arc<dyn Repo>, options: &Options, framing: Framing, expected: Option<Offset>) -> Batcher {
    let large = LargeCommits::Spooled(repo.clone());
    Batcher::new(framing, expected, options.commit_bytes_max).keeping(large, options.commit_held_max)
}

fn lock(repo: &dyn Repo) -> Result<RepoLock, OpenError> {
    repo.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { place: repo.place() },
        _ => OpenError::Io(error),
    })
}

/// How a log goes on behind `last`, in the segment that is open.
fn framing_behind(head: Option<&SegmentWriter>, last: Option<&Commit>, format: LogFormat) -> Framing {
    let framing = head.map_or(Framing::of(format), SegmentWriter::framing);
    last.map_or(framing, |last| framing.behind(last))
}

/// Opens the segment that goes on: the empty head if there is one, else the last segment.
fn open_head(repo: &Arc<dyn Repo>, found: &mut super::recover::Survey) -> io::Result<Option<SegmentWriter>> {
    if let Some(start) = found.empty_head {
        let mut reader = SegmentReader::open(&**repo, start)?;
        let before = found.segments.last().map(|segment| match &found.last {
            Some(last) => segment.framing.behind(last),
            None => segment.framing,
        });
        let framing = reader.header()?.ok().flatten().or(before).unwrap_or(Framing::of(reader.format()));
        // A WAL without any header starts anew with the next one that comes.
        let Some(header) = framing.encode_header() else {
            let file = repo.open_write(&name::segment(framing.format(), start))?;
            if file.bytes()? > 0 {
                file.truncate(0)?;
            }
            return Ok(None);
        };
        return SegmentWriter::reset(repo, start, framing, &header).map(Some);
    }
    let Some(last) = found.segments.pop_if(|last| !last.compressed) else {
        return Ok(None);
    };
    let (entry, marks) = &found.indexed;
    SegmentWriter::open(repo, last.start, last.framing, BytePos(last.bytes), *entry, marks).map(Some)
}
