//! A replica from nothing, and one set aside. Owns: the order of steps that lets a crash repeat them harmlessly.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use super::error::SyncError;
use super::local::{LocalLog, check_database};
use super::metadata::INFO;
use super::replica::{Replica, sync_dir_of};
use super::replica_sum::ReplicaSum;
use super::{Position, base};
use crate::format::database;
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::sqlite::DatabaseError;
use crate::sqlite::lock::alone as lock;
use crate::sqlite::names::{JOURNAL, SHM, WAL, aside_path, beside, move_beside};
use crate::sqlite::page_sums::new_key;
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
    /// When it is no database the protocol can sync: then it is that of `log`.
    pub(super) fn complete(&self, bytes: u64, log: &Path) -> Result<(), SyncError> {
        // An answer that was not believed may have been longer.
        self.file.set_len(bytes).map_err(|error| DatabaseError::io("writing", &self.path, error))?;
        if bytes == 0 {
            self.file
                .write_all_at(&database::empty(LIBSQL_PAGE_SIZE), 0)
                .map_err(|error| DatabaseError::io("writing", &self.path, error))?;
        }
        check_database(log, &self.file).map(drop)
    }

    /// Puts the base where the replica is to be, at the start of a generation, with nothing else of that name left. There
    /// must be no replica; a WAL or a rollback journal without one may be all that is left of an application's, and is set aside.
    ///
    /// # Errors
    /// When the file system refuses; running it again repeats what was done.
    pub(super) fn install(self, generation: u32) -> Result<Replica, SyncError> {
        let Draft { replica: path, path: draft, file } = self;
        set_strays_aside(&path)?;
        // Before the database has its name: it would be taken for its own.
        remove(&beside(&path, INFO))?;
        let io = |error| DatabaseError::io("making", &path, error);
        // With the lock that the draft has: no other process takes it for one of its own before it has its name.
        let named = file.try_clone().map_err(io)?;
        // Its pages are summed up while it is synced.
        let (created, sum) = thread::scope(|scope| {
            let summing = scope.spawn(|| ReplicaSum::of_database(&file, new_key()));
            (ReadReplicaFile::create_of(&path, &draft, named), summing.join())
        });
        let mut replica = Replica::of(&path, created?)?;
        let sum = sum.map_err(|_| io(io::Error::other("a thread panicked")))?.map_err(io)?;
        replica.sum = Some(sum).filter(|sum| replica.file.pages().is_ok_and(|pages| pages == sum.pages()));
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
/// the old database must not share it with connections to the next one. So do its metadata, without which it could not be pushed on;
/// they keep the old name too, until the next database takes it, so that a crash leaves the old one with them.
///
/// The caller must keep it open as long as the process can: in early versions of SQLite the last connection
/// to close the old database would remove the WAL of the next one.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, DatabaseError> {
    let io = |error| DatabaseError::io("setting aside", path, error);
    let aside = aside_path(path, &[INFO]).map_err(io)?;
    move_beside(path, &aside).map_err(io)?;
    keep_info(path, &aside).map_err(io)?;
    sync_dir_of(path).and_then(|()| fs::rename(path, &aside)).and_then(|()| sync_dir_of(path)).map_err(io)?;
    log::warn!("{} was set aside as {}", path.display(), aside.display());
    Ok(aside)
}

/// The same with what SQLite keeps beside a database that is not there.
fn set_strays_aside(path: &Path) -> Result<(), DatabaseError> {
    let io = |error| DatabaseError::io("setting aside files beside", path, error);
    let has_bytes = |ending: &&str| fs::symlink_metadata(beside(path, ending)).is_ok_and(|found| found.len() > 0);
    if fs::symlink_metadata(path).is_ok() || ![WAL, JOURNAL].iter().any(has_bytes) {
        return Ok(());
    }
    let aside = aside_path(path, &[INFO]).map_err(io)?;
    move_beside(path, &aside).and_then(|_| keep_info(path, &aside)).and_then(|()| sync_dir_of(path)).map_err(io)?;
    log::warn!(
        "{}: files of SQLite's were beside the place of DST: what was there is set aside as {}",
        path.display(),
        aside.display()
    );
    Ok(())
}

/// Gives the metadata of a database, if there are any, a second name beside another path.
fn keep_info(path: &Path, aside: &Path) -> io::Result<()> {
    let (info, kept) = (beside(path, INFO), beside(aside, INFO));
    match fs::hard_link(&info, &kept) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Not every file system has links.
        Err(_) => fs::copy(&info, &kept).and_then(|_| File::open(&kept)?.sync_all()),
        Ok(()) => Ok(()),
    }
}

/// Removes what was set aside if the replica has all of it.
pub(super) fn drop_aside(aside: &Path, replica: &Replica, base: &File) -> Result<(), SyncError> {
    let old = File::open(aside).map_err(|error| DatabaseError::io("opening", aside, error))?;
    let is_contained = || Ok::<_, SyncError>(base::stranger(aside, &old, Some(base), &replica.log)?.is_none());
    let is_blank = base::is_blank(&old).map_err(|error| DatabaseError::io("reading", aside, error))?;
    if LocalLog::open(aside)?.frames() > 0 || !(is_blank || is_contained()?) {
        log::warn!("{} holds what the server does not; look at it before you remove it", aside.display());
        return Ok(());
    }
    log::info!("removing {}: the replica has all of it", aside.display());
    for ending in [WAL, SHM, INFO] {
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
