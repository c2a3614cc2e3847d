//! [`Silence`]: a stream of commits that brings nothing, and what the service says meanwhile. A connection may be lost
//! unnoticed, so a stream that is silent proves nothing about the log.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::source::Reading;
use crate::client::{Client, ClientError};
use crate::limits::{HELD_BACK_AFTER, SILENCE_FIRST, SILENCE_LAST, STALL_TIMEOUT};
use crate::offset::Offset;

/// What a silence comes to.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The log has nothing more, or has not had it for long.
    Idle,
    /// The log has had more for long.
    Ahead,
    /// The stream is over, and its end was not received: the log has been in another generation, or at another end, for long.
    Over(String),
}

/// See the [module](self).
pub(super) struct Silence {
    patience: Duration,
    /// Since when the service is known to be somewhere else than the stream.
    elsewhere: Option<Instant>,
    /// Since when the service does not answer either.
    unanswered: Option<Instant>,
    next: Offset,
}

/// Where a log is, seen from a stream of it.
enum Position {
    Same,
    Ahead,
    Other(String),
}

impl Silence {
    /// Of a stream that has brought all before `next`.
    pub(super) fn new(next: Offset) -> Silence {
        Silence { patience: SILENCE_FIRST, elsewhere: None, unanswered: None, next }
    }

    /// How long to wait for bytes before the service is asked; a stream that ends where the log does may be of any speed.
    pub(super) fn patience(&self, follow: bool) -> Duration {
        match (follow, self.elsewhere, self.unanswered) {
            (false, ..) => Duration::MAX,
            (true, Some(_), _) => SILENCE_FIRST / 4,
            (true, None, Some(_)) => SILENCE_FIRST,
            (true, None, None) => self.patience,
        }
    }

    /// Asks the service where the log is.
    ///
    /// # Errors
    /// When it has not answered for so long that the stream is given up.
    pub(super) async fn verdict(
        &mut self,
        client: &Client,
        reading: &Reading,
        next: Offset,
    ) -> Result<Verdict, ClientError> {
        let position = match timeout(HELD_BACK_AFTER, client.status()).await {
            Ok(Ok(status)) => match (status.generation, status.durable) {
                (Some(now), _) if now != reading.generation => {
                    Position::Other(format!("the log is in generation {now}, and the stream of {}", reading.generation))
                }
                (_, Some(durable)) if durable > next => Position::Ahead,
                (_, Some(durable)) if durable < next => {
                    Position::Other(format!("the log ends at offset {durable}, and the stream is at {next}"))
                }
                _ => Position::Same,
            },
            // The next attempt finds out what that means.
            Ok(Err(error)) if !error.is_transient() => Position::Other(error.to_string()),
            _ if self.unanswered.get_or_insert_with(Instant::now).elapsed() < STALL_TIMEOUT => {
                return Ok(Verdict::Idle);
            }
            _ => return Err(ClientError::Silent { after: STALL_TIMEOUT }),
        };
        self.unanswered = None;
        if matches!(position, Position::Same) || next != self.next {
            *self = Silence { patience: (self.patience * 2).min(SILENCE_LAST), ..Silence::new(next) };
            return Ok(Verdict::Idle);
        }
        let is_long = self.elsewhere.get_or_insert_with(Instant::now).elapsed() >= HELD_BACK_AFTER;
        Ok(match position {
            Position::Ahead if is_long => Verdict::Ahead,
            Position::Other(what) if is_long => Verdict::Over(what),
            _ => Verdict::Idle,
        })
    }
}
