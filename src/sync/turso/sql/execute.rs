//! One statement: prepared, bound, run.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::num::NonZero;
use std::time::Instant;

use turso_core::{Connection, Statement};

use super::answer::{Col, Description, Param, SqlError, StmtResult, is_too_large};
use super::decltype;
use super::guard::{self, Inspected};
use super::memory::MemoryShare;
use super::request::{NamedArg, Stmt};
use super::spelling::respelled;
use super::threads::{statement_is_prepared, statement_runs};
use super::transaction::Transaction;
use crate::engine::Session;
use crate::limits::{SQL_ANSWER_BYTES_MAX, SQL_LOGGED_CHARS};
use crate::sync::turso::Value;

/// What runs statements: a session, what its client believes of the transaction there, and whether it is its turn to write.
pub(super) struct Runner<'a> {
    pub(super) session: &'a Session,
    pub(super) transaction: &'a Transaction,
    pub(super) may_write: bool,
}

/// Why a statement gave no result.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It failed, or was refused.
    Failed(SqlError),
    /// It writes, and it is not its turn. Nothing of it has run.
    NeedsTurn,
}

impl From<SqlError> for Stopped {
    fn from(error: SqlError) -> Stopped {
        Stopped::Failed(error)
    }
}

/// A statement that is ready to run.
pub(super) struct Prepared {
    pub(super) statement: Statement,
    pub(super) inspected: Inspected,
    /// It runs in a transaction that is open.
    in_transaction: bool,
}

/// What an answer may still take.
pub(super) struct Room<'a> {
    pub(super) share: &'a mut MemoryShare,
    left: usize,
}

impl Room<'_> {
    /// Room for one answer.
    pub(super) fn new(share: &mut MemoryShare) -> Room<'_> {
        Room { share, left: SQL_ANSWER_BYTES_MAX }
    }

    fn take(&mut self, bytes: usize) -> Result<(), SqlError> {
        const CODE: &str = "SQL_RESPONSE_TOO_LARGE";
        let Some(left) = self.left.checked_sub(bytes) else {
            let text =
                format!("the rows take more than {SQL_ANSWER_BYTES_MAX} bytes: ask for fewer, or use /v3/cursor");
            return Err(SqlError::of(CODE, text));
        };
        if !self.share.try_grow(bytes) {
            return Err(SqlError::of(CODE, "the memory for SQL is used up: try again later, or use /v3/cursor"));
        }
        self.left = left;
        Ok(())
    }
}

impl Runner<'_> {
    /// Prepares the one statement in `sql`.
    pub(super) fn prepare(&self, sql: &str) -> Result<Prepared, Stopped> {
        log::debug!("SQL: {}", cut(sql));
        let inspected = guard::inspect(sql)?;
        self.transaction.check(&inspected)?;
        if inspected.needs_turn() && !self.may_write {
            return Err(Stopped::NeedsTurn);
        }
        let connection = self.session.connection();
        self.transaction.begin(sql, &inspected, connection)?;
        // Whoever has the turn need not lock: BEGIN IMMEDIATE would also make a temporary database, of files, each time.
        let sql = if inspected.begins { Cow::Borrowed("BEGIN") } else { spelled(sql, &inspected) };
        let alters = |statement: &Statement| inspected.alters && !(inspected.clean && does_nothing(statement));
        let keeps = |statement: &Statement| inspected.clean && !inspected.explains && !alters(statement);
        statement_is_prepared();
        let statement = self.session.prepare(&sql, keeps).map_err(SqlError::from)?;
        statement_runs();
        // A view may hide that it writes.
        if writes(&statement, &inspected) && !self.may_write {
            return Err(Stopped::NeedsTurn);
        }
        if alters(&statement) {
            self.session.alters_schema();
        }
        Ok(Prepared { statement, inspected, in_transaction: !connection.get_auto_commit() })
    }

    /// Whether no transaction is open, as far as the client knows.
    pub(super) fn is_autocommit(&self) -> bool {
        self.transaction.is_over(self.session.connection())
    }

    /// Runs a statement whole.
    pub(super) fn execute(&self, sql: &str, stmt: &Stmt, room: &mut Room<'_>) -> Result<StmtResult, Stopped> {
        let since = Instant::now();
        let mut prepared = self.prepare(sql)?;
        prepared.bind(stmt)?;
        let mut result = StmtResult { cols: prepared.cols(), ..StmtResult::default() };
        let (writes, mut refused) = (writes(&prepared.statement, &prepared.inspected), None);
        while let Some(row) = prepared.step(self)? {
            if !stmt.want_rows || refused.is_some() {
                continue;
            }
            let row: Vec<Value> = row.get_values().map(Value::from).collect();
            match room.take(size_of::<Vec<Value>>() + row.iter().map(Value::weight).sum::<usize>()) {
                Ok(()) => result.rows.push(row),
                // What it changes it has changed before its first row, and stopping now would not undo it.
                Err(error) if writes => refused = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(SqlError { code, message }) = refused {
            return Err(SqlError::of(code, format!("the statement has run, but {message}")).into());
        }
        result.affected_row_count = prepared.affected();
        result.last_insert_rowid = prepared.last_insert_rowid(self.session.connection());
        result.query_duration_ms = since.elapsed().as_secs_f64() * 1000.0;
        Ok(result)
    }

    /// Runs all statements of a text, until one fails.
    pub(super) fn sequence(&self, sql: &str) -> Result<(), Stopped> {
        for sql in guard::split(sql)? {
            let mut prepared = self.prepare(sql)?;
            while prepared.step(self)?.is_some() {}
        }
        Ok(())
    }

    /// What a statement takes and gives. It does not run.
    pub(super) fn describe(&self, sql: &str) -> Result<Description, Stopped> {
        let inspected = guard::inspect(sql)?;
        let sql = spelled(sql, &inspected);
        statement_is_prepared();
        let statement = self.session.connection().prepare(&sql).map_err(SqlError::from)?;
        statement_runs();
        let parameters = statement.parameters();
        let numbers = (1..=parameters.count()).filter_map(NonZero::new);
        let params = numbers.map(|number| Param { name: parameters.name(number) }).collect();
        let is_readonly = !inspected.may_write && !writes(&statement, &inspected);
        let prepared = Prepared { statement, inspected, in_transaction: false };
        Ok(Description { params, cols: prepared.cols(), is_explain: inspected.explains, is_readonly })
    }
}

impl Prepared {
    /// Binds the arguments of a statement: by place, then by name without a sign (`:`, `@` or `$`), then by name.
    ///
    /// # Errors
    /// When there are more arguments than parameters, or a parameter has none; when one has a name that no parameter has, or is a
    /// float without a number.
    pub(super) fn bind(&mut self, stmt: &Stmt) -> Result<(), SqlError> {
        let invalid = |text: String| Err(SqlError::of("ARGS_INVALID", text));
        let mut values = stmt.args.iter().chain(stmt.named_args.iter().map(|named| &named.value));
        if values.any(|value| matches!(value, Value::Float(float) if float.is_nan())) {
            let text = "a float without a number is no NULL, and may have been an infinity, for which JSON has no word: send \
                        that as a number that is too large, such as 1e999, and NULL as null";
            return invalid(text.into());
        }
        let count = self.statement.parameters_count();
        if stmt.args.len() > count {
            return invalid(format!("{} arguments for a statement with {count} parameters", stmt.args.len()));
        }
        for (number, value) in (1..).filter_map(NonZero::new).zip(&stmt.args) {
            self.statement.bind_at(number, value.into())?;
        }
        let (mut bound, mut exact) = (BTreeSet::new(), Vec::new());
        for NamedArg { name, value } in &stmt.named_args {
            let named = |sign: &str| self.statement.parameter_index(&format!("{sign}{name}"));
            let (number, others) = (named(""), [":", "@", "$", "?"].map(named));
            if number.is_none() && others.iter().all(Option::is_none) {
                return invalid(format!("no parameter of the statement is named {name:?}"));
            }
            for number in others.into_iter().flatten() {
                self.statement.bind_at(number, value.into())?;
                bound.insert(number);
            }
            exact.extend(number.map(|number| (number, value)));
        }
        for (number, value) in exact {
            self.statement.bind_at(number, value.into())?;
            bound.insert(number);
        }
        let parameters = self.statement.parameters();
        let is_bound = |number: &NonZero<usize>| number.get() <= stmt.args.len() || bound.contains(number);
        let mut numbers = (1..=count).filter_map(NonZero::new).filter(|number| parameters.has_index(*number));
        match numbers.find(|number| !is_bound(number)).filter(|_| !self.inspected.explains) {
            None => Ok(()),
            Some(number) => {
                let name = parameters.name(number).map(|name| format!(" ({name})")).unwrap_or_default();
                invalid(format!(
                    "there is no argument for parameter {number}{name} of the statement: for NULL, send null"
                ))
            }
        }
    }

    pub(super) fn cols(&self) -> Vec<Col> {
        let col = |at| Col {
            name: self.statement.get_column_name(at).into_owned(),
            decltype: decltype::of(&self.statement, at, self.inspected.explains),
        };
        (0..self.statement.num_columns()).map(col).collect()
    }

    /// The next row. Blocks.
    pub(super) fn step(&mut self, runner: &Runner<'_>) -> Result<Option<&turso_core::Row>, SqlError> {
        self.statement.run_one_step_blocking(|| Ok(()), || Ok(())).map_err(|error| {
            let (is_too_large, error) = (is_too_large(&error), SqlError::from(error));
            // What ends it has its own answer.
            if self.in_transaction && !self.inspected.controls {
                runner.transaction.failed(&error, is_too_large, runner.session.connection());
            }
            error
        })
    }

    /// How many rows it changed, once it is at its end.
    pub(super) fn affected(&self) -> u64 {
        if self.inspected.changes_rows { self.statement.n_change().try_into().unwrap_or(0) } else { 0 }
    }

    /// The rowid of the last row it inserted, once it is at its end.
    pub(super) fn last_insert_rowid(&self, connection: &Connection) -> Option<String> {
        self.inspected.inserts.then(|| connection.last_insert_rowid().to_string())
    }
}

/// The text that the engine is given.
fn spelled<'a>(sql: &'a str, inspected: &Inspected) -> Cow<'a, str> {
    let other = if inspected.respells { respelled(sql) } else { None };
    other.map_or(Cow::Borrowed(sql), Cow::Owned)
}

/// Whether a statement writes to a database. The engine's own word for that says no of every query that sorts.
fn writes(statement: &Statement, inspected: &Inspected) -> bool {
    !inspected.explains && statement.get_program().prepared().write_databases.iter().next().is_some()
}

/// Whether a statement does nothing in its transaction, such as `CREATE TABLE IF NOT EXISTS` where there is that table.
fn does_nothing(statement: &Statement) -> bool {
    /// Its beginning, the transaction, the way back, and its end.
    const INSTRUCTIONS: usize = 4;
    statement.get_program().prepared().insns.len() <= INSTRUCTIONS
}

/// As much of an SQL text as is logged, on one line.
pub(super) fn cut(sql: &str) -> String {
    let line = |char: char| if char.is_control() { ' ' } else { char };
    let mut text: String = sql.chars().map(line).take(SQL_LOGGED_CHARS).collect();
    if sql.chars().nth(SQL_LOGGED_CHARS).is_some() {
        text.push('…');
    }
    text
}
