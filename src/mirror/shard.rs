//! The writer threads. A log belongs to exactly one of them, which alone opens, writes and syncs it; everybody else
//! sends messages. Appends that wait on one log share one sync, which runs elsewhere while the thread writes on.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use crossbeam_channel as jobs;
use tokio::sync::{Notify, mpsc, oneshot};

use super::budget::Share;
use super::counters::Counters;
use super::error::Error;
use super::files::Files;
use super::log::{Log, State};
use super::opening::{Attempt, DamagedLog, Unusable, open, open_again};
use super::registry::Settings;
use super::reopening::Reopenings;
use super::writers::Writer;
use crate::api::{AppendOutcome, LogSource};
use crate::format::LogFormat;
use crate::limits::{
    ALONE, FILES_IDLE, LARGE_APPEND_THREADS, REOPEN_THREADS, SHARD_QUEUE, SYNC_EVERY, SYNC_PATIENCE, SYNC_THREADS,
    UNSYNCED_MAX, WRITER_IDLE,
};
use crate::offset::{Generation, Offset};
use crate::repo::is_out_of_files;
use crate::stream::{AppendError, Appended, Batch, OpenError, SegmentInfo, StreamWriter, SyncJob, Synced, TornContent};

/// How an append ended: what it did, or why it stopped and where the log goes on.
pub(super) type Ended = Result<AppendOutcome, (Error, Offset)>;

/// What is known of one append while it runs. Only the log's shard changes it.
#[derive(Debug, Default)]
pub(super) struct Session {
    progress: Mutex<SessionProgress>,
    stopped: AtomicBool,
    pub(super) stop: Notify,
    /// Told when commits were skipped: the end of this append moves then, and the log does not.
    pub(super) skipped: Notify,
    /// The number of the slot that knows of it; the log may have got another one since.
    slot: AtomicU64,
    /// Whose it is.
    writer: Writer,
}

#[derive(Debug, Default)]
struct SessionProgress {
    done: Appended,
    /// The offset after the last commit of this append, stored or skipped.
    end: Offset,
    /// What must be durable before an append that failed is answered.
    until: Offset,
    /// Where its first commit that was stored starts.
    first: Option<Offset>,
    error: Option<Error>,
}

impl Session {
    pub(super) fn of(writer: Writer) -> Session {
        Session { writer, ..Session::default() }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The offset after the last commit of this append, stored or skipped; none once it has failed.
    pub(super) fn end(&self) -> Option<Offset> {
        let progress = self.progress();
        progress.error.is_none().then_some(progress.end)
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, SessionProgress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error of this append to a log whose files may hold what is before `written`: it says whether that is any of it.
    fn doubted(&self, error: Error, written: Offset) -> Error {
        match error {
            Error::Failed(cause) if self.progress().first.is_some_and(|first| first < written) => Error::InDoubt(cause),
            error => error,
        }
    }

    fn fail(&self, error: Error) {
        self.progress().error.get_or_insert(error);
        self.stopped.store(true, Ordering::Release);
        self.stop.notify_waiters();
        self.stop.notify_one();
    }
}

/// What a shard is told.
pub(super) enum Message {
    Open {
        log: Arc<Log>,
        reply: oneshot::Sender<()>,
    },
    Append {
        log: Arc<Log>,
        session: Arc<Session>,
        batch: Batch,
        share: Share,
    },
    /// All of an append at once, and its end.
    Whole {
        log: Arc<Log>,
        session: Arc<Session>,
        batch: Batch,
        share: Share,
        reply: oneshot::Sender<Ended>,
    },
    End {
        log: Arc<Log>,
        session: Arc<Session>,
        error: Option<Error>,
        reply: oneshot::Sender<Ended>,
    },
    Synced {
        log: Arc<Log>,
        /// The slot that asked for it: another may have taken its place.
        slot: u64,
        synced: Synced,
    },
    /// Sync, let go of the files, and take nothing more: the log goes on in generation `next`.
    Close {
        log: Arc<Log>,
        next: Generation,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// Make a source the one that feeds the log, if the log ends where that says.
    Claim {
        log: Arc<Log>,
        source: LogSource,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// Let go of the files of a log whose state says that it cannot be used, and open it again later.
    Reopen {
        log: Arc<Log>,
    },
    /// What came of an attempt to open a log again.
    Reopened {
        log: Arc<Log>,
        attempt: Attempt,
    },
    /// A slot comes back from the thread that appended a large commit for it.
    Back(Box<Slot>),
    /// Let go of the files of logs that are not written just now: the process can open no more.
    LetGo,
    Stop,
}

/// The writer threads and those that wait for the disk.
#[derive(Debug)]
pub(super) struct Shards {
    queues: Vec<mpsc::Sender<Message>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

/// What is done beside the writer threads.
enum Job {
    /// A sync for a slot of a shard, which is told of its end.
    Sync { job: SyncJob, log: Arc<Log>, slot: u64, queue: mpsc::Sender<Message> },
    /// The page index of a segment that was sealed just now.
    Index { log: Arc<Log>, segment: SegmentInfo },
}

/// A batch with a large commit, whose bytes are copied from a file, for a slot that goes back to its shard.
struct LargeAppend {
    slot: Box<Slot>,
    session: Arc<Session>,
    batch: Batch,
    share: Share,
    queue: mpsc::Sender<Message>,
}

/// An attempt to open a log again, for a shard.
struct Reopen {
    log: Arc<Log>,
    settings: Settings,
    damaged: Option<DamagedLog>,
    queue: mpsc::Sender<Message>,
}

impl Shards {
    pub(super) fn start(threads: usize, settings: &Settings, counters: &Arc<Counters>) -> std::io::Result<Shards> {
        let (jobs, todo) = jobs::unbounded::<Job>();
        for n in 0..SYNC_THREADS {
            let todo = todo.clone();
            std::thread::Builder::new().name(format!("sync-{n}")).spawn(move || sync_loop(&todo))?;
        }
        let (large, large_appends) = jobs::unbounded::<LargeAppend>();
        for n in 0..LARGE_APPEND_THREADS {
            let todo = large_appends.clone();
            std::thread::Builder::new().name(format!("large-{n}")).spawn(move || large_append_loop(&todo))?;
        }
        let (reopen, to_reopen) = jobs::unbounded::<Reopen>();
        for n in 0..REOPEN_THREADS {
            let to_reopen = to_reopen.clone();
            std::thread::Builder::new().name(format!("reopen-{n}")).spawn(move || reopen_loop(&to_reopen))?;
        }
        let mut shards = Shards { queues: Vec::new(), threads: Mutex::default() };
        for n in 0..threads {
            let (queue, messages) = mpsc::channel(SHARD_QUEUE);
            let mut shard = Shard {
                slots: HashMap::new(),
                opened: 0,
                jobs: jobs.clone(),
                large: large.clone(),
                reopen: reopen.clone(),
                reopening: 0,
                queue: queue.downgrade(),
                settings: *settings,
                counters: counters.clone(),
                alone: (0, Instant::now()),
                reopenings: Reopenings::default(),
                away: HashMap::new(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            let thread = std::thread::Builder::new().name(format!("writer-{n}"));
            let thread = thread.spawn(move || runtime.block_on(shard.run(messages)))?;
            shards.queues.push(queue);
            shards.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(shards)
    }

    pub(super) fn count(&self) -> usize {
        self.queues.len()
    }

    /// Has them close the files of logs that are not written when a reader needs some.
    pub(super) fn files(&self) -> Arc<Files> {
        Arc::new(Files::new(self.queues.iter().map(mpsc::Sender::downgrade).collect()))
    }

    pub(super) fn queue_of(&self, shard: usize) -> &mpsc::Sender<Message> {
        &self.queues[shard]
    }

    pub(super) fn queue(&self, log: &Log) -> &mpsc::Sender<Message> {
        &self.queues[log.shard]
    }

    /// Lets every shard finish what it was sent, sync, and end. Blocks.
    pub(super) fn stop(&self) {
        for queue in &self.queues {
            // A shard that is gone already has nothing left to finish.
            let _ = queue.blocking_send(Message::Stop);
        }
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                log::error!("a writer thread panicked");
            }
        }
    }
}

fn sync_loop(todo: &jobs::Receiver<Job>) {
    for job in todo {
        match job {
            Job::Sync { job, log, slot, queue } => {
                let synced = job.run();
                if queue.blocking_send(Message::Synced { log, slot, synced }).is_err() {
                    return;
                }
            }
            Job::Index { log, segment } => log.index_pages(&segment),
        }
    }
}

fn large_append_loop(todo: &jobs::Receiver<LargeAppend>) {
    for LargeAppend { mut slot, session, batch, share, queue } in todo {
        slot.append(&session, &batch, share);
        drop((session, batch));
        // A shard that is gone has waited for it before.
        let _ = queue.blocking_send(Message::Back(slot));
    }
}

fn reopen_loop(todo: &jobs::Receiver<Reopen>) {
    for Reopen { log, settings, damaged, queue } in todo {
        let attempt = open_again(&log, &settings, damaged.as_ref());
        // A shard that is gone needs no writer: it is closed with the message.
        let _ = queue.blocking_send(Message::Reopened { log, attempt });
    }
}

/// A log with its writer open.
pub(super) struct Slot {
    log: Arc<Log>,
    serial: u64,
    writer: StreamWriter,
    counters: Arc<Counters>,
    /// Ends of appends that wait for what is before this offset to be durable.
    waiting: VecDeque<(Offset, Arc<Session>, oneshot::Sender<Ended>)>,
    /// Appends under way, to be told when the log fails. One that was given up by its client just goes.
    sessions: Vec<Weak<Session>>,
    /// Memory of batches that are staged but not written.
    shares: Vec<Share>,
    /// Sealed segments that have a page index, or had one asked for.
    indexed: usize,
    syncing: bool,
    /// Bytes that came since the last sync began, and how many that one was for.
    unsynced: u64,
    synced_bytes: u64,
    /// Since when a sync that is not urgent waits for more bytes to take along.
    postponed: Option<Instant>,
    touched: bool,
    /// Its writer cannot be used any more; the slot goes as soon as no sync is under way.
    failed: bool,
    used: Instant,
}

struct Shard {
    slots: HashMap<String, Slot>,
    /// Slots opened so far.
    opened: u64,
    jobs: jobs::Sender<Job>,
    /// Where batches with a large commit are appended.
    large: jobs::Sender<LargeAppend>,
    /// Where attempts to open a log again are made, since they may take long: the other logs of the shard go on meanwhile.
    reopen: jobs::Sender<Reopen>,
    /// How many of them are under way.
    reopening: usize,
    /// Its own queue, for the answers of the sync threads. Weak, so that it ends when nobody else can send to it.
    queue: mpsc::WeakSender<Message>,
    settings: Settings,
    counters: Arc<Counters>,
    /// The slot that alone got messages, and since when.
    alone: (u64, Instant),
    reopenings: Reopenings,
    /// The logs whose slots are with a thread that appends a large commit, and the messages that wait for them.
    away: HashMap<String, VecDeque<Message>>,
}

impl Message {
    /// The log that it is about.
    fn log(&self) -> Option<&Arc<Log>> {
        match self {
            Message::Open { log, .. } | Message::Append { log, .. } | Message::Whole { log, .. } => Some(log),
            Message::End { log, .. } | Message::Synced { log, .. } | Message::Close { log, .. } => Some(log),
            Message::Claim { log, .. } => Some(log),
            Message::Reopen { log } | Message::Reopened { log, .. } => Some(log),
            Message::Back(_) | Message::LetGo | Message::Stop => None,
        }
    }
}

impl Shard {
    async fn run(&mut self, mut messages: mpsc::Receiver<Message>) {
        loop {
            let postponed = self.slots.values().any(|slot| slot.postponed.is_some());
            let patience = if postponed { SYNC_PATIENCE } else { WRITER_IDLE / 4 };
            let patience = self.reopenings.next().map_or(patience, |next| next.min(patience));
            let message = match tokio::time::timeout(patience, messages.recv()).await {
                Ok(Some(message)) => Some(message),
                Ok(None) => return self.drain(),
                Err(_elapsed) => None,
            };
            let idle = message.is_none();
            let mut stopping = message.is_some_and(|message| self.take(message));
            let mut taken = 0;
            while taken < SHARD_QUEUE
                && let Ok(message) = messages.try_recv()
            {
                stopping |= self.take(message);
                taken += 1;
            }
            let alone = Some(self.alone.0).filter(|_| self.alone.1.elapsed() >= ALONE);
            for slot in self.slots.values_mut().filter(|slot| slot.touched || slot.is_due()) {
                slot.touched = false;
                let here = alone == Some(slot.serial) && slot.all_wait();
                slot.settle(&self.jobs, &self.queue, here);
            }
            if stopping {
                // An attempt to open a log may write to its directory, which is let go of after this; and so does what appends a
                // large commit.
                while (self.reopening > 0 || !self.away.is_empty())
                    && let Some(message) = messages.recv().await
                {
                    self.take(message);
                }
                return self.drain();
            }
            for (_, slot) in self.slots.extract_if(|_, slot| slot.failed && !slot.syncing) {
                self.reopenings.schedule(&slot.log);
            }
            for (log, damaged) in self.reopenings.due() {
                self.reopen(log, damaged);
            }
            if idle && !postponed {
                self.slots.retain(|_, slot| slot.is_busy() || slot.used.elapsed() < WRITER_IDLE);
            }
        }
    }

    /// Takes one message; true when it was the last.
    fn take(&mut self, message: Message) -> bool {
        if let Some(waiting) = message.log().and_then(|log| self.away.get_mut(log.name())) {
            waiting.push_back(message);
            return false;
        }
        match message {
            Message::Stop => return true,
            Message::Back(slot) => self.back(*slot),
            Message::Open { log, reply } => {
                // Only its position is wanted; the writer is opened again with the first append.
                if self.slot(&log).is_ok() {
                    self.slots.remove(log.name());
                }
                let _nobody_waits = reply.send(());
            }
            Message::Reopen { log } => {
                let state = log.view().state;
                // It may have been opened again or ended since, and the slot may be that of its next generation.
                if matches!(state, State::Failed(_) | State::Damaged(_)) {
                    match self.slots.get_mut(log.name()) {
                        Some(slot) if Arc::ptr_eq(&slot.log, &log) => slot.fail(&state),
                        Some(_) => {}
                        None => self.reopenings.schedule(&log),
                    }
                }
            }
            Message::Reopened { log, attempt } => self.reopened(&log, attempt),
            Message::Append { log, session, batch, share } => {
                if !session.is_stopped() {
                    match self.slot(&log) {
                        Ok(_) if batch.runs().any(|run| run.large.is_some()) => {
                            self.send_away(&log, session, batch, share);
                        }
                        Ok(slot) => slot.append(&session, &batch, share),
                        Err(error) => session.fail(error),
                    }
                }
            }
            Message::Whole { log, session, batch, share, reply } => match self.slot(&log) {
                Ok(slot) => {
                    slot.append(&session, &batch, share);
                    slot.end(session, reply);
                }
                Err(error) => refuse(reply, error, &log),
            },
            Message::End { log, session, error, reply } => {
                if let Some(error) = error {
                    session.fail(error);
                }
                match self.slot(&log) {
                    Ok(slot) => slot.end(session, reply),
                    Err(error) => refuse(reply, error, &log),
                }
            }
            Message::Close { log, next, reply } => {
                let _nobody_waits = reply.send(self.close(&log, next));
            }
            Message::Claim { log, source, reply } => {
                let claimed = self.slot(&log).and_then(|slot| log.claim(&source, slot.writer.next()));
                let _nobody_waits = reply.send(claimed);
            }
            Message::LetGo => {
                self.slots.retain(|_, slot| slot.is_busy() || slot.failed || slot.used.elapsed() < FILES_IDLE);
            }
            Message::Synced { log, slot: serial, synced } => {
                let slot = self.slots.get_mut(log.name());
                if let Some(slot) = slot.filter(|slot| slot.serial == serial) {
                    slot.synced(synced);
                }
            }
        }
        false
    }

    /// Has another thread append a batch with a large commit: the other logs of the shard go on meanwhile.
    fn send_away(&mut self, log: &Arc<Log>, session: Arc<Session>, batch: Batch, share: Share) {
        let (Some(slot), Some(queue)) = (self.slots.remove(log.name()), self.queue.upgrade()) else {
            return session.fail(Error::Unavailable("the service is shutting down".into()));
        };
        for run in batch.runs().filter(|run| run.large.is_some()) {
            let (name, bytes, first) = (log.name(), run.bytes, run.first);
            log::info!(
                "log {name}: a commit of {bytes} bytes at offset {first} was kept in a file, and is copied from there"
            );
            self.counters.count(&self.counters.large_commits, name);
        }
        let failed = session.clone();
        if self.large.send(LargeAppend { slot: Box::new(slot), session, batch, share, queue }).is_err() {
            return failed.fail(Error::Failed("the threads that append are gone".into()));
        }
        self.away.insert(log.name().to_owned(), VecDeque::new());
    }

    /// Takes back a slot that was away, and the messages that waited for it.
    fn back(&mut self, mut slot: Slot) {
        (slot.touched, slot.used) = (true, Instant::now());
        let log = slot.log.clone();
        self.slots.insert(log.name().to_owned(), slot);
        let mut waiting = self.away.remove(log.name()).unwrap_or_default();
        while let Some(message) = waiting.pop_front() {
            self.take(message);
            // It may be away again.
            if let Some(again) = self.away.get_mut(log.name()) {
                again.append(&mut waiting);
            }
        }
    }

    /// The log with its writer, opened if need be.
    fn slot(&mut self, log: &Arc<Log>) -> Result<&mut Slot, Error> {
        log.writable()?;
        if !self.slots.contains_key(log.name()) {
            let writer = self.open(log)?;
            self.add_slot(log, writer);
        }
        let slot = self.slots.get_mut(log.name()).ok_or_else(|| Error::NotFound(log.name().to_owned()))?;
        (slot.touched, slot.used) = (true, Instant::now());
        if self.alone.0 != slot.serial {
            self.alone = (slot.serial, slot.used);
        }
        Ok(slot)
    }

    fn add_slot(&mut self, log: &Arc<Log>, mut writer: StreamWriter) {
        writer.count_copied(log.copied().clone());
        let (waiting, sessions, shares, used) = (VecDeque::new(), Vec::new(), Vec::new(), Instant::now());
        self.opened += 1;
        let slot = Slot {
            log: log.clone(),
            serial: self.opened,
            indexed: writer.sealed().len(),
            writer,
            counters: self.counters.clone(),
            waiting,
            sessions,
            shares,
            syncing: false,
            unsynced: 0,
            synced_bytes: 0,
            postponed: None,
            touched: false,
            failed: false,
            used,
        };
        self.slots.insert(log.name().to_owned(), slot);
    }

    /// Opens a log's writer. One that cannot be opened has failed or is damaged from here on, and is tried again later.
    fn open(&mut self, log: &Arc<Log>) -> Result<StreamWriter, Error> {
        let mut opened = open(log, &self.settings);
        let out_of_files = |error: &OpenError| match error {
            OpenError::Io(error) => is_out_of_files(error),
            _ => false,
        };
        if opened.as_ref().is_err_and(out_of_files) {
            // Logs that are not being written can do without theirs.
            self.slots.retain(|_, slot| slot.is_busy() || slot.failed);
            opened = open(log, &self.settings);
        }
        match opened {
            Ok(writer) => {
                self.publish_opened(log, &writer);
                if let Some(warning) = log.status().warning {
                    log::warn!("{}: {warning}", log.name());
                }
                Ok(writer)
            }
            Err(error) => {
                let state = Unusable::of(log, self.settings.commit_bytes_max, error).publish(log);
                log::error!("{}: {}", log.name(), state.cause());
                self.counters.count(&self.counters.failures, log.name());
                self.reopenings.schedule(log);
                log.writable()?;
                Err(Error::Unavailable("the log was just reopened: try again".into()))
            }
        }
    }

    /// Publishes what a writer that was just opened has found.
    fn publish_opened(&mut self, log: &Arc<Log>, writer: &StreamWriter) {
        self.reopenings.opened(log);
        self.report_cut(log, writer);
        log.look_aside();
        log.note_present();
        log.set_appended(writer.next());
        log.publish(|view| view.reopen(writer));
        log.check_base();
    }

    /// Has another thread try to open a log that failed or is damaged. Its state keeps it from getting a slot meanwhile.
    fn reopen(&mut self, log: Arc<Log>, damaged: Option<DamagedLog>) {
        let (settings, Some(queue)) = (self.settings, self.queue.upgrade()) else {
            // The last one who could send is gone: nothing is opened any more.
            return;
        };
        // The threads end after the shards.
        self.reopening += usize::from(self.reopen.send(Reopen { log, settings, damaged, queue }).is_ok());
    }

    /// Takes what came of such an attempt. What went wrong before is reported again only when it is something else.
    fn reopened(&mut self, log: &Arc<Log>, attempt: Attempt) {
        self.reopening -= 1;
        let before = log.view().state;
        if !self.reopenings.attempted(log) || !matches!(before, State::Failed(_) | State::Damaged(_)) {
            return;
        }
        match attempt {
            Attempt::Unchanged => {}
            Attempt::Opened(writer) => {
                self.publish_opened(log, &writer);
                self.counters.count(&self.counters.reopenings, log.name());
                log::info!("{}: reopened, durable up to offset {}", log.name(), writer.durable());
                if let Some(warning) = log.status().warning {
                    log::warn!("{}: {warning}", log.name());
                }
                self.add_slot(log, *writer);
            }
            Attempt::Unusable(unusable) => {
                let state = unusable.publish(log);
                if state != before {
                    log::error!("{}: {}", log.name(), state.cause());
                }
                self.reopenings.schedule(log);
            }
        }
    }

    /// Reports what opening a log cut off its end.
    fn report_cut(&self, log: &Log, writer: &StreamWriter) {
        if let Some(cut) = writer.cut_tail() {
            let (name, bytes, at, file, commits) = (log.name(), cut.bytes, cut.at, &cut.file, cut.commits);
            let aside = cut.aside.as_deref().unwrap_or_default();
            match cut.content {
                TornContent::Incomplete => {
                    log::warn!(
                        "log {name}: cut {bytes} incomplete bytes at byte {at} of {file}: a write that did not end"
                    );
                }
                TornContent::CommitsAfterDamage => log::warn!(
                    "log {name}: cut {bytes} bytes with {commits} whole commits that come after damage at byte {at} of {file}, and \
                     kept them in {aside}: a power failure may leave that, or another process wrote them"
                ),
                TornContent::OtherCommit(_, first) => log::warn!(
                    "log {name}: cut {bytes} bytes with {commits} whole commits that do not continue the log at byte {at} of {file}, \
                     the first at offset {}, and kept them in {aside}: another process wrote them",
                    first.first
                ),
            }
            if cut.content != TornContent::Incomplete {
                self.counters.count(&self.counters.kept_aside, name);
            }
            self.counters.cut(log.name(), bytes);
        }
    }

    /// Ends a generation: makes all of it durable, answers all who wait, and lets go of its files.
    fn close(&mut self, log: &Arc<Log>, next: Generation) -> Result<(), Error> {
        let slot = self.slot(log)?;
        let synced = slot.writer.sync();
        slot.settled(synced.clone().err());
        synced?;
        if let Some(mut slot) = self.slots.remove(log.name()) {
            for session in slot.sessions.drain(..).filter_map(|session| session.upgrade()) {
                session.fail(Error::Ended { generation: log.generation(), current: next });
            }
        }
        log.publish(|view| view.state = State::Ended(next));
        Ok(())
    }

    /// Makes everything taken so far durable and answers all who wait.
    fn drain(&mut self) {
        for (_, mut slot) in self.slots.drain() {
            let synced = slot.writer.sync();
            slot.settled(synced.err());
        }
    }
}

fn refuse(reply: oneshot::Sender<Ended>, error: Error, log: &Log) {
    let _nobody_waits = reply.send(Err((error, log.view().durable)));
}

impl Slot {
    fn is_busy(&self) -> bool {
        self.syncing || !self.waiting.is_empty() || self.writer.durable() < self.writer.next()
    }

    fn append(&mut self, session: &Arc<Session>, batch: &Batch, share: Share) {
        if session.slot.swap(self.serial, Ordering::Relaxed) != self.serial {
            self.sessions.retain(|session| session.strong_count() > 0);
            self.sessions.push(Arc::downgrade(session));
        }
        if let Err(error) = self.log.admit(&session.writer) {
            self.shares.push(share);
            session.progress().until = self.writer.next();
            return session.fail(error);
        }
        // Others look at the progress, and a large commit takes long.
        let (before, first) = (session.progress().done, self.writer.next());
        let mut done = before;
        let result = self.writer.append_batch(batch, &mut done);
        let mut progress = session.progress();
        progress.done = done;
        if done.commits > 0 {
            progress.first.get_or_insert(first);
        }
        self.unsynced += progress.done.bytes - before.bytes;
        self.shares.push(share);
        match result {
            Ok(()) => {
                let end = batch.runs().map(|run| run.end).max().unwrap_or_default();
                progress.end = progress.end.max(end);
                if progress.done.skipped > before.skipped {
                    session.skipped.notify_one();
                }
            }
            Err(error) => {
                progress.until = self.writer.next();
                drop(progress);
                session.fail(session.doubted(error.clone().into(), self.writer.written()));
                self.poison(&error);
            }
        }
    }

    fn end(&mut self, session: Arc<Session>, reply: oneshot::Sender<Ended>) {
        let end = {
            let progress = session.progress();
            progress.end.max(progress.until)
        };
        self.waiting.push_back((end, session, reply));
    }

    /// Whether all appends have ended and wait for a sync: nothing could be written beside it.
    fn all_wait(&self) -> bool {
        let under_way = self.sessions.iter().filter(|session| session.strong_count() > 0).count();
        !self.waiting.is_empty() && under_way <= self.waiting.len()
    }

    /// Writes out what is staged and sees to it that it gets synced: `here`, or by another thread.
    fn settle(&mut self, jobs: &jobs::Sender<Job>, queue: &mpsc::WeakSender<Message>, here: bool) {
        let flushed = self.writer.flush();
        self.shares.clear();
        self.log.set_appended(self.writer.next());
        let result = flushed.and_then(|()| {
            if self.syncing && self.unsynced < UNSYNCED_MAX || self.postpones() {
                return Ok(());
            }
            self.postponed = None;
            let Some(job) = self.writer.begin_sync()? else {
                return Ok(());
            };
            self.synced_bytes = std::mem::take(&mut self.unsynced);
            if self.syncing || here {
                // The disk cannot keep up: wait for it here, and so let the senders wait. Or the way to another thread and
                // back would only cost time.
                return self.writer.finish_sync(job.run()).map(drop);
            }
            let Some(queue) = queue.upgrade() else {
                // The last one who could send is gone: this is the end.
                return self.writer.finish_sync(job.run()).map(drop);
            };
            self.syncing = true;
            let (log, slot) = (self.log.clone(), self.serial);
            jobs.send(Job::Sync { job, log, slot, queue })
                .map_err(|_| AppendError::Poisoned { cause: "the sync threads are gone".into() })
        });
        self.settled(result.err());
        self.index(jobs);
    }

    /// Has the page indexes of segments built that are sealed now and durable. Nobody waits for one.
    fn index(&mut self, jobs: &jobs::Sender<Job>) {
        let durable = self.writer.durable();
        while let Some(segment) = self.writer.sealed().get(self.indexed).filter(|segment| segment.end <= durable) {
            self.indexed += 1;
            if self.log.format() == LogFormat::Wal {
                let _without = jobs.send(Job::Index { log: self.log.clone(), segment: *segment });
            }
        }
    }

    /// In a bulk stream a sync waits a moment for more bytes: each one halts the file system's journal. Small commits
    /// are synced at once, and so is what somebody waits for.
    fn postpones(&mut self) -> bool {
        let bulk = self.synced_bytes.max(self.unsynced) >= SYNC_EVERY / 16;
        if !bulk || self.unsynced >= SYNC_EVERY || self.unsynced == 0 || !self.waiting.is_empty() {
            return false;
        }
        self.postponed.get_or_insert_with(Instant::now).elapsed() < SYNC_PATIENCE
    }

    fn is_due(&self) -> bool {
        self.postponed.is_some_and(|since| since.elapsed() >= SYNC_PATIENCE)
    }

    fn synced(&mut self, synced: Synced) {
        self.syncing = false;
        self.touched = true;
        let result = self.writer.finish_sync(synced);
        self.settled(result.err());
    }

    /// Publishes what is durable now and answers those who waited for it.
    fn settled(&mut self, error: Option<AppendError>) {
        if let Some(error) = error {
            self.poison(&error);
        }
        let durable = self.writer.durable();
        let moved = {
            let view = self.log.watch();
            let view = view.borrow();
            view.durable != durable || view.sealed.len() != self.writer.sealed().len()
        };
        if moved {
            self.log.publish(|view| view.update(&self.writer));
        }
        while let Some((_, session, reply)) = self.waiting.pop_front_if(|(end, ..)| *end <= durable) {
            let progress = session.progress();
            let Appended { commits, skipped, .. } = progress.done;
            let ended = match &progress.error {
                Some(error) => Err((error.clone(), durable)),
                None => Ok(AppendOutcome { next: self.writer.next(), durable, appended: commits, skipped }),
            };
            let _nobody_waits = reply.send(ended);
        }
    }

    /// If `error` means that the log has failed, says so to everybody.
    fn poison(&mut self, error: &AppendError) {
        let AppendError::Poisoned { cause } = error else {
            return;
        };
        if !self.failed {
            log::error!("{} has failed: {cause}", self.log.name());
            self.counters.count(&self.counters.failures, self.log.name());
            self.log.publish(|view| view.state = State::Failed(cause.clone()));
        }
        self.fail(&State::Failed(cause.clone()));
    }

    /// Ends every append of a log that cannot be used any more. What was acknowledged stays so.
    fn fail(&mut self, state: &State) {
        let error = match state {
            State::Damaged(cause) => Error::Damaged(cause.clone()),
            state => Error::Failed(state.cause().into()),
        };
        self.failed = true;
        self.postponed = None;
        let (durable, written) = (self.writer.durable(), self.writer.written());
        for session in self.sessions.drain(..).filter_map(|session| session.upgrade()) {
            session.fail(session.doubted(error.clone(), written));
            // Nothing of it after that will ever be durable.
            let mut progress = session.progress();
            (progress.end, progress.until) = (progress.end.min(durable), progress.until.min(durable));
        }
        for (_, session, reply) in self.waiting.drain(..) {
            let known = session.progress().error.clone();
            let error = known.unwrap_or_else(|| session.doubted(error.clone(), written));
            let _nobody_waits = reply.send(Err((error, durable)));
        }
    }
}
