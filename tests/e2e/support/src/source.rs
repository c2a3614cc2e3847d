//! A writer of a commitlog directory that behaves as SpacetimeDB 2.x does: buffered, so that its file may end inside a
//! commit; sometimes restarted, which removes an empty last segment; and without regard for readers.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::commitlog::{SEGMENT_HEADER, encode, segment_name};
use crate::random::Random;

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// On average; no limit where it is 0.
    pub bytes_per_second: u64,
    /// The largest commit.
    pub commit_bytes_max: u64,
    /// The size from which on a segment is followed by another.
    pub segment_bytes: u64,
}

/// What the writer did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Did {
    /// Commits written.
    pub commits: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Segments started.
    pub segments: u64,
    /// Times that the file ended inside a commit for a while.
    pub halves: u64,
    /// Empty last segments that were removed at a restart.
    pub empty_heads: u64,
    /// Times that space was reserved and read as zeros.
    pub zeros: u64,
}

struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    bytes: AtomicU64,
}

/// A writer at work in a thread of its own.
pub struct Source {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Did>>,
}

impl Source {
    /// Starts a log in `dir`, which exists and is empty. The directory may be renamed while it is written.
    pub fn start(dir: &Path, load: Load, random: Random) -> Result<Source> {
        let dir = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
        let shared =
            Arc::new(Shared { stop: AtomicBool::new(false), pause: AtomicBool::new(false), bytes: AtomicU64::new(0) });
        let for_thread = shared.clone();
        let mut writer = Writer::new(dir, load, random)?;
        let thread = std::thread::spawn(move || writer.work(&for_thread));
        Ok(Source { shared, thread })
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Rests until it is to go on.
    pub fn pause(&self, pause: bool) {
        self.shared.pause.store(pause, Ordering::Relaxed);
    }

    /// Whether it failed.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends on a whole commit.
    pub fn finish(self) -> Result<Did> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the writer of the source panicked"))?
    }
}

struct Writer {
    dir: File,
    load: Load,
    random: Random,
    file: File,
    at: u64,
    next: u64,
    epoch: u64,
    did: Did,
}

impl Writer {
    fn new(dir: File, load: Load, random: Random) -> Result<Writer> {
        let file = create(&dir, 0)?;
        let did = Did { segments: 1, ..Did::default() };
        let at = SEGMENT_HEADER.len() as u64;
        Ok(Writer { dir, load, random, file, at, next: 0, epoch: 1, did })
    }

    fn work(&mut self, shared: &Shared) -> Result<Did> {
        let start = Instant::now();
        let mut due = 0.0;
        while !shared.stop.load(Ordering::Relaxed) {
            if shared.pause.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let before = self.did.bytes;
            self.step()?;
            shared.bytes.store(self.did.bytes, Ordering::Relaxed);
            if self.load.bytes_per_second > 0 {
                due += (self.did.bytes - before) as f64 / self.load.bytes_per_second as f64;
                // After a pause it does not make up for lost time.
                let early = (due - start.elapsed().as_secs_f64()).clamp(0.0, 1.0);
                due = due.max(start.elapsed().as_secs_f64());
                std::thread::sleep(Duration::from_secs_f64(early));
            }
        }
        self.append(1)?;
        self.file.sync_data()?;
        shared.bytes.store(self.did.bytes, Ordering::Relaxed);
        Ok(self.did)
    }

    fn step(&mut self) -> Result<()> {
        if self.at >= self.load.segment_bytes {
            return self.rotate();
        }
        if self.random.one_in(50) {
            self.file.set_len(self.at + self.random.within(1..64 << 10))?;
            self.did.zeros += 1;
        }
        let commits = self.random.within(1..12);
        self.append(commits)
    }

    /// Writes commits, now and then with a pause inside of one.
    fn append(&mut self, commits: u64) -> Result<()> {
        let mut bytes = Vec::new();
        for _ in 0..commits {
            let largest = if self.random.one_in(20) { self.load.commit_bytes_max } else { 600 };
            let size = self.random.within(1..largest);
            let records = self.random.bytes(size as usize);
            let n = self.random.within(1..20) as u16;
            encode(&mut bytes, self.next, self.epoch, n, &records);
            self.next += u64::from(n);
            self.did.commits += 1;
        }
        let cut = self.random.within(0..bytes.len() as u64 + 1) as usize;
        if self.random.one_in(10) {
            self.file.write_all_at(&bytes[..cut], self.at)?;
            std::thread::sleep(Duration::from_millis(self.random.within(1..150)));
            self.file.write_all_at(&bytes[cut..], self.at + cut as u64)?;
            self.did.halves += 1;
        } else {
            self.file.write_all_at(&bytes, self.at)?;
        }
        self.at += bytes.len() as u64;
        self.did.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Starts the next segment; sometimes dies right after it, is started again and goes on in the one before.
    fn rotate(&mut self) -> Result<()> {
        if self.random.one_in(2) {
            // What was reserved may be given back, or stay as zeros.
            self.file.set_len(self.at)?;
        }
        let file = create(&self.dir, self.next)?;
        if self.random.one_in(4) {
            std::thread::sleep(Duration::from_millis(self.random.within(0..400)));
            rustix::fs::unlinkat(&self.dir, segment_name(self.next), AtFlags::empty())?;
            self.did.empty_heads += 1;
            self.file.set_len(self.at)?;
            return self.append(1);
        }
        self.epoch += u64::from(self.random.one_in(4));
        (self.file, self.at) = (file, SEGMENT_HEADER.len() as u64);
        self.did.segments += 1;
        self.append(1)
    }
}

fn create(dir: &File, start: u64) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, segment_name(start), flags, Mode::from(0o644))?);
    file.write_all(&SEGMENT_HEADER)?;
    Ok(file)
}
