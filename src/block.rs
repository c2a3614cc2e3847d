//! Blocks of memory that are read into, handed on as [`Bytes`] without a copy, and used again: a fresh allocation of
//! this size costs a page fault for every page, more than the read itself.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::limits::{IDLE_BLOCKS_MAX, READ_BLOCK};

/// Blocks of [`READ_BLOCK`] bytes for reuse. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockPool(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A block, given back to its pool when it and all [`Bytes`] made of it are dropped.
pub(crate) struct Block<T = ()> {
    memory: Box<[u8]>,
    len: usize,
    pool: Option<BlockPool>,
    _with: T,
}

impl BlockPool {
    /// A block of `bytes`, at most [`READ_BLOCK`]. What `with` owns is dropped with the block.
    pub(crate) fn take<T>(&self, bytes: usize, with: T) -> Block<T> {
        let len = bytes.min(READ_BLOCK);
        // Small ones come from the allocator, which is good at them.
        let pooled = len > READ_BLOCK / 16;
        let idle = pooled.then(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()).flatten();
        let memory = idle.unwrap_or_else(|| vec![0; if pooled { READ_BLOCK } else { len }].into());
        Block { memory, len, pool: pooled.then(|| self.clone()), _with: with }
    }
}

impl<T> Block<T> {
    /// The space to read into.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl<T: Send + 'static> Block<T> {
    /// The first `count` bytes of it.
    pub(crate) fn filled(mut self, count: usize) -> Bytes {
        self.len = self.len.min(count);
        Bytes::from_owner(self)
    }
}

impl<T> AsRef<[u8]> for Block<T> {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl<T> fmt::Debug for Block<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T> Drop for Block<T> {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            let mut idle = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_BLOCKS_MAX {
                idle.push(std::mem::take(&mut self.memory));
            }
        }
    }
}
