//! Why a replica stops, and what to do about it.

use std::io;

use crate::sqlite::DatabaseError;
use crate::sqlite::btree::TreeError;
use crate::sync::SyncError;

/// Why an operation of a replica ended early. What was committed to the draft is there in any case.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The remote, or the way there.
    #[error(transparent)]
    Remote(#[from] SyncError),
    /// A file of the replica.
    #[error("{doing} {file}: {error}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        file: String,
        /// Why it failed.
        error: io::Error,
    },
    /// A write failed before: what the files hold is not known until they are opened again.
    #[error("{file} is not written any more, after a write or sync that failed: open the replica again")]
    Latched {
        /// The file.
        file: String,
    },
    /// There is no replica where one was to be looked at.
    #[error("there is no replica at {path}: a pull, push or sync makes one")]
    Absent {
        /// Where it was looked for.
        path: String,
    },
    /// Another process has the replica open.
    #[error("{file} is in use by another process{}", pid.map_or_else(String::new, |pid| format!(" ({pid})")))]
    Busy {
        /// The file that is locked.
        file: String,
        /// That process, if the system can tell.
        pid: Option<i32>,
    },
    /// A transaction of the application did not end in time.
    #[error("a transaction has kept the draft locked for {seconds} s; end it and try again")]
    Locked {
        /// How long was waited.
        seconds: u64,
    },
    /// A transaction of the application was cut short, and only SQLite can undo it.
    #[error("{journal} undoes a transaction that did not end: open {draft} with SQLite once, which makes use of it")]
    Unfinished {
        /// The draft.
        draft: String,
        /// Its journal.
        journal: String,
    },
    /// A file of the replica is gone while the others are there.
    #[error(
        "{file} is missing, though {there} is there, which may have changes that were not pushed: restore it, or start over \
         with --rebuild, which sets what is there aside"
    )]
    Missing {
        /// The file.
        file: String,
        /// One that is there.
        there: String,
    },
    /// The file that says how far the replica is cannot be believed.
    #[error(
        "{file} cannot be used: {reason}. Restore it, or start over with --rebuild, which sets all files of the replica aside, local changes included"
    )]
    Info {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The files of the replica do not belong together.
    #[error(
        "the files of the replica do not fit each other: {what}. One of them is an older copy: restore the others of the same moment, or start over with --rebuild, which sets what is there aside"
    )]
    Mismatch {
        /// What does not fit.
        what: String,
    },
    /// The remote has another history than the replica has seen.
    #[error(
        "the remote is not what it was: {what}. If it was replaced or restored from a backup, start over with --rebuild, which sets the draft aside with its local changes"
    )]
    Diverged {
        /// What is not as it was.
        what: String,
    },
    /// Somebody else pushes in the name of this replica.
    #[error(
        "the remote has changes in the name of this replica ({client}) that it did not make: it is a copy of another one. Start over with --rebuild, which gives it a name of its own"
    )]
    Copied {
        /// The name.
        client: String,
    },
    /// A database that cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A row that cannot be read.
    #[error("a row of table {table:?} is damaged")]
    Record {
        /// The table.
        table: String,
    },
    /// A table that is not understood.
    #[error("this table cannot be replicated: {sql}")]
    Schema {
        /// How it was made.
        sql: String,
    },
    /// A table whose rows the engine would write wrongly.
    #[error(
        "rows of {table} cannot be replicated: it is WITHOUT ROWID and does not start with its key, so turso_core takes one \
         column for another; make it anew with the columns of the key first"
    )]
    KeyNotFirst {
        /// The table.
        table: String,
    },
    /// A row that was changed and has a text that the engine can neither read nor write.
    #[error(
        "table {table:?} has a text that is not UTF-8 in column {column:?} of the row with {key}: the SQL engine would write \
         another one, so nothing is pushed or pulled. Make it a blob, CAST({column:?} AS BLOB), or UTF-8"
    )]
    NotUtf8 {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// The key of the row, or its rowid.
        key: String,
    },
    /// A database that is not understood.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The SQL engine.
    #[error("the SQL engine fails: {0}")]
    Engine(String),
    /// A statement that the remote could not run for a reason of its own.
    #[error("the remote could not run {sql:?}: {error}")]
    Statement {
        /// The statement.
        sql: String,
        /// What it said.
        error: String,
    },
    /// The remote takes no transaction of that size, and it cannot be made in parts.
    #[error(
        "the remote takes no transaction as large as {}: {error}. Nothing of it was kept; raise the limit there, or make the \
         change there yourself",
        what.as_deref().unwrap_or("this push")
    )]
    TooLarge {
        /// What was to be done, where that is known.
        what: Option<String>,
        /// What it said.
        error: String,
    },
    /// The remote ended the transaction of a push before it was whole.
    #[error("the remote ended the push before it was whole: {0}; nothing of it was kept")]
    Ended(String),
    /// A thread ended early.
    #[error("{0}")]
    Interrupted(String),
}

impl ReplicaError {
    /// Says what was tried on which file.
    pub(super) fn io(doing: &'static str, file: &str) -> impl FnOnce(io::Error) -> ReplicaError + use<> {
        let file = file.to_owned();
        move |error| ReplicaError::Io { doing, file, error }
    }

    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            ReplicaError::Remote(error) => error.is_transient(),
            ReplicaError::Busy { .. } | ReplicaError::Locked { .. } => true,
            ReplicaError::Statement { .. } | ReplicaError::Ended(_) | ReplicaError::Interrupted(_) => true,
            _ => false,
        }
    }

    /// Whether what the user gave is at fault: URL or token.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, ReplicaError::Remote(error) if error.is_usage())
    }

    /// Whether the data is at fault, and not a disk or a network.
    #[must_use]
    pub fn is_data(&self) -> bool {
        match self {
            ReplicaError::Remote(error) => error.is_data(),
            ReplicaError::Absent { .. } | ReplicaError::Unfinished { .. } => true,
            ReplicaError::Missing { .. } | ReplicaError::Info { .. } | ReplicaError::Mismatch { .. } => true,
            ReplicaError::Diverged { .. } | ReplicaError::Copied { .. } | ReplicaError::Tree(_) => true,
            ReplicaError::Record { .. } | ReplicaError::Schema { .. } | ReplicaError::TooLarge { .. } => true,
            ReplicaError::KeyNotFirst { .. } | ReplicaError::NotUtf8 { .. } | ReplicaError::Unsupported(_) => true,
            ReplicaError::Io { .. }
            | ReplicaError::Latched { .. }
            | ReplicaError::Busy { .. }
            | ReplicaError::Locked { .. } => false,
            ReplicaError::Engine(_) | ReplicaError::Statement { .. } | ReplicaError::Ended(_) => false,
            ReplicaError::Interrupted(_) => false,
        }
    }
}

impl From<DatabaseError> for ReplicaError {
    fn from(error: DatabaseError) -> Self {
        ReplicaError::Remote(error.into())
    }
}

impl From<turso_core::LimboError> for ReplicaError {
    fn from(error: turso_core::LimboError) -> Self {
        ReplicaError::Engine(error.to_string())
    }
}
