//! Where a sink stands with a WAL, and whether it holds the same database as a source.

use std::io;
use std::path::Path;

use super::base::{digest_of, unset};
use super::database::off;
use super::failure::MirrorError;
use super::missing::{base_fault_of_service, fault_of_unnamed};
use super::received_sums::ReceivedSums;
use super::sink::{DirSink, DirStatus, Sink};
use super::source::Source;
use crate::api::Positions;
use crate::checkpoint::{FoldError, RestoreError, each_page};
use crate::client::{Client, positions};
use crate::format::name::BASE;
use crate::format::wal::{Chain, FIRST_FRAME, WalStart};
use crate::format::{Framing, LogFormat};
use crate::offset::{Generation, Offset};
use crate::repo::{FsRepo, Repo};
use crate::segment::base::{BaseDigest, BaseReader, KnownBase};
use crate::sqlite::page_sums::{PageSums, new_key};
use crate::stream::{current_dir, current_generation};

/// Where a sink stands with its generation of a WAL.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) generation: Generation,
    /// The frame it goes on with.
    pub(super) next: Offset,
    /// How it goes on there; none while it has no frame.
    pub(super) end: Option<WalStart>,
    /// Whether it has a base: a directory may not.
    pub(super) based: bool,
    /// What is wrong with the base that it should have.
    pub(super) base_fault: Option<String>,
    /// The base of a directory with frames whose record names none, which matches its checksums.
    pub(super) unnamed_base: Option<BaseDigest>,
    /// Whether the mirror record of a directory names this source.
    pub(super) is_recorded: bool,
    /// Whether it says that the content comes from a log of a service: what a directory notes of a database is of before then.
    pub(super) is_of_log: bool,
}

impl Standing {
    /// Of a sink that does not exist.
    pub(super) const NONE: Standing = Standing {
        generation: Generation::FIRST,
        next: FIRST_FRAME,
        end: None,
        based: false,
        base_fault: None,
        unnamed_base: None,
        is_recorded: false,
        is_of_log: false,
    };
}

impl Sink {
    /// Where it stands with a WAL. With `create` a service's log that is not there is created.
    pub(super) async fn standing(&self, create: bool) -> Result<Standing, MirrorError> {
        match self {
            Sink::Url(client) => {
                let status = client.find().await?;
                let found = status.as_ref().map(positions).transpose()?;
                if found.is_none() && !create {
                    return Ok(Standing::NONE);
                }
                let base_fault = status.as_ref().and_then(base_fault_of_service);
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
                Ok(Standing { generation, next, end, based: true, base_fault, ..Standing::NONE })
            }
            Sink::Dir(dir) => {
                let dir = dir.clone();
                off(move || of_dir(&dir)).await?
            }
        }
    }

    /// Whether nothing was stored there yet.
    pub(super) async fn is_unset(&self, standing: &Standing) -> Result<bool, MirrorError> {
        match self {
            _ if standing.end.is_some() => Ok(false),
            _ if !standing.based => Ok(true),
            Sink::Url(client) => is_unset(client, standing.generation).await,
            Sink::Dir(..) => Ok(false),
        }
    }

    /// The sums of the pages of its database as of its last frame; none when its pages have another size.
    pub(super) async fn page_sums(
        &self,
        standing: &Standing,
        page_size: Option<u32>,
    ) -> Result<Option<PageSums>, MirrorError> {
        let Some(page_size) = page_size else {
            return Ok(None);
        };
        match self {
            Sink::Url(client) => sums_of_service(client, standing.next, page_size).await,
            Sink::Dir(dir) => {
                let (place, key) = (dir.path().to_owned(), new_key());
                off(move || sums_of_dir(&place, (key, page_size))).await?
            }
        }
    }
}

/// Asks a service whose log ends at `next`.
async fn sums_of_service(client: &Client, next: Offset, page_size: u32) -> Result<Option<PageSums>, MirrorError> {
    match ReceivedSums::of(client, Some(page_size)).await? {
        Some(found) if found.next != next => {
            let text = format!("the sink moved from offset {next} to {} meanwhile", found.next);
            Err(MirrorError::Interrupted(text))
        }
        found => Ok(found.map(|found| found.sums)),
    }
}

fn sums_of_dir(place: &Path, (key, page_size): (u64, u32)) -> Result<Option<PageSums>, MirrorError> {
    let dir = current_dir(place).map_err(|error| at(&place.display().to_string(), error))?;
    let repo = FsRepo::open(dir).map_err(|error| at(&place.display().to_string(), error))?;
    let mut sums = PageSums::new(key);
    let found = each_page(&repo, |page, content| {
        let sum = sums.sum_of(content);
        sums.set(page, sum).map_err(|error| at("a temporary file", error))
    });
    let found = found.map_err(|error| match error {
        MirrorError::Restore(RestoreError::Fold(FoldError::Base(fault))) => {
            MirrorError::BaseDamaged { side: "sink", fault }
        }
        error => error,
    })?;
    Ok(found.is_none_or(|found| found == page_size).then_some(sums))
}

fn at(place: &str, error: io::Error) -> MirrorError {
    MirrorError::Dir { place: place.to_owned(), error }
}

/// Whether a generation has the base that a log is created with, and no other.
pub(super) async fn is_unset(client: &Client, generation: Generation) -> Result<bool, MirrorError> {
    let status = client.status_of(generation).await?;
    if status.source.is_some_and(|source| source.awaits_base) {
        return Ok(true);
    }
    match status.base {
        Some(base) => Ok(base.sha256 == unset().to_string()),
        // One without sums yet.
        None => Ok(digest_of(&Source::Url(client.clone()), generation).await? == unset()),
    }
}

fn of_dir(dir: &DirSink) -> Result<Standing, MirrorError> {
    let Some(status) = dir.status_of_wal()? else {
        return Ok(Standing::NONE);
    };
    let of_dir = |error| at(&dir.path().display().to_string(), error);
    let is_unnamed = status.survey.first.is_some() && status.record.as_ref().is_none_or(|it| it.base.is_none());
    let (unnamed_base, base_fault) = match is_unnamed {
        true => match vouched(&status.repo).map_err(of_dir)? {
            Ok(digest) => (Some(digest), None),
            Err(fault) => (None, Some(fault)),
        },
        false => (None, dir.base_fault(&status).map_err(of_dir)?.map(|fault| fault.to_string())),
    };
    let named = current_generation(dir.path()).map_err(of_dir)?.map(|(generation, _)| generation);
    let DirStatus { survey: found, record, based, .. } = status;
    let generation = record.as_ref().map(|record| record.generation).max(named).unwrap_or(Generation::FIRST);
    let is_recorded = record.as_ref().is_some_and(|record| dir.is_fed_by(record));
    let is_of_log = record.as_ref().is_some_and(|record| record.log.is_some());
    let framing = found.segments.last().map(|segment| segment.framing);
    let end = match (framing, found.last) {
        (Some(Framing::Wal(Some(start))), Some(last)) => {
            Some(WalStart { chain: Chain::from_number(last.checksum), ..start })
        }
        _ => None,
    };
    let next = if end.is_some() { found.next } else { FIRST_FRAME };
    Ok(Standing { generation, next, end, based, base_fault, unnamed_base, is_recorded, is_of_log })
}

/// The digest of a base that no record names, which its checksums vouch for: all of it is read. Otherwise why they do not. Blocks.
fn vouched(repo: &FsRepo) -> io::Result<Result<BaseDigest, String>> {
    let known = KnownBase { exists: true, bytes: None, sha256: None };
    if let Some(fault) = fault_of_unnamed(repo, &known)? {
        return Ok(Err(fault.to_string()));
    }
    let base = BaseReader::open(repo)?.filter(|base| !base.is_unproven()).and_then(|base| base.id());
    let unproven = || format!("nothing says that {}/{BASE} is what its frames follow", repo.place());
    Ok(base.map(|id| id.sha256).ok_or_else(unproven))
}
