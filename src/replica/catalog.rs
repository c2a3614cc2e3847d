//! What there is in a database: tables, indexes, views and triggers, read from its first tree.

use std::collections::BTreeMap;

use super::error::ReplicaError;
use super::table::Table;
use super::words::folded;
use crate::format::database::DatabaseHeader;
use crate::sqlite::btree::{self, PAGE_LEN, Pages, Taken, Tree};
use crate::sqlite::record::{Stored, values};

/// The table that says how far each client's changes have come. It is the protocol's, not the user's.
pub(super) const BOOKKEEPING: &str = "turso_sync_last_change_id";

/// All there is in a database, by name in small letters.
#[derive(Clone, Debug, Default)]
pub(super) struct Catalog {
    pub(super) tables: BTreeMap<String, (u32, Table)>,
    pub(super) indexes: BTreeMap<String, Made>,
    pub(super) views: BTreeMap<String, Made>,
    pub(super) triggers: BTreeMap<String, Made>,
    /// Every root, also of what is of no table.
    pub(super) roots: Vec<u32>,
}

/// Something that is made by a statement of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Made {
    /// The table it is of; of a view its own name.
    pub(super) of: String,
    pub(super) sql: String,
}

/// Where the engine keeps the changes that it captures, and which form they have.
const CAPTURE: [&str; 2] = ["turso_cdc", "turso_cdc_version"];

/// Whether a table is the engine's or a protocol's own, and never part of a change. Those that only start like one of
/// them are the user's, but for what SQLite and the engine let nobody make.
fn is_internal(name: &str) -> bool {
    let starts = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let is = |own: &str| name.eq_ignore_ascii_case(own);
    is(BOOKKEEPING) || CAPTURE.into_iter().any(is) || starts("sqlite_") || starts("__turso_internal")
}

impl Catalog {
    /// Whether a table, a view or an index has that name, in small letters.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tables.contains_key(name) || self.views.contains_key(name) || self.indexes.contains_key(name)
    }

    /// Of the database that these pages are.
    ///
    /// # Errors
    /// When it cannot be read, or has a table that cannot be understood.
    pub(super) fn of(pages: &dyn Pages) -> Result<Catalog, ReplicaError> {
        let mut catalog = Catalog::default();
        catalog.roots.extend((pages.count() > 0).then_some(1));
        each(pages, |kind, name, of, root, sql| {
            if root > 0 {
                catalog.roots.push(root);
            }
            if is_internal(of) || sql.is_empty() {
                return Ok(());
            }
            let made = || Made { of: of.to_owned(), sql: sql.to_owned() };
            match kind {
                // Virtual tables have none: their rows are in tables of their own.
                "table" if root == 0 => {
                    return Err(ReplicaError::Schema { sql: sql.to_owned() });
                }
                "table" => {
                    let table = Table::parse(sql).ok_or_else(|| ReplicaError::Schema { sql: sql.to_owned() })?;
                    catalog.tables.insert(folded(name), (root, table));
                }
                "index" => drop(catalog.indexes.insert(folded(name), made())),
                "view" => drop(catalog.views.insert(folded(name), made())),
                "trigger" => drop(catalog.triggers.insert(folded(name), made())),
                _ => {}
            }
            Ok(())
        })?;
        for index in catalog.indexes.values() {
            if let Some((_, table)) = catalog.tables.get_mut(&folded(&index.of)) {
                table.index(&index.sql);
            }
        }
        Ok(catalog)
    }
}

/// Where a client's changes have come to: how often it had pulled, and which change was the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) pull_gen: i64,
    pub(super) change_id: i64,
}

/// What the bookkeeping table says of a client; nothing when it does not know it.
///
/// # Errors
/// When the database cannot be read, or that table is not what it should be.
pub(super) fn reached(pages: &dyn Pages, client: &str) -> Result<Option<Reached>, ReplicaError> {
    let mut table = None;
    each(pages, |kind, name, _, root, sql| {
        if kind == "table" && name.eq_ignore_ascii_case(BOOKKEEPING) {
            table = Some((root, sql.to_owned()));
        }
        Ok(())
    })?;
    let Some((root, sql)) = table else { return Ok(None) };
    let wrong = || ReplicaError::Schema { sql: sql.clone() };
    let parsed = Table::parse(&sql).filter(|table| table.has_rowids).ok_or_else(wrong)?;
    let place = |name: &str| parsed.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name));
    let (Some(id), Some(pulls), Some(change)) = (place("client_id"), place("pull_gen"), place("change_id")) else {
        return Err(wrong());
    };
    let mut found = None;
    rows(pages, root, |record| {
        let Some(values) = values(record) else { return Err(ReplicaError::Record { table: BOOKKEEPING.into() }) };
        let number = |at: usize| match values.get(at) {
            Some(Stored::Integer(number)) => Some(*number),
            _ => None,
        };
        if values.get(id) == Some(&Stored::Text(client.as_bytes())) {
            let numbers = number(pulls).zip(number(change)).ok_or_else(wrong)?;
            found = Some(Reached { pull_gen: numbers.0, change_id: numbers.1 });
        }
        Ok(())
    })?;
    Ok(found)
}

/// What `AUTOINCREMENT` has come to, by table in small letters.
///
/// # Errors
/// When the database cannot be read.
pub(super) fn counters(pages: &dyn Pages) -> Result<BTreeMap<String, i64>, ReplicaError> {
    let mut table = None;
    each(pages, |kind, name, _, root, _| {
        if kind == "table" && name.eq_ignore_ascii_case("sqlite_sequence") {
            table = Some(root);
        }
        Ok(())
    })?;
    let mut counters = BTreeMap::new();
    let Some(root) = table else { return Ok(counters) };
    rows(pages, root, |record| {
        let values = values(record).ok_or_else(|| ReplicaError::Record { table: "sqlite_sequence".into() })?;
        if let [Stored::Text(name), Stored::Integer(number)] = values[..]
            && let Ok(name) = std::str::from_utf8(name)
        {
            let counter = counters.entry(folded(name)).or_insert(number);
            *counter = number.max(*counter);
        }
        Ok(())
    })?;
    Ok(counters)
}

/// Each entry of the schema: kind, name, table, root and SQL.
fn each(
    pages: &dyn Pages,
    mut tell: impl FnMut(&str, &str, &str, u32, &str) -> Result<(), ReplicaError>,
) -> Result<(), ReplicaError> {
    if pages.count() == 0 {
        return Ok(());
    }
    let mut first = [0; PAGE_LEN];
    pages.read(1, &mut first)?;
    if first == [0; PAGE_LEN] {
        return Ok(());
    }
    let header = DatabaseHeader::decode(&first).ok().filter(|header| header.page_size as usize == PAGE_LEN);
    let Some(header) = header else {
        return Err(ReplicaError::Unsupported("the database has pages of another size than 4096 bytes"));
    };
    // Reserved bytes at the end of pages are of encryption.
    if header.reserved != 0 || header.encoding > 1 {
        return Err(ReplicaError::Unsupported("the database has reserved bytes in its pages, or is not in UTF-8"));
    }
    rows(pages, 1, |record| {
        let damaged = || ReplicaError::Record { table: "sqlite_schema".into() };
        let values = values(record).ok_or_else(damaged)?;
        let text = |at: usize| match values.get(at) {
            Some(Stored::Text(text)) => std::str::from_utf8(text).map_err(|_| damaged()),
            _ => Ok(""),
        };
        let root = match values.get(3) {
            Some(Stored::Integer(root)) => u32::try_from(*root).map_err(|_| damaged())?,
            _ => 0,
        };
        tell(text(0)?, text(1)?, text(2)?, root, text(4)?)
    })
}

fn rows(
    pages: &dyn Pages,
    root: u32,
    mut tell: impl FnMut(&[u8]) -> Result<(), ReplicaError>,
) -> Result<(), ReplicaError> {
    let (mut page, mut record, mut taken) = ([0; PAGE_LEN], Vec::new(), Taken::default());
    for number in Tree::of(pages, root)?.leaves {
        pages.read(number, &mut page)?;
        for cell in btree::cells(number, &page)? {
            btree::record(pages, &cell, &mut record, &mut taken)?;
            tell(&record)?;
        }
    }
    Ok(())
}
