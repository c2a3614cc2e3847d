//! How a command ends.

use std::fmt;
use std::io;
use std::process::ExitCode;

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

impl Exit {
    /// Says on stderr what went wrong, and ends like this.
    pub fn because(self, what: impl fmt::Display) -> Exit {
        eprintln!("error: {what}");
        self
    }

    /// Says on stderr what failed and why, and ends like this.
    pub fn because_of(self, what: impl fmt::Display, error: impl fmt::Display) -> Exit {
        self.because(format_args!("{what}: {error}"))
    }
}

/// An error with those of its causes that it does not name itself.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let named = error.to_string();
        if !text.contains(&named) {
            text = format!("{text}: {named}");
        }
        cause = error.source();
    }
    text
}

/// The end of a command that printed its answer. A reader that went away, as `head` does, has seen enough.
pub fn printed(result: io::Result<Exit>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => Exit::Io.because(error),
    }
}
