//! The pull: a replica made, and brought up to what the server has. Owns: whether the files here can go on, and when they
//! must be made anew.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::bootstrap::{Draft, drop_aside, set_aside};
use super::continuity::{Continuity, chain_after, digest_of_file};
use super::error::SyncError;
use super::remote::{Pulled, Range, Remote};
use super::replica::Replica;
use super::replicate::Told;
use super::{FRAME_LEN, Position, base, blocking, into_file, off};
use crate::format::wal::WalHeader;
use crate::mirror::Event;
use crate::offset::Offset;
use crate::sqlite::DatabaseError;

/// Pulls one replica, again and again.
#[derive(Debug)]
pub(super) struct Pull {
    server: Continuity,
    path: PathBuf,
    batch: u32,
    /// None only while it is made anew.
    replica: Arc<Mutex<Option<Replica>>>,
    /// The metadata could not be believed: the files here are used as far as they are what the server has.
    doubtful: bool,
    /// What was set aside, where it is, until it is known whether the replica has all of it.
    aside: Option<PathBuf>,
    /// All that were set aside: others may still have them open.
    former: Vec<Replica>,
    /// Whether the last frame that both hold was compared.
    compared: bool,
}

impl Pull {
    pub(super) async fn open(remote: Remote, path: &Path, batch: u32) -> Result<Pull, SyncError> {
        let file = path.to_owned();
        let opened = off(move || Replica::open(&file)).await??;
        let replica = Arc::new(Mutex::new(None));
        let mut pull = Pull {
            server: Continuity::new(remote),
            path: path.to_owned(),
            batch,
            replica,
            doubtful: false,
            aside: None,
            former: Vec::new(),
            compared: false,
        };
        let Some((replica, known)) = opened else {
            let (draft, generation) = pull.download().await?;
            pull.install(draft, generation).await?;
            return Ok(pull);
        };
        let frames = replica.frames();
        pull.server.expect(replica.origin.clone());
        pull.put(replica).await?;
        match known {
            Ok(Position { frame, .. }) if frame <= frames => {}
            Ok(Position { frame, .. }) => {
                log::warn!(
                    "{} had {frame} frames and has {frames}: another program checkpointed its WAL away; making it anew",
                    path.display()
                );
                pull.remake().await?;
            }
            Err(why) => {
                log::warn!("{}-info is not used: {why}; asking the server", path.display());
                pull.recover().await?;
            }
        }
        Ok(pull)
    }

    /// Pulls what is new. After Ok the replica has all that the server had.
    pub(super) async fn sync(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        match self.catch_up(told).await {
            Err(error @ (SyncError::Fork { .. } | SyncError::Ahead { .. })) if self.doubtful => {
                log::warn!("{error}: making it anew");
                self.remake().await?;
                self.catch_up(told).await?;
            }
            done => done?,
        }
        self.doubtful = false;
        self.with(|replica| Ok(replica.store()?)).await?;
        self.forget_aside().await
    }

    /// The server may be another one when it is reached again.
    pub(super) fn again(&mut self) {
        self.compared = false;
    }

    async fn catch_up(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        if !self.compared {
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
            self.compare().await?;
            let position = self.with(|replica| Ok(replica.position())).await?;
            self.compared = true;
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
        let replica = self.replica.clone();
        let ours = move |header| {
            let replica = replica.clone();
            async move {
                let work = move |replica: &mut Option<Replica>| match replica {
                    Some(replica) => Ok(chain_after(&replica.log, range.start.saturating_sub(1), header)?),
                    None => Err(not_there()),
                };
                blocking(&replica, work).await?
            }
        };
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
                 anew",
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

    async fn remake(&mut self) -> Result<(), SyncError> {
        let (draft, generation) = self.download().await?;
        self.replace(draft, generation).await
    }

    /// Nothing of the replica is lost: what the server does not have stays under another name.
    async fn replace(&mut self, draft: Draft, generation: u32) -> Result<(), SyncError> {
        let set_aside = |replica: &mut Option<Replica>| match replica.take() {
            Some(replica) => set_aside(&replica).map(|aside| Some((replica, aside))),
            None => Ok(None),
        };
        if let Some((replica, aside)) = blocking(&self.replica, set_aside).await?? {
            self.former.push(replica);
            self.aside = Some(aside);
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

    /// What was set aside is of no use any more if the replica has all of it; a copy of the base tells.
    async fn forget_aside(&mut self) -> Result<(), SyncError> {
        match self.aside.take() {
            None => Ok(()),
            Some(aside) => self.with(move |replica| drop_aside(&aside, replica, replica.database()?)).await,
        }
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

fn not_there() -> SyncError {
    SyncError::Interrupted("the replica could not be made anew".into())
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
