//! [`WalPages`]: which pages after the end of a database file its WAL holds. They are known while the WAL is scanned, for nothing.

use crate::format::wal::FrameHeader;

/// Bits that are kept: one each for so many pages after the end of the file, 128 GiB in pages of 4096 bytes.
const PAGES_MAX: u64 = 32 << 20;
/// Frames of one transaction that are kept until it ends.
const OPEN_MAX: usize = 4 << 20;

/// The pages after the last whole page of a database file that committed frames hold.
#[derive(Clone, Debug, Default)]
pub(super) struct WalPages {
    /// Whole pages of the file.
    whole: u64,
    /// A bit for each page after those, as far as one was found.
    bits: Vec<u64>,
    /// Pages of the transaction whose end was not scanned yet.
    open: Vec<u32>,
    /// Whether they were too many to be kept.
    overflows: bool,
}

impl WalPages {
    /// Of a file with so many whole pages, before the first frame.
    pub(super) fn after(whole: u64) -> WalPages {
        WalPages { whole, ..WalPages::default() }
    }

    /// A scan goes on from the last commit: frames after it are given again.
    pub(super) fn go_on(&mut self) {
        self.open.clear();
    }

    /// The next frame.
    pub(super) fn add(&mut self, claim: &FrameHeader) {
        if u64::from(claim.page) > self.whole {
            if self.open.len() < OPEN_MAX { self.open.push(claim.page) } else { self.overflows = true }
        }
        if claim.size != 0 {
            for page in std::mem::take(&mut self.open) {
                self.set(page);
            }
        }
    }

    fn set(&mut self, page: u32) {
        let nth = u64::from(page) - self.whole - 1;
        if nth >= PAGES_MAX {
            self.overflows = true;
            return;
        }
        let word = (nth / 64) as usize;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (nth % 64);
    }

    /// Whether it is known of all pages after the first `whole`.
    pub(super) fn knows_all_after(&self, whole: u64) -> bool {
        !self.overflows && self.whole <= whole
    }

    /// Whether a committed frame holds a page after the end of the file.
    pub(super) fn contains(&self, page: u32) -> bool {
        let Some(nth) = u64::from(page).checked_sub(self.whole + 1) else {
            return false;
        };
        usize::try_from(nth / 64)
            .ok()
            .and_then(|word| self.bits.get(word))
            .is_some_and(|bits| bits >> (nth % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wal::Chain;

    fn add(pages: &mut WalPages, page: u32, size: u32) {
        pages.add(&FrameHeader { page, size, salts: [0, 0], chain: Chain::default() });
    }

    #[test]
    fn only_pages_of_committed_frames_after_the_file_are_kept() {
        let mut pages = WalPages::after(3);
        add(&mut pages, 3, 0);
        add(&mut pages, 4, 0);
        add(&mut pages, 200, 200);
        add(&mut pages, 5, 0);
        assert_eq!([3, 4, 5, 199, 200, 201].map(|page| pages.contains(page)), [false, true, false, false, true, false]);
        pages.go_on();
        add(&mut pages, 6, 200);
        assert_eq!([4, 5, 6].map(|page| pages.contains(page)), [true, false, true], "5 was given up");
        assert!(pages.knows_all_after(3) && pages.knows_all_after(4) && !pages.knows_all_after(2));
    }

    #[test]
    fn a_page_that_is_far_away_is_not_kept_and_not_said_to_be_absent() {
        let mut pages = WalPages::after(0);
        add(&mut pages, u32::MAX - 1, 1);
        assert!(!pages.knows_all_after(0));
    }
}
