//! The application of a history as a process of its own, which can be killed at any moment.
//!
//! It is this program with the argument `application`, a database and a journal mode. It runs a line of SQL at a time, and answers each
//! with a line: the first value of the last row, or the error.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection};

use crate::app;

/// The argument that makes this program such a process.
pub const ARGUMENT: &str = "application";

/// An application with a connection to a database.
pub struct Application {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Application {
    /// Opens or makes a database, if possible in this journal mode: it is refused while others hold it.
    pub fn open(path: &Path, mode: &str) -> Result<Application> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child =
            command.arg(ARGUMENT).arg(path).arg(mode).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let mut opened = Application { child, input, output };
        opened.answer()?.map_err(|error| anyhow::anyhow!("cannot open the database: {error}"))?;
        Ok(opened)
    }

    /// Runs statements: the first value of the last row, or why they failed.
    pub fn run(&mut self, sql: &str) -> Result<Result<String, String>> {
        self.begin(sql)?;
        self.answer()
    }

    /// Runs statements that must go well.
    pub fn must(&mut self, sql: &str) -> Result<String> {
        self.run(sql)?.map_err(|error| anyhow::anyhow!("{sql}: {error}"))
    }

    /// Has statements run, without waiting for them.
    pub fn begin(&mut self, sql: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input")?;
        writeln!(input, "{}", sql.replace('\n', " ")).context("the application has ended")
    }

    fn answer(&mut self) -> Result<Result<String, String>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match line.trim_end_matches('\n').split_once(' ') {
            Some(("ok", value)) => Ok(Ok(value.to_owned())),
            Some(("error", text)) => Ok(Err(text.to_owned())),
            _ => bail!("the application said {line:?}"),
        }
    }

    /// Closes the connection and ends.
    pub fn close(mut self) -> Result<()> {
        self.input = None;
        self.child.wait()?;
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is such a process.
pub fn run(path: &Path, mode: &str) -> Result<()> {
    let mut out = std::io::stdout();
    let mut answer = |answer: Result<String>| match answer {
        Ok(value) => writeln!(out, "ok {value}").and_then(|()| out.flush()),
        Err(error) => writeln!(out, "error {}", format!("{error:#}").replace('\n', " ")).and_then(|()| out.flush()),
    };
    let db = match open(path, mode) {
        Ok(db) => db,
        Err(error) => return Ok(answer(Err(error))?),
    };
    answer(Ok(String::new()))?;
    for line in std::io::stdin().lines() {
        answer(all(&db, &line?))?;
    }
    Ok(())
}

fn open(path: &Path, mode: &str) -> Result<Connection> {
    let db = app::plain(path)?;
    // Refused while others hold it.
    let _ = db.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get::<_, String>(0));
    db.pragma_update(None, "synchronous", "OFF")?;
    // Large transactions are written before they are committed.
    db.pragma_update(None, "cache_size", 10)?;
    Ok(db)
}

fn all(db: &Connection, sql: &str) -> Result<String> {
    let (mut batch, mut last) = (Batch::new(db, sql), String::new());
    while let Some(mut statement) = batch.next()? {
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            last = match row.get_ref(0)? {
                ValueRef::Integer(number) => number.to_string(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                _ => String::new(),
            };
        }
    }
    Ok(last)
}
