//! The service that is tested: its process, the ends of its workers as it reports them, and the memory of them all.

use std::collections::{BTreeMap, HashMap};
use std::fs::read_to_string;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use logmirror_e2e_support::process::{Process, Program, free_address};

use crate::client::Client;

/// Memory of a worker, its stacks included.
pub const WORKER_BYTES_MAX: u64 = 1 << 30;
/// Of a service: the log bytes (256 MiB) and the bodies of SQL (192 MiB) that it may hold, and itself.
pub const SERVICE_BYTES_MAX: u64 = 640 << 20;
/// Seconds that a statement may run.
const STATEMENT_SECONDS: &str = "1";
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// A service with two SQL workers.
pub struct Service {
    pub address: String,
    process: Process,
    errors: std::path::PathBuf,
}

/// The end of a worker.
#[derive(Clone, Debug)]
pub struct Death {
    pub cause: String,
    /// The logs of the calls that it ran, one for each call.
    pub logs: Vec<String>,
}

impl Service {
    /// Starts it; its data and what it prints are in `dir`.
    pub fn start(program: &Program, dir: &Path) -> Result<Service> {
        let address = free_address()?;
        let (data, memory) = (dir.join("data").display().to_string(), WORKER_BYTES_MAX.to_string());
        let arguments = ["serve", "--listen", &address, "--data", &data, "--sql-workers", "2", "--sql-memory-max"];
        let arguments = [&arguments[..], &[&memory, "--statement-timeout", STATEMENT_SECONDS]].concat();
        let mut process = program.start(&arguments, dir, "serve")?;
        process.listening(Duration::from_secs(30))?;
        Ok(Service { address, process, errors: dir.join("serve.err") })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// After Ok the process that was started still runs.
    pub fn ensure_runs(&mut self) -> Result<()> {
        let exited = self.process.exited()?;
        ensure!(exited.is_none(), "the service ended: {exited:?}; {}", self.process.errors());
        Ok(())
    }

    /// Makes a log, with a base if there is one.
    pub fn create(address: &str, log: &str, base: Option<&[u8]>) -> Result<()> {
        let mut client = Client::new(address);
        let created = client.call("PUT", &format!("/logs/{log}"), br#"{"format":"wal"}"#)?;
        ensure!(created.status == 201, "{log}: {} {}", created.status, created.text());
        if let Some(base) = base {
            let based = client.call("PUT", &format!("/logs/{log}/generations/1"), base)?;
            ensure!(based.status < 300, "the base of {log}: {} {}", based.status, based.text());
        }
        Ok(())
    }

    /// The ends of workers so far, in order.
    pub fn deaths(&self) -> Result<Vec<Death>> {
        let text = read_to_string(&self.errors).context("what the service printed")?;
        let death = |line: &str| {
            let (_, text) = line.split_once("an SQL worker has ended: ")?;
            let (cause, logs) = text.rsplit_once("; it ran statements on: ")?;
            let logs = logs.split(", ").filter(|log| !log.is_empty()).map(str::to_owned).collect();
            Some(Death { cause: cause.to_owned(), logs })
        };
        Ok(text.lines().filter_map(death).collect())
    }
}

/// The most memory that processes had.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// Resident at once, shared pages of files included.
    pub resident: u64,
    /// Of that what no file is behind.
    pub anonymous: u64,
}

/// Peaks by process.
#[derive(Debug, Default)]
pub struct Peaks(Mutex<BTreeMap<u32, Peak>>);

impl Peaks {
    /// Looks at a service and its workers until `stop`.
    pub fn watch(&self, service: u32, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            for process in children(service).into_iter().chain([service]) {
                let Some(now) = memory(process) else { continue };
                let mut peaks = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let peak = peaks.entry(process).or_default();
                peak.resident = peak.resident.max(now.resident);
                peak.anonymous = peak.anonymous.max(now.anonymous);
            }
            std::thread::sleep(SAMPLE_EVERY);
        }
    }

    /// The peak of the service, the largest of its workers, and how many workers were seen.
    pub fn of(&self, service: u32) -> (Peak, Peak, usize) {
        let peaks = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let workers = || peaks.iter().filter(|(process, _)| **process != service).map(|(_, peak)| *peak);
        let largest = workers().max_by_key(|peak| peak.anonymous).unwrap_or_default();
        (peaks.get(&service).copied().unwrap_or_default(), largest, workers().count())
    }
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |process: &u32| {
        let stat = read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().nth(1).and_then(|of| of.parse().ok()) == Some(parent)
    };
    processes.filter(is_child).collect()
}

fn memory(process: u32) -> Option<Peak> {
    let status = read_to_string(format!("/proc/{process}/status")).ok()?;
    let fields: HashMap<_, _> = status.lines().filter_map(|line| line.split_once(':')).collect();
    let bytes = |name| Some(fields.get(name)?.split_whitespace().next()?.parse::<u64>().ok()? << 10);
    Some(Peak { resident: bytes("VmHWM")?, anonymous: bytes("RssAnon")? })
}
