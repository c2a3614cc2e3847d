//! The real SQLite. In processes of their own, for databases that a program under test has open as well: its locks work only
//! between processes. And in this one, to make databases, or to look into copies that nobody else has open.
//!
//! A process of its own is this test program, started again for the one test `sqlite_process`, which every program that needs
//! it has at its root: see [`process`].

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection};
use serde_json::{Value, json};

use super::commitlog::Draw;

/// Set for a process that is to do what its standard input says.
const IS_PROCESS: &str = "LOGMIRROR_TEST_SQLITE_PROCESS";

/// What such a process prints before its answers, in a line of its own: the test harness prints something too.
const READY: &str = "sqlite process is ready";

/// A process with one connection to a database.
#[derive(Debug)]
pub struct Sqlite {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Sqlite {
    /// Opens or makes the database; it waits `timeout` seconds for locks.
    pub fn open_within(database: &Path, timeout: u64) -> Sqlite {
        Sqlite::start(&json!({"open": database, "timeout": timeout}))
    }

    /// Opens or makes the database; it waits for no lock.
    pub fn open(database: &Path) -> Sqlite {
        Sqlite::open_within(database, 0)
    }

    /// Has no connection, but the lock of one byte of a file.
    pub fn lock_byte(file: &Path, at: u64) -> Sqlite {
        Sqlite::start(&json!({"lock": file, "byte": at}))
    }

    fn start(what: &Value) -> Sqlite {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["sqlite_process", "--exact", "--nocapture", "--test-threads=1"]).env(IS_PROCESS, "1");
        command.env_remove("RUST_TEST_NOCAPTURE").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut sqlite = Sqlite { child, input, output };
        let mut line = String::new();
        while line.trim_end() != READY {
            line.clear();
            let count = sqlite.output.read_line(&mut line).unwrap();
            assert!(count > 0, "this test program needs the test `sqlite_process` at its root");
        }
        sqlite.send(what);
        sqlite
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request and returns the answer.
    fn send(&mut self, request: &Value) -> Value {
        writeln!(self.input.as_mut().unwrap(), "{request}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// The rows of statements, or the error of the first that failed.
    pub fn ask(&mut self, sql: &str) -> Value {
        self.send(&json!({ "sql": sql }))
    }

    /// The rows of statements that must go well.
    #[track_caller]
    pub fn rows(&mut self, sql: &str) -> Value {
        let mut said = self.ask(sql);
        assert!(said["error"].is_null(), "{sql}: {said}");
        said["rows"].take()
    }

    /// Runs statements that must go well.
    #[track_caller]
    pub fn run(&mut self, statements: &[&str]) {
        for sql in statements {
            self.rows(sql);
        }
    }

    /// Closes the connection and opens another one, in the same process.
    pub fn reopen(&mut self) {
        self.send(&json!("reopen"));
    }

    /// Closes the connection, or gives the lock back.
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

/// Is one of the processes of [`Sqlite`], if it was started for that. As a test, it checks that they can be had.
pub fn process() {
    if std::env::var_os(IS_PROCESS).is_some() {
        answer();
        std::process::exit(0);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut sqlite = Sqlite::open(&dir.path().join("x.db"));
    assert_eq!(sqlite.rows("SELECT sqlite_version(), NULL"), json!([[rusqlite::version(), null]]));
    assert!(sqlite.ask("SELECT nothing")["error"].is_string());
    sqlite.close();
}

/// Answers one request a line, each with a line, until there are no more.
fn answer() {
    let (input, mut output) = (std::io::stdin().lines(), std::io::stdout());
    let mut say = |said: &dyn std::fmt::Display| writeln!(output, "{said}").and_then(|()| output.flush()).unwrap();
    say(&format!("\n{READY}"));
    let mut input = input.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    // A test that failed before it asked for anything has nothing to be told.
    let Some(what) = input.next() else { return };
    if let Some(file) = what["lock"].as_str() {
        let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
        lock_byte(&file, what["byte"].as_i64().unwrap());
        say(&json!("locked"));
        input.for_each(drop);
        return;
    }
    let open = || {
        let db = connect(Path::new(what["open"].as_str().unwrap()));
        db.busy_timeout(Duration::from_secs(what["timeout"].as_u64().unwrap())).unwrap();
        db
    };
    let mut db = open();
    say(&json!("open"));
    for request in input {
        let said = match request["sql"].as_str() {
            Some(sql) => match rows(&db, sql) {
                Ok(rows) => json!({ "rows": rows }),
                Err(error) => json!({ "error": error.to_string() }),
            },
            None => {
                db.close().unwrap();
                db = open();
                json!("reopened")
            }
        };
        say(&said);
    }
    db.close().unwrap();
}

/// Takes the lock of a byte as SQLite takes its locks.
fn lock_byte(file: &std::fs::File, at: i64) {
    use nix::fcntl::{FcntlArg, fcntl};
    let lock = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_SETLK(&lock)).unwrap();
}

/// Opens or makes a database in this process, as SQLite itself would by default.
pub fn connect(database: &Path) -> Connection {
    let db = Connection::open(database).unwrap();
    db.busy_timeout(Duration::ZERO).unwrap();
    // The crate's own default is on.
    db.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false).unwrap();
    db
}

/// All rows of statements.
pub fn rows(db: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<Value>>> {
    let (mut batch, mut all) = (Batch::new(db, sql), Vec::new());
    while let Some(mut statement) = batch.next()? {
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            all.push((0..columns).map(|at| row.get_ref(at).map(plain)).collect::<rusqlite::Result<_>>()?);
        }
    }
    Ok(all)
}

fn plain(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => json!(number),
        ValueRef::Real(number) => json!(number),
        ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
        ValueRef::Blob(bytes) => json!({ "blob": hex(bytes) }),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// So many bytes, as an SQL literal.
pub fn blob(draw: &mut Draw, count: u64) -> String {
    let bytes: Vec<u8> = (0..count).map(|_| draw.below(256) as u8).collect();
    format!("x'{}'", hex(&bytes))
}

/// Runs statements in a process of their own, and returns their rows as the program `sqlite3` prints them.
pub fn run(database: &Path, sql: &str) -> Result<String, String> {
    let mut sqlite = Sqlite::open(database);
    let said = sqlite.ask(sql);
    sqlite.close();
    if let Some(error) = said["error"].as_str() {
        return Err(error.to_owned());
    }
    let field = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let line = |row: &Value| row.as_array().unwrap().iter().map(field).collect::<Vec<_>>().join("|") + "\n";
    Ok(said["rows"].as_array().unwrap().iter().map(line).collect())
}

/// Fails if the database is not in order.
#[track_caller]
pub fn assert_sound(db: &Connection) {
    assert_eq!(rows(db, "PRAGMA integrity_check").unwrap(), [[json!("ok")]], "{:?}", db.path());
}

/// The content of a database as text: how everything was made, and every row of every table. Two databases with the same
/// content have the same text.
pub fn dump(db: &Connection) -> String {
    let schema = rows(db, "SELECT type, name, sql FROM sqlite_schema ORDER BY name, type").unwrap();
    let mut text = String::new();
    for entry in &schema {
        let [kind, name, sql] = &entry[..] else { panic!("{entry:?}") };
        text += &format!("{sql};\n");
        if kind != "table" || sql.as_str().is_some_and(|sql| sql.starts_with("CREATE VIRTUAL")) {
            continue;
        }
        let name = name.as_str().unwrap().replace('"', "\"\"");
        for row in rows(db, &format!("SELECT * FROM \"{name}\"")).unwrap() {
            text += &format!("{name}: {}\n", Value::Array(row));
        }
    }
    text
}
