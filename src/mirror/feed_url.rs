//! Feeding a log of a service.

use tokio::sync::watch;

use super::failure::MirrorError;
use crate::api::AckLine;
use crate::client::Acks;
use crate::offset::Offset;

pub(super) async fn take_acks(mut acks: Acks, told: &watch::Sender<Offset>) -> Result<Offset, MirrorError> {
    loop {
        match acks.next().await? {
            Some(AckLine::Durable { durable }) => told.send_replace(durable),
            Some(AckLine::Outcome(outcome)) => {
                told.send_replace(outcome.durable);
                return Ok(outcome.durable);
            }
            Some(AckLine::Error(body)) => return Err(MirrorError::Refused(Box::new(body))),
            None => return Err(MirrorError::Interrupted("the service ended the answer early".into())),
        };
    }
}
