//! What a `CREATE TABLE` says, as far as rows can be told apart and written again by it.

use std::collections::BTreeSet;

use turso_parser::ast::{
    Cmd, ColumnConstraint, ColumnDefinition, CreateTableBody, Expr, GeneratedColumnType, Literal, SortOrder,
    SortedColumn, Stmt, TableConstraint, Type,
};
use turso_parser::parser::Parser;

use super::words::{Word, folded, words};
use crate::sqlite::record::Stored;

/// A table, its columns in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    pub(super) key: Key,
    /// What no two rows may share, the key included unless it is the rowid.
    pub(super) unique: Vec<Unique>,
    pub(super) has_rowids: bool,
    /// Whether a rowid is given once and never again (`AUTOINCREMENT`).
    pub(super) counts: bool,
    /// What made it.
    pub(super) sql: String,
    /// What stands behind the columns: constraints of the table and options.
    pub(super) rest: String,
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
    /// The same, where it is known for sure.
    known_default: Option<Known>,
    /// The type, as it was declared.
    pub(super) kind: String,
    /// What says which values that differ count as equal.
    pub(super) collation: Option<String>,
    /// Whether `ALTER TABLE` can add it.
    pub(super) can_come: bool,
    /// Whether `ALTER TABLE` can drop it.
    pub(super) can_go: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Null,
    Integer(i64),
    Text(String),
}

/// What no two rows may share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unique {
    /// Columns on which it depends, and on no others.
    pub(super) columns: Vec<usize>,
    /// Whether it is their values, and not an expression of them, or only where a condition holds.
    pub(super) is_plain: bool,
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

impl Column {
    fn of(column: &ColumnDefinition) -> Column {
        let parts = column.col_type.iter().map(ToString::to_string);
        let parts: Vec<String> = parts.chain(column.constraints.iter().map(ToString::to_string)).collect();
        let mut made = Column {
            name: column.col_name.as_str().to_owned(),
            definition: parts.join(" "),
            generated: None,
            default: None,
            known_default: Some(Known::Null),
            kind: column.col_type.as_ref().map_or(String::new(), ToString::to_string),
            collation: None,
            can_come: true,
            can_go: true,
        };
        let (mut is_required, mut is_given) = (false, false);
        for constraint in &column.constraints {
            match &constraint.constraint {
                ColumnConstraint::PrimaryKey { .. } | ColumnConstraint::Unique(_) => {
                    (made.can_come, made.can_go) = (false, false);
                }
                ColumnConstraint::NotNull { nullable, .. } => is_required = !nullable,
                ColumnConstraint::Collate { collation_name } => {
                    made.collation = Some(collation_name.as_str().to_owned())
                }
                ColumnConstraint::Default(expr) => {
                    let literal = match &**expr {
                        // A name is taken for a text here.
                        Expr::Id(name) | Expr::Name(name) => Some(name.as_literal()),
                        expr if is_constant(expr) => Some(expr.to_string()),
                        _ => None,
                    };
                    is_given = literal.as_deref().is_some_and(|literal| !literal.eq_ignore_ascii_case("NULL"));
                    made.can_come &= literal.is_some();
                    made.known_default = known(expr, column.col_type.as_ref());
                    made.default = Some(format!("({})", literal.unwrap_or_else(|| expr.to_string())));
                }
                ColumnConstraint::Generated { typ, .. } => {
                    let stored = *typ == Some(GeneratedColumnType::Stored);
                    made.generated = Some(if stored { Generated::Stored } else { Generated::Virtual });
                    made.can_come &= !stored;
                }
                ColumnConstraint::Check { .. } | ColumnConstraint::ForeignKey { .. } => {}
            }
        }
        made.can_come &= is_given || !is_required;
        made
    }

    /// What rows have that were there before it, where that is known for sure.
    pub(super) fn known_default(&self) -> Option<Stored<'_>> {
        self.known_default.as_ref().map(|known| match known {
            Known::Null => Stored::Null,
            Known::Integer(number) => Stored::Integer(*number),
            Known::Text(text) => Stored::Text(text.as_bytes()),
        })
    }
}

/// The value of a literal in a column of a type that leaves it as it is.
fn known(expr: &Expr, column: Option<&Type>) -> Option<Known> {
    let column = column.map_or(String::new(), |column| column.name.to_ascii_uppercase());
    match expr {
        Expr::Literal(Literal::Null) => Some(Known::Null),
        Expr::Literal(Literal::Numeric(digits)) if column == "INTEGER" => digits.parse().ok().map(Known::Integer),
        Expr::Literal(Literal::String(text)) if column == "TEXT" => match &words(text)[..] {
            [Word::Text(text)] => Some(Known::Text(text.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// Whether `ALTER TABLE` takes it as the default of a column.
fn is_constant(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(literal) => {
            !matches!(literal, Literal::CurrentDate | Literal::CurrentTime | Literal::CurrentTimestamp)
        }
        Expr::Unary(_, inner) => matches!(**inner, Expr::Literal(Literal::Numeric(_))),
        _ => false,
    }
}

/// Whether a column of this type may be the rowid by another name.
fn is_integer(column: &ColumnDefinition) -> bool {
    let integer = |of: &Type| of.name.eq_ignore_ascii_case("INTEGER") && of.size.is_none() && !of.is_array();
    column.col_type.as_ref().is_some_and(integer)
}

impl Table {
    /// The table that this `CREATE TABLE` makes; `None` when it cannot be read.
    pub(super) fn parse(sql: &str) -> Option<Table> {
        let Stmt::CreateTable { tbl_name, body, .. } = parsed(sql)? else { return None };
        let CreateTableBody::ColumnsAndConstraints { columns: defined, constraints, options } = body else {
            return None;
        };
        let has_rowids = !options.contains_without_rowid();
        let columns: Vec<Column> = defined.iter().map(Column::of).collect();
        let (mut key, mut unique, mut counts) = (Key::Rowid, Vec::new(), false);
        let plain = |columns| Unique { columns, is_plain: true };
        for (at, column) in defined.iter().enumerate() {
            for constraint in &column.constraints {
                match &constraint.constraint {
                    ColumnConstraint::PrimaryKey { order, auto_increment, .. } => {
                        counts |= auto_increment;
                        let is_rowid = has_rowids && is_integer(column) && *order != Some(SortOrder::Desc);
                        key = if is_rowid { Key::Named(at) } else { Key::Columns(vec![at]) };
                    }
                    ColumnConstraint::Unique(_) => unique.push(plain(vec![at])),
                    _ => {}
                }
            }
        }
        for constraint in &constraints {
            match &constraint.constraint {
                TableConstraint::PrimaryKey { columns: of, auto_increment, .. } => {
                    counts |= auto_increment;
                    let of = named(of, &columns)?;
                    key = match of[..] {
                        [at] if has_rowids && defined.get(at).is_some_and(is_integer) => Key::Named(at),
                        _ => Key::Columns(of),
                    };
                }
                TableConstraint::Unique { columns: of, .. } => unique.push(plain(named(of, &columns)?)),
                _ => {}
            }
        }
        if let Key::Columns(of) = &key {
            unique.push(plain(of.clone()));
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
            counts,
            sql: sql.to_owned(),
            rest,
        })
    }

    /// Whether the engine takes one column of a row for another.
    pub(super) fn is_mistaken(&self) -> bool {
        !self.has_rowids && !matches!(&self.key, Key::Columns(of) if of.iter().copied().eq(0..of.len()))
    }

    /// The columns that are given a value.
    pub(super) fn written(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.generated.is_none())
    }

    /// Adds what this `CREATE INDEX`, of this table, says of rows that no two may share.
    pub(super) fn index(&mut self, sql: &str) {
        let Some(Stmt::CreateIndex { unique: true, columns, where_clause, .. }) = parsed(sql) else { return };
        if let (Some(columns), None) = (named(&columns, &self.columns), &where_clause) {
            return self.unique.push(Unique { columns, is_plain: true });
        }
        let texts =
            columns.iter().map(|column| column.expr.to_string()).chain(where_clause.map(|expr| expr.to_string()));
        let mentioned: BTreeSet<usize> = texts.flat_map(|text| self.mentioned(&text)).collect();
        self.unique.push(Unique { columns: mentioned.into_iter().collect(), is_plain: false });
    }

    /// The columns whose names stand in an SQL text.
    fn mentioned(&self, sql: &str) -> Vec<usize> {
        let has = |word: &Word, column: &Column| matches!(word, Word::Name(name) if *name == folded(&column.name));
        let at = |word: Word| self.columns.iter().position(|column| has(&word, column));
        words(sql).into_iter().filter_map(at).collect()
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
            ("CREATE TABLE t(a INTEGER(8) PRIMARY KEY)", Key::Columns(vec![0])),
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
        let mut t = table("CREATE TABLE t(a PRIMARY KEY, b UNIQUE, c, d, \"E e\", UNIQUE(a, c))");
        for sql in [
            "CREATE INDEX i ON t(d)",
            "CREATE UNIQUE INDEX i ON t(d COLLATE NOCASE DESC, c)",
            "CREATE UNIQUE INDEX i ON t(d) WHERE [e E] > 1 AND 'a' > \"e e\"",
            "CREATE UNIQUE INDEX i ON t(lower(d))",
        ] {
            t.index(sql);
        }
        let found: Vec<_> = t.unique.iter().map(|unique| (&unique.columns[..], unique.is_plain)).collect();
        let wanted: [(&[usize], bool); 6] =
            [(&[1], true), (&[0, 2], true), (&[0], true), (&[3, 2], true), (&[3, 4], false), (&[3], false)];
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_alter_table_cannot_add_or_drop_is_known() {
        for (column, can_come, can_go) in [
            ("a TEXT", true, true),
            ("a NOT NULL", false, true),
            ("a NOT NULL DEFAULT NULL", false, true),
            ("a NOT NULL DEFAULT -1", true, true),
            ("a DEFAULT (1 + 2)", false, true),
            ("a DEFAULT CURRENT_TIMESTAMP", false, true),
            ("a UNIQUE", false, false),
            ("a INTEGER PRIMARY KEY", false, false),
            ("a AS (b) VIRTUAL", true, true),
            ("a AS (b) STORED", false, true),
        ] {
            let column = &table(&format!("CREATE TABLE t(b, {column})")).columns[1];
            assert_eq!((column.can_come, column.can_go), (can_come, can_go), "{}", column.definition);
        }
    }

    #[test]
    fn defaults_are_known_where_the_column_leaves_them_as_they_are() {
        for (column, known) in [
            ("a", Some(Stored::Null)),
            ("a TEXT DEFAULT NULL", Some(Stored::Null)),
            ("a INTEGER DEFAULT 12", Some(Stored::Integer(12))),
            ("a TEXT DEFAULT 'it''s'", Some(Stored::Text(b"it's"))),
            ("a REAL DEFAULT 1", None),
            ("a TEXT DEFAULT 1", None),
            ("a DEFAULT 1", None),
            ("a INTEGER DEFAULT 9223372036854775808", None),
            ("a INTEGER DEFAULT 0x10", None),
        ] {
            let table = table(&format!("CREATE TABLE t({column})"));
            assert_eq!(table.columns[0].known_default(), known, "{column}");
        }
    }

    #[test]
    fn a_default_that_is_a_name_is_a_text() {
        assert_eq!(table("CREATE TABLE t(a DEFAULT \"it's\")").columns[0].default.as_deref(), Some("('it''s')"));
    }
}
