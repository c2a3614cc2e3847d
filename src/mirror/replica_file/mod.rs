//! A plain SQLite file that follows a WAL log: `mirror SRC replica.db`. Owns the file, its record, and what is set aside.
//!
//! - The file is always one whole state of the source. It is built beside its place, and then changed in transactions of SQLite's
//!   own kind, beside those who read it.
//! - Before each change its [record](record) names the state it is in and the one it gets, so after a crash it is in one of the two.
//! - What another process wrote is never written over: such a file is set aside.
//! - Another generation is stepped into by comparing pages.

mod attempt;
mod error;
mod frames;
mod fresh;
mod kept;
mod plan;
mod record;
mod same_log;
mod state_sum;
mod status;
mod step;
mod target;

pub(super) use attempt::attempt;
pub use error::ReplicaFileError;
pub(super) use plan::plan;
pub(crate) use state_sum::StateSum;
pub(super) use status::is_no_replica;
pub use status::{ReplicaFileStatus, replica_file_status};
pub(super) use target::ReplicaFile;
pub use target::is_replica_file;
