//! Generations: ending one, starting the next from a new base, and reading those before.
//!
//! ```text
//! DATA/logs/NAME/0000000001/base.db        the database at the start of generation 1, with base.sums
//! DATA/logs/NAME/0000000002.UUID.draft/    the next one in the making; renamed when it is whole and synced
//! ```
//!
//! `log.json` is replaced last, so a crash at any step leaves the log in its old generation, and what was made of the next
//! one is removed or made again.

use std::io;
use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;

use super::error::Error;
use super::log::{Log, Meta, State};
use super::registry::{META, META_BYTES_MAX, Registry};
use super::shard::Message;
use super::writers::Writers;
use crate::api::LogSource;
use crate::format::{LogFormat, database, name};
use crate::limits::{GENERATION_MAX, LIBSQL_PAGE_SIZE, READ_BLOCK};
use crate::offset::Generation;
use crate::repo::{Repo, read_small, replace};
use crate::segment::base::{BaseBuilder, BaseReader, FinishedBase, recover};
use crate::stream::{DurableMark, SurveyError, survey};

/// Ending of a directory that is no generation: one in the making, or one being deleted.
const DRAFT: &str = ".draft";

impl Registry {
    /// The log of that name in one of its generations; `None` is the current one. Blocks when it is an older one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a generation that has not begun; [`Error::GenerationGone`] for one that was deleted.
    pub fn generation(&self, log_name: &str, wanted: Option<Generation>) -> Result<Arc<Log>, Error> {
        let current = self.get(log_name)?;
        if !current.is_described() {
            current.readable()?;
        }
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
        let meta = Meta { generation: wanted, base: None, ..current.meta().clone() };
        let log = Arc::new(self.log(log_name, meta, repo));
        let found = survey(&**log.repo(), self.settings.commit_bytes_max, None);
        // A disk that fails now may work the next time.
        let found = match found {
            Err(SurveyError::Io(error)) => return Err(error.into()),
            found => found,
        };
        log.publish(|view| match found {
            Ok(found) => {
                view.take_over(found);
                view.state = State::Ended(current.generation());
            }
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
        check_wal(log)?;
        log.writable()?;
        let generation = wanted.unwrap_or(Generation(log.generation().0.saturating_add(1)));
        if generation.0 > GENERATION_MAX {
            return Err(Error::Invalid(format!(
                "generation {generation} is too large: the last one is {GENERATION_MAX}"
            )));
        }
        // A generation that nothing was put into may still be given its base.
        let unused = generation == log.generation() && log.view().durable == log.first();
        if generation <= log.generation() && !unused {
            return Err(Error::Ended { generation, current: log.generation() });
        }
        self.draft(log, generation)
    }

    /// A directory for what is received of a log before it counts. It goes when dropped, and when the log is opened. Blocks.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn stage(&self, log: &Log) -> Result<Draft, Error> {
        self.draft(log, log.generation())
    }

    fn draft(&self, log: &Log, generation: Generation) -> Result<Draft, Error> {
        let failed = |error: io::Error| Error::Unavailable(format!("cannot stage what is received: {error}"));
        let parent = self.logs_repo.dir(log.name()).map_err(failed)?;
        let name = format!("{}.{}{DRAFT}", name::generation(generation), uuid::Uuid::new_v4());
        let dir = parent.create_dir(&name).map_err(failed)?;
        Ok(Draft { parent, name, dir, generation })
    }

    /// Ends the current generation of a log and starts the one that was drafted. `make` is called when the log takes
    /// nothing more, to complete the draft's base, and returns what the new generation notes of its source; when it fails the
    /// log goes on as it was. Appends to the old generation end with [`Error::Ended`]. After Ok the new one survives power loss. Blocks.
    ///
    /// # Errors
    /// When another generation was started meanwhile, the log cannot be synced, or the files cannot be made. The log goes
    /// on in its generation then, unless it is not known which one a restart would find: it has failed in that case, since
    /// what it took might be lost, until [`load_again`](Self::load_again) has found out.
    pub fn start_generation(
        &self,
        log: &Arc<Log>,
        draft: &Draft,
        make: impl FnOnce(&Arc<Log>, &Arc<dyn Repo>) -> Result<Option<LogSource>, Error>,
    ) -> Result<Arc<Log>, Error> {
        self.exclusively(log.name(), || {
            let held = self.get(log.name())?;
            if !Arc::ptr_eq(&held, log) {
                return Err(Error::Ended { generation: log.generation(), current: held.generation() });
            }
            self.close(log, draft.generation)?;
            let unused = || match draft.generation == log.generation() && log.view().durable > log.first() {
                // It was put to use while its other base was received.
                true => Err(Error::Ended { generation: draft.generation, current: log.generation() }),
                false => Ok(()),
            };
            let made = unused().and_then(|()| make(log, &draft.dir)).map_err(NotBegun::Certain);
            match made.and_then(|source| self.commit(log, draft, source)) {
                Ok(new) => self.succeed(log, new),
                Err(NotBegun::Certain(error)) => {
                    log.publish(|view| view.state = State::Ok);
                    Err(error)
                }
                Err(NotBegun::Unknown(cause)) => {
                    log::error!("{} has failed: {cause}", log.name());
                    self.counters().count(&self.counters().failures, log.name());
                    log.unload();
                    log.publish(|view| view.state = State::Failed(cause.clone()));
                    Err(Error::Failed(cause))
                }
            }
        })
    }

    /// Puts the new generation in the place of the old one.
    fn succeed(&self, old: &Arc<Log>, new: Log) -> Result<Arc<Log>, Error> {
        if new.generation() > old.generation() {
            let key = (old.id().to_owned(), old.generation());
            self.older.lock().unwrap_or_else(PoisonError::into_inner).insert(key, old.clone());
        }
        self.start(new);
        // Whoever waits for what comes next finds it from here on.
        old.publish(|_| ());
        self.get(old.name())
    }

    /// Makes a complete draft the current generation.
    fn commit(&self, log: &Arc<Log>, draft: &Draft, source: Option<LogSource>) -> Result<Log, NotBegun> {
        let Draft { parent, name: draft_name, dir, generation } = draft;
        let text = |error: io::Error| format!("cannot start generation {generation}: {error}");
        let failed = |error: io::Error| NotBegun::Certain(Error::Unavailable(text(error)));
        let unknown = |error: io::Error| NotBegun::Unknown(text(error).into());
        dir.sync_dir().map_err(failed)?;
        let base = BaseReader::open(&**dir).map_err(failed)?.and_then(|base| base.id());
        let writers = Writers { source, ..log.writers() };
        let begun = Meta { generation: *generation, base, writers, ..log.described() };
        let meta = match *generation == log.generation() {
            true => begun,
            false => {
                // Before `log.json` says so, and in a directory that is none of the log before.
                DurableMark::open(&**dir, log.meta().first).map_err(failed)?;
                dir.sync_dir().map_err(failed)?;
                Meta { durable_mark: true, ..begun }
            }
        };
        let repo = log.repo();
        if *generation == log.generation() {
            let held = same(&**dir, &**repo).map_err(failed)?;
            if held == Held::Another {
                return Err(NotBegun::Certain(Error::OtherBase { generation: *generation }));
            }
            if held == Held::Same {
                replace(&**parent, META, &described(&meta).map_err(failed)?).map_err(failed)?;
                return Ok(self.log(log.name(), meta, repo.clone()));
            }
            let copied = copy_base(&**dir, repo.clone()).inspect_err(|_| BaseBuilder::discard(&**repo));
            let copied = copied.map_err(failed)?;
            // While the base is replaced `log.json` names none: a crash leaves the one or the other.
            if log.base_facts().id.is_some() {
                let meta = Meta { base: None, ..log.described() };
                replace(&**parent, META, &described(&meta).map_err(failed)?).map_err(failed)?;
            }
            if let Err(error) = copied.publish() {
                // The old base or the new one: which one a restart finds shows now, or is not known.
                recover(&**repo).map_err(unknown)?;
                if same(&**dir, &**repo).map_err(unknown)? != Held::Same {
                    return Err(failed(error));
                }
            }
            // Otherwise the next start notes it.
            if let Err(error) = described(&meta).and_then(|text| replace(&**parent, META, &text)) {
                log::warn!("{}: {META} does not name the base yet: {error}", log.name());
            }
            return Ok(self.log(log.name(), meta, repo.clone()));
        }
        let wanted = name::generation(*generation);
        let prepare = || -> io::Result<_> {
            remove_after(&**parent, log.generation())?;
            parent.rename(draft_name, &wanted)?;
            parent.sync_dir()?;
            Ok((parent.dir(&wanted)?, described(&meta)?))
        };
        let (repo, json) = prepare().map_err(failed)?;
        replace(&**parent, META, &json).map_err(|error| {
            // Where it still says the old generation it was not touched, and a restart finds that too.
            let found = read_small(&**parent, META, META_BYTES_MAX).ok().flatten();
            let found = found.and_then(|found| serde_json::from_slice::<Meta>(&found).ok());
            let same = found.is_some_and(|found| found.generation == log.generation());
            if same { failed(error) } else { unknown(error) }
        })?;
        Ok(self.log(log.name(), meta, repo))
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
        let (mut held_back, mut removed) = (false, Vec::new());
        let mut older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        let found = dir.list()?.into_iter();
        let found = found.filter_map(|found| name::parse_generation(&found).map(|generation| (found, generation)));
        for (found, generation) in found.filter(|(_, generation)| generation.0 <= last) {
            let key = (log.id().to_owned(), generation);
            // Whoever reads a generation holds it.
            if older.get(&key).is_some_and(|held| Arc::strong_count(held) > 1) {
                log::debug!("{}: generation {generation} is being read and stays for now", log.name());
                held_back = true;
                continue;
            }
            // Under its own name it is whole, or not there: half of it would be another database.
            let away = format!("{found}.{}{DRAFT}", uuid::Uuid::new_v4());
            dir.rename(&found, &away)?;
            older.remove(&key);
            removed.push((away, generation));
        }
        drop(older);
        let mut all = self.held_back.lock().unwrap_or_else(PoisonError::into_inner);
        if held_back {
            all.insert(log.name().to_owned());
        } else {
            all.remove(log.name());
        }
        drop(all);
        if removed.is_empty() {
            return Ok(());
        }
        dir.sync_dir()?;
        for (away, generation) in removed {
            remove_dir(&*dir, &away)?;
            log::info!("log {}: generation {generation} was deleted, {keep} are kept", log.name());
            self.counters().generations_deleted.inc();
        }
        Ok(dir.sync_dir()?)
    }
}

/// Refuses a log that has no generations.
pub(super) fn check_wal(log: &Log) -> Result<(), Error> {
    log.readable()?;
    if log.format() == LogFormat::Wal {
        return Ok(());
    }
    Err(Error::Format(format!("log {:?} is a {}: only a wal has generations", log.name(), log.format())))
}

/// Why a generation did not begin.
enum NotBegun {
    /// The old one is the current one, whatever happens.
    Certain(Error),
    /// Which one a restart finds is not known.
    Unknown(Arc<str>),
}

/// The base of a log, compared with the one that it is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// None, or the one that a log is created with.
    Unset,
    Same,
    Another,
}

fn described(meta: &Meta) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_string_pretty(meta)?.into_bytes())
}

/// Compares the base in `draft` with that of the log in `repo`.
fn same(draft: &dyn Repo, repo: &dyn Repo) -> io::Result<Held> {
    let Some(held) = BaseReader::open(repo)? else {
        return Ok(Held::Unset);
    };
    let offered = BaseReader::open(draft)?.ok_or(io::ErrorKind::NotFound)?;
    let unset = database::empty(LIBSQL_PAGE_SIZE);
    let (mut ours, mut theirs, mut at) = (vec![0; READ_BLOCK], vec![0; READ_BLOCK], 0);
    loop {
        let (held_bytes, offered_bytes) = (held.read_at(&mut ours, at)?, offered.read_at(&mut theirs, at)?);
        if ours[..held_bytes] != theirs[..offered_bytes] {
            return Ok(if at == 0 && ours[..held_bytes] == unset[..] { Held::Unset } else { Held::Another });
        }
        if held_bytes == 0 {
            return Ok(Held::Same);
        }
        at += held_bytes as u64;
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

/// Removes what a crash left of generations that never began: drafts, and directories after the current one.
///
/// # Errors
/// When they cannot be removed, or one holds frames, which none that did not begin does.
pub(super) fn remove_unbegun(dir: &dyn Repo, current: Generation) -> io::Result<()> {
    for found in dir.list()?.into_iter().filter(|found| found.ends_with(DRAFT)) {
        remove_dir(dir, &found)?;
    }
    remove_after(dir, current)
}

/// Removes directories of generations after the current one.
pub(super) fn remove_after(dir: &dyn Repo, current: Generation) -> io::Result<()> {
    let unbegun = |found: &String| name::parse_generation(found).is_some_and(|generation| generation > current);
    for found in dir.list()?.into_iter().filter(unbegun) {
        if dir.dir(&found)?.list()?.iter().any(|file| name::parse_segment(file).is_some()) {
            let text = format!("{found} is after the current generation {current}, but holds frames");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        remove_dir(dir, &found)?;
    }
    Ok(())
}

/// Copies the base of `from` to `to`, as a base that has not got its name.
fn copy_base(from: &dyn Repo, to: Arc<dyn Repo>) -> io::Result<FinishedBase> {
    let source = BaseReader::open(from)?.ok_or(io::ErrorKind::NotFound)?;
    let mut copy = BaseBuilder::create(to)?;
    loop {
        let mut block = vec![0; READ_BLOCK];
        let count = source.read_at(&mut block, copy.bytes())?;
        if count == 0 {
            return copy.finish(!source.is_unproven());
        }
        block.truncate(count);
        copy.write(block)?;
    }
}

pub(super) fn remove_dir(parent: &dyn Repo, found: &str) -> io::Result<()> {
    let dir = parent.dir(found)?;
    for file in dir.list()? {
        dir.remove(&file)?;
    }
    parent.remove(found)
}
