//! Damage of commits that a reader meets in a log that is open: its index led past them when it was opened, or they rotted since.

use std::sync::{Arc, PoisonError};

use super::error::Error;
use super::log::{Log, State};
use super::opening::Unusable;
use super::shard::Message;
use crate::offset::Offset;
use crate::segment::SegmentReader;
use crate::stream::{Fault, OpenError, Reads, SurveyError, survey_segments};

impl Log {
    /// The error of a reader that met damage. Where commits are at fault, for which all of them are read, the log is damaged from here
    /// on, as if that had been found when it was opened. Blocks.
    pub(super) fn met_damage(self: &Arc<Self>, error: Error) -> Error {
        if !matches!(error, Error::Damaged(_)) || self.base_fault().is_some() {
            return error;
        }
        let seen = self.view();
        if seen.state != State::Ok || !seen.opened {
            return error;
        }
        let starts: Vec<Offset> = seen.segments().map(|segment| segment.start).collect();
        let surveyed = survey_segments(&**self.repo(), &starts, u64::MAX, Some(seen.durable), Reads::All);
        let Err(SurveyError::Damaged(fault)) = surveyed else {
            return error;
        };
        // It may have ended or been opened again meanwhile.
        let now = self.view();
        if now.state != State::Ok || now.openings != seen.openings {
            return error;
        }
        *self.commit_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.clone());
        let state = Unusable::of(self, u64::MAX, OpenError::Damaged(fault)).publish(self);
        log::error!("{}: {}", self.name(), state.cause());
        if let Some(queue) = self.queue.upgrade() {
            // A shard that is gone opens nothing any more.
            let _ = queue.blocking_send(Message::Reopen { log: self.clone() });
        }
        Error::Damaged(state.cause().into())
    }

    /// The damage of commits that a reader met, if it is still there: opening the log need not find it. Blocks.
    pub(super) fn known_fault(&self) -> Option<Fault> {
        let fault = self.commit_fault.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let is_sound = || {
            let mut reader = SegmentReader::open(&**self.repo(), fault.segment).ok()?;
            let framing = reader.header().ok()?.ok()??;
            let commit = reader.commit_at(fault.at, framing, u64::MAX).ok()??;
            Some(commit.first == fault.offset)
        };
        if is_sound() == Some(true) {
            *self.commit_fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return None;
        }
        Some(fault)
    }
}
