//! A read replica: a database whose WAL we write with the frames of a server. Owns: when they count, who may have the
//! database open meanwhile, and when a generation is folded into the database. Knows no server.
//!
//! What a crash leaves is told by the files alone. Frames are written behind the last commit frame, synced when a commit
//! frame is among them, and only then counted in the metadata: so the WAL holds at least what the metadata says, and more
//! is compared with what comes. At the end of a generation the order is: pages into the database, synced; metadata to the
//! next generation; WAL emptied. A WAL of a former generation that is still there is known by its sequence number, which
//! is the generation's, less one, and by every page of it being in the database.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SyncError;
use super::local::{LocalLog, Look, check_database};
use super::metadata::{Known, MetadataFile};
use super::{FRAME_LEN, Position};
use crate::format::database;
use crate::format::wal::Chain;
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::repo::{FsRepo, Repo, open_regular, opened};
use crate::sqlite::DatabaseError;
use crate::sqlite::image::Image;
use crate::sqlite::lock::alone as lock;
use crate::sqlite::names::{SHM, WAL, beside};
use crate::sqlite::wal_append::{WalAppender, empty, new_header};
use crate::sqlite::wal_frames::frames_of;

/// What became of frames handed to a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Frames written; the others were held already.
    pub frames: u64,
    /// Transactions among them that are now complete and synced.
    pub commits: u64,
}

/// A replica that nobody else has open. After an error of the disk it does nothing any more: open it again.
#[derive(Debug)]
pub struct Replica {
    path: PathBuf,
    dir: Arc<dyn Repo>,
    wal_name: String,
    pub(super) database: Arc<File>,
    pub(super) log: LocalLog,
    info: MetadataFile,
    /// The WAL opened for writing, and cut to what counts.
    wal: Option<WalAppender>,
    /// Frames of an unfinished transaction that were written, by their checksums.
    open: Vec<Chain>,
    position: Position,
    stored: Option<Position>,
    /// The next frame wanted.
    next: u32,
    alone: bool,
    failed: bool,
}

impl Drop for Replica {
    fn drop(&mut self) {
        lock::release(&self.database);
    }
}

impl Replica {
    /// Opens the replica at `path`, and locks others out of it; `None` when there is no such file. With it comes what its
    /// metadata says. The replica stands at the start of the first generation until told [otherwise](Replica::resume).
    ///
    /// # Errors
    /// [`DatabaseError::Busy`] when another process has it open; see [`SyncError`].
    pub fn open(path: &Path) -> Result<Option<(Replica, Known)>, SyncError> {
        let database = match open_regular(path, OpenOptions::new().read(true).write(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| DatabaseError::io("opening", path, error))?,
        };
        let mut replica = Replica::of(path, Arc::new(database))?;
        check_database(path, &replica.database)?;
        replica.info.clean().map_err(|error| DatabaseError::io("cleaning up beside", path, error))?;
        let known = replica.info.load();
        if let Ok(position) = &known {
            replica.stored = Some(*position);
            replica.resume(*position);
            replica.drop_leftover()?;
        }
        Ok(Some((replica, known)))
    }

    /// The replica in a file that is open, and has that name.
    pub(super) fn of(path: &Path, database: Arc<File>) -> Result<Replica, SyncError> {
        let (dir, name) = place(path)?;
        let dir: Arc<dyn Repo> =
            Arc::new(FsRepo::open(&dir).map_err(|error| DatabaseError::io("opening", &dir, error))?);
        let mut replica = Replica {
            path: path.to_owned(),
            wal_name: format!("{name}{WAL}"),
            database,
            log: LocalLog::open(path)?,
            info: MetadataFile::new(dir.clone(), format!("{name}-info")),
            dir,
            wal: None,
            open: Vec::new(),
            position: Position { generation: 1, frame: 0 },
            stored: None,
            next: 1,
            alone: false,
            failed: false,
        };
        replica.lock()?;
        Ok(replica)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How far it is known to hold what the server does.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Frames it holds, up to the last commit frame.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.log.frames()
    }

    /// The next frame it wants.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.next
    }

    /// From where to go on.
    pub fn resume(&mut self, position: Position) {
        self.position = position;
        self.restart();
    }

    /// Forgets the beginning of a transaction whose end did not come.
    pub fn restart(&mut self) {
        self.next = self.position.frame.saturating_add(1);
        self.open.clear();
        if let Some(wal) = &mut self.wal {
            wal.forget_open();
        }
    }

    /// Locks others out.
    ///
    /// # Errors
    /// [`DatabaseError::Busy`]; [`DatabaseError::Changed`] when somebody changed the files since.
    pub fn lock(&mut self) -> Result<(), SyncError> {
        if self.failed {
            let error = io::Error::other("it failed before; what is on the disk is not known");
            return Err(self.io("writing", error).into());
        }
        if self.alone {
            return Ok(());
        }
        let busy = || DatabaseError::Busy { path: self.path.clone(), pid: lock::holder(&self.database) };
        if !lock::take(&self.database).map_err(|error| self.io("locking", error))? {
            return Err(busy().into());
        }
        // Whoever made us wait may have put another file in its place.
        let same = |named: fs::Metadata, open: fs::Metadata| (named.dev(), named.ino()) == (open.dev(), open.ino());
        let named = fs::metadata(&self.path).map_err(|error| self.io("looking at", error))?;
        let open = self.database.metadata().map_err(|error| self.io("looking at", error))?;
        if !same(named, open) || self.log.look()? == Look::Restarted {
            return Err(DatabaseError::restarted(&self.path).into());
        }
        self.remove_shm()?;
        self.wal = None;
        self.alone = true;
        Ok(())
    }

    /// Lets readers in until the next write. None of them will checkpoint the WAL away when it closes the replica.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn unlock(&mut self) -> Result<(), DatabaseError> {
        self.alone = false;
        lock::stay(&self.database).map(drop).map_err(|error| self.io("unlocking", error))
    }

    /// An index of the WAL that a crash left would be one of another WAL.
    fn remove_shm(&self) -> Result<(), DatabaseError> {
        let path = beside(&self.path, SHM);
        let shm = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(|error| DatabaseError::io("opening", &path, error))?,
        };
        if !lock::take_index(&shm).map_err(|error| DatabaseError::io("locking", &path, error))? {
            return Err(DatabaseError::Busy { path: self.path.clone(), pid: None });
        }
        fs::remove_file(&path).map_err(|error| DatabaseError::io("removing", &path, error))
    }

    /// Takes frames as they came from the server, the first of which must be the [next](Replica::next) one. After Ok all
    /// transactions among them that are complete survive power loss and are counted in the metadata; frames behind them
    /// wait for the rest of theirs.
    ///
    /// # Errors
    /// [`SyncError::Fork`] at a frame that is held with other content; nothing was changed then.
    pub fn apply(&mut self, frames: &[u8]) -> Result<Applied, SyncError> {
        self.lock()?;
        let (start, count) = (self.next, (frames.len() / FRAME_LEN) as u32);
        let end = start.checked_add(count).ok_or_else(|| SyncError::Full { path: self.path.clone() })?;
        let mut numbers = (start..).zip(frames_of(frames, LIBSQL_PAGE_SIZE));
        if let Some((number, (head, _))) = numbers.find(|(_, (head, _))| !head.is_possible()) {
            let reason = format!("frame {number} is of page {} of {}", head.page, head.size);
            let call = "reading frames".into();
            return Err(SyncError::Protocol { call, reason });
        }
        let held = (self.frames() + 1).saturating_sub(start).min(count);
        let (known, fresh) = frames.split_at(held as usize * FRAME_LEN);
        if let Some(frame) = self.log.differs(start, known)? {
            let Position { generation, .. } = self.position;
            return Err(SyncError::Fork { path: self.path.clone(), generation, frame });
        }
        let commits = commit_frames(frames);
        if !fresh.is_empty() {
            let written = self.write(fresh, commits.iter().any(|commit| *commit >= held as usize));
            self.failed |= written.is_err();
            written?;
        }
        self.next = end;
        if let Some(last) = commits.last() {
            self.position.frame = start + *last as u32;
            self.store()?;
        }
        let fresh_commits = commits.iter().filter(|commit| **commit >= held as usize).count();
        Ok(Applied { frames: u64::from(count - held), commits: fresh_commits as u64 })
    }

    /// Writes frames after those that are there; syncs when a transaction is complete.
    fn write(&mut self, fresh: &[u8], complete: bool) -> Result<(), SyncError> {
        let wal = self.writer()?;
        let written = wal.append(frames_of(fresh, LIBSQL_PAGE_SIZE));
        let written = if complete { written.and_then(|heads| wal.sync().map(|()| heads)) } else { written };
        for head in written.map_err(|error| self.log.io("writing", error))? {
            self.open.push(head.chain);
            if head.size > 0 {
                self.log.extend(&mut self.open);
            }
        }
        Ok(())
    }

    /// The WAL, with nothing behind what counts.
    fn writer(&mut self) -> Result<&mut WalAppender, SyncError> {
        let wal = match self.wal.take() {
            Some(wal) => wal,
            None if self.frames() == 0 => self.begin_wal()?,
            None => {
                let wal = WalAppender::open(&*self.dir, &self.wal_name, self.frames().into());
                let wal = wal.map_err(|error| self.log.io("opening", error))?;
                if self.log.header() != Some(wal.header()) || self.log.last_chain() != Some(wal.chain()) {
                    return Err(DatabaseError::restarted(&self.path).into());
                }
                wal
            }
        };
        Ok(self.wal.insert(wal))
    }

    fn begin_wal(&mut self) -> Result<WalAppender, SyncError> {
        let header = new_header(LIBSQL_PAGE_SIZE, self.position.generation.saturating_sub(1));
        let make = || -> io::Result<WalAppender> {
            // Beside a database without any page SQLite would throw the WAL away.
            if self.database.metadata()?.len() == 0 {
                self.database.write_all_at(&database::empty(LIBSQL_PAGE_SIZE), 0)?;
                self.database.sync_all()?;
            }
            WalAppender::create(&*self.dir, &self.wal_name, header)
        };
        let wal = make().map_err(|error| self.log.io("making", error))?;
        self.log.look()?;
        Ok(wal)
    }

    /// Writes the position to the metadata file, if it says something else.
    ///
    /// # Errors
    /// When it cannot be written; the file is as it was, or new.
    pub fn store(&mut self) -> Result<(), DatabaseError> {
        if self.stored != Some(self.position) {
            self.info.store(self.position).map_err(|error| self.io("writing the -info file of", error))?;
            self.stored = Some(self.position);
        }
        Ok(())
    }

    /// Ends a generation: puts its frames into the database and goes on with the first frame of the next.
    ///
    /// # Errors
    /// [`SyncError::Ahead`] when it holds frames that did not come from the server; nothing was changed then.
    pub fn fold(&mut self) -> Result<(), SyncError> {
        self.lock()?;
        let Position { generation, frame: server } = self.position;
        if self.frames() > server {
            return Err(SyncError::Ahead { path: self.path.clone(), generation, local: self.frames(), server });
        }
        let following = generation.checked_add(1).ok_or_else(|| SyncError::Full { path: self.path.clone() })?;
        let folded = self.image().and_then(|image| {
            let file = opened(self.database.try_clone()?);
            image.fold_into(&file)
        });
        self.failed |= folded.is_err();
        folded.map_err(|error| self.io("folding the WAL into", error))?;
        self.resume(Position { generation: following, frame: 0 });
        self.store()?;
        self.empty_wal()
    }

    /// The database as of the last commit.
    fn image(&self) -> io::Result<Image> {
        let image = Image::of(Arc::new(opened(self.database.try_clone()?)), LIBSQL_PAGE_SIZE)?;
        match self.frames() {
            0 => Ok(image),
            frames => image.over(self.dir.open(&self.wal_name)?, frames.into()),
        }
    }

    /// Finishes a fold that a crash cut off after the metadata was written.
    fn drop_leftover(&mut self) -> Result<(), SyncError> {
        let Position { generation, frame } = self.position;
        let former = self.log.header().is_some_and(|header| header.sequence < generation - 1);
        if frame > 0 || !former || self.frames() == 0 {
            return Ok(());
        }
        let is_folded = self.image().and_then(|image| image.is_folded());
        if !is_folded.map_err(|error| self.io("reading", error))? {
            return Ok(());
        }
        log::info!("{}: its WAL is of a former generation and in the database: emptying it", self.path.display());
        self.empty_wal()
    }

    fn empty_wal(&mut self) -> Result<(), SyncError> {
        self.wal = None;
        self.open.clear();
        empty(&*self.dir, &self.wal_name).map_err(|error| self.log.io("emptying", error))?;
        self.log.look().map(drop)
    }

    fn io(&self, doing: &str, error: io::Error) -> DatabaseError {
        DatabaseError::io(doing, &self.path, error)
    }
}

/// Which of these frames end transactions.
fn commit_frames(frames: &[u8]) -> Vec<usize> {
    let heads = frames_of(frames, LIBSQL_PAGE_SIZE).enumerate();
    heads.filter_map(|(at, (head, _))| (head.size > 0).then_some(at)).collect()
}

/// The directory a file is in, and its name there.
pub(super) fn place(path: &Path) -> Result<(PathBuf, String), DatabaseError> {
    let nameless =
        || DatabaseError::NotADatabase { path: path.to_owned(), reason: "it has no name in plain UTF-8".into() };
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(nameless)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((dir.to_owned(), name.to_owned()))
}

/// After Ok, what was made, renamed or removed beside `path` survives power loss.
pub(super) fn sync_dir_of(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
