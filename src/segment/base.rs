//! The base that a generation of a WAL starts from: `base.db`, whose every block is checked when it is read. No other code
//! opens that file for reading.
//!
//! ```
//! use logmirror::repo::{Faults, MemRepo, Repo};
//! use logmirror::segment::base::{BaseBuilder, BaseReader};
//! use std::sync::Arc;
//!
//! let repo: Arc<dyn Repo> = Arc::new(MemRepo::new(Faults::default()));
//! let mut base = BaseBuilder::create(repo.clone())?;
//! base.write(b"a database")?;
//! let id = base.publish(true)?;
//! let reader = BaseReader::open(&*repo)?.expect("a base");
//! let mut buf = [0; 16];
//! assert_eq!((reader.read_at(&mut buf, 2)?, &buf[..8]), (8, &b"database"[..]));
//! assert_eq!(reader.id(), Some(id));
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

pub use super::base_sums::{BLOCK, BaseDigest, BaseId, SumsWriter, publish, publish_sums, sum_file};
use super::base_sums::{ENTRY_LEN, HEADER_LEN, SumsHeader, open, remove};
use crate::format::name::{BASE, BASE_DRAFT, BASE_SUMS};
use crate::limits::READ_BLOCK;
use crate::repo::{Repo, RepoFile};

/// Entries of the table that are read at once: those of 16 MiB of a base.
const PIECE_ENTRIES: u64 = 4096;
/// Pieces of a table that a reader keeps.
const PIECES_KEPT: usize = 16;
/// Faults of one base that are named.
const FAULTS_MAX: usize = 64;

/// What is wrong with a base. As an [`io::Error`] it is `InvalidData`, and [`BaseFault::of`] finds it there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseFault {
    /// There is none.
    #[error("{place}/{BASE} is missing")]
    Missing {
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

/// What is known of a base from outside of its directory, or from a record in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownBase {
    /// Whether there must be one.
    pub exists: bool,
    /// Its length.
    pub bytes: Option<u64>,
    /// Its digest.
    pub sha256: Option<BaseDigest>,
}

impl KnownBase {
    /// There must be one, and it is this if that is known.
    #[must_use]
    pub fn required(id: Option<BaseId>) -> KnownBase {
        KnownBase { exists: true, bytes: id.map(|id| id.bytes), sha256: id.map(|id| id.sha256) }
    }
}

/// A base, open for reading. A base without `base.sums`, of an earlier version of the program, is read unchecked.
#[derive(Debug)]
pub struct BaseReader {
    place: String,
    file: Arc<dyn RepoFile>,
    bytes: u64,
    sums: Option<Sums>,
}

/// The checksums of a base.
#[derive(Debug)]
struct Sums {
    header: SumsHeader,
    file: Arc<dyn RepoFile>,
    /// Pieces of the table by their numbers, the one used last at the end.
    pieces: Mutex<Vec<(u64, Arc<[u8]>)>>,
}

impl BaseReader {
    /// The base in `repo`; `None` when neither `base.db` nor `base.sums` is there. Reads no block.
    ///
    /// # Errors
    /// `InvalidData` with a [`BaseFault`] for a base that is missing or has another length than its sums say, and for
    /// damaged sums; otherwise as the repo says.
    pub fn open(repo: &dyn Repo) -> io::Result<Option<BaseReader>> {
        BaseReader::open_as(repo, BASE)
    }

    /// The same of a base that is not called so yet.
    fn open_as(repo: &dyn Repo, name: &str) -> io::Result<Option<BaseReader>> {
        let (place, sums) = (repo.place(), open(repo)?);
        let file = match (repo.open(name), &sums) {
            (Err(error), None) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            (Err(error), Some(_)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BaseFault::Missing { place }.into());
            }
            (file, _) => file?,
        };
        let found = file.bytes()?;
        if let Some(expected) = sums.as_ref().map(|(header, _)| header.id.bytes)
            && found != expected
        {
            return Err(BaseFault::Length { place, found, expected }.into());
        }
        let sums = sums.map(|(header, file)| Sums { header, file, pieces: Mutex::default() });
        Ok(Some(BaseReader { place, file, bytes: found, sums }))
    }

    /// The base in `repo`, compared with what is known of it; `None` when there is none and none is known. Reads no block.
    ///
    /// # Errors
    /// As [`open`](Self::open); also when it is missing, or another one by its length or its sums.
    pub fn open_known(repo: &dyn Repo, known: &KnownBase) -> io::Result<Option<BaseReader>> {
        let place = repo.place();
        let Some(reader) = BaseReader::open(repo)? else {
            return if known.exists { Err(BaseFault::Missing { place }.into()) } else { Ok(None) };
        };
        if let Some(expected) = known.bytes.filter(|bytes| *bytes != reader.bytes) {
            return Err(BaseFault::Length { place, found: reader.bytes, expected }.into());
        }
        if let (Some(id), Some(expected)) = (reader.id(), known.sha256)
            && id.sha256 != expected
        {
            let what = format!("is that of a base with the SHA-256 {}, not {expected}", id.sha256);
            return Err(BaseFault::Sums { place, what }.into());
        }
        Ok(Some(reader))
    }

    /// The same; a base without sums is read whole and compared with the digest that is known. Blocks.
    ///
    /// # Errors
    /// As [`open_known`](Self::open_known).
    pub fn open_proven(repo: &dyn Repo, known: &KnownBase) -> io::Result<Option<BaseReader>> {
        let reader = BaseReader::open_known(repo, known)?;
        if let (Some(reader), Some(expected)) = (reader.as_ref().filter(|reader| reader.sums.is_none()), known.sha256) {
            let (found, _) = reader.check_all(|_| ())?;
            if found != expected {
                return Err(BaseFault::Digest { place: repo.place(), found, expected }.into());
            }
        }
        Ok(reader)
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Which base it is, by its sums; none without.
    #[must_use]
    pub fn id(&self) -> Option<BaseId> {
        self.sums.as_ref().map(|sums| sums.header.id)
    }

    /// Whether nothing vouches for it: it has no sums, or they were made of a file that nothing vouched for.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        self.sums.as_ref().is_none_or(|sums| sums.header.unproven)
    }

    /// The same with what is known of it from elsewhere, which vouches for a base without sums.
    #[must_use]
    pub fn is_unproven_beside(&self, known: &KnownBase) -> bool {
        self.is_unproven() && (self.sums.is_some() || known.sha256.is_none())
    }

    /// Reads into `buf` from `at`, and checks each block that it reads of; fewer bytes than asked for only at the end.
    ///
    /// # Errors
    /// `InvalidData` with a [`BaseFault`] for what is not right; nothing in `buf` counts then. Otherwise as the repo says.
    pub fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let there = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let wanted = buf.len().min(there);
        if self.sums.is_none() {
            return self.file.read_at(&mut buf[..wanted], at);
        }
        let mut done = 0;
        while done < wanted {
            let pos = at + done as u64;
            let whole = self.whole_blocks(pos, wanted - done);
            if whole > 0 {
                self.read_exact(&mut buf[done..done + whole], pos)?;
                self.check(&buf[done..done + whole], pos)?;
                done += whole;
                continue;
            }
            let (mut block, start) = ([0; BLOCK], pos - pos % BLOCK as u64);
            let block = &mut block[..self.block_len(start)];
            self.read_exact(block, start)?;
            self.check(block, start)?;
            let part = &block[(pos - start) as usize..];
            let count = part.len().min(wanted - done);
            buf[done..done + count].copy_from_slice(&part[..count]);
            done += count;
        }
        Ok(wanted)
    }

    /// Like [`read_at`](Self::read_at) for whole blocks, but never waits for a disk: `None` when it would have to.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_cached(&self, buf: &mut [u8], at: u64) -> io::Result<Option<usize>> {
        let blocks = at / BLOCK as u64..(at + buf.len() as u64).div_ceil(BLOCK as u64);
        let known = self.sums.as_ref().is_none_or(|sums| {
            self.whole_blocks(at, buf.len()) == buf.len() && sums.has(blocks.start) && sums.has(blocks.end - 1)
        });
        if buf.is_empty() || !known {
            return Ok(None);
        }
        let count = self.file.read_cached(buf, at)?.filter(|count| *count == buf.len());
        if count.is_some() {
            self.check(buf, at)?;
        }
        Ok(count)
    }

    /// Reads all of it; its digest, and everything that is wrong with it or its sums, up to a limit. Calls `on_read` with the
    /// number of bytes more that were read. Blocks.
    ///
    /// # Errors
    /// As the repo says. Faults are part of the answer.
    pub fn check_all(&self, mut on_read: impl FnMut(u64)) -> io::Result<(BaseDigest, Vec<BaseFault>)> {
        let (mut faults, mut digest, mut at) = (Vec::new(), Sha256::new(), 0);
        let table_fault = self.sums.as_ref().map_or(Ok(None), |sums| sums.table_fault(&self.place))?;
        let has_table = table_fault.is_none();
        faults.extend(table_fault);
        let mut block = vec![0; READ_BLOCK];
        while at < self.bytes {
            let want = block.len().min(usize::try_from(self.bytes - at).unwrap_or(usize::MAX));
            self.read_exact(&mut block[..want], at)?;
            digest.update(&block[..want]);
            if has_table {
                let mut from = 0;
                while faults.len() < FAULTS_MAX
                    && let Some(wrong) = self.first_wrong(&block[from..want], at + from as u64)?
                {
                    from = ((wrong + 1) * BLOCK as u64 - at) as usize;
                    faults.push(self.wrong_block(wrong));
                    if from >= want {
                        break;
                    }
                }
            }
            at += want as u64;
            on_read(want as u64);
        }
        let found = BaseDigest(digest.finalize().into());
        if let Some(id) = self.id().filter(|id| faults.is_empty() && id.sha256 != found) {
            faults.push(BaseFault::Digest { place: self.place.clone(), found, expected: id.sha256 });
        }
        Ok((found, faults))
    }

    /// Whether a fault that was found before is still there. That of a digest counts as there, since all of the base would have
    /// to be read.
    ///
    /// # Errors
    /// The fault; otherwise as the repo says.
    pub fn check_again(&self, fault: &BaseFault) -> io::Result<()> {
        match fault {
            BaseFault::Block { at, .. } if *at < self.bytes => {
                let mut block = [0; BLOCK];
                self.read_at(&mut block, *at).map(drop)
            }
            BaseFault::Block { .. } | BaseFault::Missing { .. } | BaseFault::Length { .. } => Ok(()),
            // One with sums is compared with those.
            BaseFault::Digest { .. } if self.sums.is_some() => Ok(()),
            BaseFault::Digest { .. } => Err(fault.clone().into()),
            BaseFault::Sums { .. } => match &self.sums {
                Some(sums) => sums.table_fault(&self.place)?.map_or(Ok(()), |fault| Err(fault.into())),
                None => Ok(()),
            },
        }
    }

    /// How many of `bytes` bytes from `at` on are whole blocks; 0 inside one.
    fn whole_blocks(&self, at: u64, bytes: usize) -> usize {
        match at.is_multiple_of(BLOCK as u64) {
            false => 0,
            true if at + bytes as u64 == self.bytes => bytes,
            true => bytes / BLOCK * BLOCK,
        }
    }

    fn block_len(&self, start: u64) -> usize {
        usize::try_from(self.bytes - start).unwrap_or(usize::MAX).min(BLOCK)
    }

    fn read_exact(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let count = self.file.read_at(buf, at)?;
        if count == buf.len() {
            return Ok(());
        }
        let (place, found) = (self.place.clone(), at + count as u64);
        Err(BaseFault::Length { place, found, expected: self.bytes }.into())
    }

    fn check(&self, blocks: &[u8], at: u64) -> io::Result<()> {
        match (self.first_wrong(blocks, at)?, &self.sums) {
            (Some(wrong), Some(sums)) => {
                // A table that changed says nothing of the block.
                let fault = sums.table_fault(&self.place)?;
                Err(fault.unwrap_or_else(|| self.wrong_block(wrong)).into())
            }
            _ => Ok(()),
        }
    }

    fn wrong_block(&self, block: u64) -> BaseFault {
        BaseFault::Block { place: self.place.clone(), block, at: block * BLOCK as u64 }
    }

    /// The first of these blocks that does not match its checksum.
    fn first_wrong(&self, blocks: &[u8], at: u64) -> io::Result<Option<u64>> {
        let (Some(sums), first) = (&self.sums, at / BLOCK as u64) else {
            return Ok(None);
        };
        let mut piece: Option<(u64, Arc<[u8]>)> = None;
        for (block, content) in (first..).zip(blocks.chunks(BLOCK)) {
            let number = block / PIECE_ENTRIES;
            let entries = match piece.take() {
                Some((of, entries)) if of == number => entries,
                _ => sums.piece(number)?,
            };
            let entry = (block % PIECE_ENTRIES) as usize * ENTRY_LEN;
            let expected = entries.get(entry..).and_then(|rest| rest.first_chunk()).copied();
            if expected.map(u32::from_le_bytes) != Some(crc32c::crc32c(content)) {
                return Ok(Some(block));
            }
            piece = Some((number, entries));
        }
        Ok(None)
    }
}

impl Sums {
    /// The byte positions of a piece of the table.
    fn range(&self, number: u64) -> Range<u64> {
        let bytes = PIECE_ENTRIES * ENTRY_LEN as u64;
        let start = HEADER_LEN as u64 + number * bytes;
        start..(start + bytes).min(self.header.file_bytes())
    }

    fn has(&self, block: u64) -> bool {
        let number = block / PIECE_ENTRIES;
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(of, _)| *of == number)
    }

    fn piece(&self, number: u64) -> io::Result<Arc<[u8]>> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nth) = pieces.iter().rposition(|(of, _)| *of == number) {
            let found = pieces.remove(nth);
            let entries = found.1.clone();
            pieces.push(found);
            return Ok(entries);
        }
        let entries: Arc<[u8]> = self.read(self.range(number))?.into();
        if pieces.len() >= PIECES_KEPT {
            pieces.remove(0);
        }
        pieces.push((number, entries.clone()));
        Ok(entries)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut entries = vec![0; range.end.saturating_sub(range.start) as usize];
        let count = self.file.read_at(&mut entries, range.start)?;
        entries.truncate(count);
        Ok(entries)
    }

    /// What is wrong with the table as a whole.
    fn table_fault(&self, place: &str) -> io::Result<Option<BaseFault>> {
        let pieces = self.header.id.bytes.div_ceil(BLOCK as u64 * PIECE_ENTRIES);
        let mut checksum = 0;
        for number in 0..pieces {
            checksum = crc32c::crc32c_append(checksum, &self.read(self.range(number))?);
        }
        let what = "has a table that does not match its checksum".to_owned();
        Ok((checksum != self.header.table_checksum).then(|| BaseFault::Sums { place: place.to_owned(), what }))
    }
}

/// A base being written, with its sums. Until it is published there is none of it, or the one before.
#[derive(Debug)]
pub struct BaseBuilder {
    repo: Arc<dyn Repo>,
    file: Arc<dyn RepoFile>,
    sums: SumsWriter,
    bytes: u64,
}

impl BaseBuilder {
    /// Of a base in `repo` without a byte yet. What an earlier attempt left is replaced.
    ///
    /// # Errors
    /// As the repo says.
    pub fn create(repo: Arc<dyn Repo>) -> io::Result<BaseBuilder> {
        remove(&*repo, BASE_DRAFT)?;
        let file = repo.create(BASE_DRAFT)?;
        let sums = SumsWriter::create(&*repo)?;
        Ok(BaseBuilder { repo, file, sums, bytes: 0 })
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file that it is written to.
    #[must_use]
    pub fn file(&self) -> &Arc<dyn RepoFile> {
        &self.file
    }

    /// The next bytes. Blocks.
    ///
    /// # Errors
    /// As the repo says.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(&mut [IoSlice::new(bytes)], self.bytes)?;
        self.bytes += bytes.len() as u64;
        self.sums.push(bytes)
    }

    /// The base is whole; `proven` says that its bytes are known to be right. Blocks.
    ///
    /// # Errors
    /// As the repo says.
    pub fn finish(self, proven: bool) -> io::Result<FinishedBase> {
        let BaseBuilder { repo, file, sums, .. } = self;
        file.sync()?;
        let id = sums.finish(proven)?;
        Ok(FinishedBase { repo, id })
    }

    /// Finishes and [publishes](FinishedBase::publish) it.
    ///
    /// # Errors
    /// As the repo says.
    pub fn publish(self, proven: bool) -> io::Result<BaseId> {
        let finished = self.finish(proven)?;
        finished.publish()?;
        Ok(finished.id)
    }

    /// Removes what there is of a base that is not wanted any more.
    pub fn discard(repo: &dyn Repo) {
        if let Err(error) = remove(repo, BASE_DRAFT) {
            log::warn!("{}/{BASE_DRAFT} is left: {error}", repo.place());
        }
        SumsWriter::discard(repo);
    }
}

/// A base that is whole and synced with its sums, and has not got its name.
#[derive(Debug)]
pub struct FinishedBase {
    repo: Arc<dyn Repo>,
    id: BaseId,
}

impl FinishedBase {
    /// Of the draft of a base in `repo`, open as `file`, which is read for its sums. Blocks.
    ///
    /// # Errors
    /// As the repo says.
    pub fn of_draft(repo: Arc<dyn Repo>, file: &dyn RepoFile) -> io::Result<FinishedBase> {
        file.sync()?;
        let id = sum_file(&*repo, file, true)?;
        Ok(FinishedBase { repo, id })
    }

    /// Which base it is.
    #[must_use]
    pub fn id(&self) -> &BaseId {
        &self.id
    }

    /// Gives it its name. After Ok it survives power loss; see [`publish`] for what an error leaves.
    ///
    /// # Errors
    /// As the repo says.
    pub fn publish(&self) -> io::Result<()> {
        publish(&*self.repo, BASE_DRAFT)
    }
}

/// Makes these bytes the base of `repo`. After Ok it survives power loss. Blocks.
///
/// # Errors
/// As the repo says.
pub fn store(repo: Arc<dyn Repo>, bytes: &[u8]) -> io::Result<BaseId> {
    let mut base = BaseBuilder::create(repo)?;
    base.write(bytes)?;
    base.publish(true)
}

/// Ends a [`publish`] that a crash interrupted: a draft that the sums are of becomes the base, any other one is removed. To be
/// called by the one writer of `repo`. Blocks, for as long as the draft is read.
///
/// # Errors
/// As the repo says.
pub fn recover(repo: &dyn Repo) -> io::Result<()> {
    match repo.open(BASE_DRAFT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        draft => drop(draft?),
    }
    let is_of_sums = match BaseReader::open_as(repo, BASE_DRAFT) {
        Ok(Some(draft)) if draft.id().is_some() => draft.check_all(|_| ())?.1.is_empty(),
        Ok(_) => false,
        Err(error) if BaseFault::of(&error).is_some() => false,
        Err(error) => return Err(error),
    };
    if is_of_sums {
        log::info!("{}: {BASE_DRAFT} is whole and becomes {BASE}", repo.place());
        repo.rename(BASE_DRAFT, BASE)?;
    } else {
        repo.remove(BASE_DRAFT)?;
    }
    repo.sync_dir()
}
