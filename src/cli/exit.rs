//! How a command ends.

use std::fmt;
use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

/// Whether this command was asked for JSON. Set once, before it runs.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on errors are also a line of JSON on standard output.
pub fn errors_as_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

/// Whether this command was asked for JSON.
pub fn is_json() -> bool {
    AS_JSON.load(Ordering::Relaxed)
}

pub use logmirror::blame::with_causes;
use logmirror::blame::{Blame, Blamed};

use super::output;

/// What the exit code says, the same for every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, and all is well.
    Done = 0,
    /// The data is at fault.
    Data = 1,
    /// The command line is.
    Usage = 2,
    /// The disk or the network is.
    Io = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl From<Blame> for Exit {
    fn from(blame: Blame) -> Exit {
        match blame {
            Blame::Usage => Exit::Usage,
            Blame::Data => Exit::Data,
            Blame::Io | Blame::Transient => Exit::Io,
        }
    }
}

impl Exit {
    /// Says on stderr what went wrong, and ends like this. A command with `--json` says so on stdout as well:
    /// `{"event":"error","error":CODE,"message":TEXT}`.
    pub fn because(self, what: impl fmt::Display) -> Exit {
        self.because_code(self.code(), what, Value::Null)
    }

    /// The same with a code that says more than the exit code, and with more members of the JSON.
    pub fn because_code(self, code: &str, what: impl fmt::Display, more: Value) -> Exit {
        let text = what.to_string();
        output::err().put(format!("error: {text}"));
        self.write_json(code, &text, more)
    }

    /// Only the line of JSON, of what was said on stderr already.
    pub fn in_json(self, text: &str) -> Exit {
        self.write_json(self.code(), text, Value::Null)
    }

    fn write_json(self, code: &str, text: &str, more: Value) -> Exit {
        if is_json() {
            let mut line = json!({"event": "error", "error": code, "message": text});
            if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
                line.extend(more);
            }
            output::out().put(line.to_string());
        }
        self
    }

    /// Ends the process now, whatever it is busy with.
    pub fn at_once(self) -> ! {
        output::finish_soon();
        std::process::exit(self as i32)
    }

    /// One word for it.
    pub fn code(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Data => "data",
            Exit::Usage => "usage",
            Exit::Io => "io",
        }
    }

    /// How a command ends that failed with `error`.
    pub fn of(error: &impl Blamed) -> Exit {
        error.blame().into()
    }

    /// Says on stderr what failed and why, and ends like this.
    pub fn because_of(self, what: impl fmt::Display, error: impl fmt::Display) -> Exit {
        self.because(format_args!("{what}: {error}"))
    }
}

/// The end of a command that printed its answer. A reader that went away, as `head` does, has seen enough.
pub fn printed(result: io::Result<Exit>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => Exit::Io.because(error),
    }
}
