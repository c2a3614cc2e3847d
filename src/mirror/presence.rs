//! Whether the directory that is a sink is still the one that this process opened: what is unmounted or moved away is waited
//! for, and never begun again in the place that is left.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use super::failure::MirrorError;
use crate::repo::FsRepo;
use crate::stream::MirrorRecord;

/// What is missing.
pub(super) const WRITTEN: &str = "the directory that was written is not there now";

/// The id of the mirror record of the directory that was opened, once one was.
#[derive(Debug, Default)]
pub(super) struct Presence {
    opened: Mutex<Option<Uuid>>,
}

impl Presence {
    /// From now on only the directory with this record is the sink.
    pub(super) fn opened(&self, id: Uuid) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    /// Whether a directory was opened, so that none is created any more.
    pub(super) fn is_bound(&self) -> bool {
        self.bound().is_some()
    }

    /// Checks that `path` is the directory that was opened, if one was. Blocks.
    ///
    /// # Errors
    /// [`MirrorError::Away`] while it is not there, or another one is; [`MirrorError::Dir`] when that is not known now.
    pub(super) fn check(&self, path: &Path) -> Result<(), MirrorError> {
        let Some(id) = self.bound() else {
            return Ok(());
        };
        let read = || match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(_) => MirrorRecord::read(&FsRepo::open(path)?),
        };
        match read() {
            Ok(Some(record)) if record.id == id => Ok(()),
            Ok(_) => Err(MirrorError::Away { place: path.display().to_string(), what: WRITTEN.to_owned() }),
            Err(error) => Err(MirrorError::Dir { place: path.display().to_string(), error }),
        }
    }

    fn bound(&self) -> Option<Uuid> {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
