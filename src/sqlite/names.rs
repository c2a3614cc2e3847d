//! What SQLite calls the files beside a database, what one is called that is set aside, and whether a file looks like one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::DatabaseError;
use crate::format::database;
use crate::limits::{REMADE_AFTER_FIRST, REMADE_AFTER_LAST};
use crate::repo::open_regular;
use crate::retry::Backoff;

/// The write-ahead log.
pub(crate) const WAL: &str = "-wal";
/// Its index, which all connections share.
pub(crate) const SHM: &str = "-shm";
/// The rollback journal.
pub(crate) const JOURNAL: &str = "-journal";
/// The metadata of a libSQL replica, or of a database that is pushed.
pub(crate) const INFO: &str = "-info";
/// The record of a read replica file of ours.
pub(crate) const RECORD: &str = "-logmirror";

/// The file beside a database that has its name and this ending.
pub(crate) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Files of one database that were set aside in one second, at most.
const ASIDE_MAX: u32 = 1_000;

/// What follows the name of a database that is set aside, and the moment of that, in UTC, as it is written.
const ASIDE: &str = ".aside-";
const ASIDE_TIME: &str = "%Y%m%dT%H%M%SZ";

/// The name under which a database is set aside: that of a moment, with a number from the second one on in a second. Neither the
/// file nor one of SQLite's beside it exists, nor one with one of these endings.
///
/// # Errors
/// When there are 1,000 of them.
pub(crate) fn aside_path(database: &Path, endings: &[&str]) -> io::Result<PathBuf> {
    let time = jiff::Timestamp::now().strftime(ASIDE_TIME).to_string();
    for number in 1..ASIDE_MAX {
        let more = if number == 1 { String::new() } else { format!("-{number}") };
        let aside = beside(database, &format!("{ASIDE}{time}{more}"));
        let is_free = |ending| beside(&aside, ending).symlink_metadata().is_err();
        if ["", WAL, SHM, JOURNAL].iter().chain(endings).all(|ending| is_free(ending)) {
            return Ok(aside);
        }
    }
    Err(io::Error::other(format!("there are {ASIDE_MAX} files set aside beside it")))
}

/// How long after one was set aside a replica is made again, by how many there are.
const REMADE_AFTER: Backoff = Backoff::new(REMADE_AFTER_FIRST, REMADE_AFTER_LAST);

/// That the databases which had this name and are set aside allow one more, where that may go on without end: each has all pages,
/// and costs a copy. `user` is who has it open.
///
/// # Errors
/// [`DatabaseError::Spoilt`].
pub(crate) fn may_be_set_aside(database: &Path, user: Option<i32>) -> Result<(), DatabaseError> {
    let found = set_aside_before(database);
    let (count, age) = found.map_err(|error| DatabaseError::io("looking beside", database, error))?;
    let after = REMADE_AFTER.after(count);
    match age {
        Some(age) if age < after => Err(DatabaseError::Spoilt { path: database.to_owned(), pid: user, count, after }),
        _ => Ok(()),
    }
}

/// How many databases that had this name are set aside, and how long the last of them has been, as their names say; one that is of
/// the future, as after the clock was set back, does not count for that.
///
/// # Errors
/// When the directory cannot be read.
fn set_aside_before(database: &Path) -> io::Result<(u32, Option<Duration>)> {
    let dir = database.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = beside(Path::new(database.file_name().unwrap_or_default()), ASIDE);
    let (mut count, mut age) = (0, None);
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(prefix.to_str()?));
        if let Some(time) = rest.and_then(time_of_aside) {
            count += 1;
            let since = Duration::try_from(jiff::Timestamp::now().duration_since(time)).ok();
            age = [age, since].into_iter().flatten().min();
        }
    }
    Ok((count, age))
}

/// When a database was set aside that has these letters at the end of its name: neither files beside it nor other names have such.
fn time_of_aside(ending: &str) -> Option<jiff::Timestamp> {
    let (time, number) = ending.split_once('-').unwrap_or((ending, "1"));
    number.parse::<u32>().ok()?;
    let time = jiff::civil::DateTime::strptime(ASIDE_TIME, time).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// Moves what SQLite keeps beside a database beside another path. Whether there was something.
///
/// # Errors
/// When the file system refuses; running it again repeats what was done.
pub(crate) fn move_beside(database: &Path, to: &Path) -> io::Result<bool> {
    let mut is_moved = false;
    for ending in [WAL, SHM, JOURNAL] {
        match fs::rename(beside(database, ending), beside(to, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            moved => is_moved |= moved.is_ok(),
        }
    }
    Ok(is_moved)
}

/// What the names of files end in that belong to the database beside them.
const SIDE_FILES: [&str; 5] = [WAL, SHM, JOURNAL, INFO, RECORD];

/// That no file may be made at a path because of its name: that of a file which belongs to a database that is there beside it,
/// whether or not it is there itself, and whatever it holds. Directories are none.
///
/// # Errors
/// [`DatabaseError::SideFile`].
pub(crate) fn is_no_side_file(path: &Path) -> Result<(), DatabaseError> {
    if path.is_dir() {
        return Ok(());
    }
    // A link would be written through.
    let target = fs::canonicalize(path).ok();
    for path in [Some(path), target.as_deref()].into_iter().flatten() {
        let Some(name) = path.file_name() else { continue };
        let databases = SIDE_FILES.iter().filter_map(|ending| name.as_bytes().strip_suffix(ending.as_bytes()));
        let mut databases = databases.map(|name| path.with_file_name(OsStr::from_bytes(name)));
        if let Some(database) = databases.find(|database| database.is_file()) {
            return Err(DatabaseError::SideFile { path: path.to_owned(), database });
        }
    }
    Ok(())
}

/// The database whose WAL has this path, if it is that of a WAL.
pub(crate) fn database_of_wal(path: &Path) -> Option<&Path> {
    path.to_str()?.strip_suffix(WAL).filter(|name| !name.is_empty()).map(Path::new)
}

/// Whether a file starts like a SQLite database, or has no byte, as one without a page.
///
/// # Errors
/// When it cannot be read, or is not a regular file (`InvalidData`).
pub(crate) fn looks_like_a_database(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    let file = open_regular(path, File::options().read(true))?;
    file.take(database::MAGIC.len() as u64).read_to_end(&mut head)?;
    Ok(head.is_empty() || head == database::MAGIC)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn databases_that_were_set_aside_are_counted_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("app.db");
        assert_eq!(set_aside_before(&database).unwrap(), (0, None));
        let touch = |path: &Path| drop(File::create(path).unwrap());
        for _ in 0..2 {
            let aside = aside_path(&database, &[]).unwrap();
            touch(&aside);
            touch(&beside(&aside, WAL));
        }
        for other in [".aside-20200101T000000Z", ".aside-20200101T000000Z-2-info", ".aside-old", ".tmp"] {
            touch(&beside(&database, other));
        }
        touch(&dir.path().join("other.db.aside-20200101T000000Z"));
        let (count, age) = set_aside_before(&database).unwrap();
        assert!(count == 3 && age.unwrap() < Duration::from_secs(3600), "{count} {age:?}");
    }

    #[test]
    fn one_of_the_future_counts_and_says_nothing_of_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("app.db");
        File::create(beside(&database, ".aside-99980101T000000Z")).unwrap();
        assert_eq!(set_aside_before(&database).unwrap(), (1, None));
    }
}
