//! SQLite's locks, as far as a reader needs them: all shared, so a read-only descriptor will do.
//!
//! ```text
//! database   0x40000000 PENDING   +1 RESERVED   +2..+512 SHARED (exclusively: EXCLUSIVE)
//! -shm       120 WRITE   121 CKPT   122 RECOVER   123 READ0   124..128 READ1..READ4   128 DMS
//! ```
//!
//! Who can change the bytes that a snapshot reads, and what keeps him from it:
//!
//! - a writer in rollback mode, `VACUUM`, a change of the journal mode, and the last connection to close, which checkpoints and
//!   removes the WAL without asking for any lock of the `-shm`: all need EXCLUSIVE, so SHARED holds them back;
//! - a checkpoint takes READ0 exclusively before its first write to the database file: READ0 shared holds it back;
//! - a writer that starts the WAL anew takes READ1 to READ4 exclusively: one of them shared holds it back, and it appends.
//!
//! CKPT, shared, would hold back checkpoints too, but also the recovery that whoever opens a database after a crash has to do:
//! he would give up after some ten seconds. The locks here let him pass, as they do readers and writers. RESERVED says that
//! a rollback-mode transaction is under way; it is only looked at.
//!
//! The locks are those of an open file description (`F_OFD_*`): they meet the process-wide ones of SQLite, and go with the file.
//! But **SQLite's own go when its process closes any descriptor of the file**: a process that has a database open
//! through SQLite must not take snapshots of it. Source: <https://sqlite.org/walformat.html>, section 2.3, and SQLite's wal.c and os_unix.c.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::limits::LOCK_LOOK_AGAIN;

/// Bytes from one on, of a file.
#[derive(Clone, Copy)]
struct Bytes(i64, i64);

const PENDING: Bytes = Bytes(0x4000_0000, 1);
const RESERVED: Bytes = Bytes(PENDING.0 + 1, 1);
const SHARED: Bytes = Bytes(PENDING.0 + 2, 510);
const READ_DATABASE: Bytes = Bytes(123, 1);
/// From the one that SQLite takes last.
const READ_WAL: RangeInclusive<i64> = 124..=127;

/// Takes SHARED on a database file, as SQLite does it: by way of PENDING, so that a writer who waits for his readers to end
/// does not wait for ever. False when a writer is or wants to be alone.
pub(super) fn share_database(file: &File) -> io::Result<bool> {
    if !try_share(file, PENDING)? {
        return Ok(false);
    }
    let shared = try_share(file, SHARED);
    set(file, PENDING, libc::F_UNLCK)?;
    shared
}

/// Gives SHARED back.
pub(super) fn release_database(file: &File) -> io::Result<()> {
    set(file, SHARED, libc::F_UNLCK).map(drop)
}

/// Whether a rollback-mode transaction is writing.
pub(super) fn is_reserved(file: &File) -> io::Result<bool> {
    let mut asked = flock(RESERVED, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(i32::from(asked.l_type) != libc::F_UNLCK)
}

/// Keeps checkpoints from the database file and writers from starting the WAL anew. False when one of them is at it.
pub(super) fn share_index(file: &File) -> io::Result<bool> {
    if !try_share(file, READ_DATABASE)? {
        return Ok(false);
    }
    for mark in READ_WAL.rev() {
        if try_share(file, Bytes(mark, 1))? {
            return Ok(true);
        }
    }
    set(file, READ_DATABASE, libc::F_UNLCK)?;
    Ok(false)
}

/// The read marks that keep a WAL from being started anew, from the one that SQLite takes last.
pub(super) const SLOTS: [usize; 4] = [4, 3, 2, 1];
/// Every connection holds it: whoever opens the database and finds it free takes the wal-index for a dead one's.
const SWITCH: Bytes = Bytes(128, 1);

/// Says that somebody uses the wal-index. False while one who opens the database makes it anew.
pub(super) fn share_switch(index: &File) -> io::Result<bool> {
    try_share(index, SWITCH)
}

/// Whether a connection has the wal-index in use.
pub(super) fn is_in_use(index: &File) -> io::Result<bool> {
    let mut asked = flock(SWITCH, libc::F_WRLCK);
    fcntl(index, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(i32::from(asked.l_type) != libc::F_UNLCK)
}

/// Takes a read mark, of which 0 keeps checkpoints from the database file. False when somebody has it for himself.
pub(super) fn share_mark(index: &File, slot: usize) -> io::Result<bool> {
    try_share(index, mark(slot))
}

/// Gives a read mark back.
pub(super) fn release_mark(index: &File, slot: usize) -> io::Result<()> {
    set(index, mark(slot), libc::F_UNLCK).map(drop)
}

fn mark(slot: usize) -> Bytes {
    Bytes(READ_DATABASE.0 + slot as i64, 1)
}

/// Looks again and again until there is something, or none came before the deadline. It looks at least once.
pub(super) fn before<T, E>(deadline: Instant, mut look: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    loop {
        let found = look()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if found.is_some() || left == Duration::ZERO {
            return Ok(found);
        }
        std::thread::sleep(LOCK_LOOK_AGAIN.min(left));
    }
}

fn try_share(file: &File, bytes: Bytes) -> io::Result<bool> {
    set(file, bytes, libc::F_RDLCK)
}

/// False when somebody else's lock is in the way.
fn set(file: &File, bytes: Bytes, kind: i32) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(bytes, kind))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn flock(Bytes(l_start, l_len): Bytes, kind: i32) -> libc::flock {
    // The kinds are 0, 1 and 2. A process is never named: these locks are not a process's.
    libc::flock { l_type: kind as libc::c_short, l_whence: libc::SEEK_SET as libc::c_short, l_start, l_len, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handles() -> (tempfile::NamedTempFile, File, File) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::open(file.path()).expect("opened");
        let (one, other) = (open(), open());
        (file, one, other)
    }

    #[test]
    fn readers_share_and_a_writer_keeps_them_out() {
        let (file, one, other) = handles();
        assert!(share_database(&one).expect("asked") && share_database(&other).expect("asked"));
        assert!(share_index(&one).expect("asked") && share_index(&other).expect("asked"));
        release_database(&one).expect("asked");
        drop((one, other));
        let writer = File::options().write(true).open(file.path()).expect("opened");
        let reader = File::open(file.path()).expect("opened");
        for (taken, database, index) in [
            (PENDING, false, true),
            (RESERVED, true, true),
            (Bytes(SHARED.0, SHARED.1), false, true),
            (READ_DATABASE, true, false),
            (Bytes(127, 1), true, true),
            (Bytes(124, 4), true, false),
            (Bytes(120, 3), true, true),
        ] {
            assert!(set(&writer, taken, libc::F_WRLCK).expect("asked"));
            assert_eq!(is_reserved(&reader).expect("asked"), taken.0 == RESERVED.0);
            assert_eq!(share_database(&reader).expect("asked"), database, "byte {}", taken.0);
            assert_eq!(share_index(&reader).expect("asked"), index, "byte {}", taken.0);
            for range in [PENDING, RESERVED, SHARED, Bytes(120, 8)] {
                set(&reader, range, libc::F_UNLCK).expect("asked");
            }
            set(&writer, taken, libc::F_UNLCK).expect("asked");
        }
    }

    #[test]
    fn a_look_is_taken_even_when_it_is_too_late() {
        let mut looks = 0;
        let found = before(Instant::now(), || {
            looks += 1;
            Ok::<_, ()>(Some(looks))
        });
        assert_eq!(found, Ok(Some(1)));
        assert_eq!(before(Instant::now(), || Ok::<Option<()>, ()>(None)), Ok(None));
    }
}
