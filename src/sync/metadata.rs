//! The metadata file `<database>-info`: how far the server confirmed the frames of this database. Owns: its bytes and how
//! it is replaced. It is a cache of what the server knows: content that cannot be trusted is worth as much as no file.
//!
//! ```text
//! {"hash":2496050245,"version":0,"durable_frame_num":12,"generation":1}
//! ```
//!
//! Compact JSON, the keys in this order, read in any. `hash` is the CRC-32 of version, frame and generation, each as a
//! little-endian u32. libSQL's own client reads and writes the same file.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Position;
use super::pull_mark::{self, PullMark};
use super::push_mark::{self, PushMark};
use crate::limits::{DRAFT_STALE_AFTER, METADATA_BYTES_MAX};
use crate::repo::{Repo, read_small};
pub(crate) use crate::sqlite::names::INFO;

/// The only version there is.
const VERSION: u32 = 0;

#[derive(Serialize, Deserialize)]
struct Stored {
    hash: u32,
    version: u32,
    durable_frame_num: u32,
    generation: u32,
}

impl Stored {
    fn hash(&self) -> u32 {
        let words = [self.version, self.durable_frame_num, self.generation].map(u32::to_le_bytes);
        crc32fast::hash(words.as_flattened())
    }
}

/// Why the content of a metadata file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is no file.
    #[error("there is none")]
    Missing,
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not the JSON it should be.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It was damaged, or written by something else.
    #[error("its hash is {found}, that of its content {computed}")]
    Hash {
        /// The hash in the file.
        found: u32,
        /// That of the rest.
        computed: u32,
    },
    /// It is of another time.
    #[error("version {found} is not supported ({VERSION} is)")]
    Version {
        /// Its version.
        found: u32,
    },
    /// There is no such generation.
    #[error("generation 0")]
    Generation,
    /// What it says of a push was damaged.
    #[error("what it says of a push does not have the hash that it says")]
    Mark,
}

/// What a metadata file says, or why it is not believed.
pub type Known = Result<Position, Unusable>;

/// The content of a metadata file.
#[must_use]
pub fn encode(position: Position) -> Vec<u8> {
    let Position { generation, frame } = position;
    let mut stored = Stored { hash: 0, version: VERSION, durable_frame_num: frame, generation };
    stored.hash = stored.hash();
    let Stored { hash, version, .. } = stored;
    format!(r#"{{"hash":{hash},"version":{version},"durable_frame_num":{frame},"generation":{generation}}}"#).into()
}

/// What the content of a metadata file says.
///
/// # Errors
/// When it cannot be believed, and why.
pub fn decode(content: &[u8]) -> Known {
    let stored: Stored = serde_json::from_slice(content)?;
    let Stored { hash: found, version, durable_frame_num: frame, generation } = stored;
    match stored.hash() {
        computed if computed != found => Err(Unusable::Hash { found, computed }),
        _ if version != VERSION => Err(Unusable::Version { found: version }),
        _ if generation == 0 => Err(Unusable::Generation),
        _ => Ok(Position { generation, frame }),
    }
}

/// The metadata file of one database.
#[derive(Clone, Debug)]
pub struct MetadataFile {
    dir: Arc<dyn Repo>,
    name: String,
}

impl MetadataFile {
    /// The file `name` in `dir`.
    #[must_use]
    pub fn new(dir: Arc<dyn Repo>, name: String) -> MetadataFile {
        MetadataFile { dir, name }
    }

    /// What it says, as far as it can be believed.
    ///
    /// # Errors
    /// When it cannot: the caller says so and asks the server instead.
    pub fn load(&self) -> Known {
        match read_small(&*self.dir, &self.name, METADATA_BYTES_MAX)? {
            Some(content) => decode(&content),
            None => Err(Unusable::Missing),
        }
    }

    /// Replaces the file. After Ok the new content survives power loss; after Err, or a crash at any moment, the old or
    /// the new does: the content is synced before its name points to it, the rename is atomic, and the directory is
    /// synced so that the rename is not forgotten.
    ///
    /// # Errors
    /// As the directory says.
    pub fn store(&self, position: Position) -> io::Result<()> {
        self.replace(&encode(position))
    }

    /// Its content, where there is some that can be read.
    pub(super) fn content(&self) -> Option<Vec<u8>> {
        read_small(&*self.dir, &self.name, METADATA_BYTES_MAX).ok().flatten()
    }

    /// The same with the position of a WAL that corresponds to it. What it said before of the same generation stays noted as an earlier end.
    ///
    /// # Errors
    /// As the directory says.
    pub(super) fn store_pushed(&self, position: Position, mark: &PushMark) -> io::Result<()> {
        let noted = self.load_pushed().ok().flatten().filter(|(noted, _)| noted.generation == position.generation);
        let mark = mark.clone();
        let mark = match noted {
            Some((before, noted)) => mark.after_noted(position.frame, (before.frame, noted)),
            None => mark,
        };
        self.replace(&push_mark::encode(position, &mark))
    }

    /// What position of a WAL it says to stand for what it says, if it does.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn load_pushed(&self) -> io::Result<Option<(Position, PushMark)>> {
        let content = read_small(&*self.dir, &self.name, METADATA_BYTES_MAX)?;
        Ok(content.and_then(|content| {
            let position = decode(&content).ok()?;
            Some((position, push_mark::decode(position, &content)?))
        }))
    }

    /// What it says of a replica, if it does.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn load_pulled(&self) -> io::Result<Option<(Position, PullMark)>> {
        let content = read_small(&*self.dir, &self.name, METADATA_BYTES_MAX)?;
        Ok(content.and_then(|content| {
            let position = decode(&content).ok()?;
            Some((position, pull_mark::decode(position, &content)?))
        }))
    }

    /// How far it says that the database is pushed from here, none where it is that of a replica, which a pull over a pushed database does not
    /// make it; or why it is not believed: then it may be either.
    ///
    /// # Errors
    /// When it cannot be read, which says nothing about it.
    pub(super) fn pushed(&self) -> io::Result<Result<Option<(Position, PushMark)>, Unusable>> {
        let content = match read_small(&*self.dir, &self.name, METADATA_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Err(error.into())),
            content => content?,
        };
        Ok(content.ok_or(Unusable::Missing).and_then(|content| {
            let position = decode(&content)?;
            match push_mark::decode(position, &content) {
                _ if pull_mark::decode(position, &content).is_some_and(|mark| !mark.is_pushed) => Ok(None),
                None if push_mark::is_in(&content) => Err(Unusable::Mark),
                mark => Ok(mark.map(|mark| (position, mark))),
            }
        }))
    }

    /// Replaces the file as [`store`](Self::store) does.
    pub(super) fn replace(&self, content: &[u8]) -> io::Result<()> {
        let draft = draft_name(SystemTime::now(), Uuid::new_v4());
        let file = self.dir.create(&draft)?;
        let written = file.write_at(&mut [IoSlice::new(content)], 0).and_then(|()| file.sync());
        if let Err(error) = written.and_then(|()| self.dir.rename(&draft, &self.name)) {
            // Without a name of its own it would only be in the way; the first error counts.
            let _ = self.dir.remove(&draft);
            return Err(error);
        }
        self.dir.sync_dir()
    }

    /// Removes what crashes left behind: drafts old enough that nobody is writing them any more.
    ///
    /// # Errors
    /// As the directory says.
    pub fn clean(&self) -> io::Result<()> {
        let before = SystemTime::now().checked_sub(DRAFT_STALE_AFTER).unwrap_or(UNIX_EPOCH);
        let stale = stamp(before);
        let mut removed = false;
        for name in self.dir.list()? {
            if draft_stamp(&name).is_some_and(|stamp| *stamp < *stale) {
                log::info!("removing {name} in {}, which a crash left behind", self.dir.place());
                match self.dir.remove(&name) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => removed = true,
                }
            }
        }
        if removed { self.dir.sync_dir() } else { Ok(()) }
    }
}

fn draft_name(now: SystemTime, id: Uuid) -> String {
    format!(".tmp.{}.{id}", stamp(now))
}

/// When a draft was begun, if that is the name of one.
fn draft_stamp(name: &str) -> Option<&str> {
    let (stamp, id) = name.strip_prefix(".tmp.")?.split_once('.')?;
    let (date, time) = stamp.split_once('_')?;
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(date, 8) && digits(time, 6) && id.len() == 36 && Uuid::try_parse(id).is_ok()).then_some(stamp)
}

/// A moment as `YYYYmmdd_HHMMSS`, UTC.
pub(crate) fn stamp(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that a leap day comes last; 719,468 days lie between 0000-03-01 and 1970-01-01.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
#[path = "metadata_tests.rs"]
mod tests;
