//! How a command ends.

use std::fmt::Display;
use std::process::ExitCode;

/// Exit codes, the same for every subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well.
    Done = 0,
    /// The data is at fault.
    Data = 1,
    /// The command line or a setting is.
    Usage = 2,
    /// A disk or the network is.
    Io = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Says what went wrong and how to end.
pub(crate) fn fail(exit: Exit, what: impl Display) -> Exit {
    eprintln!("error: {what}");
    exit
}

/// Says what failed below us.
pub(crate) fn io(what: impl Display, error: impl Display) -> Exit {
    fail(Exit::Io, format_args!("{what}: {error}"))
}
