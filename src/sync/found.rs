//! What is at the path of a replica before anything there is opened for writing. A file without metadata may be an application's:
//! it counts as a replica only if all that it holds is the server's. Reads, and changes nothing.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::SyncError;
use super::local::{LocalLog, check_database};
use super::metadata::{INFO, Unusable};
use super::push::info_of;
use super::push_mark::PushMark;
use super::remote::{Pulled, Range, Remote};
use super::replica::place;
use super::{Position, base, into_file, off};
use crate::limits::{DAMAGE_LOOK_AGAIN, DAMAGE_LOOKS};
use crate::repo::open_regular;
use crate::sqlite::DatabaseError;
use crate::sqlite::names::{WAL, beside, is_no_side_file};

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No file.
    Nothing,
    /// A file without a byte, without metadata and a WAL.
    Blank,
    /// A file with metadata.
    WithMetadata,
    /// A database that is pushed from here, of which frames were checkpointed that it had then: an application's.
    Pushed,
    /// A file without metadata, or with such as cannot be believed.
    Unknown,
}

/// What is at `path`, which may be replaced.
///
/// # Errors
/// [`SyncError::Link`]; when it cannot be found out.
pub(super) fn at(path: &Path) -> Result<Found, SyncError> {
    is_no_side_file(path)?;
    let io = |error| DatabaseError::io("opening", path, error);
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        return Err(SyncError::Link { path: path.to_owned() });
    }
    let length = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        found => found.map_err(io)?.len(),
    };
    match fs::symlink_metadata(beside(path, INFO)) {
        Ok(_) => with_metadata(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error).into()),
        Err(_) if length == 0 && fs::symlink_metadata(beside(path, WAL)).is_err() => Ok(Found::Blank),
        Err(_) => Ok(Found::Unknown),
    }
}

fn with_metadata(path: &Path) -> Result<Found, SyncError> {
    let (Position { frame, .. }, mark) = match pushed_as(path)? {
        Ok(Some(pushed)) => pushed,
        Ok(None) => return Ok(Found::WithMetadata),
        Err(_) => return Ok(Found::Unknown),
    };
    let log = LocalLog::open(path)?;
    // Frame n of the generation must be frame n of the WAL.
    let is_whole = mark.wal().is_some_and(|at| at.frames == u64::from(frame) && log.holds(frame, at.salts, at.chain));
    Ok(if is_whole { Found::WithMetadata } else { Found::Pushed })
}

/// As [`MetadataFile::pushed`](super::metadata::MetadataFile::pushed).
fn pushed_as(path: &Path) -> Result<Result<Option<(Position, PushMark)>, Unusable>, SyncError> {
    Ok(info_of(path)?.pushed().map_err(|error| DatabaseError::io("reading the -info file of", path, error))?)
}

/// That a pull does not replace a database that is pushed.
pub(super) fn pushed(path: &Path) -> SyncError {
    let what = format!("its metadata ({}-info) say that it is pushed from here", path.display());
    SyncError::NotOurs { path: path.to_owned(), what }
}

/// What a database was proved to hold, and by what.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) position: Position,
    /// The server's base, if it gives one out.
    pub(super) base: Option<Arc<File>>,
    /// The WAL with the frames.
    pub(super) log: Arc<LocalLog>,
}

/// How far a database without metadata holds what the server does, and nothing else: all pages are the base's or those of frames in
/// its WAL, and those frames are the server's first ones.
///
/// # Errors
/// [`SyncError::NotOurs`] where it holds something else, and says what; see [`SyncError`].
pub(super) async fn prove(remote: &Remote, path: &Path, batch: u32) -> Result<Proof, SyncError> {
    let database = path.to_owned();
    let why = match off(move || pushed_as(&database)).await?? {
        Err(why) => why,
        Ok(_) => {
            let what = "its -info file was written meanwhile";
            return Err(DatabaseError::Changed { path: path.to_owned(), what }.into());
        }
    };
    let not_ours = |what: String| {
        let what = format!("there are no metadata of a replica ({}-info: {why}), and {what}", path.display());
        SyncError::NotOurs { path: path.to_owned(), what }
    };
    let database = path.to_owned();
    // What cannot be a replica at all needs no server.
    if let Some(what) = off(move || not_a_replica(&database)).await?? {
        return Err(not_ours(what));
    }
    let (generation, exported) = export(remote, path).await?;
    let mut looks = 0;
    let log = loop {
        let (base, database) = (exported.clone(), path.to_owned());
        let looked = off(move || {
            let file = open(&database)?;
            let log = LocalLog::open(&database)?;
            let stranger = base::stranger(&database, &file, base.as_deref(), &log)?;
            Ok::<_, SyncError>((log, stranger))
        });
        match looked.await?? {
            (log, None) => break log,
            // A checkpoint may be in the middle of that page.
            (_, Some(_)) if looks < DAMAGE_LOOKS => looks += 1,
            (_, Some(page)) => {
                return Err(not_ours(format!(
                    "page {page} is neither that of the base of the server's generation {generation} nor in a frame of its WAL"
                )));
            }
        }
        tokio::time::sleep(DAMAGE_LOOK_AGAIN).await;
    };
    let (frames, log) = (log.frames(), Arc::new(log));
    let mut start = 1;
    while start <= frames {
        let end = start.saturating_add(batch).min(frames + 1);
        let Pulled::Frames(theirs) = remote.pull(Range { generation, start, end }).await? else {
            let held = start - 1;
            return Err(not_ours(format!(
                "its WAL has {frames} frames, of which the server has {held} in generation {generation}"
            )));
        };
        let (log, count) = (log.clone(), (theirs.len() / super::FRAME_LEN) as u32);
        if let Some(frame) = off(move || log.differs(start, &theirs)).await?? {
            return Err(not_ours(format!("frame {frame} of its WAL is not the server's in generation {generation}")));
        }
        start += count;
    }
    Ok(Proof { position: Position { generation, frame: frames }, base: exported, log })
}

fn open(path: &Path) -> Result<File, DatabaseError> {
    open_regular(path, File::options().read(true)).map_err(|error| DatabaseError::io("opening", path, error))
}

/// Why a file can be no replica, whatever the server has.
fn not_a_replica(path: &Path) -> Result<Option<String>, SyncError> {
    match check_database(path, &open(path)?) {
        Ok(_) => Ok(None),
        Err(error @ SyncError::Database(DatabaseError::Io { .. })) => Err(error),
        Err(SyncError::PageSize { found, .. }) => {
            Ok(Some(format!("it has pages of {found} bytes, and replicas of 4096")))
        }
        Err(_) => Ok(Some("the file is no SQLite database".to_owned())),
    }
}

/// The server's generation and its base, in a file without a name.
async fn export(remote: &Remote, path: &Path) -> Result<(u32, Option<Arc<File>>), SyncError> {
    let Some(generation) = remote.info().await? else {
        // The first servers had no generations, and nothing to start from; but frames, unless this is no such server.
        remote.pull(Range { generation: 1, start: 1, end: 2 }).await?;
        return Ok((1, None));
    };
    let (dir, _) = place(path)?;
    let made =
        off(move || tempfile::tempfile_in(&dir).map_err(|error| DatabaseError::io("making a file in", &dir, error)));
    let file = Arc::new(made.await??);
    remote.export(generation, into_file(&file)).await?;
    Ok((generation, Some(file)))
}
