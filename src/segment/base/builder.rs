//! [`BaseBuilder`]: writing a base with its sums, and what a crash leaves of that.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;

use super::fault::BaseFault;
use super::id::BaseId;
use super::reader::BaseReader;
use super::summing::Summing;
use super::sums::{SumsWriter, publish, remove, sum_file};
use crate::format::name::{BASE, BASE_DRAFT};
use crate::repo::{Repo, RepoFile};

/// A base being written, with its sums. Until it is published there is none of it, or the one before.
#[derive(Debug)]
pub struct BaseBuilder {
    repo: Arc<dyn Repo>,
    file: Arc<dyn RepoFile>,
    sums: Summing,
    bytes: u64,
}

impl BaseBuilder {
    /// Of a base in `repo` without a byte yet. What an earlier attempt left is replaced.
    ///
    /// # Errors
    /// As the repo says.
    pub fn create(repo: Arc<dyn Repo>) -> io::Result<BaseBuilder> {
        remove(&*repo, BASE_DRAFT)?;
        let file = repo.create(BASE_DRAFT)?;
        let sums = Summing::start(SumsWriter::create(&*repo)?)?;
        Ok(BaseBuilder { repo, file, sums, bytes: 0 })
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file that it is written to.
    #[must_use]
    pub fn file(&self) -> &Arc<dyn RepoFile> {
        &self.file
    }

    /// The next bytes. Blocks.
    ///
    /// # Errors
    /// As the repo says.
    pub fn write(&mut self, bytes: impl Into<Bytes>) -> io::Result<()> {
        let bytes = bytes.into();
        self.file.write_at(&mut [IoSlice::new(&bytes)], self.bytes)?;
        self.bytes += bytes.len() as u64;
        self.sums.push(bytes)
    }

    /// The base is whole; `proven` says that its bytes are known to be right. Blocks.
    ///
    /// # Errors
    /// As the repo says.
    pub fn finish(self, proven: bool) -> io::Result<FinishedBase> {
        let BaseBuilder { repo, file, sums, .. } = self;
        file.sync()?;
        let id = sums.finish()?.finish(proven)?;
        Ok(FinishedBase { repo, id })
    }

    /// Finishes and [publishes](FinishedBase::publish) it.
    ///
    /// # Errors
    /// As the repo says.
    pub fn publish(self, proven: bool) -> io::Result<BaseId> {
        let finished = self.finish(proven)?;
        finished.publish()?;
        Ok(finished.id)
    }

    /// Removes what there is of a base that is not wanted any more.
    pub fn discard(repo: &dyn Repo) {
        if let Err(error) = remove(repo, BASE_DRAFT) {
            log::warn!("{}/{BASE_DRAFT} is left: {error}", repo.place());
        }
        SumsWriter::discard(repo);
    }
}

/// A base that is whole and synced with its sums, and has not got its name.
#[derive(Debug)]
pub struct FinishedBase {
    repo: Arc<dyn Repo>,
    id: BaseId,
}

impl FinishedBase {
    /// Of the draft of a base in `repo`, open as `file`, which is read for its sums. Blocks.
    ///
    /// # Errors
    /// As the repo says.
    pub fn of_draft(repo: Arc<dyn Repo>, file: &dyn RepoFile) -> io::Result<FinishedBase> {
        file.sync()?;
        let id = sum_file(&*repo, file, true)?;
        Ok(FinishedBase { repo, id })
    }

    /// Which base it is.
    #[must_use]
    pub fn id(&self) -> &BaseId {
        &self.id
    }

    /// Gives it its name. After Ok it survives power loss; see [`publish`] for what an error leaves.
    ///
    /// # Errors
    /// As the repo says.
    pub fn publish(&self) -> io::Result<()> {
        publish(&*self.repo, BASE_DRAFT)
    }
}

/// Makes these bytes the base of `repo`. After Ok it survives power loss. Blocks.
///
/// # Errors
/// As the repo says.
pub fn store(repo: Arc<dyn Repo>, bytes: &[u8]) -> io::Result<BaseId> {
    let mut base = BaseBuilder::create(repo)?;
    base.write(bytes.to_vec())?;
    base.publish(true)
}

/// Ends a [`publish`] that a crash interrupted: a draft that the sums are of becomes the base, any other one is removed. To be
/// called by the one writer of `repo`. Blocks, for as long as the draft is read.
///
/// # Errors
/// As the repo says.
pub fn recover(repo: &dyn Repo) -> io::Result<()> {
    match repo.open(BASE_DRAFT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        draft => drop(draft?),
    }
    let is_of_sums = match BaseReader::open_as(repo, BASE_DRAFT) {
        Ok(Some(draft)) if draft.id().is_some() => draft.check_all(|_| ())?.1.is_empty(),
        Ok(_) => false,
        Err(error) if BaseFault::of(&error).is_some() => false,
        Err(error) => return Err(error),
    };
    if is_of_sums {
        log::info!("{}: {BASE_DRAFT} is whole and becomes {BASE}", repo.place());
        repo.rename(BASE_DRAFT, BASE)?;
    } else {
        repo.remove(BASE_DRAFT)?;
    }
    repo.sync_dir()
}
