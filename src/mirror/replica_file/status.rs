//! What the record beside a read replica file says, for those who only look.

use std::path::Path;

use serde::Serialize;

use super::error::ReplicaFileError;
use super::record::{FileRecord, read_record, record_path};
use crate::mirror::failure::MirrorError;
use crate::offset::{Generation, Offset};
use crate::sqlite::names::database_of_wal;

/// Which source a read replica file follows, and up to where it holds it. A crash may have left it one step further.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaFileStatus {
    /// The source: its URL, or the host and path of its directory.
    pub source: String,
    /// The id of its log, if it is a service's.
    pub log: Option<String>,
    /// The generation; none while the file was never made.
    pub generation: Option<Generation>,
    /// The offset after its last commit.
    pub next: Option<Offset>,
}

/// What the record beside a file says; none for a file without one. Takes no lock.
///
/// # Errors
/// When the record is damaged, or cannot be read.
pub fn replica_file_status(path: &Path) -> Result<Option<ReplicaFileStatus>, MirrorError> {
    Ok(read_record(path)?.map(|FileRecord { source, log, now, .. }| {
        let at = now.map(|now| now.at);
        ReplicaFileStatus { source, log, generation: at.map(|at| at.generation), next: at.map(|at| at.next) }
    }))
}

/// That a database which is to be a source is not one that a mirror keeps: its source is elsewhere. The path may be that of its WAL.
///
/// # Errors
/// [`ReplicaFileError::Swapped`].
pub(in crate::mirror) fn is_no_replica(path: &Path) -> Result<(), MirrorError> {
    let path = database_of_wal(path).unwrap_or(path);
    match replica_file_status(path)? {
        Some(ReplicaFileStatus { source: of, .. }) => {
            let (path, record) = (path.to_owned(), record_path(path));
            Err(ReplicaFileError::Swapped { path, of, record }.into())
        }
        None => Ok(()),
    }
}
