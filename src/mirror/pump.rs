//! Moves verified pieces from a source to a sink.

use super::failure::MirrorError;
use super::feeding::Feeding;
use super::run::{Event, Progress};
use super::source::{Piece, Pieces};
use crate::api::LastCommit;
use crate::client::ClientError;
use crate::stream::{Batch, Part, ReadError, Tail};

/// Moves pieces from the source to the sink until the source ends, with the tail it ends in.
pub(super) async fn pump(
    mut pieces: Pieces,
    feeding: &mut Feeding,
    mut held: Option<LastCommit>,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<Tail, MirrorError> {
    let mut durable = feeding.durable();
    let sink = progress.next;
    let ahead = |source_end| MirrorError::Ahead { sink, source_end };
    loop {
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            error = feeding.failed() => return Err(error),
            Ok(()) = durable.changed() => {
                progress.durable = *durable.borrow_and_update();
                told(Event::Moved(*progress));
                continue;
            }
        };
        let mut batch = match piece {
            None => return Err(MirrorError::Interrupted("the source is gone".into())),
            Some(Err(MirrorError::Read(ReadError::Ahead { next, .. }))) => return Err(ahead(next)),
            Some(Err(MirrorError::Read(ReadError::Reset { at }))) => return Err(MirrorError::Reset { at }),
            Some(Err(MirrorError::Client(ClientError::Refused { body, .. }))) if body.error == "ahead" => {
                return Err(ahead(body.next.unwrap_or_default()));
            }
            Some(Err(error)) => return Err(error),
            Some(Ok(Piece::Live { next, bytes })) => {
                told(Event::SourceLive { next, bytes });
                continue;
            }
            Some(Ok(Piece::End(tail))) => return held.map_or(Ok(tail), |last| Err(ahead(last.offset))),
            Some(Ok(Piece::Batch(batch))) => batch,
        };
        if let Some(last) = held.take_if(|_| batch.runs().next().is_some()) {
            batch = without_held(batch, &last)?;
        }
        for run in batch.runs() {
            progress.commits += run.commits;
            progress.bytes += run.bytes;
            progress.next = run.end;
        }
        if !feeding.send(batch).await {
            return Err(feeding.failed().await);
        }
        told(Event::Moved(*progress));
    }
}

/// The batch without its first commit, which must be the one the sink holds.
fn without_held(batch: Batch, held: &LastCommit) -> Result<Batch, MirrorError> {
    let mut parts = batch.parts.into_iter().skip_while(|part| matches!(part, Part::Header(..)));
    let Some(Part::Run(run)) = parts.next() else {
        return Ok(Batch::default());
    };
    let mut commits = run.commits();
    let same = commits.next().is_some_and(|(_, found)| {
        (found.first, found.entries, found.checksum) == (held.offset, held.entries, held.checksum)
    });
    if !same {
        return Err(MirrorError::Fork { at: held.offset });
    }
    let rest = commits.next().map(|(at, next)| Part::Run(run.after(at, &next, 1)));
    drop(commits);
    Ok(Batch { parts: rest.into_iter().chain(parts).collect() })
}
