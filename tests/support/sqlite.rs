//! The real SQLite, as processes: it has its own locks only against other processes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// Runs what it is sent, one statement a line, and answers with the rows or the error.
const SHELL: &str = r#"
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=float(sys.argv[2]), isolation_level=None)
for line in sys.stdin:
    try:
        said = {"rows": db.execute(json.loads(line)).fetchall()}
    except sqlite3.Error as error:
        said = {"error": str(error)}
    print(json.dumps(said), flush=True)
db.close()
"#;

/// A process with one connection to a database.
pub struct Sqlite {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Sqlite {
    /// Opens or makes the database; it waits `timeout` seconds for locks.
    pub fn open_within(database: &Path, timeout: &str) -> Sqlite {
        Sqlite::start(SHELL, &[database.to_str().unwrap(), timeout])
    }

    pub fn open(database: &Path) -> Sqlite {
        Sqlite::open_within(database, "0")
    }

    /// Any other program.
    pub fn start(program: &str, args: &[&str]) -> Sqlite {
        let mut command = Command::new("python3");
        command.args(["-c", program]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 with its module sqlite3");
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Sqlite { child, input, output }
    }

    /// What it says next.
    pub fn said(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Sends a line.
    pub fn tell(&mut self, line: &Value) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The answer to a statement.
    pub fn ask(&mut self, sql: &str) -> Value {
        self.tell(&json!(sql));
        self.said()
    }

    /// The rows of a statement that must go well.
    pub fn rows(&mut self, sql: &str) -> Value {
        let mut said = self.ask(sql);
        assert!(said["error"].is_null(), "{sql}: {said}");
        said["rows"].take()
    }

    /// Runs statements that must go well.
    pub fn run(&mut self, statements: &[&str]) {
        for sql in statements {
            self.rows(sql);
        }
    }

    /// Closes the connection.
    pub fn close(mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _is_gone_already = self.child.kill();
        let _ = self.child.wait();
    }
}
