//! [`CutPage`]: where a database file ends too early.

use std::collections::HashSet;

use super::error::DatabaseError;
use super::held::HeldDatabase;
use super::snapshot::Snapshot;
use crate::format::database::{DatabaseHeader, HEADER_LEN, lock_page};
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader};
use crate::offset::BytePos;

/// The first page that a database has and its file does not hold whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "page {page}, from byte {at}, is not whole: the file has {bytes} bytes, and the database {pages} pages of {page_size} bytes"
)]
pub struct CutPage {
    /// Its number; the first is 1.
    pub page: u32,
    /// Where it starts in the file.
    pub at: BytePos,
    /// Bytes of the file.
    pub bytes: u64,
    /// Pages of the database.
    pub pages: u32,
    /// Bytes of a page.
    pub page_size: u32,
}

impl Snapshot {
    /// The first page of the database that is neither whole in its file nor in a committed frame of its WAL.
    ///
    /// How many pages there are the last commit of the WAL says; without one the header of the file, where that counts. Where it
    /// does not, the length of the file does, as for SQLite: a page that is cut is filled up with zeros, and nothing is missing.
    ///
    /// # Errors
    /// [`DatabaseError::Io`].
    pub fn cut(&self) -> Result<Option<CutPage>, DatabaseError> {
        let (Some(bytes), Some(page_size)) = (self.base_bytes().filter(|bytes| *bytes > 0), self.page_size()) else {
            return Ok(None);
        };
        let mut head = [0; HEADER_LEN];
        let read = self.read_base(0, &mut head)?;
        let stated = DatabaseHeader::decode(&head[..read]).ok().and_then(|header| header.stated_pages());
        let pages = if self.frames() > 0 { Some(self.page_count()?) } else { stated };
        let whole = match stated {
            Some(_) => bytes / u64::from(page_size),
            None => bytes.div_ceil(page_size.into()),
        };
        let Some(pages) = pages.filter(|pages| u64::from(*pages) > whole) else {
            return Ok(None);
        };
        let locks = lock_page(page_size);
        let first_without = |in_wal: &dyn Fn(u32) -> bool| {
            // Ends after as many steps as there are frames, whatever the size claims to be.
            (whole + 1..=u64::from(pages)).find_map(|page| {
                let page = u32::try_from(page).ok()?;
                (page != locks && !in_wal(page)).then_some(page)
            })
        };
        let missing = match self.pages_after(whole) {
            Some(known) => first_without(&|page| known.contains(page)),
            None => {
                let in_wal = self.pages_of_frames()?;
                first_without(&|page| in_wal.contains(&page))
            }
        };
        Ok(missing.map(|page| {
            let at = BytePos((u64::from(page) - 1) * u64::from(page_size));
            CutPage { page, at, bytes, pages, page_size }
        }))
    }

    /// The pages that committed frames of the WAL hold.
    fn pages_of_frames(&self) -> Result<HashSet<u32>, DatabaseError> {
        let mut pages = HashSet::new();
        let Some(header) = self.header() else {
            return Ok(pages);
        };
        for frame in 0..self.frames() {
            let mut head = [0; FRAME_HEADER_LEN];
            if self.read_wal(header.byte_after(frame), &mut head)? == head.len() {
                pages.insert(FrameHeader::decode(&head).page);
            }
        }
        Ok(pages)
    }
}
