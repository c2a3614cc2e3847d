//! The memory that requests and answers may take, over all streams.
//!
//! It is no part of the budget of the log bytes: a writer that waits for the write lock holds what it sent, and the one that
//! has the lock needs of that budget to append.
//!
//! A body that is being received holds what it has while it waits for more, so bodies could all wait for each other. One body
//! of the largest kind is therefore set aside: the request that gets it can go on. Each log has its part of the rest, so
//! that the requests to one cannot keep the others from any.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::limits::{BUDGET_WAIT, SQL_BODY_BYTES_MAX, SQL_LOG_MEMORY_MAX, SQL_MEMORY_MAX};
use crate::mirror::Error;

/// Bytes a permit stands for.
const UNIT: usize = 64 << 10;

/// What all may take at once.
#[derive(Debug)]
pub(crate) struct Memory {
    units: Arc<Semaphore>,
    /// One permit, for a body of the largest kind.
    spare: Arc<Semaphore>,
    /// What the requests to one log may take at once, for logs with a share.
    of_logs: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A share of it for a request to one log, given back when dropped.
#[derive(Debug)]
pub struct MemoryShare {
    units: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    of_log: Arc<Semaphore>,
    held: Vec<OwnedSemaphorePermit>,
    has_spare: bool,
    bytes: usize,
    covered: usize,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        let units = Arc::new(Semaphore::new((SQL_MEMORY_MAX - SQL_BODY_BYTES_MAX) / UNIT));
        Memory { units, spare: Arc::new(Semaphore::new(1)), of_logs: Mutex::default() }
    }

    /// A share of nothing yet.
    pub(crate) fn share(&self, log: &str) -> MemoryShare {
        let (units, spare, of_log) = (self.units.clone(), self.spare.clone(), self.of_log(log));
        MemoryShare { units, spare, of_log, held: Vec::new(), has_spare: false, bytes: 0, covered: 0 }
    }

    fn of_log(&self, log: &str) -> Arc<Semaphore> {
        let mut of_logs = self.of_logs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_log) = of_logs.get(log).and_then(Weak::upgrade) {
            return of_log;
        }
        of_logs.retain(|_, of_log| of_log.strong_count() > 0);
        let of_log = Arc::new(Semaphore::new(SQL_LOG_MEMORY_MAX / UNIT));
        of_logs.insert(log.to_owned(), Arc::downgrade(&of_log));
        of_log
    }
}

impl MemoryShare {
    /// Makes it cover at least `bytes`; waits until that is possible.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing came free for a while.
    pub async fn cover(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes = self.bytes.max(bytes);
        let lacks = self.lacks(0);
        if lacks == 0 {
            return Ok(());
        }
        let both = async {
            let of_log = self.of_log.clone().acquire_many_owned(lacks).await?;
            Ok::<_, tokio::sync::AcquireError>((of_log, self.units.clone().acquire_many_owned(lacks).await?))
        };
        let taken = timeout(BUDGET_WAIT, async {
            tokio::select! {
                biased;
                both = both => both.map(Ok),
                spare = self.spare.clone().acquire_owned() => spare.map(Err),
            }
        });
        let full = || Error::Unavailable("the memory for SQL is used up, try again later".into());
        match taken.await.map_err(|_elapsed| full())?.map_err(|_closed| full())? {
            Ok((of_log, units)) => {
                self.held.extend([of_log, units]);
                self.covered += lacks as usize * UNIT;
            }
            Err(spare) => {
                self.held.push(spare);
                self.has_spare = true;
            }
        }
        Ok(())
    }

    /// Makes it cover `bytes` more without waiting; false if it cannot.
    pub(super) fn try_grow(&mut self, bytes: usize) -> bool {
        let lacks = self.lacks(bytes);
        if lacks > 0 {
            let taken = [&self.of_log, &self.units].map(|units| units.clone().try_acquire_many_owned(lacks).ok());
            let [Some(of_log), Some(units)] = taken else { return false };
            self.held.extend([of_log, units]);
            self.covered += lacks as usize * UNIT;
        }
        self.bytes += bytes;
        true
    }

    /// Units to take so that `bytes` more are covered.
    fn lacks(&self, bytes: usize) -> u32 {
        let spare = if self.has_spare { SQL_BODY_BYTES_MAX } else { 0 };
        let lacks = (self.bytes + bytes).saturating_sub(self.covered + spare).div_ceil(UNIT);
        u32::try_from(lacks).unwrap_or(u32::MAX)
    }
}
