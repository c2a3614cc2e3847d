//! The sync protocols of SQLite's replicas, free of HTTP. Here is the client's side, databases of this machine and libSQL
//! sync servers: frames pushed, replicas pulled. It owns the metadata file and the files of a replica, and knows no logs of
//! ours and no command line. The server's side is [`libsql`].
//!
//! What is sent and stored are SQLite WAL frames with pages of 4096 bytes, numbered from 1 in each generation. A frame is
//! the same on every replica in its page number, its commit size and its page; salts and checksums are each file's own.
//! Source: `specs/libsql-sync.md`.

mod ahead;
mod base;
mod bootstrap;
mod continuity;
mod error;
mod found;
pub mod libsql;
mod links;
mod local;
pub mod metadata;
mod plan;
mod pull;
mod pull_mark;
mod push;
mod push_live;
mod push_mark;
mod remote;
mod replica;
mod replica_sum;
mod replicate;
mod server_state;
#[cfg(feature = "turso")]
pub mod turso;
pub(crate) mod wal_facts;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::task_local;

use crate::mirror::Alone;
use crate::sqlite::DatabaseError;

pub use error::SyncError;
pub use local::{LocalLog, Look};
pub use plan::plan;
pub use push::is_replica;
#[cfg(feature = "turso")]
pub(crate) use remote::Body;
pub use remote::{FrameStream, Pulled, Pushed, Range, Remote, Streamed};
pub use replica::{Applied, Replica};
pub use replicate::{Direction, Replicate, run};

/// Bytes of a page: the protocol knows no other.
pub const PAGE_LEN: usize = 4096;
/// Bytes of a frame.
pub const FRAME_LEN: usize = crate::format::wal::FRAME_HEADER_LEN + PAGE_LEN;

/// How far a database and a server are known to hold the same frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The generation; the first is 1.
    pub generation: u32,
    /// The last frame the server confirmed, or that was pulled; 0 before the first.
    pub frame: u32,
}

/// Whether two whole frames are the same on every replica: page number, commit size, page.
#[must_use]
pub fn same_frame(one: &[u8], other: &[u8]) -> bool {
    let page = crate::format::wal::FRAME_HEADER_LEN;
    one.len() == other.len() && one.get(..8) == other.get(..8) && one.get(page..) == other.get(page..)
}

task_local! {
    /// That of the database which is pushed.
    static CLAIM: Arc<Alone>;
}

/// Runs work that waits for a disk where it holds nobody up.
async fn blocking<S, T>(state: &Arc<Mutex<S>>, work: impl FnOnce(&mut S) -> T + Send + 'static) -> Result<T, SyncError>
where
    S: Send + 'static,
    T: Send + 'static,
{
    let state = state.clone();
    off(move || work(&mut state.lock().unwrap_or_else(PoisonError::into_inner))).await
}

/// The same without state.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SyncError> {
    spawn(work).await.map_err(|error| SyncError::Interrupted(error.to_string()))
}

/// Starts work that waits for a disk. It runs to its end even when its caller is dropped, and holds the [`CLAIM`] until then.
fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let claim = CLAIM.try_with(Arc::clone).ok();
    tokio::task::spawn_blocking(move || {
        let _held = claim;
        work()
    })
}

/// Puts what a server exports into a file.
fn into_file(file: &Arc<File>) -> impl Fn(Bytes, u64) -> Result<(), SyncError> + Clone + Send + 'static {
    let file = file.clone();
    move |piece, at| {
        let written = file.write_all_at(&piece, at);
        written.map_err(|error| DatabaseError::Io { doing: "writing an export".into(), error }.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::runtime;
    use tokio::sync::oneshot;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn work_whose_caller_was_dropped_keeps_its_claim_until_it_ends() {
        let log = Uuid::new_v4().to_string();
        let claim = || Alone::claim("libsql:/app.db", &log);
        let runtime = runtime::Builder::new_current_thread().build().expect("a runtime");
        let (go_on, wait) = mpsc::channel::<()>();
        runtime.block_on(async {
            let (begun, has_begun) = oneshot::channel();
            let work = off(move || {
                begun.send(()).expect("the caller waits");
                wait.recv()
            });
            let pushing = CLAIM.scope(Arc::new(claim().expect("it is free")), work);
            tokio::select! {
                _ = pushing => panic!("it must not end"),
                begun = has_begun => begun.expect("it begins"),
            }
        });
        assert!(claim().is_none());
        drop(go_on);
        drop(runtime);
        assert!(claim().is_some());
    }
}
