//! [`Doubt`]: a fault in what was received over a network, of which one alone proves nothing about the other end.

use super::endpoint::{Mirror, Place};
use super::failure::MirrorError;
use super::replica_file::ReplicaFileError;
use crate::api::ErrorBody;
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

/// All that was found, except the byte positions in what was sent: the same commit starts at another one when it is sent again.
fn fault(error: &MirrorError) -> String {
    match error {
        MirrorError::Received(error) | MirrorError::Append(AppendError::Stream(error)) => match error {
            ScanError::Corrupt { error, .. } => format!("{error:?}"),
            ScanError::Truncated { offset, .. } => format!("cut {offset:?}"),
        },
        MirrorError::Refused(body) | MirrorError::Client(ClientError::Refused { body, .. }) => {
            let ErrorBody { error, next, at, first, offset, .. } = &**body;
            format!("{error} {:?}", [next, at, first, offset])
        }
        error => format!("{error:?}"),
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
        MirrorError::Unconfirmed { .. } if is_sent => Some(next),
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn refused(error: &str, message: &str) -> MirrorError {
        let body = ErrorBody { error: error.into(), message: message.into(), ..ErrorBody::default() };
        ClientError::Refused { status: 409, body: Box::new(body) }.into()
    }

    fn other(what: &str) -> MirrorError {
        ClientError::OtherContent { what: what.into() }.into()
    }

    #[test]
    fn only_the_same_fault_at_the_same_offset_proves_anything() {
        let (url, dir) = (Place::Url("http://host/logs/app".into()), Place::Dir(PathBuf::from("copy")));
        let from = Mirror::new(url.clone(), dir.clone());
        let mut doubt = Doubt::default();
        let mut is_first = |error: &MirrorError, next| doubt.is_first(&from, error, Offset(next));
        assert!(is_first(&other("the base is a"), 7));
        assert!(is_first(&refused("pruned", ""), 7), "another kind");
        assert!(is_first(&refused("ahead", ""), 7));
        assert!(is_first(&other("the base is b"), 7) && is_first(&other("the base is a"), 7), "other content");
        assert!(is_first(&other("the base is a"), 8), "at another offset");
        assert!(!is_first(&other("the base is a"), 8), "the same twice in a row");
        // What is said of the place in what was sent is another one when that is sent again.
        let to = Mirror::new(dir, url);
        let mut doubt = Doubt::default();
        assert!(doubt.is_first(&to, &refused("corrupt", "at byte 7"), Offset(3)));
        assert!(!doubt.is_first(&to, &refused("corrupt", "at byte 99"), Offset(3)));
    }
}
