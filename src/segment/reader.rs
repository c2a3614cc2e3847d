//! [`SegmentReader`]: the bytes of one segment, plain or sealed (zstd), and the place of an offset in them.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use zeekstd::Decoder;

use super::index::{Entry, IndexFile};
use crate::format::wal::{self, FRAME_HEADER_LEN, FrameHeader, WalStart};
use crate::format::{Commit, FormatError, Framing, Item, LogFormat, Scanner, Walk, name};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Offset};
use crate::repo::{Repo, RepoFile};

/// First bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// First bytes of the skippable frame of zstd that a seek table is.
const SKIPPABLE_MAGIC: [u8; 4] = 0x184d_2a5e_u32.to_le_bytes();
/// Its header: the magic and the length of the rest.
const SEEK_HEADER_LEN: u64 = 4 + 4;
/// Bytes at the end of a seek table: how many frames, a descriptor, a magic.
const SEEK_FOOTER_LEN: u64 = 4 + 1 + 4;
/// That magic.
const SEEK_MAGIC: u32 = 0x8f92_eab1;
/// The bit of the descriptor that says that each entry ends in a checksum.
const SEEK_CHECKSUMS: u8 = 0x80;

/// One segment, opened for reading. Positions are always those of the uncompressed bytes. It goes on reading the file
/// it opened, even when that is replaced by its sealed form or removed meanwhile.
pub struct SegmentReader {
    start: Offset,
    format: LogFormat,
    bytes: Bytes,
    index: Option<IndexFile>,
    /// The file of the segment before, where the checksums run on from there.
    before: Option<(Offset, Arc<dyn RepoFile>)>,
}

enum Bytes {
    Plain(Arc<dyn RepoFile>),
    Sealed { decoder: Box<Decoder<'static, Cursor>>, len: u64 },
}

/// Where [`SegmentReader::seek`] stopped.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Offset of the commit there.
    pub next: Offset,
    /// Its byte position.
    pub at: BytePos,
    /// The commit before it, if the search passed one.
    pub before: Option<Commit>,
}

impl fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentReader").field("start", &self.start).field("sealed", &self.is_compressed()).finish()
    }
}

impl SegmentReader {
    /// Opens the segment that starts at `start`, of whatever format.
    ///
    /// # Errors
    /// `NotFound` when there is none; `InvalidData` when it is compressed and its seek table cannot be read.
    pub fn open(repo: &dyn Repo, start: Offset) -> io::Result<SegmentReader> {
        let named = |format| repo.open(&name::segment(format, start));
        let (format, file) = match named(LogFormat::Commitlog) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match named(LogFormat::Wal) {
                Ok(file) => (LogFormat::Wal, file),
                // The one that is listed, as a link to nothing is.
                Err(wal) if wal.kind() != io::ErrorKind::NotFound || is_listed(repo, LogFormat::Wal, start) => {
                    return Err(wal);
                }
                Err(_) => return Err(error),
            },
            file => (LogFormat::Commitlog, file?),
        };
        let mut magic = [0; ZSTD_MAGIC.len()];
        let found = file.read_at(&mut magic, 0)?;
        let bytes = if magic[..found] == ZSTD_MAGIC {
            check_seek_table(&*file)?;
            let decoder = Decoder::new(Cursor { file, at: 0 }).map_err(unsealed)?;
            let len = decoder.seek_table().size_decomp();
            Bytes::Sealed { decoder: Box::new(decoder), len }
        } else {
            Bytes::Plain(file)
        };
        let before = match format {
            LogFormat::Wal => segment_before(repo, start)?,
            LogFormat::Commitlog => None,
        };
        Ok(SegmentReader { start, format, bytes, index: IndexFile::open(repo, format, start), before })
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> LogFormat {
        self.format
    }

    /// The offset it starts at, by its name.
    #[must_use]
    pub fn start(&self) -> Offset {
        self.start
    }

    /// Whether it is compressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        matches!(self.bytes, Bytes::Sealed { .. })
    }

    /// The file behind it, unless it is compressed.
    #[must_use]
    pub fn plain(&self) -> Option<&Arc<dyn RepoFile>> {
        match &self.bytes {
            Bytes::Plain(file) => Some(file),
            Bytes::Sealed { .. } => None,
        }
    }

    /// Its length now, uncompressed; a segment being written grows.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn len(&self) -> io::Result<u64> {
        match &self.bytes {
            Bytes::Plain(file) => file.bytes(),
            Bytes::Sealed { len, .. } => Ok(*len),
        }
    }

    /// Whether it has no bytes at all.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads into `buf` from byte `at`; fewer bytes than asked for only at the end.
    ///
    /// # Errors
    /// When the file cannot be read, or does not decompress (`InvalidData`).
    pub fn read_at(&mut self, buf: &mut [u8], at: BytePos) -> io::Result<usize> {
        match &mut self.bytes {
            Bytes::Plain(file) => file.read_at(buf, at.0),
            Bytes::Sealed { len, .. } if at.0 >= *len => Ok(0),
            Bytes::Sealed { decoder, .. } => {
                if decoder.offset() != at.0 {
                    decoder.set_offset(at.0).map_err(unsealed)?;
                }
                let mut done = 0;
                while done < buf.len() {
                    match decoder.decompress(&mut buf[done..]).map_err(unsealed)? {
                        0 => break,
                        count => done += count,
                    }
                }
                Ok(done)
            }
        }
    }

    /// Its header; `None` when it is too short to have one, or zero where it should be.
    ///
    /// # Errors
    /// `Ok(Err(_))` when there is something else, or a header we refuse.
    pub fn header(&mut self) -> io::Result<Result<Option<Framing>, FormatError>> {
        let mut bytes = vec![0; self.format.header_len()];
        let count = self.read_at(&mut bytes, BytePos(0))?;
        if bytes[..count].iter().all(|byte| *byte == 0) || count < bytes.len() {
            return Ok(Ok(None));
        }
        let framing = match Framing::decode_header(self.format, &bytes) {
            Ok(Some(framing)) => framing,
            Ok(None) => return Ok(Err(FormatError::NotALog { found: bytes })),
            Err(error) => return Ok(Err(error)),
        };
        let (Framing::Wal(Some(WalStart { header, .. })), true) = (framing, self.start > wal::FIRST_FRAME) else {
            return Ok(Ok(Some(framing)));
        };
        // The checksums run on from the last frame of the segment before, which ends where this one starts.
        let mut frame = [0; FRAME_HEADER_LEN];
        let Some((start, file)) = &self.before else {
            return Ok(Err(FormatError::Unlinked));
        };
        let at = header.byte_after(self.start.0 - start.0 - 1);
        if file.read_at(&mut frame, at)? < frame.len() {
            return Ok(Err(FormatError::Unlinked));
        }
        let chain = FrameHeader::decode(&frame).chain;
        Ok(Ok(Some(Framing::Wal(Some(WalStart { header, chain })))))
    }

    /// What a walk needs to start with the commit at byte `at`; `framing` is that of the segment.
    ///
    /// # Errors
    /// When the segment cannot be read.
    pub fn framing_at(&mut self, at: BytePos, framing: Framing) -> io::Result<Framing> {
        let Framing::Wal(Some(WalStart { header, .. })) = framing else {
            return Ok(framing);
        };
        let Some(before) = at.0.checked_sub(header.frame_len()).filter(|before| *before >= wal::HEADER_LEN as u64)
        else {
            return Ok(framing);
        };
        let mut frame = [0; FRAME_HEADER_LEN];
        self.read_at(&mut frame, BytePos(before))?;
        Ok(Framing::Wal(Some(WalStart { header, chain: FrameHeader::decode(&frame).chain })))
    }

    /// The commit at byte `at`, if a whole one with a matching checksum stands there.
    ///
    /// # Errors
    /// When the segment cannot be read.
    pub fn commit_at(&mut self, at: BytePos, framing: Framing, commit_bytes_max: u64) -> io::Result<Option<Commit>> {
        let mut scanner = Scanner::new(Walk::at_commit(self.framing_at(at, framing)?, commit_bytes_max));
        let mut block = vec![0; 4096];
        let mut pos = at;
        loop {
            let count = self.read_at(&mut block, pos)?;
            if pos == at {
                // Larger commits are read to their end and no further.
                let end = framing.unit_len(&block[..count]);
                block.resize(READ_BLOCK.min(end.saturating_sub(4096) as usize).max(4096), 0);
            }
            match scanner.next(&mut &block[..count]) {
                Ok(Some(Item::Commit(commit))) => return Ok(Some(self.placed(commit, at, framing))),
                Ok(None) if count > 0 => {
                    pos = pos.plus(count as u64);
                    if self.format == LogFormat::Wal {
                        block.resize((2 * block.len()).min(READ_BLOCK), 0);
                    }
                }
                _ => return Ok(None),
            }
        }
    }

    /// A commit whose bytes do not tell its offset, with the offset that its place tells.
    fn placed(&self, commit: Commit, at: BytePos, framing: Framing) -> Commit {
        match framing {
            Framing::Wal(Some(start)) => {
                let frames = at.0.saturating_sub(wal::HEADER_LEN as u64) / start.header.frame_len();
                Commit { first: Offset(self.start.0 + frames), ..commit }
            }
            _ => commit,
        }
    }

    /// Finds the commit that holds `offset` before byte `end`: its position, or the end of the commits there are.
    ///
    /// # Errors
    /// When the segment cannot be read.
    pub fn seek(&mut self, offset: Offset, end: BytePos, framing: Framing, max: u64) -> io::Result<Option<Found>> {
        let entry = self.indexed(offset, end, framing, max)?;
        let (next, at) =
            entry.map_or((self.start, BytePos(self.format.header_len() as u64)), |entry| (entry.key, entry.value));
        let mut found = Found { next, at, before: None };
        while found.next < offset && found.at < end {
            match self.commit_at(found.at, framing, max)? {
                Some(commit) if commit.end() <= offset => {
                    let at = found.at.plus(commit.bytes);
                    found = Found { next: commit.end(), at, before: Some(commit) };
                }
                Some(_) => break,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// The last index entry at or before `at` that points at the whole commit it names, at a byte before `end`. A commit
    /// that only stands in the records of another, as in a log that backs up logs, is not taken for one of ours: the
    /// commits from the entry before must lead to it.
    ///
    /// # Errors
    /// When the segment cannot be read.
    pub fn indexed(&mut self, at: Offset, end: BytePos, framing: Framing, max: u64) -> io::Result<Option<Entry>> {
        let Some(index) = self.index.take() else {
            return Ok(None);
        };
        let end = end.min(BytePos(self.len()?));
        let found = index.find(at, end, |before, entry| {
            let start = Entry { key: self.start, value: BytePos(self.format.header_len() as u64) };
            Ok(entry.key >= self.start && self.leads(before.unwrap_or(start), entry, framing, max)?)
        });
        self.index = Some(index);
        found
    }

    /// Whether the entries of the index ascend from its first slot up to `last`.
    #[must_use]
    pub fn index_leads_to(&self, last: Entry) -> bool {
        self.index.as_ref().is_some_and(|index| index.slots_to(last).is_some())
    }

    /// Whether whole commits lead from one entry to the other, and one stands there.
    fn leads(&mut self, from: Entry, to: Entry, framing: Framing, max: u64) -> io::Result<bool> {
        let mut at = from;
        while at.value < to.value {
            match self.commit_at(at.value, framing, max)? {
                Some(commit) if commit.first == at.key || commit.end() <= at.key => {
                    at = Entry { key: at.key.max(commit.end()), value: at.value.plus(commit.bytes) };
                }
                _ => return Ok(false),
            }
        }
        Ok(at == to && self.commit_at(to.value, framing, max)?.is_some_and(|commit| commit.first == to.key))
    }
}

/// The segment before the one that starts at `start`.
fn segment_before(repo: &dyn Repo, start: Offset) -> io::Result<Option<(Offset, Arc<dyn RepoFile>)>> {
    if start <= wal::FIRST_FRAME {
        return Ok(None);
    }
    let starts = repo.list()?.into_iter().filter_map(|file| name::parse_segment(&file));
    let before = starts.filter(|(format, before)| *format == LogFormat::Wal && *before < start).map(|(_, at)| at).max();
    before.map(|before| Ok((before, repo.open(&name::segment(LogFormat::Wal, before))?))).transpose()
}

#[derive(Debug)]
struct Cursor {
    file: Arc<dyn RepoFile>,
    at: u64,
}

impl Read for Cursor {
    /// The decoder asks for no more than a sound file has, and where a damaged one ends early it would ask for ever.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buf, self.at)?;
        if count == 0 && !buf.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        let to = match pos {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.bytes()?.checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Checks that the seek table which the file's end describes is in the file. The decoder would believe its number of frames,
/// and reserve memory for them.
///
/// ```text
/// | 0x184d2a5e  bytes | an entry a frame ... | frames  descriptor  0x8f92eab1 |      a skippable frame of zstd
/// 0        4          8                      end-9    end-5      end-4        end
/// ```
fn check_seek_table(file: &dyn RepoFile) -> io::Result<()> {
    let bytes = file.bytes()?;
    let damaged = || {
        let text = format!("the seek table of a sealed segment of {bytes} bytes is damaged: it does not fit the file");
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let mut footer = [0; SEEK_FOOTER_LEN as usize];
    let footer_at = bytes.checked_sub(SEEK_FOOTER_LEN).ok_or_else(damaged)?;
    file.read_at(&mut footer, footer_at)?;
    let [f0, f1, f2, f3, descriptor, magic @ ..] = footer;
    let entry = if descriptor & SEEK_CHECKSUMS == 0 { 8 } else { 12 };
    let content = u64::from(u32::from_le_bytes([f0, f1, f2, f3])) * entry + SEEK_FOOTER_LEN;
    let table_at = bytes.checked_sub(content + SEEK_HEADER_LEN).ok_or_else(damaged)?;
    let mut header = [0; SEEK_HEADER_LEN as usize];
    file.read_at(&mut header, table_at)?;
    let described = (u32::from_le_bytes(magic) == SEEK_MAGIC).then_some(header);
    let [m0, m1, m2, m3, l0, l1, l2, l3] = described.ok_or_else(damaged)?;
    let fits = [m0, m1, m2, m3] == SKIPPABLE_MAGIC && u64::from(u32::from_le_bytes([l0, l1, l2, l3])) == content;
    if fits { Ok(()) } else { Err(damaged()) }
}

fn unsealed(error: zeekstd::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("sealed segment does not decompress: {error}"))
}

/// Whether a segment has its name in `repo`, whatever is behind that.
fn is_listed(repo: &dyn Repo, format: LogFormat, start: Offset) -> bool {
    repo.list().is_ok_and(|names| names.contains(&name::segment(format, start)))
}
