//! Moves verified pieces from a source to a sink.

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::delivery::Delivery;
use super::failure::MirrorError;
use super::overlap::Overlap;
use super::run::{Event, Progress};
use super::source::{Piece, Pieces};
use crate::client::ClientError;
use crate::limits::SINK_LOOK_EVERY;
use crate::offset::Offset;
use crate::stream::{ReadError, Tail};

/// Moves pieces from the source to the sink until the source ends, with the tail it ends in. The sink is opened only after
/// all of `held` was found in the source too.
pub(super) async fn pump(
    pieces: &mut Pieces,
    delivery: &mut Delivery<'_>,
    mut held: Overlap,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<Tail, MirrorError> {
    let sink = progress.next;
    if held.next().is_none() && (delivery.has_log() || delivery.has_base()) {
        delivery.compared(told).await?;
    }
    let mut durable = delivery.durable();
    let mut looks = interval_at(Instant::now() + SINK_LOOK_EVERY, SINK_LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let moved = async {
            match &mut durable {
                Some(durable) => durable.changed().await.map(|()| *durable.borrow_and_update()),
                None => std::future::pending().await,
            }
        };
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            error = delivery.failed() => return Err(error),
            _ = looks.tick() => {
                delivery.look().await?;
                if let Some(warning) = delivery.warning().await? {
                    told(Event::Warning(warning));
                }
                continue;
            }
            Ok(durable) = moved => {
                progress.durable = durable;
                told(Event::Moved(*progress));
                continue;
            }
        };
        let mut batch = match piece {
            None => return Err(source_is_gone()),
            // A source that was empty may start anywhere, and so may a sink that holds nothing.
            Some(Err(MirrorError::Read(ReadError::Pruned { first, .. }))) if !delivery.has_log() => {
                return Err(MirrorError::Interrupted(format!("the source starts at offset {first} now")));
            }
            Some(Err(error)) => return Err(of_reading(error, sink)),
            Some(Ok(Piece::Live { next, bytes })) => {
                told(Event::SourceLive { next, bytes });
                continue;
            }
            Some(Ok(Piece::Mark(source))) => {
                delivery.note_source(&source).await?;
                continue;
            }
            Some(Ok(Piece::Compared { reason, pages })) => {
                told(Event::Compared { reason, pages });
                continue;
            }
            // Of a generation that was given up.
            Some(Ok(Piece::Stepped(_))) => continue,
            Some(Ok(Piece::End(tail))) => {
                ended_at(&held, sink)?;
                delivery.report_unclaimed();
                return Ok(tail);
            }
            Some(Ok(Piece::Batch(batch))) => batch,
        };
        if held.next().is_some() {
            batch = held.without(batch).await?;
            if held.next().is_none() {
                delivery.compared(told).await?;
            }
        }
        for run in batch.runs() {
            progress.count(run);
        }
        if !batch.is_empty() && !delivery.send(batch, told).await? {
            return Err(delivery.failed().await);
        }
        if durable.is_none() {
            durable = delivery.durable();
        }
        told(Event::Moved(*progress));
    }
}

/// Compares all of `held` with the source, for a sink that ends at `sink`, and changes nothing.
pub(super) async fn compare(mut pieces: Pieces, mut held: Overlap, sink: Offset) -> Result<(), MirrorError> {
    while held.next().is_some() {
        match pieces.recv().await {
            None => return Err(source_is_gone()),
            Some(Err(error)) => return Err(of_reading(error, sink)),
            Some(Ok(Piece::Live { .. } | Piece::Mark(_) | Piece::Compared { .. } | Piece::Stepped(_))) => {}
            Some(Ok(Piece::End(_))) => return ended_at(&held, sink),
            Some(Ok(Piece::Batch(batch))) => {
                held.without(batch).await?;
            }
        }
    }
    Ok(())
}

fn source_is_gone() -> MirrorError {
    MirrorError::Interrupted("the source is gone".into())
}

/// Why reading the source failed, for a sink that ends at `sink`.
fn of_reading(error: MirrorError, sink: Offset) -> MirrorError {
    match error {
        MirrorError::Read(ReadError::Ahead { next, .. }) => MirrorError::Ahead { sink, source_end: next },
        MirrorError::Read(ReadError::Reset { at }) => MirrorError::Reset { at },
        MirrorError::Client(ClientError::Refused { body, .. }) if body.error == "ahead" => {
            MirrorError::Ahead { sink, source_end: body.next.unwrap_or_default() }
        }
        error => error,
    }
}

/// That a source that has ended holds all of `held`.
fn ended_at(held: &Overlap, sink: Offset) -> Result<(), MirrorError> {
    held.next().map_or(Ok(()), |source_end| Err(MirrorError::Ahead { sink, source_end }))
}
