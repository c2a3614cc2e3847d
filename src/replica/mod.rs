//! Offline-first replicas: an application works on a database of its own, without a network, and later brings its changes
//! to a remote and the remote's changes home. Source of the behaviours: `specs/turso-sync.md`, section 6.
//!
//! A replica at a path P is two databases. `P-draft` is the application's; `P-synced` is what the remote has. What comes from
//! the remote are pages, byte for byte. What goes there are rows: those in which the draft differs from what it was made from,
//! whoever wrote them and however. Both are told from the pages that differ.
//!
//! What holds:
//! - Nothing that was committed to the draft is lost but what is reported as a [`Conflict`]. A crash at any moment repeats
//!   what was under way, or finds it done.
//! - A push is one transaction on the remote, together with a row that says that it was made; it is never made twice. Only where
//!   the remote takes no transaction of that size it is several, each with such a row.
//! - The draft changes as a whole: the application sees it before a pull or after.
//! - Where two replicas changed the same row, the last push wins, column by column. A row that one changed and another removed
//!   is there again; of two that were added with the same key the last one stays. Both are told, as is each change that
//!   cannot be made, say since a value has to be unique.
//! - What the engine has not, as far as rows depend on it, is an error before anything is pushed or given up.
//!
//! Changes are not taken from the engine's change capture: that of turso_core 0.8.3 misses renames, views, triggers, rows of
//! `CREATE TABLE … AS` and the keys of rows that an upsert changes, and sees nothing of what SQLite writes.

mod alter;
mod bootstrap;
mod catalog;
mod change;
mod difference;
mod draft;
mod error;
mod files;
mod image;
mod info;
mod io;
mod judge;
mod options;
mod order;
mod pipeline;
mod pull;
mod push;
mod pushed;
mod rebase;
mod report;
mod rewrite;
mod rounds;
mod rows;
mod store;
mod synced;
mod table;
mod updates;
mod whole;
mod words;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Mutex as AsyncMutex;

pub use crate::sync::turso::Value;
pub use error::ReplicaError;
pub use options::Options;
pub use report::{About, Conflict, Doing, During, Report};
pub use rounds::{Action, Event, Outcome, Rounds, Watch, run};

use crate::repo::Repo;
use crate::sqlite::names::is_no_side_file;
use crate::sync::{Remote, SyncError};
use bootstrap::{blocking, bootstrap};
use files::{Files, Held};
use info::Info;
use pull::{Then, fetch, with};
use push::{Capacity, Channel, make_certain, push};
use store::Store;
use whole::fetch_whole;

/// Told of bytes that came from the remote.
pub type Tell = dyn Fn(u64) + Send + Sync;

/// A replica, open: no other process has it open meanwhile.
///
/// After an error it can be used again, unless a write or sync failed after which it is not known what the files hold: then
/// every call returns [`ReplicaError::Latched`], and opening the replica again finds out.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use logmirror::replica::{Options, SyncEngine};
/// use logmirror::sync::Remote;
///
/// let remote = Remote::new("http://127.0.0.1:7171/logs/app", None)?;
/// let replica = SyncEngine::open("app".as_ref(), remote, Options::default()).await?;
/// let connection = replica.connect()?;
/// connection.execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")?;
/// connection.execute("INSERT INTO t(b) VALUES ('written offline')")?;
/// let report = replica.sync().await?;
/// assert!(report.conflicts.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SyncEngine {
    remote: Remote,
    options: Options,
    store: Arc<Mutex<Store>>,
    /// One operation at a time.
    turn: Arc<AsyncMutex<()>>,
    tell: Arc<Tell>,
}

/// Where a replica stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// The name under which the remote knows this replica.
    pub client_unique_id: String,
    /// The generation of the remote that it follows.
    pub generation: u32,
    /// The last frame of the remote that it has.
    pub frame: u32,
    /// The last frame of the remote that the draft has.
    pub draft_frame: u32,
    /// How often changes of the remote were brought into the draft.
    pub pulls: i64,
    /// Whether the draft may have changes that the remote has not.
    pub may_have_changes: bool,
    /// Whether it is not known if the last push was made; the next operation finds out.
    pub push_in_doubt: bool,
}

impl SyncEngine {
    /// Opens the replica at `path`, or makes it of all that the remote has if there is none. With a replica there nothing is
    /// sent.
    ///
    /// # Errors
    /// See [`ReplicaError`]. A replica that was not made whole is made anew the next time.
    pub async fn open(path: &Path, remote: Remote, options: Options) -> Result<SyncEngine, ReplicaError> {
        SyncEngine::open_telling(path, remote, options, Arc::new(|_| {})).await
    }

    /// The same, with somebody who is told of bytes that come from the remote, now and later.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_telling(
        path: &Path,
        remote: Remote,
        options: Options,
        tell: Arc<Tell>,
    ) -> Result<SyncEngine, ReplicaError> {
        let path = path.to_owned();
        let files = blocking(move || {
            let files = Files::at(&path)?;
            // A replica that is there was not made beside a database.
            if !files.is_there(&files.info())? {
                is_no_side_file(&path.with_file_name(files.info())).map_err(SyncError::from)?;
            }
            Ok(files)
        })
        .await?;
        SyncEngine::of(files, remote, options, tell).await
    }

    /// The same for the replica `name` in a directory of any kind.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_in(
        dir: Arc<dyn Repo>,
        name: &str,
        remote: Remote,
        options: Options,
    ) -> Result<SyncEngine, ReplicaError> {
        SyncEngine::of(Files::new(dir, name), remote, options, Arc::new(|_| {})).await
    }

    /// Whether there is a replica at `path`, made whole; it may be damaged or in use nevertheless. Nothing is sent.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn exists(path: &Path) -> Result<bool, ReplicaError> {
        let path = path.to_owned();
        blocking(move || {
            let files = Files::at(&path)?;
            files.is_there(&files.info())
        })
        .await
    }

    /// What is to be said where there is no replica at `path`.
    pub(super) async fn absent(path: &Path) -> ReplicaError {
        let path = path.to_owned();
        let absent = blocking(move || {
            let files = Files::at(&path)?;
            Ok(match files.used()? {
                Some(there) => ReplicaError::Missing { file: files.info(), there },
                None => ReplicaError::Absent { path: path.display().to_string() },
            })
        });
        absent.await.unwrap_or_else(|error| error)
    }

    /// A push beside programs that have the draft open: readers and writers of it wait for nothing. `None` when there is no
    /// replica, or the remote is in another generation, for which the draft has to be changed first.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`push`](Self::push).
    pub(super) async fn push_beside(
        path: &Path,
        remote: Remote,
        options: Options,
        tell: Arc<Tell>,
    ) -> Result<Option<Report>, ReplicaError> {
        let path = path.to_owned();
        let store = blocking(move || {
            let files = Files::at(&path)?;
            let Some((info, held)) = known_beside(&files)? else { return Ok(None) };
            // Its frames are still to be counted.
            if info.fetched_whole.is_some() {
                return Ok(None);
            }
            Store::beside(files, info, held).map(Some)
        });
        let Some(store) = store.await? else { return Ok(None) };
        let replica = SyncEngine { remote, options, store: Arc::new(Mutex::new(store)), turn: Arc::default(), tell };
        let mut report = replica.start().await?;
        make_certain(&replica.remote, &replica.store).await?;
        let (batch, tell) = (replica.options.wal_pull_batch_size, &*replica.tell);
        let channel = Channel { remote: &replica.remote, store: &replica.store, batch, tell };
        let mut capacity = Capacity::default();
        loop {
            let fetched = fetch(&replica.remote, &replica.store, batch, tell).await?;
            report.frames_pulled += fetched.frames;
            if fetched.then != Then::Nothing {
                return Ok(None);
            }
            let pushed = push(&channel, &mut capacity).await?;
            if pushed.is_over {
                return Ok(None);
            }
            report.frames_pulled += pushed.frames;
            report.changes_pushed += pushed.changes;
            if !pushed.is_part {
                return replica.end(report).await.map(Some);
            }
        }
    }

    async fn of(files: Files, remote: Remote, options: Options, tell: Arc<Tell>) -> Result<SyncEngine, ReplicaError> {
        let (ours, rebuild) = (files.clone(), options.rebuild);
        let known = blocking(move || known(&ours, rebuild)).await?;
        let store = match known {
            Some((info, held)) => blocking(move || Store::open(files, info, held)).await?,
            None => {
                let (info, held) = bootstrap(&remote, &files, &options, &tell).await?;
                blocking(move || Store::open_new(files, info, held)).await?
            }
        };
        Ok(SyncEngine { remote, options, store: Arc::new(Mutex::new(store)), turn: Arc::default(), tell })
    }

    /// A connection to the draft for the application. It blocks; only one thread may use it at a time. What it commits is
    /// durable. It waits for others that write, and for a sync that brings changes in, as long as the options say.
    ///
    /// # Errors
    /// When the engine has none to give, or [`ReplicaError::Latched`].
    pub fn connect(&self) -> Result<Arc<turso_core::Connection>, ReplicaError> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.usable()?;
        let connection = store.draft.connect()?;
        connection.set_busy_timeout(self.options.lock_wait);
        Ok(connection)
    }

    /// Brings the remote's changes home. Local ones are on top of them afterwards.
    ///
    /// # Errors
    /// See [`ReplicaError`]. Nothing is lost; what came whole needs not come again.
    pub async fn pull(&self) -> Result<Report, ReplicaError> {
        let _turn = self.turn.lock().await;
        let mut report = self.start().await?;
        make_certain(&self.remote, &self.store).await?;
        self.fetch(&mut report).await?;
        self.rebase().await?;
        self.end(report).await
    }

    /// Brings local changes to the remote. They are still on top of the draft until the next pull.
    ///
    /// # Errors
    /// See [`ReplicaError`]. Nothing is lost, and nothing is pushed twice.
    pub async fn push(&self) -> Result<Report, ReplicaError> {
        let _turn = self.turn.lock().await;
        let mut report = self.start().await?;
        make_certain(&self.remote, &self.store).await?;
        self.fetch(&mut report).await?;
        self.send(&mut report).await?;
        self.end(report).await
    }

    /// A push, then a pull.
    ///
    /// # Errors
    /// See [`ReplicaError`]. Nothing is lost, and nothing is pushed twice.
    pub async fn sync(&self) -> Result<Report, ReplicaError> {
        let _turn = self.turn.lock().await;
        let mut report = self.start().await?;
        make_certain(&self.remote, &self.store).await?;
        self.fetch(&mut report).await?;
        if self.send(&mut report).await? {
            self.fetch(&mut report).await?;
        }
        self.rebase().await?;
        self.end(report).await
    }

    /// Whether the replica was made without the remote, and has nothing of it yet.
    pub(super) async fn is_unmade(&self) -> Result<bool, ReplicaError> {
        with(&self.store, |store| Ok(store.info.unmade)).await
    }

    /// Where the replica stands. Nothing is sent.
    ///
    /// # Errors
    /// When the draft cannot be read.
    pub async fn status(&self) -> Result<Status, ReplicaError> {
        with(&self.store, |store| store.status()).await
    }

    async fn start(&self) -> Result<Report, ReplicaError> {
        with(&self.store, |store| store.usable()).await?;
        Ok(Report { requests: self.remote.requests(), ..Report::default() })
    }

    async fn end(&self, mut report: Report) -> Result<Report, ReplicaError> {
        with(&self.store, |store| store.tidy()).await?;
        report.conflicts = with(&self.store, |store| store.tell()).await?;
        report.requests = self.remote.requests() - report.requests;
        Ok(report)
    }

    /// What the remote has, through all its generations.
    async fn fetch(&self, report: &mut Report) -> Result<(), ReplicaError> {
        loop {
            if with(&self.store, |store| Ok(store.info.fetched_whole.is_some())).await? {
                self.rebase().await?;
                with(&self.store, |store| store.count_from_whole()).await?;
            }
            let fetched = fetch(&self.remote, &self.store, self.options.wal_pull_batch_size, &*self.tell).await?;
            report.frames_pulled += fetched.frames;
            match fetched.then {
                Then::Nothing => return Ok(()),
                Then::NextGeneration => {
                    // The next generation starts from what this one ended with, and so must the draft.
                    self.rebase().await?;
                    with(&self.store, |store| store.next_generation()).await?;
                }
                Then::FetchWhole => {
                    report.frames_pulled +=
                        fetch_whole(&self.remote, &self.store, self.options.wal_pull_batch_size, &self.tell).await?;
                }
            }
        }
    }

    async fn rebase(&self) -> Result<(), ReplicaError> {
        let patience = self.options.lock_wait;
        with(&self.store, move |store| store.rebase(patience)).await
    }

    /// Whether there was anything to push.
    async fn send(&self, report: &mut Report) -> Result<bool, ReplicaError> {
        let (batch, tell) = (self.options.wal_pull_batch_size, &*self.tell);
        let channel = Channel { remote: &self.remote, store: &self.store, batch, tell };
        let (mut capacity, mut any) = (Capacity::default(), false);
        loop {
            let pushed = push(&channel, &mut capacity).await?;
            report.frames_pulled += pushed.frames;
            report.changes_pushed += pushed.changes;
            any |= pushed.any;
            if !pushed.is_over && !pushed.is_part {
                return Ok(any);
            }
            self.fetch(report).await?;
        }
    }
}

impl std::fmt::Debug for SyncEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncEngine")
            .field("remote", &self.remote)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The replica that is there, with other commands of this program kept out of it.
fn known_beside(files: &Files) -> Result<Option<(Info, Held)>, ReplicaError> {
    let load = || Info::load(&*files.dir, &files.info());
    if load()?.is_none() || !files.is_there(&files.draft())? || !files.is_there(&files.synced())? {
        return Ok(None);
    }
    let held = files.hold(&files.synced())?;
    Ok(load()?.map(|info| (info, held)))
}

/// The replica that is there, with others kept out of it; `None` when there is none, or what is there was set aside.
fn known(files: &Files, rebuild: bool) -> Result<Option<(Info, Held)>, ReplicaError> {
    if rebuild {
        if files.is_there(&files.draft())? {
            drop(files.hold(&files.draft())?);
        }
        if let Some(aside) = files.set_aside()? {
            log::warn!("the replica is made anew: its files are set aside as {aside}-…");
        }
        return Ok(None);
    }
    let load = || Info::load(&*files.dir, &files.info());
    if load()?.is_some() {
        let missing = |file: String| match files.is_there(&file)? {
            true => Ok(()),
            false => Err(ReplicaError::Missing { file, there: files.info() }),
        };
        missing(files.draft())?;
        let held = files.hold(&files.draft())?;
        missing(files.synced())?;
        let held = held.and(files.hold(&files.synced())?);
        // Whoever had it until now has written it.
        if let Some(info) = load()? {
            return Ok(Some((info, held)));
        }
    }
    match files.used()? {
        Some(there) => Err(ReplicaError::Missing { file: files.info(), there }),
        None => Ok(None),
    }
}
