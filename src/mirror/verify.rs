//! Verifying a log of a service: what it serves is checked here, byte for byte, as any follower would.

use futures::TryStreamExt;
use sha2::{Digest, Sha256};

use super::others;
use crate::api::{LogState, LogStatus, Positions};
use crate::client::{Client, ClientError, positions};
use crate::format::name::{BASE, BASE_SUMS, parse_segment};
use crate::format::{FormatError, Framing, LogFormat, ScanError};
use crate::limits::COMMIT_HELD_MAX;
use crate::offset::{BytePos, Generation, Offset};
use crate::segment::base::BaseDigest;
use crate::stream::{Batch, BatchError, Batcher, Fault, FaultKind, LargeCommits, Part, Run};
use crate::verify::{BaseReport, FoundFault, Note, Report, SegmentReport};

/// Reads a log of a service from its first offset to its durable end and checks everything. What is behind the first
/// fault is not looked at. `told` hears of bytes checked. An answer that is not what the service says it holds is asked for once
/// more, on a new connection, and is a fault then.
///
/// # Errors
/// When the service cannot be read. Faults are part of the answer.
pub async fn verify_url(
    client: &Client,
    commit_bytes_max: u64,
    mut told: impl FnMut(u64),
) -> Result<Report, ClientError> {
    let mut report = Report::default();
    match verify_once(client, commit_bytes_max, &mut told, &mut report).await {
        Err(error) if error.is_doubtful() => {
            log::warn!("{}: {error}; asking again on a new connection", client.url());
        }
        verified => return verified.map(|()| report),
    }
    let mut report = Report::default();
    match verify_once(&client.connected_again()?, commit_bytes_max, &mut told, &mut report).await {
        Err(error) if error.is_doubtful() => {
            let code = if report.base.is_none() { FoundFault::BASE } else { "fork" }.to_owned();
            let (segment, offset, at) = (report.next, report.next, BytePos(0));
            report.faults.push(FoundFault { segment, offset, at, code, message: error.to_string() });
            report.error = Some(error.to_string());
            Ok(report)
        }
        verified => verified.map(|()| report),
    }
}

async fn verify_once(
    client: &Client,
    commit_bytes_max: u64,
    mut told: impl FnMut(u64),
    report: &mut Report,
) -> Result<(), ClientError> {
    let status = client.status().await?;
    let Positions { format, generation, first, durable, last_commit, .. } = positions(&status)?;
    (report.first, report.next) = (Some(first), first);
    let base_fault = match format {
        LogFormat::Wal => verify_base(client, generation, report, &mut told).await?,
        LogFormat::Commitlog => None,
    };
    let mut bytes = client.read_of(Some(generation), first, Some(durable), false).await?;
    let base = report.base.as_ref().and_then(|base| base.sha256.parse().ok());
    others::check_base(bytes.base, base)?;
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
        if let Some(last) = last_commit {
            others::check(&batch, last)?;
        }
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
    // That of the base is found already.
    let damage = damage.filter(|_| base_fault.is_none());
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
    let found = fault.as_ref().map(FoundFault::from).or(damage);
    report.faults = base_fault.into_iter().chain(missing).chain(found).collect();
    if let Some(message) = status.warning {
        report.notes.push(Note { segment: first, message });
    }
    report.error = report.faults.first().map(|fault| fault.message.clone());
    Ok(())
}

/// Reads the base of a generation, which the client compares with the digest that the service says.
async fn verify_base(
    client: &Client,
    generation: Generation,
    report: &mut Report,
    told: &mut impl FnMut(u64),
) -> Result<Option<FoundFault>, ClientError> {
    let fault = |at: u64, message: String| {
        let (segment, offset, at) = (Offset::ZERO, Offset::ZERO, BytePos(at));
        Ok(Some(FoundFault { segment, offset, at, code: FoundFault::BASE.to_owned(), message }))
    };
    let mut base = match client.base(generation).await {
        Err(ClientError::Refused { body, .. }) if body.error == "corrupt-log" => return fault(0, body.message),
        base => base?,
    };
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    loop {
        match base.try_next().await {
            Ok(Some(block)) => {
                hash.update(&block);
                bytes += block.len() as u64;
                told(block.len() as u64);
            }
            Ok(None) => break,
            // A service that finds a fault on the way ends its answer, and says so in the status.
            Err(error) => match client.status().await?.damage {
                Some(damage) if [BASE, BASE_SUMS].contains(&damage.segment.as_str()) => {
                    return fault(damage.byte.0, format!("the base of the log is damaged at byte {}", damage.byte));
                }
                _ => return Err(error),
            },
        }
    }
    let sha256 = BaseDigest(hash.finalize().into());
    report.base = Some(BaseReport { bytes, sha256: sha256.to_string(), unproven: base.is_unproven(), pages: None });
    match bytes {
        0 => fault(0, "the base is missing: the service sent none".to_owned()),
        _ => Ok(None),
    }
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
