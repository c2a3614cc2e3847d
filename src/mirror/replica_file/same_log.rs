//! Whether a log with another id is the one that a read replica file follows: one that was repaired, or brought back from a mirror.

use super::attempt::followed;
use super::record::{FileState, Followed, Position, read_record};
use super::target::ReplicaFile;
use crate::format::wal::FIRST_FRAME;
use crate::mirror::base::unset;
use crate::mirror::database::off;
use crate::mirror::endpoint::Mirror;
use crate::mirror::failure::MirrorError;
use crate::mirror::shorter::commit_at;
use crate::mirror::source::{Extent, Source};

/// What a source shows of the state that a file is in.
enum Shown {
    /// It holds it.
    Same,
    /// It does not have as much yet: it may be on its way from a copy.
    Less(Extent),
    /// It holds another one, or cannot show it.
    Other,
}

/// The source of `extent`, which the file follows too where that is proven: its log has another id, but the base and the last commit
/// of the file. The checksum of a commit covers all frames before it. Changes nothing.
///
/// # Errors
/// When the record or the source cannot be read; [`MirrorError::Ahead`] where a mirror that follows waits for what the source does not
/// have yet.
pub(super) async fn proven(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    target: &ReplicaFile,
) -> Result<Followed, MirrorError> {
    let followed = followed(mirror, extent);
    let path = target.path.clone();
    let Some(record) = off(move || read_record(&path)).await?? else { return Ok(followed) };
    let (Some(held), Some(FileState { at, .. })) = (&record.log, record.now) else { return Ok(followed) };
    if record.is_of(&followed) {
        return Ok(followed);
    }
    match shown(source, extent, &at, mirror.commit_bytes_max).await? {
        Shown::Same => {}
        Shown::Less(Extent { end: Some(source_end), .. }) if mirror.follow && !mirror.adopt => {
            return Err(MirrorError::Ahead { sink: at.next, source_end });
        }
        Shown::Less(_) | Shown::Other => return Ok(followed),
    }
    log::warn!(
        "{}: log {} has the same base and frames as {held} had: following it from now on",
        target.path.display(),
        followed.log.as_deref().unwrap_or_default()
    );
    Ok(Followed { former: Some(held.clone()), ..followed })
}

async fn shown(source: &Source, extent: &Extent, at: &Position, max: u64) -> Result<Shown, MirrorError> {
    let Position { generation, next, last, base: Some(base) } = *at else { return Ok(Shown::Other) };
    let extent = match generation.cmp(&extent.generation) {
        std::cmp::Ordering::Greater => return Ok(Shown::Other),
        std::cmp::Ordering::Equal => *extent,
        std::cmp::Ordering::Less => match source.extent_of(generation).await? {
            Some(older) => older,
            None => return Ok(Shown::Other),
        },
    };
    // One that was just created has no base of its own.
    let is_new = extent.end == Some(FIRST_FRAME) && extent.base.is_none_or(|base| base == unset());
    match extent.base {
        _ if is_new && (base != unset() || next > FIRST_FRAME) => return Ok(Shown::Less(extent)),
        Some(found) if found == base => {}
        _ => return Ok(Shown::Other),
    }
    if extent.end.is_some_and(|end| end < next) {
        return Ok(Shown::Less(extent));
    }
    let is_held = match last {
        Some(last) => commit_at(source, generation, last.offset, max).await? == Some(last),
        None => base != unset(),
    };
    Ok(if is_held { Shown::Same } else { Shown::Other })
}
