//! SQLite's locks: bytes of its files, far after what small databases use.
//!
//! ```text
//! database   0x40000000 PENDING   +1 RESERVED   +2..+512 SHARED (exclusively: EXCLUSIVE)
//! -shm       120 WRITE   121 CKPT   122 RECOVER   123 READ0   124..128 READ1..READ4   128 DMS
//! ```
//!
//! Four sets of them, which differ on purpose:
//!
//! - [`beside_users`]: shared locks only, which hold a database still for a reader while its users go on. They go on with
//!   everything but what would change the bytes that are read;
//! - [`hand_over_hand`]: the single read marks of a follower, who is never without one of them;
//! - [`alone`]: exclusive locks for files that we write, and between two writes the one that lets users in without letting
//!   any of them be the last to leave;
//! - [`one_writer`]: the exclusive locks of SQLite's writers and checkpoints, for a database that others read meanwhile.
//!
//! The locks are those of an open file description (`F_OFD_*`): they conflict with the process-wide ones of SQLite, also in
//! this process, and go with the file. But **SQLite's own go when its process closes any descriptor of the file**.
//! Source: <https://sqlite.org/walformat.html>, section 2.3, and SQLite's wal.c and os_unix.c.

pub(crate) mod alone;
pub(super) mod beside_users;
pub(super) mod hand_over_hand;
pub(super) mod one_writer;

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::format::database::LOCK_BYTE;

/// Bytes of a file: the first, and how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(i64, i64);

/// Held by a writer that waits for its readers to end.
const PENDING: Bytes = Bytes(LOCK_BYTE as i64, 1);
/// Held by a transaction that writes in rollback mode.
const RESERVED: Bytes = Bytes(PENDING.0 + 1, 1);
/// Held shared by each connection that reads, and in WAL mode by each that is open.
const SHARED: Bytes = Bytes(PENDING.0 + 2, 510);
/// All of these.
const DATABASE: Bytes = Bytes(PENDING.0, 512);
/// All of a `-shm` file.
const INDEX: Bytes = Bytes(120, 9);
/// READ0.
const READ_DATABASE: Bytes = Bytes(123, 1);

/// Takes SHARED on a database file, as SQLite does it: by way of PENDING, so that a writer who waits for its readers to end
/// does not wait indefinitely. False when a writer is or wants to be alone. Whatever is returned, PENDING and RESERVED are
/// not held.
pub(crate) fn share_database(file: &File) -> io::Result<bool> {
    let held = match set(file, PENDING, libc::F_RDLCK) {
        Ok(true) => set(file, SHARED, libc::F_RDLCK),
        refused => refused,
    };
    set(file, Bytes(PENDING.0, SHARED.0 - PENDING.0), libc::F_UNLCK)?;
    held
}

/// Another who holds a lock on a database file: 0, or less, where the system cannot tell the process. Takes nothing.
pub(super) fn holder_of_database(file: &File) -> io::Result<Option<i32>> {
    Ok(in_the_way(file, DATABASE)?.map(|lock| lock.l_pid))
}

/// The same of its `-shm` file.
pub(super) fn holder_of_index(file: &File) -> io::Result<Option<i32>> {
    Ok(in_the_way(file, INDEX)?.map(|lock| lock.l_pid))
}

/// Locks or unlocks bytes; the lock replaces what this open file held on them. False when another's lock is in the way:
/// nothing has changed then.
fn set(file: &File, bytes: Bytes, kind: i32) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(bytes, kind))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A lock of another that would keep us from locking bytes exclusively.
fn in_the_way(file: &File, bytes: Bytes) -> io::Result<Option<libc::flock>> {
    let mut asked = flock(bytes, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok((i32::from(asked.l_type) != libc::F_UNLCK).then_some(asked))
}

fn flock(Bytes(l_start, l_len): Bytes, kind: i32) -> libc::flock {
    // The kinds are 0, 1 and 2. A process is never named: these locks are not a process's.
    libc::flock { l_type: kind as libc::c_short, l_whence: libc::SEEK_SET as libc::c_short, l_start, l_len, l_pid: 0 }
}
