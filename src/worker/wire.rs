//! Messages between a service and its SQL workers, over a pair of sockets; short ones as [packets](super::packets) over another.
//!
//! ```text
//! | head bytes (u32 LE) | body bytes (u32 LE) | head: Postcard | body: raw bytes |
//! ```
//!
//! Both ends are this program in one version, so a message that cannot be read is a fault: the connection ends.

use std::io;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wire_error::WireError;
use crate::limits::{WORKER_BODY_BYTES_MAX, WORKER_HEAD_BYTES_MAX};
use crate::mirror::LogUpdate;
use crate::offset::{Generation, Offset};

/// The number of a call, or of a question of a worker. Each side numbers what it asks.
pub(super) type Id = u64;

/// What a worker may do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct WorkerStart {
    /// Bytes of the largest transaction.
    pub(super) transaction_bytes_max: u64,
    /// How long a stream is kept between two calls.
    pub(super) stream_idle_ms: u64,
    /// Longest time that a statement may run.
    pub(super) statement_ms_max: u64,
    /// Memory of the process, its stacks included.
    pub(super) memory_bytes_max: u64,
    /// The largest temporary file.
    pub(super) file_bytes_max: u64,
}

/// What a service sends.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// The first message: what the worker may do.
    WorkerStart(WorkerStart),
    /// Run the requests of a pipeline: the body.
    Pipeline { id: Id, update: LogUpdate, lasting: bool },
    /// Run the batch of a cursor: the body.
    Cursor { id: Id, update: LogUpdate },
    /// Which pages does a query touch? The body is the query, that of the answer the pages.
    Touched { id: Id, update: LogUpdate },
    /// The reader of a cursor takes another piece.
    More { id: Id },
    /// The reader of a cursor is gone.
    Gone { id: Id },
    /// The answer to [`FromWorker::Append`] or [`FromWorker::Renew`].
    Log { id: Id, outcome: Result<LogUpdate, WireError> },
    /// Say that you are there.
    Ping,
}

/// What a worker sends.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromWorker {
    /// A call has ended; the body is its answer.
    Answer { id: Id, outcome: Result<(), WireError> },
    /// A cursor has begun.
    Started { id: Id },
    /// A piece of its answer: the body. No more are sent before they are asked for.
    Piece { id: Id },
    /// Append transactions to a log that ends before `at`, for a call: the body but for its last `answer` bytes. These are the answer
    /// to the call once that is done; where there are none, the answer comes later.
    Append { id: Id, call: Id, log: String, log_id: String, generation: Generation, at: Option<Offset>, answer: usize },
    /// How far is a log durable?
    Renew { id: Id, log: String },
    /// These calls have run one statement for longer than any may, and cannot be interrupted.
    Stuck { calls: Vec<Id> },
    /// The answer to [`ToWorker::Ping`].
    Pong,
}

/// Reads a message and its body; `None` at the end.
///
/// # Errors
/// When the connection broke within a message, or it is none.
pub(super) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(T, Bytes)>> {
    let mut lengths = [0; 8];
    match from.read_exact(&mut lengths).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let (head, mut bytes) = room(lengths)?;
    from.read_exact(&mut bytes).await?;
    let bytes = Bytes::from(bytes);
    Ok(Some((message(&bytes[..head])?, bytes.slice(head..))))
}

/// The length of a head, and room for it and its body.
fn room(lengths: [u8; 8]) -> io::Result<(usize, Vec<u8>)> {
    let [head, body] = [&lengths[..4], &lengths[4..]].map(|bytes| {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        u32::from_le_bytes(bytes) as usize
    });
    if head > WORKER_HEAD_BYTES_MAX || body > WORKER_BODY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {head} and {body} bytes")));
    }
    Ok((head, vec![0; head + body]))
}

/// Reads the head of a message.
///
/// # Errors
/// `InvalidData` when it is none.
pub(super) fn message<T: DeserializeOwned>(head: &[u8]) -> io::Result<T> {
    postcard::from_bytes(head).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The head of a message, after `room` bytes of 0.
///
/// # Errors
/// When something of it cannot be written.
pub(super) fn head<T: Serialize>(message: &T, room: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES_USUAL);
    head.resize(room, 0);
    postcard::to_extend(message, head).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Writes a message with its body.
///
/// # Errors
/// When the connection is broken, or either is too long: then nothing was written.
pub(super) async fn write<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &T,
    body: &[u8],
) -> io::Result<()> {
    let (joined, rest) = written(message, body)?;
    to.write_all(&joined).await?;
    to.write_all(rest).await
}

/// The bytes of a message, with its body unless that is long; and the rest of it. So a usual message is one call to the system.
fn written<'a, T: Serialize>(message: &T, body: &'a [u8]) -> io::Result<(Vec<u8>, &'a [u8])> {
    let mut bytes = self::head(message, 8)?;
    let head = bytes.len() - 8;
    if head > WORKER_HEAD_BYTES_MAX || body.len() > WORKER_BODY_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {head} and {} bytes", body.len()),
        ));
    }
    bytes[..4].copy_from_slice(&(head as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    if body.len() > JOINED_BYTES_MAX {
        return Ok((bytes, body));
    }
    bytes.extend_from_slice(body);
    Ok((bytes, &[]))
}

/// Most heads are no longer.
const HEAD_BYTES_USUAL: usize = 256;

/// A body up to this length is copied to its head.
const JOINED_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_read_as_it_was_written_whatever_the_size_of_its_body() {
        for bytes in [0, 1, JOINED_BYTES_MAX, JOINED_BYTES_MAX + 1, 1 << 20] {
            let (mut one, mut other) = tokio::io::duplex(1 << 12);
            let body = vec![7; bytes];
            let sent = tokio::spawn({
                let body = body.clone();
                async move { write(&mut one, &FromWorker::Piece { id: 3 }, &body).await }
            });
            let (message, read) = read::<FromWorker>(&mut other).await.expect("a message").expect("not the end");
            assert!(matches!(message, FromWorker::Piece { id: 3 }) && read == body, "{bytes}");
            sent.await.expect("a task").expect("written");
            assert!(super::read::<FromWorker>(&mut other).await.expect("the end").is_none());
        }
    }

    #[tokio::test]
    async fn a_length_over_its_cap_is_refused_before_anything_is_allocated() {
        for lengths in [[u32::MAX, 0], [0, u32::MAX]] {
            let bytes = lengths.map(u32::to_le_bytes).concat();
            let error = read::<FromWorker>(&mut &bytes[..]).await.expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
