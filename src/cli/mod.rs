//! The command line: one file a subcommand, each flags → values → the same library call.

mod access;
mod bench;
mod checkpoint;
mod database;
mod exit;
mod inspect;
mod libsql;
mod logging;
mod mirror;
mod output;
mod place;
mod promote;
mod repair;
#[cfg(feature = "turso")]
mod replica;
mod report;
mod restore;
#[cfg(feature = "turso")]
mod rounds;
mod serve;
#[cfg(feature = "turso")]
mod sql_worker;
mod status;
mod stop;
mod verify;
mod wrong_place;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stop::{asked_to_drain, asked_to_stop, block_on};

/// How a process ends that panicked, as the standard library has it.
const PANIC_EXIT: u8 = 101;

/// Verified, byte-exact mirrors of write-ahead logs.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: logging::LogArgs,
}

#[derive(Subcommand)]
enum Command {
    Serve(Box<serve::ServeArgs>),
    Mirror(mirror::MirrorArgs),
    Verify(verify::VerifyArgs),
    Status(status::StatusArgs),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Repair(repair::RepairArgs),
    Restore(restore::RestoreArgs),
    Checkpoint(checkpoint::CheckpointArgs),
    Promote(promote::PromoteArgs),
    #[cfg(feature = "turso")]
    Replica(replica::ReplicaArgs),
    #[cfg(feature = "turso")]
    #[command(hide = true)]
    SqlWorker(sql_worker::SqlWorkerArgs),
}

/// What clap says, with its colours on a terminal; and for a program that reads JSON, the first line of it.
fn usage(error: &clap::Error) -> exit::Exit {
    // There is no other place to say that this cannot be said.
    let _ = error.print();
    exit::Exit::Usage.in_json(error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: "))
}

pub(crate) fn main() -> ExitCode {
    output::report_panics();
    let exit = run();
    output::finish();
    match exit {
        // What a thread that panicked did not do is neither the disk's fault nor the network's.
        exit::Exit::Io if output::has_panicked() => ExitCode::from(PANIC_EXIT),
        exit => exit.into(),
    }
}

fn run() -> exit::Exit {
    // Before the arguments are parsed: what is wrong with them is an error like any other.
    if std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| arg == "--json") {
        exit::errors_as_json();
    }
    let Cli { command, log } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return usage(&error),
        // Help, or the version.
        Err(error) => error.exit(),
    };
    #[cfg(feature = "turso")]
    if let Command::SqlWorker(args) = &command {
        return sql_worker::run(args);
    }
    if let Err(exit) = log.start() {
        return exit;
    }
    stop::outlive_large_files();
    match command {
        Command::Serve(args) => serve::run(*args),
        Command::Mirror(args) => mirror::run(args),
        Command::Verify(args) => verify::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Restore(args) => restore::run(args),
        Command::Checkpoint(args) => checkpoint::run(args),
        Command::Promote(args) => promote::run(args),
        #[cfg(feature = "turso")]
        Command::Replica(args) => replica::run(args),
        #[cfg(feature = "turso")]
        Command::SqlWorker(args) => sql_worker::run(&args),
    }
}
