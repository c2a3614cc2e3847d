//! Random choices from a seed that is printed and can be set again.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// The environment variable that holds the seed to repeat.
pub const SEED: &str = "LOGMIRROR_SEED";

/// A xorshift generator.
pub struct Random(u64);

/// The seed from the environment, or one that depends on the time.
pub fn seed() -> Result<u64> {
    match std::env::var(SEED) {
        Ok(text) => text.parse().with_context(|| format!("{SEED}={text}: expected a number")),
        Err(_) => Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64 % 1_000_000_007),
    }
}

impl Random {
    /// The same seed and `purpose` give the same sequence.
    pub fn new(seed: u64, purpose: u64) -> Random {
        let mut random = Random((seed ^ purpose.wrapping_mul(0xD134_2543_DE82_EF95)) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number in `range`, which must not be empty.
    pub fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + (self.next() >> 11) % (range.end - range.start)
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}
