//! Feeding a log of a service: as one live stream whose acknowledgements come back while it goes on; or, where something
//! between holds that back, in requests of bounded size, each durable when it is answered.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};

use super::failure::MirrorError;
use super::feed_bounded;
use crate::api::AckLine;
use crate::client::{Acks, Client, ClientError};
use crate::limits::{FIRST_ACK_WAIT, LIVE_EARLY, LIVE_PIECE, LIVE_STALL, REQUEST_BYTES_START};
use crate::offset::Offset;
use crate::stream::Batch;

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
    let reason = match &ended {
        Err(MirrorError::HeldBack { .. }) => {
            client.way().is_held_back();
            return ended;
        }
        Err(MirrorError::Client(error)) if error.is_about_size() => error.to_string(),
        Err(MirrorError::Client(ClientError::Transport(error)))
            if !error.is_connect() && is_early && client.way().broke_off() =>
        {
            crate::transport::chain(error)
        }
        Err(MirrorError::Interrupted(reason)) if is_early && client.way().broke_off() => reason.clone(),
        Err(_) if is_early => return ended,
        _ => {
            client.way().is_live();
            return ended;
        }
    };
    client.way().is_held_back();
    Err(MirrorError::HeldBack { reason })
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
}

impl Sent {
    fn new(from: Offset) -> Sent {
        let (taken, bytes, is_heard) = Default::default();
        Sent { start: Instant::now(), next: AtomicU64::new(from.0), taken, bytes, is_heard }
    }

    fn take(&self, bytes: usize, end: u64) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.next.store(end, Ordering::Relaxed);
        self.taken.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
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
    let (acks, first) = timeout(FIRST_ACK_WAIT, begun).await.map_err(|_elapsed| {
        let reason = format!("the append was not answered within {} s", FIRST_ACK_WAIT.as_secs());
        MirrorError::HeldBack { reason }
    })??;
    match first {
        Some(AckLine::Durable { durable: first }) => {
            sent.is_heard.store(true, Ordering::Relaxed);
            durable.send_replace(first);
        }
        Some(line) => return ended(line, durable),
        None => return Err(broken()),
    }
    tokio::select! {
        ended = take_acks(acks, durable) => ended,
        () = stalled(sent, durable.subscribe()) => Err(MirrorError::HeldBack {
            reason: format!("what was sent is not acknowledged, and nothing moved for {} s", LIVE_STALL.as_secs()),
        }),
    }
}

/// Returns when something was sent and not acknowledged, and neither moved for too long.
async fn stalled(sent: &Sent, mut durable: watch::Receiver<Offset>) {
    let (mut acked, mut ticks) = (Instant::now(), interval(LIVE_STALL / 15));
    loop {
        ticks.tick().await;
        let moved = durable.has_changed().unwrap_or(false);
        let is_acked = durable.borrow_and_update().0 >= sent.next.load(Ordering::Relaxed);
        if is_acked || moved {
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
    let mut pieces: std::collections::VecDeque<Bytes> = std::collections::VecDeque::new();
    let mut end = 0;
    let pieces_of = move |cx: &mut std::task::Context<'_>| loop {
        if let Some(mut piece) = pieces.pop_front() {
            if piece.len() > LIVE_PIECE {
                let rest = piece.split_off(LIVE_PIECE);
                pieces.push_front(rest);
            }
            sent.take(piece.len(), end);
            return std::task::Poll::Ready(Some(Ok(piece)));
        }
        match std::task::ready!(batches.poll_recv(cx)) {
            Some(batch) => {
                end = batch.runs().last().map_or(end, |run| run.end.0);
                pieces.extend(batch.slices().cloned());
            }
            None => return std::task::Poll::Ready(None),
        }
    };
    let pieces_of = Mutex::new(pieces_of);
    futures::stream::poll_fn(move |cx| (pieces_of.lock().unwrap_or_else(PoisonError::into_inner))(cx))
}

async fn take_acks(mut acks: Acks, durable: &watch::Sender<Offset>) -> Result<Offset, MirrorError> {
    loop {
        match acks.next().await? {
            Some(AckLine::Durable { durable: next }) => durable.send_replace(next),
            Some(line) => return ended(line, durable),
            None => return Err(broken()),
        };
    }
}

/// The last line of an answer.
fn ended(line: AckLine, durable: &watch::Sender<Offset>) -> Result<Offset, MirrorError> {
    match line {
        AckLine::Durable { durable: end } => Ok(end),
        AckLine::Outcome(outcome) => {
            durable.send_replace(outcome.durable);
            Ok(outcome.durable)
        }
        AckLine::Error(body) => Err(MirrorError::Refused(Box::new(body))),
    }
}

fn broken() -> MirrorError {
    MirrorError::Interrupted("the service ended the answer early".into())
}
