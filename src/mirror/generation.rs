//! Generations: ending one, starting the next from a new base, and reading those before.
//!
//! ```text
//! DATA/logs/NAME/0000000001/base.db        the database at the start of generation 1
//! DATA/logs/NAME/0000000002.UUID.draft/    the next one in the making; renamed when it is whole and synced
//! ```
//!
//! `log.json` is replaced last, so a crash at any step leaves the log in its old generation, and what was made of the next
//! one is removed or made again.

use std::io::{self, IoSlice};
use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;

use super::error::Error;
use super::log::{Log, Meta, State};
use super::registry::{META, Registry};
use super::shard::Message;
use crate::format::{LogFormat, name};
use crate::limits::READ_BLOCK;
use crate::offset::Generation;
use crate::repo::{Repo, replace};
use crate::stream::survey;

/// Ending of a directory whose generation has not begun.
const DRAFT: &str = ".draft";

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

    /// A directory for the next generation of a log, or for generation `wanted`, to put the base into as `base.db`. It
    /// becomes part of the log with [`start_generation`](Self::start_generation), and goes when dropped before. Blocks.
    ///
    /// # Errors
    /// When the log is no WAL or has had that generation already, or the directory cannot be made.
    pub fn draft_generation(&self, log: &Arc<Log>, wanted: Option<Generation>) -> Result<Draft, Error> {
        if log.format() != LogFormat::Wal {
            return Err(Error::Format(format!(
                "log {:?} is a {}: only a wal has generations",
                log.name(),
                log.format()
            )));
        }
        log.readable()?;
        let generation = wanted.unwrap_or(Generation(log.generation().0 + 1));
        // A generation that nothing was put into may still be given another base.
        let unused = generation == log.generation() && log.view().durable == log.first();
        if generation <= log.generation() && !unused {
            return Err(Error::Ended { generation });
        }
        let failed = |error: io::Error| Error::Unavailable(format!("cannot start generation {generation}: {error}"));
        let parent = self.logs_repo.dir(log.name()).map_err(failed)?;
        let draft_name = format!("{}.{}{DRAFT}", name::generation(generation), uuid::Uuid::new_v4());
        let dir = parent.create_dir(&draft_name).map_err(failed)?;
        Ok(Draft { parent, name: draft_name, dir, generation })
    }

    /// Ends the current generation of a log and starts the one that was drafted. `make` is called when the log takes
    /// nothing more, to complete the draft's base; when it fails the log goes on as it was. Appends to the old generation
    /// end with [`Error::Ended`]. After Ok the new one survives power loss. Blocks.
    ///
    /// # Errors
    /// When another generation was started meanwhile, the log cannot be synced, or the files cannot be made.
    pub fn start_generation(
        &self,
        log: &Arc<Log>,
        draft: &Draft,
        make: impl FnOnce(&Arc<Log>, &Arc<dyn Repo>) -> Result<(), Error>,
    ) -> Result<Arc<Log>, Error> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_none() {
            return Err(Error::Unavailable("the service is shutting down".into()));
        }
        if self.get(log.name())?.generation() != log.generation() {
            return Err(Error::Ended { generation: log.generation() });
        }
        self.close(log, draft.generation)?;
        let made = make(log, &draft.dir).and_then(|()| self.commit(log, draft));
        let new = match made {
            Ok(new) => new,
            Err(error) => {
                log.publish(|view| view.state = State::Ok);
                return Err(error);
            }
        };
        if draft.generation > log.generation() {
            let key = (log.id().to_owned(), log.generation());
            self.older.lock().unwrap_or_else(PoisonError::into_inner).insert(key, log.clone());
        }
        let opened = self.start(new);
        // A shard that is gone has said why.
        let _ = opened.blocking_recv();
        self.get(log.name())
    }

    /// Makes a complete draft the current generation.
    fn commit(&self, log: &Arc<Log>, draft: &Draft) -> Result<Log, Error> {
        let Draft { parent, name: draft_name, dir, generation } = draft;
        let commit = || -> io::Result<Log> {
            dir.sync_dir()?;
            let meta = Meta { generation: *generation, checkpoint: log.policy(), ..log.meta().clone() };
            if *generation == log.generation() {
                copy(&**dir, &**log.repo(), name::BASE)?;
                return Ok(self.log(log.name(), meta, log.repo().clone()));
            }
            let wanted = name::generation(*generation);
            // Only what never came to be can be in the way.
            for found in parent.list()?.into_iter().filter(|found| *found == wanted) {
                remove_dir(&**parent, &found)?;
            }
            parent.rename(draft_name, &wanted)?;
            parent.sync_dir()?;
            replace(&**parent, META, serde_json::to_string_pretty(&meta)?.as_bytes())?;
            Ok(self.log(log.name(), meta, parent.dir(&wanted)?))
        };
        commit().map_err(|error| Error::Unavailable(format!("cannot start generation {generation}: {error}")))
    }

    /// Has the log's shard sync it, let go of its files, and take nothing more for it.
    fn close(&self, log: &Arc<Log>, next: Generation) -> Result<(), Error> {
        let (reply, closed) = oneshot::channel();
        let gone = || Error::Unavailable("the service is shutting down".into());
        let message = Message::Close { log: log.clone(), next, reply };
        self.shards.queue(log).blocking_send(message).map_err(|_| gone())?;
        closed.blocking_recv().map_err(|_| gone())?
    }

    /// Deletes all generations of a log but the last `keep`, the current one among them; those that somebody reads stay
    /// until the next time. Blocks.
    ///
    /// # Errors
    /// When they cannot be deleted.
    pub fn prune_generations(&self, log: &Log, keep: u64) -> Result<(), Error> {
        let last = log.generation().0.saturating_sub(keep.max(1));
        let dir = self.logs_repo.dir(log.name())?;
        let mut older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        let found = dir.list()?.into_iter();
        let found = found.filter_map(|found| name::parse_generation(&found).map(|generation| (found, generation)));
        for (found, generation) in found.filter(|(_, generation)| generation.0 <= last) {
            let key = (log.id().to_owned(), generation);
            // Whoever reads a generation holds it.
            if older.get(&key).is_some_and(|held| Arc::strong_count(held) > 1) {
                log::info!("{}: generation {generation} is being read and stays for now", log.name());
                continue;
            }
            older.remove(&key);
            remove_dir(&*dir, &found)?;
            log::info!("{}: generation {generation} was deleted, {keep} are kept", log.name());
        }
        Ok(dir.sync_dir()?)
    }
}

/// The files of a generation that has not begun.
#[derive(Debug)]
pub struct Draft {
    parent: Arc<dyn Repo>,
    name: String,
    dir: Arc<dyn Repo>,
    generation: Generation,
}

impl Draft {
    /// Where its files go.
    #[must_use]
    pub fn dir(&self) -> &Arc<dyn Repo> {
        &self.dir
    }

    /// Which generation it will be.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        match remove_dir(&*self.parent, &self.name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{}/{} was left behind: {error}", self.parent.place(), self.name);
            }
            _ => {}
        }
    }
}

/// Removes what drafts a crash left in the directory of a log.
pub(super) fn remove_drafts(dir: &dyn Repo) -> io::Result<()> {
    for found in dir.list()?.into_iter().filter(|found| found.ends_with(DRAFT)) {
        remove_dir(dir, &found)?;
    }
    Ok(())
}

/// Replaces a file of `to` by that of `from`. After Ok it survives power loss.
fn copy(from: &dyn Repo, to: &dyn Repo, file_name: &str) -> io::Result<()> {
    let draft = format!("{file_name}.tmp");
    match to.remove(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (source, target) = (from.open(file_name)?, to.create(&draft)?);
    let (mut block, mut at) = (vec![0; READ_BLOCK], 0);
    loop {
        let count = source.read_at(&mut block, at)?;
        if count == 0 {
            break;
        }
        target.write_at(&mut [IoSlice::new(&block[..count])], at)?;
        at += count as u64;
    }
    target.sync()?;
    to.rename(&draft, file_name)?;
    to.sync_dir()
}

fn remove_dir(parent: &dyn Repo, found: &str) -> io::Result<()> {
    let dir = parent.dir(found)?;
    for file in dir.list()? {
        dir.remove(&file)?;
    }
    parent.remove(found)
}
