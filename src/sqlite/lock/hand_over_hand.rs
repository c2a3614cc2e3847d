//! The locks that a follower holds hand over hand, beside those of a [reader](super::beside_users): single read marks, and the
//! byte that says that the wal-index is in use. All shared.

use std::fs::File;
use std::io;

use nix::libc;

use super::{Bytes, READ_DATABASE, in_the_way, set};

/// The read marks that keep a WAL from being started anew, from the one that SQLite takes last.
pub(crate) const SLOTS: [usize; 4] = [4, 3, 2, 1];
/// Each connection holds it: one that opens the database and finds it free takes the wal-index for a dead one's.
const DMS: Bytes = Bytes(128, 1);

/// Says that somebody uses the wal-index. False while a connection that opens the database makes it anew.
pub(crate) fn share_in_use(index: &File) -> io::Result<bool> {
    set(index, DMS, libc::F_RDLCK)
}

/// Whether a connection has the wal-index in use.
pub(crate) fn is_in_use(index: &File) -> io::Result<bool> {
    Ok(in_the_way(index, DMS)?.is_some())
}

/// The process that has the wal-index in use, or one of them, where the system says which.
pub(crate) fn user(index: &File) -> io::Result<Option<i32>> {
    Ok(in_the_way(index, DMS)?.map(|lock| lock.l_pid).filter(|pid| *pid > 0))
}

/// Takes a read mark, of which 0 keeps checkpoints from the database file. False when another has it exclusively.
pub(crate) fn share_mark(index: &File, slot: usize) -> io::Result<bool> {
    set(index, mark(slot), libc::F_RDLCK)
}

/// Gives a read mark back.
pub(crate) fn release_mark(index: &File, slot: usize) -> io::Result<()> {
    set(index, mark(slot), libc::F_UNLCK).map(drop)
}

fn mark(slot: usize) -> Bytes {
    Bytes(READ_DATABASE.0 + slot as i64, 1)
}
