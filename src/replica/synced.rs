//! `P-synced`: what the remote has, and nothing else. Owns: how its frames are written, cut and folded. It is never open in
//! an engine while this writes it.
//!
//! Frames of the remote are numbered in their generation; those up to `folded` are in the database file already, and frame
//! `folded + n` is the nth of the WAL. What stands in the WAL behind the last frame that counts is scratch: local changes
//! are replayed there, and cut off before anything else is done.

use std::io::{self, IoSlice};
use std::sync::Arc;

use uuid::Uuid;

use super::image::{Image, frame_at, heads};
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use crate::repo::{Repo, RepoFile};
use crate::sqlite::btree::{PAGE_LEN, Pages};
use crate::sync::FRAME_LEN;

/// The files of the remote's image.
#[derive(Debug)]
pub(super) struct Synced {
    dir: Arc<dyn Repo>,
    wal_name: String,
    database: Arc<dyn RepoFile>,
    wal: Option<Wal>,
}

#[derive(Debug)]
struct Wal {
    file: Arc<dyn RepoFile>,
    header: WalHeader,
    /// Frames that count.
    frames: u64,
    /// The checksum after them.
    chain: Chain,
}

impl Synced {
    /// The image of that name, with so many frames in its WAL: what stands behind them is cut off.
    ///
    /// # Errors
    /// `InvalidData` when the WAL does not have that many; otherwise as the file system says.
    pub(super) fn open(dir: Arc<dyn Repo>, name: &str, frames: u64) -> io::Result<Synced> {
        let database = dir.open_write(name)?;
        let wal_name = format!("{name}-wal");
        let mut synced = Synced { dir, wal_name, database, wal: None };
        synced.reset(frames)?;
        Ok(synced)
    }

    /// Cuts off what stands behind so many frames.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn reset(&mut self, frames: u64) -> io::Result<()> {
        self.wal = None;
        let file = match self.dir.open_write(&self.wal_name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file?),
        };
        let short =
            || io::Error::new(io::ErrorKind::InvalidData, format!("it has not the {frames} frames it should have"));
        let Some(file) = file else { return if frames == 0 { Ok(()) } else { Err(short()) } };
        if frames == 0 {
            return file.truncate(0);
        }
        let (mut header, mut head) = ([0; HEADER_LEN], [0; FRAME_HEADER_LEN]);
        if file.bytes()? < frame_at(frames + 1) {
            return Err(short());
        }
        file.read_at(&mut header, 0)?;
        file.read_at(&mut head, frame_at(frames))?;
        let invalid = |error: crate::format::FormatError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        let header = WalHeader::decode(&header).map_err(invalid)?;
        let last = FrameHeader::decode(&head);
        if last.size == 0 || last.salts != header.salts {
            return Err(short());
        }
        file.truncate(frame_at(frames + 1))?;
        self.wal = Some(Wal { file, header, frames, chain: last.chain });
        Ok(())
    }

    /// Frames of the WAL that count.
    pub(super) fn frames(&self) -> u64 {
        self.wal.as_ref().map_or(0, |wal| wal.frames)
    }

    /// Adds whole frames behind those that count, which they do from now on; the last must end a transaction before the
    /// image is used. They are not synced.
    ///
    /// # Errors
    /// As the file system says; the image must be opened anew then.
    pub(super) fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        if self.wal.is_none() {
            self.begin()?;
        }
        let Some(wal) = &mut self.wal else { return Ok(()) };
        let mut heads = Vec::with_capacity(frames.len() / FRAME_LEN);
        let mut chain = wal.chain;
        for frame in frames.chunks_exact(FRAME_LEN) {
            let Some((head, page)) = frame.split_first_chunk::<FRAME_HEADER_LEN>() else { continue };
            let FrameHeader { page: number, size, .. } = FrameHeader::decode(head);
            let (head, after) = wal.header.frame(chain, number, size, page);
            chain = after;
            heads.push((head, page));
        }
        let mut slices: Vec<_> =
            heads.iter().flat_map(|(head, page)| [IoSlice::new(head), IoSlice::new(page)]).collect();
        wal.file.write_at(&mut slices, frame_at(wal.frames + 1))?;
        (wal.frames, wal.chain) = (wal.frames + heads.len() as u64, chain);
        Ok(())
    }

    /// A WAL with salts that are like no other's.
    fn begin(&mut self) -> io::Result<()> {
        let random = Uuid::new_v4().into_bytes();
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| random[at + i]));
        let header =
            WalHeader { big_endian: false, page_size: PAGE_LEN as u32, sequence: 0, salts: [word(0), word(12)] };
        let file = match self.dir.open_write(&self.wal_name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = self.dir.create(&self.wal_name)?;
                self.dir.sync_dir()?;
                file
            }
            file => file?,
        };
        file.truncate(0)?;
        file.write_at(&mut [IoSlice::new(&header.encode())], 0)?;
        self.wal = Some(Wal { file, header, frames: 0, chain: header.seed() });
        Ok(())
    }

    /// After Ok all frames that count survive power loss.
    ///
    /// # Errors
    /// Nothing is known then.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.wal.as_ref().map_or(Ok(()), |wal| wal.file.sync())
    }

    /// The database as of a frame of the WAL, which must end a transaction; scratch frames can be asked for too.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn image(&self, frames: u64) -> io::Result<Image> {
        let image = Image::of(self.database.clone())?;
        match self.file()? {
            Some(wal) if frames > 0 => image.over(&wal, 0, frames),
            _ => Ok(image),
        }
    }

    /// The heads of frames after `after` up to `last`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn heads(&self, after: u64, last: u64) -> io::Result<Vec<FrameHeader>> {
        self.file()?.map_or(Ok(Vec::new()), |wal| heads(&*wal, after, last))
    }

    /// Frames of the WAL up to the last that ends a transaction, scratch included.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn with_scratch(&self) -> io::Result<u64> {
        let Some(wal) = self.file()? else { return Ok(0) };
        let there = wal.bytes()?.saturating_sub(HEADER_LEN as u64) / FRAME_LEN as u64;
        let after = self.frames();
        let scratch = heads(&*wal, after, there)?;
        let ends = scratch.iter().rposition(|head| head.size > 0);
        Ok(ends.map_or(after, |last| after + last as u64 + 1))
    }

    /// The WAL that counts, or the one the engine has begun.
    fn file(&self) -> io::Result<Option<Arc<dyn RepoFile>>> {
        if let Some(wal) = &self.wal {
            return Ok(Some(wal.file.clone()));
        }
        match self.dir.open(&self.wal_name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        }
    }

    /// Puts the pages of all frames into the database file, and syncs that. The WAL stays as it is, so that this can be
    /// repeated: what comes of it is the same.
    ///
    /// # Errors
    /// When it cannot be done; nothing is lost then.
    pub(super) fn fold(&self) -> io::Result<()> {
        let image = self.image(self.frames())?;
        let mut page = [0; PAGE_LEN];
        let mut numbers: Vec<u32> = self.heads(0, self.frames())?.into_iter().map(|head| head.page).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.is_empty() {
            return Ok(());
        }
        for number in numbers.into_iter().filter(|number| *number <= image.count()) {
            image.read(number, &mut page).map_err(io::Error::other)?;
            let at = u64::from(number - 1) * PAGE_LEN as u64;
            self.database.write_at(&mut [IoSlice::new(&page)], at)?;
        }
        self.database.truncate(u64::from(image.count()) * PAGE_LEN as u64)?;
        self.database.sync()
    }
}
