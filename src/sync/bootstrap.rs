//! A replica from nothing, and one set aside. Owns: the order of steps that lets a crash repeat them harmlessly.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SyncError;
use super::local::{LocalLog, check_database};
use super::replica::{Replica, sync_dir_of};
use super::{Position, base};
use crate::format::database;
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::sqlite::DatabaseError;
use crate::sqlite::lock::alone as lock;
use crate::sqlite::names::{JOURNAL, SHM, WAL, aside_path, beside};
use crate::sqlite::read_replica::ReadReplicaFile;

/// A base on its way in, in a file of its own beside the replica. One at a time: the file is locked.
#[derive(Debug)]
pub(super) struct Draft {
    replica: PathBuf,
    path: PathBuf,
    pub(super) file: Arc<File>,
}

impl Draft {
    /// An empty draft.
    ///
    /// # Errors
    /// [`DatabaseError::Busy`] when another process is at it.
    pub(super) fn create(replica: &Path) -> Result<Draft, DatabaseError> {
        let path = beside(replica, "-export.tmp");
        let io = |error| DatabaseError::io("making", &path, error);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let named = || fs::metadata(&path).map(|found| found.ino()).ok();
        if !lock::take(&file).map_err(io)? || named() != Some(file.metadata().map_err(io)?.ino()) {
            return Err(DatabaseError::Busy { path, pid: lock::holder(&file) });
        }
        file.set_len(0).map_err(io)?;
        Ok(Draft { replica: replica.to_owned(), path, file: Arc::new(file) })
    }

    /// The base has come whole. One without any page gets the one that SQLite would make, since SQLite throws away the WAL
    /// of an empty database.
    ///
    /// # Errors
    /// When it is no database the protocol can sync.
    pub(super) fn complete(&self, bytes: u64) -> Result<(), SyncError> {
        // An answer that was not believed may have been longer.
        self.file.set_len(bytes).map_err(|error| DatabaseError::io("writing", &self.path, error))?;
        if bytes == 0 {
            self.file
                .write_all_at(&database::empty(LIBSQL_PAGE_SIZE), 0)
                .map_err(|error| DatabaseError::io("writing", &self.path, error))?;
        }
        check_database(&self.path, &self.file).map(drop)
    }

    /// Puts the base where the replica is to be, at the start of a generation, with nothing else of that name left. There
    /// must be no replica; a WAL without one belongs to none.
    ///
    /// # Errors
    /// When the file system refuses; running it again repeats what was done.
    pub(super) fn install(self, generation: u32) -> Result<Replica, SyncError> {
        let Draft { replica: path, path: draft, file } = self;
        // Before the database has its name: it would be taken for its own.
        remove(&beside(&path, "-info"))?;
        // With the lock that the draft has: no other process takes it for one of its own before it has its name.
        let file = file.try_clone().map_err(|error| DatabaseError::io("making", &path, error))?;
        let mut replica = Replica::of(&path, ReadReplicaFile::create_of(&path, &draft, file)?)?;
        replica.resume(Position { generation, frame: 0 });
        replica.store()?;
        Ok(replica)
    }

    /// It was only to be looked at.
    pub(super) fn discard(self) -> Result<(), DatabaseError> {
        remove(&self.path)
    }
}

/// Gives a database that is to be replaced another name, so that nothing in it is lost, and says which. Its WAL goes first: a
/// database without its WAL is only out of date, but a WAL without its database is nothing. Its index goes along: connections to
/// the old database must not share it with connections to the next one.
///
/// The caller must keep it open as long as the process can: in early versions of SQLite the last connection
/// to close the old database would remove the WAL of the next one.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, DatabaseError> {
    let io = |error| DatabaseError::io("setting aside", path, error);
    let aside = aside_path(path).map_err(io)?;
    for ending in [WAL, SHM, JOURNAL] {
        match fs::rename(beside(path, ending), beside(&aside, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    sync_dir_of(path).and_then(|()| fs::rename(path, &aside)).and_then(|()| sync_dir_of(path)).map_err(io)?;
    log::warn!("{} was set aside as {}", path.display(), aside.display());
    Ok(aside)
}

/// Removes what was set aside if the replica has all of it.
pub(super) fn drop_aside(aside: &Path, replica: &Replica, base: &File) -> Result<(), SyncError> {
    let old = File::open(aside).map_err(|error| DatabaseError::io("opening", aside, error))?;
    if LocalLog::open(aside)?.frames() > 0 || base::stranger(aside, &old, Some(base), &replica.log)?.is_some() {
        log::warn!("{} holds what the server does not; look at it before you remove it", aside.display());
        return Ok(());
    }
    log::info!("removing {}: the replica has all of it", aside.display());
    for ending in [WAL, SHM] {
        remove(&beside(aside, ending))?;
    }
    Ok(remove(aside)?)
}

fn remove(path: &Path) -> Result<(), DatabaseError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DatabaseError::io("removing", path, error)),
        _ => Ok(()),
    }
}
