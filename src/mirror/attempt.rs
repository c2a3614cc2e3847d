//! One attempt of a mirror between two logs: what is missing in the sink, generation by generation.

use super::base;
use super::base_due;
use super::confirmed;
use super::delivery::Delivery;
use super::endpoint::Mirror;
use super::failure::MirrorError;
use super::others;
use super::overlap::Overlap;
use super::pump::pump;
use super::relay::{self, Relay};
use super::run::{Event, Progress};
use super::sink::{Sink, SinkStatus};
use super::source::{Extent, Reading, Source};
use crate::format::LogFormat;
use crate::offset::{Generation, Offset};
use crate::stream::Tail;

/// Mirrors what is missing, generation by generation, and then follows if that is wanted.
pub(super) async fn attempt(
    mirror: &Mirror,
    source: &Source,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    loop {
        let extent = source.extent(None).await?;
        if extent.format == Some(LogFormat::Wal) {
            relay::check_promoted(mirror, sink).await.map_err(|error| sink.own(error))?;
        }
        sink.comes_from(&extent);
        let held = sink.generation().await.map_err(|error| sink.own(error))?.unwrap_or(extent.generation);
        for generation in (held.0..extent.generation.0).map(Generation) {
            // A directory holds one: the base of the current one stands for all of those between.
            if matches!(sink, Sink::Dir(_)) && generation > held {
                break;
            }
            match source.extent_of(generation).await? {
                Some(older) => {
                    let once = Mirror { follow: false, ..mirror.clone() };
                    match attempt_generation(&once, source, &older, sink, progress, told).await {
                        Err(error) if mirror.adopt && relay::is_of_another(mirror, sink, &error).await? => {
                            let current = extent.generation;
                            log::warn!("{}: {error}: it goes on with generation {current} of SRC", sink.place());
                            break;
                        }
                        ended => ended?,
                    }
                }
                // What the sink holds of it stays as it is.
                None if generation == held => {
                    let may_go_on = sink.check_generation_gone(held, &extent, mirror).await;
                    may_go_on.map_err(|error| sink.own(error))?;
                }
                None => {}
            }
        }
        let ended = attempt_generation(mirror, source, &extent, sink, progress, told).await;
        match ended {
            // The source may have gone on while this one was copied or followed.
            Ok(()) | Err(MirrorError::Interrupted(_)) if extent.format == Some(LogFormat::Wal) => {
                let now = source.extent(None).await?;
                if now.generation <= extent.generation || now.log != extent.log {
                    return ended.and_then(|()| others::is_still(&extent, &now));
                }
            }
            ended => return ended,
        }
    }
}

/// What has to be compared of a sink that goes on at `from`, and how to read the source for that: the stream starts with the
/// commits both should hold, so a fork shows before the sink is changed.
///
/// # Errors
/// When source and sink do not fit each other, as far as shows without reading the source.
pub(super) async fn meet(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    sink: &Sink,
    status: &SinkStatus,
    from: Offset,
) -> Result<(Overlap, Reading), MirrorError> {
    if let Some(source_first) = extent.first.filter(|first| *first > from) {
        return Err(MirrorError::Gap { sink: from, source_first });
    }
    let held = status.held(extent.first, mirror.commit_bytes_max).await?;
    if let Some(source_end) = extent.end.filter(|end| held.next().is_some_and(|at| *end <= at)) {
        return Err(MirrorError::Ahead { sink: from, source_end });
    }
    if let (Sink::Dir(dir), SinkStatus::Dir(Some(found))) = (sink, status) {
        dir.check_lost_end(found, source, extent, mirror.commit_bytes_max).await?;
    }
    let base = base_due::check_held(sink, status, source, extent).await?;
    if status.last().is_some() {
        sink.check_uncompared(status, extent, mirror.adopt)?;
    }
    let start = held.next().unwrap_or(from);
    let is_held = held.next().is_some();
    let (generation, follow) = (extent.generation, mirror.follow);
    let reading = Reading { generation, from: start, held: is_held, follow, base, log: extent.log };
    Ok((held, reading))
}

async fn attempt_generation(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let format = extent.format.unwrap_or_default();
    let relay = Relay::of(mirror, source, extent, sink).await.map_err(|error| sink.own(error))?;
    if format == LogFormat::Wal
        && let Some(instead) = sink.base_due(source, extent, true).await.map_err(|error| sink.own(error))?
    {
        relay::announce(mirror, sink, extent.generation).await.map_err(|error| sink.own(error))?;
        base::bring(source, extent, sink, instead, progress, told).await?;
    }
    let status = sink.status(extent.format).await.map_err(|error| sink.own(error))?;
    let from = status.next().or(extent.first).unwrap_or_default();
    let (generation, held) = (extent.generation, status.next().is_some());
    progress.begin(generation, from);
    told(Event::Started { from, held, source_bytes: source.bytes_from(progress.uncounted(), extent) });
    // Of which generation.
    told(Event::Moved(*progress));
    let (held, reading) = meet(mirror, source, extent, sink, &status, from).await?;
    let mut pieces = source.stream(reading, mirror.commit_bytes_max);
    let mut delivery = Delivery::new(sink, status, format, generation).of_relay(relay);
    let pumped = pump(&mut pieces, &mut delivery, held, progress, told).await;
    // What came is sound and is kept, whatever became of the rest; and the sink is closed before it is opened again.
    let ended = delivery.end().await;
    if let Ok(Some(durable)) = &ended {
        // A directory without a frame says nothing of where it starts.
        progress.durable = (*durable).max(from);
        told(Event::Moved(*progress));
    }
    let tail = pumped?;
    if let (Sink::Url(client), Some(durable)) = (sink, ended?) {
        confirmed::check_end(client, generation, durable).await?;
    }
    check_end(mirror, extent, tail, progress.next)
}

/// That a stream which ended like this, at `next`, is all of the source.
///
/// # Errors
/// [`MirrorError::Torn`], and [`MirrorError::Interrupted`] where there is more.
pub(super) fn check_end(mirror: &Mirror, extent: &Extent, tail: Tail, next: Offset) -> Result<(), MirrorError> {
    match tail {
        Tail::Torn { bytes } if !mirror.trim => Err(MirrorError::Torn { bytes, next }),
        _ if mirror.follow => Err(MirrorError::Interrupted("the service ended the stream".into())),
        // A connection that is cut between two commits looks like a good end.
        _ => match extent.end.filter(|end| next < *end) {
            Some(end) => {
                let text = format!("the source's answer ended at offset {next}, but it is durable up to {end}");
                Err(MirrorError::Interrupted(text))
            }
            None => Ok(()),
        },
    }
}
