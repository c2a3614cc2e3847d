//! [`BaseReader`]: reading a base, each block of which is checked.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::fault::BaseFault;
use super::id::{BaseDigest, BaseId, KnownBase};
use super::sums::{BLOCK, ENTRY_LEN, HEADER_LEN, SumsHeader, open};
use crate::format::name::BASE;
use crate::limits::READ_BLOCK;
use crate::repo::{Repo, RepoFile};

/// Entries of the table that are read at once: those of 16 MiB of a base.
const PIECE_ENTRIES: u64 = 4096;
/// Pieces of a table that a reader keeps.
const PIECES_KEPT: usize = 16;
/// Faults of one base that are named.
const FAULTS_MAX: usize = 64;

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
    pub(super) fn open_as(repo: &dyn Repo, name: &str) -> io::Result<Option<BaseReader>> {
        let (place, sums) = (repo.place(), open(repo)?);
        let file = match (repo.open(name), &sums) {
            (Err(error), None) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            (Err(error), Some(_)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BaseFault::Missing { place }.into());
            }
            (Err(error), _) if error.kind() == io::ErrorKind::IsADirectory => {
                return Err(BaseFault::Directory { place }.into());
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
            BaseFault::Block { .. } | BaseFault::Missing { .. } | BaseFault::Directory { .. } => Ok(()),
            BaseFault::Length { .. } => Ok(()),
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
