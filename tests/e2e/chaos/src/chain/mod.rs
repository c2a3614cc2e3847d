//! A chain that heals itself: a live source, three services that each follow the one before, a directory mirror of each
//! of the four, and faults at random. Only what a fault has killed is restarted.

mod fault;
mod node;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use logmirror_e2e_support::commitlog;
use logmirror_e2e_support::process::{Program, free_address};
use logmirror_e2e_support::random::Random;
use logmirror_e2e_support::source::{Load, Source};

use self::fault::{Active, Fault, NOTHING};
use self::node::{Node, Role};
use crate::disk::Disk;
use crate::text;

const BYTES_PER_SECOND: u64 = 128 << 10;
/// Segments are short, so that many are started.
const LOAD: Load = Load { bytes_per_second: BYTES_PER_SECOND, commit_bytes_max: 20_000, segment_bytes: 512 << 10 };
/// Room on each disk beside the log.
const ROOM: u64 = 64 << 20;
const FAULTS_AT_ONCE: usize = 3;
const LOOP_EVERY: Duration = Duration::from_millis(20);
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// How long copies may take to become identical after the last fault.
const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// The same when the run has failed anyway.
const FAILED_LIMIT: Duration = Duration::from_secs(20);
/// After so many failures there is nothing more to be learned.
const FAILURES_MAX: usize = 30;
const LOG: &str = "app";

/// Runs the chain for `minutes`. After Ok, all copies were identical at the end, no process ended unexpectedly, and nothing
/// that was acknowledged was ever missing.
pub fn run(work: &Path, seed: u64, minutes: f64) -> Result<()> {
    let time = Duration::from_secs_f64(minutes * 60.0);
    let mut chain = Chain::create(work, seed, time)?;
    chain.disturb(time)?;
    chain.heal()?;
    chain.finish()
}

struct Chain {
    random: Random,
    source_dir: PathBuf,
    source: Option<Source>,
    nodes: Vec<Node>,
    active: Vec<Active>,
    counts: BTreeMap<String, u64>,
    failures: Vec<String>,
    status_due: Instant,
    began: Instant,
    /// The names of those to which anything is done; without it, all.
    only: Option<String>,
}

impl Chain {
    fn create(work: &Path, seed: u64, time: Duration) -> Result<Chain> {
        let program = Program::find()?.without_capabilities();
        let (source_dir, output) = (work.join("source"), work.join("output"));
        std::fs::create_dir(&source_dir)?;
        std::fs::create_dir(&output)?;
        let disk_bytes = ROOM + BYTES_PER_SECOND * (time.as_secs() + HEAL_LIMIT.as_secs());
        let source_text = text(&source_dir)?.to_owned();
        let mut nodes = Vec::new();
        let mut before = source_text;
        nodes.push(copy(work, &program, &output, "copy-0", &before, disk_bytes)?);
        for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
            let disk = Disk::mount(&work.join("disks").join(name), disk_bytes)?;
            let (data, address) = (disk.path().join("data"), free_address()?);
            let arguments = ["serve", "--data", text(&data)?, "--listen", &address].map(str::to_owned);
            let url = format!("http://{address}/logs/{LOG}");
            let role = Role::Service { address, data };
            nodes.push(Node::new(&program, &output, name, role, arguments.to_vec(), Some(disk)));
            let service = nodes.len() - 1;
            let relay = mirror_arguments(&before, &url);
            let role = Role::Relay { service };
            nodes.push(Node::new(&program, &output, &format!("relay-{name}"), role, relay, None));
            let name = format!("copy-{}", at + 1);
            nodes.push(copy(work, &program, &output, &name, &url, disk_bytes)?);
            before = url;
        }
        let source = Source::start(&source_dir, LOAD, Random::new(seed, 1))?;
        let now = Instant::now();
        let mut chain = Chain {
            random: Random::new(seed, 2),
            source_dir,
            source: Some(source),
            nodes,
            active: Vec::new(),
            counts: BTreeMap::new(),
            failures: Vec::new(),
            status_due: now,
            began: now,
            only: std::env::var("LOGMIRROR_CHAOS_ONLY").ok(),
        };
        for node in &mut chain.nodes {
            node.start()?;
        }
        Ok(chain)
    }

    /// The same failure is counted once.
    fn fail(&mut self, what: String) {
        if !self.failures.contains(&what) {
            let at = self.began.elapsed().as_secs_f64();
            println!("{at:8.2} FAILURE {what}");
            self.failures.push(what);
        }
    }

    /// Faults until `time` is over, and the end of all of them.
    fn disturb(&mut self, time: Duration) -> Result<()> {
        let mut next = Instant::now() + Duration::from_secs(2);
        while self.began.elapsed() < time && self.failures.len() < FAILURES_MAX {
            self.watch()?;
            self.end_faults(false)?;
            if Instant::now() >= next && self.active.len() < FAULTS_AT_ONCE {
                self.start_fault()?;
                next = Instant::now() + Duration::from_millis(self.random.within(50..1500));
            }
            std::thread::sleep(LOOP_EVERY);
        }
        self.end_faults(true)
    }

    fn start_fault(&mut self) -> Result<()> {
        // One more than there are nodes: the source.
        let target = self.random.within(0..self.nodes.len() as u64 + 1) as usize;
        let name = self.nodes.get(target).map_or("source", |node| &node.name);
        if self.only.as_ref().is_some_and(|only| !only.split(',').any(|wanted| wanted == name))
            || self.active.iter().any(|active| active.target == target)
        {
            return Ok(());
        }
        let at = self.began.elapsed().as_secs_f64();
        let started = match self.nodes.get_mut(target) {
            Some(node) => {
                let fault = Fault::draw(&mut self.random, &node.role);
                fault.start(node, &mut self.random).map(|(what, undo)| (node.name.clone(), what, undo))
            }
            None => {
                let started = fault::disturb_source(&self.source_dir, &mut self.random);
                started.map(|(what, undo)| ("source".to_owned(), what, undo))
            }
        };
        match started {
            Ok((name, what, undo)) => {
                println!("{at:8.2} {name}: {what}");
                if what.kind != NOTHING {
                    *self.counts.entry(what.kind.to_owned()).or_default() += 1;
                }
                if !undo.is_empty() {
                    let until = Instant::now() + Duration::from_millis(self.random.within(100..6000));
                    self.active.push(Active { target, undo, until });
                }
            }
            Err(error) => self.fail(format!("{error:#}")),
        }
        Ok(())
    }

    fn end_faults(&mut self, all: bool) -> Result<()> {
        let due = |active: &Active| all || Instant::now() >= active.until;
        let (ended, active) = std::mem::take(&mut self.active).into_iter().partition(due);
        self.active = active;
        for Active { target, undo, .. } in ended {
            for undo in undo {
                if let Err(error) = undo.run(self.nodes.get_mut(target)) {
                    self.fail(format!("{error:#}"));
                }
            }
        }
        Ok(())
    }

    /// Records what is acknowledged, and which processes ended unexpectedly.
    fn watch(&mut self) -> Result<()> {
        ensure!(!self.source.as_ref().is_some_and(Source::has_ended), "the writer of the source failed");
        for at in 0..self.nodes.len() {
            let acknowledged = self.nodes[at].note()?;
            if let Role::Relay { service } = self.nodes[at].role {
                self.nodes[service].acknowledge(acknowledged);
            }
            if let Some(how) = self.nodes[at].ended_by_itself()? {
                self.fail(how);
            }
            self.nodes[at].start_if_due()?;
        }
        if Instant::now() >= self.status_due {
            for at in 0..self.nodes.len() {
                let calm = self.active.iter().all(|active| active.target != at);
                if let Err(error) = self.nodes[at].check_status(calm) {
                    self.fail(format!("{error:#}"));
                }
            }
            self.status_due = Instant::now() + STATUS_EVERY;
        }
        Ok(())
    }

    /// With no more faults, waits until all copies end where the source does.
    fn heal(&mut self) -> Result<()> {
        let calm = Instant::now();
        while calm.elapsed() < Duration::from_secs(2) {
            self.watch()?;
            std::thread::sleep(LOOP_EVERY);
        }
        let did = self.source.take().map(Source::finish).transpose()?;
        let next = commitlog::end(&self.source_dir)?.next;
        loop {
            self.watch()?;
            let mut behind = Vec::new();
            for node in &self.nodes {
                let end = node.end_on_disk()?.unwrap_or(next);
                if end < next {
                    behind.push(format!("{} at {end}", node.name));
                }
            }
            if behind.is_empty() || self.failures.len() > FAILURES_MAX {
                break;
            }
            let limit = if self.failures.is_empty() { HEAL_LIMIT } else { FAILED_LIMIT };
            if calm.elapsed() > limit {
                let errors: Vec<String> = self.nodes.iter().map(Node::errors).collect();
                let limit = limit.as_secs();
                self.fail(format!(
                    "after {limit} s without faults the source ends at {next}, but {}\n{}",
                    behind.join(", "),
                    errors.join("\n")
                ));
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("source: {did:?}, next {next}");
        println!("{:.1} s without faults at the end", calm.elapsed().as_secs_f64());
        Ok(())
    }

    /// Ends everything in order, and compares.
    fn finish(mut self) -> Result<()> {
        // Those that follow first, so that each has all that there is when it ends.
        let expected = commitlog::expected(&self.source_dir)?;
        let next = commitlog::end(&self.source_dir)?.next;
        for at in (0..self.nodes.len()).rev() {
            let mut last = || {
                self.nodes[at].check_healthy(next)?;
                self.nodes[at].terminate()
            };
            if let Err(error) = last() {
                self.fail(format!("{error:#}"));
            }
        }
        for at in 0..self.nodes.len() {
            if let Err(error) = self.nodes[at].compare(&expected) {
                self.fail(format!("{error:#}"));
            }
        }
        let counts: Vec<String> = self.counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let total: u64 = self.counts.values().sum();
        println!("{total} faults: {}", counts.join(", "));
        println!(
            "{} copies compared with {} segments",
            self.nodes.iter().filter(|n| n.holds().is_some()).count(),
            expected.len()
        );
        ensure!(self.failures.is_empty(), "{} failures, listed above", self.failures.len());
        println!("all identical, no process ended unexpectedly, nothing acknowledged was missing");
        Ok(())
    }
}

fn mirror_arguments(source: &str, sink: &str) -> Vec<String> {
    ["mirror", source, sink, "--follow", "--json"].map(str::to_owned).to_vec()
}

fn copy(work: &Path, program: &Program, output: &Path, name: &str, source: &str, disk_bytes: u64) -> Result<Node> {
    let disk = Disk::mount(&work.join("disks").join(name), disk_bytes)?;
    let dir = disk.path().join("log");
    let arguments = mirror_arguments(source, text(&dir)?);
    Ok(Node::new(program, output, name, Role::Copy { dir }, arguments, Some(disk)))
}
