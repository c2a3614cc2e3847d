//! Whether a directory that ends inside a commit is being written, or was left like that.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::ownership::{DbLock, db_lock_state};
use crate::format::name;
use crate::limits::{STILL_AFTER, STILL_WAIT};
use crate::offset::Offset;
use crate::repo::FsRepo;
use crate::stream::{format_of, segment_starts};

/// What the end of a directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was written a moment ago: see what comes.
    Wait,
    /// It is being written: its database is open, or it does not come to rest.
    Live,
    /// Nobody writes it.
    Still,
}

/// Watches the end of a directory, from the first question on.
#[derive(Debug)]
pub(super) struct Stillness {
    asked: Option<Instant>,
    /// The last segment, its length and time of change, and since when they have been so.
    seen: Option<((Offset, u64, i64, i64), Instant)>,
}

impl Stillness {
    pub(super) fn new() -> Stillness {
        Stillness { asked: None, seen: None }
    }

    pub(super) fn verdict(&mut self, repo: &FsRepo) -> Verdict {
        if let DbLock::Held { .. } = db_lock_state(repo.path()) {
            return Verdict::Live;
        }
        let asked = *self.asked.get_or_insert_with(Instant::now);
        let Some((start, found)) = last_segment(repo) else {
            return if asked.elapsed() >= STILL_WAIT { Verdict::Still } else { Verdict::Wait };
        };
        let sign = (start, found.len(), found.mtime(), found.mtime_nsec());
        let since = match self.seen {
            Some((seen, since)) if seen == sign => since,
            _ => {
                let since = Instant::now();
                self.seen = Some((sign, since));
                since
            }
        };
        let age = found.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or(Duration::ZERO);
        if age.max(since.elapsed()) >= STILL_AFTER {
            Verdict::Still
        } else if asked.elapsed() >= STILL_WAIT {
            Verdict::Live
        } else {
            Verdict::Wait
        }
    }
}

fn last_segment(repo: &FsRepo) -> Option<(Offset, Metadata)> {
    let last = segment_starts(repo).ok()?.last().copied()?;
    let path = repo.path().join(name::segment(format_of(repo).ok()??, last));
    Some((last, fs::metadata(path).ok()?))
}
