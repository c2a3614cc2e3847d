//! What the record beside a read replica file says, for those who only look.

use std::path::Path;

use serde::Serialize;

use super::record::{FileRecord, read_record};
use crate::mirror::failure::MirrorError;
use crate::offset::{Generation, Offset};

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
