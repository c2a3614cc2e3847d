//! Hostile statements at work. A log that is paused because it ended its workers gives way to another, so that statements run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bases::BaseKind;
use crate::client::{Answer, Client};
use crate::service::Service;
use crate::statements::{Kind, Statement, endless};

/// Hostile clients at once.
pub const CLIENTS: usize = 6;
/// Logs that they share: a statement that has to be ended with its worker takes seconds, and all others of its log with it.
pub const GROUPS: usize = 3;
/// A log that is paused for longer is not used again.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Times that a statement is sent to logs that are paused before it is given up.
const TRIES_MAX: u32 = 200;

/// What became of a statement that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Answered,
    /// An error of SQL, or a panic of the engine that was caught.
    Refused,
    /// It took longer than any may.
    Interrupted,
    /// Its worker ended, over it or over another statement of the same log.
    Ended,
    /// It was given up: it never ran.
    NotRun,
}

/// The hostile logs of one base.
#[derive(Debug, Default)]
struct Targets {
    /// With the time from which on each may be used.
    logs: Vec<(String, Instant)>,
}

/// Hostile statements, sent by [`CLIENTS`].
#[derive(Debug)]
pub struct Attack<'a> {
    address: &'a str,
    bases: &'a BTreeMap<BaseKind, Vec<u8>>,
    /// By base and group of clients.
    targets: Mutex<BTreeMap<(BaseKind, usize), Targets>>,
    made: AtomicU64,
    outcomes: Mutex<BTreeMap<(Kind, Outcome), u64>>,
    named: Mutex<Vec<String>>,
    pauses: AtomicU64,
    /// Answers that are none of the expected.
    odd: Mutex<Vec<String>>,
}

impl<'a> Attack<'a> {
    /// On a service, with logs that start from these bases.
    pub fn new(address: &'a str, bases: &'a BTreeMap<BaseKind, Vec<u8>>) -> Attack<'a> {
        let (targets, outcomes, named, odd) = Default::default();
        let (made, pauses) = Default::default();
        Attack { address, bases, targets, made, outcomes, named, pauses, odd }
    }

    /// Sends statements by clients that use so many logs at once, and returns when all are answered.
    pub fn run(&self, statements: &[Statement], clients: usize, groups: usize) -> Result<()> {
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let client = |group: usize| -> Result<()> {
                let mut client = Client::new(self.address);
                while let Some(statement) = statements.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let (outcome, text) = self.send(&mut client, group, statement)?;
                    *locked(&self.outcomes).entry((statement.kind, outcome)).or_default() += 1;
                    if statement.kind == Kind::Named {
                        let text: String = text.chars().take(150).collect();
                        locked(&self.named).push(format!("{}: {outcome:?}: {text}", statement.name));
                    }
                }
                Ok(())
            };
            let clients: Vec<_> =
                (0..clients).map(|number| scope.spawn(move || client(groups * number / clients))).collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
        })
    }

    fn send(&self, client: &mut Client, group: usize, statement: &Statement) -> Result<(Outcome, String)> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            let of = (statement.base, group);
            let log = self.target(of)?;
            let answer = match client.run(&log, &statement.sql) {
                Ok(answer) => answer,
                Err(error) => {
                    let text = format!("{}: no answer: {error:#}", statement.name);
                    locked(&self.odd).push(text.clone());
                    return Ok((Outcome::NotRun, text));
                }
            };
            let text = answer.text();
            match answer.status {
                200 => return Ok(in_results(&answer)),
                500 if text.contains("nothing of this request was run") => self.pause(of, &log, &text),
                500 if text.contains("sql-aborted") => return Ok((Outcome::Ended, text)),
                // A panic of the engine, which ends the call.
                503 if text.contains("the SQL engine failed") => return Ok((Outcome::Refused, text)),
                // Its worker ended just now, or its log has as many statements under way as may wait.
                503 => std::thread::sleep(Duration::from_millis(50)),
                400..500 => return Ok((Outcome::Refused, text)),
                // A statement before it met the broken pages: all others of the log would be refused as well.
                500 if text.contains("corrupt-log") => {
                    self.give_up(of, &log);
                    return Ok((Outcome::Refused, text));
                }
                status => {
                    locked(&self.odd).push(format!("{}: {status} {text}", statement.name));
                    return Ok((Outcome::NotRun, text));
                }
            }
            last = text;
        }
        Ok((Outcome::NotRun, last))
    }

    /// A log that may be used; a new one if there is none.
    fn target(&self, of: (BaseKind, usize)) -> Result<String> {
        let mut targets = locked(&self.targets);
        let targets = targets.entry(of).or_default();
        if let Some((log, _)) = targets.logs.iter().find(|(_, from)| *from <= Instant::now()) {
            return Ok(log.clone());
        }
        let log = format!("hostile-{}", self.made.fetch_add(1, Ordering::Relaxed));
        Service::create(self.address, &log, Some(&self.bases[&of.0]))?;
        targets.logs.push((log.clone(), Instant::now()));
        Ok(log)
    }

    /// Uses no log for as long as the service says.
    fn pause(&self, of: (BaseKind, usize), log: &str, refusal: &str) {
        self.pauses.fetch_add(1, Ordering::Relaxed);
        let seconds = refusal.split_once("goes on in ").and_then(|(_, text)| text.split(' ').next()?.parse().ok());
        match seconds.map(Duration::from_secs) {
            Some(pause) if pause <= PAUSE_MAX => {
                let mut targets = locked(&self.targets);
                let targets = targets.entry(of).or_default();
                if let Some((_, from)) = targets.logs.iter_mut().find(|(other, _)| other == log) {
                    *from = Instant::now() + pause;
                }
            }
            Some(_) => self.give_up(of, log),
            None => {
                // There are too many such logs.
                self.give_up(of, log);
                std::thread::sleep(Duration::from_millis(500));
            }
        }
    }

    fn give_up(&self, of: (BaseKind, usize), log: &str) {
        locked(&self.targets).entry(of).or_default().logs.retain(|(other, _)| other != log);
    }

    /// Statements without an end on one log, all at once, until they were interrupted.
    pub fn crowd(&self, count: usize) -> Result<()> {
        let statement =
            Statement { kind: Kind::Endless, name: "one of many".into(), base: BaseKind::Broken, sql: vec![endless()] };
        self.run(&vec![statement; count], count, 1)
    }

    /// Opens transactions on logs of its own until each has as many as it may, and returns how many each has.
    pub fn streams(&self, logs: usize, most: usize) -> Result<Vec<usize>> {
        std::thread::scope(|scope| {
            let open = |number: usize| -> Result<usize> {
                let (mut client, log) = (Client::new(self.address), format!("streams-{number}"));
                Service::create(self.address, &log, None)?;
                for opened in 0..most {
                    let answer = client.pipeline(&log, &Value::Null, &["BEGIN".into(), "SELECT 1".into()])?;
                    if answer.status != 200 {
                        ensure!(answer.status == 503, "{log}: {} {}", answer.status, answer.text());
                        return Ok(opened);
                    }
                }
                Ok(most)
            };
            let clients: Vec<_> = (0..logs).map(|number| scope.spawn(move || open(number))).collect();
            let joined =
                clients.into_iter().map(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")));
            joined.collect()
        })
    }

    /// Counts of what became of the statements, by kind.
    pub fn outcomes(&self) -> BTreeMap<(Kind, Outcome), u64> {
        locked(&self.outcomes).clone()
    }

    /// What became of those with a name.
    pub fn named(&self) -> Vec<String> {
        locked(&self.named).clone()
    }

    /// Refusals because of a pause, logs that were made, and answers that no statement should get.
    pub fn counts(&self) -> (u64, u64, Vec<String>) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.pauses), count(&self.made), locked(&self.odd).clone())
    }
}

/// What became of a statement whose request was answered.
fn in_results(answer: &Answer) -> (Outcome, String) {
    let results = answer.json()["results"].take();
    let last = results.as_array().and_then(|results| results.last().cloned()).unwrap_or_default();
    if last["type"] != json!("error") {
        return (Outcome::Answered, String::new());
    }
    let text = last["error"].to_string();
    let interrupted = text.contains("nterrupt") || text.contains("timeout");
    (if interrupted { Outcome::Interrupted } else { Outcome::Refused }, text)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
