//! One process of the chain, with its disk and what it has acknowledged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use logmirror_e2e_support::process::{Process, Program};
use logmirror_e2e_support::{commitlog, http};
use rustix::process::Signal;

use super::LOG;
use crate::disk::Disk;
use crate::text;

const END_LIMIT: Duration = Duration::from_secs(30);
const STATUS_LIMIT: Duration = Duration::from_secs(2);
/// What a service manager waits before it starts something again.
const START_AGAIN: Duration = Duration::from_secs(1);
/// From then on a process has surely set up what it does on SIGTERM.
const SETTLED: Duration = Duration::from_secs(4);

/// What a process is for.
pub enum Role {
    /// Keeps a log and serves it.
    Service {
        /// Where it listens.
        address: String,
        /// Where it keeps its logs.
        data: PathBuf,
    },
    /// Mirrors into a directory.
    Copy {
        /// That directory.
        dir: PathBuf,
    },
    /// Mirrors into the service at that place in the list of nodes.
    Relay {
        /// That place.
        service: usize,
    },
}

/// A process that is to run all the time, whatever happens to it.
pub struct Node {
    pub name: String,
    pub role: Role,
    pub disk: Option<Disk>,
    program: Program,
    output: PathBuf,
    arguments: Vec<String>,
    process: Option<Process>,
    started: Instant,
    /// When it is started again, after an unexpected end: the run has failed then, and goes on to find more failures.
    due: Option<Instant>,
    /// The highest offset that it, or its feeder, reported as durable.
    acknowledged: u64,
}

impl Node {
    pub fn new(
        program: &Program,
        output: &Path,
        name: &str,
        role: Role,
        arguments: Vec<String>,
        disk: Option<Disk>,
    ) -> Node {
        Node {
            name: name.to_owned(),
            role,
            disk,
            program: program.clone(),
            output: output.to_owned(),
            arguments,
            process: None,
            started: Instant::now(),
            due: None,
            acknowledged: 0,
        }
    }

    /// The directory with its segments; none for one that keeps nothing.
    pub fn holds(&self) -> Option<PathBuf> {
        match &self.role {
            Role::Service { data, .. } => Some(data.join("logs").join(LOG).join("0000000001")),
            Role::Copy { dir } => Some(dir.clone()),
            Role::Relay { .. } => None,
        }
    }

    /// Starts its command, always the same one.
    pub fn start(&mut self) -> Result<()> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.process = Some(self.program.start(&arguments, &self.output, &self.name)?);
        (self.started, self.due) = (Instant::now(), None);
        Ok(())
    }

    /// Starts it again some time after an unexpected end.
    pub fn start_if_due(&mut self) -> Result<()> {
        if self.due.is_some_and(|due| Instant::now() >= due) { self.start() } else { Ok(()) }
    }

    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(signal))
    }

    /// `kill -9`, after which what it acknowledged must be on its disk.
    pub fn kill(&mut self) -> Result<()> {
        self.note()?;
        self.due = None;
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        match self.end_on_disk()? {
            Some(end) => self.ensure_holds_acknowledged(end, "its disk after a kill"),
            None => Ok(()),
        }
    }

    /// Whether it has run long enough to be asked to end.
    pub fn is_settled(&self) -> bool {
        self.process.is_some() && self.started.elapsed() > SETTLED
    }

    /// SIGTERM: it must end with 0.
    pub fn terminate(&mut self) -> Result<()> {
        self.note()?;
        let mut process = self.process.take().with_context(|| format!("{} does not run", self.name))?;
        process.signal(Signal::TERM)?;
        let status = process.ended(END_LIMIT)?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM: {}", self.name, process.errors());
        match self.end_on_disk()? {
            Some(end) => self.ensure_holds_acknowledged(end, "its disk after SIGTERM"),
            None => Ok(()),
        }
    }

    /// How it ended, if it did although nothing was done to it. It is then gone.
    pub fn ended_by_itself(&mut self) -> Result<Option<String>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let Some(status) = process.exited()? else { return Ok(None) };
        let how = format!("{} ended unexpectedly with {status}: {}", self.name, process.errors());
        (self.process, self.due) = (None, Some(Instant::now() + START_AGAIN));
        Ok(Some(how))
    }

    /// Reads what it printed; returns the highest offset that it called durable, now or before.
    pub fn note(&mut self) -> Result<u64> {
        if let (Some(process), Role::Copy { .. } | Role::Relay { .. }) = (&mut self.process, &self.role) {
            for line in process.json_lines()? {
                self.acknowledged = self.acknowledged.max(line["durable"].as_u64().unwrap_or(0));
            }
        }
        Ok(self.acknowledged)
    }

    /// Another process said that this one has everything before `offset` durable.
    pub fn acknowledge(&mut self, offset: u64) {
        self.acknowledged = self.acknowledged.max(offset);
    }

    /// Where what it holds ends.
    pub fn end_on_disk(&self) -> Result<Option<u64>> {
        self.holds().map(|dir| Ok(commitlog::end(&dir)?.next)).transpose()
    }

    fn ensure_holds_acknowledged(&self, end: u64, place: &str) -> Result<()> {
        let Node { name, acknowledged, .. } = self;
        ensure!(end >= *acknowledged, "{name} acknowledged {acknowledged}, but {place} ends at {end}");
        Ok(())
    }

    /// Of a service that answers: nothing acknowledged is missing, and nothing is called damaged. `calm` while nothing
    /// is being done to it.
    pub fn check_status(&mut self, calm: bool) -> Result<()> {
        let Role::Service { address, .. } = &self.role else { return Ok(()) };
        if self.process.as_ref().is_none_or(Process::is_stopped) {
            return Ok(());
        }
        // Not having an answer is no failure while things fail on purpose.
        let Ok(status) = http::get(address, &format!("/logs/{LOG}"), STATUS_LIMIT) else { return Ok(()) };
        if let Some(durable) = status["durable"].as_u64() {
            self.ensure_holds_acknowledged(durable, "its status")?;
            self.acknowledge(durable);
        }
        ensure!(!calm || status["state"] != "damaged", "{} calls its log damaged: {status}", self.name);
        Ok(())
    }

    /// Of a service: its log is in order and ends at `next`.
    pub fn check_healthy(&mut self, next: u64) -> Result<()> {
        let Role::Service { address, .. } = &self.role else { return Ok(()) };
        let status = http::get(address, &format!("/logs/{LOG}"), STATUS_LIMIT)
            .with_context(|| format!("the status of {} at the end", self.name))?;
        let healthy = status["state"] == "ok" && status["durable"].as_u64() == Some(next);
        ensure!(healthy, "{} at the end, expected {next}: {status}", self.name);
        Ok(())
    }

    /// What it holds is what is expected, byte for byte, and `verify` says so too.
    pub fn compare(&mut self, expected: &BTreeMap<u64, Vec<u8>>) -> Result<()> {
        let Some(dir) = self.holds() else { return Ok(()) };
        commitlog::ensure_holds(expected, &dir).with_context(|| self.name.clone())?;
        let label = format!("verify-{}", self.name);
        let status = self.program.run(&["verify", text(&dir)?], &self.output, &label, END_LIMIT)?;
        ensure!(status.success(), "verify of {} ended with {status}", self.name);
        Ok(())
    }

    /// The end of what it printed as errors.
    pub fn errors(&self) -> String {
        self.process.as_ref().map_or_else(|| format!("{} does not run", self.name), Process::errors)
    }
}
