//! What is kept beside a read replica file about it: which source it follows, and up to where. `FILE-logmirror`, JSON, replaced
//! atomically; the one process that writes the file holds a lock on it.
//!
//! It names two states: the one that the file is known to be in, and the one that it is being brought to. It is written and synced
//! before the file changes, so after a crash at any point the file is in one of the two, and its sum shows in which.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::ReplicaFileError;
use crate::api::LastCommit;
use crate::limits::JSON_BYTES_MAX;
use crate::mirror::failure::MirrorError;
use crate::offset::{Generation, Offset};
use crate::repo::{give_owner, open_regular};
use crate::segment::base::BaseDigest;
use crate::sqlite::names::{RECORD, beside};
use crate::sqlite::read_replica::StateMark;

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// A state of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) generation: Generation,
    /// The offset after its last commit.
    pub(super) next: Offset,
    /// That commit; none at the start of a generation.
    pub(super) last: Option<LastCommit>,
    /// The base of the generation; none where the source did not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base: Option<BaseDigest>,
}

/// A state of the file: which one of the source, and the sum of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileState {
    #[serde(flatten)]
    pub(super) at: Position,
    pub(super) sum: u64,
}

/// Which source a file must follow.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    /// Its name, without secrets.
    pub(super) source: String,
    /// The id of its log, if it is a service's.
    pub(super) log: Option<String>,
    /// The id that the log is known to have had before.
    pub(super) former: Option<String>,
    /// Whether a file that follows another one is set aside.
    pub(super) adopt: bool,
}

/// The record of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) version: u32,
    /// The source, without secrets.
    pub(super) source: String,
    /// The id of the source's log, if it is a service's.
    pub(super) log: Option<String>,
    /// What the sums depend on.
    pub(super) key: u64,
    /// The state that the file is in; none while it was never there.
    pub(super) now: Option<FileState>,
    /// What the file looked like in that state.
    pub(super) mark: Option<StateMark>,
    /// The state that it is being brought to.
    pub(super) upcoming: Option<FileState>,
}

impl FileRecord {
    pub(super) fn new(source: &str, log: Option<String>, key: u64) -> FileRecord {
        let (now, mark, upcoming) = (None, None, None);
        FileRecord { version: VERSION, source: source.to_owned(), log, key, now, mark, upcoming }
    }

    /// Whether the file follows this source. The log of a service may have got another URL.
    pub(super) fn is_of(&self, followed: &Followed) -> bool {
        match (&self.log, &followed.log) {
            (Some(held), Some(offered)) => held == offered || followed.former.as_ref() == Some(held),
            _ => self.source == followed.source,
        }
    }
}

/// Where the record of a file is.
pub(super) fn record_path(database: &Path) -> PathBuf {
    beside(database, RECORD)
}

/// The record of a file; none where there is none. Takes no lock.
///
/// # Errors
/// [`ReplicaFileError::Record`] when it is none of ours, or damaged.
pub(super) fn read_record(database: &Path) -> Result<Option<FileRecord>, MirrorError> {
    let path = record_path(database);
    match open_regular(&path, OpenOptions::new().read(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(&path, error)),
        Ok(file) => decode(&path, file),
    }
}

fn decode(path: &Path, file: File) -> Result<Option<FileRecord>, MirrorError> {
    let mut text = Vec::new();
    file.take(JSON_BYTES_MAX as u64).read_to_end(&mut text).map_err(|error| at(path, error))?;
    if text.is_empty() {
        return Ok(None);
    }
    let damaged = |reason: String| ReplicaFileError::Record { path: path.to_owned(), reason };
    let record: FileRecord = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if record.version != VERSION {
        return Err(damaged(format!("it is of version {}, and this program reads {VERSION}", record.version)).into());
    }
    Ok(Some(record))
}

fn at(path: &Path, error: io::Error) -> MirrorError {
    MirrorError::Dir { place: path.display().to_string(), error }
}

/// The record of a file that no other process may write meanwhile.
#[derive(Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
    locked: File,
}

impl RecordFile {
    /// Takes the record of a file; one that is not there is made, without content.
    ///
    /// # Errors
    /// [`ReplicaFileError::Locked`] while another process has it.
    pub(super) fn lock(database: &Path) -> Result<RecordFile, MirrorError> {
        let mut path = record_path(database);
        loop {
            let mut options = OpenOptions::new();
            let file = open_regular(&path, options.read(true).write(true).create(true).truncate(false));
            let file = file.map_err(|error| at(&path, error))?;
            match file.try_lock() {
                Ok(()) => own(&file, database, &path).map_err(|error| at(&path, error))?,
                Err(TryLockError::WouldBlock) => {
                    return Err(ReplicaFileError::Locked { path: database.to_owned() }.into());
                }
                Err(TryLockError::Error(error)) => return Err(at(&path, error)),
            }
            let record = RecordFile { path, locked: file };
            // The one who had it may have put another in its place.
            if record.is_named() {
                return Ok(record);
            }
            path = record.path;
        }
    }

    fn is_named(&self) -> bool {
        let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        match (fs::metadata(&self.path), self.locked.metadata()) {
            (Ok(named), Ok(held)) => same(named, held),
            _ => false,
        }
    }

    /// What it says; none for a new one.
    ///
    /// # Errors
    /// [`ReplicaFileError::Record`].
    pub(super) fn read(&self) -> Result<Option<FileRecord>, MirrorError> {
        let file = open_regular(&self.path, OpenOptions::new().read(true)).map_err(|error| at(&self.path, error))?;
        decode(&self.path, file)
    }

    /// Replaces it. After Ok it survives power loss; after Err the old or the new one does.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn store(&mut self, record: &FileRecord) -> Result<(), MirrorError> {
        self.replace(record).map_err(|error| at(&self.path, error))
    }

    fn replace(&mut self, record: &FileRecord) -> io::Result<()> {
        let draft = beside(&self.path, ".tmp");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
        let held = self.locked.metadata()?;
        give_owner(&file, &fs::metadata(database_of(&self.path)).unwrap_or(held), &self.path)?;
        // Before it has the name: nobody finds it free.
        file.try_lock().map_err(io::Error::from)?;
        let mut text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        self.locked = file;
        sync_dir(&self.path)
    }

    /// Removes it where it says nothing yet.
    pub(super) fn remove_if_empty(&self) {
        if self.locked.metadata().is_ok_and(|found| found.len() == 0) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Gives a record that was just made to the owner of its database, if there is one.
fn own(record: &File, database: &Path, path: &Path) -> io::Result<()> {
    match fs::metadata(database) {
        Ok(database) if record.metadata()?.len() == 0 => give_owner(record, &database, path),
        _ => Ok(()),
    }
}

/// The database whose record has this path.
fn database_of(record: &Path) -> PathBuf {
    let name = record.to_str().and_then(|path| path.strip_suffix(RECORD));
    name.map_or_else(|| record.to_owned(), PathBuf::from)
}

/// Makes the names beside a path durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
