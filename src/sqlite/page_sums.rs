//! [`PageSums`]: a checksum a page of a database, to find the pages in which two states of it differ.

use std::fs::File;
use std::io;

use memmap2::MmapMut;
use twox_hash::XxHash3_64;

/// Sums kept in memory: those of 16 GiB in pages of 4096 bytes. More are kept in a temporary file.
const IN_MEMORY: usize = 4 << 20;

/// The sums of the pages of one state. They are keyed, so that nobody can write two pages with the same sum on purpose.
#[derive(Debug)]
pub struct PageSums {
    key: u64,
    pages: u32,
    sums: Sums,
}

#[derive(Debug)]
enum Sums {
    Memory(Vec<u64>),
    /// Of a file without a name.
    Map(File, MmapMut),
}

/// A random key, so that pages with equal sums cannot be prepared.
pub(crate) fn new_key() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

impl PageSums {
    /// Of a database without a page, with sums that depend on `key`: a random one.
    #[must_use]
    pub fn new(key: u64) -> PageSums {
        PageSums { key, pages: 0, sums: Sums::Memory(Vec::new()) }
    }

    /// What the sums depend on.
    #[must_use]
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Pages of the database.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The sum of a page with this content.
    #[must_use]
    pub fn sum_of(&self, content: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(self.key, content)
    }

    /// The sum of a page, from 1; none after the last.
    #[must_use]
    pub fn get(&self, page: u32) -> Option<u64> {
        let at = page.checked_sub(1).filter(|at| *at < self.pages)? as usize;
        match &self.sums {
            Sums::Memory(sums) => sums.get(at).copied(),
            Sums::Map(_, map) => map.get(at * 8..at * 8 + 8)?.first_chunk().map(|sum| u64::from_ne_bytes(*sum)),
        }
    }

    /// Sets the sum of a page, from 1. Pages that come to be before it have the sum 0.
    ///
    /// # Errors
    /// When the temporary file for many sums cannot be made or made longer.
    pub fn set(&mut self, page: u32, sum: u64) -> io::Result<()> {
        let Some(at) = page.checked_sub(1) else {
            return Ok(());
        };
        if at >= self.pages {
            self.resize(page)?;
        }
        let at = at as usize;
        match &mut self.sums {
            Sums::Memory(sums) => sums[at] = sum,
            Sums::Map(_, map) => map[at * 8..at * 8 + 8].copy_from_slice(&sum.to_ne_bytes()),
        }
        Ok(())
    }

    /// Makes it the sums of a database of `pages` pages: what is after them is forgotten.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn resize(&mut self, pages: u32) -> io::Result<()> {
        let wanted = pages as usize;
        match &mut self.sums {
            Sums::Memory(sums) if wanted <= IN_MEMORY => sums.resize(wanted, 0),
            Sums::Memory(sums) => {
                let file = tempfile::tempfile()?;
                let mut map = mapped(&file, wanted)?;
                for (place, sum) in map.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
                    *place = sum.to_ne_bytes();
                }
                self.sums = Sums::Map(file, map);
            }
            Sums::Map(file, map) if map.len() < wanted * 8 => *map = mapped(file, wanted)?,
            Sums::Map(_, map) => {
                // A page that comes back later has no sum yet.
                if let Some(behind) = map.get_mut(wanted * 8..self.pages as usize * 8) {
                    behind.fill(0);
                }
            }
        }
        self.pages = pages;
        Ok(())
    }
}

/// Maps a temporary file with room for so many sums, and some more.
#[allow(unsafe_code, reason = "memory map")]
fn mapped(file: &File, sums: usize) -> io::Result<MmapMut> {
    let room = sums.saturating_add(sums / 4);
    file.set_len(room as u64 * 8)?;
    // Safety: the file has no name and nobody else its descriptor, so it is neither cut nor written but through this map.
    unsafe { MmapMut::map_mut(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_tell_pages_apart_and_do_not_outlive_a_database_that_shrinks() {
        let mut sums = PageSums::new(7);
        assert_eq!((sums.pages(), sums.get(1), sums.get(0)), (0, None, None));
        let (one, other) = (sums.sum_of(&[1; 4096]), sums.sum_of(&[2; 4096]));
        assert_ne!(one, other);
        assert_ne!(one, PageSums::new(8).sum_of(&[1; 4096]));
        sums.set(3, one).expect("set");
        assert_eq!((sums.pages(), sums.get(1), sums.get(3), sums.get(4)), (3, Some(0), Some(one), None));
        sums.resize(2).expect("resized");
        assert_eq!(sums.get(3), None);
        sums.set(4, other).expect("set");
        assert_eq!((sums.get(3), sums.get(4)), (Some(0), Some(other)));
    }

    #[test]
    fn many_sums_are_kept_in_a_file() {
        let mut sums = PageSums::new(7);
        let many = IN_MEMORY as u32 + 5;
        sums.set(2, 22).expect("set");
        sums.set(many, 33).expect("set");
        assert!(matches!(sums.sums, Sums::Map(..)));
        assert_eq!((sums.get(1), sums.get(2), sums.get(many), sums.get(many + 1)), (Some(0), Some(22), Some(33), None));
        sums.set(2 * many, 44).expect("set");
        sums.resize(many).expect("resized");
        sums.resize(2 * many).expect("resized");
        assert_eq!((sums.get(2), sums.get(many), sums.get(2 * many)), (Some(22), Some(33), Some(0)));
    }
}
