//! [`Kept`]: a read replica file that is open, and its record: what is appended to it becomes visible whole, after the record
//! names the state that it makes. Blocks; knows no source.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::error::ReplicaFileError;
use super::frames::each_block;
use super::record::{FileRecord, FileState, Followed, Position, RecordFile};
use super::state_sum::StateSum;
use crate::api::LastCommit;
use crate::format::Framing;
use crate::format::database::lock_page;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader};
use crate::limits::REPLICA_LINKED_WAL_BYTES;
use crate::mirror::failure::MirrorError;
use crate::offset::Offset;
use crate::sqlite::DatabaseError;
use crate::sqlite::read_replica::{ReadReplicaFile, StateMark};
use crate::sqlite::wal_frames::{frame_len, frames_of};
use crate::stream::Run;

/// Where the format versions are in the header of a database, and what they are with a WAL. Readers of a file in any other mode
/// would block its writer.
const VERSIONS_AT: std::ops::Range<usize> = 18..20;
const WITH_A_WAL: [u8; 2] = [2, 2];

/// Makes page 1 of a database one of a database with a WAL.
pub(super) fn with_a_wal(page: &mut [u8]) {
    if let Some(versions) = page.get_mut(VERSIONS_AT) {
        versions.copy_from_slice(&WITH_A_WAL);
    }
}

/// What a page adds to the sum.
#[derive(Clone, Copy, Debug, Default)]
struct Change {
    /// Now; 0 where it is not there.
    before: u64,
    /// Once what was appended is visible.
    after: u64,
}

/// A read replica file that no other process keeps. After an error of its own it must be opened again.
#[derive(Debug)]
pub(super) struct Kept {
    file: ReadReplicaFile,
    store: RecordFile,
    record: FileRecord,
    /// The state that readers see, and its sum.
    now: FileState,
    sum: StateSum,
    /// Pages of the database that readers see.
    pages: u32,
    /// Pages that were appended and are not visible yet.
    fresh: HashMap<u32, Change>,
    /// Pages of the database after the last commit that was appended.
    size: Option<u32>,
    /// Bytes of pages that are not visible yet.
    bytes: u64,
    /// The last frame that was appended: it is not in the WAL yet.
    held_back: Vec<u8>,
    /// The last commit of the runs that were appended.
    last: Option<LastCommit>,
    /// Whether the record says what the file looks like now.
    settled: bool,
}

impl Kept {
    /// A file that is in the state `now`, which its record says if `settled`.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub(super) fn new(
        file: ReadReplicaFile,
        store: RecordFile,
        record: FileRecord,
        now: FileState,
        settled: bool,
    ) -> Result<Kept, MirrorError> {
        let sum = StateSum::new(record.key, file.page_size()).with(now.sum);
        let pages = file.pages().map_err(of_file)?;
        let (fresh, size, bytes, held_back, last) = (HashMap::new(), None, 0, Vec::new(), None);
        Ok(Kept { file, store, record, now, sum, pages, fresh, size, bytes, held_back, last, settled })
    }

    /// Whether it follows this source.
    pub(super) fn follows(&self, followed: &Followed) -> bool {
        self.record.is_of(followed)
    }

    pub(super) fn position(&self) -> Position {
        self.now.at
    }

    pub(super) fn page_size(&self) -> u32 {
        self.file.page_size()
    }

    /// Pages of the database that readers see.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Pages of the database after the last commit that was appended; none before one was.
    pub(super) fn size(&self) -> Option<u32> {
        self.size
    }

    /// Bytes of pages that were appended and are not visible yet.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the record says what the file looks like now.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Gives the record back, to make the file again.
    pub(super) fn into_store(self) -> (RecordFile, FileRecord) {
        (self.store, FileRecord { now: Some(self.now), upcoming: None, ..self.record })
    }

    /// Reads a page of the database that readers see.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read_page(&self, page: u32, content: &mut [u8]) -> Result<(), MirrorError> {
        read_page(&self.file, page, content).map_err(of_file)
    }

    /// Appends a run of commits, which readers do not see yet.
    ///
    /// # Errors
    /// [`ReplicaFileError::Again`]; [`ReplicaFileError::Touched`] when another process has written the file.
    pub(super) fn append_run(&mut self, run: &Run) -> Result<(), MirrorError> {
        if let Framing::Wal(Some(start)) = run.framing
            && start.header.page_size != self.page_size()
        {
            let offered = start.header.page_size;
            return Err(ReplicaFileError::page_size(self.file.path(), self.page_size(), offered).into());
        }
        let unread = |error: io::Error| MirrorError::Interrupted(format!("the source: {error}"));
        each_block(run, unread, |frames| self.append(frames))?;
        self.last = Some(LastCommit::from(&run.last));
        Ok(())
    }

    /// Appends whole frames of the file's page size, of which only page numbers and sizes count. A frame with a size ends a commit.
    ///
    /// # Errors
    /// [`ReplicaFileError::Touched`].
    pub(super) fn append(&mut self, frames: &mut [u8]) -> Result<(), MirrorError> {
        let page_size = self.page_size();
        let frame_len = frame_len(page_size);
        let mut content = vec![0; page_size as usize];
        for frame in frames.chunks_exact_mut(frame_len) {
            let (head, page) = frame.split_at_mut(FRAME_HEADER_LEN);
            let [number, size] = [0, 4].map(|at| head[at..].first_chunk().map_or(0, |word| u32::from_be_bytes(*word)));
            if number == 1 {
                with_a_wal(page);
            }
            if size > 0 {
                self.size = Some(size);
                head[4..8].fill(0);
            }
            let after = self.sum.of_page(number, page);
            match self.fresh.get_mut(&number) {
                Some(change) => change.after = after,
                None => {
                    let before = self.added_by(number, &mut content)?;
                    self.fresh.insert(number, Change { before, after });
                }
            }
        }
        self.bytes += frames.len() as u64;
        // What is in the WAL counts after a crash if it ends with a commit: so the end is written when the record names it.
        let (first, held_back) = frames.split_at(frames.len().saturating_sub(frame_len));
        let before = std::mem::take(&mut self.held_back);
        for frames in [&before[..], first] {
            let pages = frames_of(frames, page_size).map(|(head, page)| (head.page, head.size, page));
            if !frames.is_empty() {
                self.file.append(pages).map_err(of_file)?;
            }
        }
        self.held_back = before;
        self.held_back.clear();
        self.held_back.extend_from_slice(held_back);
        Ok(())
    }

    /// What a page adds to the sum of what readers see.
    fn added_by(&self, page: u32, content: &mut [u8]) -> Result<u64, MirrorError> {
        if page > self.pages {
            return Ok(0);
        }
        self.read_page(page, content)?;
        Ok(self.sum.of_page(page, content))
    }

    /// Makes the runs that were appended visible.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(super) fn publish_runs(&mut self) -> Result<(), MirrorError> {
        let Some(last) = self.last.take() else {
            return Ok(());
        };
        let (Position { generation, base, .. }, next) = (self.now.at, Offset(last.offset.0 + u64::from(last.entries)));
        self.publish(Position { generation, next, last: Some(last), base })
    }

    /// The same of a database of `pages` pages, whatever was appended.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(super) fn publish_sized(&mut self, pages: u32, at: Position) -> Result<(), MirrorError> {
        if self.held_back.is_empty() && pages != self.pages {
            // It is only shorter.
            let mut content = vec![0; self.page_size() as usize];
            self.read_page(1, &mut content)?;
            let head = FrameHeader { page: 1, size: 0, salts: [0; 2], chain: Chain::default() };
            self.append(&mut [&head.encode()[..], &content].concat())?;
        }
        self.size = Some(pages).filter(|_| !self.held_back.is_empty());
        self.publish(at)
    }

    /// Makes all that was appended visible as one transaction, which must end with a commit: the state at `at`. After Ok it survives power loss.
    ///
    /// # Errors
    /// [`ReplicaFileError::Touched`]. The file is in the state before or in this one then.
    pub(super) fn publish(&mut self, at: Position) -> Result<(), MirrorError> {
        let Some(size) = self.size else {
            self.now.at = at;
            self.settled = false;
            return self.settle();
        };
        let (mut sum, mut content) = (self.sum, vec![0; self.page_size() as usize]);
        for (page, change) in &self.fresh {
            sum.remove(change.before);
            if *page <= size {
                sum.add(change.after);
            }
        }
        for page in size.saturating_add(1)..=self.pages {
            if !self.fresh.contains_key(&page) {
                sum.remove(self.added_by(page, &mut content)?);
            }
        }
        let upcoming = FileState { at, sum: sum.number() };
        self.note(Some(upcoming))?;
        let pages = frames_of(&self.held_back, self.page_size()).map(|(head, page)| (head.page, size, page));
        self.file.append(pages).map_err(of_file)?;
        self.file.commit().map_err(of_file)?;
        (self.now, self.sum, self.pages, self.settled) = (upcoming, sum, size, false);
        (self.fresh, self.size, self.bytes) = (HashMap::new(), None, 0);
        self.held_back.clear();
        self.file.checkpoint_if_due().map_err(of_file)?;
        self.is_worth_a_copy()
    }

    /// That the WAL which is not copied into a file with another name is not larger than a new file would be.
    ///
    /// # Errors
    /// [`ReplicaFileError::Again`].
    fn is_worth_a_copy(&self) -> Result<(), MirrorError> {
        let database = u64::from(self.pages) * u64::from(self.page_size());
        let Some(links) = self.file.linked().filter(|_| self.file.wal_bytes() > database + REPLICA_LINKED_WAL_BYTES)
        else {
            return Ok(());
        };
        let why = format!("it has {links} names (hard links), and its WAL has become larger than itself");
        Err(ReplicaFileError::Again { path: self.file.path().to_owned(), why }.into())
    }

    /// Has the record say what the file looks like now, so that the next start need not read all of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn settle(&mut self) -> Result<(), MirrorError> {
        if self.settled {
            return Ok(());
        }
        self.note(None)?;
        self.settled = true;
        Ok(())
    }

    fn note(&mut self, upcoming: Option<FileState>) -> Result<(), MirrorError> {
        let mark = self.file.mark().map_err(of_file)?;
        self.note_with(mark, upcoming)
    }

    fn note_with(&mut self, mark: StateMark, upcoming: Option<FileState>) -> Result<(), MirrorError> {
        let noted = FileRecord { now: Some(self.now), mark: Some(mark), upcoming, ..self.record.clone() };
        self.store.store(&noted)?;
        self.record = noted;
        Ok(())
    }

    /// Looks for writes of other processes.
    ///
    /// # Errors
    /// [`ReplicaFileError::Touched`].
    pub(super) fn look(&mut self) -> Result<(), MirrorError> {
        match self.file.check() {
            // It is being written: the next look, or the next write, says by whom.
            Err(DatabaseError::Changed { .. }) => Ok(()),
            looked => looked.map_err(of_file),
        }
    }

    /// Closes it, with one plain file, unless readers need its WAL.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn finish(self) -> Result<(), MirrorError> {
        let Kept { file, mut store, record, now, .. } = self;
        let mark = file.close().map_err(of_file)?;
        store.store(&FileRecord { now: Some(now), mark: Some(mark), upcoming: None, ..record })
    }
}

pub(super) fn at(path: &Path, error: io::Error) -> MirrorError {
    MirrorError::Dir { place: path.display().to_string(), error }
}

/// An error of the file.
pub(super) fn of_file(error: DatabaseError) -> MirrorError {
    ReplicaFileError::from(error).into()
}

/// Reads a page; one that is not there, as that with the locks may not be, is zeros.
fn read_page(file: &ReadReplicaFile, page: u32, content: &mut [u8]) -> Result<(), DatabaseError> {
    if !file.read_page(page, content)? {
        content.fill(0);
    }
    Ok(())
}

/// The sum of all pages of a file.
///
/// # Errors
/// When they cannot be read.
pub(super) fn sum_of_file(file: &ReadReplicaFile, key: u64) -> Result<u64, MirrorError> {
    let pages = file.pages().map_err(of_file)?;
    sum_of(key, file.page_size(), pages, |page, content| read_page(file, page, content).map_err(of_file))
}

/// The sum of `pages` pages that `read` reads.
///
/// # Errors
/// Those of `read`.
pub(super) fn sum_of<E>(
    key: u64,
    page_size: u32,
    pages: u32,
    mut read: impl FnMut(u32, &mut [u8]) -> Result<(), E>,
) -> Result<u64, E> {
    let (mut sum, mut content) = (StateSum::new(key, page_size), vec![0; page_size as usize]);
    for page in (1..=pages).filter(|page| *page != lock_page(page_size)) {
        read(page, &mut content)?;
        sum.add(sum.of_page(page, &content));
    }
    Ok(sum.number())
}
