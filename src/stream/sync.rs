//! Syncs of a log: what one covers, done on any thread, one at a time, and none after one that failed.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::format::Commit;
use crate::offset::{BytePos, Epoch, Offset};
use crate::repo::{Repo, RepoFile};

/// Lets through the syncs of one log.
///
/// The kernel reports a failed write-back to one sync only. Were two under way at once, the other could succeed and vouch
/// for bytes that are lost; so they run one after the other, and after a failure none does.
#[derive(Clone, Debug, Default)]
pub(super) struct SyncLatch(Arc<Mutex<Option<String>>>);

impl SyncLatch {
    /// Syncs `file`, which must have its name in `place` if that is given. Blocks while another sync of the log is under way.
    pub(super) fn sync(&self, file: &dyn RepoFile, place: Option<&(Arc<dyn Repo>, String)>) -> io::Result<()> {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = &*failed {
            return Err(io::Error::other(cause.clone()));
        }
        let synced = file.sync().and_then(|()| match place {
            Some((repo, name)) if !repo.is_named(name, file)? => {
                let text = format!("{}/{name} was moved away or replaced while it was written", repo.place());
                Err(io::Error::new(io::ErrorKind::NotFound, text))
            }
            _ => Ok(()),
        });
        synced.inspect_err(|error| *failed = Some(error.to_string()))
    }
}

/// A place in a log up to which something holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frontier {
    pub(crate) next: Offset,
    pub(crate) epoch: Epoch,
    pub(crate) last: Option<Commit>,
    /// Start of the open segment and the byte up to which it holds.
    pub(crate) segment: Option<(Offset, BytePos)>,
}

/// A sync to be done, on any thread: see [`StreamWriter::begin_sync`](super::StreamWriter::begin_sync).
#[derive(Debug)]
pub struct SyncJob {
    pub(super) file: Arc<dyn RepoFile>,
    pub(super) latch: SyncLatch,
    pub(super) reached: Frontier,
    /// Whether what it synced need not stay in the page cache.
    pub(super) forget: bool,
    /// Where the file must be.
    pub(super) place: Option<(Arc<dyn Repo>, String)>,
}

/// A sync that was done.
#[derive(Debug)]
pub struct Synced {
    pub(super) reached: Frontier,
    pub(super) result: io::Result<()>,
}

impl SyncJob {
    /// Syncs. Blocks for as long as the disk takes.
    #[must_use]
    pub fn run(self) -> Synced {
        let result = self.latch.sync(&*self.file, self.place.as_ref());
        if let (Ok(()), true, Some((_, end))) = (&result, self.forget, self.reached.segment) {
            self.file.forget(end.0);
        }
        Synced { reached: self.reached, result }
    }
}
