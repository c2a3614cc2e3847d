//! Tables without rowids, of which the engine can neither change nor remove a row: those that stay and those that changed
//! are copied into a new table, which takes the place of the old one. All of it is one transaction with the other changes.

use super::change::{Otherwise, Sql, Statement, Writer};
use super::order::same;
use super::report::{About, Doing};
use super::rows::{Row, Updated};
use super::table::{Key, Table};
use super::words::{create_as, folded, quoted};

/// Makes the statements that rewrite a table.
pub(super) struct Rewrite<'a> {
    writer: &'a Writer<'a>,
    /// The table where this will run, under the name it has by then.
    there: &'a Table,
    key: Vec<&'a str>,
    name: String,
    /// What becomes the table.
    copy: String,
    /// The keys of rows that are removed.
    gone: String,
}

impl<'a> Rewrite<'a> {
    /// Of a table that is this one `there`, where the names that `is_taken` says are in use. `None` when it has rowids, or has
    /// another key there.
    pub(super) fn of(writer: &'a Writer<'a>, there: &'a Table, is_taken: impl Fn(&str) -> bool) -> Option<Rewrite<'a>> {
        let ours = writer.table();
        let names = |table: &'a Table| match &table.key {
            Key::Columns(of) if !table.has_rowids => {
                Some(of.iter().map(|at| table.columns[*at].name.as_str()).collect::<Vec<_>>())
            }
            _ => None,
        };
        let key = names(there)?;
        let is_same = key.len() == names(ours)?.len()
            && key.iter().zip(names(ours)?).all(|(one, other)| one.eq_ignore_ascii_case(other));
        let free =
            |start: &str| (0_u32..).map(|number| format!("logmirror_{start}_{number}")).find(|name| !is_taken(name));
        let name = quoted(&folded(&ours.name));
        is_same.then_some(Rewrite { writer, there, key, name, copy: free("copy")?, gone: free("gone")? })
    }

    /// One without which the others must not be run.
    fn needed(&self, sql: String) -> Statement {
        let about = About { table: self.writer.table().name.clone(), key: Vec::new(), doing: Doing::Schema };
        Statement { sql, args: Vec::new(), about, otherwise: Otherwise::Fail }
    }

    /// Makes the new table. `None` when its statement cannot be read.
    pub(super) fn begin(&self) -> Option<[Statement; 2]> {
        let column = |(nth, name): (usize, &&str)| {
            let of = self.there.columns.iter().find(|column| column.name == **name);
            let collation = of.and_then(|of| of.collation.as_ref().map(|name| format!(" COLLATE {}", quoted(name))));
            let kind = of.map_or("", |of| &of.kind);
            format!("k{nth} {kind}{}", collation.unwrap_or_default())
        };
        let key: Vec<String> = self.key.iter().enumerate().map(column).collect();
        Some([
            self.needed(create_as(&self.there.sql, &self.copy)?),
            self.needed(format!("CREATE TABLE {}({})", self.gone, key.join(", "))),
        ])
    }

    /// Removes a row. `None` when it cannot be read.
    pub(super) fn delete(&self, row: &Row) -> Option<Statement> {
        let values = self.writer.old_values(row)?;
        let mut sql = Sql::new(format!("INSERT INTO {} VALUES (", self.gone));
        for (nth, at) in self.writer.key(&values)?.into_iter().enumerate() {
            sql.text.push_str(if nth > 0 { ", " } else { "" });
            sql.value(values[at]?);
        }
        sql.text.push(')');
        let about = self.writer.about(Doing::Delete, row, &values);
        Some(Statement { otherwise: Otherwise::Fail, ..sql.done(about) })
    }

    /// Changes a row; nothing when nothing was written of it. `None` when it cannot be read.
    pub(super) fn update(&self, change: &Updated) -> Option<Option<Statement>> {
        let [old, new] = self.writer.both(change)?;
        let ours = &self.writer.table().columns;
        let is_written = |at: usize| ours[at].generated.is_none() && !same(old[at], new[at]);
        if !(0..ours.len()).any(is_written) {
            return Some(None);
        }
        let mut sql = Sql::new(format!("INSERT INTO {}({}) SELECT ", self.copy, self.columns()));
        let mut comma = "";
        for column in self.there.written() {
            sql.text.push_str(comma);
            comma = ", ";
            match ours.iter().position(|ours| ours.name.eq_ignore_ascii_case(&column.name)) {
                Some(at) if is_written(at) => sql.value_or_default(&ours[at], new[at]),
                _ => sql.text.push_str(&quoted(&column.name)),
            }
        }
        sql.text.push_str(&format!(" FROM {} WHERE ", self.name));
        self.writer.has_key(&mut sql, &old);
        let update = sql.done(self.writer.about(Doing::Update, &change.old, &old));
        // Whether that is done before the rows are copied or after it, it has its place in what the table is then.
        let otherwise = Otherwise::IfNone(Box::new(self.writer.insert(&change.new)?));
        Some(Some(Statement { otherwise, ..update }))
    }

    fn columns(&self) -> String {
        let names: Vec<String> = self.there.written().map(|column| quoted(&column.name)).collect();
        names.join(", ")
    }

    /// Copies the rows that stay, and puts the new table in the place of the old one.
    pub(super) fn end(&self) -> [Statement; 4] {
        let Rewrite { name, copy, gone, .. } = self;
        let all = |equal: &dyn Fn(usize, String) -> String| {
            let key = self.key.iter().map(|key| quoted(key)).enumerate();
            Sql::all(key.map(|(nth, key)| Sql::new(equal(nth, key))).collect()).text
        };
        let rest = format!(
            "INSERT INTO {copy}({0}) SELECT {0} FROM {name} AS t WHERE NOT EXISTS (SELECT 1 FROM {gone} AS g WHERE {1}) AND \
             NOT EXISTS (SELECT 1 FROM {copy} AS c WHERE {2})",
            self.columns(),
            all(&|nth, key| format!("g.k{nth} = t.{key}")),
            all(&|_, key| format!("c.{key} = t.{key}")),
        );
        [
            self.needed(rest),
            self.needed(format!("DROP TABLE {gone}")),
            self.needed(format!("DROP TABLE {name}")),
            self.needed(format!("ALTER TABLE {copy} RENAME TO {name}")),
        ]
    }
}
