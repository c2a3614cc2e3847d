//! What a client asks of a generation of a WAL log.

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use reqwest::Method;
use serde::Deserialize;

use super::{Client, ClientError, checked, json};
use crate::offset::{Generation, Offset};

/// The current generation of a log and its end.
#[derive(Clone, Debug, Deserialize)]
pub struct CurrentGeneration {
    /// `wal`, or another format that knows no bases.
    pub format: Option<String>,
    /// Its number.
    pub generation: Generation,
    /// The frame after the last durable one.
    pub durable: Offset,
}

impl Client {
    /// Which generation is the current one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn current_generation(&self) -> Result<CurrentGeneration, ClientError> {
        json(self.request(Method::GET, "").send().await?).await
    }

    /// The database at the start of a generation, perhaps without a byte.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn base(
        &self,
        generation: Generation,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let request = self.request(Method::GET, "base").query(&[("generation", generation)]);
        Ok(checked(request.send().await?).await?.bytes_stream().map_err(ClientError::from))
    }

    /// All frames of a generation as raw log bytes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn frames(
        &self,
        generation: Generation,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let request = self.request(Method::GET, "commits").query(&[("from", 1)]).query(&[("generation", generation)]);
        Ok(checked(request.send().await?).await?.bytes_stream().map_err(ClientError::from))
    }
}
