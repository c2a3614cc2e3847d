//! Whether another process has a database open, as far as SQLite's locks say.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::counted::has_open;
use super::error::DatabaseError;
use super::lock;
use super::source::{Opened, Places};

/// A process that has a database open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseUser {
    /// Its id, where the system can tell.
    pub pid: Option<i32>,
}

/// One that has the database at `path`, or the one whose WAL is there, open now. Takes no lock. In WAL mode a connection is seen
/// from its first read or write until it is closed, and otherwise while it is in a transaction.
///
/// # Errors
/// When the files cannot be asked. A database that is not there is open nowhere.
pub fn user_of(path: &Path) -> Result<Option<DatabaseUser>, DatabaseError> {
    let database = Opened::find(&Places::of(path).database)?;
    user(path, database.map(|file| file.ask(lock::holder_of_database)).transpose()?.flatten())
}

/// The same, of all but the one that has `database`, the file there, open and holds its own locks on it.
pub(crate) fn user_beside(path: &Path, database: &File) -> Result<Option<DatabaseUser>, DatabaseError> {
    let holder = lock::holder_of_database(database);
    user(path, holder.map_err(|error| DatabaseError::io("asking for the locks of", path, error))?)
}

/// The id of another process that has the database file at `path` open, whatever locks it holds: the system knows no holder of a lock
/// such as ours. None where it does not show, as of a process of another user.
pub(crate) fn opener_of(path: &Path) -> Option<i32> {
    let found = fs::metadata(Places::of(path).database).ok()?;
    let file = (found.dev(), found.ino());
    let ids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let mut others = ids.filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != std::process::id()));
    others.find(|pid| has_open(*pid, file).unwrap_or(false))
}

/// The name of the command that a process runs, if the system can tell.
pub(crate) fn command_of(pid: i32) -> Option<String> {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(command.trim_end().to_owned())
}

/// Who holds a lock on the database file, or on its index.
fn user(path: &Path, holder: Option<i32>) -> Result<Option<DatabaseUser>, DatabaseError> {
    let holder = match holder {
        None => match Opened::find(&Places::of(path).index)? {
            Some(index) => index.ask(lock::holder_of_index)?,
            None => None,
        },
        holder => holder,
    };
    Ok(holder.map(|pid| DatabaseUser { pid: Some(pid).filter(|pid| *pid > 0) }))
}
