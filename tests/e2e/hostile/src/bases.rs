//! Databases that hostile logs start from: views over views, and tables whose pages lead nowhere, to zero or in a circle.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Type of an interior page of a table.
const INTERIOR: u8 = 5;
/// Views that double, and that nest.
pub const DOUBLING: u64 = 40;
/// See [`DOUBLING`].
pub const NESTED: u64 = 250;
/// Views in a chain of a base of its own: a schema that takes long to be read.
pub const CHAINED: u64 = 5000;

/// What a hostile log starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BaseKind {
    /// Sound tables, views, and the tables `zero`, `cycle`, `far` and `overflow`, which are broken as their names say.
    Broken,
    /// A chain of [`CHAINED`] views.
    Chained,
}

/// Views `PREFIX0` to `PREFIXn`, each made of the one before by `next`.
fn views(prefix: &str, count: u64, next: impl Fn(String) -> String) -> String {
    let first = format!("CREATE VIEW {prefix}0 AS SELECT a FROM t;");
    let view = |n| format!("CREATE VIEW {prefix}{n} AS {};", next(format!("{prefix}{}", n - 1)));
    std::iter::once(first).chain((1..count).map(view)).collect()
}

/// The bytes of a base.
pub fn base(kind: BaseKind, dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join(format!("{kind:?}.db"));
    let database = Connection::open(&path)?;
    let rows = |table: &str, count: u64, bytes: u64| {
        format!(
            "CREATE TABLE {table} (a INTEGER PRIMARY KEY, b TEXT);
             WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n WHERE a < {count})
             INSERT INTO {table} SELECT a, hex(zeroblob({bytes})) FROM n;"
        )
    };
    let mut sql = format!("PRAGMA page_size = {PAGE}; BEGIN;");
    sql += &rows("t", 2000, 20);
    match kind {
        BaseKind::Broken => {
            for table in ["zero", "cycle", "far"] {
                sql += &rows(table, 20_000, 40);
            }
            sql += &rows("overflow", 20, 10_000);
            sql += &views("d", DOUBLING, |view| format!("SELECT a FROM {view} UNION ALL SELECT a FROM {view}"));
            sql += &views("n", NESTED, |view| format!("SELECT a FROM {view}"));
        }
        BaseKind::Chained => sql += &views("c", CHAINED, |view| format!("SELECT a FROM {view}")),
    }
    database.execute_batch(&(sql + "COMMIT; PRAGMA journal_mode = WAL;"))?;
    let root = |table: &str| -> Result<usize> {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?";
        let page: i64 = database.query_row(sql, [table], |row| row.get(0))?;
        Ok((usize::try_from(page)? - 1) * PAGE)
    };
    let mut broken = Vec::new();
    if kind == BaseKind::Broken {
        for (table, child) in [("zero", Some(0)), ("cycle", None), ("far", Some(u32::MAX - 1))] {
            broken.push((root(table)?, child));
        }
    }
    let overflow = if kind == BaseKind::Broken { Some(root("overflow")?) } else { None };
    drop(database);
    let mut bytes = std::fs::read(&path)?;
    for (root, child) in broken {
        ensure!(bytes[root] == INTERIOR, "the root of a large table is an interior page");
        // Its own page where no other is named.
        let child = child.unwrap_or((root / PAGE + 1) as u32);
        let second = cell(&bytes, root, 1);
        bytes[second..second + 4].copy_from_slice(&child.to_be_bytes());
    }
    if let Some(root) = overflow {
        // The page that the last cell of the first leaf goes on in goes on in itself.
        let leaf = if bytes[root] == INTERIOR { child(&bytes, root)? } else { root };
        let first = cell(&bytes, leaf, 0);
        // The length of the record is a number of three bytes, the rowid one of one byte.
        let [high, middle, low] = [0, 1, 2].map(|at| usize::from(bytes[first + at] & 0x7f));
        let local = first + 4 + local_bytes(high << 14 | middle << 7 | low);
        let page = u32::from_be_bytes(bytes[local..local + 4].try_into()?);
        let at = (page as usize).checked_sub(1).context("an overflow page")? * PAGE;
        ensure!(at + PAGE <= bytes.len(), "an overflow page {page}");
        bytes[at..at + 4].copy_from_slice(&page.to_be_bytes());
    }
    Ok(bytes)
}

/// Where the cell with this number of a page is; the page may be a leaf or interior.
fn cell(bytes: &[u8], page: usize, number: usize) -> usize {
    let header = if bytes[page] == INTERIOR { 12 } else { 8 };
    let at = page + header + 2 * number;
    page + usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// The page that the first cell of an interior page leads to.
fn child(bytes: &[u8], page: usize) -> Result<usize> {
    let at = cell(bytes, page, 0);
    let number = u32::from_be_bytes(bytes[at..at + 4].try_into()?) as usize;
    Ok(number.checked_sub(1).context("a child")? * PAGE)
}

/// Bytes of a record of a table that are on its leaf, by SQLite's file format.
fn local_bytes(record: usize) -> usize {
    let (most, least) = (PAGE - 35, (PAGE - 12) * 32 / 255 - 23);
    let local = least + (record - least) % (PAGE - 4);
    if local <= most { local } else { least }
}
