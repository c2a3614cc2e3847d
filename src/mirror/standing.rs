//! Where a sink stands with a WAL, and whether it holds the same database as a source.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;

use super::database::off;
use super::failure::MirrorError;
use super::sink::{DirSink, DirStatus, Sink};
use crate::api::Positions;
use crate::checkpoint::{RestoreError, Wanted, restore_dir, restore_url};
use crate::client::{Client, positions};
use crate::format::wal::{Chain, FIRST_FRAME, WalStart};
use crate::format::{Framing, LogFormat, database};
use crate::limits::{COMPARE_BYTES_MAX, LIBSQL_PAGE_SIZE, READ_BLOCK};
use crate::offset::{Generation, Offset};
use crate::sqlite::Snapshot;

/// Where a sink stands with its generation of a WAL.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) generation: Generation,
    /// The frame it goes on with.
    pub(super) next: Offset,
    /// How it goes on there; none while it has no frame.
    pub(super) end: Option<WalStart>,
    /// Whether it has a base: a directory may not.
    pub(super) based: bool,
}

impl Standing {
    /// Of a sink that does not exist.
    const NONE: Standing = Standing { generation: Generation::FIRST, next: FIRST_FRAME, end: None, based: false };
}

/// How the database of a sink compares with that of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    /// They are the same, byte by byte.
    Same,
    /// Nothing was stored there yet.
    Unset,
    /// They differ, or it would take too long to tell.
    Other,
}

impl Sink {
    /// Where it stands with a WAL. With `create` a service's log that is not there is created.
    pub(super) async fn standing(&self, create: bool) -> Result<Standing, MirrorError> {
        match self {
            Sink::Url(client) => {
                let found = client.find().await?.as_ref().map(positions).transpose()?;
                if found.is_none() && !create {
                    return Ok(Standing::NONE);
                }
                let found = match found.filter(|found| found.format == LogFormat::Wal) {
                    Some(found) => found,
                    // The service says so itself when it is there in another format.
                    None => positions(&client.create(LogFormat::Wal, None).await?)?,
                };
                let Positions { generation, first, durable: next, .. } = found;
                let end = if next > first {
                    match client.read_of(Some(generation), next, Some(next), false).await?.framing {
                        Framing::Wal(end) => end,
                        Framing::Commitlog(_) => None,
                    }
                } else {
                    None
                };
                Ok(Standing { generation, next, end, based: true })
            }
            Sink::Dir(dir) => {
                let dir = dir.clone();
                off(move || of_dir(&dir)).await?
            }
        }
    }

    /// How its database, as of its last frame, compares with the base of a snapshot, or with what was made up instead.
    pub(super) async fn is_like(
        &self,
        standing: &Standing,
        snapshot: Arc<Snapshot>,
        made: Option<Vec<u8>>,
    ) -> Result<Likeness, MirrorError> {
        let unset = match self {
            _ if standing.end.is_some() => false,
            _ if !standing.based => true,
            Sink::Url(client) => is_unset(client, standing.generation).await?,
            Sink::Dir(..) => false,
        };
        if unset {
            return Ok(Likeness::Unset);
        }
        if snapshot.base_bytes().is_some_and(|bytes| bytes > COMPARE_BYTES_MAX) {
            return Ok(Likeness::Other);
        }
        let dir = tempfile::tempdir().map_err(|error| at("a temporary directory", error))?;
        let out = dir.path().join("sink.db");
        match self {
            Sink::Url(client) => download(client, standing.generation, &out).await?,
            Sink::Dir(dir) => {
                let (place, wanted) = (dir.path().to_owned(), wanted(&out, None));
                off(move || restore_dir(&place, &wanted)).await??;
            }
        }
        off(move || {
            let file = File::open(&out).map_err(|error| at("a temporary file", error))?;
            let same = same(&file, &snapshot, made.as_deref())?;
            // Its files were there until now.
            drop(dir);
            Ok(if same { Likeness::Same } else { Likeness::Other })
        })
        .await?
    }
}

fn at(place: &str, error: std::io::Error) -> MirrorError {
    MirrorError::Dir { place: place.to_owned(), error }
}

fn wanted(out: &Path, generation: Option<Generation>) -> Wanted {
    Wanted { to: None, generation, out: out.to_owned(), overwrite: false }
}

async fn download(client: &Client, generation: Generation, out: &Path) -> Result<(), MirrorError> {
    match restore_url(client, &wanted(out, Some(generation))).await {
        Ok(_) => Ok(()),
        Err(RestoreError::Client(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a generation has the base that a log is created with, and no other.
async fn is_unset(client: &Client, generation: Generation) -> Result<bool, MirrorError> {
    let unset = database::empty(LIBSQL_PAGE_SIZE);
    let mut rest = &unset[..];
    let mut base = std::pin::pin!(client.base(generation).await?);
    while let Some(bytes) = base.try_next().await? {
        match rest.strip_prefix(&bytes[..]) {
            Some(left) => rest = left,
            None => return Ok(false),
        }
    }
    Ok(rest.is_empty())
}

fn of_dir(dir: &DirSink) -> Result<Standing, MirrorError> {
    let Some(DirStatus { survey: found, based, .. }) = dir.status_of_wal()? else {
        return Ok(Standing::NONE);
    };
    let framing = found.segments.last().map(|segment| segment.framing);
    let end = match (framing, found.last) {
        (Some(Framing::Wal(Some(start))), Some(last)) => {
            Some(WalStart { chain: Chain::from_number(last.checksum), ..start })
        }
        _ => None,
    };
    let next = if end.is_some() { found.next } else { FIRST_FRAME };
    Ok(Standing { generation: Generation::FIRST, next, end, based })
}

/// Whether a file holds the base of a snapshot, or what was made up instead.
fn same(file: &File, snapshot: &Snapshot, made: Option<&[u8]>) -> Result<bool, MirrorError> {
    let failed = |error| at("a temporary file", error);
    let bytes = file.metadata().map_err(failed)?.len();
    let wanted = made.map_or(snapshot.base_bytes(), |made| Some(made.len() as u64));
    if wanted != Some(bytes) {
        return Ok(false);
    }
    let (mut ours, mut theirs, mut done) = (vec![0; READ_BLOCK], vec![0; READ_BLOCK], 0);
    while done < bytes {
        let want = usize::try_from(bytes - done).unwrap_or(READ_BLOCK).min(READ_BLOCK);
        file.read_exact_at(&mut theirs[..want], done).map_err(failed)?;
        let equal = match made {
            Some(made) => made.get(done as usize..).is_some_and(|rest| rest.starts_with(&theirs[..want])),
            None => snapshot.read_base(done, &mut ours[..want])? == want && ours[..want] == theirs[..want],
        };
        if !equal {
            return Ok(false);
        }
        done += want as u64;
    }
    // What was compared must have been one state.
    snapshot.check()?;
    Ok(true)
}
