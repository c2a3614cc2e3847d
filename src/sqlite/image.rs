//! A database as of a commit: a database file, and over it the newest frame of each page. [`Newest`] knows which frame that
//! is, wherever frames are kept; [`Image`] has them in `-wal` files. Owns: that frames count only with the commit frame of
//! their transaction, and the order in which a fold writes pages.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::wal_frames::{frame_at, heads};
use crate::format::wal::FRAME_HEADER_LEN;
use crate::limits::READ_BLOCK;
use crate::repo::RepoFile;

/// Where the newest content of each page is, as of the last commit. `P` is the place of a frame.
#[derive(Clone, Debug)]
pub struct Newest<P> {
    pages: HashMap<u32, P>,
    /// Frames after the last commit.
    open: Vec<(u32, P)>,
    size: Option<u32>,
}

impl<P> Default for Newest<P> {
    fn default() -> Self {
        Newest { pages: HashMap::new(), open: Vec::new(), size: None }
    }
}

impl<P: Copy> Newest<P> {
    /// Adds the next frame: its page, its commit size and its place. It counts once a frame with a commit size is added.
    pub fn add(&mut self, page: u32, size: u32, place: P) {
        self.open.push((page, place));
        if size > 0 {
            self.pages.extend(self.open.drain(..));
            self.size = Some(size);
        }
    }

    /// Forgets the frames after the last commit.
    pub fn forget_open(&mut self) {
        self.open.clear();
    }

    /// Pages of the database after the last commit; none without a commit.
    #[must_use]
    pub fn size(&self) -> Option<u32> {
        self.size
    }

    /// The newest frame of a page, if one holds it.
    #[must_use]
    pub fn get(&self, page: u32) -> Option<P> {
        self.pages.get(&page).copied()
    }

    /// The pages of the database that frames hold, in the order of their numbers.
    #[must_use]
    pub fn in_order(&self) -> Vec<(u32, P)> {
        let size = self.size.unwrap_or(0);
        let mut pages: Vec<_> = self.pages.iter().map(|(page, place)| (*page, *place)).collect();
        pages.retain(|(page, _)| *page <= size);
        pages.sort_unstable_by_key(|(page, _)| *page);
        pages
    }

    /// Copies the newest content of each page, in the order of the pages: `read` adds a page to a run of consecutive ones,
    /// `write` gets a run and the number of its first page. A run has at most [`READ_BLOCK`] bytes, or one page. It is up to
    /// the caller to cut the target to the [`size`](Self::size).
    ///
    /// # Errors
    /// Those of `read` and `write`.
    pub fn fold<E>(
        &self,
        page_size: u32,
        read: impl FnMut(u32, P, &mut Vec<u8>) -> Result<(), E>,
        write: impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.fold_where(|_| true, page_size, read, write)
    }

    /// The same for those pages whose newest content is where `is_due` says.
    ///
    /// # Errors
    /// Those of `read` and `write`.
    pub fn fold_where<E>(
        &self,
        is_due: impl Fn(P) -> bool,
        page_size: u32,
        mut read: impl FnMut(u32, P, &mut Vec<u8>) -> Result<(), E>,
        mut write: impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let pages_max = (READ_BLOCK as u32 / page_size).max(1);
        let mut run = Vec::with_capacity(READ_BLOCK.max(page_size as usize));
        let (mut first, mut count) = (0, 0);
        for (page, place) in self.in_order().into_iter().filter(|(_, place)| is_due(*place)) {
            if count == pages_max || u64::from(page) != u64::from(first) + u64::from(count) {
                if count > 0 {
                    write(first, &run)?;
                    run.clear();
                }
                (first, count) = (page, 0);
            }
            read(page, place, &mut run)?;
            count += 1;
        }
        if count > 0 { write(first, &run) } else { Ok(()) }
    }
}

/// A database file with the frames of WALs over it.
#[derive(Clone, Debug)]
pub struct Image {
    page_size: u32,
    /// The database, then the WALs.
    files: Vec<Arc<dyn RepoFile>>,
    /// Which file holds a page, and at which byte.
    newest: Newest<(usize, u64)>,
    base_pages: u32,
}

impl Image {
    /// The database file alone.
    ///
    /// # Errors
    /// When its length cannot be read.
    pub fn of(database: Arc<dyn RepoFile>, page_size: u32) -> io::Result<Image> {
        let base_pages = u32::try_from(database.bytes()? / u64::from(page_size)).unwrap_or(u32::MAX);
        Ok(Image { page_size, files: vec![database], newest: Newest::default(), base_pages })
    }

    /// With the first `frames` frames of a WAL on top, up to the last commit among them. They are not verified.
    ///
    /// # Errors
    /// When they cannot be read, or are not there.
    pub fn over(mut self, wal: Arc<dyn RepoFile>, frames: u64) -> io::Result<Image> {
        let file = self.files.len();
        for (number, head) in (1..).zip(heads(&*wal, self.page_size, 0, frames)?) {
            let at = frame_at(self.page_size, number) + FRAME_HEADER_LEN as u64;
            self.newest.add(head.page, head.size, (file, at));
        }
        self.files.push(wal);
        Ok(self)
    }

    /// How many pages the database has.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.newest.size().unwrap_or(self.base_pages)
    }

    /// Reads page `number`, from 1, into `page`, which has the length of one. False when it is not there.
    ///
    /// # Errors
    /// As the file system says.
    pub fn find_page(&self, number: u32, page: &mut [u8]) -> io::Result<bool> {
        let (file, at) = self.newest.get(number).unwrap_or((0, self.base_at(number)));
        let read = self.files[file].read_at(page, at)?;
        Ok((1..=self.pages()).contains(&number) && read == page.len())
    }

    fn base_at(&self, number: u32) -> u64 {
        u64::from(number.saturating_sub(1)) * u64::from(self.page_size)
    }

    /// Whether the database file alone holds what all frames say: they were folded into it, or changed nothing.
    ///
    /// # Errors
    /// As the file system says.
    pub fn is_folded(&self) -> io::Result<bool> {
        let (mut newest, mut base) = (vec![0; self.page_size as usize], vec![0; self.page_size as usize]);
        for (number, _) in self.newest.in_order() {
            let read = self.files[0].read_at(&mut base, self.base_at(number))?;
            if !self.find_page(number, &mut newest)? || read < base.len() || base != newest {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the pages of all frames into `database`, the file that it is an image of, cuts that to its size and syncs it.
    /// Without a commit nothing is done. After Ok the file alone holds the database and survives power loss; after Err, or a
    /// crash, the same fold completes it. The WALs stay as they are.
    ///
    /// # Errors
    /// As the file system says.
    pub fn fold_into(&self, database: &dyn RepoFile) -> io::Result<()> {
        let Some(size) = self.newest.size() else { return Ok(()) };
        let read = |page: u32, _, run: &mut Vec<u8>| {
            let from = run.len();
            run.resize(from + self.page_size as usize, 0);
            let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("page {page} is cut"));
            self.find_page(page, &mut run[from..])?.then_some(()).ok_or_else(cut)
        };
        let write = |first, run: &[u8]| database.write_at(&mut [IoSlice::new(run)], self.base_at(first));
        self.newest.fold(self.page_size, read, write)?;
        database.truncate(u64::from(size) * u64::from(self.page_size))?;
        database.sync()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "image_tests.rs"]
mod tests;
