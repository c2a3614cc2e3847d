//! SpacetimeDB's crate as the judge of a mirror.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use logmirror_e2e_support::commitlog::segments;
use logmirror_e2e_support::random::Random;
use spacetimedb_commitlog::{Options, StoredCommit};
use spacetimedb_paths::FromPathUnchecked as _;
use spacetimedb_paths::server::CommitLogDir;

use crate::commands::{append, open};

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// All commits of the log in a directory, as SpacetimeDB reads them.
pub fn commits(dir: &Path) -> Result<Vec<StoredCommit>> {
    let path = CommitLogDir::from_path_unchecked(dir);
    let all: Result<Vec<_>, _> = spacetimedb_commitlog::commits(path)?.collect();
    all.with_context(|| format!("SpacetimeDB reads {}", dir.display()))
}

/// SpacetimeDB opens the log in a directory for writing and goes on with it. After Ok, it found the log's end sound and
/// needed no segment of its own for it.
pub fn continue_log(dir: &Path) -> Result<()> {
    let before = commits(dir)?;
    let segments_before = segments(dir)?.len();
    let log = open(dir, Options::default())?;
    let next = before.last().map_or(0, |last| last.tx_range().end);
    ensure!(log.max_committed_offset().map_or(0, |last| last + 1) == next);
    ensure!(log.existing_segment_offsets()?.len() == segments_before, "SpacetimeDB found the end at fault");
    let mut random = Random::new(7, 7);
    for _ in 0..10 {
        append(&log, &mut random)?;
    }
    log.flush_and_sync()?;
    drop(log);
    let after = commits(dir)?;
    ensure!(after.len() == before.len() + 10 && after[..before.len()] == before[..]);
    Ok(())
}

/// Copies the segments of a log, uncompressed.
pub fn plain_copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for (_, path) in segments(from)? {
        let name = path.file_name().context("a segment has a name")?;
        let bytes = fs::read(&path)?;
        if bytes.starts_with(&ZSTD_MAGIC) {
            zstd::stream::copy_decode(&bytes[..], File::create(to.join(name))?)?;
        } else {
            fs::write(to.join(name), bytes)?;
        }
    }
    Ok(())
}
