//! [`ReplicaFile`]: the file that is the sink, and what is found of it at the start. Reads the file and its record, and changes
//! neither.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::ReplicaFileError;
use super::kept::{Kept, at, of_file, sum_of_file};
use super::record::{FileRecord, FileState, Followed, Position, RecordFile, read_record, record_path};
use crate::mirror::database::off;
use crate::mirror::failure::MirrorError;
use crate::mirror::ownership::other_names;
use crate::sqlite::DatabaseError;
use crate::sqlite::names::{WAL, beside, is_no_side_file, looks_like_a_database};
use crate::sqlite::read_replica::{ReadReplicaFile, Touched};

/// Endings of names that are those of database files.
const ENDINGS: [&str; 4] = ["db", "sqlite", "sqlite3", "db3"];

/// Whether a path that is to be written is that of a SQLite file, and not of a directory: a file that exists, or one that does
/// not and whose name ends as those of databases do. A slash at the end says that it is a directory.
#[must_use]
pub fn is_replica_file(path: &Path) -> bool {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return false;
    }
    match fs::metadata(path) {
        Ok(found) => !found.is_dir(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
            ending.is_some_and(|ending| ENDINGS.contains(&&*ending)) || record_path(path).is_file()
        }
        Err(_) => false,
    }
}

/// What a file that is to be made takes the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// There is none.
    Nothing,
    /// One of ours, which nobody needs any more.
    Ours,
    /// One that is set aside, for this reason.
    Aside(String),
    /// The same of one that another process has written, and may write again.
    Written(String),
}

impl Instead {
    /// Of one that another process has written, as `what` shows.
    pub(super) fn touched(what: &str) -> Instead {
        Instead::Written(format!("another process has written it ({what})"))
    }

    /// Why it is set aside; none where it is not.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Instead::Aside(reason) | Instead::Written(reason) => Some(reason),
            Instead::Nothing | Instead::Ours => None,
        }
    }
}

/// What a file was found to be.
#[derive(Debug)]
pub(super) enum Found {
    /// It is to be made.
    Fresh { store: RecordFile, instead: Instead },
    /// It goes on.
    Kept(Box<Kept>),
}

/// A SQLite file that is the sink.
#[derive(Debug)]
pub(crate) struct ReplicaFile {
    pub(super) path: PathBuf,
    /// The file, while it is open.
    pub(super) kept: Option<Box<Kept>>,
    /// Whether it was open once: it is not made where its record is gone with it.
    pub(super) was_kept: bool,
}

impl ReplicaFile {
    /// Nothing is opened before an attempt.
    pub(crate) fn new(path: &Path) -> ReplicaFile {
        ReplicaFile { path: path.to_owned(), kept: None, was_kept: false }
    }

    /// Works on the file where it holds nobody up. After an error of the work it is closed, and opened again by the next attempt.
    pub(super) async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Kept) -> Result<T, MirrorError> + Send + 'static,
    ) -> Result<T, MirrorError> {
        let mut kept = self.kept.take().ok_or_else(|| MirrorError::Interrupted("the file is closed".into()))?;
        let (kept, done) = off(move || {
            let done = work(&mut kept);
            (kept, done)
        })
        .await?;
        self.kept = Some(kept).filter(|_| done.is_ok());
        done
    }

    /// The state that readers see; none while it is closed.
    pub(super) fn position(&self) -> Option<Position> {
        self.kept.as_ref().map(|kept| kept.position())
    }
}

/// That a file which was kept before is not gone with its record: then its directory is, and what is left in its place is not it.
///
/// # Errors
/// [`MirrorError::Away`].
pub(super) fn is_in_place(path: &Path, was_kept: bool) -> Result<(), MirrorError> {
    if was_kept && !record_path(path).exists() && !path.exists() {
        let what = "the file that was kept is not there now, and its record neither; a mirror that is started again makes it from scratch".to_owned();
        return Err(MirrorError::Away { place: path.display().to_string(), what });
    }
    Ok(())
}

/// Whether a file has no byte, and none of SQLite's beside it.
pub(super) fn is_blank(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() == 0) && beside(path, WAL).symlink_metadata().is_err()
}

/// That a file is none that another program has made, nor has the name of one. Changes nothing.
///
/// # Errors
/// [`ReplicaFileError::NotOurs`], or one that says what it is.
pub(super) fn is_ours_or_absent(path: &Path) -> Result<(), MirrorError> {
    is_no_side_file(path).map_err(of_file)?;
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| at(path, error))?,
    };
    let link = |what| ReplicaFileError::Link { path: path.to_owned(), what };
    if found.is_symlink() {
        return Err(link("it is a symbolic link").into());
    }
    if !found.is_file() {
        return Err(link("it is no regular file").into());
    }
    if read_record(path)?.is_some() || is_blank(path) {
        return Ok(());
    }
    match looks_like_a_database(path) {
        Ok(false) => Err(link("it is a file, and no SQLite database").into()),
        _ => Err(ReplicaFileError::NotOurs { path: path.to_owned(), record: record_path(path) }.into()),
    }
}

/// Opens the file at `path` to go on with it, or finds out that it is to be made. Blocks, for as long as all of it is read if that
/// is needed to know its state.
///
/// # Errors
/// When it is not ours, kept by another process, or follows another source.
pub(super) fn open(path: &Path, followed: &Followed) -> Result<Found, MirrorError> {
    is_ours_or_absent(path)?;
    let store = RecordFile::lock(path)?;
    // What it says may have changed while it was not locked.
    let Some(record) = store.read()? else {
        is_ours_or_absent(path).inspect_err(|_| store.remove_if_empty())?;
        let instead = if path.exists() { Instead::Ours } else { Instead::Nothing };
        return Ok(Found::Fresh { store, instead });
    };
    if !record.is_of(followed) {
        let held = named(&record.source, record.log.as_deref());
        let offered = named(&followed.source, followed.log.as_deref());
        if !followed.adopt {
            return Err(ReplicaFileError::OtherLog { path: path.to_owned(), held, offered }.into());
        }
        let instead = if path.exists() { Instead::Aside(format!("it follows {held}")) } else { Instead::Nothing };
        return Ok(Found::Fresh { store, instead });
    }
    let touched = |store, what| Found::Fresh { store, instead: Instead::touched(what) };
    if record.now.is_some() {
        has_one_name(path)?;
    }
    let opened = match ReadReplicaFile::open(path).map_err(of_file) {
        Err(MirrorError::ReplicaFile(ReplicaFileError::Touched { what, .. })) => return Ok(touched(store, what)),
        // By its record it was one.
        Err(MirrorError::ReplicaFile(ReplicaFileError::File(error @ DatabaseError::NotADatabase { .. }))) => {
            return Ok(Found::Fresh { store, instead: Instead::Aside(format!("it is damaged: {error}")) });
        }
        opened => opened?,
    };
    let Some(file) = opened else {
        if record.now.is_some() {
            log::warn!("{}: the file is gone: it is made again", path.display());
        }
        return Ok(Found::Fresh { store, instead: Instead::Nothing });
    };
    let Some((now, settled)) = state_of(&file, &record)? else {
        return Ok(touched(store, "its pages are not those that were written last"));
    };
    // It may have been called something else since.
    let noted = record.log.clone();
    let log = followed.log.clone().or(record.log);
    let record = FileRecord { source: followed.source.clone(), log, ..record };
    let settled = settled && record.log == noted;
    Ok(Found::Kept(Box::new(Kept::new(file, store, record, now, settled)?)))
}

/// That what is written of a file has no other name: a copy that was made as a link would change with it.
///
/// # Errors
/// [`ReplicaFileError::OtherNames`].
fn has_one_name(path: &Path) -> Result<(), MirrorError> {
    for file in [path.to_owned(), beside(path, WAL)] {
        if let Some(what) = other_names(&file).map_err(|error| at(&file, error))? {
            return Err(ReplicaFileError::OtherNames { path: file, what }.into());
        }
    }
    Ok(())
}

/// Which of the states that its record names a file is in, and whether that shows at once next time too; none when it is in
/// neither.
///
/// # Errors
/// When it cannot be read.
pub(super) fn state_of(file: &ReadReplicaFile, record: &FileRecord) -> Result<Option<(FileState, bool)>, MirrorError> {
    if let (Some(now), Some(mark)) = (record.now, &record.mark)
        && file.touched_since(mark) == Touched::No
    {
        return Ok(Some((now, record.upcoming.is_none())));
    }
    let sum = sum_of_file(file, record.key)?;
    let states = [record.now, record.upcoming];
    Ok(states.into_iter().flatten().find(|state| state.sum == sum).map(|state| (state, false)))
}

fn named(source: &str, log: Option<&str>) -> String {
    log.map_or_else(|| source.to_owned(), |log| format!("{source} (log {log})"))
}

/// The error of a source whose stream is over before its end.
pub(super) fn gone() -> MirrorError {
    MirrorError::Interrupted("the source is gone".into())
}
