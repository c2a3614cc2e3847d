//! Whether commits that were received are those that the service says it holds. Each of them may be sound, and of another log or
//! generation: something between us and the service may answer from what it kept.

use uuid::Uuid;

use super::failure::MirrorError;
use super::source::Extent;
use crate::api::{LastCommit, LogStatus};
use crate::client::{ClientError, named_base};
use crate::format::Framing;
use crate::offset::{Generation, Offset};
use crate::segment::base::BaseDigest;
use crate::stream::Batch;

/// Compares the commit of a batch that ends where `last`, the last commit of the log by its status, does. What comes before it
/// is proven by it where checksums run on, as in a WAL.
///
/// # Errors
/// [`ClientError::OtherContent`] when it is another one.
pub(super) fn check(batch: &Batch, last: LastCommit) -> Result<(), ClientError> {
    let end = Offset(last.last_offset().0.saturating_add(1));
    let Some(run) = batch.runs().find(|run| run.first < end && end <= run.end) else {
        return Ok(());
    };
    let found = match run.end == end {
        true => Some(run.last),
        false => run.commits().map(|(_, commit)| commit).find(|commit| commit.end() == end),
    };
    let Some(found) = found.filter(|found| found.checksum != last.checksum) else {
        return Ok(());
    };
    let what = format!(
        "the commits that were received have the checksum {:016x} before offset {end}, and the service says {:016x}",
        found.checksum, last.checksum
    );
    Err(ClientError::OtherContent { what })
}

/// Compares the base that an answer says that its frames follow, or has, with the one that is expected. Frames of one log after the
/// base of another would be sound, each by itself.
///
/// # Errors
/// [`ClientError::OtherContent`] when it is another one.
pub(super) fn check_base(named: Option<BaseDigest>, expected: Option<BaseDigest>) -> Result<(), ClientError> {
    match (named, expected) {
        (Some(named), Some(expected)) if named != expected => {
            let what = format!("the answer is of a log whose base has the SHA-256 {named}, and not {expected}");
            Err(ClientError::OtherContent { what })
        }
        _ => Ok(()),
    }
}

/// Compares the log that a status is of with the one that is read: the next answer may be of it too.
///
/// # Errors
/// [`ClientError::OtherContent`] when it is another one.
pub(super) fn check_log(found: Option<Uuid>, expected: Option<Uuid>) -> Result<(), ClientError> {
    match (found, expected) {
        (Some(found), Some(expected)) if found != expected => {
            let what = format!("the status is of the log with the id {found}, and the one before of {expected}");
            Err(ClientError::OtherContent { what })
        }
        _ => Ok(()),
    }
}

/// Compares the checksum that the frames of an answer go on from with that of `last`, the commit received before them. Frames of
/// another log would each be sound.
///
/// # Errors
/// [`ClientError::OtherContent`] when they go on from another commit.
pub(super) fn check_goes_on(framing: Framing, from: Offset, last: Option<LastCommit>) -> Result<(), ClientError> {
    let Some(last) = last.filter(|last| last.last_offset().0.checked_add(1) == Some(from.0)) else {
        return Ok(());
    };
    let found = match framing {
        Framing::Wal(Some(start)) => start.chain.number(),
        _ => return Ok(()),
    };
    if found == last.checksum {
        return Ok(());
    }
    let what = format!(
        "the answer goes on from a commit with the checksum {found:016x} before offset {from}, and what was received before ends \
         with {:016x}",
        last.checksum
    );
    Err(ClientError::OtherContent { what })
}

/// Compares what was received up to `last` with a status of after that: with the last commit of the log, where that is the same one,
/// and with its base.
///
/// # Errors
/// [`ClientError::OtherContent`] when the status is of another log.
pub(super) fn check_end(
    status: &LogStatus,
    (generation, base): (Generation, Option<BaseDigest>),
    last: Option<LastCommit>,
) -> Result<(), ClientError> {
    if status.generation != Some(generation) {
        // A service of before describes no other generation than the current one.
        return Ok(());
    }
    check_base(named_base(status, generation)?, base)?;
    let (Some(received), Some(named)) = (last, status.last_commit) else {
        return Ok(());
    };
    if received.last_offset() != named.last_offset() || received.checksum == named.checksum {
        return Ok(());
    }
    let what = format!(
        "the commits that were received end at offset {} with the checksum {:016x}, and the service says {:016x}",
        received.last_offset(),
        received.checksum,
        named.checksum
    );
    Err(ClientError::OtherContent { what })
}

/// That a source is still the log that was copied, in that generation or a later one.
///
/// # Errors
/// When it is another log, or is in an earlier generation.
pub(super) fn is_still(copied: &Extent, now: &Extent) -> Result<(), MirrorError> {
    check_log(now.log, copied.log)?;
    if now.generation < copied.generation {
        return Err(MirrorError::LaterGeneration { sink: copied.generation, source_generation: now.generation });
    }
    if now.generation == copied.generation {
        check_base(now.base, copied.base)?;
    }
    Ok(())
}
