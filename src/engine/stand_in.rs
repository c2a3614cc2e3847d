//! [`Lenient`]: SQLite's dialect, in which a table is part of the schema although the engine has not all that it needs: without
//! it there would be no schema, also for the tables that have nothing to do with it.
//!
//! What stands in for it has its columns, keys, unique constraints and foreign keys, but no collations, checks and generated
//! columns, so it may neither be read nor written. It is not by this that it is kept from that: the [roots](super::unusable)
//! of the table and its indexes are not readable for the engine.

use std::sync::atomic::{AtomicBool, Ordering};

use turso_core::schema::{BTreeTable, Schema};
use turso_core::{Dialect, Func, Result, SqliteDialect};
use turso_parser::ast::{
    Cmd, ColumnConstraint, CreateTableBody, Expr, QualifiedName, SortedColumn, Stmt, TableConstraint,
};
use turso_parser::parser::Parser;

/// The dialect of an engine.
#[derive(Debug, Default)]
pub(super) struct Lenient {
    stood_in: AtomicBool,
}

impl Lenient {
    /// Whether any table is not as it should be.
    pub(super) fn stood_in(&self) -> bool {
        self.stood_in.load(Ordering::Acquire)
    }
}

impl Dialect for Lenient {
    fn name(&self) -> &'static str {
        SqliteDialect.name()
    }

    fn parse(&self, sql: &str) -> Result<(Option<Cmd>, usize)> {
        SqliteDialect.parse(sql)
    }

    fn parse_table_sql(&self, sql: &str, root_page: i64) -> Result<BTreeTable> {
        SqliteDialect.parse_table_sql(sql, root_page).or_else(|error| {
            self.stood_in.store(true, Ordering::Release);
            stand_in(sql, root_page).ok_or(error)
        })
    }

    fn parse_table_sql_ast(&self, sql: &str) -> Result<Stmt> {
        SqliteDialect.parse_table_sql_ast(sql)
    }

    fn table_sql_for_replay(&self, sql: &str) -> Result<String> {
        SqliteDialect.table_sql_for_replay(sql)
    }

    fn format_table_sql(&self, input: &str, tbl_name: &QualifiedName, body: &CreateTableBody) -> Result<String> {
        SqliteDialect.format_table_sql(input, tbl_name, body)
    }

    fn format_rewritten_table_sql(&self, stmt: &Stmt) -> Result<String> {
        SqliteDialect.format_rewritten_table_sql(stmt)
    }

    fn register_catalog(&self, schema: &mut Schema, enable_custom_types: bool) -> Result<()> {
        SqliteDialect.register_catalog(schema, enable_custom_types)
    }

    fn resolve_function(&self, name: &str, arg_count: usize) -> Result<Option<Func>> {
        SqliteDialect.resolve_function(name, arg_count)
    }
}

/// What stands in for a table that the engine cannot be given as it is; none where it cannot even be parsed.
pub(super) fn stand_in(sql: &str, root_page: i64) -> Option<BTreeTable> {
    let Ok(Some(Cmd::Stmt(Stmt::CreateTable { tbl_name, mut body, .. }))) = Parser::new(sql.as_bytes()).next_cmd()
    else {
        return None;
    };
    let CreateTableBody::ColumnsAndConstraints { columns, constraints, .. } = &mut body else { return None };
    for column in columns {
        column.constraints.retain(|named| {
            !matches!(
                named.constraint,
                ColumnConstraint::Check { .. } | ColumnConstraint::Collate { .. } | ColumnConstraint::Generated { .. }
            )
        });
    }
    constraints.retain(|named| !matches!(named.constraint, TableConstraint::Check { .. }));
    for named in constraints {
        if let TableConstraint::PrimaryKey { columns, .. } | TableConstraint::Unique { columns, .. } =
            &mut named.constraint
        {
            columns.iter_mut().for_each(without_collation);
        }
    }
    BTreeTable::from_create_table_ast(&tbl_name, &body, root_page).ok()
}

fn without_collation(column: &mut SortedColumn) {
    if let Expr::Collate(expr, _) = &mut *column.expr {
        column.expr = expr.clone();
    }
}
