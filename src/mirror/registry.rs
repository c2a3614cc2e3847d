//! [`Registry`]: the logs of a data directory.
//!
//! ```text
//! DATA/logs/NAME/log.json        what it is; written last when a log is created, so a log exists or does not
//! DATA/logs/NAME/0000000001/     one directory a generation, with its segments and its durable mark
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::append::Append;
use super::budget::{Budget, Share};
use super::counters::Counters;
use super::error::Error;
use super::feed::Feed;
use super::feeds::Feeds;
use super::generation::{remove_after, remove_dir, remove_unbegun};
use super::log::{Log, Meta, State};
use super::shard::{Message, Shards};
use super::writers::{Writer, Writers};
use crate::api::{AppendOutcome, CheckpointPolicy, CreateLog};
use crate::format::{Framing, LogFormat, database, name};
use crate::limits::{
    CHECKPOINT_CONCURRENCY, COMMIT_BYTES_MAX, COMMIT_HELD_MAX, COMMIT_HELD_MIN, COMMIT_HELD_PART, FILES_WAIT,
    GENERATION_MAX, LIBSQL_PAGE_SIZE, MEMORY_MAX, PUSH_BYTES_MAX, WAL_SEGMENT_BYTES, WRITER_THREADS_MAX,
};
use crate::offset::{Generation, Offset};
use crate::repo::{Repo, RepoFile, RepoLock, is_out_of_files, persist_names, read_small, replace};
use crate::segment::base;
use crate::stream::{DurableMark, LargeCommits};

pub(super) const LOGS: &str = "logs";
pub(super) const META: &str = "log.json";
pub(super) const META_BYTES_MAX: u64 = 64 << 10;

/// What a registry needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Log bytes in memory at once.
    pub memory_max: u64,
    /// Largest commit taken.
    pub commit_bytes_max: u64,
    /// Checkpoints at once.
    pub checkpoint_concurrency: NonZeroUsize,
    /// From this length on a segment of a WAL is followed by another.
    pub wal_segment_bytes: u64,
    /// Writer threads; 0 for as many as there are cores, up to a limit.
    pub writer_threads: usize,
}

impl Settings {
    /// Bytes of a commit held in memory until it is whole; more are kept in a file.
    pub(crate) fn commit_held_max(&self) -> u64 {
        (self.memory_max / COMMIT_HELD_PART).clamp(COMMIT_HELD_MIN, COMMIT_HELD_MAX)
    }

    /// Bytes of a commit or a body held in memory until it is whole.
    fn held_max(&self) -> u64 {
        self.commit_held_max().max(PUSH_BYTES_MAX.min(self.memory_max / 4))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            memory_max: MEMORY_MAX,
            commit_bytes_max: COMMIT_BYTES_MAX,
            checkpoint_concurrency: CHECKPOINT_CONCURRENCY,
            wal_segment_bytes: WAL_SEGMENT_BYTES,
            writer_threads: 0,
        }
    }
}

/// The logs of a data directory, open.
#[derive(Debug)]
pub struct Registry {
    pub(super) logs_repo: Arc<dyn Repo>,
    /// Shared by all who change what logs there are; gone once the registry was stopped.
    lock: RwLock<Option<RepoLock>>,
    /// Held by the one who creates a log, starts a generation of it or changes its policy, by its name.
    changing: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
    logs: RwLock<BTreeMap<String, Arc<Log>>>,
    /// Generations that have ended and were asked for, by the id of their log.
    pub(super) older: Mutex<BTreeMap<(String, Generation), Arc<Log>>>,
    /// Logs with generations to delete that were being read, or that a crash may have left.
    pub(super) held_back: Mutex<BTreeSet<String>>,
    pub(super) shards: Shards,
    pub(super) budget: Arc<Budget>,
    pub(super) settings: Settings,
    counters: Arc<Counters>,
    /// Which mirrors send something now.
    pub(super) feeds: Arc<Feeds>,
    stop: watch::Sender<bool>,
}

impl Registry {
    /// Opens the data directory and every log in it. What a crash left behind a log's durable end is cut; a log that is
    /// damaged is kept as it is and says so in its status, without harm to the others. Blocks.
    ///
    /// # Errors
    /// When the directory is in use by another process, or cannot be read or written.
    pub fn open(data: Arc<dyn Repo>, settings: Settings) -> io::Result<Registry> {
        let lock = data.lock().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(error.kind(), format!("{} is in use by another process", data.place()))
            }
            _ => error,
        })?;
        let logs_repo = match data.dir(LOGS) {
            // On a disk that cannot be written it is there, and need not be synced.
            Ok(logs) => logs,
            Err(error) if error.kind() == io::ErrorKind::NotFound => ensure_dir(&*data, LOGS)?,
            Err(error) => return Err(error),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = match settings.writer_threads {
            0 => cores.min(WRITER_THREADS_MAX),
            threads => threads,
        };
        let counters = Arc::<Counters>::default();
        let registry = Registry {
            logs_repo,
            lock: RwLock::new(Some(lock)),
            changing: Mutex::default(),
            logs: RwLock::default(),
            older: Mutex::default(),
            held_back: Mutex::default(),
            shards: Shards::start(threads, &settings, &counters)?,
            budget: Arc::new(Budget::new(settings.memory_max, settings.held_max())),
            settings,
            counters,
            feeds: Arc::default(),
            stop: watch::Sender::new(false),
        };
        let mut opening = Vec::new();
        for found in registry.logs_repo.list()?.into_iter().filter(|found| name::is_log_name(found)) {
            match registry.load(&found, remove_unbegun) {
                Ok(Some(log)) => {
                    let log = Arc::new(log);
                    opening.push(registry.open_in_shard(&log));
                    registry.add(log);
                }
                Ok(None) => {}
                Err(error) => registry.keep(&found, &error),
            }
        }
        for opened in opening {
            // A shard that is gone has said why.
            let _ = opened.blocking_recv();
        }
        for log in registry.logs() {
            registry.note_mark(&log);
        }
        Ok(registry)
    }

    /// Reads what `log.json` says; `None` for a log whose creation was interrupted. A directory that was a log and has no
    /// `log.json` any more is an error. `remove_left` removes what was left of generations that did not begin.
    fn load(
        &self,
        log_name: &str,
        remove_left: fn(&dyn Repo, Generation) -> io::Result<()>,
    ) -> io::Result<Option<Log>> {
        let dir = match self.logs_repo.dir(log_name) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => {
                return Ok(None);
            }
            dir => dir?,
        };
        let Some(text) = read_small(&*dir, META, META_BYTES_MAX)? else {
            return used_generation(&*dir)?.map_or(Ok(None), |found| Err(undescribed(&*dir, &found)));
        };
        let meta = parse_meta(&dir.place(), &text)?;
        // The generation that it names may have been put there by a process that ended before that was durable.
        persist_names(&*dir)?;
        // Whatever cannot be removed now is in nobody's way until the next generation begins.
        if let Err(error) = remove_left(&*dir, meta.generation) {
            log::warn!("{log_name}: left of a generation that did not begin: {error}");
        }
        if matches!(meta.checkpoint, CheckpointPolicy::Roll { .. }) {
            self.held_back.lock().unwrap_or_else(PoisonError::into_inner).insert(log_name.to_owned());
        }
        let generation = name::generation(meta.generation);
        let repo = dir.dir(&generation).map_err(|error| no_generation(&dir.place(), &generation, error))?;
        if meta.format == LogFormat::Wal
            && let Err(error) = base::recover(&*repo)
        {
            log::warn!("{log_name}: left of a base that did not get its name: {error}");
        }
        Ok(Some(self.log(log_name, meta, repo)))
    }

    /// Keeps the name of a log that cannot be opened, so that nobody takes it for absent and creates it anew.
    fn keep(&self, log_name: &str, error: &io::Error) {
        let (format, id) = (LogFormat::Commitlog, String::new());
        let meta = Meta {
            format,
            id,
            generation: Generation::FIRST,
            first: Offset::ZERO,
            checkpoint: CheckpointPolicy::Keep,
            durable_mark: false,
            foreign_keys: false,
            losses: 0,
            frames_since: None,
            writers: Writers::default(),
            base: None,
        };
        let log = self.log(log_name, meta, self.logs_repo.clone());
        let cause: Arc<str> = format!("cannot open the log: {error}").into();
        log::error!("{log_name}: {cause}");
        self.counters.count(&self.counters.failures, log_name);
        log.unload();
        log.publish(|view| view.state = unloaded(error, cause));
        self.add(Arc::new(log));
    }

    /// Reads `log.json` again of the logs of which it could not be read, or of which it is not known which generation it
    /// names, and opens them if it can be. To be called now and then. Blocks.
    pub fn load_again(&self) {
        for log in self.logs().into_iter().filter(|log| log.is_unloaded()) {
            // While the service shuts down nothing is opened any more.
            let _ = self.exclusively(log.name(), || {
                match self.reload(&log) {
                    Ok(Some(new)) => {
                        let generation = new.generation();
                        self.counters.count(&self.counters.reopenings, log.name());
                        log::info!("{}: log.json was read again: generation {generation}", log.name());
                        self.start(new);
                        log.publish(|view| view.state = State::Ended(generation));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let cause: Arc<str> = format!("cannot open the log: {error}").into();
                        log.publish(|view| view.state = unloaded(&error, cause));
                    }
                }
                Ok(())
            });
        }
    }

    /// The log as `log.json` describes it, which is written again: which content a power failure leaves of it may not be
    /// known. `None` when it is gone.
    fn reload(&self, log: &Log) -> io::Result<Option<Log>> {
        let dir = self.logs_repo.dir(log.name())?;
        if log.is_described()
            && let Some(text) = read_small(&*dir, META, META_BYTES_MAX)?
        {
            replace(&*dir, META, &text)?;
        }
        // What is being received of a log that was described before is staged beside its generations.
        let remove_left = if log.is_described() { remove_after } else { remove_unbegun };
        self.load(log.name(), remove_left)
    }

    /// Checks that the files of all logs are still there, as [`Log::check`] does. Blocks.
    ///
    /// # Errors
    /// When the directory of the logs cannot be read.
    pub fn check(&self) -> io::Result<()> {
        for log in self.logs() {
            // It says so in its status.
            let _ = log.check();
        }
        self.logs_repo.list().map(drop)
    }

    fn add(&self, log: Arc<Log>) {
        self.logs.write().unwrap_or_else(PoisonError::into_inner).insert(log.name().to_owned(), log);
    }

    pub(super) fn log(&self, log_name: &str, meta: Meta, repo: Arc<dyn Repo>) -> Log {
        let shard = crc32c::crc32c(log_name.as_bytes()) as usize % self.shards.count();
        let queue = self.shards.queue_of(shard).downgrade();
        Log::new(log_name.to_owned(), meta, (self.logs_repo.clone(), repo), (shard, queue))
    }

    /// Has the shard of a log open it.
    fn open_in_shard(&self, log: &Arc<Log>) -> oneshot::Receiver<()> {
        let (reply, opened) = oneshot::channel();
        // A shard that is gone drops the reply, and the one who waits for it goes on.
        let _ = self.shards.queue(log).blocking_send(Message::Open { log: log.clone(), reply });
        opened
    }

    /// Has the shard of a log open it and adds it then, so that its positions are known wherever it is found, or why they
    /// are not. Blocks.
    pub(super) fn start(&self, log: Log) {
        let log = Arc::new(log);
        // A shard that is gone has said why.
        let _ = self.open_in_shard(&log).blocking_recv();
        self.note_mark(&log);
        self.add(log);
    }

    /// A log that was opened has a durable mark from there on, and a base: `log.json` says so, so that the loss of them is
    /// noticed. Blocks.
    pub(super) fn note_mark(&self, log: &Log) {
        let base_is_noted = {
            let facts = log.base_facts();
            facts.noted || facts.id.is_none()
        };
        if log.is_marked() && base_is_noted || log.view().state != State::Ok {
            return;
        }
        let meta = Meta { durable_mark: true, ..log.described() };
        let noted = serde_json::to_string_pretty(&meta)
            .map_err(io::Error::from)
            .and_then(|text| replace(&*log.dir()?, META, text.as_bytes()));
        match noted {
            Ok(()) => {
                log.set_marked();
                log.base_facts().noted = meta.base.is_some();
            }
            // The next start notes it.
            Err(error) => log::warn!("{}: {META} could not be written again: {error}", log.name()),
        }
    }

    /// Does what changes a log, while nobody else does so to the same one and the data directory is held.
    ///
    /// # Errors
    /// When the registry was stopped; otherwise as `work` says.
    pub(super) fn exclusively<T>(&self, log_name: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let held = self.lock.read().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            return Err(Error::Unavailable("the service is shutting down".into()));
        }
        let all = || self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let changing = all().entry(log_name.to_owned()).or_default().clone();
        let worked = {
            let _alone = changing.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        drop(changing);
        // What nobody else waits for is not kept: there is no end of names.
        all().retain(|_, changing| Arc::strong_count(changing) > 1);
        worked
    }

    /// What it was opened with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What happened since it was opened.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// All logs, by name.
    #[must_use]
    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.logs.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The log of that name.
    ///
    /// # Errors
    /// When the name cannot be one, or there is none.
    pub fn get(&self, log_name: &str) -> Result<Arc<Log>, Error> {
        check_name(log_name)?;
        let logs = self.logs.read().unwrap_or_else(PoisonError::into_inner);
        logs.get(log_name).cloned().ok_or_else(|| Error::NotFound(format!("there is no log {log_name:?}")))
    }

    /// Creates a log, durably, or finds it there as wanted; true when it is new. Blocks.
    ///
    /// # Errors
    /// When it exists with another format or first offset, or cannot be created.
    pub fn create(&self, log_name: &str, wanted: CreateLog) -> Result<(Arc<Log>, bool), Error> {
        self.create_in(log_name, wanted, Generation::FIRST)
    }

    /// The same; a WAL that is created starts with `generation`, as the log does that it is to be a copy of. Blocks.
    ///
    /// # Errors
    /// As [`create`](Self::create), and for a generation that cannot be.
    pub fn create_in(
        &self,
        log_name: &str,
        wanted: CreateLog,
        generation: Generation,
    ) -> Result<(Arc<Log>, bool), Error> {
        check_name(log_name)?;
        let last = if wanted.format == LogFormat::Wal { GENERATION_MAX } else { Generation::FIRST.0 };
        if !(Generation::FIRST.0..=last).contains(&generation.0) {
            return Err(Error::Invalid(format!("a {} cannot start with generation {generation}", wanted.format)));
        }
        let first = match (wanted.format.first(), wanted.first) {
            (Some(only), Some(first)) if only != first => {
                let text = format!("a {} starts at offset {only}, not at {first}", wanted.format);
                return Err(Error::Invalid(text));
            }
            (only, first) => first.or(only).unwrap_or_default(),
        };
        check_policy(wanted.format, wanted.checkpoint)?;
        if wanted.foreign_keys.is_some() && wanted.format != LogFormat::Wal {
            return Err(Error::Invalid(format!("a {} has no foreign keys", wanted.format)));
        }
        self.exclusively(log_name, || self.find_or_create(log_name, wanted, (generation, first)))
    }

    fn find_or_create(
        &self,
        log_name: &str,
        wanted: CreateLog,
        (generation, first): (Generation, Offset),
    ) -> Result<(Arc<Log>, bool), Error> {
        if let Ok(log) = self.get(log_name) {
            log.intact()?;
            if log.format() != wanted.format {
                let text = format!(
                    "log {log_name:?} exists as a {}, and not as a {}: give the log another name, or a source of its format",
                    log.format(),
                    wanted.format
                );
                return Err(Error::Format(text));
            }
            if log.meta().first != first {
                let text = format!("log {log_name:?} exists and starts at offset {}", log.meta().first);
                return Err(Error::Format(text));
            }
            if let Some(checked) = wanted.foreign_keys.filter(|checked| *checked != log.foreign_keys()) {
                self.store_meta(&log, &Meta { foreign_keys: checked, ..log.described() })?;
                log.set_foreign_keys(checked);
            }
            return Ok((log, false));
        }
        let failed = |error: io::Error| Error::Unavailable(format!("cannot create log {log_name:?}: {error}"));
        let found = match self.load(log_name, remove_unbegun) {
            // It was a log: what is left of it is not written over.
            Err(error) if matches!(unloaded(&error, "".into()), State::Damaged(_)) => {
                self.keep(log_name, &error);
                return self.find_or_create(log_name, wanted, (generation, first));
            }
            found => found.map_err(failed)?,
        };
        if let Some(log) = found {
            // Its directory was put there while the service ran.
            self.start(log);
            return self.find_or_create(log_name, wanted, (generation, first));
        }
        let log = self.create_files(log_name, wanted, (generation, first)).map_err(failed)?;
        log::info!("log {log_name} created: a {}, first offset {first}, id {}", log.format(), log.id());
        self.counters.logs_created.inc();
        self.start(log);
        Ok((self.get(log_name)?, true))
    }

    fn create_files(
        &self,
        log_name: &str,
        wanted: CreateLog,
        (generation, first): (Generation, Offset),
    ) -> io::Result<Log> {
        let id = uuid::Uuid::new_v4().to_string();
        let CreateLog { format, checkpoint, foreign_keys, .. } = wanted;
        let foreign_keys = format == LogFormat::Wal && foreign_keys.unwrap_or(true);
        let checkpoint = checkpoint.unwrap_or_default();
        let mut meta = Meta {
            format,
            id,
            generation,
            first,
            checkpoint,
            durable_mark: false,
            losses: 0,
            foreign_keys,
            writers: Writers::default(),
            base: None,
            frames_since: None,
        };
        let is_new = self.logs_repo.dir(log_name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let dir = ensure_dir(&*self.logs_repo, log_name)?;
        let mut make = || -> io::Result<_> {
            let repo = ensure_dir(&*dir, &name::generation(meta.generation))?;
            if format == LogFormat::Wal {
                meta.base = Some(base::store(repo.clone(), &database::empty(LIBSQL_PAGE_SIZE))?);
            }
            replace(&*dir, META, serde_json::to_string_pretty(&meta)?.as_bytes())?;
            Ok(repo)
        };
        let made = make();
        if made.is_err() && is_new {
            self.remove_uncreated(log_name, &*dir, generation);
        }
        Ok(self.log(log_name, meta, made?))
    }

    /// Removes what a creation that failed has made, as far as that works: without `log.json` it is no log.
    fn remove_uncreated(&self, log_name: &str, dir: &dyn Repo, generation: Generation) {
        let removed = dir.remove(META).or_else(absent).and_then(|()| {
            let generation = name::generation(generation);
            remove_dir(dir, &generation).or_else(absent)?;
            self.logs_repo.remove(log_name).or_else(absent)
        });
        if let Err(error) = removed {
            log::warn!("{log_name}: left of a log that could not be created: {error}");
        }
    }

    /// Changes when a log is rolled over. After Ok that survives power loss. Blocks.
    ///
    /// # Errors
    /// When there is no such log, it is no WAL, or the policy makes no sense.
    pub fn set_policy(&self, log_name: &str, policy: CheckpointPolicy) -> Result<Arc<Log>, Error> {
        let log = self.get(log_name)?;
        if !log.is_described() {
            log.readable()?;
        }
        check_policy(log.format(), Some(policy))?;
        self.exclusively(log_name, || self.store_policy(log_name, policy))
    }

    fn store_policy(&self, log_name: &str, policy: CheckpointPolicy) -> Result<Arc<Log>, Error> {
        let log = self.get(log_name)?;
        self.store_meta(&log, &Meta { checkpoint: policy, ..log.described() })?;
        log.set_policy(policy);
        Ok(log)
    }

    pub(super) fn store_meta(&self, log: &Log, meta: &Meta) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Unavailable(format!("cannot change log {:?}: {error}", log.name()));
        let text = serde_json::to_string_pretty(meta).map_err(io::Error::from).map_err(failed)?;
        let dir = self.logs_repo.dir(log.name()).map_err(failed)?;
        replace(&*dir, META, text.as_bytes()).map_err(failed)
    }

    /// Starts an append to `log` by a sender that does not say what it copies.
    ///
    /// # Errors
    /// As [`append_by`](Self::append_by).
    pub async fn append(&self, log: &Arc<Log>, from: Option<Offset>) -> Result<Append, Error> {
        self.append_by(Writer::Unnamed, log, from).await
    }

    /// Starts an append of `writer` to `log`. `from`, if the sender knows it, is the offset of its first commit. A commit that is
    /// too large to be held in memory is kept in a file without a name until it is whole.
    ///
    /// # Errors
    /// When the log takes none, or none of that writer.
    pub async fn append_by(&self, writer: Writer, log: &Arc<Log>, from: Option<Offset>) -> Result<Append, Error> {
        self.append_keeping(log, from, LargeCommits::Spooled(log.repo().clone()), writer).await
    }

    /// Starts an append of what is in a file, all of it, which must not change before it ends.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn append_file(
        &self,
        log: &Arc<Log>,
        from: Option<Offset>,
        file: Arc<dyn RepoFile>,
        writer: Writer,
    ) -> Result<Append, Error> {
        self.append_keeping(log, from, LargeCommits::InSource { bytes: Arc::new(file), start: 0 }, writer).await
    }

    /// Notes that `writer` sends a base to a log, for as long as what is returned lives.
    pub fn feeding(&self, log_name: &str, writer: &Writer) -> impl Sized + Send + use<> {
        self.feeds.open(log_name, writer)
    }

    async fn append_keeping(
        &self,
        log: &Arc<Log>,
        from: Option<Offset>,
        large: LargeCommits,
        writer: Writer,
    ) -> Result<Append, Error> {
        log.writable()?;
        log.admit(&writer)?;
        let framing = match from {
            None => log.view().framing,
            Some(from) => self.framing_at(log, from).await?,
        };
        let queue = self.shards.queue(log).clone();
        let sizes = (self.settings.commit_bytes_max, self.settings.commit_held_max());
        let feed = self.feeds.open(log.name(), &writer);
        let append = Append::new(log.clone(), self.budget.clone(), queue, (from, framing), sizes, (large, writer));
        Ok(append.of_feed(feed))
    }

    /// Appends a stream that is here already, in chunks whose bytes `share` covers. All of it is verified before any of it
    /// is stored; after Ok it is durable.
    ///
    /// # Errors
    /// When the stream is not sound or does not go on where the log ends, or the log takes none.
    pub async fn append_whole(
        &self,
        log: &Arc<Log>,
        from: Option<Offset>,
        (chunks, share): (Vec<Bytes>, Share),
        writer: Writer,
    ) -> Result<AppendOutcome, Error> {
        let append = self.append_keeping(log, from, LargeCommits::InMemory, writer).await?;
        append.take(chunks, share).await.map_err(|(error, _)| error)
    }

    /// Raw bytes from the commit that holds the start of `range` up to the one before its end, or to the durable end; with
    /// `follow` it goes on from there as commits become durable.
    ///
    /// # Errors
    /// When the range is not in the log, or the log is damaged.
    pub async fn feed(&self, log: &Arc<Log>, range: (Offset, Option<Offset>), follow: bool) -> Result<Feed, Error> {
        let (held, stop) = ((self.budget.clone(), self.shards.files()), self.stop.subscribe());
        Feed::range(log.clone(), held, range, follow, stop, self.settings.commit_bytes_max).await
    }

    /// The bytes of a segment of a log, all of them durable.
    ///
    /// # Errors
    /// When there is no such segment, or the range is not within its durable bytes.
    pub fn segment(&self, log: &Arc<Log>, start: Offset, bytes: Range<u64>) -> Result<Feed, Error> {
        log.readable()?;
        let found = log.view().segment(start).filter(|segment| bytes.end <= segment.bytes);
        let segment = found.ok_or_else(|| Error::NotFound(format!("there are no such bytes in segment {start}")))?;
        let (held, stop) = ((self.budget.clone(), self.shards.files()), self.stop.subscribe());
        Ok(Feed::segment(log.clone(), held, &segment, bytes, stop, self.settings.commit_bytes_max))
    }

    /// What [`Log::framing_at`] says. Waits for a file to read when the process has as many open as it may.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn framing_at(&self, log: &Arc<Log>, offset: Offset) -> Result<Framing, Error> {
        if let Some(known) = log.known_framing(offset) {
            return Ok(known);
        }
        let log = log.clone();
        self.shards.files().opened(FILES_WAIT, move || log.find_framing(offset)).await
    }

    /// When the file of a segment was modified; none where files have no times. Waits as [`framing_at`](Self::framing_at).
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn modified(&self, log: &Arc<Log>, start: Offset) -> Result<Option<SystemTime>, Error> {
        let log = log.clone();
        let modified = move || match log.repo().open(&name::segment(log.format(), start)) {
            Ok(file) => Ok(Ok(file.plain().and_then(|file| file.metadata().ok()?.modified().ok()))),
            Err(error) if is_out_of_files(&error) => Err(error),
            Err(error) => Ok(Err(log.unreadable(error))),
        };
        self.shards.files().opened(FILES_WAIT, modified).await
    }

    /// Becomes true when the service shuts down: streams without end should end then.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Tells endless streams to end.
    pub fn begin_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Makes everything that was taken durable, ends the writer threads, and lets go of the data directory, whoever may
    /// still hold on to a log for reading. Blocks.
    pub fn stop(&self) {
        self.begin_stop();
        self.shards.stop();
        self.lock.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A generation in the directory of a log that holds a durable mark or segments: it was part of a log, since a creation that
/// was interrupted leaves neither.
fn used_generation(dir: &dyn Repo) -> io::Result<Option<String>> {
    for found in dir.list()?.into_iter().filter(|found| name::parse_generation(found).is_some()) {
        let files = match dir.dir(&found).and_then(|generation| generation.list()) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => continue,
            files => files?,
        };
        if files.iter().any(|file| file == DurableMark::NAME || name::parse_segment(file).is_some()) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn undescribed(dir: &dyn Repo, generation: &str) -> io::Error {
    let place = dir.place();
    let text = format!(
        "{META} is missing in {place}, and {generation} holds a log: put {META} back from a backup, stop the service and run \
         `logmirror repair {place}`, or move {place} away and mirror {generation} into a new log"
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// What the content of the `log.json` in `place` says.
pub(super) fn parse_meta(place: &str, text: &[u8]) -> io::Result<Meta> {
    serde_json::from_slice(text).map_err(|error| {
        let found = match text {
            text if text.iter().all(|byte| matches!(byte, 0 | b' ' | b'\n' | b'\r')) => "is empty".to_owned(),
            _ => format!("is damaged, or of another version of logmirror ({error})"),
        };
        let text = format!(
            "{place}/{META} {found}: put it back from a backup, or stop the service and run `logmirror repair {place}`, which says \
             whether it can be written again; or move {place} away and mirror its last generation into a new log"
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

/// The error for a generation that `log.json` names and that cannot be opened.
pub(super) fn no_generation(place: &str, generation: &str, error: io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::NotFound => format!(
            "{place}/{generation} is missing, and {place}/{META} says that the log is there: put it back from a backup; if it is \
             lost, move {place} away and mirror the source into a new log"
        ),
        _ => format!("{place}/{generation}: {error}"),
    };
    io::Error::new(error.kind(), text)
}

/// Not to be there is what was wanted.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The state of a log whose `log.json` cannot be read, or whose directory is not there.
fn unloaded(error: &io::Error, cause: Arc<str>) -> State {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::NotFound => State::Damaged(cause),
        _ => State::Failed(cause),
    }
}

fn check_policy(format: LogFormat, policy: Option<CheckpointPolicy>) -> Result<(), Error> {
    let never = |limit: Option<u64>| limit.is_none_or(|limit| limit == 0);
    match policy {
        Some(_) if format != LogFormat::Wal => {
            Err(Error::Invalid(format!("a {format} has no base that a checkpoint could fold it into")))
        }
        Some(CheckpointPolicy::Roll { frames, bytes, seconds, .. })
            if never(frames) && never(bytes) && never(seconds) =>
        {
            Err(Error::Invalid("a roll needs frames, bytes or seconds, more than 0".into()))
        }
        Some(CheckpointPolicy::Roll { keep: 0, .. }) => {
            Err(Error::Invalid("at least 1 generation is kept, the current one".into()))
        }
        _ => Ok(()),
    }
}

fn check_name(log_name: &str) -> Result<(), Error> {
    if name::is_log_name(log_name) {
        return Ok(());
    }
    let shown: String = log_name.chars().take(name::LOG_NAME_MAX + 8).collect();
    Err(Error::Invalid(format!(
        "{shown:?} cannot be the name of a log: it takes 1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
    )))
}

/// The directory of that name, created if it is not there. After Ok it survives power loss, also when an earlier attempt
/// created it and could not sync it.
fn ensure_dir(repo: &dyn Repo, dir_name: &str) -> io::Result<Arc<dyn Repo>> {
    match repo.dir(dir_name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dir = repo.create_dir(dir_name)?;
            repo.sync_dir()?;
            Ok(dir)
        }
        dir => {
            let dir = dir?;
            persist_names(repo)?;
            Ok(dir)
        }
    }
}
