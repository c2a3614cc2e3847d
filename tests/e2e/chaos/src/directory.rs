//! A directory mirror under load that is killed and whose disk fills up: the same command goes on each time.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use logmirror_e2e_support::commitlog::{self, segments};
use logmirror_e2e_support::process::{Process, Program};
use logmirror_e2e_support::random::Random;
use logmirror_e2e_support::source::{Load, Source};
use logmirror_e2e_support::wait_for;
use rustix::process::Signal;

use crate::disk::Disk;
use crate::text;

const LOAD: Load = Load { bytes_per_second: 0, commit_bytes_max: 200_000, segment_bytes: 4 << 20 };
/// The source rests while the copy is so far behind.
const AHEAD_MAX: u64 = 16 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// A copy that has not grown for so long while its disk was small has met its end.
const STALL: Duration = Duration::from_millis(400);
/// Room for everything that is ever written here.
const DISK_BYTES: u64 = 16 << 30;

/// What happened, as it is printed at the end.
#[derive(Debug, Default)]
struct Counts {
    kills: u64,
    /// Kills that left a torn end.
    torn_by_kills: u64,
    fulls_following: u64,
    fulls_killed: u64,
    fulls_one_shot: u64,
    /// Times that a mirror said that there is no space left.
    no_space_lines: usize,
}

/// After Ok, the mirror continued after each fault, and the copy is identical to the source.
pub fn run(work: &Path, seed: u64, kills: u64, fulls: u64) -> Result<()> {
    let start = Instant::now();
    let mut scene = Scene::create(work, seed)?;
    for round in 0..kills {
        scene.kill_round().with_context(|| format!("kill {round}"))?;
    }
    for round in 0..fulls {
        let done = match round % 4 {
            0 | 1 => scene.full_while_following(false),
            2 => scene.full_while_following(true),
            _ => scene.full_in_one_shot(),
        };
        done.with_context(|| format!("full disk {round}"))?;
    }
    let counts = scene.finish()?;
    println!("directory mirror: {counts:?}, {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

struct Scene {
    program: Program,
    random: Random,
    source_dir: PathBuf,
    source: Source,
    disk: Disk,
    copy: PathBuf,
    output: PathBuf,
    /// The highest offset that a mirror reported as durable.
    acknowledged: u64,
    counts: Counts,
}

impl Scene {
    fn create(work: &Path, seed: u64) -> Result<Scene> {
        let program = Program::find()?.without_capabilities();
        let (source_dir, output) = (work.join("source"), work.join("output"));
        std::fs::create_dir(&source_dir)?;
        std::fs::create_dir(&output)?;
        let disk = Disk::mount(&work.join("disk"), DISK_BYTES)?;
        let copy = disk.path().join("copy");
        let source = Source::start(&source_dir, LOAD, Random::new(seed, 1))?;
        let (random, counts) = (Random::new(seed, 2), Counts::default());
        Ok(Scene { program, random, source_dir, source, disk, copy, output, acknowledged: 0, counts })
    }

    fn start(&self, follow: bool) -> Result<Process> {
        let mut arguments = vec!["mirror", text(&self.source_dir)?, text(&self.copy)?, "--json"];
        arguments.extend(follow.then_some("--follow"));
        self.program.start(&arguments, &self.output, "mirror")
    }

    /// Bytes in the segments of the copy. Keeps the source from running away.
    fn copied(&self) -> Result<u64> {
        let mut bytes = 0;
        for (_, path) in segments(&self.copy)? {
            bytes += std::fs::metadata(path).map_or(0, |metadata| metadata.size());
        }
        self.source.pause(self.source.bytes() > bytes + AHEAD_MAX);
        ensure!(!self.source.has_ended(), "the writer of the source failed");
        Ok(bytes)
    }

    /// Waits for the copy to have `bytes`, by a mirror that must not end.
    fn wait_copied(&mut self, mirror: &mut Process, bytes: u64) -> Result<()> {
        let grown = wait_for(&format!("the copy to have {bytes} bytes"), LIMIT, || {
            self.note(mirror)?;
            if let Some(status) = mirror.exited()? {
                bail!("the mirror ended unexpectedly with {status}");
            }
            Ok((self.copied()? >= bytes).then_some(()))
        });
        grown.with_context(|| mirror.errors())
    }

    /// Records what a mirror reports.
    fn note(&mut self, mirror: &mut Process) -> Result<()> {
        for line in mirror.json_lines()? {
            self.acknowledged = self.acknowledged.max(line["durable"].as_u64().unwrap_or(0));
            self.counts.no_space_lines += usize::from(line.to_string().contains("No space left"));
        }
        Ok(())
    }

    /// Checks that all that was acknowledged is there; returns the torn bytes after it.
    fn check(&self) -> Result<usize> {
        let end = commitlog::end(&self.copy)?;
        let acknowledged = self.acknowledged;
        ensure!(end.next >= acknowledged, "{acknowledged} was acknowledged, but the copy ends at {}", end.next);
        Ok(end.torn)
    }

    fn kill_round(&mut self) -> Result<()> {
        let mut mirror = self.start(true)?;
        if self.random.one_in(5) {
            std::thread::sleep(Duration::from_millis(self.random.within(0..300)));
        } else {
            let grown = self.copied()? + self.random.within(1..3 << 20);
            self.wait_copied(&mut mirror, grown)?;
        }
        self.note(&mut mirror)?;
        ensure!(mirror.exited()?.is_none(), "the mirror ended unexpectedly: {}", mirror.errors());
        mirror.kill()?;
        self.counts.kills += 1;
        self.counts.torn_by_kills += u64::from(self.check()? > 0);
        Ok(())
    }

    /// Waits until the copy grows no more although the source has more.
    fn wait_stalled(&mut self, mirror: &mut Process) -> Result<()> {
        let (mut bytes, mut since) = (0, Instant::now());
        wait_for("the copy to meet the end of its disk", LIMIT, || {
            self.note(mirror)?;
            let now = self.copied()?;
            if now != bytes || self.source.bytes() < now + (1 << 20) {
                (bytes, since) = (now, Instant::now());
            }
            Ok((since.elapsed() > STALL).then_some(()))
        })
    }

    fn full_while_following(&mut self, killed: bool) -> Result<()> {
        let mut mirror = self.start(true)?;
        let grown = self.copied()? + self.random.within(1..1 << 20);
        self.wait_copied(&mut mirror, grown)?;
        self.disk.fill(self.random.within(0..256 << 10))?;
        self.wait_stalled(&mut mirror)?;
        ensure!(mirror.exited()?.is_none(), "the mirror ended on the full disk: {}", mirror.errors());
        if killed {
            mirror.kill()?;
            self.check()?;
            mirror = self.start(true)?;
            self.wait_stalled(&mut mirror)?;
            ensure!(mirror.exited()?.is_none(), "the mirror ended at start on the full disk: {}", mirror.errors());
        }
        self.disk.free()?;
        let grown = self.copied()? + 1 + self.random.within(0..1 << 20);
        self.wait_copied(&mut mirror, grown)?;
        mirror.signal(Signal::TERM)?;
        let status = mirror.ended(LIMIT)?;
        ensure!(status.success(), "the mirror ended with {status} after SIGTERM: {}", mirror.errors());
        self.note(&mut mirror)?;
        ensure!(self.check()? == 0, "a mirror that ended in order left a torn end");
        self.counts.fulls_killed += u64::from(killed);
        self.counts.fulls_following += u64::from(!killed);
        Ok(())
    }

    fn full_in_one_shot(&mut self) -> Result<()> {
        // Enough for the disk to be met.
        wait_for("the source to be ahead", LIMIT, || {
            Ok((self.source.bytes() > self.copied()? + (1 << 20)).then_some(()))
        })?;
        self.disk.fill(self.random.within(0..256 << 10))?;
        let mut mirror = self.start(false)?;
        let status = self.one_shot_ended(&mut mirror)?;
        ensure!(status == Some(3), "the mirror ended on a full disk with {status:?}: {}", mirror.errors());
        ensure!(self.check()? == 0, "the mirror left a torn end on the full disk");
        self.disk.free()?;
        let before = self.copied()?;
        let mut mirror = self.start(false)?;
        let status = self.one_shot_ended(&mut mirror)?;
        ensure!(status == Some(0), "the mirror ended after there was room with {status:?}: {}", mirror.errors());
        ensure!(self.copied()? > before && self.check()? == 0);
        self.counts.fulls_one_shot += 1;
        Ok(())
    }

    fn one_shot_ended(&mut self, mirror: &mut Process) -> Result<Option<i32>> {
        let status = wait_for("the mirror to end", LIMIT, || {
            self.copied()?;
            mirror.exited()
        });
        self.note(mirror)?;
        Ok(status.with_context(|| mirror.errors())?.code())
    }

    fn finish(mut self) -> Result<Counts> {
        self.source.pause(false);
        let did = self.source.finish()?;
        let next = commitlog::end(&self.source_dir)?.next;
        let arguments = ["mirror", text(&self.source_dir)?, text(&self.copy)?];
        let status = self.program.run(&arguments, &self.output, "last", LIMIT)?;
        ensure!(status.success(), "the last mirror ended with {status}");
        ensure!(commitlog::end(&self.copy)?.next == next);
        commitlog::ensure_holds(&commitlog::expected(&self.source_dir)?, &self.copy)?;
        let status = self.program.run(&["verify", text(&self.copy)?], &self.output, "verify", LIMIT)?;
        ensure!(status.success(), "verify ended with {status}");
        println!("source: {did:?}");
        println!("copy: byte-identical up to offset {next}, verify 0");
        Ok(std::mem::take(&mut self.counts))
    }
}
