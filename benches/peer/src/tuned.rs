//! The published stream writer at its best: its own file repository behind buffers of our choosing.
//!
//! The crate reads and writes through 8 KiB buffers, with a trip to the thread pool for each. Its repository is a
//! public trait, so an application that cares can pass its own. This one differs from `repo::Fs` in nothing but the
//! size of the buffers. Nobody gets it from the crate; it shows what the crate's design can do.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Result;
use spacetimedb_commitlog::repo::{Fs, Repo, SegmentLen, TxOffset, TxOffsetIndex, TxOffsetIndexMut};
use spacetimedb_commitlog::segment::FileLike;
use spacetimedb_commitlog::stream::{AsyncRepo, IntoAsyncWriter};
use tokio::io::{BufReader, BufWriter};

use crate::published;

/// The best of 64 KiB, 256 KiB, 1 MiB and 4 MB on 2 cores.
const BUFFER_BYTES: usize = 1 << 20;

/// `repo::Fs` with larger buffers. It reads uncompressed segments only.
#[derive(Clone)]
pub struct Tuned(Fs);

impl Tuned {
    /// The repository in `dir`, which is created if need be.
    pub fn open(dir: &Path) -> Result<Self> {
        published::repo(dir).map(Self)
    }
}

impl Repo for Tuned {
    type SegmentWriter = Segment;
    type SegmentReader = <Fs as Repo>::SegmentReader;

    fn create_segment(&self, offset: u64) -> io::Result<Segment> {
        self.0.create_segment(offset).map(Segment)
    }

    fn open_segment_reader(&self, offset: u64) -> io::Result<Self::SegmentReader> {
        self.0.open_segment_reader(offset)
    }

    fn open_segment_writer(&self, offset: u64) -> io::Result<Segment> {
        self.0.open_segment_writer(offset).map(Segment)
    }

    fn remove_segment(&self, offset: u64) -> io::Result<()> {
        self.0.remove_segment(offset)
    }

    fn compress_segment(&self, offset: u64) -> io::Result<()> {
        self.0.compress_segment(offset)
    }

    fn existing_offsets(&self) -> io::Result<Vec<u64>> {
        self.0.existing_offsets()
    }

    fn create_offset_index(&self, offset: TxOffset, cap: u64) -> io::Result<TxOffsetIndexMut> {
        self.0.create_offset_index(offset, cap)
    }

    fn remove_offset_index(&self, offset: TxOffset) -> io::Result<()> {
        self.0.remove_offset_index(offset)
    }

    fn get_offset_index(&self, offset: TxOffset) -> io::Result<TxOffsetIndex> {
        self.0.get_offset_index(offset)
    }
}

impl AsyncRepo for Tuned {
    type AsyncSegmentWriter = BufWriter<tokio::fs::File>;
    type AsyncSegmentReader = BufReader<tokio::fs::File>;

    async fn open_segment_reader_async(&self, offset: u64) -> io::Result<Self::AsyncSegmentReader> {
        let file = tokio::fs::File::open(self.0.segment_path(offset)).await?;
        Ok(BufReader::with_capacity(BUFFER_BYTES, file))
    }
}

/// A segment file whose asynchronous writer has the larger buffer.
#[derive(Debug)]
pub struct Segment(File);

impl IntoAsyncWriter for Segment {
    type AsyncWriter = BufWriter<tokio::fs::File>;

    fn into_async_writer(self) -> Self::AsyncWriter {
        BufWriter::with_capacity(BUFFER_BYTES, tokio::fs::File::from_std(self.0))
    }
}

impl SegmentLen for Segment {}

impl FileLike for Segment {
    fn fsync(&mut self) -> io::Result<()> {
        self.0.fsync()
    }

    fn ftruncate(&mut self, tx_offset: u64, size: u64) -> io::Result<()> {
        self.0.ftruncate(tx_offset, size)
    }
}

impl Read for Segment {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Segment {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for Segment {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.0.seek(pos)
    }
}
