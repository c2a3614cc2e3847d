//! What is wrong with a base, and where.

use std::io;

use super::id::BaseDigest;
use crate::format::name::{BASE, BASE_SUMS};

/// What is wrong with a base. As an [`io::Error`] it is `InvalidData`, and [`BaseFault::of`] finds it there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseFault {
    /// There is none.
    #[error("{place}/{BASE} is missing")]
    Missing {
        /// Its directory.
        place: String,
    },
    /// A directory is in its place.
    #[error("{place}/{BASE} is a directory, and no file")]
    Directory {
        /// Its directory.
        place: String,
    },
    /// It has another length.
    #[error("{place}/{BASE} has {found} bytes, not {expected}")]
    Length {
        /// Its directory.
        place: String,
        /// How many bytes it has.
        found: u64,
        /// How many it had.
        expected: u64,
    },
    /// A block of it changed.
    #[error("{place}/{BASE}: block {block}, at byte {at}, does not match its checksum in {BASE_SUMS}")]
    Block {
        /// Its directory.
        place: String,
        /// Which block, counted from 0.
        block: u64,
        /// Where it starts.
        at: u64,
    },
    /// It is another database, though each block matches its checksum.
    #[error("{place}/{BASE} has the SHA-256 {found}, not {expected}")]
    Digest {
        /// Its directory.
        place: String,
        /// Its digest.
        found: BaseDigest,
        /// What it was.
        expected: BaseDigest,
    },
    /// The checksums are at fault.
    #[error("{place}/{BASE_SUMS} {what}")]
    Sums {
        /// Its directory.
        place: String,
        /// What is wrong with them.
        what: String,
    },
}

impl BaseFault {
    /// The fault that an error was made of.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&BaseFault> {
        error.get_ref()?.downcast_ref()
    }

    /// The byte of the base where it is.
    #[must_use]
    pub fn at(&self) -> u64 {
        match self {
            BaseFault::Block { at, .. } => *at,
            BaseFault::Length { found, expected, .. } => *found.min(expected),
            _ => 0,
        }
    }
}

impl From<BaseFault> for io::Error {
    fn from(fault: BaseFault) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, fault)
    }
}
