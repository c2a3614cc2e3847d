//! A read replica: a database whose WAL we write with the frames of a server, while others read it. Owns: when they count, and
//! when a generation is folded into the database. Knows no server.
//!
//! Frame n of the generation is frame n of the WAL, which is neither restarted nor, by us, copied before the generation ends. Where
//! another program put the WAL into the database file, which the sum of the pages shows, frames count on in the next one.
//! The files alone say what a crash left. Frames are written after the last commit frame, synced when a commit frame is
//! among them, published to readers, and only then counted in the metadata: so the WAL holds at least what the metadata says,
//! and more is compared with what comes. At the end of a generation the order is: pages into the database, synced; metadata
//! to the next generation; WAL restarted. The first two wait for readers that use the database file as it was, the last for
//! those that use the WAL; for a read that takes longer than [`READERS_PATIENCE`] the caller tries again. A WAL of a former
//! generation that is still there is known by its sequence number, which is the generation's, less one, and by every page of it
//! being in the database.

mod generation;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::continuity::{self, Origin};
use super::error::SyncError;
use super::local::{LocalLog, Look, check_database};
use super::metadata::{INFO, Known, MetadataFile, Unusable};
use super::pull_mark::{self, KeyedSum, PullMark};
use super::push_mark::{PushMark, digest_of};
use super::replica_sum::ReplicaSum;
use super::{FRAME_LEN, PAGE_LEN, Position, base};
use crate::format::database::{self, VERSIONS, WAL_VERSIONS};
use crate::format::wal::WalStart;
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::repo::{FsRepo, Repo, open_regular};
use crate::sqlite::DatabaseError;
use crate::sqlite::lock::alone as lock;
use crate::sqlite::names::{WAL, beside};
use crate::sqlite::page_sums::new_key;
use crate::sqlite::read_replica::{ReadReplicaFile, StateMark, Touched};
use crate::sqlite::wal_append::new_header;
use crate::sqlite::wal_frames::frames_of;

/// How long the end of a generation waits for readers. Most reads take less.
const READERS_PATIENCE: Duration = Duration::from_secs(1);

/// What became of frames handed to a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Frames written; the others were held already.
    pub frames: u64,
    /// Transactions among them that are now complete and synced.
    pub commits: u64,
}

/// What became of a replica while it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// It is as it was, as far as that shows.
    Kept,
    /// It has the same pages, but another program put its WAL into the database file.
    Checkpointed,
    /// Another program wrote to it.
    Written,
    /// Its WAL is gone, and what its pages were is not known.
    Lost,
}

/// A replica that only we write. After an error of the disk it does nothing any more: open it again.
#[derive(Debug)]
pub struct Replica {
    path: PathBuf,
    dir: Arc<dyn Repo>,
    wal_name: String,
    pub(super) file: ReadReplicaFile,
    pub(super) log: LocalLog,
    info: MetadataFile,
    position: Position,
    stored: Option<(Position, Option<Origin>)>,
    /// The log it is of, where the server says so.
    pub(super) origin: Option<Origin>,
    /// The next frame wanted.
    next: u32,
    /// The WAL is of a former generation, and all of it in the database.
    leftover: bool,
    /// Frames of the generation that come before those of the WAL, and are in the database.
    start: u32,
    /// The digest of the last frame that is counted; empty where it is not known.
    last: String,
    /// The sum of the pages as of that frame, where it is known.
    pub(super) sum: Option<ReplicaSum>,
    /// What the metadata say, where only the pages show whether another program wrote.
    doubt: Option<PullMark>,
    /// What the metadata say of the files.
    stored_files: Option<StateMark>,
    /// What its metadata said of a push from here.
    pushed: Option<(Position, PushMark)>,
}

impl Replica {
    /// Opens the replica at `path`; `None` when there is no such file. With it comes what its metadata says. The replica is at
    /// the start of the first generation until [`resume`](Replica::resume) says otherwise.
    ///
    /// # Errors
    /// [`DatabaseError::Busy`] when another process of this program writes it, [`DatabaseError::Linked`] when it has another name;
    /// see [`SyncError`].
    pub fn open(path: &Path) -> Result<Option<(Replica, Known)>, SyncError> {
        has_one_name(path)?;
        if !make_ready(path)? {
            return Ok(None);
        }
        let Some(file) = ReadReplicaFile::open(path)? else { return Ok(None) };
        let mut replica = Replica::of(path, file)?;
        replica.info.clean().map_err(|error| DatabaseError::io("cleaning up beside", path, error))?;
        let known = replica.info.load();
        let pushed = replica.info.pushed().map_err(|error| replica.io("reading the -info file of", error))?;
        replica.pushed = pushed.ok().flatten();
        if let Ok(position) = &known {
            replica.origin = replica.info.content().and_then(|content| continuity::decode(&content));
            replica.stored = Some((*position, replica.origin.clone()));
            replica.resume(*position);
            replica.find_leftover()?;
            replica.take_mark()?;
        }
        Ok(Some((replica, known)))
    }

    /// The replica in a file that is open, and has that name.
    pub(super) fn of(path: &Path, mut file: ReadReplicaFile) -> Result<Replica, SyncError> {
        let (dir, name) = place(path)?;
        let dir: Arc<dyn Repo> =
            Arc::new(FsRepo::open(&dir).map_err(|error| DatabaseError::io("opening", &dir, error))?);
        file.keep_frames(true);
        Ok(Replica {
            path: path.to_owned(),
            wal_name: format!("{name}{WAL}"),
            file,
            log: LocalLog::open(path)?,
            info: MetadataFile::new(dir.clone(), format!("{name}{INFO}")),
            dir,
            position: Position { generation: 1, frame: 0 },
            stored: None,
            origin: None,
            next: 1,
            leftover: false,
            start: 0,
            last: String::new(),
            sum: None,
            doubt: None,
            stored_files: None,
            pushed: None,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first page that is neither that of a base nor in a frame of the generation that starts from it.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(super) fn stranger_to(&self, base: Option<&File>) -> Result<Option<u32>, SyncError> {
        let database = self.database()?;
        Ok(match self.leftover {
            true => base::stranger(&self.path, database, base, &LocalLog::none(&self.path))?,
            false => base::stranger(&self.path, database, base, &self.log)?,
        })
    }

    /// Whether it has the frames of this log, which was read before it was opened, and no page but those and a base's.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(super) fn is_still(&self, base: Option<&File>, log: &LocalLog) -> Result<bool, SyncError> {
        Ok(!self.leftover && self.log.is(log) && self.stranger_to(base)?.is_none() && self.file.check().is_ok())
    }

    /// The database file, without what is in the WAL.
    pub(super) fn database(&self) -> Result<&File, DatabaseError> {
        self.file.database()
    }

    /// How far it is known to hold what the server does.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Frames it holds of this generation, up to the last commit frame.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.start + if self.leftover { 0 } else { self.log.frames() }
    }

    /// Whether frames of the generation are in the database file only.
    pub(super) fn has_frames_before_its_wal(&self) -> bool {
        self.start > 0
    }

    /// Whether it is known what a frame up to the last one is: of those before the WAL only the last one.
    pub(super) fn knows(&self, frame: u32) -> bool {
        frame > self.start || frame == self.position.frame
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
        self.file.forget_open();
        if let Some(sum) = &mut self.sum {
            sum.forget_open();
        }
    }

    /// What the metadata say of the state that they count.
    fn take_mark(&mut self) -> Result<(), SyncError> {
        let Some((_, mark)) = self.info.load_pulled().ok().flatten().filter(|(at, _)| *at == self.position) else {
            return Ok(());
        };
        (self.start, self.last) = (mark.start, mark.last.clone());
        let is_another = |files: &StateMark| !self.file.has_grown_from(files);
        if self.log.frames() == 0 || mark.files.as_ref().is_some_and(is_another) {
            // Only the pages show it.
            self.doubt = Some(mark);
        } else if let Some(KeyedSum { key, sum }) = mark.sum.filter(|_| self.frames() == self.position.frame) {
            self.sum = Some(ReplicaSum::known(key, sum, self.file.pages()?));
        }
        Ok(())
    }

    /// Finds out whether another program wrote to the file while it was closed. Where the frames that its WAL lacks were only put into
    /// the database file, it goes on from there.
    ///
    /// # Errors
    /// When it cannot be read, or the metadata not be written.
    pub(super) fn check_kept(&mut self) -> Result<Since, SyncError> {
        let is_short = self.frames() < self.position.frame;
        let Some(mark) = self.doubt.take() else {
            return Ok(if is_short { Since::Lost } else { Since::Kept });
        };
        let Some(KeyedSum { key, sum: number }) = mark.sum.filter(|_| !is_short || !mark.last.is_empty()) else {
            return Ok(if is_short { Since::Lost } else { Since::Kept });
        };
        let has_frames = self.log.frames() > 0 && !self.leftover;
        if has_frames && self.frames() != self.position.frame {
            // The sum is of another state.
            return Ok(Since::Written);
        }
        if !is_short && mark.files.is_some_and(|files| self.file.touched_since(&files) == Touched::No) {
            self.sum = Some(ReplicaSum::known(key, number, self.file.pages()?));
            return Ok(Since::Kept);
        }
        let sum = ReplicaSum::of(&self.file, key)?;
        if sum.number() != number {
            return Ok(Since::Written);
        }
        (self.sum, self.stored) = (Some(sum), None);
        if !has_frames {
            self.start = self.position.frame;
        }
        self.store()?;
        self.restart();
        Ok(if is_short { Since::Checkpointed } else { Since::Kept })
    }

    /// Finds out what others have appended to its WAL.
    ///
    /// # Errors
    /// [`DatabaseError::Changed`] when they restarted it.
    pub(super) fn look(&mut self) -> Result<(), SyncError> {
        match self.log.look()? {
            Look::Same => Ok(()),
            Look::Restarted => Err(DatabaseError::restarted(&self.path).into()),
        }
    }

    /// Whether this frame, which is not the server's, was written by another program: it is after those that are counted, or the last
    /// of those is not the one that was counted.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn has_of_others(&self, frame: u32) -> Result<bool, SyncError> {
        let counted = self.position.frame;
        if frame > counted {
            return Ok(self.frames() > counted);
        }
        let Some(number) = counted.checked_sub(self.start).filter(|number| *number > 0) else { return Ok(false) };
        if self.last.is_empty() || self.leftover || self.log.frames() < number {
            return Ok(false);
        }
        Ok(digest_of(&self.log.batch(number, number + 1)?) != self.last)
    }

    /// The number of the first of these frames that is held with other content, if any; they are numbered from `start`.
    ///
    /// # Errors
    /// When they are not all held.
    pub(super) fn differs(&self, start: u32, frames: &[u8]) -> Result<Option<u32>, DatabaseError> {
        let Some(start) = start.checked_sub(self.start).filter(|start| *start > 0) else {
            // Of those before the WAL only the last one is known.
            let is_last = start == self.position.frame && digest_of(frames) == self.last;
            return Ok(Some(start).filter(|_| !is_last && !frames.is_empty()));
        };
        Ok(self.log.differs(start, frames)?.map(|frame| frame + self.start))
    }

    /// Takes frames as they came from the server, the first of which must be the [next](Replica::next) one. After Ok all
    /// transactions among them that are complete survive power loss, are seen by every read that starts, and are counted in the
    /// metadata; frames after them wait for the rest of theirs.
    ///
    /// # Errors
    /// [`SyncError::Fork`] at a frame that is held with other content; nothing was changed then. [`DatabaseError::Changed`] when
    /// others wrote to the replica or restarted its WAL, [`DatabaseError::ReadInTheWay`] where a new generation must wait.
    pub fn apply(&mut self, frames: &[u8]) -> Result<Applied, SyncError> {
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
        if let Some(frame) = self.differs(start, known)? {
            let Position { generation, .. } = self.position;
            return Err(SyncError::Fork { path: self.path.clone(), generation, frame });
        }
        let commits = commit_frames(frames);
        if !fresh.is_empty() {
            self.begin_write()?;
        }
        // What was there before it was counted has replaced the pages that were summed up.
        let mut sum = self.sum.take().filter(|_| held == 0);
        if !fresh.is_empty() {
            if let Some(sum) = &mut sum {
                sum.apply(fresh, &self.file)?;
            }
            self.write(fresh, commits.iter().any(|commit| *commit >= held as usize))?;
        }
        (self.next, self.sum) = (end, sum);
        if let Some(last) = commits.last() {
            self.position.frame = start + *last as u32;
            self.last = frames.get(last * FRAME_LEN..(last + 1) * FRAME_LEN).map(digest_of).unwrap_or_default();
            self.store()?;
        }
        let fresh_commits = commits.iter().filter(|commit| **commit >= held as usize).count();
        Ok(Applied { frames: u64::from(count - held), commits: fresh_commits as u64 })
    }

    /// Takes the write lock, where nobody is in the way; nothing was changed otherwise.
    fn begin_write(&mut self) -> Result<(), SyncError> {
        self.restart_wal()?;
        self.file.set_sequence(self.position.generation.saturating_sub(1));
        Ok(self.file.append([]).map_err(|error| self.of_others(error))?)
    }

    /// Writes frames after those that are there; syncs and publishes when a transaction is complete.
    fn write(&mut self, fresh: &[u8], complete: bool) -> Result<(), SyncError> {
        let frames = frames_of(fresh, LIBSQL_PAGE_SIZE).map(|(head, page)| (head.page, head.size, page));
        let written = self.file.append(frames);
        written
            .and_then(|()| if complete { self.file.commit() } else { Ok(()) })
            .map_err(|error| self.of_others(error))?;
        if complete { self.log.look().map(drop) } else { Ok(()) }
    }

    /// What others did is found out when the replica is opened again.
    fn of_others(&self, error: DatabaseError) -> DatabaseError {
        match error {
            DatabaseError::WrittenByOthers { .. } => DatabaseError::restarted(&self.path),
            error => error,
        }
    }

    /// Whether the metadata say that this database is pushed from here, or may have said so.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn is_pushed(&self) -> Result<bool, DatabaseError> {
        let pushed = self.info.pushed().map_err(|error| self.io("reading the -info file of", error))?;
        Ok(!matches!(pushed, Ok(None) | Err(Unusable::Missing)))
    }

    /// Writes the position to the metadata file, if it says something else.
    ///
    /// # Errors
    /// When it cannot be written; the file is as it was, or new.
    pub fn store(&mut self) -> Result<(), DatabaseError> {
        let wanted = (self.position, self.origin.clone());
        if self.stored.as_ref() != Some(&wanted) {
            let sum = self.sum.as_ref().map(|sum| KeyedSum { key: sum.key(), sum: sum.number() });
            let files = Some(self.file.mark()?);
            let (start, last, is_pushed) = (self.start, self.last.clone(), self.pushed.is_some());
            let mark = PullMark { start, last, sum, files: files.clone(), is_pushed };
            let content = pull_mark::encode(self.position, &mark, self.push_mark().as_ref());
            self.stored_files = files;
            let content = continuity::with_origin(content, self.position, self.origin.as_ref());
            self.info.replace(&content).map_err(|error| self.io("writing the -info file of", error))?;
            self.stored = Some(wanted);
        }
        Ok(())
    }

    /// What a push of this database goes on from: what the application commits next, which may be put into the database file before
    /// anything is pushed. None where the last frame is not known.
    fn push_mark(&self) -> Option<PushMark> {
        let Position { frame, .. } = self.position;
        let kept = self.pushed.as_ref().filter(|(position, _)| *position == self.position);
        if let Some((_, mark)) = kept {
            return Some(mark.clone());
        }
        let (last, wal) = match frame {
            0 => (String::new(), None),
            frame => {
                let is_in_wal = self.start == 0 && !self.leftover;
                (self.last.clone(), is_in_wal.then(|| self.log.position(frame)).flatten())
            }
        };
        let ours = WalStart::first(new_header(PAGE_LEN as u32, 0));
        (frame == 0 || !last.is_empty()).then(|| PushMark::new(last, ours, wal))
    }

    /// The same with the sum of the pages, for which all of them are read where it is not known.
    ///
    /// # Errors
    /// When they cannot be read; as [`store`](Self::store).
    pub(super) fn settle(&mut self) -> Result<(), SyncError> {
        let Position { frame, .. } = self.position;
        if self.sum.is_none() && self.frames() == frame {
            if self.last.is_empty() && frame > self.start {
                let number = frame - self.start;
                self.last = digest_of(&self.log.batch(number, number + 1)?);
            }
            self.sum = Some(ReplicaSum::of(&self.file, new_key())?);
            self.stored = None;
        }
        if self.stored_files != Some(self.file.mark()?) {
            self.stored = None;
        }
        Ok(self.store()?)
    }

    fn io(&self, doing: &str, error: io::Error) -> DatabaseError {
        DatabaseError::io(doing, &self.path, error)
    }
}

/// That what is written of a replica has no other name: a copy that was made as a link would change with it.
fn has_one_name(path: &Path) -> Result<(), DatabaseError> {
    for file in [path.to_owned(), beside(path, WAL)] {
        let links = match fs::metadata(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found.map_err(|error| DatabaseError::io("opening", &file, error))?.nlink(),
        };
        if links > 1 {
            let what = "writing it would change those too: replace it by a copy (cp FILE NEW; mv NEW FILE)".to_owned();
            return Err(DatabaseError::Linked { path: file, links, what });
        }
    }
    Ok(())
}

/// Makes of an empty file, or of a database with a rollback journal, one in WAL mode: SQLite throws away the WAL of an empty
/// database, and a connection goes by the WAL of the other only while that has frames. False when there is no file.
fn make_ready(path: &Path) -> Result<bool, SyncError> {
    let file = match open_regular(path, OpenOptions::new().read(true).write(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(|error| DatabaseError::io("opening", path, error))?,
    };
    let header = check_database(path, &file)?;
    if header.is_some_and(|header| header.is_wal()) {
        return Ok(true);
    }
    let io = |error| DatabaseError::io("writing", path, error);
    if !lock::take(&file).map_err(io)? {
        return Err(DatabaseError::Busy { path: path.to_owned(), pid: lock::holder(&file) }.into());
    }
    let written = match header {
        None => file.write_all_at(&database::empty(LIBSQL_PAGE_SIZE), 0),
        Some(_) => file.write_all_at(&WAL_VERSIONS, VERSIONS.start as u64),
    };
    let written = written.and_then(|()| file.sync_all());
    lock::release(&file);
    written.map_err(io)?;
    Ok(true)
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
