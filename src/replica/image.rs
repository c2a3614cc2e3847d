//! [`Image`]: a database as of some frame of its WAL, read from the files themselves.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::error::ReplicaError;
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN};
use crate::repo::RepoFile;
use crate::sqlite::btree::{PAGE_LEN, Page, Pages, TreeError};
use crate::sync::FRAME_LEN;

/// Where frame `number`, from 1, starts in a WAL.
pub(super) fn frame_at(number: u64) -> u64 {
    HEADER_LEN as u64 + number.saturating_sub(1) * FRAME_LEN as u64
}

/// The heads of the frames of a WAL after `after` up to `last`, which must be there.
///
/// # Errors
/// When they cannot be read.
pub(super) fn heads(wal: &dyn RepoFile, after: u64, last: u64) -> io::Result<Vec<FrameHeader>> {
    let mut head = [0; FRAME_HEADER_LEN];
    if last > after && wal.bytes()? < frame_at(last + 1) {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("frame {last} is not there")));
    }
    let mut found = Vec::with_capacity(usize::try_from(last.saturating_sub(after)).unwrap_or(0));
    for number in after + 1..=last {
        if wal.read_at(&mut head, frame_at(number))? < head.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("frame {number} is not there")));
        }
        found.push(FrameHeader::decode(&head));
    }
    Ok(found)
}

/// The pages of a database file, with newer ones from WALs on top of them.
#[derive(Clone, Debug)]
pub(super) struct Image {
    files: Vec<Arc<dyn RepoFile>>,
    /// For each page that is not in the first file, which file has it and where.
    places: HashMap<u32, (usize, u64)>,
    count: u32,
}

impl Image {
    /// The database file alone.
    ///
    /// # Errors
    /// When it cannot be asked for its length.
    pub(super) fn of(database: Arc<dyn RepoFile>) -> io::Result<Image> {
        let count = u32::try_from(database.bytes()? / PAGE_LEN as u64).unwrap_or(u32::MAX);
        Ok(Image { files: vec![database], places: HashMap::new(), count })
    }

    /// With the frames of a WAL after `after` up to `last` on top, the last of which must end a transaction.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn over(mut self, wal: &Arc<dyn RepoFile>, after: u64, last: u64) -> io::Result<Image> {
        let file = self.files.len();
        for (number, head) in (after + 1..).zip(heads(&**wal, after, last)?) {
            self.places.insert(head.page, (file, frame_at(number) + FRAME_HEADER_LEN as u64));
            if head.size > 0 {
                self.count = head.size;
            }
        }
        self.files.push(wal.clone());
        Ok(self)
    }
}

impl Pages for Image {
    fn count(&self) -> u32 {
        self.count
    }

    fn read(&self, number: u32, page: &mut Page) -> Result<(), TreeError> {
        let in_file = (0, u64::from(number.saturating_sub(1)) * PAGE_LEN as u64);
        let (file, at) = self.places.get(&number).copied().unwrap_or(in_file);
        let read = self.files[file].read_at(page, at)?;
        if number == 0 || number > self.count || read < PAGE_LEN {
            return Err(TreeError::Malformed { page: number, what: "it is not there" });
        }
        Ok(())
    }
}

/// The pages among `candidates` that two states of a database do not have in common; all pages are candidates if there is
/// no such set.
///
/// # Errors
/// When one cannot be read.
pub(super) fn differing(
    one: &Image,
    other: &Image,
    candidates: Option<&RoaringBitmap>,
) -> Result<RoaringBitmap, ReplicaError> {
    let (mut ours, mut theirs) = ([0; PAGE_LEN], [0; PAGE_LEN]);
    let (both, either) = (one.count.min(other.count), one.count.max(other.count));
    let mut found = RoaringBitmap::new();
    let mut compare = |page: u32| -> Result<(), ReplicaError> {
        if page <= both {
            one.read(page, &mut ours)?;
            other.read(page, &mut theirs)?;
        }
        if page > both || ours != theirs {
            found.insert(page);
        }
        Ok(())
    };
    match candidates {
        Some(candidates) => candidates.iter().filter(|page| (1..=either).contains(page)).try_for_each(&mut compare)?,
        None => (1..=either).try_for_each(&mut compare)?,
    }
    Ok(found)
}
