//! What a caller of a log may get instead of an answer.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::format::{FormatError, ScanError, wal};
use crate::offset::{Epoch, Generation, Offset};
use crate::stream::{AppendError, BatchError};

/// Few kinds, each telling the caller what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense: change it.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Commits are missing before what was sent: send from `expected`.
    #[error("the log goes on with offset {expected}, but offset {found} was sent")]
    Gap {
        /// Where the log goes on.
        expected: Offset,
        /// What came.
        found: Offset,
    },
    /// The sender's history is not ours: somebody must decide.
    #[error("the commit at offset {at} is not the one this log holds: the histories have parted")]
    Fork {
        /// Where.
        at: Offset,
    },
    /// The sender was replaced by a later leader.
    #[error("epoch falls from {current} to {found} at offset {at}")]
    StaleEpoch {
        /// Where.
        at: Offset,
        /// The log's.
        current: Epoch,
        /// The sender's.
        found: Epoch,
    },
    /// The reader asks for what is not there yet.
    #[error("offset {from} is ahead of this log, which ends at offset {next} of generation {generation}")]
    Ahead {
        /// What was asked for.
        from: Offset,
        /// The durable end.
        next: Offset,
        /// The generation that was read.
        generation: Generation,
    },
    /// Parts of an upload are missing before the one that was sent.
    #[error("of this upload {received} bytes were received: send the part that starts there")]
    PartMissing {
        /// How many bytes there are.
        received: u64,
    },
    /// A mirror feeds the log from another source than the writer's: clients only read it.
    #[error(
        "log {log:?} follows {source_identity}, and only the mirror of that writes it: reads are answered; to write here, stop that \
         mirror and run `logmirror promote URL`"
    )]
    Mirrored {
        /// Its name.
        log: String,
        /// What it is fed from.
        source_identity: String,
    },
    /// A mirror feeds the log from another source than the one that is to feed it, and does so now.
    #[error(
        "log {log:?} is fed from {source_identity} now{}, and {wanted} is another source: nothing was changed; mirror into a log of its \
         own, or stop the mirror of {source_identity} and run this again a minute later; --adopt takes the log over at once",
        last(*.since)
    )]
    Fed {
        /// Its name.
        log: String,
        /// What it is fed from.
        source_identity: String,
        /// What was to feed it.
        wanted: String,
        /// How long ago its last stream ended; zero while one is open.
        since: Duration,
    },
    /// Another mirror took the log over from the writer's.
    #[error(
        "log {log:?} was taken over: it is fed from {source_identity} now, and no more from {loser}, of which it takes nothing: mirror \
         {loser} into a log of its own; or, if {source_identity} should not feed this one, stop the mirror of that, and run this one \
         again with --adopt"
    )]
    TakenOver {
        /// Its name.
        log: String,
        /// What it is fed from.
        source_identity: String,
        /// What it was fed from before.
        loser: String,
    },
    /// The log was handed over to its clients: no mirror writes it any more.
    #[error(
        "log {log:?} was handed over to its clients, and follows {from} no more: mirror into another log; --adopt starts a new \
         generation of this one, and sets what its clients wrote aside"
    )]
    Promoted {
        /// Its name.
        log: String,
        /// What it was fed from.
        from: String,
    },
    /// The log exists with another format or first offset.
    #[error("{0}")]
    Format(String),
    /// The reader asks for what is there no longer.
    #[error("offset {from} is no longer here: this log starts at offset {first}")]
    Pruned {
        /// What was asked for.
        from: Offset,
        /// The first offset.
        first: Offset,
    },
    /// The log is in another generation than the one that was named, or uses that already: its status says where it goes on.
    #[error("{}", ended(*.generation, *.current))]
    Ended {
        /// The one that was named.
        generation: Generation,
        /// The one that the log is in.
        current: Generation,
    },
    /// The sender's database is not the one that the generation starts from: somebody must decide.
    #[error(
        "generation {generation} of this log starts from another base than the one that was sent: it stays as it is; send to another \
         log, or start the next generation"
    )]
    OtherBase {
        /// The generation.
        generation: Generation,
    },
    /// The reader asks for a generation that was deleted.
    #[error("generation {generation} is no longer here: this log is in generation {current}")]
    GenerationGone {
        /// What was asked for.
        generation: Generation,
        /// The current one.
        current: Generation,
    },
    /// A commit or body over its cap.
    #[error("{0}")]
    TooLarge(String),
    /// What was sent is damaged.
    #[error("{message}")]
    Corrupt {
        /// Offset of the damaged commit, when known.
        offset: Option<Offset>,
        /// What was found.
        message: String,
    },
    /// What was sent ends inside a commit; whole commits before it are kept.
    #[error("{message}")]
    Truncated {
        /// Offset of the commit that was cut, when known.
        offset: Option<Offset>,
        /// Where it was cut.
        message: String,
    },
    /// Our own files are damaged.
    #[error("this log is damaged on disk: {0}")]
    Damaged(Arc<str>),
    /// A statement has ended in a way that it must not be sent again as it is: what is known of the cause, and of what was stored.
    #[error("{0}")]
    Aborted(String),
    /// Come back later.
    #[error("{0}")]
    Unavailable(String),
    /// This log could not be opened, or a write or sync of it failed: it is reopened automatically.
    #[error("this log has failed, and is reopened automatically as soon as that works: {0}")]
    Failed(Arc<str>),
    /// The same, and of what was sent some was written that is not durable: whether it is stored is known once the log is reopened.
    /// It may be sent again where its offsets are sent with it.
    #[error("this log has failed, and is reopened automatically as soon as that works: {0}")]
    InDoubt(Arc<str>),
}

fn ended(generation: Generation, current: Generation) -> String {
    match generation.cmp(&current) {
        Ordering::Less => format!(
            "generation {generation} of this log has ended, and takes nothing more: the log is in generation {current} now, and its \
             status says where that goes on"
        ),
        Ordering::Equal => {
            format!("the log is in generation {current}, and uses it: the next one that can be started is a later one")
        }
        Ordering::Greater => format!("the log is in generation {current}, and generation {generation} has not begun"),
    }
}

fn last(since: Duration) -> String {
    if since.is_zero() { String::new() } else { format!(" (last {} s ago)", since.as_secs()) }
}

impl Error {
    /// One word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Error::Invalid(_) => "invalid",
            Error::NotFound(_) => "not-found",
            Error::Gap { .. } => "gap",
            Error::Fork { .. } | Error::OtherBase { .. } => "fork",
            Error::StaleEpoch { .. } => "stale-epoch",
            Error::Ahead { .. } => "ahead",
            Error::PartMissing { .. } => "part-missing",
            Error::Mirrored { .. } | Error::Fed { .. } | Error::TakenOver { .. } => "mirrored",
            Error::Promoted { .. } => "promoted",
            Error::Format(_) => "format",
            Error::Pruned { .. } | Error::GenerationGone { .. } => "pruned",
            Error::Ended { .. } => "ended",
            Error::TooLarge(_) => "too-large",
            Error::Corrupt { .. } => "corrupt",
            Error::Truncated { .. } => "truncated",
            Error::Damaged(_) => "corrupt-log",
            Error::Aborted(_) => "sql-aborted",
            Error::Unavailable(_) => "unavailable",
            Error::Failed(_) | Error::InDoubt(_) => "failed",
        }
    }
}

impl From<ScanError> for Error {
    fn from(error: ScanError) -> Self {
        let message = error.to_string();
        match error {
            ScanError::Corrupt { error: FormatError::TooLarge { .. }, .. } => Error::TooLarge(message),
            // New salts are another history.
            ScanError::Corrupt { error: FormatError::Restarted { .. }, .. } => Error::Fork { at: wal::FIRST_FRAME },
            ScanError::Corrupt { offset, .. } => Error::Corrupt { offset, message },
            ScanError::Truncated { offset, .. } => Error::Truncated { offset, message },
        }
    }
}

impl From<BatchError> for Error {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Stream(error) => error.into(),
            error @ BatchError::Spool { .. } => Error::Unavailable(error.to_string()),
        }
    }
}

impl From<AppendError> for Error {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Stream(error) => error.into(),
            AppendError::Spool(error) => error.into(),
            error @ AppendError::Unread { .. } => Error::Unavailable(error.to_string()),
            AppendError::NoHeader { found } => {
                Error::Corrupt { offset: Some(found), message: AppendError::NoHeader { found }.to_string() }
            }
            AppendError::Gap { expected, found } => Error::Gap { expected, found },
            AppendError::Pruned { first, found } => Error::Pruned { from: found, first },
            AppendError::Fork { at } => Error::Fork { at },
            AppendError::StaleEpoch { at, current, found } => Error::StaleEpoch { at, current, found },
            AppendError::Damaged(fault) => Error::Damaged(fault.to_string().into()),
            error @ AppendError::Foreign { .. } => Error::Failed(error.to_string().into()),
            AppendError::Poisoned { cause } => Error::Failed(cause),
        }
    }
}

/// A read of our own files failed.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Error::Damaged(error.to_string().into()),
            _ => Error::Unavailable(format!("cannot read the log: {error}")),
        }
    }
}
