//! The memory that requests and answers may take, over all streams.
//!
//! It is no part of the budget of the log bytes: a writer that waits for the write lock holds what it sent, and the one that
//! has the lock needs of that budget to append.
//!
//! A body that is being received holds what it has while it waits for more, so bodies could all wait for each other. One body
//! of the largest kind is therefore set aside: the request that gets it can go on. Each log has its part of the rest, so
//! that the requests to one cannot keep the others from any. And of all of it bodies that are being received leave some to
//! requests that are there: how long they take is for their clients to say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::limits::{
    BUDGET_WAIT, SQL_BODY_BYTES_MAX, SQL_BODY_BYTES_SMALL, SQL_LOG_MEMORY_MAX, SQL_MEMORY_MAX, SQL_RECEIVED_MEMORY_MIN,
};
use crate::mirror::Error;

/// Bytes a permit stands for.
const UNIT: usize = 64 << 10;

/// What may be taken at once, of all of it or of the part of a log.
#[derive(Debug)]
struct Units {
    all: Arc<Semaphore>,
    /// What of it bodies may take that are being received.
    receiving: Arc<Semaphore>,
}

impl Units {
    fn of(bytes: usize) -> Units {
        let units = |bytes| Arc::new(Semaphore::new(bytes / UNIT));
        Units { all: units(bytes), receiving: units(bytes - SQL_RECEIVED_MEMORY_MIN) }
    }
}

/// What all may take at once.
#[derive(Debug)]
pub(crate) struct Memory {
    units: Arc<Units>,
    /// One permit, for a body of the largest kind.
    spare: Arc<Semaphore>,
    /// What the requests to one log may take at once, for logs with a share.
    of_logs: Mutex<HashMap<String, Weak<Units>>>,
}

/// A share of it for a request to one log, given back when dropped.
#[derive(Debug)]
pub struct MemoryShare {
    units: Arc<Units>,
    spare: Arc<Semaphore>,
    of_log: Arc<Units>,
    held: Vec<OwnedSemaphorePermit>,
    /// Held until the body is there.
    receiving: Vec<OwnedSemaphorePermit>,
    has_spare: bool,
    bytes: usize,
    covered: usize,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        let units = Arc::new(Units::of(SQL_MEMORY_MAX - SQL_BODY_BYTES_MAX));
        Memory { units, spare: Arc::new(Semaphore::new(1)), of_logs: Mutex::default() }
    }

    /// A share of nothing yet.
    pub(crate) fn share(&self, log: &str) -> MemoryShare {
        let (units, spare, of_log) = (self.units.clone(), self.spare.clone(), self.of_log(log));
        let (held, receiving) = Default::default();
        MemoryShare { units, spare, of_log, held, receiving, has_spare: false, bytes: 0, covered: 0 }
    }

    fn of_log(&self, log: &str) -> Arc<Units> {
        let mut of_logs = self.of_logs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_log) = of_logs.get(log).and_then(Weak::upgrade) {
            return of_log;
        }
        of_logs.retain(|_, of_log| of_log.strong_count() > 0);
        let of_log = Arc::new(Units::of(SQL_LOG_MEMORY_MAX));
        of_logs.insert(log.to_owned(), Arc::downgrade(&of_log));
        of_log
    }
}

impl MemoryShare {
    /// Makes it cover `bytes` of a body that is being received; waits until that is possible. A small one takes nothing before it
    /// is [there](Self::cover), so that clients that send nothing more hold up nobody.
    ///
    /// # Errors
    /// As [`cover`](Self::cover).
    pub async fn receive(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes <= SQL_BODY_BYTES_SMALL { Ok(()) } else { self.take(bytes, true).await }
    }

    /// Makes it cover at least `bytes`, which are there; waits until that is possible.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing came free for a while.
    pub async fn cover(&mut self, bytes: usize) -> Result<(), Error> {
        self.receiving.clear();
        self.take(bytes, false).await
    }

    async fn take(&mut self, bytes: usize, is_received: bool) -> Result<(), Error> {
        self.bytes = self.bytes.max(bytes);
        let lacks = self.lacks(0);
        if lacks == 0 {
            return Ok(());
        }
        let of = |units: &Arc<Semaphore>| units.clone().acquire_many_owned(lacks);
        let both = async {
            let mut receiving = Vec::new();
            if is_received {
                receiving.push(of(&self.of_log.receiving).await?);
                receiving.push(of(&self.units.receiving).await?);
            }
            let held = [of(&self.of_log.all).await?, of(&self.units.all).await?];
            Ok::<_, tokio::sync::AcquireError>((held, receiving))
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
            Ok((held, receiving)) => {
                self.held.extend(held);
                self.receiving.extend(receiving);
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
            let taken = [&self.of_log, &self.units].map(|units| units.all.clone().try_acquire_many_owned(lacks).ok());
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Bytes of a large body.
    const LARGE: usize = 20 << 20;

    fn receive(memory: &Memory, log: &str, bytes: usize) -> Option<MemoryShare> {
        let mut share = memory.share(log);
        share.receive(bytes).now_or_never()?.expect("it is in time");
        Some(share)
    }

    #[tokio::test]
    async fn bodies_that_are_being_received_leave_memory_to_those_that_are_there() {
        let memory = Memory::new();
        let held: Vec<_> = ["a", "a", "a", "a", "b", "b", "b", "b"]
            .into_iter()
            .filter_map(|log| receive(&memory, log, LARGE))
            .collect();
        // Three and the one set aside of the first log, and one of the second.
        assert_eq!(held.len(), 5);
        let beginnings: Vec<_> = (0..10_000).map(|_| receive(&memory, "a", SQL_BODY_BYTES_SMALL)).collect();
        assert!(beginnings.iter().all(Option::is_some));
        for log in ["a", "b"] {
            let mut small = memory.share(log);
            assert!(matches!(small.cover(1000).now_or_never(), Some(Ok(()))));
            assert!(small.try_grow(10 << 20));
        }
    }

    #[tokio::test]
    async fn a_body_that_is_there_makes_room_for_the_next_one() {
        let memory = Memory::new();
        let mut held: Vec<_> = std::iter::from_fn(|| receive(&memory, "a", LARGE)).collect();
        assert!(held[0].cover(LARGE).now_or_never().is_some());
        assert!(receive(&memory, "a", LARGE).is_some());
        drop(held);
        assert_eq!(memory.units.all.available_permits(), (SQL_MEMORY_MAX - SQL_BODY_BYTES_MAX) / UNIT);
    }
}
