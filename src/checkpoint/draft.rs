//! A database file on its way: under a name of its own until it is whole and synced.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::fold::FoldError;
use crate::format::database::{self, DatabaseHeader, HeaderError};
use crate::limits::{LIBSQL_PAGE_SIZE, READ_BLOCK};
use crate::repo::{Repo, RepoFile};
use crate::segment::base::{self, BaseReader, sum_file};

/// A database being written. Until [`publish`](Draft::publish) nobody sees it; what is left of it after a crash is
/// replaced by the next draft of that name.
#[derive(Debug)]
pub(super) struct Draft {
    target: Arc<dyn Repo>,
    name: String,
    file: Arc<dyn RepoFile>,
    base_bytes: u64,
    page_size: Option<u32>,
    /// Pages written behind the end of the base.
    grown: HashSet<u32>,
}

impl Draft {
    /// An empty database that is called `name` for now.
    pub(super) fn create(target: Arc<dyn Repo>, name: String) -> io::Result<Draft> {
        match target.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = target.create(&name)?;
        Ok(Draft { target, name, file, base_bytes: 0, page_size: None, grown: HashSet::new() })
    }

    /// Starts with the base in `source`, each block of which is checked. A base that is not there is an empty file.
    pub(super) fn copy_base(&mut self, source: &dyn Repo) -> Result<(), FoldError> {
        let Some(base) = BaseReader::open(source)? else {
            return Ok(());
        };
        let mut block = vec![0; READ_BLOCK];
        loop {
            match base.read_at(&mut block, self.base_bytes)? {
                0 => return Ok(()),
                count => self.append_base(&block[..count])?,
            }
        }
    }

    /// The next bytes of the base.
    pub(super) fn append_base(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(&mut [IoSlice::new(bytes)], self.base_bytes).map_err(|error| self.placed(error))?;
        self.base_bytes += bytes.len() as u64;
        Ok(())
    }

    /// The base is there, and the log's pages have this size. What comes after the last whole page stays until a commit says
    /// how large the database is: SQLite fills such a page up with zeros.
    pub(super) fn base_done(&mut self, page_size: u32) -> Result<(), FoldError> {
        self.page_size = Some(page_size);
        if self.base_bytes == u64::from(LIBSQL_PAGE_SIZE) && page_size != LIBSQL_PAGE_SIZE {
            let mut base = vec![0; LIBSQL_PAGE_SIZE as usize];
            let count = self.file.read_at(&mut base, 0)?;
            // What a log is created with, whatever pages are to come, has no content.
            if base[..count] == database::empty(LIBSQL_PAGE_SIZE) {
                self.file.truncate(0)?;
                self.base_bytes = 0;
            }
        }
        self.check_page_size()
    }

    /// How many pages can be read of the base, as SQLite counts them.
    fn base_pages(&self, page_size: u32) -> u64 {
        self.base_bytes.div_ceil(page_size.into())
    }

    /// Writes consecutive pages from `first` on.
    pub(super) fn write(&mut self, first: u32, pages: &[u8]) -> io::Result<()> {
        let Some(page_size) = self.page_size else {
            return Ok(());
        };
        let base_pages = self.base_pages(page_size);
        let count = pages.len() / page_size as usize;
        self.grown.extend(numbers(first, count).filter(|page| u64::from(*page) > base_pages));
        let at = u64::from(first.saturating_sub(1)) * u64::from(page_size);
        self.file.write_at(&mut [IoSlice::new(pages)], at).map_err(|error| self.placed(error))
    }

    /// All pages are written: cuts the file to `size` pages and syncs it. With no commit there is no size, and the base
    /// stays as it is. Returns the file's length.
    pub(super) fn finish(&mut self, size: Option<u32>) -> Result<u64, FoldError> {
        let mut bytes = self.base_bytes;
        if let (Some(size), Some(page_size)) = (size, self.page_size) {
            if let Some(page) = missing(size, page_size, self.base_pages(page_size), &self.grown) {
                return Err(FoldError::Missing { page, size });
            }
            bytes = u64::from(size) * u64::from(page_size);
            self.file.truncate(bytes).map_err(|error| self.placed(error))?;
            self.check_page_size()?;
        }
        self.file.sync().map_err(|error| self.placed(error))?;
        Ok(bytes)
    }

    /// The finished database, to be changed before it has its name.
    pub(super) fn file(&self) -> &dyn RepoFile {
        &*self.file
    }

    /// Gives the finished database its name. After Ok it survives power loss; after Err the old or the new one does.
    pub(super) fn publish(&self, name: &str) -> io::Result<()> {
        if let Err(error) = self.target.rename(&self.name, name) {
            self.discard();
            return Err(error);
        }
        self.target.sync_dir()
    }

    /// Makes the finished database the base of its directory, with checksums. After Ok it survives power loss.
    pub(super) fn publish_base(&self) -> io::Result<()> {
        let published =
            sum_file(&*self.target, &*self.file, true).and_then(|_| base::publish(&*self.target, &self.name));
        if published.is_err() {
            self.discard();
        }
        published
    }

    /// Removes what there is of it.
    pub(super) fn discard(&self) {
        if let Err(error) = self.target.remove(&self.name) {
            log::debug!("{} stays in {}: {error}", self.name, self.target.place());
        }
    }

    /// An error of its file, with the place.
    fn placed(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}/{}: {error}", self.target.place(), self.name))
    }

    /// A database says on its first page how large they are; one that does not say is encrypted, or no database.
    fn check_page_size(&self) -> Result<(), FoldError> {
        let mut head = [0; database::HEADER_LEN];
        let count = self.file.read_at(&mut head, 0)?;
        match (DatabaseHeader::decode(&head[..count]), self.page_size) {
            (Ok(DatabaseHeader { page_size, .. }) | Err(HeaderError::PageSize { found: page_size }), Some(log))
                if page_size != log =>
            {
                Err(FoldError::PageSize { database: page_size, log })
            }
            _ => Ok(()),
        }
    }
}

/// A panic leaves nothing of it behind.
impl Drop for Draft {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.discard();
        }
    }
}

/// `count` page numbers from `first` on, as far as there are any.
fn numbers(first: u32, count: usize) -> impl Iterator<Item = u32> {
    (0..count).map_while(move |nth| first.checked_add(u32::try_from(nth).ok()?))
}

/// The first page of `1..=size` that neither a base of `base_pages` nor a frame holds.
fn missing(size: u32, page_size: u32, base_pages: u64, grown: &HashSet<u32>) -> Option<u32> {
    let lock_page = u64::from(database::lock_page(page_size));
    // Ends after as many steps as there are frames, whatever the size claims to be.
    let mut behind = base_pages.saturating_add(1)..=u64::from(size);
    let held = |page: &u64| *page == lock_page || u32::try_from(*page).is_ok_and(|page| grown.contains(&page));
    behind.find(|page| !held(page)).and_then(|page| u32::try_from(page).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_numbers_end_with_the_last_that_there_can_be() {
        assert_eq!(numbers(u32::MAX - 1, 3).collect::<Vec<_>>(), [u32::MAX - 1, u32::MAX]);
        assert_eq!(numbers(7, 2).collect::<Vec<_>>(), [7, 8]);
    }

    #[test]
    fn a_panic_leaves_no_draft() {
        let repo: Arc<dyn Repo> = Arc::new(crate::repo::MemRepo::default());
        let panicked = std::thread::spawn({
            let repo = repo.clone();
            move || {
                let _draft = Draft::create(repo.clone(), "x.tmp".to_owned()).expect("created");
                assert_eq!(repo.list().expect("listed"), ["x.tmp"]);
                panic!("as a fault of ours would");
            }
        });
        assert!(panicked.join().is_err());
        assert_eq!(repo.list().expect("listed"), [""; 0]);
    }

    #[test]
    fn only_the_page_with_the_locks_may_be_missing() {
        let grown: HashSet<u32> = (16_000..=16_384).chain(16_386..=16_400).collect();
        assert_eq!(missing(16_400, 65_536, 15_999, &grown), None);
        assert_eq!(missing(16_401, 65_536, 15_999, &grown), Some(16_401));
        assert_eq!(missing(16_400, 65_536, 15_998, &grown), Some(15_999));
        assert_eq!(missing(16_400, 32_768, 15_999, &grown), Some(16_385));
        assert_eq!(missing(3, 512, 7, &HashSet::new()), None);
        assert_eq!(missing(u32::MAX, 512, 0, &HashSet::new()), Some(1));
        assert_eq!(missing(u32::MAX, 512, u64::MAX, &HashSet::new()), None);
    }
}
