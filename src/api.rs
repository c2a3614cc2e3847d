//! The JSON of the native API: what a client and the service both must spell alike. Knows no HTTP.

use serde::{Deserialize, Serialize};

use crate::format::Commit;
use crate::limits::GENERATIONS_KEPT;
use crate::offset::{BytePos, Epoch, Generation, Offset};

/// What an answer with commits says beside them: how they are framed. Only a segment header says so in the bytes, and a
/// range that starts inside a segment has none. For a commitlog it is the format version; for a WAL its header and the
/// checksum of the frame before, in hexadecimal, or `wal` while it has no header.
pub const FRAMING_FIELD: &str = "log-format-version";

/// What a request of a mirror says beside commits and bases: the identity of its source, percent-encoded. A WAL log that is fed
/// from one source takes nothing of another.
pub const SOURCE_FIELD: &str = "log-source";

/// What a mirror says beside that when it follows its source, so that it comes back when its stream ends: a name of its process.
pub const FOLLOWER_FIELD: &str = "log-source-follower";

/// Which generation an answer with commits or a base is of, so that one that was kept from another request is not taken for it.
pub const GENERATION_FIELD: &str = "log-generation";

/// The SHA-256, in hexadecimal, of the base that the frames in an answer follow, so that those of one log are not put after the base
/// of another.
pub const BASE_FIELD: &str = "log-base";
/// The XXH3, in hexadecimal and under the key that was asked for, of the bytes before the checksums of pages: nothing in those shows
/// that there are as many of them as there must be.
pub const SUMS_FIELD: &str = "log-page-sums";

pub use crate::format::LogFormat;

/// Body of a request to create a log.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateLog {
    /// Its format.
    pub format: LogFormat,
    /// Its first offset; unless told otherwise 0, and 1 for a WAL, which takes no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Offset>,
    /// When it is rolled over, if it is a WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointPolicy>,
    /// Whether SQL on it checks foreign keys, if it is a WAL; unless told otherwise it does on a log that is created, and goes
    /// on as before on one that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_keys: Option<bool>,
}

/// When a WAL log is rolled over: its frames folded into the base of a new generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "lowercase", deny_unknown_fields)]
pub enum CheckpointPolicy {
    /// Never by itself, as libSQL expects.
    #[default]
    Keep,
    /// As soon as any of these is reached.
    Roll {
        /// Frames of the generation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        frames: Option<u64>,
        /// Bytes of its segments.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// Seconds since its first frame came, or since the service started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u64>,
        /// Generations kept readable, the current one among them: a replica that is further behind must start anew.
        #[serde(default = "kept")]
        keep: u64,
    },
}

fn kept() -> u64 {
    GENERATIONS_KEPT
}

/// What a checkpoint did, or would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointOutcome {
    /// The generation before.
    pub generation: Generation,
    /// The generation that follows.
    pub next: Generation,
    /// Frames folded.
    pub frames: u64,
    /// Whether it was done: not for a log without frames, and not in a dry run.
    pub done: bool,
    /// Bytes of the new base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_bytes: Option<u64>,
}

/// Checkpoints that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// How many in a row.
    pub failures: u64,
    /// Whether that is so many that somebody should look. It is still tried again now and then.
    pub alarm: bool,
    /// What went wrong last.
    pub error: String,
}

/// Whether a log can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogState {
    /// It can.
    Ok,
    /// It could not be opened for writing, or a write or sync failed. It takes no appends until it is reopened, which the
    /// service retries automatically. What is durable is still served, as far as that is known.
    #[serde(alias = "poisoned")]
    Failed,
    /// Its files are damaged. It takes no appends; what is sound before the damage is served.
    Damaged,
}

/// The status of a log. Positions are `None` when they are not known, because the log could not be opened: that is never
/// the same as an empty log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogStatus {
    /// Its name.
    pub log: String,
    /// Its format; none while the service cannot read the description of the log.
    pub format: Option<LogFormat>,
    /// Identity of this mirror, made when it was created; empty while that is not known. A copy of the service's files has it too.
    pub id: String,
    /// The running service that answers, another one after each start; empty in what older ones say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// The current generation; none while that is not known.
    pub generation: Option<Generation>,
    /// Term of the last durable commit.
    pub epoch: Option<Epoch>,
    /// Its first offset.
    pub first: Option<Offset>,
    /// The offset after the last commit appended, durable or not.
    pub next: Option<Offset>,
    /// The offset after the last durable commit; of a damaged log, the end of what is sound.
    pub durable: Option<Offset>,
    /// How many segments.
    pub segments: Option<u64>,
    /// Their durable bytes.
    pub bytes: Option<u64>,
    /// The last durable commit; also `None` for a log without commits.
    pub last_commit: Option<LastCommit>,
    /// Whether it can be used.
    pub state: LogState,
    /// Why not.
    pub error: Option<String>,
    /// Where it is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<Damage>,
    /// What an operator should know of a log that can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The offsets at its start that it held once and that are gone: the first of them and the one after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<(Offset, Offset)>,
    /// What a mirror feeds it from, if one does: clients only read it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LogSource>,
    /// What it was fed from before it was handed over to its clients: no mirror feeds it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_from: Option<String>,
    /// When a WAL is rolled over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointPolicy>,
    /// How that fares; none while all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_failing: Option<CheckpointState>,
    /// The base of the generation, of a WAL; none while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseStatus>,
}

/// The database that a generation starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseStatus {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Whether nothing vouches for it: its checksums were made after it had lain on disk without any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproven: bool,
}

/// The SQLite database that a mirror feeds a WAL log from, and how far it was read: a position in its WAL, and the offset in
/// the log that stands for the same state. Of a log that is a copy of another one, which has no such position, only what it is a
/// copy of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSource {
    /// The database: its host and path. Of another log its URL, of a directory its host and path with a slash at the end.
    pub identity: String,
    /// The generation of the log that `offset` is in.
    pub generation: Generation,
    /// All before this offset came from before the position in the WAL.
    pub offset: Offset,
    /// The salts of the WAL.
    pub salts: [u32; 2],
    /// Frames of the WAL before the position.
    pub frames: u64,
    /// The checksum after them, in hexadecimal.
    pub checksum: String,
    /// The checksum of the log before `offset`, in hexadecimal; that of its header where that is its first.
    pub log_checksum: String,
    /// Whether the base of the generation is still to come from there: until then the log holds no database.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaits_base: bool,
}

impl LogSource {
    /// Whether it is a log or a directory, and no database.
    #[must_use]
    pub fn is_log(&self) -> bool {
        self.identity.contains("://") || self.identity.ends_with('/')
    }
}

/// Where a log is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The segment file.
    pub segment: String,
    /// The offset of the commit that is damaged or missing.
    pub offset: Offset,
    /// The byte position in the segment.
    pub byte: BytePos,
}

/// What a log is and where it ends, all of it known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Its format.
    pub format: LogFormat,
    /// The generation that the positions are of.
    pub generation: Generation,
    /// Its first offset.
    pub first: Offset,
    /// The offset after the last durable commit.
    pub durable: Offset,
    /// The durable bytes of its segments.
    pub bytes: u64,
    /// The last durable commit; none for a log without commits.
    pub last_commit: Option<LastCommit>,
}

impl LogStatus {
    /// Its positions; `None` when the service does not know them.
    #[must_use]
    pub fn positions(&self) -> Option<Positions> {
        let (format, generation) = (self.format?, self.generation?);
        let (first, durable, bytes) = (self.first?, self.durable?, self.bytes?);
        Some(Positions { format, generation, first, durable, bytes, last_commit: self.last_commit })
    }
}

/// The last durable commit: what a sender compares with its own log before it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCommit {
    /// Its offset.
    pub offset: Offset,
    /// How many entries it holds.
    pub entries: u32,
    /// Its checksum.
    pub checksum: u64,
}

impl LastCommit {
    /// The offset of its last entry.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        Offset(self.offset.0.saturating_add(self.entries.into()).saturating_sub(1))
    }
}

impl From<&Commit> for LastCommit {
    fn from(commit: &Commit) -> LastCommit {
        LastCommit { offset: commit.first, entries: commit.entries, checksum: commit.checksum }
    }
}

/// One segment of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentStatus {
    /// Its first offset.
    pub start: Offset,
    /// The offset after its last durable commit.
    pub end: Offset,
    /// Its durable bytes.
    pub bytes: u64,
    /// Whether it is immutable.
    pub sealed: bool,
    /// SHA-256 of those bytes in hexadecimal; for sealed segments only, and only when asked for, since they must be
    /// read for it. (A CRC32C would say nothing: each commit ends with its own, and so that of all of them depends on
    /// their lengths alone.)
    pub sha256: Option<String>,
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendOutcome {
    /// The offset the log goes on with.
    pub next: Offset,
    /// The offset after the last durable commit; all of this append is before it.
    pub durable: Offset,
    /// Commits stored.
    pub appended: u64,
    /// Commits that were there already.
    pub skipped: u64,
}

/// The answer to a part of an upload that is not whole yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReceived {
    /// How many bytes of the upload were received: where its next part goes on.
    pub received: u64,
}

/// A line of an answer with `acks=stream`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AckLine {
    /// The append ended well.
    Outcome(AppendOutcome),
    /// The append ended with an error.
    Error(ErrorBody),
    /// Everything before this offset is durable.
    Durable {
        /// The offset.
        durable: Offset,
    },
}

/// Body of every error. Which numbers are there depends on the code.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One word for programs.
    pub error: String,
    /// One sentence for people.
    pub message: String,
    /// The durable end of the log: where a sender goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Offset>,
    /// The generation that the log is in, where another one was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// Where a fork is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Offset>,
    /// The first offset there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Offset>,
    /// The offset of the commit that is damaged or cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// How many bytes of an upload were received: where its next part goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
}

impl ErrorBody {
    /// The words of a service in the body of an answer; none where it is of something between us and it.
    #[must_use]
    pub fn of(body: &[u8]) -> Option<ErrorBody> {
        serde_json::from_slice(body).ok()
    }
}
