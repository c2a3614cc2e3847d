//! The push of a database that is checkpointed while it is pushed, or was since: the frames of a WAL that SQLite started anew
//! follow the last ones on the server, since SQLite's read locks are held hand over hand while it is followed. What was missed is
//! found by comparing pages with all that the server holds.
//!
//! What the metadata file says at each moment:
//!
//! - before the first frame of another WAL is sent, at which frame of the server it starts;
//! - before frames are sent, what they are: those that the server took although its answer was lost are known as ours;
//! - within a transaction of several requests also where the one before it ended: a server need not keep a part of one.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::continuity::pull_expected;
use super::error::SyncError;
use super::local::{LocalLog, Stay};
use super::metadata::MetadataFile;
use super::push::stranger;
use super::push_mark::{PushMark, Sending, digest_of};
use super::remote::{Pulled, Range, Remote};
use super::replicate::Told;
use super::server_state::ServerState;
use super::{FRAME_LEN, PAGE_LEN, Position, off};
use crate::format::wal::{Chain, WalStart};
use crate::limits::{PUSH_HELD_MAX, SERVER_CHECK_EVERY, SYNC_BATCH};
use crate::mirror::{Event, LiveFeed, LivePiece, LiveStart, MirrorError};
use crate::offset::Offset;
use crate::sqlite::page_sums::{PageSums, new_key};
use crate::sqlite::wal_append::new_header;
use crate::sqlite::wal_frames::frames_of;
use crate::sqlite::{DatabaseError, Snapshot, WalPosition, holds};
use crate::stream::{Batch, LargeCommit, Part};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct LivePush {
    remote: Remote,
    path: PathBuf,
    ends: Ends,
    batch: u32,
    follow: bool,
    position: Position,
    mark: PushMark,
    /// Whether the metadata file says less than that.
    dirty: bool,
    /// What the server holds, where that was just read.
    state: Option<ServerState>,
    feed: Option<LiveFeed>,
    queue: Queue,
    baton: Option<String>,
    /// Whether the end of the server was compared with what it confirmed.
    checked: bool,
    /// How often in a row it had less than it confirmed.
    lost: u32,
    /// Whether it was reported where it starts.
    announced: bool,
    /// What the server answered, which gives out no frames, while nothing shows that it still has those that it confirmed.
    unproven: Option<SyncError>,
    /// Whether all pages are being sent because of such an answer, and the server has taken none of them.
    sends_all: bool,
}

/// What is kept of a database for as long as it is pushed.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) info: Arc<MetadataFile>,
    /// Without it, an application that opens the database, writes and closes it would leave no WAL to go on with.
    pub(super) _stay: Stay,
}

/// What is to be sent.
#[derive(Debug)]
enum Item {
    /// Whole transactions, or the rest of them.
    Frames(BytesMut),
    /// A transaction that is not in memory, from this byte on.
    Large(LargeCommit, u64),
    Mark(WalPosition),
    Compared(String, u64),
}

/// Pieces that were taken off a database and not sent yet, so that a slow server does not hold its locks.
#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    ended: Option<Result<(), MirrorError>>,
}

impl Queue {
    fn takes_more(&self) -> bool {
        self.ended.is_none() && self.bytes < PUSH_HELD_MAX
    }

    fn put(&mut self, piece: Option<Result<LivePiece, MirrorError>>) {
        match piece {
            None => self.ended = Some(Ok(())),
            Some(Err(error)) => self.ended = Some(Err(error)),
            Some(Ok(LivePiece::Frames(batch))) => self.put_frames(batch),
            Some(Ok(LivePiece::Compared { reason, pages })) => self.items.push_back(Item::Compared(reason, pages)),
            Some(Ok(LivePiece::Mark(mark))) => {
                let chain = u64::from_str_radix(&mark.checksum, 16).map(Chain::from_number).unwrap_or_default();
                let at = WalPosition { salts: mark.salts, frames: mark.frames, chain };
                self.items.push_back(Item::Mark(at));
            }
        }
    }

    fn put_frames(&mut self, batch: Batch) {
        for part in batch.parts {
            // The server keeps no header.
            let Part::Run(run) = part else { continue };
            if let Some(large) = run.large {
                self.items.push_back(Item::Large(large, 0));
                continue;
            }
            if !matches!(self.items.back(), Some(Item::Frames(_))) {
                self.items.push_back(Item::Frames(BytesMut::new()));
            }
            if let Some(Item::Frames(bytes)) = self.items.back_mut() {
                for slice in run.slices {
                    self.bytes += slice.len();
                    bytes.extend_from_slice(&slice);
                }
            }
        }
    }
}

impl LivePush {
    /// Goes on from what the metadata file says.
    pub(super) fn resume(
        (remote, path, batch): (Remote, &Path, u32),
        ends: Ends,
        position: Position,
        mark: PushMark,
        follow: bool,
    ) -> LivePush {
        let (path, queue) = (path.to_owned(), Queue::default());
        let (dirty, state, feed, baton, checked, lost, announced) = (false, None, None, None, false, 0, false);
        let (unproven, sends_all) = (None, false);
        LivePush {
            remote,
            path,
            ends,
            batch,
            follow,
            position,
            mark,
            dirty,
            state,
            feed,
            queue,
            baton,
            checked,
            lost,
            announced,
            unproven,
            sends_all,
        }
    }

    /// Starts with a server that holds nothing; `None` when it holds something.
    ///
    /// # Errors
    /// [`SyncError::Unfinished`] when it ends with a transaction that lacks its end.
    pub(super) async fn begin(
        (remote, path, batch): (Remote, &Path, u32),
        ends: Ends,
        follow: bool,
    ) -> Result<Option<LivePush>, SyncError> {
        let generation = remote.info().await?.unwrap_or(1);
        let state = whole_state(&remote, generation, path).await?;
        let is_blank = state.is_blank;
        Ok(is_blank.then(|| LivePush::after((remote, path, batch), ends, generation, state, follow)))
    }

    /// Starts where the server is, if it has all pages of the database: nothing else shows how far one was pushed that has no frames in
    /// its WAL, and of which the metadata file does not say which frame the server confirmed last.
    ///
    /// # Errors
    /// [`SyncError::Base`] when it has not; [`SyncError::Unfinished`].
    pub(super) async fn begin_equal(
        (remote, path, batch): (Remote, &Path, u32),
        ends: Ends,
        generation: u32,
        follow: bool,
    ) -> Result<LivePush, SyncError> {
        let state = whole_state(&remote, generation, path).await?;
        match stranger(path, Some(state.file.clone())).await? {
            Some(page) => Err(SyncError::Base { path: path.to_owned(), page, generation }),
            None => Ok(LivePush::after((remote, path, batch), ends, generation, state, follow)),
        }
    }

    /// Goes on from what the server holds.
    fn after(from: (Remote, &Path, u32), ends: Ends, generation: u32, state: ServerState, follow: bool) -> LivePush {
        let position = Position { generation, frame: state.frames };
        let mark = PushMark::new(state.last.clone(), state.ours, None);
        LivePush { state: Some(state), checked: true, ..LivePush::resume(from, ends, position, mark, follow) }
    }

    /// The same; the end of the server was just compared.
    pub(super) fn checked(self) -> LivePush {
        LivePush { checked: true, announced: true, ..self }
    }

    /// How far the server confirmed.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The server may be another one when it is reached again.
    pub(super) fn again(&mut self) {
        self.checked = false;
        // That answer may have been one of something between us and it.
        if std::mem::take(&mut self.sends_all) {
            self.forget();
        }
    }

    /// Pushes what is new; of a database that is followed, until pages must be compared with what the server holds. After Ok the
    /// server confirmed all that was handed over, and the metadata say so.
    pub(super) async fn sync(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        if !self.checked {
            self.check_server(told).await?;
            self.checked = true;
        }
        loop {
            if self.feed.is_none() {
                self.start(told).await?;
            }
            match self.queue.items.front_mut() {
                Some(Item::Frames(bytes)) if bytes.is_empty() => drop(self.queue.items.pop_front()),
                Some(Item::Frames(bytes)) => {
                    let count = bytes.len().min(self.batch as usize * FRAME_LEN);
                    let body = Bytes::copy_from_slice(&bytes[..count]);
                    self.send(body, told).await?;
                    if let Some(Item::Frames(bytes)) = self.queue.items.front_mut() {
                        drop(bytes.split_to(count));
                        self.queue.bytes -= count;
                    }
                }
                Some(Item::Large(large, at)) => {
                    let (large, from, bytes_max) = (large.clone(), *at, self.batch as usize * FRAME_LEN);
                    let read = off(move || large.block(from, bytes_max)).await?;
                    let body =
                        read.map_err(|error| DatabaseError::Io { doing: "reading a transaction".into(), error })?;
                    let count = body.len() as u64;
                    if count == 0 {
                        self.queue.items.pop_front();
                        continue;
                    }
                    self.send(body, told).await?;
                    if let Some(Item::Large(_, at)) = self.queue.items.front_mut() {
                        *at += count;
                    }
                }
                Some(Item::Mark(at)) => {
                    self.mark.set_wal(Some(*at));
                    self.store().await?;
                    self.queue.items.pop_front();
                }
                Some(Item::Compared(reason, pages)) => {
                    told.compared(std::mem::take(reason), *pages);
                    // Those pages are in no WAL.
                    self.mark.set_wal(None);
                    self.queue.items.pop_front();
                }
                None => {
                    if self.dirty {
                        self.store().await?;
                    }
                    match (self.queue.ended.take(), &mut self.feed) {
                        (None, Some(feed)) => match timeout(SERVER_CHECK_EVERY, feed.next()).await {
                            Ok(piece) => self.queue.put(piece),
                            Err(_) => self.check_server(told).await?,
                        },
                        (ended, _) => {
                            self.feed = None;
                            // A follower that has ended needs what the server holds.
                            if self.follow && matches!(ended, Some(Ok(())) | None) {
                                self.mark.set_wal(None);
                            }
                            let unproven = self.unproven.take_if(|_| !self.follow);
                            return ended.unwrap_or(Ok(())).map_err(SyncError::from).and(unproven.map_or(Ok(()), Err));
                        }
                    }
                }
            }
        }
    }

    /// Starts reading the database where the server is known to be, or with a comparison.
    pub(super) async fn start(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let (path, at) = (self.path.clone(), self.mark.wal());
        let opened = off(move || {
            let snapshot = Arc::new(Snapshot::open(&path)?);
            // Its pages would be taken for removed.
            if let Some(cut) = snapshot.cut()? {
                return Err(DatabaseError::Cut { path, cut });
            }
            let held = at.map_or(Ok(false), |at| holds(&*snapshot, &at))?;
            Ok::<_, DatabaseError>((snapshot, at.filter(|_| held)))
        });
        let (snapshot, at) = opened.await??;
        let (sums, reason) = if at.is_some() {
            self.mark = self.mark.clone().under_own_header(self.position.frame);
            (None, String::new())
        } else if let Some(mut state) = self.known_state().await? {
            if state.part.is_some() {
                // The pages that differ are the rest of a transaction: there must be one, also where all others are the same.
                let other = state.sums.get(1).map_or(0, |sum| !sum);
                let set = state.sums.set(1, other);
                set.map_err(|error| DatabaseError::Io { doing: "comparing pages".into(), error })?;
            }
            self.position.frame = state.frames;
            self.mark = PushMark::new(state.last, state.ours, None);
            let reason = "it was not known what was committed since this database was pushed last";
            (Some(state.sums), reason.to_owned())
        } else {
            // Whatever it holds, they are in the place of it.
            self.mark.set_wal(None);
            self.sends_all = true;
            let reason = "the server does not say what it holds";
            (Some(PageSums::new(new_key())), reason.to_owned())
        };
        let (end, next) = (self.mark.ours(), Offset(u64::from(self.position.frame) + 1));
        let source_bytes = at.map_or(0, |at| snapshot.frames().saturating_sub(at.frames) * FRAME_LEN as u64);
        if !std::mem::replace(&mut self.announced, true) {
            told.started(next, source_bytes);
        }
        let start = LiveStart { at, sums, end, next, reason, follow: self.follow };
        self.feed = Some(LiveFeed::start(&self.path, snapshot, start));
        Ok(())
    }

    /// What the server holds; `None` where it gives out no frames: then all pages are sent.
    async fn known_state(&mut self) -> Result<Option<ServerState>, SyncError> {
        if let Some(state) = self.state.take() {
            return Ok(Some(state));
        }
        match self.read_state().await {
            Err(error) if error.is_unknown_call() => {
                log::warn!(
                    "{}: the server does not say what it holds ({error}): sending all pages",
                    self.path.display()
                );
                Ok(None)
            }
            state => state.map(Some),
        }
    }

    async fn read_state(&self) -> Result<ServerState, SyncError> {
        let Position { generation, frame } = self.position;
        log::info!("{}: comparing its pages with what the server holds", self.path.display());
        let state = ServerState::read(&self.remote, generation, Some(frame), &self.path).await?;
        if state.frames > 0 && self.has_ended_at(state.frames, &state.last).await? {
            log::info!(
                "{}: the server ends where a push of this database did, at {}",
                self.path.display(),
                state.frames
            );
            return Ok(state);
        }
        if state.frames > frame {
            return Err(SyncError::Conflict { generation, start: frame + 1, server: state.frames });
        }
        if let Some(first) = state.part.filter(|_| state.last != self.mark.last) {
            return Err(SyncError::Unfinished { generation, first, last: state.frames });
        }
        if state.frames < frame && !state.is_blank {
            // What is there may be another's: nothing says that it is the beginning of what was pushed.
            return Err(SyncError::Lost { generation, server: state.frames, confirmed: frame });
        }
        if state.frames < frame {
            log::warn!(
                "the server confirmed frame {frame}, and ends at {} now: what it lost is sent again",
                state.frames
            );
        }
        Ok(state)
    }

    /// Whether a push of this database ended with this frame of the server.
    async fn has_ended_at(&self, frame: u32, last: &str) -> Result<bool, SyncError> {
        let found = (frame, last);
        if self.mark.has_ended_at(self.position.frame, found) {
            return Ok(true);
        }
        let (info, generation) = (self.ends.info.clone(), self.position.generation);
        let noted = off(move || info.load_pushed()).await?.ok().flatten();
        Ok(noted.is_some_and(|(at, mark)| at.generation == generation && mark.has_ended_at(at.frame, found)))
    }

    /// That the end of the server's log is what it confirmed, or what was being sent. Where its generation has ended right there,
    /// the next one starts from what this database pushed, and is gone on with.
    async fn check_server(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let before = self.position;
        while !self.is_at_end().await? {
            let generation = self.position.generation + 1;
            log::info!("{}: the server is in generation {generation} now", self.path.display());
            let (wal, ours) = (self.mark.wal(), WalStart::first(new_header(PAGE_LEN as u32, 0)));
            self.forget();
            self.position = Position { generation, frame: 0 };
            self.mark = PushMark::new(String::new(), ours, wal);
            self.dirty = true;
        }
        if self.position != before {
            told.moved(0, 0, Offset(u64::from(self.position.frame) + 1));
        }
        Ok(())
    }

    /// Whether the server's generation goes on right after what it confirmed, or what was being sent; false where it ends there.
    async fn is_at_end(&mut self) -> Result<bool, SyncError> {
        let Position { generation, frame } = self.position;
        if frame > 0 {
            let range = Range { generation, start: frame, end: frame + 1 };
            let found = pull_expected(&self.remote, range, Some(&self.mark.last), false).await;
            match found {
                Err(error) if error.is_unknown_call() => return self.takes_last(error).await.map(|()| true),
                Ok(Pulled::Nothing(_)) if self.goes_back() => return Box::pin(self.is_at_end()).await,
                Ok(Pulled::Nothing(server)) if server != generation => {
                    return Err(SyncError::Generation { ours: generation, server });
                }
                Ok(Pulled::Nothing(_)) => {
                    // It lost its end.
                    self.compare_next();
                    return Ok(true);
                }
                Ok(Pulled::Frames(found)) if digest_of(&found) != self.mark.last => {
                    return Err(SyncError::Fork { path: self.path.clone(), generation, frame });
                }
                found => drop(found?),
            }
        }
        let run = self.mark.ahead.first();
        let end = run.map_or(frame + 2, |run| run.end);
        let range = Range { generation, start: frame + 1, end };
        let more = match pull_expected(&self.remote, range, run.map(|run| run.digest.as_str()), true).await? {
            Pulled::Nothing(server) => return Ok(server <= generation),
            Pulled::Frames(more) => more,
        };
        match self.mark.ahead.first().filter(|run| run.digest == digest_of(&more)) {
            Some(run) => {
                self.confirmed(run.end - 1);
                // What waits starts with them.
                self.skip(more.len());
                // It may have the next run too, or have ended since.
                Box::pin(self.is_at_end()).await
            }
            None => self.end_of_more().await.map(|()| true),
        }
    }

    /// Offers the last frame that was confirmed again to a server that gives out none, so that it says whether it has it. Where the WAL
    /// does not hold that frame any more, it says so with its answer to the next one; until then it is only known that it gave
    /// `error` for an answer.
    ///
    /// # Errors
    /// As the server answers.
    async fn takes_last(&mut self, error: SyncError) -> Result<(), SyncError> {
        let (path, at, Position { generation, frame }) = (self.path.clone(), self.mark.wal(), self.position);
        let read = off(move || {
            let log = LocalLog::open(&path)?;
            let held = at.filter(|at| at.frames > 0 && log.holds(at.frames as u32, at.salts, at.chain));
            Ok::<_, SyncError>(held.map(|at| log.batch(at.frames as u32, at.frames as u32 + 1)).transpose()?)
        });
        let Some(last) = read.await??.filter(|last| digest_of(last) == self.mark.last) else {
            self.unproven = Some(error);
            return Ok(());
        };
        let range = Range { generation, start: frame, end: frame + 1 };
        match self.remote.push(range, None, last.into()).await? {
            answer if !answer.conflict && answer.frame >= frame => Ok(()),
            answer => Err(SyncError::Conflict { generation, start: frame, server: answer.frame }),
        }
    }

    /// Goes back to the last whole transaction, if the last frame that was confirmed is inside another one; false otherwise. A
    /// service keeps a transaction only once it is whole, and forgets the first frames of one when its generation ends, when it
    /// is restarted, and when it hears nothing for long.
    fn goes_back(&mut self) -> bool {
        let Some((frame, mark)) = self.mark.before_part() else {
            return false;
        };
        log::info!(
            "{}: the server does not keep frames {}..={} of generation {}, the start of a transaction: it is sent again, whole",
            self.path.display(),
            frame + 1,
            self.position.frame,
            self.position.generation
        );
        self.forget();
        (self.position.frame, self.mark, self.dirty) = (frame, mark, true);
        true
    }

    /// Goes on by comparing pages where the server's frames after the last one of this database end with an earlier push of it.
    ///
    /// # Errors
    /// [`SyncError::Conflict`] and [`SyncError::Unfinished`] where they are of others.
    async fn end_of_more(&mut self) -> Result<(), SyncError> {
        let Position { generation, frame } = self.position;
        let (mut last, mut whole, mut digest, mut before) = (frame, frame, String::new(), Bytes::new());
        loop {
            let range = Range { generation, start: last + 1, end: last.saturating_add(1 + SYNC_BATCH) };
            let Pulled::Frames(more) = self.remote.pull(range).await? else {
                break;
            };
            // Their checksums run on, so no two are the same.
            if more == before {
                let reason = format!("{range} are the same as those before them");
                return Err(SyncError::Protocol { call: self.remote.url().to_string(), reason });
            }
            for (number, (head, _)) in (last + 1..).zip(frames_of(&more, PAGE_LEN as u32)) {
                (last, whole) = (number, if head.size > 0 { number } else { whole });
            }
            digest = more.get(more.len() - FRAME_LEN..).map(digest_of).unwrap_or_default();
            before = more;
        }
        if self.has_ended_at(last, &digest).await? {
            self.compare_next();
            return Ok(());
        }
        Err(match whole < last {
            true => SyncError::Unfinished { generation, first: whole + 1, last },
            false => SyncError::Conflict { generation, start: frame + 1, server: last },
        })
    }

    /// Goes on by comparing pages: only all that the server holds says how.
    fn compare_next(&mut self) {
        self.forget();
        self.mark.set_wal(None);
    }

    /// Whether the server holds what was sent last, up to this frame, as far as it says.
    async fn has_last(&self, frame: u32) -> Result<bool, SyncError> {
        let Some(sent) = self.mark.ahead.iter().find(|run| run.end == frame + 1) else {
            return Ok(false);
        };
        let range = Range { generation: self.position.generation, start: frame, end: frame + 1 };
        match pull_expected(&self.remote, range, Some(&sent.last), false).await {
            Ok(Pulled::Frames(found)) => Ok(digest_of(&found) == sent.last),
            Ok(Pulled::Nothing(_)) => Ok(false),
            Err(error) if error.is_unknown_call() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Takes bytes off the front of what waits, if something does.
    fn skip(&mut self, count: usize) {
        match self.queue.items.front_mut() {
            Some(Item::Frames(bytes)) if bytes.len() >= count => {
                drop(bytes.split_to(count));
                self.queue.bytes -= count;
            }
            Some(Item::Large(_, at)) => *at += count as u64,
            _ => {}
        }
    }

    /// Forgets what was read of the database and not sent.
    fn forget(&mut self) {
        (self.feed, self.queue, self.baton) = (None, Queue::default(), None);
    }

    /// Offers frames that follow the last ones, and waits for the server. What the database gives meanwhile is put into the queue.
    async fn send(&mut self, body: Bytes, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let generation = self.position.generation;
        let count = (body.len() / FRAME_LEN) as u32;
        let start = self.position.frame + 1;
        let end = start.checked_add(count).ok_or_else(|| SyncError::Full { path: self.path.clone() })?;
        let runs = Sending::runs_of(start, &body, count);
        if !self.mark.ahead.starts_with(&runs) {
            self.mark.ahead = runs;
            self.store().await?;
        }
        let commits = body.chunks_exact(FRAME_LEN).filter(|frame| frame.get(4..8) != Some(&[0; 4])).count();
        let bytes = body.len() as u64;
        let range = Range { generation, start, end };
        log::debug!("pushing {range}");
        let (remote, baton) = (self.remote.clone(), self.baton.clone());
        let mut pushing = std::pin::pin!(remote.push(range, baton.as_deref(), body));
        let answer = loop {
            tokio::select! {
                answer = &mut pushing => break answer?,
                piece = next_of(&mut self.feed), if self.queue.takes_more() => self.queue.put(piece),
            }
        };
        let (server, confirmed) = (answer.generation.unwrap_or(generation), answer.frame);
        if answer.conflict || server != generation {
            self.check_server(told).await?;
            return match self.position.generation == generation && self.feed.is_some() {
                // It goes on with what is read again.
                false => Ok(()),
                // It ends where this is, and takes nothing more: its generation may be about to end.
                true if answer.conflict && confirmed == self.position.frame => Err(SyncError::Answer(format!(
                    "the server takes no frames after {confirmed} of generation {generation}: it may be going into the next one"
                ))),
                true if answer.conflict => Err(SyncError::Conflict { generation, start, server: confirmed }),
                true => Err(SyncError::Generation { ours: generation, server }),
            };
        }
        if confirmed < end - 1 {
            self.lost += 1;
            if self.lost > 1 {
                return Err(SyncError::Behind { generation, start, server: confirmed });
            }
            self.compare_next();
            self.checked = false;
            let text = format!("the server ends at frame {confirmed}, before frames {start}.. that it was sent");
            return Err(SyncError::Answer(text));
        }
        if confirmed > end - 1 && !self.has_last(end - 1).await? {
            return Err(SyncError::Answer(format!(
                "an answer is not believed: after {range} it says that the server ends at frame {confirmed}, which does not have them"
            )));
        }
        log::debug!("the server confirmed frame {confirmed} of generation {server}");
        (self.baton, self.lost, self.unproven, self.sends_all) = (answer.baton, 0, None, false);
        self.confirmed(end - 1);
        told.moved(commits as u64, bytes, Offset(u64::from(end)));
        Ok(())
    }

    fn confirmed(&mut self, frame: u32) {
        self.mark.confirm(self.position.frame, frame);
        self.position.frame = frame;
        self.dirty = true;
    }

    async fn store(&mut self) -> Result<(), SyncError> {
        let (info, position, mark) = (self.ends.info.clone(), self.position, self.mark.clone());
        let stored = off(move || info.store_pushed(position, &mark)).await?;
        stored.map_err(|error| DatabaseError::io("writing the -info file of", &self.path, error))?;
        self.dirty = false;
        Ok(())
    }
}

/// What a server holds.
///
/// # Errors
/// [`SyncError::Unfinished`] when it ends with a transaction that lacks its end; as [`ServerState::read`].
async fn whole_state(remote: &Remote, generation: u32, path: &Path) -> Result<ServerState, SyncError> {
    let state = ServerState::read(remote, generation, None, path).await?;
    match state.part {
        Some(first) => Err(SyncError::Unfinished { generation, first, last: state.frames }),
        None => Ok(state),
    }
}

/// The next piece of a database that is being read.
async fn next_of(feed: &mut Option<LiveFeed>) -> Option<Result<LivePiece, MirrorError>> {
    match feed {
        Some(feed) => feed.next().await,
        None => std::future::pending().await,
    }
}
