//! Why a sync stops, and what to do about it.

use std::path::PathBuf;

use super::PAGE_LEN;
use crate::blame::{Blame, Blamed, is_passing_status};
use crate::mirror::MirrorError;
use crate::sqlite::DatabaseError;
use crate::transport::explained;

/// Why a push or pull stopped. What was confirmed or synced before stands; running it again resumes.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The URL is not one of a sync server.
    #[error("{url:?} is not the URL of a libSQL sync server: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token holds characters that no header may.
    #[error("the token cannot be sent in a header: it must be plain visible ASCII")]
    Token,
    /// The server could not be reached, or the connection broke.
    #[error("{call}: {}", explained(.error))]
    Transport {
        /// The request.
        call: String,
        /// What happened.
        error: reqwest::Error,
    },
    /// The server refused.
    #[error("{call}: the server answers {status}{}", said(.text))]
    Status {
        /// The request.
        call: String,
        /// The HTTP status.
        status: u16,
        /// What it says, in one line; the start of what is longer.
        text: String,
        /// Whether these are words of a service, and not of something between us and it.
        is_own: bool,
    },
    /// Something answered, but not as the protocol has it.
    #[error("{call}: this is no answer of a libSQL sync server: {reason}")]
    Protocol {
        /// The request.
        call: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The server holds other frames than those offered.
    #[error(
        "conflict: the server refuses frames {start}.. of generation {generation} (its log ends at frame {server}): \
         another client pushed first, or the log is another one. Keep this database: push it to a log of its own; or pull the \
         server's into another file, and bring what is only here into that one"
    )]
    Conflict {
        /// The generation.
        generation: u32,
        /// First frame offered.
        start: u32,
        /// Last frame the server has.
        server: u32,
    },
    /// The server does not have any more what it confirmed, and nothing says that what it has is the beginning of that.
    #[error(
        "the server lost frames {}..={confirmed} of generation {generation}, which it had confirmed to this database: it ends at frame \
         {server} now, and not where an earlier push of this database is known to have ended. Its data may have been put back from a \
         copy, or another client pushed since. Keep this database: put a later copy of the server's data back; or push it to a log of \
         its own, and bring what is only in the server's log into it", server + 1
    )]
    Lost {
        /// The generation.
        generation: u32,
        /// Last frame the server has.
        server: u32,
        /// The last that it confirmed.
        confirmed: u32,
    },
    /// The server's log ends within a transaction that this database is not known to have sent.
    #[error(
        "frames {first}..={last} of generation {generation} on the server are the start of a transaction without its end, and \
         not known to be of this database: another client was interrupted while it pushed them. Run that client again, so that \
         it pushes the rest; it pushed first then, and what is only here must be saved and made again on top of that. If that \
         client is lost, start the database on the server again (or another one), and push it again from here"
    )]
    Unfinished {
        /// The generation.
        generation: u32,
        /// The first frame after the last whole transaction.
        first: u32,
        /// Last frame the server has.
        last: u32,
    },
    /// A frame that both hold is not the same.
    #[error(
        "fork: frame {frame} of generation {generation} in {} is not the server's, also when it is asked for again on a new \
         connection: the histories have parted. A database that is pushed from here stays as it is: push it to a log of its own. \
         For a replica, pull the server's into another file, and look at what is only here before you remove this one; or give \
         --adopt, which sets this one aside and makes it again", .path.display()
    )]
    Fork {
        /// The database.
        path: PathBuf,
        /// The generation.
        generation: u32,
        /// The frame.
        frame: u32,
    },
    /// A frame of the server does not follow those before it, also when it is asked for again.
    #[error(
        "{url}: frame {frame} of generation {generation} does not follow the frames before it ({reason}), also when it is asked for \
         again on a new connection: nothing of that answer was stored. Run it again; if that changes nothing, `logmirror verify` of \
         the log says whether it is damaged where it is stored, and a replica at another path whether this one is of another log"
    )]
    Broken {
        /// The server.
        url: String,
        /// The generation.
        generation: u32,
        /// The frame.
        frame: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// The log of the server is not the one that the replica was made from.
    #[error(
        "{url}: generation {generation} is of another log than the one that this replica was made from: {reason}. Nothing was \
         stored: pull the other log into another path, or give the URL of the right one"
    )]
    AnotherLog {
        /// The server.
        url: String,
        /// The generation.
        generation: u32,
        /// What was expected and found.
        reason: String,
    },
    /// The server said before of which log its answers are, and does not any more, also when it is asked again.
    #[error(
        "{url}: an answer about generation {generation} does not say of which log it is, as others of this server did or those that \
         the replica was made from, also when it is asked for again on a new connection: nothing of that answer was stored. Run it \
         again; a proxy must leave the field Logmirror-Wal in the answers. If this is another server now, --adopt sets the replica \
         aside and makes it again from what that one sends"
    )]
    Silent {
        /// The server.
        url: String,
        /// The generation.
        generation: u32,
    },
    /// The server keeps saying that it has less than it confirmed.
    #[error(
        "the server says it ends at frame {server} of generation {generation}, after frames {start}.. were sent for the \
         second time: it loses what it takes"
    )]
    Behind {
        /// The generation.
        generation: u32,
        /// First frame of what was sent last.
        start: u32,
        /// Where it says it ends.
        server: u32,
    },
    /// The server has another generation.
    #[error(
        "the server is in generation {server}, which is not known to go on from what this database holds of generation {ours}: another \
         client pushed before that ended, or it was started from another database. Keep this database: push it to a log of its own; or \
         pull the server's into another file, and bring what is only here into that one"
    )]
    Generation {
        /// That of the database.
        ours: u32,
        /// That of the server.
        server: u32,
    },
    /// The server is in an earlier generation than the replica.
    #[error(
        "{} is in generation {ours}, and the server in generation {server}: it was put back to an earlier state, or is another \
         one. If it stays so, --adopt sets the replica aside and makes it again", .path.display()
    )]
    EarlierGeneration {
        /// The replica.
        path: PathBuf,
        /// That of the replica.
        ours: u32,
        /// That of the server.
        server: u32,
    },
    /// The replica holds frames that the server does not.
    #[error(
        "{} holds frames up to {local} of generation {generation}, the server only to {server}: the replica was written \
         to (push it), or the server lost its end (wait for it; or give --adopt, which sets the replica aside and makes it again)",
        .path.display()
    )]
    Ahead {
        /// The database.
        path: PathBuf,
        /// The generation.
        generation: u32,
        /// The replica's last frame.
        local: u32,
        /// The last frame known to be on the server.
        server: u32,
        /// Whether some of them did not come from the server.
        is_written: bool,
    },
    /// What is at the path of a replica is a link: files beside it would not be those beside the file.
    #[error("DST {}: it is a symbolic link: give the path of the file itself", .path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// What is at the path of a replica may be an application's.
    #[error(
        "DST {}: {what}: it may be an application's, and is never replaced unasked; nothing was changed: choose another DST, move it \
         away, or give --adopt, which sets it aside and makes a replica", .path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A replica must exist already, and does not.
    #[error("{} does not exist, and --create=never forbids to create it: check its name, or leave --create out", .path.display())]
    Absent {
        /// The replica.
        path: PathBuf,
    },
    /// The generation in which a database was pushed last is not on the server any more.
    #[error(
        "the server has deleted the generation that {} was pushed to last{}: without it nothing says that the server goes on from \
         what this database holds. Push it into an empty log; or pull the server's database into another file, and bring what is \
         only here into that one", .path.display(), said(.text)
    )]
    Pruned {
        /// The database.
        path: PathBuf,
        /// What the server says.
        text: String,
    },
    /// Another mirror pushes the same database to the same server.
    #[error("another mirror on this machine pushes {} to {url}: this one goes on when that one has ended", .path.display())]
    PushedByAnother {
        /// The database.
        path: PathBuf,
        /// The server.
        url: String,
    },
    /// The database holds pages that neither its WAL nor the server has, so frames alone cannot make a copy.
    #[error(
        "page {page} of {} is neither in its WAL nor what the server has there in generation {generation}: its WAL was \
         checkpointed before all of it was pushed, and its -info file does not say whether the server's frames are this \
         database's. Push it into an empty log, or push a database that was pulled from this server", .path.display()
    )]
    Base {
        /// The database.
        path: PathBuf,
        /// The page.
        page: u32,
        /// The generation.
        generation: u32,
    },
    /// The protocol knows pages of 4096 bytes only.
    #[error(
        "{} has pages of {found} bytes, and libSQL syncs those of {PAGE_LEN} only: copy it with VACUUM INTO after \
         PRAGMA page_size={PAGE_LEN}", .path.display()
    )]
    PageSize {
        /// The file.
        path: PathBuf,
        /// Its page size.
        found: u32,
    },
    /// A database whose changes do not go through a WAL.
    #[error("{} is not in WAL mode, so there are no frames to push: PRAGMA journal_mode=WAL", .path.display())]
    NotWal {
        /// The file.
        path: PathBuf,
    },
    /// Frames that the protocol cannot number.
    #[error("{} holds more frames than the protocol can number", .path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The files here cannot be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The database cannot be read on.
    #[error(transparent)]
    Source(Box<MirrorError>),
    /// An answer of the server that is not believed, or that is expected to be another one soon.
    #[error("{0}")]
    Answer(String),
    /// A thread ended early.
    #[error("{0}")]
    Interrupted(String),
}

impl From<MirrorError> for SyncError {
    fn from(error: MirrorError) -> SyncError {
        match error {
            MirrorError::Snapshot(error) => SyncError::Database(error),
            error => SyncError::Source(Box::new(error)),
        }
    }
}

fn said(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(", \"{text}\"") }
}

/// What the body of an error says, in one line: the message of one that is JSON.
pub(super) fn message_of(body: &[u8]) -> String {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    let member = |name| json.as_ref().and_then(|json| json.get(name)?.as_str()).map(str::to_owned);
    let text =
        member("message").or_else(|| member("error")).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let line: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    line.trim().to_owned()
}

impl Blamed for SyncError {
    fn blame(&self) -> Blame {
        match self {
            _ if self.is_usage() => Blame::Usage,
            _ if self.is_transient() => Blame::Transient,
            _ if self.is_data() => Blame::Data,
            _ => Blame::Io,
        }
    }
}

impl SyncError {
    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            SyncError::Transport { error, .. } => !error.is_builder(),
            SyncError::Status { status, .. } => is_passing_status(*status),
            SyncError::Database(error) => error.is_transient(),
            SyncError::Source(error) => error.blame() == Blame::Transient,
            SyncError::Answer(_) | SyncError::Interrupted(_) => true,
            SyncError::PushedByAnother { .. } => true,
            _ => false,
        }
    }

    /// Whether the server has deleted the generation that it was asked for.
    #[must_use]
    pub fn is_pruned(&self) -> bool {
        matches!(self, SyncError::Status { status: 410, .. })
    }

    /// Whether the server does not know the call: the first servers only took frames. A service of ours says with its own words that it
    /// has no such log.
    #[must_use]
    pub(super) fn is_unknown_call(&self) -> bool {
        matches!(self, SyncError::Status { status: 404 | 405 | 501, is_own: false, .. })
    }

    /// Whether the same request was repeated already, as often as it makes sense for somebody who waits.
    #[must_use]
    pub fn was_retried(&self) -> bool {
        matches!(self, SyncError::Status { .. })
    }

    /// Whether it says that this database and the server do not hold the same log.
    #[must_use]
    pub(super) fn is_of_another_history(&self) -> bool {
        matches!(self, SyncError::Fork { .. } | SyncError::Ahead { .. } | SyncError::EarlierGeneration { .. })
    }

    /// Whether a mirror that follows ends with it. All else is waited for: what cannot be read or reached now, a database that is being
    /// restored, a server that does not show what was pulled from it, and a refusal that is not its own.
    #[must_use]
    pub fn ends_follower(&self) -> bool {
        let may_pass = match self {
            SyncError::Source(error) => !error.ends_follower(),
            SyncError::Database(error) => error.may_be_restored(),
            SyncError::Ahead { is_written, .. } => !is_written,
            SyncError::EarlierGeneration { .. } => true,
            SyncError::Status { status: 401 | 403, is_own, .. } => !is_own,
            _ => false,
        };
        !may_pass && matches!(self.blame(), Blame::Usage | Blame::Data)
    }

    /// Whether what other processes do with the database is in the way, and nothing else is wrong.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, SyncError::Database(error) if error.is_in_use())
    }

    /// Whether it is the server or the way there, and the files here are as they were.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(
            self,
            SyncError::Transport { .. }
                | SyncError::Status { .. }
                | SyncError::Protocol { .. }
                | SyncError::Silent { .. }
                | SyncError::Answer(_)
        )
    }

    /// Whether what the user gave is at fault: URL, token, or the path of a replica.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            SyncError::Url { .. }
                | SyncError::Token
                | SyncError::Status { status: 401 | 403, .. }
                | SyncError::NotOurs { .. }
                | SyncError::Absent { .. }
                | SyncError::Link { .. }
                | SyncError::Database(DatabaseError::SideFile { .. })
        )
    }

    /// Whether the data is at fault, and not a disk or a network.
    #[must_use]
    pub fn is_data(&self) -> bool {
        match self {
            SyncError::Database(error) => !matches!(error, DatabaseError::Io { .. }) && !error.is_in_use(),
            SyncError::Status { status, .. } => *status == 410,
            SyncError::Source(error) => error.blame() == Blame::Data,
            SyncError::Url { .. } | SyncError::Token | SyncError::Transport { .. } => false,
            SyncError::Protocol { .. } | SyncError::Silent { .. } => false,
            SyncError::Answer(_) | SyncError::Interrupted(_) => false,
            SyncError::PushedByAnother { .. } => false,
            _ => true,
        }
    }
}
