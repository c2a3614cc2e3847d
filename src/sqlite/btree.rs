//! The trees of a SQLite database, page by page, without an engine. Source: <https://sqlite.org/fileformat2.html>,
//! sections 1.5 and 1.6. Knows no SQL and no schema.
//!
//! Every number read from a page is a claim: pages are counted as they are visited, cells are cut out with checks, and what
//! does not fit is [`TreeError::Malformed`].

use std::collections::HashSet;
use std::io;

use super::record::varint;
use crate::format::database;

/// Bytes of a page.
pub const PAGE_LEN: usize = 4096;
/// A page.
pub type Page = [u8; PAGE_LEN];

/// Trees are no deeper: with two children a page it could number no more pages.
const DEPTH_MAX: usize = 32;

/// The pages of a database as of some moment, none of which has reserved bytes at its end.
pub trait Pages {
    /// How many there are.
    fn count(&self) -> u32;

    /// Reads page `number`, from 1.
    ///
    /// # Errors
    /// When it cannot be read, or there is no such page.
    fn read(&self, number: u32, page: &mut Page) -> Result<(), TreeError>;
}

/// Why a tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A page says what cannot be.
    #[error("page {page} of the database is malformed: {what}")]
    Malformed {
        /// The page.
        page: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// A page cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn malformed(page: u32, what: &'static str) -> TreeError {
    TreeError::Malformed { page, what }
}

/// What a page of a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    IndexInterior,
    TableInterior,
    IndexLeaf,
    TableLeaf,
}

/// The pages of one tree.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Whether its rows have rowids; else it is an index, or a table without.
    pub has_rowids: bool,
    /// Pages that only lead to others; of an index they hold entries too.
    pub interior: Vec<u32>,
    /// Pages without others below.
    pub leaves: Vec<u32>,
}

/// A row or an entry of an index, as it lies on its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell<'a> {
    /// The rowid; 0 where there are none.
    pub rowid: i64,
    /// What of its record lies on the page.
    pub local: &'a [u8],
    /// Bytes of the whole record.
    pub bytes: u64,
    /// The page on which it goes on; 0 for none.
    pub overflow: u32,
}

impl Tree {
    /// The pages of the tree whose root that is. Reads its interior pages only, and one leaf.
    ///
    /// # Errors
    /// When it is no tree.
    pub fn of(pages: &dyn Pages, root: u32) -> Result<Tree, TreeError> {
        let mut tree = Tree::default();
        let (mut page, mut seen) = ([0; PAGE_LEN], HashSet::new());
        // Pages on the way, with their depth. All leaves are equally deep, so one tells for its siblings.
        let mut waiting = vec![(root, 0)];
        let mut leaf_depth = None;
        while let Some((number, depth)) = waiting.pop() {
            if number == 0 || number > pages.count() || !seen.insert(number) || depth > DEPTH_MAX {
                return Err(malformed(number, "it is no page of the database, or twice in its tree"));
            }
            if leaf_depth == Some(depth) {
                tree.leaves.push(number);
                continue;
            }
            pages.read(number, &mut page)?;
            let (kind, _) = head(number, &page)?;
            tree.has_rowids = matches!(kind, Kind::TableInterior | Kind::TableLeaf);
            if matches!(kind, Kind::IndexLeaf | Kind::TableLeaf) {
                leaf_depth = Some(depth);
                tree.leaves.push(number);
                continue;
            }
            tree.interior.push(number);
            let below = children(number, &page)?;
            waiting.extend(below.into_iter().rev().map(|below| (below, depth + 1)));
        }
        Ok(tree)
    }

    /// The pages on which rows lie.
    pub fn with_rows(&self) -> impl Iterator<Item = u32> {
        let interior = if self.has_rowids { &[][..] } else { &self.interior };
        self.leaves.iter().chain(interior).copied()
    }

    /// All its pages but those on which long records go on.
    pub fn pages(&self) -> impl Iterator<Item = u32> {
        self.interior.iter().chain(&self.leaves).copied()
    }
}

/// Where the header of a page of a tree starts: behind that of the database on the first.
fn head_at(number: u32) -> usize {
    if number == 1 { 100 } else { 0 }
}

/// Kind and number of cells.
fn head(number: u32, page: &Page) -> Result<(Kind, usize), TreeError> {
    let head = &page[head_at(number)..];
    let kind = match head[0] {
        2 => Kind::IndexInterior,
        5 => Kind::TableInterior,
        10 => Kind::IndexLeaf,
        13 => Kind::TableLeaf,
        _ => return Err(malformed(number, "it is no page of a tree")),
    };
    Ok((kind, usize::from(u16::from_be_bytes([head[3], head[4]]))))
}

/// Where the cells of a page start, in their order.
fn cells_at(number: u32, page: &Page) -> Result<impl Iterator<Item = usize>, TreeError> {
    let (kind, count) = head(number, page)?;
    let head_len = if matches!(kind, Kind::IndexInterior | Kind::TableInterior) { 12 } else { 8 };
    let pointers = page.get(head_at(number) + head_len..).and_then(|rest| rest.get(..2 * count));
    let pointers = pointers.ok_or_else(|| malformed(number, "it has more cells than fit"))?;
    Ok(pointers.as_chunks::<2>().0.iter().map(|pointer| usize::from(u16::from_be_bytes(*pointer))))
}

fn word(page: &[u8], at: usize) -> Option<u32> {
    page.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The pages below an interior page, in order.
fn children(number: u32, page: &Page) -> Result<Vec<u32>, TreeError> {
    let cut = || malformed(number, "a cell is cut");
    let mut below = cells_at(number, page)?.map(|at| word(page, at).ok_or_else(cut)).collect::<Result<Vec<_>, _>>()?;
    below.push(word(page, head_at(number) + 8).ok_or_else(cut)?);
    Ok(below)
}

/// The cells of a page that have records, in order.
///
/// # Errors
/// When one of them is malformed.
pub fn cells<'a>(number: u32, page: &'a Page) -> Result<Vec<Cell<'a>>, TreeError> {
    let (kind, _) = head(number, page)?;
    if kind == Kind::TableInterior {
        return Ok(Vec::new());
    }
    let mut left = PAGE_LEN;
    let mut one = |at| {
        let cell = cell(kind, page, at).ok_or_else(|| malformed(number, "a cell is cut"))?;
        left = left.checked_sub(cell.local.len()).ok_or_else(|| malformed(number, "its cells overlap"))?;
        Ok(cell)
    };
    cells_at(number, page)?.map(&mut one).collect()
}

fn cell<'a>(kind: Kind, page: &'a Page, at: usize) -> Option<Cell<'a>> {
    let at = if kind == Kind::IndexInterior { at + 4 } else { at };
    let (bytes, mut rest) = varint(page.get(at..)?)?;
    let mut rowid = 0;
    if kind == Kind::TableLeaf {
        let (number, behind) = varint(rest)?;
        (rowid, rest) = (number as i64, behind);
    }
    let local = local_bytes(kind, bytes);
    let (local, rest) = rest.split_at_checked(local)?;
    let overflow = if (local.len() as u64) < bytes { word(rest, 0).filter(|next| *next > 0)? } else { 0 };
    Some(Cell { rowid, local, bytes, overflow })
}

/// How much of a record of so many bytes lies on its page.
fn local_bytes(kind: Kind, bytes: u64) -> usize {
    const LEAST: u64 = (PAGE_LEN as u64 - 12) * 32 / 255 - 23;
    let most = if kind == Kind::TableLeaf { PAGE_LEN as u64 - 35 } else { (PAGE_LEN as u64 - 12) * 64 / 255 - 23 };
    if bytes <= most {
        return bytes as usize;
    }
    let wanted = LEAST + (bytes - LEAST) % (PAGE_LEN as u64 - 4);
    (if wanted <= most { wanted } else { LEAST }) as usize
}

/// The pages on which long records go on, as far as they were read: none belongs to two records.
#[derive(Clone, Debug, Default)]
pub struct Taken(HashSet<u32>);

impl Taken {
    /// Those pages.
    pub fn pages(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }
}

/// The whole record of a cell into `record`. With one `taken` for all cells that are looked at, no page is read twice.
///
/// # Errors
/// When it does not go on as its length says.
pub fn record(pages: &dyn Pages, cell: &Cell<'_>, record: &mut Vec<u8>, taken: &mut Taken) -> Result<(), TreeError> {
    record.clear();
    record.extend_from_slice(cell.local);
    let (mut next, mut page) = (cell.overflow, [0; PAGE_LEN]);
    if cell.bytes > u64::from(pages.count()) * PAGE_LEN as u64 {
        return Err(malformed(next, "a record is longer than the database"));
    }
    while (record.len() as u64) < cell.bytes {
        if next == 0 || next > pages.count() || !taken.0.insert(next) {
            return Err(malformed(next, "a record goes on where there is no page, or another record"));
        }
        pages.read(next, &mut page)?;
        let (head, rest) = page.split_at(4);
        let wanted = usize::try_from(cell.bytes - record.len() as u64).unwrap_or(usize::MAX).min(rest.len());
        record.extend_from_slice(&rest[..wanted]);
        next = word(head, 0).unwrap_or(0);
    }
    Ok(())
}

/// The record of the row with that rowid, if there is one.
///
/// # Errors
/// When the tree is malformed, or has no rowids.
pub fn row(pages: &dyn Pages, root: u32, rowid: i64) -> Result<Option<Vec<u8>>, TreeError> {
    let (mut number, mut page) = (root, [0; PAGE_LEN]);
    for _ in 0..=DEPTH_MAX {
        if number == 0 || number > pages.count() {
            return Err(malformed(number, "it is no page of the database"));
        }
        pages.read(number, &mut page)?;
        match head(number, &page)?.0 {
            Kind::TableInterior => number = child_with(number, &page, rowid)?,
            Kind::TableLeaf => {
                let Some(cell) = cells(number, &page)?.into_iter().find(|cell| cell.rowid == rowid) else {
                    return Ok(None);
                };
                let mut found = Vec::new();
                record(pages, &cell, &mut found, &mut Taken::default())?;
                return Ok(Some(found));
            }
            Kind::IndexInterior | Kind::IndexLeaf => return Err(malformed(number, "it is of no table with rowids")),
        }
    }
    Err(malformed(number, "its tree is too deep"))
}

/// The greatest rowid of a table, if it has a row.
///
/// # Errors
/// When the tree is malformed.
pub fn last_rowid(pages: &dyn Pages, root: u32) -> Result<Option<i64>, TreeError> {
    let Some(last) = Tree::of(pages, root)?.leaves.pop() else { return Ok(None) };
    let mut page = [0; PAGE_LEN];
    pages.read(last, &mut page)?;
    Ok(cells(last, &page)?.last().map(|cell| cell.rowid))
}

/// The page below that has the rows with this rowid: the first whose greatest is not smaller.
fn child_with(number: u32, page: &Page, rowid: i64) -> Result<u32, TreeError> {
    let cut = || malformed(number, "a cell is cut");
    for at in cells_at(number, page)? {
        let below = word(page, at).ok_or_else(cut)?;
        let (greatest, _) = page.get(at + 4..).and_then(varint).ok_or_else(cut)?;
        if rowid <= greatest as i64 {
            return Ok(below);
        }
    }
    word(page, head_at(number) + 8).ok_or_else(cut)
}

/// The pages that nothing is stored on.
///
/// # Errors
/// When their list is malformed.
pub fn free_pages(pages: &dyn Pages) -> Result<HashSet<u32>, TreeError> {
    let (mut free, mut page) = (HashSet::new(), [0; PAGE_LEN]);
    if pages.count() == 0 {
        return Ok(free);
    }
    pages.read(1, &mut page)?;
    let mut trunk = database::word(&page, database::FREE_LIST_AT);
    while trunk != 0 {
        if trunk > pages.count() || !free.insert(trunk) {
            return Err(malformed(trunk, "it is twice in the list of free pages, or does not exist"));
        }
        pages.read(trunk, &mut page)?;
        let (words, _) = page.as_chunks::<4>();
        let count = u32::from_be_bytes(words[1]) as usize;
        let listed = words[2..].iter().take(count).map(|word| u32::from_be_bytes(*word));
        free.extend(listed.filter(|page| *page <= pages.count()));
        trunk = u32::from_be_bytes(words[0]);
    }
    Ok(free)
}
