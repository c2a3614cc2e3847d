//! [`Base`]: the bytes of a base as they are received, compared with what the service says the base is.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use reqwest::Response;
use sha2::{Digest, Sha256};

use super::ClientError;
use crate::api::LogStatus;
use crate::offset::Generation;
use crate::repr_digest::{self, ReprDigest};
use crate::segment::base::BaseDigest;

/// The bytes of a base, as they come in. They end with [`ClientError::OtherContent`] when they are not the base that the service
/// names: by its status, or, where that says nothing, by the digest in the answer.
pub struct Base {
    digest: Option<ReprDigest>,
    expected: Option<BaseDigest>,
    received: Option<BoxStream<'static, Result<Bytes, ClientError>>>,
    compared: BoxStream<'static, Result<Bytes, ClientError>>,
}

impl Base {
    /// An answer that says `digest`, to a request for the base that the status names, with its length. Bytes after that are an error
    /// as soon as one is received.
    ///
    /// # Errors
    /// [`ClientError::OtherContent`] when they are two.
    pub(super) fn new(
        digest: Option<ReprDigest>,
        named: Option<(BaseDigest, u64)>,
        bytes: BoxStream<'static, Result<Bytes, ClientError>>,
    ) -> Result<Base, ClientError> {
        match (&digest, named) {
            (Some(ReprDigest { sha256, .. }), Some((named, _))) if *sha256 != named => Err(other(*sha256, named)),
            _ => {
                let expected = named.map(|(named, _)| named).or(digest.as_ref().map(|digest| digest.sha256));
                let received = match named {
                    Some((_, length)) => no_longer_than(bytes, length),
                    None => bytes,
                };
                Ok(Base { digest, expected, received: Some(received), compared: stream::empty().boxed() })
            }
        }
    }

    /// The digest that the service says it has; none of a service of before.
    #[must_use]
    pub fn digest(&self) -> Option<BaseDigest> {
        self.expected
    }

    /// Whether nothing vouches for it: the service says so, or nothing of it.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        self.digest.as_ref().is_none_or(|digest| digest.unproven)
    }

    /// The same bytes, for one who makes their digest and [compares](compared) it before they are believed.
    pub(crate) fn uncompared(mut self) -> BoxStream<'static, Result<Bytes, ClientError>> {
        self.received.take().map_or_else(|| stream::empty().boxed(), |received| received.fuse().boxed())
    }
}

/// Blocks that end with an error where there are more bytes than this.
fn no_longer_than(
    blocks: BoxStream<'static, Result<Bytes, ClientError>>,
    length: u64,
) -> BoxStream<'static, Result<Bytes, ClientError>> {
    let mut received = 0;
    let counted = blocks.and_then(move |block| {
        received += block.len() as u64;
        let what =
            || format!("the base that was received has more than the {length} bytes that the service says it has");
        std::future::ready(if received > length { Err(ClientError::OtherContent { what: what() }) } else { Ok(block) })
    });
    counted.boxed()
}

/// Blocks that end with an error, made by `wrap`, when they are not the base with the digest that is expected, if any is.
pub(crate) fn comparing<E: Send + 'static>(
    blocks: BoxStream<'static, Result<Bytes, E>>,
    expected: Option<BaseDigest>,
    wrap: fn(ClientError) -> E,
) -> BoxStream<'static, Result<Bytes, E>> {
    let Some(expected) = expected else { return blocks };
    let start = (blocks, Sha256::new(), 0);
    let compared = stream::try_unfold(start, move |(mut blocks, mut hash, received)| async move {
        if let Some(block) = blocks.try_next().await? {
            hash.update(&block);
            let received = received + block.len() as u64;
            return Ok(Some((block, (blocks, hash, received))));
        }
        compared(expected, received, BaseDigest(hash.finalize().into())).map(|()| None).map_err(wrap)
    });
    compared.boxed()
}

/// Whether bytes that were received of a base are the one that the service names.
///
/// # Errors
/// [`ClientError::OtherContent`] when they are another.
pub(crate) fn compared(expected: BaseDigest, received: u64, found: BaseDigest) -> Result<(), ClientError> {
    match expected == found {
        true => Ok(()),
        false if received == 0 => Err(ClientError::OtherContent {
            what: format!(
                "the answer to a request for the base is empty, and the service says {expected} is its SHA-256"
            ),
        }),
        false => Err(other(found, expected)),
    }
}

fn other(found: BaseDigest, expected: BaseDigest) -> ClientError {
    let what = format!("the base that was received has the SHA-256 {found}, and the service says {expected}");
    ClientError::OtherContent { what }
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base").field("digest", &self.digest).field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// After its end, or an error, there is nothing more.
impl Stream for Base {
    type Item = Result<Bytes, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(received) = self.received.take() {
            self.compared = comparing(received, self.expected, |error| error).fuse().boxed();
        }
        self.compared.poll_next_unpin(cx)
    }
}

/// The base of `generation` that a status names; none where it says nothing of it, as that of a service of before.
///
/// # Errors
/// [`ClientError::Protocol`] when what it says is no digest.
pub(crate) fn named(status: &LogStatus, generation: Generation) -> Result<Option<BaseDigest>, ClientError> {
    Ok(named_with_length(status, generation)?.map(|(named, _)| named))
}

/// The same with its length.
pub(super) fn named_with_length(
    status: &LogStatus,
    generation: Generation,
) -> Result<Option<(BaseDigest, u64)>, ClientError> {
    let Some(base) = status.base.as_ref().filter(|_| status.generation == Some(generation)) else {
        return Ok(None);
    };
    let wrong = |reason| ClientError::Protocol(format!("the base in the status of the log: {reason}"));
    base.sha256.parse().map(|named| Some((named, base.bytes))).map_err(wrong)
}

/// The digest that an answer says its bytes have.
pub(super) fn digest(response: &Response) -> Result<Option<ReprDigest>, ClientError> {
    let Some(field) = response.headers().get(repr_digest::FIELD) else {
        return Ok(None);
    };
    let parsed = field.to_str().map_err(|error| error.to_string()).and_then(ReprDigest::parse);
    parsed.map_err(|error| ClientError::Protocol(format!("{}: {error}", repr_digest::FIELD)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_base_ends_at_the_first_byte_that_is_too_much() {
        for is_compared in [true, false] {
            let sent = Arc::new(AtomicUsize::new(0));
            let counted = sent.clone();
            let blocks = stream::repeat_with(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok(Bytes::from_static(&[7; 10]))
            });
            let base = Base::new(None, Some((BaseDigest::of(b"a base"), 25)), blocks.boxed()).unwrap();
            let base = if is_compared { base.boxed() } else { base.uncompared() };
            let error = base.try_fold((), |(), _| std::future::ready(Ok(()))).await.unwrap_err();
            assert!(error.to_string().contains("more than the 25 bytes"), "{error}");
            assert!(error.is_doubtful() && sent.load(Ordering::Relaxed) == 3);
        }
    }
}
