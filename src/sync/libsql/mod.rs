//! The libSQL sync protocol, the server's side, free of HTTP. Source: `specs/libsql-sync.md`, sections 2 to 6.
//!
//! A replica sends frames out of its own WAL, with its own salts and checksums. What makes a frame is its bytes 0..8 and
//! its page; those go into our log, under our salts. The replica's checksums cover all of its history, so they tell
//! whether that is ours too: a replica whose past is another one is refused, however well its frame numbers fit.

mod pushed;
mod sequence;
mod stage;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::format::wal::WalStart;
use crate::format::{Framing, LogFormat};
use crate::limits::{BODIES_KEPT, JUDGED_AT_ONCE, LIBSQL_PAGE_SIZE, STAGE_LOOK_EVERY, STAGED_WAIT};
use crate::mirror::{Error, Frames, Log, Registry, Share, View, Writer};
use crate::offset::{Generation, Offset};
use crate::repo::RepoFile;
use crate::sqlite::wal_append::new_header;
use crate::sqlite::wal_frames::committed_frames;
use crate::sync::wal_facts::WalFacts;
use pushed::{Pushed, chained, is_big_endian};
use stage::{Extended, Stage, Stages};

/// What a push is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushAnswer {
    /// Whether the frames are not the ones this log goes on with: the replica must be rebuilt.
    pub conflict: bool,
    /// The generation the push was for.
    pub generation: Generation,
    /// Number of the last frame that the service holds of this push; 0 for none. A lower one than was sent asks for all
    /// frames behind it.
    pub max_frame_no: u64,
}

/// What a pull is answered with.
#[derive(Debug)]
pub enum PullAnswer {
    /// Frames, as many as there are of those asked for.
    Frames(Frames),
    /// None there.
    Nothing {
        /// The current generation: a replica in an older one goes on with the next.
        generation: Generation,
        /// Number of the last durable frame of the generation asked for.
        max_frame_no: u64,
    },
}

type AllStages = HashMap<(String, Generation), Arc<Mutex<Stages>>>;

/// The server's side of the protocol, for all logs of a service.
#[derive(Debug)]
pub struct LibSql {
    registry: Arc<Registry>,
    /// What senders have staged, by the id of the log and its generation. Pushes to one log come one after the other.
    stages: Arc<SyncMutex<AllStages>>,
    /// Whether a task checks for silent senders: as long as anything is staged.
    watched: Arc<AtomicBool>,
    sizes: Sizes,
    /// Memory of bodies that were stored: to give it back and take it anew costs as much as to sum them up.
    bodies: SyncMutex<Vec<BytesMut>>,
}

/// What becomes of a push, before anything is written.
enum Judged {
    Conflict,
    /// All of it is held, or staged, or cannot be used: the last frame that is there.
    Held(u64),
    /// Transactions that are whole now, as bytes for our log, with the memory they take; what follows them goes back on the
    /// stage.
    Append {
        stream: (Vec<Bytes>, Share),
        from: Option<Offset>,
        rest: Option<Stage>,
    },
    /// The same, with the bytes in a file.
    AppendFile {
        file: Arc<dyn RepoFile>,
        from: Option<Offset>,
        rest: Option<Stage>,
    },
}

/// How large a transaction may be, and how much of it is held in memory.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    commit_bytes_max: u64,
    held_max: u64,
}

impl LibSql {
    /// For the logs of `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> LibSql {
        let (stages, watched, bodies) = Default::default();
        let settings = registry.settings();
        let sizes = Sizes { commit_bytes_max: settings.commit_bytes_max, held_max: settings.commit_held_max() };
        LibSql { registry, stages, watched, sizes, bodies }
    }

    fn log(&self, log_name: &str) -> Result<Arc<Log>, Error> {
        let log = self.registry.get(log_name)?;
        syncable(&log, "libSQL")?;
        Ok(log)
    }

    /// Makes `share` cover so many bytes of a push. Senders that have fallen silent in the middle of a transaction are
    /// forgotten for it, those silent for longest first.
    ///
    /// # Errors
    /// When nothing came free for a while.
    pub async fn cover(&self, share: &mut Share, bytes: u64) -> Result<(), Error> {
        while !self.registry.try_cover(share, bytes) {
            if !self.give_up_idlest() {
                return self.registry.cover(share, bytes).await;
            }
        }
        Ok(())
    }

    /// Room for a body of so many bytes, empty.
    pub fn body(&self, bytes: usize) -> BytesMut {
        let kept = self.bodies.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut body = kept.unwrap_or_default();
        body.reserve(bytes);
        body
    }

    /// Keeps the memory of a body that nobody needs any more.
    fn keep_body(&self, body: Bytes) {
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        if bodies.len() < BODIES_KEPT
            && let Ok(mut body) = body.try_into_mut()
            && body.capacity() <= JUDGED_AT_ONCE
        {
            body.clear();
            bodies.push(body);
        }
    }

    /// Forgets what the sender has staged that was silent for longest, if that is long enough. Senders to a log that takes a push now
    /// do not count. Returns whether there was one.
    fn give_up_idlest(&self) -> bool {
        let all = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let at_rest = all.values().filter_map(|stages| stages.try_lock().ok());
        let idle = at_rest.filter_map(|stages| Some((stages.idle()?, stages)));
        match idle.max_by_key(|(idle, _)| *idle) {
            Some((idle, mut stages)) if idle >= STAGED_WAIT => {
                stages.give_up_idlest();
                true
            }
            _ => false,
        }
    }

    /// Starts the task that forgets what silent senders have staged, and closes the files of what was forgotten, unless it runs. The
    /// caller holds the lock of what is staged.
    fn watch(&self) {
        if self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let (all, watched) = (Arc::downgrade(&self.stages), self.watched.clone());
        tokio::spawn(async move {
            while let Some(all) = all.upgrade() {
                let (is_staged, unclosed) = forget_idle(&all, &watched);
                drop(all);
                drop_blocking(unclosed);
                if !is_staged {
                    return;
                }
                sleep(STAGE_LOOK_EVERY).await;
            }
        });
    }

    /// The current generation of a log.
    ///
    /// # Errors
    /// When there is no such log, or it is no WAL that libSQL could sync.
    pub fn info(&self, log_name: &str) -> Result<Generation, Error> {
        Ok(self.log(log_name)?.generation())
    }

    /// The same with what is said of it. Blocks.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub(crate) fn info_with_facts(&self, log_name: &str) -> Result<(Generation, WalFacts), Error> {
        let log = self.log(log_name)?;
        Ok((log.generation(), facts(&log, &log.view(), log.generation())))
    }

    /// The log whose base is the export of that generation.
    ///
    /// # Errors
    /// As [`info`](Self::info); when it is not the current generation.
    pub fn export(&self, log_name: &str, generation: Generation) -> Result<Arc<Log>, Error> {
        let log = self.log(log_name)?;
        if generation != log.generation() {
            let text = format!("only generation {} is exported, the current one, not {generation}", log.generation());
            return Err(Error::NotFound(text));
        }
        Ok(log)
    }

    /// The durable frames of a range (its end exclusive), or what there is of them, and what is said of their generation.
    ///
    /// # Errors
    /// As [`info`](Self::info); [`Error::GenerationGone`] for a generation that was deleted; [`Error::NotFound`] for one
    /// that has not begun. Blocks.
    pub(crate) fn pull(
        &self,
        log_name: &str,
        generation: Generation,
        frames: (u64, u64),
    ) -> Result<(PullAnswer, WalFacts), Error> {
        let current = self.log(log_name)?;
        let (start, end) = range(frames)?;
        let log = self.registry.generation(log_name, Some(generation))?;
        // What cannot be read has no end either: a replica that is told of one would go on without the rest.
        syncable(&log, "libSQL")?;
        let view = log.view();
        let (durable, mut facts) = (view.durable, facts(&log, &view, current.generation()));
        if start >= durable {
            if generation < current.generation() {
                let next = self.registry.generation(log_name, Some(Generation(generation.0 + 1)));
                facts.next = next.ok().and_then(|next| next.base_digest());
            }
            let max_frame_no = durable.0.saturating_sub(1);
            return Ok((PullAnswer::Nothing { generation: current.generation(), max_frame_no }, facts));
        }
        Ok((PullAnswer::Frames(self.registry.frames(&log, &(start..end.min(durable)))?), facts))
    }

    /// Takes frames `start..end` of a replica, with the share of the memory budget that covers them. Once this returns,
    /// everything up to `max_frame_no` that ends a transaction is durable; frames of a transaction that is not whole yet are
    /// kept in memory.
    ///
    /// # Errors
    /// When the push makes no sense ([`Error::Invalid`]), is too large, or cannot be stored for now.
    pub async fn push(
        &self,
        log_name: &str,
        generation: Generation,
        frames: (u64, u64),
        (body, share): (BytesMut, Share),
    ) -> Result<PushAnswer, Error> {
        let log = self.log(log_name)?;
        log.admit(&Writer::Client)?;
        let (start, end) = range(frames)?;
        let pushed = Pushed::parse(start, end, body)?;
        let answer = |conflict, max_frame_no| PushAnswer { conflict, generation, max_frame_no };
        if generation != log.generation() {
            log::info!("{log_name}: a push to generation {generation} conflicts, {} is current", log.generation());
            return Ok(answer(true, 0));
        }
        let stages = self.stages_of(&log);
        let mut stages = stages.lock_owned().await;
        let (ours, sizes, salts) = (log.clone(), self.sizes, pushed.salts);
        let is_covered = share.covers(pushed.body.len() as u64);
        let (mut stages, judged) = if is_covered && is_usual(&log, &stages, &pushed, sizes) {
            let judged = judge(&log, &mut stages, (pushed, share), sizes);
            (stages, judged)
        } else {
            let judging = move || {
                let judged = judge(&ours, &mut stages, (pushed, share), sizes);
                (stages, judged)
            };
            let judged = tokio::task::spawn_blocking(judging).await;
            judged.map_err(|_| interrupted())?
        };
        let conflict = |why: &str| {
            log::info!("{log_name}: frames {start} to {} conflict: {why}", end.0 - 1);
            Ok(answer(true, log.view().durable.0.saturating_sub(1)))
        };
        if stages.has_staged() {
            self.watch();
        }
        let (appended, rest) = match judged? {
            Judged::Conflict => return conflict("they are of another history"),
            Judged::Held(max_frame_no) => return Ok(answer(false, max_frame_no)),
            Judged::Append { stream, from, rest } => {
                let body = stream.0.last().cloned().unwrap_or_default();
                let appended = self.registry.append_whole(&log, from, stream, Writer::Client).await;
                (appended.map(|_| Some(body)), rest)
            }
            Judged::AppendFile { file, from, rest } => {
                stages.close_later(file.clone());
                self.watch();
                let append = self.registry.append_file(&log, from, file.clone(), Writer::Client).await?;
                (append.take_file(file).await.map(|_| None).map_err(|(error, _)| error), rest)
            }
        };
        match appended {
            Ok(body) => body.into_iter().for_each(|body| self.keep_body(body)),
            // Wrong checksums, or somebody else was first.
            Err(error @ (Error::Corrupt { .. } | Error::Fork { .. } | Error::Gap { .. } | Error::Ended { .. })) => {
                stages.forget(salts);
                stages.sequences.forget(salts);
                return conflict(&error.to_string());
            }
            Err(error) => return Err(error),
        }
        match rest {
            Some(rest) => {
                let rest = if rest.is_covered() { rest } else { in_file(&log, rest).await? };
                stages.put(salts, rest);
                self.watch();
            }
            None => stages.forget(salts),
        }
        log::debug!("{log_name}: frames {start} to {} of generation {generation} are held", end.0 - 1);
        Ok(answer(false, end.0 - 1))
    }

    fn stages_of(&self, log: &Log) -> Arc<Mutex<Stages>> {
        let mut all = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        // Of generations that have ended nothing is needed any more.
        let has_ended = |id: &str, generation| id == log.id() && generation != log.generation();
        drop_blocking(all.extract_if(|(id, generation), _| has_ended(id, *generation)).collect());
        all.entry((log.id().to_owned(), log.generation())).or_default().clone()
    }
}

/// Forgets what senders have staged that have been silent for long. Returns whether more may be staged, as for a log that takes a push
/// now, and the files of what was forgotten; if nothing is staged, `watched` is cleared.
fn forget_idle(all: &SyncMutex<AllStages>, watched: &AtomicBool) -> (bool, Vec<Arc<dyn RepoFile>>) {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut is_staged, mut unclosed) = (false, Vec::new());
    all.retain(|_, stages| {
        let is_shared = Arc::strong_count(stages) > 1;
        let Ok(mut stages) = stages.try_lock() else {
            is_staged = true;
            return true;
        };
        stages.prune();
        unclosed.append(&mut stages.take_unclosed());
        // A push that has found this one already may put something there before `watched` is cleared.
        is_staged |= is_shared || stages.has_staged();
        is_shared || !stages.is_empty()
    });
    watched.store(is_staged, Ordering::Release);
    (is_staged, unclosed)
}

/// Drops what may hold files, where it may block.
fn drop_blocking<T: Send + 'static>(held: Vec<T>) {
    if !held.is_empty() {
        tokio::task::spawn_blocking(move || drop(held));
    }
}

/// Refuses a log that is no WAL that `client`, libSQL or Turso, could sync, and one that cannot be read.
pub(crate) fn syncable(log: &Log, client: &str) -> Result<(), Error> {
    log.readable()?;
    if log.format() != LogFormat::Wal {
        let (name, format) = (log.name(), log.format());
        return Err(Error::Format(format!("log {name:?} is a {format}, and {client} replicates a wal")));
    }
    log.intact()?;
    if let Some(WalStart { header, .. }) = log.wal_end().filter(|end| end.header.page_size != LIBSQL_PAGE_SIZE) {
        let (name, bytes) = (log.name(), header.page_size);
        return Err(Error::Format(format!("log {name:?} has pages of {bytes} bytes; {client} syncs pages of 4096")));
    }
    Ok(())
}

/// What is said of a generation, as of that view of it, with each answer. Blocks for small reads.
pub(crate) fn facts(log: &Arc<Log>, view: &View, current: Generation) -> WalFacts {
    let wal = match view.framing {
        Framing::Wal(start) => start,
        Framing::Commitlog(_) => None,
    };
    let base = log.base_id();
    WalFacts {
        log: log.id().to_owned(),
        generation: log.generation().0,
        current: current.0,
        end: view.durable.0.saturating_sub(1),
        base: base.map(|base| base.sha256),
        base_bytes: base.map(|base| base.bytes),
        wal,
        next: None,
    }
}

fn range((start, end): (u64, u64)) -> Result<(Offset, Offset), Error> {
    if start == 0 || end <= start {
        return Err(Error::Invalid(format!("frames {start} to {end} (exclusive) are no range: the first frame is 1")));
    }
    Ok((Offset(start), Offset(end)))
}

/// Whether a push can be judged without a read: it goes on from the end of our log or from what its sender has staged in memory, and
/// is short. Nothing else is judged on an async thread, since one stray frame of another history could make it read all of
/// ours.
fn is_usual(log: &Log, stages: &Stages, pushed: &Pushed, sizes: Sizes) -> bool {
    let durable = log.view().durable;
    let staged = |stage: &Stage| {
        let is_large = stage.is_large_with(pushed.body.len() as u64, sizes.held_max);
        stage.base() == durable && pushed.start > durable && pushed.start <= stage.end() && !is_large
    };
    let stage = stages.of(pushed.salts);
    pushed.body.len() <= JUDGED_AT_ONCE
        && !stage.is_some_and(Stage::has_file)
        && (pushed.start == durable && pushed.sum_like(log, &stages.sequences, log.wal_end()).is_some()
            || stage.is_some_and(staged))
}

/// Compares a push with the log, and with what the same sender has staged. Checksums of what is to be appended may be left
/// for the append to check. Blocks for reads, unless the push [is usual](is_usual).
fn judge(
    log: &Arc<Log>,
    stages: &mut Stages,
    (pushed, share): (Pushed, Share),
    Sizes { commit_bytes_max, held_max }: Sizes,
) -> Result<Judged, Error> {
    let (durable, salts) = (log.view().durable, pushed.salts);
    // A stage begun at another end of the log can never be appended.
    let stage = stages.take(salts).filter(|stage| stage.base() == durable && stage.holds(&pushed));
    let held = stage.as_ref().map_or(durable, Stage::end);
    if pushed.start > held {
        let last = held.0 - 1;
        if let Some(stage) = stage {
            stages.put(salts, stage);
        }
        return Ok(Judged::Held(last));
    }
    let (before, sequence) = match stage.as_ref().filter(|stage| pushed.start > stage.base()) {
        Some(stage) => (stage.sum_before(pushed.start), None),
        None => match pushed.sum_before(log, stages)? {
            Some((before, sequence)) => (before, Some(sequence)),
            None => return Ok(Judged::Conflict),
        },
    };
    // By itself, the checksum of the only frame could be as wrong as the number that fits it.
    let compared = pushed.start < durable && pushed.end.0 - pushed.start.0 > 1;
    if sequence.is_some_and(|sequence| !stages.sequences.believe(salts, sequence, compared)) {
        if let Some(stage) = stage {
            stages.put(salts, stage);
        }
        // Asked for once more, from a frame that we hold if there is any.
        return Ok(Judged::Held(pushed.start.0.saturating_sub(2)));
    }
    let ours = log.wal_end();
    let same_order = before.big_endian == is_big_endian(ours);
    // Sums of our order prove theirs as well, and those of whole transactions are checked by the append.
    let unproven =
        if same_order && pushed.start == held { committed_frames(&pushed.body, LIBSQL_PAGE_SIZE) } else { 0 };
    if !pushed.follows(before, unproven) || !pushed.equals(log, &(pushed.start..pushed.end.min(durable)))? {
        return Ok(Judged::Conflict);
    }
    if let Some(sequence) = sequence.filter(|_| pushed.end.0 - pushed.start.0 > 1) {
        stages.sequences.prove(salts, sequence);
    }
    let end = pushed.end;
    if end <= held {
        if let Some(stage) = stage {
            stages.put(salts, stage);
        }
        return Ok(Judged::Held(end.0 - 1));
    }
    let known = durable.0.saturating_sub(pushed.start.0) as usize;
    let stage = stage.unwrap_or_else(|| Stage::new(durable, before.told_by(&pushed.body, known)));
    let header = stage.header();
    let Extended { whole, spool, origin, share, mut rest } = stage.extended(pushed, share);
    if rest.bytes_in_all() > commit_bytes_max {
        return Err(Error::TooLarge(format!(
            "a transaction of more than {commit_bytes_max} bytes (--commit-bytes-max)"
        )));
    }
    let (start, from) = match ours {
        Some(ours) => (ours, Some(durable)),
        None => (WalStart::first(header.unwrap_or_else(|| new_header(LIBSQL_PAGE_SIZE, 0))), None),
    };
    if whole.is_empty() {
        // What there is no memory for goes to a file at once.
        let held_max = if rest.is_covered() { held_max } else { 0 };
        rest.spill(&**log.repo(), held_max, (start, from.is_none())).map_err(unstored)?;
        stages.put(salts, rest);
        return Ok(Judged::Held(end.0 - 1));
    }
    let rest = Some(rest).filter(|rest| rest.bytes() > 0);
    if let Some(spool) = spool {
        let file = spool.finish(whole, same_order.then_some(origin.chain)).map_err(unstored)?;
        return Ok(Judged::AppendFile { file, from, rest });
    }
    let mut stream = chained(start, same_order.then_some(origin.chain), whole);
    if from.is_none() {
        stream.insert(0, Bytes::copy_from_slice(&start.header.encode()));
    }
    Ok(Judged::Append { stream: (stream, share), from, rest })
}

/// Puts in a file what was left of a push that was appended, where there is no memory for it.
///
/// # Errors
/// When it cannot be written.
async fn in_file(log: &Arc<Log>, mut rest: Stage) -> Result<Stage, Error> {
    let log = log.clone();
    let spilling = move || {
        // Where others have written to the log since, a stage that began before that is not appended.
        let start = log.wal_end().ok_or_else(interrupted)?;
        rest.spill(&**log.repo(), 0, (start, false)).map_err(unstored)?;
        Ok(rest)
    };
    tokio::task::spawn_blocking(spilling).await.map_err(|_| interrupted())?
}

fn unstored(error: io::Error) -> Error {
    Error::Unavailable(format!("cannot keep a large transaction: {error}"))
}

fn interrupted() -> Error {
    Error::Unavailable("the push was interrupted".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::pushed::Sum;
    use super::*;
    use crate::format::wal::Chain;
    use crate::limits::STAGE_IDLE;
    use crate::mirror::Settings;
    use crate::repo::MemRepo;

    #[tokio::test(start_paused = true)]
    async fn what_a_sender_staged_that_is_silent_goes_although_no_push_follows() {
        let registry = Registry::open(Arc::new(MemRepo::default()), Settings::default()).unwrap();
        let libsql = LibSql::new(Arc::new(registry));
        let origin = Sum { chain: Chain::default(), big_endian: false };
        let mut stages = Stages::default();
        stages.put([1, 2], Stage::new(Offset(1), origin));
        libsql.stages.lock().unwrap().insert(("id".to_owned(), Generation(1)), Arc::new(Mutex::new(stages)));
        libsql.watch();
        sleep(STAGE_IDLE - STAGE_LOOK_EVERY).await;
        assert_eq!(libsql.stages.lock().unwrap().len(), 1);
        sleep(2 * STAGE_LOOK_EVERY).await;
        assert!(libsql.stages.lock().unwrap().is_empty());
        assert!(!libsql.watched.load(Ordering::Relaxed), "nothing is left to look for");
    }
}
