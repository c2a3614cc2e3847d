//! Whether the directory that is a sink is still the one that this process compared or opened: what is unmounted or moved away
//! is waited for, and never begun again in the place that is left.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::failure::MirrorError;
use super::ownership::{DirIdentity, identity};
use crate::offset::Offset;
use crate::repo::{FsRepo, Repo};
use crate::stream::{MirrorRecord, RECORD, RecordFile, current_dir};

/// What is missing.
pub(super) const WRITTEN: &str = "the directory that was written is not there now";
/// What is missing while it was not opened yet.
const COMPARED: &str = "the directory that was compared with the source is not there now";

/// How long a directory that was brought back must stay as it is before what it lacks is fetched again: it may be on its way.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// The directory that is the sink, once it was found.
#[derive(Debug, Default)]
pub(super) struct Presence {
    bound: Mutex<Option<Bound>>,
}

#[derive(Debug)]
struct Bound {
    /// The id of its mirror record; none while it has none.
    id: Option<Uuid>,
    dir: Option<DirIdentity>,
    /// Whether it was opened for writing.
    opened: bool,
    /// Its record as it was written last. Known between two attempts only.
    left: Option<MirrorRecord>,
    /// Where the log ended before its durable end, and since when.
    short: Option<(Offset, Instant)>,
}

impl Presence {
    /// From now on only the directory with this record is the sink.
    pub(super) fn opened(&self, id: Uuid, path: &Path) {
        *self.lock() = Some(Bound { id: Some(id), dir: identity(path), opened: true, left: None, short: None });
    }

    /// From now on only this directory, which holds a log or the record with this id, is the sink: it is compared with the
    /// source next.
    pub(super) fn seen(&self, id: Option<Uuid>, dir: Option<DirIdentity>) {
        self.lock().get_or_insert(Bound { id, dir, opened: false, left: None, short: None });
    }

    /// Its record as it was written last, by a writer that has ended.
    pub(super) fn left(&self, record: MirrorRecord) {
        if let Some(bound) = self.lock().as_mut().filter(|bound| bound.id == Some(record.id)) {
            bound.left = Some(record);
        }
    }

    /// Whether a directory was found, so that none is created any more.
    pub(super) fn is_bound(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether this process has opened it for writing.
    pub(super) fn is_opened(&self) -> bool {
        self.lock().as_ref().is_some_and(|bound| bound.opened)
    }

    /// Whether the record with this id is that of the directory that this process opened.
    pub(super) fn is_of(&self, id: Uuid) -> bool {
        self.lock().as_ref().is_some_and(|bound| bound.opened && bound.id == Some(id))
    }

    /// Whether a directory that ends at `next`, before its durable end, may still be on its way back: it is another one than
    /// was opened, and has not been like that for long.
    pub(super) fn is_returning(&self, path: &Path, next: Offset) -> bool {
        let mut bound = self.lock();
        let Some(bound) = bound.as_mut().filter(|bound| bound.opened && bound.dir != identity(path)) else {
            return false;
        };
        let (_, since) = *bound.short.take_if(|(at, _)| *at == next).get_or_insert((next, Instant::now()));
        bound.short = Some((next, since));
        since.elapsed() < SETTLED_AFTER
    }

    /// Checks that `path` is the directory that was found, if one was. Blocks.
    ///
    /// # Errors
    /// [`MirrorError::Away`] while it is not there, another one is, or its record is missing; [`MirrorError::Dir`] when that is
    /// not known now.
    pub(super) fn check(&self, path: &Path) -> Result<(), MirrorError> {
        let bound = self.lock();
        let Some(bound) = &*bound else {
            return Ok(());
        };
        let away = |what: &str| MirrorError::Away { place: path.display().to_string(), what: what.to_owned() };
        let missing = away(if bound.opened { WRITTEN } else { COMPARED });
        let is_same = bound.dir.is_some() && bound.dir == identity(path);
        let Some(id) = bound.id else {
            return if is_same { Ok(()) } else { Err(missing) };
        };
        match recorded(path) {
            Ok(Some(record)) if record.id == id => Ok(()),
            Ok(None) if is_same => {
                let record = path.join(RECORD);
                Err(away(&format!("its mirror record, {}, is missing or damaged", record.display())))
            }
            Ok(_) => Err(missing),
            Err(error) => Err(MirrorError::Dir { place: path.display().to_string(), error }),
        }
    }

    /// The record that the directory that was opened lost, if it is the same directory and has none; `None` otherwise. Whether
    /// its files are as they were left is to be checked before it is [written again](Self::restore).
    pub(super) fn lost_record(&self, path: &Path) -> Option<MirrorRecord> {
        let bound = self.lock();
        let bound = bound.as_ref().filter(|bound| bound.opened && bound.dir.is_some())?;
        let is_same = bound.dir == identity(path) && matches!(recorded(path), Ok(None));
        bound.left.clone().filter(|_| is_same)
    }

    /// Writes a record again that was lost.
    ///
    /// # Errors
    /// [`MirrorError::Dir`], which names the record.
    pub(super) fn restore(path: &Path, repo: &FsRepo, record: MirrorRecord) -> Result<(), MirrorError> {
        let file = path.join(RECORD);
        let written = RecordFile::open(repo, record).and_then(|_| repo.sync_dir());
        written.map_err(|error| MirrorError::Dir { place: file.display().to_string(), error })?;
        log::warn!(
            "{}: the mirror record was missing, and is written again: the files are as they were left",
            file.display()
        );
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Bound>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn recorded(path: &Path) -> io::Result<Option<MirrorRecord>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(_) => MirrorRecord::read(&FsRepo::open(current_dir(path)?)?),
    }
}
