//! [`WireError`]: an [`Error`] in a message between a service and a worker.

use serde::{Deserialize, Serialize};

use crate::mirror::Error;
use crate::offset::{Generation, Offset};

/// What became of a call, as far as the other side acts on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum WireError {
    Invalid(String),
    NotFound(String),
    Gap(Offset, Offset),
    Fork(Offset),
    Mirrored(String, String),
    Promoted(String, String),
    Format(String),
    Ended(Generation, Generation),
    TooLarge(String),
    /// The log is damaged; in its base at this byte, if that is known.
    Damaged(String, Option<u64>),
    Failed(String),
    InDoubt(String),
    Aborted(String),
    Unavailable(String),
}

impl From<Error> for WireError {
    fn from(error: Error) -> WireError {
        match error {
            Error::Invalid(text) => WireError::Invalid(text),
            Error::NotFound(text) => WireError::NotFound(text),
            Error::Gap { expected, found } => WireError::Gap(expected, found),
            Error::Fork { at } => WireError::Fork(at),
            Error::Mirrored { log, source_identity } => WireError::Mirrored(log, source_identity),
            Error::Promoted { log, from } => WireError::Promoted(log, from),
            Error::Format(text) => WireError::Format(text),
            Error::Ended { generation, current } => WireError::Ended(generation, current),
            Error::TooLarge(text) => WireError::TooLarge(text),
            Error::Damaged(cause) => WireError::Damaged(cause.as_ref().to_owned(), None),
            Error::Failed(cause) => WireError::Failed(cause.as_ref().to_owned()),
            Error::InDoubt(cause) => WireError::InDoubt(cause.as_ref().to_owned()),
            Error::Aborted(text) => WireError::Aborted(text),
            error => WireError::Unavailable(error.to_string()),
        }
    }
}

impl From<WireError> for Error {
    fn from(fault: WireError) -> Error {
        match fault {
            WireError::Invalid(text) => Error::Invalid(text),
            WireError::NotFound(text) => Error::NotFound(text),
            WireError::Gap(expected, found) => Error::Gap { expected, found },
            WireError::Fork(at) => Error::Fork { at },
            WireError::Mirrored(log, source_identity) => Error::Mirrored { log, source_identity },
            WireError::Promoted(log, from) => Error::Promoted { log, from },
            WireError::Format(text) => Error::Format(text),
            WireError::Ended(generation, current) => Error::Ended { generation, current },
            WireError::TooLarge(text) => Error::TooLarge(text),
            WireError::Damaged(cause, _) => Error::Damaged(cause.into()),
            WireError::Failed(cause) => Error::Failed(cause.into()),
            WireError::InDoubt(cause) => Error::InDoubt(cause.into()),
            WireError::Aborted(text) => Error::Aborted(text),
            WireError::Unavailable(text) => Error::Unavailable(text),
        }
    }
}
