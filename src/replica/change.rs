//! What a change of a row is as SQL: statements that do to another state of the same table what was done to this one.
//!
//! A row is found by its key. What is written of it are the columns that changed. A row that has another key now is
//! another row: the old one goes and the new one comes.
//!
//! A row without a key is found by its rowid and all that it was: rowids are used again, and another row may be there. If it is
//! not found, whether somebody else changed it or removed it is not known.
//!
//! A row that was changed and is not there any more, or not as it was, is added as it is now: it may be a new one with a key
//! or rowid that was used again, and whoever writes last is right.

use super::order::{self, Order, Values, same};
use super::report::{About, Doing};
use super::rows::{Row, Side, Updated};
use super::table::{Column, Key, Table};
use super::words::quoted;
use crate::limits::REPLICA_ROW_BYTES_MAX;
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
    /// Nothing at all: what comes next would lose something if this is not done.
    Fail,
    /// Nothing, which is told, if it changes no row.
    TellIfNone,
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

    /// Whether others have to be done for good before it.
    pub(super) fn is_barrier_to(&self, others: &[Statement]) -> bool {
        let may_be_followed =
            |other: &Statement| matches!(other.otherwise, Otherwise::IfNone(_) | Otherwise::IfTaken(_));
        self.about.doing == Doing::Schema && others.iter().any(may_be_followed)
    }

    /// The bytes of its values, and of what there is besides in the row of a database.
    pub(super) fn bytes(&self) -> usize {
        const BESIDES: usize = 16;
        BESIDES + self.args.iter().map(Value::bytes).sum::<usize>()
    }

    /// Why it is given up wherever it is to run: its values are larger than can be sent.
    pub(super) fn too_large(&self) -> Option<String> {
        let bytes: usize = self.args.iter().map(Value::bytes).sum();
        (bytes > REPLICA_ROW_BYTES_MAX).then(|| {
            format!("{bytes} bytes of values are more than a replica can push of a row ({REPLICA_ROW_BYTES_MAX})")
        })
    }

    /// About how many bytes of memory it takes.
    pub(super) fn weight(&self) -> usize {
        let own = size_of::<Statement>() + self.sql.len() + self.args.iter().map(Value::weight).sum::<usize>();
        match &self.otherwise {
            Otherwise::IfNone(statement) => own + statement.weight(),
            Otherwise::IfTaken(sql) => own + sql.len(),
            Otherwise::Nothing | Otherwise::Fail | Otherwise::TellIfNone => own,
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

/// SQL with its arguments, as it grows.
#[derive(Default)]
pub(super) struct Sql {
    pub(super) text: String,
    args: Vec<Value>,
}

impl Sql {
    pub(super) fn new(text: impl Into<String>) -> Sql {
        Sql { text: text.into(), args: Vec::new() }
    }

    /// A value: as an argument, unless JSON or the engine could not express it.
    pub(super) fn value(&mut self, value: Stored<'_>) {
        let argument = match value {
            Stored::Null => Some(Value::Null),
            Stored::Integer(number) => Some(Value::Integer(number)),
            Stored::Float(number) if number.is_finite() => Some(Value::Float(number)),
            Stored::Float(number) => {
                self.text.push_str(if number > 0.0 { "9e999" } else { "-9e999" });
                None
            }
            // Rows with texts that are not UTF-8 are refused before.
            Stored::Text(text) => Some(Value::Text(String::from_utf8_lossy(text).into_owned())),
            Stored::Blob(bytes) => Some(Value::Blob(bytes.to_vec())),
        };
        if let Some(argument) = argument {
            self.text.push('?');
            self.args.push(argument);
        }
    }

    /// A value, or what a column has where there was none.
    pub(super) fn value_or_default(&mut self, column: &Column, value: Option<Stored<'_>>) {
        match value {
            Some(value) => self.value(value),
            None => self.text.push_str(column.default.as_deref().unwrap_or("NULL")),
        }
    }

    /// Those of a list, all of them, none deeply nested: the engine takes no expression of more than 100 levels, and a
    /// chain of `AND` has one for each of its links.
    pub(super) fn all(mut conditions: Vec<Sql>) -> Sql {
        const CHAIN_MAX: usize = 16;
        if conditions.len() <= CHAIN_MAX {
            return Sql::joined(conditions, "");
        }
        let rest = conditions.split_off(conditions.len() / 2);
        Sql::joined([Sql::all(conditions), Sql::all(rest)], "()")
    }

    fn joined(conditions: impl IntoIterator<Item = Sql>, around: &str) -> Sql {
        let (open, close) = around.split_at(around.len() / 2);
        conditions.into_iter().fold(Sql::default(), |mut all, condition| {
            let and = if all.text.is_empty() { "" } else { " AND " };
            all.text.push_str(&format!("{and}{open}{}{close}", condition.text));
            all.args.extend(condition.args);
            all
        })
    }

    /// Adds another text with its arguments.
    pub(super) fn push(&mut self, other: Sql) {
        self.text.push_str(&other.text);
        self.args.extend(other.args);
    }

    pub(super) fn done(self, about: About) -> Statement {
        Statement { sql: self.text, args: self.args, about, otherwise: Otherwise::Nothing }
    }
}

/// The values of a row by column; `None` for those that its record does not have.
fn by_column<'a>(table: &'a Table, row: &'a Row) -> Option<Values<'a>> {
    let is_stored = |column: &&Column| column.generated.is_none();
    let default = |column: &'a Column| Some(column).filter(is_stored).and_then(Column::known_default);
    let mut columns: Values<'a> = table.columns.iter().map(default).collect();
    for (value, at) in values(&row.record)?.into_iter().zip(table.in_record()) {
        if let Some(column) = columns.get_mut(at) {
            *column = Some(value);
        }
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

    /// The new table.
    pub(super) fn table(&self) -> &'a Table {
        self.new
    }

    /// The values of a row before and after, by the columns of the new table.
    pub(super) fn both<'r>(&'r self, Updated { old, new }: &'r Updated) -> Option<[Values<'r>; 2]> {
        Some([self.old_values(old)?, by_column(self.new, new)?])
    }

    /// The values of an old row by the columns of the new table.
    pub(super) fn old_values<'r>(&'r self, row: &'r Row) -> Option<Values<'r>> {
        let of_old = by_column(self.old?.table, row)?;
        let value = |(was, column): (&Option<usize>, &'r Column)| match was {
            Some(was) => of_old.get(*was).copied().flatten(),
            None => column.known_default().filter(|_| column.generated.is_none()),
        };
        Some(self.was.iter().zip(&self.new.columns).map(value).collect())
    }

    /// The values of a new row.
    pub(super) fn new_values<'r>(&'r self, row: &'r Row) -> Option<Values<'r>> {
        by_column(self.new, row)
    }

    /// The first column with a text that is not UTF-8, which the engine can neither read nor write.
    pub(super) fn not_utf8(&self, values: &[Option<Stored<'_>>]) -> Option<&'a Column> {
        let is_odd = |value: &Option<Stored<'_>>| match value {
            Some(Stored::Text(text)) => std::str::from_utf8(text).is_err(),
            _ => false,
        };
        self.new.columns.iter().zip(values).find(|(_, value)| is_odd(value)).map(|(column, _)| column)
    }

    /// The key of a row, by name.
    pub(super) fn key(&self, values: &[Option<Stored<'_>>]) -> Option<Vec<usize>> {
        let of = match &self.new.key {
            Key::Named(at) => vec![*at],
            Key::Columns(of) => of.clone(),
            Key::Rowid => return None,
        };
        let is_there = |at: &usize| values[*at].is_some_and(|value| value != Stored::Null);
        of.iter().all(is_there).then_some(of)
    }

    pub(super) fn about(&self, doing: Doing, row: &Row, values: &[Option<Stored<'_>>]) -> About {
        let key = match self.key(values) {
            Some(of) => {
                of.iter().filter_map(|at| Some((self.new.columns[*at].name.clone(), shown(values[*at]?)))).collect()
            }
            None => vec![("rowid".to_owned(), Value::Integer(row.rowid))],
        };
        About { table: self.new.name.clone(), key, doing }
    }

    /// `key = …`, where the row has one.
    pub(super) fn has_key(&self, sql: &mut Sql, values: &[Option<Stored<'_>>]) -> bool {
        let Some(of) = self.key(values) else { return false };
        let equal = |at: usize| {
            let mut equal = Sql::new(format!("{} = ", quoted(&self.new.columns[at].name)));
            equal.value(values[at].unwrap_or(Stored::Null));
            equal
        };
        sql.push(Sql::all(of.into_iter().map(equal).collect()));
        true
    }

    /// `column IS …` for all columns.
    fn is_all(&self, sql: &mut Sql, values: &[Option<Stored<'_>>]) {
        let written = self.new.columns.iter().zip(values).filter(|(column, _)| column.generated.is_none());
        let same = |(column, value): (&Column, &Option<Stored<'_>>)| {
            let strictly = if column.collation.is_some() { " COLLATE BINARY" } else { "" };
            let mut same = Sql::new(format!("{}{strictly} IS ", quoted(&column.name)));
            same.value_or_default(column, *value);
            same
        };
        sql.push(Sql::all(written.map(same).collect()));
    }

    /// ` WHERE …` for a row as it was.
    fn find(&self, sql: &mut Sql, (row, same_rowid): (&Row, bool), values: &[Option<Stored<'_>>]) {
        sql.text.push_str(" WHERE ");
        if self.has_key(sql, values) {
            return;
        }
        let Some(rowid) = self.new.rowid_name() else {
            // Rows that are the same in all columns cannot be told apart.
            return self.is_all(sql, values);
        };
        sql.text.push_str(&format!("{rowid} = "));
        if same_rowid {
            sql.value(Stored::Integer(row.rowid));
            sql.text.push_str(" AND ");
            return self.is_all(sql, values);
        }
        // Of rows that are the same in all columns one is as good as the other.
        sql.text.push_str(&format!("(SELECT {rowid} FROM {} WHERE ", quoted(&self.new.name)));
        self.is_all(sql, values);
        sql.text.push_str(" LIMIT 1)");
    }

    /// The order in which rows are changed. `None` when one cannot be read.
    pub(super) fn order(&self, changes: &[Updated]) -> Option<Order> {
        let both = |at: usize| self.both(changes.get(at)?);
        let is_other = |at| both(at).is_some_and(|[old, new]| self.is_other(&old, &new));
        order::order(self.new, changes.len(), is_other, both)
    }

    /// Whether something was written of a row. `None` when it cannot be read.
    pub(super) fn differs(&self, change: &Updated) -> Option<bool> {
        let [old, new] = self.both(change)?;
        Some(self.changed(&old, &new).next().is_some())
    }

    /// The columns that were written.
    fn changed<'r>(&'r self, old: &'r Values<'_>, new: &'r Values<'_>) -> impl Iterator<Item = usize> + 'r {
        let is_written = |at: &usize| self.new.columns[*at].generated.is_none() && !same(old[*at], new[*at]);
        (0..self.new.columns.len()).filter(is_written)
    }

    /// Whether a row that has the place of another is not the same one: its key is another. Where it has none its rowid may
    /// have been given once more, as it is when the last row was removed; then nothing else is as it was.
    fn is_other(&self, old: &[Option<Stored<'_>>], new: &[Option<Stored<'_>>]) -> bool {
        let is_written = |at: &usize| self.new.columns[*at].generated.is_none();
        let differs = |at: usize| !same(old[at], new[at]);
        match (self.key(old), self.key(new)) {
            (Some(_), Some(key)) => key.into_iter().any(differs),
            (None, None) => (0..new.len()).filter(is_written).all(differs),
            _ => true,
        }
    }

    /// Removes a row, which has the same rowid where this will run or another. `None` when it cannot be read.
    pub(super) fn delete(&self, row: &Row, same_rowid: bool) -> Option<Statement> {
        let values = self.old_values(row)?;
        let mut sql = Sql::new(format!("DELETE FROM {}", quoted(&self.new.name)));
        self.find(&mut sql, (row, same_rowid), &values);
        let delete = sql.done(self.about(Doing::Delete, row, &values));
        // One with a key that is not found is gone, as it is to be. Of others it is not known.
        let otherwise = if self.key(&values).is_some() { Otherwise::Nothing } else { Otherwise::TellIfNone };
        Some(Statement { otherwise, ..delete })
    }

    /// Changes a row, which has the same rowid where this will run or another; nothing when nothing was written of it. `None`
    /// when it cannot be read.
    pub(super) fn update(&self, change: &Updated, same_rowid: bool) -> Option<Option<Statement>> {
        let [old, new] = self.both(change)?;
        let mut sql = Sql::new(format!("UPDATE {} SET ", quoted(&self.new.name)));
        let mut comma = "";
        for at in self.changed(&old, &new) {
            let column = &self.new.columns[at];
            sql.text.push_str(&format!("{comma}{} = ", quoted(&column.name)));
            sql.value_or_default(column, new[at]);
            comma = ", ";
        }
        if comma.is_empty() {
            return Some(None);
        }
        self.find(&mut sql, (&change.old, same_rowid), &old);
        let update = sql.done(self.about(Doing::Update, &change.old, &old));
        let otherwise = Otherwise::IfNone(Box::new(self.insert(&change.new)?));
        Some(Some(Statement { otherwise, ..update }))
    }

    /// `INSERT`, `INTO …` and the values. The columns it gives.
    fn put(&self, insert: &str, (open, close): (&str, &str), values: &[Option<Stored<'_>>]) -> (Sql, Vec<usize>) {
        let table = quoted(&self.new.name);
        let written = |at: &usize| self.new.columns[*at].generated.is_none() && values[*at].is_some();
        let columns: Vec<usize> = (0..self.new.columns.len()).filter(written).collect();
        if columns.is_empty() {
            return (Sql::new(format!("{insert} INTO {table} DEFAULT VALUES")), columns);
        }
        let names: Vec<String> = columns.iter().map(|at| quoted(&self.new.columns[*at].name)).collect();
        let mut sql = Sql::new(format!("{insert} INTO {table}({}) {open}", names.join(", ")));
        for (nth, at) in columns.iter().enumerate() {
            sql.text.push_str(if nth > 0 { ", " } else { "" });
            sql.value(values[*at].unwrap_or(Stored::Null));
        }
        sql.text.push_str(close);
        (sql, columns)
    }

    /// Adds a row, or overwrites the one that has its key. `None` when it cannot be read.
    pub(super) fn insert(&self, row: &Row) -> Option<Statement> {
        let values = by_column(self.new, row)?;
        let (sql, columns) = self.put("INSERT", ("VALUES (", ")"), &values);
        let mut insert = sql.done(self.about(Doing::Insert, row, &values));
        // The engine overwrites nothing in tables without rowids.
        if let Some(key) = self.key(&values).filter(|_| self.new.has_rowids) {
            let name = |at: &usize| quoted(&self.new.columns[*at].name);
            let of: Vec<String> = key.iter().map(name).collect();
            let others = columns.iter().filter(|at| !key.contains(at)).map(name);
            let set: Vec<String> = others.map(|name| format!("{name} = excluded.{name}")).collect();
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

    /// Adds a row that was removed for the sake of another once more, if the other could not be added. `None` when it cannot
    /// be read.
    pub(super) fn restore(&self, change: &Updated) -> Option<Statement> {
        let [old, new] = self.both(change)?;
        // The engine ignores nothing in tables without rowids.
        let insert = if self.new.has_rowids { "INSERT OR IGNORE" } else { "INSERT" };
        let (mut sql, columns) = self.put(insert, ("SELECT ", " WHERE NOT EXISTS (SELECT 1"), &old);
        if columns.is_empty() {
            return None;
        }
        sql.text.push_str(&format!(" FROM {} WHERE ", quoted(&self.new.name)));
        if !self.has_key(&mut sql, &new) {
            self.is_all(&mut sql, &new);
        }
        sql.text.push(')');
        Some(sql.done(self.about(Doing::Insert, &change.old, &old)))
    }
}

/// A value for people.
fn shown(value: Stored<'_>) -> Value {
    match value {
        Stored::Null => Value::Null,
        Stored::Integer(number) => Value::Integer(number),
        Stored::Float(number) => Value::Float(number),
        // What is no text for people is shown as its bytes.
        Stored::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Blob(text.to_vec()),
        },
        Stored::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}
