//! Logs made to measure: segments of commits with chosen offsets, epochs, sizes and versions, and their bytes.
#![allow(dead_code, clippy::unwrap_used, reason = "tests, and each file uses its part of this")]

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

use logmirror::format::commitlog::{SegmentHeader, Version};
use logmirror::format::{LogFormat, name};
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::Offset;
use logmirror::repo::Repo;
use logmirror::stream::{OnTrailing, OpenError, Options, Read, StreamReader, StreamWriter};

/// The bytes of a segment header.
pub fn header(version: Version) -> Vec<u8> {
    SegmentHeader { version }.encode().to_vec()
}

/// The bytes of a commit with a matching checksum, whatever else is wrong with it.
pub fn commit(version: Version, first: u64, epoch: u64, entries: u16, records: &[u8]) -> Vec<u8> {
    let mut bytes = first.to_le_bytes().to_vec();
    if version == Version::V1 {
        bytes.extend(epoch.to_le_bytes());
    }
    bytes.extend(entries.to_le_bytes());
    bytes.extend((records.len() as u32).to_le_bytes());
    bytes.extend(records);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

/// Records that differ from offset to offset and hold no small numbers that could pass for one.
pub fn records(first: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| 0x80 | (first.wrapping_mul(31) ^ at.wrapping_mul(7)) as u8).collect()
}

/// A commit of a [`Source`] and its bytes in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    pub first: u64,
    pub end: u64,
    pub from: usize,
    pub to: usize,
    /// Where its segment starts in the stream.
    pub segment: usize,
}

/// A log and where everything in it is.
#[derive(Clone, Debug)]
pub struct Source {
    /// All its segments one after the other.
    pub stream: Vec<u8>,
    pub commits: Vec<Made>,
    /// First offset of each segment and where it starts in the stream.
    pub segments: Vec<(u64, usize)>,
    pub next: u64,
    pub epoch: u64,
    pub version: Version,
}

impl Source {
    pub fn new(first: u64) -> Source {
        let (stream, commits, segments) = Default::default();
        Source { stream, commits, segments, next: first, epoch: 0, version: Version::V1 }
    }

    /// One segment of commits of these many bytes of records, each of three entries.
    pub fn of(lens: &[usize]) -> Source {
        let mut source = Source::new(0);
        source.segment(Version::V1).commits(lens);
        source
    }

    /// Starts a segment.
    pub fn segment(&mut self, version: Version) -> &mut Source {
        self.version = version;
        self.segments.push((self.next, self.stream.len()));
        self.stream.extend(header(version));
        self
    }

    pub fn epoch(&mut self, epoch: u64) -> &mut Source {
        self.epoch = epoch;
        self
    }

    pub fn commits(&mut self, lens: &[usize]) -> &mut Source {
        for len in lens {
            let records = records(self.next, *len);
            self.commit(3, &records);
        }
        self
    }

    pub fn commit(&mut self, entries: u16, records: &[u8]) -> &mut Source {
        let (first, from) = (self.next, self.stream.len());
        self.stream.extend(commit(self.version, first, self.epoch, entries, records));
        self.next += u64::from(entries);
        let segment = self.segments.last().unwrap().1;
        self.commits.push(Made { first, end: self.next, from, to: self.stream.len(), segment });
        self
    }

    /// The segment files by name.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.slices().map(|(name, bytes)| (name, bytes.to_vec())).collect()
    }

    fn slices(&self) -> impl Iterator<Item = (String, &[u8])> {
        let ends = self.segments.iter().skip(1).map(|(_, from)| *from).chain([self.stream.len()]);
        let files = self.segments.iter().zip(ends);
        files.map(|((start, from), to)| (name::segment(LogFormat::Commitlog, Offset(*start)), &self.stream[*from..to]))
    }

    /// The stream from the commit at `next` on, with its segment's header if it is the first in it.
    pub fn rest(&self, next: u64) -> &[u8] {
        if let Some((_, from)) = self.segments.iter().find(|(start, _)| *start == next) {
            return &self.stream[*from..];
        }
        let at = self.commits.iter().find(|commit| commit.first == next);
        at.map_or(&[], |commit| &self.stream[commit.from..])
    }

    /// The commit that holds `offset`.
    pub fn at(&self, offset: u64) -> Option<&Made> {
        self.commits.iter().find(|commit| (commit.first..commit.end).contains(&offset))
    }

    /// Puts its files into `repo`.
    pub fn store(&self, repo: &dyn Repo) {
        for (name, bytes) in self.files() {
            put(repo, &name, &bytes);
        }
    }

    /// Checks that the segments in `repo` are a prefix of this log that ends at the commit boundary `next`, and maybe an
    /// empty head.
    pub fn assert_holds(&self, repo: &dyn Repo, next: u64, what: &str) {
        let mut found = super::repo_segments(repo);
        let head_len = header(Version::V1).len();
        found
            .retain(|name, bytes| bytes.len() > head_len || *name != name::segment(LogFormat::Commitlog, Offset(next)));
        let mut held = 0;
        for (name, whole) in self.slices() {
            let bytes = found.remove(&name).unwrap_or_default();
            assert!(whole.starts_with(&bytes), "{what}: {name} is not a prefix of the source's");
            held += bytes.len().saturating_sub(head_len);
        }
        assert!(found.is_empty(), "{what}: {:?} are no segments of the source", found.keys());
        let commits = self.commits.iter().take_while(|commit| commit.end <= next);
        let end = commits.clone().last().map_or(self.segments[0].0, |commit| commit.end);
        let bytes: usize = commits.map(|commit| commit.to - commit.from).sum();
        assert_eq!((held, end), (bytes, next), "{what}: bytes of commits up to {next}, a boundary");
    }

    /// Checks that the segments in `repo` are exactly those of this log.
    pub fn assert_is(&self, repo: &dyn Repo, what: &str) {
        let found = super::repo_segments(repo);
        assert!(found.keys().cloned().eq(self.slices().map(|(name, _)| name)), "{what}: other segments");
        let same = found.values().zip(self.slices()).all(|(found, (_, bytes))| found == bytes);
        assert!(same, "{what}: not the source's bytes");
    }
}

/// Creates or replaces a file.
pub fn put(repo: &dyn Repo, name: &str, bytes: &[u8]) {
    let _ = repo.remove(name);
    repo.create(name).unwrap().write_at(&mut [IoSlice::new(bytes)], 0).unwrap();
}

/// Writes bytes into a file, or at its end.
pub fn write(repo: &dyn Repo, name: &str, at: Option<u64>, bytes: &[u8]) {
    let file = repo.open_write(name).unwrap();
    let at = at.unwrap_or_else(|| file.bytes().unwrap());
    file.write_at(&mut [IoSlice::new(bytes)], at).unwrap();
}

/// The content of a file.
pub fn get(repo: &dyn Repo, name: &str) -> Vec<u8> {
    let file = repo.open(name).unwrap();
    let mut bytes = vec![0; file.bytes().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

pub fn trim() -> Options {
    Options { on_trailing: OnTrailing::Trim, ..Options::default() }
}

pub fn marked() -> Options {
    Options { durable_mark: true, ..trim() }
}

/// Opens the log in `repo` for writing with default options.
pub fn open(repo: &(impl Repo + Clone + 'static)) -> Result<StreamWriter, OpenError> {
    StreamWriter::open(Arc::new(repo.clone()), Options::default())
}

/// All that a reader hands out from `from` on, and its error if it ends in one.
pub fn read_from(repo: &(impl Repo + Clone + 'static), from: u64) -> (Vec<u8>, Result<u64, String>) {
    let mut bytes = Vec::new();
    let mut reader = match StreamReader::open(Arc::new(repo.clone()), Offset(from), COMMIT_BYTES_MAX) {
        Ok(reader) => reader,
        Err(error) => return (bytes, Err(error.to_string())),
    };
    loop {
        match reader.read() {
            Ok(Read::Batch(batch)) => batch.slices().for_each(|slice| bytes.extend_from_slice(slice)),
            Ok(Read::End(_)) => return (bytes, Ok(reader.next().0)),
            Err(error) => return (bytes, Err(error.to_string())),
        }
    }
}

/// The seed of this run: from `LOGMIRROR_TEST_SEED`, else from the clock. Printed, so that a failure can be had again.
pub fn seed() -> u64 {
    let given = std::env::var("LOGMIRROR_TEST_SEED").ok().map(|text| text.parse().unwrap());
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = given.unwrap_or_else(clock);
    println!("LOGMIRROR_TEST_SEED={seed}");
    seed
}

/// A small generator (splitmix64) for what a test draws itself.
pub struct Draw(pub u64);

impl Draw {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    }
}

/// Seals a segment as SpacetimeDB does: seekable zstd with frames of 4 KiB.
pub fn seal(bytes: &[u8]) -> Vec<u8> {
    let options = zeekstd::EncodeOptions::new().frame_size_policy(zeekstd::FrameSizePolicy::Uncompressed(4096));
    let mut sealed = Vec::new();
    let mut encoder = options.into_encoder(&mut sealed).unwrap();
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap();
    sealed
}
