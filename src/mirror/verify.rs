//! Verifying a log of a service: what it serves is checked here, byte for byte, as any follower would.

use futures::TryStreamExt;

use crate::api::{LogState, LogStatus, Positions};
use crate::client::{Client, ClientError, positions};
use crate::format::name::parse_segment;
use crate::format::{FormatError, Framing, ScanError};
use crate::limits::COMMIT_HELD_MAX;
use crate::offset::{BytePos, Offset};
use crate::stream::{Batch, BatchError, Batcher, Fault, FaultKind, LargeCommits, Part, Run};
use crate::verify::{FoundFault, Note, Report, SegmentReport};

/// Reads a log of a service from its first offset to its durable end and checks everything. What is behind the first
/// fault is not looked at. `told` hears of bytes checked.
///
/// # Errors
/// When the service cannot be read. Faults are part of the answer.
pub async fn verify_url(
    client: &Client,
    commit_bytes_max: u64,
    mut told: impl FnMut(u64),
) -> Result<Report, ClientError> {
    let status = client.status().await?;
    let Positions { format, first, durable, .. } = positions(&status)?;
    let mut report = Report { first: Some(first), next: first, ..Report::default() };
    let mut bytes = client.read(first, Some(durable), false).await?;
    let batcher = Batcher::new(Framing::of(format), None, commit_bytes_max);
    let mut batcher = batcher.keeping(LargeCommits::Nowhere, COMMIT_HELD_MAX);
    let (mut fault, mut broken) = (None, None);
    loop {
        let chunk = match bytes.try_next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                broken = Some(error);
                break;
            }
        };
        told(chunk.len() as u64);
        let mut batch = Batch::default();
        let sound = batcher.push(chunk, &mut batch);
        fault = batch.parts.iter().find_map(|part| report.take(part).err());
        let unsound = sound.err().and_then(|error| match error {
            BatchError::Stream(error) => Some(kind_of(error)),
            // Nothing is kept.
            BatchError::Spool { .. } => None,
        });
        fault = fault.or_else(|| unsound.map(|kind| report.fault(kind)));
        if fault.is_some() {
            break;
        }
    }
    // It may have been found to be damaged only while it was read.
    let damage = match client.status().await {
        Ok(status) => damage(&status, report.next),
        Err(error) => return Err(broken.unwrap_or(error)),
    };
    if let (None, Some(error)) = (&damage, broken) {
        return Err(error);
    }
    if fault.is_none() && damage.is_none() {
        let cut = batcher.finish().err().map(kind_of);
        let short = (report.next < durable).then_some(FaultKind::Gap { found: durable });
        fault = cut.or(short).map(|kind| report.fault(kind));
    }
    // What it serves may be sound, but that is not all that it held.
    let missing = status.missing.filter(|_| damage.is_none()).map(|(offset, found)| {
        FoundFault::from(&Fault { segment: found, offset, at: BytePos(0), kind: FaultKind::Missing { found } })
    });
    report.faults = missing.into_iter().chain(fault.as_ref().map(FoundFault::from).or(damage)).collect();
    if let Some(message) = status.warning {
        report.notes.push(Note { segment: first, message });
    }
    report.error = report.faults.first().map(|fault| fault.message.clone());
    Ok(report)
}

/// What a service says of the damage of a log that was found to be sound up to `next`.
fn damage(status: &LogStatus, next: Offset) -> Option<FoundFault> {
    if status.state != LogState::Damaged {
        return None;
    }
    let (segment, offset, at) = match &status.damage {
        Some(damage) => (parse_segment(&damage.segment).map_or(next, |(_, start)| start), damage.offset, damage.byte),
        None => (next, next, BytePos(0)),
    };
    let reason = status.error.as_deref().unwrap_or("no reason was given");
    let message = format!("the log is damaged on the service: {reason}");
    Some(FoundFault { segment, offset, at, code: "corrupt".to_owned(), message })
}

fn kind_of(error: ScanError) -> FaultKind {
    match error {
        ScanError::Corrupt { error: FormatError::TooLarge { len, .. }, .. } => FaultKind::Length { len },
        ScanError::Corrupt { error, .. } => FaultKind::Format(error),
        ScanError::Truncated { .. } => FaultKind::Cut,
    }
}

impl Report {
    fn fault(&self, kind: FaultKind) -> Fault {
        let (segment, at) = self.segments.last().map_or((self.next, 0), |segment| (segment.start, segment.bytes));
        Fault { segment, offset: self.next, at: BytePos(at), kind }
    }

    fn take(&mut self, part: &Part) -> Result<(), Fault> {
        match part {
            Part::Header(framing, header) => {
                let (start, bytes, version) = (self.next, header.len() as u64, framing.version());
                self.bytes += bytes;
                let (compressed, index_entries) = (false, None);
                self.segments.push(SegmentReport {
                    start,
                    end: start,
                    commits: 0,
                    bytes,
                    version,
                    compressed,
                    index_entries,
                });
                Ok(())
            }
            Part::Run(run) => self.take_run(run),
        }
    }

    fn take_run(&mut self, run: &Run) -> Result<(), Fault> {
        if run.first > self.next {
            return Err(self.fault(FaultKind::Gap { found: run.first }));
        }
        if run.first < self.next {
            return Err(self.fault(FaultKind::Fork { found: run.first }));
        }
        if run.epoch_first < self.epoch {
            let (current, found) = (self.epoch, run.epoch_first);
            return Err(self.fault(FaultKind::StaleEpoch { current, found }));
        }
        let entries = run.end.0 - run.first.0;
        (self.next, self.epoch) = (run.end, run.last.epoch);
        self.commits += run.commits;
        self.entries += entries;
        self.bytes += run.bytes;
        if let Some(segment) = self.segments.last_mut() {
            segment.end = run.end;
            segment.commits += run.commits;
            segment.bytes += run.bytes;
        }
        Ok(())
    }
}
