//! Every commit that a log holds, as a database: base and frames put together here, without the program under test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// A generation of a log: its number and its directory.
pub fn generations(log: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(log)? {
        let entry = entry?;
        if let Ok(number) = entry.file_name().to_string_lossy().parse() {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Calls `see` with the base of a generation, as frame 0, and then with each commit and its last frame.
pub fn each(dir: &Path, mut see: impl FnMut(u64, &Connection) -> Result<()>) -> Result<()> {
    let mut image = fs::read(dir.join("base.db"))?;
    let mut segments: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    segments.retain(|path| path.extension().is_some_and(|end| end == "wal"));
    segments.sort();
    see(0, &opened(&image)?)?;
    let mut number = 0;
    for segment in segments {
        let bytes = fs::read(&segment)?;
        if bytes.len() < HEADER {
            // The service was killed when it had just created it.
            continue;
        }
        let word = |at: usize| -> Result<usize> {
            let word = bytes.get(at..at + 4).context("a frame that is cut")?;
            Ok(u32::from_be_bytes(word.try_into()?) as usize)
        };
        let page_size = word(8)?;
        let mut at = HEADER;
        while at + FRAME_HEADER + page_size <= bytes.len() {
            let (page, size) = (word(at)?, word(at + 4)?);
            ensure!(page > 0, "page 0 in {}", segment.display());
            let end = page * page_size;
            if image.len() < end {
                image.resize(end, 0);
            }
            let content = at + FRAME_HEADER;
            image[end - page_size..end].copy_from_slice(&bytes[content..content + page_size]);
            number += 1;
            if size > 0 {
                image.truncate(size * page_size);
                see(number, &opened(&image)?)?;
            }
            at = content + page_size;
        }
    }
    Ok(())
}

fn opened(image: &[u8]) -> Result<Connection> {
    let mut image = image.to_vec();
    if let Some(versions) = image.get_mut(18..20) {
        // All of it is here: there is no WAL to look for.
        versions.fill(1);
    }
    let mut db = Connection::open_in_memory()?;
    if !image.is_empty() {
        db.deserialize_read_exact("main", &image[..], image.len(), false)?;
    }
    Ok(db)
}
