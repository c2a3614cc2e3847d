//! The memory budget of a process: log bytes in memory, over all senders and readers.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;
use crate::block::{Block, BlockPool};
use crate::limits::{BUDGET_WAIT, READ_BLOCK};

/// Bytes a permit stands for.
const UNIT: u64 = 1024;

/// Half of it is for senders, half for readers, so that neither can starve the other.
///
/// A sender holds what it has while it waits for more, so senders could all wait for each other. Of their half, as much as
/// is held of one commit or one body is therefore set aside: the sender that gets it can finish, or put the front of its
/// commit into a file, and then gives back all it has.
#[derive(Debug)]
pub struct Budget {
    incoming: Arc<Semaphore>,
    /// One permit, for as much as is held of a commit or a body.
    spare: Arc<Semaphore>,
    outgoing: Arc<Semaphore>,
    outgoing_max: usize,
    blocks: BlockPool,
}

/// A share of the senders' half, given back when dropped.
#[derive(Debug, Default)]
pub struct Share {
    permits: Option<OwnedSemaphorePermit>,
    spare: Option<OwnedSemaphorePermit>,
}

impl Share {
    fn units(&self) -> usize {
        self.permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Whether it covers `bytes` without the spare, which whoever holds bytes for long must not keep.
    pub(crate) fn covers(&self, bytes: u64) -> bool {
        self.units() >= units(bytes)
    }

    /// Takes in another share, but for its spare, which whoever holds bytes for long must not keep.
    pub(crate) fn merge(&mut self, other: Share) {
        match (&mut self.permits, other.permits) {
            (Some(permits), Some(more)) => permits.merge(more),
            (permits @ None, more) => *permits = more,
            (Some(_), None) => {}
        }
    }

    /// Splits off all that is not needed to cover `bytes`; the spare above all.
    pub(crate) fn split(&mut self, bytes: u64) -> Share {
        let rest = self.units().saturating_sub(units(bytes));
        let permits = self.permits.as_mut().and_then(|permits| permits.split(rest));
        Share { permits, spare: self.spare.take() }
    }
}

/// How many units `bytes` take.
fn units(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(Semaphore::MAX_PERMITS)
}

impl Budget {
    /// A budget of `bytes`, where up to `held_max` are held of a commit or a body.
    #[must_use]
    pub fn new(bytes: u64, held_max: u64) -> Self {
        let half = units(bytes / 2).min(Semaphore::MAX_PERMITS);
        let incoming = half.saturating_sub(units(held_max));
        Budget {
            incoming: Arc::new(Semaphore::new(incoming)),
            spare: Arc::new(Semaphore::new(1)),
            outgoing: Arc::new(Semaphore::new(half)),
            outgoing_max: half,
            blocks: BlockPool::default(),
        }
    }

    /// Makes `share` cover `bytes` received; waits until that is possible.
    ///
    /// # Errors
    /// When nothing came free for a while: those who hold the budget make no progress.
    pub(super) async fn cover(&self, share: &mut Share, bytes: u64) -> Result<(), Error> {
        let lacks = units(bytes).saturating_sub(share.units());
        if lacks == 0 || share.spare.is_some() {
            return Ok(());
        }
        tokio::select! {
            biased;
            more = take(&self.incoming, lacks) => share.merge(Share { permits: Some(more?), spare: None }),
            spare = take(&self.spare, 1) => share.spare = Some(spare?),
        }
        Ok(())
    }

    /// The same without waiting and without the spare; false if it cannot be.
    pub(super) fn try_cover(&self, share: &mut Share, bytes: u64) -> bool {
        let lacks = u32::try_from(units(bytes).saturating_sub(share.units())).unwrap_or(u32::MAX);
        let more = if lacks == 0 { None } else { self.incoming.clone().try_acquire_many_owned(lacks).ok() };
        let is_covered = lacks == 0 || more.is_some();
        share.merge(Share { permits: more, spare: None });
        is_covered
    }

    /// Waits for a block to read into: a large one, or a small one when memory is scarce.
    ///
    /// # Errors
    /// As [`cover`](Self::cover).
    pub(super) async fn block(&self, wanted: u64) -> Result<Block<OwnedSemaphorePermit>, Error> {
        let scarce = self.outgoing.available_permits() < self.outgoing_max / 2;
        let most = if scarce { READ_BLOCK / 16 } else { READ_BLOCK };
        let most = most.min(self.outgoing_max * UNIT as usize / 2);
        let bytes = usize::try_from(wanted).unwrap_or(most).min(most);
        let share = take(&self.outgoing, units(bytes as u64)).await?;
        Ok(self.blocks.take(bytes, share))
    }
}

async fn take(from: &Arc<Semaphore>, units: usize) -> Result<OwnedSemaphorePermit, Error> {
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    let full = || Error::Unavailable("the memory budget (--memory-max) is used up, try again later".into());
    match tokio::time::timeout(BUDGET_WAIT, from.clone().acquire_many_owned(units)).await {
        Ok(share) => share.map_err(|_closed| full()),
        Err(_elapsed) => Err(full()),
    }
}
