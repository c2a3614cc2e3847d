//! The command line: one file a subcommand, each flags → values → the same library call.

mod access;
mod bench;
mod checkpoint;
mod database;
mod exit;
mod inspect;
mod libsql;
mod mirror;
mod place;
mod repair;
#[cfg(feature = "turso")]
mod replica;
mod report;
mod restore;
#[cfg(feature = "turso")]
mod rounds;
mod serve;
mod status;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use exit::Exit;
use tokio::signal::unix::{SignalKind, signal};

/// Verified, byte-exact mirrors of write-ahead logs.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Mirror(mirror::MirrorArgs),
    Verify(verify::VerifyArgs),
    Status(status::StatusArgs),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Repair(repair::RepairArgs),
    Restore(restore::RestoreArgs),
    Checkpoint(checkpoint::CheckpointArgs),
    #[cfg(feature = "turso")]
    Replica(replica::ReplicaArgs),
}

pub(crate) fn main() -> ExitCode {
    let filter =
        env_logger::Env::new().filter_or("LOGMIRROR_LOG", "info,notify=warn").write_style("LOGMIRROR_LOG_STYLE");
    env_logger::Builder::from_env(filter).init();
    let exit = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Mirror(args) => mirror::run(args),
        Command::Verify(args) => verify::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Restore(args) => restore::run(args),
        Command::Checkpoint(args) => checkpoint::run(args),
        #[cfg(feature = "turso")]
        Command::Replica(args) => replica::run(args),
    };
    exit.into()
}

/// Runs async work to its end.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => Ok(runtime.block_on(work)),
        Err(error) => Err(Exit::Io.because(format_args!("cannot start threads: {error}"))),
    }
}

/// Completes when we are asked to end: SIGTERM, or SIGINT as from Ctrl-C.
fn asked_to_stop() -> Result<impl Future<Output = ()>, Exit> {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => Ok(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        }),
        (Err(error), _) | (_, Err(error)) => Err(Exit::Io.because_of("cannot listen for signals", error)),
    }
}
