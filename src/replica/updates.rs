//! Remotes that speak of updates only (`/pull-updates` and `/v2/pipeline`): what came since a revision, as pages. Source:
//! `specs/turso-sync.md`, section 2.
//!
//! The pages of an answer become one transaction of `P-synced`, whose frames are numbered here.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use prost::Message;

use super::error::ReplicaError;
use super::info::Info;
use super::pull::with;
use super::store::Store;
use super::whole::frame;
use crate::sqlite::btree::PAGE_LEN;
use crate::sync::turso::proto::{PageData, PullUpdatesRequest, PullUpdatesResponse};
use crate::sync::{Body, Remote, SyncError};

/// Bytes of a message at most: a page and what is around it, or a header with a revision.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Pages that are written at once.
const PAGES_AT_ONCE: usize = 256;

/// The messages of an answer, each with its length in front.
struct Messages {
    body: Body,
    rest: BytesMut,
}

impl Messages {
    fn wrong(&self, reason: impl Into<String>) -> ReplicaError {
        SyncError::Protocol { call: self.body.call().to_owned(), reason: reason.into() }.into()
    }

    /// The length in front of the next message, and where that starts; `None` while it is cut.
    fn head(&self) -> Option<(u64, usize)> {
        let mut len = 0;
        for (at, byte) in self.rest.iter().take(9).enumerate() {
            len |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Some((len, at + 1));
            }
        }
        None
    }

    /// The next message; `None` at the end.
    async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, ReplicaError> {
        loop {
            match self.head() {
                Some((len, _)) if len > MESSAGE_BYTES_MAX as u64 => {
                    return Err(self.wrong(format!("a message of {len} bytes")));
                }
                Some((len, at)) if self.rest.len() - at >= len as usize => {
                    let mut message = self.rest.split_to(at + len as usize);
                    let message = M::decode(message.split_off(at).freeze());
                    return message.map(Some).map_err(|error| self.wrong(error.to_string()));
                }
                None if self.rest.len() >= 9 => return Err(self.wrong("a length of more than 9 bytes")),
                _ => {}
            }
            match self.body.next().await? {
                Some(piece) => self.rest.extend_from_slice(&piece),
                None if self.rest.is_empty() => return Ok(None),
                None => return Err(self.wrong(format!("the body ends {} bytes into a message", self.rest.len()))),
            }
        }
    }
}

/// Asks for what came since a revision; none is everything.
async fn ask(remote: &Remote, revision: &str) -> Result<(PullUpdatesResponse, Messages), ReplicaError> {
    let request = PullUpdatesRequest { client_revision: revision.to_owned(), ..PullUpdatesRequest::default() };
    let body = remote.pull_updates(Bytes::from(request.encode_to_vec())).await?;
    let mut messages = Messages { body, rest: BytesMut::new() };
    let head: PullUpdatesResponse = messages.next().await?.ok_or_else(|| messages.wrong("an empty body"))?;
    if head.server_revision.is_empty() || head.stream_kind != 0 || u32::try_from(head.db_size).is_err() {
        return Err(messages.wrong("no revision, no number of pages, or another kind of stream"));
    }
    Ok((head, messages))
}

/// Whether the remote speaks of updates.
pub(super) async fn are_spoken(remote: &Remote) -> bool {
    // The pages that follow are not waited for.
    ask(remote, "").await.is_ok()
}

/// Brings what came since `revision` into `P-synced`. How many frames that are.
///
/// # Errors
/// When the remote or a file fails: nothing of it counts then.
pub(super) async fn fetch(
    remote: &Remote,
    store: &Arc<Mutex<Store>>,
    revision: String,
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<u64, ReplicaError> {
    let (head, mut messages) = ask(remote, &revision).await?;
    let size = head.db_size as u32;
    let (mut frames, mut count, mut last) = (Vec::new(), 0, None);
    while let Some(PageData { page_id, encoded_page }) = messages.next().await? {
        let page: Option<&[u8; PAGE_LEN]> = encoded_page[..].try_into().ok();
        let page = page.ok_or_else(|| messages.wrong(format!("a page of {} bytes", encoded_page.len())))?;
        let number = u32::try_from(page_id).ok().and_then(|id| id.checked_add(1)).filter(|number| *number <= size);
        let number = number.ok_or_else(|| messages.wrong(format!("page {page_id} of {size}")))?;
        tell(PAGE_LEN as u64);
        count += 1;
        if let Some((number, page)) = last.replace((number, *page)) {
            frames.extend_from_slice(&frame(number, 0, &page));
        }
        if count % PAGES_AT_ONCE == 0 {
            let frames = std::mem::take(&mut frames);
            with(store, move |store| store.take(&frames)).await?;
        }
    }
    // The last one ends the transaction.
    if let Some((number, page)) = last {
        frames.extend_from_slice(&frame(number, size, &page));
    }
    if count == 0 && head.server_revision == revision {
        return Ok(0);
    }
    with(store, move |store| {
        store.take(&frames)?;
        store.keep_with(|info| Info { revision: Some(head.server_revision), ..info })
    })
    .await?;
    Ok(count as u64)
}
