//! Why a mirror stopped, and whose fault that is.

use std::path::{Path, PathBuf};

use super::replica_file::ReplicaFileError;
use crate::api::ErrorBody;
use crate::blame::{Blame, Blamed};
use crate::checkpoint::{FoldError, RestoreError};
use crate::client::ClientError;
use crate::format::{FormatError, LogFormat, ScanError};
use crate::offset::{BytePos, Generation, Offset};
use crate::segment::base::BaseFault;
use crate::sqlite::DatabaseError;
use crate::stream::{AppendError, BatchError, Fault, OpenError, ReadError};

/// Why a mirror stopped. Everything before is kept; running it again resumes.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The source is damaged or cannot be read.
    #[error("source: {0}")]
    Read(#[from] ReadError),
    /// What the source sent is not a sound log.
    #[error("source: {0}")]
    Received(ScanError),
    /// The same, found in two answers from the same offset on: it is no accident of the network.
    #[error("source: {place} sent the same fault in two answers, on two connections: {error}")]
    ReceivedTwice {
        /// The log's URL.
        place: String,
        /// The fault.
        error: ScanError,
    },
    /// A large commit cannot be kept until it is whole.
    #[error("{place}: {error}; TMPDIR chooses another directory")]
    Spool {
        /// The directory of the file for it.
        place: String,
        /// Why not.
        error: BatchError,
    },
    /// The base of one side is damaged.
    #[error("{side}: {fault}: put it back from a sound copy{}", base_advice(.side))]
    BaseDamaged {
        /// Which side.
        side: &'static str,
        /// What is wrong with it.
        fault: BaseFault,
    },
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
    /// A commit of the sink is another one in the source: the histories have parted.
    #[error("fork: {}the commit at offset {at}", if *.is_first { "the copies differ first at " } else { "the copies differ at or before " })]
    Fork {
        /// Its offset.
        at: Offset,
        /// Whether the commits before it are known to be the same.
        is_first: bool,
    },
    /// The source holds another commit than the one that was read from it.
    #[error("fork: the source holds another commit at offset {at} than the one read there before: it was reset")]
    Reset {
        /// The commit's offset.
        at: Offset,
    },
    /// The sink holds more than the source. That alone is no fork: the source may have lost its end, or not show it now.
    #[error(
        "the source ends at offset {source_end}, before the sink, which ends at {sink}: nothing was changed; if the source \
         lost its end or was reset, bring it back from the sink, or mirror it into a new place"
    )]
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
    /// Segments are missing between others in a directory that is the source. They may still be on their way.
    #[error(
        "source: {fault}: no segment in {place} holds the offsets from {} on, up to where segment {to} starts; everything before \
         was copied: bring the missing segments back", .fault.offset
    )]
    SegmentsMissing {
        /// The directory.
        place: String,
        /// Where they are missing.
        fault: Fault,
        /// Where the next segment starts.
        to: Offset,
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
    /// The sink holds a log of another format than the source.
    #[error("sink: {place} holds a {found}, and the source is a {wanted}: choose another DST")]
    OtherFormat {
        /// The directory or URL.
        place: String,
        /// What the sink holds.
        found: LogFormat,
        /// What the source holds.
        wanted: LogFormat,
    },
    /// The source is a database that cannot be read, or not now.
    #[error("source: {0}")]
    Snapshot(#[from] DatabaseError),
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
    /// The directory that is the sink holds another database than the source. Nothing was changed.
    #[error(
        "sink: {}: it {held}: nothing was changed; mirror SRC into another directory, or give --adopt: what is in this one is kept in \
         it as aside-N then, and SRC starts in it from scratch", .place.display()
    )]
    OtherDatabase {
        /// The directory.
        place: PathBuf,
        /// What is known of what it holds.
        held: String,
    },
    /// The log of a service that is the sink holds another database than the source. Nothing was changed.
    #[error(
        "sink: {place}: it {held}: nothing was changed; mirror SRC into another log, or give --adopt: SRC starts a new generation of \
         this one then{loser}"
    )]
    OtherDatabaseInLog {
        /// The URL.
        place: String,
        /// What is known of what it holds.
        held: String,
        /// What becomes of the source that feeds it.
        loser: String,
    },
    /// The log of a service that is the sink holds what the source does, but no mirror wrote it. Nothing was changed.
    #[error(
        "sink: {place}: it holds what SRC does, but its clients wrote that, by SQL or a sync protocol, and no mirror: nothing was \
         changed; a database that is pushed to it has the URL libsql+{place}; --adopt has SRC feed it: its clients are refused (409 \
         mirrored) from then on, until `logmirror promote {place}` hands it back to them"
    )]
    WrittenByClients {
        /// The URL.
        place: String,
    },
    /// The directory that is the sink is not as its record says, or has none, and the source is a database. Nothing was changed.
    #[error(
        "sink: {}: {reason}: nothing was changed; put it back from a sound copy, mirror SRC into another directory, or give --adopt: \
         unless it holds just what SRC does, what is in it is kept in it as aside-N then, and SRC starts in it from scratch", .place.display()
    )]
    NotAsLeft {
        /// The directory.
        place: PathBuf,
        /// What is not.
        reason: String,
    },
    /// The base of the directory that is the sink is missing or damaged, so nothing is restored from it. Nothing was changed.
    #[error(
        "sink: {}: {fault}: put it back from a sound copy, or give --adopt: what the directory holds is kept in it as aside-N then, and \
         a new generation starts from SRC", .place.display()
    )]
    BaseLost {
        /// The directory.
        place: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// The source is a database that others have open, so what they commit would be in no log once this one is handed over.
    #[error(
        "source: {} is open in {}: stop the application first, or the mirror if it is one that follows this database, and run this \
         again; all up to offset {next} is copied, and the log was not handed over", .path.display(),
        process(*.pid, .command.as_deref())
    )]
    SourceInUse {
        /// The database.
        path: PathBuf,
        /// The process, if the system can tell.
        pid: Option<i32>,
        /// The name of its command, if it is known.
        command: Option<String>,
        /// The end of what was copied.
        next: Offset,
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
    /// The sink holds the base of another log than the source. Nothing was changed.
    #[error("sink: {place} holds the base of another log: {held}; {offered}; nothing was changed: {advice}")]
    OtherBase {
        /// The directory or URL.
        place: String,
        /// What is known of the base that is there.
        held: String,
        /// What is known of that of the source.
        offered: String,
        /// What to do.
        advice: &'static str,
    },
    /// Nothing shows that the log of a service that is the sink is a copy of the source: they have no commit in common. Nothing was
    /// changed.
    #[error(
        "sink: {place}: not known to be a mirror of the source: {reason}; nothing was changed; a service does not know what its log \
         is a copy of: if it is one of this source, --adopt says so and goes on"
    )]
    Unproven {
        /// The URL.
        place: String,
        /// Why not.
        reason: String,
    },
    /// The source is a file without a byte, and the sink holds a database. Nothing was changed.
    #[error(
        "source: {}: it is empty, and DST holds a database: is its disk mounted? Nothing was changed; --adopt starts a new generation \
         from the empty database", .path.display()
    )]
    EmptySource {
        /// The file.
        path: PathBuf,
    },
    /// The log of a service that is the sink was handed over to its clients. Nothing was changed.
    #[error(
        "sink: {place}: it was handed over to its clients (`--release` or `logmirror promote`), and follows {from} no more; nothing \
         was changed: mirror into another log, or {adoption}"
    )]
    Promoted {
        /// The URL.
        place: String,
        /// What it was fed from.
        from: String,
        /// How it is taken from them.
        adoption: &'static str,
    },
    /// The log of a service that is the sink has gone on without the source: its clients wrote it, or another source does.
    #[error(
        "sink: {place}: it was handed over to its clients, or is fed from another source, and holds commits that SRC does not hold: \
         {reason}; nothing was changed: mirror SRC into another log{adoption}"
    )]
    Diverged {
        /// The URL.
        place: String,
        /// How that shows.
        reason: String,
        /// What else can be done.
        adoption: String,
    },
    /// Another mirror on this machine feeds the log that is the sink from the same database. Nothing was changed.
    #[error(
        "sink: {place}: another mirror on this machine feeds it from this database: this one goes on when that has ended"
    )]
    FedByAnother {
        /// The URL.
        place: String,
    },
    /// A SpacetimeDB is running on the directory that is the sink. Nothing was changed.
    #[error(
        "sink: {}: SpacetimeDB or another mirror{} has it open: {} is locked; nothing was changed; is this the source?", .place.display(),
        holder(*.pid, .command.as_deref()), .lock.display()
    )]
    DatabaseRuns {
        /// The directory.
        place: PathBuf,
        /// The file that is locked.
        lock: PathBuf,
        /// The process that holds it, if it is known.
        pid: Option<u32>,
        /// The name of its command, if it is known.
        command: Option<String>,
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
    /// The sink is a read replica file that cannot be kept.
    #[error(transparent)]
    ReplicaFile(#[from] ReplicaFileError),
    /// What the sink holds cannot be restored, to be compared.
    #[error("sink: {0}")]
    Restore(#[from] RestoreError),
    /// What the source holds cannot be restored, to make a read replica file of it.
    #[error("source: {0}")]
    SourceRestore(RestoreError),
    /// A sink must exist already, and does not.
    #[error("{place} does not exist, and --create=never forbids to create it: check its name, or leave --create out")]
    Absent {
        /// The path or URL.
        place: String,
    },
    /// A sink that was written is not there now, or another directory is in its place. Nothing is created there.
    #[error("sink: {place}: {what}; put it back")]
    Away {
        /// The path or URL.
        place: String,
        /// What is not there.
        what: String,
    },
    /// The source has a mirror record that says that it is a copy of the sink.
    #[error(
        "SRC is a copy of DST: are the arguments swapped? The mirror record in {} names {} as its source; nothing was changed; \
         if SRC is the original again, remove {}", .source_place.display(), .sink.display(),
        .source_place.join(crate::stream::RECORD).display()
    )]
    Swapped {
        /// The source.
        source_place: PathBuf,
        /// The sink.
        sink: PathBuf,
    },
    /// The source says that it is a copy of the log that is the sink.
    #[error(
        "SRC is a copy of DST: are the arguments swapped? {source_place} is a copy of {sink}: {says}; nothing was changed; a log that \
         was lost is brought back from its copy into an empty log, or another one of that name"
    )]
    CopyOfSink {
        /// The source: its path or URL.
        source_place: String,
        /// The log's URL.
        sink: String,
        /// How that is known.
        says: String,
    },
    /// A sink is in the data directory of a service. Nothing was changed.
    #[error(
        "sink: {} is in the data directory of a service, {}, which alone writes there: mirror to the log's URL \
         (http://HOST/logs/NAME), or choose another directory", .place.display(), .data.display()
    )]
    ServiceData {
        /// The directory.
        place: PathBuf,
        /// The data directory.
        data: PathBuf,
    },
    /// A mirror lost durable commits at its end, and the source does not hold them now. Nothing was changed.
    #[error(
        "sink: {}: its mirror record says that it was durable up to offset {durable}, but it ends at {next}, and the source ends \
         at offset {source_end}, before that: put the files back, or mirror into a new directory", .place.display()
    )]
    LostEnd {
        /// The directory.
        place: PathBuf,
        /// Up to where it was durable.
        durable: Offset,
        /// Where it ends.
        next: Offset,
        /// Where the source ends.
        source_end: Offset,
    },
    /// A segment of the directory that is the sink is missing before others. Nothing was changed.
    #[error(
        "sink: {}: offsets {from} to {to} are missing: put the file of the segment that starts at {from} back ({file}), or mirror \
         into a new directory", .place.display()
    )]
    MissingSegment {
        /// The directory.
        place: PathBuf,
        /// The first offset that is missing.
        from: Offset,
        /// The offset after the last one that is missing.
        to: Offset,
        /// The name of the first file that is missing.
        file: String,
    },
    /// A directory holds no log, but something else: it may be the one above the log. Nothing was changed.
    #[error(
        "sink: {} holds no segments and no mirror record, but {holds}: DST is the directory that holds the segments themselves, or \
         a new one (--adopt takes this one all the same)", .place.display()
    )]
    NoLog {
        /// The directory.
        place: PathBuf,
        /// Some of what it holds.
        holds: String,
    },
    /// The log of a service that is the sink is damaged. What the source holds is sound, and nothing of it was lost.
    #[error(
        "sink: {place} is damaged: {reason}: its operator must put its files back or repair it; nothing is sent to it until then"
    )]
    SinkDamaged {
        /// The log's URL.
        place: String,
        /// What the service says.
        reason: String,
    },
    /// Something between us and a service holds back what is sent, or refuses it: from now on it is sent in other ways.
    #[error(
        "{reason}: a proxy between us and the service seems to hold back or refuse streams (nginx does with its defaults): \
         going on in requests of bounded size"
    )]
    HeldBack {
        /// How it showed.
        reason: String,
    },
    /// The log of a service that is the source is damaged. All that is sound before the damage was copied.
    #[error(
        "source: {place}: the log is damaged on the service at offset {next}: {reason}; everything before offset {next} was \
         copied: repair it in the service, or go on from a sound copy"
    )]
    SourceDamaged {
        /// The log's URL.
        place: String,
        /// Where what is sound ends.
        next: Offset,
        /// What the service says.
        reason: String,
    },
    /// Source and sink are the same log of a service.
    #[error("{source_url} and {sink_url} are the same log (id {id}): a source is never written")]
    SameLog {
        /// The source.
        source_url: String,
        /// The sink.
        sink_url: String,
        /// The log's id.
        id: String,
    },
    /// The sink lost the segments it began with. All that the source has after its end was copied.
    #[error("sink: {place}: what was new was copied, but the copy is not whole: {text}")]
    NotWhole {
        /// The directory.
        place: String,
        /// What is missing, and what to do.
        text: String,
    },
    /// The log of a service that is the sink does not hold what was acknowledged.
    #[error(
        "sink: {place}: {what}: something between us and the service, or in its place, gave that answer, or the log lost its end; \
         `logmirror status {place}` shows what it holds, and the next run goes on from there"
    )]
    Unconfirmed {
        /// The URL.
        place: String,
        /// What was acknowledged, and what the status of the log says.
        what: String,
    },
    /// The connection or a thread ended early.
    #[error("{0}")]
    Interrupted(String),
}

impl MirrorError {
    /// The same of a log of a service that is the sink, at `place`: where it is damaged, the source is not.
    pub(super) fn of_sink(self, place: &str) -> MirrorError {
        match self {
            MirrorError::Refused(body) | MirrorError::Client(ClientError::Refused { body, .. })
                if body.error == "corrupt-log" =>
            {
                MirrorError::SinkDamaged { place: place.to_owned(), reason: body.message }
            }
            MirrorError::Refused(body) if body.error == "failed" => {
                let message = format!("sink: {place}: {}", body.message);
                MirrorError::Refused(Box::new(ErrorBody { message, ..*body }))
            }
            error => error,
        }
    }

    /// The same of a source that is a database: what it holds is compared, and not its last commit.
    pub(super) fn of_database(self) -> MirrorError {
        match self {
            MirrorError::NotOurs { place, reason } => MirrorError::NotAsLeft { place, reason },
            error => error,
        }
    }

    /// The same of a directory that this mirror has opened: a base that is not there now is waited for.
    pub(super) fn of_opened(self, place: &Path) -> MirrorError {
        let fault = match self {
            MirrorError::BaseDamaged { side: "sink", fault } => fault.to_string(),
            MirrorError::BaseLost { fault, .. } => fault,
            error => return error,
        };
        let what = format!("{fault}; a mirror that is started with --adopt does without it");
        MirrorError::Away { place: place.display().to_string(), what }
    }

    /// Whether a mirror that follows ends with it. All else is waited for: what cannot be read, reached or written now,
    /// and a source that does not show what was read from it. Only another commit at the same offset proves a fork.
    #[must_use]
    pub fn ends_follower(&self) -> bool {
        let unproven = match self {
            MirrorError::Ahead { .. } | MirrorError::SinkDamaged { .. } => true,
            // A disk may be mounted over it yet.
            MirrorError::EmptySource { .. } => true,
            // Files may be missing while the source is restored from a backup.
            MirrorError::Gap { .. } | MirrorError::SegmentsMissing { .. } => true,
            MirrorError::LostEnd { .. } | MirrorError::MissingSegment { .. } => true,
            MirrorError::Read(error) => matches!(error, ReadError::Missing { .. } | ReadError::Ahead { .. }),
            MirrorError::Refused(body) => is_passing(body),
            MirrorError::Client(ClientError::Refused { body, .. }) => is_passing(body),
            MirrorError::Snapshot(error) => error.may_be_restored(),
            _ => false,
        };
        !unproven && matches!(self.blame(), Blame::Usage | Blame::Data)
    }
}

fn base_advice(side: &str) -> &'static str {
    match side {
        "sink" => ", or give --adopt: it is set aside then, and copied from SRC again",
        _ => "",
    }
}

fn process(pid: Option<i32>, command: Option<&str>) -> String {
    match (pid, command) {
        (Some(pid), Some(command)) => format!("process {pid} ({command})"),
        (Some(pid), None) => format!("process {pid}"),
        (None, _) => "another process".to_owned(),
    }
}

impl From<FoldError> for MirrorError {
    fn from(error: FoldError) -> MirrorError {
        MirrorError::Restore(error.into())
    }
}

fn holder(pid: Option<u32>, command: Option<&str>) -> String {
    match (pid, command) {
        (Some(pid), Some(command)) => format!(" (pid {pid}, {command})"),
        (Some(pid), None) => format!(" (pid {pid})"),
        (None, _) => String::new(),
    }
}

impl Blamed for MirrorError {
    fn blame(&self) -> Blame {
        match self {
            MirrorError::Read(error) | MirrorError::Sink(error) => match error {
                ReadError::Io(_) => Blame::Io,
                _ => Blame::Data,
            },
            // A stream from a service that is cut by its end, not by damage.
            MirrorError::Received(ScanError::Truncated { .. }) => Blame::Transient,
            MirrorError::HeldBack { .. } | MirrorError::Interrupted(_) | MirrorError::FedByAnother { .. } => {
                Blame::Transient
            }
            MirrorError::Open(OpenError::Io(_) | OpenError::Locked { .. }) | MirrorError::Dir { .. } => Blame::Io,
            // A write or sync of ours failed.
            MirrorError::Append(AppendError::Poisoned { .. } | AppendError::Spool(_)) => Blame::Io,
            MirrorError::Spool { .. } => Blame::Io,
            // A source that was written while it was copied.
            MirrorError::Append(AppendError::Unread { .. }) => Blame::Transient,
            MirrorError::Client(error) => error.blame(),
            MirrorError::ReplicaFile(error) => error.blame(),
            MirrorError::Refused(body) => body.blame(),
            MirrorError::Snapshot(DatabaseError::SideFile { .. }) => Blame::Usage,
            MirrorError::Snapshot(error) if error.is_transient() => Blame::Transient,
            MirrorError::Snapshot(DatabaseError::Io { .. }) => Blame::Io,
            MirrorError::Restore(RestoreError::Client(error)) => error.blame(),
            MirrorError::Restore(error) if error.is_usage() => Blame::Usage,
            MirrorError::Restore(error) if !error.is_data() => Blame::Io,
            MirrorError::NoBase { .. } | MirrorError::Absent { .. } | MirrorError::SamePlace { .. } => Blame::Usage,
            MirrorError::SameLog { .. } | MirrorError::Swapped { .. } | MirrorError::NoLog { .. } => Blame::Usage,
            MirrorError::CopyOfSink { .. } => Blame::Usage,
            MirrorError::ServiceData { .. } => Blame::Usage,
            MirrorError::DatabaseRuns { .. } | MirrorError::Away { .. } | MirrorError::SourceInUse { .. } => Blame::Io,
            _ => Blame::Data,
        }
    }
}

/// Refusals that the next attempt does not meet, because it starts from where both sides are then.
fn is_passing(body: &ErrorBody) -> bool {
    match body.error.as_str() {
        "gap" | "ahead" | "ended" | "truncated" => true,
        // A generation was deleted; a log that starts later has a first offset.
        "pruned" => body.first.is_none(),
        _ => false,
    }
}
