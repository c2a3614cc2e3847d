//! [`WalAppender`]: the writer of a `-wal` file. Owns: the file's salts, its chain of checksums, and where the next frame
//! goes. Knows no locks, no index of the WAL and no log.
//!
//! A frame is its page number, its commit size and its page; salts and checksums are each file's own. So frames of any
//! origin are appended under the salts of this file ([`Rechain`]). An append has three steps, of which the caller owns the
//! last:
//!
//! ```text
//! append    frames are written after the last one; a crash may leave any part of them
//! sync      they survive power loss
//! publish   they count: in the caller's metadata, or in the index that SQLite's readers go by
//! ```
//!
//! [`WalAppender::append`] returns the headers as written, since that is what either kind of publishing needs: the page of
//! each frame, its checksum, and where transactions end. What was not published is cut off by the next
//! [`open`](WalAppender::open). Keeping other writers out, and readers while frames that they may read are cut or replaced,
//! is up to the caller.

use std::io::{self, IoSlice};
use std::sync::Arc;

use uuid::Uuid;

use super::wal_frames::heads;
use crate::format::wal::{Carry, Chain, FrameHeader, HEADER_LEN, SUMMED_HEAD_LEN, WalHeader, WalStart};
use crate::repo::{Repo, RepoFile};

/// The header of a new WAL, with random salts, so that no other file has the same. Checksums sum up little-endian words.
#[must_use]
pub fn new_header(page_size: u32, sequence: u32) -> WalHeader {
    let random = Uuid::new_v4().into_bytes();
    // The first and the last four bytes are wholly random; some of the others are not.
    let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| random[at + i]));
    WalHeader { big_endian: false, page_size, sequence, salts: [word(0), word(12)] }
}

/// Gives frames the salts and the checksums of a WAL, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Rechain {
    at: WalStart,
    /// Where the checksums of the frames' origin are used: ours less that, and what a frame makes of it.
    apart: Option<(Chain, Carry)>,
}

impl Rechain {
    /// The first frame continues `at`. Each page is summed up.
    #[must_use]
    pub fn new(at: WalStart) -> Rechain {
        Rechain { at, apart: None }
    }

    /// The same for frames that have checksums of their own, which continue `theirs` and sum up words of our order. Ours
    /// follow from those without a look at the pages, and are right exactly if those are.
    #[must_use]
    pub fn from_checksums(at: WalStart, theirs: Chain) -> Rechain {
        let carry = Carry::over(SUMMED_HEAD_LEN as u64 + u64::from(at.header.page_size));
        Rechain { at, apart: Some((at.chain.minus(theirs), carry)) }
    }

    /// The header of the next frame, which `claim` describes.
    #[must_use]
    pub fn frame(&mut self, claim: &FrameHeader, page: &[u8]) -> FrameHeader {
        let WalStart { header, chain } = &mut self.at;
        *chain = match &mut self.apart {
            Some((apart, carry)) => {
                *apart = carry.of(*apart);
                claim.chain.plus(*apart)
            }
            None => header.frame(*chain, claim.page, claim.size, page).1,
        };
        FrameHeader { salts: header.salts, chain: *chain, ..*claim }
    }
}

/// Where frames of a WAL end.
#[derive(Clone, Copy, Debug)]
struct End {
    frames: u64,
    chain: Chain,
}

/// A `-wal` file that nobody else writes. After an error it refuses to go on: what the file holds is unknown until it is
/// [opened](Self::open) again.
#[derive(Debug)]
pub struct WalAppender {
    file: Arc<dyn RepoFile>,
    header: WalHeader,
    /// After the last commit frame.
    committed: End,
    /// After the last frame.
    end: End,
    failed: bool,
}

impl WalAppender {
    /// Starts the WAL `name` with this header, and throws away what was in it. After Ok the name survives power loss, and
    /// the header does with the first [`sync`](Self::sync).
    ///
    /// # Errors
    /// As the file system says; the file is then empty, as it was, or not there.
    pub fn create(dir: &dyn Repo, name: &str, header: WalHeader) -> io::Result<WalAppender> {
        let (file, is_new) = match dir.open_write(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (dir.create(name)?, true),
            file => (file?, false),
        };
        file.truncate(0)?;
        file.write_at(&mut [IoSlice::new(&header.encode())], 0)?;
        if let Err(error) = dir.sync_dir() {
            if is_new {
                // A further sync of the directory could succeed without the name, unless it is created again.
                let _ = dir.remove(name);
            }
            return Err(error);
        }
        let start = End { frames: 0, chain: header.seed() };
        Ok(WalAppender { file, header, committed: start, end: start, failed: false })
    }

    /// Opens the WAL `name` to append after its first `frames` frames, the last of which ends a transaction, and cuts off
    /// what follows them. The frames themselves are not verified.
    ///
    /// # Errors
    /// `InvalidData` when the file does not have these frames; otherwise as the file system says.
    pub fn open(dir: &dyn Repo, name: &str, frames: u64) -> io::Result<WalAppender> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let file = match dir.open_write(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(invalid(format!("expected {frames} frames, found no file")));
            }
            file => file?,
        };
        let mut header = [0; HEADER_LEN];
        file.read_at(&mut header, 0)?;
        let header = WalHeader::decode(&header).map_err(|error| invalid(error.to_string()))?;
        let found = file.bytes()?.saturating_sub(HEADER_LEN as u64) / header.frame_len();
        if found < frames {
            return Err(invalid(format!("expected {frames} frames, found {found}")));
        }
        let chain = match heads(&*file, header.page_size, frames.saturating_sub(1), frames)?.first() {
            None => header.seed(),
            Some(last) if last.size > 0 && last.salts == header.salts => last.chain,
            Some(_) => return Err(invalid(format!("frame {frames} ends no transaction of this WAL"))),
        };
        file.truncate(header.byte_after(frames))?;
        let end = End { frames, chain };
        Ok(WalAppender { file, header, committed: end, end, failed: false })
    }

    /// The header of the WAL.
    #[must_use]
    pub fn header(&self) -> WalHeader {
        self.header
    }

    /// How many frames it has.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.end.frames
    }

    /// The checksum after the last of them.
    #[must_use]
    pub fn chain(&self) -> Chain {
        self.end.chain
    }

    /// Writes frames after the last one, under the salts of this WAL, and returns their headers as written. Salts and
    /// checksums of `frames` are ignored; each page has the page size of the WAL. Nothing is synced.
    ///
    /// # Errors
    /// As the file system says; the file must be opened again then.
    pub fn append<'a>(
        &mut self,
        frames: impl IntoIterator<Item = (FrameHeader, &'a [u8])>,
    ) -> io::Result<Vec<FrameHeader>> {
        self.usable()?;
        let mut chain = Rechain::new(WalStart { header: self.header, chain: self.end.chain });
        let (mut written, mut encoded) = (Vec::new(), Vec::new());
        for (claim, page) in frames {
            debug_assert_eq!(page.len(), self.header.page_size as usize);
            let head = chain.frame(&claim, page);
            written.push(head);
            encoded.push((head.encode(), page));
        }
        let mut slices: Vec<_> =
            encoded.iter().flat_map(|(head, page)| [IoSlice::new(head), IoSlice::new(page)]).collect();
        let done = self.file.write_at(&mut slices, self.header.byte_after(self.end.frames));
        self.latch(done)?;
        for head in &written {
            self.end = End { frames: self.end.frames + 1, chain: head.chain };
            if head.size > 0 {
                self.committed = self.end;
            }
        }
        Ok(written)
    }

    /// After Ok all that was appended survives power loss.
    ///
    /// # Errors
    /// Nothing is known then, and the file must be opened again.
    pub fn sync(&mut self) -> io::Result<()> {
        self.usable()?;
        let done = self.file.sync();
        self.latch(done)
    }

    /// Forgets the frames of a transaction that was not ended: the next ones are written in their place.
    pub fn forget_open(&mut self) {
        self.end = self.committed;
    }

    fn usable(&self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("a write or sync failed before: open the WAL again"));
        }
        Ok(())
    }

    fn latch(&mut self, done: io::Result<()>) -> io::Result<()> {
        self.failed |= done.is_err();
        done
    }
}

/// Empties the WAL `name`, if there is one. After Ok that survives power loss.
///
/// # Errors
/// As the file system says.
pub fn empty(dir: &dyn Repo, name: &str) -> io::Result<()> {
    match dir.open_write(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        file => {
            let file = file?;
            file.truncate(0)?;
            file.sync()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "wal_append_tests.rs"]
mod tests;
