//! The files of a database, and why they may not give a snapshot.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::names::{JOURNAL, SHM, WAL, beside, database_of_wal};
use crate::format::database::{self, DatabaseHeader, HeaderError};
use crate::repo::{open_regular, read_at};

/// Why there is no snapshot. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file cannot be read.
    #[error("{}: {error}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is none of SQLite's, or its header is damaged.
    #[error("{} is not a SQLite database: {reason}", .path.display())]
    NotADatabase {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: HeaderError,
    },
    /// A connection has the database for itself: in `locking_mode=EXCLUSIVE`, or to commit in rollback mode.
    #[error("{} is locked by a connection that has it for itself", .path.display())]
    Exclusive {
        /// The database.
        path: PathBuf,
    },
    /// A transaction in rollback mode is under way.
    #[error("a transaction is being written to {}, which is not in WAL mode", .path.display())]
    Writing {
        /// The database.
        path: PathBuf,
    },
    /// A writer was interrupted in rollback mode, and what it wrote is not rolled back yet.
    #[error("{} holds a transaction that was broken off; opening the database with SQLite rolls it back", .path.display())]
    HotJournal {
        /// The journal.
        path: PathBuf,
    },
    /// A checkpoint is under way.
    #[error("a checkpoint of {} is under way, and did not end in time", .path.display())]
    Checkpoint {
        /// The database.
        path: PathBuf,
    },
    /// Database and WAL do not belong together.
    #[error("{} has pages of {database} bytes, but its WAL of {wal}", .path.display())]
    PageSize {
        /// The database.
        path: PathBuf,
        /// Its page size.
        database: u32,
        /// That of the WAL.
        wal: u32,
    },
    /// There are transactions in the WAL of a database file without a byte; SQLite would delete that WAL.
    #[error("{} is empty, but its WAL holds {frames} committed frames: it was lost or replaced", .path.display())]
    Orphan {
        /// The database.
        path: PathBuf,
        /// Those frames.
        frames: u64,
    },
    /// The files are not those any more that the snapshot is of.
    #[error("the files changed while they were read: {what}")]
    Changed {
        /// In what way.
        what: &'static str,
    },
    /// They changed each time.
    #[error("{} changed each of {rounds} times it was read", .path.display())]
    Unsettled {
        /// The database.
        path: PathBuf,
        /// How many times.
        rounds: u32,
    },
}

impl SnapshotError {
    /// Whether it may go better later, without anybody doing anything about it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use SnapshotError::{Changed, Checkpoint, Exclusive, Unsettled, Writing};
        matches!(self, Exclusive { .. } | Writing { .. } | Checkpoint { .. } | Changed { .. } | Unsettled { .. })
    }
}

/// The paths of a database's files.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) database: PathBuf,
    pub(super) wal: PathBuf,
    pub(super) index: PathBuf,
    pub(super) journal: PathBuf,
    /// Whether the WAL was named, which may stand alone.
    pub(super) wal_alone: bool,
}

impl Places {
    /// Of `app.db` or `app.db-wal`. SQLite follows a link to a database before it looks for the other files, and so do we.
    pub(super) fn of(path: &Path) -> Places {
        let named = database_of_wal(path);
        let database = named.unwrap_or(path);
        let database = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
        let (wal, index, journal) = (beside(&database, WAL), beside(&database, SHM), beside(&database, JOURNAL));
        Places { wal, index, journal, database, wal_alone: named.is_some() }
    }
}

/// An open file with its path, which all that goes wrong with it names.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// Which file this is, and whether somebody wrote to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    pub(super) bytes: u64,
    modified: (i64, i64),
}

/// Tells a database file from what it was and will be, as far as the file system knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseVersion(pub(super) Stamp);

impl Stamp {
    fn of(meta: &Metadata) -> Stamp {
        let modified = (meta.mtime(), meta.mtime_nsec());
        Stamp { device: meta.dev(), inode: meta.ino(), bytes: meta.len(), modified }
    }

    fn is_same_file(&self, other: &Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl Opened {
    /// Opens a file to read it; none when there is none.
    pub(super) fn find(path: &Path) -> Result<Option<Opened>, SnapshotError> {
        let failed = |error| SnapshotError::Io { path: path.to_owned(), error };
        let meta = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            meta => meta.map_err(failed)?,
        };
        if !meta.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        match open_regular(path, File::options().read(true)) {
            Ok(file) => Ok(Some(Opened { file, path: path.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) fn ask<T>(&self, ask: impl FnOnce(&File) -> io::Result<T>) -> Result<T, SnapshotError> {
        ask(&self.file).map_err(|error| SnapshotError::Io { path: self.path.clone(), error })
    }

    pub(super) fn stamp(&self) -> Result<Stamp, SnapshotError> {
        self.ask(|file| file.metadata().map(|meta| Stamp::of(&meta)))
    }

    /// Whether its path still leads to it.
    pub(super) fn is_in_place(&self) -> Result<bool, SnapshotError> {
        let ours = self.stamp()?;
        match fs::metadata(&self.path) {
            Ok(meta) => Ok(ours.is_same_file(&Stamp::of(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(SnapshotError::Io { path: self.path.clone(), error }),
        }
    }
}

/// The page size that a database file states; none for a file without a byte, which is a database without a page.
pub(super) fn page_size(database: &Opened) -> Result<Option<u32>, SnapshotError> {
    let mut head = [0; database::HEADER_LEN];
    let read = database.ask(|file| read_at(file, &mut head, 0))?;
    if read == 0 {
        return Ok(None);
    }
    let header = DatabaseHeader::decode(&head[..read]);
    header.map(|header| Some(header.page_size)).map_err(|reason| {
        let path = database.path.clone();
        SnapshotError::NotADatabase { path, reason }
    })
}
