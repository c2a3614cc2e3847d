//! What came of a push, a pull or both, for whoever asked for it.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use crate::limits::SQL_LOGGED_CHARS;
use crate::sync::turso::Value;

/// What a statement was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The table; of schema changes the name of what is made, altered or dropped.
    pub table: String,
    /// The key of the row by column, or its rowid.
    pub key: Vec<(String, Value)>,
    /// What was to be done.
    pub doing: Doing,
}

impl About {
    /// The key for people.
    pub(super) fn shown_key(&self) -> String {
        let key: Vec<_> = self.key.iter().map(|(column, value)| format!("{column} = {}", shown(value))).collect();
        key.join(", ")
    }
}

/// Where a change met something that was in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum During {
    /// On the remote.
    Push,
    /// In the draft, on top of what was pulled.
    Pull,
}

/// A local change that could not be made on top of what others had done as it was made here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conflict {
    /// Where.
    pub during: During,
    /// What it was about.
    #[serde(flatten)]
    pub about: About,
    /// Why it could not be made: it is given up, unless this says what was done instead.
    pub error: String,
}

/// For people, in one line: what was to be done, the table, the key, where, and why it could not be.
impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let About { table, key, doing } = &self.about;
        let doing = match doing {
            Doing::Schema => "schema of",
            Doing::Delete => "delete from",
            Doing::Update => "update of",
            Doing::Insert => "insert into",
        };
        let key = if key.is_empty() { String::new() } else { format!(" ({})", self.about.shown_key()) };
        let place = match self.during {
            During::Push => "on the remote",
            During::Pull => "on top of what was pulled",
        };
        let line = format!("{doing} {table}{key}, {place}: {}", self.error);
        // Names, values and what a server says may hold anything, and are not to move somebody's cursor.
        line.chars().try_for_each(|char| match char.is_control() {
            true => write!(f, "{}", char.escape_default()),
            false => f.write_char(char),
        })
    }
}

/// A value as SQL has it, cut to a length that can be read.
fn shown(value: &Value) -> String {
    let cut = |len: usize| if len > SQL_LOGGED_CHARS { "…" } else { "" };
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Text(text) => {
            let start: String = text.chars().take(SQL_LOGGED_CHARS).collect();
            format!("'{}'{}", start.replace('\'', "''"), cut(text.chars().count()))
        }
        Value::Blob(bytes) => {
            let digits = bytes.iter().take(SQL_LOGGED_CHARS).map(|byte| format!("{byte:02x}"));
            format!("x'{}'{}", digits.collect::<String>(), cut(bytes.len()))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_is_one_line_whatever_is_in_it() {
        let key = [Value::Text("it's\n\u{1b}[2J".into()), Value::Blob(vec![0, 255]), Value::Float(1.0), Value::Null];
        let key = ["a", "b", "c", "d"].map(str::to_owned).into_iter().zip(key).collect();
        let about = About { table: "t\r".into(), key, doing: Doing::Update };
        let conflict = Conflict { during: During::Push, about, error: "no\nway".into() };
        let line = "update of t\\r (a = 'it''s\\n\\u{1b}[2J', b = x'00ff', c = 1.0, d = NULL), on the remote: no\\nway";
        assert_eq!(conflict.to_string(), line);
        let about = About { table: "v".into(), key: Vec::new(), doing: Doing::Schema };
        let conflict = Conflict { during: During::Pull, about, error: "why".into() };
        assert_eq!(conflict.to_string(), "schema of v, on top of what was pulled: why");
        let long = shown(&Value::Text("ü".repeat(SQL_LOGGED_CHARS + 1)));
        assert_eq!(long, format!("'{}'…", "ü".repeat(SQL_LOGGED_CHARS)));
    }
}
