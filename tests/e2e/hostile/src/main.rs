//! Hostile SQL statements against one service with SQL workers, while other logs take SQL and a commitlog is pushed and followed:
//! the service goes on, and who did nothing wrong notices little.

mod attack;
mod bases;
mod client;
mod commitlog;
mod innocents;
mod report;
mod service;
mod statements;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use logmirror_e2e_support::process::Program;
use logmirror_e2e_support::random::{SEED, seed};

use attack::{Attack, CLIENTS, GROUPS};
use bases::{BaseKind, base};
use commitlog::Commitlog;
use innocents::{Innocents, LOGS, Phase};
use report::Seen;
use service::{Peaks, Service};

/// Statements of a quick run, and of one that is not.
const QUICK: u64 = 100;
/// See [`QUICK`].
const ALL: u64 = 10_000;
/// Statements between two quiet times.
const BLOCK: u64 = 150;
/// A quiet time, and one beside open streams.
const QUIET: Duration = Duration::from_secs(4);
/// Statements without an end at once on one log.
const CROWD: usize = 40;
/// Logs that open as many streams as they may.
const STREAM_LOGS: usize = 8;
/// More than one log may have.
const STREAMS: usize = 300;

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
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("expected a number, found {text:?}"));
    let (count, seed) = match arguments {
        [] => (ALL, seed()?),
        ["quick"] => (QUICK, seed()?),
        ["quick", seed] => (QUICK, number(seed)?),
        [count] => (number(count)?, seed()?),
        [count, seed] => (number(count)?, number(seed)?),
        _ => bail!("usage: run quick [SEED] | run [COUNT [SEED]]"),
    };
    println!("{SEED}={seed}");
    let dir = std::env::temp_dir().join(format!("logmirror-hostile-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
    match attack(&dir, count, seed) {
        Ok(()) => Ok(std::fs::remove_dir_all(&dir)?),
        Err(error) => Err(error.context(format!("{SEED}={seed}, output in {}", dir.display()))),
    }
}

fn attack(dir: &Path, count: u64, seed: u64) -> Result<()> {
    let program = Program::find()?;
    let mut service = Service::start(&program, dir)?;
    let commitlog = Commitlog::start(&program, &service.address, dir, seed)?;
    let bases: Result<BTreeMap<_, _>> =
        [BaseKind::Broken, BaseKind::Chained].into_iter().map(|kind| Ok((kind, base(kind, dir)?))).collect();
    let (bases, address, stop) = (bases?, service.address.clone(), AtomicBool::new(false));
    let (innocents, peaks) = (Innocents::new(&address)?, Peaks::default());
    let attack = Attack::new(&address, &bases);
    let streams = std::thread::scope(|scope| {
        let watch = scope.spawn(|| peaks.watch(service.id(), &stop));
        let clients: Vec<_> = (0..LOGS)
            .map(|number| {
                scope.spawn({
                    let (innocents, address) = (&innocents, &address);
                    move || innocents.run(address, number)
                })
            })
            .collect();
        let attacked = all(&attack, &innocents, count, seed);
        innocents.stop();
        let clients: Result<()> =
            clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")));
        stop.store(true, Ordering::Relaxed);
        ensure!(watch.join().is_ok(), "the watch over memory panicked");
        clients.and(attacked)
    })?;
    service.ensure_runs()?;
    let copied = commitlog.finish()?;
    let seen =
        Seen { deaths: service.deaths()?, peaks: peaks.of(service.id()), streams, copied, waits_count: count > QUICK };
    report::print(&attack, &innocents, &seen)
}

/// All attacks, one after the other, with quiet times between. Returns how many streams each of the logs had that opened many.
fn all(attack: &Attack, innocents: &Innocents, count: u64, seed: u64) -> Result<Vec<usize>> {
    let during = |phase, attacks: &mut dyn FnMut() -> Result<()>| {
        innocents.begin(Phase::Quiet);
        std::thread::sleep(QUIET);
        innocents.begin(phase);
        let attacked = attacks();
        innocents.begin(Phase::Between);
        attacked
    };
    // To open them is work as any other: what counts is that they are open.
    let streams = attack.streams(STREAM_LOGS, STREAMS)?;
    innocents.begin(Phase::Streams);
    std::thread::sleep(QUIET);
    during(Phase::Crowd, &mut || attack.crowd(CROWD))?;
    // One at a time on each log, so that each is what ends its worker.
    during(Phase::Hostile, &mut || attack.run(&statements::all_named(), GROUPS, GROUPS))?;
    for first in (0..count).step_by(BLOCK as usize) {
        let numbers = first..count.min(first + BLOCK);
        let block: Vec<_> = numbers.map(|number| statements::random(seed, number)).collect();
        during(Phase::Hostile, &mut || attack.run(&block, CLIENTS, GROUPS))?;
        println!("{} statements", (first + BLOCK).min(count));
    }
    Ok(streams)
}
