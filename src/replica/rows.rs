//! Which rows of a table differ between two states of a database, told from the pages that differ.
//!
//! A row is looked at only if the page it lies on differs, or if that page is part of the table on one side only. Rows that
//! merely moved come out as equal. A long record may change on the pages it goes on on while its own page stays: where
//! pages differ that nothing else explains, all rows with long records are looked at.

use std::collections::{BTreeMap, HashMap, HashSet};

use roaring::RoaringBitmap;

use super::catalog::Catalog;
use super::error::ReplicaError;
use super::table::{Key, Table};
use crate::sqlite::btree::{self, PAGE_LEN, Pages, Taken, Tree};
use crate::sqlite::record::{Stored, values};

/// A row: its number, 0 where there are none, and its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) rowid: i64,
    pub(super) record: Vec<u8>,
}

/// A row that is there before and after, and not the same.
#[derive(Clone, Debug)]
pub(super) struct Updated {
    pub(super) old: Row,
    pub(super) new: Row,
}

/// One state of a database.
#[derive(Clone, Copy)]
pub(super) struct State<'a> {
    pub(super) pages: &'a dyn Pages,
    pub(super) catalog: &'a Catalog,
}

/// One table in one state.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) pages: &'a dyn Pages,
    pub(super) root: u32,
    pub(super) table: &'a Table,
}

impl Side<'_> {
    fn damaged(&self) -> ReplicaError {
        ReplicaError::Record { table: self.table.name.clone() }
    }
}

/// Whether something was written of a row; nothing of one that cannot be read.
pub(super) type Differs<'a> = dyn Fn(&Updated) -> Option<bool> + 'a;

/// What tells rows of a table apart, as bytes: the rowid, or the key.
type Identity = Vec<u8>;

/// A page with rows, and whether only those with long records have to be looked at.
type Looked = (u32, bool);

/// The pages that differ between two states, and what is known of them.
#[derive(Debug)]
pub(super) struct Differing {
    pages: RoaringBitmap,
    /// Whether some of them may be ones on which long records go on.
    long_records: bool,
}

impl Differing {
    /// Between two states whose pages are the same but for these.
    ///
    /// # Errors
    /// When a tree cannot be read.
    pub(super) fn of(pages: RoaringBitmap, states: [State<'_>; 2]) -> Result<Differing, ReplicaError> {
        let mut unexplained = pages.clone();
        for State { pages: of, catalog } in states {
            let mut taken = Taken::default();
            for page in btree::free_pages(of)? {
                unexplained.remove(page);
            }
            for root in &catalog.roots {
                let tree = Tree::of(of, *root)?;
                for page in tree.pages() {
                    unexplained.remove(page);
                }
                // What long records of pages that differ go on on differs with them.
                let (mut page, mut record) = ([0; PAGE_LEN], Vec::new());
                for number in tree.with_rows().filter(|number| pages.contains(*number)) {
                    of.read(number, &mut page)?;
                    for cell in btree::cells(number, &page)?.iter().filter(|cell| cell.overflow > 0) {
                        btree::record(of, cell, &mut record, &mut taken)?;
                    }
                }
            }
            for page in taken.pages() {
                unexplained.remove(page);
            }
        }
        Ok(Differing { pages, long_records: !unexplained.is_empty() })
    }

    /// The pages of a tree that have to be looked at, given the tree of the same table on the other side.
    fn looked_at(&self, tree: &Tree, other: &Tree) -> Vec<Looked> {
        let others: HashSet<u32> = other.with_rows().collect();
        let differs = |page: &u32| self.pages.contains(*page) || !others.contains(page);
        let looked = tree.with_rows().map(|page| (page, !differs(&page)));
        looked.filter(|(_, only_long)| self.long_records || !only_long).collect()
    }
}

/// The rows of a table that are gone and those that changed. Those that are new are told one by one, since there may be
/// many.
pub(super) struct RowDiff<'a> {
    pub(super) deleted: Vec<Row>,
    pub(super) updated: Vec<Updated>,
    /// Rows of both sides, among those that were looked at.
    known: HashSet<Identity>,
    new: Option<(Side<'a>, Vec<Looked>)>,
}

impl<'a> RowDiff<'a> {
    /// Between the states of a table, where it is there. Where columns are not at the places they were, rows whose bytes are
    /// the same may differ: then `moved` says whether they do.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub(super) fn of(
        differing: &Differing,
        old: Option<Side<'a>>,
        new: Option<Side<'a>>,
        moved: Option<&Differs<'_>>,
    ) -> Result<RowDiff<'a>, ReplicaError> {
        let tree = |side: Option<Side<'_>>| side.map_or(Ok(Tree::default()), |side| Tree::of(side.pages, side.root));
        let (before, after) = (tree(old)?, tree(new)?);
        let looked_at = |tree: &Tree, other: &Tree| match moved {
            Some(_) => tree.with_rows().map(|page| (page, false)).collect(),
            None => differing.looked_at(tree, other),
        };
        let (old_pages, new_pages) = (looked_at(&before, &after), looked_at(&after, &before));
        let (mut gone, mut updated, mut known) = (BTreeMap::new(), Vec::new(), HashSet::new());
        if let Some(side) = old {
            each(side, &old_pages, |identity, row| {
                gone.insert(identity, row);
                Ok(())
            })?;
        }
        if let Some(side) = new {
            each(side, &new_pages, |identity, row| {
                if let Some(old) = gone.remove(&identity) {
                    let is_same = old == row;
                    let change = Updated { old, new: row };
                    let is_changed = match (moved, new) {
                        (Some(moved), Some(side)) => moved(&change).ok_or_else(|| side.damaged())?,
                        _ => !is_same,
                    };
                    if is_changed {
                        updated.push(change);
                    }
                    known.insert(identity);
                }
                Ok(())
            })?;
        }
        let deleted = gone.into_values().collect();
        let mut diff = RowDiff { deleted, updated, known, new: new.map(|side| (side, new_pages)) };
        // `VACUUM` gives rows other rowids unless a column is the rowid.
        if moved.is_none()
            && new.is_some_and(|Side { table, .. }| table.has_rowids && !matches!(table.key, Key::Named(_)))
        {
            diff.leave_out_renumbered()?;
        }
        Ok(diff)
    }

    /// Leaves out rows that are there before and after under other rowids.
    fn leave_out_renumbered(&mut self) -> Result<(), ReplicaError> {
        let olds = self.deleted.iter().chain(self.updated.iter().map(|change| &change.old));
        let (mut places, mut is_left_out) = (HashMap::<&[u8], Vec<usize>>::new(), Vec::new());
        for (at, old) in olds.enumerate() {
            places.entry(&old.record).or_default().push(at);
            is_left_out.push(false);
        }
        let mut leave_out = |new: &Row| {
            let place = places.get_mut(&*new.record).and_then(Vec::pop);
            place.inspect(|at| is_left_out[*at] = true).is_some()
        };
        let is_new_left_out: Vec<bool> = self.updated.iter().map(|change| leave_out(&change.new)).collect();
        let mut known = HashSet::new();
        if !(self.deleted.is_empty() && self.updated.is_empty()) {
            self.inserted(|row| {
                if leave_out(&row) {
                    known.insert(row.rowid);
                }
                Ok(())
            })?;
        }
        let identity = |rowid: i64| Identity::from(rowid.to_be_bytes());
        self.known.extend(known.into_iter().map(identity));
        let mut is_old_left_out = is_left_out.into_iter();
        self.deleted.retain(|_| is_old_left_out.next() != Some(true));
        for ((change, is_old), is_new) in
            std::mem::take(&mut self.updated).into_iter().zip(is_old_left_out).zip(is_new_left_out)
        {
            match (is_old, is_new) {
                (false, false) => self.updated.push(change),
                (false, true) => self.deleted.push(change.old),
                (true, false) => drop(self.known.remove(&identity(change.new.rowid))),
                (true, true) => {}
            }
        }
        Ok(())
    }

    /// Tells each row that was not there before.
    ///
    /// # Errors
    /// When a row cannot be read, or as `tell` says.
    pub(super) fn inserted(&self, mut tell: impl FnMut(Row) -> Result<(), ReplicaError>) -> Result<(), ReplicaError> {
        let Some((side, pages)) = &self.new else { return Ok(()) };
        each(*side, pages, |identity, row| if self.known.contains(&identity) { Ok(()) } else { tell(row) })
    }
}

fn each(
    side: Side<'_>,
    pages: &[Looked],
    mut tell: impl FnMut(Identity, Row) -> Result<(), ReplicaError>,
) -> Result<(), ReplicaError> {
    let (mut page, mut taken) = ([0; PAGE_LEN], Taken::default());
    for (number, only_long) in pages {
        side.pages.read(*number, &mut page)?;
        for cell in btree::cells(*number, &page)? {
            if *only_long && cell.overflow == 0 {
                continue;
            }
            let mut record = Vec::new();
            btree::record(side.pages, &cell, &mut record, &mut taken)?;
            let row = Row { rowid: cell.rowid, record };
            let identity = identity(side.table, &row).ok_or_else(|| side.damaged())?;
            tell(identity, row)?;
        }
    }
    Ok(())
}

/// What no other row of its table has.
fn identity(table: &Table, row: &Row) -> Option<Identity> {
    if table.has_rowids {
        return Some(row.rowid.to_be_bytes().into());
    }
    let key = table.key_len();
    let mut identity = Vec::new();
    for value in values(&row.record)?.get(..key)? {
        let (kind, bytes) = match value {
            Stored::Null => (0, &[][..]),
            Stored::Integer(number) => (1, &number.to_be_bytes()[..]),
            Stored::Float(number) => (2, &number.to_be_bytes()[..]),
            Stored::Text(text) => (3, *text),
            Stored::Blob(bytes) => (4, *bytes),
        };
        identity.push(kind);
        identity.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        identity.extend_from_slice(bytes);
    }
    Some(identity)
}
