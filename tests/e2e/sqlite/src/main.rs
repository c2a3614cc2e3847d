//! SQLite databases as applications run them, followed by logmirror.

mod app;
mod child;
mod commits;
mod followed;
mod histories;
mod model;
mod replica;
mod waits;
mod workloads;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use logmirror_e2e_support::random::{SEED, seed};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = match &arguments[..] {
        [child::ARGUMENT, path, mode] => child::run(path.as_ref(), mode),
        arguments => run(arguments),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    let seed = seed()?;
    // What a reader prints is its counts.
    if arguments.first() != Some(&"replica-reader") {
        println!("{SEED}={seed}");
    }
    let count = |at: usize, default: u64| match arguments.get(at) {
        Some(text) => text.parse().with_context(|| format!("expected a number, found {text:?}")),
        None => Ok(default),
    };
    match arguments.first() {
        None => {
            workloads::reset(60, 8, seed)?;
            workloads::inserts(40)?;
            workloads::rollback(60, seed)?;
            workloads::open_close(2000, None)?;
            workloads::open_close(2000, Some(1000))?;
            histories::run(3, seed)
        }
        Some(&"reset") => workloads::reset(count(1, 534)?, 38, seed),
        Some(&"inserts") => workloads::inserts(count(1, 40)?),
        Some(&"rollback") => workloads::rollback(count(1, 200)?, seed),
        Some(&"open-close") => workloads::open_close(count(1, 86_400)?, None),
        Some(&"open-close-roll") => workloads::open_close(count(1, 86_400)?, Some(count(2, 4000)?)),
        Some(&"histories") => histories::run(count(1, 500)?, seed),
        Some(&"replica") => replica::run(count(1, 120)?, count(2, 20)?, seed),
        Some(&"replica-reader") => {
            replica::read(arguments.get(1).context("the path of a replica")?, count(2, 0)?)
        }
        Some(&"waits") => waits::run(count(1, 60)?, seed),
        Some(other) => bail!("there is no workload {other:?}: see the script"),
    }
}
