//! Generations: ending one, starting the next from a new base, and reading those before.
//!
//! ```text
//! DATA/logs/NAME/0000000001/base.db        the database at the start of generation 1; absent when that was empty
//! DATA/logs/NAME/0000000002/               made whole and synced before `log.json` names it
//! ```
//!
//! `log.json` is replaced last, so a crash at any step leaves the log in its old generation, and what was made of the next
//! one is made again.

use std::io;
use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;

use super::error::Error;
use super::log::{Log, Meta, State};
use super::registry::{META, Registry, ensure_dir};
use super::shard::Message;
use crate::format::{LogFormat, name};
use crate::offset::Generation;
use crate::repo::{Repo, replace};
use crate::stream::survey;

impl Registry {
    /// The log of that name in one of its generations; `None` is the current one. Blocks when it is an older one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a generation that has not begun; [`Error::GenerationGone`] for one that was deleted.
    pub fn generation(&self, log_name: &str, wanted: Option<Generation>) -> Result<Arc<Log>, Error> {
        let current = self.get(log_name)?;
        let wanted = wanted.unwrap_or(current.generation());
        if wanted == current.generation() {
            return Ok(current);
        }
        if wanted > current.generation() || wanted < Generation::FIRST {
            let text =
                format!("log {log_name:?} has no generation {wanted}, its current one is {}", current.generation());
            return Err(Error::NotFound(text));
        }
        let mut older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (current.id().to_owned(), wanted);
        if let Some(log) = older.get(&key) {
            return Ok(log.clone());
        }
        let dir = self.logs_repo.dir(log_name)?;
        let repo = match dir.dir(&name::generation(wanted)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::GenerationGone { generation: wanted, current: current.generation() });
            }
            repo => repo?,
        };
        let meta = Meta { generation: wanted, ..current.meta().clone() };
        let log = Arc::new(self.log(log_name, meta, repo));
        let found = survey(&**log.repo(), self.settings.commit_bytes_max, None);
        log.publish(|view| match found {
            Ok(found) => view.take_over(found, current.generation()),
            Err(error) => view.state = State::Damaged(error.to_string().into()),
        });
        older.insert(key, log.clone());
        Ok(log)
    }

    /// Ends the current generation of a log and starts the next one from the base that `make` leaves in the new directory
    /// as `base.db`, synced. Appends to the old generation end with [`Error::Ended`]. When `make` fails the log goes on as
    /// it was. Blocks.
    ///
    /// # Errors
    /// When the log is no WAL, cannot be synced, or the files cannot be made.
    pub fn start_generation(
        &self,
        log: &Arc<Log>,
        make: impl FnOnce(&Arc<Log>, &Arc<dyn Repo>) -> Result<(), Error>,
    ) -> Result<Arc<Log>, Error> {
        if log.format() != LogFormat::Wal {
            return Err(Error::Format(format!(
                "log {:?} is a {}: only a wal has generations",
                log.name(),
                log.format()
            )));
        }
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            return Err(Error::Unavailable("the service is shutting down".into()));
        }
        if self.get(log.name())?.generation() != log.generation() {
            return Err(Error::Ended { generation: log.generation() });
        }
        log.readable()?;
        let next = Generation(log.generation().0 + 1);
        self.close(log, next)?;
        let made = self.make_generation(log, next, make);
        let new = match made {
            Ok(new) => new,
            Err(error) => {
                log.publish(|view| view.state = State::Ok);
                return Err(error);
            }
        };
        let opened = self.start(new);
        // A shard that is gone has said why.
        let _ = opened.blocking_recv();
        self.get(log.name())
    }

    /// Has the log's shard sync it, let go of its files, and take nothing more for it.
    fn close(&self, log: &Arc<Log>, next: Generation) -> Result<(), Error> {
        let (reply, closed) = oneshot::channel();
        let gone = || Error::Unavailable("the service is shutting down".into());
        let message = Message::Close { log: log.clone(), next, reply };
        self.shards.queue(log).blocking_send(message).map_err(|_| gone())?;
        closed.blocking_recv().map_err(|_| gone())?
    }

    fn make_generation(
        &self,
        log: &Arc<Log>,
        next: Generation,
        make: impl FnOnce(&Arc<Log>, &Arc<dyn Repo>) -> Result<(), Error>,
    ) -> Result<Log, Error> {
        let failed = |error: io::Error| Error::Unavailable(format!("cannot start generation {next}: {error}"));
        let dir = self.logs_repo.dir(log.name()).map_err(failed)?;
        let repo = ensure_dir(&*dir, &name::generation(next)).map_err(failed)?;
        // What an attempt before left behind.
        for file in repo.list().map_err(failed)? {
            repo.remove(&file).map_err(failed)?;
        }
        make(log, &repo)?;
        repo.sync_dir().map_err(failed)?;
        let meta = Meta { generation: next, ..log.meta().clone() };
        let text = serde_json::to_string_pretty(&meta).map_err(io::Error::from).map_err(failed)?;
        replace(&*dir, META, text.as_bytes()).map_err(failed)?;
        Ok(self.log(log.name(), meta, repo))
    }

    /// Deletes all generations of a log but the last `keep`, the current one among them. Blocks.
    ///
    /// # Errors
    /// When they cannot be deleted.
    pub fn prune_generations(&self, log: &Log, keep: u64) -> Result<(), Error> {
        let last = log.generation().0.saturating_sub(keep.max(1));
        let dir = self.logs_repo.dir(log.name())?;
        let mut names = dir.list()?;
        names.retain(|found| name::parse_generation(found).is_some_and(|generation| generation.0 <= last));
        for found in names {
            let repo = dir.dir(&found)?;
            for file in repo.list()? {
                repo.remove(&file)?;
            }
            repo.sync_dir()?;
            dir.remove(&found)?;
            log::info!("{}: generation {found} was deleted, {keep} are kept", log.name());
        }
        dir.sync_dir()?;
        let mut older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        older.retain(|(id, generation), _| id != log.id() || generation.0 > last);
        Ok(())
    }
}
