//! The push: frames of a local database that the server does not have yet. Owns: where to start, and what its answers
//! mean for where to go on.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::error::SyncError;
use super::local::{LocalLog, Look, open_shared};
use super::metadata::{Known, MetadataFile};
use super::remote::{Pulled, Range, Remote};
use super::replica::place;
use super::replicate::Told;
use super::{FRAME_LEN, Position, base, blocking, into_file, off};
use crate::limits::{DAMAGE_LOOK_AGAIN, DAMAGE_LOOKS};
use crate::mirror::Event;
use crate::offset::Offset;
use crate::repo::FsRepo;
use crate::sqlite::DatabaseError;
use crate::sqlite::lock::alone as lock;

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
            Ok(position) => position,
            Err(why) => {
                log::warn!("{}-info is not used: {why}; asking the server", path.display());
                begin(&remote, &source, path).await?
            }
        };
        Ok(Push { remote, source, batch, position, stored, compared: false })
    }

    /// Pushes what is new. After Ok the server confirmed all frames up to the last commit, and the metadata says so.
    pub(super) async fn sync(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let looked = blocking(&self.source, |source| match source.log.look()? {
            Look::Restarted => Err(SyncError::from(DatabaseError::restarted(source.log.database()))),
            Look::Same => Ok(source.log.frames()),
        });
        let frames = looked.await??;
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
        let position = self.position;
        let stored = blocking(&self.source, move |source| {
            source
                .info
                .store(position)
                .map_err(|error| DatabaseError::io("writing the -info file of", source.log.database(), error))
        });
        stored.await??;
        self.stored = Some(position);
        Ok(())
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
            // It will say where it ends when it is offered the last frame.
            Held::Nothing => self.position.frame = common.min(frames - 1),
            Held::Unknown if cached > frames => self.position.frame = 0,
            Held::Unknown => {}
        }
        Ok(())
    }

    /// Compares a frame that counts here with the server's.
    async fn compare(&self, frame: u32) -> Result<Held, SyncError> {
        let generation = self.position.generation;
        let range = Range { generation, start: frame, end: frame.saturating_add(1) };
        let theirs = match self.remote.pull(range).await {
            Ok(Pulled::Frames(theirs)) => theirs,
            Ok(Pulled::Nothing(_)) => return Ok(Held::Nothing),
            // The first servers only took frames.
            Err(SyncError::Status { status: 404 | 405 | 501, .. }) => return Ok(Held::Unknown),
            Err(error) => return Err(error),
        };
        let differs = blocking(&self.source, move |source| {
            Ok::<_, DatabaseError>((source.log.differs(frame, &theirs)?, source.log.database().to_owned()))
        });
        match differs.await?? {
            (None, _) => Ok(Held::Same),
            (Some(frame), path) => Err(SyncError::Fork { path, generation, frame }),
        }
    }

    async fn push(&mut self, frames: u32, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        let generation = self.position.generation;
        let (mut baton, mut went_back): (Option<String>, bool) = (None, false);
        while self.position.frame < frames {
            let start = self.position.frame + 1;
            let end = start.saturating_add(self.batch).min(frames + 1);
            let range = Range { generation, start, end };
            let body = Bytes::from(blocking(&self.source, move |source| source.log.batch(start, end)).await??);
            let commits = body.chunks_exact(FRAME_LEN).filter(|frame| frame.get(4..8) != Some(&[0; 4])).count();
            let bytes = body.len();
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
                self.position.frame = last;
                told.moved(commits as u64, bytes as u64, Offset(u64::from(last) + 1));
                continue;
            }
            if confirmed < last {
                if std::mem::replace(&mut went_back, true) {
                    return Err(SyncError::Behind { generation, start, server: confirmed });
                }
                log::warn!("the server ends at frame {confirmed}, before frames {start}..={last}: going back there");
                baton = None;
            } else {
                log::info!("the server has frames up to {confirmed} already: going on behind them");
            }
            self.position.frame = confirmed.min(frames);
            if self.position.frame > 0 {
                self.compare(self.position.frame).await?;
            }
            told.moved(0, 0, Offset(u64::from(self.position.frame) + 1));
        }
        Ok(())
    }
}

/// Opens a database, with what its metadata say.
fn open(path: &Path) -> Result<(Source, Known), SyncError> {
    let database = open_shared(path)?;
    let log = LocalLog::open(path)?;
    let (dir, name) = place(path)?;
    let dir = FsRepo::open(&dir).map_err(|error| DatabaseError::io("opening", &dir, error))?;
    let info = MetadataFile::new(Arc::new(dir), format!("{name}-info"));
    info.clean().map_err(|error| DatabaseError::io("cleaning up beside", path, error))?;
    let known = info.load();
    Ok((Source { database, log, info }, known))
}

/// Where to start when nothing is known: at the first frame of the server's generation, if our frames go on top of its
/// base.
async fn begin(remote: &Remote, source: &Arc<Mutex<Source>>, path: &Path) -> Result<Position, SyncError> {
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
    let mut looks = 0;
    loop {
        let (base, database) = (base.clone(), path.to_owned());
        let stranger = blocking(source, move |source| {
            source.log.look()?;
            Ok::<_, SyncError>(base::stranger(&database, &source.database, base.as_deref(), &source.log)?)
        });
        match stranger.await?? {
            None => return Ok(Position { generation, frame: 0 }),
            // A checkpoint may be in the middle of that page.
            Some(_) if looks < DAMAGE_LOOKS => looks += 1,
            Some(page) => return Err(SyncError::Base { path: path.to_owned(), page, generation }),
        }
        tokio::time::sleep(DAMAGE_LOOK_AGAIN).await;
    }
}
