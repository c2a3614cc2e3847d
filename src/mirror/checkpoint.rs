//! Rolling a WAL log over: its durable frames are folded into the base of the next generation. On demand, or in the
//! background for logs whose policy asks for it.

use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::error::Error;
use super::fed;
use super::generation::check_wal;
use super::log::Log;
use super::registry::Registry;
use crate::api::{CheckpointOutcome, CheckpointPolicy, CheckpointState, LogSource};
use crate::checkpoint::{Checkpointer, FoldError, GivenUp, Notifier, Outcome, fold};
use crate::format::{Framing, name};
use crate::limits::CHECKPOINT_LOOK_EVERY;
use crate::offset::{Generation, Offset};

impl Registry {
    /// Folds the durable frames of a log into the base of its next generation, which becomes the current one; a log
    /// without frames stays as it is. Generations before the last that its policy keeps are deleted, unless somebody reads
    /// them. With `dry_run` it only tells what would be done. Blocks.
    ///
    /// A crash at any step leaves the old generation or the new one, whole, and the step is done again.
    ///
    /// # Errors
    /// When the log is no WAL or is damaged, or its files cannot be made. The log goes on in its generation then.
    pub fn checkpoint(&self, log_name: &str, dry_run: bool) -> Result<CheckpointOutcome, Error> {
        let log = self.get(log_name)?;
        check_wal(&log)?;
        log.intact()?;
        if let Some(source) = log.source().filter(LogSource::is_log) {
            let (name, from) = (log.name(), source.identity);
            return Err(Error::Format(format!(
                "log {name:?} is a copy of {from}, whose generations it has: roll that over, or promote this one first"
            )));
        }
        let frames = |log: &Log| log.view().durable.0 - log.first().0;
        let mut outcome = CheckpointOutcome {
            generation: log.generation(),
            next: Generation(log.generation().0.saturating_add(1)),
            frames: frames(&log),
            done: false,
            base_bytes: None,
        };
        if dry_run || outcome.frames == 0 {
            return Ok(outcome);
        }
        let draft = self.draft_generation(&log, None)?;
        let started = self.start_generation(&log, &draft, |log, dir| {
            // What was appended until now is in it as well.
            outcome.frames = frames(log);
            let last = Offset(log.view().durable.0 - 1);
            // The base must be the one that it should be, before it is read.
            log.base()?;
            let folded = fold(&**log.repo(), Some(last), dir.clone(), name::BASE).map_err(|error| match error {
                FoldError::Io(error) => Error::Unavailable(format!("cannot fold the log: {error}")),
                FoldError::Base(fault) => log.base_error(fault.into()),
                error => Error::Damaged(error.to_string().into()),
            })?;
            outcome.base_bytes = Some(folded.bytes);
            // A mirror that feeds the log goes on where the generation ended.
            Ok(log.source().map(|noted| match log.view().framing {
                Framing::Wal(Some(end)) => fed::rolled(&noted, (log.generation(), log.view().durable, end)),
                _ => noted,
            }))
        });
        let next = started.map_err(|error| log.met_damage(error))?;
        next.note_folded_from(&log);
        outcome.done = true;
        // Nobody here reads the old generation any more.
        drop(log);
        log::info!("{log_name}: {} frames folded, now in generation {}", outcome.frames, outcome.next);
        self.prune_now(log_name);
        Ok(outcome)
    }

    /// Deletes the generations that the log's policy does not keep. One that is read, or cannot be deleted, is tried again
    /// later. Blocks.
    pub fn prune_now(&self, log_name: &str) {
        // What made them old is done, whatever becomes of their files.
        if let Err(error) = self.exclusively(log_name, || self.prune(log_name)) {
            log::warn!("{log_name}: old generations stay for now: {error}");
            self.held_back.lock().unwrap_or_else(PoisonError::into_inner).insert(log_name.to_owned());
        }
    }

    /// Deletes old generations that were held back before, where nobody reads them any more. Blocks.
    fn prune_held_back(&self) {
        let names = self.held_back.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for log_name in names {
            if let Err(error) = self.exclusively(&log_name, || self.prune(&log_name)) {
                log::warn!("{log_name}: old generations stay for now: {error}");
            }
        }
    }

    /// Deletes what the log's policy does not keep.
    fn prune(&self, log_name: &str) -> Result<(), Error> {
        let log = self.get(log_name)?;
        match log.policy() {
            CheckpointPolicy::Roll { keep, .. } => self.prune_generations(&log, keep),
            CheckpointPolicy::Keep => {
                self.held_back.lock().unwrap_or_else(PoisonError::into_inner).remove(log_name);
                Ok(())
            }
        }
    }

    /// Notes since when generations have frames, where that says when they end, so that a restart does not forget it. Blocks.
    fn note_ages(&self) {
        for log in self.logs().iter().filter(|log| log.age_to_note().is_some()) {
            let noted = self.exclusively(log.name(), || {
                // Another generation may have begun meanwhile.
                let log = self.get(log.name())?;
                let Some(meta) = log.age_to_note() else { return Ok(()) };
                self.store_meta(&log, &meta)?;
                log.set_age_noted();
                Ok(())
            });
            if let Err(error) = noted {
                log::debug!("{}: the age of its generation is not noted yet: {error}", log.name());
            }
        }
    }

    /// Whether a log's policy wants it rolled over now.
    fn is_due(&self, log: &Log) -> bool {
        // A copy of another log is rolled over when that is.
        if log.source().is_some_and(|source| source.is_log()) {
            return false;
        }
        let view = log.view();
        let frames = view.durable.0 - log.first().0;
        let CheckpointPolicy::Roll { frames: most_frames, bytes: most_bytes, seconds, .. } = log.policy() else {
            return false;
        };
        let bytes: u64 = view.segments().map(|segment| segment.bytes).sum();
        let age = log.age();
        frames > 0
            && (most_frames.is_some_and(|most| frames >= most)
                || most_bytes.is_some_and(|most| bytes >= most)
                || age.zip(seconds).is_some_and(|(age, seconds)| age >= Duration::from_secs(seconds)))
    }
}

/// The checkpoints in the background.
#[derive(Debug)]
pub struct Checkpoints {
    checkpointer: Checkpointer,
    notifier: Notifier,
    looking: JoinHandle<()>,
}

impl Checkpoints {
    /// Starts them on the current runtime, `concurrency` at once at most.
    #[must_use]
    pub fn start(registry: &Arc<Registry>, concurrency: NonZeroUsize) -> Checkpoints {
        let ours = registry.clone();
        let (checkpointer, notifier) = Checkpointer::start(concurrency, move |log_name| run(ours.clone(), log_name));
        let (registry, notices) = (Arc::downgrade(registry), notifier.clone());
        let looking = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(CHECKPOINT_LOOK_EVERY);
            loop {
                ticks.tick().await;
                let Some(registry) = registry.upgrade() else { return };
                let ours = registry.clone();
                // One that was interrupted is done again.
                let _ = tokio::task::spawn_blocking(move || {
                    ours.prune_held_back();
                    ours.note_ages();
                })
                .await;
                for log in registry.logs().iter().filter(|log| registry.is_due(log)) {
                    notices.notify(log.name());
                }
            }
        });
        Checkpoints { checkpointer, notifier, looking }
    }

    /// How the checkpoints of a log fare; `None` while none failed.
    #[must_use]
    pub fn state_of(&self, log_name: &str) -> Option<CheckpointState> {
        let failing = self.checkpointer.status().failing.into_iter().find(|failing| failing.log == log_name)?;
        Some(CheckpointState { failures: failing.failures.into(), alarm: failing.alarm, error: failing.error })
    }

    /// Jobs that ended well, jobs that failed, and logs with an alarm, so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let status = self.checkpointer.status();
        let alarms = status.failing.iter().filter(|failing| failing.alarm).count() as u64;
        (status.succeeded, status.failed, alarms)
    }

    /// Lets those that are due or running end, and takes no more.
    pub async fn stop(self) {
        self.looking.abort();
        self.notifier.shut_down();
        for GivenUp { log, error } in self.checkpointer.ended().await {
            log::warn!("{log}: not rolled over at shutdown: {error}");
        }
    }
}

async fn run(registry: Arc<Registry>, log_name: String) -> Result<Outcome, Error> {
    let job = move || {
        let log = match registry.get(&log_name) {
            Ok(log) => log,
            // One that is not open has nothing to fold.
            Err(Error::NotFound(_)) => return Ok(Outcome::Nothing),
            Err(error) => return Err(error),
        };
        if !registry.is_due(&log) {
            return Ok(Outcome::Nothing);
        }
        // Held, it would keep its generation from being deleted.
        drop(log);
        match registry.checkpoint(&log_name, false) {
            Ok(outcome) if outcome.done => Ok(Outcome::Folded(Offset(outcome.frames))),
            // Somebody else was first.
            Ok(_) | Err(Error::Ended { .. }) => Ok(Outcome::Nothing),
            Err(error) => Err(error),
        }
    };
    tokio::task::spawn_blocking(job).await.map_err(|_| Error::Unavailable("the checkpoint was interrupted".into()))?
}
