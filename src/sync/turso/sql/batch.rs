//! The requests of a call, one after the other. What one of them fails with is its result, and the next ones run.

use std::cell::Cell;
use std::collections::HashMap;

use super::answer::{BatchResult, Outcome, Response, SqlError};
use super::execute::{Room, Runner, Stopped, cut};
use super::guard::{self, Leaves};
use super::memory::MemoryShare;
use super::request::{Batch, Cond, Request, Stmt, Text};
use crate::limits::{SQL_STORED_BYTES_MAX, SQL_STORED_MAX};
use crate::mirror::Error;
use crate::sync::turso::Value;

/// SQL texts that a client stored on a stream.
#[derive(Debug, Default)]
pub(super) struct Stored {
    texts: HashMap<i32, StoredText>,
    /// See [`locks`](Self::locks).
    locks: Cell<bool>,
}

#[derive(Debug)]
struct StoredText {
    sql: String,
    /// Some of it is a `BEGIN IMMEDIATE` or `EXCLUSIVE`.
    locks: bool,
}

impl Stored {
    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Whether a text that was used since the last [`unlock`](Self::unlock) wants that nobody else writes from then on.
    pub(super) fn locks(&self) -> bool {
        self.locks.get()
    }

    /// What was open is over.
    pub(super) fn unlock(&mut self) {
        self.locks.set(false);
    }

    /// The text for use.
    fn get(&self, id: i32) -> Option<&str> {
        let text = self.texts.get(&id)?;
        self.locks.set(self.locks.get() || text.locks);
        Some(&text.sql)
    }
}

/// What became of the steps so far, for the conditions of the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepState {
    Skipped,
    Ok,
    Failed,
}

/// The requests of a call have run.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) closed: bool,
}

/// It turned out that something writes. All that has run before only read, and may run again: a transaction that it began is rolled
/// back.
#[derive(Debug)]
pub(super) struct NeedsTurn;

/// What is known of a call beforehand. What cannot be told yet, such as of stored SQL, is found out when it runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Foreseen {
    /// Some of it may write.
    pub(super) writes: bool,
    /// Some of it wants that nobody else writes from then on.
    pub(super) locks: bool,
    /// Some of it may begin a transaction.
    pub(super) opens: bool,
    /// Some of it ends a transaction.
    pub(super) ends: bool,
    /// Some of it may change the database, or says that it will.
    pub(super) changes: bool,
    /// Some of it may leave something behind on its connection, or ask for what was left there.
    pub(super) personal: bool,
    /// What it leaves behind at most.
    pub(super) leaves: Leaves,
    /// Some of it may ask for the counts of statements before.
    pub(super) recalls: bool,
    /// It is from a client of the sync protocol that pushes, or asks how far it got.
    pub(super) pushes: bool,
}

impl Foreseen {
    /// Of requests.
    pub(super) fn of(requests: &[Request]) -> Foreseen {
        let mut found = Foreseen::default();
        for request in requests {
            match request {
                Request::Execute(stmt) => found.add(&stmt.text),
                Request::Batch(batch) => found.add_batch(batch),
                Request::Sequence(text) => found.add_sequence(text),
                _ => found.personal = true,
            }
        }
        found.found()
    }

    /// Of a batch.
    pub(super) fn of_batch(batch: &Batch) -> Foreseen {
        let mut found = Foreseen::default();
        found.add_batch(batch);
        found.found()
    }

    /// What is known when all is added. A client that says itself what is checked has the last word.
    fn found(self) -> Foreseen {
        Foreseen { pushes: self.pushes && self.leaves < Leaves::Settings, ..self }
    }

    fn add_batch(&mut self, batch: &Batch) {
        batch.steps.iter().for_each(|step| self.add(&step.stmt.text));
    }

    fn add(&mut self, text: &Text) {
        // Whether stored SQL locks shows when it is used. What is no one statement fails when it comes to run.
        match text.sql.as_deref().map(guard::inspect) {
            None => {
                (self.personal, self.leaves, self.recalls) = (true, Leaves::Settings, true);
                self.writes |= self.ends;
            }
            Some(Ok(inspected)) => self.add_inspected(inspected),
            Some(Err(_)) => {}
        }
    }

    fn add_sequence(&mut self, text: &Text) {
        if text.sql.is_none() {
            (self.leaves, self.recalls) = (Leaves::Settings, true);
        }
        self.personal = true;
        let statements = text.sql.as_deref().and_then(|sql| guard::split(sql).ok()).unwrap_or_default();
        statements.into_iter().filter_map(|sql| guard::inspect(sql).ok()).for_each(|one| self.add_inspected(one));
    }

    fn add_inspected(&mut self, inspected: guard::Inspected) {
        // What comes after the end of a transaction cannot be found to write only then: the end would run again.
        self.writes |= inspected.needs_turn() || self.ends && !inspected.ends;
        self.ends |= inspected.ends;
        self.locks |= inspected.locks;
        self.opens |= inspected.controls;
        self.changes |= inspected.locks || inspected.may_write && !inspected.controls;
        self.personal |= !inspected.clean;
        self.leaves = self.leaves.max(inspected.leaves);
        self.recalls |= inspected.recalls;
        self.pushes |= inspected.bookkeeping;
    }
}

/// Refuses a push with a row whose infinity was lost on its way: JSON has no word for one, and clients write null, whatever its
/// sign. A client that is refused one statement has the others committed, and goes on without the row.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn check_pushed(requests: &[Request]) -> Result<(), Error> {
    let batches =
        requests.iter().filter_map(|request| if let Request::Batch(batch) = request { Some(batch) } else { None });
    let is_lost = |value: &Value| matches!(value, Value::Float(float) if float.is_nan());
    for (number, step) in batches.flat_map(|batch| batch.steps.iter().enumerate()) {
        if let Some(argument) = step.stmt.args.iter().position(is_lost) {
            let (argument, sql) = (argument + 1, step.stmt.text.sql.as_deref().map(cut).unwrap_or_default());
            return Err(Error::Invalid(format!(
                "argument {argument} of step {number} ({sql}) is a float without a number: an infinity, which clients cannot push; \
                 nothing of this push was run. Give the row another value, and delete the change with the infinity from turso_cdc, \
                 both on the client"
            )));
        }
    }
    Ok(())
}

/// The SQL that a text stands for.
pub(super) fn resolve<'a>(text: &'a Text, stored: &'a Stored) -> Result<&'a str, SqlError> {
    match (&text.sql, text.sql_id) {
        (Some(sql), None) => Ok(sql),
        (None, Some(id)) => {
            let missing = || SqlError::of("SQL_NOT_FOUND", format!("no SQL is stored under {id} on this stream"));
            stored.get(id).ok_or_else(missing)
        }
        (Some(_), Some(_)) => Err(SqlError::of("SQL_INVALID", "give either sql or sql_id")),
        (None, None) => Err(SqlError::of("SQL_INVALID", "sql or sql_id is missing")),
    }
}

/// Runs requests. Blocks.
pub(super) fn run(
    runner: Runner<'_>,
    requests: &[Request],
    stored: &mut Stored,
    share: &mut MemoryShare,
) -> Result<Ran, NeedsTurn> {
    let (connection, was_over) = (runner.session.connection(), runner.session.connection().get_auto_commit());
    let mut runner = Requests { runner, stored, room: Room::new(share) };
    let mut outcomes = Vec::with_capacity(requests.len());
    for request in requests {
        outcomes.push(match runner.request(request) {
            Ok(response) => Outcome::Ok { response },
            Err(Stopped::Failed(error)) => Outcome::Error { error },
            Err(Stopped::NeedsTurn) => {
                if was_over
                    && !connection.get_auto_commit()
                    && let Err(error) = connection.execute("ROLLBACK")
                {
                    log::warn!("a transaction that has only read was not rolled back: {error}");
                }
                return Err(NeedsTurn);
            }
        });
    }
    let closed = matches!(requests.last(), Some(Request::Close));
    Ok(Ran { outcomes, closed })
}

struct Requests<'a> {
    runner: Runner<'a>,
    stored: &'a mut Stored,
    room: Room<'a>,
}

impl Requests<'_> {
    fn request(&mut self, request: &Request) -> Result<Response, Stopped> {
        match request {
            Request::Execute(stmt) => self.execute(stmt).map(|result| Response::Execute { result }),
            Request::Batch(batch) => self.batch(batch).map(|result| Response::Batch { result }),
            Request::Sequence(text) => {
                let sql = resolve(text, self.stored)?;
                told(sql, self.runner.sequence(sql)).map(|()| Response::Sequence)
            }
            Request::Describe(text) => {
                let sql = resolve(text, self.stored)?;
                let result = told(sql, self.runner.describe(sql))?;
                Ok(Response::Describe { result })
            }
            Request::StoreSql { id, sql } => {
                self.store(*id, sql)?;
                Ok(Response::StoreSql)
            }
            Request::CloseSql { id } => {
                self.stored.texts.remove(id);
                Ok(Response::CloseSql)
            }
            Request::GetAutocommit => Ok(Response::GetAutocommit { is_autocommit: self.runner.is_autocommit() }),
            Request::Close => Ok(Response::Close),
            Request::Unknown(kind) => {
                Err(SqlError::of("UNKNOWN_REQUEST", format!("there is no request of type {kind:?}")).into())
            }
        }
    }

    fn execute(&mut self, stmt: &Stmt) -> Result<super::answer::StmtResult, Stopped> {
        let sql = resolve(&stmt.text, self.stored)?;
        told(sql, self.runner.execute(sql, stmt, &mut self.room))
    }

    fn batch(&mut self, batch: &Batch) -> Result<BatchResult, Stopped> {
        let (mut states, mut step_results, mut step_errors) = (Vec::new(), Vec::new(), Vec::new());
        for step in &batch.steps {
            let runs = holds(step.condition.as_ref(), &states, &self.runner);
            let (result, error) = match runs.then(|| self.execute(&step.stmt)) {
                None => (None, None),
                Some(Ok(result)) => (Some(result), None),
                Some(Err(Stopped::Failed(error))) => (None, Some(error)),
                Some(Err(stopped)) => return Err(stopped),
            };
            states.push(match (&result, &error) {
                (Some(_), _) => StepState::Ok,
                (None, Some(_)) => StepState::Failed,
                (None, None) => StepState::Skipped,
            });
            step_results.push(result);
            step_errors.push(error);
        }
        Ok(BatchResult { step_results, step_errors, replication_index: None })
    }

    fn store(&mut self, id: i32, sql: &str) -> Result<(), SqlError> {
        let others = self.stored.texts.iter().filter(|(other, _)| **other != id);
        let (count, bytes) = others.fold((0, 0), |(count, bytes), (_, text)| (count + 1, bytes + text.sql.len()));
        if count >= SQL_STORED_MAX || bytes + sql.len() > SQL_STORED_BYTES_MAX {
            let text = format!("a stream stores {SQL_STORED_MAX} texts of {SQL_STORED_BYTES_MAX} bytes at most");
            return Err(SqlError::of("SQL_STORE_TOO_LARGE", text));
        }
        let statements = guard::split(sql).unwrap_or_default();
        let locks = statements.into_iter().any(|one| guard::inspect(one).is_ok_and(|inspected| inspected.locks));
        self.stored.texts.insert(id, StoredText { sql: sql.to_owned(), locks });
        Ok(())
    }
}

/// Logs what failed, for those who look for it: a statement, and an error about it, may hold what users wrote.
pub(super) fn told<T>(sql: &str, result: Result<T, Stopped>) -> Result<T, Stopped> {
    if let Err(Stopped::Failed(error)) = &result {
        log::debug!("SQL failed: {}: {}", error.message, cut(sql));
    }
    result
}

/// Whether a step runs. A step that was skipped, or is to come, is neither ok nor an error.
pub(super) fn holds(cond: Option<&Cond>, states: &[StepState], runner: &Runner<'_>) -> bool {
    let Some(cond) = cond else { return true };
    let holds = |cond| holds(Some(cond), states, runner);
    match cond {
        Cond::Ok(step) => states.get(*step) == Some(&StepState::Ok),
        Cond::Error(step) => states.get(*step) == Some(&StepState::Failed),
        Cond::Not(cond) => !holds(cond),
        Cond::And(conds) => conds.iter().all(holds),
        Cond::Or(conds) => conds.iter().any(holds),
        Cond::IsAutocommit => runner.is_autocommit(),
    }
}
