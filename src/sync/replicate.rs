//! The loop behind `logmirror mirror` with a libSQL sync server: again when a connection fails, and again and again when
//! it follows.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::sleep;

use super::CLAIM;
use super::error::SyncError;
use super::pull::Pull;
use super::push::{self, Push};
use super::push_live::LivePush;
use super::remote::Remote;
use crate::blame::with_causes;
use crate::limits::{ATTEMPTS_MAX, POLL_EVERY, SYNC_BATCH};
use crate::mirror::{Alone, Event, Progress};
use crate::offset::Offset;
use crate::retry::RECONNECT;

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the database to the server. The database is only read; beside it the metadata file is written.
    Push,
    /// From the server to the database, which is made if there is none.
    Pull,
}

/// A database, a server, and how to bring one up to the other.
#[derive(Clone, Debug)]
pub struct Replicate {
    /// Which way.
    pub direction: Direction,
    /// The database file.
    pub database: PathBuf,
    /// The server.
    pub remote: Remote,
    /// Frames in one request, at least 1.
    pub batch: u32,
    /// Whether to go on as frames are added, for ever.
    pub follow: bool,
    /// Whether a pull makes the database if there is none.
    pub create: bool,
    /// Whether a pull sets aside, and makes again, what is at the path and may be an application's, or is of another history.
    pub adopt: bool,
}

impl Replicate {
    /// Once, in batches of the default size.
    #[must_use]
    pub fn new(direction: Direction, database: PathBuf, remote: Remote) -> Self {
        Replicate { direction, database, remote, batch: SYNC_BATCH, follow: false, create: true, adopt: false }
    }

    /// The same with the path of the database file itself: what is pushed is in the WAL beside that, and not beside a link.
    pub(super) fn located(&self) -> Replicate {
        let database = match self.direction {
            Direction::Push => self.database.canonicalize().unwrap_or_else(|_| self.database.clone()),
            Direction::Pull => self.database.clone(),
        };
        Replicate { database, ..self.clone() }
    }
}

/// How far it has come, and whom to tell.
pub(super) struct Told<F> {
    progress: Progress,
    tell: F,
}

impl<F: FnMut(Event)> Told<F> {
    pub(super) fn started(&mut self, from: Offset, source_bytes: u64) {
        (self.progress.next, self.progress.durable) = (from, from);
        (self.tell)(Event::Started { from, held: true, source_bytes });
    }

    pub(super) fn compared(&mut self, reason: String, pages: u64) {
        (self.tell)(Event::Compared { reason, pages });
    }

    pub(super) fn moved(&mut self, commits: u64, bytes: u64, next: Offset) {
        self.progress.commits += commits;
        self.progress.bytes += bytes;
        (self.progress.next, self.progress.durable) = (next, next);
        (self.tell)(Event::Moved(self.progress));
    }
}

enum Session {
    Push(Box<Push>),
    /// Of a database whose WAL does not hold all that the server has, or that is followed.
    Live(Box<LivePush>),
    Pull(Box<Pull>),
}

impl Session {
    async fn open(what: &Replicate) -> Result<Session, SyncError> {
        let (remote, batch) = (what.remote.clone(), what.batch.max(1));
        Ok(match what.direction {
            Direction::Push => {
                push::check_names(&what.database).await?;
                push::clean(&what.database).await?;
                if let Some(live) = push::resume(&remote, &what.database, (batch, what.follow), false).await? {
                    return Ok(Session::Live(Box::new(live)));
                }
                match Push::open(remote.clone(), &what.database, batch).await {
                    Ok(push) => Session::Push(Box::new(push)),
                    Err(error @ (SyncError::Base { .. } | SyncError::Generation { .. })) => {
                        let from = (batch, what.follow);
                        let live = push::live_instead(&remote, &what.database, from, error).await?;
                        Session::Live(Box::new(live))
                    }
                    Err(error) => return Err(error),
                }
            }
            Direction::Pull => Session::Pull(Box::new(Pull::open(what).await?)),
        })
    }

    fn again(&mut self) {
        match self {
            Session::Push(push) => push.again(),
            Session::Live(live) => live.again(),
            Session::Pull(pull) => pull.again(),
        }
    }

    async fn sync(&mut self, told: &mut Told<impl FnMut(Event)>) -> Result<(), SyncError> {
        match self {
            Session::Push(push) => push.sync(told).await,
            Session::Live(live) => live.sync(told).await,
            Session::Pull(pull) => pull.sync(told).await,
        }
    }
}

/// Pushes or pulls until both sides are equal, or for ever if it follows. Offsets are frame numbers of the current
/// generation.
///
/// # Errors
/// See [`SyncError`]. What may pass is tried again, a few times. One that follows ends only with what
/// [ends it](SyncError::ends_follower), and tries all else again without end.
pub async fn run(what: &Replicate, tell: impl FnMut(Event)) -> Result<Progress, SyncError> {
    let what = &what.located();
    let mut told = Told { progress: Progress::default(), tell };
    let (mut alone, mut session, mut failures) = (None, None, 0);
    loop {
        let before = told.progress;
        let error = match attempt(what, &mut alone, &mut session, &mut told).await {
            Ok(()) if !what.follow => return Ok(told.progress),
            Ok(()) => {
                failures = 0;
                sleep(POLL_EVERY).await;
                continue;
            }
            Err(error) => error,
        };
        if told.progress.bytes > before.bytes {
            failures = 0;
        }
        failures += 1;
        let ends = match what.follow {
            // With --adopt it was made again because of that before.
            true => error.ends_follower() || what.adopt && matches!(error, SyncError::Ahead { .. }),
            false => !error.is_transient() || failures >= ATTEMPTS_MAX || error.was_retried(),
        };
        if ends {
            return Err(error);
        }
        // Unless the files here are at fault, their locks are kept meanwhile: without them, whoever closes the database
        // last would checkpoint its WAL away.
        match &mut session {
            Some(session) if error.is_busy() || error.is_remote() => session.again(),
            _ => session = None,
        }
        let after = RECONNECT.after(failures);
        (told.tell)(Event::Retrying { error: with_causes(&error), after });
        sleep(after).await;
    }
}

async fn attempt(
    what: &Replicate,
    alone: &mut Option<Arc<Alone>>,
    session: &mut Option<Session>,
    told: &mut Told<impl FnMut(Event)>,
) -> Result<(), SyncError> {
    if what.direction == Direction::Pull {
        return run_session(what, session, told).await;
    }
    let claim = match alone {
        Some(claim) => claim.clone(),
        None => alone.insert(Arc::new(claim(what)?)).clone(),
    };
    CLAIM.scope(claim, run_session(what, session, told)).await
}

async fn run_session(
    what: &Replicate,
    session: &mut Option<Session>,
    told: &mut Told<impl FnMut(Event)>,
) -> Result<(), SyncError> {
    run_to_end(what, session, told).await.map_err(|error| match (error, what.direction) {
        (SyncError::Status { status: 410, text, .. }, Direction::Push) => {
            SyncError::Pruned { path: what.database.clone(), text }
        }
        (error, _) => error,
    })
}

async fn run_to_end(
    what: &Replicate,
    session: &mut Option<Session>,
    told: &mut Told<impl FnMut(Event)>,
) -> Result<(), SyncError> {
    let session = match session {
        Some(session) => session,
        None => session.insert(Session::open(what).await?),
    };
    match (session.sync(told).await, &*session) {
        // The server's generation may have ended right after what was pushed.
        (Err(error @ (SyncError::Conflict { .. } | SyncError::Generation { .. })), Session::Push(_)) => {
            let from = (what.batch.max(1), what.follow);
            let live = push::live_instead(&what.remote, &what.database, from, error).await?;
            *session = Session::Live(Box::new(live));
            return session.sync(told).await;
        }
        (Err(SyncError::Base { .. }), Session::Push(push)) => {
            let live = push.by_pages(&what.database, what.follow).await?;
            *session = Session::Live(Box::new(live));
            return session.sync(told).await;
        }
        (synced, _) => synced?,
    }
    // Its locks are held until those of the follower are.
    if let (true, Session::Push(push)) = (what.follow, &*session)
        && let Some(live) = push.follow().await?
    {
        let mut live = Box::new(live);
        live.start(told).await?;
        *session = Session::Live(live);
        return session.sync(told).await;
    }
    Ok(())
}

/// Claims the database for this mirror: of two that push it at the same time to the same server, each would take the other's frames
/// for another writer's.
fn claim(what: &Replicate) -> Result<Alone, SyncError> {
    let (path, url) = (what.database.clone(), what.remote.url().to_string());
    Alone::claim(&format!("libsql:{}", path.display()), &url).ok_or(SyncError::PushedByAnother { path, url })
}
