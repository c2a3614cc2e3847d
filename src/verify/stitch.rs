//! From segments that were checked each on its own to a verdict on the log.

use std::ops::Range;

use super::check::{Checked, Tally};
use super::{FoundFault, Note, Report, SegmentReport};
use crate::offset::{BytePos, Epoch, Offset};
use crate::stream::{Fault, FaultKind, Tail};

/// Compares the ends of all segments in order. `durable` is the offset up to which the log was durable once, and `missing`
/// what it lost at its start.
pub(super) fn stitch(
    starts: &[Offset],
    segments: Vec<Checked>,
    durable: Option<Offset>,
    missing: Option<Range<Offset>>,
) -> Report {
    let mut report = Report { first: starts.first().copied(), ..Report::default() };
    report.next = report.first.unwrap_or_default();
    let mut faults: Vec<Fault> = Vec::new();
    let mut epoch = Epoch(0);
    let mut before: Option<(Offset, Checked)> = None;
    for (at, (start, segment)) in starts.iter().copied().zip(segments).enumerate() {
        let following = starts.get(at + 1).copied();
        faults.extend(before.as_ref().and_then(|(before, checked)| gap(*before, checked, start)));
        let fell = segment.all.epochs.map_or(epoch, |(first, _)| first) < epoch;
        if let (true, Some((found, _))) = (fell, segment.all.epochs) {
            let kind = FaultKind::StaleEpoch { current: epoch, found };
            faults.push(Fault {
                segment: start,
                offset: start,
                at: BytePos(segment.framing.header_len() as u64),
                kind,
            });
        }
        if faults.is_empty() {
            count(&mut report, &segment.sound);
        }
        faults.extend_from_slice(&segment.faults);
        epoch = segment.all.epochs.map_or(epoch, |(_, last)| last);
        if let (None, Tail::Torn { bytes }) = (following, segment.tail) {
            report.trailing = Some(bytes);
        }
        let notes = notes(&segment, following).into_iter();
        report.notes.extend(notes.map(|message| Note { segment: start, message }));
        report.segments.push(describe(start, &segment));
        before = Some((start, segment));
    }
    if let Some(durable) = durable.filter(|durable| faults.is_empty() && report.next < *durable) {
        let (segment, at) = before.map_or((report.next, BytePos(0)), |(start, checked)| (start, checked.all.at));
        faults.push(Fault { segment, offset: report.next, at, kind: FaultKind::Lost { durable } });
    }
    // What is left may be sound all the same.
    if let Some(missing) = missing {
        let (found, offset) = (missing.end, missing.start);
        let lost = Fault { segment: found, offset, at: BytePos(0), kind: FaultKind::Missing { found } };
        faults.insert(0, lost);
    }
    report.error = faults.first().map(Fault::to_string);
    report.faults = faults.iter().map(FoundFault::from).collect();
    report
}

/// What is missing between a segment and the next, unless a fault in the first accounts for it.
fn gap(segment: Offset, checked: &Checked, found: Offset) -> Option<Fault> {
    let Tally { next, at, .. } = checked.all;
    let accounted = checked.lost && next < found;
    (next != found && !accounted).then_some(Fault { segment, offset: next, at, kind: FaultKind::Gap { found } })
}

fn count(report: &mut Report, sound: &Tally) {
    report.next = sound.next;
    report.commits += sound.commits;
    report.entries += sound.entries;
    if let Some((_, last)) = sound.epochs {
        report.bytes += sound.at.0;
        report.epoch = last;
    }
}

fn describe(start: Offset, segment: &Checked) -> SegmentReport {
    let Tally { commits, next, at, .. } = segment.all;
    let version = segment.framing.version();
    let index_entries = segment.index.map(|index| index.entries());
    SegmentReport { start, end: next, commits, bytes: at.0, version, compressed: segment.compressed, index_entries }
}

fn notes(segment: &Checked, following: Option<Offset>) -> Vec<String> {
    let mut notes = Vec::new();
    let Tally { commits, next, at, .. } = segment.all;
    match segment.tail {
        Tail::Zeros { bytes } => notes.push(format!("{bytes} zero bytes from byte {at} on: space not used yet")),
        Tail::Torn { bytes } if following == Some(next) => {
            notes.push(format!(
                "{bytes} torn bytes from byte {at} on, passed over: the next segment continues at {next}"
            ));
        }
        _ => {}
    }
    if segment.repeats > 0 {
        notes.push(format!("{} commits are there twice in a row: readers pass over the second", segment.repeats));
    }
    if !segment.faults.is_empty() {
        if segment.lost {
            notes.push(format!("nothing sound was found behind byte {at}"));
        }
        return notes;
    }
    if commits == 0 && following.is_none() {
        notes.push("holds no commit yet".to_owned());
    }
    if let Some(index) = &segment.index
        && let Some(wrong) = index.first_wrong
    {
        let (entries, count) = (index.entries(), index.wrong);
        notes.push(format!(
            "offset index: {count} of {entries} entries wrong, the first says that offset {} is at byte {}",
            wrong.key, wrong.value
        ));
    }
    notes
}
