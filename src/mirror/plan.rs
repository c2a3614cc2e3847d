//! What a mirror would do, found out without changing anything.

use std::fmt;

use super::database;
use super::distance::{SharedWal, measure_dir};
use super::endpoint::{Mirror, Place};
use super::failure::MirrorError;
use super::ownership;
use super::run::Origin;
use super::source::{Piece, Reading};
use crate::api::{LastCommit, Positions};
use crate::client::{Client, positions};
use crate::format::LogFormat;
use crate::offset::Offset;
use crate::repo::FsRepo;
use crate::stream::{Tail, survey};

/// What a mirror would do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The directory or log that would be created.
    pub creates: Option<String>,
    /// The last commit of the sink, which was compared with the source's at that offset.
    pub compares: Option<Offset>,
    /// Whether they are the same; none when there is nothing to compare.
    pub same: Option<bool>,
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
        match (self.compares, self.same) {
            (Some(at), Some(true)) => writeln!(f, "compare   the commit at offset {at} is the same on both sides")?,
            (Some(at), _) => writeln!(f, "compare   fork: the commit at offset {at} differs, nothing would be sent")?,
            (None, _) => writeln!(f, "compare   nothing: DST holds no commit")?,
        }
        match (self.from, self.to) {
            _ if self.same == Some(false) => {}
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
    let mut plan = Plan::default();
    if let (Place::Dir(source), Place::Dir(sink)) = (&mirror.source, &mirror.sink) {
        ownership::are_apart(source, sink)?;
        ownership::is_not_running(sink)?;
    }
    let origin = Origin::find(mirror, &SharedWal::default())?;
    let (next, last) = stand(mirror, &mut plan).await?;
    if let Some(place) = plan.creates.clone().filter(|_| !mirror.create) {
        return Err(MirrorError::Absent { place });
    }
    let source = match origin {
        Origin::Log(source) => source,
        Origin::Database(database) => {
            let snapshot = database.snapshot().await?;
            plan.compares = None;
            (plan.from, plan.to) = (next.or(Some(Offset(1))), Some(Offset(snapshot.frames() + 1)));
            plan.bytes = snapshot.wal_bytes();
            plan.notes.push(format!(
                "SRC is a SQLite database of {} bytes: where DST does not go on with its WAL, a new generation starts with it",
                snapshot.base_bytes().unwrap_or(0)
            ));
            return Ok(plan);
        }
    };
    let extent = source.extent(None).await?;
    plan.from = next.or(extent.first);
    if let (Some(source_end), Some(last)) = (extent.end, last)
        && source_end <= last.offset
    {
        return Err(MirrorError::Ahead { sink: next.unwrap_or_default(), source_end });
    }
    if let (Some(sink), Some(source_first)) = (next, extent.first)
        && source_first > sink
    {
        return Err(MirrorError::Gap { sink, source_first });
    }
    if let Some(last) = last.filter(|_| extent.first != next) {
        let reading = Reading { generation: extent.generation, from: last.offset, held: true, follow: false };
        let mut pieces = source.stream(reading, mirror.commit_bytes_max);
        let found = match pieces.recv().await {
            Some(Ok(Piece::Batch(batch))) => {
                batch.runs().next().and_then(|run| run.commits().next().map(|(_, commit)| commit))
            }
            Some(Err(error)) => return Err(error),
            _ => None,
        };
        let same = found.is_some_and(|found| {
            (found.first, found.entries, found.checksum) == (last.offset, last.entries, last.checksum)
        });
        (plan.compares, plan.same) = (Some(last.offset), Some(same));
    }
    let from = plan.from.unwrap_or_default();
    (plan.to, plan.bytes) = match &mirror.source {
        Place::Url(_) => (extent.end, source.bytes_from(from, &extent)),
        Place::Dir(path) => {
            let (dir, max) = (path.clone(), mirror.commit_bytes_max);
            let measured = database::off(move || measure_dir(dir, max, from)).await?;
            let (to, bytes) =
                measured.map_err(|error| MirrorError::Dir { place: path.display().to_string(), error })?;
            (Some(to), bytes)
        }
    };
    Ok(plan)
}

/// Where the sink is, and its last commit.
async fn stand(mirror: &Mirror, plan: &mut Plan) -> Result<(Option<Offset>, Option<LastCommit>), MirrorError> {
    let path = match &mirror.sink {
        Place::Dir(path) => path.clone(),
        Place::Url(url) => {
            let client = Client::with_options(url, &mirror.http)?;
            let Some(status) = client.find().await? else {
                plan.creates = Some(client.url().to_string());
                return Ok((None, None));
            };
            let Positions { durable, last_commit, .. } = positions(&status)?;
            return Ok((Some(durable), last_commit));
        }
    };
    if !path.exists() {
        plan.creates = Some(path.display().to_string());
        return Ok((None, None));
    }
    let place = path.display().to_string();
    let repo = FsRepo::open(path).map_err(|error| MirrorError::Dir { place: place.clone(), error })?;
    let max = mirror.commit_bytes_max;
    let found = database::off(move || survey(&repo, max, None)).await?;
    let found = found.map_err(|error| MirrorError::Sink(error.into()))?;
    if let Tail::Torn { bytes } = found.tail {
        plan.notes.push(format!("{place} ends in {bytes} bytes that are no whole commit"));
    }
    if found.format == Some(LogFormat::Wal) {
        plan.notes.push(format!("{place} holds one generation of a WAL"));
    }
    let last = found.last.map(|last| LastCommit { offset: last.first, entries: last.entries, checksum: last.checksum });
    Ok((found.first.map(|_| found.next), last))
}
