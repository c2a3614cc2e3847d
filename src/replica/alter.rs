//! How one table becomes another, as far as `ALTER TABLE` can do it.

use std::collections::BTreeSet;

use super::table::{Column, Table};
use super::words::{Renamed, Word, folded, is_renamed, quoted, words};

/// What makes one table of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Alteration {
    /// The statements, in order.
    pub(super) statements: Vec<String>,
    /// For each column of the new table, which of the old one it was.
    pub(super) was: Vec<Option<usize>>,
    /// What has another name now: the table and columns.
    pub(super) renamed: Renamed,
}

/// The names that one of two lists of columns has and the other has not.
fn only(these: &[Column], others: &[Column]) -> BTreeSet<String> {
    let others: BTreeSet<String> = others.iter().map(|column| folded(&column.name)).collect();
    these.iter().map(|column| folded(&column.name)).filter(|name| !others.contains(name)).collect()
}

impl Alteration {
    /// Of a table that was not there.
    pub(super) fn of_new(table: &Table) -> Alteration {
        Alteration { was: vec![None; table.columns.len()], ..Alteration::default() }
    }

    /// From `old` to `new`, the name included; `None` when that takes more than `ALTER TABLE`.
    pub(super) fn between(old: &Table, new: &Table) -> Option<Alteration> {
        let (mut statements, mut was, mut renamed) = (Vec::new(), Vec::new(), Renamed::new());
        let table = quoted(&folded(&new.name));
        let (from, to) = (folded(&old.name), folded(&new.name));
        if from != to {
            statements.push(format!("ALTER TABLE {} RENAME TO {table}", quoted(&old.name)));
            renamed.insert(from, to);
        }
        // A column keeps its name, or its place and its definition while its name is new and the old one gone.
        let (gone, fresh) = (only(&old.columns, &new.columns), only(&new.columns, &old.columns));
        let is_gone = |column: &Column| gone.contains(&folded(&column.name));
        let is_fresh = |column: &Column| fresh.contains(&folded(&column.name));
        let alike = |before: &Column, column: &Column| {
            let may_be = |(one, other): (&Word, &Word)| match (one, other) {
                (Word::Name(one), Word::Name(other)) => one == other || gone.contains(one) && fresh.contains(other),
                _ => one == other,
            };
            let (one, other) = (words(&before.definition), words(&column.definition));
            one.len() == other.len() && one.iter().zip(&other).all(may_be)
        };
        let drop = |before: &Column| {
            before.can_go.then(|| format!("ALTER TABLE {table} DROP COLUMN {}", quoted(&before.name)))
        };
        let mut at = 0;
        for column in &new.columns {
            // What is gone stands before it.
            while let Some(before) = old.columns.get(at)
                && is_gone(before)
                && (!is_fresh(column) || !alike(before, column))
            {
                statements.push(drop(before)?);
                at += 1;
            }
            let Some(before) = old.columns.get(at) else {
                if !column.can_come {
                    return None;
                }
                let definition = format!("{} {}", quoted(&column.name), column.definition);
                statements.push(format!("ALTER TABLE {table} ADD COLUMN {}", definition.trim_end()));
                was.push(None);
                continue;
            };
            if is_gone(before) && is_fresh(column) {
                let (from, to) = (quoted(&before.name), quoted(&column.name));
                statements.push(format!("ALTER TABLE {table} RENAME COLUMN {from} TO {to}"));
                renamed.insert(folded(&before.name), folded(&column.name));
            } else if folded(&before.name) != folded(&column.name) {
                return None;
            }
            was.push(Some(at));
            at += 1;
        }
        for before in old.columns.get(at..).unwrap_or(&[]) {
            statements.push(drop(before)?);
        }
        let mut kept = was.iter().zip(&new.columns).filter_map(|(was, column)| Some((&old.columns[(*was)?], column)));
        // Where there are no rowids the engine leaves values of a column that was dropped in their place, and takes one
        // column for another after it has renamed one.
        let is_simple = gone.is_empty() || new.has_rowids;
        let stays = kept.clone().next().is_some() && old.has_rowids == new.has_rowids;
        let same = |one: &str, other: &str| is_renamed(one, other, &renamed);
        (is_simple
            && stays
            && kept.all(|(one, other)| same(&one.definition, &other.definition))
            && same(&old.rest, &new.rest))
        .then_some(Alteration { statements, was, renamed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(sql: &str) -> Table {
        Table::parse(sql).unwrap_or_else(|| panic!("{sql}"))
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
        alters(t, "CREATE TABLE T(A INTEGER PRIMARY KEY, B TEXT, c DEFAULT 1)", &[]);
        alters(
            t,
            "CREATE TABLE \"U\"(a INTEGER PRIMARY KEY, b TEXT, c DEFAULT 1)",
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
    fn constraints_follow_the_names_of_columns() {
        alters(
            "CREATE TABLE t(a INT CHECK (a > 1), b, UNIQUE(a, b))",
            "CREATE TABLE t(\"z\" INT CHECK (\"z\" > 1), b, UNIQUE(\"z\", b))",
            &[r#"ALTER TABLE "t" RENAME COLUMN "a" TO "z""#],
        );
    }

    #[test]
    fn what_alter_table_cannot_do_is_no_alteration() {
        let t = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c, d UNIQUE)";
        for other in [
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b INT, c, d UNIQUE)",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, c, b TEXT, d UNIQUE)",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c, d UNIQUE, UNIQUE(b))",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, z TEXT, c, d UNIQUE, UNIQUE(c))",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c, d UNIQUE) WITHOUT ROWID",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c)",
            "CREATE TABLE t(b TEXT, c, d UNIQUE)",
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c, d UNIQUE, e NOT NULL)",
            "CREATE TABLE t(x, y)",
        ] {
            assert_eq!(Alteration::between(&table(t), &table(other)), None, "{other}");
        }
        let [before, after] =
            ["a", "b"].map(|key| table(&format!("CREATE TABLE t({key} INT PRIMARY KEY) WITHOUT ROWID")));
        assert_eq!(Alteration::between(&before, &after), None);
        let [plain, strict] = ["", " STRICT"].map(|options| table(&format!("CREATE TABLE t(a INT){options}")));
        assert_eq!(Alteration::between(&plain, &strict), None);
    }
}
