//! The durable mark: a file that remembers up to which offset a log was durable.
//!
//! ```text
//! 0         8          12
//! | offset  | crc32c   |        little-endian; the checksum covers the offset
//! ```
//!
//! It is written after each sync of the log and not synced itself, so after a power failure it may be behind, never
//! ahead. With it, recovery tells a tail that a crash tore (at or behind the mark: never acknowledged, trimmed) from
//! acknowledged commits that rotted or vanished (before the mark: refused), whatever the damage looks like.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::offset::Offset;
use crate::repo::{Repo, RepoFile, read_small};

const NAME: &str = "durable";
const LEN: usize = 8 + 4;

#[derive(Debug)]
pub(crate) struct DurableMark(Arc<dyn RepoFile>);

impl DurableMark {
    /// What the mark of `repo` says; `None` when there is none, or none that can be believed.
    pub(crate) fn read(repo: &dyn Repo) -> io::Result<Option<Offset>> {
        let content = read_small(repo, NAME, 4096)?.unwrap_or_default();
        let Some((offset, checksum)) = content.split_first_chunk::<8>() else {
            return Ok(None);
        };
        let sound = checksum == crc32c::crc32c(offset).to_le_bytes();
        Ok(sound.then_some(Offset(u64::from_le_bytes(*offset))))
    }

    pub(super) fn open(repo: &dyn Repo) -> io::Result<DurableMark> {
        match repo.open_write(NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => repo.create(NAME),
            file => file,
        }
        .map(DurableMark)
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
