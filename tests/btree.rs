//! Databases are read page by page as SQLite reads them, and whatever a damaged one says is an error or a row: never a panic,
//! and never more than there is.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::io;

use logmirror::sqlite::btree::{self, PAGE_LEN, Page, Pages, Taken, Tree, TreeError};
use logmirror::sqlite::record::{Stored, values};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use support::sqlite::Sqlite;

/// The processes of [`Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// Numbers in their bytes, and texts and blobs as hexadecimal digits.
const ROWS: &str =
    "SELECT rowid, typeof(a), CASE typeof(a) WHEN 'integer' THEN a ELSE hex(a) END, length(b), hex(b) FROM ";

struct Bytes(Vec<u8>);

impl Pages for Bytes {
    fn count(&self) -> u32 {
        (self.0.len() / PAGE_LEN) as u32
    }

    fn read(&self, number: u32, page: &mut Page) -> Result<(), TreeError> {
        let at = (number as usize).wrapping_sub(1).wrapping_mul(PAGE_LEN);
        let found = self.0.get(at..).and_then(|rest| rest.first_chunk());
        *page = *found.ok_or_else(|| io::Error::other("there is no such page"))?;
        Ok(())
    }
}

/// A database with trees of several levels, long records and free pages: it, its tables with their roots, and their rows.
fn database() -> (Bytes, BTreeMap<String, (u32, Value)>) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.db");
    let mut sqlite = Sqlite::open(&file);
    let count = |n| format!("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {n}) SELECT");
    sqlite.run(&[
        "CREATE TABLE many(a, b)",
        &format!("INSERT INTO many(rowid, a, b) {} n * n * 7919 - 99, -n, hex(n) FROM c", count(3000)),
        "CREATE TABLE long(a, b)",
        &format!("INSERT INTO long {} 'ü' || n, randomblob(n * 300) FROM c", count(60)),
        "CREATE TABLE gone(a, b)",
        &format!("INSERT INTO gone {} n, randomblob(900) FROM c", count(400)),
        "CREATE TABLE keyed(a, b, PRIMARY KEY(b, a)) WITHOUT ROWID",
        &format!("INSERT INTO keyed {} n, randomblob(1 + n % 1500) FROM c", count(300)),
        "CREATE INDEX i ON many(b)",
        "DROP TABLE gone",
    ]);
    let mut tables = BTreeMap::new();
    for table in ["many", "long"] {
        let root = sqlite.rows(&format!("SELECT rootpage FROM sqlite_schema WHERE name = '{table}'"));
        let rows = sqlite.rows(&format!("{ROWS}{table} ORDER BY rowid"));
        tables.insert(table.to_owned(), (u32::try_from(root[0][0].as_u64().unwrap()).unwrap(), rows));
    }
    sqlite.close();
    (Bytes(std::fs::read(file).unwrap()), tables)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn as_sqlite_says(rowid: i64, record: &[u8]) -> Value {
    let values = values(record).unwrap();
    let [a, b] = values[..] else { panic!("{values:?}") };
    let (kind, a) = match a {
        Stored::Integer(number) => ("integer", json!(number)),
        Stored::Text(text) => ("text", json!(hex(text))),
        _ => panic!("{a:?}"),
    };
    let (Stored::Text(b) | Stored::Blob(b)) = b else { panic!("{b:?}") };
    json!([rowid, kind, a, b.len(), hex(b)])
}

/// The rows of a tree, as far as it can be read.
fn rows(pages: &Bytes, root: u32, mut tell: impl FnMut(i64, &[u8])) -> Result<(), TreeError> {
    let (mut page, mut record, mut taken) = ([0; PAGE_LEN], Vec::new(), Taken::default());
    for number in Tree::of(pages, root)?.with_rows() {
        pages.read(number, &mut page)?;
        for cell in btree::cells(number, &page)? {
            btree::record(pages, &cell, &mut record, &mut taken)?;
            tell(cell.rowid, &record);
        }
    }
    Ok(())
}

#[test]
fn rows_are_those_that_sqlite_finds() {
    let (pages, tables) = database();
    for (table, (root, wanted)) in tables {
        let wanted = wanted.as_array().unwrap();
        let mut found = Vec::new();
        rows(&pages, root, |rowid, record| found.push(as_sqlite_says(rowid, record))).unwrap();
        assert!(found == *wanted, "{table}");
        for row in wanted {
            let rowid = row[0].as_i64().unwrap();
            let record = btree::row(&pages, root, rowid).unwrap().unwrap();
            assert_eq!(as_sqlite_says(rowid, &record), *row, "{table}");
            assert_eq!(
                btree::row(&pages, root, rowid - 1).unwrap().is_some(),
                wanted.iter().any(|row| row[0] == rowid - 1)
            );
        }
    }
    assert!(btree::free_pages(&pages).unwrap().len() > 50);
}

#[test]
fn damage_is_an_error_or_a_row_and_never_more_than_there_is() {
    let (Bytes(sound), _) = database();
    // Mostly in what leads to something else: headers, pointers and the start of cells.
    let at = prop_oneof![2 => 0..150_usize, 1 => 0..PAGE_LEN];
    let byte = prop_oneof![Just(0_u8), Just(0xff), Just(1), any::<u8>()];
    let damage = vec((any::<Index>(), at, byte), 1..40);
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(damage in damage)| {
        let mut bytes = sound.clone();
        let count = bytes.len() / PAGE_LEN;
        for (page, at, byte) in damage {
            bytes[page.index(count) * PAGE_LEN + at] = byte;
        }
        let pages = Bytes(bytes);
        let _may_be_damaged = btree::free_pages(&pages);
        for root in 0..=count as u32 + 1 {
            let mut told = 0;
            let _may_be_damaged = rows(&pages, root, |rowid, record| {
                let _may_be_damaged = values(record);
                told += record.len();
                if told % 64 == 0 {
                    let _may_be_damaged = btree::row(&pages, root, rowid);
                }
            });
            prop_assert!(told <= 2 * pages.0.len(), "{told} bytes of {}", pages.0.len());
        }
    });
}
