//! [`Snapshot`]: a database that may be in use, held still enough to be read.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::counted::{Counted, have_it_open, page_of};
use super::error::DatabaseError;
use super::follow::WalPosition;
use super::held::HeldDatabase;
use super::known_wal::{KnownWal, scan_wal};
use super::lock::beside_users as lock;
use super::source::{BaseVersion, Opened, Places, Stamp, page_size};
use super::wal_pages::WalPages;
use super::wal_scan::{Verdict, WalScan};
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader, WalStart};
use crate::limits::{LOCK_PATIENCE, READ_BLOCK, SNAPSHOT_ROUNDS};
use crate::repo::read_at;

/// A database file, the *base*, and the committed part of its WAL: together a state that SQLite committed.
///
/// While it is held, SQLite's own locks keep every connection from changing what it reads; readers and writers go on, but
/// nobody checkpoints. What does not heed these locks, and a first connection that opens a database nobody had open, shows
/// in [`check`](Snapshot::check): **what was read counts once `check` says so**. [`take`] does that.
///
/// Nothing is ever written, and no file is made. The process must not have the same database open through SQLite: closing
/// a snapshot would drop SQLite's locks.
///
/// ```
/// use logmirror::sqlite::{Snapshot, Verdict};
///
/// let snapshot = Snapshot::open("segments/wal/plain.db".as_ref())?;
/// assert_eq!((snapshot.base_bytes(), snapshot.page_size()), (Some(4096), Some(4096)));
/// assert_eq!((snapshot.frames(), snapshot.transactions(), snapshot.verdict()), (50, 21, &Verdict::Whole));
/// let mut header = [0; 32];
/// assert_eq!(snapshot.read_wal(0, &mut header)?, 32);
/// snapshot.check()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Snapshot {
    places: Places,
    /// With SHARED on it.
    base: Option<(Opened, Stamp)>,
    /// With READ0 and another on it.
    index: Option<Opened>,
    wal: Option<Opened>,
    /// None where the WAL has no sound header.
    known: Option<KnownWal>,
    /// What its users count, where that is more than what is proven.
    counted: Option<Counted>,
    verdict: Verdict,
    page_size: Option<u32>,
    /// Since when a writer has been waiting for us, as far as is known.
    waited_for: OnceLock<Instant>,
    /// Whether writers wait however long it takes.
    insists: AtomicBool,
}

/// How long a writer with a rollback journal waits for us. SQLite's users give up after five seconds, if they wait at all.
const WRITER_WAITS_MAX: Duration = Duration::from_secs(1);

impl Snapshot {
    /// A snapshot of the database at `path`, or of the one whose WAL is at `path` (`app.db-wal`). Such a WAL may stand alone:
    /// there is no base then.
    ///
    /// # Errors
    /// See [`DatabaseError`]. Locks that are in the way are waited for, some seconds at most.
    pub fn open(path: &Path) -> Result<Snapshot, DatabaseError> {
        Snapshot::open_with(path, LOCK_PATIENCE, None)
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub fn open_within(path: &Path, patience: Duration) -> Result<Snapshot, DatabaseError> {
        Snapshot::open_with(path, patience, None)
    }

    /// The same where `before` is what an earlier snapshot of this database [knew](Snapshot::known_wal) of its WAL: only the frames
    /// after its last commit are read. Where it is another WAL now, or shorter, all of it is read.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub fn open_after(path: &Path, before: Option<&KnownWal>) -> Result<Snapshot, DatabaseError> {
        Snapshot::open_with(path, LOCK_PATIENCE, before)
    }

    fn open_with(path: &Path, patience: Duration, before: Option<&KnownWal>) -> Result<Snapshot, DatabaseError> {
        let places = Places::of(path);
        let deadline = Instant::now() + patience;
        for _ in 0..SNAPSHOT_ROUNDS {
            let snapshot =
                Snapshot::look(&places, deadline, before).and_then(|snapshot| snapshot.check().map(|()| snapshot));
            if !matches!(snapshot, Err(DatabaseError::Changed { .. })) {
                return snapshot;
            }
        }
        Err(DatabaseError::Unsettled { path: places.database, rounds: SNAPSHOT_ROUNDS })
    }

    fn look(places: &Places, deadline: Instant, before: Option<&KnownWal>) -> Result<Snapshot, DatabaseError> {
        let base = match Opened::find(&places.database)? {
            Some(database) => {
                hold(places, &database, deadline)?;
                // Only now: until SHARED is held it may still change.
                let stamp = database.stamp()?;
                Some((database, stamp))
            }
            None if places.wal_alone => None,
            None => {
                let error = io::ErrorKind::NotFound.into();
                return Err(DatabaseError::io("opening", &places.database, error));
            }
        };
        // The index goes only with EXCLUSIVE, so behind SHARED the one that is found stays.
        let index = Opened::find(&places.index)?;
        if let Some(index) = &index {
            let share = || index.ask(lock::share_index).map(|shared| shared.then_some(()));
            if lock::before(deadline, share)?.is_none() {
                return Err(DatabaseError::Checkpoint { path: places.database.clone() });
            }
        }
        let stated = base.as_ref().map_or(Ok(None), |(database, _)| page_size(database))?;
        // Before the WAL: what counts is in it by then.
        let counted = index.as_ref().map_or(Ok(None), Counted::of)?;
        if let (Some((database, _)), Some(index)) = (&base, &index) {
            have_it_open(places, database, index)?;
        }
        let wal = Opened::find(&places.wal)?;
        if let (None, true) = (&wal, base.is_none()) {
            let error = io::ErrorKind::NotFound.into();
            return Err(DatabaseError::io("opening", &places.wal, error));
        }
        let base_bytes = base.as_ref().map_or(0, |(_, stamp)| stamp.bytes);
        let (mut known, bytes, mut verdict) = match &wal {
            None => (None, 0, Verdict::Whole),
            Some(wal) => {
                let (known, file, verdict) = scan_wal(wal, base_bytes, counted.as_ref(), before)?;
                (known, file.bytes, verdict)
            }
        };
        if let (None, Some(index)) = (&counted, &index)
            && Counted::by_any(index)?
        {
            return Err(DatabaseError::Changed { path: places.database.clone(), what: "it was opened" });
        }
        let scan = known.as_ref().map(|known| known.scan);
        let counted = match counted {
            Some(counted) if !counted.are_in(scan.map(|scan| scan.end().header), bytes) => {
                counted.are_elsewhere(places)?;
                (known, verdict) = (None, Verdict::Whole);
                None
            }
            Some(counted) if scan.is_some_and(|scan| counted.restarts(scan.end().header)) => {
                (known, verdict) = (None, Verdict::Whole);
                None
            }
            counted => counted,
        };
        let counted = counted.zip(known.as_ref()).and_then(|(counted, KnownWal { scan, .. })| {
            let frames = scan.frames().max(counted.position.frames);
            // Frames after those that counted may be on their way.
            verdict = Verdict::of_rest(bytes.saturating_sub(scan.end().header.byte_after(frames)));
            (scan.frames() < frames).then_some(counted)
        });
        let places = places.clone();
        let (waited_for, insists) = (OnceLock::new(), AtomicBool::new(false));
        Snapshot { places, base, index, wal, known, counted, verdict, page_size: stated, waited_for, insists }.agrees()
    }

    fn scan(&self) -> Option<WalScan> {
        self.known.as_ref().map(|known| known.scan)
    }

    /// How far its WAL is sound, for the next snapshot of this database; none where there is no sound WAL.
    #[must_use]
    pub fn known_wal(&self) -> Option<&KnownWal> {
        self.known.as_ref()
    }

    /// The pages after the first `whole` ones that committed frames of the WAL hold, where its scan kept them all.
    pub(super) fn pages_after(&self, whole: u64) -> Option<&WalPages> {
        let known = self.known.as_ref().filter(|_| self.counted.is_none())?;
        known.pages.knows_all_after(whole).then_some(&known.pages)
    }

    /// Base and WAL must belong together.
    fn agrees(self) -> Result<Snapshot, DatabaseError> {
        let path = || self.places.database.clone();
        let in_wal = self.header().map(|header| header.page_size);
        match (self.page_size, in_wal) {
            (Some(database), Some(wal)) if database != wal => {
                Err(DatabaseError::PageSize { path: path(), database, wal })
            }
            (None, Some(_)) if self.base.is_some() && self.frames() > 0 => {
                Err(DatabaseError::Orphan { path: path(), frames: self.frames() })
            }
            (stated, in_wal) => Ok(Snapshot { page_size: stated.or(in_wal), ..self }),
        }
    }

    /// Whether the files still are what this is a snapshot of. After Ok, everything read before was consistent.
    ///
    /// # Errors
    /// [`DatabaseError::Changed`], or that they cannot be asked any more.
    pub fn check(&self) -> Result<(), DatabaseError> {
        let changed = |what| Err(DatabaseError::Changed { path: self.places.database.clone(), what });
        if let Some((database, stamp)) = &self.base
            && (database.stamp()? != *stamp || !database.is_in_place()?)
        {
            return changed("its file was written or replaced");
        }
        match &self.index {
            Some(index) if !index.is_in_place()? => return changed("its -shm file was replaced"),
            None if Opened::find(&self.places.index)?.is_some() => return changed("it was opened"),
            _ => {}
        }
        if let (Some(wal), Some(header)) = (&self.wal, self.header()) {
            let mut head = [0; HEADER_LEN];
            let read = wal.ask(|file| read_at(file, &mut head, 0))?;
            if !wal.is_in_place()? || wal.stamp()?.bytes < self.wal_bytes() {
                return changed("its WAL was replaced or cut");
            }
            if read < HEADER_LEN || head != header.encode() {
                return changed("its WAL was restarted");
            }
        }
        Ok(())
    }

    /// Has it held also while a writer waits: see [`HeldDatabase::give_way`].
    pub fn insist(&self) {
        self.insists.store(true, Ordering::Relaxed);
    }

    /// Lets writers with a rollback journal go on, where the database has one. What was read before stays consistent; what is read
    /// after it counts only as far as [`check`](Self::check) says.
    ///
    /// # Errors
    /// [`DatabaseError::Io`].
    pub fn let_writers_on(&self) -> Result<(), DatabaseError> {
        match (&self.base, &self.index) {
            (Some((database, _)), None) => database.ask(lock::release_database),
            _ => Ok(()),
        }
    }

    /// Bytes of a page; none when there is neither a page nor a WAL.
    #[must_use]
    pub fn page_size(&self) -> Option<u32> {
        self.page_size
    }

    /// Bytes of the database file; none when there is none beside a WAL that was named.
    #[must_use]
    pub fn base_bytes(&self) -> Option<u64> {
        self.base.as_ref().map(|(_, stamp)| stamp.bytes)
    }

    /// Which state of the database file this is: another one when it was written or replaced.
    #[must_use]
    pub fn base_version(&self) -> Option<BaseVersion> {
        self.base.as_ref().map(|(_, stamp)| BaseVersion(*stamp))
    }

    /// Reads the database file into `buf` from `at`; fewer bytes than asked for only at its end.
    ///
    /// # Errors
    /// [`DatabaseError::Io`].
    pub fn read_base(&self, at: u64, buf: &mut [u8]) -> Result<usize, DatabaseError> {
        match &self.base {
            Some((database, stamp)) => database.ask(|file| read_at(file, up_to(stamp.bytes, at, buf), at)),
            None => Ok(0),
        }
    }

    /// The header of the WAL; none when there is no WAL or nothing of it counts. A log with other salts than it had is
    /// another generation.
    #[must_use]
    pub fn header(&self) -> Option<WalHeader> {
        self.end().map(|end| end.header)
    }

    /// Where the committed part of the WAL ends: its header, and the checksum that the next frame would go on from.
    #[must_use]
    pub fn end(&self) -> Option<WalStart> {
        let end = self.scan()?.end();
        Some(self.counted.map_or(end, |counted| WalStart { chain: counted.position.chain, ..end }))
    }

    /// Frames of the committed part of the WAL.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.scan().map_or(0, |scan| self.counted.map_or(scan.frames(), |counted| counted.position.frames))
    }

    /// The first frame of the committed part whose checksum does not fit. From there on frames count only as long as a connection
    /// has the database open and counts them: a recovery after a crash would not. None where all are proven.
    #[must_use]
    pub fn unproven(&self) -> Option<u64> {
        self.counted.and(self.scan()).map(|scan| scan.valid_frames() + 1)
    }

    /// Sound frames of the WAL from its start on, those behind the last commit included.
    #[must_use]
    pub fn valid_frames(&self) -> u64 {
        self.scan().map_or(0, |scan| scan.valid_frames()).max(self.frames())
    }

    /// Transactions of the committed part of the WAL.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.scan().map_or(0, |scan| scan.transactions())
    }

    /// Pages of the database after the last commit.
    #[must_use]
    pub fn db_pages(&self) -> u64 {
        match (self.frames(), self.base_bytes(), self.page_size) {
            (0, Some(bytes), Some(page_size)) => bytes / u64::from(page_size),
            _ => self.scan().map_or(0, |scan| self.counted.map_or(scan.db_pages(), |counted| counted.db_pages)).into(),
        }
    }

    /// Bytes of the committed part of the WAL, its header included; 0 when nothing of it counts.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.scan().map_or(0, |scan| scan.end().header.byte_after(self.frames()))
    }

    /// Reads the committed part of the WAL into `buf` from `at`; fewer bytes than asked for only at its end.
    ///
    /// # Errors
    /// [`DatabaseError::Io`].
    pub fn read_wal(&self, at: u64, buf: &mut [u8]) -> Result<usize, DatabaseError> {
        match &self.wal {
            Some(wal) => wal.ask(|file| read_at(file, up_to(self.wal_bytes(), at, buf), at)),
            None => Ok(0),
        }
    }

    /// What stands behind the committed part of the WAL.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// How many of the WAL's first frames may be in the base already: a checkpoint folds frames in and leaves them in the WAL.
    /// Base and WAL give the state at any commit from there on, and at none before. 0: the base is the state before the WAL.
    ///
    /// It is found by comparing the pages, so it holds after a crash too, and takes a read of the committed part. A page that
    /// came back to what it was in the base makes it too high, never too low.
    ///
    /// # Errors
    /// [`DatabaseError::Io`].
    pub fn folded(&self) -> Result<u64, DatabaseError> {
        let (Some(header), Some(_)) = (self.header(), &self.base) else {
            return Ok(0);
        };
        if self.counted.is_some() {
            // Frames that are not proven cannot be passed on one by one.
            return Ok(self.frames());
        }
        let (page_size, frame_len) = (u64::from(header.page_size), header.frame_len() as usize);
        let whole = self.base_bytes().unwrap_or(0) / page_size;
        let mut page = vec![0; header.page_size as usize];
        let mut block = vec![0; (READ_BLOCK / frame_len).max(1) * frame_len];
        let (mut met, mut folded, mut number) = (HashSet::new(), 0, 0);
        while number < self.frames() {
            let read = self.read_wal(header.byte_after(number), &mut block)?;
            if read < frame_len {
                break;
            }
            for frame in block[..read].chunks_exact(frame_len) {
                number += 1;
                let Some((head, content)) = frame.split_first_chunk::<FRAME_HEADER_LEN>() else { break };
                let claim = FrameHeader::decode(head).page;
                // Most frames of a database that grows are of pages after the end of its file.
                if !(1..=whole).contains(&u64::from(claim)) || met.contains(&claim) {
                    continue;
                }
                let in_base = self.read_base(u64::from(claim - 1) * page_size, &mut page)?;
                if page[..in_base] == *content {
                    met.insert(claim);
                    folded = number;
                }
            }
        }
        Ok(folded)
    }
}

impl HeldDatabase for Snapshot {
    fn path(&self) -> &Path {
        &self.places.database
    }

    fn wal_header(&self) -> Result<Option<WalHeader>, DatabaseError> {
        Ok(self.header().filter(|_| self.frames() > 0))
    }

    fn wal_frames(&self) -> u64 {
        self.frames()
    }

    fn counted(&self) -> Option<WalPosition> {
        self.counted.map(|counted| counted.position)
    }

    fn give_way(&self) -> Result<(), DatabaseError> {
        let Some((database, _)) = self.base.as_ref().filter(|_| !self.insists.load(Ordering::Relaxed)) else {
            return Ok(());
        };
        let waits = database.ask(lock::is_pending)? && {
            let since = *self.waited_for.get_or_init(Instant::now);
            since.elapsed() > WRITER_WAITS_MAX
        };
        if waits { Err(DatabaseError::Writing { path: self.places.database.clone() }) } else { Ok(()) }
    }

    fn counted_page(&self, frame: u64) -> Result<u32, DatabaseError> {
        self.index.as_ref().map_or(Ok(0), |index| page_of(index, frame))
    }

    fn bytes_of_page(&self) -> Option<u32> {
        self.page_size()
    }

    fn page_count(&self) -> Result<u32, DatabaseError> {
        Ok(u32::try_from(self.db_pages()).unwrap_or(u32::MAX))
    }

    fn read_frames(&self, at: u64, buf: &mut [u8]) -> Result<usize, DatabaseError> {
        self.read_wal(at, buf)
    }

    fn read_database(&self, at: u64, buf: &mut [u8]) -> Result<usize, DatabaseError> {
        self.read_base(at, buf)
    }
}

/// The part of `buf` for what a file of `bytes` bytes holds from `at` on.
fn up_to(bytes: u64, at: u64, buf: &mut [u8]) -> &mut [u8] {
    let left = usize::try_from(bytes.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
    &mut buf[..left]
}

/// What keeps a database file from being read.
enum InTheWay {
    Exclusive,
    Writing,
    HotJournal,
}

/// Takes SHARED on a database when no rollback-mode transaction is in it.
pub(super) fn hold(places: &Places, database: &Opened, deadline: Instant) -> Result<(), DatabaseError> {
    let (mut in_the_way, mut hot) = (InTheWay::Exclusive, 0);
    let held = lock::before(deadline, || {
        if !database.ask(lock::share_database)? {
            in_the_way = InTheWay::Exclusive;
            return Ok(None);
        }
        let journal = holds_a_transaction(places)?;
        // In this order: a journal without a writer was left behind, unless its writer has just rolled back.
        match (database.ask(lock::is_reserved)?, journal) {
            (false, false) => return Ok(Some(true)),
            (false, true) => (in_the_way, hot) = (InTheWay::HotJournal, hot + 1),
            (true, _) => (in_the_way, hot) = (InTheWay::Writing, 0),
        }
        // A writer could not commit while we hold it.
        database.ask(lock::release_database)?;
        Ok((hot > 1).then_some(false))
    })?;
    let path = places.database.clone();
    match (held, in_the_way) {
        (Some(true), _) => Ok(()),
        (_, InTheWay::Exclusive) => Err(DatabaseError::Exclusive { path }),
        (_, InTheWay::Writing) => Err(DatabaseError::Writing { path }),
        (_, InTheWay::HotJournal) => Err(DatabaseError::HotJournal { path: places.journal.clone() }),
    }
}

/// Whether there is a rollback journal that is not void: one that is done is deleted, cut to nothing, or starts with a zero.
fn holds_a_transaction(places: &Places) -> Result<bool, DatabaseError> {
    let mut first = [0];
    match Opened::find(&places.journal)? {
        Some(journal) => Ok(journal.ask(|file| read_at(file, &mut first, 0))? == 1 && first != [0]),
        None => Ok(false),
    }
}

/// Reads a database by way of a snapshot, and again from the start when that changed meanwhile: a bounded number of times.
///
/// # Errors
/// See [`DatabaseError`]; and that of `read`, which ends it.
pub fn take<T, E: From<DatabaseError>>(path: &Path, mut read: impl FnMut(&Snapshot) -> Result<T, E>) -> Result<T, E> {
    for _ in 0..SNAPSHOT_ROUNDS {
        let snapshot = Snapshot::open(path)?;
        let taken = read(&snapshot);
        match snapshot.check() {
            Err(DatabaseError::Changed { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => return taken,
        }
    }
    Err(DatabaseError::Unsettled { path: path.to_owned(), rounds: SNAPSHOT_ROUNDS }.into())
}
