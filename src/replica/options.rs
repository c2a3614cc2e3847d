//! How a replica is kept.

use std::time::Duration;

use crate::limits::{REPLICA_LOCK_WAIT, REPLICA_PULL_BATCH};

/// How a replica is kept. The remote's token and timeouts are the [`Remote`](crate::sync::Remote)'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What the name under which the remote knows this replica starts with; used when the replica is made.
    pub client_name: String,
    /// Frames in one request, at least 1. They are taken as they come, so that it says nothing of memory.
    pub wal_pull_batch_size: u32,
    /// How long a sync waits for a transaction of the application to end, and the application for a sync.
    pub lock_wait: Duration,
    /// Whether a replica that is made while the remote cannot be reached is an empty one: what the remote has comes as soon as
    /// it can be.
    pub start_offline: bool,
    /// Whether files that cannot be used are set aside and the replica is made anew.
    pub rebuild: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            client_name: "logmirror".to_owned(),
            wal_pull_batch_size: REPLICA_PULL_BATCH,
            lock_wait: REPLICA_LOCK_WAIT,
            start_offline: false,
            rebuild: false,
        }
    }
}
