//! Plain files: the segments of a log directory, copied, warmed and compared without knowing their format.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// One read or write of the raw copy. Large enough that the system call does not count, and still in the cache of the
/// core. From 256 KiB on the page cache is filled in large folios, and the same copy took up to three times as long
/// in a virtual machine that first had to get them from its host.
const BLOCK_BYTES: usize = 64 << 10;

/// The segment files in `dir`, in log order: their names are zero-padded.
pub fn segments(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if name(&path).ends_with(".stdb.log") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes in all segments of `dir`.
pub fn segment_bytes(dir: &Path) -> Result<u64> {
    segments(dir)?.iter().map(|path| Ok(path.metadata()?.len())).sum()
}

/// Read every segment once, so that a later read comes from the page cache.
pub fn warm(dir: &Path) -> Result<()> {
    for path in segments(dir)? {
        blocks(&path, |_| Ok(()))?;
    }
    Ok(())
}

/// Copy every segment into `to` in large blocks, then sync it: one thread, one thing after another. No ceiling, since
/// a copy that syncs while it writes can be faster; but what a careful `cp` would do.
pub fn raw_copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for path in segments(from)? {
        let copy = to.join(name(&path));
        let mut target = File::create_new(&copy).with_context(|| format!("create {}", copy.display()))?;
        blocks(&path, |block| Ok(target.write_all(block)?))?;
        target.sync_data()?;
    }
    Ok(())
}

/// Fail unless both directories hold the same segments with the same bytes.
pub fn ensure_same(expected: &Path, found: &Path) -> Result<()> {
    let (a, b) = (segments(expected)?, segments(found)?);
    ensure!(a.iter().map(|p| name(p)).eq(b.iter().map(|p| name(p))), "the segments differ: {a:?} and {b:?}");
    for (a, b) in a.iter().zip(&b) {
        ensure_same_file(a, b)?;
    }
    Ok(())
}

/// Remove a directory that may not be there.
pub fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn ensure_same_file(expected: &Path, found: &Path) -> Result<()> {
    let (want, have) = (expected.metadata()?.len(), found.metadata()?.len());
    ensure!(want == have, "{} has {have} bytes, {} has {want}", found.display(), expected.display());
    let mut other = File::open(found).with_context(|| format!("open {}", found.display()))?;
    let mut theirs = vec![0; BLOCK_BYTES];
    let mut at = 0;
    blocks(expected, |ours| {
        let theirs = &mut theirs[..ours.len()];
        other.read_exact(theirs)?;
        if let Some(i) = (0..ours.len()).find(|&i| ours[i] != theirs[i]) {
            anyhow::bail!("{} differs from {} at byte position {}", found.display(), expected.display(), at + i);
        }
        at += ours.len();
        Ok(())
    })
}

fn blocks(path: &Path, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(()),
            n => each(&block[..n])?,
        }
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}
