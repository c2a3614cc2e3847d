//! Tables, indexes and triggers that the engine cannot be given. Without one of them it has no schema at all, since what it was
//! not told of it would not keep in step, as an index of a table that it writes; but for tables for which [others stand
//! in](super::stand_in).

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use turso_core::schema::{BTreeTable, Index};
use turso_core::{Connection, Dialect, LimboError, SqliteDialect, SymbolTable};
use turso_parser::ast::{Cmd, Stmt};
use turso_parser::parser::Parser;

use super::first_page;
use super::pages::{LogPages, SchemaRow};
use super::stand_in::stand_in;
use super::unusable::Entries;
use crate::mirror::Error;
use crate::sqlite::btree::Page;

/// Opens a database. The engine may panic over a schema that it has not foreseen, and would do so again.
pub(super) fn caught<T>(open: impl FnOnce() -> turso_core::Result<T>) -> turso_core::Result<T> {
    let panicked =
        |_| Err(LimboError::InternalError("the SQL engine fails over its schema: see the log of the service".into()));
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(panicked)
}

/// What the engine does not open for good, as an error that names what is in its way; what may pass is to be tried again.
pub(super) fn unopened(log_name: &str, pages: &LogPages, error: &LimboError) -> Error {
    let find = |page: &mut Page| pages.find(1, page);
    if let Err(error @ Error::Format(_)) = first_page::permitted(log_name, pages.base(), find) {
        return error;
    }
    if may_pass(error) {
        return Error::Unavailable(format!("the SQL engine fails: {error}"));
    }
    match first_fault(pages) {
        Some((SchemaRow { kind, name, .. }, why)) => Error::Format(format!(
            "SQL cannot be run on the database of log {log_name:?}: the engine has not what {kind} {name:?} needs: {why}; drop or \
             change that with SQLite or a libSQL client, or read the database in a copy that `logmirror restore` makes"
        )),
        None => Error::Format(format!("SQL cannot be run on the database of log {log_name:?}: {error}")),
    }
}

/// Whether the engine may open the same database later.
fn may_pass(error: &LimboError) -> bool {
    !matches!(
        error,
        LimboError::Corrupt(_)
            | LimboError::NotADB
            | LimboError::InternalError(_)
            | LimboError::ParseError(_)
            | LimboError::LexerError(_)
            | LimboError::ConversionError(_)
            | LimboError::InvalidArgument(_)
            | LimboError::ExtensionError(_)
            | LimboError::UnsupportedEncoding(_)
            | LimboError::PlanningError(_)
            | LimboError::SqlError(_)
    )
}

/// Checks that the engine has all of the schema, after it read that. It goes on without the rest, indexes included, at the first
/// virtual table whose module it lacks. Blocks.
///
/// # Errors
/// That of the table, when it has not.
pub(super) fn check(connection: &Arc<Connection>) -> Result<(), LimboError> {
    const VIRTUAL: &str = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage = 0";
    let names = connection.prepare(VIRTUAL)?.run_collect_rows()?;
    for name in names.into_iter().flatten().map(|value| value.to_string()) {
        connection.prepare(format!("SELECT 1 FROM \"{}\"", name.replace('"', "\"\"")))?;
    }
    Ok(())
}

/// Whether the engine may not be given all of the schema as it is.
pub(super) fn is_in_part(pages: &LogPages) -> bool {
    entries(pages, |row, tables| fault(row, tables).map(drop)).is_some()
}

/// The tables for which others stand in, and their indexes, each with the reason in words. Blocks.
///
/// # Errors
/// [`Error::Format`] when they cannot be told.
pub(super) fn unusable(log_name: &str, pages: &LogPages) -> Result<Entries, Error> {
    let (mut tables, mut rows) = (HashMap::new(), Vec::new());
    let read = pages.schema(|row| {
        rows.push(row);
        true
    });
    read.map_err(|error| Error::Format(format!("the schema of log {log_name:?} cannot be read: {error}")))?;
    let mut reasons = HashMap::new();
    for row in rows.iter().filter(|row| row.kind == "table" && row.root != 0) {
        if let Some(why) = fault(row, &mut tables) {
            let text = format!(
                "table {:?} cannot be used here: the SQL engine has not what it needs: {why}; other tables can, and this one with \
                 SQLite or a libSQL client",
                row.name
            );
            reasons.insert(row.name.to_lowercase(), text);
        }
    }
    let mut found = Entries::default();
    for row in rows.iter().filter(|row| matches!(row.kind.as_str(), "table" | "index")) {
        let Some(why) = reasons.get(&row.table.to_lowercase()) else { continue };
        found.names.insert(row.name.to_lowercase(), why.clone());
        // Page 1 is that of the schema.
        if let Some(root) = u32::try_from(row.root).ok().filter(|root| *root > 1) {
            found.roots.insert(root, why.clone());
        }
    }
    Ok(found)
}

/// The first entry of the schema that the engine cannot be given, and why. One for which another stands in is none, unless there
/// is no other.
fn first_fault(pages: &LogPages) -> Option<(SchemaRow, String)> {
    let named = |row: &SchemaRow, why| Some((row.clone(), why));
    let for_good = entries(pages, |row, tables| {
        let stands_in =
            |_: &String| row.kind != "table" || row.root == 0 || table(row.sql.as_deref(), row.root).is_none();
        fault(row, tables).filter(stands_in).and_then(|why| named(row, why))
    });
    for_good.or_else(|| entries(pages, |row, tables| fault(row, tables).and_then(|why| named(row, why))))
}

type Tables = HashMap<String, (Option<String>, i64)>;

/// What `find` finds in the schema first.
fn entries<T>(pages: &LogPages, mut find: impl FnMut(&SchemaRow, &mut Tables) -> Option<T>) -> Option<T> {
    let (mut tables, mut found) = (Tables::new(), None);
    let read = pages.schema(|row| {
        found = find(&row, &mut tables);
        found.is_none()
    });
    if let Err(error) = read {
        log::debug!("the schema is not read to its end: {error}");
    }
    found
}

/// A table as the engine has it.
fn table(sql: Option<&str>, root: i64) -> Option<BTreeTable> {
    let sql = sql?;
    SqliteDialect.parse_table_sql(sql, root).ok().or_else(|| stand_in(sql, root))
}

/// Why the engine cannot be given an entry as it is. `tables` are the statements and roots of the tables before it.
fn fault(row: &SchemaRow, tables: &mut Tables) -> Option<String> {
    let sql = row.sql.as_deref()?;
    match row.kind.as_str() {
        "table" if row.root == 0 => {
            Some(module(sql).map_or_else(|| "a virtual table".to_owned(), |module| format!("the module {module}")))
        }
        "table" => {
            tables.insert(row.name.to_lowercase(), (row.sql.clone(), row.root));
            SqliteDialect.parse_table_sql(sql, row.root).err().map(|error| error.to_string())
        }
        "index" => {
            let (of, root) = tables.get(&row.table.to_lowercase())?;
            let table = table(of.as_deref(), *root)?;
            Index::from_sql(&SymbolTable::new(), sql, row.root, &table).err().map(|error| error.to_string())
        }
        "trigger" => match Parser::new(sql.as_bytes()).next_cmd() {
            Ok(Some(Cmd::Stmt(Stmt::CreateTrigger { .. }))) => None,
            Ok(_) => Some("another kind of statement".to_owned()),
            Err(error) => Some(error.to_string()),
        },
        _ => None,
    }
}

/// The module of a virtual table.
fn module(sql: &str) -> Option<String> {
    match Parser::new(sql.as_bytes()).next_cmd() {
        Ok(Some(Cmd::Stmt(Stmt::CreateVirtualTable(table)))) => Some(table.module_name.as_str().to_owned()),
        _ => None,
    }
}
