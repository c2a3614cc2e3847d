//! The locks of files that we write: everybody else is out, or in, but never the last to leave.
//!
//! A connection in WAL mode holds SHARED for as long as it is open, so whoever can lock these bytes exclusively is alone, and
//! whoever tries to open the database meanwhile is told that it is busy.

use std::fs::File;
use std::io;

use nix::libc;

use super::{DATABASE, in_the_way, set, share_database};

/// Locks out everybody. False: another connection has the database open, and what we held we still hold.
pub(crate) fn take(database: &File) -> io::Result<bool> {
    set(database, DATABASE, libc::F_WRLCK)
}

/// Lets readers and writers in, but lets none of them be the last to leave, who would checkpoint the log away. False:
/// another connection has the database for itself.
pub(crate) fn stay(database: &File) -> io::Result<bool> {
    share_database(database)
}

/// Gives all locks back. Closing the file does too, but only once every copy of it is closed, and a child that this
/// process is just starting may have one.
pub(crate) fn release(database: &File) {
    // What cannot be unlocked goes with the file.
    let _ = set(database, DATABASE, libc::F_UNLCK);
}

/// A process that has the database open, when the system can tell.
pub(crate) fn holder(database: &File) -> Option<i32> {
    in_the_way(database, DATABASE).ok()?.map(|lock| lock.l_pid).filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::super::{PENDING, RESERVED, SHARED};
    use super::*;

    #[test]
    fn who_lets_others_in_again_keeps_them_from_being_alone_and_from_nothing_else() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::options().read(true).write(true).open(file.path()).expect("opened");
        let (ours, other) = (open(), open());
        assert!(take(&ours).expect("asked") && !take(&other).expect("asked") && !stay(&other).expect("asked"));
        assert!(stay(&ours).expect("asked"));
        let held = [PENDING, RESERVED, SHARED].map(|bytes| in_the_way(&other, bytes).expect("asked").is_some());
        assert_eq!(held, [false, false, true]);
        assert!(stay(&other).expect("asked") && !take(&ours).expect("asked"));
        release(&other);
        assert!(take(&ours).expect("asked"));
        release(&ours);
        assert!(take(&other).expect("asked"));
    }
}
