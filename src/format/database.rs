//! The little that is needed of the SQLite database format. Source: <https://sqlite.org/fileformat2.html>, section 1.3.

/// Bytes of the header at the front of page 1.
pub const HEADER_LEN: usize = 100;

/// First bytes of every database.
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";

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

/// Bytes of a page of the database that starts with `head`.
///
/// # Errors
/// What is wrong, when it is no database or `bytes` is not a length it can have.
pub fn check(head: &[u8], bytes: u64) -> Result<u32, String> {
    if head.len() < HEADER_LEN || !head.starts_with(MAGIC) {
        let found = String::from_utf8_lossy(&head[..head.len().min(16)]).into_owned();
        return Err(format!("this is no SQLite database: it starts with {found:?}"));
    }
    let page_size = match u16::from_be_bytes([head[16], head[17]]) {
        1 => 65_536,
        stored => u32::from(stored),
    };
    if !(512..=65_536).contains(&page_size) || !page_size.is_power_of_two() {
        return Err(format!("this is no SQLite database: its pages would have {page_size} bytes"));
    }
    if !bytes.is_multiple_of(u64::from(page_size)) {
        return Err(format!("a database of {bytes} bytes is cut: its pages have {page_size}"));
    }
    Ok(page_size)
}
