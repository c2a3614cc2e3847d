//! The declared type of a result column, as SQLite reports it.

use turso_core::Statement;
use turso_core::schema::Table;
use turso_parser::ast::Expr;

/// What the column of a table was declared with, its length or precision included; none for what is no column. Of a column of
/// a subquery the engine knows the affinity at most, and of that only the names that are types too are one.
pub(super) fn of(statement: &Statement, at: usize, explains: bool) -> Option<String> {
    let told = statement.get_column_decltype(at)?;
    let program = statement.get_program().prepared();
    let column = program.result_columns.get(at).filter(|_| !explains).map(|column| &column.expr);
    let Some(Expr::Column { table, column, .. }) = column else { return Some(told) };
    let (_, table) = program.table_references.find_table_by_internal_id(*table)?;
    if matches!(table, Table::FromClauseSubquery(_)) {
        return Some(told).filter(|told| matches!(told.as_str(), "INTEGER" | "REAL" | "TEXT"));
    }
    let parameters: Vec<String> = table.get_column_at(*column)?.ty_params.iter().map(ToString::to_string).collect();
    Some(if parameters.is_empty() { told } else { format!("{told}({})", parameters.join(",")) })
}
