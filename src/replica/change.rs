//! What a change of a row is as SQL: statements that do to another state of the same table what was done to this one.
//!
//! A row is found by its key. What is written of it are the columns that changed, or all of it where a column that no two
//! rows may share is among them: then the old row goes first and the new one comes with the others, so that rows that swap
//! such values are in nobody's way.
//!
//! A row without a key is found by its rowid and all that it was: rowids are used again, and another row may be there.
//!
//! A row that was changed and is not there any more, or not as it was, is added as it is now: it may be a new one with a key
//! or rowid that was used again, and whoever writes last is right.

use super::report::{About, Doing};
use super::rows::{Row, Side, Updated};
use super::table::{Key, Table, quoted};
use crate::sqlite::record::{Stored, values};
use crate::sync::turso::Value;

/// A statement, its arguments, and what it is for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) args: Vec<Value>,
    pub(super) about: About,
    pub(super) otherwise: Otherwise,
}

/// What is to be done where a statement meets what others did.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Otherwise {
    Nothing,
    /// This, if it changes no row.
    IfNone(Box<Statement>),
    /// The same with this behind it, if there is a row with its key.
    IfTaken(String),
}

impl Statement {
    pub(super) fn schema(sql: String, name: &str) -> Statement {
        let about = About { table: name.to_owned(), key: Vec::new(), doing: Doing::Schema };
        Statement { sql, args: Vec::new(), about, otherwise: Otherwise::Nothing }
    }

    /// About how many bytes of memory it takes.
    pub(super) fn weight(&self) -> usize {
        let own = size_of::<Statement>() + self.sql.len() + self.args.iter().map(Value::weight).sum::<usize>();
        match &self.otherwise {
            Otherwise::IfNone(statement) => own + statement.weight(),
            Otherwise::IfTaken(sql) => own + sql.len(),
            Otherwise::Nothing => own,
        }
    }
}

/// Writes statements that change a table, whose rows may have been read before it got its columns.
pub(super) struct Writer<'a> {
    old: Option<Side<'a>>,
    new: &'a Table,
    /// For each column, which one of the old table it was.
    was: &'a [Option<usize>],
}

/// What becomes of a row that changed.
pub(super) enum Rewritten {
    Nothing,
    Update(Statement),
    /// The old row goes, and the new one comes with those that are new.
    Replace(Statement),
}

/// SQL with its arguments, as it grows.
#[derive(Default)]
struct Sql {
    text: String,
    args: Vec<Value>,
}

impl Sql {
    fn new(text: impl Into<String>) -> Sql {
        Sql { text: text.into(), args: Vec::new() }
    }

    /// A value: as an argument, unless JSON or the engine could not express it.
    fn value(&mut self, value: Stored<'_>) {
        let argument = match value {
            Stored::Null => Some(Value::Null),
            Stored::Integer(number) => Some(Value::Integer(number)),
            Stored::Float(number) if number.is_finite() => Some(Value::Float(number)),
            Stored::Float(number) => {
                self.text.push_str(if number > 0.0 { "9e999" } else { "-9e999" });
                None
            }
            Stored::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => Some(Value::Text(text.to_owned())),
                Err(_) => {
                    let digits: String = text.iter().map(|byte| format!("{byte:02x}")).collect();
                    self.text.push_str(&format!("CAST(x'{digits}' AS TEXT)"));
                    None
                }
            },
            Stored::Blob(bytes) => Some(Value::Blob(bytes.to_vec())),
        };
        if let Some(argument) = argument {
            self.text.push('?');
            self.args.push(argument);
        }
    }

    fn done(self, about: About) -> Statement {
        Statement { sql: self.text, args: self.args, about, otherwise: Otherwise::Nothing }
    }
}

/// The values of a row by column; `None` for those that its record does not have.
fn by_column<'a>(table: &Table, row: &'a Row) -> Option<Vec<Option<Stored<'a>>>> {
    let mut columns = vec![None; table.columns.len()];
    for (value, at) in values(&row.record)?.into_iter().zip(table.in_record()) {
        columns[at] = Some(value);
    }
    if let Key::Named(at) = table.key {
        columns[at] = Some(Stored::Integer(row.rowid));
    }
    Some(columns)
}

impl<'a> Writer<'a> {
    /// For rows of `old` that become rows of `new`, whose columns were those that `was` says.
    pub(super) fn new(old: Option<Side<'a>>, new: &'a Table, was: &'a [Option<usize>]) -> Writer<'a> {
        Writer { old, new, was }
    }

    /// The values of an old row by the columns of the new table.
    fn old_values<'r>(&self, row: &'r Row) -> Option<Vec<Option<Stored<'r>>>> {
        let of_old = by_column(self.old?.table, row)?;
        Some(self.was.iter().map(|was| was.and_then(|was| of_old.get(was).copied().flatten())).collect())
    }

    /// The key of a row, by name.
    fn key(&self, values: &[Option<Stored<'_>>]) -> Option<Vec<usize>> {
        let of = match &self.new.key {
            Key::Named(at) => vec![*at],
            Key::Columns(of) => of.clone(),
            Key::Rowid => return None,
        };
        let is_there = |at: &usize| values[*at].is_some_and(|value| value != Stored::Null);
        of.iter().all(is_there).then_some(of)
    }

    fn about(&self, doing: Doing, row: &Row, values: &[Option<Stored<'_>>]) -> About {
        let key = match self.key(values) {
            Some(of) => {
                of.iter().filter_map(|at| Some((self.new.columns[*at].name.clone(), shown(values[*at]?)))).collect()
            }
            None => vec![("rowid".to_owned(), Value::Integer(row.rowid))],
        };
        About { table: self.new.name.clone(), key, doing }
    }

    /// ` WHERE …` for a row as it was.
    fn find(&self, sql: &mut Sql, (row, same_rowid): (&Row, bool), values: &[Option<Stored<'_>>]) {
        sql.text.push_str(" WHERE ");
        if let Some(of) = self.key(values) {
            for (nth, at) in of.into_iter().enumerate() {
                sql.text.push_str(if nth > 0 { " AND " } else { "" });
                sql.text.push_str(&quoted(&self.new.columns[at].name));
                sql.text.push_str(" = ");
                sql.value(values[at].unwrap_or(Stored::Null));
            }
            return;
        }
        let rowid = self.new.rowid_name().unwrap_or("rowid");
        if same_rowid {
            sql.text.push_str(&format!("{rowid} = "));
            sql.value(Stored::Integer(row.rowid));
        } else {
            // Of rows that are the same in all columns one is as good as the other.
            sql.text.push_str(&format!("{rowid} = (SELECT {rowid} FROM {} WHERE TRUE", quoted(&self.new.name)));
        }
        let there = self.new.columns.iter().zip(values).filter(|(column, _)| column.generated.is_none());
        for (column, value) in there {
            sql.text.push_str(&format!(" AND {} IS ", quoted(&column.name)));
            match value {
                Some(value) => sql.value(*value),
                None => sql.text.push_str(column.default.as_deref().unwrap_or("NULL")),
            }
        }
        if !same_rowid {
            sql.text.push_str(" LIMIT 1)");
        }
    }

    /// Removes a row, which has the same rowid where this will run or another. `None` when it cannot be read.
    pub(super) fn delete(&self, row: &Row, same_rowid: bool) -> Option<Statement> {
        let values = self.old_values(row)?;
        let mut sql = Sql::new(format!("DELETE FROM {}", quoted(&self.new.name)));
        self.find(&mut sql, (row, same_rowid), &values);
        Some(sql.done(self.about(Doing::Delete, row, &values)))
    }

    /// Changes a row, which has the same rowid where this will run or another. `None` when it cannot be read.
    pub(super) fn update(&self, change: &Updated, same_rowid: bool) -> Option<Rewritten> {
        let (old, new) = (self.old_values(&change.old)?, by_column(self.new, &change.new)?);
        let written = |at: &usize| self.new.columns[*at].generated.is_none() && old[*at] != new[*at];
        let changed: Vec<usize> = (0..self.new.columns.len()).filter(written).collect();
        if changed.is_empty() {
            return Some(Rewritten::Nothing);
        }
        if changed.iter().any(|at| self.new.is_unique(*at)) {
            return self.delete(&change.old, same_rowid).map(Rewritten::Replace);
        }
        let mut sql = Sql::new(format!("UPDATE {} SET ", quoted(&self.new.name)));
        for (nth, at) in changed.into_iter().enumerate() {
            let column = &self.new.columns[at];
            sql.text.push_str(if nth > 0 { ", " } else { "" });
            sql.text.push_str(&format!("{} = ", quoted(&column.name)));
            match new[at] {
                Some(value) => sql.value(value),
                None => sql.text.push_str(column.default.as_deref().unwrap_or("NULL")),
            }
        }
        self.find(&mut sql, (&change.old, same_rowid), &old);
        let update = sql.done(self.about(Doing::Update, &change.old, &old));
        let otherwise = Otherwise::IfNone(Box::new(self.insert(&change.new)?));
        Some(Rewritten::Update(Statement { otherwise, ..update }))
    }

    /// Adds a row, or overwrites the one that has its key. `None` when it cannot be read.
    pub(super) fn insert(&self, row: &Row) -> Option<Statement> {
        let values = by_column(self.new, row)?;
        let table = quoted(&self.new.name);
        let written = |at: &usize| self.new.columns[*at].generated.is_none() && values[*at].is_some();
        let columns: Vec<usize> = (0..self.new.columns.len()).filter(written).collect();
        let names: Vec<String> = columns.iter().map(|at| quoted(&self.new.columns[*at].name)).collect();
        let mut sql = if columns.is_empty() {
            Sql::new(format!("INSERT INTO {table} DEFAULT VALUES"))
        } else {
            Sql::new(format!("INSERT INTO {table}({}) VALUES (", names.join(", ")))
        };
        for (nth, at) in columns.iter().enumerate() {
            sql.text.push_str(if nth > 0 { ", " } else { "" });
            sql.value(values[*at].unwrap_or(Stored::Null));
        }
        if !columns.is_empty() {
            sql.text.push(')');
        }
        let mut insert = sql.done(self.about(Doing::Insert, row, &values));
        // The engine overwrites nothing in tables without rowids.
        if let Some(key) = self.key(&values).filter(|_| self.new.has_rowids) {
            let of: Vec<String> = key.iter().map(|at| quoted(&self.new.columns[*at].name)).collect();
            let others = columns.iter().zip(&names).filter(|(at, _)| !key.contains(at));
            let set: Vec<String> = others.map(|(_, name)| format!("{name} = excluded.{name}")).collect();
            if set.is_empty() {
                // A row that is nothing but its key is the same row.
                insert.sql.push_str(&format!(" ON CONFLICT({}) DO NOTHING", of.join(", ")));
            } else {
                let then = format!(" ON CONFLICT({}) DO UPDATE SET {}", of.join(", "), set.join(", "));
                insert.otherwise = Otherwise::IfTaken(then);
            }
        }
        Some(insert)
    }
}

/// A value for people.
fn shown(value: Stored<'_>) -> Value {
    match value {
        Stored::Null => Value::Null,
        Stored::Integer(number) => Value::Integer(number),
        Stored::Float(number) => Value::Float(number),
        Stored::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        Stored::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}
