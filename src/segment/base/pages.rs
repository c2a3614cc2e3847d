//! The database that SQLite sees in a base, whose header may be stale. Source: <https://sqlite.org/fileformat2.html>, sections
//! 1.3.7 and 1.3.8; the rounding and the comparison with the length of the file are those of SQLite 3.50 (`lockBtree`,
//! `pagerPagecount`).

use crate::format::database::{DatabaseHeader, HEADER_LEN};

/// Of the formats to write and to read; 2 is a database with a WAL.
const VERSIONS_AT: usize = 18;
/// Of the payload fractions, which must be these.
const FRACTIONS_AT: usize = 21;
const FRACTIONS: [u8; 3] = [64, 32, 32];
const CHANGE_COUNTER_AT: usize = 24;
const SIZE_AT: usize = 28;
const VALID_FOR_AT: usize = 92;

/// What SQLite sees in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasePages {
    /// Bytes of a page.
    pub page_size: u32,
    /// How many pages the database has.
    pub pages: u32,
    /// Whether the header says so. Otherwise the length of the file does: the field is 0, or a program that does not know it
    /// has written the file since.
    pub stated: bool,
    change_counter: u32,
}

/// Bytes of a page of the database that starts with `head`; `None` when that is no header of a database, as in an encrypted one.
#[must_use]
pub fn page_size(head: &[u8]) -> Option<u32> {
    DatabaseHeader::decode(head).ok().map(|header| header.page_size)
}

/// What SQLite sees in a file that starts with `head` and has `bytes` bytes; `None` when that is no header of a database that it
/// opens, as in an encrypted one. Bytes after the last page are not part of the database.
///
/// # Errors
/// What is wrong, when the header says more than the file holds: SQLite does not open such a file.
pub fn seen(head: &[u8], bytes: u64) -> Result<Option<BasePages>, String> {
    let Some(page_size) = page_size(head).filter(|_| head[FRACTIONS_AT..].starts_with(&FRACTIONS)) else {
        return Ok(None);
    };
    let number = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| head[at + i]));
    let (size, change_counter) = (number(SIZE_AT), number(CHANGE_COUNTER_AT));
    let stated = change_counter == number(VALID_FOR_AT);
    if size == 0 || !stated {
        // A page that is cut counts, and is filled up with zeros.
        let pages = u32::try_from(bytes.div_ceil(page_size.into()))
            .map_err(|_| format!("a database of {bytes} bytes has more pages than SQLite can number"))?;
        return Ok(Some(BasePages { page_size, pages, stated: false, change_counter }));
    }
    if u64::from(size) * u64::from(page_size) > bytes {
        return Err(format!("a database of {bytes} bytes is cut: its header says {size} pages of {page_size} bytes"));
    }
    Ok(Some(BasePages { page_size, pages: size, stated: true, change_counter }))
}

impl BasePages {
    /// Bytes of the pages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.page_size)
    }

    /// Makes the header in `bytes`, which stand at byte `at` of the file, say what SQLite sees, for those who believe the field
    /// whatever the counters say; and that the database has a WAL, which it has here.
    pub fn state(&self, bytes: &mut [u8], at: u64) {
        let Some(from) = usize::try_from(at).ok().filter(|from| *from < HEADER_LEN) else {
            return;
        };
        let mut put = |field: usize, value: &[u8]| {
            for (place, byte) in (field..).zip(value) {
                if let Some(there) = place.checked_sub(from).and_then(|place| bytes.get_mut(place)) {
                    *there = *byte;
                }
            }
        };
        put(VERSIONS_AT, &[2, 2]);
        if !self.stated {
            put(SIZE_AT, &self.pages.to_be_bytes());
            put(VALID_FOR_AT, &self.change_counter.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::database::empty;

    /// The header of a database whose fields say this.
    fn head(size: u32, change_counter: u32, valid_for: u32) -> Vec<u8> {
        let mut head = empty(4096);
        for (field, value) in [(SIZE_AT, size), (CHANGE_COUNTER_AT, change_counter), (VALID_FOR_AT, valid_for)] {
            head[field..field + 4].copy_from_slice(&value.to_be_bytes());
        }
        head
    }

    fn pages(head: &[u8], bytes: u64) -> Option<(u32, bool)> {
        seen(head, bytes).expect("a database").map(|seen| (seen.pages, seen.stated))
    }

    #[test]
    fn the_size_counts_only_where_it_is_valid() {
        assert_eq!(pages(&head(3, 7, 7), 3 * 4096), Some((3, true)));
        assert_eq!(pages(&head(3, 7, 7), 4 * 4096 + 5), Some((3, true)));
        for stale in [head(3, 8, 7), head(0, 7, 7), head(0, 8, 7), head(99, 8, 7)] {
            assert_eq!(pages(&stale, 4 * 4096), Some((4, false)));
            assert_eq!(pages(&stale, 4 * 4096 + 1), Some((5, false)));
        }
        for bytes in [0, 4096, 3 * 4096 - 1] {
            assert!(seen(&head(3, 7, 7), bytes).is_err(), "{bytes}");
        }
        assert_eq!(seen(b"no database", 4096), Ok(None));
        assert_eq!(seen(&[7; 4096], 4096), Ok(None));
        let mut other = head(3, 7, 7);
        other[FRACTIONS_AT] = 65;
        assert_eq!((seen(&other, 4096), page_size(&other)), (Ok(None), Some(4096)));
    }

    #[test]
    fn what_is_seen_is_stated_in_any_piece_of_the_header() {
        let stale = head(3, 0x0102_0304, 7);
        let seen = seen(&stale, 9 * 4096).expect("a database").expect("a header");
        let mut whole = stale.clone();
        seen.state(&mut whole, 0);
        assert_eq!(pages(&whole, 9 * 4096), Some((9, true)));
        for at in 0..110 {
            for len in [1, 2, 5, 100] {
                let mut piece = stale[at..at + len].to_vec();
                seen.state(&mut piece, at as u64);
                assert_eq!(piece, whole[at..at + len], "{at}, {len}");
            }
        }
    }
}
