//! The memory budget of a process: log bytes in memory, over all senders and readers.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;
use crate::limits::{BUDGET_WAIT, READ_BLOCK};

/// Bytes a permit stands for.
const UNIT: u64 = 1024;

/// Half of it is for senders, half for readers, so that neither can starve the other.
#[derive(Debug)]
pub struct Budget {
    incoming: Arc<Semaphore>,
    outgoing: Arc<Semaphore>,
    outgoing_max: usize,
    idle_blocks: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A share of the budget, given back when dropped.
pub(super) type Share = OwnedSemaphorePermit;

/// How many units `bytes` take.
pub(super) fn units(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(Semaphore::MAX_PERMITS)
}

impl Budget {
    /// A budget of `bytes`.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let half = units(bytes / 2).min(Semaphore::MAX_PERMITS);
        let (incoming, outgoing) = (Arc::new(Semaphore::new(half)), Arc::new(Semaphore::new(half)));
        Budget { incoming, outgoing, outgoing_max: half, idle_blocks: Arc::default() }
    }

    /// Waits for a share for received bytes.
    ///
    /// # Errors
    /// When none came free for a while: those who hold the budget make no progress.
    pub(super) async fn incoming(&self, bytes: u64) -> Result<Share, Error> {
        take(&self.incoming, units(bytes)).await
    }

    /// Waits for a block to read into: a large one, or a small one when memory is scarce.
    ///
    /// # Errors
    /// As [`incoming`](Self::incoming).
    pub(super) async fn block(&self, wanted: u64) -> Result<Block, Error> {
        let scarce = self.outgoing.available_permits() < self.outgoing_max / 2;
        let most = if scarce { READ_BLOCK / 16 } else { READ_BLOCK };
        let bytes = usize::try_from(wanted).unwrap_or(most).min(most);
        let share = take(&self.outgoing, units(bytes as u64)).await?;
        let pooled = bytes > READ_BLOCK / 16;
        let idle = pooled.then(|| lock(&self.idle_blocks).pop()).flatten();
        let buf = idle.unwrap_or_else(|| vec![0; if pooled { READ_BLOCK } else { bytes }]);
        let pool = pooled.then(|| self.idle_blocks.clone());
        Ok(Block { buf, len: bytes, pool, _share: share })
    }
}

async fn take(from: &Arc<Semaphore>, units: usize) -> Result<Share, Error> {
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    let full = || Error::Unavailable("the memory budget (--memory-max) is used up, try again later".into());
    match tokio::time::timeout(BUDGET_WAIT, from.clone().acquire_many_owned(units)).await {
        Ok(share) => share.map_err(|_closed| full()),
        Err(_elapsed) => Err(full()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block to read into. Its memory goes back to the pool with the last [`Bytes`] made of it.
pub(super) struct Block {
    buf: Vec<u8>,
    len: usize,
    pool: Option<Arc<Mutex<Vec<Vec<u8>>>>>,
    _share: Share,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Block {
    /// The space to read into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.buf[..self.len]
    }

    /// The first `count` bytes of it.
    pub(super) fn filled(mut self, count: usize) -> Bytes {
        self.len = self.len.min(count);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        /// Blocks kept for reuse: enough for the readers that are really moving.
        const IDLE_BLOCKS_MAX: usize = 16;
        if let Some(pool) = &self.pool {
            let mut pool = lock(pool);
            if pool.len() < IDLE_BLOCKS_MAX {
                pool.push(std::mem::take(&mut self.buf));
            }
        }
    }
}
