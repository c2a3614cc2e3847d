//! Feeding a log of a service in requests of bounded size: whole commits, as many as fit; one that does not fit travels in
//! parts. Works through anything that passes on requests whole, as nginx does with its defaults.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::confirmed;
use super::database::off;
use super::failure::MirrorError;
use crate::api::AppendOutcome;
use crate::client::{Client, ClientError, PartAnswer, UploadPart};
use crate::limits::PART_ATTEMPTS;
use crate::offset::Offset;
use crate::retry::RECONNECT;
use crate::stream::{Batch, LargeCommit, Part};

/// Commits that belong together, with the headers before them: a header alone would be lost at the end of a request.
#[derive(Debug)]
struct Piece {
    slices: Vec<Bytes>,
    /// The commit after them, if it is a large one.
    large: Option<LargeCommit>,
    /// What is in memory of it.
    bytes: usize,
    end: Offset,
}

/// What is to be sent.
#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Headers without the commits that follow them.
    headers: Vec<Bytes>,
}

impl Queue {
    fn push(&mut self, batch: Batch) {
        for part in batch.parts {
            match part {
                Part::Header(_, bytes) => self.headers.push(bytes),
                Part::Run(run) => {
                    let mut slices = std::mem::take(&mut self.headers);
                    slices.extend(run.slices);
                    let bytes = slices.iter().map(Bytes::len).sum();
                    self.bytes += bytes;
                    self.pieces.push_back(Piece { slices, large: run.large, bytes, end: run.end });
                }
            }
        }
    }

    /// How many pieces fit into a request of so many bytes: at least one. A large commit is alone.
    fn fitting(&self, bytes_max: usize) -> usize {
        let mut bytes = 0;
        let fit = self.pieces.iter().take_while(|piece| {
            bytes += piece.bytes;
            bytes <= bytes_max && piece.large.is_none()
        });
        fit.count().max(1)
    }

    /// The large commit that is first, if one is.
    fn large(&self) -> Option<LargeCommit> {
        self.pieces.front()?.large.clone()
    }

    /// The bytes of the first pieces, and where they end.
    fn body(&self, count: usize) -> (Bytes, Offset) {
        let pieces = || self.pieces.iter().take(count);
        let mut body = BytesMut::with_capacity(pieces().map(|piece| piece.bytes).sum());
        pieces().flat_map(|piece| &piece.slices).for_each(|slice| body.extend_from_slice(slice));
        (body.freeze(), pieces().next_back().map_or(Offset::ZERO, |piece| piece.end))
    }

    fn sent(&mut self, count: usize) {
        self.bytes -= self.pieces.drain(..count).map(|piece| piece.bytes).sum::<usize>();
    }
}

/// Feeds the log with what goes on at `from` until `batches` ends; reports in `durable` how far it is durable.
pub(super) async fn feed(
    client: &Client,
    from: Offset,
    mut batches: mpsc::Receiver<Batch>,
    durable: &watch::Sender<Offset>,
) -> Result<Offset, MirrorError> {
    let (mut next, mut queue) = (from, Queue::default());
    loop {
        if queue.pieces.is_empty() {
            match batches.recv().await {
                Some(batch) => queue.push(batch),
                None => return Ok(next),
            }
        }
        while queue.bytes < client.way().request_bytes()
            && let Ok(batch) = batches.try_recv()
        {
            queue.push(batch);
        }
        if queue.pieces.is_empty() {
            continue;
        }
        let bytes_max = client.way().request_bytes();
        let count = queue.fitting(bytes_max);
        let (body, end) = queue.body(count);
        let upload = Upload { front: body.clone(), large: queue.large() };
        let outcome = if upload.bytes() > bytes_max as u64 {
            send_in_parts(client, next, upload).await?
        } else {
            let body = upload.part(0, bytes_max).await?;
            let (bytes, start) = (body.len(), Instant::now());
            match client.append_bounded(next, body).await {
                Err(error) if error.is_about_size() && client.way().refused(bytes) => continue,
                answer => {
                    let outcome = answer?;
                    client.way().taken(bytes, start.elapsed());
                    outcome
                }
            }
        };
        if confirmed::believed(client, end, outcome.durable).await? < end {
            let text = format!("the service took commits up to offset {end}, and is durable up to {}", outcome.durable);
            return Err(MirrorError::Interrupted(text));
        }
        queue.sent(count);
        next = end;
        durable.send_replace(end);
    }
}

/// What is sent in parts: bytes in memory, and perhaps a large commit after them.
#[derive(Debug)]
struct Upload {
    front: Bytes,
    large: Option<LargeCommit>,
}

impl Upload {
    fn bytes(&self) -> u64 {
        self.front.len() as u64 + self.large.as_ref().map_or(0, LargeCommit::bytes)
    }

    /// The bytes from `at` on, at most so many.
    async fn part(&self, at: u64, bytes_max: usize) -> Result<Bytes, MirrorError> {
        let front = self.front.len();
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(front);
        let held = self.front.slice(from..front.min(from.saturating_add(bytes_max)));
        let Some(large) = self.large.clone().filter(|_| held.len() < bytes_max) else {
            return Ok(held);
        };
        let (at, left) = (at.saturating_sub(front as u64), bytes_max - held.len());
        let unread =
            |error: io::Error| MirrorError::Interrupted(format!("a large commit cannot be read again: {error}"));
        let rest = off(move || large.block(at, left)).await?.map_err(unread)?;
        Ok(if held.is_empty() { rest } else { [held, rest].concat().into() })
    }
}

/// Sends commits that are too large for one request.
async fn send_in_parts(client: &Client, from: Offset, commits: Upload) -> Result<AppendOutcome, MirrorError> {
    let upload = uuid::Uuid::new_v4().to_string();
    let mut at = 0;
    loop {
        let piece = commits.part(at, client.way().request_bytes()).await?;
        let end = at + piece.len() as u64;
        let total = Some(commits.bytes()).filter(|total| *total == end);
        let part = UploadPart { upload: &upload, at, total, digest: None };
        match send_part(client, piece.len(), || client.append_part(from, part, piece.clone())).await? {
            // Something takes only smaller ones.
            None => {}
            Some(PartAnswer::Whole(outcome)) => return Ok(outcome),
            Some(PartAnswer::Received(received)) => at = after(received, end)?,
        }
    }
}

/// Sends a part, again when it was lost on the way; `None` when it was refused for its size, and a smaller one may do.
pub(super) async fn send_part<T, F>(
    client: &Client,
    bytes: usize,
    send: impl Fn() -> F,
) -> Result<Option<PartAnswer<T>>, MirrorError>
where
    F: Future<Output = Result<PartAnswer<T>, ClientError>>,
{
    let mut attempts = 0;
    loop {
        attempts += 1;
        match send().await {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) if error.is_about_size() && client.way().refused(bytes) => return Ok(None),
            Err(error) if error.is_transient() && attempts < PART_ATTEMPTS => {
                log::debug!("a part of an upload is sent again: {error}");
                sleep(RECONNECT.after(attempts)).await;
            }
            // The service was restarted, or gave the upload up.
            Err(ClientError::Refused { body, .. }) if body.error == "part-missing" => {
                return Err(MirrorError::Interrupted("the service no longer has the parts that were sent".into()));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Where an upload goes on whose part up to `end` was sent.
pub(super) fn after(received: u64, end: u64) -> Result<u64, MirrorError> {
    match received == end {
        true => Ok(end),
        false => Err(MirrorError::Interrupted(format!("the service has {received} bytes of an upload, not {end}"))),
    }
}
