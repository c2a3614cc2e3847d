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

/// Whether an error says that the generation has ended: the next one may take some time. Any other one that a roll causes comes
/// from the generation that followed.
fn says_ended(error: &MirrorError) -> bool {
    matches!(error, MirrorError::Refused(body) | MirrorError::Client(ClientError::Refused { body, .. }) if body.error == "ended")
}

/// Goes on in the generation that follows `generation`, if that was rolled over, as `error` may say: after Some the next piece is
/// the first one for it, and the offset is the one after the end of the generation before. None when the attempt must start from
/// what the sink holds.
///
/// # Errors
/// When the database cannot be read any more.
pub(super) async fn step(
    client: &Client,
    (identity, generation): (&str, Generation),
    error: &MirrorError,
    steps: &Steps,
    pieces: &mut Pieces,
    told: &mut impl FnMut(Event),
) -> Result<Option<(Generation, Offset)>, MirrorError> {
    let mut finding = pin!(timeout(ROLL_PATIENCE, find_next(client, identity, generation, says_ended(error))));
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

/// Asks for the next generation until it is there; once only where the service did not say that this one has ended, and says that
/// it goes on in it.
async fn find_next(client: &Client, identity: &str, generation: Generation, has_ended: bool) -> Option<Step> {
    loop {
        // One that does not even answer is not busy with a fold.
        match timeout(WAITING_MAX, client.find()).await {
            Ok(Ok(Some(status))) if status.generation > Some(generation) => return step_of(&status, identity),
            Ok(Ok(Some(status))) if !has_ended && status.generation.is_some() && status.durable.is_some() => {
                return None;
            }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    use super::*;
    use crate::api::ErrorBody;

    /// A log that says the first of these of itself as often as it is told, and the second from then on.
    fn saying(first: Value, times: usize, then: Value) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/logs/app", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for (number, mut stream) in listener.incoming().flatten().enumerate() {
                let _ = stream.read(&mut [0; 4096]);
                let body = if number < times { &first } else { &then }.to_string();
                let head = format!("content-type: application/json\r\ncontent-length: {}", body.len());
                let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\nconnection: close\r\n\r\n{body}");
            }
        });
        Client::new(&url).unwrap()
    }

    fn status(generation: u64, durable: u64) -> Value {
        json!({
            "log": "app", "format": "wal", "id": "a", "generation": generation, "epoch": null, "first": 1, "next": durable,
            "durable": durable, "segments": 1, "bytes": 32, "last_commit": null, "state": "ok", "error": null,
            "source": {
                "identity": "host:/app.db", "generation": generation, "offset": 1, "salts": [1, 2], "frames": 3,
                "checksum": "5", "log_checksum": "6",
            },
        })
    }

    fn refused(code: &str) -> MirrorError {
        let body: ErrorBody = serde_json::from_value(json!({"error": code, "message": "", "next": 3})).unwrap();
        MirrorError::Refused(Box::new(body))
    }

    /// Where it goes on, of what was found within some seconds.
    async fn found(client: &Client, error: MirrorError) -> Option<Option<Step>> {
        let (_held, mut pieces) = mpsc::channel(1);
        let (steps, mut told) = (Steps::default(), |_| ());
        let stepping = step(client, ("host:/app.db", Generation(1)), &error, &steps, &mut pieces, &mut told);
        let stepped = timeout(Duration::from_secs(5), stepping).await;
        // It waits for the outlet once it has found where.
        match (stepped, steps.take()) {
            (Ok(stepped), _) => Some(stepped.unwrap().map(|_| unreachable!("nothing was handed over"))),
            (Err(_), step) => step.map(Some),
        }
    }

    #[tokio::test]
    async fn a_gap_in_a_generation_that_goes_on_is_not_waited_for() {
        for code in ["gap", "ahead"] {
            let client = saying(status(1, 3), usize::MAX, Value::Null);
            assert_eq!(found(&client, refused(code)).await, Some(None), "{code}");
        }
    }

    #[tokio::test]
    async fn the_generation_after_one_that_has_ended_is_waited_for() {
        let step = Step { generation: Generation(2), folded: Chain::from_number(6) };
        for (code, times) in [("ended", 20), ("gap", 0)] {
            let client = saying(status(1, 3), times, status(2, 1));
            assert_eq!(found(&client, refused(code)).await, Some(Some(step)), "{code}");
        }
    }
}
