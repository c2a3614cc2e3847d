//! A writer of a commitlog directory that behaves like SpacetimeDB does, on good days and on bad ones.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use logmirror::format::commitlog::{Version, encode_commit};
use logmirror::format::{LogFormat, name};
use logmirror::offset::{Epoch, Offset};
use zeekstd::{EncodeOptions, FrameSizePolicy};

use super::commitlog::{Draw, header};

impl Draw {
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.below(u64::MAX).to_le_bytes()[..piece.len()]);
        }
        bytes
    }
}

const INDEX_INTERVAL: u64 = 4096;
const INDEX_ENTRIES: u64 = 512;

/// Appends to a directory, one small step after the other.
pub struct LiveWriter {
    dir: PathBuf,
    draw: Draw,
    segment_bytes_max: u64,
    epoch: u64,
    next: u64,
    open: Segment,
    /// Bytes that are still to be written, and after how many steps.
    rest: Option<(Vec<u8>, u64)>,
    /// Segments that could be compressed.
    sealed: Vec<u64>,
    wanted: BTreeMap<String, Vec<u8>>,
    pub did: Did,
}

/// What it did, so that a test can tell whether it saw all of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Did {
    pub commits: u64,
    pub bytes: u64,
    pub segments: u64,
    pub halves: u64,
    pub preallocated: u64,
    pub torn: u64,
    pub zero_tails: u64,
    pub compressed: u64,
}

struct Segment {
    start: u64,
    file: File,
    /// Where the next byte goes.
    at: u64,
    index: File,
    index_used: u64,
    indexed: u64,
}

impl Segment {
    fn create(dir: &Path, start: u64) -> Segment {
        let create = |name| OpenOptions::new().write(true).create_new(true).open(dir.join(name)).unwrap();
        let (file, index) = (
            create(name::segment(LogFormat::Commitlog, Offset(start))),
            create(name::index(LogFormat::Commitlog, Offset(start))),
        );
        index.set_len(INDEX_ENTRIES * 16).unwrap();
        Segment { start, file, at: 0, index, index_used: 0, indexed: 0 }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.at).unwrap();
        self.at += bytes.len() as u64;
    }

    /// An entry may name a commit that never gets there.
    fn index(&mut self, key: u64, value: u64) {
        if key > 0 && value >= self.indexed + INDEX_INTERVAL && self.index_used < INDEX_ENTRIES {
            let entry = [key.to_le_bytes(), value.to_le_bytes()].concat();
            self.index.write_all_at(&entry, self.index_used * 16).unwrap();
            (self.index_used, self.indexed) = (self.index_used + 1, value);
        }
    }
}

impl LiveWriter {
    /// A log of its own in the empty directory `dir`.
    pub fn new(dir: &Path, draw: Draw, segment_bytes_max: u64) -> LiveWriter {
        let header = header(Version::V1);
        let wanted = BTreeMap::from([(name::segment(LogFormat::Commitlog, Offset(0)), header.clone())]);
        let did = Did { segments: 1, ..Did::default() };
        let (sealed, open) = (Vec::new(), Segment::create(dir, 0));
        let (dir, rest) = (dir.to_owned(), Some((header, 0)));
        LiveWriter { dir, draw, segment_bytes_max, epoch: 1, next: 0, open, rest, sealed, wanted, did }
    }

    /// The offset after the last commit begun.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// What a mirror of all of it must hold: each segment up to its last commit.
    pub fn wanted(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.wanted
    }

    /// Does the next thing.
    pub fn step(&mut self) {
        if let Some((rest, wait)) = self.rest.take() {
            return match wait {
                0 => self.write(rest),
                wait => self.rest = Some((rest, wait - 1)),
            };
        }
        if self.open.at > self.segment_bytes_max {
            return self.rotate();
        }
        match self.draw.within(0..100) {
            0..8 => {
                // Space reserved ahead is zero until it is overwritten.
                let bytes = self.draw.within(1..64 << 10);
                self.open.file.set_len(self.open.at + bytes).unwrap();
                self.did.preallocated += 1;
            }
            8 if self.next > self.open.start => self.fail_a_write(),
            9..14 if !self.sealed.is_empty() => self.compress(),
            _ => {
                let mut bytes = Vec::new();
                for _ in 0..self.draw.within(1..12) {
                    self.commit(&mut bytes);
                }
                self.write(bytes);
            }
        }
    }

    /// Ends on a whole commit.
    pub fn finish(&mut self) {
        while let Some((rest, _)) = self.rest.take() {
            self.write(rest);
        }
        let mut bytes = Vec::new();
        self.commit(&mut bytes);
        self.open.write(&bytes);
    }

    /// Writes all of it, or a part now and the rest some steps later.
    fn write(&mut self, mut bytes: Vec<u8>) {
        if self.draw.one_in(6) {
            let cut = self.draw.within(0..bytes.len() as u64);
            let wait = if self.draw.one_in(40) { 3000 } else { self.draw.within(0..40) };
            self.rest = Some((bytes.split_off(cut as usize), wait));
            self.did.halves += 1;
        }
        self.open.write(&bytes);
    }

    /// Adds a commit to `bytes`, which are to be written where we are.
    fn commit(&mut self, bytes: &mut Vec<u8>) {
        let (first, from) = (self.next, bytes.len());
        self.open.index(first, self.open.at + from as u64);
        self.encode(bytes);
        self.next += u64::from(u16::from_le_bytes([bytes[from + 16], bytes[from + 17]]));
        self.did.commits += 1;
        self.did.bytes += (bytes.len() - from) as u64;
        let segment = self.wanted.get_mut(&name::segment(LogFormat::Commitlog, Offset(self.open.start))).unwrap();
        segment.extend_from_slice(&bytes[from..]);
    }

    fn encode(&mut self, bytes: &mut Vec<u8>) {
        if self.draw.one_in(200) {
            self.epoch += 1;
        }
        let size = match self.draw.within(0..400) {
            0 => 700_000,
            1..20 => 20_000,
            _ => 400,
        };
        let entries = self.draw.within(1..if size == 400 { 20 } else { 3000 }) as u16;
        let size = self.draw.within(0..size) as usize;
        let records = self.draw.bytes(size);
        encode_commit(Version::V1, Offset(self.next), Epoch(self.epoch), entries, &records, bytes);
    }

    /// What is left of a commit whose write failed stays where it is, and a new segment goes on from before it.
    fn fail_a_write(&mut self) {
        let mut bytes = Vec::new();
        self.open.index(self.next, self.open.at);
        self.encode(&mut bytes);
        let cut = self.draw.within(1..bytes.len() as u64) as usize;
        self.open.file.write_all_at(&bytes[..cut], self.open.at).unwrap();
        self.did.torn += 1;
        self.seal();
    }

    /// Space reserved but not needed may be given back, or not.
    fn rotate(&mut self) {
        let spare = if self.draw.one_in(3) { self.draw.within(1..16 << 10) } else { 0 };
        self.open.file.set_len(self.open.at + spare).unwrap();
        self.did.zero_tails += u64::from(spare > 0);
        self.seal();
    }

    fn seal(&mut self) {
        self.sealed.push(self.open.start);
        self.open = Segment::create(&self.dir, self.next);
        let header = header(Version::V1);
        self.wanted.insert(name::segment(LogFormat::Commitlog, Offset(self.next)), header.clone());
        self.did.segments += 1;
        self.write(header);
    }

    /// Swaps a sealed segment for its compressed form.
    fn compress(&mut self) {
        let at = self.draw.within(0..self.sealed.len() as u64) as usize;
        let name = name::segment(LogFormat::Commitlog, Offset(self.sealed.swap_remove(at)));
        compress(&self.dir, &name);
        self.did.compressed += 1;
    }
}

/// Replaces a segment by its compressed form, as SpacetimeDB does it.
pub fn compress(dir: &Path, name: &str) {
    let (path, draft) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let plain = fs::read(&path).unwrap();
    let frames = FrameSizePolicy::Uncompressed(4096);
    let options = EncodeOptions::new().frame_size_policy(frames).compression_level(1);
    let mut encoder = options.into_encoder(File::create(&draft).unwrap()).unwrap();
    encoder.write_all(&plain).unwrap();
    encoder.finish().unwrap();
    fs::rename(draft, path).unwrap();
}
