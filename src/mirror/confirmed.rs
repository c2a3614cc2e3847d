//! What a service acknowledged, compared with what the status of its log says: an answer may be one that was kept from before, or come
//! from something between that stored nothing.

use super::failure::MirrorError;
use crate::api::LogStatus;
use crate::client::{Client, positions};
use crate::offset::{Generation, Offset};
use crate::segment::base::BaseDigest;

/// Up to where commits are durable of which those before `sent` were sent, when an answer says that all before `said` are. What is
/// acknowledged is never more than was sent, except at the end of a push into a log that another one feeds too: the log has it then.
///
/// # Errors
/// [`MirrorError::Unconfirmed`] when the log does not have that much, and when it cannot be asked.
pub(super) async fn believed(client: &Client, sent: Offset, said: Offset) -> Result<Offset, MirrorError> {
    if said > sent {
        is_held(client, &client.connected_again()?.status().await?, said)?;
    }
    Ok(said.min(sent))
}

/// That a generation of the log holds all before `end`, which was acknowledged.
///
/// # Errors
/// [`MirrorError::Unconfirmed`] when it does not, and when it cannot be asked.
pub(super) async fn check_end(client: &Client, generation: Generation, end: Offset) -> Result<(), MirrorError> {
    match status_of(client, generation).await? {
        Some(status) => is_held(client, &status, end),
        None => Ok(()),
    }
}

/// That a generation of the log starts from the base with this digest, which was acknowledged.
///
/// # Errors
/// As [`check_end`].
pub(super) async fn check_base(client: &Client, generation: Generation, sent: BaseDigest) -> Result<(), MirrorError> {
    let base = status_of(client, generation).await?.and_then(|status| status.base);
    match base {
        Some(base) if base.sha256 != sent.to_string() => {
            let what = format!(
                "the base of generation {generation} was acknowledged, with the SHA-256 {sent}, but that of the log has {}",
                base.sha256
            );
            Err(unconfirmed(client, what))
        }
        _ => Ok(()),
    }
}

/// Where a generation stands; none where it was deleted since.
async fn status_of(client: &Client, generation: Generation) -> Result<Option<LogStatus>, MirrorError> {
    match client.status_of(generation).await {
        Err(error) if error.is_gone() => Ok(None),
        status => Ok(status.map(Some)?),
    }
}

fn is_held(client: &Client, status: &LogStatus, end: Offset) -> Result<(), MirrorError> {
    let held = match status.durable {
        Some(durable) => durable,
        None => positions(status)?.durable,
    };
    if held >= end {
        return Ok(());
    }
    let what = format!("commits up to offset {end} were acknowledged, but the log is durable up to {held}");
    Err(unconfirmed(client, what))
}

fn unconfirmed(client: &Client, what: String) -> MirrorError {
    MirrorError::Unconfirmed { place: client.url().to_string(), what }
}
