//! The SQL engine beside a WAL log. The log is the truth: the engine is one more writer, whose commits are appended to the
//! log before anybody hears of them, and which takes in what others append.

use std::sync::Arc;

use crate::mirror::{Error, Registry};

/// The SQL engines of a service, one for each log that is in use as a database. Opened when wanted, closed when idle.
#[derive(Debug)]
pub struct Engines {
    registry: Arc<Registry>,
}

/// A connection of its own to the database of a log. Dropping it rolls back what is open.
pub struct Session {
    connection: Arc<turso_core::Connection>,
}

/// The right to write to a database: at most one exists for each, and those who wait get it in turn.
#[derive(Debug)]
pub struct Turn {}

impl Engines {
    /// For the logs of `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Engines {
        Engines { registry }
    }

    /// A new connection to the database of a log, which is opened if it was not. Blocks.
    ///
    /// # Errors
    /// When there is no such log, or it holds no database with pages of 4096 bytes, or that cannot be read.
    pub fn session(&self, log_name: &str) -> Result<Session, Error> {
        self.registry.get(log_name)?;
        Err(Error::Unavailable("not there yet".into()))
    }
}

impl Session {
    /// The engine's connection. Only blocking threads may use it, one at a time.
    #[must_use]
    pub fn connection(&self) -> &Arc<turso_core::Connection> {
        &self.connection
    }

    /// Waits for the turn to write, and takes in what others appended to the log. After Ok the database is as the log is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when those before did not come to an end in time, or when the engine was closed under this
    /// session: a new one is needed then, and what was open in this one is lost.
    pub async fn turn(&self) -> Result<Turn, Error> {
        Err(Error::Unavailable("not there yet".into()))
    }

    /// Takes in what others appended to the log, unless somebody is writing: then what is read is as of a moment ago.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub async fn refresh(&self) -> Result<(), Error> {
        Err(Error::Unavailable("not there yet".into()))
    }

    /// Appends what was committed to the log. After Ok all that this session has seen or committed is durable.
    ///
    /// # Errors
    /// When the log did not take it: it was not committed then, and the session is of no use any more.
    pub async fn settle(&self) -> Result<(), Error> {
        Err(Error::Unavailable("not there yet".into()))
    }
}
