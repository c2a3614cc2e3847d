//! The files of a database in use, as they are opened.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::DatabaseError;
use super::names::{JOURNAL, SHM, WAL, beside, database_of_wal};
use crate::format::database::{self, DatabaseHeader};
use crate::repo::{open_regular, read_at};

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

    pub(super) fn is_same_file(&self, other: &Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl Opened {
    /// Opens a file to read it; none when there is none.
    pub(super) fn find(path: &Path) -> Result<Option<Opened>, DatabaseError> {
        let failed = |error| DatabaseError::io("opening", path, error);
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

    pub(super) fn ask<T>(&self, ask: impl FnOnce(&File) -> io::Result<T>) -> Result<T, DatabaseError> {
        ask(&self.file).map_err(|error| DatabaseError::io("reading", &self.path, error))
    }

    pub(super) fn stamp(&self) -> Result<Stamp, DatabaseError> {
        self.ask(|file| file.metadata().map(|meta| Stamp::of(&meta)))
    }

    /// Whether its path still leads to it.
    pub(super) fn is_in_place(&self) -> Result<bool, DatabaseError> {
        let ours = self.stamp()?;
        match fs::metadata(&self.path) {
            Ok(meta) => Ok(ours.is_same_file(&Stamp::of(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DatabaseError::io("reading", &self.path, error)),
        }
    }
}

/// The page size that a database file states; none for a file without a byte, which is a database without a page.
pub(super) fn page_size(database: &Opened) -> Result<Option<u32>, DatabaseError> {
    let mut head = [0; database::HEADER_LEN];
    let read = database.ask(|file| read_at(file, &mut head, 0))?;
    if read == 0 {
        return Ok(None);
    }
    let header = DatabaseHeader::decode(&head[..read]);
    header.map(|header| Some(header.page_size)).map_err(|reason| DatabaseError::not_one(&database.path, &reason))
}
