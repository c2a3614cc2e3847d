//! [`ReadReplicaFile`]: a database in WAL mode that this process alone writes, without an SQL engine, while others read it.
//! Owns: in which order WAL, wal-index and database file are written. Knows no source.
//!
//! To its readers it is a SQLite writer like any other: frames go after the last one that counts, are synced, and count once
//! the header of the wal-index says so. Readers never wait for it, and it never waits for them.
//!
//! ```text
//! append      frames into the WAL                          no reader sees them
//! sync        the WAL                                      they survive power loss
//! publish     page numbers and slots, then the header      every read that starts from here on sees them
//! checkpoint  frames into the database file, as far as no reader needs the file as it is; then the next
//!             frame is the first of the WAL again, once no reader uses the WAL
//! ```
//!
//! Between two writes others may write too: nothing keeps them from it, but the header of the wal-index is then not the one
//! that was published last, and nothing is written any more ([`DatabaseError::WrittenByOthers`]). While this process does not
//! run, a [`StateMark`] that the caller keeps says whether anything was written.
//!
//! While it is open it holds SHARED on the database file and DMS on the wal-index, so that no connection is the last one to close,
//! which would checkpoint and remove the WAL, or the first one to open, which would make the wal-index again. And it holds a byte
//! of the database file that SQLite does not use: a second process of this program cannot open it.
//!
//! What a crash leaves: frames that were not published. If any connection has the database open they are cut off by the next
//! [`open`](ReadReplicaFile::open); else they are in the WAL, and count if they end a transaction, as for SQLite.
//!
//! A process that has the database open through SQLite too must keep this open until it has closed those connections: closing a
//! file drops SQLite's locks of it.

mod checkpoint;
mod index_writer;
mod mark;
mod open;
mod reading;

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

pub use checkpoint::Checkpointed;
pub use mark::{StateMark, Touched};

use self::index_writer::IndexWriter;
use self::open::Files;
use super::error::DatabaseError;
use super::image::Newest;
use super::lock::beside_users::before;
use super::lock::one_writer::{self, Exclusive};
use super::wal_append::{WalAppender, new_header};
use super::wal_frames::{frame_at, heads};
use super::wal_index::{IndexHeader, WalIndex};
use crate::format::database::{VERSIONS, WAL_VERSIONS};
use crate::format::wal::{Chain, FrameHeader, WalHeader};
use crate::limits::LOCK_PATIENCE;

/// Frames that were appended, but not published.
#[derive(Debug, Default)]
struct Unpublished {
    /// The page of each.
    pages: Vec<u32>,
    /// How many of them are up to the last commit frame; and the header that counts them.
    commit: Option<(usize, IndexHeader)>,
}

/// A database that this process writes while others read it: see [above](self).
///
/// Every method may block on the disk. After an error of the disk it refuses to write: what the files hold is known when it is
/// opened again.
///
/// ```
/// use logmirror::sqlite::read_replica::ReadReplicaFile;
///
/// let dir = tempfile::tempdir()?;
/// let (draft, path) = (dir.path().join("replica.draft"), dir.path().join("replica.db"));
/// std::fs::copy("segments/wal/plain.db", &draft)?;
/// let mut replica = ReadReplicaFile::create(&path, &draft)?;
/// let mut page = vec![0; replica.page_size() as usize];
/// replica.read_page(1, &mut page)?;
/// replica.append([(1, 1, page.as_slice())])?;
/// replica.commit()?;
/// assert_eq!(replica.frames(), 1);
/// replica.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ReadReplicaFile {
    /// WRITE, from the first frame that is appended until all are published. It goes before the file that it is on.
    write: Option<Exclusive>,
    files: Files,
    page_size: u32,
    index: IndexWriter,
    /// The WAL, opened for writing and cut to what counts; none before the first write, and after a restart.
    wal: Option<WalAppender>,
    /// How many times the WAL was started.
    sequence: u32,
    /// The newest frame of each page up to the last commit frame that was appended.
    newest: Newest<u64>,
    unpublished: Unpublished,
    /// Whether published frames may not survive power loss.
    unsynced: bool,
    /// Frames that are in the database file, and synced.
    copied: u64,
    /// Bytes that the database file has at least, whichever connection makes the next checkpoint.
    least: u64,
    /// How many bytes the WAL has when a checkpoint is due.
    checkpoint_at: u64,
    /// Whether the WAL must not start again.
    keeps_frames: bool,
    /// How many names the database file had at the last checkpoint, if more than one.
    linked: Option<u64>,
    failed: bool,
}

impl ReadReplicaFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.files.path
    }

    /// The database file, which another descriptor of it must not take the place of.
    pub(crate) fn database(&self) -> Result<&fs::File, DatabaseError> {
        one_writer::plain(&*self.files.database).map_err(|error| self.io("reading", error))
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// Frames of the WAL that count.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.index.header().frames
    }

    /// Bytes of the WAL that count: a checkpoint is due when they are many.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        match self.frames() {
            0 => 0,
            frames => frame_at(self.page_size, frames + 1),
        }
    }

    /// What the files look like now, as of the last commit that was published. The caller stores it beside its own position in
    /// the source, once that is durable and after each checkpoint.
    ///
    /// # Errors
    /// When the files cannot be asked; [`DatabaseError::WrittenByOthers`] when the database file was cut: a mark of it would say
    /// that this is what was left.
    pub fn mark(&self) -> Result<StateMark, DatabaseError> {
        if let Some(now) = self.index.read().map_err(|error| self.io("reading the -shm file of", error))? {
            self.check_database_length(&now)?;
        }
        let meta = self.database()?.metadata().map_err(|error| self.io("reading", error))?;
        Ok(StateMark::of(&meta, self.index.header()))
    }

    /// Whether no other program wrote since this mark was taken; and while this is open, since it was opened.
    #[must_use]
    pub fn touched_since(&self, mark: &StateMark) -> Touched {
        match (self.mark(), self.check()) {
            (Ok(now), Ok(())) if now == *mark && now.is_exact() => Touched::No,
            _ => Touched::Maybe,
        }
    }

    /// Whether the database file is as it was when this mark was taken, and the WAL may have grown since.
    #[must_use]
    pub fn has_grown_from(&self, mark: &StateMark) -> bool {
        self.mark().is_ok_and(|now| mark.is_before(&now))
    }

    /// Whether the files are still those that were opened, are as long as they must be, and hold what was published last.
    ///
    /// # Errors
    /// [`DatabaseError::WrittenByOthers`]; [`DatabaseError::Changed`] while another connection is writing.
    pub fn check(&self) -> Result<(), DatabaseError> {
        self.files.check_in_place()?;
        let now = self.index.read().map_err(|error| self.io("reading the -shm file of", error))?;
        let changed = DatabaseError::Changed { path: self.path().to_owned(), what: "its -shm file is being written" };
        let now = now.ok_or(changed)?;
        self.compare(&now)?;
        let Err(cut) = self.check_lengths(&now) else { return Ok(()) };
        // Another connection may have restarted the WAL meanwhile.
        let after = self.index.read().map_err(|error| self.io("reading the -shm file of", error))?;
        if after == Some(now) { Err(cut) } else { Ok(()) }
    }

    /// Says whether the WAL is not to start again: frame n is then frame n, as it was appended, until that is taken back, and
    /// the WAL grows as long. Another program that restarts it is noticed as one that wrote.
    pub fn keep_frames(&mut self, keep: bool) {
        self.keeps_frames = keep;
    }

    /// Gives the next WAL this number of checkpoints before it; the ones after it count on.
    pub fn set_sequence(&mut self, sequence: u32) {
        self.sequence = sequence.wrapping_sub(1);
    }

    /// Appends frames after the last one: each is the number of a page, the pages of the database if it ends a transaction
    /// and else 0, and the page. No reader sees them until the transaction is [committed](Self::commit); a large one may come in
    /// several calls. Page 1 is stored with the version numbers of a database in WAL mode, whatever it says in bytes 18 and 19; in
    /// a WAL whose [frames are kept](Self::keep_frames), once it is in the database file.
    ///
    /// # Errors
    /// [`DatabaseError::WrittenByOthers`], and nothing was written; [`DatabaseError::WriteLocked`] when another connection
    /// is writing, or has a checkpoint wait for readers.
    pub fn append<'a>(&mut self, frames: impl IntoIterator<Item = (u32, u32, &'a [u8])>) -> Result<(), DatabaseError> {
        self.begin()?;
        let keeps = self.keeps_frames;
        let claimed: Vec<_> =
            frames.into_iter().map(|(page, size, content)| claim(page, size, content, keeps)).collect();
        let wrong =
            |(head, page): &(FrameHeader, Cow<'_, [u8]>)| !head.is_possible() || page.len() != self.page_size as usize;
        let count = self.frames() + (self.unpublished.pages.len() + claimed.len()) as u64;
        if claimed.iter().any(wrong) || count >= u64::from(u32::MAX) {
            let error =
                io::Error::new(io::ErrorKind::InvalidInput, "a page 0, one of another size, or too many frames");
            return Err(self.io("appending to", error));
        }
        let Some(wal) = &mut self.wal else { return Err(self.io("writing", io::ErrorKind::NotFound.into())) };
        let WalHeader { big_endian, salts, .. } = wal.header();
        let appended = wal.append(claimed.iter().map(|(head, page)| (*head, &**page)));
        let heads = self.latch(appended)?;
        let mut frame = self.frames() + self.unpublished.pages.len() as u64;
        for FrameHeader { page, size, chain, .. } in heads {
            frame += 1;
            self.unpublished.pages.push(page);
            self.newest.add(page, size, frame);
            if size > 0 {
                let IndexHeader { change, .. } = *self.index.header();
                let (page_size, db_pages) = (self.page_size, size);
                let header = IndexHeader { change, big_endian, page_size, salts, frames: frame, db_pages, chain };
                self.unpublished.commit = Some((self.unpublished.pages.len(), header));
            }
        }
        Ok(())
    }

    /// After Ok all transactions that were appended whole survive power loss, and every read that starts afterwards sees them.
    ///
    /// # Errors
    /// As the file system says.
    pub fn commit(&mut self) -> Result<(), DatabaseError> {
        self.sync()?;
        self.publish()
    }

    /// After Ok every read that starts afterwards sees all transactions that were appended whole. Of those that were not synced,
    /// a power failure takes away the last ones.
    ///
    /// # Errors
    /// As the file system says.
    pub fn publish(&mut self) -> Result<(), DatabaseError> {
        self.usable()?;
        if let Some((count, header)) = self.unpublished.commit.take() {
            let header = IndexHeader { change: self.index.header().change.wrapping_add(1), ..header };
            let pages: Vec<u32> = self.unpublished.pages.drain(..count).collect();
            let published = self.index.add(&pages).and_then(|()| self.index.publish(header));
            self.latch(published)?;
            self.least = self.least.min(self.bytes_of(header.db_pages));
        }
        if self.unpublished.pages.is_empty() {
            self.write = None;
        }
        Ok(())
    }

    /// After Ok all that was appended survives power loss.
    ///
    /// # Errors
    /// As the file system says.
    pub fn sync(&mut self) -> Result<(), DatabaseError> {
        self.usable()?;
        if let Some(wal) = self.wal.as_mut().filter(|_| self.unsynced) {
            let synced = wal.sync();
            self.latch(synced)?;
        }
        self.unsynced = false;
        Ok(())
    }

    /// Forgets the frames of a transaction that was not appended whole.
    pub fn forget_open(&mut self) {
        let whole = self.unpublished.commit.map_or(0, |(count, _)| count);
        self.unpublished.pages.truncate(whole);
        self.newest.forget_open();
        if let Some(wal) = &mut self.wal {
            wal.forget_open();
        }
        if whole == 0 {
            self.write = None;
        }
    }

    /// Takes the write lock, and makes sure that the files are as they were left.
    fn begin(&mut self) -> Result<(), DatabaseError> {
        if self.write.is_some() {
            self.unsynced = true;
            return Ok(());
        }
        self.usable()?;
        let write = self.lock_write()?;
        let now = self.confirm()?;
        if now.is_copied() && now.frames > 0 && !self.keeps_frames {
            self.restart(&now)?;
        }
        let ready = self.make_ready();
        self.latch(ready)?;
        (self.write, self.unsynced) = (Some(write), true);
        Ok(())
    }

    fn lock_write(&self) -> Result<Exclusive, DatabaseError> {
        let lock = || Exclusive::lock(&self.files.index, one_writer::WRITE);
        let locked = before(Instant::now() + LOCK_PATIENCE, lock).map_err(|error| self.io("locking", error))?;
        locked.ok_or_else(|| DatabaseError::WriteLocked { path: self.path().to_owned() })
    }

    /// With WRITE: the state of the wal-index, which is the one that was published last.
    fn confirm(&mut self) -> Result<WalIndex, DatabaseError> {
        self.files.check_in_place()?;
        let now = self.index.read().map_err(|error| self.io("reading the -shm file of", error))?;
        // No connection is writing it, so one that makes no sense is what a writer left that died.
        let now = now.ok_or_else(|| self.others("a write of its -shm file was broken off"))?;
        if self.compare(&now)? != *self.index.header() {
            self.index.adopt(now.header());
            if now.frames == 0 {
                // The connection that restarted it may not have synced the database file.
                let synced = self.files.database.sync();
                self.latch(synced)?;
                (self.wal, self.newest, self.copied) = (None, Newest::default(), 0);
            }
        }
        if now.copied > now.frames {
            // The process that restarted it died before the restart was complete.
            let repaired = self.index.set_copied(0);
            self.latch(repaired)?;
        }
        self.check_lengths(&now)?;
        Ok(now)
    }

    fn bytes_of(&self, pages: u32) -> u64 {
        u64::from(pages) * u64::from(self.page_size)
    }

    /// That neither file is shorter than what is in it.
    fn check_lengths(&self, now: &WalIndex) -> Result<(), DatabaseError> {
        let needed = if now.frames > 0 { frame_at(self.page_size, now.frames + 1) } else { 0 };
        let bytes = self.files.wal.bytes().map_err(|error| self.io("reading", error))?;
        if bytes < needed {
            return Err(self.others("its WAL was cut"));
        }
        self.check_database_length(now)
    }

    /// That the database file has at least the pages that no frame has to bring: all, once every frame is copied. Those who
    /// read would find a cut one malformed, and the next checkpoint would give it its length back, with zeros.
    fn check_database_length(&self, now: &WalIndex) -> Result<(), DatabaseError> {
        let copied = if now.is_copied() { self.bytes_of(now.db_pages) } else { 0 };
        let bytes = self.files.database.bytes().map_err(|error| self.io("reading", error))?;
        if bytes < copied.max(self.least) {
            return Err(self.others("its file was cut"));
        }
        Ok(())
    }

    /// The header of the wal-index if it counts what was published last. A connection that had everything copied may have
    /// restarted the WAL without writing.
    fn compare(&self, now: &WalIndex) -> Result<IndexHeader, DatabaseError> {
        let (ours, header) = (self.index.header(), now.header());
        let same =
            |header: &IndexHeader| (header.page_size, header.salts, header.frames, header.chain, header.db_pages);
        // One without frames says nothing else: SQLite leaves out the page size of a WAL that it found empty.
        let is_restarted =
            header.frames == 0 && header.change == ours.change && !(self.keeps_frames && ours.frames > 0);
        if is_restarted || (header.frames > 0 && same(&header) == same(ours)) {
            return Ok(header);
        }
        Err(self.others("the index of its WAL is not the one that was written last"))
    }

    /// With WRITE: opens the WAL for writing, cut to the frames that count, and cleans the index after them.
    fn make_ready(&mut self) -> io::Result<()> {
        let header = *self.index.header();
        if self.wal.is_none() {
            let wal = if header.frames == 0 {
                self.sequence = self.sequence.wrapping_add(1);
                let start = new_header(self.page_size, self.sequence);
                // The salts of a restart, unless the WAL was found empty.
                let salts = if header.salts == [0; 2] { start.salts } else { header.salts };
                let start = WalHeader { salts, ..start };
                WalAppender::create(&*self.files.dir, &self.files.wal_name, start)?
            } else {
                let wal = WalAppender::open(&*self.files.dir, &self.files.wal_name, header.frames)?;
                if (wal.header().salts, wal.chain()) != (header.salts, header.chain) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "its WAL is another one"));
                }
                wal
            };
            self.wal = Some(wal);
        }
        if !self.index.is_clean()? {
            let (first, last) = self.index.last_block();
            let heads = heads(&*self.files.wal, self.page_size, first - 1, last)?;
            let pages: Vec<u32> = heads.iter().map(|head| head.page).collect();
            self.index.load(&pages)?;
        }
        Ok(())
    }

    /// What the header will be once all that was appended whole is published.
    fn last_header(&self) -> IndexHeader {
        self.unpublished.commit.map_or(*self.index.header(), |(_, header)| header)
    }

    fn usable(&self) -> Result<(), DatabaseError> {
        if self.failed {
            return Err(self.io("writing", io::Error::other("a write or sync failed before: open it again")));
        }
        Ok(())
    }

    fn latch<T>(&mut self, done: io::Result<T>) -> Result<T, DatabaseError> {
        self.failed |= done.is_err();
        done.map_err(|error| self.io("writing", error))
    }

    fn others(&self, what: &'static str) -> DatabaseError {
        DatabaseError::WrittenByOthers { path: self.path().to_owned(), what }
    }

    fn io(&self, doing: &str, error: io::Error) -> DatabaseError {
        DatabaseError::io(doing, self.path(), error)
    }
}

/// A frame as it is to be written: as it is, or such that it says that the database is in WAL mode.
fn claim(page: u32, size: u32, content: &[u8], keep: bool) -> (FrameHeader, Cow<'_, [u8]>) {
    let head = FrameHeader { page, size, salts: [0; 2], chain: Chain::default() };
    let mut content = Cow::Borrowed(content);
    if page == 1 && !keep && content.get(VERSIONS).is_some_and(|versions| versions != WAL_VERSIONS) {
        content.to_mut()[VERSIONS].copy_from_slice(&WAL_VERSIONS);
    }
    (head, content)
}
