//! A SQLite database of this machine and its WAL, as seen by somebody who only reads. Owns: which frames count, and that
//! what is given out was verified. Knows no server.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::SyncError;
use super::{FRAME_LEN, PAGE_LEN, same_frame};
use crate::format::database::{self, DatabaseHeader, HeaderError};
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use crate::repo::{open_regular, read_at};
use crate::sqlite::counted::frames_that_count;
use crate::sqlite::lock::alone as lock;
use crate::sqlite::names::{WAL, beside};
use crate::sqlite::wal_scan::{WalScan, read_header};
use crate::sqlite::{DatabaseError, DatabaseUser, WalPosition, user_beside};

/// What became of a WAL since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All frames of before are still there; there may be more.
    Same,
    /// It is another log now: other salts, or less than there was.
    Restarted,
}

/// The WAL of a database, and the checksum after each frame that counts.
#[derive(Debug)]
pub struct LocalLog {
    database: PathBuf,
    path: PathBuf,
    file: Option<File>,
    /// None where there is no sound header.
    scan: Option<WalScan>,
    /// The checksum after each frame up to the last commit frame.
    chains: Vec<Chain>,
}

impl LocalLog {
    /// Reads and verifies the WAL of a database; a WAL that is not there, or whose header is damaged, has no frames, as
    /// for SQLite.
    ///
    /// # Errors
    /// [`SyncError::PageSize`], [`SyncError::Full`], and when the file cannot be read.
    pub fn open(database: &Path) -> Result<LocalLog, SyncError> {
        let mut log = LocalLog::none(database);
        log.look()?;
        Ok(log)
    }

    /// A log of a database that has no frames.
    pub(super) fn none(database: &Path) -> LocalLog {
        let (database, path) = (database.to_owned(), beside(database, WAL));
        LocalLog { database, path, file: None, scan: None, chains: Vec::new() }
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Frames up to the last commit frame: what counts.
    #[must_use]
    pub fn frames(&self) -> u32 {
        // Held by `look` and `extend`.
        self.chains.len() as u32
    }

    /// Whether it has this checksum after so many frames, under these salts.
    #[must_use]
    pub(super) fn holds(&self, frames: u32, salts: [u32; 2], chain: Chain) -> bool {
        let header = self.header().filter(|header| header.salts == salts);
        let last = frames.checked_sub(1).map(|last| self.chains.get(last as usize));
        header.is_some() && last.is_none_or(|last| last == Some(&chain))
    }

    /// Whether it has the same frames that count as another, in the same WAL.
    #[must_use]
    pub(super) fn is(&self, other: &LocalLog) -> bool {
        self.header() == other.header() && self.chains == other.chains
    }

    /// Where it is after so many frames, if it has them.
    pub(super) fn position(&self, frames: u32) -> Option<WalPosition> {
        let header = self.header()?;
        let chain = match frames.checked_sub(1) {
            Some(last) => *self.chains.get(last as usize)?,
            None => header.seed(),
        };
        Some(WalPosition { salts: header.salts, frames: frames.into(), chain })
    }

    /// The log's header, if it has a sound one.
    #[must_use]
    pub fn header(&self) -> Option<WalHeader> {
        self.scan.map(|scan| scan.end().header)
    }

    /// Looks again, and reads what has come since.
    ///
    /// # Errors
    /// [`SyncError::PageSize`], [`SyncError::Full`], and when the file cannot be read.
    pub fn look(&mut self) -> Result<Look, SyncError> {
        // By its name: when the last connection closes, SQLite removes the file, and a later one makes another.
        let file = match open_regular(&self.path, File::options().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file.map_err(|error| self.io("opening", error))?),
        };
        let found = file.as_ref().map_or(Ok(None), read_header).map_err(|error| self.io("reading", error))?;
        let header =
            found.and_then(|header| header.inspect_err(|error| log::debug!("{}: {error}", self.path.display())).ok());
        if let Some(found) = header.map(|header| header.page_size).filter(|size| *size as usize != PAGE_LEN) {
            return Err(SyncError::PageSize { path: self.path.clone(), found });
        }
        let restarted = self.header().is_some() && self.header() != header;
        if self.header() != header {
            self.scan = header.map(WalScan::new);
            self.chains.clear();
        }
        self.file = file;
        if let (Some(scan), Some(file)) = (&mut self.scan, &self.file) {
            let last = frames_that_count(&self.database, scan.end().header)?.unwrap_or(u64::MAX);
            let chains = &mut self.chains;
            let mut open = Vec::new();
            let read = file.metadata().and_then(|meta| {
                scan.advance(file, scan.room(meta.len()).min(u32::MAX.into()).min(last), |claim, _| {
                    open.push(claim.chain);
                    if claim.size != 0 {
                        chains.append(&mut open);
                    }
                    Ok(())
                })
            });
            read.map_err(|error| self.io("reading", error))?;
            if self.chains.len() + open.len() >= u32::MAX as usize {
                return Err(SyncError::Full { path: self.path.clone() });
            }
        }
        Ok(if restarted { Look::Restarted } else { Look::Same })
    }

    /// Frames `start..end`, verified again: another process may have restarted the log since it was looked at. They must
    /// be among those that count.
    ///
    /// # Errors
    /// [`DatabaseError::Changed`] when they are not what they were, or not there.
    pub fn batch(&self, start: u32, end: u32) -> Result<Vec<u8>, DatabaseError> {
        let changed = || DatabaseError::restarted(&self.path);
        let (Some(header), Some(file)) = (self.header(), &self.file) else {
            return Err(changed());
        };
        if start == 0 || end < start || end - 1 > self.frames() {
            return Err(changed());
        }
        let before = start as usize - 1;
        let mut frames = vec![0; (end - start) as usize * FRAME_LEN];
        if read_at(file, &mut frames, offset(before)).map_err(|error| self.io("reading", error))? < frames.len() {
            return Err(changed());
        }
        let mut chain = before.checked_sub(1).map_or(header.seed(), |last| self.chains[last]);
        for (frame, expected) in frames.chunks_exact(FRAME_LEN).zip(&self.chains[before..]) {
            let (head, page) = frame.split_first_chunk().ok_or_else(changed)?;
            match header.check(chain, head, page) {
                Ok(claim) if claim.chain == *expected => chain = claim.chain,
                _ => return Err(changed()),
            }
        }
        Ok(frames)
    }

    /// Whether this log has `frames`, which are numbered from `start`; the number of the first that differs, if any. All
    /// must be among those that count.
    ///
    /// # Errors
    /// See [`LocalLog::batch`].
    pub fn differs(&self, start: u32, frames: &[u8]) -> Result<Option<u32>, DatabaseError> {
        if frames.is_empty() {
            return Ok(None);
        }
        let ours = self.batch(start, start + (frames.len() / FRAME_LEN) as u32)?;
        let mut both = (start..).zip(ours.chunks_exact(FRAME_LEN).zip(frames.chunks_exact(FRAME_LEN)));
        Ok(both.find_map(|(number, (ours, theirs))| (!same_frame(ours, theirs)).then_some(number)))
    }

    /// The page and commit size of each frame that counts, in order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn heads(&self) -> impl Iterator<Item = Result<FrameHeader, DatabaseError>> + '_ {
        (0..self.chains.len()).map_while(|frame| self.file.as_ref().map(|file| (frame, file))).map(|(frame, file)| {
            let mut head = [0; FRAME_HEADER_LEN];
            file.read_exact_at(&mut head, offset(frame)).map_err(|error| self.io("reading", error))?;
            Ok(FrameHeader::decode(&head))
        })
    }

    /// The page in a frame that counts.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn page(&self, frame: u32, page: &mut [u8; PAGE_LEN]) -> Result<(), DatabaseError> {
        let at = offset(frame.saturating_sub(1) as usize) + FRAME_HEADER_LEN as u64;
        match &self.file {
            Some(file) => file.read_exact_at(page, at).map_err(|error| self.io("reading", error)),
            None => Err(DatabaseError::restarted(&self.path)),
        }
    }

    pub(super) fn io(&self, doing: &str, error: io::Error) -> DatabaseError {
        DatabaseError::io(doing, &self.path, error)
    }
}

/// A database file opened for reading, with a lock that keeps it from being checkpointed away by whoever closes it last;
/// writers go on.
///
/// # Errors
/// When there is none, it is no database the protocol can sync, or somebody has it for himself.
pub(super) fn open_shared(path: &Path) -> Result<File, SyncError> {
    let file =
        open_regular(path, File::options().read(true)).map_err(|error| DatabaseError::io("opening", path, error))?;
    // Without a WAL, and before SQLite has made the first page, the lock would keep out writers.
    match check_database(path, &file)? {
        Some(header) if header.is_wal() => {}
        Some(_) => return Err(SyncError::NotWal { path: path.to_owned() }),
        None => {
            let reason = "it is empty".to_owned();
            return Err(DatabaseError::NotADatabase { path: path.to_owned(), reason }.into());
        }
    }
    if !lock::stay(&file).map_err(|error| DatabaseError::io("locking", path, error))? {
        return Err(DatabaseError::Busy { path: path.to_owned(), pid: lock::holder(&file) }.into());
    }
    Ok(file)
}

/// A database file whose WAL is not checkpointed away by the connection that closes it last, until this is dropped.
#[derive(Debug)]
pub(super) struct Stay(File);

impl Stay {
    /// # Errors
    /// As [`open_shared`].
    pub(super) fn beside_others(path: &Path) -> Result<Stay, SyncError> {
        open_shared(path).map(Stay)
    }

    /// Another than this that has the database, which is at `path`, open.
    ///
    /// # Errors
    /// When the files cannot be asked.
    pub(super) fn other_user(&self, path: &Path) -> Result<Option<DatabaseUser>, DatabaseError> {
        user_beside(path, &self.0)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        lock::release(&self.0);
    }
}

/// Checks that a file is an empty database, which has no header, or one with pages that the protocol knows.
pub(super) fn check_database(path: &Path, file: &File) -> Result<Option<DatabaseHeader>, SyncError> {
    let mut head = [0; database::HEADER_LEN];
    let read = read_at(file, &mut head, 0).map_err(|error| DatabaseError::io("reading", path, error))?;
    if read == 0 {
        return Ok(None);
    }
    let bytes = file.metadata().map_err(|error| DatabaseError::io("reading", path, error))?.len();
    match DatabaseHeader::of_file(&head[..read], bytes) {
        Ok(header) if header.page_size as usize == PAGE_LEN => Ok(Some(header)),
        Ok(DatabaseHeader { page_size: found, .. }) => Err(SyncError::PageSize { path: path.to_owned(), found }),
        Err(HeaderError::Cut { page_size: found, .. } | HeaderError::PageSize { found })
            if found as usize != PAGE_LEN =>
        {
            Err(SyncError::PageSize { path: path.to_owned(), found })
        }
        Err(reason) => Err(DatabaseError::not_one(path, &reason).into()),
    }
}

/// Where a frame starts in a log that holds so many before it.
fn offset(frames_before: usize) -> u64 {
    (HEADER_LEN + frames_before * FRAME_LEN) as u64
}
