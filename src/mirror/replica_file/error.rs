//! Why a read replica file cannot be kept.

use std::path::{Path, PathBuf};

use crate::blame::{Blame, Blamed};
use crate::sqlite::DatabaseError;

/// Why a read replica file cannot be kept. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaFileError {
    /// A database that no mirror has made.
    #[error(
        "sink: {}: this is a SQLite database without the record of a mirror ({}): it may be an application's, and is never written; \
         nothing was changed: choose another DST, or move it away", .path.display(), .record.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Where its record would be.
        record: PathBuf,
    },
    /// The record is not one that can be read.
    #[error("sink: {}: the record of a read replica file is damaged: {reason}; move it and the file away to make both again", .path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is a symbolic link, or no regular file.
    #[error("sink: {}: {what}: give the path of the file itself", .path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file, or its WAL, has another name.
    #[error(
        "sink: {}: it {what}, and writing it would change that too; nothing was changed: replace it by a copy (cp FILE NEW; mv NEW \
         FILE)", .path.display()
    )]
    OtherNames {
        /// The file.
        path: PathBuf,
        /// How many names it has.
        what: String,
    },
    /// Another mirror keeps the file.
    #[error("sink: {}: another mirror is keeping this file: end that one first, or choose another DST", .path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file follows another log.
    #[error(
        "sink: {}: it follows {held}, and SRC is {offered}; nothing was changed: choose another DST, or give --adopt to set this file \
         aside and make a new one", .path.display()
    )]
    OtherLog {
        /// The file.
        path: PathBuf,
        /// What its record says.
        held: String,
        /// The source.
        offered: String,
    },
    /// The source makes no database.
    #[error("DST {} is a SQLite file, and SRC is {what}: {advice}", .path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What the source is.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// The source is a read replica file: its source is elsewhere.
    #[error(
        "SRC {} is a read replica file that follows {of}: are the arguments swapped? To mirror it as a database of its own, remove its \
         record {} first", .path.display(), .record.display()
    )]
    Swapped {
        /// The file.
        path: PathBuf,
        /// What it follows.
        of: String,
        /// Its record.
        record: PathBuf,
    },
    /// Another process has written the file. It is set aside, and made again.
    #[error("sink: {}: another process has written this file: {what}", .path.display())]
    Touched {
        /// The file.
        path: PathBuf,
        /// What shows it.
        what: &'static str,
    },
    /// The source goes on with what cannot be reached by transactions. The file is made again.
    #[error("sink: {}: {why}", .path.display())]
    Again {
        /// The file.
        path: PathBuf,
        /// What the source goes on with.
        why: String,
    },
    /// The file cannot be used.
    #[error("sink: {0}")]
    File(DatabaseError),
}

impl From<DatabaseError> for ReplicaFileError {
    fn from(error: DatabaseError) -> ReplicaFileError {
        match error {
            DatabaseError::WrittenByOthers { path, what } => ReplicaFileError::Touched { path, what },
            error => ReplicaFileError::File(error),
        }
    }
}

impl ReplicaFileError {
    /// That the source goes on with pages of another size.
    pub(super) fn page_size(path: &Path, held: u32, offered: u32) -> ReplicaFileError {
        let why = format!("it has pages of {held} bytes, and the source now of {offered}");
        ReplicaFileError::Again { path: path.to_owned(), why }
    }
}

impl Blamed for ReplicaFileError {
    fn blame(&self) -> Blame {
        use ReplicaFileError::{
            Again, File, Link, Locked, NotOurs, OtherLog, OtherNames, Record, Source, Swapped, Touched,
        };
        match self {
            NotOurs { .. } | Link { .. } | Source { .. } | Swapped { .. } => Blame::Usage,
            OtherLog { .. } | OtherNames { .. } | Record { .. } => Blame::Data,
            Locked { .. } => Blame::Io,
            Again { .. } | Touched { .. } => Blame::Transient,
            File(DatabaseError::SideFile { .. }) => Blame::Usage,
            File(error) if error.is_transient() => Blame::Transient,
            File(DatabaseError::Io { .. }) => Blame::Io,
            File(_) => Blame::Data,
        }
    }
}
