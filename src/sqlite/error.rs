//! [`DatabaseError`]: what can be in the way of whoever opens the files of a database.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cut::CutPage;
use crate::format::database::HeaderError;

/// Why the files of a database cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The file system refused.
    #[error("{doing}: {error}")]
    Io {
        /// What was tried, with the path.
        doing: String,
        /// Why it failed.
        error: io::Error,
    },
    /// The file is none of SQLite's, or its header is damaged.
    #[error("{} is not a SQLite database: {reason}", .path.display())]
    NotADatabase {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A connection has the database for itself: in `locking_mode=EXCLUSIVE`, or to commit in rollback mode.
    #[error("{} is locked by a connection that has it for itself", .path.display())]
    Exclusive {
        /// The database.
        path: PathBuf,
    },
    /// Another connection has the database open, and we must be alone.
    #[error("{} is open in another process{}: close it there first", .path.display(), .pid.map(|pid| format!(" ({pid})")).unwrap_or_default())]
    Busy {
        /// The database.
        path: PathBuf,
        /// The process, if the system can tell.
        pid: Option<i32>,
    },
    /// A transaction in rollback mode is under way.
    #[error("a transaction is being written to {}, which is not in WAL mode", .path.display())]
    Writing {
        /// The database.
        path: PathBuf,
    },
    /// A writer was interrupted in rollback mode, and what it wrote is not rolled back yet.
    #[error("{} holds a transaction that was broken off; opening the database with SQLite rolls it back", .path.display())]
    HotJournal {
        /// The journal.
        path: PathBuf,
    },
    /// Another connection has the write lock of a database that only we write.
    #[error("another connection is writing to {}, which is a read replica", .path.display())]
    WriteLocked {
        /// The database.
        path: PathBuf,
    },
    /// A read that started before a WAL was copied keeps it from starting again.
    #[error("a transaction has been reading {} for long: until it ends the WAL cannot start again", .path.display())]
    ReadInTheWay {
        /// The database.
        path: PathBuf,
    },
    /// A database that only we write was written by another program. What it wrote was not overwritten.
    #[error("{} was written by another program: {what}", .path.display())]
    WrittenByOthers {
        /// The database.
        path: PathBuf,
        /// What shows it.
        what: &'static str,
    },
    /// A checkpoint is under way.
    #[error("a checkpoint of {} is under way, and did not end in time", .path.display())]
    Checkpoint {
        /// The database.
        path: PathBuf,
    },
    /// Database and WAL do not belong together.
    #[error("{} has pages of {database} bytes, but its WAL of {wal}", .path.display())]
    PageSize {
        /// The database.
        path: PathBuf,
        /// Its page size.
        database: u32,
        /// That of the WAL.
        wal: u32,
    },
    /// There are transactions in the WAL of a database file without a byte; SQLite would delete that WAL.
    #[error("{} is empty, but its WAL holds {frames} committed frames: it was lost or replaced", .path.display())]
    Orphan {
        /// The database.
        path: PathBuf,
        /// Those frames.
        frames: u64,
    },
    /// The file ends before the database does.
    #[error("{} is cut: {cut}; put it back from a backup, or save what is left with `sqlite3 FILE .recover`", .path.display())]
    Cut {
        /// The database.
        path: PathBuf,
        /// Where.
        cut: CutPage,
    },
    /// Connections count frames of a WAL that is not there any more: it was removed, cut or replaced under them.
    #[error(
        "an application that has {} open counts {frames} frames of its WAL, which are not in {}-wal any more: that was removed, cut \
         or replaced: what is committed cannot be read until the application has checkpointed; let it do so, and start it again",
        .path.display(), .path.display()
    )]
    WalAway {
        /// The database.
        path: PathBuf,
        /// Those frames.
        frames: u64,
    },
    /// The WAL belongs to a database file that is not there any more.
    #[error(
        "process {pid} has the -shm file of {} in use, but not that database file: it was replaced under it, and what is in -wal \
         belongs to the file before: start the application again", .path.display()
    )]
    FileAway {
        /// The database.
        path: PathBuf,
        /// The process.
        pid: i32,
    },
    /// The path that was given leads to another database than before.
    #[error("{} leads to {} now, no longer to {}: starting again with that", .path.display(), .now.display(), .before.display())]
    PathMoved {
        /// The path that was given.
        path: PathBuf,
        /// The database before.
        before: PathBuf,
        /// The database now.
        now: PathBuf,
    },
    /// The file has several names, and its WAL is beside another one than that which was given.
    #[error("{} has {links} names (hard links), and {what}", .path.display())]
    Linked {
        /// The database, by the name that was given.
        path: PathBuf,
        /// How many names.
        links: u64,
        /// How that is known, and what to do.
        what: String,
    },
    /// A file of this name belongs to the database beside it, and cannot be a database of its own.
    #[error(
        "{} has the name of a file that belongs to the database {}: another file in its place would damage that one; nothing was \
         changed: give another path", .path.display(), .database.display()
    )]
    SideFile {
        /// The path that was given.
        path: PathBuf,
        /// The database.
        database: PathBuf,
    },
    /// A replica that must be made again, since another process has written it, was made again shortly before.
    #[error(
        "{}: another program writes to this replica{}: have it write elsewhere, or open the file read-only. {count} databases are set \
         aside beside it ({}.aside-TIME), so it is made again no earlier than {} s after the last of them, and nothing is written to it \
         until then: look at them, and remove what was set aside to have it made again at once",
        .path.display(), opened_by(.pid), .path.display(), .after.as_secs()
    )]
    Spoilt {
        /// The replica.
        path: PathBuf,
        /// The process that had it open when that was noticed, if there was one.
        pid: Option<i32>,
        /// How many were set aside.
        count: u32,
        /// How long after the last of them it is made again.
        after: Duration,
    },
    /// The files are not any more what they were when they were opened.
    #[error("{} was changed by another process: {what}", .path.display())]
    Changed {
        /// The database, or its WAL.
        path: PathBuf,
        /// In what way.
        what: &'static str,
    },
    /// They changed each time.
    #[error("{} changed each of {rounds} times it was read", .path.display())]
    Unsettled {
        /// The database.
        path: PathBuf,
        /// How many times.
        rounds: u32,
    },
}

impl DatabaseError {
    pub(crate) fn io(doing: &str, path: &Path, error: io::Error) -> DatabaseError {
        DatabaseError::Io { doing: format!("{doing} {}", path.display()), error }
    }

    pub(crate) fn not_one(path: &Path, reason: &HeaderError) -> DatabaseError {
        DatabaseError::NotADatabase { path: path.to_owned(), reason: reason.to_string() }
    }

    /// Of a WAL with another header or other frames than before.
    pub(crate) fn restarted(path: &Path) -> DatabaseError {
        DatabaseError::Changed { path: path.to_owned(), what: "its log was restarted" }
    }

    /// Whether it may go better later, without anybody doing anything about it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use DatabaseError::{Changed, FileAway, Linked, PathMoved, Unsettled, WalAway};
        let differs = matches!(self, WalAway { .. } | FileAway { .. } | PathMoved { .. } | Linked { .. });
        self.is_in_use() || differs || matches!(self, Changed { .. } | Unsettled { .. })
    }

    /// Whether the file may be on its way from a backup, or be rolled back when the application opens it.
    #[must_use]
    pub fn may_be_restored(&self) -> bool {
        use DatabaseError::{Cut, HotJournal, NotADatabase, Orphan};
        matches!(self, Cut { .. } | HotJournal { .. } | NotADatabase { .. } | Orphan { .. })
    }

    /// Whether what others do with the database is in the way, and nothing else is wrong.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        use DatabaseError::{Busy, Checkpoint, Exclusive, ReadInTheWay, Spoilt, WriteLocked, Writing};
        matches!(
            self,
            Busy { .. }
                | Exclusive { .. }
                | Writing { .. }
                | Checkpoint { .. }
                | ReadInTheWay { .. }
                | WriteLocked { .. }
                | Spoilt { .. }
        )
    }
}

fn opened_by(pid: &Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid} has it open)"))
}
