//! The memory budget of a process: log bytes in memory, over all senders and readers.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;
use crate::block::{Block, BlockPool};
use crate::limits::{BUDGET_WAIT, READ_BLOCK};

/// Bytes a permit stands for.
const UNIT: u64 = 1024;

/// Half of it is for senders, half for readers, so that neither can starve the other.
#[derive(Debug)]
pub struct Budget {
    incoming: Arc<Semaphore>,
    outgoing: Arc<Semaphore>,
    outgoing_max: usize,
    blocks: BlockPool,
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
        Budget { incoming, outgoing, outgoing_max: half, blocks: BlockPool::default() }
    }

    /// Waits for a share of so many units for received bytes.
    ///
    /// # Errors
    /// When none came free for a while: those who hold the budget make no progress.
    pub(super) async fn incoming(&self, units: usize) -> Result<Share, Error> {
        take(&self.incoming, units).await
    }

    /// Waits for a block to read into: a large one, or a small one when memory is scarce.
    ///
    /// # Errors
    /// As [`incoming`](Self::incoming).
    pub(super) async fn block(&self, wanted: u64) -> Result<Block<Share>, Error> {
        let scarce = self.outgoing.available_permits() < self.outgoing_max / 2;
        let most = if scarce { READ_BLOCK / 16 } else { READ_BLOCK };
        let bytes = usize::try_from(wanted).unwrap_or(most).min(most);
        let share = take(&self.outgoing, units(bytes as u64)).await?;
        Ok(self.blocks.take(bytes, share))
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
