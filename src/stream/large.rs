//! Commits that are too large to be held in memory until they are whole: where their bytes are meanwhile, and how they get
//! from there into a segment.
//!
//! A large commit was verified when its last byte was received. Its bytes are in a file, which may be another's, so they are
//! checked again on their way into a segment: see [`copy`].

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::format::{Commit, Framing, Item, Scanner, Walk};
use crate::limits::{LARGE_COPY_BYTES, SPOOL_CHECK_BYTES, SPOOL_RESERVE_BYTES};
use crate::offset::{BytePos, Offset};
use crate::repo::{FsRepo, Repo, RepoFile, temporary_dir};
use crate::segment::SegmentReader;

/// Bytes that can be read from any position, again and again.
pub trait ReadAt: fmt::Debug + Send + Sync {
    /// Reads into `buf` from `at`; fewer bytes than asked for only at the end.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
}

impl ReadAt for Arc<dyn RepoFile> {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        (**self).read_at(buf, at)
    }
}

/// The bytes of a segment, of whatever form; opened by its name when they are first read.
#[derive(Debug)]
pub(super) struct SegmentBytes {
    repo: Arc<dyn Repo>,
    start: Offset,
    opened: Mutex<Option<SegmentReader>>,
}

impl SegmentBytes {
    pub(super) fn new(repo: Arc<dyn Repo>, start: Offset) -> SegmentBytes {
        SegmentBytes { repo, start, opened: Mutex::default() }
    }
}

impl ReadAt for SegmentBytes {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *opened {
            Some(reader) => reader.read_at(buf, BytePos(at)),
            None => opened.insert(SegmentReader::open(&*self.repo, self.start)?).read_at(buf, BytePos(at)),
        }
    }
}

/// Where the bytes of a commit are kept that is too large to be held in memory until it is whole.
#[derive(Clone, Debug, Default)]
pub enum LargeCommits {
    /// In memory, as those of any other.
    #[default]
    InMemory,
    /// Nowhere: only whether it is sound matters.
    Nowhere,
    /// Where the stream is read from, which starts at byte `start` of it.
    InSource {
        /// What the stream is read from.
        bytes: Arc<dyn ReadAt>,
        /// Where in it the stream starts.
        start: u64,
    },
    /// In a file of its own in a directory. The file has no name, so a crash leaves nothing of it.
    Spooled(Arc<dyn Repo>),
    /// The same, in the directory for temporary files.
    Temporary,
}

/// What names of spool files end in, for the moment in which they have one.
const SPOOL_SUFFIX: &str = ".spool";

/// Creates a file without a name.
///
/// # Errors
/// As the repo says.
pub(crate) fn create_spool(repo: &dyn Repo) -> io::Result<Arc<dyn RepoFile>> {
    let name = format!("{}{SPOOL_SUFFIX}", uuid::Uuid::new_v4());
    let file = repo.create(&name)?;
    match repo.remove(&name) {
        // What opens the log removes names that a crash left.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(file),
    }
}

/// Removes the names that a crash may have left of spool files in `repo`.
pub(super) fn remove_spools(repo: &dyn Repo) -> io::Result<()> {
    let is_spool =
        |name: &&String| name.strip_suffix(SPOOL_SUFFIX).is_some_and(|stem| uuid::Uuid::try_parse(stem).is_ok());
    for name in repo.list()?.iter().filter(is_spool) {
        match repo.remove(name) {
            // Another one may be creating it just now.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => log::info!("{}: removed {name}, which a crash left", repo.place()),
        }
    }
    Ok(())
}

/// The front of a large commit, received so far and no longer in memory.
#[derive(Debug)]
pub(super) struct Spill {
    /// Where its bytes can be read, and from which position on; none if only whether they are sound matters.
    from: Option<(Arc<dyn ReadAt>, u64)>,
    /// The file of its own that it is written to.
    file: Option<Arc<dyn RepoFile>>,
    room: Room,
    bytes: u64,
}

/// What a large commit may take of a disk.
#[derive(Debug, Default)]
struct Room {
    dir: Option<Arc<dyn Repo>>,
    /// Whether the log that it is copied into is on that disk too.
    is_copied: bool,
}

impl Room {
    /// That so many bytes may be written after the first `held`.
    fn check(&self, held: u64, bytes: u64) -> io::Result<()> {
        let is_due = held == 0 || (held + bytes) / SPOOL_CHECK_BYTES > held / SPOOL_CHECK_BYTES;
        let Some(dir) = self.dir.as_ref().filter(|_| is_due) else {
            return Ok(());
        };
        let copy = if self.is_copied { held + bytes } else { 0 };
        let needed = bytes.saturating_add(copy).saturating_add(SPOOL_RESERVE_BYTES);
        match dir.free_bytes()? {
            Some(free) if free < needed => {
                let text = format!("{} has {free} bytes free, and {needed} are needed to go on", dir.place());
                Err(io::Error::new(io::ErrorKind::StorageFull, text))
            }
            _ => Ok(()),
        }
    }
}

impl Spill {
    /// For a commit that starts at byte `at` of its stream.
    pub(super) fn begin(place: &LargeCommits, at: u64) -> io::Result<Spill> {
        let room = match place {
            LargeCommits::InMemory | LargeCommits::Nowhere | LargeCommits::InSource { .. } => Room::default(),
            LargeCommits::Spooled(repo) => Room { dir: Some(repo.clone()), is_copied: true },
            LargeCommits::Temporary => Room { dir: Some(Arc::new(FsRepo::open(temporary_dir())?)), is_copied: false },
        };
        let file = room.dir.as_ref().map(|dir| create_spool(&**dir)).transpose()?;
        let from = match (place, &file) {
            (LargeCommits::InSource { bytes, start }, _) => Some((bytes.clone(), start + at)),
            (_, Some(file)) => Some((Arc::new(file.clone()) as Arc<dyn ReadAt>, 0)),
            (_, None) => None,
        };
        Ok(Spill { from, file, room, bytes: 0 })
    }

    /// Takes the next bytes of the commit.
    pub(super) fn write(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if let Some(file) = &self.file {
            self.room.check(self.bytes, bytes)?;
            let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            file.write_at(&mut slices, self.bytes)?;
        }
        self.bytes += bytes;
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The commit, whose last byte was taken; none if it was only to be checked.
    pub(super) fn finish(self) -> Option<LargeCommit> {
        self.from.map(|(file, at)| LargeCommit { file, at, bytes: self.bytes })
    }
}

/// The bytes of one commit, in a file. They were verified, and may have changed since if the file is another's.
#[derive(Clone, Debug)]
pub struct LargeCommit {
    file: Arc<dyn ReadAt>,
    at: u64,
    bytes: u64,
}

impl LargeCommit {
    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads into `buf` from byte `at` of the commit; fewer bytes than asked for only at its end.
    ///
    /// # Errors
    /// When they cannot be read, or the file ends before the commit.
    pub fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let left = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let wanted = left.min(buf.len());
        let count = self.file.read_at(&mut buf[..wanted], self.at + at)?;
        if count < wanted {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends inside the commit"));
        }
        Ok(count)
    }

    /// At most `bytes_max` bytes of it from byte `at` on.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn block(&self, at: u64, bytes_max: usize) -> io::Result<Bytes> {
        let left = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut block = vec![0; left.min(bytes_max)];
        self.read_at(&mut block, at)?;
        Ok(block.into())
    }
}

/// Why a large commit was not copied.
#[derive(Debug)]
pub(super) enum CopyError {
    /// Its bytes cannot be read, or are no longer those that were verified.
    Source(io::Error),
    /// They cannot be written.
    Write(io::Error),
}

/// Copies `commit`, whose bytes are `large` and framed as `framing` says, by calling `write` with them in order and the position
/// of each block in the commit. After Ok they were the bytes that were verified before.
///
/// # Errors
/// Any part of it may have been written then.
pub(super) fn copy(
    large: &LargeCommit,
    framing: Framing,
    commit: &Commit,
    mut write: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> Result<(), CopyError> {
    let changed = || CopyError::Source(io::Error::other("its bytes changed after they were verified"));
    let mut scanner = Scanner::new(Walk::new(framing, Some(commit.first), u64::MAX));
    let mut block = vec![0; LARGE_COPY_BYTES];
    let (mut at, mut found) = (0, None);
    while at < large.bytes {
        let count = large.read_at(&mut block, at).map_err(CopyError::Source)?;
        let mut input = &block[..count];
        while !input.is_empty() {
            match scanner.next(&mut input) {
                Ok(Some(Item::Commit(commit))) if found.is_none() => found = Some(commit),
                Ok(None) if found.is_none() => {}
                _ => return Err(changed()),
            }
        }
        write(&block[..count], at).map_err(CopyError::Write)?;
        at += count as u64;
    }
    if found == Some(*commit) { Ok(()) } else { Err(changed()) }
}
