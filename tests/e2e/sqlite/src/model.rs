//! What a database of a history must hold after each transaction, whoever looks at it: computed, so that the application need not be
//! asked. Each transaction draws a number, which says which state a database is in.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use rusqlite::Connection;

/// Rows that are kept.
const ROWS_MAX: usize = 40;

/// One state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// The number of the last transaction.
    pub number: i64,
    /// Rows: the id, how many bytes, and the number of the transaction that wrote it.
    rows: Vec<(i64, u64, i64)>,
}

/// The content of a row: the number of its transaction, over and over.
fn content(number: i64, bytes: u64) -> String {
    format!("substr(replace(hex(zeroblob({})), '00', '{number:016x}'), 1, {bytes})", bytes / 16 + 1)
}

impl Model {
    /// SQL that makes it.
    pub fn create(number: i64) -> (Model, String) {
        let model = Model { number, rows: Vec::new() };
        let sql = format!(
            "BEGIN IMMEDIATE; CREATE TABLE h (n INTEGER); INSERT INTO h VALUES ({number}); CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT); COMMIT"
        );
        (model, sql)
    }

    /// One row more, and old ones removed.
    pub fn insert(&self, number: i64, bytes: u64) -> (Model, String) {
        let id = self.rows.last().map_or(1, |(id, ..)| id + 1);
        let mut rows = self.rows.clone();
        rows.push((id, bytes, number));
        let surplus = rows.len().saturating_sub(ROWS_MAX);
        rows.drain(..surplus);
        let first = rows[0].0;
        let sql = format!(
            "BEGIN IMMEDIATE; UPDATE h SET n = {number}; INSERT INTO t VALUES ({id}, {}); DELETE FROM t WHERE id < {first}; COMMIT",
            content(number, bytes)
        );
        (Model { number, rows }, sql)
    }

    /// All rows written again.
    pub fn rewrite(&self, number: i64, bytes: u64) -> (Model, String) {
        let rows = self.rows.iter().map(|(id, ..)| (*id, bytes, number)).collect();
        let sql =
            format!("BEGIN IMMEDIATE; UPDATE h SET n = {number}; UPDATE t SET x = {}; COMMIT", content(number, bytes));
        (Model { number, rows }, sql)
    }

    fn text(&self) -> String {
        self.rows.iter().map(|(id, bytes, number)| format!("{id}:{bytes}:{number:016x},")).collect()
    }
}

/// All states that a database of a history may have, by number.
#[derive(Default)]
pub struct States(HashMap<i64, Model>);

impl States {
    /// Adds one: before the transaction that makes it.
    pub fn add(&mut self, model: &Model) {
        self.0.insert(model.number, model.clone());
    }

    /// The one with this number.
    pub fn get(&self, number: i64) -> Option<&Model> {
        self.0.get(&number)
    }

    /// The number of the state that a database is in; none before its tables were made. After Ok it is sound, and in one of them.
    pub fn find(&self, db: &Connection) -> Result<Option<i64>> {
        let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(sound == "ok", "{sound}");
        let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            return Ok(None);
        }
        let number: i64 = db.query_row("SELECT n FROM h", [], |row| row.get(0))?;
        let rows: Option<String> = db.query_row(
            "SELECT group_concat(id || ':' || length(x) || ':' || substr(x, 1, 16) || ',', '') FROM (SELECT * FROM t ORDER BY id)",
            [],
            |row| row.get(0),
        )?;
        let torn: i64 = db.query_row(
            "SELECT count(*) FROM t WHERE x <> substr(replace(hex(zeroblob(length(x) / 16 + 1)), '00', substr(x, 1, 16)), 1, length(x))",
            [],
            |row| row.get(0),
        )?;
        ensure!(torn == 0, "{torn} rows of state {number} are of more than one transaction");
        let rows = rows.unwrap_or_default();
        match self.0.get(&number) {
            Some(known) => ensure!(known.text() == rows, "state {number} holds {rows}, and was {}", known.text()),
            None => ensure!(false, "there was no state {number}, with {rows}"),
        }
        Ok(Some(number))
    }
}
