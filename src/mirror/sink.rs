//! Where `logmirror mirror` writes to: a directory, or a log of a service. Its status is read first, then compared with the
//! source, and only then opened for writing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use uuid::Uuid;

use super::base;
use super::base_due::Instead;
use super::database::off;
use super::failure::MirrorError;
use super::feeding::Feeding;
use super::missing::{BaseLook, base_fault, note_sound};
use super::overlap::Overlap;
use super::ownership::{self, DbLockGuard, DirIdentity};
use super::presence::Presence;
use super::shorter;
use super::source::{Extent, Source};
use crate::api::{LastCommit, Positions};
use crate::client::{Client, positions};
use crate::format::{LogFormat, name};
use crate::offset::{Generation, Offset};
use crate::repo::{FsRepo, Repo, RepoLock};
use crate::segment::base::{BaseDigest, BaseFault, BaseReader, KnownBase};
use crate::stream::{
    Claim, Cursor, CutTail, Fault, FaultKind, LogEnd, MirrorRecord, OnTrailing, OpenError, Options, RECORD, ReadError,
    RecordFile, StreamWriter, Survey, SurveyError, Tail, TornContent, begin_step, current_dir, draft_name, end_step,
    format_of, keep_before, remove_before_current, set_before_aside, survey, torn_content,
};

/// Where to write to, and how it is reached.
#[derive(Debug)]
pub(super) enum Sink {
    Dir(Arc<DirSink>),
    Url(Client),
}

/// What a sink was found to hold; nothing of it was changed.
#[derive(Clone, Debug)]
pub(super) enum SinkStatus {
    /// None while there is no directory.
    Dir(Option<Box<DirStatus>>),
    /// None while there is no log.
    Url(Option<Positions>),
}

impl SinkStatus {
    /// The offset it goes on with; none when it takes any.
    pub(super) fn next(&self) -> Option<Offset> {
        match self {
            SinkStatus::Dir(found) => found.as_ref().and_then(|it| it.survey.first.map(|_| it.survey.next)),
            SinkStatus::Url(status) => status.map(|status| status.durable),
        }
    }

    /// Its last commit.
    pub(super) fn last(&self) -> Option<LastCommit> {
        match self {
            SinkStatus::Dir(found) => found.as_ref().and_then(|it| it.survey.last.as_ref().map(LastCommit::from)),
            SinkStatus::Url(status) => status.and_then(|status| status.last_commit),
        }
    }

    /// The commits to compare with a source that starts at `source_first`.
    pub(super) async fn held(
        &self,
        source_first: Option<Offset>,
        commit_bytes_max: u64,
    ) -> Result<Overlap, MirrorError> {
        match self {
            SinkStatus::Dir(Some(found)) => Overlap::in_dir(found, source_first, commit_bytes_max).await,
            SinkStatus::Dir(None) => Ok(Overlap::default()),
            // Unless the source was pruned exactly up to there.
            SinkStatus::Url(_) => {
                Ok(Overlap::only(self.last().filter(|_| source_first.is_none() || source_first != self.next())))
            }
        }
    }
}

impl Sink {
    /// An error of a call to this sink: where its log is damaged, the source is not.
    pub(super) fn own(&self, error: MirrorError) -> MirrorError {
        match self {
            Sink::Dir(_) => error,
            Sink::Url(client) => error.of_sink(client.url().as_str()),
        }
    }

    /// The generation it is in, where generations are known and it has begun.
    pub(super) async fn generation(&self) -> Result<Option<Generation>, MirrorError> {
        match self {
            Sink::Dir(dir) => match self.status(None).await? {
                SinkStatus::Dir(Some(found)) => Ok(dir.generation(&found)),
                _ => Ok(None),
            },
            Sink::Url(client) => {
                Ok(client.find().await?.as_ref().map(positions).transpose()?.map(|found| found.generation))
            }
        }
    }

    /// What it holds, for a source of the format `wanted`, if that is known. Changes nothing.
    pub(super) async fn status(&self, wanted: Option<LogFormat>) -> Result<SinkStatus, MirrorError> {
        let same = |found: Option<LogFormat>, place: &dyn std::fmt::Display| match (found, wanted) {
            (Some(found), Some(wanted)) if found != wanted => {
                Err(MirrorError::OtherFormat { place: place.to_string(), found, wanted })
            }
            _ => Ok(()),
        };
        match self {
            Sink::Dir(dir) => {
                let looking = dir.clone();
                let found = off(move || looking.status()).await??;
                same(found.as_ref().and_then(|found| found.survey.format), &dir.path.display())?;
                Ok(SinkStatus::Dir(found.map(Box::new)))
            }
            Sink::Url(client) => {
                // Of a log that could not be opened the format may not be known either: that is waited for.
                let found = client.find().await?.as_ref().map(positions).transpose()?;
                same(found.map(|found| found.format), client.url())?;
                Ok(SinkStatus::Url(found))
            }
        }
    }

    /// Notes which log of a service the content comes from, if it comes from one.
    pub(super) fn comes_from(&self, extent: &Extent) {
        if let Sink::Dir(dir) = self {
            let mut origin = locked(&dir.origin);
            (origin.log, origin.is_log) = (extent.log, true);
        }
    }

    /// That a sink may go on of which the source has pruned what would have to be compared: a directory must be ours up to there,
    /// and say that it is a mirror of this source.
    pub(super) fn check_uncompared(
        &self,
        status: &SinkStatus,
        extent: &Extent,
        adopt: bool,
    ) -> Result<(), MirrorError> {
        match (self, status) {
            (Sink::Dir(dir), SinkStatus::Dir(Some(found))) => dir.check_uncompared(found, extent),
            (Sink::Url(client), SinkStatus::Url(Some(found)))
                if !adopt && found.last_commit.is_some() && extent.first == Some(found.durable) =>
            {
                let next = found.durable;
                let reason = format!(
                    "it ends at offset {next}, where the source starts, so they have no commit in common; so it is too when \
                     the source was pruned right up to there"
                );
                Err(MirrorError::Unproven { place: client.url().to_string(), reason })
            }
            _ => Ok(()),
        }
    }

    /// Checks what [`open`](Self::open) checks before it changes anything, or with `base` what giving it a base checks.
    pub(super) async fn check_writable(&self, status: &SinkStatus, base: bool) -> Result<(), MirrorError> {
        match (self, status) {
            (Sink::Dir(dir), SinkStatus::Dir(found)) => {
                let (dir, found) = (dir.clone(), found.clone());
                off(move || match base {
                    true => dir.status_for_base().map(drop),
                    false => dir.check_writable(found.as_deref()),
                })
                .await?
            }
            _ => Ok(()),
        }
    }

    /// Opens it for writing, creating what is not there to start at `first`. What `status` found must have been compared with
    /// the source.
    pub(super) async fn open(
        &self,
        status: SinkStatus,
        format: LogFormat,
        generation: Generation,
        first: Option<Offset>,
    ) -> Result<OpenSink, MirrorError> {
        match (self, status) {
            (Sink::Dir(dir), SinkStatus::Dir(found)) => {
                let opening = dir.clone();
                let writer = off(move || opening.open(found.as_deref(), format, generation)).await??;
                let (cut, emptied) = (writer.cut_tail().cloned(), locked(&dir.emptied).take());
                let (refetched, left) = (locked(&dir.refetched).take(), dir.clone());
                let place = dir.path.display().to_string();
                let feeding = Feeding::dir(writer, place, move |record| left.presence.left(record));
                Ok(OpenSink { feeding, cut, emptied, refetched })
            }
            (Sink::Url(client), SinkStatus::Url(Some(status))) => {
                Ok(OpenSink::of(Feeding::url(client.clone(), status.durable)))
            }
            (Sink::Url(client), _) => {
                let status = positions(&client.create(format, first).await?)?;
                Ok(OpenSink::of(Feeding::url(client.clone(), status.durable)))
            }
            (Sink::Dir(_), SinkStatus::Url(_)) => unreachable!("a directory was looked at"),
        }
    }
}

/// A sink that was opened for writing, and what is to be reported about that.
#[derive(Debug)]
pub(super) struct OpenSink {
    pub(super) feeding: Feeding,
    /// What was cut off its end.
    pub(super) cut: Option<CutTail>,
    /// Up to where it was durable once, if it lost all of its segments since.
    pub(super) emptied: Option<Offset>,
    /// The offsets that it lost at its end, and that are fetched again.
    pub(super) refetched: Option<(Offset, Offset)>,
}

impl OpenSink {
    fn of(feeding: Feeding) -> OpenSink {
        OpenSink { feeding, cut: None, emptied: None, refetched: None }
    }
}

/// A plain directory that is the sink. Its log is in the directory of its current generation, once it has gone through more than
/// one. Locks are those of the directory itself.
#[derive(Debug)]
pub(super) struct DirSink {
    path: PathBuf,
    options: Options,
    /// Whether a directory may be taken that is not ours by itself.
    adopt: bool,
    /// What its record says about the source.
    source: String,
    /// Taken before the first change, and held until the end.
    db_lock: Mutex<Option<DbLockGuard>>,
    /// Which directory was opened.
    presence: Presence,
    /// Up to where it was durable, if it was found without segments. Reported when it is opened.
    emptied: Mutex<Option<Offset>>,
    /// What is known of where its content comes from.
    origin: Mutex<Origin>,
    /// Held from when it is given a base until it is opened, with the device and the inode of the directory itself.
    lock: Mutex<Option<(RepoLock, (u64, u64))>>,
    /// The offsets that it lost at its end, and that are fetched again. Reported when it is opened.
    refetched: Mutex<Option<(Offset, Offset)>>,
    /// Whether it was reported that nothing was written, since it has no mirror record.
    unclaimed_reported: AtomicBool,
    /// When its base was written, if that was after its sums and it is sound all the same. Noted when it is opened.
    sound: Mutex<Option<SystemTime>>,
}

/// What is known of where the content of a directory comes from: a part of its record.
#[derive(Clone, Copy, Debug, Default)]
struct Origin {
    log: Option<Uuid>,
    /// Whether it is a log, whose commits can be compared, and no database.
    is_log: bool,
    base: Option<BaseDigest>,
}

/// Durable commits that a mirror lost at its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostEnd {
    /// Up to where its record says that it was durable.
    pub(super) durable: Offset,
    /// The last commit before that.
    last: LastCommit,
}

/// What a directory holds.
#[derive(Clone, Debug)]
pub(super) struct DirStatus {
    pub(super) repo: FsRepo,
    pub(super) record: Option<MirrorRecord>,
    pub(super) survey: Survey,
    /// What the bytes after its last commit are.
    pub(super) torn: TornContent,
    /// Whether there is a base in it.
    pub(super) based: bool,
    /// What it lost at its end, if the source may hold that.
    pub(super) lost: Option<LostEnd>,
    /// Which directory it is.
    identity: Option<DirIdentity>,
}

impl DirSink {
    /// Nothing is created before [`open`](Self::open).
    pub(super) fn new(path: &Path, options: Options, adopt: bool, source: String) -> DirSink {
        let options = Options { on_trailing: OnTrailing::Trim, ..options };
        let (path, db_lock, presence) = (path.to_owned(), Mutex::default(), Presence::default());
        let (emptied, refetched, unclaimed_reported, origin, lock, sound) = Default::default();
        DirSink {
            path,
            options,
            adopt,
            source,
            db_lock,
            presence,
            emptied,
            refetched,
            unclaimed_reported,
            origin,
            lock,
            sound,
        }
    }

    /// Whether a directory may be taken that is not ours by itself.
    pub(super) fn adopts(&self) -> bool {
        self.adopt
    }

    /// Whether a record says that the content comes from this source, whose log has the id `log` if it is a service's.
    pub(super) fn is_named_by(&self, record: &MirrorRecord, log: Option<Uuid>) -> bool {
        match (record.log, log) {
            (Some(recorded), Some(log)) => recorded == log,
            _ => record.names(&self.source),
        }
    }

    /// Notes the digest of the base in it, for its record.
    pub(super) fn record_base(&self, digest: BaseDigest) {
        locked(&self.origin).base = Some(digest);
    }

    /// What is wrong with the base that its record names. Blocks.
    ///
    /// # Errors
    /// As [`base_fault`].
    pub(super) fn base_fault(&self, found: &DirStatus) -> io::Result<Option<BaseFault>> {
        let BaseLook { fault, written } = base_fault(found)?;
        *locked(&self.sound) = written;
        Ok(fault)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this process has opened it for writing.
    pub(super) fn is_opened(&self) -> bool {
        self.presence.is_opened()
    }

    /// Whether it is not ours yet, as it was found: it is opened only when there is something to write.
    pub(super) fn is_unclaimed(&self, found: &DirStatus) -> bool {
        found.record.is_none() && !self.adopt
    }

    /// Says, once, that nothing was written since there was nothing to write.
    pub(super) fn report_unclaimed(&self, found: &DirStatus) {
        if !self.unclaimed_reported.swap(true, Ordering::Relaxed) {
            log::info!(
                "{}: it has no mirror record, and holds all that the source has, up to offset {}: nothing was written, and it is \
                 taken over only once the source has more",
                self.path.display(),
                found.survey.next
            );
        }
    }

    /// Checks that the directory that was opened is still there. Blocks.
    pub(super) fn is_present(&self) -> Result<(), MirrorError> {
        self.presence.check(&self.path)
    }

    /// Checks that the base that its record names is there, by its length and its sums. Blocks.
    ///
    /// # Errors
    /// [`MirrorError::Away`] while it is not.
    pub(super) fn check_base(&self) -> Result<(), MirrorError> {
        let repo = self.current()?;
        let record = MirrorRecord::read(&repo).map_err(|error| self.at(error))?;
        let Some(sha256) = record.and_then(|record| record.base) else {
            return Ok(());
        };
        let known = KnownBase { exists: true, bytes: None, sha256: Some(sha256) };
        match BaseReader::open_known(&repo, &known) {
            Ok(_) => Ok(()),
            Err(error) => match BaseFault::of(&error).cloned() {
                Some(fault) => Err(MirrorError::BaseDamaged { side: "sink", fault }.of_opened(&self.path)),
                None => Err(self.at(error)),
            },
        }
    }

    fn at(&self, error: io::Error) -> MirrorError {
        MirrorError::Dir { place: self.path.display().to_string(), error }
    }

    /// Whether a record says that the content comes from this source, which is a database.
    pub(super) fn is_fed_by(&self, record: &MirrorRecord) -> bool {
        record.log.is_none() && record.names(&self.source)
    }

    /// The generation of the source that its frames are of, where its record says so.
    fn generation(&self, found: &DirStatus) -> Option<Generation> {
        let log = locked(&self.origin).log;
        let ours = |record: &&MirrorRecord| self.is_named_by(record, log) && record.format == LogFormat::Wal;
        found.record.as_ref().filter(ours).filter(|_| found.survey.first.is_some()).map(|record| record.generation)
    }

    /// The directory that holds its current generation, opened.
    fn current(&self) -> Result<FsRepo, MirrorError> {
        current_dir(&self.path).and_then(FsRepo::open).map_err(|error| self.at(error))
    }

    fn not_ours(&self, reason: impl Into<String>) -> MirrorError {
        MirrorError::NotOurs { place: self.path.clone(), reason: reason.into() }
    }

    /// What it holds; `None` while it does not exist. Blocks.
    ///
    /// # Errors
    /// [`MirrorError::Away`] while it is not the directory that was opened before.
    pub(super) fn status(&self) -> Result<Option<DirStatus>, MirrorError> {
        if let Some(record) = self.presence.lost_record(&self.path) {
            self.restore_record(record)?;
        }
        self.presence.check(&self.path)?;
        let identity = ownership::identity(&self.path);
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.at(error)),
            Ok(_) => {}
        }
        {
            let mut held = locked(&self.db_lock);
            // Of a directory that was moved away, or of one that is another now.
            *held = held.take().filter(|held| held.is_of(&self.path));
            if held.is_none() {
                ownership::is_not_running(&self.path)?;
            }
        }
        let repo = self.current()?;
        let mut record = MirrorRecord::read(&repo).map_err(|error| self.at(error))?;
        let floor = record.as_ref().map(|record| record.durable);
        let max = self.options.commit_bytes_max;
        let (mut found, cut) = self.survey(&repo, record.as_ref())?;
        let contradiction = match &record {
            Some(record) => contradiction(&repo, record, &found, max)?,
            None => None,
        };
        if record.is_some() || found.first.is_some() {
            self.presence.seen(record.as_ref().map(|record| record.id), identity);
        }
        if let Some(record) = record.as_ref().filter(|it| found.first.is_none() && it.durable > Offset::ZERO)
            && self.presence.is_returning(&self.path, found.next)
        {
            let what = format!("it was durable up to offset {}, but holds no segment", record.durable);
            return Err(MirrorError::Away { place: self.path.display().to_string(), what });
        }
        let mut lost = None;
        if let Some(reason) = contradiction {
            // Who adopts a directory accepts what it lost.
            let goes_on = !self.adopt || self.presence.is_opened();
            lost = record.as_ref().filter(|_| goes_on).and_then(|record| self.lost_end(record, &found));
            // Of a directory that was opened, something may be away, or be on its way back.
            let is_short = floor.is_some_and(|floor| found.next < floor);
            if is_short && self.presence.is_opened() {
                if lost.is_none() || self.presence.is_returning(&self.path, found.next) {
                    return Err(MirrorError::Away { place: self.path.display().to_string(), what: reason });
                }
            } else if lost.is_none() && !self.adopt {
                return Err(self.not_ours(reason));
            }
            // What is cut then is set aside.
            record = record.filter(|_| lost.is_some());
            if !cut {
                found = survey(&repo, max, None).map_err(OpenError::from)?;
            }
        }
        let based = base::is_in(&repo)?;
        let torn = torn_content(&repo, &found, max).map_err(OpenError::from)?;
        Ok(Some(DirStatus { repo, record, survey: found, based, torn, lost, identity }))
    }

    /// Checks that a directory as it was found may be written: that it is new, or ours, or that whoever wrote it left nothing
    /// that we would remove.
    fn check_writable(&self, found: Option<&DirStatus>) -> Result<(), MirrorError> {
        match found {
            Some(DirStatus { record: None, survey, .. }) if !self.adopt => match survey.tail {
                Tail::Clean => found.map_or(Ok(()), |found| self.check_names(found)),
                Tail::Zeros { bytes } => {
                    Err(self.not_ours(format!("it has no mirror record and ends in {bytes} zero bytes")))
                }
                Tail::Torn { bytes } => Err(self
                    .not_ours(format!("it has no mirror record and ends in {bytes} bytes that are no whole commit"))),
            },
            Some(DirStatus { torn: TornContent::OtherCommit(at, other), survey, .. }) if !self.adopt => {
                let segment = survey.empty_head.or(survey.segments.last().map(|last| last.start)).unwrap_or_default();
                Err(self.not_ours(format!(
                    "it ends at offset {}, and in its segment {segment}, at byte {at}, comes a whole commit that does not continue \
                     it (offset {}, epoch {}): another process wrote that",
                    survey.next, other.first, other.epoch
                )))
            }
            _ => found.map_or(Ok(()), |found| self.check_names(found)),
        }
    }

    /// Surveys it up to the durable end of its record. A mirror that was cut inside a commit before that end is surveyed like one
    /// without a record; the flag says so.
    fn survey(&self, repo: &FsRepo, record: Option<&MirrorRecord>) -> Result<(Survey, bool), MirrorError> {
        let max = self.options.commit_bytes_max;
        let error = match survey(repo, max, record.map(|record| record.durable)) {
            Ok(found) => return Ok((found, false)),
            Err(error) => error,
        };
        match &error {
            SurveyError::Damaged(Fault { kind: FaultKind::Gap { found }, offset, .. }) if found > offset => {
                let format = format_of(repo).map_err(|error| self.at(error))?.unwrap_or_default();
                let (place, file) = (self.path.clone(), name::segment(format, *offset));
                Err(MirrorError::MissingSegment { place, from: *offset, to: *found, file })
            }
            SurveyError::Damaged(Fault { kind: FaultKind::Cut, .. }) if record.is_some() => {
                let found = survey(repo, max, None).ok().filter(|found| {
                    let is_incomplete = torn_content(repo, found, max).is_ok_and(|it| it == TornContent::Incomplete);
                    is_incomplete && record.is_some_and(|record| found.next < record.durable)
                });
                found.map(|found| (found, true)).ok_or_else(|| OpenError::from(error).into())
            }
            _ => Err(OpenError::from(error).into()),
        }
    }

    /// Whether a record says that its directory is a mirror of this source, which is a log, or is that of the directory that was
    /// opened.
    fn is_ours(&self, record: &MirrorRecord) -> bool {
        locked(&self.origin).is_log && (record.names(&self.source) || self.presence.is_of(record.id))
    }

    /// What a mirror of this source lost at its end.
    fn lost_end(&self, record: &MirrorRecord, found: &Survey) -> Option<LostEnd> {
        let (offset, entries, checksum) =
            record.last.filter(|_| found.next < record.durable && self.is_ours(record))?;
        Some(LostEnd { durable: record.durable, last: LastCommit { offset, entries, checksum } })
    }

    /// Checks that the source holds the commits that the directory lost at its end.
    pub(super) async fn check_lost_end(
        &self,
        found: &DirStatus,
        source: &Source,
        extent: &Extent,
        commit_bytes_max: u64,
    ) -> Result<(), MirrorError> {
        let Some(LostEnd { durable, last }) = found.lost else {
            return Ok(());
        };
        let next = found.survey.next;
        let short = |source_end| MirrorError::LostEnd { place: self.path.clone(), durable, next, source_end };
        if let Some(end) = extent.end.filter(|end| *end < durable) {
            return Err(short(end));
        }
        match shorter::commit_at(source, extent.generation, last.offset, commit_bytes_max).await {
            Ok(Some(held)) if held == last => Ok(()),
            Ok(Some(_)) => Err(self.not_ours(format!(
                "its mirror record says that it was durable up to offset {durable}, but it ends at {next}, and the source holds \
                 another commit at offset {} than the record",
                last.offset
            ))),
            Ok(None) => Err(short(extent.end.unwrap_or(last.offset))),
            Err(MirrorError::Read(ReadError::Ahead { next: end, .. })) => Err(short(end)),
            Err(error) => Err(error),
        }
    }

    /// Writes the record of the directory that was opened again, if its files are as they were left.
    fn restore_record(&self, record: MirrorRecord) -> Result<(), MirrorError> {
        let repo = self.current()?;
        let (found, cut) = self.survey(&repo, Some(&record))?;
        let is_as_left = !cut && contradiction(&repo, &record, &found, self.options.commit_bytes_max)?.is_none();
        if is_as_left && found.first.is_some() && record.first <= found.first {
            Presence::restore(repo.path(), &repo, record)?;
        }
        Ok(())
    }

    /// Reports a directory that becomes ours, or that lost commits which are fetched again, when it is opened.
    fn report_claimed(&self, found: Option<&DirStatus>) {
        let Some(found) = found else { return };
        let (path, next) = (self.path.display(), found.survey.next);
        if let Some(LostEnd { durable, .. }) = found.lost {
            log::warn!(
                "{path}: its mirror record says that it was durable up to offset {durable}, but it ends at {next}: offsets {next} to \
                 {durable} are fetched again from the source, which holds them"
            );
            *locked(&self.refetched) = Some((next, durable));
        }
        if let (None, Some(last)) = (&found.record, &found.survey.last) {
            log::warn!(
                "{path}: taken over as a mirror of {}: its last commit, at offset {}, is the source's",
                self.source,
                last.first
            );
        }
    }

    fn check_uncompared(&self, found: &DirStatus, extent: &Extent) -> Result<(), MirrorError> {
        let (first, next) = (extent.first.unwrap_or_default(), found.survey.next);
        let reason = match &found.record {
            _ if self.adopt => return Ok(()),
            None if first >= next => {
                "it has no mirror record, and the source does not hold its last commit any more".to_owned()
            }
            Some(record) if first > record.durable && record.durable < next => format!(
                "its mirror record ends at offset {}, and the source, which starts at {first}, does not hold all commits from \
                 there up to {next} any more",
                record.durable
            ),
            Some(record) if first >= next && !self.is_named_by(record, extent.log) => format!(
                "it ends at offset {next}, where the source starts, so they have no commit in common, and its mirror record names \
                 another source ({}{})",
                record.source,
                record.log.map_or(String::new(), |log| format!(", log {log}"))
            ),
            _ => return Ok(()),
        };
        Err(self.not_ours(reason))
    }

    /// Reports a directory that lost all of its segments, before its record is written again.
    fn report_emptied(&self, found: Option<&DirStatus>) {
        let record = found.filter(|found| found.survey.first.is_none()).and_then(|found| found.record.as_ref());
        if let Some(durable) = record.map(|record| record.durable).filter(|durable| *durable > Offset::ZERO) {
            log::warn!(
                "{}: its mirror record says that it was durable up to offset {durable}, but it holds no segment: it is filled again",
                self.path.display()
            );
            *locked(&self.emptied) = Some(durable);
        }
    }

    /// That the files we are about to change have no other name: through a link we would change the source, or a backup.
    fn check_names(&self, found: &DirStatus) -> Result<(), MirrorError> {
        let survey = &found.survey;
        let head = survey.empty_head.or(survey.segments.last().map(|last| last.start));
        let files = head
            .into_iter()
            .zip(survey.format)
            .flat_map(|(start, format)| [name::segment(format, start), name::index(format, start)]);
        for file in files.chain([RECORD.to_owned()]) {
            match ownership::other_names(&found.repo.path().join(&file)) {
                Ok(None) => {}
                Ok(Some(what)) => {
                    return Err(self.not_ours(format!(
                        "{file} {what}, and writing it would change that too: replace it by a copy (cp FILE NEW; mv NEW FILE)"
                    )));
                }
                Err(error) => return Err(self.at(error)),
            }
        }
        Ok(())
    }

    /// Makes the directory ours before anything else is put into it: it exists then with its record, and no SpacetimeDB can
    /// start on it. Returns where the base is to be put. Blocks.
    ///
    /// # Errors
    /// When it holds frames, or another base than `instead` says; when another process writes it.
    pub(super) fn prepare(
        &self,
        format: LogFormat,
        generation: Generation,
        instead: Instead,
    ) -> Result<FsRepo, MirrorError> {
        self.status_for_base()?;
        let root = self.create()?;
        *locked(&self.lock) = None;
        let lock = self.lock(&root)?;
        // Nobody else writes it from here on.
        let found = self.status_for_base()?;
        if instead.is_beside() {
            let held = found.as_ref().and_then(|found| found.record.as_ref()).map(|record| record.generation);
            let is_later = held.map_or(instead == Instead::All, |held| held < generation);
            if !is_later {
                return Err(OpenError::Changed { place: root.place() }.into());
            }
            // A crash may have left something that must be out of the way, or be kept.
            self.clear_before(&root)?;
            // What it holds stays as it is until the next generation is whole.
            let made =
                begin_step(&root, generation).and_then(|_| FsRepo::open(root.path().join(draft_name(generation))));
            let made = made.map_err(|error| self.at(error))?;
            if instead == Instead::All {
                keep_before(&root, &made).map_err(|error| self.at(error))?;
            }
            *locked(&self.lock) = Some(lock);
            return Ok(made);
        }
        let repo = self.current()?;
        if instead == Instead::Damaged {
            // Its frames stay, and its record.
            if found.is_some_and(|found| found.based) {
                self.set_base_aside(&repo)?;
            }
            *locked(&self.lock) = Some(lock);
            return Ok(repo);
        }
        let (begun, based) = found.as_ref().map_or((false, false), |it| (it.survey.first.is_some(), it.based));
        if begun || (based && instead == Instead::Nothing) {
            return Err(OpenError::Changed { place: repo.place() }.into());
        }
        if based && instead == Instead::Another {
            self.set_base_aside(&repo)?;
        }
        locked(&self.origin).base = None;
        self.report_emptied(found.as_ref());
        let mut record = MirrorRecord::new(&self.source, format, generation);
        if let Some(recorded) = found.and_then(|found| found.record) {
            record.id = recorded.id;
        }
        let id = record.id;
        RecordFile::open(&repo, record).and_then(|_| repo.sync_dir()).map_err(|error| self.at(error))?;
        self.presence.opened(id, &self.path);
        *locked(&self.lock) = Some(lock);
        Ok(repo)
    }

    /// The base with this digest is durable where [`prepare`](Self::prepare) said. Where that is the next generation, it becomes
    /// the current one, and what the directory held before is removed, or set aside. Blocks.
    ///
    /// # Errors
    /// As the file system says. The directory holds the generation before or the new one then, whole.
    pub(super) fn has_given_base(
        &self,
        generation: Generation,
        instead: Instead,
        digest: BaseDigest,
    ) -> Result<(), MirrorError> {
        if !instead.is_beside() {
            self.record_base(digest);
            return Ok(());
        }
        let root = FsRepo::open(&self.path).map_err(|error| self.at(error))?;
        let before = MirrorRecord::read(&self.current()?).map_err(|error| self.at(error))?;
        let new = MirrorRecord::new(&self.source, LogFormat::Wal, generation);
        // What is set aside is a mirror of its own.
        let id = before.as_ref().filter(|_| instead == Instead::Older).map_or(new.id, |before| before.id);
        let record = MirrorRecord { id, log: locked(&self.origin).log, base: Some(digest), ..new };
        end_step(&root, record).map_err(|error| self.at(error))?;
        self.record_base(digest);
        let before = before.filter(|_| instead == Instead::Older);
        let before = before.map(|before| format!(": generation {} was removed", before.generation));
        log::info!("{}: now in generation {generation}{}", self.path.display(), before.unwrap_or_default());
        self.presence.opened(id, &self.path);
        self.clear_before(&root)
    }

    /// Sets aside what the current generation says is to be kept of before, and removes the rest. For the one who has the lock.
    fn clear_before(&self, root: &FsRepo) -> Result<(), MirrorError> {
        let kept = set_before_aside(root).map_err(|error| self.at(error))?;
        if let Some(aside) = kept {
            log::warn!("{}: what it held before is kept in {}", self.path.display(), self.path.join(aside).display());
        }
        remove_before_current(root).map(drop).map_err(|error| self.at(error))
    }

    /// Lets the next one write it, of which [`prepare`](Self::prepare) kept all others away.
    pub(super) fn let_go(&self) {
        *locked(&self.lock) = None;
    }

    fn lock(&self, repo: &FsRepo) -> Result<(RepoLock, (u64, u64)), MirrorError> {
        let lock = repo.lock().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked { place: repo.place() }.into(),
            _ => self.at(error),
        })?;
        let found = fs::metadata(&self.path).map_err(|error| self.at(error))?;
        Ok((lock, (found.dev(), found.ino())))
    }

    /// Renames the base in it, so that it is kept. After Ok that is durable.
    fn set_base_aside(&self, repo: &FsRepo) -> Result<(), MirrorError> {
        const ASIDE_MAX: u32 = 1000;
        let names = repo.list().map_err(|error| self.at(error))?;
        let mut numbered = (1..ASIDE_MAX).map(|number| format!("{}.aside-{number}", name::BASE));
        let Some(aside) = numbered.find(|aside| !names.contains(aside)) else {
            return Err(self.at(io::Error::other(format!("{} bases are set aside in it", ASIDE_MAX - 1))));
        };
        // Without its sums first: they would be those of a base that is missing.
        let sums = aside.replacen(name::BASE, name::BASE_SUMS, 1);
        match repo.rename(name::BASE_SUMS, &sums) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.at(error)),
            _ => {}
        }
        repo.sync_dir()
            .and_then(|()| repo.rename(name::BASE, &aside))
            .and_then(|()| repo.sync_dir())
            .map_err(|error| self.at(error))?;
        log::warn!("{}: {} was of another log, or damaged, and is kept as {aside}", self.path.display(), name::BASE);
        Ok(())
    }

    /// What it holds, checked for being given a base.
    fn status_for_base(&self) -> Result<Option<DirStatus>, MirrorError> {
        let found = self.status()?;
        self.check_writable(found.as_ref())?;
        match found {
            Some(DirStatus { record: None, based: true, .. }) if !self.adopt => {
                Err(self.not_ours("it has no mirror record, but a base"))
            }
            found => Ok(found),
        }
    }

    fn create(&self) -> Result<FsRepo, MirrorError> {
        self.presence.check(&self.path)?;
        let is_link = fs::symlink_metadata(&self.path).is_ok_and(|found| found.is_symlink());
        if is_link && fs::metadata(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let to = fs::read_link(&self.path).unwrap_or_default();
            let text = format!(
                "this is a link to {}, which does not exist: make that directory, or give another DST",
                to.display()
            );
            return Err(self.at(io::Error::new(io::ErrorKind::NotFound, text)));
        }
        let opened = if self.presence.is_bound() { FsRepo::open(&self.path) } else { FsRepo::create(&self.path) };
        let repo = opened.map_err(|error| self.at(error))?;
        let mut held = locked(&self.db_lock);
        if !held.as_ref().is_some_and(|held| held.is_of(&self.path)) {
            *held = None;
            *held = Some(DbLockGuard::take(&self.path)?);
        }
        Ok(repo)
    }

    /// Opens it for writing. `found` is what it held when that was compared with the source. Blocks.
    fn open(
        &self,
        found: Option<&DirStatus>,
        format: LogFormat,
        generation: Generation,
    ) -> Result<StreamWriter, MirrorError> {
        self.check_writable(found)?;
        let root = self.create()?;
        let held = locked(&self.lock).take();
        let here = fs::metadata(&self.path).map_err(|error| self.at(error))?;
        let lock = match held {
            Some((lock, dir)) if dir == (here.dev(), here.ino()) => lock,
            held => {
                drop(held);
                self.lock(&root)?.0
            }
        };
        // Which generation counts is only certain under the lock: until then another mirror may have stepped into the next one.
        let repo = self.current()?;
        if found.is_some_and(|found| found.repo.path() != repo.path()) {
            return Err(self.changed(found, OpenError::Changed { place: repo.place() }));
        }
        self.report_emptied(found);
        if let Some(written) = locked(&self.sound).take() {
            note_sound(&repo, written);
        }
        // The id is that of the record that is there, also one that was written since.
        let recorded = MirrorRecord::read(&repo).map_err(|error| self.at(error))?;
        let new = MirrorRecord::new(&self.source, format, generation);
        let id = recorded.as_ref().map_or(new.id, |recorded| recorded.id);
        let before = recorded.as_ref().filter(|recorded| !recorded.names(&self.source)).map(|it| it.source.clone());
        let origin = *locked(&self.origin);
        let of_generation = recorded.as_ref().filter(|recorded| recorded.generation == generation);
        let base = origin.base.or(of_generation.and_then(|recorded| recorded.base));
        // A directory that lost all of its segments begins again; one that lost some does not.
        let begun = found.filter(|it| it.survey.first.is_some()).and_then(|it| it.record.as_ref()?.first);
        let claim = Claim {
            record: MirrorRecord { id, first: begun, log: origin.log, base, ..new },
            // A directory that lost all of its segments starts over, and one that lost its end goes on from what is left.
            floor: found
                .filter(|it| it.survey.first.is_some() && it.lost.is_none())
                .and_then(|it| it.record.as_ref())
                .map(|it| it.durable),
            seen: found.map(|found| LogEnd::of(&found.survey)).unwrap_or_default(),
        };
        // A crash may have left something of the generation before.
        self.clear_before(&root)?;
        let options = Options { format, ..self.options };
        let writer =
            StreamWriter::open_locked_mirror(Arc::new(repo), options, &claim, lock).map_err(|error| match error {
                OpenError::Io(error) => self.at(error),
                error => self.changed(found, error),
            })?;
        self.presence.opened(id, &self.path);
        self.report_claimed(found);
        if let Some(before) = before {
            let path = self.path.display();
            log::warn!("{path}: taken over: it was a mirror of {before} before, and is one of {} now", self.source);
        }
        Ok(writer)
    }

    /// An error of opening it; what is not as it was found may be another directory.
    fn changed(&self, found: Option<&DirStatus>, error: OpenError) -> MirrorError {
        match error {
            OpenError::Changed { .. } if found.and_then(|it| it.identity) != ownership::identity(&self.path) => {
                let what = "it is another directory than the one that was compared with the source".to_owned();
                MirrorError::Away { place: self.path.display().to_string(), what }
            }
            error => error.into(),
        }
    }

    /// What it holds, of a directory whose source is a WAL: as [`status`](Self::status), and no other format.
    pub(super) fn status_of_wal(&self) -> Result<Option<DirStatus>, MirrorError> {
        let found = self.status()?;
        if found.as_ref().and_then(|it| it.survey.format).is_some_and(|format| format != LogFormat::Wal) {
            let (place, wanted) = (self.path.display().to_string(), LogFormat::Wal);
            return Err(MirrorError::OtherFormat { place, found: LogFormat::Commitlog, wanted });
        }
        Ok(found)
    }
}

/// What a record says about the last durable commit, where that is not what the directory holds.
fn contradiction(repo: &FsRepo, record: &MirrorRecord, found: &Survey, max: u64) -> Result<Option<String>, OpenError> {
    let (durable, next) = (record.durable, found.next);
    let Some(first) = found.first else {
        return Ok(None);
    };
    if next < durable {
        let rest = match found.tail {
            Tail::Torn { bytes } => format!(", before {bytes} bytes that are no whole commit"),
            Tail::Clean | Tail::Zeros { .. } => String::new(),
        };
        return Ok(Some(format!(
            "its mirror record says that it was durable up to offset {durable}, but it ends at {next}{rest}"
        )));
    }
    // A commit whose segment was pruned cannot be compared.
    let Some((offset, entries, checksum)) = record.last.filter(|(offset, ..)| first <= *offset) else {
        return Ok(None);
    };
    let held = match found.last.filter(|last| last.end() == durable) {
        Some(last) => Some(last),
        None => {
            let repo: Arc<dyn Repo> = Arc::new(repo.clone());
            let mut cursor = Cursor::open(&repo, &found.segments, offset, max)?;
            cursor.next()?.map(|placed| placed.commit)
        }
    };
    let is_held = held.is_some_and(|held| (held.first, held.entries, held.checksum) == (offset, entries, checksum));
    Ok((!is_held).then(|| {
        format!("its mirror record says that the commit at offset {offset} was durable, but another one is there")
    }))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A directory in generation 1, without a frame.
    fn first(path: &Path) -> (FsRepo, MirrorRecord) {
        let (root, record) = (FsRepo::create(path).unwrap(), MirrorRecord::new("a", LogFormat::Wal, Generation(1)));
        RecordFile::open(&root, record.clone()).unwrap();
        fs::write(path.join(name::BASE), b"").unwrap();
        (root, record)
    }

    #[test]
    fn a_generation_that_another_mirror_stepped_into_since_is_not_written_as_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let (root, record) = first(dir.path());
        let sink = DirSink::new(dir.path(), Options::default(), false, "a".to_owned());
        let found = sink.status().unwrap();
        begin_step(&root, Generation(2)).unwrap();
        end_step(&root, MirrorRecord { generation: Generation(2), ..record }).unwrap();
        remove_before_current(&root).unwrap();
        let opened = sink.open(found.as_ref(), LogFormat::Wal, Generation(1));
        assert!(matches!(opened, Err(MirrorError::Open(OpenError::Changed { .. }))), "{opened:?}");
        let record = MirrorRecord::read(&sink.current().unwrap()).unwrap().unwrap();
        assert_eq!(record.generation, Generation(2));
        let found = sink.status().unwrap();
        sink.open(found.as_ref(), LogFormat::Wal, Generation(2)).unwrap();
    }
}
