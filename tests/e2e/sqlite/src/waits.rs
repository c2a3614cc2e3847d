//! How long writers and checkpoints wait for a follower.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use logmirror_e2e_support::random::Random;
use rustix::process::Signal;

use crate::app;
use crate::followed::{Followed, Work};

/// The longest that a follower may make others wait, at p99.
const WAIT_MAX: Duration = Duration::from_millis(50);
const MODES: [&str; 4] = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"];

#[derive(Default)]
struct Times {
    writes: Vec<Duration>,
    checkpoints: [Vec<Duration>; 4],
    gave_up: u64,
}

/// Writes and checkpoints for a while, with and without a follower.
pub fn run(seconds: u64, seed: u64) -> Result<()> {
    let work = Work::create("waits")?;
    let db = app::open(&work.app())?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x BLOB)")?;
    let mut random = Random::new(seed, 1);
    let mut measure = |duration: Duration| -> Result<Times> {
        let (start, mut times, mut round) = (Instant::now(), Times::default(), 0);
        while start.elapsed() < duration {
            let since = Instant::now();
            db.execute("INSERT INTO t (x) VALUES (randomblob(?))", [random.within(0..20_000) as i64])?;
            times.writes.push(since.elapsed());
            if random.within(0..4) == 0 {
                let (mode, since) = (round % MODES.len(), Instant::now());
                let busy: i64 =
                    db.query_row(&format!("PRAGMA wal_checkpoint({})", MODES[mode]), [], |row| row.get(0))?;
                times.checkpoints[mode].push(since.elapsed());
                times.gave_up += u64::from(busy != 0 && mode > 0);
                round += 1;
            }
            std::thread::sleep(Duration::from_millis(random.within(0..5)));
        }
        Ok(times)
    };
    let alone = measure(Duration::from_secs(seconds))?;
    let mut followed = Followed::start(&work)?;
    followed.caught_up(&db)?;
    let with = measure(Duration::from_secs(seconds))?;
    let mut worst = Duration::ZERO;
    let mut tell = |what: &str, alone: &[Duration], with: &[Duration]| {
        let (before, after) = (p99(alone), p99(with));
        worst = worst.max(after.saturating_sub(before));
        println!("{what}: p99 {before:.1?} alone, {after:.1?} with a follower, {} times", with.len());
    };
    tell("commits", &alone.writes, &with.writes);
    for (mode, name) in MODES.iter().enumerate() {
        tell(name, &alone.checkpoints[mode], &with.checkpoints[mode]);
    }
    println!("checkpoints that gave up: {}; pages compared {} times", with.gave_up, followed.compared()?);
    ensure!(worst <= WAIT_MAX, "a follower makes others wait {worst:?}");
    ensure!(with.gave_up == 0, "{} checkpoints gave up", with.gave_up);

    followed.service.signal(Signal::STOP)?;
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < Duration::from_secs(seconds.min(30)) {
        db.execute("INSERT INTO t (x) VALUES (randomblob(100000))", [])?;
        let since = Instant::now();
        let busy: i64 = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        ensure!(busy == 0, "a checkpoint gave up while the service was stopped");
        longest = longest.max(since.elapsed());
    }
    println!("with the service stopped a TRUNCATE took at most {longest:.1?}");
    ensure!(longest < Duration::from_secs(1), "{longest:?}");
    followed.service.signal(Signal::CONT)?;
    followed.caught_up(&db)?;
    println!("pages compared {} times since", followed.compared()?);
    followed.end()?;
    drop(db);
    work.remove()
}

fn p99(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}
