//! The locks of a reader beside the users of a database: all shared, so a read-only descriptor will do.
//!
//! Who can change the bytes that a snapshot reads, and what keeps them from it:
//!
//! - a writer in rollback mode, `VACUUM`, a change of the journal mode, and the last connection to close, which checkpoints and
//!   removes the WAL without asking for any lock of the `-shm`: all need EXCLUSIVE, so SHARED holds them back;
//! - a checkpoint takes READ0 exclusively before its first write to the database file: READ0 shared holds it back;
//! - a writer that restarts the WAL takes READ1 to READ4 exclusively: one of them shared holds it back, and it appends.
//!
//! CKPT, shared, would hold back checkpoints too, but also the recovery that a connection does which opens a database after
//! a crash: it would give up after some ten seconds. The locks here let it pass, as they do readers and writers. RESERVED says
//! that a rollback-mode transaction is under way; it is only asked for.
//!
//! A process that has a database open through SQLite must not take snapshots of it: closing ours would drop SQLite's locks.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use nix::libc;

use super::{Bytes, PENDING, READ_DATABASE, RESERVED, SHARED, in_the_way, set};
use crate::limits::LOCK_LOOK_AGAIN;

pub(crate) use super::share_database;

/// READ1 to READ4, from the one that SQLite takes last.
const READ_WAL: RangeInclusive<i64> = 124..=127;

/// Gives SHARED back.
pub(crate) fn release_database(file: &File) -> io::Result<()> {
    set(file, SHARED, libc::F_UNLCK).map(drop)
}

/// Whether a rollback-mode transaction is writing.
pub(crate) fn is_reserved(file: &File) -> io::Result<bool> {
    Ok(in_the_way(file, RESERVED)?.is_some())
}

/// Whether a writer in rollback mode waits for its readers to end, us among them.
pub(crate) fn is_pending(file: &File) -> io::Result<bool> {
    Ok(in_the_way(file, PENDING)?.is_some())
}

/// Keeps checkpoints from the database file and writers from starting the WAL anew. False when one of them is at it.
pub(crate) fn share_index(file: &File) -> io::Result<bool> {
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

/// Looks again and again until there is something, or none came before the deadline. It looks at least once.
pub(crate) fn before<T, E>(deadline: Instant, mut look: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
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
