//! Whether commits that were received are those that the service says it holds. Each of them may be sound, and of another log or
//! generation: something between us and the service may answer from what it kept.

use crate::api::LastCommit;
use crate::client::ClientError;
use crate::offset::Offset;
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
