//! The pull: a replica made, and brought up to what the server has. Owns: whether the files here can go on, and when they
//! must be made again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::bootstrap::{Draft, drop_aside, set_aside};
use super::continuity::{Continuity, chain_after, digest_of_file};
use super::error::SyncError;
use super::found::{self, Found};
use super::local::Stay;
use super::metadata::Known;
use super::remote::{Pulled, Range, Remote};
use super::replica::{Replica, Since};
use super::replicate::{Replicate, Told};
use super::{FRAME_LEN, PAGE_LEN, Position, base, blocking, into_file, off};
use crate::format::wal::{Chain, FrameHeader, WalHeader};
use crate::mirror::Event;
use crate::offset::Offset;
use crate::sqlite::{DatabaseError, DatabaseUser, user_of};

/// How often in a row a pull starts over because the server has deleted the generation that it was reading.
const STARTS_MAX: u32 = 3;

/// Pulls one replica, again and again.
#[derive(Debug)]
pub(super) struct Pull {
    server: Continuity,
    path: PathBuf,
    batch: u32,
    /// Whether what is at the path may be set aside where it is not a replica that can go on.
    adopt: bool,
    /// None only while it is made again.
    replica: Arc<Mutex<Option<Replica>>>,
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
}

impl Pull {
    pub(super) async fn open(what: &Replicate) -> Result<Pull, SyncError> {
        let (server, path, batch, adopt) =
            (Continuity::new(what.remote.clone()), what.database.clone(), what.batch.max(1), what.adopt);
        let (replica, former, strangers) = (Arc::new(Mutex::new(None)), Vec::new(), Vec::new());
        let (doubtful, compared, announced, aside) = (false, false, false, None);
        let mut pull =
            Pull { server, path, batch, adopt, replica, doubtful, aside, former, strangers, compared, announced };
        let file = pull.path.clone();
        let known = match off(move || found::at(&file)).await?? {
            Found::Nothing if !what.create => return Err(SyncError::Absent { path: pull.path }),
            Found::Nothing => None,
            Found::Pushed if !adopt => return Err(found::pushed(&pull.path)),
            Found::WithMetadata | Found::Pushed | Found::Blank => pull.reopen().await?,
            Found::Unknown => match found::prove(&what.remote, &pull.path, pull.batch).await {
                Ok(position) => {
                    log::warn!("{}-info is lost: it is written again, from what the server holds", pull.path.display());
                    if pull.reopen().await?.is_some() {
                        return pull.proved(position).await;
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
        match known {
            None => {
                let (draft, generation) = pull.download().await?;
                pull.install(draft, generation).await?;
            }
            Some(Ok(position)) => pull.check_kept(position).await?,
            Some(Err(why)) => {
                log::warn!("{}-info is not used: {why}; asking the server", pull.path.display());
                pull.recover().await?;
            }
        }
        Ok(pull)
    }

    /// Opens what is there, and returns what its metadata say; none where there is nothing.
    async fn reopen(&mut self) -> Result<Option<Known>, SyncError> {
        let file = self.path.clone();
        let Some((replica, known)) = off(move || Replica::open(&file)).await?? else { return Ok(None) };
        self.server.expect(replica.origin.clone());
        self.put(replica).await?;
        Ok(Some(known))
    }

    /// It goes on from what it was proved to hold.
    async fn proved(mut self, position: Position) -> Result<Pull, SyncError> {
        let frames = self
            .with(move |replica| {
                replica.resume(position);
                Ok(replica.frames())
            })
            .await?;
        if frames != position.frame {
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
        let mut starts = 0;
        loop {
            match self.catch_up(told).await {
                Err(error @ (SyncError::Fork { .. } | SyncError::Ahead { .. })) if self.doubtful => {
                    log::warn!("{error}: making it again");
                    self.remake().await?;
                }
                Err(error @ (SyncError::Fork { .. } | SyncError::Ahead { .. } | SyncError::Generation { .. }))
                    if self.adopt =>
                {
                    log::warn!("{error}: it is set aside and made again, since --adopt was given");
                    self.remake().await?;
                }
                Err(error) if error.is_pruned() && starts < STARTS_MAX => {
                    starts += 1;
                    self.start_over(error, told).await?;
                }
                done => break done?,
            }
        }
        self.doubtful = false;
        self.with(Replica::settle).await?;
        self.forget_aside().await
    }

    /// The server may be another one when it is reached again.
    pub(super) fn again(&mut self) {
        (self.compared, self.announced) = (false, false);
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
            (self.compared, self.announced) = (true, true);
            told.started(Offset(u64::from(position.frame) + 1), 0);
        }
        loop {
            let (generation, start) = self.with(|replica| Ok((replica.position().generation, replica.next()))).await?;
            let range = Range { generation, start, end: start.saturating_add(self.batch) };
            match self.pulled(range).await? {
                Pulled::Frames(frames) => {
                    let count = frames.len() / FRAME_LEN;
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
                    return Err(SyncError::Generation { ours: generation, server });
                }
                Pulled::Nothing(_) => break,
            }
        }
        self.with(|replica| {
            replica.restart();
            no_more_than_the_server(replica, replica.position().frame)
        })
        .await
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
            Pulled::Nothing(_) => self.with(move |replica| no_more_than_the_server(replica, frame - 1)).await,
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
        let pulled = self.server.pull(range, ours).await?;
        self.note_origin().await?;
        Ok(pulled)
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

    /// After a generation was folded: that the server's next one starts from what the replica is now. Else it goes on from the
    /// server's base.
    async fn prove_base(&mut self) -> Result<(), SyncError> {
        if let Some(expected) = self.server.unproven() {
            let digest = |replica: &mut Replica| {
                let read = digest_of_file(replica.database()?);
                Ok(read.map_err(|error| DatabaseError::io("reading", replica.path(), error))?)
            };
            if self.with(digest).await? != expected {
                let path = self.path.display();
                log::info!(
                    "{path}: the next generation may start from another database: comparing it with the server's base"
                );
                return self.recover().await;
            }
            self.server.proved();
        }
        self.note_origin().await?;
        self.with(|replica| Ok(replica.store()?)).await
    }

    /// The metadata are of no use. The files are, if the database is the server's base and what was folded into it; their
    /// frames will be compared as they come.
    async fn recover(&mut self) -> Result<(), SyncError> {
        let (draft, generation) = self.download().await?;
        let file = draft.file.clone();
        let stranger = self
            .with(move |replica| Ok(base::stranger(replica.path(), replica.database()?, Some(&file), &replica.log)?))
            .await?;
        if let Some(page) = stranger {
            log::warn!(
                "page {page} of {} is neither in its WAL nor in the server's base of generation {generation}: making it \
                 again",
                self.path.display()
            );
            self.check_replaceable().await?;
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

    async fn remake(&mut self) -> Result<(), SyncError> {
        self.check_replaceable().await?;
        let (draft, generation) = self.download().await?;
        self.replace(draft, generation).await
    }

    /// A database that is pushed from here is an application's.
    async fn check_replaceable(&self) -> Result<(), SyncError> {
        if !self.adopt && self.with(|replica| Ok(replica.is_pushed())).await? {
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
        (self.compared, self.announced) = (false, false);
        let set_aside = |replica: &mut Option<Replica>| match replica.take() {
            Some(replica) => set_aside(replica.path()).map(|aside| Some((replica, aside))),
            None => Ok(None),
        };
        if let Some((replica, aside)) = blocking(&self.replica, set_aside).await?? {
            // What was an application's, or is kept because that was asked for, is never removed.
            self.aside = Some(aside).filter(|_| !self.adopt && !replica.is_pushed());
            self.former.push(replica);
        }
        self.doubtful = false;
        self.install(draft, generation).await
    }

    /// The server's base. Nothing is left here when it does not come.
    async fn download(&mut self) -> Result<(Draft, u32), SyncError> {
        let generation = self.server.info().await?;
        if generation.is_none() {
            // The first servers could not say, knew one generation, and gave out no base; but frames, unless this is
            // no such server at all.
            let seed = |header: WalHeader| async move { Ok(header.seed()) };
            self.server.pull(Range { generation: 1, start: 1, end: 2 }, seed).await?;
        }
        let path = self.path.clone();
        let draft = off(move || Draft::create(&path)).await??;
        let exported = match generation {
            Some(generation) => self.server.export(generation, into_file(&draft.file)).await,
            None => Ok(0),
        };
        off(move || match exported.and_then(|bytes| draft.complete(bytes)) {
            Ok(()) => Ok((draft, generation.unwrap_or(1))),
            Err(error) => draft.discard().map_or_else(|error| Err(error.into()), |()| Err(error)),
        })
        .await?
    }

    async fn install(&mut self, draft: Draft, generation: u32) -> Result<(), SyncError> {
        let replica = off(move || draft.install(generation)).await??;
        self.put(replica).await?;
        self.note_origin().await?;
        self.with(|replica| Ok(replica.store()?)).await
    }

    /// Removes what was set aside if the replica has all of it, unless another process has it open: what that writes would be lost.
    async fn forget_aside(&mut self) -> Result<(), SyncError> {
        let Some(aside) = self.aside.take() else {
            return Ok(());
        };
        // Its own locks would hide those of others.
        let former = self.former.pop();
        let path = aside.clone();
        let stay = off(move || {
            drop(former);
            match user_of(&path)? {
                Some(user) => Stay::beside_others(&path).map(|stay| Some((stay, user))),
                None => Ok(None),
            }
        });
        if let Some((stay, DatabaseUser { pid })) = stay.await?? {
            let process = pid.map_or_else(String::new, |pid| format!(" {pid}"));
            log::warn!("{} is kept: process{process} has it open; remove it once that is closed", aside.display());
            self.strangers.push(stay);
            return Ok(());
        }
        self.with(move |replica| drop_aside(&aside, replica, replica.database()?)).await
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
        return Err(SyncError::Interrupted(format!("the server has no frame {last}")));
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
            let generation = replica.position().generation;
            Err(SyncError::Ahead { path: replica.path().to_owned(), generation, local, server })
        }
        _ => Ok(()),
    }
}
