//! The database that a libSQL server holds: the base of a generation and its frames, of which the checksums of the pages are
//! kept. All of it is downloaded into a file without a name, page by page: of a transaction nothing is kept in memory. Where the
//! last one lacks its end, the pages are those with its frames: what is pushed next is its rest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::continuity::Continuity;
use super::error::SyncError;
use super::push_mark::digest_of;
use super::remote::{Pulled, Range, Remote};
use super::replica::place;
use super::{FRAME_LEN, PAGE_LEN, into_file, off};
use crate::format::database::is_blank;
use crate::format::wal::{WalHeader, WalStart};
use crate::limits::SYNC_BATCH_MAX;
use crate::sqlite::DatabaseError;
use crate::sqlite::page_sums::{PageSums, new_key};
use crate::sqlite::wal_append::new_header;
use crate::sqlite::wal_frames::frames_of;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct ServerState {
    /// Frames of the generation.
    pub(super) frames: u32,
    /// The first frame of a transaction that lacks its end.
    pub(super) part: Option<u32>,
    /// The digest of the last one; empty where there is none.
    pub(super) last: String,
    /// The checksum after them in a log with a header that no other has.
    pub(super) ours: WalStart,
    pub(super) sums: PageSums,
    /// Those pages.
    pub(super) file: Arc<File>,
    /// Whether nothing was ever stored there.
    pub(super) is_blank: bool,
}

impl ServerState {
    /// Reads it all; `beside` is where the file is made. Where the server ends before frame `confirmed`, if it has confirmed one, or
    /// before where it says that it ends, all of it is read for a second time on new connections.
    ///
    /// # Errors
    /// When the server cannot be read, or holds a frame that no database has.
    pub(super) async fn read(
        remote: &Remote,
        generation: u32,
        confirmed: Option<u32>,
        beside: &Path,
    ) -> Result<ServerState, SyncError> {
        let (state, said) = ServerState::read_once(remote, generation, beside).await?;
        let said = said.max(confirmed.unwrap_or(0));
        if state.frames >= said {
            return Ok(state);
        }
        log::warn!(
            "{}: it ends at frame {} of generation {generation}, and said {said} before: asking again on a new connection",
            remote.url(),
            state.frames
        );
        Ok(ServerState::read_once(&remote.on_new_connections()?, generation, beside).await?.0)
    }

    /// The same, and the highest frame at which the server said meanwhile that it ends.
    async fn read_once(remote: &Remote, generation: u32, beside: &Path) -> Result<(ServerState, u32), SyncError> {
        let (dir, _) = place(beside)?;
        let made = off(move || tempfile::tempfile_in(&dir).map_err(failed)).await?;
        let file = Arc::new(made?);
        let mut server = Continuity::new(remote.clone());
        match server.export(generation, into_file(&file)).await {
            // Its database starts from nothing.
            Err(error) if error.is_unknown_call() => {}
            exported => file.set_len(exported?).map_err(failed)?,
        }
        let mut state = Applied { file, ours: WalStart::first(new_header(PAGE_LEN as u32, 0)), frames: 0, whole: 0 };
        let (mut last, mut said) = (String::new(), 0);
        loop {
            said = server.end_in(generation).unwrap_or(0).max(said);
            let start = state.frames + 1;
            let range = Range { generation, start, end: start.saturating_add(SYNC_BATCH_MAX / 4) };
            // All from the first on are received.
            let seed = |header: WalHeader| async move { Ok(header.seed()) };
            let Pulled::Frames(more) = server.pull(range, seed).await? else {
                break;
            };
            last = more.get(more.len() - FRAME_LEN..).map(digest_of).unwrap_or_default();
            state = off(move || state.apply(generation, &more).map(|()| state)).await??;
        }
        let (frames, part) = (state.frames, (state.whole < state.frames).then_some(state.whole + 1));
        let (ours, file) = (state.ours, state.file.clone());
        let (sums, is_blank) = off(move || sums_of(&state.file).map_err(failed)).await??;
        Ok((ServerState { frames, part, last, ours, sums, file, is_blank: is_blank && frames == 0 }, said))
    }
}

fn failed(error: io::Error) -> DatabaseError {
    DatabaseError::Io { doing: "keeping what the server holds".into(), error }
}

/// Frames applied to a base.
struct Applied {
    file: Arc<File>,
    ours: WalStart,
    /// How many, and which of them is the last that ends a transaction.
    frames: u32,
    whole: u32,
}

impl Applied {
    fn apply(&mut self, generation: u32, frames: &[u8]) -> Result<(), SyncError> {
        for (head, page) in frames_of(frames, PAGE_LEN as u32) {
            let number = self.frames + 1;
            if !head.is_possible() {
                let reason = format!(
                    "frame {number} of generation {generation} is of page {} of a database of {} pages",
                    head.page, head.size
                );
                return Err(SyncError::Protocol { call: "reading what the server holds".into(), reason });
            }
            let kept = |result: io::Result<()>| {
                result.map_err(|error| DatabaseError::Io {
                    doing: format!("keeping frame {number} of generation {generation}, of page {}", head.page),
                    error,
                })
            };
            self.ours.chain = self.ours.header.frame(self.ours.chain, head.page, head.size, page).1;
            kept(self.file.write_all_at(page, u64::from(head.page - 1) * PAGE_LEN as u64))?;
            if head.size > 0 {
                kept(self.file.set_len(u64::from(head.size) * PAGE_LEN as u64))?;
                self.whole = number;
            }
            self.frames = number;
        }
        Ok(())
    }
}

fn sums_of(file: &File) -> io::Result<(PageSums, bool)> {
    let (mut sums, mut page) = (PageSums::new(new_key()), [0; PAGE_LEN]);
    let pages = u32::try_from(file.metadata()?.len() / PAGE_LEN as u64).unwrap_or(u32::MAX);
    let mut blank = pages <= 1;
    for number in 1..=pages {
        file.read_exact_at(&mut page, u64::from(number - 1) * PAGE_LEN as u64)?;
        blank &= is_blank(&page);
        sums.set(number, sums.sum_of(&page))?;
    }
    Ok((sums, blank))
}
