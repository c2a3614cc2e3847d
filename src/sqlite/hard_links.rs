//! A database file with more than one name. SQLite names the WAL after the name that a connection was opened by, so what was
//! committed may be in a WAL that is not found by this one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::DatabaseError;
use super::names::{WAL, beside};
use super::source::{Opened, Places};
use super::users::user_of;
use crate::format::database::{VERSIONS, WAL_VERSIONS};
use crate::repo::read_at;

/// Names in the directory that are compared, at most.
const NAMES_MAX: usize = 10_000;

/// What is to be known of the database at `path`, or whose WAL is there, because its file has other names; none where it has one.
///
/// # Errors
/// [`DatabaseError::Linked`] when its WAL is known to be beside another name. What is not there has no names.
pub fn warning_of_links(path: &Path) -> Result<Option<String>, DatabaseError> {
    let places = Places::of(path);
    let Some(database) = Opened::find(&places.database)? else {
        return Ok(None);
    };
    let found = database.ask(std::fs::File::metadata)?;
    if found.nlink() < 2 {
        return Ok(None);
    }
    let linked = |what: String| DatabaseError::Linked { path: places.database.clone(), links: found.nlink(), what };
    let has_wal = |database: &Path| fs::metadata(beside(database, WAL)).is_ok_and(|wal| wal.len() > 0);
    let others = other_names(&places.database, (found.dev(), found.ino()))
        .map_err(|error| DatabaseError::io("reading the directory of", &places.database, error))?;
    if let Some(other) = others.iter().find(|other| has_wal(other)) {
        return Err(linked(format!("its WAL is beside another of them: give {}", other.display())));
    }
    if !has_wal(&places.database)
        && is_in_wal_mode(&database)?
        && let Some(pid) = user_of(&places.database)?.and_then(|user| user.pid)
    {
        return Err(linked(format!(
            "it has a WAL, which is not here, and process {pid} has it open by another name: give the path that this process uses"
        )));
    }
    let named = others.iter().map(|other| format!(", {}", other.display())).collect::<String>();
    Ok(Some(format!(
        "{} has {} names (hard links{named}): what an application commits through another one than this is in another WAL, and not \
         seen here; give the path that the application uses, and remove the other names",
        places.database.display(),
        found.nlink()
    )))
}

fn is_in_wal_mode(database: &Opened) -> Result<bool, DatabaseError> {
    let mut versions = [0; 2];
    let read = database.ask(|file| read_at(file, &mut versions, VERSIONS.start as u64))?;
    Ok(read == versions.len() && versions == WAL_VERSIONS)
}

/// The other names of a file in its directory.
fn other_names(path: &Path, identity: (u64, u64)) -> io::Result<Vec<PathBuf>> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = dir.read_dir()?.take(NAMES_MAX).filter_map(Result::ok).map(|entry| entry.path());
    let same = |other: &PathBuf| fs::symlink_metadata(other).is_ok_and(|found| (found.dev(), found.ino()) == identity);
    Ok(entries.filter(|other| other.file_name() != path.file_name()).filter(same).collect())
}
