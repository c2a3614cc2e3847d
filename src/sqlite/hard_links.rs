//! A database file with more than one name. SQLite names the WAL after the name that a connection was opened by, so what was
//! committed may be in a WAL that is not found by this one.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::error::DatabaseError;
use super::names::{WAL, beside};
use super::source::{Opened, Places};
use super::users::user_of;
use crate::format::database::{VERSIONS, WAL_VERSIONS};
use crate::repo::read_at;

/// Names in the directory that are compared, at most.
const NAMES_MAX: usize = 10_000;
/// For how long after a change of a directory another change may not show in its time.
const TIME_IS_COARSE_FOR: Duration = Duration::from_secs(2);

/// A warning where the file of a database has other names than this one. `path` is that of the database or of its WAL.
///
/// # Errors
/// [`DatabaseError::Linked`] when its WAL is known to be beside another name. A file that is not there has no names.
pub fn warning_of_links(path: &Path) -> Result<Option<String>, DatabaseError> {
    HardLinks::default().warning(path)
}

/// The same, asked often: the directory is read again only where a name in it may have changed.
#[derive(Debug, Default)]
pub(crate) struct HardLinks {
    known: Option<(Seen, Vec<PathBuf>)>,
}

/// What the names were read of.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    /// The file, and how many names it has.
    file: (u64, u64, u64),
    /// When a name in the directory changed last.
    changed: SystemTime,
}

impl HardLinks {
    /// See [`warning_of_links`].
    pub(crate) fn warning(&mut self, path: &Path) -> Result<Option<String>, DatabaseError> {
        let places = Places::of(path);
        let Some(database) = Opened::find(&places.database)? else {
            return Ok(None);
        };
        let found = database.ask(fs::File::metadata)?;
        if found.nlink() < 2 {
            return Ok(None);
        }
        let linked = |what: String| DatabaseError::Linked { path: places.database.clone(), links: found.nlink(), what };
        let has_wal = |database: &Path| fs::metadata(beside(database, WAL)).is_ok_and(|wal| wal.len() > 0);
        let others = self
            .other_names(&places.database, &found)
            .map_err(|error| DatabaseError::io("reading the directory of", &places.database, error))?;
        if let Some(other) = others.iter().find(|other| has_wal(other)) {
            return Err(linked(format!("its WAL is beside another of them: give {}", other.display())));
        }
        if !has_wal(&places.database)
            && is_in_wal_mode(&database)?
            && let Some(pid) = user_of(&places.database)?.and_then(|user| user.pid)
        {
            return Err(linked(format!(
                "it has a WAL, which is not here, and process {pid} has it open by another name: give the path that this process \
                 uses"
            )));
        }
        let named = others.iter().map(|other| format!(", {}", other.display())).collect::<String>();
        Ok(Some(format!(
            "{} has {} names (hard links{named}): what an application commits through another one than this is in another WAL, and \
             not seen here; give the path that the application uses, and remove the other names",
            places.database.display(),
            found.nlink()
        )))
    }

    /// The other names of a file in its directory.
    fn other_names(&mut self, path: &Path, file: &Metadata) -> io::Result<Vec<PathBuf>> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let changed = fs::metadata(dir)?.modified()?;
        let seen = Seen { path: path.to_owned(), file: (file.dev(), file.ino(), file.nlink()), changed };
        if let Some((_, names)) = self.known.as_ref().filter(|(known, _)| *known == seen) {
            return Ok(names.clone());
        }
        let entries = dir.read_dir()?.take(NAMES_MAX).filter_map(Result::ok).map(|entry| entry.path());
        let same = |other: &PathBuf| {
            fs::symlink_metadata(other).is_ok_and(|found| (found.dev(), found.ino()) == (file.dev(), file.ino()))
        };
        let names: Vec<_> = entries.filter(|other| other.file_name() != path.file_name()).filter(same).collect();
        let is_sure = changed.elapsed().is_ok_and(|since| since > TIME_IS_COARSE_FOR);
        self.known = is_sure.then(|| (seen, names.clone()));
        Ok(names)
    }
}

fn is_in_wal_mode(database: &Opened) -> Result<bool, DatabaseError> {
    let mut versions = [0; 2];
    let read = database.ask(|file| read_at(file, &mut versions, VERSIONS.start as u64))?;
    Ok(read == versions.len() && versions == WAL_VERSIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wal_beside_another_name_is_found_without_reading_the_directory_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, other) = (dir.path().join("app.db"), dir.path().join("other.db"));
        fs::copy("segments/wal/plain.db", &path).expect("a database");
        fs::hard_link(&path, &other).expect("a link");
        let wal = beside(&other, WAL);
        fs::write(&wal, []).expect("a WAL");
        let settle = || {
            let before = SystemTime::now() - 2 * TIME_IS_COARSE_FOR;
            fs::File::open(dir.path()).and_then(|dir| dir.set_modified(before)).expect("an older time");
        };
        settle();
        let mut links = HardLinks::default();
        let named =
            |links: &mut HardLinks| links.warning(&path).map(|text| text.is_some_and(|text| text.contains("other.db")));
        assert!(named(&mut links).expect("a warning") && links.known.is_some());
        fs::write(&wal, [0]).expect("written");
        assert!(matches!(named(&mut links), Err(DatabaseError::Linked { .. })));
        // Another name.
        fs::remove_file(&wal).expect("removed");
        fs::rename(&other, dir.path().join("moved.db")).expect("renamed");
        assert!(!named(&mut links).expect("a warning"), "it has another name");
        assert!(links.known.is_none(), "what changed just now may change again without a sign of it");
        fs::remove_file(dir.path().join("moved.db")).expect("removed");
        assert!(links.warning(&path).expect("looked").is_none());
    }
}
