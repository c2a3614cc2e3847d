//! The subcommands: flags to values, one call into the library, and its answer in words or JSON.

mod exit;
mod inspect;
mod place;
mod verify;

use clap::{Parser, Subcommand};
use exit::Exit;

/// Verified, byte-exact mirrors of write-ahead logs.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(verify::VerifyArgs),
    Inspect(inspect::InspectArgs),
}

impl Cli {
    /// Does what the command line says.
    pub fn run(&self) -> Exit {
        match &self.command {
            Command::Verify(args) => verify::run(args),
            Command::Inspect(args) => inspect::run(args),
        }
    }
}
