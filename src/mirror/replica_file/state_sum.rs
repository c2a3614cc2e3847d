//! [`StateSum`]: one number for all pages of a database, which follows its changes page by page: it shows whether a file is
//! still the state that was written, without another copy to compare it with.

use twox_hash::XxHash3_64;

use crate::format::database::lock_page;

/// The sum, modulo 2^64, of a keyed hash of each page with its number. The page with SQLite's locks, which holds nothing, does not
/// count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateSum {
    key: u64,
    lock_page: u32,
    sum: u64,
}

impl StateSum {
    /// Of a database without a page.
    pub(crate) fn new(key: u64, page_size: u32) -> StateSum {
        StateSum { key, lock_page: lock_page(page_size), sum: 0 }
    }

    /// The same with another sum.
    pub(crate) fn with(self, sum: u64) -> StateSum {
        StateSum { sum, ..self }
    }

    pub(crate) fn number(&self) -> u64 {
        self.sum
    }

    /// What a page with this content adds.
    pub(crate) fn of_page(&self, page: u32, content: &[u8]) -> u64 {
        if page == self.lock_page {
            return 0;
        }
        let seed = self.key.wrapping_add(u64::from(page).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        XxHash3_64::oneshot_with_seed(seed, content)
    }

    /// A page that adds `of_page` is there now.
    pub(crate) fn add(&mut self, of_page: u64) {
        self.sum = self.sum.wrapping_add(of_page);
    }

    /// A page that added `of_page` is gone.
    pub(crate) fn remove(&mut self, of_page: u64) {
        self.sum = self.sum.wrapping_sub(of_page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_that_followed_changes_is_that_of_the_pages() {
        let empty = StateSum::new(7, 4096);
        let mut followed = empty;
        for page in 1..=3 {
            followed.add(followed.of_page(page, &[page as u8; 4096]));
        }
        followed.remove(followed.of_page(2, &[2; 4096]));
        followed.add(followed.of_page(2, &[9; 4096]));
        followed.remove(followed.of_page(3, &[3; 4096]));
        let mut summed = empty;
        for (page, byte) in [(2, 9), (1, 1)] {
            summed.add(summed.of_page(page, &[byte; 4096]));
        }
        assert_eq!(followed, summed);
        let mut swapped = empty;
        for (page, byte) in [(2, 1), (1, 9)] {
            swapped.add(swapped.of_page(page, &[byte; 4096]));
        }
        assert_ne!(followed, swapped, "where a page is counts");
    }

    #[test]
    fn the_page_with_the_locks_does_not_count() {
        let sum = StateSum::new(7, 65_536);
        assert_eq!(sum.of_page(lock_page(65_536), &[1; 65_536]), 0);
        assert_ne!(sum.of_page(lock_page(65_536) + 1, &[1; 65_536]), 0);
    }
}
