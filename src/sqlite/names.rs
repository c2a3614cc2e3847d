//! What SQLite calls the files beside a database, what one is called that is set aside, and whether a file looks like one.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::format::database;
use crate::repo::open_regular;

/// The write-ahead log.
pub(crate) const WAL: &str = "-wal";
/// Its index, which all connections share.
pub(crate) const SHM: &str = "-shm";
/// The rollback journal.
pub(crate) const JOURNAL: &str = "-journal";

/// The file beside a database that has its name and this ending.
pub(crate) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Files of one database that were set aside in one second, at most.
const ASIDE_MAX: u32 = 1_000;

/// The name under which a database is set aside: that of a moment, with a number from the second one on in a second. Neither the
/// file nor one of SQLite's beside it exists.
///
/// # Errors
/// When there are 1,000 of them.
pub(crate) fn aside_path(database: &Path) -> io::Result<PathBuf> {
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    for number in 1..ASIDE_MAX {
        let more = if number == 1 { String::new() } else { format!("-{number}") };
        let aside = beside(database, &format!(".aside-{time}{more}"));
        if ["", WAL, SHM, JOURNAL].iter().all(|ending| beside(&aside, ending).symlink_metadata().is_err()) {
            return Ok(aside);
        }
    }
    Err(io::Error::other(format!("there are {ASIDE_MAX} files set aside beside it")))
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
