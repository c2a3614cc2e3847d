//! The durable mark: a file that remembers up to which offset a log was durable.
//!
//! ```text
//! 0         8          12
//! | offset  | crc32c   |        little-endian; the checksum covers the offset
//! ```
//!
//! It is written after each sync of the log, in one sector, and synced only when a log is opened, so after a power failure
//! it may be behind, but never ahead and never missing. With it, recovery tells a tail that a crash tore (at or behind the mark: never acknowledged, trimmed) from
//! acknowledged commits that rotted or vanished (before the mark: refused), whatever the damage looks like.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::offset::Offset;
use crate::repo::{Repo, RepoFile};

const LEN: usize = 8 + 4;

#[derive(Debug)]
pub(crate) struct DurableMark(Arc<dyn RepoFile>);

impl DurableMark {
    /// Its file in the directory of a generation.
    pub(crate) const NAME: &str = "durable";

    /// What the mark of `repo` says; `None` when there is none, or none that can be believed.
    pub(crate) fn read(repo: &dyn Repo) -> io::Result<Option<Offset>> {
        let file = match repo.open(Self::NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut content = [0; LEN];
        let whole = file.read_at(&mut content, 0)? == LEN;
        let [offset @ .., _, _, _, _] = content;
        let sound = whole && content[8..] == crc32c::crc32c(&offset).to_le_bytes();
        Ok(sound.then_some(Offset(u64::from_le_bytes(offset))))
    }

    /// Opens or creates the mark and notes that everything before `durable` is durable. After Ok that note survives
    /// power loss, once the directory is synced.
    pub(crate) fn open(repo: &dyn Repo, durable: Offset) -> io::Result<DurableMark> {
        let file = match repo.open_write(Self::NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => repo.create(Self::NAME),
            file => file,
        };
        let mark = DurableMark(file?);
        mark.note(durable)?;
        mark.0.sync()?;
        Ok(mark)
    }

    /// Notes that everything before `offset` is durable.
    pub(super) fn note(&self, offset: Offset) -> io::Result<()> {
        let mut content = [0; LEN];
        content[..8].copy_from_slice(&offset.0.to_le_bytes());
        let checksum = crc32c::crc32c(&content[..8]);
        content[8..].copy_from_slice(&checksum.to_le_bytes());
        self.0.write_at(&mut [IoSlice::new(&content)], 0)
    }
}
