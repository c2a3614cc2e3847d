//! [`Log`]: one log as everybody but its writer sees it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::WeakSender;
use tokio::sync::watch;

use super::error::Error;
use super::log_base::{BaseFacts, base_advice, damage};
use super::pages::Pages;
use super::shard::Message;
use super::writers::Writers;
use crate::api::{BaseStatus, CheckpointPolicy, Damage, LastCommit, LogState, LogStatus, SegmentStatus};
use crate::format::{Commit, Framing, LogFormat, name};
use crate::limits::{MISSING_PATIENCE, READ_BLOCK};
use crate::offset::{BytePos, Epoch, Generation, Offset};
use crate::repo::{Repo, is_out_of_files};
use crate::segment::SegmentReader;
use crate::segment::base::BaseId;
use crate::stream::{ASIDE, Fault, SegmentInfo, SoundPrefix, StreamWriter, Survey, holds_cut_commits};

/// Whether a log can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It can.
    #[default]
    Ok,
    /// It could not be opened, or a write or sync failed: it is reopened automatically.
    Failed(Arc<str>),
    /// Its files are damaged.
    Damaged(Arc<str>),
    /// The log went on to this generation; this one is read only.
    Ended(Generation),
}

impl State {
    /// Why it cannot be used; empty when it can.
    pub(super) fn cause(&self) -> &str {
        match self {
            State::Ok | State::Ended(_) => "",
            State::Failed(cause) | State::Damaged(cause) => cause,
        }
    }
}

/// What is durable of a log. Readers see nothing else of it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Its first offset.
    pub first: Offset,
    /// Segments that will not change any more.
    pub sealed: Arc<[SegmentInfo]>,
    /// The open segment as far as it is durable; none while it holds no durable commit.
    pub head: Option<SegmentInfo>,
    /// The offset after the last durable commit.
    pub durable: Offset,
    /// The highest that `durable` ever was while this service ran: what the files must still hold.
    pub acknowledged: Offset,
    /// Its term.
    pub epoch: Epoch,
    /// That commit.
    pub last: Option<Commit>,
    /// How a stream without a header goes on at `durable`.
    pub framing: Framing,
    /// Whether the log can be used.
    pub state: State,
    /// Whether anything of the log is known; before that, the rest says nothing.
    pub opened: bool,
    /// Whether the log may go on after `durable`, where it cannot be read: it is damaged there, or could not be opened.
    pub cut_short: bool,
    /// Where the log is damaged, if it was found so when it was opened.
    pub damage: Option<Damage>,
    /// How often the log was opened: files that were opened before may be others now.
    pub openings: u64,
}

impl View {
    /// What `writer` has made durable, as a change of `self`.
    pub(super) fn update(&mut self, writer: &StreamWriter) {
        let frontier = writer.durable_frontier();
        (self.opened, self.cut_short) = (true, false);
        if self.sealed.len() != writer.sealed().len() {
            self.sealed = writer.sealed().into();
        }
        self.head = writer.durable_head();
        (self.durable, self.epoch, self.last) = (frontier.next, frontier.epoch, frontier.last);
        self.framing = writer.durable_framing();
    }

    /// What a new writer has found, as a change of `self`.
    pub(super) fn reopen(&mut self, writer: &StreamWriter) {
        self.first = writer.first().unwrap_or(self.first);
        (self.state, self.damage) = (State::Ok, None);
        self.openings += 1;
        self.update(writer);
    }

    /// What is sound of a log that cannot be opened for writing, as a change of `self`.
    pub(super) fn take_sound(&mut self, sound: SoundPrefix) {
        // A log without segments is whole where nothing was put into it.
        let unused = sound.mark.is_none_or(|mark| mark == self.first);
        let whole = sound.whole && (sound.found.first.is_some() || unused);
        let durable = if sound.found.first.is_some() { sound.found.next } else { self.first };
        self.durable = durable;
        self.take_over(sound.found);
        (self.durable, self.cut_short) = (durable, !whole);
        // It may yet grow.
        if let Some((head, sealed)) = self.sealed.split_last().filter(|(last, _)| !last.compressed) {
            (self.head, self.sealed) = (Some(*head), sealed.into());
        }
    }

    /// What was found of a log that takes no more.
    pub(super) fn take_over(&mut self, found: Survey) {
        self.opened = true;
        self.openings += 1;
        self.first = found.first.unwrap_or(self.first);
        self.head = None;
        let framing = found.segments.last().map(|segment| segment.framing);
        self.framing = match (framing, &found.last) {
            (Some(framing), Some(last)) => framing.behind(last),
            _ => self.framing,
        };
        self.sealed = found.segments.into();
        (self.durable, self.epoch, self.last) = (found.next.max(self.durable), found.epoch, found.last);
    }

    /// Whether `durable` is known to be where the log ends, or of a damaged log, where what is sound ends.
    fn is_known(&self) -> bool {
        self.opened && (!self.cut_short || matches!(self.state, State::Damaged(_)))
    }

    /// Why what lies after `durable` cannot be read.
    pub(super) fn trouble(&self) -> Error {
        match &self.state {
            State::Damaged(cause) => Error::Damaged(cause.clone()),
            State::Failed(cause) => Error::Failed(cause.clone()),
            State::Ok | State::Ended(_) => Error::Unavailable("the log was just reopened: try again".into()),
        }
    }

    /// Its segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = &SegmentInfo> {
        self.sealed.iter().chain(&self.head)
    }

    /// The segment that holds `offset`, or the last one if `offset` is the durable end.
    #[must_use]
    pub fn segment_of(&self, offset: Offset) -> Option<SegmentInfo> {
        let at = self.sealed.partition_point(|segment| segment.end <= offset);
        let found = self.sealed.get(at).copied().or(self.head);
        found.or_else(|| self.sealed.last().copied())
    }

    /// The segment that starts at `start`.
    #[must_use]
    pub fn segment(&self, start: Offset) -> Option<SegmentInfo> {
        let sealed = self.sealed.binary_search_by_key(&start, |segment| segment.start).ok();
        sealed.map(|at| self.sealed[at]).or(self.head.filter(|head| head.start == start))
    }
}

/// What is known of a log apart from its commits; `log.json` in its directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) format: LogFormat,
    pub(super) id: String,
    pub(super) generation: Generation,
    pub(super) first: Offset,
    #[serde(default)]
    pub(super) checkpoint: CheckpointPolicy,
    /// Whether the generation has a durable mark for good. Logs of earlier versions do not say so before they were opened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) durable_mark: bool,
    /// How often a loss was accepted. Offsets after it were given to other commits since.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) losses: u32,
    /// Whether SQL checks foreign keys. Logs of earlier versions do not say so, and it does not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) foreign_keys: bool,
    /// Who writes it.
    #[serde(flatten)]
    pub(super) writers: Writers,
    /// The base of the current generation. Logs of earlier versions do not say so before they were opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base: Option<BaseId>,
    /// Since when a generation has frames, noted where its age says when it is rolled over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) frames_since: Option<FramesSince>,
}

/// When a generation was first seen with frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FramesSince {
    generation: Generation,
    /// After 1970-01-01.
    seconds: u64,
}

fn is_zero(losses: &u32) -> bool {
    *losses == 0
}

/// One generation of a log of a service. When it ends, another takes its place under the log's name.
pub struct Log {
    name: String,
    meta: Meta,
    repo: Arc<dyn Repo>,
    appended: AtomicU64,
    /// Bytes of large commits that were copied into it.
    copied: Arc<AtomicU64>,
    view: watch::Sender<View>,
    /// SHA-256 of sealed segments, by their starts.
    digests: Mutex<HashMap<Offset, String>>,
    policy: Mutex<CheckpointPolicy>,
    /// What [`Meta::foreign_keys`] says now.
    foreign_keys: AtomicBool,
    pub(super) writers: Mutex<Writers>,
    pages: Mutex<Pages>,
    /// When the first frame of the generation came, or was found.
    since: OnceLock<FramesSince>,
    /// Whether `log.json` says so.
    is_since_noted: AtomicBool,
    /// The generation whose end is the base of this one, if this process made it so. Not held, so that it can be deleted.
    folded_from: OnceLock<Weak<Log>>,
    /// The queue of its shard.
    pub(super) queue: WeakSender<Message>,
    /// Whether `log.json` must be read again before anything else: it could not be, or which generation it names is not known.
    unloaded: AtomicBool,
    /// What [`Meta::durable_mark`] says now.
    marked: AtomicBool,
    /// The directory of its data directory's logs.
    logs: Arc<dyn Repo>,
    /// Since when files of it are missing that were there when it was opened.
    missing_since: Mutex<Option<Instant>>,
    /// Directories with commits that were cut from its end.
    kept_aside: Mutex<Vec<String>>,
    /// What is known of its base.
    base: Mutex<BaseFacts>,
    /// Damage of commits that a reader met.
    pub(super) commit_fault: Mutex<Option<Fault>>,
    pub(super) shard: usize,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("name", &self.name).field("meta", &self.meta).finish_non_exhaustive()
    }
}

impl Log {
    pub(super) fn new(
        name: String,
        meta: Meta,
        (logs, repo): (Arc<dyn Repo>, Arc<dyn Repo>),
        (shard, queue): (usize, WeakSender<Message>),
    ) -> Self {
        let (first, framing) = (meta.first, Framing::of(meta.format));
        let view = View { first, durable: first, framing, ..View::default() };
        let appended = AtomicU64::new(meta.first.0);
        let noted = meta.frames_since.filter(|since| since.generation == meta.generation);
        let (policy, since) = (Mutex::new(meta.checkpoint), noted.map_or_else(OnceLock::new, OnceLock::from));
        let is_since_noted = AtomicBool::new(noted.is_some());
        let writers = Mutex::new(meta.writers.clone());
        let marked = AtomicBool::new(meta.durable_mark);
        let foreign_keys = AtomicBool::new(meta.foreign_keys);
        let base = Mutex::new(BaseFacts { id: meta.base, noted: meta.base.is_some(), ..BaseFacts::default() });
        Log {
            name,
            meta,
            repo,
            appended,
            copied: Arc::default(),
            view: watch::Sender::new(view),
            digests: Mutex::default(),
            policy,
            foreign_keys,
            writers,
            pages: Mutex::default(),
            since,
            is_since_noted,
            folded_from: OnceLock::new(),
            queue,
            unloaded: AtomicBool::new(false),
            marked,
            logs,
            missing_since: Mutex::default(),
            kept_aside: Mutex::default(),
            base,
            commit_fault: Mutex::default(),
            shard,
        }
    }

    /// Counts bytes of large commits as they are copied into it.
    pub(super) fn copied(&self) -> &Arc<AtomicU64> {
        &self.copied
    }

    pub(super) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What `log.json` is to say now.
    pub(super) fn described(&self) -> Meta {
        Meta {
            checkpoint: self.policy(),
            durable_mark: self.is_marked(),
            foreign_keys: self.foreign_keys(),
            writers: self.writers(),
            base: self.base_facts().id,
            frames_since: self.since.get().copied().filter(|_| self.is_since_noted.load(Ordering::Acquire)),
            ..self.meta.clone()
        }
    }

    /// Whether it is known to have a durable mark.
    pub(super) fn is_marked(&self) -> bool {
        self.marked.load(Ordering::Acquire)
    }

    pub(super) fn set_marked(&self) {
        self.marked.store(true, Ordering::Release);
    }

    /// The directory of all of it.
    pub(super) fn dir(&self) -> io::Result<Arc<dyn Repo>> {
        self.logs.dir(&self.name)
    }

    /// Records that files of it are missing. Returns for how long they have been.
    pub(super) fn note_missing(&self) -> Duration {
        let mut since = self.missing_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get_or_insert_with(Instant::now).elapsed()
    }

    /// Records that none is missing.
    pub(super) fn note_present(&self) {
        *self.missing_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Looks which directories hold commits that were cut from its end. Blocks.
    pub(super) fn look_aside(&self) {
        let found = self.dir().and_then(|dir| dir.dir(ASIDE)).and_then(|aside| Ok((aside.list()?, aside.place())));
        let mut kept = match found {
            Ok((names, place)) => {
                let kept = names.into_iter().filter(|name| holds_cut_commits(name));
                kept.map(|name| format!("{place}/{name}")).collect()
            }
            Err(_) => Vec::new(),
        };
        kept.sort_unstable();
        *self.kept_aside.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    fn keeps_aside(&self) -> Vec<String> {
        self.kept_aside.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is to be looked at although the log works.
    fn warning(&self, view: &View) -> Option<String> {
        let (first, start) = (view.first, self.meta.first);
        let pruned = (view.opened && first > start)
            .then(|| format!("offsets {start} to {first} are missing: its first segments were removed"));
        let kept = self.keeps_aside();
        let kept = (!kept.is_empty()).then(|| {
            format!(
                "commits that do not continue this log, or came after damage, were cut from its end and are kept in {}: look \
                 whether they are needed, then remove or move them",
                kept.join(", ")
            )
        });
        let unproven = (self.format() == LogFormat::Wal && self.base_facts().unproven).then(|| {
            format!(
                "{}/{} is unproven: nothing says what it was before its checksums were made",
                self.repo.place(),
                name::BASE
            )
        });
        let all: Vec<String> = pruned.into_iter().chain(kept).chain(unproven).chain(self.awaited_base()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Whether `log.json` could be read. Before that, format, generation and first offset are not known.
    pub(super) fn is_described(&self) -> bool {
        !self.meta.id.is_empty()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its first offset.
    #[must_use]
    pub fn first(&self) -> Offset {
        self.view.borrow().first
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> LogFormat {
        self.meta.format
    }

    /// Which generation it is.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.meta.generation
    }

    /// Identity of this mirror.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.meta.id
    }

    /// Tells the commits at the same offsets apart that the log has had: it only grows, unless a loss was accepted.
    #[must_use]
    pub fn history(&self) -> String {
        match self.meta.losses {
            0 => format!("{}-{}", self.meta.id, self.meta.generation),
            losses => format!("{}-{}-after-loss-{losses}", self.meta.id, self.meta.generation),
        }
    }

    /// The files of this generation.
    #[must_use]
    pub fn repo(&self) -> &Arc<dyn Repo> {
        &self.repo
    }

    /// What is durable now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Tells of every change of the view.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// How many wait for a change of the view, or follow the log.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.view.receiver_count()
    }

    /// What a stream without a header starts with at the commit that holds `offset`. Blocks for a small read at most.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn framing_at(&self, offset: Offset) -> Result<Framing, Error> {
        self.find_framing(offset)?
    }

    /// The same where that is known without reading a file.
    pub(super) fn known_framing(&self, offset: Offset) -> Option<Framing> {
        let view = self.view();
        let Some(segment) = view.segment_of(offset).filter(|_| offset < view.durable) else {
            return Some(view.framing);
        };
        (self.format() == LogFormat::Commitlog || offset <= segment.start).then_some(segment.framing)
    }

    /// The same; Err when a file cannot be read.
    pub(super) fn find_framing(&self, offset: Offset) -> io::Result<Result<Framing, Error>> {
        if let Some(known) = self.known_framing(offset) {
            return Ok(Ok(known));
        }
        let Some(segment) = self.view().segment_of(offset) else {
            return Ok(Err(Error::Unavailable("the log was just reopened: try again".into())));
        };
        let mut reader = SegmentReader::open(&*self.repo, segment.start)?;
        let found = reader.seek(offset, BytePos(segment.bytes), segment.framing, u64::MAX)?;
        match found {
            Some(found) => reader.framing_at(found.at, segment.framing).map(Ok),
            None => Ok(Err(Error::Damaged(format!("offset {offset} is not where it must be").into()))),
        }
    }

    /// When it is rolled over.
    #[must_use]
    pub fn policy(&self) -> CheckpointPolicy {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_policy(&self, policy: CheckpointPolicy) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Whether SQL on it checks foreign keys, unless a stream says otherwise.
    #[must_use]
    pub fn foreign_keys(&self) -> bool {
        self.foreign_keys.load(Ordering::Relaxed)
    }

    pub(super) fn set_foreign_keys(&self, checked: bool) {
        self.foreign_keys.store(checked, Ordering::Relaxed);
    }

    /// For how long the generation has had frames, as far as is known or was noted.
    pub(super) fn age(&self) -> Option<Duration> {
        let has_frames = {
            let view = self.view.borrow();
            view.durable > view.first
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let first = || FramesSince { generation: self.meta.generation, seconds: now.as_secs() };
        let since = has_frames.then(|| self.since.get_or_init(first).seconds)?;
        Some(now.saturating_sub(Duration::from_secs(since)))
    }

    /// What `log.json` is to say so that the age survives a restart; none where it says so already, or where it does not
    /// matter.
    pub(super) fn age_to_note(&self) -> Option<Meta> {
        let matters = matches!(self.policy(), CheckpointPolicy::Roll { seconds: Some(_), .. });
        if !matters || self.is_since_noted.load(Ordering::Acquire) || self.age().is_none() {
            return None;
        }
        Some(Meta { frames_since: self.since.get().copied(), ..self.described() })
    }

    pub(super) fn set_age_noted(&self) {
        self.is_since_noted.store(true, Ordering::Release);
    }

    /// Its page indexes, for one at a time.
    pub(super) fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_folded_from(&self, before: &Arc<Log>) {
        // It is said once.
        let _ = self.folded_from.set(Arc::downgrade(before));
    }

    /// Whether the base of this generation is known to be what `before` ended with. If not, it may be so all the same.
    #[must_use]
    pub fn is_folded_from(&self, before: &Arc<Log>) -> bool {
        self.folded_from.get().is_some_and(|folded| folded.as_ptr() == Arc::as_ptr(before))
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| {
            change(view);
            if view.opened && !view.cut_short {
                view.acknowledged = view.acknowledged.max(view.durable);
            }
        });
    }

    pub(super) fn set_appended(&self, next: Offset) {
        self.appended.store(next.0, Ordering::Relaxed);
    }

    /// The offset after the last durable commit; none when that is not known, since the log could not be opened.
    #[must_use]
    pub fn durable(&self) -> Option<Offset> {
        let view = self.view.borrow();
        view.is_known().then_some(view.durable)
    }

    /// Refuses when nothing of the log is known. One that failed, or is damaged, serves what is sound.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Failed`].
    pub fn readable(&self) -> Result<(), Error> {
        let view = self.view.borrow();
        if view.opened { Ok(()) } else { Err(view.trouble()) }
    }

    /// Refuses when what is known of the log may not be all that is durable: for readers who need its end.
    ///
    /// # Errors
    /// As [`readable`](Self::readable).
    pub fn intact(&self) -> Result<(), Error> {
        let view = self.view.borrow();
        match &view.state {
            State::Damaged(cause) => Err(Error::Damaged(cause.clone())),
            _ if view.opened && !view.cut_short => Ok(()),
            _ => Err(view.trouble()),
        }
    }

    /// Refuses when the log takes nothing.
    ///
    /// # Errors
    /// As [`readable`](Self::readable); [`Error::Ended`] for a generation that has ended.
    pub fn writable(&self) -> Result<(), Error> {
        match &self.view.borrow().state {
            State::Ok => Ok(()),
            State::Failed(cause) => Err(Error::Failed(cause.clone())),
            State::Damaged(cause) => Err(Error::Damaged(cause.clone())),
            State::Ended(next) => Err(Error::Ended { generation: self.generation(), current: *next }),
        }
    }

    /// Checks that its files are still there, as far as that is cheap: their names, and the length of the last segment. If
    /// not, the status says so from here on, and the log is opened again as soon as they are back. Blocks.
    ///
    /// # Errors
    /// What is wrong with it, now or before.
    pub fn check(self: &Arc<Self>) -> Result<(), Error> {
        if !self.keeps_aside().is_empty() {
            self.look_aside();
        }
        self.check_base();
        if let Some((state, seen)) = self.lost()
            && self.publish_lost(state.clone(), &seen)
        {
            log::error!("{}: {}", self.name, state.cause());
            if let Some(queue) = self.queue.upgrade() {
                // A shard that is gone opens nothing any more.
                let _ = queue.blocking_send(Message::Reopen { log: self.clone() });
            }
        }
        self.writable()
    }

    /// What is known of its base.
    pub(super) fn base_facts(&self) -> MutexGuard<'_, BaseFacts> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error for a segment that cannot be opened. If it is gone, the status says so too from here on. Blocks.
    pub fn unreadable(self: &Arc<Self>, error: io::Error) -> Error {
        let gone = (error.kind() == io::ErrorKind::NotFound).then(|| self.check().err()).flatten();
        gone.unwrap_or_else(|| error.into())
    }

    /// What a log that was sound is now, if files of it are gone, and the view that was compared with them. Blocks.
    fn lost(&self) -> Option<(State, View)> {
        let view = self.view();
        if view.state != State::Ok || !view.opened {
            return None;
        }
        let state = self.missing(&view).or_else(|| self.back(&view))?;
        Some((state, view))
    }

    /// The state of a log that was opened without its first segments, if some of them are back: it is opened again with them.
    fn back(&self, view: &View) -> Option<State> {
        let is_back = |start: &Offset| (self.meta.first..view.first).contains(start);
        let back = (view.first > self.meta.first).then(|| self.names()).flatten()?.into_iter().find(|file| {
            name::parse_segment(file).is_some_and(|(format, start)| format == self.format() && is_back(&start))
        })?;
        Some(State::Failed(format!("segment {}/{back} is back: the log is opened with it", self.repo.place()).into()))
    }

    /// Publishes the state of a log whose files were compared with the view `seen`; false when it is no longer in that
    /// state or was opened again since: then the files may be others.
    fn publish_lost(&self, state: State, seen: &View) -> bool {
        self.view.send_if_modified(|view| {
            let same = view.state == State::Ok && view.openings == seen.openings;
            if same {
                self.note_missing();
                view.state = state;
            }
            same
        })
    }

    /// The state of a log with this view, if files of it are gone. Blocks.
    pub(super) fn missing(&self, view: &View) -> Option<State> {
        let failed = |error: io::Error| State::Failed(format!("cannot read {}: {error}", self.repo.place()).into());
        let names: HashSet<String> = match self.repo.list() {
            // That says nothing of its files.
            Err(error) if is_out_of_files(&error) => return None,
            Ok(names) => names.into_iter().collect(),
            Err(error) => return Some(failed(error)),
        };
        let file_of = |segment: &SegmentInfo| name::segment(self.format(), segment.start);
        if let Some(file) = view.segments().map(file_of).find(|file| !names.contains(file)) {
            let text = format!(
                "segment {} is missing: it was there when the service opened the log; put it back: if it stays away for {} s \
                 the log is opened without it, as by a restart",
                format_args!("{}/{file}", self.repo.place()),
                MISSING_PATIENCE.as_secs()
            );
            return Some(State::Failed(text.into()));
        }
        let head = view.head?;
        match self.repo.open(&file_of(&head)).and_then(|file| file.bytes()) {
            Ok(bytes) if bytes < head.bytes => {
                let (file, durable) = (file_of(&head), head.bytes);
                let text =
                    format!("segment {file} was cut while the service ran: {bytes} bytes, {durable} were durable");
                Some(State::Damaged(text.into()))
            }
            Ok(_) => None,
            Err(error) if is_out_of_files(&error) => None,
            Err(error) => Some(failed(error)),
        }
    }

    /// The directory of the log, for messages.
    pub(super) fn directory(&self) -> String {
        let place = self.repo.place();
        place.rsplit_once('/').map_or(place.clone(), |(dir, _)| dir.to_owned())
    }

    /// The names in its directory, in order; none when it cannot be read. Blocks.
    pub(super) fn names(&self) -> Option<Vec<String>> {
        let mut names = self.repo.list().ok()?;
        names.sort_unstable();
        Some(names)
    }

    /// Has `log.json` read again before the log is used.
    pub(super) fn unload(&self) {
        self.unloaded.store(true, Ordering::Release);
    }

    pub(super) fn is_unloaded(&self) -> bool {
        self.unloaded.load(Ordering::Acquire)
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        let view = self.view.borrow();
        let known = view.is_known();
        let base_fault = self.base_facts().fault.clone().filter(|_| view.state == State::Ok);
        let damage = base_fault.as_ref().map(damage).or(view.damage.clone());
        let (state, error) = match &view.state {
            _ if let Some(fault) = &base_fault => (LogState::Damaged, Some(base_advice(fault))),
            State::Ok | State::Ended(_) => (LogState::Ok, None),
            State::Failed(cause) => (LogState::Failed, Some(cause.to_string())),
            State::Damaged(cause) => (LogState::Damaged, Some(cause.to_string())),
        };
        let last = view.last.as_ref().map(LastCommit::from);
        let writers = self.writers();
        LogStatus {
            log: self.name.clone(),
            format: self.is_described().then_some(self.meta.format),
            id: self.meta.id.clone(),
            service: String::new(),
            generation: self.is_described().then_some(self.meta.generation),
            epoch: known.then_some(view.epoch),
            first: view.opened.then_some(view.first),
            next: known.then(|| Offset(self.appended.load(Ordering::Relaxed)).max(view.durable)),
            durable: known.then_some(view.durable),
            segments: known.then(|| view.segments().count() as u64),
            bytes: known.then(|| view.segments().map(|segment| segment.bytes).sum()),
            last_commit: last,
            state,
            error,
            damage,
            warning: self.warning(&view),
            missing: (view.opened && view.first > self.meta.first).then_some((self.meta.first, view.first)),
            source: writers.source,
            promoted_from: writers.promoted_from,
            checkpoint: (self.is_described() && self.meta.format == LogFormat::Wal).then(|| self.policy()),
            checkpoint_failing: None,
            base: self.base_status(),
        }
    }

    fn base_status(&self) -> Option<BaseStatus> {
        let facts = self.base_facts();
        let BaseId { bytes, sha256 } = facts.id?;
        Some(BaseStatus { bytes, sha256: sha256.to_string(), unproven: facts.unproven })
    }

    /// Its segments; with `sha256` also the digests of the sealed ones, computed once and remembered. Blocks.
    ///
    /// # Errors
    /// When the log is damaged, or a segment cannot be read.
    pub fn segments(&self, sha256: bool) -> Result<Vec<SegmentStatus>, Error> {
        self.readable()?;
        let view = self.view();
        let status = |segment: &SegmentInfo, sealed: bool| {
            let SegmentInfo { start, end, bytes, .. } = *segment;
            let sha256 = if sealed && sha256 { Some(self.digest(segment)?) } else { None };
            Ok(SegmentStatus { start, end, bytes, sealed, sha256 })
        };
        let sealed = view.sealed.iter().map(|segment| status(segment, true));
        sealed.chain(view.head.iter().map(|head| status(head, false))).collect()
    }

    fn digest(&self, segment: &SegmentInfo) -> Result<String, Error> {
        // Held while a segment is read, so that many who ask at once have it read once.
        let mut known = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = known.get(&segment.start) {
            return Ok(digest.clone());
        }
        let mut reader = SegmentReader::open(&*self.repo, segment.start)?;
        let mut block = vec![0; READ_BLOCK];
        let (mut hash, mut at) = (Sha256::new(), 0);
        while at < segment.bytes {
            let want = block.len().min(usize::try_from(segment.bytes - at).unwrap_or(usize::MAX));
            let count = reader.read_at(&mut block[..want], BytePos(at))?;
            if count == 0 {
                let text = format!(
                    "segment {} ends at byte {at} of {}",
                    name::segment(self.format(), segment.start),
                    segment.bytes
                );
                return Err(Error::Damaged(text.into()));
            }
            hash.update(&block[..count]);
            at += count as u64;
        }
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        known.insert(segment.start, digest.clone());
        Ok(digest)
    }
}

#[cfg(test)]
pub(in crate::mirror) mod tests {
    use super::*;
    use crate::repo::MemRepo;

    /// A log whose generation is this directory.
    pub(in crate::mirror) fn log_in(repo: MemRepo, format: LogFormat) -> Arc<Log> {
        let id = "id".to_owned();
        let (generation, first, checkpoint) = (Generation::FIRST, Offset::ZERO, CheckpointPolicy::Keep);
        let meta = Meta {
            format,
            id,
            generation,
            first,
            checkpoint,
            durable_mark: true,
            losses: 0,
            foreign_keys: true,
            writers: Writers::default(),
            base: None,
            frames_since: None,
        };
        let (queue, _messages) = tokio::sync::mpsc::channel(1);
        Arc::new(Log::new(
            "app".to_owned(),
            meta,
            (Arc::new(MemRepo::default()), Arc::new(repo)),
            (0, queue.downgrade()),
        ))
    }

    #[test]
    fn what_was_found_missing_says_nothing_of_a_log_that_was_opened_again_since() {
        let log = log_in(MemRepo::default(), LogFormat::Commitlog);
        log.publish(|view| view.opened = true);
        let (lost, seen) = (State::Failed("gone".into()), log.view());
        log.publish(|view| view.openings += 1);
        assert!(!log.publish_lost(lost.clone(), &seen));
        log.publish(|view| view.state = State::Ended(Generation(2)));
        assert!(!log.publish_lost(lost.clone(), &log.view()));
        assert_eq!(log.view().state, State::Ended(Generation(2)));
        log.publish(|view| view.state = State::Ok);
        assert!(log.publish_lost(lost.clone(), &log.view()));
        assert_eq!(log.view().state, lost);
    }
}
