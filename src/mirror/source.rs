//! Where `logmirror mirror` reads from: a directory, also one being written, or a log of a service.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self as wakes, RecvTimeoutError};
use std::time::Duration;

use notify::event::AccessKind;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::distance::bytes_in_dir;
use super::failure::MirrorError;
use super::read_url;
use super::still::{Stillness, Verdict};
use crate::api::{LogSource, LogState, Positions};
use crate::client::{Client, ClientError, named_base, positions};
use crate::format::wal::FIRST_FRAME;
use crate::format::{Framing, LogFormat, name};
use crate::limits::{BATCHES_UNDER_WAY, DAMAGE_LOOK_AGAIN, DAMAGE_LOOKS, POLL_EVERY, POLL_EVERY_UNWATCHED, STILL_LOOK};
use crate::offset::{BytePos, Generation, Offset};
use crate::repo::{FsRepo, Repo};
use crate::segment::SegmentReader;
use crate::segment::base::BaseDigest;
use crate::stream::{
    Batch, Fault, FaultKind, MirrorRecord, Read, ReadError, StreamReader, Tail, current_dir, format_of, known_base,
    recorded_generation, segment_starts,
};

/// Where to read from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Dir(FsRepo),
    Url(Client),
}

/// What a source is known to hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// The generation it is of; the first where generations are not known.
    pub(super) generation: Generation,
    /// Its format; that of an empty directory is not known.
    pub(super) format: Option<LogFormat>,
    /// Its first offset; none for an empty directory.
    pub(super) first: Option<Offset>,
    /// Where it ends, when that is known without reading it.
    pub(super) end: Option<Offset>,
    /// The bytes of a service's log.
    pub(super) bytes: u64,
    /// The id of a service's log.
    pub(super) log: Option<Uuid>,
    /// The digest of the base of the generation, where it is known.
    pub(super) base: Option<BaseDigest>,
}

/// What to read from a source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// In this generation, where generations are known.
    pub(super) generation: Generation,
    /// From the commit that holds this offset.
    pub(super) from: Offset,
    /// Whether there must be one: the sink holds it.
    pub(super) held: bool,
    /// Whether to go on for ever.
    pub(super) follow: bool,
    /// The base that the sink has of that generation, where it is known: only frames that follow it are read.
    pub(super) base: Option<BaseDigest>,
    /// The id of the log of a service, where it is known: only that one is read.
    pub(super) log: Option<Uuid>,
}

/// What comes out of a source.
#[derive(Debug)]
pub(super) enum Piece {
    Batch(Batch),
    /// The source ends inside a commit here and is being written: a clean end for now.
    Live {
        next: Offset,
        bytes: u64,
    },
    /// How far a database was read, to be noted before what comes next.
    Mark(Box<LogSource>),
    /// Pages were compared: what was committed since is one transaction.
    Compared {
        reason: String,
        pages: u64,
    },
    /// What follows is for the next generation of the log, whose first frame follows what is before this offset in the one before.
    Stepped(Offset),
    /// The source ends here.
    End(Tail),
}

pub(super) type Pieces = mpsc::Receiver<Result<Piece, MirrorError>>;
pub(super) type Out = mpsc::Sender<Result<Piece, MirrorError>>;

impl Source {
    /// What it holds of one generation; none when it does not hold that any more.
    pub(super) async fn extent_of(&self, generation: Generation) -> Result<Option<Extent>, MirrorError> {
        match (self, self.extent(Some(generation)).await) {
            (_, Err(MirrorError::Client(ClientError::Refused { body, .. }))) if body.error == "pruned" => Ok(None),
            (Source::Dir(_), Ok(extent)) if extent.generation != generation => Ok(None),
            (_, extent) => extent.map(Some),
        }
    }

    /// What it holds of one generation; `None` is the current one, and all that a directory has.
    pub(super) async fn extent(&self, generation: Option<Generation>) -> Result<Extent, MirrorError> {
        match self {
            Source::Url(client) => {
                let status = match generation {
                    Some(generation) => client.status_of(generation).await?,
                    None => client.status().await?,
                };
                let Positions { format, generation, first, durable, bytes, .. } = positions(&status)?;
                // A damaged log may have held more: reading on from there says what is wrong.
                let end = (status.state != LogState::Damaged).then_some(durable);
                let (log, base) = (Uuid::parse_str(&status.id).ok(), named_base(&status, generation)?);
                Ok(Extent { generation, format: Some(format), first: Some(first), end, bytes, log, base })
            }
            Source::Dir(dir) => {
                let unreadable = |error| MirrorError::Dir { place: dir.place(), error };
                let repo = &current_of(dir)?;
                let generation = generation_of(repo)?;
                let starts = segment_starts(repo).map_err(unreadable)?;
                let (bytes, log, base) = (0, None, known_base(repo.path()).map_err(unreadable)?.sha256);
                if starts.is_empty() && is_based(repo).map_err(unreadable)? {
                    let (first, format) = (Some(FIRST_FRAME), Some(LogFormat::Wal));
                    return Ok(Extent { generation, format, first, end: first, bytes, log, base });
                }
                let end = starts.is_empty().then_some(Offset::ZERO);
                let format = format_of(repo).map_err(unreadable)?;
                let first = starts.first().copied();
                Ok(Extent { generation, format, first, end, bytes, log, base })
            }
        }
    }

    /// How many bytes it holds from `from` on, roughly: for telling how far a mirror is.
    pub(super) fn bytes_from(&self, from: Offset, extent: &Extent) -> u64 {
        match (self, extent.first, extent.end) {
            (Source::Url(_), Some(first), Some(end)) if first < end => {
                let share = end.0.saturating_sub(from.0) as f64 / (end.0 - first.0) as f64;
                (extent.bytes as f64 * share.min(1.0)) as u64
            }
            (Source::Url(_), ..) => 0,
            (Source::Dir(repo), ..) => {
                // Preallocated space is not counted.
                if let Ok(Some(bytes)) = bytes_in_dir(repo.path().to_owned(), from) {
                    return bytes;
                }
                let Ok(repo) = &current_of(repo) else {
                    return 0;
                };
                let starts = segment_starts(repo).unwrap_or_default();
                let held = starts.partition_point(|start| *start <= from).saturating_sub(1);
                starts[held..].iter().map(|start| bytes_of(repo, *start, from).unwrap_or(0)).sum()
            }
        }
    }

    /// The directory that holds a generation, of a source that is a directory. Blocks.
    ///
    /// # Errors
    /// [`MirrorError::Interrupted`] when it holds another one now.
    pub(super) fn dir_of(&self, generation: Generation) -> Result<FsRepo, MirrorError> {
        let Source::Dir(dir) = self else {
            return Err(MirrorError::Interrupted("the source is no directory".into()));
        };
        let repo = current_of(dir)?;
        match generation_of(&repo)? {
            found if found == generation => Ok(repo),
            found => Err(stepped(dir, found)),
        }
    }

    /// Streams what is read.
    pub(super) fn stream(&self, reading: Reading, commit_bytes_max: u64) -> Pieces {
        let (out, pieces) = mpsc::channel(BATCHES_UNDER_WAY);
        match self {
            Source::Dir(dir) => {
                let (source, dir) = (self.clone(), dir.clone());
                tokio::task::spawn_blocking(move || {
                    let read = source.dir_of(reading.generation).and_then(|repo| {
                        read_dir(&dir, &repo, reading, commit_bytes_max, &out).map_err(|error| match error {
                            // What it was read from is removed once it goes on in another directory.
                            _ if !is_current(&dir, &repo) => stepped(&dir, reading.generation),
                            MirrorError::Read(ReadError::Io(error)) => MirrorError::Dir { place: repo.place(), error },
                            error => error,
                        })
                    });
                    if let Err(error) = read {
                        // The other end is gone when it has stopped for a reason of its own.
                        let _ = out.blocking_send(Err(error));
                    }
                });
            }
            Source::Url(client) => {
                let client = client.clone();
                tokio::spawn(async move {
                    if let Err(error) = read_url::read(&client, reading, commit_bytes_max, &out).await {
                        let _ = out.send(Err(error)).await;
                    }
                });
            }
        }
        pieces
    }
}

/// What a directory holds its current generation in.
fn current_of(dir: &FsRepo) -> Result<FsRepo, MirrorError> {
    let current = current_dir(dir.path()).and_then(FsRepo::open);
    current.map_err(|error| MirrorError::Dir { place: dir.place(), error })
}

/// The generation that such a directory says it is of; the first where it says nothing.
fn generation_of(repo: &FsRepo) -> Result<Generation, MirrorError> {
    let recorded = recorded_generation(repo).map_err(|error| MirrorError::Dir { place: repo.place(), error })?;
    Ok(recorded.unwrap_or(Generation::FIRST))
}

/// Whether a directory still has its current generation in `repo`. What cannot be read is the same.
fn is_current(dir: &FsRepo, repo: &FsRepo) -> bool {
    current_dir(dir.path()).map_or(true, |current| current == repo.path())
}

fn stepped(dir: &FsRepo, from: Generation) -> MirrorError {
    MirrorError::Interrupted(format!("{} went into another generation than {from}", dir.place()))
}

/// Whether a directory holds a base, or should: one without segments is a WAL then.
fn is_based(repo: &FsRepo) -> io::Result<bool> {
    Ok(known_base(repo.path())?.exists
        || repo.list()?.iter().any(|file| [name::BASE, name::BASE_SUMS].contains(&&**file)))
}

/// Bytes of the segment that starts at `start` from offset `from` on.
fn bytes_of(repo: &FsRepo, start: Offset, from: Offset) -> io::Result<u64> {
    let mut reader = SegmentReader::open(repo, start)?;
    let len = reader.len()?;
    if from <= start {
        return Ok(len);
    }
    let framing = reader.header()?.ok().flatten().unwrap_or(Framing::of(reader.format()));
    let found = reader.seek(from, BytePos(len), framing, u64::MAX)?;
    Ok(found.map_or(0, |found| len.saturating_sub(found.at.0)))
}

/// Reads the generation of `dir` that is in `repo`.
fn read_dir(dir: &FsRepo, repo: &FsRepo, reading: Reading, max: u64, out: &Out) -> Result<(), MirrorError> {
    let Reading { from, mut held, follow, .. } = reading;
    // Watch first: what is written between the first read and the first wait must wake us.
    let watch = follow.then(|| Watch::of_both(repo.path(), dir.path()));
    // Read before the log, which may grow meanwhile: a mirror's record is never ahead of its files.
    let recorded = MirrorRecord::read(repo).map_err(ReadError::Io)?;
    let mut reader = StreamReader::open(Arc::new(repo.clone()), from, max)?;
    let (mut looks, mut stillness) = (0, Stillness::new());
    loop {
        match (reader.read(), &watch) {
            (Ok(Read::Batch(batch)), _) => {
                (looks, held) = (0, false);
                if out.blocking_send(Ok(Piece::Batch(batch))).is_err() {
                    return Ok(());
                }
            }
            (Ok(Read::End(_)), _) if held => return Err(ReadError::Ahead { from, next: reader.next() }.into()),
            (Ok(Read::End(Tail::Torn { bytes })), None) if stillness.verdict(repo) != Verdict::Still => {
                if stillness.verdict(repo) == Verdict::Live {
                    let live = Piece::Live { next: reader.next(), bytes };
                    let _ = out.blocking_send(Ok(live)).and_then(|()| out.blocking_send(Ok(Piece::End(Tail::Clean))));
                    return Ok(());
                }
                std::thread::sleep(STILL_LOOK);
            }
            (Ok(Read::End(_)), None) if recorded.as_ref().is_some_and(|record| reader.next() < record.durable) => {
                let (durable, next) = (recorded.map_or(reader.next(), |record| record.durable), reader.next());
                let segment = segment_starts(repo).map_err(ReadError::Io)?.last().copied().unwrap_or(next);
                let at = SegmentReader::open(repo, segment).and_then(|reader| reader.len()).unwrap_or_default();
                let kind = FaultKind::Lost { durable };
                return Err(ReadError::Damaged(Fault { segment, offset: next, at: BytePos(at), kind }).into());
            }
            (Ok(Read::End(tail)), None) => {
                let _ = out.blocking_send(Ok(Piece::End(tail)));
                return Ok(());
            }
            // Another generation holds what follows.
            (Ok(Read::End(_)), Some(_)) if !is_current(dir, repo) => return Err(stepped(dir, reading.generation)),
            (Ok(Read::End(_)), Some(watch)) => {
                looks = 0;
                watch.wait();
            }
            // A large commit takes its time to be written, and a damaged length looks like one.
            (Err(ReadError::Damaged(Fault { kind: FaultKind::Length { .. }, .. })), Some(_))
                if stillness.verdict(repo) != Verdict::Still =>
            {
                std::thread::sleep(DAMAGE_LOOK_AGAIN);
            }
            (Err(ReadError::Damaged(fault)), Some(_)) if looks < DAMAGE_LOOKS => {
                looks += 1;
                log::debug!("looking again ({looks}): {fault}");
                std::thread::sleep(DAMAGE_LOOK_AGAIN);
            }
            // A writer may be in the middle of it.
            (Err(ReadError::Damaged(_)), None) if looks < DAMAGE_LOOKS && stillness.verdict(repo) != Verdict::Still => {
                looks += 1;
                std::thread::sleep(DAMAGE_LOOK_AGAIN);
            }
            (Err(ReadError::Damaged(fault)), _) => return Err(judged(repo, fault)?),
            (Err(error), _) => return Err(error.into()),
        }
        if out.is_closed() {
            return Ok(());
        }
    }
}

/// A fault, as that of a whole directory: a hole in front of a segment is that of others, which are missing.
fn judged(repo: &FsRepo, fault: Fault) -> Result<MirrorError, MirrorError> {
    let FaultKind::Gap { found } = fault.kind else {
        return Ok(ReadError::Damaged(fault).into());
    };
    let starts = segment_starts(repo).map_err(ReadError::Io)?;
    let is_between = found > fault.segment && starts.binary_search(&found).is_ok();
    Ok(match is_between {
        true => MirrorError::SegmentsMissing { place: repo.place(), fault, to: found },
        false => ReadError::Damaged(fault).into(),
    })
}

/// Wakes when something changes in a directory, or at the latest when it is time to look anyway.
pub(super) struct Watch {
    changes: wakes::Receiver<()>,
    every: Duration,
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// For all files of a directory, or those whose names start with `names`.
    pub(super) fn new(dir: &Path, names: Option<&OsStr>) -> Watch {
        Watch::of(&[dir], names)
    }

    /// For all files of two directories, which may be the same.
    fn of_both(one: &Path, other: &Path) -> Watch {
        if one == other { Watch::of(&[one], None) } else { Watch::of(&[one, other], None) }
    }

    fn of(dirs: &[&Path], names: Option<&OsStr>) -> Watch {
        let names = names.map(|names| names.as_encoded_bytes().to_owned());
        // One pending wake says it all, so more are dropped.
        let (wake, changes) = wakes::sync_channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the directory opens files in it, which is no change: to wake for that would never end.
            let passed_over = event.is_ok_and(|event| {
                let of_others = |names: &Vec<u8>| {
                    let mut found = event.paths.iter().filter_map(|path| path.file_name());
                    !event.paths.is_empty() && !found.any(|name| name.as_encoded_bytes().starts_with(names))
                };
                let opened = matches!(event.kind, EventKind::Access(AccessKind::Open(_)));
                opened || names.as_ref().is_some_and(of_others)
            });
            if !passed_over {
                let _ = wake.try_send(());
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            dirs.iter().try_for_each(|dir| watcher.watch(dir, RecursiveMode::NonRecursive))?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => Watch { changes, every: POLL_EVERY, _watcher: Some(watcher) },
            Err(error) => {
                let shown = dirs.first().map(|dir| dir.display().to_string()).unwrap_or_default();
                log::warn!("{shown} cannot be watched and is polled: {error}");
                Watch { changes, every: POLL_EVERY_UNWATCHED, _watcher: None }
            }
        }
    }

    /// Blocks until something changed, or for so long that it is time to look.
    pub(super) fn wait(&self) {
        self.wait_at_most(self.every);
    }

    /// The same, but no longer than `longest`. Whether something changed.
    pub(super) fn wait_at_most(&self, longest: Duration) -> bool {
        let wait = longest.min(self.every);
        match self.changes.recv_timeout(wait) {
            Ok(()) => return true,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
            Err(RecvTimeoutError::Timeout) => {}
        }
        false
    }
}
