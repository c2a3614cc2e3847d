//! What a statement that failed means: that the change is given up, or that all of it has to be tried again.

use std::borrow::Cow;

use super::change::{Otherwise, Statement};
use super::error::ReplicaError;
use super::report::{Conflict, Doing, During};

/// Why a statement failed, as SQLite has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The name of SQLite's code, as far as it is known.
    pub(super) code: String,
    pub(super) message: String,
}

impl From<&turso_core::LimboError> for Failure {
    fn from(error: &turso_core::LimboError) -> Failure {
        let code = match error.sqlite_result_code() {
            1 => "SQLITE_ERROR",
            18 => "SQLITE_TOOBIG",
            19 => "SQLITE_CONSTRAINT",
            20 => "SQLITE_MISMATCH",
            _ => "SQLITE_OTHER",
        };
        Failure { code: code.to_owned(), message: error.to_string() }
    }
}

impl Failure {
    /// Whether the transaction has become larger, or taken longer, than the remote lets one: parts of it may not.
    pub(super) fn is_of_the_size(&self) -> bool {
        const WORDS: [&str; 5] = ["larger than", "too large", "too big", "timed out", "timed-out"];
        let message = self.message.to_lowercase();
        let of_a_row = self.code.starts_with("SQLITE_TOOBIG");
        !of_a_row && message.contains("transaction") && WORDS.iter().any(|words| message.contains(words))
    }

    fn is_of_a_constraint(&self) -> bool {
        self.code.starts_with("SQLITE_CONSTRAINT") || self.message.contains("UNIQUE constraint failed")
    }

    /// Whether something was to be made that is there.
    fn is_of_what_is_there(&self) -> bool {
        let message = self.message.to_lowercase();
        message.contains("duplicate column") || message.contains("already exists") || message.contains("already a")
    }

    /// Whether the statement fails for what it says, and not for what the machine is in.
    fn is_of_the_statement(&self) -> bool {
        const OF_THE_MACHINE: [&str; 12] = [
            "internal error",
            "i/o",
            "io error",
            "completion",
            "busy",
            "locked",
            "out of memory",
            "disk",
            "interrupt",
            "stale",
            "corrupt",
            "terminated",
        ];
        let has = |code: &str| self.code.starts_with(code);
        let of_the_statement = ["SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH", "SQL_REFUSED"];
        if of_the_statement.into_iter().any(has) {
            return true;
        }
        let message = self.message.to_lowercase();
        let unclear = self.code.is_empty() || has("SQLITE_ERROR") || has("SQL_");
        unclear && !OF_THE_MACHINE.iter().any(|words| message.contains(words))
    }
}

/// What became of a statement.
pub(super) enum Verdict<'a> {
    /// It did what it was to do.
    Done,
    /// It met what others did: this is to be done instead, and told.
    Otherwise(Cow<'a, Statement>, Conflict),
    /// It cannot be done.
    GivenUp(Conflict),
}

/// Judges what became of a statement: the rows it changed, or why it failed.
///
/// # Errors
/// When it failed for a reason that may pass.
pub(super) fn judge(
    during: During,
    statement: &Statement,
    outcome: Result<u64, Failure>,
) -> Result<Verdict<'_>, ReplicaError> {
    let conflict = |error: String| Conflict { during, about: statement.about.clone(), error };
    match outcome {
        Ok(0) if let Otherwise::IfNone(otherwise) = &statement.otherwise => {
            let text = "somebody else deleted or replaced the row; it is there again, as it is here";
            Ok(Verdict::Otherwise(Cow::Borrowed(otherwise), conflict(text.into())))
        }
        Ok(0) if statement.otherwise == Otherwise::TellIfNone => {
            Ok(Verdict::GivenUp(conflict("somebody else changed or deleted the row; nothing is deleted".into())))
        }
        Err(failure)
            if let Otherwise::IfTaken(then) = &statement.otherwise
                && failure.is_of_a_constraint() =>
        {
            let text = "somebody else added a row with the same key; it is overwritten";
            let sql = format!("{}{then}", statement.sql);
            let otherwise = Statement { sql, otherwise: Otherwise::Nothing, ..statement.clone() };
            Ok(Verdict::Otherwise(Cow::Owned(otherwise), conflict(text.into())))
        }
        Ok(_) => Ok(Verdict::Done),
        Err(failure) if statement.otherwise == Otherwise::Fail => {
            Err(ReplicaError::Statement { sql: statement.sql.clone(), error: failure.message })
        }
        // Whoever made it first: it is there. If it is something else, rows will tell.
        Err(failure) if statement.about.doing == Doing::Schema && failure.is_of_what_is_there() => Ok(Verdict::Done),
        Err(failure) if failure.is_of_the_statement() => Ok(Verdict::GivenUp(conflict(failure.message))),
        Err(failure) => Err(ReplicaError::Statement { sql: statement.sql.clone(), error: failure.message }),
    }
}
