//! The frames in verified runs of commits, in blocks of whole frames.

use std::io;

use bytes::Buf;

use crate::format::Framing;
use crate::format::wal::{FRAME_HEADER_LEN, WalStart};
use crate::limits::LARGE_COPY_BYTES;
use crate::sqlite::wal_frames::frame_len;
use crate::stream::Run;

/// Calls `take` with all frames of a run, in blocks of at most 1 MiB or one frame; what it changes in them is lost. The bytes of
/// a large commit, which are in a file, are checked again on the way.
///
/// # Errors
/// Those of `take`; one that `unread` makes of `InvalidData` when a large commit is not what was verified any more: the last block of it, with its commit
/// frame, was not taken then.
pub(super) fn each_block<E>(
    run: &Run,
    unread: impl Fn(io::Error) -> E,
    mut take: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let Framing::Wal(Some(mut from)) = run.framing else {
        return Err(unread(invalid("frames before the header of their WAL")));
    };
    let frame_len = frame_len(from.header.page_size);
    let block_len = (LARGE_COPY_BYTES / frame_len).max(1) * frame_len;
    if let Some(large) = &run.large {
        let (mut block, mut at) = (vec![0; block_len], 0);
        while at < large.bytes() {
            let left = usize::try_from(large.bytes() - at).map_or(block_len, |left| left.min(block_len));
            let count = large.read_at(&mut block[..left], at).map_err(&unread)?;
            check(&block[..count], &mut from).map_err(&unread)?;
            at += count as u64;
            if at == large.bytes() && from.chain.number() != run.last.checksum {
                return Err(unread(changed()));
            }
            take(&mut block[..count])?;
        }
        return Ok(());
    }
    let mut block = Vec::with_capacity(block_len.min(usize::try_from(run.bytes).unwrap_or(block_len)));
    for slice in &run.slices {
        let mut rest = &slice[..];
        while rest.has_remaining() {
            let count = rest.len().min(block_len - block.len());
            block.extend_from_slice(&rest[..count]);
            rest.advance(count);
            if block.len() == block_len {
                take(&mut block)?;
                block.clear();
            }
        }
    }
    if block.len() % frame_len != 0 {
        return Err(unread(invalid("a run that ends inside a frame")));
    }
    if block.is_empty() { Ok(()) } else { take(&mut block) }
}

/// Checks that whole frames go on from `from`, and moves it behind them.
fn check(frames: &[u8], from: &mut WalStart) -> io::Result<()> {
    for frame in frames.chunks(frame_len(from.header.page_size)) {
        let (head, page) = frame.split_first_chunk::<FRAME_HEADER_LEN>().ok_or_else(changed)?;
        from.chain = from.header.check(from.chain, head, page).map_err(|_| changed())?.chain;
    }
    Ok(())
}

fn changed() -> io::Error {
    invalid("the bytes of a large commit changed after they were verified")
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
