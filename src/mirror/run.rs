//! The one loop behind `logmirror mirror`: from any source to any sink, resuming where the sink ends.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;

use super::base;
use super::database::{self, Database};
use super::sink::{Feeding, Sink, Stand};
use super::source::{Extent, Piece, Pieces, Reading, Source};
use crate::api::{ErrorBody, LastCommit};
use crate::checkpoint::RestoreError;
use crate::client::{Client, ClientError};
use crate::format::{FormatError, LogFormat, ScanError};
use crate::limits::{ATTEMPTS_MAX, BACKOFF_FIRST, BACKOFF_LAST, COMMIT_BYTES_MAX};
use crate::offset::{BytePos, Generation, Offset};
use crate::repo::FsRepo;
use crate::sqlite::SnapshotError;
use crate::stream::{AppendError, Batch, OnTrailing, OpenError, Options, Part, ReadError, Tail};

/// A directory with segments in it, the URL of a log, or, as a source, a SQLite database or its WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory; as a source also the file of a database (`app.db`) or of its WAL (`app.db-wal`).
    Dir(std::path::PathBuf),
    /// The URL of a log.
    Url(String),
}

impl Place {
    /// What `text` means: a URL if it has a scheme, else a path.
    #[must_use]
    pub fn parse(text: &str) -> Place {
        if text.contains("://") { Place::Url(text.to_owned()) } else { Place::Dir(text.into()) }
    }
}

/// What to mirror, and how.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Where from.
    pub source: Place,
    /// Where to.
    pub sink: Place,
    /// Whether to go on as the source grows, for ever.
    pub follow: bool,
    /// Whether a torn end is cut off in a directory that is the sink, and accepted in one that is the source.
    pub trim: bool,
    /// Largest commit taken.
    pub commit_bytes_max: u64,
}

impl Mirror {
    /// A plain copy of `source` to `sink`.
    #[must_use]
    pub fn new(source: Place, sink: Place) -> Self {
        Mirror { source, sink, follow: false, trim: false, commit_bytes_max: COMMIT_BYTES_MAX }
    }
}

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
    /// What the sink holds cannot be restored, to be compared.
    #[error("sink: {0}")]
    Restore(#[from] RestoreError),
    /// The connection or a thread ended early.
    #[error("{0}")]
    Interrupted(String),
}

impl MirrorError {
    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            MirrorError::Client(error) => error.is_transient(),
            MirrorError::Refused(body) => matches!(body.error.as_str(), "unavailable" | "poisoned"),
            MirrorError::Snapshot(error) => error.is_transient(),
            // A stream from a service that is cut by its end, not by damage.
            MirrorError::Received(ScanError::Truncated { .. }) | MirrorError::Interrupted(_) => true,
            _ => false,
        }
    }

    /// Whether the places to mirror are at fault, or who we are: no URL of a log, a name that cannot be one, a wrong token, a
    /// WAL without its database.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            MirrorError::Client(ClientError::Url { .. }) | MirrorError::NoBase { .. } => true,
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
            MirrorError::Append(error) => !matches!(error, AppendError::Poisoned { .. }),
            MirrorError::Client(error @ ClientError::Refused { status, .. }) => !error.is_transient() && *status != 404,
            MirrorError::Refused(_) => !self.is_transient(),
            MirrorError::Client(_) | MirrorError::Dir { .. } | MirrorError::Interrupted(_) => false,
            _ => true,
        }
    }
}

/// What happens while a mirror runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// An attempt starts.
    Started {
        /// Where the sink stands.
        from: Offset,
        /// Bytes in the source from there on, roughly.
        source_bytes: u64,
    },
    /// Something moved.
    Moved(Progress),
    /// An attempt failed, and another will be made.
    Retrying {
        /// Why it failed.
        error: String,
        /// When.
        after: Duration,
    },
}

/// How far a mirror has come, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Commits handed to the sink.
    pub commits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The offset after the last one.
    pub next: Offset,
    /// The offset after the last commit durable in the sink.
    pub durable: Offset,
}

/// Runs a mirror until the source is copied, or for ever if it follows.
///
/// # Errors
/// See [`MirrorError`]. A connection that fails is tried again: for ever when following, else a few times.
pub async fn run(mirror: &Mirror, mut told: impl FnMut(Event)) -> Result<Progress, MirrorError> {
    let source = match &mirror.source {
        Place::Url(url) => Origin::Log(Source::Url(Client::new(url)?)),
        Place::Dir(path) if database::is_database(path) => Origin::Database(Database::new(path)),
        Place::Dir(path) => Origin::Log(Source::Dir(dir(path, FsRepo::open(path))?)),
    };
    let sink = match &mirror.sink {
        Place::Url(url) => Sink::Url(Client::new(url)?),
        Place::Dir(path) => {
            let on_trailing = if mirror.trim { OnTrailing::Trim } else { OnTrailing::Error };
            let commit_bytes_max = mirror.commit_bytes_max;
            let options = Options { on_trailing, commit_bytes_max, forget: true, ..Options::default() };
            Sink::Dir(dir(path, FsRepo::create(path))?, options)
        }
    };
    let mut progress = Progress::default();
    let mut failures = 0;
    loop {
        let before = progress;
        let attempted = match &source {
            Origin::Log(source) => attempt(mirror, source, &sink, &mut progress, &mut told).await,
            Origin::Database(database) => database::attempt(mirror, database, &sink, &mut progress, &mut told).await,
        };
        let error = match attempted {
            Ok(()) => return Ok(progress),
            Err(error) => error,
        };
        if progress.durable > before.durable {
            failures = 0;
        }
        failures += 1;
        if !error.is_transient() || (!mirror.follow && failures >= ATTEMPTS_MAX) {
            return Err(error);
        }
        let after = backoff(failures);
        told(Event::Retrying { error: error.to_string(), after });
        sleep(after).await;
    }
}

/// What a source is: something with segments, or a database whose generations are only known beside the sink.
enum Origin {
    Log(Source),
    Database(Database),
}

fn dir<T>(path: &std::path::Path, opened: std::io::Result<T>) -> Result<T, MirrorError> {
    opened.map_err(|error| MirrorError::Dir { place: path.display().to_string(), error })
}

/// Doubles with each failure up to a cap, and is shortened by chance by up to half.
pub(crate) fn backoff(failures: u32) -> Duration {
    let full = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_LAST);
    let chance = RandomState::new().build_hasher().finish() % 1024;
    full.mul_f64(0.5 + chance as f64 / 2048.0)
}

/// Mirrors what is missing, generation by generation, and then follows if that is wanted.
async fn attempt(
    mirror: &Mirror,
    source: &Source,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let extent = source.extent(None).await?;
    let begun = sink.generation().await?.unwrap_or(extent.generation);
    for generation in (begun.0..extent.generation.0).map(Generation) {
        let older = match source.extent(Some(generation)).await {
            // What the sink holds of it stays as it is.
            Err(MirrorError::Client(ClientError::Refused { body, .. })) if body.error == "pruned" => continue,
            older => older?,
        };
        let once = Mirror { follow: false, ..mirror.clone() };
        attempt_generation(&once, source, &older, sink, progress, told).await?;
    }
    attempt_generation(mirror, source, &extent, sink, progress, told).await
}

async fn attempt_generation(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let format = extent.format.unwrap_or_default();
    if format == LogFormat::Wal && sink.lacks_base(extent).await? {
        base::bring(source, extent.generation, sink).await?;
    }
    let (Stand { next, last }, mut feeding) = sink.open(format, extent.first).await?;
    let from = next.or(extent.first).unwrap_or_default();
    (progress.next, progress.durable) = (from, from);
    told(Event::Started { from, source_bytes: source.bytes_from(from, extent) });
    if let Some(source_end) = extent.end.filter(|end| last.is_some() && *end < from) {
        return Err(MirrorError::Ahead { sink: from, source_end });
    }
    if let Some(source_first) = extent.first.filter(|first| *first > from) {
        return Err(MirrorError::Gap { sink: from, source_first });
    }
    // The stream starts with the last commit both should hold, so a fork shows before anything is sent; unless the
    // source was pruned exactly up to there.
    let last = last.filter(|_| extent.first != Some(from));
    let start = last.map_or(from, |last| last.offset);
    let generation = extent.generation;
    let reading = Reading { generation, from: start, held: last.is_some(), follow: mirror.follow };
    let pieces = source.stream(reading, mirror.commit_bytes_max);
    let pumped = pump(pieces, &mut feeding, last, progress, told).await;
    // What came is sound and is kept, whatever became of the rest; and the sink is closed before it is opened again.
    let ended = feeding.end().await;
    if let Ok(durable) = &ended {
        progress.durable = *durable;
        told(Event::Moved(*progress));
    }
    let tail = pumped?;
    ended?;
    match tail {
        Tail::Torn { bytes } if !mirror.trim => Err(MirrorError::Torn { bytes, next: progress.next }),
        _ if mirror.follow => Err(MirrorError::Interrupted("the service ended the stream".into())),
        _ => Ok(()),
    }
}

/// Moves pieces from the source to the sink until the source ends, with the tail it ends in.
pub(super) async fn pump(
    mut pieces: Pieces,
    feeding: &mut Feeding,
    mut held: Option<LastCommit>,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<Tail, MirrorError> {
    let mut durable = feeding.durable();
    let sink = progress.next;
    let ahead = |source_end| MirrorError::Ahead { sink, source_end };
    loop {
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            error = feeding.failed() => return Err(error),
            Ok(()) = durable.changed() => {
                progress.durable = *durable.borrow_and_update();
                told(Event::Moved(*progress));
                continue;
            }
        };
        let mut batch = match piece {
            None => return Err(MirrorError::Interrupted("the source is gone".into())),
            Some(Err(MirrorError::Read(ReadError::Ahead { next, .. }))) => return Err(ahead(next)),
            Some(Err(MirrorError::Read(ReadError::Reset { at }))) => return Err(MirrorError::Reset { at }),
            Some(Err(MirrorError::Client(ClientError::Refused { body, .. }))) if body.error == "ahead" => {
                return Err(ahead(body.next.unwrap_or_default()));
            }
            Some(Err(error)) => return Err(error),
            Some(Ok(Piece::End(tail))) => return held.map_or(Ok(tail), |last| Err(ahead(last.offset))),
            Some(Ok(Piece::Batch(batch))) => batch,
        };
        if let Some(last) = held.take_if(|_| batch.runs().next().is_some()) {
            batch = without_held(batch, &last)?;
        }
        for run in batch.runs() {
            progress.commits += run.commits;
            progress.bytes += run.bytes;
            progress.next = run.end;
        }
        if !feeding.send(batch).await {
            return Err(feeding.failed().await);
        }
        told(Event::Moved(*progress));
    }
}

/// The batch without its first commit, which must be the one the sink holds.
fn without_held(batch: Batch, held: &LastCommit) -> Result<Batch, MirrorError> {
    let mut parts = batch.parts.into_iter().skip_while(|part| matches!(part, Part::Header(..)));
    let Some(Part::Run(run)) = parts.next() else {
        return Ok(Batch::default());
    };
    let mut commits = run.commits();
    let same = commits.next().is_some_and(|(_, found)| {
        (found.first, found.entries, found.checksum) == (held.offset, held.entries, held.checksum)
    });
    if !same {
        return Err(MirrorError::Fork { at: held.offset });
    }
    let rest = commits.next().map(|(at, next)| Part::Run(run.after(at, &next, 1)));
    drop(commits);
    Ok(Batch { parts: rest.into_iter().chain(parts).collect() })
}
