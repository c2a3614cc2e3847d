//! [`BaseCopy`]: the file of a database, copied to a temporary file while its locks are held. What is sent to a service comes from
//! there: nobody waits for a network with the locks of a database in hand.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};

use super::base::{BaseStream, Blocks};
use crate::limits::{READ_BLOCK, SPOOL_RESERVE_BYTES};
use crate::repo::{FsRepo, Repo, temporary_dir};
use crate::segment::base::BaseDigest;
use crate::sqlite::page_sums::PageSums;
use crate::sqlite::{DatabaseError, Snapshot};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct BaseCopy {
    file: Arc<File>,
    digest: BaseDigest,
    /// The sums of its pages: what differs from them later was written meanwhile.
    pub(super) sums: Option<PageSums>,
}

/// Why there is no copy.
#[derive(Debug)]
pub(super) enum CopyError {
    /// The database cannot be read, or changed meanwhile.
    Database(DatabaseError),
    /// The temporary file cannot be written.
    Copy(io::Error),
}

impl BaseCopy {
    /// Copies the file of a snapshot. Blocks.
    pub(super) fn of(snapshot: &Snapshot) -> Result<BaseCopy, CopyError> {
        let (bytes, dir) = (snapshot.base_bytes().unwrap_or(0), temporary_dir());
        let free = FsRepo::open(&dir).and_then(|repo| repo.free_bytes()).map_err(CopyError::Copy)?;
        if let Some(free) = free.filter(|free| *free < bytes.saturating_add(SPOOL_RESERVE_BYTES)) {
            let text = format!("{} has {free} bytes free, and {bytes} are to be copied", dir.display());
            return Err(CopyError::Copy(io::Error::new(io::ErrorKind::StorageFull, text)));
        }
        let file = tempfile::tempfile_in(dir).map_err(CopyError::Copy)?;
        let page_size = snapshot.page_size().unwrap_or(0) as usize;
        let mut sums = (page_size > 0).then(|| PageSums::new(uuid::Uuid::new_v4().as_u64_pair().0));
        let (mut hash, mut at, mut page) = (Sha256::new(), 0, 0);
        let mut block = vec![0; READ_BLOCK.next_multiple_of(page_size.max(1))];
        while at < bytes {
            let count = snapshot.read_base(at, &mut block).map_err(CopyError::Database)?;
            if count == 0 {
                break;
            }
            hash.update(&block[..count]);
            file.write_all_at(&block[..count], at).map_err(CopyError::Copy)?;
            if let Some(sums) = &mut sums {
                // What is after the last page is no page.
                for content in block[..count].chunks_exact(page_size) {
                    page += 1;
                    sums.set(page, sums.sum_of(content)).map_err(CopyError::Copy)?;
                }
            }
            at += count as u64;
        }
        snapshot.check().map_err(CopyError::Database)?;
        Ok(BaseCopy { file: Arc::new(file), digest: BaseDigest(hash.finalize().into()), sums })
    }

    /// Its bytes, with their digest.
    pub(super) fn stream(&self) -> BaseStream {
        BaseStream { blocks: blocks(self.file.clone()), digest: Some(self.digest), unproven: false }
    }
}

fn blocks(file: Arc<File>) -> Blocks {
    let blocks = stream::try_unfold((file, 0), |(file, at)| async move {
        let reading = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; READ_BLOCK];
            let count = file.read_at(&mut block, at)?;
            block.truncate(count);
            Ok::<_, io::Error>((block, file))
        });
        let (block, file) = reading.await.map_err(io::Error::other)??;
        let at = at + block.len() as u64;
        Ok((!block.is_empty()).then_some((Bytes::from(block), (file, at))))
    });
    blocks.boxed()
}
