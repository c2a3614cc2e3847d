//! The locks of the one writer of a database that others read all the time: the exclusive ones that SQLite's own writers and
//! checkpoints take, each for as short as theirs, and never one that a reader would wait for.
//!
//! What a reader feels of each:
//!
//! - WRITE, CKPT: nothing. Readers ask for WRITE only where the wal-index is damaged, to make it again;
//! - READ0, while pages are copied: a reader that comes meanwhile reads from the WAL instead;
//! - READ1 to READ4, all at once while the WAL is restarted: everything is copied then, so readers that come use READ0; one of
//!   them, while its mark is changed: readers try again at once;
//! - DMS exclusively, while the wal-index of a dead process is emptied: a connection that is opened tries again at once.
//!
//! RECOVER is not taken. It would say to readers that a recovery may take long, and their reads would fail as busy; without it they
//! try again for some ten seconds.

use std::io;
use std::sync::Arc;

use nix::libc;

use super::{Bytes, DATABASE, INDEX, READ_DATABASE, set};
use crate::repo::RepoFile;

/// Held by a writer.
pub(crate) const WRITE: Bytes = Bytes(120, 1);
/// A byte of the database file after those that SQLite locks: a process of ours is the one that writes the database.
pub(crate) const OWNER: Bytes = Bytes(DATABASE.0 + DATABASE.1, 1);
/// Held by a checkpoint.
pub(crate) const CHECKPOINT: Bytes = Bytes(121, 1);
/// READ1 to READ4.
pub(crate) const READ_WAL: Bytes = Bytes(124, 4);
/// WRITE and CKPT.
const WRITE_AND_CHECKPOINT: Bytes = Bytes(120, 2);
/// What is between these and DMS.
const RECOVER_AND_READ: Bytes = Bytes(122, 6);

/// Read mark `slot`.
pub(crate) fn read_mark(slot: usize) -> Bytes {
    Bytes(READ_DATABASE.0 + slot as i64, 1)
}

/// Bytes that are locked exclusively until this is dropped.
#[derive(Debug)]
pub(crate) struct Exclusive {
    file: Arc<dyn RepoFile>,
    bytes: Bytes,
}

impl Exclusive {
    /// Locks bytes; `None` when another connection has them.
    pub(crate) fn lock(file: &Arc<dyn RepoFile>, bytes: Bytes) -> io::Result<Option<Exclusive>> {
        let locked = set(plain(&**file)?, bytes, libc::F_WRLCK)?;
        Ok(locked.then(|| Exclusive { file: file.clone(), bytes }))
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        // What cannot be unlocked goes with the file.
        let _ = plain(&*self.file).and_then(|file| set(file, self.bytes, libc::F_UNLCK));
    }
}

/// Becomes the process that writes a database, until its file is [released](release). False: another one is.
pub(crate) fn own(database: &dyn RepoFile) -> io::Result<bool> {
    set(plain(database)?, OWNER, libc::F_WRLCK)
}

/// Takes DMS exclusively, and WRITE and CKPT with it. `None`: another connection uses the wal-index. Once DMS is shared, by
/// [`share_in_use`](super::hand_over_hand::share_in_use), others come in.
pub(crate) fn take_unused_index(index: &Arc<dyn RepoFile>) -> io::Result<Option<Exclusive>> {
    if !set(plain(&**index)?, INDEX, libc::F_WRLCK)? {
        return Ok(None);
    }
    set(plain(&**index)?, RECOVER_AND_READ, libc::F_UNLCK)?;
    Ok(Some(Exclusive { file: index.clone(), bytes: WRITE_AND_CHECKPOINT }))
}

/// Gives all locks of both files back: see [`alone::release`](super::alone::release).
pub(crate) fn release(database: &dyn RepoFile, index: &dyn RepoFile) {
    for (file, bytes) in [(index, INDEX), (database, DATABASE), (database, OWNER)] {
        let _ = plain(file).and_then(|file| set(file, bytes, libc::F_UNLCK));
    }
}

/// The file that locks are on. It has them for as long as any copy of its descriptor is open, and must be the only
/// descriptor of the file in this process: see [above](super).
pub(crate) fn plain(file: &dyn RepoFile) -> io::Result<&std::fs::File> {
    file.plain().ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "locks need a file of the file system"))
}

#[cfg(test)]
mod tests {
    use super::super::hand_over_hand::share_in_use;
    use super::*;
    use crate::repo::opened;

    #[test]
    fn an_index_that_is_in_use_is_not_emptied_and_its_write_lock_goes_from_one_to_the_next() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || -> Arc<dyn RepoFile> {
            let file = std::fs::File::options().read(true).write(true).open(file.path());
            Arc::new(opened(file.expect("opened")))
        };
        let (one, other) = (open(), open());
        let first = take_unused_index(&one).expect("asked").expect("nobody is there");
        assert!(take_unused_index(&other).expect("asked").is_none());
        assert!(!share_in_use(plain(&*other).expect("a file")).expect("asked"));
        assert!(share_in_use(plain(&*one).expect("a file")).expect("asked"));
        assert!(share_in_use(plain(&*other).expect("a file")).expect("asked"));
        assert!(Exclusive::lock(&other, WRITE).expect("asked").is_none());
        drop(first);
        let write = Exclusive::lock(&other, WRITE).expect("asked").expect("it was given back");
        assert!(take_unused_index(&one).expect("asked").is_none());
        assert!(Exclusive::lock(&one, WRITE).expect("asked").is_none());
        drop(write);
        assert!(Exclusive::lock(&one, WRITE).expect("asked").is_some());
    }
}
