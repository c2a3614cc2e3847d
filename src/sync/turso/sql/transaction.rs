//! [`Transaction`]: what a client believes of the transaction on its stream, where its connection knows better.
//!
//! The engine rolls a transaction back by itself when a statement of it is too large, takes too long or meets a failure, and is in
//! autocommit then. Statements that were sent as its second half must not be stored alone: they are refused until the client
//! ends the transaction. Where SQL itself says that a statement ends the transaction (`ON CONFLICT ROLLBACK`,
//! `RAISE(ROLLBACK, …)`) statements after it run in autocommit, as in SQLite.

use std::cell::RefCell;
use std::sync::Arc;

use turso_core::Connection;

use super::answer::SqlError;
use super::guard::{self, Control, Inspected};

/// Code of what is refused, which is SQLite's for a statement whose transaction was rolled back under it.
const ROLLED_BACK: &str = "SQLITE_ABORT_ROLLBACK";

/// Of one stream.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// Why it was rolled back, if its client has not ended it since.
    lost: RefCell<Option<String>>,
    /// The savepoint that began it; none if a `BEGIN` did.
    savepoint: RefCell<Option<String>>,
}

impl Transaction {
    /// Whether none is open, as far as the client knows.
    pub(super) fn is_over(&self, connection: &Connection) -> bool {
        connection.get_auto_commit() && !self.is_lost()
    }

    /// Whether it was rolled back, and its client has not ended it.
    fn is_lost(&self) -> bool {
        self.lost.borrow().is_some()
    }

    /// Checks what the transaction allows before anything is known of a statement but its kind.
    ///
    /// # Errors
    /// When the transaction is lost, unless the statement may end it.
    pub(super) fn check(&self, inspected: &Inspected) -> Result<(), SqlError> {
        if self.is_lost() && (inspected.explains || !inspected.controls) { Err(self.refusal()) } else { Ok(()) }
    }

    /// Notes that a statement is about to run, which [`check`](Self::check) let through. One that ends a lost transaction ends it:
    /// a `ROLLBACK` finds an empty one on the connection, which it rolls back, and a `BEGIN` finds none.
    ///
    /// # Errors
    /// When the transaction is lost, and the statement is neither of the two.
    pub(super) fn begin(&self, sql: &str, inspected: &Inspected, connection: &Arc<Connection>) -> Result<(), SqlError> {
        if !inspected.controls || inspected.explains {
            return Ok(());
        }
        if !self.is_lost() {
            if connection.get_auto_commit() {
                let control = if inspected.begins { None } else { guard::control(sql) };
                *self.savepoint.borrow_mut() =
                    if let Some(Control::Savepoint(name)) = control { Some(name) } else { None };
            }
            return Ok(());
        }
        let is_outermost = |name: &String| self.savepoint.borrow().as_ref() == Some(name);
        match guard::control(sql) {
            Some(Control::Begin) => {
                self.end(connection)?;
                self.savepoint.take();
            }
            Some(Control::Rollback) => {
                self.end(connection)?;
                connection.execute("BEGIN")?;
            }
            Some(Control::Commit) => return Err(self.not_committed(connection)),
            Some(Control::Release(name)) if is_outermost(&name) => return Err(self.not_committed(connection)),
            _ => return Err(self.refusal()),
        }
        Ok(())
    }

    /// Notes that a statement failed which ran in a transaction and does not end it itself. One that is too large is lost, whatever
    /// the engine makes of it: its client was told that nothing of it is stored.
    pub(super) fn failed(&self, error: &SqlError, is_too_large: bool, connection: &Arc<Connection>) {
        if is_too_large
            && !connection.get_auto_commit()
            && let Err(error) = connection.execute("ROLLBACK")
        {
            log::debug!("a transaction that is too large is rolled back later: {error}");
        }
        let by_sql = error.code == "SQLITE_CONSTRAINT";
        if is_too_large || connection.get_auto_commit() && !by_sql {
            self.lost.borrow_mut().get_or_insert_with(|| error.message.clone());
        }
    }

    /// Ends one that is lost. Why it was.
    fn end(&self, connection: &Arc<Connection>) -> Result<String, SqlError> {
        if !connection.get_auto_commit() {
            connection.execute("ROLLBACK")?;
        }
        Ok(self.lost.take().unwrap_or_default())
    }

    fn refusal(&self) -> SqlError {
        let lost = self.lost.borrow();
        let cause = lost.as_deref().unwrap_or_default();
        let text = format!(
            "not run: the transaction that this belongs to was rolled back when a statement of it failed ({cause}); end it with \
             ROLLBACK, and begin it again"
        );
        SqlError::of(ROLLED_BACK, text)
    }

    fn not_committed(&self, connection: &Arc<Connection>) -> SqlError {
        let cause = match self.end(connection) {
            Ok(cause) => cause,
            Err(error) => return error,
        };
        let text = format!(
            "not committed: the transaction was rolled back when a statement of it failed ({cause}), and nothing of it was stored; \
             begin it again"
        );
        SqlError::of(ROLLED_BACK, text)
    }
}
