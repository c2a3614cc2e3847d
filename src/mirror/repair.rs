//! Accepting a loss: a log that is damaged, or shorter than its durable mark, goes on from the end of what is sound.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::log::Meta;
use super::opening::named;
use super::registry::{META, META_BYTES_MAX, no_generation, parse_meta};
use super::writers::Writers;
use crate::api::CheckpointPolicy;
use crate::format::{LogFormat, name};
use crate::limits::COMMIT_BYTES_MAX;
use crate::offset::{Generation, Offset};
use crate::repo::{FsRepo, Repo, RepoLock, read_small, replace};
use crate::segment::base::{BaseId, BaseReader, KnownBase};
use crate::stream::{
    ASIDE, DurableMark, Reads, SegmentFiles, SurveyError, Tail, TornContent, existing_or_new, format_of, new_aside,
    segment_files, segment_starts, sound_prefix_of, survey, survey_segments, torn_commits,
};

/// What is missing of a log, and what was taken out of it: the record beside what was set aside.
#[derive(Clone, Debug, Serialize)]
pub struct AcceptedLoss {
    /// The log.
    pub log: String,
    /// Its generation.
    pub generation: Generation,
    /// The first offset that is missing, if any is: the log goes on with it.
    pub from: Offset,
    /// The offset after the last one known to have been durable; none when no mark says so.
    pub to: Option<Offset>,
    /// What was wrong.
    pub reason: String,
    /// Files that were set aside, whole.
    pub aside: Vec<String>,
    /// Those of them that were none of its segments, by their names and where they start.
    pub strays: Vec<String>,
    /// Whether the log is whole without those, and nothing else was taken out.
    pub lossless: bool,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

/// Reads every commit, and finds what would be lost if the log in `dir` (`DATA/logs/NAME`) went on from the end of what is sound,
/// without the files that are none of its segments; does so if `accepted`. `None` when nothing is wrong with it. After Ok with `accepted`,
/// every segment file that was shortened or taken out is kept whole in `aside/TIME-lost/` (`aside/TIME-strays/` when nothing is
/// lost), with `loss.json` beside them, and the durable mark says the new end.
///
/// The data directory must not be in use: its lock is held meanwhile.
///
/// # Errors
/// When the service runs, the directory is not that of a log, or a file cannot be read or written; with a
/// [`BaseFault`](crate::segment::base::BaseFault) for a base that is damaged: nothing can be accepted instead of it. A log that
/// was not yet repaired is as damaged as before then.
pub fn accept_loss(dir: &Path, accepted: bool) -> io::Result<Option<AcceptedLoss>> {
    let (dir, log, _lock) = hold(dir)?;
    let text = read_small(&FsRepo::open(&dir)?, META, META_BYTES_MAX)?;
    let text = text.ok_or_else(|| lacks_description(&dir))?;
    let place = dir.display().to_string();
    let meta = parse_meta(&place, &text)?;
    let generation = name::generation(meta.generation);
    let segments = dir.join(&generation);
    let repo = FsRepo::open(&segments).map_err(|error| no_generation(&place, &generation, error))?;
    if meta.format == LogFormat::Wal {
        check_base(&repo, meta.base)?;
    }
    let read = DurableMark::read(&repo)?;
    let (mark, unmarked) = (read.offset(), read.fault(meta.durable_mark));
    let SegmentFiles { starts, strays } = segment_files(&repo, meta.format, u64::MAX, mark)?;
    // An index leads past damage, and the service opens the log all the same.
    let surveyed = survey_segments(&repo, &starts, u64::MAX, mark, Reads::All);
    let end = surveyed.as_ref().ok().and_then(|found| found.first.map(|_| found.next));
    let fault = match (surveyed, &unmarked) {
        (Err(SurveyError::Io(error)), _) => return Err(error),
        (Err(SurveyError::Damaged(fault)), _) => Some(named(&repo, meta.format, &fault)),
        (Ok(_), Some(what)) => Some(format!("the durable mark {}/{} {what}", segments.display(), DurableMark::NAME)),
        (Ok(_), None) if mark.is_none_or(|mark| end.unwrap_or(meta.first) >= mark) => None,
        (Ok(found), None) => Some(format!("the log ended at offset {}", found.next)),
    };
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let none_of_it = match strays.len() {
        0 => None,
        1 => Some("a file that is none of its segments".to_owned()),
        count => Some(format!("{count} files that are none of its segments")),
    };
    let all = none_of_it.iter().chain(&fault).cloned();
    let Some(reason) = all.reduce(|reason, more| format!("{reason}; {more}")) else {
        return Ok(None);
    };
    let mut loss = AcceptedLoss {
        log,
        generation: meta.generation,
        from: end.unwrap_or(meta.first),
        to: mark,
        reason,
        aside: strays.clone(),
        strays,
        lossless: fault.is_none(),
        unix_seconds,
    };
    if loss.lossless {
        if accepted {
            let aside = set_aside(&dir, &loss, "strays")?;
            carry_out(&repo, &aside, None, &loss.aside)?;
        }
        return Ok(Some(loss));
    }
    let found = sound_prefix_of(&repo, &starts, u64::MAX, Reads::All)?.found;
    loss.from = if found.first.is_some() { found.next } else { meta.first };
    let mut cut = None;
    for segment in found.segments.iter().rev().take(1) {
        let file = name::segment(meta.format, segment.start);
        let path = segments.join(&file);
        if segment.compressed {
            // It cannot be shortened: what is sound of it is kept aside with the rest.
            loss.from = if path.exists() { segment.start } else { loss.from };
        } else if fs::metadata(&path)?.len() > segment.bytes {
            cut = Some((file, segment.bytes));
        }
    }
    let mut after = loss.strays.clone();
    after.extend(starts.iter().filter(|start| **start >= loss.from).map(|start| name::segment(meta.format, *start)));
    if unmarked.is_some() && segments.join(DurableMark::NAME).exists() {
        after.push(DurableMark::NAME.to_owned());
    }
    after.sort();
    loss.aside = cut.iter().map(|(file, _)| file).chain(&after).cloned().collect();
    if accepted {
        // First: a crash in the middle leaves a log that is still damaged, and no reader takes its new bytes for the old ones.
        let described =
            serde_json::to_string_pretty(&Meta { losses: meta.losses + 1, ..meta }).map_err(io::Error::other)?;
        replace(&FsRepo::open(&dir)?, META, described.as_bytes())?;
        let aside = set_aside(&dir, &loss, "lost")?;
        carry_out(&repo, &aside, cut, &after)?;
        DurableMark::reset(&repo, loss.from)?;
    }
    Ok(Some(loss))
}

/// That the base is right: nothing can be accepted instead of it.
fn check_base(repo: &FsRepo, id: Option<BaseId>) -> io::Result<()> {
    let base = BaseReader::open_proven(repo, &KnownBase::required(id))?;
    let faults = base.map_or(Ok(Vec::new()), |base| base.check_all(|_| ()).map(|(_, faults)| faults))?;
    faults.into_iter().next().map_or(Ok(()), |fault| Err(fault.into()))
}

/// Holds the data directory of the log in `dir`, which is returned as it is called, with the log's name.
fn hold(dir: &Path) -> io::Result<(PathBuf, String, RepoLock)> {
    let dir = dir.canonicalize()?;
    let data = dir.parent().filter(|logs| logs.file_name().is_some_and(|name| name == "logs")).and_then(Path::parent);
    let (Some(data), Some(log)) = (data, dir.file_name().and_then(|name| name.to_str())) else {
        return Err(invalid(format!("{} is not the directory of a log: give DATA/logs/NAME", dir.display())));
    };
    let lock = FsRepo::open(data)?.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(error.kind(), format!("{} is in use: stop the service first", data.display()))
        }
        _ => error,
    })?;
    let log = log.to_owned();
    Ok((dir, log, lock))
}

fn lacks_description(dir: &Path) -> io::Error {
    invalid(format!("{} is not the directory of a log: it lacks {META}", dir.display()))
}

/// A `log.json` that takes the place of one that is lost or damaged.
#[derive(Clone, Debug, Serialize)]
pub struct NewDescription {
    /// The log.
    pub log: String,
    /// What was wrong with `log.json`.
    pub reason: String,
    /// Its format, as its files tell.
    pub format: LogFormat,
    /// Its generation, as its directories tell.
    pub generation: Generation,
    /// Its first offset, as its files tell.
    pub first: Offset,
    /// A new id: the old one is lost.
    pub id: String,
}

/// Finds out whether the `log.json` of the log in `dir` (`DATA/logs/NAME`) can be written again, if it is missing or makes no
/// sense, and does so if `accepted`: where the files say all that it said, but for the id, which is a new one, and the
/// checkpoint policy, which is none. `None` when nothing is wrong with it. After Ok with `accepted` it is durable, and what was
/// there before is kept in `aside/TIME-log.json/`.
///
/// # Errors
/// When the service runs, the directory is not that of a log, something would have to be guessed, or files cannot be read or
/// written.
pub fn describe_again(dir: &Path, accepted: bool) -> io::Result<Option<NewDescription>> {
    let (dir, log, _lock) = hold(dir)?;
    let (repo, place) = (FsRepo::open(&dir)?, dir.display().to_string());
    let text = read_small(&repo, META, META_BYTES_MAX);
    let reason = match &text {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
        Err(_) => return text.map(|_| None),
        Ok(None) => format!("{place}/{META} is missing"),
        Ok(Some(text)) => match parse_meta(&place, text) {
            Ok(_) => return Ok(None),
            Err(_) if text.is_empty() => format!("{place}/{META} is empty"),
            Err(_) => format!("{place}/{META} is damaged, or of another version of logmirror"),
        },
    };
    let mut generations: Vec<_> = repo.list()?.iter().filter_map(|found| name::parse_generation(found)).collect();
    generations.sort_unstable();
    let Some(generation) = generations.last().copied() else {
        return Err(match text {
            Ok(None) => lacks_description(&dir),
            _ => invalid(format!(
                "{reason}, and there is no directory of a generation beside it: put both back from a backup, or move {place} away \
                 and mirror the source into a new log"
            )),
        });
    };
    let segments = repo.dir(&name::generation(generation))?;
    let unclear = |what: &str| {
        invalid(format!(
            "{reason}, and it cannot be written again without guessing: {what}. Put it back from a backup, or move {place} away \
             (mv {place} SOMEWHERE) and mirror SOMEWHERE/{} into a new log",
            name::generation(generation)
        ))
    };
    let start = segment_starts(&*segments)?.first().copied();
    let format = match format_of(&*segments)? {
        Some(format) => format,
        None if segments.list()?.iter().any(|file| file == name::BASE) => LogFormat::Wal,
        None => return Err(unclear("no segment says which format it has")),
    };
    if generations.len() > 1 && start.is_none() {
        return Err(unclear("the last generation holds nothing, so it may not have begun"));
    }
    let first = format.first().unwrap_or_default();
    if let Some(start) = start.filter(|start| *start != first) {
        return Err(unclear(&format!(
            "its first segment starts at offset {start}, and whether it began there is not known"
        )));
    }
    let id = uuid::Uuid::new_v4().to_string();
    let durable_mark = DurableMark::read(&*segments)?.offset().is_some();
    // One that is damaged is found when the log is opened.
    let base = BaseReader::open(&*segments).ok().flatten().and_then(|base| base.id());
    let described = NewDescription { log, reason, format, generation, first, id: id.clone() };
    if accepted {
        if !matches!(text, Ok(None)) {
            let all = existing_or_new(&repo, ASIDE)?;
            let (name, aside) = new_aside(&*all, META)?;
            let copy = dir.join(ASIDE).join(name).join(META);
            fs::copy(dir.join(META), &copy)?;
            fs::File::open(&copy)?.sync_all()?;
            aside.sync_dir()?;
            all.sync_dir()?;
        }
        let meta = Meta {
            format,
            id,
            generation,
            first,
            checkpoint: CheckpointPolicy::Keep,
            durable_mark,
            losses: 0,
            // What its rows were not checked for before may be unknown: nothing is refused for it.
            foreign_keys: false,
            writers: Writers::default(),
            base,
            frames_since: None,
        };
        replace(&repo, META, serde_json::to_string_pretty(&meta)?.as_bytes())?;
    }
    Ok(Some(described))
}

/// What a service would do when it opens the log whose current generation is the directory `dir`, in words, if that is more
/// than to go on where it ends; `None` also where `dir` is no such directory. Reads only.
///
/// # Errors
/// When the directory cannot be read.
pub fn on_opening(dir: &Path) -> io::Result<Option<String>> {
    let dir = dir.canonicalize()?;
    let (Some(log_dir), Some(generation)) = (dir.parent(), dir.file_name().and_then(|name| name.to_str())) else {
        return Ok(None);
    };
    let (place, Some(generation)) = (log_dir.display().to_string(), name::parse_generation(generation)) else {
        return Ok(None);
    };
    let Some(text) = read_small(&FsRepo::open(log_dir)?, META, META_BYTES_MAX)? else {
        return Ok(None);
    };
    let meta = match parse_meta(&place, &text) {
        Ok(meta) if meta.generation == generation => meta,
        Ok(_) => return Ok(None),
        Err(error) => return Ok(Some(format!("does not open this log: {error}"))),
    };
    let repo = FsRepo::open(&dir)?;
    let mark = DurableMark::read(&repo)?;
    if let Some(what) = mark.fault(meta.durable_mark) {
        return Ok(Some(format!(
            "opens this log as damaged and takes no appends: the durable mark {}/{} {what}",
            dir.display(),
            DurableMark::NAME
        )));
    }
    let damaged = |what: String| Ok(Some(format!("opens this log as damaged and takes no appends: {what}")));
    let found = match survey(&repo, COMMIT_BYTES_MAX, mark.offset()) {
        Ok(found) => found,
        Err(SurveyError::Damaged(fault)) => return damaged(named(&repo, meta.format, &fault)),
        Err(SurveyError::Io(error)) => return Err(error),
    };
    let next = found.first.map_or(meta.first, |_| found.next);
    if let Some(mark) = mark.offset().filter(|mark| *mark > next) {
        return damaged(format!("the durable mark says {mark}, but the files end at offset {next}"));
    }
    let mut all = Vec::new();
    if let Tail::Torn { .. } = found.tail {
        all.push(match torn_commits(&repo, &found, COMMIT_BYTES_MAX)? {
            (TornContent::Incomplete, _, bytes) => {
                format!("cuts {bytes} incomplete bytes off its end and goes on with offset {next}")
            }
            (content, commits, bytes) => {
                let what = match content {
                    TornContent::OtherCommit(..) => "that do not continue the log",
                    _ => "that come after damage",
                };
                format!(
                    "cuts {bytes} bytes with {commits} whole commits {what} off its end, keeps them in {place}/{ASIDE}/, and goes \
                     on with offset {next}"
                )
            }
        });
    }
    if let Some(first) = found.first.filter(|first| *first > meta.first) {
        all.push(format!("warns that offsets {} to {first} are missing: its first segments were removed", meta.first));
    }
    Ok((!all.is_empty()).then(|| all.join("; ")))
}

/// Creates a directory for what is set aside, with the record of it. After Ok they are durable.
fn set_aside(dir: &Path, loss: &AcceptedLoss, reason: &str) -> io::Result<FsRepo> {
    let all = existing_or_new(&FsRepo::open(dir)?, ASIDE)?;
    let (name, _) = new_aside(&*all, reason)?;
    let aside = FsRepo::open(dir.join(ASIDE).join(name))?;
    let mut record = fs::File::create_new(aside.path().join("loss.json"))?;
    record.write_all(serde_json::to_string_pretty(loss)?.as_bytes())?;
    record.sync_all()?;
    aside.sync_dir()?;
    all.sync_dir()?;
    Ok(aside)
}

/// Cuts `cut` to a length and takes `after` out of the log, keeping them in `aside`. Each step leaves a log that is as damaged
/// as before.
fn carry_out(repo: &FsRepo, aside: &FsRepo, cut: Option<(String, u64)>, after: &[String]) -> io::Result<()> {
    if let Some((file, bytes)) = cut {
        let copy = aside.path().join(&file);
        fs::copy(repo.path().join(&file), &copy)?;
        fs::File::open(&copy)?.sync_all()?;
        aside.sync_dir()?;
        let file = fs::OpenOptions::new().write(true).open(repo.path().join(&file))?;
        file.set_len(bytes)?;
        file.sync_all()?;
    }
    for file in after.iter().rev() {
        fs::rename(repo.path().join(file), aside.path().join(file))?;
    }
    aside.sync_dir()?;
    repo.sync_dir()
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
