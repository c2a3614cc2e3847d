//! How a command ends.

use std::fmt;
use std::io;
use std::process::ExitCode;

use logmirror::blame::Blame;
pub use logmirror::blame::with_causes;

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

/// The end of a command that printed its answer. A reader that went away, as `head` does, has seen enough.
pub fn printed(result: io::Result<Exit>) -> Exit {
    match result {
        Ok(exit) => exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => Exit::Io.because(error),
    }
}
