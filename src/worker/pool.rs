//! [`Workers`]: which worker runs the SQL of which log.
//!
//! Logs share a few workers. A log whose calls were under way when [two workers](WORKER_STRIKES_ALONE) ended gets one of its
//! own, and where that ends too, none for a while.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::connection::{Connection, Death, Event};
use super::wire::{ToWorker, WorkerStart};
use super::{just_ended, locked};
use crate::engine::transaction_bytes_max;
use crate::limits::{
    WORKER_FILE_BYTES_MAX, WORKER_MEMORY_BYTES_MAX, WORKER_PAUSE, WORKER_PAUSE_MAX, WORKER_STRIKES_ALONE,
    WORKER_STRIKES_KEPT, WORKERS_ALONE_MAX, sql_workers,
};
use crate::mirror::{Error, Log, Registry};
use crate::sync::turso::TouchedPages;
use crate::sync::turso::sql::{MemoryShare, Pieces, SqlSettings};

/// The program of a worker: this one as `logmirror sql-worker`, or another that calls [`run_worker`](super::run_worker).
#[derive(Clone, Debug)]
pub struct WorkerProgram {
    /// Its path.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// What a service needs to know of its workers.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// What they run.
    pub program: WorkerProgram,
    /// How many logs share; none is started before it is wanted.
    pub count: NonZeroUsize,
    /// Memory of each, the stacks of its threads included.
    pub memory_bytes_max: u64,
}

impl WorkerSettings {
    /// The defaults for a program.
    #[must_use]
    pub fn of(program: WorkerProgram) -> WorkerSettings {
        WorkerSettings { program, count: sql_workers(), memory_bytes_max: WORKER_MEMORY_BYTES_MAX }
    }
}

/// The workers of a service.
#[derive(Debug)]
pub struct Workers {
    registry: Arc<Registry>,
    settings: WorkerSettings,
    sql: SqlSettings,
    shared: Vec<Arc<Seat>>,
    /// The logs that have one of their own, by their ids.
    alone: Mutex<HashMap<String, Arc<Seat>>>,
    records: Arc<Mutex<HashMap<String, StrikeRecord>>>,
}

/// A place for a worker, which is started when it is wanted.
#[derive(Debug, Default)]
struct Seat {
    worker: AsyncMutex<Option<Arc<Connection>>>,
}

/// The workers that ended while they ran SQL of a log.
#[derive(Clone, Debug)]
struct StrikeRecord {
    strikes: u32,
    last: Instant,
    cause: String,
}

impl Seat {
    /// Nothing runs on it, and no call is about to.
    fn is_free(self: &Arc<Self>) -> bool {
        let has_ended = |worker: &Option<Arc<Connection>>| worker.as_ref().is_none_or(|worker| worker.has_ended());
        Arc::strong_count(self) == 1 && self.worker.try_lock().is_ok_and(|worker| has_ended(&worker))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for seat in self.shared.iter().chain(locked(&self.alone).values()) {
            // One that is being started ends with its socket.
            if let Ok(worker) = seat.worker.try_lock()
                && let Some(worker) = &*worker
            {
                worker.end();
            }
        }
    }
}

impl StrikeRecord {
    /// How long no worker runs SQL of the log from its last strike on.
    fn pause(&self) -> Duration {
        match self.strikes.checked_sub(WORKER_STRIKES_ALONE + 1) {
            None => Duration::ZERO,
            Some(more) => WORKER_PAUSE.saturating_mul(1 << more.min(10)).min(WORKER_PAUSE_MAX),
        }
    }

    fn is_old(&self) -> bool {
        self.last.elapsed() > WORKER_STRIKES_KEPT + self.pause()
    }
}

impl Workers {
    /// Workers for the logs of `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, settings: WorkerSettings, sql: SqlSettings) -> Workers {
        let shared = (0..settings.count.get()).map(|_| Arc::default()).collect();
        Workers { registry, settings, sql, shared, alone: Mutex::default(), records: Arc::default() }
    }

    /// As [`Sql::pipeline`](crate::sync::turso::sql::Sql::pipeline).
    ///
    /// # Errors
    /// As that; [`Error::Aborted`] when the worker ended.
    pub(super) async fn pipeline(&self, log: &str, body: (Bytes, MemoryShare), lasting: bool) -> Result<Bytes, Error> {
        let (log, worker) = self.worker_of(log).await?;
        worker.run_call(&log, |id, update| ToWorker::Pipeline { id, update, lasting }, body).await
    }

    /// As [`Sql::touched`](crate::sync::turso::sql::Sql::touched).
    ///
    /// # Errors
    /// As that; [`Error::Aborted`] when the worker ended.
    pub(super) async fn touched(&self, log: &str, query: (Bytes, MemoryShare)) -> Result<TouchedPages, Error> {
        let (log, worker) = self.worker_of(log).await?;
        let answer = worker.run_call(&log, |id, update| ToWorker::Touched { id, update }, query).await;
        TouchedPages::decode(&answer?)
    }

    /// As [`Sql::cursor`](crate::sync::turso::sql::Sql::cursor). To be awaited to its end.
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline), for what is known before the first statement.
    pub(super) async fn cursor(&self, log: &str, (body, share): (Bytes, MemoryShare)) -> Result<Pieces, Error> {
        let (log, worker) = self.worker_of(log).await?;
        let (id, mut events) = worker.begin(&log, share)?;
        worker.call((id, &log), |id, update| ToWorker::Cursor { id, update }, body)?;
        match events.recv().await {
            Some(Event::Started) => {}
            Some(Event::Ended(Err(error))) => return Err(error),
            _ => return Err(just_ended()),
        }
        let (pieces, answer) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let Ok(place) = pieces.reserve().await else { return worker.gone(id) };
                worker.more(id);
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = pieces.closed() => return worker.gone(id),
                };
                match event {
                    Some(Event::Piece(piece)) => place.send(Ok(piece)),
                    Some(Event::Ended(Ok(_))) => return,
                    Some(Event::Ended(Err(error))) => return place.send(Err(error)),
                    Some(Event::Started) | None => return place.send(Err(just_ended())),
                }
            }
        });
        Ok(answer)
    }

    /// The log of that name, and the worker that runs its SQL.
    async fn worker_of(&self, log_name: &str) -> Result<(Arc<Log>, Arc<Connection>), Error> {
        let log = self.registry.get(log_name)?;
        if log.base_fault().is_some() {
            // It may be right again.
            let damaged = log.clone();
            let opened = tokio::task::spawn_blocking(move || damaged.base().map(drop)).await;
            opened.unwrap_or_else(|_| Err(just_ended()))?;
        }
        let seat = self.seat(&log)?;
        let mut worker = seat.worker.lock().await;
        if let Some(worker) = worker.as_ref().filter(|worker| !worker.has_ended()) {
            return Ok((log, worker.clone()));
        }
        let start = WorkerStart {
            transaction_bytes_max: transaction_bytes_max(self.registry.settings()),
            stream_idle_ms: milliseconds(self.sql.stream_idle),
            statement_ms_max: milliseconds(self.sql.statement_time_max),
            memory_bytes_max: self.settings.memory_bytes_max,
            file_bytes_max: WORKER_FILE_BYTES_MAX,
        };
        let (records, registry) = (self.records.clone(), self.registry.clone());
        let died = move |death: Death| record(&records, &registry, &death);
        let started = Connection::start(self.registry.clone(), &self.settings.program, start, died).await?;
        *worker = Some(started.clone());
        Ok((log, started))
    }

    fn seat(&self, log: &Log) -> Result<Arc<Seat>, Error> {
        let (record, old) = {
            let (mut records, alone) = (locked(&self.records), locked(&self.alone));
            records.retain(|_, record| !record.is_old());
            let old: Vec<_> = alone.keys().filter(|id| !records.contains_key(*id)).cloned().collect();
            (records.get(log.id()).cloned(), old)
        };
        let seat = log.id().bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let shared = || self.shared[seat % self.shared.len()].clone();
        let mut alone = locked(&self.alone);
        for seat in old.iter().filter_map(|id| alone.remove(id)) {
            tokio::spawn(async move {
                if let Some(worker) = &*seat.worker.lock().await {
                    worker.close();
                }
            });
        }
        let Some(record) = record.filter(|record| record.strikes >= WORKER_STRIKES_ALONE) else {
            return Ok(shared());
        };
        let refused = |what: &str| {
            let StrikeRecord { strikes, cause, .. } = &record;
            Error::Aborted(format!(
                "{strikes} SQL workers ended while they ran statements on log {:?} ({cause}): {what}; nothing of this request was \
                 run",
                log.name()
            ))
        };
        let left = record.pause().saturating_sub(record.last.elapsed());
        if !left.is_zero() {
            return Err(refused(&format!("SQL on it goes on in {:.0} s", left.as_secs_f64().ceil())));
        }
        if !alone.contains_key(log.id()) && alone.len() >= WORKERS_ALONE_MAX {
            // A log that is paused, or not used any more, needs none.
            alone.retain(|_, seat| !seat.is_free());
        }
        if !alone.contains_key(log.id()) && alone.len() >= WORKERS_ALONE_MAX {
            // It may have been another's statement, both times.
            if record.strikes == WORKER_STRIKES_ALONE {
                return Ok(shared());
            }
            return Err(refused("there are too many such logs: SQL on it goes on in a few minutes"));
        }
        Ok(alone.entry(log.id().to_owned()).or_default().clone())
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Records the end of a worker.
fn record(records: &Mutex<HashMap<String, StrikeRecord>>, registry: &Registry, death: &Death) {
    let names: Vec<&str> = death.logs.iter().map(|log| log.name()).collect();
    log::error!("an SQL worker has ended: {}; it ran statements on: {}", death.cause, names.join(", "));
    registry.counters().sql_workers_ended.inc();
    let mut records = locked(records);
    let mut ids: Vec<&str> = death.logs.iter().map(|log| log.id()).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let fresh = || StrikeRecord { strikes: 0, last: Instant::now(), cause: String::new() };
        let record = records.entry(id.to_owned()).or_insert_with(fresh);
        (record.strikes, record.last) = (record.strikes + 1, Instant::now());
        record.cause.clone_from(&death.cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CreateLog;
    use crate::format::LogFormat;
    use crate::mirror::Settings;
    use crate::repo::MemRepo;

    /// Strikes of a log that ended a worker of its own.
    const MORE: u32 = WORKER_STRIKES_ALONE + 1;

    #[test]
    fn logs_that_ended_their_workers_leave_the_places_that_they_do_not_use() {
        let registry = Arc::new(Registry::open(Arc::new(MemRepo::default()), Settings::default()).expect("a registry"));
        let program = WorkerProgram { path: PathBuf::new(), args: Vec::new() };
        let workers = Workers::new(registry.clone(), WorkerSettings::of(program), SqlSettings::default());
        let struck = |number: usize, strikes: u32| {
            let wal = CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None };
            let (log, _) = registry.create(&format!("log-{number}"), wal).expect("a log");
            // Its pause is over.
            let last = Instant::now().checked_sub(2 * WORKER_PAUSE).expect("a time");
            let record = StrikeRecord { strikes, last, cause: String::new() };
            locked(&workers.records).insert(log.id().to_owned(), record);
            workers.seat(&log)
        };
        for number in 0..2 * WORKERS_ALONE_MAX {
            assert!(struck(number, MORE).is_ok(), "{number}");
        }
        // Those that are in use stay.
        let used: Vec<_> = (0..WORKERS_ALONE_MAX).map(|number| struck(100 + number, MORE).expect("a place")).collect();
        assert!(struck(200, MORE).is_err());
        // Both may have been another's statements.
        assert!(struck(201, WORKER_STRIKES_ALONE).is_ok());
        drop(used);
        assert!(struck(202, MORE).is_ok());
    }
}
