//! [`LogBase`]: the base of a generation of a log, and what is known of it. A log whose base has a fault is damaged, and goes on
//! all the same: its frames are sound, and taken and served. What needs the base is refused until it is right.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::base_fault;
use super::budget::Budget;
use super::error::Error;
use super::log::{Log, State};
use super::registry::Registry;
use crate::api::Damage;
use crate::format::database::HEADER_LEN;
use crate::format::{LogFormat, database, name};
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::offset::{BytePos, Offset};
use crate::repo::is_out_of_files;
use crate::segment::base::{BaseDigest, BaseFault, BaseId, BasePages, BaseReader, KnownBase, page_size, seen};

/// What is known of a base.
#[derive(Clone, Debug, Default)]
pub(super) struct BaseFacts {
    /// Which one it is: by `log.json`, or by its sums.
    pub(super) id: Option<BaseId>,
    /// Whether `log.json` says so.
    pub(super) noted: bool,
    /// Whether it has no sums, of what was opened.
    pub(super) lacks_sums: bool,
    /// Whether nothing vouches for it.
    pub(super) unproven: bool,
    /// What was wrong with it when it was read last. What is kept of it on disk changes only with it, under the same lock.
    pub(super) fault: Option<BaseFault>,
    /// Whether what an earlier run of the service found wrong was read.
    pub(super) recalled: bool,
    /// Whether the sums of the generations before it were made.
    pub(super) older_seen: bool,
    /// When the file was modified that was read last for its sums, which came out wrong.
    pub(super) summed: Option<Option<SystemTime>>,
}

impl Log {
    /// The database at the start of the generation, each block of which is checked when it is read. Blocks for small reads.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is missing, or not the one that it should be, or still has the fault that it had.
    pub fn base(self: &Arc<Self>) -> Result<LogBase, Error> {
        if let Some(what) = self.awaited_base() {
            return Err(Error::Unavailable(what));
        }
        let reader = self.open_base().map_err(|error| self.base_error(error))?;
        Ok(LogBase { reader, log: self.clone() })
    }

    /// That frames with pages of `bytes` bytes may be the first of the generation: the base has such pages too, or is the one that
    /// a log is created with. A base that is damaged says nothing; nor does one whose pages have no size, as an encrypted one.
    /// Blocks for small reads.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub(super) fn check_page_size(self: &Arc<Self>, bytes: u32) -> Result<(), Error> {
        if self.view().durable > self.first() {
            return Ok(());
        }
        let Ok(base) = self.base() else { return Ok(()) };
        let mut first = vec![0; LIBSQL_PAGE_SIZE as usize];
        let Ok(count) = base.read_at(&mut first, 0) else { return Ok(()) };
        if base.bytes() == first.len() as u64 && first == database::empty(LIBSQL_PAGE_SIZE) {
            return Ok(());
        }
        match page_size(&first[..count]).filter(|of_base| *of_base != bytes) {
            None => Ok(()),
            Some(of_base) => Err(Error::Format(format!(
                "the frames have pages of {bytes} bytes, and the base of generation {} of this log has pages of {of_base} bytes: \
                 send them to another log, or start a generation from their own database",
                self.generation()
            ))),
        }
    }

    /// The digest of the base, if something has asked for it already.
    #[must_use]
    pub fn known_base_digest(&self) -> Option<BaseDigest> {
        self.base_facts().id.map(|id| id.sha256)
    }

    /// The digest of the base, where it is known. Blocks for small reads the first time.
    #[must_use]
    pub fn base_digest(self: &Arc<Self>) -> Option<BaseDigest> {
        self.base_id().map(|id| id.sha256)
    }

    /// The same with its length. Blocks for small reads the first time.
    pub(crate) fn base_id(self: &Arc<Self>) -> Option<BaseId> {
        let BaseFacts { id, fault, lacks_sums, .. } = self.base_facts().clone();
        // Sums that are made of it, or put back, are found when they are checked for.
        if id.is_some() || fault.is_some() || lacks_sums || self.awaited_base().is_some() {
            return id;
        }
        self.open_base().ok()?.id()
    }

    /// Opens the base, and learns of it what its files say.
    fn open_base(&self) -> io::Result<BaseReader> {
        let BaseFacts { id, fault, .. } = self.base_facts().clone();
        let reader = BaseReader::open_known(&**self.repo(), &KnownBase::required(id))?;
        let reader = reader.ok_or_else(|| BaseFault::Missing { place: self.repo().place() })?;
        // The other blocks are checked when they are read.
        if let Some(fault) = &fault {
            reader.check_again(fault)?;
        }
        // Another reader may have found another fault meanwhile.
        let mut facts = self.base_facts();
        if fault.is_some() && facts.fault == fault {
            base_fault::forget(&**self.repo());
            facts.fault = None;
            log::info!("{}: its base is right again", self.name());
        }
        facts.id = reader.id().or(facts.id);
        (facts.lacks_sums, facts.unproven) = (reader.id().is_none(), reader.is_unproven());
        Ok(reader)
    }

    /// Checks that the base is there, with its length, and whether a fault that it had is gone. If it has one, the status says so
    /// from here on. Blocks.
    pub(super) fn check_base(&self) {
        let is_in_use = match self.view().state {
            State::Ok => true,
            // Of an older generation that is still there.
            State::Ended(next) => next > self.generation() && self.base_facts().id.is_none(),
            _ => false,
        };
        if self.format() != LogFormat::Wal || !self.is_described() || !is_in_use {
            return;
        }
        {
            let mut facts = self.base_facts();
            if !std::mem::replace(&mut facts.recalled, true) {
                facts.fault = facts.fault.take().or_else(|| base_fault::kept(&**self.repo()));
            }
        }
        if let Err(error) = self.open_base()
            && !is_out_of_files(&error)
            // A directory that is away is another matter.
            && self.repo().list().is_ok_and(|names| !names.is_empty())
        {
            let _reported = self.base_error(error);
        }
    }

    /// The error for a base that cannot be read. If the base is at fault, the log is damaged until that is gone.
    pub(super) fn base_error(&self, error: io::Error) -> Error {
        let Some(fault) = BaseFault::of(&error) else {
            return error.into();
        };
        // Whoever reads while its first base takes the place of the one it was created with finds parts of both.
        if matches!(self.view().state, State::Ended(next) if next == self.generation()) {
            return Error::Unavailable("the log was given another base just now: try again".into());
        }
        let cause = base_advice(fault);
        let mut facts = self.base_facts();
        if facts.fault.replace(fault.clone()).as_ref() != Some(fault) {
            log::error!("{}: {cause}", self.name());
            base_fault::keep(&**self.repo(), fault);
        }
        Error::Damaged(cause.into())
    }

    /// The byte where what is wrong with its base was found.
    #[cfg(feature = "turso")]
    pub(crate) fn base_fault_at(&self) -> Option<u64> {
        self.base_facts().fault.as_ref().map(BaseFault::at)
    }

    /// What is wrong with its base, and what to do; none while nothing is known to be.
    #[must_use]
    pub fn base_fault(&self) -> Option<String> {
        self.base_facts().fault.as_ref().map(base_advice)
    }
}

/// A fault of a base, and what to do.
pub(super) fn base_advice(fault: &BaseFault) -> String {
    let what = match fault {
        BaseFault::Sums { .. } => "put base.sums back, or remove it, and it is made again",
        _ => "put base.db back from a backup or another mirror",
    };
    format!(
        "{fault}: the frames of the log are taken and served, the database is not; {what}, or mirror the source into a new log"
    )
}

/// Where that is.
pub(super) fn damage(fault: &BaseFault) -> Damage {
    let file = if matches!(fault, BaseFault::Sums { .. }) { name::BASE_SUMS } else { name::BASE };
    Damage { segment: file.to_owned(), offset: Offset::ZERO, byte: BytePos(fault.at()) }
}

/// The base of a log's generation. Holds back the deletion of that.
#[derive(Debug)]
pub struct LogBase {
    reader: BaseReader,
    log: Arc<Log>,
}

impl LogBase {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.reader.bytes()
    }

    /// Which base it is, by its sums.
    #[must_use]
    pub fn id(&self) -> Option<BaseId> {
        self.reader.id()
    }

    /// Whether nothing vouches for it.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        self.reader.is_unproven()
    }

    /// Reads into `buf` from `at`; fewer bytes than asked for only at the end. Blocks.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a block that is not right, which damages the log.
    pub fn read_at(&self, buf: &mut [u8], at: u64) -> Result<usize, Error> {
        self.reader.read_at(buf, at).map_err(|error| self.log.base_error(error))
    }

    /// Like [`read_at`](Self::read_at) for whole blocks, but never waits for a disk: `None` when it would have to.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_cached(&self, buf: &mut [u8], at: u64) -> Result<Option<usize>, Error> {
        self.reader.read_cached(buf, at).map_err(|error| self.log.base_error(error))
    }
}

/// The database that SQLite sees in a base: without bytes after its last page, with that page whole, and with a header that
/// says how many pages there are. For those who believe that field, whatever the counters beside it say.
#[derive(Debug)]
pub struct SeenBase {
    base: LogBase,
    /// None for what is no database that can be looked into, as an encrypted one.
    seen: Option<BasePages>,
    page_size: Option<u32>,
    bytes: u64,
    /// Bytes of all pages that can be read: a later state may have more than this one.
    held: u64,
}

impl SeenBase {
    /// Of the base of a log's generation. Blocks for a small read.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not right, or cut.
    pub fn open(log: &Arc<Log>) -> Result<SeenBase, Error> {
        let base = log.base()?;
        let mut head = [0; HEADER_LEN];
        let count = base.read_at(&mut head, 0)?;
        let seen = seen(&head[..count], base.bytes()).map_err(|text| Error::Damaged(text.into()))?;
        let (page_size, bytes) = (page_size(&head[..count]), seen.map_or(base.bytes(), |seen| seen.bytes()));
        let held = seen.map_or(bytes, |seen| base.bytes().next_multiple_of(seen.page_size.into()));
        Ok(SeenBase { base, seen, page_size, bytes, held })
    }

    /// The length of the database.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the pages that can be read. Those after the database are of a later state, which is larger and has not written
    /// them.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Bytes of its pages, as far as it says so.
    #[must_use]
    pub fn page_size(&self) -> Option<u32> {
        self.page_size
    }

    /// Reads into `buf` from `at`; fewer bytes than asked for only at the end. Blocks.
    ///
    /// # Errors
    /// As [`LogBase::read_at`].
    pub fn read_at(&self, buf: &mut [u8], at: u64) -> Result<usize, Error> {
        let wanted = buf.len().min(usize::try_from(self.held.saturating_sub(at)).unwrap_or(usize::MAX));
        let buf = &mut buf[..wanted];
        let count = self.base.read_at(buf, at)?;
        buf[count..].fill(0);
        self.state(buf, at);
        Ok(wanted)
    }

    /// Like [`read_at`](Self::read_at) for whole blocks, but never waits for a disk: `None` when it would have to.
    ///
    /// # Errors
    /// As [`LogBase::read_at`].
    pub fn read_cached(&self, buf: &mut [u8], at: u64) -> Result<Option<usize>, Error> {
        if at.saturating_add(buf.len() as u64) > self.base.bytes() {
            return Ok(None);
        }
        let count = self.base.read_cached(buf, at)?;
        self.state(buf, at);
        Ok(count)
    }

    fn state(&self, buf: &mut [u8], at: u64) {
        if let Some(seen) = &self.seen {
            seen.state(buf, at);
        }
    }
}

impl Registry {
    /// The bytes of the base of a log's generation.
    ///
    /// # Errors
    /// [`Error::Format`] for a log without bases, [`Error::Damaged`] for a base that was found to be damaged, and when it cannot
    /// be opened.
    pub fn base(&self, log: &Arc<Log>) -> Result<BaseFeed, Error> {
        if log.format() != LogFormat::Wal {
            return Err(Error::Format(format!(
                "log {:?} is a {}: only a wal log has a base",
                log.name(),
                log.format()
            )));
        }
        Ok(BaseFeed { base: Arc::new(log.base()?), at: 0, budget: self.budget.clone() })
    }
}

/// The bytes of a base, each block of which is checked before it is handed out.
#[derive(Debug)]
pub struct BaseFeed {
    base: Arc<LogBase>,
    at: u64,
    budget: Arc<Budget>,
}

impl BaseFeed {
    /// The base.
    #[must_use]
    pub fn base(&self) -> &LogBase {
        &self.base
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read, or a block of it is not right.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let (base, at, bytes) = (self.base.clone(), self.at, self.base.bytes());
        if at >= bytes {
            return Ok(None);
        }
        let mut block = self.budget.block(bytes - at).await?;
        let read = tokio::task::spawn_blocking(move || Ok::<_, Error>((base.read_at(block.space(), at)?, block)));
        let (count, block) = read.await.map_err(|_| Error::Unavailable("a read was interrupted".into()))??;
        if count == 0 {
            return Err(Error::Damaged(format!("the base ends at byte {at} of {bytes}").into()));
        }
        self.at += count as u64;
        Ok(Some(block.filled(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::name::BASE;
    use crate::mirror::log::tests::log_in;
    use crate::repo::{MemRepo, replace};
    use crate::segment::base::{SumsWriter, publish_sums};

    #[test]
    fn a_base_without_sums_is_not_opened_again_for_a_digest_that_it_does_not_say() {
        let (repo, base) = (MemRepo::default(), database::empty(LIBSQL_PAGE_SIZE));
        replace(&repo, BASE, &base).expect("written");
        let log = log_in(repo.clone(), LogFormat::Wal);
        assert_eq!(log.base_digest(), None);
        let mut sums = SumsWriter::create(&repo).expect("sums");
        sums.push(&base).expect("summed");
        let id = sums.finish(true).expect("sums");
        publish_sums(&repo).expect("published");
        assert_eq!(log.base_digest(), None, "nothing was opened");
        assert_eq!(log.base().expect("a base").id(), Some(id));
        assert_eq!(log.base_digest(), Some(id.sha256));
    }
}
