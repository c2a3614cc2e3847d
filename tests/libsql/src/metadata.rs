//! The client's metadata file, `<database>-info`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// What the client remembers of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Number of the last frame the server confirmed.
    pub frame: u32,
    /// The generation it counts in.
    pub generation: u32,
}

impl Metadata {
    /// The metadata file of a database.
    pub fn path(database: &Path) -> PathBuf {
        let mut path = database.as_os_str().to_owned();
        path.push("-info");
        path.into()
    }

    /// Read it, and fail unless it is sound.
    pub fn read(database: &Path) -> Result<Self> {
        let file: Value = serde_json::from_slice(&fs::read(Self::path(database))?)?;
        let number = |key: &str| {
            let number = file[key].as_u64().with_context(|| format!("no {key:?} in {file}"))?;
            Ok::<_, anyhow::Error>(u32::try_from(number)?)
        };
        let metadata = Self { frame: number("durable_frame_num")?, generation: number("generation")? };
        ensure!(number("version")? == 0);
        ensure!(number("hash")? == metadata.hash(0), "the hash in {file} is wrong");
        Ok(metadata)
    }

    /// Write it as the client would.
    pub fn write(self, database: &Path) -> Result<()> {
        Ok(fs::write(Self::path(database), self.json(self.hash(0), 0))?)
    }

    fn hash(self, version: u32) -> u32 {
        let bytes = [version, self.frame, self.generation].map(u32::to_le_bytes);
        crc32fast::hash(bytes.as_flattened())
    }

    fn json(self, hash: u32, version: u32) -> String {
        let Self { frame, generation } = self;
        json!({"hash": hash, "version": version, "durable_frame_num": frame, "generation": generation}).to_string()
    }
}

/// Ways in which the file can be unreadable.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// Not JSON at all.
    Garbage,
    /// No bytes.
    Empty,
    /// The first half.
    Truncated,
    /// Sound, but for the hash.
    WrongHash,
    /// Sound, of a version that does not exist.
    WrongVersion,
}

impl Damage {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Garbage, Self::Empty, Self::Truncated, Self::WrongHash, Self::WrongVersion];

    /// Damage the sound metadata file of a database.
    pub fn apply(self, database: &Path) -> Result<()> {
        let sound = Metadata::read(database)?;
        let mut text = match self {
            Self::Garbage => "\u{1}not JSON".to_owned(),
            Self::Empty => String::new(),
            Self::Truncated => sound.json(sound.hash(0), 0),
            Self::WrongHash => sound.json(!sound.hash(0), 0),
            Self::WrongVersion => sound.json(sound.hash(7), 7),
        };
        if let Self::Truncated = self {
            text.truncate(text.len() / 2);
        }
        Ok(fs::write(Metadata::path(database), text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_clients() {
        let hash = |frame, generation| Metadata { frame, generation }.hash(0);
        let hashes = [hash(0, 1), hash(12, 1), hash(22, 1), hash(0, 2), hash(0, 3)];
        assert_eq!(hashes, [3278479626, 2496050245, 2042468774, 3520859876, 1767926145]);
    }
}
