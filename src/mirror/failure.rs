//! Why a mirror stopped, and whose fault that is.

use std::path::PathBuf;

use crate::api::ErrorBody;
use crate::checkpoint::RestoreError;
use crate::client::ClientError;
use crate::format::{FormatError, ScanError};
use crate::offset::{BytePos, Generation, Offset};
use crate::sqlite::SnapshotError;
use crate::stream::{AppendError, OpenError, ReadError};

/// Why a mirror stopped. Everything before is kept; running it again resumes.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The source is damaged or cannot be read.
    #[error("source: {0}")]
    Read(#[from] ReadError),
    /// What the source sent is not a sound log.
    #[error("source: {0}")]
    Received(ScanError),
    /// The sink cannot be opened.
    #[error("sink: {0}")]
    Open(#[from] OpenError),
    /// The sink does not take what the source has.
    #[error("sink: {0}")]
    Append(#[from] AppendError),
    /// A service refused, or could not be reached.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// A service refused what it was sent, while it was being sent.
    #[error("{} ({})", .0.message, .0.error)]
    Refused(Box<ErrorBody>),
    /// A directory cannot be used.
    #[error("{place}: {error}")]
    Dir {
        /// Which.
        place: String,
        /// Why.
        error: std::io::Error,
    },
    /// The sink's last commit is another one in the source: the histories have parted.
    #[error("fork: the commit at offset {at} in the sink is not the one in the source")]
    Fork {
        /// Its offset.
        at: Offset,
    },
    /// The source does not hold any more what was read from it.
    #[error("fork: the source no longer holds the commit at offset {at}: it was reset, or lost its end")]
    Reset {
        /// The commit's offset.
        at: Offset,
    },
    /// The sink holds more than the source: the source was reset, or lost its end.
    #[error("fork: the sink ends at offset {sink}, but the source at {source_end}: it was reset, or lost its end")]
    Ahead {
        /// Where the sink ends.
        sink: Offset,
        /// Where the source ends.
        source_end: Offset,
    },
    /// The sink is in a later generation than the source: the source was reset, or is not where the sink came from.
    #[error("fork: the sink is in generation {sink}, and the source in {source_generation}")]
    LaterGeneration {
        /// The sink's.
        sink: Generation,
        /// The source's.
        source_generation: Generation,
    },
    /// Commits between the end of the sink and the start of the source are gone.
    #[error("gap: the sink ends at offset {sink}, but the source starts at {source_first}")]
    Gap {
        /// Where the sink ends.
        sink: Offset,
        /// Where the source starts.
        source_first: Offset,
    },
    /// The source ends in torn bytes; everything before them was copied.
    #[error("the source ends in {bytes} torn bytes behind offset {next}; if nobody is writing it, --trim accepts that")]
    Torn {
        /// How many bytes.
        bytes: u64,
        /// Where its whole commits end.
        next: Offset,
    },
    /// A directory that is the sink is damaged or cannot be read.
    #[error("sink: {0}")]
    Sink(ReadError),
    /// A directory that is the sink holds a log of another format.
    #[error("{} holds a log of another format than a SQLite WAL", .place.display())]
    NotAWal {
        /// Which.
        place: PathBuf,
    },
    /// The source is a database that cannot be read, or not now.
    #[error("source: {0}")]
    Snapshot(#[from] SnapshotError),
    /// The WAL of the source is damaged before a transaction that is sound; everything before was copied.
    #[error(
        "source: {}: frame {frame} at byte {at} is damaged, and transactions behind it are not, such as the one that frame \
         {sound} ends: they are lost to SQLite too; everything before frame {frame} was copied", .path.display()
    )]
    WalDamaged {
        /// The WAL, or its database.
        path: PathBuf,
        /// The first frame that is not sound.
        frame: Offset,
        /// Where it starts.
        at: BytePos,
        /// A sound commit frame behind it.
        sound: Offset,
    },
    /// The header of the source's WAL is damaged, so nothing of it counts.
    #[error("source: {}: the header of the WAL, at byte 0 before frame 1, is damaged: {error}", .path.display())]
    WalHeader {
        /// The WAL, or its database.
        path: PathBuf,
        /// In what way.
        error: FormatError,
    },
    /// A WAL was given without its database, which a new generation starts from.
    #[error("source: {} alone makes no database: {reason}; give the database file, with its WAL beside it", .path.display())]
    NoBase {
        /// The WAL.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The source goes on with another generation than the one in the directory that is the sink.
    #[error("{} holds another generation: the source was checkpointed since; mirror it into a new directory", .place.display())]
    OtherGeneration {
        /// The directory.
        place: PathBuf,
    },
    /// A directory cannot be taken for a mirror of this source by itself. Nothing was changed.
    #[error(
        "sink: {}: not known to be a mirror of the source: {reason}; nothing was changed; if it is the copy and not the original, \
         --adopt takes it over after comparing its last commit with the source", .place.display()
    )]
    NotOurs {
        /// The directory.
        place: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A SpacetimeDB is running on the directory that is the sink. Nothing was changed.
    #[error(
        "sink: {}: a SpacetimeDB or another mirror has it open{}: {} is locked; nothing was changed; is this the source?", .place.display(),
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), .lock.display()
    )]
    DatabaseRuns {
        /// The directory.
        place: PathBuf,
        /// The file that is locked.
        lock: PathBuf,
        /// The process that holds it, if it is known.
        pid: Option<u32>,
    },
    /// Source and sink are the same place, or one is inside the other.
    #[error(
        "{} and {} are the same directory, or one is inside the other: a source is never written", .source_place.display(),
        .sink.display()
    )]
    SamePlace {
        /// The source.
        source_place: PathBuf,
        /// The sink.
        sink: PathBuf,
    },
    /// What the sink holds cannot be restored, to be compared.
    #[error("sink: {0}")]
    Restore(#[from] RestoreError),
    /// Something between us and a service holds back what is sent, or refuses it: from now on it is sent in other ways.
    #[error(
        "{reason}: a proxy between us and the service seems to hold back or refuse streams (nginx does with its defaults): \
         going on in requests of bounded size"
    )]
    HeldBack {
        /// How it showed.
        reason: String,
    },
    /// The connection or a thread ended early.
    #[error("{0}")]
    Interrupted(String),
}

impl MirrorError {
    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            // What is sent are whole commits and whole bases: one that arrives cut was cut on its way, by a timeout say.
            MirrorError::Client(ClientError::Refused { body, .. }) if body.error == "truncated" => true,
            MirrorError::Client(error) => error.is_transient(),
            MirrorError::Refused(body) => {
                matches!(body.error.as_str(), "unavailable" | "failed" | "poisoned" | "truncated")
            }
            MirrorError::Snapshot(error) => error.is_transient(),
            // A stream from a service that is cut by its end, not by damage.
            MirrorError::Received(ScanError::Truncated { .. })
            | MirrorError::HeldBack { .. }
            | MirrorError::Interrupted(_) => true,
            _ => false,
        }
    }

    /// Whether the places to mirror are at fault, or who we are: no URL of a log, a name that cannot be one, a wrong token, a
    /// WAL without its database.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            MirrorError::Client(ClientError::Url { .. })
            | MirrorError::NoBase { .. }
            | MirrorError::SamePlace { .. } => true,
            MirrorError::Client(ClientError::Refused { status, .. }) => matches!(status, 400 | 401 | 403),
            _ => false,
        }
    }

    /// Whether the data is at fault, and not a disk or a network.
    #[must_use]
    pub fn is_data(&self) -> bool {
        match self {
            _ if self.is_usage() => false,
            MirrorError::Read(error) | MirrorError::Sink(error) => !matches!(error, ReadError::Io(_)),
            MirrorError::Snapshot(error) => !error.is_transient() && !matches!(error, SnapshotError::Io { .. }),
            MirrorError::Restore(error) => error.is_data(),
            MirrorError::Open(error) => !matches!(error, OpenError::Io(_) | OpenError::Locked { .. }),
            MirrorError::DatabaseRuns { .. } => false,
            MirrorError::Append(error) => !matches!(error, AppendError::Poisoned { .. }),
            MirrorError::Client(ClientError::Refused { status, .. }) => !self.is_transient() && *status != 404,
            MirrorError::Refused(_) => !self.is_transient(),
            MirrorError::Client(_)
            | MirrorError::Dir { .. }
            | MirrorError::HeldBack { .. }
            | MirrorError::Interrupted(_) => false,
            _ => true,
        }
    }
}
