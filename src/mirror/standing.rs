//! Where a sink stands with a WAL, and whether it holds the same database as a source.

use std::path::Path;

use bytes::{Buf, BytesMut};
use futures::TryStreamExt;
use uuid::Uuid;

use super::base::{digest_of, unset};
use super::database::off;
use super::failure::MirrorError;
use super::missing::{base_fault, base_fault_of_service};
use super::page_sums::HEAD_LEN;
use super::sink::{DirSink, DirStatus, Sink};
use super::source::Source;
use crate::api::Positions;
use crate::checkpoint::{FoldError, RestoreError, each_page};
use crate::client::{Client, ClientError, positions};
use crate::format::wal::{Chain, FIRST_FRAME, WalStart, is_page_size};
use crate::format::{Framing, LogFormat};
use crate::offset::{Generation, Offset};
use crate::repo::FsRepo;
use crate::sqlite::page_sums::PageSums;
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
                Ok(Standing { generation, next, end, based: true, base_fault, is_recorded: false, is_of_log: false })
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
        let key = Uuid::new_v4().as_u64_pair().0;
        match self {
            Sink::Url(client) => sums_of_service(client, standing.next, (key, page_size)).await,
            Sink::Dir(dir) => {
                let place = dir.path().to_owned();
                off(move || sums_of_dir(&place, (key, page_size))).await?
            }
        }
    }
}

/// Asks a service whose log ends at `next`.
async fn sums_of_service(
    client: &Client,
    next: Offset,
    (key, page_size): (u64, u32),
) -> Result<Option<PageSums>, MirrorError> {
    let mut pieces = std::pin::pin!(client.page_sums(key).await?);
    let (mut bytes, mut sums, mut page, mut head) = (BytesMut::new(), PageSums::new(key), 0, None);
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
        if head.is_none() && bytes.len() >= HEAD_LEN {
            let found = (Offset(bytes.get_u64_le()), bytes.get_u32_le(), bytes.get_u32_le());
            if found.2 > 0 && !is_page_size(found.1) {
                let what = format!("it says that the pages of the log have {} bytes, as no database's have", found.1);
                return Err(ClientError::NotFromService { what }.into());
            }
            if found.1 != page_size && found.2 > 0 {
                return Ok(None);
            }
            head = Some(found);
        }
        while head.is_some() && bytes.len() >= 8 {
            page += 1;
            sums.set(page, bytes.get_u64_le()).map_err(|error| at("a temporary file", error))?;
        }
    }
    match head {
        Some((found, _, pages)) if found == next && pages == page => Ok(Some(sums)),
        Some((found, ..)) if found != next => {
            Err(MirrorError::Interrupted(format!("the sink moved from offset {next} to {found} meanwhile")))
        }
        _ => Err(MirrorError::Interrupted("the checksums of the sink's pages broke off".to_owned())),
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

fn at(place: &str, error: std::io::Error) -> MirrorError {
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
    let fault = base_fault(&status, status.record.is_some() && status.survey.first.is_some()).map_err(of_dir)?;
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
    let base_fault = fault.map(|fault| fault.to_string());
    Ok(Standing { generation, next, end, based, base_fault, is_recorded, is_of_log })
}
