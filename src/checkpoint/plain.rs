//! A restored database without what the SQL engine keeps for `AUTOINCREMENT` beside SQLite's own `sqlite_sequence`, in which
//! its counters are as well: tables that SQLite and its tools take for a user's. Source: <https://sqlite.org/fileformat2.html>.
//!
//! Knows no engine: the rows go out of the schema's tree, and the pages of their tables into the list of free ones.

use std::io::{self, IoSlice};

use crate::format::database::{
    CHANGE_COUNTER_AT, DatabaseHeader, FREE_COUNT_AT, FREE_LIST_AT, HEADER_LEN, LARGEST_ROOT_AT, PAGES_AT,
    SCHEMA_COOKIE_AT, VERSION_VALID_FOR_AT, word,
};
use crate::repo::RepoFile;
use crate::sqlite::btree::{Cell, PAGE_LEN, Page, Pages, Taken, Tree, TreeError, cells, record};
use crate::sqlite::record::{Stored, values};

/// What the names of such tables begin with.
const PREFIX: &[u8] = b"__turso_internal_seq___turso_internal_autoincrement_";

/// Pages that a page of the list of free ones names at most, less than fit for versions of SQLite of before 3.6.0.
const LISTED_MAX: usize = PAGE_LEN / 4 - 8;

/// Why a database was not converted.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlainError {
    /// It cannot be read as one.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It is of a kind that cannot be converted.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The disk is at fault.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A database in one file.
struct Database<'a> {
    file: &'a dyn RepoFile,
    count: u32,
}

impl Pages for Database<'_> {
    fn count(&self) -> u32 {
        self.count
    }

    fn read(&self, number: u32, page: &mut Page) -> Result<(), TreeError> {
        match self.file.read_at(page, at(number))? {
            PAGE_LEN => Ok(()),
            _ => Err(TreeError::Malformed { page: number, what: "it is cut" }),
        }
    }
}

fn at(number: u32) -> u64 {
    u64::from(number.saturating_sub(1)) * PAGE_LEN as u64
}

/// A leaf of the schema's tree, and which of its rows go.
struct Leaf {
    number: u32,
    page: Page,
    goes: Vec<bool>,
}

/// Takes such tables out of a database, if there are any, and syncs it. Returns how many rows of the schema went. After Err the
/// file is of no use.
pub(super) fn convert(file: &dyn RepoFile) -> Result<usize, PlainError> {
    let mut head = [0; HEADER_LEN];
    let count = file.read_at(&mut head, 0)?;
    // The engine writes pages of no other size.
    let of_engine = DatabaseHeader::decode(&head[..count]).is_ok_and(|head| head.page_size as usize == PAGE_LEN);
    if !of_engine {
        return Ok(0);
    }
    if head[20] != 0 {
        return Err(PlainError::Unsupported("its pages have reserved bytes at their ends"));
    }
    let count = u32::try_from(file.bytes()? / PAGE_LEN as u64).unwrap_or(u32::MAX);
    let database = Database { file, count };
    let (leaves, mut free) = find(&database)?;
    let gone = leaves.iter().flat_map(|leaf| &leaf.goes).filter(|goes| **goes).count();
    if gone == 0 {
        return Ok(0);
    }
    if word(&head, LARGEST_ROOT_AT) != 0 {
        return Err(PlainError::Unsupported("it has auto_vacuum"));
    }
    for leaf in &leaves {
        write(file, leaf.number, &without(leaf)?)?;
    }
    let mut first = [0; PAGE_LEN];
    database.read(1, &mut first)?;
    free.sort_unstable();
    let mut next = word(&first, FREE_LIST_AT);
    for listed in free.chunks(LISTED_MAX) {
        let Some((trunk, listed)) = listed.split_first() else { continue };
        let mut page = [0; PAGE_LEN];
        set_word(&mut page, 0, next);
        set_word(&mut page, 4, listed.len() as u32);
        listed.iter().zip(2..).for_each(|(number, nth)| set_word(&mut page, nth * 4, *number));
        write(file, *trunk, &page)?;
        next = *trunk;
    }
    let free_count = word(&first, FREE_COUNT_AT).wrapping_add(free.len() as u32);
    let changes = word(&first, CHANGE_COUNTER_AT).wrapping_add(1);
    let cookie = word(&first, SCHEMA_COOKIE_AT).wrapping_add(1);
    let words = [
        (FREE_LIST_AT, next),
        (FREE_COUNT_AT, free_count),
        (CHANGE_COUNTER_AT, changes),
        (VERSION_VALID_FOR_AT, changes),
        (PAGES_AT, count),
        (SCHEMA_COOKIE_AT, cookie),
    ];
    words.into_iter().for_each(|(at, number)| set_word(&mut first, at, number));
    write(file, 1, &first)?;
    file.sync()?;
    Ok(gone)
}

/// The leaves of the schema's tree that have such rows, and the pages of what they are about.
fn find(database: &Database<'_>) -> Result<(Vec<Leaf>, Vec<u32>), PlainError> {
    let (mut leaves, mut free, mut taken) = (Vec::new(), Vec::new(), Taken::default());
    let (mut page, mut row, mut others) = ([0; PAGE_LEN], Vec::new(), Taken::default());
    for number in Tree::of(database, 1)?.leaves {
        database.read(number, &mut page)?;
        let mut goes = Vec::new();
        for cell in cells(number, &page)? {
            let is_long = cell.overflow != 0;
            record(database, &cell, &mut row, &mut others)?;
            let columns = values(&row).unwrap_or_default();
            let internal = matches!(columns.get(2), Some(Stored::Text(table)) if table.starts_with(PREFIX));
            goes.push(internal);
            if internal && is_long {
                return Err(PlainError::Unsupported("a row of its schema about an internal table is too long"));
            }
            if let (true, Some(Stored::Integer(root @ 2..))) = (internal, columns.get(3)) {
                free.extend(table_pages(database, u32::try_from(*root).unwrap_or(u32::MAX), &mut taken)?);
            }
        }
        if goes.contains(&true) {
            leaves.push(Leaf { number, page, goes });
        }
    }
    free.extend(taken.pages());
    Ok((leaves, free))
}

/// The pages of a tree; those on which its records go on are `taken`.
fn table_pages(database: &Database<'_>, root: u32, taken: &mut Taken) -> Result<Vec<u32>, PlainError> {
    let tree = Tree::of(database, root)?;
    let (mut page, mut row) = ([0; PAGE_LEN], Vec::new());
    for number in tree.with_rows() {
        database.read(number, &mut page)?;
        for cell in cells(number, &page)? {
            record(database, &cell, &mut row, taken)?;
        }
    }
    Ok(tree.pages().collect())
}

/// A leaf without the rows that go.
fn without(leaf: &Leaf) -> Result<Page, PlainError> {
    const POINTERS: usize = 8;
    let Leaf { number, page, goes } = leaf;
    let head = if *number == 1 { 100 } else { 0 };
    let stays = goes.iter().filter(|goes| !**goes).count();
    if stays == 0 && *number != 1 {
        return Err(PlainError::Unsupported("a page of its schema has rows about internal tables only"));
    }
    let mut new = [0; PAGE_LEN];
    new[..head + POINTERS].copy_from_slice(&page[..head + POINTERS]);
    let (mut content, mut pointer, least) = (PAGE_LEN, head + POINTERS, head + POINTERS + 2 * stays);
    let cells = cells(*number, page)?;
    for (nth, cell) in cells.iter().enumerate().filter(|(nth, _)| goes.get(*nth) == Some(&false)) {
        let start = usize::from(half(page, head + POINTERS + 2 * nth));
        let end = end_of(page, cell);
        let bytes = page.get(start..end).ok_or(TreeError::Malformed { page: *number, what: "a cell is cut" })?;
        let overlaps = TreeError::Malformed { page: *number, what: "its cells overlap" };
        content = content.checked_sub(bytes.len()).filter(|content| *content >= least).ok_or(overlaps)?;
        new[content..content + bytes.len()].copy_from_slice(bytes);
        set_half(&mut new, pointer, content as u16);
        pointer += 2;
    }
    // No free blocks, so many cells, where the first of them starts, no fragments.
    set_half(&mut new, head + 1, 0);
    set_half(&mut new, head + 3, stays as u16);
    set_half(&mut new, head + 5, content as u16);
    new[head + 7] = 0;
    Ok(new)
}

/// Where a cell ends on its page.
fn end_of(page: &Page, cell: &Cell<'_>) -> usize {
    let start = (cell.local.as_ptr() as usize).saturating_sub(page.as_ptr() as usize);
    start + cell.local.len() + if cell.overflow == 0 { 0 } else { 4 }
}

fn write(file: &dyn RepoFile, number: u32, page: &Page) -> io::Result<()> {
    file.write_at(&mut [IoSlice::new(page)], at(number))
}

fn set_word(page: &mut Page, at: usize, number: u32) {
    page[at..at + 4].copy_from_slice(&number.to_be_bytes());
}

fn half(page: &Page, at: usize) -> u16 {
    page.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn set_half(page: &mut Page, at: usize, number: u16) {
    page[at..at + 2].copy_from_slice(&number.to_be_bytes());
}
