//! The remote's state fetched whole, where there are no frames that lead there: the replica was away for longer than the remote
//! keeps generations, or was made without it.
//!
//! The pages in which that state differs from `P-synced` become one transaction more of that, numbered here. Once the draft
//! was brought to it, as to any other, frames are counted as the remote counts them: what is there is the start then.

use std::sync::{Arc, Mutex};

use super::Tell;
use super::bootstrap::refetch;
use super::catalog::{Reached, reached};
use super::error::ReplicaError;
use super::image::{PAGE_SIZE, differing};
use super::info::{Info, Remotely};
use super::pull::with;
use super::store::Store;
use crate::format::wal::FRAME_HEADER_LEN;
use crate::repo::RepoFile;
use crate::sqlite::btree::{PAGE_LEN, Pages};
use crate::sqlite::image::Image;
use crate::sync::{FRAME_LEN, Remote};

/// Frames that are written at once.
const FRAMES_AT_ONCE: usize = 256;

/// A frame of a page; `size` is that of the database, in pages, for the last one of a transaction.
pub(super) fn frame(number: u32, size: u32, page: &[u8; PAGE_LEN]) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..4].copy_from_slice(&number.to_be_bytes());
    frame[4..8].copy_from_slice(&size.to_be_bytes());
    frame[FRAME_HEADER_LEN..].copy_from_slice(page);
    frame
}

impl Store {
    /// Adds what leads from `P-synced` to the state in `file`. How many frames that are.
    fn add_whole(&mut self, file: &Arc<dyn RepoFile>, remotely: Remotely) -> Result<u64, ReplicaError> {
        self.cut()?;
        let name = self.files.whole();
        let whole = Image::of(file.clone(), PAGE_SIZE).map_err(ReplicaError::io("reading", &name))?;
        let ours = self.synced.image(self.info.in_wal());
        let ours = ours.map_err(ReplicaError::io("reading", &self.files.synced()))?;
        let pages = differing(&ours, &whole, None)?;
        if whole.count() == 0 && ours.count() > 0 {
            let what = format!("generation {} is empty there, and was not", remotely.generation);
            return Err(ReplicaError::Diverged { what });
        }
        // What the remote said of this replica once it says for good.
        let said = |image: &Image| reached(image, &self.info.client_unique_id);
        let (was, is) = (said(&ours)?, said(&whole)?);
        let of = |reached: Option<Reached>| reached.map(|Reached { pull_gen, change_id }| (pull_gen, change_id));
        if of(is) < of(was) {
            let what = format!("generation {} there knows nothing of pushes of this replica", remotely.generation);
            return Err(ReplicaError::Diverged { what });
        }
        let before = self.info.synced_frame_no;
        let (mut page, mut frames) = ([0; PAGE_LEN], Vec::new());
        if !pages.is_empty() {
            // The first page ends the transaction.
            let others = pages.iter().filter(|number| (2..=whole.count()).contains(number));
            for number in others.chain(std::iter::once(1)) {
                whole.read(number, &mut page)?;
                frames.extend_from_slice(&frame(number, if number == 1 { whole.count() } else { 0 }, &page));
                if frames.len() >= FRAMES_AT_ONCE * FRAME_LEN || number == 1 {
                    self.take(&frames)?;
                    frames.clear();
                }
            }
        }
        self.keep_with(|info| Info { fetched_whole: Some(remotely), unmade: false, ..info })?;
        self.files.remove(&name)?;
        Ok(u64::from(self.info.synced_frame_no - before))
    }

    /// Counts frames as the remote does from here on. The draft must have been brought to where `P-synced` is.
    ///
    /// # Errors
    /// When a file fails; what was done is done again then.
    pub(super) fn count_from_whole(&mut self) -> Result<(), ReplicaError> {
        let Some(Remotely { generation, frame, last_frame }) = self.info.fetched_whole else { return Ok(()) };
        self.fold_synced(Info {
            synced_generation: generation,
            synced_frame_no: frame,
            folded: frame,
            last_frame,
            base: None,
            synced_wal_match_watermark: frame,
            fetched_whole: None,
            ..self.info.clone()
        })?;
        log::info!("{}: going on from frame {frame} of generation {generation} of the remote", self.files.name());
        Ok(())
    }
}

/// Fetches the remote's state whole. How many frames were made of it.
///
/// # Errors
/// When the remote or a file fails; trying again starts over. [`ReplicaError::Diverged`] when it cannot be the remote that
/// the replica was made from.
pub(super) async fn fetch_whole(
    remote: &Remote,
    store: &Arc<Mutex<Store>>,
    batch: u32,
    tell: &Arc<Tell>,
) -> Result<u64, ReplicaError> {
    let (files, info) = with(store, |store| Ok((store.files.clone(), store.info.clone()))).await?;
    let (name, generation) = (files.name().to_owned(), info.synced_generation);
    match info.unmade {
        true => log::info!("{name}: fetching the remote's state, of which there is nothing yet"),
        false => log::info!("{name}: the remote has deleted generation {generation}: fetching its state whole"),
    }
    let ours = files.clone();
    let create = move || {
        let name = ours.whole();
        ours.remove(&name)?;
        Ok([ours.dir.create(&name).map_err(ReplicaError::io("making", &name))?])
    };
    let remove = move || files.remove(&files.whole());
    let (file, remotely) = refetch(remote, batch, tell, create, remove).await?;
    with(store, move |store| store.add_whole(&file, remotely)).await
}
