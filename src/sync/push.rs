//! The push: frames of a local database that the server does not have yet. Owns: where to start, and what its answers
//! mean for where to go on.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::error::SyncError;
use super::local::{LocalLog, Look, Stay, open_shared};
use super::metadata::{INFO, Known, MetadataFile};
use super::push_live::{Ends, LivePush};
use super::push_mark::{PushMark, Sending, digest_of};
use super::remote::{Pulled, Range, Remote};
use super::replica::place;
use super::replicate::Told;
use super::{FRAME_LEN, PAGE_LEN, Position, base, blocking, into_file, off, spawn};
use crate::format::wal::{FrameHeader, WalHeader, WalStart};
use crate::limits::{DAMAGE_LOOK_AGAIN, DAMAGE_LOOKS, PUSH_AHEAD_BYTES, RUNS_NOTED_MAX};
use crate::mirror::Event;
use crate::offset::Offset;
use crate::repo::{FsRepo, open_regular};
use crate::sqlite::lock::alone as lock;
use crate::sqlite::names::database_of_wal;
use crate::sqlite::wal_append::new_header;
use crate::sqlite::wal_frames::committed_frames;
use crate::sqlite::{DatabaseError, WalPosition, warning_of_links};

/// The database that is pushed, open.
#[derive(Debug)]
struct Source {
    /// Holds the lock that keeps the WAL from being checkpointed away by whoever closes the database last.
    database: File,
    log: LocalLog,
    info: MetadataFile,
}

impl Drop for Source {
    fn drop(&mut self) {
        lock::release(&self.database);
    }
}

/// Runs of a transaction whose end was not confirmed that are kept.
const RUNS_OPEN_MAX: usize = RUNS_NOTED_MAX / 3;

/// Pushes one database, again and again.
#[derive(Debug)]
pub(super) struct Push {
    remote: Remote,
    source: Arc<Mutex<Source>>,
    batch: u32,
    position: Position,
    /// What the metadata file says, as far as it could be believed.
    stored: Option<Position>,
    /// Whether there was a comparison of the last frame that both hold.
    compared: bool,
    /// The last commit frame that was confirmed, of those that are being pushed, and the mark after it with the runs of frames that were
    /// confirmed since: a server that is restarted may forget those. Of a transaction of more runs than are kept, the first.
    sent: Option<(u32, PushMark)>,
}

/// What the server says of one frame.
enum Held {
    Same,
    Nothing,
    /// It does not give out frames.
    Unknown,
}

impl Push {
    pub(super) async fn open(remote: Remote, path: &Path, batch: u32) -> Result<Push, SyncError> {
        let database = path.to_owned();
        let (source, known) = off(move || open(&database)).await??;
        let source = Arc::new(Mutex::new(source));
        let stored = known.as_ref().ok().copied();
        let position = match known {
            // The last frame that both hold is compared.
            Ok(position) if position.frame > 0 => position,
            // Its WAL may have been checkpointed before there was a frame to compare.
            Ok(Position { generation: ours, .. }) => match begin(&remote, path).await? {
                position if position.generation == ours => position,
                Position { generation: server, .. } => return Err(SyncError::Generation { ours, server }),
            },
            Err(why) => {
                log::warn!("{}-info is not used: {why}; asking the server", path.display());
                begin(&remote, path).await?
            }
        };
        Ok(Push { remote, source, batch, position, stored, compared: false, sent: None })
    }

    /// Pushes what is new. After Ok the server confirmed all frames up to the last commit, and the metadata says so.
    pub(super) async fn sync(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let looked = blocking(&self.source, |source| {
            let (path, had_none) = (source.log.database().to_owned(), source.log.header().is_none());
            match source.log.look()? {
                Look::Restarted => Err(SyncError::from(DatabaseError::restarted(&path))),
                Look::Same => Ok((path, source.log.frames(), had_none && source.log.header().is_some())),
            }
        });
        let (path, frames, is_new) = looked.await??;
        if is_new && self.position.frame == 0 {
            // It may not be the first one since: what was in others is in the database file.
            begin(&self.remote, &path).await?;
        }
        let first = !std::mem::replace(&mut self.compared, true);
        if first || (self.position.frame > frames && frames > 0) {
            self.compare_first(frames).await?;
        }
        if first {
            let from = self.position.frame.min(frames);
            told.started(Offset(u64::from(from) + 1), u64::from(frames - from) * FRAME_LEN as u64);
        }
        if self.position.frame < frames {
            self.push(frames, told).await?;
        } else if self.stored.is_some() {
            return Ok(());
        }
        let (position, sent) = (self.position, self.sent.clone());
        let stored = blocking(&self.source, move |source| {
            // Of a WAL that was reset just now it is known what was sent.
            let sent = sent.filter(|(frame, _)| *frame == position.frame).map(|(_, mark)| mark);
            match source.mark(position).ok().flatten().or(sent) {
                Some(mark) => source.note(position, &mark),
                None => {
                    let stored = source.info.store(position);
                    stored.map_err(|error| DatabaseError::io("writing the -info file of", source.log.database(), error))
                }
            }
        });
        stored.await??;
        self.stored = Some(position);
        Ok(())
    }

    /// How many frames both sides hold, which are compared, and how many the WAL has.
    pub(super) async fn compared(&mut self) -> Result<(u32, u32), SyncError> {
        let frames = blocking(&self.source, |source| source.log.frames()).await?;
        self.compare_first(frames).await?;
        Ok((self.position.frame, frames))
    }

    /// The push that follows the database from here on; `None` when it has no WAL to follow yet.
    pub(super) async fn follow(&self) -> Result<Option<LivePush>, SyncError> {
        let (position, remote, batch) = (self.position, self.remote.clone(), self.batch);
        let found = blocking(&self.source, move |source| {
            let (mark, path) = (source.mark(position)?, source.log.database().to_owned());
            let stay = Stay::beside_others(&path)?;
            Ok::<_, SyncError>((mark, path, Ends { info: Arc::new(source.info.clone()), _stay: stay }))
        });
        let (mark, path, ends) = found.await??;
        log::info!(
            "{}: following it through the checkpoints of its WAL; what is committed while this does not run is found, after \
             a checkpoint, by comparing its pages with all that the server holds",
            path.display()
        );
        Ok(mark.map(|mark| LivePush::resume((remote, &path, batch), ends, position, mark, true).checked()))
    }

    /// The push of the same database by comparing its pages, where more than its WAL differs from the base that it starts from.
    pub(super) async fn by_pages(&self, path: &Path, follow: bool) -> Result<LivePush, SyncError> {
        let (position, database) = (self.position, path.to_owned());
        let mark = PushMark::new(String::new(), WalStart::first(new_header(PAGE_LEN as u32, 0)), None);
        let ends = off(move || ends_of(&database)).await??;
        Ok(LivePush::resume((self.remote.clone(), path, self.batch), ends, position, mark, follow))
    }

    /// The server may be another one when it is reached again.
    pub(super) fn again(&mut self) {
        self.compared = false;
    }

    /// Makes sure that the server's log is ours as far as both go, before anything is sent on top of it.
    async fn compare_first(&mut self, frames: u32) -> Result<(), SyncError> {
        let cached = self.position.frame;
        let common = cached.min(frames);
        if cached > frames {
            log::warn!(
                "the metadata says that the server confirmed frame {cached} of generation {}, but the WAL has {frames} \
                 frames: it was checkpointed by another program, or the metadata are another database's",
                self.position.generation
            );
        }
        if common == 0 {
            return Ok(());
        }
        match self.compare(common).await? {
            Held::Same => self.position.frame = common,
            Held::Unknown if cached > frames => self.position.frame = 0,
            // It will say where it ends, and that it still has a log, when it is offered the last frame.
            Held::Nothing | Held::Unknown => self.position.frame = common.min(frames - 1),
        }
        if self.position.frame != cached {
            self.sent = None;
        }
        Ok(())
    }

    /// Starts reading the frames from `start` on that are sent after those of `before`, and notes how far the server is and what all
    /// of them are: should the WAL be reset meanwhile, they are known as ours. While nothing is known to stand for how far it is, one
    /// request is read, and nothing noted.
    fn read_ahead(&self, start: u32, frames: u32, before: Vec<Sending>) -> Reading {
        let (batch, source, noted) = (self.batch, self.source.clone(), self.noted());
        // The note has the runs since the last commit and those of two windows; each request has two at most.
        let requests = (PUSH_AHEAD_BYTES / FRAME_LEN / batch as usize).clamp(1, RUNS_NOTED_MAX / 6) as u32;
        let requests = if noted.is_some() { requests } else { 1 };
        let end = start.saturating_add(batch.saturating_mul(requests)).min(frames + 1);
        spawn(move || {
            let source = source.lock().unwrap_or_else(PoisonError::into_inner);
            let (frames, header) = (Bytes::from(source.log.batch(start, end)?), source.log.header());
            let runs = Sending::runs_of(start, &frames, batch);
            if let Some((position, mut mark)) = noted {
                if mark.ahead.len() < RUNS_OPEN_MAX {
                    mark.ahead.extend(before);
                    mark.ahead.extend_from_slice(&runs);
                }
                source.note(position, &mark)?;
            }
            Ok(Window { frames, header, runs })
        })
    }

    /// What is noted of the frames that were confirmed.
    fn noted(&self) -> Option<(Position, PushMark)> {
        let (frame, mark) = self.sent.clone()?;
        Some((Position { frame, ..self.position }, mark))
    }

    /// The window that was read. Where the WAL does not have it any more, it is noted how far the server is.
    async fn window(&self, reading: Reading) -> Result<Window, SyncError> {
        let read = reading.await.map_err(|error| SyncError::Interrupted(error.to_string()))?;
        if let (Err(_), Some((position, mark))) = (&read, self.noted()) {
            blocking(&self.source, move |source| source.note(position, &mark)).await??;
        }
        Ok(read?)
    }

    /// The server confirmed a request of frames that are numbered from `start`, and these runs.
    fn confirmed(&mut self, start: u32, frames: &[u8], runs: Vec<Sending>, header: WalHeader) {
        let count = (frames.len() / FRAME_LEN) as u32;
        let whole = committed_frames(frames, PAGE_LEN as u32) as u32;
        let mark_after = |count: u32| {
            let last = count as usize * FRAME_LEN;
            let frame = start + count - 1;
            (frame, mark_of(header, frame, frames.get(last - FRAME_LEN..last).unwrap_or_default()))
        };
        match &mut self.sent {
            _ if whole > 0 => {
                let (frame, mut mark) = mark_after(whole);
                mark.ahead = runs.into_iter().filter(|run| run.end > frame + 1).collect();
                self.sent = Some((frame, mark));
            }
            Some((_, mark)) if mark.ahead.len() < RUNS_OPEN_MAX => mark.ahead.extend(runs),
            Some(_) => {}
            None => self.sent = Some(mark_after(count)),
        }
    }

    /// Compares a frame that counts here with the server's; what is not the same is asked for again.
    async fn compare(&self, frame: u32) -> Result<Held, SyncError> {
        let generation = self.position.generation;
        let range = Range { generation, start: frame, end: frame.saturating_add(1) };
        let (mut remote, mut is_second) = (self.remote.clone(), false);
        loop {
            let theirs = match remote.pull(range).await {
                Ok(Pulled::Frames(theirs)) => theirs,
                Ok(Pulled::Nothing(_)) if std::mem::replace(&mut is_second, true) => return Ok(Held::Nothing),
                Ok(Pulled::Nothing(_)) => {
                    log::warn!("{}: it ends before frame {frame}: asking again on a new connection", remote.url());
                    remote = remote.on_new_connections()?;
                    continue;
                }
                Err(error) if error.is_unknown_call() => return Ok(Held::Unknown),
                Err(error) => return Err(error),
            };
            let differs = blocking(&self.source, move |source| {
                Ok::<_, DatabaseError>((source.log.differs(frame, &theirs)?, source.log.database().to_owned()))
            });
            match differs.await?? {
                (None, _) => return Ok(Held::Same),
                (Some(frame), path) if std::mem::replace(&mut is_second, true) => {
                    return Err(SyncError::Fork { path, generation, frame });
                }
                _ => {
                    log::warn!("{}: frame {frame} is another one here: asking again on a new connection", remote.url());
                    remote = remote.on_new_connections()?;
                }
            }
        }
    }

    async fn push(&mut self, frames: u32, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let mut next = None;
        let pushed = self.push_windows(frames, &mut next, told).await;
        // What it notes is older than what is noted from here on.
        given_up(&mut next).await;
        pushed
    }

    async fn push_windows(
        &mut self,
        frames: u32,
        next: &mut Option<Reading>,
        told: &mut Told<impl FnMut(Event)>,
    ) -> Result<(), SyncError> {
        let generation = self.position.generation;
        let (mut baton, mut went_back): (Option<String>, bool) = (None, false);
        let mut window = Window::default();
        while self.position.frame < frames {
            let start = self.position.frame + 1;
            if window.frames.is_empty() {
                if self.sent.is_none() {
                    let position = self.position;
                    let mark = blocking(&self.source, move |source| source.mark(position)).await?.ok().flatten();
                    self.sent = mark.map(|mark| (position.frame, mark));
                }
                let reading = next.take().unwrap_or_else(|| self.read_ahead(start, frames, Vec::new()));
                window = self.window(reading).await?;
                let after = start + (window.frames.len() / FRAME_LEN) as u32;
                if after <= frames && self.sent.is_some() {
                    *next = Some(self.read_ahead(after, frames, window.runs.clone()));
                }
            }
            let body = window.frames.split_to(window.frames.len().min(self.batch as usize * FRAME_LEN));
            let end = start + (body.len() / FRAME_LEN) as u32;
            let range = Range { generation, start, end };
            let commits = body.chunks_exact(FRAME_LEN).filter(|frame| frame.get(4..8) != Some(&[0; 4])).count();
            let bytes = body.len();
            let sent = body.clone();
            log::debug!("pushing {range}");
            let answer = self.remote.push(range, baton.as_deref(), body).await?;
            let (server, confirmed) = (answer.generation.unwrap_or(generation), answer.frame);
            if answer.conflict {
                log::debug!("the server says conflict: its generation {server} ends at frame {confirmed}");
                return Err(SyncError::Conflict { generation, start, server: confirmed });
            }
            log::debug!("the server confirmed frame {confirmed} of generation {server}");
            if server != generation {
                return Err(SyncError::Generation { ours: generation, server });
            }
            baton = answer.baton;
            let last = end - 1;
            if confirmed == last {
                let count = window.runs.iter().take_while(|run| run.end <= end).count();
                let runs = window.runs.drain(..count).collect();
                self.position.frame = last;
                let is_first = self.sent.is_none();
                if let Some(header) = window.header {
                    self.confirmed(start, &sent, runs, header);
                }
                if is_first && commits == 0 {
                    let found = blocking(&self.source, move |source| Ok::<_, DatabaseError>(source.whole_before(last)));
                    let whole = found.await?.ok().flatten();
                    self.sent = self.sent.take().map(|(frame, mark)| match &whole {
                        Some((ended, before)) => (frame, mark.within((*ended, before))),
                        None => (frame, mark),
                    });
                }
                told.moved(commits as u64, bytes as u64, Offset(u64::from(last) + 1));
                continue;
            }
            if confirmed < last {
                if std::mem::replace(&mut went_back, true) {
                    return Err(SyncError::Behind { generation, start, server: confirmed });
                }
                log::warn!("the server ends at frame {confirmed}, before frames {start}..={last}: going back there");
                baton = None;
            } else if matches!(self.compare(confirmed.min(frames)).await?, Held::Nothing) {
                return Err(SyncError::Answer(format!(
                    "an answer is not believed: after {range} it says that the server ends at frame {confirmed}, and it has no such frame"
                )));
            } else {
                log::info!("the server has frames up to {confirmed} already: going on behind them");
            }
            given_up(next).await;
            window = Window::default();
            (self.position.frame, self.sent) = (confirmed.min(frames), None);
            if self.position.frame > 0 {
                self.compare(self.position.frame).await?;
            }
            told.moved(0, 0, Offset(u64::from(self.position.frame) + 1));
        }
        Ok(())
    }
}

/// Frames that are sent one request after the other.
#[derive(Debug, Default)]
struct Window {
    frames: Bytes,
    header: Option<WalHeader>,
    /// Those that were not confirmed yet.
    runs: Vec<Sending>,
}

/// A window that is being read while the one before it is sent.
type Reading = JoinHandle<Result<Window, DatabaseError>>;

/// Waits for a window that is not sent after all.
async fn given_up(reading: &mut Option<Reading>) {
    if let Some(reading) = reading.take() {
        // Nothing of it was needed.
        let _ = reading.await;
    }
}

impl Source {
    /// Replaces the metadata file.
    fn note(&self, position: Position, mark: &PushMark) -> Result<(), DatabaseError> {
        let stored = self.info.store_pushed(position, mark);
        stored.map_err(|error| DatabaseError::io("writing the -info file of", self.log.database(), error))
    }

    /// What position of the WAL stands for a frame that the server confirmed; `None` where the WAL does not hold it.
    fn mark(&self, position: Position) -> Result<Option<PushMark>, DatabaseError> {
        let (frame, header) = (position.frame, self.log.header());
        let Some(header) = header.filter(|_| frame > 0 && frame <= self.log.frames()) else {
            return Ok(None);
        };
        Ok(Some(mark_of(header, frame, &self.log.batch(frame, frame + 1)?)))
    }
}

impl Source {
    /// The last frame up to `frame` that ends a transaction, 0 if none does, and the mark after it; `None` where the WAL does not
    /// hold it any more.
    fn whole_before(&self, frame: u32) -> Option<(u32, PushMark)> {
        for frame in (1..=frame).rev() {
            let found = self.log.batch(frame, frame + 1).ok()?;
            if commits_at_end(&found) {
                return Some((frame, mark_of(self.log.header()?, frame, &found)));
            }
        }
        let header = self.log.header()?;
        let wal = WalPosition { salts: header.salts, frames: 0, chain: header.seed() };
        Some((0, PushMark::new(String::new(), WalStart::first(header), Some(wal))))
    }
}

/// Whether a frame is the last of its transaction.
fn commits_at_end(frame: &[u8]) -> bool {
    frame.get(4..8).is_some_and(|size| size != [0; 4])
}

/// The mark after a frame of a WAL, which is that of the server too.
fn mark_of(header: WalHeader, frame: u32, last: &[u8]) -> PushMark {
    let chain = last.first_chunk().map(FrameHeader::decode).map(|head| head.chain).unwrap_or_default();
    let wal = WalPosition { salts: header.salts, frames: frame.into(), chain };
    PushMark::new(digest_of(last), WalStart { header, chain }, Some(wal))
}

/// The push of a database whose WAL is not the one that the server's generation has all frames of, or with `in_any_case` also of
/// one where it still is; `None` otherwise, and where it is not known what was pushed.
pub(super) async fn resume(
    remote: &Remote,
    path: &Path,
    (batch, follow): (u32, bool),
    in_any_case: bool,
) -> Result<Option<LivePush>, SyncError> {
    let database = path.to_owned();
    let found = off(move || {
        let info = info_of(&database)?;
        let Ok(position) = info.load() else {
            return Ok(None);
        };
        let ends = ends_of(&database)?;
        let log = LocalLog::open(&database)?;
        let Some((_, mark)) = info.load_pushed().ok().flatten() else {
            // Frames that are there are compared.
            return Ok((position.frame > 0 && log.frames() == 0).then_some((ends, position, None)));
        };
        let is_whole = mark.wal().is_some_and(|at| {
            at.frames == u64::from(position.frame) && log.holds(at.frames as u32, at.salts, at.chain)
        });
        // Of a replica at the start of a generation it is found out whether its frames follow the base.
        let is_at_base = position.frame == 0 && mark.ahead.is_empty() && matches!(info.load_pulled(), Ok(Some(_)));
        let are_frames_enough = is_whole || is_at_base;
        Ok::<_, SyncError>((!are_frames_enough || in_any_case).then_some((ends, position, Some(mark))))
    });
    let from = (remote.clone(), path, batch);
    Ok(match found.await?? {
        Some((ends, position, Some(mark))) => Some(LivePush::resume(from, ends, position, mark, follow)),
        Some((ends, position, None)) => Some(LivePush::begin_equal(from, ends, position.generation, follow).await?),
        None => None,
    })
}

/// The push of a database by the pages that differ, after `error` said that frames alone do not do.
///
/// # Errors
/// That one, where it is not known how far the server has what this database has.
pub(super) async fn live_instead(
    remote: &Remote,
    path: &Path,
    from: (u32, bool),
    error: SyncError,
) -> Result<LivePush, SyncError> {
    if let Some(live) = resume(remote, path, from, true).await? {
        return Ok(live);
    }
    match error {
        // With nothing on the server, all of its pages are what differs.
        SyncError::Base { .. } => begin_live(remote, path, from).await?.ok_or(error),
        error => Err(error),
    }
}

/// The push of a database that has pages which are not in its WAL, to a server that holds nothing; `None` when it holds something.
async fn begin_live(remote: &Remote, path: &Path, (batch, follow): (u32, bool)) -> Result<Option<LivePush>, SyncError> {
    let database = path.to_owned();
    let ends = off(move || ends_of(&database)).await??;
    LivePush::begin((remote.clone(), path, batch), ends, follow).await
}

fn ends_of(path: &Path) -> Result<Ends, SyncError> {
    let stay = Stay::beside_others(path)?;
    Ok(Ends { info: Arc::new(info_of(path)?), _stay: stay })
}

/// That the WAL of a database is beside the name that was given.
///
/// # Errors
/// [`DatabaseError::Linked`].
pub(super) async fn check_names(path: &Path) -> Result<(), SyncError> {
    let path = path.to_owned();
    if let Some(warning) = off(move || warning_of_links(&path)).await?? {
        log::warn!("{warning}");
    }
    Ok(())
}

/// Removes what a crash left beside a database long ago.
pub(super) async fn clean(path: &Path) -> Result<(), SyncError> {
    let path = path.to_owned();
    let cleaned = off(move || {
        let cleaned = info_of(&path)?.clean();
        Ok(cleaned.map_err(|error| DatabaseError::io("cleaning up beside", &path, error))?)
    });
    cleaned.await?
}

/// The metadata file of a database.
pub(super) fn info_of(path: &Path) -> Result<MetadataFile, SyncError> {
    let (dir, name) = place(path)?;
    let dir = FsRepo::open(&dir).map_err(|error| DatabaseError::io("opening", &dir, error))?;
    Ok(MetadataFile::new(Arc::new(dir), format!("{name}{INFO}")))
}

/// Whether a path is that of a read replica, or of its WAL: the metadata file beside it says that a pull writes it.
///
/// # Errors
/// When that cannot be read.
pub fn is_replica(path: &Path) -> Result<bool, SyncError> {
    let path = database_of_wal(path).unwrap_or(path);
    let pulled =
        info_of(path)?.load_pulled().map_err(|error| DatabaseError::io("reading the -info file of", path, error))?;
    Ok(pulled.is_some_and(|(_, mark)| !mark.is_pushed))
}

/// Opens a database, with what its metadata say.
fn open(path: &Path) -> Result<(Source, Known), SyncError> {
    let database = open_shared(path)?;
    let log = LocalLog::open(path)?;
    let info = info_of(path)?;
    let known = info.load();
    Ok((Source { database, log, info }, known))
}

/// Where to start when nothing is known: at the first frame of the server's generation, if our frames go on top of its
/// base.
async fn begin(remote: &Remote, path: &Path) -> Result<Position, SyncError> {
    let (generation, base) = match remote.info().await? {
        // The first servers had no generations, and nothing to start from.
        None => (1, None),
        Some(generation) => {
            let (dir, _) = place(path)?;
            let file = off(move || {
                tempfile::tempfile_in(&dir).map_err(|error| DatabaseError::io("making a file in", &dir, error))
            });
            let file = Arc::new(file.await??);
            remote.export(generation, into_file(&file)).await?;
            (generation, Some(file))
        }
    };
    match stranger(path, base).await? {
        None => Ok(Position { generation, frame: 0 }),
        Some(page) => Err(SyncError::Base { path: path.to_owned(), page, generation }),
    }
}

/// The first page of a database that is neither in its WAL nor what `base` has there, if any.
pub(super) async fn stranger(path: &Path, base: Option<Arc<File>>) -> Result<Option<u32>, SyncError> {
    let mut looks = 0;
    loop {
        let (base, path) = (base.clone(), path.to_owned());
        let stranger = off(move || {
            let file = open_regular(&path, File::options().read(true));
            let file = file.map_err(|error| DatabaseError::io("opening", &path, error))?;
            Ok::<_, SyncError>(base::stranger(&path, &file, base.as_deref(), &LocalLog::open(&path)?)?)
        });
        match stranger.await?? {
            // A checkpoint may be in the middle of that page.
            Some(_) if looks < DAMAGE_LOOKS => looks += 1,
            found => return Ok(found),
        }
        tokio::time::sleep(DAMAGE_LOOK_AGAIN).await;
    }
}
