//! Cutting a stream that comes from a network into batches.

use bytes::Bytes;

use crate::format::Framing;
use crate::stream::{Batch, BatchError, Batcher};

/// As [`Batcher::push`]; what may write a large commit to a file is done where it holds nobody up.
pub(super) async fn push(batcher: &mut Batcher, chunk: Bytes, batch: &mut Batch) -> Result<(), BatchError> {
    if !batcher.may_block(chunk.len()) {
        return batcher.push(chunk, batch);
    }
    let mut pushing = std::mem::replace(batcher, Batcher::new(Framing::default(), None, 0));
    let received = pushing.held();
    let pushed = tokio::task::spawn_blocking(move || {
        let mut batch = Batch::default();
        let sound = pushing.push(chunk, &mut batch);
        (pushing, batch, sound)
    });
    let interrupted = |_| BatchError::Spool { received, reason: "the write was interrupted".into() };
    let (pushed, found, sound) = pushed.await.map_err(interrupted)?;
    *batcher = pushed;
    batch.parts.extend(found.parts);
    sound
}
