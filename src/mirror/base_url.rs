//! Bringing a base to a service: in one request, or in parts where something between takes none so large.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use reqwest::Body;

use super::base::Blocks;
use super::failure::MirrorError;
use super::feed_bounded::{after, send_part};
use crate::client::{Client, ClientError, PartAnswer, UploadPart};
use crate::offset::Generation;

/// Makes `blocks` the base of `generation`.
///
/// # Errors
/// [`MirrorError::HeldBack`] when it is refused for its size on its way: the next call sends it in parts.
pub(super) async fn put(client: &Client, generation: Generation, blocks: Blocks) -> Result<(), MirrorError> {
    if !client.way().may_be_live() {
        return put_in_parts(client, generation, blocks).await;
    }
    match client.start_generation(generation, Body::wrap_stream(blocks)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_about_size() => {
            client.way().is_held_back();
            Err(MirrorError::HeldBack { reason: error.to_string() })
        }
        // A service that does not answer now is not there, and no proxy is at fault.
        Err(ClientError::Transport(error))
            if !error.is_connect() && client.status().await.is_ok() && client.way().broke_off() =>
        {
            client.way().is_held_back();
            Err(MirrorError::HeldBack { reason: crate::transport::chain(&error) })
        }
        Err(error) => Err(error.into()),
    }
}

async fn put_in_parts(client: &Client, generation: Generation, mut blocks: Blocks) -> Result<(), MirrorError> {
    let upload = uuid::Uuid::new_v4().to_string();
    let (mut at, mut held, mut ended) = (0_u64, BytesMut::new(), false);
    loop {
        let bytes_max = client.way().request_bytes();
        // One byte more shows whether a part is the last.
        while !ended && held.len() <= bytes_max {
            let block = blocks.try_next().await.map_err(|error| MirrorError::Interrupted(error.to_string()))?;
            ended = block.is_none();
            held.extend_from_slice(&block.unwrap_or_default());
        }
        let piece = Bytes::copy_from_slice(&held[..held.len().min(bytes_max)]);
        let end = at + piece.len() as u64;
        let total = (ended && piece.len() == held.len()).then_some(end);
        let part = UploadPart { upload: &upload, at, total };
        let send = || client.start_generation_part(generation, part, piece.clone());
        match send_part(client, piece.len(), send).await? {
            None => {}
            Some(PartAnswer::Whole(_)) => return Ok(()),
            Some(PartAnswer::Received(received)) => {
                at = after(received, end)?;
                let _sent = held.split_to(piece.len());
            }
        }
    }
}
