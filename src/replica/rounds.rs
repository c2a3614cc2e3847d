//! The loop behind `logmirror replica`: opens a replica, does one thing with it and closes it; with a pause, again and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;

use super::error::ReplicaError;
use super::options::Options;
use super::report::Report;
use super::{Status, SyncEngine, Tell};
use crate::sync::Remote;

/// What is done with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Bring the remote's changes home, under those made here
    Pull,
    /// Bring what was changed here to the remote
    Push,
    /// Both: a push, then a pull
    Sync,
    /// Say where the replica stands; nothing is sent
    Status,
}

/// A replica, what to do with it, and how often.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// Where the replica is, or is made.
    pub path: PathBuf,
    /// The remote.
    pub remote: Remote,
    /// How it is kept. It is rebuilt once at most.
    pub options: Options,
    /// What is done in each round.
    pub action: Action,
    /// The pause after a round, in which the replica is closed; with none there is one round.
    pub every: Option<Duration>,
}

/// What came of a round.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Of a pull, a push or both.
    Done {
        /// Whether there was no replica, and one was made of all that the remote had; it is not in the report.
        made: bool,
        /// What was done then.
        #[serde(flatten)]
        report: Report,
    },
    /// Of a look.
    Stands(Status),
}

/// What happens, for whoever watches.
#[derive(Debug)]
pub enum Event<'a> {
    /// So many bytes came from the remote.
    Came(u64),
    /// A round is done, and the replica is closed.
    Done(&'a Outcome),
    /// A round failed for a reason that may pass, and the replica is closed.
    Failed {
        /// The reason.
        error: &'a ReplicaError,
        /// When the next one starts.
        after: Duration,
    },
}

/// Told of what happens, from any thread.
pub type Watch = dyn Fn(Event<'_>) + Send + Sync;

/// One round, or rounds for ever. Between two of them an application may open the draft.
///
/// # Errors
/// See [`ReplicaError`]. With a pause, what may pass is told and tried again in the next round.
pub async fn run(rounds: &Rounds, watch: Arc<Watch>) -> Result<(), ReplicaError> {
    let mut options = rounds.options.clone();
    loop {
        let outcome = round(rounds, &mut options, &watch).await;
        match (&outcome, rounds.every) {
            (Ok(outcome), _) => watch(Event::Done(outcome)),
            (Err(error), Some(after)) if error.is_transient() => watch(Event::Failed { error, after }),
            (Err(_), _) => return outcome.map(drop),
        }
        let Some(pause) = rounds.every else { return Ok(()) };
        sleep(pause).await;
    }
}

/// After it the replica is closed, whatever came of it.
async fn round(rounds: &Rounds, options: &mut Options, watch: &Arc<Watch>) -> Result<Outcome, ReplicaError> {
    let is_there = SyncEngine::exists(&rounds.path).await?;
    if rounds.action == Action::Status && !is_there {
        return Err(SyncEngine::absent(&rounds.path).await);
    }
    let watch = watch.clone();
    let tell: Arc<Tell> = Arc::new(move |bytes| watch(Event::Came(bytes)));
    if rounds.action == Action::Push && is_there && !options.rebuild {
        let (remote, options, tell) = (rounds.remote.clone(), options.clone(), tell.clone());
        if let Some(report) = SyncEngine::push_beside(&rounds.path, remote, options, tell).await? {
            return Ok(Outcome::Done { made: false, report });
        }
    }
    let replica = SyncEngine::open_telling(&rounds.path, rounds.remote.clone(), options.clone(), tell).await?;
    let made = std::mem::take(&mut options.rebuild) || !is_there;
    if made && rounds.action != Action::Status && replica.is_unmade().await? {
        return Ok(Outcome::Done { made, report: Report::default() });
    }
    let report = match rounds.action {
        Action::Pull => replica.pull().await?,
        Action::Push => replica.push().await?,
        Action::Sync => replica.sync().await?,
        Action::Status => return replica.status().await.map(Outcome::Stands),
    };
    Ok(Outcome::Done { made, report })
}
