//! Whose directory it is: the lock of a SpacetimeDB beside its `clog`, and places that must not be source and sink at once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::failure::MirrorError;
use crate::repo::{FsRepo, open_regular};
use crate::stream::MirrorRecord;

/// The directory of a SpacetimeDB's commitlog.
const CLOG: &str = "clog";
/// The file beside it that a running SpacetimeDB holds a `flock` on.
const DB_LOCK: &str = "db.lock";

const LOCKS: &str = "/proc/locks";
/// The inode of `/proc/self/ns/pid` in the first namespace, which sees the locks of all processes.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Whether a SpacetimeDB has a commitlog directory open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbLock {
    /// No process has, or the directory is not a SpacetimeDB's.
    Free,
    /// This process has.
    Held {
        /// Its process id.
        pid: u32,
    },
    /// That cannot be told: one may.
    Unknown,
}

/// Whether a SpacetimeDB has the commitlog in `dir` open, as far as `/proc/locks` shows. Never takes the lock, because a
/// SpacetimeDB that starts meanwhile would fail.
#[must_use]
pub fn db_lock_state(dir: &Path) -> DbLock {
    let Some(path) = db_lock_path(dir) else {
        return DbLock::Free;
    };
    let file = match fs::metadata(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return DbLock::Free,
        Err(_) => return DbLock::Unknown,
    };
    let Ok(locks) = fs::read_to_string(LOCKS) else {
        return DbLock::Unknown;
    };
    let sees_all = fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST_PID_NAMESPACE);
    match holder(&locks, file.dev(), file.ino()) {
        DbLock::Free if !sees_all => DbLock::Unknown,
        state => state,
    }
}

/// Who holds a `flock` on a file, as `/proc/locks` has it.
fn holder(locks: &str, dev: u64, ino: u64) -> DbLock {
    let device = format!("{:02x}:{:02x}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let mut state = DbLock::Free;
    for line in locks.lines() {
        // `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`; a process that waits for it has `->` before the kind.
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            continue;
        }
        let (Some(pid), Some(file)) = (words.nth(2), words.next()) else {
            continue;
        };
        let Some((on, inode)) = file.rsplit_once(':') else {
            continue;
        };
        match pid.parse() {
            _ if inode.parse() != Ok(ino) => {}
            Ok(pid) if on == device => return DbLock::Held { pid },
            // Some file systems number their devices otherwise here.
            _ => state = DbLock::Unknown,
        }
    }
    state
}

/// Where the lock of a SpacetimeDB is that has its commitlog in `dir`; none when the directory is not named like one.
fn db_lock_path(dir: &Path) -> Option<PathBuf> {
    let dir = real(dir);
    dir.file_name().filter(|name| *name == CLOG)?;
    Some(dir.parent()?.join(DB_LOCK))
}

/// Held while we write a directory named `clog`: no SpacetimeDB can start on it meanwhile.
#[derive(Debug)]
pub(super) struct DbLockGuard {
    flock: Option<File>,
}

impl DbLockGuard {
    /// Takes the lock beside `dir`, creating its file where it is missing; nothing to take beside a directory of another name.
    ///
    /// # Errors
    /// [`MirrorError::DatabaseRuns`] when another process holds it.
    pub(super) fn take(dir: &Path) -> Result<DbLockGuard, MirrorError> {
        let Some(path) = db_lock_path(dir) else {
            return Ok(DbLockGuard { flock: None });
        };
        let failed = |error| MirrorError::Dir { place: path.display().to_string(), error };
        let file = match open_regular(&path, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                open_regular(&path, OpenOptions::new().read(true).write(true).create(true).truncate(false))
            }
            file => file,
        };
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(DbLockGuard { flock: Some(file) }),
            Err(fs::TryLockError::WouldBlock) => Err(database_runs(dir, &path)),
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Whether what it holds is still the lock beside `dir`: a directory that was moved away took its lock with it.
    pub(super) fn is_of(&self, dir: &Path) -> bool {
        match (&self.flock, db_lock_path(dir)) {
            (None, None) => true,
            (Some(held), Some(path)) => {
                let held = held.metadata().ok().map(|found| (found.dev(), found.ino()));
                held.is_some() && held == identity(&path)
            }
            _ => false,
        }
    }
}

/// That nothing is known to hold the lock beside `dir`.
///
/// # Errors
/// [`MirrorError::DatabaseRuns`] when a process does.
pub(super) fn is_not_running(dir: &Path) -> Result<(), MirrorError> {
    match (db_lock_state(dir), db_lock_path(dir)) {
        (DbLock::Held { .. }, Some(path)) => Err(database_runs(dir, &path)),
        _ => Ok(()),
    }
}

fn database_runs(dir: &Path, lock: &Path) -> MirrorError {
    let pid = match db_lock_state(dir) {
        DbLock::Held { pid } => Some(pid),
        DbLock::Free | DbLock::Unknown => None,
    };
    MirrorError::DatabaseRuns { place: dir.to_owned(), lock: lock.to_owned(), pid }
}

/// That a mirror does not write into its own source: neither of two places is the other or inside it, however they are
/// reached. A source that is a file must not be in the sink itself.
///
/// # Errors
/// [`MirrorError::SamePlace`].
pub(super) fn are_apart(source: &Path, sink: &Path) -> Result<(), MirrorError> {
    let (from, to) = (real(source), real(sink));
    let inner = |inner: &Path, outer: &Path| {
        identity(outer).is_some_and(|outer| inner.ancestors().any(|at| identity(at) == Some(outer)))
    };
    let mixed = if from.is_dir() {
        inner(&to, &from) || inner(&from, &to)
    } else {
        inner(&to, &from) || from.parent().is_some_and(|dir| identity(dir).is_some() && identity(dir) == identity(&to))
    };
    if mixed {
        return Err(MirrorError::SamePlace { source_place: source.to_owned(), sink: sink.to_owned() });
    }
    Ok(())
}

/// By what other name a file is reached than its own; `None` for a file with one name, and for one that does not exist.
pub(super) fn other_names(path: &Path) -> io::Result<Option<String>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(found) if found.is_symlink() => Ok(Some("is a symbolic link to another file".into())),
        Ok(found) if found.is_file() && found.nlink() > 1 => Ok(Some(format!("has {} hard links", found.nlink()))),
        Ok(_) => Ok(None),
    }
}

/// A path without symbolic links, as far as it exists.
pub(super) fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().find_map(|at| Some((at, fs::canonicalize(at).ok()?)));
    let Some((at, real)) = existing else {
        return absolute;
    };
    match absolute.strip_prefix(at) {
        Ok(rest) if rest.as_os_str().is_empty() => real,
        Ok(rest) => real.join(rest),
        Err(_) => absolute,
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Whether a directory has a mirror record: its content is a copy of ours.
#[must_use]
pub fn is_mirror(dir: &Path) -> bool {
    FsRepo::open(dir).is_ok_and(|repo| matches!(MirrorRecord::read(&repo), Ok(Some(_))))
}

/// What a record says its source is: the path with the host it is on.
pub(super) fn source_identity(path: &Path) -> String {
    let host = rustix::system::uname();
    format!("{}:{}", host.nodename().to_string_lossy(), real(path).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 08:01:78 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 08:01:79 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 14 08:02:80 0 EOF\n\
                     garbage\n\n4: FLOCK\n";
        let dev = rustix::fs::makedev(8, 1);
        assert_eq!(holder(locks, dev, 78), DbLock::Held { pid: 12 });
        for free in [77, 79, 81] {
            assert_eq!(holder(locks, dev, free), DbLock::Free, "inode {free}");
        }
        assert_eq!(holder(locks, dev, 80), DbLock::Unknown);
    }

    #[test]
    fn a_held_lock_is_seen_and_refused_and_never_taken_by_looking() {
        let dir = tempfile::tempdir().expect("a directory");
        let clog = dir.path().join("clog");
        assert_eq!(db_lock_state(&clog), DbLock::Free);
        let guard = DbLockGuard::take(&clog).expect("free");
        let refused = DbLockGuard::take(&clog).expect_err("held");
        assert!(matches!(refused, MirrorError::DatabaseRuns { .. }), "{refused}");
        if let DbLock::Held { pid } = db_lock_state(&clog) {
            assert_eq!(pid, std::process::id());
        }
        drop(guard);
        assert!(!matches!(db_lock_state(&clog), DbLock::Held { .. }));
        DbLockGuard::take(&clog).expect("free again");
    }

    #[test]
    fn places_in_one_another_are_found_through_links() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "a/inner", "b"] {
            fs::create_dir(at(name)).expect("created");
        }
        std::os::unix::fs::symlink(at("a"), at("link")).expect("linked");
        fs::write(at("b/app.db"), "").expect("written");
        for (source, sink) in [
            ("a", "a"),
            ("a", "link"),
            ("link", "a"),
            ("a", "link/inner"),
            ("a", "a/new/er"),
            ("a/inner", "link"),
            ("b/app.db", "b"),
        ] {
            assert!(are_apart(&at(source), &at(sink)).is_err(), "{source} {sink}");
        }
        for (source, sink) in [("a", "b"), ("a", "c/new"), ("b/app.db", "b/copy"), ("a/../b", "link")] {
            assert!(are_apart(&at(source), &at(sink)).is_ok(), "{source} {sink}");
        }
    }
}
