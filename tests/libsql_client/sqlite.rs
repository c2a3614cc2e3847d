//! The `sqlite3` program.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::beside;

/// What every writer here starts with: nothing is ever checkpointed.
const START: &str = "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF;";

/// Runs statements and is killed with the database open, so that its WAL stays.
pub fn run_and_die(database: &Path, sql: &str) {
    let mut sqlite = Open::start(database);
    sqlite.run(START);
    sqlite.run(sql);
}

/// Runs statements on a database and returns what they print.
pub fn run(database: &Path, sql: &str) -> Result<String, String> {
    let output = Command::new("sqlite3").arg("-batch").arg(database).arg(sql).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// The content of a database as SQL, once its integrity is checked. A copy is read: SQLite would checkpoint the WAL away.
pub fn dump(database: &Path) -> String {
    let dir = TempDir::new().unwrap();
    let copy = dir.path().join("copy.db");
    for ending in ["", "-wal"] {
        if beside(database, ending).exists() {
            std::fs::copy(beside(database, ending), beside(&copy, ending)).unwrap();
        }
    }
    assert_eq!(run(&copy, "PRAGMA integrity_check").unwrap(), "ok\n", "{}", database.display());
    run(&copy, ".dump").unwrap()
}

/// Has a database open until it is dropped, which kills it.
pub struct Open {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Open {
    pub fn start(database: &Path) -> Open {
        let mut command = Command::new("sqlite3");
        command.arg("-batch").arg(database).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the sqlite3 program");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Open { child, input, output }
    }

    /// Runs statements to their end.
    pub fn run(&mut self, sql: &str) {
        writeln!(self.input, "{sql}\n.print done").unwrap();
        let mut line = String::new();
        while line != "done\n" {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "sqlite3 ended in {sql}");
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Statements that make a table and so many rows, each a transaction.
pub fn rows(count: u32) -> String {
    let inserts = (0..count).map(|row| format!("INSERT INTO t VALUES({row}, hex(zeroblob(100)));\n"));
    format!("CREATE TABLE IF NOT EXISTS t(a, b);\n{}", inserts.collect::<String>())
}

/// One transaction of more pages than that.
pub fn large(pages: u32) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS t(a, b);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {pages})
        INSERT INTO t SELECT i, randomblob(4000) FROM n;"
    )
}
