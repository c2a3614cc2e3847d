//! Whether a sink must be given the base of a generation, and what becomes of the one it has: that of another log is never
//! replaced, since the frames of one log would then follow the base of the other.

use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::base::{digest_held, digest_of, unset};
use super::database::off;
use super::endpoint::Mirror;
use super::failure::MirrorError;
use super::missing::fault_of_unnamed;
use super::relay;
use super::shorter;
use super::sink::{DirSink, DirStatus, Sink, SinkStatus};
use super::source::{Extent, Source};
use super::standing::is_unset;
use crate::api::{LastCommit, Positions};
use crate::blame::{Blame, Blamed};
use crate::client::{Client, ClientError, named_base, positions};
use crate::format::LogFormat;
use crate::limits::COMMIT_BYTES_MAX;
use crate::offset::Generation;
use crate::segment::base::{BaseDigest, BaseFault, BaseReader, KnownBase};
use crate::stream::MirrorRecord;

/// In whose place a base is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// There is none, or in a service the one that a log is created with.
    Nothing,
    /// What a directory holds of an older generation of the same log: it goes once the new one is whole.
    Older,
    /// One that may be another log's: it is set aside.
    Another,
    /// One that is damaged or missing, beside frames: it is set aside, and the frames stay.
    Damaged,
    /// All that a directory holds, of whatever generation: it is set aside once the new generation is whole.
    All,
}

impl Instead {
    /// Whether the base is put into a generation beside, which takes the place of what a directory holds once it is whole.
    pub(super) fn is_beside(self) -> bool {
        matches!(self, Instead::Older | Instead::All)
    }
}

impl Sink {
    /// In whose place the base of a source's generation must be put before frames of it; none where it is there. With `create`
    /// a service's log that is not there is created.
    ///
    /// # Errors
    /// [`MirrorError::OtherBase`] when the base of another log is there.
    pub(super) async fn base_due(
        &self,
        source: &Source,
        extent: &Extent,
        create: bool,
    ) -> Result<Option<Instead>, MirrorError> {
        match self {
            Sink::Dir(dir) => in_dir(dir, source, extent).await,
            Sink::Url(client) => in_service(client, source, extent, create).await,
        }
    }

    /// That a sink which is in generation `begun`, of which the source holds nothing any more to compare, is one of this source.
    ///
    /// # Errors
    /// [`MirrorError::Unproven`]. A directory says so itself, and so does a log that notes what it is a copy of.
    pub(super) async fn check_generation_gone(
        &self,
        begun: Generation,
        extent: &Extent,
        mirror: &Mirror,
    ) -> Result<(), MirrorError> {
        let (Sink::Url(client), adopt) = (self, mirror.adopt) else {
            return Ok(());
        };
        if relay::is_of(client, &mirror.identity()).await? {
            return Ok(());
        }
        let found = client.find().await?.as_ref().map(positions).transpose()?;
        let Some(Positions { first, durable, .. }) = found.filter(|_| !adopt) else {
            return Ok(());
        };
        if durable == first && is_unset(client, begun).await? {
            return Ok(());
        }
        let reason = format!(
            "it is in generation {begun}, of which the source holds nothing any more: the source is in generation {}",
            extent.generation
        );
        Err(MirrorError::Unproven { place: client.url().to_string(), reason })
    }
}

/// The base that a sink has of the generation of `extent`, where it is known: that of the source, where both are.
///
/// # Errors
/// [`MirrorError::OtherBase`] when it is another one: frames of the source would follow the base of another log.
pub(super) async fn check_held(
    sink: &Sink,
    status: &SinkStatus,
    source: &Source,
    extent: &Extent,
) -> Result<Option<BaseDigest>, MirrorError> {
    if extent.format != Some(LogFormat::Wal) {
        return Ok(None);
    }
    let (held, of) = match (sink, status) {
        (Sink::Dir(dir), SinkStatus::Dir(Some(found))) => {
            let looking = found.clone();
            let held = off(move || of_generation(&looking)).await?;
            let held = held.map_err(|error| MirrorError::Dir { place: dir.path().display().to_string(), error })?;
            (held, held.map(|held| described(found.record.as_ref(), &held)))
        }
        (Sink::Url(client), SinkStatus::Url(Some(_))) => {
            let own = |error: ClientError| sink.own(error.into());
            let status = client.status_of(extent.generation).await.map_err(own)?;
            let held = named_base(&status, extent.generation).map_err(own)?;
            (held, held.map(|held| of_service(extent.generation, &held)))
        }
        _ => return Ok(None),
    };
    match (held, extent.base) {
        (Some(held), Some(offered)) if held != offered => Err(MirrorError::OtherBase {
            place: sink.place(),
            held: of.unwrap_or_default(),
            offered: offer(source, extent, &offered),
            advice: "mirror SRC into another place",
        }),
        (held, offered) => Ok(held.or(offered)),
    }
}

/// The digest of the base that a directory has, by its record or its sums. Reads no block. Blocks.
fn of_generation(found: &DirStatus) -> io::Result<Option<BaseDigest>> {
    if let Some(recorded) = found.record.as_ref().and_then(|record| record.base) {
        return Ok(Some(recorded));
    }
    match BaseReader::open(&found.repo) {
        Ok(base) => Ok(base.and_then(|base| base.id()).map(|id| id.sha256)),
        // What is wrong with it is reported where it is checked.
        Err(error) if BaseFault::of(&error).is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

fn of_service(generation: Generation, held: &BaseDigest) -> String {
    format!("the base of its generation {generation} has the SHA-256 {}", short(held))
}

async fn in_dir(dir: &Arc<DirSink>, source: &Source, extent: &Extent) -> Result<Option<Instead>, MirrorError> {
    let looking = dir.clone();
    let Some(found) = off(move || looking.status()).await?? else {
        return Ok(Some(Instead::Nothing));
    };
    let record = found.record.as_ref();
    let same_log = record.is_some_and(|record| record.log.is_some() && record.log == extent.log);
    let ours = record.is_some_and(|record| dir.is_named_by(record, extent.log));
    let generation = record.map_or(extent.generation, |record| record.generation);
    let recorded = record.and_then(|record| record.base).filter(|_| generation == extent.generation);
    if ours && generation > extent.generation && !(dir.adopts() && found.survey.first.is_none()) {
        return Err(MirrorError::LaterGeneration { sink: generation, source_generation: extent.generation });
    }
    let other = |held: &BaseDigest, offered: &BaseDigest, frames: bool| MirrorError::OtherBase {
        place: dir.path().display().to_string(),
        held: described(record, held),
        offered: offer(source, extent, offered),
        advice: match frames {
            true => "mirror SRC into a new directory",
            false => "mirror SRC into a new directory, or give --adopt to set the base that is there aside",
        },
    };
    if found.survey.first.is_some() {
        if ours && generation < extent.generation {
            return Ok(Some(Instead::Older));
        }
        // Which base belongs to frames whose record names none, only the source knows.
        let is_unnamed = record.is_none_or(|record| record.base.is_none());
        let unnamed = match is_unnamed && found.survey.format == Some(LogFormat::Wal) {
            true => Some(offered_by(source, extent).await?),
            false => None,
        };
        let checked = match unnamed {
            Some(offered) => base_is(dir, &found, offered).await,
            None => base_is_there(dir, &found).await,
        };
        match checked {
            Err(MirrorError::BaseDamaged { fault, .. }) if dir.adopts() && (ours || unnamed.is_some()) => {
                if !ours && !ends_as(source, extent, &found).await? {
                    let (place, held) = (dir.path().display().to_string(), fault.to_string());
                    let offered = offer(source, extent, &offered_by(source, extent).await?);
                    return Err(MirrorError::OtherBase {
                        place,
                        held,
                        offered,
                        advice: "mirror SRC into a new directory",
                    });
                }
                let offered = digest_of(source, extent.generation).await?;
                if let Some(held) = recorded.filter(|held| *held != offered) {
                    return Err(other(&held, &offered, true));
                }
                log::warn!("{fault}: it is set aside, and copied from the source again");
                return Ok(Some(Instead::Damaged));
            }
            checked => checked?,
        }
        if let Some(offered) = unnamed {
            // From now on its record names it.
            if found.based {
                dir.record_base(offered);
            }
            return Ok(None);
        }
        if let Some((record, held)) = record.and_then(|record| Some((record, record.base?)))
            && !ours
            && record.generation != extent.generation
        {
            let offered = digest_of(source, extent.generation).await?;
            return Err(other(&held, &offered, true));
        }
        // Frames are compared themselves, where both sides hold some.
        let Some(held) = recorded.filter(|_| !(ours && (same_log || matches!(source, Source::Dir(_))))) else {
            return Ok(None);
        };
        let offered = digest_of(source, extent.generation).await?;
        return if offered == held { Ok(None) } else { Err(other(&held, &offered, true)) };
    }
    if !found.based || (record.is_none() && !dir.adopts()) {
        return Ok(Some(Instead::Nothing));
    }
    if same_log && recorded == Some(unset()) && extent.base.is_some_and(|base| base != unset()) {
        // The source was given its first base since.
        return Ok(Some(Instead::Another));
    }
    if same_log && recorded.is_some() {
        return match base_is_there(dir, &found).await {
            Err(MirrorError::BaseDamaged { fault, .. }) => {
                log::warn!("{fault}: the base is copied again");
                Ok(Some(Instead::Another))
            }
            checked => checked.map(|()| None),
        };
    }
    let repo = found.repo.clone();
    let held = match off(move || digest_held(&repo)).await? {
        Err(error @ MirrorError::BaseDamaged { .. }) if ours || dir.adopts() => {
            log::warn!("{error}: the base is copied again");
            return Ok(Some(Instead::Another));
        }
        held => held?,
    };
    let offered = digest_of(source, extent.generation).await?;
    if offered == held {
        dir.record_base(held);
        return Ok(None);
    }
    match (ours && generation < extent.generation, same_log) {
        (true, true) => Ok(Some(Instead::Older)),
        (true, false) => Ok(Some(Instead::Another)),
        (false, _) if dir.adopts() => Ok(Some(Instead::Another)),
        (false, _) => Err(other(&held, &offered, false)),
    }
}

async fn in_service(
    client: &Client,
    source: &Source,
    extent: &Extent,
    create: bool,
) -> Result<Option<Instead>, MirrorError> {
    let status = match client.find().await? {
        Some(status) => status,
        None if !create => return Ok(Some(Instead::Nothing)),
        // Its first generation is the source's.
        None => client.create_wal(extent.generation, relay::policy_of(source).await?).await?,
    };
    let Positions { format, generation, first, durable, .. } = positions(&status)?;
    if generation > extent.generation {
        return Err(MirrorError::LaterGeneration { sink: generation, source_generation: extent.generation });
    }
    if format != LogFormat::Wal || (generation == extent.generation && durable > first) {
        return Ok(None);
    }
    if generation < extent.generation {
        return Ok(Some(Instead::Nothing));
    }
    // An attempt before may have ended right after the log was created.
    if is_unset(client, generation).await? {
        return Ok(Some(Instead::Nothing));
    }
    let held = digest_of_service(client, generation).await?;
    let offered = digest_of(source, generation).await?;
    if offered == held {
        return Ok(None);
    }
    Err(MirrorError::OtherBase {
        place: client.url().to_string(),
        held: of_service(generation, &held),
        offered: offer(source, extent, &offered),
        advice: "mirror SRC into a new log",
    })
}

async fn digest_of_service(client: &Client, generation: Generation) -> Result<BaseDigest, MirrorError> {
    digest_of(&Source::Url(client.clone()), generation).await
}

/// That a sink with frames still has the base that its record says.
async fn base_is_there(dir: &Arc<DirSink>, found: &DirStatus) -> Result<(), MirrorError> {
    let (looking, status) = (dir.clone(), found.clone());
    is_sound(dir, off(move || looking.base_fault(&status)).await?)
}

/// That a sink whose record names no base has the one with this digest: all of it is read.
async fn base_is(dir: &DirSink, found: &DirStatus, offered: BaseDigest) -> Result<(), MirrorError> {
    let repo = found.repo.clone();
    let known = KnownBase { exists: offered != unset(), bytes: None, sha256: Some(offered) };
    is_sound(dir, off(move || fault_of_unnamed(&repo, &known)).await?)
}

fn is_sound(dir: &DirSink, fault: io::Result<Option<BaseFault>>) -> Result<(), MirrorError> {
    match fault {
        Ok(None) => Ok(()),
        Ok(Some(fault)) => Err(MirrorError::BaseDamaged { side: "sink", fault }),
        Err(error) => Err(MirrorError::Dir { place: dir.path().display().to_string(), error }),
    }
}

/// The digest of the base of a generation, as its source says.
async fn offered_by(source: &Source, extent: &Extent) -> Result<BaseDigest, MirrorError> {
    match extent.base {
        Some(offered) => Ok(offered),
        None => digest_of(source, extent.generation).await,
    }
}

/// Whether the source holds the last commit of a directory.
async fn ends_as(source: &Source, extent: &Extent, found: &DirStatus) -> Result<bool, MirrorError> {
    let Some(last) = found.survey.last.as_ref().map(LastCommit::from) else {
        return Ok(false);
    };
    match shorter::commit_at(source, extent.generation, last.offset, COMMIT_BYTES_MAX).await {
        Ok(held) => Ok(held == Some(last)),
        Err(error) if matches!(error.blame(), Blame::Data | Blame::Usage) => Ok(false),
        Err(error) => Err(error),
    }
}

fn described(record: Option<&MirrorRecord>, held: &BaseDigest) -> String {
    let Some(record) = record else {
        return format!("there is one without a mirror record, with the SHA-256 {}", short(held));
    };
    format!("the one there is of {}{}, with the SHA-256 {}", record.source, log_id(record.log), short(held))
}

fn offer(source: &Source, extent: &Extent, offered: &BaseDigest) -> String {
    let place = match source {
        Source::Url(client) => client.url().to_string(),
        Source::Dir(repo) => repo.path().display().to_string(),
    };
    format!("that of SRC is of {place}{}, with the SHA-256 {}", log_id(extent.log), short(offered))
}

fn log_id(log: Option<Uuid>) -> String {
    log.map_or(String::new(), |log| format!(" (log {log})"))
}

/// The start of a digest, for people.
fn short(digest: &BaseDigest) -> String {
    format!("{:.12}…", digest.to_string())
}
