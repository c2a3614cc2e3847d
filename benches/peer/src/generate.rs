//! Logs to measure on, written by the published crate's own writer.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use spacetimedb_commitlog::commitlog::Generic;
use spacetimedb_commitlog::repo::Fs;

use crate::published;

/// What a commit of the log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// 4 transactions of 1,000 bytes a commit: a busy database.
    A,
    /// 1 transaction of 100 bytes a commit: the worst case, all framing.
    B,
}

impl Shape {
    /// Transactions a commit.
    pub fn transactions(self) -> u64 {
        match self {
            Shape::A => 4,
            Shape::B => 1,
        }
    }

    /// Bytes of one transaction.
    pub fn transaction_bytes(self) -> u64 {
        match self {
            Shape::A => 1000,
            Shape::B => 100,
        }
    }

    /// Bytes of one commit on disk.
    pub fn commit_bytes(self) -> u64 {
        let framing = spacetimedb_commitlog::Commit::FRAMING_LEN as u64;
        framing + self.transactions() * self.transaction_bytes()
    }

    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Shape::A => "a",
            Shape::B => "b",
        }
    }
}

/// A log to write: at least `bytes` of commits, in segments of at most `segment_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What its commits look like.
    pub shape: Shape,
    /// Bytes of commits, rounded up to a whole commit.
    pub bytes: u64,
    /// The size at which the writer starts the next segment.
    pub segment_bytes: u64,
}

impl Plan {
    /// How many commits it takes.
    pub fn commits(&self) -> u64 {
        self.bytes.div_ceil(self.shape.commit_bytes())
    }

    /// Append the log to `dir`, which is created if need be. It is durable when this returns: the writer syncs
    /// each segment when it starts the next, and the last one is synced here.
    pub fn write(&self, dir: &Path) -> Result<()> {
        match self.shape {
            Shape::A => self.write_records::<1000>(dir),
            Shape::B => self.write_records::<100>(dir),
        }
        .with_context(|| format!("write a log to {}", dir.display()))
    }

    fn write_records<const N: usize>(&self, dir: &Path) -> Result<()> {
        let options = published::options(self.segment_bytes);
        let mut log = Generic::<Fs, [u8; N]>::open(published::repo(dir)?, options)?;
        // Another seed for each run on the same log, or an appended part would repeat the one before.
        let mut noise = Noise::new(log.max_committed_offset().map_or(0, |last| last + 1));
        for _ in 0..self.commits() {
            for _ in 0..self.shape.transactions() {
                log.append(noise.bytes()).map_err(|_| anyhow!("the writer's commit is full"))?;
            }
            log.commit()?;
        }
        log.sync();
        Ok(())
    }
}

/// Bytes that do not compress and cost nothing to make: xorshift64.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(seed ^ 0x9E37_79B9_7F4A_7C15)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;

    #[test]
    fn a_log_has_the_commits_that_were_asked_for() -> Result<()> {
        for shape in [Shape::A, Shape::B] {
            let dir = tempfile::tempdir()?;
            let plan = Plan { shape, bytes: 100_000, segment_bytes: 40_000 };
            plan.write(dir.path())?;

            let commits = published::commits(dir.path(), 0)?;
            assert_eq!(commits.len() as u64, plan.commits());
            assert!(commits.iter().all(|c| u64::from(c.n) == shape.transactions()));
            assert_eq!(files::segments(dir.path())?.len(), 3);
            assert!(files::segment_bytes(dir.path())? >= plan.bytes);
        }
        Ok(())
    }
}
