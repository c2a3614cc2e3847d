//! [`SyncLatch`]: one sync of a log at a time, and none after one that failed.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::repo::RepoFile;

/// Lets through the syncs of one log.
///
/// The kernel reports a failed write-back to one sync only. Were two under way at once, the other could succeed and vouch
/// for bytes that are lost; so they run one after the other, and after a failure none does.
#[derive(Clone, Debug, Default)]
pub(super) struct SyncLatch(Arc<Mutex<Option<String>>>);

impl SyncLatch {
    /// Syncs `file`. Blocks while another sync of the log is under way.
    pub(super) fn sync(&self, file: &dyn RepoFile) -> io::Result<()> {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = &*failed {
            return Err(io::Error::other(cause.clone()));
        }
        file.sync().inspect_err(|error| *failed = Some(error.to_string()))
    }
}
