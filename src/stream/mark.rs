//! The durable mark: a file that remembers up to which offset a log was durable.
//!
//! ```text
//! 0         8          12        20         24
//! | offset  | crc32c   | offset  | crc32c   |        little-endian; each checksum covers the offset before it
//! ```
//!
//! The two are written in turn, and the larger one that is sound counts: whatever cuts a write leaves the other. Earlier
//! versions had the first one only, and read it still.
//!
//! It is created whole (synced under another name, then renamed), written in place after each sync of the log, in one sector,
//! and synced only when a log is opened: after a power failure it may be behind, but it is never ahead, torn or missing. So
//! a mark that is there and makes no sense is damage; an empty or zero one too, but for logs that earlier versions created
//! (they created it in place, and a power failure could leave that). With it, recovery tells a tail that a crash tore (at or
//! behind the mark: never acknowledged, trimmed) from acknowledged commits that rotted or vanished (before the mark:
//! refused), whatever the damage looks like.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::offset::Offset;
use crate::repo::{Repo, RepoFile, replace};

const SLOT: usize = 8 + 4;
const LEN: usize = 2 * SLOT;

/// What there is of a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FoundMark {
    /// There is none.
    Absent,
    /// It is empty or zero: earlier versions left that when the power failed while they created it.
    Blank,
    /// Everything before this offset was durable.
    Says(Offset),
    /// It is none of ours, or damaged: what is wrong with it.
    Damaged(String),
}

impl FoundMark {
    /// What it says, if it can be believed.
    pub(crate) fn offset(&self) -> Option<Offset> {
        match self {
            FoundMark::Says(offset) => Some(*offset),
            _ => None,
        }
    }

    /// What is wrong with it, if anything is. `expected`: whether the log is known to have had one.
    pub(crate) fn fault(&self, expected: bool) -> Option<String> {
        match self {
            FoundMark::Says(_) => None,
            FoundMark::Absent => expected.then(|| "is missing".to_owned()),
            FoundMark::Blank => expected.then(|| "is empty".to_owned()),
            FoundMark::Damaged(what) => Some(what.clone()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct DurableMark {
    file: Arc<dyn RepoFile>,
    /// Which of the two is written next.
    turn: usize,
}

impl DurableMark {
    /// Its file in the directory of a generation.
    pub(crate) const NAME: &str = "durable";

    /// What there is of the mark in `repo`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read(repo: &dyn Repo) -> io::Result<FoundMark> {
        let file = match repo.open(Self::NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FoundMark::Absent),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory) => {
                return Ok(FoundMark::Damaged(format!("cannot be read ({error})")));
            }
            file => file?,
        };
        let (bytes, content, read) = content_of(&*file)?;
        if bytes <= LEN as u64 && content[..read].iter().all(|byte| *byte == 0) {
            return Ok(FoundMark::Blank);
        }
        if bytes > LEN as u64 || read < SLOT {
            return Ok(FoundMark::Damaged(format!("has {bytes} bytes instead of {LEN}")));
        }
        Ok(match slots(&content).into_iter().flatten().max() {
            Some(offset) => FoundMark::Says(offset),
            None => FoundMark::Damaged("does not match its checksum".to_owned()),
        })
    }

    /// Puts a mark in the place of the one that is there, which may say more. After Ok it survives power loss.
    pub(crate) fn reset(repo: &dyn Repo, durable: Offset) -> io::Result<()> {
        replace(repo, Self::NAME, &[encode(durable), encode(durable)].concat())
    }

    /// Opens or creates the mark and notes that everything before `durable` is durable. After Ok that note survives
    /// power loss, once the directory is synced.
    pub(crate) fn open(repo: &dyn Repo, durable: Offset) -> io::Result<DurableMark> {
        let file = match repo.open_write(Self::NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DurableMark::reset(repo, durable)?;
                repo.open_write(Self::NAME)
            }
            file => file,
        };
        let file = file?;
        let [first, second] = slots(&content_of(&*file)?.1);
        // The other one holds until this one is synced.
        let mut mark = DurableMark { file, turn: usize::from(second < first) };
        mark.note(durable)?;
        mark.file.sync()?;
        Ok(mark)
    }

    /// Notes that everything before `offset` is durable.
    pub(super) fn note(&mut self, offset: Offset) -> io::Result<()> {
        let at = self.turn * SLOT;
        self.turn = 1 - self.turn;
        self.file.write_at(&mut [IoSlice::new(&encode(offset))], at as u64)
    }
}

/// The length of the file, and what it begins with, in so many bytes.
fn content_of(file: &dyn RepoFile) -> io::Result<(u64, [u8; LEN], usize)> {
    let (bytes, mut content) = (file.bytes()?, [0; LEN]);
    let read = file.read_at(&mut content, 0)?;
    Ok((bytes, content, read))
}

/// What the two say, if they are sound.
fn slots(content: &[u8; LEN]) -> [Option<Offset>; 2] {
    std::array::from_fn(|at| {
        let offset: [u8; 8] = std::array::from_fn(|i| content[at * SLOT + i]);
        let offset = Offset(u64::from_le_bytes(offset));
        (content[at * SLOT..][..SLOT] == encode(offset)).then_some(offset)
    })
}

fn encode(offset: Offset) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(&offset.0.to_le_bytes());
    let checksum = crc32c::crc32c(&slot[..8]);
    slot[8..].copy_from_slice(&checksum.to_le_bytes());
    slot
}
