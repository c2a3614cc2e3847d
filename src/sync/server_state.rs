//! The database that a libSQL server holds: the base of a generation and its frames, of which the checksums of the pages are
//! kept. All of it is downloaded into a file without a name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::continuity::Continuity;
use super::error::SyncError;
use super::push_mark::digest_of;
use super::remote::{Pulled, Range, Remote};
use super::replica::place;
use super::{FRAME_LEN, PAGE_LEN, into_file, off};
use crate::format::database::is_blank;
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, WalHeader, WalStart};
use crate::limits::SYNC_BATCH_MAX;
use crate::sqlite::DatabaseError;
use crate::sqlite::page_sums::PageSums;
use crate::sqlite::wal_append::new_header;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct ServerState {
    /// Frames of the generation.
    pub(super) frames: u32,
    /// The digest of the last one; empty where there is none.
    pub(super) last: String,
    /// The checksum after them in a log with a header that no other has.
    pub(super) ours: WalStart,
    pub(super) sums: PageSums,
    /// Whether nothing was ever stored there.
    pub(super) is_blank: bool,
}

impl ServerState {
    /// Reads it all; `beside` is where the file is made.
    ///
    /// # Errors
    /// When the server cannot be read, or holds the start of a transaction without its end.
    pub(super) async fn read(remote: &Remote, generation: u32, beside: &Path) -> Result<ServerState, SyncError> {
        let (dir, _) = place(beside)?;
        let made = off(move || tempfile::tempfile_in(&dir).map_err(failed)).await?;
        let file = Arc::new(made?);
        let mut server = Continuity::new(remote.clone());
        match server.export(generation, into_file(&file)).await {
            // The first servers had nothing to start from.
            Err(SyncError::Status { status: 404 | 405 | 501, .. }) => {}
            exported => file.set_len(exported?).map_err(failed)?,
        }
        let mut state = Applied { file, ours: WalStart::first(new_header(PAGE_LEN as u32, 0)), open: Vec::new() };
        let (mut frames, mut last) = (0, String::new());
        loop {
            let start = frames + 1;
            let range = Range { generation, start, end: start.saturating_add(SYNC_BATCH_MAX / 4) };
            // All from the first on are received.
            let seed = |header: WalHeader| async move { Ok(header.seed()) };
            let Pulled::Frames(more) = server.pull(range, seed).await? else {
                break;
            };
            frames += (more.len() / FRAME_LEN) as u32;
            last = more.get(more.len() - FRAME_LEN..).map(digest_of).unwrap_or_default();
            state = off(move || state.apply(&more).map(|()| state).map_err(failed)).await??;
        }
        if !state.open.is_empty() {
            return Err(SyncError::Conflict { generation, start: frames + 1, server: frames });
        }
        let ours = state.ours;
        let (sums, is_blank) = off(move || sums_of(&state.file).map_err(failed)).await??;
        Ok(ServerState { frames, last, ours, sums, is_blank: is_blank && frames == 0 })
    }
}

fn failed(error: io::Error) -> DatabaseError {
    DatabaseError::Io { doing: "keeping what the server holds".into(), error }
}

/// Frames applied to a base.
struct Applied {
    file: Arc<File>,
    ours: WalStart,
    /// Pages of a transaction whose end was not received.
    open: Vec<(u32, Bytes)>,
}

impl Applied {
    fn apply(&mut self, frames: &Bytes) -> io::Result<()> {
        for at in (0..frames.len() / FRAME_LEN).map(|frame| frame * FRAME_LEN) {
            let page = frames.slice(at + FRAME_HEADER_LEN..at + FRAME_LEN);
            let head = frames[at..].first_chunk().map(FrameHeader::decode);
            let Some(FrameHeader { page: number, size, .. }) = head.filter(|head| head.page > 0) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of the server is for page 0"));
            };
            self.ours.chain = self.ours.header.frame(self.ours.chain, number, size, &page).1;
            self.open.push((number, page));
            if size > 0 {
                for (number, page) in self.open.drain(..) {
                    self.file.write_all_at(&page, u64::from(number - 1) * PAGE_LEN as u64)?;
                }
                self.file.set_len(u64::from(size) * PAGE_LEN as u64)?;
            }
        }
        Ok(())
    }
}

fn sums_of(file: &File) -> io::Result<(PageSums, bool)> {
    let (mut sums, mut page) = (PageSums::new(Uuid::new_v4().as_u64_pair().0), [0; PAGE_LEN]);
    let pages = u32::try_from(file.metadata()?.len() / PAGE_LEN as u64).unwrap_or(u32::MAX);
    let mut blank = pages <= 1;
    for number in 1..=pages {
        file.read_exact_at(&mut page, u64::from(number - 1) * PAGE_LEN as u64)?;
        blank &= is_blank(&page);
        sums.set(number, sums.sum_of(&page))?;
    }
    Ok((sums, blank))
}
