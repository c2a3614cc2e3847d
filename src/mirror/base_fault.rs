//! What was found wrong with a block of a base when it was read, kept beside it (`base.fault`: the byte where the block starts, as
//! text): a restart would forget it, and reading all of a base at each start takes too long. Whether it is still so shows by
//! reading that block.

use std::io;

use crate::repo::{Repo, read_small, replace};
use crate::segment::base::{BLOCK, BaseFault};

/// The file in the directory of a generation.
const FILE: &str = "base.fault";
/// More is no number.
const BYTES_MAX: u64 = 20;

/// Keeps a fault of a block; of any other nothing is kept, since that shows without reading a block. What cannot be written is
/// found again when the block is read. Blocks.
pub(super) fn keep(repo: &dyn Repo, fault: &BaseFault) {
    if let BaseFault::Block { at, .. } = fault
        && let Err(error) = replace(repo, FILE, at.to_string().as_bytes())
    {
        log::debug!("{}/{FILE} cannot be written: {error}", repo.place());
    }
}

/// The fault that was kept; none where there is none, and for a file that makes no sense. Blocks.
pub(super) fn kept(repo: &dyn Repo) -> Option<BaseFault> {
    let text = read_small(repo, FILE, BYTES_MAX).ok()??;
    let at: u64 = std::str::from_utf8(&text).ok()?.parse().ok()?;
    Some(BaseFault::Block { place: repo.place(), block: at / BLOCK as u64, at })
}

/// Forgets it, once the block is right again. Blocks.
pub(super) fn forget(repo: &dyn Repo) {
    match repo.remove(FILE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::debug!("{}/{FILE} cannot be removed: {error}", repo.place());
        }
        _ => {}
    }
}
