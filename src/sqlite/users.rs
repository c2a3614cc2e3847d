//! Whether another process has a database open, as far as SQLite's locks say.

use std::path::Path;

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
    let places = Places::of(path);
    let asked = [
        Opened::find(&places.database)?.map(|file| file.ask(lock::holder_of_database)),
        Opened::find(&places.index)?.map(|file| file.ask(lock::holder_of_index)),
    ];
    for holder in asked.into_iter().flatten() {
        if let Some(pid) = holder? {
            return Ok(Some(DatabaseUser { pid: Some(pid).filter(|pid| *pid > 0) }));
        }
    }
    Ok(None)
}
