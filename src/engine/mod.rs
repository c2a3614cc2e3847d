//! The SQL engine beside a WAL log. The log is the truth: the engine is one more writer, whose commits are appended to the
//! log before anybody hears of them, and which takes in what others append.
//!
//! The engine has no files of its own. It reads the base and the segments of the log through an IO layer of ours, and what
//! it writes stays in memory until the log has it, so a commit costs one sync, the log's. Where the two do not agree the
//! engine is thrown away and opened anew from the log.

mod database;
mod first_page;
mod io;
mod logs;
mod objects;
mod page_reads;
mod pages;
mod programs;
mod stand_in;
mod unusable;
mod wal;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;
use turso_core::{DatabaseOpts, Statement};

use crate::limits::{ENGINE_IDLE, ENGINES_MAX};
use crate::mirror::{Error, Log};
use crate::offset::Generation;
use database::Engine;
pub(crate) use database::of_append;
pub use logs::Logs;
pub(crate) use logs::transaction_bytes_max;
pub(crate) use page_reads::record_page_reads;
use programs::Programs;

/// What databases may have that the engine has in part only: better so than that those of others cannot be opened at all.
pub(crate) fn features() -> DatabaseOpts {
    DatabaseOpts::default().with_generated_columns(true).with_without_rowid(true)
}

/// The SQL engines of a service, one for each log that is in use as a database. Opened when wanted, closed when idle.
pub struct Engines {
    logs: Arc<dyn Logs>,
    open: Mutex<HashMap<String, Arc<Engine>>>,
    /// By log: one at a time is opened of each. No other log waits for that: a thread to which it takes long has a low priority.
    opening: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    sessions: AtomicU64,
    /// Whether somebody looks after those that nobody uses.
    tended: AtomicBool,
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engines").field("open", &self.open().len()).finish_non_exhaustive()
    }
}

/// A connection of its own to the database of a log. Dropping it rolls back what is open.
pub struct Session {
    engine: Arc<Engine>,
    connection: Arc<turso_core::Connection>,
    /// What was prepared on the connection; none where nothing is kept.
    programs: Mutex<Option<Programs>>,
    id: u64,
    /// Whether another session may have the connection after this one.
    spare: AtomicBool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The right to write to a database: at most one exists for each, and those who wait get it in turn.
pub struct Turn {
    engine: Arc<Engine>,
    _guard: OwnedMutexGuard<()>,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Turn")
    }
}

impl Turn {
    /// Whether somebody waits for it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.engine.waiting() > 0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.engine.turn_ended();
    }
}

impl Engines {
    /// For these logs.
    #[must_use]
    pub fn new(logs: Arc<dyn Logs>) -> Engines {
        let (open, opening, sessions, tended) = Default::default();
        Engines { logs, open, opening, sessions, tended }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Engine>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the database of a log as it is now: a new one if it is to be `personal`, or one that another session
    /// has left [as it was](Session::spare), with what was prepared there. Blocks, and reads the whole WAL when the database
    /// was not open.
    ///
    /// # Errors
    /// When there is no such log, or that cannot be read; [`Error::Format`] when it holds no database that the engine can be
    /// run on, such as one with pages of another size than 4096 bytes.
    pub fn session(self: &Arc<Self>, log_name: &str, personal: bool) -> Result<Session, Error> {
        let log = self.logs.get(log_name)?;
        let keys = log.foreign_keys();
        self.connected(&log, personal, keys)
    }

    /// The same for a client that pushes rows it did not check: foreign keys are not checked, whatever the log says.
    ///
    /// # Errors
    /// As [`session`](Self::session).
    pub fn pushing(self: &Arc<Self>, log_name: &str, personal: bool) -> Result<Session, Error> {
        let log = self.logs.get(log_name)?;
        self.connected(&log, personal, false)
    }

    fn connected(self: &Arc<Self>, log: &Arc<Log>, personal: bool, keys: bool) -> Result<Session, Error> {
        if let Ok(runtime) = Handle::try_current()
            && !self.tended.swap(true, Ordering::AcqRel)
        {
            runtime.spawn(tend(Arc::downgrade(self)));
        }
        let engine = self.engine(log)?;
        let (connection, programs) = engine.connect(personal, keys)?;
        let id = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let programs = Mutex::new(if personal { None } else { Some(programs) });
        Ok(Session { engine, connection, programs, id, spare: AtomicBool::new(false) })
    }

    /// The engine of a log, with what others appended in it.
    fn engine(&self, log: &Arc<Log>) -> Result<Arc<Engine>, Error> {
        if let Some(engine) = self.sound(log) {
            return Ok(engine);
        }
        let opening = self.opening(log);
        let _one_at_a_time = opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = self.sound(log) {
            return Ok(engine);
        }
        let engine = Arc::new(Engine::open(self.logs.clone(), log.clone())?);
        let mut open = self.open();
        let mut closed = take_idle(&mut open);
        closed.extend(open.insert(log.id().to_owned(), engine.clone()));
        drop(open);
        drop(closed);
        Ok(engine)
    }

    /// What is held while the database of a log is opened.
    fn opening(&self, log: &Log) -> Arc<Mutex<()>> {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        opening.retain(|_, one| Arc::strong_count(one) > 1);
        opening.entry(log.id().to_owned()).or_default().clone()
    }

    /// The open engine of a log, if it can go on from there.
    fn sound(&self, log: &Arc<Log>) -> Option<Arc<Engine>> {
        let engine = self.open().get(log.id()).filter(|engine| engine.is_of(log)).cloned()?;
        // Who has the turn does the same when he gets it.
        let Some(_turn) = engine.free_turn() else {
            return Some(engine);
        };
        engine.absorb().is_ok().then_some(engine.clone())
    }
}

/// Has a connection check foreign keys, or not.
fn set_keys(connection: &turso_core::Connection, checked: bool) {
    // What is prepared is prepared again after a change.
    if connection.foreign_keys_enabled() != checked {
        connection.set_foreign_keys_enabled(checked);
    }
}

/// Closes engines as they fall idle, until none is open.
async fn tend(engines: Weak<Engines>) {
    loop {
        tokio::time::sleep(ENGINE_IDLE / 4).await;
        let Some(engines) = engines.upgrade() else { return };
        let (closed, is_empty) = {
            let mut open = engines.open();
            let closed = take_idle(&mut open);
            if open.is_empty() {
                engines.tended.store(false, Ordering::Release);
            }
            (closed, open.is_empty())
        };
        drop(closed);
        if is_empty {
            return;
        }
    }
}

/// Takes out the engines that nobody has used for a while, and more when too many are open. Dropped they are closed, which takes
/// its time: not while `open` is locked.
fn take_idle(open: &mut HashMap<String, Arc<Engine>>) -> Vec<Arc<Engine>> {
    let is_idle = |engine: &Arc<Engine>| Arc::strong_count(engine) == 1 && engine.idle() >= ENGINE_IDLE;
    let mut idle: Vec<_> = open.extract_if(|_, engine| is_idle(engine)).map(|(_, engine)| engine).collect();
    while open.len() >= ENGINES_MAX {
        let unused = open.iter().filter(|(_, engine)| Arc::strong_count(engine) == 1);
        let longest = unused.max_by_key(|(_, engine)| engine.idle()).map(|(id, _)| id.clone());
        let Some(engine) = longest.and_then(|id| open.remove(&id)) else { break };
        idle.push(engine);
    }
    idle
}

impl Session {
    /// The engine's connection. Only blocking threads may use it, one at a time.
    #[must_use]
    pub fn connection(&self) -> &Arc<turso_core::Connection> {
        &self.connection
    }

    /// Prepares the one statement in `sql`. Unless this is a personal session, one that was prepared on its connection
    /// before is used again while the schema is the same; one that is prepared now is kept for that if `keeps` says so.
    /// Then it must have no more to do with the state of a connection than a query of tables has, and not change the
    /// schema. Blocks.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn prepare(&self, sql: &str, keeps: impl FnOnce(&Statement) -> bool) -> turso_core::Result<Statement> {
        self.engine.unusable().check_statement(sql)?;
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is used again while somebody may be changing the schema: that may yet be rolled back.
        let (Some(programs), Some(age)) = (programs.as_mut(), self.engine.schema().now()) else {
            return self.connection.prepare(sql);
        };
        if let Some(statement) = programs.get(age, &self.connection, sql) {
            return Ok(statement);
        }
        let statement = self.connection.prepare(sql)?;
        if keeps(&statement) {
            programs.keep(age, sql, &statement);
        }
        Ok(statement)
    }

    /// Says that the schema may change from now on until the turn ends, which this session has.
    pub fn alters_schema(&self) {
        self.engine.schema().begin();
    }

    /// Forgets what was prepared, and keeps nothing more: in a session that goes on it would be memory for little.
    pub fn keep_nothing(&self) {
        *self.programs.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether the log wants foreign keys to be checked.
    #[must_use]
    pub fn checks_keys(&self) -> bool {
        self.engine.checks_keys()
    }

    /// Has foreign keys checked or not from the next statement on. No transaction may be open.
    pub fn check_keys(&self, checked: bool) {
        set_keys(&self.connection, checked);
    }

    /// Gives up the pages that the connection keeps. Nothing may be open on it.
    pub fn drop_cache(&self) {
        self.connection.get_pager().clear_page_cache(false);
    }

    /// Says that the connection is as it was when it was new, and another session may have it after this one.
    pub fn spare(&self) {
        self.spare.store(true, Ordering::Relaxed);
    }

    /// The last durable frame of the log, as of now.
    #[must_use]
    pub fn frame(&self) -> u64 {
        self.engine.frame()
    }

    /// The generation of the log, and its last frame as the connection has seen it: in a transaction that only reads, what that
    /// reads. [Settled](Self::settle), it is durable.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn seen(&self) -> Result<(Generation, u64), Error> {
        self.engine.seen(&self.connection)
    }

    /// The log whose database it is.
    #[must_use]
    pub fn log_name(&self) -> &str {
        self.engine.log_name()
    }

    /// Whether statements may change the database.
    ///
    /// # Errors
    /// [`Error::Mirrored`] when a mirror feeds its log, [`Error::Format`] when the engine cannot write such a database.
    pub fn takes_changes(&self) -> Result<(), Error> {
        self.engine.admits_clients()
    }

    /// Waits for the turn to write, and takes in what others appended to the log. After Ok the database is as the log is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when those before did not come to an end in time, or when the engine was closed under this
    /// session: a new one is needed then, and what was open in this one is lost.
    pub async fn turn(&self) -> Result<Turn, Error> {
        let guard = self.engine.wait_for_turn().await?;
        self.engine.is_writable()?;
        let turn = self.absorbed(guard).await?;
        self.engine.set_holder(self.id);
        Ok(turn)
    }

    /// The turn to write if nobody has it, with what others appended taken in. Blocks.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub fn try_turn(&self) -> Result<Option<Turn>, Error> {
        let Some(guard) = self.engine.free_turn() else {
            return Ok(None);
        };
        let turn = Turn { engine: self.engine.clone(), _guard: guard };
        self.engine.is_writable()?;
        self.engine.absorb()?;
        self.engine.set_holder(self.id);
        Ok(Some(turn))
    }

    /// Takes in what others appended to the log, unless somebody is writing: then what is read is as of a moment ago.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub async fn refresh(&self) -> Result<(), Error> {
        match self.engine.free_turn() {
            Some(guard) => self.absorbed(guard).await.map(drop),
            None => Ok(()),
        }
    }

    async fn absorbed(&self, guard: OwnedMutexGuard<()>) -> Result<Turn, Error> {
        let turn = Turn { engine: self.engine.clone(), _guard: guard };
        turn.engine.renew().await?;
        let absorbing = move || turn.engine.absorb().map(|()| turn);
        let absorbed = tokio::task::spawn_blocking(absorbing).await;
        absorbed.unwrap_or_else(|_| Err(Error::Unavailable("the work was interrupted".into())))
    }

    /// Appends what was committed to the log. After Ok all that this session has seen or committed is durable.
    ///
    /// # Errors
    /// When the log did not take it: it was not committed then, or with [`Error::Aborted`] that is not known, and the session is of
    /// no use any more.
    pub async fn settle(&self) -> Result<(), Error> {
        self.engine.settle(self.id, &self.connection).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.connection.get_auto_commit()
            && let Err(error) = self.connection.execute("ROLLBACK")
        {
            log::warn!("a transaction that was left open was not rolled back: {error}");
        }
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.spare.load(Ordering::Relaxed) && self.engine.keep(&self.connection, programs.unwrap_or_default()) {
            return;
        }
        if let Err(error) = self.connection.close() {
            log::warn!("a connection was not closed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use bytes::Bytes;
    use futures::future::BoxFuture;

    use super::*;
    use crate::api::CreateLog;
    use crate::format::LogFormat;
    use crate::mirror::{Registry, Settings};
    use crate::offset::Offset;
    use crate::repo::MemRepo;

    /// Logs of which the first that is opened takes until `goes_on` is dropped.
    struct Slow {
        registry: Registry,
        begun: mpsc::Sender<()>,
        goes_on: Mutex<Option<mpsc::Receiver<()>>>,
    }

    impl Logs for Slow {
        fn get(&self, name: &str) -> Result<Arc<Log>, Error> {
            self.registry.get(name)
        }

        fn transaction_bytes_max(&self) -> u64 {
            let waits = self.goes_on.lock().expect("no panic").take();
            if let Some(waits) = waits {
                self.begun.send(()).expect("it is received");
                waits.recv().expect_err("only dropped");
            }
            1 << 20
        }

        fn renew<'a>(&'a self, log: &'a Arc<Log>) -> BoxFuture<'a, Result<(), Error>> {
            self.registry.renew(log)
        }

        fn append<'a>(
            &'a self,
            log: &'a Arc<Log>,
            at: Option<Offset>,
            bytes: Bytes,
        ) -> BoxFuture<'a, Result<(), Error>> {
            Logs::append(&self.registry, log, at, bytes)
        }
    }

    #[test]
    fn a_log_that_takes_long_to_open_holds_up_no_other() {
        let registry = Registry::open(Arc::new(MemRepo::default()), Settings::default()).expect("a registry");
        let names: Vec<String> = ('a'..='z').map(String::from).collect();
        for name in &names {
            let wal = CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None };
            registry.create(name, wal).expect("a log");
        }
        let (begun, begins) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let goes_on = Mutex::new(Some(goes_on));
        let engines = Arc::new(Engines::new(Arc::new(Slow { registry, begun, goes_on })));
        let (opened, openings) = mpsc::channel();
        let open = |name: &String| {
            let (engines, opened, name) = (engines.clone(), opened.clone(), name.clone());
            // Detached: where one waits for the first this test must come to its end.
            thread::spawn(move || opened.send(engines.session(&name, true).map(|_| name)));
        };
        open(&names[0]);
        begins.recv().expect("it begins");
        names[1..].iter().for_each(open);
        let others: HashSet<String> = names[1..]
            .iter()
            .map(|_| openings.recv_timeout(Duration::from_secs(60)).expect("it waits for no other").expect("a session"))
            .collect();
        assert_eq!(others.len(), names.len() - 1);
        drop(go_on);
        assert_eq!(openings.recv().expect("an opening").expect("a session"), names[0]);
    }
}
