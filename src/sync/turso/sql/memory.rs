//! The memory that requests and answers may take, over all streams.
//!
//! It is no part of the budget of the log bytes: whoever waits for his turn to write holds what he sent, and who has the
//! turn needs of that budget to append.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::limits::BUDGET_WAIT;
use crate::mirror::Error;

/// Bytes a permit stands for.
const UNIT: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Memory {
    units: Arc<Semaphore>,
}

/// A share of it, given back when dropped.
#[derive(Debug)]
pub struct MemoryShare {
    units: Arc<Semaphore>,
    held: Vec<OwnedSemaphorePermit>,
    bytes: usize,
    covered: usize,
}

impl Memory {
    pub(super) fn new(bytes: usize) -> Memory {
        Memory { units: Arc::new(Semaphore::new(bytes / UNIT)) }
    }

    /// A share of nothing yet.
    pub(super) fn share(&self) -> MemoryShare {
        MemoryShare { units: self.units.clone(), held: Vec::new(), bytes: 0, covered: 0 }
    }
}

impl MemoryShare {
    /// Makes it cover `bytes` more; waits until that is possible.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing came free for a while.
    pub async fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let full = || Error::Unavailable("the memory for SQL is used up, try again later".into());
        let lacks = self.lacks(bytes);
        if lacks > 0 {
            let taken = timeout(BUDGET_WAIT, self.units.clone().acquire_many_owned(lacks)).await;
            self.held.push(taken.map_err(|_elapsed| full())?.map_err(|_closed| full())?);
            self.covered += lacks as usize * UNIT;
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The same without waiting; false if it cannot be.
    pub(super) fn try_grow(&mut self, bytes: usize) -> bool {
        let lacks = self.lacks(bytes);
        if lacks > 0 {
            let Ok(taken) = self.units.clone().try_acquire_many_owned(lacks) else {
                return false;
            };
            self.held.push(taken);
            self.covered += lacks as usize * UNIT;
        }
        self.bytes += bytes;
        true
    }

    /// Units to take so that `bytes` more are covered.
    fn lacks(&self, bytes: usize) -> u32 {
        let lacks = (self.bytes + bytes).saturating_sub(self.covered).div_ceil(UNIT);
        u32::try_from(lacks).unwrap_or(u32::MAX)
    }
}
