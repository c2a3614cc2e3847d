//! What an operator may do to the files of a log while the service is down.

use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::FRAME_BYTES;

const WAL_HEADER_BYTES: u64 = 32;
/// Made from the segments, and therefore wrong once one is cut.
const DERIVED: [&str; 2] = ["ofs", "idx"];

/// Keep the first `keep` transactions of the newest segment in `generation`, a directory, and return the frames it
/// still has.
pub fn cut_to_transactions(generation: &Path, keep: usize) -> Result<u64> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(generation).with_context(|| format!("list {}", generation.display()))? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if extension == "wal" {
            segments.push(path);
        } else if DERIVED.contains(&extension) {
            fs::remove_file(path)?;
        }
    }
    let newest = segments.into_iter().max().context("there is no segment to cut")?;
    let bytes = fs::read(&newest)?;
    let frames = bytes.get(WAL_HEADER_BYTES as usize..).context("the segment has no header")?;
    let mut commits = (1..).zip(frames.chunks_exact(FRAME_BYTES as usize)).filter(|(_, frame)| frame[4..8] != [0; 4]);
    let (kept, _) = keep.checked_sub(1).and_then(|n| commits.nth(n)).context("too few transactions to keep")?;
    ensure!(commits.next().is_some(), "nothing would be cut");
    OpenOptions::new().write(true).open(&newest)?.set_len(WAL_HEADER_BYTES + kept * FRAME_BYTES)?;
    Ok(kept)
}
