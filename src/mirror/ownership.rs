//! Whose directory it is: the lock of a SpacetimeDB beside its `clog`, and places that must not be source and sink at once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::failure::MirrorError;
use super::registry::{LOGS, META};
use crate::format::name;
use crate::offset::Offset;
use crate::repo::{FsRepo, Repo, open_regular};
use crate::sqlite::command_of;
use crate::stream::{MirrorRecord, RECORD, Survey, Tail, current_dir, segment_starts, survey};

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
    let command = pid.and_then(|pid| command_of(i32::try_from(pid).ok()?));
    MirrorError::DatabaseRuns { place: dir.to_owned(), lock: lock.to_owned(), pid, command }
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

/// Checks that a source is not a copy of the log in the sink, as it is when the arguments were swapped. One that was restored
/// from the sink and has grown since is the original again.
///
/// # Errors
/// [`MirrorError::Swapped`].
pub(super) fn are_not_swapped(source: &Path, sink: &Path, commit_bytes_max: u64) -> Result<(), MirrorError> {
    let record = current(source).and_then(|repo| MirrorRecord::read(&repo));
    let Some(record) = record.ok().flatten().filter(|record| record.names(&source_identity(sink))) else {
        return Ok(());
    };
    // A copy may well be brought back to where its original was lost.
    let holds_log = || current(sink).and_then(|repo| segment_starts(&repo)).is_ok_and(|starts| !starts.is_empty());
    if holds_log() && !was_restored(source, &record, sink, commit_bytes_max) {
        return Err(MirrorError::Swapped { source_place: source.to_owned(), sink: sink.to_owned() });
    }
    Ok(())
}

/// Whether the source, whose record names the sink, was restored from it and has grown since: the sink is a mirror of the source
/// in turn, and ends where it was durable.
fn was_restored(source: &Path, record: &MirrorRecord, sink: &Path, commit_bytes_max: u64) -> bool {
    let end = |dir: &Path, durable: Offset| -> Option<Survey> {
        survey(&current(dir).ok()?, commit_bytes_max, Some(durable)).ok()
    };
    let held = current(sink).and_then(|repo| MirrorRecord::read(&repo));
    let Some(held) = held.ok().flatten().filter(|held| held.names(&source_identity(source))) else {
        return false;
    };
    let is_as_left = |found: Survey| found.next == held.durable && found.tail == Tail::Clean;
    end(source, record.durable).is_some_and(|found| found.next > record.durable)
        && end(sink, held.durable).is_some_and(is_as_left)
}

/// The data directory of a service that a path is, or that has it among its logs; `None` for any other path.
#[must_use]
pub fn service_data(path: &Path) -> Option<PathBuf> {
    let path = real(path);
    if holds_logs(&path.join(LOGS)) {
        return Some(path);
    }
    let logs = path.ancestors().find(|at| at.file_name().is_some_and(|name| name == LOGS) && holds_logs(at))?;
    logs.parent().map(Path::to_owned)
}

/// Whether a directory holds a log of a service: its description, or a generation where that is lost.
fn holds_logs(dir: &Path) -> bool {
    let names = |dir: &Path| dir.read_dir().into_iter().flatten().filter_map(Result::ok).collect::<Vec<_>>();
    let is_generation = |entry: &fs::DirEntry| {
        let is_named = entry.file_name().to_str().is_some_and(|name| name::parse_generation(name).is_some());
        is_named && entry.path().is_dir()
    };
    names(dir)
        .iter()
        .map(fs::DirEntry::path)
        .any(|log| log.is_dir() && (log.join(META).is_file() || names(&log).iter().any(is_generation)))
}

/// Checks that a sink is not in the data directory of a service, which alone writes there.
///
/// # Errors
/// [`MirrorError::ServiceData`].
pub(super) fn is_not_of_a_service(sink: &Path) -> Result<(), MirrorError> {
    match service_data(sink) {
        Some(data) => Err(MirrorError::ServiceData { place: sink.to_owned(), data }),
        None => Ok(()),
    }
}

/// Names that a directory without a log may hold: what a new file system has, our record, and a base, which is judged with it.
const HARMLESS: [&str; 4] = ["lost+found", RECORD, name::BASE, name::BASE_SUMS];
/// Names that an error shows.
const NAMES_SHOWN: usize = 3;

/// Checks that a directory that is to be a sink is empty, if it holds neither a log nor a mirror record: it may be the one above
/// the log, a whole data directory for example.
///
/// # Errors
/// [`MirrorError::NoLog`]. What cannot be read passes: the next step says so.
pub(super) fn is_log_or_empty(dir: &Path) -> Result<(), MirrorError> {
    let Ok(mut names) = FsRepo::open(dir).and_then(|repo| repo.list()) else {
        return Ok(());
    };
    if current_dir(dir).is_ok_and(|current| current != dir) {
        return Ok(());
    }
    names.sort();
    if names.iter().any(|file| file == RECORD || name::parse_segment(file).is_some()) {
        return Ok(());
    }
    names.retain(|file| !HARMLESS.contains(&file.as_str()) && !file.ends_with(".ofs"));
    let more = names.len().saturating_sub(NAMES_SHOWN);
    names.truncate(NAMES_SHOWN);
    let holds = match (names.is_empty(), more) {
        (true, _) => return Ok(()),
        (_, 0) => names.join(", "),
        _ => format!("{} and {more} more", names.join(", ")),
    };
    Err(MirrorError::NoLog { place: dir.to_owned(), holds })
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

/// Device and inode of a directory.
pub(super) type DirIdentity = (u64, u64);

/// What is at a path now; `None` when nothing is, or that is not known.
pub(super) fn identity(path: &Path) -> Option<DirIdentity> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// The directory that holds the current generation of a directory, opened.
fn current(dir: &Path) -> io::Result<FsRepo> {
    FsRepo::open(current_dir(dir)?)
}

/// Whether a directory has a mirror record: its content is a copy of ours.
#[must_use]
pub fn is_mirror(dir: &Path) -> bool {
    current(dir).is_ok_and(|repo| matches!(MirrorRecord::read(&repo), Ok(Some(_))))
}

/// Up to where the log in a directory is durable, as its mirror record says; `None` without one.
#[must_use]
pub fn recorded_end(dir: &Path) -> Option<Offset> {
    let record = current(dir).and_then(|repo| MirrorRecord::read(&repo));
    record.ok().flatten().map(|record| record.durable)
}

/// The mirror record of a directory; `None` without one. Blocks.
pub(super) fn record_of(dir: &Path) -> io::Result<Option<MirrorRecord>> {
    current(dir).and_then(|repo| MirrorRecord::read(&repo))
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
