//! A SQLite database of this machine and its WAL, as seen by somebody who only reads. Owns: which frames count, and that
//! what is given out was verified. Knows no server.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{FRAME_LEN, PAGE_LEN, beside, lock, same_frame};
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use crate::repo::open_regular;

/// How every SQLite database starts.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Where a database says how large its pages are.
const PAGE_SIZE_AT: usize = 16;
/// Where it says how it is written and read: 2 through a WAL.
const MODES_AT: u64 = 18;
/// Where the b-tree of page 1 starts: its kind, and behind it the number of its cells.
const TREE_AT: usize = 100;

/// Frames read at once.
const BLOCK_FRAMES: usize = 64;

/// Why the files here cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The file system refused.
    #[error("{doing}: {error}")]
    Io {
        /// What was tried, with the path.
        doing: String,
        /// Why it failed.
        error: io::Error,
    },
    /// Not a database.
    #[error("{} is not a SQLite database: {reason}", .path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The protocol knows pages of 4096 bytes only.
    #[error(
        "{} has pages of {found} bytes, and libSQL syncs those of {PAGE_LEN} only: copy it with VACUUM INTO after \
         PRAGMA page_size={PAGE_LEN}", .path.display()
    )]
    PageSize {
        /// The file.
        path: PathBuf,
        /// Its page size.
        found: u32,
    },
    /// A database whose changes do not go through a WAL.
    #[error("{} is not in WAL mode, so there are no frames to push: PRAGMA journal_mode=WAL", .path.display())]
    NotWal {
        /// The file.
        path: PathBuf,
    },
    /// Somebody has the database open.
    #[error("{} is open in another process{}: close it there first", .path.display(), .pid.map(|pid| format!(" ({pid})")).unwrap_or_default())]
    Busy {
        /// The database.
        path: PathBuf,
        /// The process, if the system can tell.
        pid: Option<i32>,
    },
    /// Another process changed the files meanwhile.
    #[error("{} was changed by another process: its log was restarted", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Frames that the protocol cannot number.
    #[error("{} holds more frames than the protocol can number", .path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
}

/// What became of a WAL since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All frames of before are still there; there may be more.
    Same,
    /// It is another log now: other salts, or less than there was.
    Restarted,
}

/// The WAL of a database: its header and how far it is sound.
#[derive(Debug)]
pub struct LocalLog {
    database: PathBuf,
    path: PathBuf,
    file: Option<File>,
    header: Option<WalHeader>,
    /// The checksum after each frame up to the last commit frame.
    chains: Vec<Chain>,
}

impl LocalLog {
    /// Reads and verifies the WAL of a database; a WAL that is not there, or whose header is damaged, has no frames, as
    /// for SQLite.
    ///
    /// # Errors
    /// See [`LocalError`].
    pub fn open(database: &Path) -> Result<LocalLog, LocalError> {
        let (database, path) = (database.to_owned(), beside(database, "-wal"));
        let mut log = LocalLog { database, path, file: None, header: None, chains: Vec::new() };
        log.look()?;
        Ok(log)
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Frames up to the last commit frame: what counts.
    #[must_use]
    pub fn frames(&self) -> u32 {
        // Held by `scan` and `extend`.
        self.chains.len() as u32
    }

    /// The log's header, if it has a sound one.
    #[must_use]
    pub fn header(&self) -> Option<WalHeader> {
        self.header
    }

    /// Looks again, and reads what has come since.
    ///
    /// # Errors
    /// See [`LocalError`].
    pub fn look(&mut self) -> Result<Look, LocalError> {
        // By its name: when the last connection closes, SQLite removes the file, and a later one makes another.
        let file = match open_regular(&self.path, File::options().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file.map_err(|error| self.io("opening", error))?),
        };
        let mut head = [0; HEADER_LEN];
        let header = match &file {
            Some(file) if read(file, &mut head, 0).map_err(|error| self.io("reading", error))? == HEADER_LEN => {
                WalHeader::decode(&head).inspect_err(|error| log::debug!("{}: {error}", self.path.display())).ok()
            }
            _ => None,
        };
        if let Some(found) = header.map(|header| header.page_size).filter(|size| *size as usize != PAGE_LEN) {
            return Err(LocalError::PageSize { path: self.path.clone(), found });
        }
        let restarted = self.header.is_some() && self.header != header;
        if restarted {
            self.chains.clear();
        }
        (self.file, self.header) = (file, header);
        self.scan()?;
        Ok(if restarted { Look::Restarted } else { Look::Same })
    }

    fn scan(&mut self) -> Result<(), LocalError> {
        let (Some(header), Some(file)) = (self.header, &self.file) else {
            return Ok(());
        };
        let mut chain = self.chains.last().copied().unwrap_or(header.seed());
        let mut open = Vec::new();
        let mut block = vec![0; BLOCK_FRAMES * FRAME_LEN];
        loop {
            let at = offset(self.chains.len() + open.len());
            let bytes = read(file, &mut block, at).map_err(|error| self.io("reading", error))?;
            for frame in block[..bytes].chunks_exact(FRAME_LEN) {
                let Some((size, after)) = sound(&header, chain, frame) else {
                    return Ok(());
                };
                chain = after;
                open.push(chain);
                if self.chains.len() + open.len() >= u32::MAX as usize {
                    return Err(LocalError::Full { path: self.path.clone() });
                }
                if size != 0 {
                    self.chains.append(&mut open);
                }
            }
            if bytes < block.len() {
                return Ok(());
            }
        }
    }

    /// Frames `start..end`, verified again: another process may have restarted the log since it was looked at. They must
    /// be among those that count.
    ///
    /// # Errors
    /// [`LocalError::Changed`] when they are not what they were, or not there.
    pub fn batch(&self, start: u32, end: u32) -> Result<Vec<u8>, LocalError> {
        let changed = || LocalError::Changed { path: self.path.clone() };
        let (Some(header), Some(file)) = (self.header, &self.file) else {
            return Err(changed());
        };
        if start == 0 || end < start || end - 1 > self.frames() {
            return Err(changed());
        }
        let before = start as usize - 1;
        let mut frames = vec![0; (end - start) as usize * FRAME_LEN];
        if read(file, &mut frames, offset(before)).map_err(|error| self.io("reading", error))? < frames.len() {
            return Err(changed());
        }
        let mut chain = before.checked_sub(1).map_or(header.seed(), |last| self.chains[last]);
        for (frame, expected) in frames.chunks_exact(FRAME_LEN).zip(&self.chains[before..]) {
            match sound(&header, chain, frame) {
                Some((_, after)) if after == *expected => chain = after,
                _ => return Err(changed()),
            }
        }
        Ok(frames)
    }

    /// Whether this log has `frames`, which are numbered from `start`; the number of the first that differs, if any. All
    /// must be among those that count.
    ///
    /// # Errors
    /// See [`LocalLog::batch`].
    pub fn differs(&self, start: u32, frames: &[u8]) -> Result<Option<u32>, LocalError> {
        if frames.is_empty() {
            return Ok(None);
        }
        let ours = self.batch(start, start + (frames.len() / FRAME_LEN) as u32)?;
        let mut both = (start..).zip(ours.chunks_exact(FRAME_LEN).zip(frames.chunks_exact(FRAME_LEN)));
        Ok(both.find_map(|(number, (ours, theirs))| (!same_frame(ours, theirs)).then_some(number)))
    }

    /// The page and commit size of each frame that counts, in order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn heads(&self) -> impl Iterator<Item = Result<FrameHeader, LocalError>> + '_ {
        (0..self.chains.len()).map_while(|frame| self.file.as_ref().map(|file| (frame, file))).map(|(frame, file)| {
            let mut head = [0; FRAME_HEADER_LEN];
            file.read_exact_at(&mut head, offset(frame)).map_err(|error| self.io("reading", error))?;
            Ok(FrameHeader::decode(&head))
        })
    }

    /// The page in a frame that counts.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn page(&self, frame: u32, page: &mut [u8; PAGE_LEN]) -> Result<(), LocalError> {
        let at = offset(frame.saturating_sub(1) as usize) + FRAME_HEADER_LEN as u64;
        match &self.file {
            Some(file) => file.read_exact_at(page, at).map_err(|error| self.io("reading", error)),
            None => Err(LocalError::Changed { path: self.path.clone() }),
        }
    }

    /// The checksum that a further frame continues.
    pub(super) fn last_chain(&self) -> Option<Chain> {
        self.chains.last().copied().or(self.header.map(|header| header.seed()))
    }

    /// Frames up to a commit frame were written and synced; the checksum after each.
    pub(super) fn extend(&mut self, chains: &mut Vec<Chain>) {
        self.chains.append(chains);
    }

    pub(super) fn io(&self, doing: &str, error: io::Error) -> LocalError {
        LocalError::Io { doing: format!("{doing} {}", self.path.display()), error }
    }
}

/// A database file opened for reading, with a lock that keeps it from being checkpointed away by whoever closes it last;
/// writers go on.
///
/// # Errors
/// When there is none, it is no database the protocol can sync, or somebody has it for himself.
pub(super) fn open_shared(path: &Path) -> Result<File, LocalError> {
    let file = open_regular(path, File::options().read(true)).map_err(|error| io_at("opening", path, error))?;
    check_database(path, &file)?;
    // Without a WAL, and before SQLite has made the first page, the lock would keep out writers.
    let mut modes = [0; 2];
    let bytes = read(&file, &mut modes, MODES_AT).map_err(|error| io_at("reading", path, error))?;
    if bytes < modes.len() || modes != [2, 2] {
        return Err(LocalError::NotWal { path: path.to_owned() });
    }
    if !lock::shared(&file).map_err(|error| io_at("locking", path, error))? {
        return Err(LocalError::Busy { path: path.to_owned(), pid: lock::holder(&file) });
    }
    Ok(file)
}

/// Whether a file is an empty database or one with pages that the protocol knows.
pub(super) fn check_database(path: &Path, file: &File) -> Result<(), LocalError> {
    let wrong = |reason: String| LocalError::NotADatabase { path: path.to_owned(), reason };
    let mut head = [0; TREE_AT];
    match read(file, &mut head, 0).map_err(|error| io_at("reading", path, error))? {
        0 => return Ok(()),
        bytes if bytes < head.len() => return Err(wrong(format!("it has {bytes} bytes"))),
        _ if !head.starts_with(MAGIC) => return Err(wrong("it does not start like one".into())),
        _ => {}
    }
    let found = match u16::from_be_bytes([head[PAGE_SIZE_AT], head[PAGE_SIZE_AT + 1]]) {
        1 => 65_536,
        size => u32::from(size),
    };
    let len = file.metadata().map_err(|error| io_at("reading", path, error))?.len();
    match found as usize {
        PAGE_LEN if len.is_multiple_of(PAGE_LEN as u64) => Ok(()),
        PAGE_LEN => Err(wrong(format!("its {len} bytes are no whole pages"))),
        _ => Err(LocalError::PageSize { path: path.to_owned(), found }),
    }
}

/// Whether page 1 of a database of one page says that nothing was ever stored in it.
pub(super) fn is_blank(page: &[u8; PAGE_LEN]) -> bool {
    page.starts_with(MAGIC) && page[TREE_AT..].starts_with(&[0x0d, 0, 0, 0, 0])
}

/// The one page of a database in WAL mode in which nothing was ever stored, as SQLite makes it.
pub(super) fn blank() -> [u8; PAGE_LEN] {
    let mut page = [0; PAGE_LEN];
    page[..16].copy_from_slice(MAGIC);
    // Page size; WAL mode to write and to read; the shares of a page that cells may take, which are fixed.
    page[PAGE_SIZE_AT..24].copy_from_slice(&[0x10, 0, 2, 2, 0, 64, 32, 32]);
    // Changes so far; pages; changes when the SQLite version behind was written.
    (page[27], page[31], page[95]) = (1, 1, 1);
    page[96..TREE_AT].copy_from_slice(&3_007_000_u32.to_be_bytes());
    // An empty leaf of a table, whose cells will grow down from the end of the page.
    page[TREE_AT..TREE_AT + 7].copy_from_slice(&[0x0d, 0, 0, 0, 0, 0x10, 0]);
    page
}

/// Where a frame starts in a log that holds so many before it.
fn offset(frames_before: usize) -> u64 {
    (HEADER_LEN + frames_before * FRAME_LEN) as u64
}

/// The commit size of a frame that continues a log, and the checksum after it.
fn sound(header: &WalHeader, chain: Chain, frame: &[u8]) -> Option<(u32, Chain)> {
    let (head, page) = frame.split_first_chunk::<FRAME_HEADER_LEN>()?;
    let claim = FrameHeader::decode(head);
    let after = chain.over(&head[..8], header.big_endian).over(page, header.big_endian);
    (claim.page != 0 && claim.salts == header.salts && claim.chain == after).then_some((claim.size, after))
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

pub(super) fn io_at(doing: &str, path: &Path, error: io::Error) -> LocalError {
    LocalError::Io { doing: format!("{doing} {}", path.display()), error }
}
