//! The pull: a replica made, and brought up to what the server has. Owns: whether the files here can go on, and when they
//! must be made again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::bootstrap::{Draft, drop_aside, set_aside};
use super::continuity::{Continuity, chain_after, is_base};
use super::error::SyncError;
use super::found::{self, Found, Proof};
use super::local::Stay;
use super::metadata::Known;
use super::remote::{Pulled, Range, Remote};
use super::replica::{Replica, Since};
use super::replicate::{Replicate, Told};
use super::{FRAME_LEN, PAGE_LEN, Position, blocking, into_file, off};
use crate::format::wal::{Chain, FrameHeader, WalHeader};
use crate::mirror::Event;
use crate::offset::Offset;
use crate::sqlite::names::may_be_set_aside;
use crate::sqlite::{DatabaseError, DatabaseUser, user_beside};

/// How often in a row a pull starts over because the server has deleted the generation that it was reading.
const STARTS_MAX: u32 = 3;

/// A replica that must be made again, and is when those that were set aside allow it.
#[derive(Debug)]
struct Spoilt {
    /// Who had it open when that was found out.
    user: Option<DatabaseUser>,
}

/// Pulls one replica, again and again.
#[derive(Debug)]
pub(super) struct Pull {
    server: Continuity,
    path: PathBuf,
    batch: u32,
    follow: bool,
    /// Whether what is at the path may be set aside where it is not a replica that can go on.
    adopt: bool,
    /// None only while it is made again.
    replica: Arc<Mutex<Option<Replica>>>,
    /// Set while it must be made again: nothing is pulled then.
    spoilt: Option<Spoilt>,
    /// The metadata could not be believed: the files here are used as far as they are what the server has.
    doubtful: bool,
    /// What was set aside, where it is, until it is known whether the replica has all of it.
    aside: Option<PathBuf>,
    /// All that were set aside: others may still have them open.
    former: Vec<Replica>,
    /// The same of those that were no replicas.
    strangers: Vec<Stay>,
    /// Whether the last frame that both hold was compared.
    compared: bool,
    /// Whether it was reported where it starts, since the server was reached.
    announced: bool,
    /// Whether this follower made it, or it had all that the server has since it is open: what is written to it after that is not to
    /// be pushed.
    is_followed: bool,
}

impl Pull {
    pub(super) async fn open(what: &Replicate) -> Result<Pull, SyncError> {
        let (server, path, batch) = (Continuity::new(what.remote.clone()), what.database.clone(), what.batch.max(1));
        let (follow, adopt, spoilt) = (what.follow, what.adopt, None);
        let (replica, former, strangers) = (Arc::new(Mutex::new(None)), Vec::new(), Vec::new());
        let (doubtful, compared, announced, aside) = (false, false, false, None);
        let is_followed = false;
        let mut pull = Pull {
            server,
            path,
            batch,
            follow,
            adopt,
            replica,
            spoilt,
            doubtful,
            aside,
            former,
            strangers,
            compared,
            announced,
            is_followed,
        };
        let file = pull.path.clone();
        let known = match off(move || found::at(&file)).await?? {
            Found::Nothing if !what.create => return Err(SyncError::Absent { path: pull.path }),
            Found::Nothing => None,
            Found::Pushed if !adopt => return Err(found::pushed(&pull.path)),
            Found::WithMetadata | Found::Pushed | Found::Blank => pull.reopen().await?,
            Found::Unknown => match found::prove(&what.remote, &pull.path, pull.batch).await {
                Ok(proof) => {
                    log::warn!("{}-info is lost: it is written again, from what the server holds", pull.path.display());
                    if pull.reopen().await?.is_some() {
                        return pull.proved(proof).await;
                    }
                    None
                }
                Err(SyncError::NotOurs { what, .. }) if adopt => {
                    log::warn!("{}: {what}: it is set aside, since --adopt was given", pull.path.display());
                    pull.set_stranger_aside().await?;
                    None
                }
                Err(error) => return Err(error),
            },
        };
        let is_ready = match known {
            None => {
                let (draft, generation) = pull.download().await?;
                pull.install(draft, generation).await
            }
            Some(Ok(position)) => pull.check_kept(position).await,
            Some(Err(why)) => {
                log::warn!("{}-info is not used: {why}; asking the server", pull.path.display());
                pull.recover().await
            }
        };
        match is_ready {
            // It is made again by the next sync that may, and held until then.
            Err(_) if pull.spoilt.is_some() => Ok(pull),
            ready => ready.map(|()| pull),
        }
    }

    /// Opens what is there, and returns what its metadata say; none where there is nothing.
    async fn reopen(&mut self) -> Result<Option<Known>, SyncError> {
        let file = self.path.clone();
        let Some((replica, known)) = off(move || Replica::open(&file)).await?? else { return Ok(None) };
        self.server.expect(replica.origin.clone());
        self.put(replica).await?;
        Ok(Some(known))
    }

    /// It goes on from what it was proved to hold, unless it was written since: no lock was held before it was open.
    async fn proved(mut self, Proof { position, base, log }: Proof) -> Result<Pull, SyncError> {
        let is_still = move |replica: &mut Replica| {
            replica.resume(position);
            replica.is_still(base.as_deref(), &log)
        };
        if !self.with(is_still).await? {
            return Err(DatabaseError::restarted(&self.path).into());
        }
        self.compared = true;
        Ok(self)
    }

    /// Its WAL may hold less than it did, and its pages may be others.
    async fn check_kept(&mut self, position: Position) -> Result<(), SyncError> {
        let (since, frames) = self.with(|replica| Ok((replica.check_kept()?, replica.frames()))).await?;
        let path = self.path.display();
        match since {
            Since::Kept => return Ok(()),
            Since::Checkpointed => {
                log::info!(
                    "{path}: another program checkpointed its WAL away, and its pages are those that were written"
                );
                return Ok(());
            }
            Since::Written => {
                log::warn!("{path}: another program has written to it while it was closed: making it again")
            }
            Since::Lost => log::warn!(
                "{path} had {} frames and has {frames}: another program checkpointed its WAL away; making it again",
                position.frame
            ),
        }
        self.remake().await
    }

    /// Pulls what is new. After Ok the replica has all that the server had.
    pub(super) async fn sync(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let (mut starts, mut is_second, mut is_made_again) = (0, false, false);
        if self.spoilt.is_some() {
            self.remake().await?;
        }
        loop {
            match self.catch_up_and_settle(told).await {
                // One answer proves nothing.
                Err(error) if error.is_of_another_history() && !std::mem::replace(&mut is_second, true) => {
                    log::warn!(
                        "{}: an answer of the server does not go with what is held here: asking again on a new connection",
                        self.path.display()
                    );
                    self.server.on_new_connections()?;
                    self.compared = false;
                }
                Err(error @ (SyncError::Fork { .. } | SyncError::Ahead { .. })) if self.doubtful => {
                    log::warn!("{error}: making it again");
                    is_second = false;
                    self.remake().await?;
                }
                Err(error) if self.is_of_a_writer_here(&error).await? => {
                    let path = self.path.display();
                    log::warn!(
                        "{path}: another program has written to it: it is to be set aside and made again ({error})"
                    );
                    is_second = false;
                    self.remake().await?;
                }
                Err(error)
                    if (error.is_of_another_history() || matches!(error, SyncError::Silent { .. }))
                        && self.adopt
                        && !std::mem::replace(&mut is_made_again, true) =>
                {
                    log::warn!("{error}: it is set aside and made again, since --adopt was given");
                    is_second = false;
                    self.remake_now().await?;
                }
                Err(error) if error.is_pruned() && starts < STARTS_MAX => {
                    starts += 1;
                    self.start_over(error, told).await?;
                }
                done => break done?,
            }
        }
        self.forget_aside().await
    }

    async fn catch_up_and_settle(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        self.catch_up(told).await?;
        (self.doubtful, self.is_followed) = (false, true);
        self.with(Replica::settle).await
    }

    /// The server may be another one when it is reached again.
    pub(super) fn again(&mut self) {
        (self.compared, self.announced) = (false, false);
        self.server.again();
    }

    /// The server has deleted the generation that this replica is in, as `error` says: it goes on from the base of the current
    /// one, in one transaction of the pages that differ.
    async fn start_over(&mut self, error: SyncError, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let (draft, generation) = self.download().await?;
        let before = self.with(|replica| Ok(replica.position().generation)).await?;
        if generation == before {
            off(move || draft.discard()).await??;
            return Err(error);
        }
        let file = draft.file.clone();
        let Some(pages) = self.with(move |replica| replica.step_to(&file, generation)).await? else {
            log::warn!(
                "the server has deleted generation {before}, and {} holds frames that did not come from it: making it again",
                self.path.display()
            );
            return self.replace(draft, generation).await;
        };
        off(move || draft.discard()).await??;
        self.note_origin().await?;
        self.with(|replica| Ok(replica.store()?)).await?;
        log::warn!(
            "{}: the server has deleted generation {before}: going on with generation {generation}, in which {pages} pages differ",
            self.path.display()
        );
        told.moved(0, u64::from(pages) * PAGE_LEN as u64, Offset(1));
        Ok(())
    }

    async fn catch_up(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        if !self.compared || !self.announced {
            self.with(|replica| {
                replica.restart();
                Ok(())
            })
            .await?;
            // It may have been interrupted before that.
            let unproven = |replica: &mut Replica| {
                let generation = replica.position().generation;
                Ok(replica.origin.clone().filter(|origin| origin.is_unproven_in(generation)))
            };
            if let Some(origin) = self.with(unproven).await? {
                self.server.expect(Some(origin));
                self.prove_base().await?;
            }
            if !self.compared {
                self.compare().await?;
            }
            let position = self.with(|replica| Ok(replica.position())).await?;
            self.compared = true;
            if !std::mem::replace(&mut self.announced, true) {
                told.started(Offset(u64::from(position.frame) + 1), 0);
            }
        }
        loop {
            let (generation, start) = self.with(|replica| Ok((replica.position().generation, replica.next()))).await?;
            let range = Range { generation, start, end: start.saturating_add(self.batch) };
            let pulled = self.pulled(range).await?;
            // Of some generations it is known only now what they start from.
            if self.server.unproven().is_some() {
                self.prove_base().await?;
                continue;
            }
            match pulled {
                Pulled::Frames(frames) => {
                    let count = frames.len() / FRAME_LEN;
                    let start_next = start.saturating_add(count as u32);
                    self.server.ask_ahead(Range {
                        generation,
                        start: start_next,
                        end: start_next.saturating_add(self.batch),
                    });
                    let (applied, position) =
                        self.with(move |replica| Ok((replica.apply(&frames)?, replica.position()))).await?;
                    log::debug!("pulled {count} frames from {start} of generation {generation}: {applied:?}");
                    let next = Offset(u64::from(position.frame) + 1);
                    told.moved(applied.commits, applied.frames * FRAME_LEN as u64, next);
                }
                Pulled::Nothing(server) if server > generation => {
                    log::info!("generation {generation} is over: going on with {}", u64::from(generation) + 1);
                    self.server.ended();
                    self.note_origin().await?;
                    self.with(Replica::fold).await?;
                    self.prove_base().await?;
                    told.moved(0, 0, Offset(1));
                }
                Pulled::Nothing(server) if server < generation => {
                    return Err(SyncError::EarlierGeneration { path: self.path.clone(), ours: generation, server });
                }
                Pulled::Nothing(_) => break,
            }
        }
        let Position { generation, frame } = self.with(|replica| Ok(replica.position())).await?;
        let end = self.server.end_in(generation).map_or(frame, |end| end.min(frame));
        self.with(move |replica| {
            replica.restart();
            replica.look()?;
            no_more_than_the_server(replica, end)
        })
        .await
    }

    /// Whether what is here and not on the server was written here, and is not to be pushed: it is a replica, of which the server has
    /// other frames by now, or which was followed meanwhile.
    async fn is_of_a_writer_here(&self, error: &SyncError) -> Result<bool, SyncError> {
        let is_foreign = match error {
            SyncError::Fork { frame, .. } => {
                let frame = *frame;
                self.with(move |replica| replica.has_of_others(frame)).await?
            }
            SyncError::Ahead { is_written, .. } => *is_written && self.is_followed,
            SyncError::Database(DatabaseError::WrittenByOthers { .. }) => true,
            _ => false,
        };
        Ok(is_foreign && !self.with(|replica| Ok(replica.is_pushed()?)).await?)
    }

    /// Makes sure that the server's log is the replica's as far as both go, before anything is written on top of it.
    async fn compare(&mut self) -> Result<(), SyncError> {
        let Position { generation, frame } = self.with(|replica| Ok(replica.position())).await?;
        if frame == 0 {
            return Ok(());
        }
        let range = Range { generation, start: frame, end: frame.saturating_add(1) };
        let pulled = self.pulled(range).await.map_err(|error| match error {
            SyncError::Broken { frame, .. } => SyncError::Fork { path: self.path.clone(), generation, frame },
            error => error,
        });
        match pulled? {
            Pulled::Nothing(_) => {
                let end = self.server.end_in(generation).map_or(frame - 1, |end| end.min(frame - 1));
                self.with(move |replica| no_more_than_the_server(replica, end)).await
            }
            Pulled::Frames(theirs) => {
                self.with(move |replica| match replica.differs(frame, &theirs)? {
                    None => Ok(()),
                    Some(frame) => Err(SyncError::Fork { path: replica.path().to_owned(), generation, frame }),
                })
                .await
            }
        }
    }

    /// Frames of the server that follow those of the replica, or what it says instead.
    async fn pulled(&mut self, range: Range) -> Result<Pulled, SyncError> {
        let (replica, remote) = (self.replica.clone(), self.server.remote().clone());
        let ours = move |header| chain_before(replica.clone(), remote.clone(), range, header);
        let pulled = match self.server.pull(range, ours).await {
            Err(error @ SyncError::Status { status: 404, .. }) => {
                return Err(self.not_found(range.generation, error).await);
            }
            pulled => pulled?,
        };
        self.note_origin().await?;
        Ok(pulled)
    }

    /// What it means that the server does not find a generation.
    async fn not_found(&self, ours: u32, error: SyncError) -> SyncError {
        match self.server.remote().info().await {
            Ok(Some(server)) if server < ours => SyncError::EarlierGeneration { path: self.path.clone(), ours, server },
            _ => error,
        }
    }

    /// It is stored with the next position.
    async fn note_origin(&self) -> Result<(), SyncError> {
        let origin = self.server.origin();
        self.with(move |replica| {
            replica.origin = origin;
            Ok(())
        })
        .await
    }

    /// After a generation was folded: that the server's next one starts from what the database file is. Else it goes on from the
    /// server's base.
    async fn prove_base(&mut self) -> Result<(), SyncError> {
        if let Some(expected) = self.server.unproven() {
            let is_base = move |replica: &mut Replica| {
                let read = is_base(replica.database()?, expected);
                Ok(read.map_err(|error| DatabaseError::io("reading", replica.path(), error))?)
            };
            if self.with(is_base).await? {
                self.server.proved();
            } else {
                let path = self.path.display();
                log::info!(
                    "{path}: the next generation may start from another database: comparing it with the server's base"
                );
                self.recover().await?;
            }
        }
        self.note_origin().await?;
        self.with(|replica| Ok(replica.store()?)).await
    }

    /// The metadata are of no use. The files are, if the database is the server's base and what was folded into it; their
    /// frames will be compared as they come.
    async fn recover(&mut self) -> Result<(), SyncError> {
        let (draft, generation) = self.download().await?;
        let file = draft.file.clone();
        if let Some(page) = self.with(move |replica| replica.stranger_to(Some(&file))).await? {
            if let Err(too_early) = self.check_set_aside().await {
                off(move || draft.discard()).await??;
                return Err(too_early);
            }
            log::warn!(
                "page {page} of {} is neither in its WAL nor in the server's base of generation {generation}: making it \
                 again",
                self.path.display()
            );
            return self.replace(draft, generation).await;
        }
        off(move || draft.discard()).await??;
        self.doubtful = true;
        self.with(move |replica| {
            replica.resume(Position { generation, frame: 0 });
            Ok(())
        })
        .await
    }

    /// Makes it again, unless that was done shortly before.
    async fn remake(&mut self) -> Result<(), SyncError> {
        self.check_replaceable().await?;
        self.check_set_aside().await?;
        self.remake_now().await
    }

    /// That those that are set aside allow one more.
    ///
    /// # Errors
    /// [`DatabaseError::Spoilt`]; the replica is then to be made again before anything is pulled.
    async fn check_set_aside(&mut self) -> Result<(), SyncError> {
        let is_repeated = self.follow || !self.former.is_empty();
        if !is_repeated {
            return Ok(());
        }
        let Spoilt { user } = match self.spoilt.take() {
            Some(spoilt) => spoilt,
            None => Spoilt { user: self.with(|replica| Ok(user_beside(replica.path(), replica.database()?)?)).await? },
        };
        let (path, pid) = (self.path.clone(), user.as_ref().and_then(|user| user.pid));
        let allowed = off(move || may_be_set_aside(&path, pid)).await?;
        self.spoilt = allowed.is_err().then_some(Spoilt { user });
        Ok(allowed?)
    }

    async fn remake_now(&mut self) -> Result<(), SyncError> {
        self.check_replaceable().await?;
        let (draft, generation) = match self.download().await {
            // It is made from what this server sends, whatever that is.
            Err(SyncError::Silent { .. }) if self.adopt => {
                self.server = Continuity::new(self.server.remote().clone());
                self.download().await?
            }
            downloaded => downloaded?,
        };
        self.replace(draft, generation).await
    }

    /// A database that is pushed from here is an application's.
    async fn check_replaceable(&self) -> Result<(), SyncError> {
        if !self.adopt && self.with(|replica| Ok(replica.is_pushed()?)).await? {
            return Err(found::pushed(&self.path));
        }
        Ok(())
    }

    /// Sets aside what is at the path and no replica.
    async fn set_stranger_aside(&mut self) -> Result<(), SyncError> {
        let path = self.path.clone();
        let stay = off(move || {
            // With a rollback journal there is nothing that the last connection could remove.
            let stay = Stay::beside_others(&path).ok();
            set_aside(&path).map(|_| stay)
        });
        self.strangers.extend(stay.await??);
        Ok(())
    }

    /// Nothing of the replica is lost: what the server does not have stays under another name.
    async fn replace(&mut self, draft: Draft, generation: u32) -> Result<(), SyncError> {
        if let Err(refused) = self.check_replaceable().await {
            off(move || draft.discard()).await??;
            return Err(refused);
        }
        (self.compared, self.announced) = (false, false);
        let set_aside = |replica: &mut Option<Replica>| match replica.take() {
            Some(replica) => set_aside(replica.path()).map(|aside| Some((replica, aside))),
            None => Ok(None),
        };
        if let Some((replica, aside)) = blocking(&self.replica, set_aside).await?? {
            // What may have been an application's, or is kept because that was asked for, is never removed.
            self.aside = Some(aside).filter(|_| !self.adopt);
            self.former.push(replica);
        }
        (self.doubtful, self.spoilt) = (false, None);
        self.install(draft, generation).await
    }

    /// The server's base. Nothing is left here when it does not come, and the replica is still of the log that it was of.
    async fn download(&mut self) -> Result<(Draft, u32), SyncError> {
        let origin = self.server.origin();
        let downloaded = self.downloaded().await;
        if downloaded.is_err() {
            self.server.expect(origin);
        }
        downloaded
    }

    async fn downloaded(&mut self) -> Result<(Draft, u32), SyncError> {
        let generation = self.server.info().await?;
        let path = self.path.clone();
        let draft = off(move || Draft::create(&path)).await??;
        let exported = match generation {
            Some(generation) => self.server.export(generation, into_file(&draft.file)).await,
            None => Ok(0),
        };
        let log = PathBuf::from(self.server.remote().url().as_str());
        off(move || match exported.and_then(|bytes| draft.complete(bytes, &log)) {
            Ok(()) => Ok((draft, generation.unwrap_or(1))),
            Err(error) => draft.discard().map_or_else(|error| Err(error.into()), |()| Err(error)),
        })
        .await?
    }

    async fn install(&mut self, draft: Draft, generation: u32) -> Result<(), SyncError> {
        let replica = off(move || draft.install(generation)).await??;
        self.put(replica).await?;
        self.is_followed |= self.follow;
        self.note_origin().await?;
        self.with(|replica| Ok(replica.store()?)).await
    }

    /// Removes what was set aside if the replica has all of it, unless another process has it open: what that writes would be lost.
    async fn forget_aside(&mut self) -> Result<(), SyncError> {
        let Some(aside) = self.aside.take() else {
            return Ok(());
        };
        let (path, former) = (aside.clone(), self.former.pop());
        let look = move || {
            // Taken before the replica's own locks are released, which would hide those of others: without either, the connection that
            // closes the database last would remove its WAL.
            let stay = Stay::beside_others(&path);
            drop(former);
            let stay = stay?;
            Ok::<_, SyncError>((stay.other_user(&path)?, stay))
        };
        let (what, stay) = match off(look).await? {
            Ok((None, _stay)) => {
                return self.with(move |replica| drop_aside(&aside, replica, replica.database()?)).await;
            }
            Ok((Some(DatabaseUser { pid }), stay)) => {
                let process = pid.map_or_else(String::new, |pid| format!(" {pid}"));
                (format!("process{process} has it open; remove it once that is closed"), Some(stay))
            }
            Err(error) => (format!("{error}; look at it before you remove it"), None),
        };
        log::warn!("{} is kept: {what}", aside.display());
        self.strangers.extend(stay);
        Ok(())
    }

    async fn put(&self, opened: Replica) -> Result<(), SyncError> {
        blocking(&self.replica, move |replica| *replica = Some(opened)).await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Replica) -> Result<T, SyncError> + Send + 'static,
    ) -> Result<T, SyncError> {
        blocking(&self.replica, move |replica| replica.as_mut().ok_or_else(not_there).and_then(work)).await?
    }
}

/// The checksum, under a header of the server, of the frames of a replica before `range`.
///
/// # Errors
/// When the replica cannot be read; and where only the server knows that checksum, when it cannot be asked, or has another frame there.
async fn chain_before(
    replica: Arc<Mutex<Option<Replica>>>,
    remote: Remote,
    range: Range,
    header: WalHeader,
) -> Result<Chain, SyncError> {
    let last = range.start.saturating_sub(1);
    let known = move |replica: &mut Option<Replica>| match replica {
        Some(replica) if replica.has_frames_before_its_wal() => Ok(None),
        Some(replica) => Ok(Some(chain_after(&replica.log, last, header)?)),
        None => Err(not_there()),
    };
    if let Some(chain) = blocking(&replica, known).await?? {
        return Ok(chain);
    }
    let before = Range { generation: range.generation, start: last, end: range.start };
    let Pulled::Frames(frame) = remote.pull(before).await? else {
        return Err(SyncError::Answer(format!("the server has no frame {last}")));
    };
    let chain = frame.first_chunk().map(FrameHeader::decode).map(|head| head.chain).unwrap_or_default();
    let compare = move |replica: &mut Option<Replica>| match replica {
        // The frame after one that is not known is compared itself.
        Some(replica) if !replica.knows(last) => Ok(None),
        Some(replica) => Ok(replica.differs(last, &frame)?.map(|frame| (replica.path().to_owned(), frame))),
        None => Err(not_there()),
    };
    match blocking(&replica, compare).await?? {
        None => Ok(chain),
        Some((path, frame)) => Err(SyncError::Fork { path, generation: range.generation, frame }),
    }
}

fn not_there() -> SyncError {
    SyncError::Interrupted("the replica could not be made again".into())
}

/// A replica that has frames the server does not is none.
fn no_more_than_the_server(replica: &Replica, server: u32) -> Result<(), SyncError> {
    match replica.frames() {
        local if local > server => {
            let (path, Position { generation, frame }) = (replica.path().to_owned(), replica.position());
            Err(SyncError::Ahead { path, generation, local, server, is_written: local > frame })
        }
        _ => Ok(()),
    }
}
