//! Mirrors that lost the segments they began with, or their base, and services that say so of a log.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

use super::failure::MirrorError;
use super::sink::{DirStatus, Sink};
use super::source::Source;
use crate::api::{Damage, LogStatus};
use crate::format::name;
use crate::offset::Offset;
use crate::repo::{FsRepo, Repo};
use crate::segment::base::{BaseFault, BaseReader, KnownBase};
use crate::stream::{MirrorRecord, current_dir, format_of, segment_starts};

/// What is to be known of one side of a mirror, and does not stop it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// All of it in words, with the place.
    pub text: String,
    /// The offsets that the sink lost at its start; none where it is about something else.
    pub missing: Option<Range<Offset>>,
}

/// The offsets at its start that the mirror in `dir` has lost; none for a whole one, for what is no mirror, and where the record
/// does not say where it began. Blocks.
///
/// # Errors
/// When the directory or its record cannot be read.
pub fn missing_start(dir: &Path) -> io::Result<Option<Range<Offset>>> {
    let repo = FsRepo::open(current_dir(dir)?)?;
    let starts = segment_starts(&repo)?;
    Ok(MirrorRecord::read(&repo)?.and_then(|record| record.missing(starts.first().copied())))
}

/// What is missing in words, and what to do.
pub(super) fn in_words(dir: &Path, missing: &Range<Offset>) -> String {
    let format =
        current_dir(dir).and_then(FsRepo::open).and_then(|repo| format_of(&repo)).ok().flatten().unwrap_or_default();
    let (Range { start, end }, first) = (missing, name::segment(format, missing.start));
    format!(
        "offsets {start} to {end} are missing: the first segments were removed: restore {first} and those after it up to offset \
         {end} from a sound copy, or mirror into a new directory"
    )
}

/// The same of a log of a service.
pub(super) fn in_a_service(missing: &Range<Offset>) -> String {
    let Range { start, end } = missing;
    format!(
        "offsets {start} to {end} are missing: put its first segments back in the service, or mirror into another log"
    )
}

/// What is wrong with the base that the record of a directory names, by its length and its sums. Its blocks are read where the file
/// was written after its sums were, or has none. Blocks.
///
/// # Errors
/// When the files cannot be read.
pub(super) fn base_fault(found: &DirStatus) -> io::Result<BaseLook> {
    let Some(sha256) = found.record.as_ref().and_then(|record| record.base) else {
        return Ok(BaseLook::default());
    };
    let known = KnownBase { exists: true, bytes: None, sha256: Some(sha256) };
    let opened = BaseReader::open_proven(&found.repo, &known);
    let read = opened.and_then(|base| match base.zip(written_since(&found.repo)) {
        Some((base, written)) => Ok((base.check_all(|_| ())?.1.into_iter().next(), Some(written))),
        None => Ok((None, None)),
    });
    match read {
        Ok((fault, written)) => Ok(BaseLook { written: written.filter(|_| fault.is_none()), fault }),
        Err(error) => BaseFault::of(&error).cloned().map(BaseLook::of).ok_or(error),
    }
}

/// What a look at the base of a directory found.
#[derive(Debug, Default)]
pub(super) struct BaseLook {
    pub(super) fault: Option<BaseFault>,
    /// When it was written, if that was after its sums, and all of it was read and is sound.
    pub(super) written: Option<SystemTime>,
}

impl BaseLook {
    fn of(fault: BaseFault) -> BaseLook {
        BaseLook { fault: Some(fault), written: None }
    }
}

/// What is wrong with a base that no record names, beside what else is known of it: all of it is read. Blocks.
///
/// # Errors
/// When the files cannot be read.
pub(super) fn fault_of_unnamed(repo: &FsRepo, known: &KnownBase) -> io::Result<Option<BaseFault>> {
    let checked = BaseReader::open_known(repo, known).and_then(|base| match base {
        Some(base) => Ok(Some(base.check_all(|_| ())?)),
        None => Ok(None),
    });
    match (checked, known.sha256) {
        (Ok(None), _) => Ok(None),
        (Ok(Some((found, faults))), expected) => Ok(faults.into_iter().next().or_else(|| {
            let expected = expected.filter(|expected| *expected != found)?;
            Some(BaseFault::Digest { place: repo.place(), found, expected })
        })),
        (Err(error), _) => BaseFault::of(&error).cloned().map(Some).ok_or(error),
    }
}

/// When a base was written, if that was after its sums, which are made last.
fn written_since(repo: &FsRepo) -> Option<SystemTime> {
    let modified = |file| fs::metadata(repo.path().join(file)).and_then(|found| found.modified());
    let (base, sums) = (modified(name::BASE).ok()?, modified(name::BASE_SUMS).ok()?);
    (base > sums).then_some(base)
}

/// Notes that the base that was `written` then is the one that its sums describe: it is not read again. Where that fails it is
/// read again next time.
pub(super) fn note_sound(repo: &FsRepo, written: SystemTime) {
    let sums = repo.path().join(name::BASE_SUMS);
    if let Err(error) = fs::File::open(&sums).and_then(|file| file.set_modified(written)) {
        log::debug!("{}: it cannot be given the time of its base: {error}", sums.display());
    }
}

/// What a service says of a log whose base is damaged or missing, while its frames are taken and served.
pub(super) fn base_fault_of_service(status: &LogStatus) -> Option<String> {
    let at_base = |damage: &Damage| [name::BASE, name::BASE_SUMS].contains(&damage.segment.as_str());
    status.error.clone().filter(|_| status.damage.as_ref().is_some_and(at_base))
}

/// What a service warns of.
fn of_status(place: &str, status: &LogStatus) -> Option<Warning> {
    let text = status.warning.as_ref()?;
    Some(Warning { text: format!("{place}: {text}"), missing: None })
}

fn of_dir(place: &Path) -> Option<Range<Offset>> {
    // What cannot be read is reported by those who need it.
    missing_start(place).ok().flatten()
}

impl Source {
    /// What is to be known of it.
    pub(super) async fn warning(&self) -> Result<Option<Warning>, MirrorError> {
        match self {
            Source::Url(client) => {
                Ok(client.find().await?.as_ref().and_then(|status| of_status(client.url().as_str(), status)))
            }
            Source::Dir(repo) => {
                let place = repo.path().to_owned();
                let found =
                    super::database::off(move || of_dir(&place).map(|missing| (in_words(&place, &missing), place)));
                Ok(found.await?.map(|(text, place)| {
                    let text = format!("source: {}: {text}; the copy lacks them too", place.display());
                    Warning { text, missing: None }
                }))
            }
        }
    }
}

impl Sink {
    /// What is wrong with the base of a service's log, which takes frames all the same.
    pub(super) async fn base_fault(&self) -> Result<Option<String>, MirrorError> {
        match self {
            Sink::Url(client) => Ok(client.find().await?.as_ref().and_then(base_fault_of_service)),
            Sink::Dir(_) => Ok(None),
        }
    }

    /// What is to be known of it.
    pub(super) async fn warning(&self) -> Result<Option<Warning>, MirrorError> {
        match self {
            Sink::Url(client) => Ok(client.find().await?.as_ref().and_then(|status| {
                if let Some(fault) = base_fault_of_service(status) {
                    return Some(Warning { text: format!("sink: {}: {fault}", client.url()), missing: None });
                }
                let missing = status.missing.map(|(start, end)| start..end);
                Some(Warning { missing, ..of_status(client.url().as_str(), status)? })
            })),
            Sink::Dir(dir) => {
                let place = dir.path().to_owned();
                let found = super::database::off(move || of_dir(&place).map(|it| (in_words(&place, &it), place, it)));
                Ok(found.await?.map(|(text, place, missing)| Warning {
                    text: format!("sink: {}: {text}", place.display()),
                    missing: Some(missing),
                }))
            }
        }
    }
}
