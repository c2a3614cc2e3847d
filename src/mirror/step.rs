//! Stepping into the next generation of a log that is rolled over while a database is followed into it, without comparing pages.
//!
//! A roll folds exactly the frames of a generation into the base of the next, so the next frame of the source is frame 1 there. What
//! was sent and is not in the generation that ended must follow, and nothing else. Where that ended, the service notes as the
//! checksum of its last frame ([`fed::rolled`](super::fed::rolled)), and the outlet knows which of its commits has it: all after
//! that one is sent again, with the checksums of the new log. A service that notes nothing, and a checksum that no commit has that
//! is remembered, end the attempt: the next one starts from what the sink holds.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::time::{sleep, timeout};

use super::failure::MirrorError;
use super::fed;
use super::run::Event;
use super::source::{Piece, Pieces};
use crate::api::LogStatus;
use crate::client::{Client, ClientError};
use crate::format::wal::{Chain, FIRST_FRAME};
use crate::limits::{ROLL_LOOK_AGAIN, ROLL_PATIENCE, WAITING_MAX};
use crate::offset::{Generation, Offset};

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The generation that started.
    pub(super) generation: Generation,
    /// The checksum of the last frame of the one before.
    pub(super) folded: Chain,
}

/// What an outlet and those who take from it say to each other.
#[derive(Debug, Default)]
pub(super) struct Steps {
    wanted: Mutex<Option<Step>>,
    durable: AtomicU64,
}

impl Steps {
    /// Everything before this offset is durable.
    pub(super) fn set_durable(&self, durable: Offset) {
        self.durable.store(durable.0, Ordering::Relaxed);
    }

    pub(super) fn durable(&self) -> Offset {
        Offset(self.durable.load(Ordering::Relaxed))
    }

    /// Has the outlet go on in another generation: it answers with [`Piece::Stepped`], or ends.
    fn want(&self, step: Step) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(step);
    }

    /// What is wanted, once.
    pub(super) fn take(&self) -> Option<Step> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether an attempt ended because the log may have gone on to another generation.
pub(super) fn may_be_rolled(error: &MirrorError) -> bool {
    let body = match error {
        MirrorError::Refused(body) => body,
        MirrorError::Client(ClientError::Refused { body, .. }) => body,
        _ => return false,
    };
    matches!(body.error.as_str(), "ended" | "ahead" | "gap")
}

/// Goes on in the generation that follows `generation`, if that was rolled over: after Some the next piece is the first one for it,
/// and the offset is the one after the end of the generation before. None when the attempt must start from what the sink holds.
///
/// # Errors
/// When the database cannot be read any more.
pub(super) async fn step(
    client: &Client,
    (identity, generation): (&str, Generation),
    steps: &Steps,
    pieces: &mut Pieces,
    told: &mut impl FnMut(Event),
) -> Result<Option<(Generation, Offset)>, MirrorError> {
    let mut finding = pin!(timeout(ROLL_PATIENCE, find_next(client, identity, generation)));
    // Those who hold the locks must not wait for a fold: what they hand over meanwhile is retained.
    let found = loop {
        tokio::select! {
            found = &mut finding => break found,
            piece = pieces.recv() => if passed(piece, told)?.is_none() { return Ok(None) },
        }
    };
    let Ok(Some(step)) = found else {
        log::info!("{}: the next generation is not known to follow generation {generation}", client.url());
        return Ok(None);
    };
    steps.want(step);
    loop {
        match passed(pieces.recv().await, told)? {
            None => return Ok(None),
            Some(Passed::Stepped(after)) => return Ok(Some((step.generation, after))),
            Some(Passed::Other) => {}
        }
    }
}

enum Passed {
    Stepped(Offset),
    Other,
}

/// What a piece says that is for a generation that has ended; none when no more come.
fn passed(
    piece: Option<Result<Piece, MirrorError>>,
    told: &mut impl FnMut(Event),
) -> Result<Option<Passed>, MirrorError> {
    match piece {
        None | Some(Ok(Piece::End(_))) => Ok(None),
        Some(Err(error)) => Err(error),
        Some(Ok(Piece::Stepped(after))) => Ok(Some(Passed::Stepped(after))),
        Some(Ok(Piece::Compared { reason, pages })) => {
            told(Event::Compared { reason, pages });
            Ok(Some(Passed::Other))
        }
        Some(Ok(_)) => Ok(Some(Passed::Other)),
    }
}

/// Asks for the next generation until it is there.
async fn find_next(client: &Client, identity: &str, generation: Generation) -> Option<Step> {
    loop {
        // One that does not even answer is not busy with a fold.
        match timeout(WAITING_MAX, client.find()).await {
            Ok(Ok(Some(status))) if status.generation > Some(generation) => return step_of(&status, identity),
            Ok(Ok(Some(_))) => sleep(ROLL_LOOK_AGAIN).await,
            Ok(Ok(None) | Err(_)) | Err(_) => return None,
        }
    }
}

/// How to go on in a generation that nobody wrote to yet.
fn step_of(status: &LogStatus, identity: &str) -> Option<Step> {
    let (generation, noted) = (status.generation?, status.source.as_ref()?);
    let is_new = status.first == Some(FIRST_FRAME) && status.durable == Some(FIRST_FRAME);
    let is_ours = noted.generation == generation && noted.identity == identity;
    let folded = fed::folded(noted).filter(|_| is_new && is_ours)?;
    Some(Step { generation, folded })
}
