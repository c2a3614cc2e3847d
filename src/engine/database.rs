//! [`Engine`]: one open database, and how it and its log keep to each other.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::timeout;
use turso_core::{Connection, Database, LimboError, OpenFlags, OpenOptions};

use super::first_page::{self, Permitted};
use super::io::{DATABASE, LogIo};
use super::logs::Logs;
use super::pages::LogPages;
use super::programs::{Programs, SchemaAge};
use super::stand_in::Lenient;
use super::unusable::Unusable;
use super::wal::{FRAME_LEN, Wal};
use super::{features, objects, set_keys};
use crate::format::wal::FrameHeader;
use crate::limits::{ENGINE_CACHE_PAGES, SETTLE_WAIT, SPARE_CONNECTIONS_MAX, WRITE_TURN_WAIT};
use crate::mirror::{Error, Log, SeenBase, Sought, State, Writer};
use crate::offset::{Generation, Offset};
use crate::sqlite::btree::PAGE_LEN;
use crate::sync::libsql::syncable;

pub(super) struct Engine {
    logs: Arc<dyn Logs>,
    log: Arc<Log>,
    wal: Arc<Wal>,
    base: Arc<SeenBase>,
    unusable: Arc<Unusable>,
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
    /// The engine cannot write this database rightly: nothing that it wrote is stored.
    read_only: AtomicBool,
    /// The number of the schema, as of what was taken in from others.
    schema_cookie: AtomicU32,
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
    gone("the database was changed by another writer in the same moment")
}

/// Why a session of a generation that has ended has to be given up.
fn rolled_over(generation: Generation) -> Error {
    gone(&format!(
        "generation {generation} of the log has ended in the same moment, and the database goes on in the next one"
    ))
}

fn gone(what: &str) -> Error {
    Error::Unavailable(format!(
        "{what}: what was not answered yet, of this call and of an open transaction, is not kept; begin again, without a baton"
    ))
}

/// Why a commit was not taken by the log, as the client of the engine is told.
pub(crate) fn of_append(error: Error) -> Error {
    match error {
        Error::Fork { .. } | Error::Gap { .. } => closed(),
        Error::Ended { generation, .. } => rolled_over(generation),
        Error::InDoubt(cause) => Error::Aborted(format!(
            "the log failed while it stored what this committed ({cause}): whether it is stored is known once the log is reopened, \
             which happens automatically; read then, and send again what is not there"
        )),
        error => error,
    }
}

/// What the engine cannot do for itself, as an error of ours.
fn of_engine(error: &LimboError) -> Error {
    Error::Unavailable(format!("the SQL engine fails: {error}"))
}

impl Engine {
    /// Opens the database of a log as it is now. Blocks; costs a reading of the whole WAL.
    pub(super) fn open(logs: Arc<dyn Logs>, log: Arc<Log>) -> Result<Engine, Error> {
        syncable(&log, "Turso")?;
        let wal = Arc::new(Wal::of(log.clone(), logs.transaction_bytes_max()));
        let machine = Database::io_for_path(DATABASE).map_err(|error| of_engine(&error))?;
        let base = Arc::new(SeenBase::open(&log)?);
        first_page::check_base(log.name(), &base)?;
        let (unusable, dialect) = (Arc::new(Unusable::default()), Arc::new(Lenient::default()));
        let io = Arc::new(LogIo::new(base.clone(), wal.clone(), unusable.clone(), machine));
        let options = OpenOptions::new(dialect.clone());
        let options = options.flags(OpenFlags::Create).db_opts(features());
        // Not by way of the engine's own registry of open files: all of ours have the same name.
        let open = || Database::do_open(io, DATABASE, options).and_then(|database| Ok((connect(&database)?, database)));
        let pages = || LogPages::open(&log, base.clone(), wal.known().unwrap_or(0));
        let unopened = |error: LimboError| match pages() {
            Ok(pages) => objects::unopened(log.name(), &pages, &error),
            Err(error) => error,
        };
        let (keeper, database) = objects::caught(open).map_err(unopened)?;
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
        let Permitted { writes, schema } = first_page::permitted(log.name(), &base, |page| {
            let is_there = durable > 0 || base.bytes() > 0;
            let read = if is_there { keeper.try_wal_watermark_read_page(1, page, None) } else { Ok(false) };
            read.map_err(|error| of_engine(&error))
        })?;
        if dialect.stood_in() {
            unusable.set(objects::unusable(log.name(), &pages()?)?);
        }
        objects::check(&keeper).map_err(unopened)?;
        Ok(Engine {
            logs,
            log,
            wal,
            base,
            unusable,
            database,
            keeper: Mutex::new(keeper),
            spare: Mutex::default(),
            schema: SchemaAge::default(),
            turn: Arc::default(),
            waiting: AtomicUsize::new(0),
            holder: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            read_only: AtomicBool::new(!writes),
            schema_cookie: AtomicU32::new(schema),
            used: Mutex::new(Instant::now()),
        })
    }

    /// Keeps a connection for another session; false when it cannot.
    pub(super) fn keep(&self, connection: &Arc<Connection>, programs: Programs) -> bool {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = connection.foreign_keys_enabled();
        let alike = spare.iter().filter(|(other, _)| other.foreign_keys_enabled() == keys).count();
        let keeps = connection.get_auto_commit() && alike < SPARE_CONNECTIONS_MAX;
        if keeps {
            spare.push((connection.clone(), programs));
        }
        keeps
    }

    /// Whether the log wants foreign keys to be checked.
    pub(super) fn checks_keys(&self) -> bool {
        self.log.foreign_keys()
    }

    /// A connection with a state of its own that checks foreign keys, or does not: a new one, unless one that another
    /// session has left as it was will do. What is prepared on it is prepared with the same setting.
    pub(super) fn connect(&self, personal: bool, keys: bool) -> Result<(Arc<Connection>, Programs), Error> {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let spare = || {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let at = spare.iter().rposition(|(connection, _)| connection.foreign_keys_enabled() == keys)?;
            Some(spare.remove(at))
        };
        let spare = if personal { None } else { spare() };
        let new = || {
            let connection = connect(&self.database).map_err(|error| of_engine(&error))?;
            set_keys(&connection, keys);
            Ok((connection, Programs::default()))
        };
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
        // Where a change of the schema was undone in the middle, what the engine knows of it is not what it is.
        if self.schema.end() && self.unusable.was_met() {
            self.close(&Error::Unavailable("a change of the schema was undone".into()));
        }
        // A call that failed in the middle committed it: the next commit must not bring it along.
        if self.wal.has_pending() {
            self.close(&Error::Unavailable("a call ended before what it had committed was appended".into()));
        }
        self.holder.store(0, Ordering::Release);
    }

    /// Tables that cannot be used.
    pub(super) fn unusable(&self) -> &Unusable {
        &self.unusable
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
        self.log.admit(&Writer::Client)?;
        self.is_written_rightly()
    }

    fn is_written_rightly(&self) -> Result<(), Error> {
        if self.read_only.load(Ordering::Acquire) { Err(first_page::read_only(self.log.name())) } else { Ok(()) }
    }

    /// Learns how far the log is durable now.
    pub(super) async fn renew(&self) -> Result<(), Error> {
        self.logs.renew(&self.log).await
    }

    /// Takes in the frames that others appended. The caller has the turn. Blocks.
    ///
    /// # Errors
    /// When that cannot be: the engine is closed then.
    pub(super) fn absorb(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(self.given_up());
        }
        let view = self.log.view();
        let last = view.durable.0.saturating_sub(1);
        let absorbed = match (&view.state, self.wal.known()) {
            // To read the log again costs no memory for all of them.
            (State::Ok, Some(known)) if self.wal.is_too_much(last.saturating_sub(known)) => Err(closed()),
            (State::Ok, Some(known)) if known < last => self.check_next(known, last).and_then(|()| {
                self.schema.begin();
                let inserted = self.insert(known, last);
                self.schema.end();
                inserted
            }),
            // Its first frames came from elsewhere, with a header that the engine does not have.
            (State::Ok, None) if last > 0 => Err(closed()),
            // One that takes no more is read as far as it goes.
            (State::Ok | State::Failed(_), _) => Ok(()),
            (State::Damaged(cause), _) => Err(Error::Damaged(cause.clone())),
            (State::Ended(_), _) => Err(rolled_over(self.log.generation())),
        };
        absorbed.inspect_err(|error| self.close(error))
    }

    /// Checks that the engine can go on with the database as frames `known + 1` to `last` make it, before it sees them.
    ///
    /// # Errors
    /// [`Error::Format`] when it cannot; when it must be opened again, since it has not all of the schema.
    fn check_next(&self, known: u64, last: u64) -> Result<(), Error> {
        let mut is_first_written = false;
        self.log.newest_frames(&(Offset(known + 1)..Offset(last + 1)), Sought::These(&[1]), |_, _| {
            is_first_written = true;
            false
        })?;
        if !is_first_written {
            return Ok(());
        }
        let pages = LogPages::open(&self.log, self.base.clone(), last)?;
        let find = |page: &mut [u8; PAGE_LEN]| pages.find(1, page);
        let Permitted { writes, schema } = first_page::permitted(self.log.name(), &self.base, find)?;
        self.read_only.store(!writes, Ordering::Release);
        let is_same_schema = self.schema_cookie.swap(schema, Ordering::AcqRel) == schema;
        if !is_same_schema && (self.unusable.has_any() || objects::is_in_part(&pages)) {
            return Err(closed());
        }
        Ok(())
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

    /// The generation, and the last frame that a connection has seen.
    pub(super) fn seen(&self, connection: &Connection) -> Result<(Generation, u64), Error> {
        let state = connection.wal_state().map_err(|error| of_engine(&error))?;
        Ok((self.log.generation(), state.max_frame))
    }

    /// Appends to the log what was committed. After Ok all that `connection` has seen is durable.
    pub(super) async fn settle(&self, session: u64, connection: &Connection) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(self.given_up());
        }
        if self.holder.load(Ordering::Acquire) == session {
            return self.append().await.inspect_err(|error| self.close(error));
        }
        let (_, seen) = self.seen(connection)?;
        let mut view = self.log.watch();
        let durable =
            timeout(SETTLE_WAIT, view.wait_for(|view| view.durable.0 > seen || view.state != State::Ok)).await;
        match durable {
            Ok(Ok(view)) if view.durable.0 > seen => Ok(()),
            _ => Err(self.given_up()),
        }
    }

    async fn append(&self) -> Result<(), Error> {
        let Some(pending) = self.wal.pending() else {
            return Ok(());
        };
        self.is_written_rightly()?;
        match self.logs.append(&self.log, pending.behind, pending.bytes.clone()).await {
            Ok(()) => {
                self.wal.hold(&pending);
                Ok(())
            }
            Err(error) => Err(of_append(error)),
        }
    }

    /// Why nobody uses it any more.
    fn given_up(&self) -> Error {
        match self.log.view().state {
            State::Ended(_) => rolled_over(self.log.generation()),
            _ => closed(),
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
