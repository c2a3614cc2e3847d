//! [`Engine`]: one open database, and how it and its log keep to each other.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::timeout;
use turso_core::{Connection, Database, LimboError, OpenFlags, OpenOptions, SqliteDialect};

use super::features;
use super::io::{DATABASE, LogIo};
use super::programs::{Programs, SchemaAge};
use super::wal::{FRAME_LEN, Wal};
use crate::format::wal::FrameHeader;
use crate::limits::{
    ENGINE_CACHE_PAGES, SETTLE_WAIT, SPARE_CONNECTIONS_MAX, SQL_TRANSACTION_BYTES_MAX, WRITE_TURN_WAIT,
};
use crate::mirror::{Error, Log, Registry, SeenBase, State, Writer};
use crate::offset::Offset;
use crate::sync::libsql::syncable;

pub(super) struct Engine {
    registry: Arc<Registry>,
    log: Arc<Log>,
    wal: Arc<Wal>,
    database: Arc<Database>,
    /// Takes in what others appended.
    keeper: Mutex<Arc<Connection>>,
    /// Connections that nobody uses, and what they have prepared.
    spare: Mutex<Vec<(Arc<Connection>, Programs)>>,
    /// Whether what they have prepared is still right.
    schema: SchemaAge,
    /// Whose turn it is to write.
    turn: Arc<AsyncMutex<()>>,
    /// How many wait for it.
    waiting: AtomicUsize,
    /// The session whose turn it is; 0 for none.
    holder: AtomicU64,
    /// Its database is not what the log says: nothing of it may be believed or stored.
    closed: AtomicBool,
    used: Mutex<Instant>,
}

/// Counts somebody who waits, for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a session has to be given up.
fn closed() -> Error {
    Error::Unavailable("the database was changed by another writer in the same moment; try again".into())
}

/// What the engine cannot do for itself, as an error of ours.
fn of_engine(error: &LimboError) -> Error {
    Error::Unavailable(format!("the SQL engine fails: {error}"))
}

impl Engine {
    /// Opens the database of a log as it is now. Blocks; costs a reading of the whole WAL.
    pub(super) fn open(registry: Arc<Registry>, log: Arc<Log>) -> Result<Engine, Error> {
        syncable(&log, "Turso")?;
        let settings = registry.settings();
        let transaction_max = SQL_TRANSACTION_BYTES_MAX.min(settings.commit_bytes_max).min(settings.memory_max / 4);
        let wal = Arc::new(Wal::of(log.clone(), transaction_max));
        let machine = Database::io_for_path(DATABASE).map_err(|error| of_engine(&error))?;
        let io = Arc::new(LogIo::new(Arc::new(SeenBase::open(&log)?), wal.clone(), machine));
        let options = OpenOptions::new(Arc::new(SqliteDialect));
        let options = options.flags(OpenFlags::Create).db_opts(features());
        // Not by way of the engine's own registry of open files: all of ours have the same name.
        let opened = Database::do_open(io, DATABASE, options).and_then(|database| Ok((connect(&database)?, database)));
        let (keeper, database) = opened.map_err(|error| of_engine(&error))?;
        // The engine takes a WAL for ended where a frame is not sound: what it has then is an older database.
        let (seen, durable) =
            (keeper.wal_state().map_err(|error| of_engine(&error))?.max_frame, wal.known().unwrap_or(0));
        if seen < durable {
            let text = format!(
                "frame {} is not what was stored (the checksum is wrong), and {durable} are durable: `logmirror verify` says where",
                seen + 1
            );
            log::error!("{}: {text}", log.name());
            return Err(Error::Damaged(text.into()));
        }
        Ok(Engine {
            registry,
            log,
            wal,
            database,
            keeper: Mutex::new(keeper),
            spare: Mutex::default(),
            schema: SchemaAge::default(),
            turn: Arc::default(),
            waiting: AtomicUsize::new(0),
            holder: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
        })
    }

    /// Keeps a connection for another session; false when it cannot.
    pub(super) fn keep(&self, connection: &Arc<Connection>, programs: Programs) -> bool {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let keeps = connection.get_auto_commit() && spare.len() < SPARE_CONNECTIONS_MAX;
        if keeps {
            spare.push((connection.clone(), programs));
        }
        keeps
    }

    /// A connection with a state of its own: a new one, unless one that another session has left as it was will do.
    pub(super) fn connect(&self, personal: bool) -> Result<(Arc<Connection>, Programs), Error> {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let spare = if personal { None } else { self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop() };
        let new = || Ok((connect(&self.database).map_err(|error| of_engine(&error))?, Programs::default()));
        spare.map_or_else(new, Ok)
    }

    pub(super) fn frame(&self) -> u64 {
        self.log.watch().borrow().durable.0.saturating_sub(1)
    }

    pub(super) fn log_name(&self) -> &str {
        self.log.name()
    }

    pub(super) fn idle(&self) -> Duration {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Whether it is of this log, and sound. Over a damaged base nothing is run: opening it again says what is wrong.
    pub(super) fn is_of(&self, log: &Arc<Log>) -> bool {
        Arc::ptr_eq(&self.log, log) && !self.closed.load(Ordering::Acquire) && log.base_fault().is_none()
    }

    /// Waits for the turn.
    pub(super) async fn wait_for_turn(&self) -> Result<OwnedMutexGuard<()>, Error> {
        let _waiting = Waiting::new(&self.waiting);
        let turn = timeout(WRITE_TURN_WAIT, self.turn.clone().lock_owned()).await;
        turn.map_err(|_elapsed| {
            let seconds = WRITE_TURN_WAIT.as_secs();
            Error::Unavailable(format!("another transaction has held the database for {seconds} s; try again"))
        })
    }

    /// How many wait for the turn.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The turn, if nobody has it.
    pub(super) fn free_turn(&self) -> Option<OwnedMutexGuard<()>> {
        self.turn.clone().try_lock_owned().ok()
    }

    /// Says whose turn it is.
    pub(super) fn set_holder(&self, session: u64) {
        self.holder.store(session, Ordering::Release);
    }

    /// Says that the turn has ended.
    pub(super) fn turn_ended(&self) {
        self.schema.end();
        self.holder.store(0, Ordering::Release);
    }

    pub(super) fn schema(&self) -> &SchemaAge {
        &self.schema
    }

    /// Whether the log takes anything.
    pub(super) fn is_writable(&self) -> Result<(), Error> {
        match self.log.view().state {
            State::Failed(cause) => Err(Error::Failed(cause)),
            _ => Ok(()),
        }
    }

    /// Whether clients may change it.
    pub(super) fn admits_clients(&self) -> Result<(), Error> {
        self.log.admit(&Writer::Client)
    }

    /// Takes in the frames that others appended. The caller has the turn. Blocks.
    ///
    /// # Errors
    /// When that cannot be: the engine is closed then.
    pub(super) fn absorb(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        let view = self.log.view();
        let last = view.durable.0.saturating_sub(1);
        let absorbed = match (&view.state, self.wal.known()) {
            // To read the log again costs no memory for all of them.
            (State::Ok, Some(known)) if self.wal.is_too_much(last.saturating_sub(known)) => Err(closed()),
            (State::Ok, Some(known)) if known < last => {
                self.schema.begin();
                let inserted = self.insert(known, last);
                self.schema.end();
                inserted
            }
            // Its first frames came from elsewhere, with a header that the engine does not have.
            (State::Ok, None) if last > 0 => Err(closed()),
            // One that takes no more is read as far as it goes.
            (State::Ok | State::Failed(_), _) => Ok(()),
            (State::Damaged(cause), _) => Err(Error::Damaged(cause.clone())),
            (State::Ended(_), _) => Err(closed()),
        };
        absorbed.inspect_err(|error| self.close(error))
    }

    fn insert(&self, known: u64, last: u64) -> Result<(), Error> {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut number, mut frame, mut failed) = (known, Vec::with_capacity(FRAME_LEN), None);
        let range = Offset(known + 1)..Offset(last + 1);
        keeper.wal_insert_begin().map_err(|error| of_engine(&error))?;
        let read = self.log.read_frames(&range, |mut piece| {
            while !piece.is_empty() && failed.is_none() {
                let (bytes, rest) = piece.split_at(piece.len().min(FRAME_LEN - frame.len()));
                frame.extend_from_slice(bytes);
                piece = rest;
                if frame.len() == FRAME_LEN {
                    number += 1;
                    failed = keeper.wal_insert_frame(number, &frame).err();
                    if number < last {
                        frame.clear();
                    }
                }
            }
            failed.is_none()
        });
        let ended = keeper.wal_insert_end(false);
        read?;
        if let Some(error) = failed.or(ended.err()) {
            return Err(of_engine(&error));
        }
        let stored = frame.first_chunk().map(FrameHeader::decode);
        if number == last && stored.is_some_and(|stored| self.wal.absorb(last, &stored)) {
            Ok(())
        } else {
            Err(Error::Unavailable(format!("frames {} to {last} came out differently", known + 1)))
        }
    }

    /// Appends to the log what was committed. After Ok all that `connection` has seen is durable.
    pub(super) async fn settle(&self, session: u64, connection: &Connection) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        if self.holder.load(Ordering::Acquire) == session {
            return self.append().await.inspect_err(|error| self.close(error));
        }
        let seen = connection.wal_state().map_err(|error| of_engine(&error))?.max_frame;
        let mut view = self.log.watch();
        let durable =
            timeout(SETTLE_WAIT, view.wait_for(|view| view.durable.0 > seen || view.state != State::Ok)).await;
        match durable {
            Ok(Ok(view)) if view.durable.0 > seen => Ok(()),
            _ => Err(closed()),
        }
    }

    async fn append(&self) -> Result<(), Error> {
        let Some(pending) = self.wal.pending() else {
            return Ok(());
        };
        let share = self.registry.reserve(pending.bytes.len() as u64).await?;
        let stream = (vec![pending.bytes.clone()], share);
        let appended = self.registry.append_whole(&self.log, pending.behind, stream, Writer::Client).await;
        match appended {
            Ok(_) => {
                self.wal.hold(&pending);
                Ok(())
            }
            Err(Error::Fork { .. } | Error::Gap { .. } | Error::Ended { .. }) => Err(closed()),
            Err(error) => Err(error),
        }
    }

    /// Lets nobody use it any more: the log was right.
    fn close(&self, error: &Error) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            log::info!("{}: its SQL engine is opened anew: {error}", self.log.name());
        }
    }
}

fn connect(database: &Arc<Database>) -> turso_core::Result<Arc<Connection>> {
    let connection = database.connect()?;
    connection.wal_auto_actions_disable();
    connection.set_cache_size(ENGINE_CACHE_PAGES);
    Ok(connection)
}
