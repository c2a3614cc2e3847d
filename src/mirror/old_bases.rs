//! Bases that have no checksums: of logs that an earlier version of the program wrote, and those whose `base.sums` was lost. Their
//! sums are made in the background.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::Error;
use super::log::{Log, State};
use super::registry::Registry;
use crate::format::LogFormat;
use crate::format::name::{self, BASE, BASE_SUMS};
use crate::limits::{BASE_SUMS_RATE, READ_BLOCK};
use crate::offset::Generation;
use crate::segment::base::{BaseDigest, BaseFault, BaseId, BaseReader, KnownBase, SumsWriter, publish_sums};

impl Registry {
    /// Makes the checksums of bases that have none, at a bounded rate. Where `log.json` says which base it is, that is compared
    /// and counts; otherwise the sums are marked as unproven. To be called now and then. Blocks.
    pub fn make_base_sums(&self) {
        for log in self.logs() {
            let is_wal = log.is_described() && log.format() == LogFormat::Wal;
            if !is_wal || log.view().state != State::Ok {
                continue;
            }
            let mut wanted = self.older_without_sums(&log);
            wanted.extend(log.base_facts().lacks_sums.then(|| log.clone()));
            for log in wanted {
                if *self.stopping().borrow() {
                    return;
                }
                self.make_and_report(&log);
            }
        }
    }

    fn make_and_report(&self, log: &Arc<Log>) {
        let place = log.repo().place();
        match self.make_sums_of(log) {
            Ok(Some(id)) => {
                let unproven = log.base_facts().unproven;
                if unproven {
                    log::warn!(
                        "{}: {place}/{BASE_SUMS} was made: the base has the SHA-256 {}, and is unproven, since nothing says what it \
                         was before",
                        log.name(),
                        id.sha256
                    );
                } else {
                    log::info!("{}: {place}/{BASE_SUMS} was made again", log.name());
                }
                if log.view().state == State::Ok {
                    self.note_mark(log);
                }
            }
            Ok(None) => {}
            Err(error) => log::warn!("{}: {place}/{BASE_SUMS} could not be made yet: {error}", log.name()),
        }
    }

    /// Generations of a log that have ended and whose bases have no sums. It is asked once, as long as that works.
    fn older_without_sums(&self, log: &Log) -> Vec<Arc<Log>> {
        if std::mem::replace(&mut log.base_facts().older_seen, true) {
            return Vec::new();
        }
        let listed = || -> io::Result<Vec<Generation>> {
            let dir = log.dir()?;
            let generations = dir.list()?.into_iter().filter_map(|found| name::parse_generation(&found));
            let older = generations.filter(|generation| *generation < log.generation());
            let lacks_sums = |generation: &Generation| {
                let names = dir.dir(&name::generation(*generation)).and_then(|dir| dir.list()).unwrap_or_default();
                let has = |wanted: &str| names.iter().any(|file| file == wanted);
                has(BASE) && !has(BASE_SUMS)
            };
            Ok(older.filter(lacks_sums).collect())
        };
        match listed() {
            Ok(older) => older.into_iter().filter_map(|it| self.generation(log.name(), Some(it)).ok()).collect(),
            Err(error) => {
                log::debug!("{}: its generations cannot be listed: {error}", log.name());
                log.base_facts().older_seen = false;
                Vec::new()
            }
        }
    }

    /// The base whose sums were made; `None` when the service stops, or the log went on without it meanwhile.
    fn make_sums_of(&self, log: &Arc<Log>) -> Result<Option<BaseId>, Error> {
        let (repo, known) = (log.repo(), log.base_facts().id);
        let modified = repo.open(BASE)?.plain().and_then(|file| file.metadata().ok()?.modified().ok());
        if log.base_facts().summed == Some(modified) {
            // It is as wrong as it was.
            return Ok(None);
        }
        let failed = |error: io::Error| log.base_error(error);
        let reader = BaseReader::open_known(&**repo, &KnownBase::required(known)).map_err(failed)?;
        let Some(reader) = reader.filter(|reader| reader.id().is_none()) else {
            return Ok(None);
        };
        let made = self.read_slowly(log, &reader, known.map(|id| id.sha256));
        let finished = match made {
            Ok(finished) => finished,
            Err(error) => {
                SumsWriter::discard(&**repo);
                log.base_facts().summed = BaseFault::of(&error).map(|_| modified);
                return Err(failed(error));
            }
        };
        let Some((id, proven)) = finished else {
            SumsWriter::discard(&**repo);
            return Ok(None);
        };
        self.exclusively(log.name(), || {
            // One that has ended keeps its base; that of the current one may be another by now.
            let is_current =
                log.view().state != State::Ok || self.get(log.name()).is_ok_and(|current| Arc::ptr_eq(&current, log));
            let lacks_sums = BaseReader::open(&**repo)?.is_some_and(|reader| reader.id().is_none());
            if !is_current || !lacks_sums {
                SumsWriter::discard(&**repo);
                return Ok(None);
            }
            publish_sums(&**repo)?;
            let mut facts = log.base_facts();
            (facts.id, facts.lacks_sums, facts.unproven) = (Some(id), false, !proven);
            (facts.fault, facts.summed) = (None, None);
            Ok(Some(id))
        })
    }

    /// Sums of the base, not published yet, and whether it is the one that `known` says; `None` when the service stops.
    fn read_slowly(
        &self,
        log: &Log,
        reader: &BaseReader,
        known: Option<BaseDigest>,
    ) -> io::Result<Option<(BaseId, bool)>> {
        let mut sums = SumsWriter::create(&**log.repo())?;
        let (mut block, mut at, since) = (vec![0; READ_BLOCK], 0, Instant::now());
        loop {
            let count = reader.read_at(&mut block, at)?;
            if count == 0 {
                break;
            }
            sums.push(&block[..count])?;
            at += count as u64;
            let due = Duration::from_secs_f64(at as f64 / BASE_SUMS_RATE as f64);
            std::thread::sleep(due.saturating_sub(since.elapsed()));
            if *self.stopping().borrow() {
                return Ok(None);
            }
        }
        let id = sums.finish(known.is_some())?;
        match known {
            Some(expected) if expected != id.sha256 => {
                Err(BaseFault::Digest { place: log.repo().place(), found: id.sha256, expected }.into())
            }
            known => Ok(Some((id, known.is_some()))),
        }
    }
}
