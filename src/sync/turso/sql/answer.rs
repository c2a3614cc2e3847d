//! What clients are answered, on its way to JSON.

use std::io;

use serde::Serialize;
use turso_core::{CompletionError, LimboError};

use super::numbers;
use crate::sync::turso::Value;

/// The answer to a pipeline.
#[derive(Debug, Serialize)]
pub(super) struct PipelineAnswer {
    pub(super) baton: Option<String>,
    pub(super) base_url: Option<String>,
    pub(super) results: Vec<Outcome>,
}

/// The first line of a cursor.
#[derive(Debug, Serialize)]
pub(super) struct CursorHead {
    pub(super) baton: String,
    pub(super) base_url: Option<String>,
}

/// What became of one request.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Outcome {
    Ok { response: Response },
    Error { error: SqlError },
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Response {
    Execute { result: StmtResult },
    Batch { result: BatchResult },
    Sequence,
    Describe { result: Description },
    StoreSql,
    CloseSql,
    GetAutocommit { is_autocommit: bool },
    Close,
}

/// A line of a cursor.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Line<'a> {
    StepBegin {
        step: usize,
        cols: &'a [Col],
    },
    Row {
        #[serde(serialize_with = "numbers::row")]
        row: &'a [Value],
    },
    StepEnd {
        affected_row_count: u64,
        last_insert_rowid: Option<String>,
    },
    StepError {
        step: usize,
        error: &'a SqlError,
    },
}

#[derive(Debug, Default, Serialize)]
pub(super) struct StmtResult {
    pub(super) cols: Vec<Col>,
    #[serde(serialize_with = "numbers::rows")]
    pub(super) rows: Vec<Vec<Value>>,
    pub(super) affected_row_count: u64,
    pub(super) last_insert_rowid: Option<String>,
    pub(super) replication_index: Option<String>,
    pub(super) rows_read: u64,
    pub(super) rows_written: u64,
    pub(super) query_duration_ms: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct BatchResult {
    pub(super) step_results: Vec<Option<StmtResult>>,
    pub(super) step_errors: Vec<Option<SqlError>>,
    pub(super) replication_index: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Description {
    pub(super) params: Vec<Param>,
    pub(super) cols: Vec<Col>,
    pub(super) is_explain: bool,
    pub(super) is_readonly: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Param {
    pub(super) name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Col {
    pub(super) name: String,
    pub(super) decltype: Option<String>,
}

/// Why a statement failed: SQLite's words, or ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct SqlError {
    pub(super) message: String,
    pub(super) code: &'static str,
}

impl SqlError {
    /// One of ours.
    pub(super) fn of(code: &'static str, message: impl Into<String>) -> SqlError {
        SqlError { message: message.into(), code }
    }
}

/// Whether a transaction is larger than the engine takes.
pub(super) fn is_too_large(error: &LimboError) -> bool {
    matches!(error, LimboError::CompletionError(CompletionError::IOError(io::ErrorKind::FileTooLarge, _)))
}

impl From<LimboError> for SqlError {
    fn from(error: LimboError) -> SqlError {
        let code = match error.sqlite_result_code() {
            4 => "SQLITE_ABORT",
            5 => "SQLITE_BUSY",
            6 => "SQLITE_LOCKED",
            8 => "SQLITE_READONLY",
            9 => "SQLITE_INTERRUPT",
            11 => "SQLITE_CORRUPT",
            13 => "SQLITE_FULL",
            17 => "SQLITE_SCHEMA",
            18 => "SQLITE_TOOBIG",
            19 => "SQLITE_CONSTRAINT",
            26 => "SQLITE_NOTADB",
            _ => "SQLITE_ERROR",
        };
        let message = match error {
            LimboError::ParseError(text) | LimboError::TxError(text) => text,
            error if is_too_large(&error) => {
                "the transaction is larger than the SQL engine takes (64 MiB, a quarter of --memory-max or \
                 --commit-bytes-max, whatever is the least): nothing of it was stored; write it in several"
                    .to_owned()
            }
            LimboError::Interrupt => "interrupted: it took longer than a statement may".to_owned(),
            error => error.to_string(),
        };
        SqlError { message, code }
    }
}
