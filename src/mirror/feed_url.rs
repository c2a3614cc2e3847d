//! Feeding a log of a service: as one live stream whose acknowledgements come back while it goes on; or, where something
//! between holds that back, in requests of bounded size, each durable when it is answered.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};

use super::confirmed;
use super::failure::MirrorError;
use super::feed_bounded;
use crate::api::{AckLine, AppendOutcome};
use crate::client::{Acks, Client, ClientError};
use crate::limits::{LIVE_EARLY, LIVE_PIECE, LIVE_STALL, REQUEST_BYTES_START};
use crate::offset::Offset;
use crate::stream::{Batch, LargeCommit, Part};

/// Feeds `client`'s log with what goes on at `from` until `batches` ends; reports in `durable` how far it is durable.
///
/// # Errors
/// [`MirrorError::HeldBack`] when a live stream is not passed on: the next call sends bounded requests.
pub(super) async fn feed(
    client: Client,
    from: Offset,
    batches: mpsc::Receiver<Batch>,
    durable: &watch::Sender<Offset>,
) -> Result<Offset, MirrorError> {
    if !client.way().may_be_live() {
        return feed_bounded::feed(&client, from, batches, durable).await;
    }
    let sent = Arc::new(Sent::new(from));
    let ended = feed_live(&client, from, batches, &sent, durable).await;
    // A network that fails now and then breaks off any stream. What breaks off all of them does so before the answer
    // begins, or soon after as much was sent as it takes of one request.
    let unheard =
        !sent.is_heard.load(Ordering::Relaxed) || sent.bytes.load(Ordering::Relaxed) >= REQUEST_BYTES_START as u64 / 2;
    let is_early = unheard && sent.start.elapsed() < LIVE_EARLY;
    let (reason, broke_off) = match &ended {
        Err(MirrorError::HeldBack { reason }) => (reason.clone(), false),
        Err(MirrorError::Client(error)) if error.is_about_size() => {
            client.way().is_held_back();
            return Err(MirrorError::HeldBack { reason: error.to_string() });
        }
        Err(MirrorError::Client(ClientError::Transport(error))) if !error.is_connect() && is_early => {
            (crate::transport::chain(error), true)
        }
        Err(MirrorError::Interrupted(reason)) if is_early => (reason.clone(), true),
        Err(_) if is_early => return ended,
        _ => {
            client.way().is_live();
            return ended;
        }
    };
    match seen_of(&client, &sent, durable).await {
        Seen::Proxy { .. } if broke_off && !client.way().broke_off() => ended,
        Seen::Proxy { answered } => {
            client.way().is_held_back();
            let seen = format!("the service answered a request for its status within {} ms", answered.as_millis());
            Err(MirrorError::HeldBack { reason: format!("{reason}, while {seen}") })
        }
        Seen::Nothing { .. } if broke_off => ended,
        Seen::Nothing { after } => {
            client.way().is_unanswered();
            Err(MirrorError::Interrupted(format!(
                "{reason}, and the service did not answer a request for its status within {} s either: it is slow, hangs or is \
                 not there",
                after.as_secs()
            )))
        }
        Seen::NotDurable { next } => Err(MirrorError::Interrupted(format!(
            "{reason}: the service has commits up to offset {next}, and does not make them durable"
        ))),
    }
}

/// What a service shows after a live append failed.
enum Seen {
    /// The service answers, so that something between holds back or breaks off the append.
    Proxy { answered: Duration },
    /// It does not answer at all.
    Nothing { after: Duration },
    /// It received all that was sent, and its disk is slow.
    NotDurable { next: Offset },
}

/// Asks the service for its status.
async fn seen_of(client: &Client, sent: &Sent, durable: &watch::Sender<Offset>) -> Seen {
    let (start, patience) = (Instant::now(), client.way().first_ack_wait());
    let status = match timeout(patience, client.status()).await {
        Ok(Ok(status)) => Some(status),
        Ok(Err(ClientError::Refused { .. })) => None,
        // A proxy that answers for a service that is not there is not what held it back.
        Ok(Err(_)) | Err(_) => return Seen::Nothing { after: patience },
    };
    let answered = start.elapsed();
    let (acked, sent_next) = (*durable.borrow(), Offset(sent.next.load(Ordering::Relaxed)));
    match status.and_then(|status| status.next.zip(status.durable)) {
        Some((next, known)) if sent.is_heard.load(Ordering::Relaxed) && next >= sent_next && known < sent_next => {
            // What it acknowledged was received here, so nothing holds back the answer.
            if known <= acked { Seen::NotDurable { next } } else { Seen::Proxy { answered } }
        }
        _ => Seen::Proxy { answered },
    }
}

/// How much of a live stream was sent, as far as the body knows.
#[derive(Debug)]
struct Sent {
    start: Instant,
    /// Offset after the last commit that was sent at least in part.
    next: AtomicU64,
    /// When bytes were last taken, in milliseconds after the start.
    taken: AtomicU64,
    bytes: AtomicU64,
    /// Whether the answer has begun.
    is_heard: AtomicBool,
    /// Whether the body has ended: what is left to come is the end of the answer.
    is_ended: AtomicBool,
}

impl Sent {
    fn new(from: Offset) -> Sent {
        let (taken, bytes, is_heard, is_ended) = Default::default();
        Sent { start: Instant::now(), next: AtomicU64::new(from.0), taken, bytes, is_heard, is_ended }
    }

    fn take(&self, bytes: usize, end: u64) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.next.store(end, Ordering::Relaxed);
        self.taken.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// An answer that says how far it is durable, as far as that can be believed: see [`confirmed::believed`].
    async fn believed(&self, client: &Client, line: AckLine) -> Result<AckLine, MirrorError> {
        let sent = Offset(self.next.load(Ordering::Relaxed));
        Ok(match line {
            AckLine::Durable { durable } => {
                AckLine::Durable { durable: confirmed::believed(client, sent, durable).await? }
            }
            AckLine::Outcome(outcome) => {
                let durable = confirmed::believed(client, sent, outcome.durable).await?;
                AckLine::Outcome(AppendOutcome { durable, ..outcome })
            }
            error => error,
        })
    }

    /// How long nothing was taken.
    fn silent(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.taken.load(Ordering::Relaxed)))
    }
}

async fn feed_live(
    client: &Client,
    from: Offset,
    batches: mpsc::Receiver<Batch>,
    sent: &Arc<Sent>,
    durable: &watch::Sender<Offset>,
) -> Result<Offset, MirrorError> {
    let answer = client.append_live(from, body(batches, sent.clone()));
    let begun = async {
        let mut acks = answer.await?;
        // The first line is given at once, and says where the append starts.
        let first = acks.next().await?;
        Ok::<_, MirrorError>((acks, first))
    };
    let patience = client.way().first_ack_wait();
    let (acks, first) = timeout(patience, begun).await.map_err(|_elapsed| {
        let reason = format!("the append was not answered within {} s", patience.as_secs());
        MirrorError::HeldBack { reason }
    })??;
    match sent.believed(client, first.ok_or_else(broken)?).await? {
        AckLine::Durable { durable: first } => {
            sent.is_heard.store(true, Ordering::Relaxed);
            durable.send_replace(first);
        }
        line => return ended(line, sent, durable),
    }
    tokio::select! {
        ended = take_acks(client, acks, sent, durable) => ended,
        () = stalled(sent, durable.subscribe()) => Err(MirrorError::HeldBack {
            reason: format!("the answer does not go on, and nothing moved for {} s", LIVE_STALL.as_secs()),
        }),
    }
}

/// Returns when something was sent and not acknowledged, or the answer does not end, and neither moved for too long.
async fn stalled(sent: &Sent, mut durable: watch::Receiver<Offset>) {
    let (mut acked, mut ticks) = (Instant::now(), interval(LIVE_STALL / 15));
    loop {
        ticks.tick().await;
        let moved = durable.has_changed().unwrap_or(false);
        let is_acked = durable.borrow_and_update().0 >= sent.next.load(Ordering::Relaxed);
        // Once the body has ended, the end of the answer must follow.
        if is_acked && !sent.is_ended.load(Ordering::Relaxed) || moved {
            acked = Instant::now();
        }
        if acked.elapsed().min(sent.silent()) > LIVE_STALL {
            return;
        }
    }
}

/// The bytes of the batches, in pieces short enough to show on a slow link that they are being sent.
fn body(
    mut batches: mpsc::Receiver<Batch>,
    sent: Arc<Sent>,
) -> impl futures::Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    let mut end = 0;
    let mut reading: Option<JoinHandle<io::Result<Bytes>>> = None;
    let pieces_of = move |cx: &mut Context<'_>| loop {
        if let Some(block) = &mut reading {
            let read = ready!(Pin::new(block).poll(cx)).map_err(io::Error::other).flatten();
            reading = None;
            let piece = read.inspect(|piece| sent.take(piece.len(), end));
            return Poll::Ready(Some(piece));
        }
        match pieces.pop_front() {
            Some(Piece::Held(mut piece)) => {
                if piece.len() > LIVE_PIECE {
                    let rest = piece.split_off(LIVE_PIECE);
                    pieces.push_front(Piece::Held(rest));
                }
                sent.take(piece.len(), end);
                return Poll::Ready(Some(Ok(piece)));
            }
            Some(Piece::Large(large, at)) if at < large.bytes() => {
                pieces.push_front(Piece::Large(large.clone(), at + LIVE_PIECE as u64));
                reading = Some(tokio::task::spawn_blocking(move || large.block(at, LIVE_PIECE)));
                continue;
            }
            Some(Piece::Large(..)) => continue,
            None => {}
        }
        match ready!(batches.poll_recv(cx)) {
            Some(batch) => {
                end = batch.runs().last().map_or(end, |run| run.end.0);
                pieces.extend(Piece::all_of(batch));
            }
            None => {
                sent.is_ended.store(true, Ordering::Relaxed);
                return Poll::Ready(None);
            }
        }
    };
    let pieces_of = Mutex::new(pieces_of);
    futures::stream::poll_fn(move |cx| (pieces_of.lock().unwrap_or_else(PoisonError::into_inner))(cx))
}

/// A part of what is sent.
enum Piece {
    Held(Bytes),
    /// A large commit from a byte of it on.
    Large(LargeCommit, u64),
}

impl Piece {
    fn all_of(batch: Batch) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for part in batch.parts {
            match part {
                Part::Header(_, bytes) => pieces.push(Piece::Held(bytes)),
                Part::Run(run) => {
                    pieces.extend(run.slices.into_iter().map(Piece::Held));
                    pieces.extend(run.large.map(|large| Piece::Large(large, 0)));
                }
            }
        }
        pieces
    }
}

async fn take_acks(
    client: &Client,
    mut acks: Acks,
    sent: &Sent,
    durable: &watch::Sender<Offset>,
) -> Result<Offset, MirrorError> {
    loop {
        let line = acks.next().await?.ok_or_else(broken)?;
        match sent.believed(client, line).await? {
            AckLine::Durable { durable: next } => durable.send_replace(next),
            line => return ended(line, sent, durable),
        };
    }
}

/// The last line of an answer: a good end only if all that was to be sent was, and is durable. Something between may have given
/// an answer of its own, or an old one.
fn ended(line: AckLine, sent: &Sent, durable: &watch::Sender<Offset>) -> Result<Offset, MirrorError> {
    match line {
        AckLine::Durable { durable: end } => Ok(end),
        AckLine::Outcome(outcome) => {
            let (end, wanted) = (outcome.durable, Offset(sent.next.load(Ordering::Relaxed)));
            durable.send_replace(end);
            if end == wanted && sent.is_ended.load(Ordering::Relaxed) {
                return Ok(end);
            }
            Err(MirrorError::Interrupted(format!(
                "the service ended its answer, with offset {end}, before the request: commits up to {wanted} were sent"
            )))
        }
        AckLine::Error(body) => Err(MirrorError::Refused(Box::new(body))),
    }
}

fn broken() -> MirrorError {
    MirrorError::Interrupted("the service ended the answer early".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_end_after_the_body_is_given_up_and_one_at_rest_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (sent, (_acks, durable)) = (Sent::new(Offset(3)), watch::channel(Offset(3)));
            let at_rest = timeout(LIVE_STALL * 4, stalled(&sent, durable.clone())).await;
            assert!(at_rest.is_err(), "all of it is acknowledged, and more may follow");
            sent.is_ended.store(true, Ordering::Relaxed);
            let ended = timeout(LIVE_STALL * 2, stalled(&sent, durable)).await;
            assert!(ended.is_ok(), "the answer must end");
        });
    }

    #[test]
    fn an_answer_is_a_good_end_only_when_all_was_sent_and_all_of_that_is_durable() {
        let outcome = |durable| AckLine::Outcome(AppendOutcome { next: durable, durable, appended: 1, skipped: 0 });
        let (sent, (acks, durable)) = (Sent::new(Offset(5)), watch::channel(Offset(5)));
        sent.take(100, 30);
        assert!(ended(outcome(Offset(30)), &sent, &acks).is_err(), "more was to come");
        sent.is_ended.store(true, Ordering::Relaxed);
        for early in [3, 5, 12] {
            assert!(ended(outcome(Offset(early)), &sent, &acks).is_err(), "{early}");
        }
        assert_eq!(ended(outcome(Offset(30)), &sent, &acks).unwrap(), Offset(30));
        assert_eq!(*durable.borrow(), Offset(30));
    }
}
