//! Kill -9 at every step: a process that runs the scenario on a directory and kills itself before its nth change of a file.

use std::io::{self, IoSlice};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use logmirror::offset::Generation;
use logmirror::repo::{FsRepo, Repo, RepoFile, RepoLock, RepoMap};

use super::{Acked, History, PROCESSES, prepare, recovers, scenario};

const DIR: &str = "LOGMIRROR_TEST_KILL_DIR";
const STEP: &str = "LOGMIRROR_TEST_KILL_STEP";

/// A directory whose process dies before a chosen change of a file or name in it.
#[derive(Clone, Debug)]
struct Deadly {
    inner: Arc<dyn Repo>,
    left: Arc<AtomicU64>,
}

#[derive(Debug)]
struct DeadlyFile {
    inner: Arc<dyn RepoFile>,
    left: Arc<AtomicU64>,
}

fn step(left: &AtomicU64) {
    if left.fetch_sub(1, Ordering::SeqCst) == 1 {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        // Until the signal is delivered nothing more is done.
        loop {
            std::thread::park();
        }
    }
}

impl Deadly {
    fn file(&self, inner: Arc<dyn RepoFile>) -> Arc<dyn RepoFile> {
        Arc::new(DeadlyFile { inner, left: self.left.clone() })
    }

    fn of(&self, inner: Arc<dyn Repo>) -> Arc<dyn Repo> {
        Arc::new(Deadly { inner, left: self.left.clone() })
    }
}

impl Repo for Deadly {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.inner.open(name).map(|file| self.file(file))
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.inner.open_write(name).map(|file| self.file(file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        step(&self.left);
        self.inner.create(name).map(|file| self.file(file))
    }

    fn map(&self, name: &str, bytes: u64) -> io::Result<Box<dyn RepoMap>> {
        step(&self.left);
        self.inner.map(name, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        step(&self.left);
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        step(&self.left);
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        step(&self.left);
        self.inner.sync_dir()
    }

    fn lock(&self) -> io::Result<RepoLock> {
        self.inner.lock()
    }

    fn dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        self.inner.dir(name).map(|dir| self.of(dir))
    }

    fn create_dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        step(&self.left);
        self.inner.create_dir(name).map(|dir| self.of(dir))
    }
}

impl RepoFile for DeadlyFile {
    fn bytes(&self) -> io::Result<u64> {
        self.inner.bytes()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        step(&self.left);
        self.inner.write_at(slices, at)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        step(&self.left);
        self.inner.truncate(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        step(&self.left);
        self.inner.sync()
    }
}

/// What the process of the next test is when it was started by it; else there is nothing to do.
#[test]
fn a_process_that_kills_itself() {
    let (Some(dir), Some(step)) = (std::env::var_os(DIR), std::env::var(STEP).ok()) else { return };
    let left = Arc::new(AtomicU64::new(step.parse().unwrap()));
    let disk = Deadly { inner: Arc::new(FsRepo::open(Path::new(&dir)).unwrap()), left: left.clone() };
    let told = |Acked { first, second, rolled }| println!("\nACKED {first} {second} {rolled}");
    assert!(scenario(&disk, &History::new(), told));
    println!("\nDONE");
}

fn acked(output: &str) -> Acked {
    let last = output.lines().filter_map(|line| line.strip_prefix("ACKED ")).next_back().unwrap_or("0 0 false");
    let words: Vec<&str> = last.split(' ').collect();
    Acked { first: words[0].parse().unwrap(), second: words[1].parse().unwrap(), rolled: words[2] == "true" }
}

#[test]
fn kill_9_at_every_step_of_a_roll_over_leaves_one_generation_whole() {
    let _alone = PROCESSES.lock();
    let history = History::new();
    let (mut step, mut old) = (0, 0);
    loop {
        step += 1;
        assert!(step < 2000, "it must end");
        let dir = tempfile::tempdir().unwrap();
        let disk = FsRepo::open(dir.path()).unwrap();
        prepare(&disk, &history);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "kill::a_process_that_kills_itself"])
            .env(DIR, dir.path())
            .env(STEP, step.to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        let done = output.contains("DONE");
        assert!(done || child.status.code().is_none(), "step {step}: {output}");
        let generation = recovers(&disk, &history, acked(&output), &format!("killed at step {step}"));
        old += u32::from(generation == Generation::FIRST);
        if done {
            break;
        }
    }
    println!("killed at {} steps, {old} found in the old generation", step - 1);
    assert!(step > 50 && old > 10 && step - old > 10, "{step} steps, {old} old");
}
