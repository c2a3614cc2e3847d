//! [`Base`]: the bytes of a base as they are received, compared with what the service says the base is.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
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
    hash: Sha256,
    received: u64,
    bytes: Option<BoxStream<'static, Result<Bytes, ClientError>>>,
}

impl Base {
    /// An answer that says `digest`, to a request for the base that the status names.
    ///
    /// # Errors
    /// [`ClientError::OtherContent`] when they are two.
    pub(super) fn new(
        digest: Option<ReprDigest>,
        named: Option<BaseDigest>,
        bytes: BoxStream<'static, Result<Bytes, ClientError>>,
    ) -> Result<Base, ClientError> {
        match (&digest, named) {
            (Some(ReprDigest { sha256, .. }), Some(named)) if *sha256 != named => Err(other(*sha256, named)),
            _ => {
                let expected = named.or(digest.as_ref().map(|digest| digest.sha256));
                Ok(Base { digest, expected, hash: Sha256::new(), received: 0, bytes: Some(bytes) })
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

    fn check(&mut self) -> Result<(), ClientError> {
        let found = BaseDigest(std::mem::take(&mut self.hash).finalize().into());
        match self.expected {
            Some(expected) if self.received == 0 && expected != found => Err(ClientError::OtherContent {
                what: format!(
                    "the answer to a request for the base is empty, and the service says {expected} is its SHA-256"
                ),
            }),
            Some(expected) if expected != found => Err(other(found, expected)),
            _ => Ok(()),
        }
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
        let Some(bytes) = &mut self.bytes else {
            return Poll::Ready(None);
        };
        match ready!(bytes.poll_next_unpin(cx)) {
            Some(Ok(block)) => {
                self.received += block.len() as u64;
                if self.expected.is_some() {
                    self.hash.update(&block);
                }
                Poll::Ready(Some(Ok(block)))
            }
            Some(Err(error)) => {
                self.bytes = None;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.bytes = None;
                Poll::Ready(self.check().err().map(Err))
            }
        }
    }
}

/// The base of `generation` that a status names; none where it says nothing of it, as that of a service of before.
///
/// # Errors
/// [`ClientError::Protocol`] when what it says is no digest.
pub(crate) fn named(status: &LogStatus, generation: Generation) -> Result<Option<BaseDigest>, ClientError> {
    let Some(base) = status.base.as_ref().filter(|_| status.generation == Some(generation)) else {
        return Ok(None);
    };
    let wrong = |reason| ClientError::Protocol(format!("the base in the status of the log: {reason}"));
    base.sha256.parse().map(Some).map_err(wrong)
}

/// The digest that an answer says its bytes have.
pub(super) fn digest(response: &Response) -> Result<Option<ReprDigest>, ClientError> {
    let Some(field) = response.headers().get(repr_digest::FIELD) else {
        return Ok(None);
    };
    let parsed = field.to_str().map_err(|error| error.to_string()).and_then(ReprDigest::parse);
    parsed.map_err(|error| ClientError::Protocol(format!("{}: {error}", repr_digest::FIELD)))
}
