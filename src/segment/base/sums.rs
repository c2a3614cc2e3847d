//! `base.sums`: the checksums of a base, a block at a time, and the digest of all of it. Owns the format and how it is written.
//!
//! ```text
//! 0       8         12             16      20     24       32       64              68              72
//! | magic | version | block length | flags | zero | length | SHA-256 | table crc32c | header crc32c | crc32c a block ... |
//! ```
//!
//! All numbers are little-endian. The length and the SHA-256 are those of the base, as `wc -c` and `sha256sum` print them. The
//! table has a crc32c for each block of 4,096 bytes; the last block may be shorter. The checksum of the header covers the
//! bytes before it, that of the table all entries in order.

use std::io::{self, IoSlice};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::fault::BaseFault;
use super::id::{BaseDigest, BaseId};
use crate::format::name::{BASE, BASE_SUMS};
use crate::limits::READ_BLOCK;
use crate::repo::{Repo, RepoFile};

/// Bytes of a block. The last one of a base may be shorter.
pub const BLOCK: usize = 4096;

/// What `base.sums` is called until it is whole and synced.
const SUMS_DRAFT: &str = "base.sums.tmp";

const MAGIC: &[u8; 8] = b"logmbsum";
const VERSION: u32 = 1;
const BLOCK_AT: usize = 12;
const FLAGS_AT: usize = 16;
const LENGTH_AT: usize = 24;
const DIGEST_AT: usize = 32;
const TABLE_CHECKSUM_AT: usize = 64;
const CHECKSUM_AT: usize = 68;
pub(super) const HEADER_LEN: usize = 72;
pub(super) const ENTRY_LEN: usize = 4;

/// The sums were made of a file that nothing vouched for.
const UNPROVEN: u32 = 1;

/// Entries of the table that are written at once.
const ENTRIES_WRITTEN: usize = 16 << 10;

/// The header of `base.sums`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SumsHeader {
    pub(super) id: BaseId,
    /// Whether the sums were made of a file that nothing vouched for.
    pub(super) unproven: bool,
    pub(super) table_checksum: u32,
}

impl SumsHeader {
    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(MAGIC.len(), &VERSION.to_le_bytes());
        put(BLOCK_AT, &(BLOCK as u32).to_le_bytes());
        put(FLAGS_AT, &(if self.unproven { UNPROVEN } else { 0 }).to_le_bytes());
        put(LENGTH_AT, &self.id.bytes.to_le_bytes());
        put(DIGEST_AT, &self.id.sha256.0);
        put(TABLE_CHECKSUM_AT, &self.table_checksum.to_le_bytes());
        let checksum = crc32c::crc32c(&header[..CHECKSUM_AT]);
        header[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// What a header says.
    ///
    /// # Errors
    /// What is wrong with it, in words that follow the name of the file.
    pub(super) fn decode(header: &[u8]) -> Result<SumsHeader, String> {
        let Some(header) = header.first_chunk::<HEADER_LEN>() else {
            return Err(format!("has {} bytes: its header has {HEADER_LEN}", header.len()));
        };
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        if !header.starts_with(MAGIC) {
            return Err("does not start as such a file does".to_owned());
        }
        if number(CHECKSUM_AT) != crc32c::crc32c(&header[..CHECKSUM_AT]) {
            return Err("has a header that does not match its checksum".to_owned());
        }
        let (version, block, flags) = (number(MAGIC.len()), number(BLOCK_AT), number(FLAGS_AT));
        if version != VERSION || block != BLOCK as u32 || flags & !UNPROVEN != 0 {
            return Err(format!("has version {version}, of which this program knows none but {VERSION}"));
        }
        let bytes = u64::from_le_bytes(std::array::from_fn(|i| header[LENGTH_AT + i]));
        let sha256 = BaseDigest(std::array::from_fn(|i| header[DIGEST_AT + i]));
        let id = BaseId { bytes, sha256 };
        Ok(SumsHeader { id, unproven: flags & UNPROVEN != 0, table_checksum: number(TABLE_CHECKSUM_AT) })
    }

    /// The length of the file, as far as that can be.
    pub(super) fn file_bytes(&self) -> u64 {
        let blocks = self.id.bytes.div_ceil(BLOCK as u64);
        blocks.saturating_mul(ENTRY_LEN as u64).saturating_add(HEADER_LEN as u64)
    }
}

/// Makes the `base.sums` of a base whose bytes stream by, under a name of its own until it is published.
#[derive(Debug)]
pub struct SumsWriter {
    file: Arc<dyn RepoFile>,
    digest: Sha256,
    bytes: u64,
    /// The checksum of the block that has begun, and how much of it was seen.
    block: (u32, usize),
    /// Entries that are not written yet, and where they go.
    entries: Vec<u8>,
    entries_at: u64,
    table_checksum: u32,
}

impl SumsWriter {
    /// Of a base in `repo` without a byte yet. What an earlier attempt left is replaced.
    ///
    /// # Errors
    /// As the repo says.
    pub fn create(repo: &dyn Repo) -> io::Result<SumsWriter> {
        remove(repo, SUMS_DRAFT)?;
        Ok(SumsWriter {
            file: repo.create(SUMS_DRAFT)?,
            digest: Sha256::new(),
            bytes: 0,
            block: (0, 0),
            entries: Vec::new(),
            entries_at: HEADER_LEN as u64,
            table_checksum: 0,
        })
    }

    /// The next bytes of the base.
    ///
    /// # Errors
    /// As the repo says; the writer is unusable then.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let (checksum, seen) = self.block;
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - seen));
            self.block = (crc32c::crc32c_append(checksum, now), seen + now.len());
            bytes = rest;
            if self.block.1 == BLOCK {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.entries.extend_from_slice(&self.block.0.to_le_bytes());
        self.block = (0, 0);
        if self.entries.len() >= ENTRIES_WRITTEN * ENTRY_LEN { self.write_entries() } else { Ok(()) }
    }

    fn write_entries(&mut self) -> io::Result<()> {
        self.table_checksum = crc32c::crc32c_append(self.table_checksum, &self.entries);
        self.file.write_at(&mut [IoSlice::new(&self.entries)], self.entries_at)?;
        self.entries_at += self.entries.len() as u64;
        self.entries.clear();
        Ok(())
    }

    /// The base is whole. `proven` says that its bytes are known to be right. After Ok the sums survive power loss, if
    /// their name does.
    ///
    /// # Errors
    /// As the repo says.
    pub fn finish(mut self, proven: bool) -> io::Result<BaseId> {
        if self.block.1 > 0 {
            self.end_block()?;
        }
        self.write_entries()?;
        let id = BaseId { bytes: self.bytes, sha256: BaseDigest(self.digest.finalize().into()) };
        let header = SumsHeader { id, unproven: !proven, table_checksum: self.table_checksum };
        self.file.write_at(&mut [IoSlice::new(&header.encode())], 0)?;
        self.file.sync()?;
        Ok(id)
    }

    /// Removes what there is of sums that are not wanted any more.
    pub fn discard(repo: &dyn Repo) {
        if let Err(error) = remove(repo, SUMS_DRAFT) {
            log::warn!("{}/{SUMS_DRAFT} is left: {error}", repo.place());
        }
    }
}

/// The sums of all of `file`, finished and not published. Blocks.
///
/// # Errors
/// As the repo says; nothing is left then.
pub fn sum_file(repo: &dyn Repo, file: &dyn RepoFile, proven: bool) -> io::Result<BaseId> {
    let made = SumsWriter::create(repo).and_then(|mut sums| {
        let (mut block, mut at) = (vec![0; READ_BLOCK], 0);
        loop {
            let count = file.read_at(&mut block, at)?;
            if count == 0 {
                return sums.finish(proven);
            }
            sums.push(&block[..count])?;
            at += count as u64;
        }
    });
    if made.is_err() {
        SumsWriter::discard(repo);
    }
    made
}

/// Gives finished sums their name, without a base beside them that gets its own. After Ok that survives power loss.
///
/// # Errors
/// As the repo says.
pub fn publish_sums(repo: &dyn Repo) -> io::Result<()> {
    repo.rename(SUMS_DRAFT, BASE_SUMS)?;
    repo.sync_dir()
}

/// Gives the base in `draft`, which is synced, and its finished sums their names. After Ok both survive power loss. After Err,
/// or a crash, the sums may be those of the draft and the base another one: [`recover`](super::recover) ends that.
///
/// The steps, each needed: the draft's name is durable before the sums have theirs, so that whoever finds these sums finds
/// the base that they are of; the sums are durable before the base has its name, so that no base is there without.
///
/// # Errors
/// As the repo says.
pub fn publish(repo: &dyn Repo, draft: &str) -> io::Result<()> {
    repo.sync_dir()?;
    repo.rename(SUMS_DRAFT, BASE_SUMS)?;
    repo.sync_dir()?;
    repo.rename(draft, BASE)?;
    repo.sync_dir()
}

/// Removes a file, if it is there.
pub(super) fn remove(repo: &dyn Repo, name: &str) -> io::Result<()> {
    match repo.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens the sums in `repo`, and reads their header; `None` when there are none.
///
/// # Errors
/// [`BaseFault::Sums`] for what is no such file; otherwise as the repo says.
pub(super) fn open(repo: &dyn Repo) -> io::Result<Option<(SumsHeader, Arc<dyn RepoFile>)>> {
    let file = match repo.open(BASE_SUMS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(BaseFault::Sums { place: repo.place(), what: "is a directory, and no file".to_owned() }.into());
        }
        file => file?,
    };
    let mut header = [0; HEADER_LEN];
    let count = file.read_at(&mut header, 0)?;
    let fault = |what| BaseFault::Sums { place: repo.place(), what };
    let header = SumsHeader::decode(&header[..count]).map_err(fault)?;
    let (bytes, expected) = (file.bytes()?, header.file_bytes());
    if bytes != expected {
        return Err(fault(format!("has {bytes} bytes, not {expected}")).into());
    }
    Ok(Some((header, file)))
}
