//! `P-draft`: what the application reads and writes. Owns: its connections in the engine, its write lock, and how pages are
//! put under what the application sees; and how it is read beside other programs that have it open.

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use turso_core::{CheckpointMode, Database, LimboError, OpenFlags, OpenOptions, SqliteDialect};

use super::error::ReplicaError;
use super::files::{Files, Held};
use super::image::{PAGE_SIZE, image};
use super::info::Mark;
use super::io::{Latch, RepoIo};
use super::pipeline::{MAKE_BOOKKEEPING, SET_BOOKKEEPING};
use crate::engine::features;
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use crate::limits::ENGINE_CACHE_PAGES;
use crate::repo::RepoFile;
use crate::sqlite::btree::{PAGE_LEN, Page, Pages};
use crate::sqlite::image::Image;
use crate::sqlite::wal_frames::heads;
use crate::sqlite::{DatabaseError, Snapshot, take};
use crate::sync::turso::Value;
use crate::sync::{FRAME_LEN, SyncError};

/// The draft, open.
pub(super) struct Draft {
    files: Files,
    /// With it nobody else has the draft open. Without it others may, and nothing is written.
    engine: Option<Engine>,
    _held: Held,
}

/// The draft in the engine.
struct Engine {
    database: Arc<Database>,
    latch: Latch,
    /// Reads and writes pages; no statement of the application ever runs on it.
    keeper: Arc<turso_core::Connection>,
}

/// The draft while nobody can write it.
pub(super) struct Locked<'a> {
    draft: &'a Draft,
    engine: &'a Engine,
    next: u64,
    ended: bool,
}

/// Opens a database in the engine. Nothing but what is committed is ever written to it.
pub(super) fn open(files: &Files, name: &str) -> Result<(Arc<Database>, Latch), ReplicaError> {
    let io = Arc::new(RepoIo::new(files.dir.clone(), name)?);
    let latch = io.latch();
    let options = OpenOptions::new(Arc::new(SqliteDialect)).flags(OpenFlags::Create).db_opts(features());
    // Not by way of the engine's own registry of open files: replicas in different directories may have the same name.
    Ok((Database::do_open(io, name, options)?, latch))
}

/// A connection that leaves the WAL as it is, and fails when a sync does.
pub(super) fn connect(database: &Arc<Database>) -> Result<Arc<turso_core::Connection>, ReplicaError> {
    let connection = database.connect()?;
    connection.wal_auto_actions_disable();
    connection.set_data_sync_retry(true);
    connection.set_cache_size(ENGINE_CACHE_PAGES);
    Ok(connection)
}

impl Draft {
    /// # Errors
    /// When it is in use, or the engine cannot open it.
    pub(super) fn open(files: &Files, held: Held) -> Result<Draft, ReplicaError> {
        let (database, latch) = open(files, &files.draft())?;
        let keeper = connect(&database)?;
        Ok(Draft { files: files.clone(), engine: Some(Engine { database, latch, keeper }), _held: held })
    }

    /// The draft beside those who have it open: it can be [looked at](Self::look) and that is all.
    pub(super) fn beside(files: &Files, held: Held) -> Draft {
        Draft { files: files.clone(), engine: None, _held: held }
    }

    fn engine(&self) -> Result<&Engine, ReplicaError> {
        self.engine.as_ref().ok_or_else(|| ReplicaError::Busy { file: self.files.draft(), pid: None })
    }

    /// Whether nobody else has it open, so that it can be written.
    pub(super) fn is_ours(&self) -> bool {
        self.engine.is_some()
    }

    /// # Errors
    /// [`ReplicaError::Latched`] when a write or sync has failed.
    pub(super) fn usable(&self) -> Result<(), ReplicaError> {
        let is_latched = self.engine.as_ref().is_some_and(|engine| engine.latch.is_closed());
        if is_latched { Err(ReplicaError::Latched { file: self.files.draft() }) } else { Ok(()) }
    }

    /// A connection for the application.
    pub(super) fn connect(&self) -> Result<Arc<turso_core::Connection>, ReplicaError> {
        connect(&self.engine()?.database)
    }

    fn wal(&self) -> Result<Option<Arc<dyn RepoFile>>, ReplicaError> {
        let name = format!("{}-wal", self.files.draft());
        match self.files.dir.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some).map_err(ReplicaError::io("opening", &name)),
        }
    }

    /// After Ok what is committed survives power loss, also what others wrote without a sync.
    pub(super) fn sync(&self) -> Result<(), ReplicaError> {
        let name = self.files.draft();
        let database = self.files.dir.open(&name).map_err(ReplicaError::io("opening", &name))?;
        let mut files = std::iter::once(database).chain(self.wal()?);
        files.try_for_each(|file| file.sync()).map_err(ReplicaError::io("syncing", &name))
    }

    /// The place of a frame of the WAL as it is now.
    fn mark(&self, frame: u64) -> Result<Mark, ReplicaError> {
        let mut header = [0; HEADER_LEN];
        let salts = match self.wal()? {
            Some(wal) => {
                wal.read_at(&mut header, 0).map_err(ReplicaError::io("reading", &self.files.draft()))?;
                WalHeader::decode(&header).map_or([0; 2], |header| header.salts)
            }
            None => [0; 2],
        };
        Ok(Mark { salts, frame })
    }

    /// The database as of a frame of its WAL that ends a transaction.
    fn image(&self, frame: u64) -> Result<Image, ReplicaError> {
        let name = self.files.draft();
        image(&*self.files.dir, &name, frame).map_err(ReplicaError::io("reading", &name))
    }

    /// The heads of the frames after a mark, up to another of the same WAL; `None` when it is another WAL.
    pub(super) fn heads(&self, after: Option<Mark>, last: Mark) -> Result<Option<Vec<FrameHeader>>, ReplicaError> {
        let Some(after) = after.filter(|after| after.salts == last.salts && after.frame <= last.frame) else {
            return Ok(None);
        };
        let wal = self.wal()?;
        let read = wal.map_or(Ok(Vec::new()), |wal| heads(&*wal, PAGE_SIZE, after.frame, last.frame));
        read.map(Some).map_err(ReplicaError::io("reading", &self.files.draft()))
    }

    /// Looks at what is committed now, and where: again from the start where others changed it meanwhile. What was looked at
    /// may change as soon as this returns, unless nobody else has the draft open.
    pub(super) fn look<T>(
        &self,
        mut look: impl FnMut(&Image, Mark) -> Result<T, ReplicaError>,
    ) -> Result<T, ReplicaError> {
        if self.engine.is_some() {
            let (image, now) = self.now()?;
            return look(&image, now);
        }
        let looked = take(&self.files.path(&self.files.draft()), |snapshot: &Snapshot| {
            look(&self.image(snapshot.frames())?, self.mark(snapshot.frames())?)
        });
        looked.map_err(|error| match error {
            ReplicaError::Remote(SyncError::Database(DatabaseError::HotJournal { .. })) => {
                ReplicaError::Unfinished { draft: self.files.draft(), journal: self.files.journal() }
            }
            error => error,
        })
    }

    /// What is committed now, and where.
    pub(super) fn now(&self) -> Result<(Image, Mark), ReplicaError> {
        let keeper = &self.engine()?.keeper;
        keeper.execute("BEGIN")?;
        let seen = keeper.prepare("SELECT count(*) FROM sqlite_schema").and_then(|mut count| {
            count.run_collect_rows()?;
            keeper.wal_state()
        });
        // A read that ended badly leaves nothing that could be kept.
        let ended = keeper.execute("ROLLBACK");
        let frame = seen?.max_frame;
        ended?;
        Ok((self.image(frame)?, self.mark(frame)?))
    }

    /// Writes the first page once more, so that there is a WAL with salts of its own; `None` when somebody was faster, or
    /// others have the draft open.
    pub(super) fn mark_anew(&self, now: Mark) -> Result<Option<Mark>, ReplicaError> {
        if !self.is_ours() {
            return Ok(None);
        }
        let mut locked = match self.lock(Duration::ZERO) {
            Err(ReplicaError::Locked { .. }) => return Ok(None),
            locked => locked?,
        };
        let (image, still) = locked.now()?;
        if still != now || image.count() == 0 {
            return Ok(None);
        }
        let mut page = [0; PAGE_LEN];
        image.read(1, &mut page)?;
        locked.write(1, &page, image.count())?;
        locked.end().map(Some)
    }

    /// Writes into the bookkeeping table that nothing was pulled yet for `client`, by which the draft is known from then on.
    pub(super) fn name(&self, client: &str) -> Result<(), ReplicaError> {
        let connection = self.connect()?;
        connection.execute("BEGIN IMMEDIATE")?;
        connection.execute(MAKE_BOOKKEEPING)?;
        let mut row = connection.prepare(SET_BOOKKEEPING)?;
        let values = [Value::Text(client.to_owned()), Value::Integer(0), Value::Integer(0)];
        for (number, value) in (1..).filter_map(NonZero::new).zip(&values) {
            row.bind_at(number, value.into())?;
        }
        row.run_ignore_rows()?;
        drop(row);
        connection.execute("COMMIT")?;
        Ok(connection.close()?)
    }

    /// Keeps all others from writing, once those before have ended their transactions.
    ///
    /// # Errors
    /// [`ReplicaError::Locked`] when that takes longer than `patience`.
    pub(super) fn lock(&self, patience: Duration) -> Result<Locked<'_>, ReplicaError> {
        let engine = self.engine()?;
        let (since, mut wait) = (Instant::now(), Duration::from_millis(1));
        loop {
            match engine.keeper.wal_insert_begin() {
                Ok(()) => break,
                Err(LimboError::Busy | LimboError::BusySnapshot) if since.elapsed() < patience => {
                    // The engine has no queue that one could wait in.
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(Duration::from_millis(50));
                }
                Err(LimboError::Busy | LimboError::BusySnapshot) => {
                    return Err(ReplicaError::Locked { seconds: patience.as_secs() });
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut locked = Locked { draft: self, engine, next: 0, ended: false };
        locked.next = engine.keeper.wal_state()?.max_frame + 1;
        Ok(locked)
    }

    /// Puts the WAL into the database file, unless somebody reads it. Whether it did.
    pub(super) fn fold(&self) -> Result<bool, ReplicaError> {
        match self.engine()?.keeper.checkpoint(CheckpointMode::Truncate { upper_bound_inclusive: None }) {
            Ok(_) => Ok(true),
            Err(LimboError::Busy | LimboError::BusySnapshot) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Locked<'_> {
    /// What is committed, and where.
    pub(super) fn now(&self) -> Result<(Image, Mark), ReplicaError> {
        let frame = self.next - 1;
        Ok((self.draft.image(frame)?, self.draft.mark(frame)?))
    }

    /// Writes a page. `size` is that of the database, in pages, for the last one, which ends the transaction; until then
    /// nobody sees any of them.
    pub(super) fn write(&mut self, number: u32, page: &Page, size: u32) -> Result<(), ReplicaError> {
        let mut frame = [0; FRAME_LEN];
        frame[..4].copy_from_slice(&number.to_be_bytes());
        frame[4..8].copy_from_slice(&size.to_be_bytes());
        frame[FRAME_HEADER_LEN..].copy_from_slice(page);
        self.engine.keeper.wal_insert_frame(self.next, &frame)?;
        self.next += 1;
        Ok(())
    }

    /// The number of the last frame written.
    pub(super) fn frame(&self) -> u64 {
        self.next - 1
    }

    /// Ends the lock. After Ok what was written survives power loss, and is what all see.
    pub(super) fn end(mut self) -> Result<Mark, ReplicaError> {
        self.ended = true;
        self.engine.keeper.wal_insert_end(false)?;
        if let Some(wal) = self.draft.wal()? {
            wal.sync().map_err(|error| {
                // What the application would commit after these frames could be lost with them.
                self.engine.latch.close();
                ReplicaError::io("syncing", &self.draft.files.draft())(error)
            })?;
        }
        self.draft.mark(self.next - 1)
    }
}

impl Drop for Locked<'_> {
    /// What was written and not ended is gone.
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.engine.keeper.wal_insert_end(false)
        {
            log::error!("the lock of the draft was not given back: {error}");
        }
    }
}
