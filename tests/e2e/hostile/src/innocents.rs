//! Clients of logs that have nothing to do with the hostile ones: what they wait, and what of theirs fails.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::client::Client;
use crate::service::Service;

/// Logs with one client each.
pub const LOGS: usize = 3;
/// Between two statements of a client.
const PAUSE: Duration = Duration::from_millis(10);

/// What goes on beside the innocent statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It is changing.
    Between,
    /// Nothing else.
    Quiet,
    /// Hostile statements.
    Hostile,
    /// Many endless ones at once.
    Crowd,
    /// Many open streams.
    Streams,
}

/// A failed statement.
#[derive(Clone, Debug)]
pub struct Failure {
    pub log: String,
    pub status: u16,
    pub text: String,
}

/// What the clients see.
#[derive(Debug)]
pub struct Innocents {
    phase: AtomicU8,
    waits: Mutex<Vec<(Phase, Duration)>>,
    failures: Mutex<Vec<Failure>>,
    stop: AtomicBool,
}

/// Rows that a client knows of.
#[derive(Clone, Copy, Debug, Default)]
struct Rows {
    stored: u64,
    /// Inserts of which the answer does not say whether they are stored.
    unknown: u64,
}

impl Innocents {
    /// Makes their logs.
    pub fn new(address: &str) -> Result<Innocents> {
        for number in 0..LOGS {
            Service::create(address, &name(number), None)?;
            let sql = "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)".to_owned();
            let created = Client::new(address).run(&name(number), &[sql])?;
            ensure!(created.status == 200, "{}", created.text());
        }
        let (waits, failures, stop) = Default::default();
        Ok(Innocents { phase: AtomicU8::new(Phase::Between as u8), waits, failures, stop })
    }

    /// Says what goes on from now on.
    pub fn begin(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Has the clients end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        let phases = [Phase::Between, Phase::Quiet, Phase::Hostile, Phase::Crowd, Phase::Streams];
        phases[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    /// Runs one client until [`stop`](Self::stop). After Ok its log holds what it was told.
    pub fn run(&self, address: &str, number: usize) -> Result<()> {
        let (mut client, log, mut rows) = (Client::new(address), name(number), Rows::default());
        for round in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let inserts = round.is_multiple_of(4);
            let sql = match round % 4 {
                0 => format!("INSERT INTO t (b) VALUES ('row {round}')"),
                1 => format!("SELECT b FROM t WHERE a = {}", rows.stored / 2),
                2 => "SELECT count(*), max(a) FROM (SELECT a FROM t ORDER BY a DESC LIMIT 100)".into(),
                _ => "SELECT 1".into(),
            };
            let (before, since) = (self.phase(), Instant::now());
            let answer = client.run(&log, &[sql]);
            let wait = since.elapsed();
            let failure = match &answer {
                Ok(answer) if answer.status == 200 && answer.json()["results"][0]["type"] == "ok" => None,
                Ok(answer) => Some((answer.status, answer.text())),
                Err(error) => Some((0, format!("{error:#}"))),
            };
            match failure {
                None => {
                    rows.stored += u64::from(inserts);
                    if before == self.phase() {
                        locked(&self.waits).push((before, wait));
                    }
                }
                Some((status, text)) => {
                    if inserts {
                        rows.stored += u64::from(text.contains("what it committed up to frame"));
                        rows.unknown += u64::from(status != 500 && status != 503);
                    }
                    locked(&self.failures).push(Failure { log: log.clone(), status, text });
                }
            }
            std::thread::sleep(PAUSE);
        }
        let found = client.run(&log, &["SELECT count(*) FROM t".into()])?.json();
        let found = found["results"][0]["response"]["result"]["rows"][0][0]["value"].as_str().unwrap_or_default();
        let found: u64 = found.parse()?;
        let known = rows.stored..=rows.stored + rows.unknown;
        ensure!(known.contains(&found), "{log} has {found} rows, expected {known:?}");
        Ok(())
    }

    /// How many statements there were in a phase, and what half and 99 of 100 of them waited at most.
    pub fn waits(&self, of: Phase) -> Waits {
        let waits = locked(&self.waits);
        let mut waits: Vec<Duration> = waits.iter().filter(|(phase, _)| *phase == of).map(|(_, wait)| *wait).collect();
        waits.sort_unstable();
        let at = |share: usize| waits.get((waits.len() * share / 100).min(waits.len().saturating_sub(1))).copied();
        let [median, p99, longest] = [50, 99, 100].map(|share| at(share).unwrap_or_default());
        Waits { count: waits.len(), median, p99, longest }
    }

    /// What failed, in order.
    pub fn failures(&self) -> Vec<Failure> {
        locked(&self.failures).clone()
    }
}

/// What statements waited.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    pub count: usize,
    pub median: Duration,
    pub p99: Duration,
    pub longest: Duration,
}

/// The log of a client.
pub fn name(number: usize) -> String {
    format!("innocent-{number}")
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
