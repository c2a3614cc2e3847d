//! [`BaseCopy`]: the file of a database, copied to a temporary file while its locks are held. What is sent to a service comes from
//! there: nobody waits for a network with the locks of a database in hand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use sha2::{Digest, Sha256};

use super::base::{BaseStream, blocks_of};
use crate::format::wal::FRAME_HEADER_LEN;
use crate::limits::{READ_BLOCK, SPOOL_RESERVE_BYTES};
use crate::repo::{FsRepo, Repo, temporary_dir};
use crate::segment::base::BaseDigest;
use crate::sqlite::page_sums::{PageSums, new_key};
use crate::sqlite::{DatabaseError, Snapshot, WalPosition, each_counted_frame, each_frame};

/// See the [module](self). It is a state that the database was in: what a checkpoint that is not done, or that a WAL was not reset
/// after, has put into the file already is completed from the WAL.
#[derive(Debug)]
pub(super) struct BaseCopy {
    file: Arc<File>,
    digest: BaseDigest,
    /// The position in the WAL that it is the state at; none where nothing of the WAL is in it.
    pub(super) at: Option<WalPosition>,
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

impl From<DatabaseError> for CopyError {
    fn from(error: DatabaseError) -> CopyError {
        CopyError::Database(error)
    }
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> CopyError {
        CopyError::Copy(error)
    }
}

impl BaseCopy {
    /// Copies the file of a snapshot, in which frames up to `folded` may be already. Blocks.
    pub(super) fn of(snapshot: &Snapshot, folded: u64) -> Result<BaseCopy, CopyError> {
        let (bytes, dir) = (snapshot.base_bytes().unwrap_or(0), temporary_dir());
        let free = FsRepo::open(&dir)?.free_bytes()?;
        if let Some(free) = free.filter(|free| *free < bytes.saturating_add(SPOOL_RESERVE_BYTES)) {
            let text = format!("{} has {free} bytes free, and {bytes} are to be copied", dir.display());
            return Err(CopyError::Copy(io::Error::new(io::ErrorKind::StorageFull, text)));
        }
        let file = tempfile::tempfile_in(dir)?;
        let page_size = snapshot.page_size().unwrap_or(0) as usize;
        let (copying, copied) = mpsc::channel();
        thread::scope(|scope| {
            let summing = scope.spawn(|| summed(&file, page_size, copied));
            let position = copy(snapshot, (bytes, folded), &file, copying)?;
            let (digest, sums) =
                summing.join().map_err(|_| CopyError::Copy(io::Error::other("a thread panicked")))??;
            Ok((position, digest, sums))
        })
        .map(|(at, digest, sums)| BaseCopy { file: Arc::new(file), digest, at, sums })
    }

    /// Its bytes, with their digest.
    pub(super) fn stream(&self) -> BaseStream {
        BaseStream {
            blocks: blocks_of(self.file.clone(), |file, block, at| file.read_at(block, at)),
            digest: Some(self.digest),
            unproven: false,
            is_claimed: false,
        }
    }
}

/// Copies the database, and lets its locks go once that is a state that it was in. `copied` receives how many bytes of the copy are final.
fn copy(
    snapshot: &Snapshot,
    (bytes, folded): (u64, u64),
    copy: &File,
    copied: Sender<u64>,
) -> Result<Option<WalPosition>, CopyError> {
    // After an error the other thread ends by itself.
    let report = |bytes| copied.send(bytes).unwrap_or(());
    let (mut at, mut block) = (0, vec![0; READ_BLOCK]);
    while at < bytes {
        let count = snapshot.read_base(at, &mut block)?;
        if count == 0 {
            break;
        }
        copy.write_all_at(&block[..count], at)?;
        at += count as u64;
        if folded == 0 {
            report(at);
        }
    }
    let position = complete(snapshot, folded, copy)?;
    report(copy.metadata()?.len());
    snapshot.check()?;
    // The rest takes longer than the copy.
    snapshot.let_writers_on()?;
    Ok(position)
}

/// Writes the pages of all frames up to the first commit from `folded` on into a copy of the database. Returns the position after
/// them.
fn complete(snapshot: &Snapshot, folded: u64, copy: &File) -> Result<Option<WalPosition>, CopyError> {
    let Some(header) = snapshot.header().filter(|_| folded > 0) else {
        return Ok(None);
    };
    let mut at = WalPosition { salts: header.salts, frames: 0, chain: header.seed() };
    let (mut newest, mut number, mut pages) = (BTreeMap::new(), 0, 0);
    let proven = each_frame(snapshot, &mut at, snapshot.frames(), |_, claim, _, _| {
        newest.insert(claim.page, number);
        number += 1;
        pages = claim.size;
        claim.size == 0 || number < folded
    });
    if let Err(error) = proven {
        // All that counts is folded then.
        let counted = each_counted_frame(snapshot, at.frames, |frame, claim| {
            newest.insert(claim.page, frame - 1);
            pages = claim.size;
        })?;
        at = counted.ok_or(error)?;
    }
    let page_bytes = u64::from(header.page_size);
    let mut page = vec![0; header.page_size as usize];
    for (number, frame) in newest.into_iter().filter(|(number, _)| (1..=pages).contains(number)) {
        let read = snapshot.read_wal(header.byte_after(frame) + FRAME_HEADER_LEN as u64, &mut page)?;
        copy.write_all_at(&page[..read], u64::from(number - 1) * page_bytes)?;
    }
    copy.set_len(u64::from(pages) * page_bytes)?;
    Ok(Some(at))
}

/// The digest of a copy, and the sums of its pages, as far as it was `copied`: what is after the last page is none.
fn summed(copy: &File, page_size: usize, copied: Receiver<u64>) -> io::Result<(BaseDigest, Option<PageSums>)> {
    let mut sums = (page_size > 0).then(|| PageSums::new(new_key()));
    let (mut hash, mut at, mut page) = (Sha256::new(), 0, 0);
    let (mut block, mut filled) = (vec![0; READ_BLOCK.next_multiple_of(page_size.max(1))], 0_usize);
    let mut take = |bytes: &[u8]| {
        hash.update(bytes);
        let Some(sums) = &mut sums else { return Ok(()) };
        bytes.chunks_exact(page_size).try_for_each(|content| {
            page += 1;
            sums.set(page, sums.sum_of(content))
        })
    };
    for end in copied {
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let wanted = block.len().min(filled.saturating_add(left));
            copy.read_exact_at(&mut block[filled..wanted], at)?;
            (at, filled) = (at + (wanted - filled) as u64, wanted);
            if filled == block.len() {
                take(&block)?;
                filled = 0;
            }
        }
    }
    take(&block[..filled])?;
    Ok((BaseDigest(hash.finalize().into()), sums))
}
