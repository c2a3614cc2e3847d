//! Bringing a base to a service: in one request, or in parts where something between takes none so large.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use reqwest::Body;
use sha2::{Digest, Sha256};

use super::base::{BaseStream, of_source};
use super::confirmed;
use super::failure::MirrorError;
use super::feed_bounded::{after, send_part};
use crate::client::{Client, ClientError, PartAnswer, UploadPart};
use crate::offset::Generation;
use crate::segment::base::BaseDigest;

/// Makes `base` the base of `generation`. After Ok the status of the log says so.
///
/// # Errors
/// [`MirrorError::HeldBack`] when it is refused for its size on its way: the next call sends it in parts.
/// [`MirrorError::Unconfirmed`] when it was acknowledged, and is not there.
pub(super) async fn put(client: &Client, generation: Generation, base: BaseStream) -> Result<(), MirrorError> {
    let sum = Arc::new(Mutex::new((Sha256::new(), 0)));
    let summing = sum.clone();
    let (known, mut base) = (base.digest, base);
    if known.is_none() {
        let summed = base.blocks.inspect_ok(move |block| {
            let (sum, bytes) = &mut *summing.lock().unwrap_or_else(PoisonError::into_inner);
            sum.update(block);
            *bytes += block.len();
        });
        base.blocks = summed.boxed();
    }
    send(client, generation, base).await?;
    let (sum, bytes) = std::mem::take(&mut *sum.lock().unwrap_or_else(PoisonError::into_inner));
    match known.or((bytes > 0).then(|| BaseDigest(sum.finalize().into()))) {
        Some(sent) => confirmed::check_base(client, generation, sent).await,
        // The service makes a base of its own of nothing.
        None => Ok(()),
    }
}

async fn send(client: &Client, generation: Generation, base: BaseStream) -> Result<(), MirrorError> {
    if !client.way().may_be_live() {
        return put_in_parts(client, generation, base).await;
    }
    let damage = Arc::new(Mutex::new(None));
    let found = damage.clone();
    // A body that fails ends the request, and the reason would be lost in the error of that.
    let blocks = base.blocks.inspect_err(move |error| {
        *found.lock().unwrap_or_else(PoisonError::into_inner) = of_source(error);
    });
    let put = client.start_generation_checked(generation, Body::wrap_stream(blocks), base.digest).await;
    if let Some(damage) = damage.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(damage);
    }
    match put {
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

async fn put_in_parts(client: &Client, generation: Generation, base: BaseStream) -> Result<(), MirrorError> {
    let mut blocks = base.blocks;
    let upload = uuid::Uuid::new_v4().to_string();
    let (mut at, mut held, mut ended) = (0_u64, BytesMut::new(), false);
    loop {
        let bytes_max = client.way().request_bytes();
        // One byte more shows whether a part is the last.
        while !ended && held.len() <= bytes_max {
            let block = blocks.try_next().await;
            let block = block
                .map_err(|error| of_source(&error).unwrap_or_else(|| MirrorError::Interrupted(error.to_string())))?;
            ended = block.is_none();
            held.extend_from_slice(&block.unwrap_or_default());
        }
        let piece = Bytes::copy_from_slice(&held[..held.len().min(bytes_max)]);
        let end = at + piece.len() as u64;
        let total = (ended && piece.len() == held.len()).then_some(end);
        let part = UploadPart { upload: &upload, at, total, digest: base.digest.filter(|_| total.is_some()) };
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
