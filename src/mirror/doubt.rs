//! [`Doubt`]: a fault in what was received over a network, of which one alone proves nothing about the other end.

use super::endpoint::{Mirror, Place};
use super::failure::MirrorError;
use super::replica_file::ReplicaFileError;
use crate::blame::{Blame, Blamed};
use crate::client::{ClientError, without_secrets};
use crate::format::ScanError;
use crate::offset::Offset;
use crate::stream::AppendError;

/// The last fault that a network may have caused, until it is found a second time: the same one, at the same offset.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    last: Option<(String, Offset)>,
}

impl Doubt {
    /// Answers were right in between: what is found next is found for the first time.
    pub(super) fn is_over(&mut self) {
        self.last = None;
    }

    /// Whether what failed has to be tried again on a new connection before it proves anything: bytes that passed a network
    /// were not sound, or not those expected, at `next` or where the error says. False the second time in a row.
    pub(super) fn is_first(&mut self, mirror: &Mirror, error: &MirrorError, next: Offset) -> bool {
        let Some(at) = offset(mirror, error, next) else {
            return false;
        };
        // With all that was found: other bytes are another fault, and show that it is the network's.
        let found = Some((fault(error), at));
        let is_known = self.last == found;
        self.last = found;
        !is_known
    }
}

/// What the fault is, but for where in the answer: that is another place in the next one.
fn fault(error: &MirrorError) -> String {
    match error {
        MirrorError::Received(ScanError::Corrupt { error, .. })
        | MirrorError::Append(AppendError::Stream(ScanError::Corrupt { error, .. })) => format!("{error:?}"),
        error => format!("{:?}", std::mem::discriminant(error)),
    }
}

/// Where the fault is, if a network can have caused it.
fn offset(mirror: &Mirror, error: &MirrorError, next: Offset) -> Option<Offset> {
    let (is_received, is_sent) = (is_url(&mirror.source), is_url(&mirror.sink));
    match error {
        MirrorError::Received(ScanError::Corrupt { offset, .. }) if is_received => Some(offset.unwrap_or(next)),
        MirrorError::Fork { at, .. } if is_received => Some(*at),
        // What contradicts what was known of it: another log that answers, or an answer that was kept from before.
        MirrorError::LaterGeneration { source_generation, .. } if is_received => Some(Offset(source_generation.0)),
        MirrorError::Ahead { source_end, .. } | MirrorError::LostEnd { source_end, .. } if is_received => {
            Some(*source_end)
        }
        MirrorError::Gap { source_first, .. } if is_received => Some(*source_first),
        MirrorError::OtherBase { .. } | MirrorError::Unproven { .. } | MirrorError::OtherFormat { .. }
            if is_received =>
        {
            Some(next)
        }
        MirrorError::ReplicaFile(ReplicaFileError::OtherLog { .. }) if is_received => Some(next),
        MirrorError::Client(ClientError::Refused { body, .. })
            if is_received && matches!(body.error.as_str(), "pruned" | "ahead") =>
        {
            Some(body.first.or(body.next).unwrap_or(next))
        }
        MirrorError::Client(ClientError::OtherContent { .. }) if is_received => Some(next),
        MirrorError::Append(_) if is_received && error.blame() == Blame::Data => Some(next),
        MirrorError::Refused(body) | MirrorError::Client(ClientError::Refused { body, .. })
            if is_sent && matches!(body.error.as_str(), "corrupt" | "fork") =>
        {
            Some(body.next.unwrap_or(next))
        }
        _ => None,
    }
}

fn is_url(place: &Place) -> bool {
    matches!(place, Place::Url(_))
}

/// The error to end with after the same fault was found in two answers of the source.
pub(super) fn found_twice(mirror: &Mirror, error: MirrorError) -> MirrorError {
    match (&mirror.source, error) {
        (Place::Url(url), MirrorError::Received(error)) => {
            MirrorError::ReceivedTwice { place: without_secrets(url), error }
        }
        (_, error) => error,
    }
}
