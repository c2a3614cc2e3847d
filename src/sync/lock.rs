//! SQLite's own locks on a database file, so that SQLite and we keep out of each other's way.
//!
//! SQLite locks bytes far behind what small databases use: one to announce a writer, one to reserve writing, and 510 that
//! readers share. A connection in WAL mode holds those 510 shared for as long as it is open, so whoever can lock them
//! exclusively is alone, and whoever tries to open the database meanwhile is told that it is busy.
//!
//! Ours are locks of the open file (OFD): they conflict with SQLite's, also within this process, and end with the file.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{self, c_int, c_short, off_t};

/// Who announces to write holds this byte; the next one is who reserved writing.
const PENDING: off_t = 0x4000_0000;
/// The bytes that readers share.
const SHARED: off_t = PENDING + 2;
const SHARED_LEN: off_t = 510;

/// Locks of a `-shm` file: 8 for the parts of the log, one of every connection.
const SHM: off_t = 120;
const SHM_LEN: off_t = 9;

/// Locks out everybody. False: somebody has the database open, and what we held we still hold.
pub(crate) fn exclusive(database: &File) -> io::Result<bool> {
    set(database, libc::F_WRLCK, PENDING, SHARED + SHARED_LEN - PENDING)
}

/// Lets readers and writers in, but lets none of them be the last to leave, who would checkpoint the log away. False:
/// somebody has it for himself.
pub(crate) fn shared(database: &File) -> io::Result<bool> {
    let held = set(database, libc::F_RDLCK, PENDING, 1)? && set(database, libc::F_RDLCK, SHARED, SHARED_LEN)?;
    set(database, libc::F_UNLCK, PENDING, SHARED - PENDING)?;
    Ok(held)
}

/// Gives all locks back. Closing the file does too, but only once every copy of it is closed, and a child that this
/// process is just starting may have one.
pub(crate) fn release(database: &File) {
    // What cannot be unlocked goes with the file.
    let _ = set(database, libc::F_UNLCK, PENDING, SHARED + SHARED_LEN - PENDING);
}

/// Whether nobody uses a `-shm` file; it is then locked for as long as it is open.
pub(crate) fn idle(shm: &File) -> io::Result<bool> {
    set(shm, libc::F_WRLCK, SHM, SHM_LEN)
}

/// A process that has the database open, when the system can tell.
pub(crate) fn holder(database: &File) -> Option<i32> {
    let mut probe = lock(libc::F_WRLCK, PENDING, SHARED + SHARED_LEN - PENDING);
    fcntl(database, FcntlArg::F_OFD_GETLK(&mut probe)).ok()?;
    (c_int::from(probe.l_type) != libc::F_UNLCK && probe.l_pid > 0).then_some(probe.l_pid)
}

fn set(file: &File, kind: c_int, start: off_t, len: off_t) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock(kind, start, len))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn lock(kind: c_int, start: off_t, len: off_t) -> libc::flock {
    let whence = libc::SEEK_SET as c_short;
    libc::flock { l_type: kind as c_short, l_whence: whence, l_start: start, l_len: len, l_pid: 0 }
}
