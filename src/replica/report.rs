//! What came of a push, a pull or both, for whoever asked for it.

use serde::Serialize;

use crate::sync::turso::Value;

/// What a statement was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Make, alter or drop something.
    Schema,
    /// Remove a row.
    Delete,
    /// Change a row.
    Update,
    /// Add a row, or overwrite the one with its key.
    Insert,
}

/// What a change is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct About {
    /// The table; of schema changes the name of what is made, altered or dropped.
    pub table: String,
    /// The key of the row by column, or its rowid.
    pub key: Vec<(String, Value)>,
    /// What was to be done.
    pub doing: Doing,
}

/// Where a change met something that was in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum During {
    /// On the remote.
    Push,
    /// In the draft, on top of what was pulled.
    Pull,
}

/// A local change that could not be made on top of what others had done as it was made here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Conflict {
    /// Where.
    pub during: During,
    /// What it was about.
    #[serde(flatten)]
    pub about: About,
    /// Why it could not be made: it is given up, unless this says what was done instead.
    pub error: String,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Frames that came from the remote.
    pub frames_pulled: u64,
    /// Changes that the remote took.
    pub changes_pushed: u64,
    /// Requests that were made.
    pub requests: u64,
    /// Changes that met with those of others.
    pub conflicts: Vec<Conflict>,
}
