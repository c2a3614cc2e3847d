//! A SQLite database of this machine as the source of a mirror: its file is the base of a generation, its WAL the frames.
//!
//! What keeps a wrong byte from being stored while the database is in use:
//!
//! - **The base** is read through a [`Snapshot`], whose locks keep SQLite from changing it. What does not heed them shows in
//!   `check`, which is asked after the last byte was read and before the stream of them ends: a base whose stream ends with
//!   an error is never given its name by the sink.
//! - **Frames** are verified on the way: each continues the checksum of the one before, from the header on, so whatever
//!   comes through is a prefix of the WAL with that header. A base goes with the frames of the same snapshot. Frames behind
//!   the last commit are not part of a snapshot, and no whole commit.
//! - **Going on** takes the header of the sink, salts included, and at the sink's last frame the checksum it has: that one
//!   tells all frames before apart from any others. Any other header is another generation, with a base of its own.
//!
//! While a base and the frames behind it are sent, SQLite's readers and writers go on, but nobody checkpoints; between two
//! looks of a mirror that follows, everybody may. Commits that are checkpointed away before they were seen are in the base of
//! the next generation.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use super::base::{self, BaseStream, Blocks};
use super::base_due::Instead;
use super::delivery::Delivery;
use super::distance::SharedWal;
use super::endpoint::Mirror;
use super::failure::MirrorError;
use super::overlap::Overlap;
use super::pump::pump;
use super::run::{Event, Progress};
use super::sink::Sink;
use super::source::{Out, Piece, Pieces, Watch};
use super::standing::{Likeness, Standing};
use crate::format::wal::{Chain, FIRST_FRAME, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader, WalStart};
use crate::format::{Framing, LogFormat, database};
use crate::limits::{
    BATCHES_UNDER_WAY, COMPARE_BYTES_MAX, DAMAGE_LOOK_AGAIN, DAMAGE_LOOKS, LIBSQL_PAGE_SIZE, READ_BLOCK,
};
use crate::offset::{Generation, Offset};
use crate::repo::open_regular;
use crate::sqlite::{BaseVersion, Snapshot, SnapshotError, Verdict};
use crate::stream::{Batch, Batcher, Tail};

/// Whether a path is that of a SQLite database, which an empty file is too, or by its name that of a WAL. Whether they are
/// sound shows when they are read.
#[must_use]
pub fn is_database(path: &Path) -> bool {
    if path.is_dir() {
        return false;
    }
    let starts_like_one = || {
        let mut head = Vec::new();
        let read = open_regular(path, File::options().read(true))
            .and_then(|file| file.take(database::MAGIC.len() as u64).read_to_end(&mut head));
        read.is_ok() && (head.is_empty() || head == database::MAGIC)
    };
    path.to_str().is_some_and(|path| path.ends_with("-wal")) || (path.is_file() && starts_like_one())
}

/// A database to mirror.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    /// A generation that was given a base, and which state of the file that was.
    brought: Mutex<Option<(Generation, Option<BaseVersion>)>>,
    /// What was last seen of its WAL.
    wal: SharedWal,
}

impl Database {
    pub(super) fn new(path: &Path, wal: SharedWal) -> Database {
        Database { path: path.to_owned(), brought: Mutex::default(), wal }
    }

    pub(super) async fn snapshot(&self) -> Result<Arc<Snapshot>, MirrorError> {
        open(&self.path).await
    }

    /// Whether a generation is known to start from the base of this snapshot. Not asked of small bases: two writes may
    /// leave the same time behind, but not while gigabytes are read in between.
    fn has_brought(&self, generation: Generation, snapshot: &Snapshot) -> bool {
        let large = snapshot.base_bytes().is_some_and(|bytes| bytes > COMPARE_BYTES_MAX);
        let brought = *self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        large && brought == Some((generation, snapshot.base_version()))
    }
}

/// Mirrors what is missing of a database, and then follows if that is wanted.
pub(super) async fn attempt(
    mirror: &Mirror,
    database: &Database,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let path = &database.path;
    loop {
        // Watch first: what is written between the look and the first wait must wake us.
        let watch = mirror.follow.then(|| watch(path));
        let snapshot = open(path).await?;
        saw(&database.wal, &snapshot);
        let status = sink.status(Some(LogFormat::Wal)).await.map_err(|error| sink.own(error))?;
        let reader = begin(database, snapshot, sink, progress, told).await?;
        database.wal.lock().unwrap_or_else(PoisonError::into_inner).mirrored = reader.snapshot.header();
        // What a service holds may be new with this generation; a directory must hold what was compared.
        let status = if let Sink::Url(_) = sink {
            sink.status(Some(LogFormat::Wal)).await.map_err(|error| sink.own(error))?
        } else {
            status
        };
        let mut delivery = Delivery::new(sink, status, LogFormat::Wal, Generation::FIRST);
        delivery.open(None, told).await?;
        let from = reader.next;
        progress.begin(Generation::FIRST, from);
        // Frames of another generation start over at the first.
        progress.counted.1 = progress.counted.1.min(from);
        told(Event::Started { from, held: true, source_bytes: reader.bytes_left() });
        let pumped =
            pump(reader.start(watch, mirror.commit_bytes_max), &mut delivery, Overlap::default(), progress, told).await;
        // What came is sound and is kept, whatever became of the rest.
        let ended = delivery.end().await;
        if let Ok(Some(durable)) = &ended {
            progress.durable = *durable;
            told(Event::Moved(*progress));
        }
        pumped?;
        ended?;
        if !mirror.follow {
            return Ok(());
        }
        log::debug!("{} was checkpointed, or its WAL started anew", path.display());
    }
}

fn saw(wal: &SharedWal, snapshot: &Snapshot) {
    wal.lock().unwrap_or_else(PoisonError::into_inner).found = Some((snapshot.header(), snapshot.frames()));
}

async fn open(path: &Path) -> Result<Arc<Snapshot>, MirrorError> {
    let path = path.to_owned();
    Ok(Arc::new(off(move || Snapshot::open(&path)).await??))
}

/// Runs work that waits for a disk where it holds nobody up.
pub(super) async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, MirrorError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| MirrorError::Interrupted(error.to_string()))
}

fn watch(path: &Path) -> Watch {
    let path = path.to_str().and_then(|path| path.strip_suffix("-wal")).map_or(path, Path::new);
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Watch::new(dir, path.file_name())
}

/// How a sink goes on with a snapshot.
pub(super) struct Start {
    /// The frame to send first.
    pub(super) next: Offset,
    /// How the sink goes on there; none where it starts with the header.
    pub(super) end: Option<WalStart>,
    /// The generation that must be given the snapshot's base before.
    pub(super) generation: Option<Generation>,
    /// The base to give instead of the database file.
    made: Option<Vec<u8>>,
}

/// Finds out how a sink goes on with a snapshot. Changes nothing.
///
/// # Errors
/// When they do not fit each other.
pub(super) async fn find_start(
    source: &Database,
    snapshot: &Arc<Snapshot>,
    sink: &Sink,
    standing: &Standing,
) -> Result<Start, MirrorError> {
    let path = &source.path;
    if let (Some(theirs), Some(ours)) = (standing.end, snapshot.header())
        && theirs.header == ours
    {
        // What damage has taken away is told as that.
        fits(snapshot, standing, theirs.chain).map_err(|error| damage(path, snapshot).unwrap_or(error))?;
        return Ok(Start { next: standing.next, end: Some(theirs), generation: None, made: None });
    }
    if let (Some(_), Verdict::Header(error)) = (standing.end, snapshot.verdict()) {
        return Err(MirrorError::WalHeader { path: path.to_owned(), error: error.clone() });
    }
    let frames = snapshot.frames() > 0;
    let made = match snapshot.base_bytes() {
        Some(0) => Some(database::empty(LIBSQL_PAGE_SIZE)),
        Some(_) => None,
        None => Some(base_of_wal(path, snapshot)?),
    };
    let likeness = match (standing.end, frames) {
        // Whatever it holds, these frames continue something else.
        (Some(_), true) => Likeness::Other,
        (None, _) if source.has_brought(standing.generation, snapshot) => Likeness::Same,
        _ => sink.is_like(standing, snapshot.clone(), made.clone()).await?,
    };
    let generation = match (likeness, sink) {
        (Likeness::Same, _) => None,
        (Likeness::Unset, _) => Some(standing.generation),
        (Likeness::Other, Sink::Dir(dir)) => {
            return Err(MirrorError::OtherGeneration { place: dir.path().to_owned() });
        }
        (Likeness::Other, Sink::Url(_)) => Some(Generation(standing.generation.0 + 1)),
    };
    // While there are no frames, those of the sink, if it has any, are in the base.
    let next = if frames || generation.is_some() { FIRST_FRAME } else { standing.next };
    Ok(Start { next, end: None, generation, made })
}

/// Brings the sink to where it can take frames of the snapshot, with a new generation if that needs one.
async fn begin(
    source: &Database,
    snapshot: Arc<Snapshot>,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<Reader, MirrorError> {
    let (path, wal) = (&source.path, &source.wal);
    let standing = sink.standing(true).await?;
    let Start { next, end, generation, made } = find_start(source, &snapshot, sink, &standing).await?;
    let reader = Reader { path: path.to_owned(), snapshot: snapshot.clone(), next, start: end, wal: wal.clone() };
    if let Some(generation) = generation {
        bring(snapshot.clone(), made, generation, sink, progress, told).await?;
        *source.brought.lock().unwrap_or_else(PoisonError::into_inner) = Some((generation, snapshot.base_version()));
        log::info!("{} starts generation {generation}", path.display());
    }
    if end.is_some() || snapshot.frames() == 0 {
        return Ok(reader);
    }
    let folding = snapshot.clone();
    let folded = off(move || folding.folded()).await??;
    if folded > 0 {
        log::warn!(
            "{}: frames up to {folded} may be in the database already, so this generation is only sure to be restored to \
             frame {folded} and later",
            path.display()
        );
    }
    Ok(reader)
}

/// Whether a snapshot with the header of the sink holds what the sink holds.
fn fits(snapshot: &Snapshot, standing: &Standing, theirs: Chain) -> Result<(), MirrorError> {
    let (held, next) = (standing.next.0.saturating_sub(1), standing.next);
    if snapshot.frames() < held {
        return Err(MirrorError::Ahead { sink: next, source_end: Offset(snapshot.frames() + 1) });
    }
    let ours = match snapshot.header() {
        Some(header) => chain_at(snapshot, &header, held)?,
        None => None,
    };
    if ours == Some(theirs) { Ok(()) } else { Err(MirrorError::Fork { at: Offset(held), is_first: false }) }
}

/// The checksum up to and with a frame.
fn chain_at(snapshot: &Snapshot, header: &WalHeader, frame: u64) -> Result<Option<Chain>, SnapshotError> {
    let Some(before) = frame.checked_sub(1) else {
        return Ok(Some(header.seed()));
    };
    let mut head = [0; FRAME_HEADER_LEN];
    let read = snapshot.read_wal(HEADER_LEN as u64 + before * header.frame_len(), &mut head)?;
    Ok((read == head.len()).then(|| FrameHeader::decode(&head).chain))
}

/// What a WAL that stands alone starts from: nothing, if its first transaction writes every page.
fn base_of_wal(path: &Path, snapshot: &Snapshot) -> Result<Vec<u8>, MirrorError> {
    let lacking = |reason: String| MirrorError::NoBase { path: path.to_owned(), reason };
    let Some(header) = snapshot.header().filter(|_| snapshot.frames() > 0) else {
        return Err(lacking("it holds no transaction".into()));
    };
    let mut pages = std::collections::BTreeSet::new();
    for frame in 0..snapshot.frames() {
        let mut head = [0; FRAME_HEADER_LEN];
        if snapshot.read_wal(HEADER_LEN as u64 + frame * header.frame_len(), &mut head)? < head.len() {
            break;
        }
        let FrameHeader { page, size, .. } = FrameHeader::decode(&head);
        pages.insert(page);
        if size > 0 {
            let lacks = (1..=size).zip(pages.iter()).find(|(wanted, page)| wanted != *page).map(|(wanted, _)| wanted);
            let lacks = lacks.or((pages.len() < size as usize).then(|| pages.len() as u32 + 1));
            return match lacks {
                Some(page) => Err(lacking(format!("its first transaction writes {size} pages, but not page {page}"))),
                None => Ok(database::empty(header.page_size)),
            };
        }
    }
    Err(lacking("it holds no transaction".into()))
}

/// Makes the base of `generation` of the sink that of the snapshot, or what was made up instead.
async fn bring(
    snapshot: Arc<Snapshot>,
    made: Option<Vec<u8>>,
    generation: Generation,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let base = BaseStream::new(blocks(snapshot.clone(), made));
    let brought = base::put(base, generation, sink, Instead::Nothing, progress, told).await;
    if brought.is_err() {
        // The reason, if it is ours.
        snapshot.check()?;
    }
    brought
}

/// The bytes of a base. They end well only if the snapshot was consistent up to the last one.
fn blocks(snapshot: Arc<Snapshot>, made: Option<Vec<u8>>) -> Blocks {
    if let Some(made) = made {
        let checked = async move { snapshot.check().map(|()| Bytes::from(made)).map_err(io::Error::other) };
        return stream::once(checked).boxed();
    }
    let blocks = stream::try_unfold((snapshot, 0), |(snapshot, at)| async move {
        let reading = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; READ_BLOCK];
            let count = snapshot.read_base(at, &mut block)?;
            block.truncate(count);
            if count == 0 {
                snapshot.check()?;
            }
            Ok::<_, SnapshotError>((block, snapshot))
        });
        let (block, snapshot) = reading.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        let at = at + block.len() as u64;
        Ok((!block.is_empty()).then_some((Bytes::from(block), (snapshot, at))))
    });
    blocks.boxed()
}

/// What decides whether a database goes on from where it was: the header of its WAL, or while that holds nothing, the base.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    Wal(WalHeader),
    Base(Option<BaseVersion>),
}

impl Identity {
    fn of(snapshot: &Snapshot) -> Identity {
        match snapshot.header().filter(|_| snapshot.frames() > 0) {
            Some(header) => Identity::Wal(header),
            None => Identity::Base(snapshot.base_version()),
        }
    }
}

/// Reads the frames of a database from one on, on a thread of its own.
struct Reader {
    path: PathBuf,
    snapshot: Arc<Snapshot>,
    /// The frame to read next.
    next: Offset,
    /// How it goes on there; none at the start.
    start: Option<WalStart>,
    /// Where to note what was seen.
    wal: SharedWal,
}

impl Reader {
    fn bytes_left(&self) -> u64 {
        let header = self.snapshot.header();
        let frames = (self.snapshot.frames() + 1).saturating_sub(self.next.0);
        header.map_or(0, |header| frames * header.frame_len())
    }

    fn start(self, watch: Option<Watch>, commit_bytes_max: u64) -> Pieces {
        let (out, pieces) = mpsc::channel(BATCHES_UNDER_WAY);
        tokio::task::spawn_blocking(move || {
            let end = match self.read(watch, commit_bytes_max, &out) {
                Ok(()) => Ok(Piece::End(Tail::Clean)),
                Err(error) => Err(error),
            };
            // The other end is gone when it has stopped for a reason of its own.
            let _ = out.blocking_send(end);
        });
        pieces
    }

    /// Sends what is there, and if it is watched what comes, until the database goes on with another WAL.
    fn read(self, watch: Option<Watch>, max: u64, out: &Out) -> Result<(), MirrorError> {
        let Reader { path, snapshot, mut next, mut start, wal } = self;
        let identity = Identity::of(&snapshot);
        let (mut snapshot, mut looks, mut took) = (Some(snapshot), 0, Duration::ZERO);
        loop {
            if let Some(found) = snapshot.take() {
                if let Identity::Wal(_) = identity
                    && !send(&found, &mut next, &mut start, max, out)?
                {
                    return Ok(());
                }
                match (damage(&path, &found), &watch) {
                    (Some(error), Some(_)) if looks < DAMAGE_LOOKS => {
                        looks += 1;
                        log::debug!("looking again ({looks}): {error}");
                        took = took.max(DAMAGE_LOOK_AGAIN);
                    }
                    (Some(error), _) => return Err(error),
                    (None, _) => looks = 0,
                }
            }
            let Some(watch) = &watch else {
                return Ok(());
            };
            // A look reads the whole WAL: at most half of the time.
            std::thread::sleep(took);
            if looks == 0 {
                watch.wait();
            }
            if out.is_closed() {
                return Ok(());
            }
            let since = Instant::now();
            match Snapshot::open(&path) {
                Ok(found) if Identity::of(&found) != identity => return Ok(()),
                Ok(found) => {
                    saw(&wal, &found);
                    snapshot = Some(Arc::new(found));
                }
                Err(error @ (SnapshotError::Changed { .. } | SnapshotError::Unsettled { .. })) => {
                    log::debug!("looking again: {error}");
                }
                // Somebody may have it for himself for ever.
                Err(error) if error.is_transient() => log::warn!("looking again: {error}"),
                Err(error) => return Err(error.into()),
            }
            took = since.elapsed();
        }
    }
}

/// What is wrong with the WAL behind its committed part, if anything is.
fn damage(path: &Path, snapshot: &Snapshot) -> Option<MirrorError> {
    let path = path.to_owned();
    match snapshot.verdict() {
        Verdict::Whole | Verdict::Leftover { .. } => None,
        Verdict::Header(error) => Some(MirrorError::WalHeader { path, error: error.clone() }),
        Verdict::Damaged { invalid, sound } => {
            let (frame, at, sound) = (invalid.frame, invalid.at, sound.frame);
            Some(MirrorError::WalDamaged { path, frame, at, sound })
        }
    }
}

/// Sends the frames of a snapshot from `next` on; false when nobody takes them any more.
fn send(
    snapshot: &Snapshot,
    next: &mut Offset,
    start: &mut Option<WalStart>,
    max: u64,
    out: &Out,
) -> Result<bool, MirrorError> {
    let Some(header) = snapshot.header() else {
        return Ok(true);
    };
    let held = next.0.saturating_sub(1);
    if let Some(start) = start {
        // Only the header is the same so far.
        if snapshot.frames() < held || chain_at(snapshot, &header, held)? != Some(start.chain) {
            snapshot.check()?;
            return Err(MirrorError::Reset { at: Offset(held) });
        }
    }
    let mut at = if start.is_some() { HEADER_LEN as u64 + held * header.frame_len() } else { 0 };
    let mut batcher = Batcher::new(Framing::Wal(*start), Some(*next), max);
    while at < snapshot.wal_bytes() {
        let mut block = vec![0; READ_BLOCK];
        let count = snapshot.read_wal(at, &mut block)?;
        block.truncate(count);
        at += count as u64;
        let mut batch = Batch::default();
        let sound = batcher.push(block.into(), &mut batch);
        let sound = if count == 0 { sound.and_then(|()| batcher.finish()) } else { sound };
        if let Some(end) = batch.runs().last().map(|run| run.end) {
            *next = end;
            if let Framing::Wal(framing) = batcher.framing() {
                *start = framing;
            }
        }
        if !batch.is_empty() && out.blocking_send(Ok(Piece::Batch(batch))).is_err() {
            return Ok(false);
        }
        if let Err(error) = sound {
            // It was sound when the snapshot was taken.
            snapshot.check()?;
            return Err(MirrorError::Received(error));
        }
        if count == 0 {
            snapshot.check()?;
            return Err(MirrorError::Interrupted(format!("the WAL ends at byte {at} of {}", snapshot.wal_bytes())));
        }
    }
    snapshot.check()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::TryStreamExt;

    use super::*;

    fn gathered(blocks: Blocks) -> io::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let gathered = runtime.block_on(blocks.try_collect::<Vec<_>>())?;
        Ok(gathered.concat())
    }

    #[test]
    fn the_stream_of_a_base_that_was_written_meanwhile_does_not_end_well() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.db");
        let content = database::empty(4096).repeat(200);
        fs::write(&path, &content).expect("written");
        let open = || Arc::new(Snapshot::open(&path).expect("a snapshot"));
        assert!(gathered(blocks(open(), None)).is_ok_and(|base| base == content));
        let (snapshot, other) = (open(), open());
        let mut writer = fs::File::options().append(true).open(&path).expect("opened");
        writer.write_all(&[0; 4096]).expect("written");
        let error = gathered(blocks(snapshot, None)).expect_err("it changed");
        assert!(error.to_string().contains("changed"), "{error}");
        assert!(gathered(blocks(other, Some(vec![1]))).is_err(), "what was made up goes with the snapshot");
    }
}
