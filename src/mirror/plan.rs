//! What a mirror would do, found out without changing anything: the steps of a run up to where it would open the sink.

use std::fmt;

use super::attempt::meet;
use super::base_due::Instead;
use super::copies;
use super::database::{Database, find_start, off};
use super::distance::{SharedWal, measure_dir};
use super::endpoint::{Mirror, Place};
use super::failure::MirrorError;
use super::pump::compare;
use super::relay::Relay;
use super::replica_file::{self, ReplicaFile};
use super::run::{Origin, file_of};
use super::sink::{LostEnd, Sink, SinkStatus};
use super::source::{Extent, Source};
use crate::format::LogFormat;
use crate::offset::{Generation, Offset};
use crate::stream::{Tail, TornContent};

/// What a mirror would do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The directory or log that would be created.
    pub creates: Option<String>,
    /// The offset of the sink's last commit, if it was compared: the source holds the same one.
    pub compares: Option<Offset>,
    /// The first offset that would be sent; none when the source is empty.
    pub from: Option<Offset>,
    /// The end of what would be sent; none when that is not known without reading it.
    pub to: Option<Offset>,
    /// Its bytes, roughly.
    pub bytes: u64,
    /// What else is to be known.
    pub notes: Vec<String>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.creates {
            Some(place) => writeln!(f, "create    {place}")?,
            None => writeln!(f, "create    nothing: DST exists")?,
        }
        match self.compares {
            Some(at) => writeln!(f, "compare   the commit at offset {at} is the same on both sides")?,
            None => writeln!(f, "compare   nothing: DST and SRC hold no commit in common")?,
        }
        match (self.from, self.to) {
            (Some(from), Some(to)) if from >= to => writeln!(f, "send      nothing: DST is up to date at offset {to}")?,
            (Some(from), Some(to)) => writeln!(f, "send      offsets {from}..{to}, about {} bytes", self.bytes)?,
            (Some(from), None) => writeln!(f, "send      from offset {from}, about {} bytes", self.bytes)?,
            (None, _) => writeln!(f, "send      nothing: SRC is empty")?,
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note      {note}"))
    }
}

/// Finds out what [`run`](super::run()) would do. Reads both sides, and changes neither.
///
/// # Errors
/// Those that would stop the mirror before anything is sent.
pub async fn plan(mirror: &Mirror) -> Result<Plan, MirrorError> {
    let mirror = &Mirror { follow: false, ..mirror.clone() };
    if let Some(path) = file_of(mirror, false) {
        return match Origin::for_file(mirror, path, &SharedWal::default())? {
            Origin::Log(source) => replica_file::plan(mirror, &source, &ReplicaFile::new(path)).await,
            Origin::Database(database) => plan_database(&database, &Sink::find(mirror)?).await,
        };
    }
    let sink = &Sink::find(mirror)?;
    let origin = Origin::find(mirror, &SharedWal::default())?;
    if !mirror.create {
        sink.exists().await?;
    }
    match origin {
        Origin::Log(source) => plan_log(mirror, &source, sink).await,
        Origin::Database(database) => plan_database(&database, sink).await,
    }
}

async fn plan_database(database: &Database, sink: &Sink) -> Result<Plan, MirrorError> {
    let snapshot = database.snapshot().await?;
    let warning = database.warning().await?;
    let status = sink.status(Some(LogFormat::Wal)).await.map_err(|error| sink.own(error))?;
    let standing = sink.standing(false).await.map_err(|error| sink.own(error))?;
    let start = find_start(database, &snapshot, sink, &standing).await?;
    sink.check_writable(&status, start.generation.is_some()).await?;
    let mut plan = Plan::of(sink, &status);
    plan.notes.extend(warning.map(|warning| warning.text));
    plan.compares = start.end.and_then(|_| start.next.0.checked_sub(1)).map(Offset);
    (plan.from, plan.to) = (Some(start.next), Some(Offset(snapshot.frames() + 1).max(start.next)));
    let frame_bytes = snapshot.header().map_or(0, |header| header.frame_len());
    plan.bytes = (snapshot.frames() + 1).saturating_sub(start.next.0) * frame_bytes;
    if let Some(generation) = start.generation {
        let bytes = snapshot.base_bytes().unwrap_or(0);
        plan.notes.push(format!("generation {generation} starts with SRC itself, a SQLite database of {bytes} bytes"));
        if start.instead == Instead::All {
            plan.notes.push("what DST holds is set aside in it".to_owned());
        }
    }
    Ok(plan)
}

async fn plan_log(mirror: &Mirror, source: &Source, sink: &Sink) -> Result<Plan, MirrorError> {
    copies::is_no_copy_of(mirror, source, sink).await?;
    let current = source.extent(None).await?;
    sink.comes_from(&current);
    let begun = sink.generation().await.map_err(|error| sink.own(error))?.unwrap_or(current.generation);
    let extent = &match oldest_held(source, begun, current.generation).await? {
        Some(older) => older,
        None => current,
    };
    if extent.generation > begun {
        let may_go_on = sink.check_generation_gone(begun, extent, mirror).await;
        may_go_on.map_err(|error| sink.own(error))?;
    }
    Relay::of(mirror, source, extent, sink).await.map_err(|error| sink.own(error))?;
    let instead = match extent.format {
        Some(LogFormat::Wal) => sink.base_due(source, extent, false).await.map_err(|error| sink.own(error))?,
        _ => None,
    };
    let base = instead.is_some();
    let status = sink.status(extent.format).await.map_err(|error| sink.own(error))?;
    let mut plan = Plan::of(sink, &status);
    if base {
        plan.notes.push(format!("the base of generation {} is sent first", extent.generation));
    }
    if matches!(instead, Some(Instead::Another | Instead::Damaged)) {
        plan.notes.push("the base in DST is set aside before".to_owned());
    }
    if extent.generation < current.generation {
        plan.notes.push(format!("the generations of SRC up to {} are sent after it", current.generation));
    }
    // With its base a generation starts from its first frame, whatever there was before.
    let next = status.next().filter(|_| !base);
    plan.from = next.or(extent.first);
    if !base {
        let from = plan.from.unwrap_or_default();
        let (held, reading) = meet(mirror, source, extent, sink, &status, from).await?;
        if reading.held {
            plan.compares = status.last().map(|last| last.offset);
            compare(source.stream(reading, mirror.commit_bytes_max), held, from).await?;
        }
    }
    sink.check_writable(&status, base).await?;
    if let SinkStatus::Dir(Some(found)) = &status {
        if let Tail::Torn { bytes } | Tail::Zeros { bytes } = found.survey.tail {
            plan.notes.push(match found.torn {
                TornContent::Incomplete => {
                    format!("DST ends in {bytes} bytes that are no whole commit: they are cut off")
                }
                TornContent::CommitsAfterDamage => format!(
                    "DST ends in {bytes} bytes with whole commits after a damaged one: they are cut off and kept aside"
                ),
                TornContent::OtherCommit(..) => format!(
                    "DST ends in {bytes} bytes with commits that do not continue it: they are cut off and kept aside"
                ),
            });
        }
        if let Some(LostEnd { durable, .. }) = found.lost {
            let next = found.survey.next;
            plan.notes.push(format!(
                "DST was durable up to offset {durable}, but ends at {next}: SRC holds what is missing, and it is fetched again"
            ));
        }
        if let (None, Some(_)) = (&found.record, found.survey.first) {
            plan.notes.push("DST has no mirror record: it is taken over once there is something to send".to_owned());
        }
        if let (None, Some(record)) = (found.survey.first, &found.record)
            && record.durable > Offset::ZERO
        {
            let durable = record.durable;
            plan.notes.push(format!(
                "DST was durable up to offset {durable}, but holds no segment any more: it is filled again"
            ));
        }
    }
    let warnings = [source.warning().await?, sink.warning().await?];
    plan.notes.extend(warnings.into_iter().flatten().map(|warning| warning.text));
    (plan.to, plan.bytes) = left(mirror, source, extent, plan.from.unwrap_or_default()).await?;
    Ok(plan)
}

/// The first generation from `begun` on, before the `current` one, that the source still holds.
async fn oldest_held(source: &Source, begun: Generation, current: Generation) -> Result<Option<Extent>, MirrorError> {
    for generation in (begun.0..current.0).map(Generation) {
        if let Some(older) = source.extent_of(generation).await? {
            return Ok(Some(older));
        }
    }
    Ok(None)
}

/// Where the source ends, and how many bytes it has from `from` on.
async fn left(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    from: Offset,
) -> Result<(Option<Offset>, u64), MirrorError> {
    let Place::Dir(path) = &mirror.source else {
        return Ok((extent.end, source.bytes_from(from, extent)));
    };
    let (dir, max) = (path.clone(), mirror.commit_bytes_max);
    let measured = off(move || measure_dir(dir, max, from)).await?;
    let (to, bytes) = measured.map_err(|error| MirrorError::Dir { place: path.display().to_string(), error })?;
    Ok((Some(to), bytes))
}

impl Plan {
    fn of(sink: &Sink, status: &SinkStatus) -> Plan {
        let creates = match (sink, status) {
            (Sink::Dir(dir), SinkStatus::Dir(None)) => Some(dir.path().display().to_string()),
            (Sink::Url(client), SinkStatus::Url(None)) => Some(client.url().to_string()),
            _ => None,
        };
        Plan { creates, ..Plan::default() }
    }
}
