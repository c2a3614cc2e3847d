//! Accepting a loss: a log that is damaged, or shorter than its durable mark, goes on from the end of what is sound.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::log::Meta;
use super::registry::{META, META_BYTES_MAX};
use crate::format::name;
use crate::offset::{Generation, Offset};
use crate::repo::{FsRepo, Repo, read_small};
use crate::stream::{DurableMark, SurveyError, sound_prefix, survey};

/// What is missing of a log: the record beside what was set aside.
#[derive(Clone, Debug, Serialize)]
pub struct AcceptedLoss {
    /// The log.
    pub log: String,
    /// Its generation.
    pub generation: Generation,
    /// The first offset that is missing: the log goes on with it.
    pub from: Offset,
    /// The offset after the last one known to have been durable; none when no mark says so.
    pub to: Option<Offset>,
    /// What was wrong.
    pub reason: String,
    /// Segment files that were set aside, whole.
    pub aside: Vec<String>,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

/// Finds what would be lost if the log in `dir` (`DATA/logs/NAME`) went on from the end of what is sound, and does so if
/// `accepted`; `None` when nothing is wrong with it. After Ok with `accepted`, every segment file that was shortened or taken
/// out is kept whole in `aside/TIME-lost/`, with `loss.json` beside them, and the durable mark says the new end.
///
/// The data directory must not be in use: its lock is held meanwhile.
///
/// # Errors
/// When the service runs, the directory is not that of a log, or a file cannot be read or written. A log that was not yet
/// repaired is as damaged as before then.
pub fn accept_loss(dir: &Path, accepted: bool) -> io::Result<Option<AcceptedLoss>> {
    let dir = dir.canonicalize()?;
    let data = dir.parent().filter(|logs| logs.file_name().is_some_and(|name| name == "logs")).and_then(Path::parent);
    let (Some(data), Some(log)) = (data, dir.file_name().and_then(|name| name.to_str())) else {
        return Err(invalid(format!("{} is not the directory of a log: give DATA/logs/NAME", dir.display())));
    };
    let _lock = FsRepo::open(data)?.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(error.kind(), format!("{} is in use: stop the service first", data.display()))
        }
        _ => error,
    })?;
    let text = read_small(&FsRepo::open(&dir)?, META, META_BYTES_MAX)?;
    let text =
        text.ok_or_else(|| invalid(format!("{} is not the directory of a log: it lacks {META}", dir.display())))?;
    let meta: Meta = serde_json::from_slice(&text).map_err(|error| invalid(format!("{META}: {error}")))?;
    let segments = dir.join(name::generation(meta.generation));
    let repo = FsRepo::open(&segments)?;
    let mark = DurableMark::read(&repo)?;
    let reason = match survey(&repo, u64::MAX, mark) {
        Ok(found) if mark.is_none_or(|mark| found.first.map_or(meta.first, |_| found.next) >= mark) => return Ok(None),
        Ok(found) => format!("the log ended at offset {}", found.next),
        Err(SurveyError::Damaged(fault)) => fault.to_string(),
        Err(SurveyError::Io(error)) => return Err(error),
    };
    let found = sound_prefix(&repo, u64::MAX)?.found;
    let mut from = if found.first.is_some() { found.next } else { meta.first };
    let mut cut = None;
    for segment in found.segments.iter().rev().take(1) {
        let path = segments.join(name::segment(meta.format, segment.start));
        if segment.compressed {
            // It cannot be shortened: what is sound of it is kept aside with the rest.
            from = if path.exists() { segment.start } else { from };
        } else if fs::metadata(&path)?.len() > segment.bytes {
            cut = Some((path, segment.bytes));
        }
    }
    let mut after: Vec<PathBuf> = Vec::new();
    for found in repo.list()? {
        if name::parse_segment(&found).is_some_and(|(_, start)| start >= from) {
            after.push(segments.join(found));
        }
    }
    after.sort();
    let affected = cut.iter().map(|(path, _)| path).chain(&after);
    let aside = affected.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect();
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (generation, log) = (meta.generation, log.to_owned());
    let loss = AcceptedLoss { log, generation, from, to: mark, reason, aside, unix_seconds };
    if accepted {
        carry_out(&dir, &repo, &loss, cut, &after)?;
    }
    Ok(Some(loss))
}

/// Each step leaves a log that is as damaged as before, until the mark, the last one, makes it sound.
fn carry_out(
    dir: &Path,
    repo: &FsRepo,
    loss: &AcceptedLoss,
    cut: Option<(PathBuf, u64)>,
    after: &[PathBuf],
) -> io::Result<()> {
    let aside = FsRepo::create(dir.join("aside").join(format!("{}-lost", loss.unix_seconds)))?;
    let mut record = fs::File::create_new(aside.path().join("loss.json"))?;
    record.write_all(serde_json::to_string_pretty(loss)?.as_bytes())?;
    record.sync_all()?;
    let kept = |path: &Path| path.file_name().map(|name| aside.path().join(name));
    if let Some((path, bytes)) = cut {
        if let Some(copy) = kept(&path) {
            fs::copy(&path, &copy)?;
            fs::File::open(&copy)?.sync_all()?;
        }
        aside.sync_dir()?;
        let file = fs::OpenOptions::new().write(true).open(&path)?;
        file.set_len(bytes)?;
        file.sync_all()?;
    }
    for path in after.iter().rev() {
        if let Some(to) = kept(path) {
            fs::rename(path, to)?;
        }
    }
    aside.sync_dir()?;
    repo.sync_dir()?;
    DurableMark::open(repo, loss.from)?;
    repo.sync_dir()
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
