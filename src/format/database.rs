//! The header of a SQLite database, and a database without content. Source: <https://sqlite.org/fileformat2.html>, section 1.3.
//!
//! ```text
//! 0       16          18      19     20           24               28      56         92                  96
//! | magic | page size | write | read | reserved.. | change counter | pages.. | encoding.. | version-valid-for | version |
//! ```

use std::ops::Range;

use super::wal::is_page_size;

/// Bytes of the header at the front of page 1.
pub const HEADER_LEN: usize = 100;

/// First bytes of every database.
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";

// Where the fields of four bytes are that are read or changed elsewhere too.
pub(crate) const CHANGE_COUNTER_AT: usize = 24;
pub(crate) const PAGES_AT: usize = 28;
/// The first page of the list of free ones.
pub(crate) const FREE_LIST_AT: usize = 32;
pub(crate) const FREE_COUNT_AT: usize = 36;
/// The number of the schema, which is another after each change of that.
pub(crate) const SCHEMA_COOKIE_AT: usize = 40;
/// With `auto_vacuum`, which moves pages when others become free, the largest root of a tree; else 0.
pub(crate) const LARGEST_ROOT_AT: usize = 52;
const ENCODING_AT: usize = 56;
pub(crate) const VERSION_VALID_FOR_AT: usize = 92;

/// The field of four bytes at `at`; 0 where the page ends before it.
pub(crate) fn word(page: &[u8], at: usize) -> u32 {
    page.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Where the header says how the database is written and how it is read.
pub const VERSIONS: Range<usize> = 18..20;

/// What it says there of a database that is written and read through a WAL.
pub const WAL_VERSIONS: [u8; 2] = [2, 2];

/// Makes the header on `page` say that the database is written and read through a WAL, if it says that of a rollback journal:
/// for those who find the page in a WAL. A page that is not the first of a database stays as it is.
pub fn state_wal(page: &mut [u8]) {
    if page.starts_with(MAGIC)
        && let Some(versions) = page.get_mut(VERSIONS).filter(|versions| versions.iter().all(|it| matches!(it, 1 | 2)))
    {
        versions.copy_from_slice(&WAL_VERSIONS);
    }
}

/// SQLite's locks are on the bytes from this one on, so nothing ever writes the page around it.
pub const LOCK_BYTE: u64 = 1 << 30;

/// That page, the first being 1.
#[must_use]
pub const fn lock_page(page_size: u32) -> u32 {
    (LOCK_BYTE / page_size as u64) as u32 + 1
}

/// A database without tables, in WAL mode: one page. Unlike an empty file it lets SQLite look into a WAL beside it.
#[must_use]
pub fn empty(page_size: u32) -> Vec<u8> {
    let mut page = vec![0; page_size as usize];
    page[..16].copy_from_slice(MAGIC);
    // 65536 is written as 1.
    let stored = if page_size == 65_536 { 1 } else { page_size as u16 };
    page[16..18].copy_from_slice(&stored.to_be_bytes());
    // Written and read through a WAL; no reserved space; the fractions that must be these.
    page[18..24].copy_from_slice(&[2, 2, 0, 64, 32, 32]);
    // One page, schema format 4, UTF-8.
    page[31] = 1;
    page[47] = 4;
    page[59] = 1;
    // An empty leaf of a table, whose cells would start at the end of the page; 65536 is written as 0.
    page[HEADER_LEN] = 13;
    page[HEADER_LEN + 5..HEADER_LEN + 7].copy_from_slice(&(page_size as u16).to_be_bytes());
    page
}

/// Whether page 1 of a database of one page says that nothing was ever stored in it.
#[must_use]
pub fn is_blank(page: &[u8]) -> bool {
    page.starts_with(MAGIC) && page.get(HEADER_LEN..).is_some_and(|tree| tree.starts_with(&[13, 0, 0, 0, 0]))
}

/// What the header of a database says, as far as it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseHeader {
    /// Bytes of a page.
    pub page_size: u32,
    /// How it is written: 1 with a rollback journal, 2 through a WAL.
    pub write_version: u8,
    /// How it is read: the same.
    pub read_version: u8,
    /// Bytes at the end of each page that SQLite leaves to extensions.
    pub reserved: u8,
    /// Rises with each transaction that did not go through a WAL.
    pub change_counter: u32,
    /// 1 is UTF-8; 0 what a database has before its first table.
    pub encoding: u32,
    /// Pages of the database, if [`stated_pages`](Self::stated_pages) says that this counts.
    pub pages: u32,
    /// The change counter at the last change of `pages` by a SQLite that maintains it.
    pub version_valid_for: u32,
}

/// Why a file is not a SQLite database that can be read. Displays as a reason: "it …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than a header.
    #[error("it has {bytes} bytes")]
    Short {
        /// Its bytes.
        bytes: usize,
    },
    /// Without the magic: another file, or an encrypted database.
    #[error("it does not start like one, but with {found:?}")]
    Magic {
        /// What it starts with.
        found: String,
    },
    /// No page of SQLite's has that size.
    #[error("its pages would have {found} bytes")]
    PageSize {
        /// The size.
        found: u32,
    },
    /// Its end is missing.
    #[error("it is cut: it has {bytes} bytes, and pages of {page_size}")]
    Cut {
        /// Its bytes.
        bytes: u64,
        /// Bytes of a page.
        page_size: u32,
    },
}

impl DatabaseHeader {
    /// Reads the header at the front of `head`.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn decode(head: &[u8]) -> Result<DatabaseHeader, HeaderError> {
        let Some(header) = head.first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::Short { bytes: head.len() });
        };
        if !header.starts_with(MAGIC) {
            return Err(HeaderError::Magic { found: String::from_utf8_lossy(&header[..MAGIC.len()]).into_owned() });
        }
        let page_size = match u16::from_be_bytes([header[16], header[17]]) {
            // 65,536 does not fit.
            1 => 65_536,
            stored => u32::from(stored),
        };
        if !is_page_size(page_size) {
            return Err(HeaderError::PageSize { found: page_size });
        }
        Ok(DatabaseHeader {
            page_size,
            write_version: header[18],
            read_version: header[19],
            reserved: header[20],
            change_counter: word(header, CHANGE_COUNTER_AT),
            encoding: word(header, ENCODING_AT),
            pages: word(header, PAGES_AT),
            version_valid_for: word(header, VERSION_VALID_FOR_AT),
        })
    }

    /// Reads the header of a file of `bytes` bytes, which must be whole pages.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn of_file(head: &[u8], bytes: u64) -> Result<DatabaseHeader, HeaderError> {
        let header = DatabaseHeader::decode(head)?;
        let page_size = header.page_size;
        if bytes.is_multiple_of(page_size.into()) { Ok(header) } else { Err(HeaderError::Cut { bytes, page_size }) }
    }

    /// Whether it is read and written through a WAL.
    #[must_use]
    pub fn is_wal(&self) -> bool {
        [self.write_version, self.read_version] == WAL_VERSIONS
    }

    /// Pages of the database, where the header counts: the size in it is not zero, and was written with the last change. Else
    /// the length of the file says it: SQLite before 3.7.0 did not maintain the size.
    #[must_use]
    pub fn stated_pages(&self) -> Option<u32> {
        (self.pages != 0 && self.change_counter == self.version_valid_for).then_some(self.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_database_reads_back_and_damaged_ones_do_not() {
        for page_size in [512, 4096, 65_536] {
            let page = empty(page_size);
            let header = DatabaseHeader::of_file(&page, 3 * u64::from(page_size)).expect("a header");
            assert_eq!((header.page_size, header.is_wal(), header.stated_pages()), (page_size, true, Some(1)));
            assert!(is_blank(&page));
            let cut = DatabaseHeader::of_file(&page, u64::from(page_size) + 1);
            assert_eq!(cut, Err(HeaderError::Cut { bytes: u64::from(page_size) + 1, page_size }));
        }
        let mut page = empty(4096);
        assert_eq!(DatabaseHeader::decode(&page[..99]), Err(HeaderError::Short { bytes: 99 }));
        page[17] = 1;
        assert_eq!(DatabaseHeader::decode(&page), Err(HeaderError::PageSize { found: 4097 }));
        page[3] = b'x';
        assert!(matches!(DatabaseHeader::decode(&page), Err(HeaderError::Magic { .. })));
    }

    #[test]
    fn a_rollback_journal_becomes_a_wal_and_nothing_else_changes() {
        let wal = empty(4096);
        for versions in [[1, 1], [1, 2], [2, 1], [2, 2]] {
            let mut page = wal.clone();
            page[VERSIONS].copy_from_slice(&versions);
            state_wal(&mut page);
            assert_eq!(page, wal, "{versions:?}");
        }
        for other in [vec![1; 4096], wal[..19].to_vec(), [&wal[..18], &[1, 3], &wal[20..]].concat()] {
            let mut page = other.clone();
            state_wal(&mut page);
            assert_eq!(page, other);
        }
    }

    #[test]
    fn the_size_in_a_header_counts_only_when_it_was_written_with_the_last_change() {
        let stated = |changes: u8, valid_for: u8, pages: u8| {
            let mut page = empty(512);
            (page[27], page[31], page[95]) = (changes, pages, valid_for);
            DatabaseHeader::decode(&page).expect("a header").stated_pages()
        };
        assert_eq!([stated(7, 7, 3), stated(8, 7, 3), stated(7, 7, 0)], [Some(3), None, None]);
    }
}
