//! Bases that have no checksums: of logs that an earlier version of the program wrote, and those whose `base.sums` was lost. Their
//! sums are made in the background.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::Error;
use super::log::{Log, State};
use super::registry::Registry;
use crate::format::name::{BASE, BASE_SUMS};
use crate::limits::{BASE_SUMS_RATE, READ_BLOCK};
use crate::segment::base::{BaseDigest, BaseFault, BaseId, BaseReader, KnownBase, SumsWriter, publish_sums};

impl Registry {
    /// Makes the checksums of bases that have none, at a bounded rate. Where `log.json` says which base it is, that is compared
    /// and counts; otherwise the sums are marked as unproven. To be called now and then. Blocks.
    pub fn make_base_sums(&self) {
        for log in self.logs() {
            let wanted = log.base_facts().lacks_sums && log.view().state == State::Ok;
            if !wanted || *self.stopping().borrow() {
                continue;
            }
            match self.make_sums_of(&log) {
                Ok(Some(id)) => {
                    let place = log.repo().place();
                    match log.base_facts().unproven {
                        true => log::warn!(
                            "{}: checksums of {place}/{BASE} were made: SHA-256 {}; it is unproven, since nothing says what it was \
                             before",
                            log.name(),
                            id.sha256
                        ),
                        false => log::info!("{}: {place}/{BASE_SUMS} was made again", log.name()),
                    }
                    self.note_mark(&log);
                }
                Ok(None) => {}
                Err(error) => log::warn!("{}: no checksums of its base could be made yet: {error}", log.name()),
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
            let is_current = self.get(log.name()).is_ok_and(|current| Arc::ptr_eq(&current, log));
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
