//! What a `CREATE TABLE` says, as far as rows can be told apart and written again by it.

use std::collections::BTreeSet;

use turso_parser::ast::{
    Cmd, ColumnConstraint, CreateTableBody, Expr, GeneratedColumnType, SortOrder, SortedColumn, Stmt, TableConstraint,
};
use turso_parser::parser::Parser;

/// A table, its columns in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    pub(super) key: Key,
    /// Sets of columns that no two rows may share, the key not among them.
    pub(super) unique: Vec<Vec<usize>>,
    pub(super) has_rowids: bool,
    /// What made it.
    pub(super) sql: String,
    /// What stands behind the columns: constraints of the table and options.
    rest: String,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// All that was said of it behind its name.
    pub(super) definition: String,
    pub(super) generated: Option<Generated>,
    /// What rows have that were there before it, as SQL.
    pub(super) default: Option<String>,
}

/// A column that nobody writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Generated {
    /// It has no place in a record.
    Virtual,
    /// It has one.
    Stored,
}

/// What tells rows apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Their number, under the name of a column.
    Named(usize),
    /// These columns, unless one of them is NULL.
    Columns(Vec<usize>),
    /// Nothing but their number, which is of this database.
    Rowid,
}

/// A name as SQL takes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The one statement in a text; `None` when there is another number, or it cannot be parsed.
fn parsed(sql: &str) -> Option<Stmt> {
    let mut parser = Parser::new(sql.as_bytes());
    match (parser.next_cmd(), parser.next_cmd()) {
        (Ok(Some(Cmd::Stmt(stmt))), Ok(None)) => Some(stmt),
        _ => None,
    }
}

/// The columns among those of `names` that a list of them is of; `None` when one of them is an expression.
fn named(columns: &[SortedColumn], names: &[Column]) -> Option<Vec<usize>> {
    columns
        .iter()
        .map(|column| {
            let mut expr = &*column.expr;
            while let Expr::Collate(inner, _) = expr {
                expr = inner;
            }
            let (Expr::Id(name) | Expr::Name(name)) = expr else { return None };
            names.iter().position(|column| column.name.eq_ignore_ascii_case(name.as_str()))
        })
        .collect()
}

impl Table {
    /// The table that this `CREATE TABLE` makes; `None` when it cannot be read.
    pub(super) fn parse(sql: &str) -> Option<Table> {
        let Stmt::CreateTable { tbl_name, body, .. } = parsed(sql)? else { return None };
        let CreateTableBody::ColumnsAndConstraints { columns: defined, constraints, options } = body else {
            return None;
        };
        let has_rowids = !options.contains_without_rowid();
        let (mut columns, mut key, mut unique) = (Vec::new(), Key::Rowid, Vec::new());
        for (at, column) in defined.iter().enumerate() {
            let (mut generated, mut default) = (None, None);
            let is_integer = column.col_type.as_ref().is_some_and(|of| of.name.eq_ignore_ascii_case("INTEGER"));
            for constraint in &column.constraints {
                match &constraint.constraint {
                    ColumnConstraint::PrimaryKey { order, .. } => {
                        let is_rowid = has_rowids && is_integer && *order != Some(SortOrder::Desc);
                        key = if is_rowid { Key::Named(at) } else { Key::Columns(vec![at]) };
                    }
                    ColumnConstraint::Unique(_) => unique.push(vec![at]),
                    ColumnConstraint::Default(expr) => default = Some(format!("({expr})")),
                    ColumnConstraint::Generated { typ, .. } => {
                        let stored = *typ == Some(GeneratedColumnType::Stored);
                        generated = Some(if stored { Generated::Stored } else { Generated::Virtual });
                    }
                    _ => {}
                }
            }
            let name = column.col_name.as_str().to_owned();
            let parts = column.col_type.iter().map(ToString::to_string);
            let parts: Vec<String> = parts.chain(column.constraints.iter().map(ToString::to_string)).collect();
            columns.push(Column { name, definition: parts.join(" "), generated, default });
        }
        for constraint in &constraints {
            match &constraint.constraint {
                TableConstraint::PrimaryKey { columns: of, .. } => {
                    let of = named(of, &columns)?;
                    let is_integer = |at: usize| {
                        let of = defined.get(at).and_then(|column| column.col_type.as_ref());
                        of.is_some_and(|of| of.name.eq_ignore_ascii_case("INTEGER"))
                    };
                    key = match of[..] {
                        [at] if has_rowids && is_integer(at) => Key::Named(at),
                        _ => Key::Columns(of),
                    };
                }
                TableConstraint::Unique { columns: of, .. } => unique.push(named(of, &columns)?),
                _ => {}
            }
        }
        let rest: Vec<String> = constraints.iter().map(ToString::to_string).collect();
        let strict = if options.contains_strict() { " STRICT" } else { "" };
        let rest = format!("{}{strict}{has_rowids}", rest.join(", "));
        Some(Table {
            name: tbl_name.name.as_str().to_owned(),
            columns,
            key,
            unique,
            has_rowids,
            sql: sql.to_owned(),
            rest,
        })
    }

    /// Adds what this `CREATE INDEX`, of this table, says of rows that no two may share.
    pub(super) fn index(&mut self, sql: &str) {
        let Some(Stmt::CreateIndex { unique: true, columns, .. }) = parsed(sql) else { return };
        // Of an expression any column may be part.
        let of = named(&columns, &self.columns).unwrap_or_else(|| (0..self.columns.len()).collect());
        self.unique.push(of);
    }

    /// Whether no two rows may have what is in this column and perhaps others.
    pub(super) fn is_unique(&self, column: usize) -> bool {
        let in_key = match &self.key {
            Key::Named(at) => *at == column,
            Key::Columns(of) => of.contains(&column),
            Key::Rowid => false,
        };
        in_key || self.unique.iter().any(|of| of.contains(&column))
    }

    /// How many values at the front of a record are the key, where there are no rowids.
    pub(super) fn key_len(&self) -> usize {
        match &self.key {
            Key::Columns(of) => of.iter().collect::<BTreeSet<_>>().len(),
            Key::Named(_) | Key::Rowid => 0,
        }
    }

    /// The columns in the order in which a record has their values.
    pub(super) fn in_record(&self) -> Vec<usize> {
        let stored = |at: &usize| self.columns[*at].generated != Some(Generated::Virtual);
        match &self.key {
            Key::Columns(of) if !self.has_rowids => {
                let mut order: Vec<usize> = Vec::new();
                // A column that is twice in the key is once in the record.
                for at in of.iter().copied().chain((0..self.columns.len()).filter(stored)) {
                    if !order.contains(&at) {
                        order.push(at);
                    }
                }
                order
            }
            _ => (0..self.columns.len()).filter(stored).collect(),
        }
    }

    /// A name under which the rowid can be asked for, if no column hides all of them.
    pub(super) fn rowid_name(&self) -> Option<&'static str> {
        let is_free = |name: &&str| !self.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
        ["rowid", "_rowid_", "oid"].into_iter().find(is_free)
    }
}

/// How one table becomes another, as far as `ALTER TABLE` can do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alteration {
    /// The statements, in order.
    pub(super) statements: Vec<String>,
    /// For each column of the new table, which of the old one it was.
    pub(super) was: Vec<Option<usize>>,
}

impl Alteration {
    /// From `old` to `new`, the name included; `None` when that takes more than `ALTER TABLE`.
    pub(super) fn between(old: &Table, new: &Table) -> Option<Alteration> {
        let mut statements = Vec::new();
        if old.name != new.name {
            statements.push(format!("ALTER TABLE {} RENAME TO {}", quoted(&old.name), quoted(&new.name)));
        }
        let table = quoted(&new.name);
        // A column keeps its name, or its place and its definition while its name is new and the old one gone.
        let has = |columns: &[Column], name: &str| columns.iter().any(|column| column.name == name);
        let (mut was, mut at) = (Vec::new(), 0);
        for column in &new.columns {
            // What is gone stands before it.
            while let Some(before) = old.columns.get(at)
                && before.name != column.name
                && !has(&new.columns, &before.name)
                && (has(&old.columns, &column.name) || before.definition != column.definition)
            {
                statements.push(format!("ALTER TABLE {table} DROP COLUMN {}", quoted(&before.name)));
                at += 1;
            }
            let Some(before) = old.columns.get(at) else {
                let definition = format!("{} {}", quoted(&column.name), column.definition);
                statements.push(format!("ALTER TABLE {table} ADD COLUMN {}", definition.trim_end()));
                was.push(None);
                continue;
            };
            if before.definition != column.definition {
                return None;
            }
            if before.name != column.name {
                if has(&new.columns, &before.name) || has(&old.columns, &column.name) {
                    return None;
                }
                let (from, to) = (quoted(&before.name), quoted(&column.name));
                statements.push(format!("ALTER TABLE {table} RENAME COLUMN {from} TO {to}"));
            }
            was.push(Some(at));
            at += 1;
        }
        for gone in old.columns.get(at..).unwrap_or(&[]) {
            statements.push(format!("ALTER TABLE {table} DROP COLUMN {}", quoted(&gone.name)));
        }
        // Constraints name columns, so they are compared only where no column has another name.
        let renamed = was
            .iter()
            .zip(&new.columns)
            .any(|(was, column)| was.is_some_and(|was| old.columns[was].name != column.name));
        (old.has_rowids == new.has_rowids && (renamed || old.rest == new.rest))
            .then_some(Alteration { statements, was })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(sql: &str) -> Table {
        Table::parse(sql).unwrap_or_else(|| panic!("{sql}"))
    }

    #[test]
    fn keys_are_those_that_sqlite_takes() {
        for (sql, key) in [
            ("CREATE TABLE t(a INTEGER PRIMARY KEY, b)", Key::Named(0)),
            ("CREATE TABLE t(b, a integer PRIMARY KEY AUTOINCREMENT)", Key::Named(1)),
            ("CREATE TABLE t(a INTEGER PRIMARY KEY DESC, b)", Key::Columns(vec![0])),
            ("CREATE TABLE t(a INTEGER, b, PRIMARY KEY(a DESC))", Key::Named(0)),
            ("CREATE TABLE t(a INT PRIMARY KEY)", Key::Columns(vec![0])),
            ("CREATE TABLE t(a, b, PRIMARY KEY(B, a))", Key::Columns(vec![1, 0])),
            ("CREATE TABLE t(a INTEGER PRIMARY KEY) WITHOUT ROWID", Key::Columns(vec![0])),
            ("CREATE TABLE t(a, b UNIQUE)", Key::Rowid),
        ] {
            assert_eq!(table(sql).key, key, "{sql}");
        }
    }

    #[test]
    fn records_have_the_key_first_where_there_are_no_rowids() {
        let sql = "CREATE TABLE t(a, b AS (a + 1), c, d AS (c) STORED, e, PRIMARY KEY(e, a))";
        assert_eq!(table(sql).in_record(), [0, 2, 3, 4]);
        assert_eq!(table(&format!("{sql} WITHOUT ROWID")).in_record(), [4, 0, 2, 3]);
    }

    #[test]
    fn what_is_unique_is_found_in_indexes_too() {
        let mut t = table("CREATE TABLE t(a PRIMARY KEY, b UNIQUE, c, d, e, UNIQUE(a, c))");
        assert_eq!([0, 1, 2, 3, 4].map(|at| t.is_unique(at)), [true, true, true, false, false]);
        t.index("CREATE INDEX i ON t(d)");
        assert!(!t.is_unique(3));
        t.index("CREATE UNIQUE INDEX i ON t(d COLLATE NOCASE) WHERE e > 1");
        assert!(t.is_unique(3) && !t.is_unique(4));
        t.index("CREATE UNIQUE INDEX i ON t(lower(d))");
        assert!(t.is_unique(4));
    }

    #[track_caller]
    fn alters(old: &str, new: &str, wanted: &[&str]) {
        let alteration = Alteration::between(&table(old), &table(new)).expect("it can be altered");
        assert_eq!(alteration.statements, wanted);
    }

    #[test]
    fn alterations_are_told_from_the_ends() {
        let t = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c DEFAULT 1)";
        alters(t, t, &[]);
        alters(
            t,
            "CREATE TABLE \"u\"(a INTEGER PRIMARY KEY, b TEXT, c DEFAULT 1)",
            &[r#"ALTER TABLE "t" RENAME TO "u""#],
        );
        alters(
            t,
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c DEFAULT 1, d, e TEXT DEFAULT 'x')",
            &[r#"ALTER TABLE "t" ADD COLUMN "d""#, r#"ALTER TABLE "t" ADD COLUMN "e" TEXT DEFAULT 'x'"#],
        );
        alters(t, "CREATE TABLE t(a INTEGER PRIMARY KEY, c DEFAULT 1)", &[r#"ALTER TABLE "t" DROP COLUMN "b""#]);
        alters(t, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)", &[r#"ALTER TABLE "t" DROP COLUMN "c""#]);
        alters(
            t,
            "CREATE TABLE t(a INTEGER PRIMARY KEY, \"b b\" TEXT, c DEFAULT 1)",
            &[r#"ALTER TABLE "t" RENAME COLUMN "b" TO "b b""#],
        );
        alters(
            t,
            "CREATE TABLE u(z INTEGER PRIMARY KEY, c DEFAULT 1, d)",
            &[
                r#"ALTER TABLE "t" RENAME TO "u""#,
                r#"ALTER TABLE "u" RENAME COLUMN "a" TO "z""#,
                r#"ALTER TABLE "u" DROP COLUMN "b""#,
                r#"ALTER TABLE "u" ADD COLUMN "d""#,
            ],
        );
    }

    #[test]
    fn what_alter_table_cannot_do_is_no_alteration() {
        let t = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c)";
        for other in [
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b INT, c)",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, c, b TEXT)",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c, UNIQUE(b))",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c) WITHOUT ROWID",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c) STRICT",
        ] {
            assert_eq!(Alteration::between(&table(t), &table(other)), None, "{other}");
        }
    }
}
