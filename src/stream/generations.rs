//! The generations of a mirror directory. It holds one: at first in the directory itself, and from the first step on in a
//! directory of that generation.
//!
//! ```text
//! DIR/.logmirror base.db base.sums *.wal *.ofs     the generation that the copy started with
//! DIR/generation-0000000002.draft/                 the next one in the making: its base, then its record
//! DIR/generation-0000000002/                       the next one; from here on it is the current one, and the others are removed
//! DIR/generation-0000000001.aside/                 one that held more than the log when it ended, such as what was set aside in it
//! ```
//!
//! The rename is the step. Before it everything in the new directory is durable, so what [`current`] finds is whole at any
//! moment: the old generation until then, the new one after. Nothing of the old one is removed before the new name is
//! durable. A directory never changes its generation, so a reader that has opened one never mixes two; one that finds files
//! gone looks again which is the current one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{MirrorRecord, NAME as RECORD, RecordFile};
use crate::format::{LogFormat, name};
use crate::offset::Generation;
use crate::repo::{FsRepo, Repo, persist_names};

/// What the directory of a generation is named, before its number. A service names its own by the number alone.
const PREFIX: &str = "generation-";
/// Ending of one in the making, or being removed.
const DRAFT: &str = ".draft";
/// Ending of one that has ended and holds more than a log: it is kept.
const KEPT: &str = ".aside";

fn dir_name(generation: Generation) -> String {
    format!("{PREFIX}{}", name::generation(generation))
}

/// The name of the directory in which a generation is made.
pub(crate) fn draft_name(generation: Generation) -> String {
    format!("{}{DRAFT}", dir_name(generation))
}

pub(super) fn parse(found: &str) -> Option<Generation> {
    name::parse_generation(found.strip_prefix(PREFIX)?)
}

fn is_draft(found: &str) -> bool {
    found.strip_suffix(DRAFT).is_some_and(|found| parse(found).is_some())
}

/// The current generation of a mirror directory and its directory; `None` while that is the directory itself.
///
/// # Errors
/// As the repo says.
pub(crate) fn current(dir: &dyn Repo) -> io::Result<Option<(Generation, Arc<dyn Repo>)>> {
    let mut found: Vec<Generation> = dir.list()?.iter().filter_map(|found| parse(found)).collect();
    found.sort_unstable();
    for generation in found.into_iter().rev() {
        match dir.dir(&dir_name(generation)) {
            // A file of that name is none of ours.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => {}
            found => return found.map(|found| Some((generation, found))),
        }
    }
    Ok(None)
}

/// The same by paths. A directory that does not exist has none.
///
/// # Errors
/// When it cannot be read.
pub fn current_generation(dir: &Path) -> io::Result<Option<(Generation, PathBuf)>> {
    let repo = match FsRepo::open(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        repo => repo?,
    };
    Ok(current(&repo)?.map(|(generation, _)| (generation, dir.join(dir_name(generation)))))
}

/// Where the segments and the base of a directory are: in the directory of its current generation, if it is a mirror that has
/// gone through more than one, and in itself otherwise.
///
/// # Errors
/// As [`current_generation`].
pub fn current_dir(dir: &Path) -> io::Result<PathBuf> {
    Ok(current_generation(dir)?.map_or(dir.to_owned(), |(_, current)| current))
}

/// The generation that a directory which holds one is of, as far as its record says; `None` otherwise.
///
/// # Errors
/// When the record cannot be read.
pub fn recorded_generation(repo: &dyn Repo) -> io::Result<Option<Generation>> {
    let record = MirrorRecord::read(repo)?.filter(|record| record.format == LogFormat::Wal);
    Ok(record.map(|record| record.generation))
}

/// The directory in which the next generation is made. What a step that did not end has left is removed. Blocks.
///
/// # Errors
/// As the repo says.
pub(crate) fn begin_step(dir: &dyn Repo, next: Generation) -> io::Result<Arc<dyn Repo>> {
    remove_drafts(dir)?;
    dir.create_dir(&draft_name(next))
}

/// Makes what [`begin_step`] returned the current generation: its base must be published. After Ok it survives power loss. After
/// Err the one before is still the current one, or this one is: [`current`] says which, and both are whole. Blocks.
///
/// # Errors
/// As the repo says.
pub(crate) fn end_step(dir: &dyn Repo, record: MirrorRecord) -> io::Result<()> {
    let (next, draft) = (dir_name(record.generation), draft_name(record.generation));
    let made = dir.dir(&draft)?;
    RecordFile::open(&*made, record)?;
    made.sync_dir()?;
    dir.rename(&draft, &next)?;
    dir.sync_dir()
}

/// Removes what is left of the generations before the current one. To be called by the one writer of the directory. Whether
/// there was something. Blocks.
///
/// # Errors
/// As the repo says; the rest is removed by the next call.
pub(crate) fn remove_before_current(dir: &dyn Repo) -> io::Result<bool> {
    let Some((current, _)) = current(dir)? else {
        return Ok(false);
    };
    let names = dir.list()?;
    let of_the_first = |found: &String| is_of_the_first(found);
    let before = |found: &String| parse(found).is_some_and(|found| found < current);
    if !names.iter().any(|found| of_the_first(found) || before(found) || is_draft(found)) {
        return Ok(false);
    }
    // The current one may have got its name by a process that ended before that was durable.
    persist_names(dir)?;
    remove_drafts(dir)?;
    for found in names.iter().filter(|found| before(found)) {
        // What was set aside in it, or is another's, is not the log's to remove: it stays, with all that is beside it.
        let is_the_logs = dir.dir(found)?.list()?.iter().all(|file| is_of_the_first(file));
        // Under its own name it is whole, or not there.
        dir.rename(found, &format!("{found}{}", if is_the_logs { DRAFT } else { KEPT }))?;
    }
    remove_drafts(dir)?;
    // The last segments first, so that what is left is a log up to some commit; the record last of all.
    let mut files: Vec<String> = names.into_iter().filter(of_the_first).collect();
    files
        .sort_by_key(|found| (found == RECORD, name::parse_segment(found).is_none(), std::cmp::Reverse(found.clone())));
    for file in files {
        dir.remove(&file).or_else(absent)?;
    }
    dir.sync_dir()?;
    Ok(true)
}

/// Whether a name is that of a file of a generation that is in the directory itself.
pub(super) fn is_of_the_first(found: &str) -> bool {
    let ours = [name::BASE, name::BASE_SUMS, name::BASE_DRAFT, RECORD];
    ours.contains(&found) || name::parse_segment(found).is_some() || is_index(found)
}

/// Whether a name is that of an index of a segment.
fn is_index(found: &str) -> bool {
    let stem = found.strip_suffix(".ofs").or(found.strip_suffix(".idx"));
    stem.is_some_and(|stem| name::parse_segment(&format!("{stem}.wal")).is_some())
}

fn remove_drafts(dir: &dyn Repo) -> io::Result<()> {
    for found in dir.list()?.into_iter().filter(|found| is_draft(found)) {
        remove_dir(dir, &found)?;
    }
    Ok(())
}

fn remove_dir(parent: &dyn Repo, found: &str) -> io::Result<()> {
    let dir = parent.dir(found)?;
    for file in dir.list()? {
        dir.remove(&file)?;
    }
    parent.remove(found)
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "generations_tests.rs"]
mod tests;
