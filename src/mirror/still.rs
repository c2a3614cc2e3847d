//! Whether a directory that ends inside a commit is being written, or was left like that.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

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
        if database_is_open(repo.path()) {
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

/// Whether a SpacetimeDB holds the `db.lock` beside `dir`. Taking that lock would keep one from starting, so the kernel's list
/// is read instead.
fn database_is_open(dir: &Path) -> bool {
    let Ok(dir) = fs::canonicalize(dir) else {
        return false;
    };
    let lock = dir.parent().map(|above| above.join("db.lock")).and_then(|lock| fs::metadata(lock).ok());
    let (Some(lock), Ok(locks)) = (lock, fs::read_to_string("/proc/locks")) else {
        return false;
    };
    let (major, minor) = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", lock.ino());
    locks.lines().any(|line| line.contains(" FLOCK ") && line.split_whitespace().any(|field| field == file))
}
