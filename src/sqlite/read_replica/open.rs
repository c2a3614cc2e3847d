//! How a [`ReadReplicaFile`] is made and opened: the files, their locks, and the wal-index after a crash.

use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use uuid::Uuid;

use super::super::image::Newest;
use super::super::lock::beside_users::{before, share_database};
use super::super::lock::hand_over_hand::share_in_use;
use super::super::lock::one_writer::{self, Exclusive, plain};
use super::super::names::{JOURNAL, SHM, WAL, beside};
use super::super::wal_index::{IndexHeader, MARKS, UNUSED, WalIndex};
use super::super::wal_scan::{WalScan, read_header};
use super::checkpoint::WAL_BYTES_DUE;
use super::{DatabaseError, IndexWriter, ReadReplicaFile, Unpublished};
use crate::format::database::{self, DatabaseHeader, VERSIONS, WAL_VERSIONS};
use crate::format::wal::{Chain, FrameHeader, WalHeader};
use crate::limits::{LOCK_PATIENCE, SNAPSHOT_ROUNDS};
use crate::repo::{FsRepo, Repo, RepoFile, give_owner, opened, read_at};

/// The files of a replica, with the locks that it holds as long as it is open.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) path: PathBuf,
    pub(super) dir: Arc<dyn Repo>,
    pub(super) wal_name: String,
    pub(super) database: Arc<dyn RepoFile>,
    pub(super) index: Arc<dyn RepoFile>,
    pub(super) wal: Arc<dyn RepoFile>,
    /// The file that this one took the place of, with SHARED on it.
    pub(super) _former: Option<Arc<dyn RepoFile>>,
}

impl Drop for Files {
    fn drop(&mut self) {
        one_writer::release(&*self.database, &*self.index);
    }
}

impl Files {
    /// The files that have the names are those that are open.
    pub(super) fn check_in_place(&self) -> Result<(), DatabaseError> {
        let named = [
            (&self.database, self.path.clone(), "its file was replaced or removed"),
            (&self.index, beside(&self.path, SHM), "its -shm file was replaced or removed"),
            (&self.wal, beside(&self.path, WAL), "its WAL was replaced or removed"),
        ];
        for (file, path, what) in named {
            if !is_at(&**file, &path).map_err(|error| DatabaseError::io("reading", &path, error))? {
                return Err(DatabaseError::WrittenByOthers { path: self.path.clone(), what });
            }
        }
        Ok(())
    }

    /// Gives the database file a time of modification that no write by another program gives it: its nanoseconds are random,
    /// and theirs those of a clock that ticks some hundred times a second.
    pub(super) fn stamp(&self) -> io::Result<()> {
        stamp(&*self.database)
    }
}

fn stamp(database: &dyn RepoFile) -> io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let random = Uuid::new_v4().into_bytes();
    let nanoseconds = u32::from_be_bytes(std::array::from_fn(|i| random[i])) % 1_000_000_000;
    let last_modification = Timespec { tv_sec: now.as_secs() as _, tv_nsec: nanoseconds as _ };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
    match rustix::fs::futimens(plain(database)?, &Timestamps { last_access, last_modification }) {
        // Of a file of another user. Then time must pass, so that a later write has another time.
        Err(Errno::PERM) => thread::sleep(CLOCK_TICK),
        done => done?,
    }
    Ok(())
}

/// A write has the time of the last tick of a clock before it: more than the longest there is between two of them.
const CLOCK_TICK: Duration = Duration::from_millis(20);

fn is_at(file: &dyn RepoFile, path: &Path) -> io::Result<bool> {
    let open = plain(file)?.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl ReadReplicaFile {
    /// Makes the replica at `path` of a finished database, `draft`, in the same directory, which loses that name. In the
    /// draft the version numbers in bytes 18 and 19 become those of WAL mode; nothing else does. It survives power loss then.
    ///
    /// # Errors
    /// `AlreadyExists` when there is a file at `path`. A `-wal`, `-shm` or `-journal` without a database belongs to none and is
    /// removed.
    pub fn create(path: &Path, draft: &Path) -> Result<ReadReplicaFile, DatabaseError> {
        let (dir, path) = place(path)?;
        ReadReplicaFile::create_through(&dir, &path, &name_of(draft)?)
    }

    /// The same in a directory: `path` is the path of the replica in it, `draft` a name.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_through(dir: &Arc<dyn Repo>, path: &Path, draft: &str) -> Result<ReadReplicaFile, DatabaseError> {
        let database = dir.open_write(draft).map_err(|error| DatabaseError::io("making", path, error))?;
        ReadReplicaFile::name_draft(dir, path, draft, database, None)
    }

    /// The same for a draft that is open, with what locks it has.
    pub(crate) fn create_of(path: &Path, draft: &Path, file: fs::File) -> Result<ReadReplicaFile, DatabaseError> {
        let (dir, path) = place(path)?;
        ReadReplicaFile::name_draft(&dir, &path, &name_of(draft)?, Arc::new(opened(file)), None)
    }

    /// The same where there may be a file at `path`, in whose place the draft is put. Connections that have that one open keep
    /// it, with its WAL, and it stays locked as long as this is open: in early versions of SQLite the last connection to close it
    /// would remove the WAL of this one, which has the same name. Where the page size is the same, writing the pages that differ in one
    /// transaction is better: the connections go along then. The caller has set aside what must stay.
    ///
    /// # Errors
    /// As [`create`](Self::create), but for `AlreadyExists`; [`DatabaseError::Exclusive`] when a connection has the file for
    /// itself.
    pub fn replace(path: &Path, draft: &Path) -> Result<ReadReplicaFile, DatabaseError> {
        let (dir, path) = place(path)?;
        let open = |name: &str| match dir.open_write(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some).map_err(|error| DatabaseError::io("opening", &path, error)),
        };
        let former = open(&name_of(&path)?)?;
        if let Some(former) = &former {
            let share = || share_database(plain(&**former)?).map(|shared| shared.then_some(()));
            let shared = before(Instant::now() + LOCK_PATIENCE, share);
            if shared.map_err(|error| DatabaseError::io("locking", &path, error))?.is_none() {
                return Err(DatabaseError::Exclusive { path });
            }
        }
        let draft = name_of(draft)?;
        let database =
            open(&draft)?.ok_or_else(|| DatabaseError::io("making", &path, io::ErrorKind::NotFound.into()))?;
        ReadReplicaFile::name_draft(&dir, &path, &draft, database, former)
    }

    fn name_draft(
        dir: &Arc<dyn Repo>,
        path: &Path,
        draft: &str,
        database: Arc<dyn RepoFile>,
        former: Option<Arc<dyn RepoFile>>,
    ) -> Result<ReadReplicaFile, DatabaseError> {
        let io = |error| DatabaseError::io("making", path, error);
        let name = name_of(path)?;
        if former.is_none() && fs::symlink_metadata(path).is_ok() {
            return Err(io(io::ErrorKind::AlreadyExists.into()));
        }
        let header = header_of(&*database, path)?;
        let bytes = database.bytes().map_err(io)?;
        DatabaseHeader::of_file(&header, bytes).map_err(|reason| DatabaseError::not_one(path, &reason))?;
        let make = || -> io::Result<()> {
            if header[VERSIONS] != WAL_VERSIONS {
                database.write_at(&mut [IoSlice::new(&WAL_VERSIONS)], VERSIONS.start as u64)?;
            }
            stamp(&*database)?;
            database.sync()?;
            // Before the database has its name: a WAL of another would be taken for its own.
            for ending in [JOURNAL, WAL, SHM] {
                match dir.remove(&format!("{name}{ending}")) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            dir.sync_dir()?;
            dir.rename(draft, &name)?;
            dir.sync_dir()
        };
        make().map_err(io)?;
        let replica = ReadReplicaFile::of(dir, path, database, former)?;
        // It had its name before it was open.
        if replica.least < bytes {
            return Err(replica.others("its file was cut"));
        }
        Ok(replica)
    }

    /// Opens the replica at `path`; `None` when there is no file. What a crash left is put in order as SQLite would: after
    /// the last whole transaction of its WAL nothing counts.
    ///
    /// # Errors
    /// [`DatabaseError::WrittenByOthers`] when it is not in WAL mode any more; [`DatabaseError::Changed`] when its WAL is
    /// damaged; [`DatabaseError::Busy`] when another process of this program writes it, [`DatabaseError::Exclusive`] when a
    /// connection has it for itself.
    pub fn open(path: &Path) -> Result<Option<ReadReplicaFile>, DatabaseError> {
        let (dir, path) = place(path)?;
        ReadReplicaFile::open_through(&dir, &path)
    }

    /// The same in a directory: `path` is the path of the replica in it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_through(dir: &Arc<dyn Repo>, path: &Path) -> Result<Option<ReadReplicaFile>, DatabaseError> {
        match dir.open_write(&name_of(path)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DatabaseError::io("opening", path, error)),
            Ok(database) => ReadReplicaFile::of(dir, path, database, None).map(Some),
        }
    }

    /// Of a database file that is open, and has that name.
    fn of(
        dir: &Arc<dyn Repo>,
        path: &Path,
        database: Arc<dyn RepoFile>,
        former: Option<Arc<dyn RepoFile>>,
    ) -> Result<ReadReplicaFile, DatabaseError> {
        let io = |error| DatabaseError::io("opening", path, error);
        let name = name_of(path)?;
        // Now its lock is held only as long as `files` is there.
        if !one_writer::own(&*database).map_err(io)? {
            return Err(DatabaseError::Busy { path: path.to_owned(), pid: None });
        }
        let share = || share_database(plain(&*database)?).map(|shared| shared.then_some(()));
        let deadline = Instant::now() + LOCK_PATIENCE;
        if before(deadline, share).map_err(io)?.is_none() {
            return Err(DatabaseError::Exclusive { path: path.to_owned() });
        }
        let header = header_of(&*database, path)?;
        let decoded = DatabaseHeader::decode(&header).map_err(|reason| DatabaseError::not_one(path, &reason))?;
        if !decoded.is_wal() {
            return Err(DatabaseError::WrittenByOthers {
                path: path.to_owned(),
                what: "it is not in WAL mode any more",
            });
        }
        let index = open_or_create(&**dir, &format!("{name}{SHM}"), &*database).map_err(io)?;
        let wal_name = format!("{name}{WAL}");
        let wal = open_or_create(&**dir, &wal_name, &*database).map_err(io)?;
        let files = Files { path: path.to_owned(), dir: dir.clone(), wal_name, database, index, wal, _former: former };
        let unused = one_writer::take_unused_index(&files.index).map_err(io)?;
        files.check_in_place()?;
        let page_size = decoded.page_size;
        let found = match unused {
            Some(_all) => {
                // No connection has it mapped: each would hold DMS.
                files.index.truncate(0).map_err(io)?;
                share_in_use(plain(&*files.index).map_err(io)?).map_err(io)?;
                Found::in_wal(&files, page_size, None)?.rebuild(&files, page_size)?
            }
            None => {
                let share = || share_in_use(plain(&*files.index)?).map(|shared| shared.then_some(()));
                if before(deadline, share).map_err(io)?.is_none() {
                    return Err(DatabaseError::Checkpoint { path: path.to_owned() });
                }
                Found::beside_others(&files, page_size)?
            }
        };
        let Found { index, newest, sequence, .. } = found;
        let (bytes, db_pages) = (files.database.bytes().map_err(io)?, index.header().db_pages);
        let in_state = if db_pages > 0 { u64::from(db_pages) * u64::from(page_size) } else { u64::MAX };
        Ok(ReadReplicaFile {
            write: None,
            page_size,
            index,
            wal: None,
            sequence,
            newest,
            unpublished: Unpublished::default(),
            unsynced: true,
            copied: 0,
            least: bytes.min(in_state),
            checkpoint_at: WAL_BYTES_DUE,
            keeps_frames: false,
            linked: None,
            failed: false,
            files,
        })
    }
}

/// What an opened replica goes on from.
struct Found {
    index: IndexWriter,
    pages: Vec<u32>,
    newest: Newest<u64>,
    sequence: u32,
}

impl Found {
    /// Where others have the database open: what its wal-index says, or, where that makes no sense, what the WAL holds.
    fn beside_others(files: &Files, page_size: u32) -> Result<Found, DatabaseError> {
        let read = || WalIndex::read(plain(&*files.index)?);
        let io = |error| DatabaseError::io("reading the -shm file of", &files.path, error);
        for _ in 0..SNAPSHOT_ROUNDS {
            // One that is being written is whole a moment later.
            let settled = before(Instant::now() + Duration::from_millis(100), read).map_err(io)?;
            let Some(now) = settled else {
                let lock = |bytes| {
                    let locked = before(Instant::now() + LOCK_PATIENCE, || Exclusive::lock(&files.index, bytes));
                    let busy = || DatabaseError::WriteLocked { path: files.path.clone() };
                    locked.map_err(io)?.ok_or_else(busy)
                };
                let (_write, _checkpoint) = (lock(one_writer::WRITE)?, lock(one_writer::CHECKPOINT)?);
                if read().map_err(io)?.is_some() {
                    continue;
                }
                return Found::in_wal(files, page_size, None)?.rebuild(files, page_size);
            };
            let found = Found::in_wal(files, page_size, Some(&now.header()));
            // Another connection may have restarted the WAL while it was read.
            let after = read().map_err(io)?;
            if after.is_some_and(|after| after.header() == now.header()) {
                return found;
            }
        }
        Err(DatabaseError::Unsettled { path: files.path.clone(), rounds: SNAPSHOT_ROUNDS })
    }

    /// The committed part of the WAL, verified: of as many frames as a header says, or else of all there are.
    fn in_wal(files: &Files, page_size: u32, header: Option<&IndexHeader>) -> Result<Found, DatabaseError> {
        let (mut scanned, mut sequence) = (None, 0);
        if header.is_none_or(|header| header.frames > 0) {
            let io = |error| DatabaseError::io("reading the WAL of", &files.path, error);
            let wal = plain(&*files.wal).map_err(io)?;
            if let Some(Ok(start)) = read_header(wal).map_err(io)? {
                sequence = start.sequence;
                scanned = Some(scan(wal, start, header.map(|header| header.frames)).map_err(io)?);
            }
        }
        let (scan, heads) = scanned.filter(|(scan, _)| scan.frames() > 0).unzip();
        let heads: Vec<(u32, u32)> = heads.unwrap_or_default();
        let in_wal = scan.map(|scan: WalScan| scan.end());
        if let Some(start) = in_wal.filter(|start| start.header.page_size != page_size) {
            let (path, wal) = (files.path.clone(), start.header.page_size);
            return Err(DatabaseError::PageSize { path, database: page_size, wal });
        }
        let found = match in_wal {
            Some(start) => {
                let WalHeader { big_endian, salts, .. } = start.header;
                let (frames, db_pages) = scan.map_or((0, 0), |scan| (scan.frames(), scan.db_pages()));
                IndexHeader { change: random(), big_endian, page_size, salts, frames, db_pages, chain: start.chain }
            }
            None => {
                let (salts, chain) = ([random(), random()], Chain::default());
                IndexHeader { change: random(), big_endian: false, page_size, salts, frames: 0, db_pages: 0, chain }
            }
        };
        if let Some(header) = header {
            let same = |header: &IndexHeader| (header.salts, header.frames, header.chain);
            if header.frames > 0 && same(header) != same(&found) {
                let what = "its WAL does not hold the frames that the -shm file counts";
                return Err(DatabaseError::Changed { path: files.path.clone(), what });
            }
        }
        let mut newest = Newest::default();
        for (frame, (page, size)) in (1..).zip(&heads) {
            newest.add(*page, *size, frame);
        }
        let pages = heads.into_iter().map(|(page, _)| page).collect();
        let index = IndexWriter::new(files.index.clone(), header.copied().unwrap_or(found));
        Ok(Found { index, pages, newest, sequence })
    }

    /// With WRITE and CKPT: makes the wal-index of it.
    fn rebuild(mut self, files: &Files, page_size: u32) -> Result<Found, DatabaseError> {
        let header = IndexHeader { page_size, ..*self.index.header() };
        let rebuilt = (|| {
            self.index.set_copied(0)?;
            self.index.set_attempted(header.frames)?;
            self.index.set_mark(0, 0)?;
            for slot in 1..MARKS {
                // One that is held is that of a reader that goes on.
                if let Some(_free) = Exclusive::lock(&files.index, one_writer::read_mark(slot))? {
                    self.index.set_mark(slot, if slot == 1 { header.frames as u32 } else { UNUSED })?;
                }
            }
            self.index.rebuild(header, &self.pages)
        })();
        rebuilt.map_err(|error| DatabaseError::io("writing the -shm file of", &files.path, error))?;
        Ok(self)
    }
}

/// Scans a WAL, up to a frame or to its end, and returns the page and the commit size of each frame that counts.
fn scan(wal: &fs::File, header: WalHeader, last: Option<u64>) -> io::Result<(WalScan, Vec<(u32, u32)>)> {
    let (mut scan, mut heads) = (WalScan::new(header), Vec::new());
    let room = scan.room(wal.metadata()?.len()).min(u64::from(u32::MAX));
    scan.advance(wal, last.unwrap_or(room).min(room), |FrameHeader { page, size, .. }, _| {
        heads.push((*page, *size));
        Ok(())
    })?;
    heads.truncate(usize::try_from(scan.frames()).unwrap_or(usize::MAX));
    Ok((scan, heads))
}

fn random() -> u32 {
    let random = Uuid::new_v4().into_bytes();
    u32::from_be_bytes(std::array::from_fn(|i| random[i]))
}

/// The header of a database file, or zeros after its end.
fn header_of(database: &dyn RepoFile, path: &Path) -> Result<[u8; database::HEADER_LEN], DatabaseError> {
    let mut header = [0; database::HEADER_LEN];
    let read = plain(database).and_then(|file| read_at(file, &mut header, 0));
    read.map_err(|error| DatabaseError::io("reading", path, error))?;
    Ok(header)
}

/// A file beside the database, with the owner and the permissions of the database.
fn open_or_create(dir: &dyn Repo, name: &str, database: &dyn RepoFile) -> io::Result<Arc<dyn RepoFile>> {
    let owned = |file: Arc<dyn RepoFile>| {
        give_owner(plain(&*file)?, &plain(database)?.metadata()?, Path::new(name))?;
        Ok(file)
    };
    match dir.open_write(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // The database may have been given to another user since.
        file => return owned(file?),
    }
    let file = match dir.create(name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return owned(dir.open_write(name)?),
        file => owned(file?)?,
    };
    dir.sync_dir()?;
    Ok(file)
}

/// The directory of a replica, and its path: SQLite follows a link to a database before it looks for the other files.
fn place(path: &Path) -> Result<(Arc<dyn Repo>, PathBuf), DatabaseError> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let repo = FsRepo::open(dir).map_err(|error| DatabaseError::io("opening", dir, error))?;
    Ok((Arc::new(repo), path))
}

fn name_of(path: &Path) -> Result<String, DatabaseError> {
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let reason = || "it has no name in plain UTF-8".to_owned();
    name.ok_or_else(|| DatabaseError::NotADatabase { path: path.to_owned(), reason: reason() })
}
