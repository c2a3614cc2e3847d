//! logmirror under faults: kill -9, full and read-only disks, stopped processes, missing permissions.

mod chain;
mod directory;
mod disk;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use logmirror_e2e_support::random::{SEED, seed};

const KILLS: u64 = 200;
const FULLS: u64 = 50;
const MINUTES: f64 = 10.0;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    let seed = seed()?;
    println!("{SEED}={seed}");
    let work = Work::create()?;
    let result = match arguments {
        ["directory", counts @ ..] if counts.len() <= 2 => {
            let count = |at: usize, default| counts.get(at).map_or(Ok(default), |text| number(text));
            directory::run(&work.0, seed, count(0, KILLS)?, count(1, FULLS)?)
        }
        [] => match std::env::var("LOGMIRROR_CHAOS_MINUTES") {
            Ok(minutes) => chain::run(&work.0, seed, number(&minutes)?),
            Err(_) => chain::run(&work.0, seed, MINUTES),
        },
        [minutes] => chain::run(&work.0, seed, number(minutes)?),
        _ => bail!("usage: run [MINUTES] | run directory [KILLS [FULLS]]"),
    };
    match result {
        Ok(()) => work.remove(),
        Err(error) => Err(error.context(format!("{SEED}={seed}, output in {}", work.0.display()))),
    }
}

fn number<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(text: &str) -> Result<T> {
    text.parse().with_context(|| format!("expected a number, found {text:?}"))
}

/// Where everything happens. It stays when a run fails.
struct Work(PathBuf);

impl Work {
    fn create() -> Result<Work> {
        let path = std::env::temp_dir().join(format!("logmirror-chaos-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Work(path))
    }

    fn remove(self) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.0)?)
    }
}

/// A path as an argument.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
