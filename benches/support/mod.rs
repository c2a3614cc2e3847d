//! Logs for the benches: two shapes of commits, written with the crate's own types.
#![allow(dead_code, reason = "each bench uses its part of this")]

use std::path::Path;
use std::sync::Arc;

use logmirror::format::commitlog::{CHECKSUM_LEN, COMMIT_HEADER_LEN_V1, SegmentHeader, Version, encode_commit};
use logmirror::offset::{Epoch, Offset};
use logmirror::repo::FsRepo;
use logmirror::stream::{Options, StreamWriter};

/// What every commit of a log looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub entries: u16,
    pub entry_bytes: usize,
}

/// Commits as a busy SpacetimeDB module writes them, and the smallest that make sense.
pub const SHAPES: [Shape; 2] =
    [Shape { name: "4x1000", entries: 4, entry_bytes: 1000 }, Shape { name: "1x100", entries: 1, entry_bytes: 100 }];

impl Shape {
    pub fn records_len(&self) -> usize {
        usize::from(self.entries) * self.entry_bytes
    }

    /// Bytes of one commit.
    pub fn commit_len(&self) -> usize {
        COMMIT_HEADER_LEN_V1 + self.records_len() + CHECKSUM_LEN
    }
}

/// The raw bytes of an endless log, piece by piece.
#[derive(Clone, Debug)]
pub struct Source {
    shape: Shape,
    next: Offset,
    state: u64,
    records: Vec<u8>,
}

impl Source {
    pub fn new(shape: Shape) -> Source {
        Source { shape, next: Offset::ZERO, state: 0x9e37_79b9_7f4a_7c15, records: Vec::new() }
    }

    /// Appends commits to `out` until about `bytes` bytes were added.
    pub fn fill(&mut self, out: &mut Vec<u8>, bytes: usize) {
        let end = out.len() + bytes.max(self.shape.commit_len());
        while out.len() + self.shape.commit_len() <= end {
            self.commit(out);
        }
    }

    fn commit(&mut self, out: &mut Vec<u8>) {
        self.records.clear();
        while self.records.len() < self.shape.records_len() {
            // xorshift64: cheap bytes that do not repeat
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.records.extend_from_slice(&self.state.to_le_bytes());
        }
        self.records.truncate(self.shape.records_len());
        encode_commit(Version::V1, self.next, Epoch(1), self.shape.entries, &self.records, out);
        self.next.0 += u64::from(self.shape.entries);
    }
}

/// One segment of about `bytes` bytes as a raw stream: header and commits.
pub fn stream(shape: Shape, bytes: usize) -> Vec<u8> {
    let mut out = SegmentHeader::default().encode().to_vec();
    Source::new(shape).fill(&mut out, bytes);
    out
}

/// A log of about `bytes` bytes in `dir`, in segments of about `segment_bytes`, with its offset indexes.
pub fn write_log(dir: &Path, shape: Shape, bytes: usize, segment_bytes: usize) {
    let repo = Arc::new(FsRepo::create(dir).expect("a directory for the log"));
    let mut writer = StreamWriter::open(repo, Options::default()).expect("an empty log");
    let mut source = Source::new(shape);
    let mut left = bytes;
    while left > 0 {
        let segment = left.min(segment_bytes);
        writer.append(SegmentHeader::default().encode().to_vec()).expect("a header");
        let mut filled = 0;
        while filled < segment {
            let mut piece = Vec::new();
            source.fill(&mut piece, (segment - filled).min(4 << 20));
            filled += piece.len();
            writer.append(piece).expect("commits");
        }
        left = left.saturating_sub(filled);
    }
    writer.finish().expect("a sync");
}
