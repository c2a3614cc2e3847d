//! [`Cursor`]: a batch whose rows are answered while they are found.

use serde::Serialize;

use super::answer::{Line, SqlError};
use super::batch::{StepState, Stored, holds, resolve, told};
use super::execute::{Prepared, Runner, Stopped};
use super::numbers;
use super::request::Batch;
use crate::limits::SQL_CURSOR_PIECE;
use crate::sync::turso::Value;

/// A batch that is under way.
pub(super) struct Cursor {
    batch: Batch,
    states: Vec<StepState>,
    /// The statement of the current step, once it is begun.
    open: Option<Prepared>,
    pub(super) rows: u64,
}

/// How far a cursor came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// A piece is full.
    Piece,
    /// The next step writes, and it is not its turn.
    NeedsTurn,
    /// All steps have run.
    End,
}

impl Cursor {
    pub(super) fn new(batch: Batch) -> Cursor {
        Cursor { batch, states: Vec::new(), open: None, rows: 0 }
    }

    pub(super) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Goes on until `out` has a piece of lines, or there is nothing more. Blocks.
    pub(super) fn advance(&mut self, runner: &Runner<'_>, stored: &Stored, out: &mut Vec<u8>) -> Came {
        while self.states.len() < self.batch.steps.len() {
            match self.step(runner, stored, out) {
                Ok(Some(state)) => {
                    self.open = None;
                    self.states.push(state);
                }
                Ok(None) => return Came::Piece,
                Err(Stopped::NeedsTurn) => return Came::NeedsTurn,
                Err(Stopped::Failed(error)) => {
                    self.open = None;
                    line(out, &Line::StepError { step: self.states.len(), error: &error });
                    self.states.push(StepState::Failed);
                }
            }
            if out.len() >= SQL_CURSOR_PIECE {
                return Came::Piece;
            }
        }
        Came::End
    }

    /// Runs the current step; none when the piece was full before its end.
    fn step(&mut self, runner: &Runner<'_>, stored: &Stored, out: &mut Vec<u8>) -> Result<Option<StepState>, Stopped> {
        let number = self.states.len();
        let Some(step) = self.batch.steps.get(number) else { return Ok(Some(StepState::Skipped)) };
        let mut prepared = match self.open.take() {
            Some(prepared) => prepared,
            None if !holds(step.condition.as_ref(), &self.states, runner) => {
                return Ok(Some(StepState::Skipped));
            }
            None => {
                let sql = resolve(&step.stmt.text, stored)?;
                let mut prepared = told(sql, runner.prepare(sql))?;
                prepared.statement.set_query_timeout_override(Some(None));
                told(sql, prepared.bind(&step.stmt).map_err(Stopped::Failed))?;
                line(out, &Line::StepBegin { step: number, cols: &prepared.cols() });
                prepared
            }
        };
        let failed = |error: SqlError| {
            let sql = resolve(&step.stmt.text, stored).unwrap_or_default();
            told::<()>(sql, Err(Stopped::Failed(error.clone()))).err().unwrap_or(Stopped::Failed(error))
        };
        while let Some(row) = prepared.step(runner).map_err(failed)? {
            if step.stmt.want_rows {
                let row: Vec<Value> = row.get_values().map(Value::from).collect();
                line(out, &Line::Row { row: &row });
                self.rows += 1;
                if out.len() >= SQL_CURSOR_PIECE {
                    self.open = Some(prepared);
                    return Ok(None);
                }
            }
        }
        let last_insert_rowid = prepared.last_insert_rowid(runner.session.connection());
        line(out, &Line::StepEnd { affected_row_count: prepared.affected(), last_insert_rowid });
        Ok(Some(StepState::Ok))
    }
}

/// Writes a line of JSON.
pub(super) fn line(out: &mut Vec<u8>, line: &impl Serialize) {
    match numbers::write(&mut *out, line) {
        Ok(()) => out.push(b'\n'),
        Err(error) => log::error!("a line of a cursor was not written: {error}"),
    }
}
