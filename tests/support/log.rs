//! Small logs made up for a purpose.

use std::ops::Range;

use logmirror::format::commitlog::{SegmentHeader, Version, encode_commit};
use logmirror::offset::{Epoch, Offset};

/// A segment header.
pub fn header() -> Vec<u8> {
    SegmentHeader { version: Version::V1 }.encode().to_vec()
}

/// A commit of `entries` entries with `records` in it.
pub fn commit(first: u64, epoch: u64, entries: u16, records: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_commit(Version::V1, Offset(first), Epoch(epoch), entries, records, &mut bytes);
    bytes
}

/// `count` commits of one entry from `first` on, each with `len` bytes of records that `seed` decides.
pub fn commits(first: u64, count: u64, len: usize, seed: u8) -> Vec<u8> {
    let record = |offset: u64| (0..len).map(|at| (offset as usize * 31 + at * 7) as u8 ^ seed).collect::<Vec<u8>>();
    (first..first + count).flat_map(|offset| commit(offset, 0, 1, &record(offset))).collect()
}

/// A header or commit of a stream.
#[derive(Debug)]
pub struct Piece {
    pub at: Range<usize>,
    /// The offset to come before it and after it; the same for a header.
    pub next: Range<u64>,
}

/// A stream with the places of its pieces.
#[derive(Debug, Default)]
pub struct Sample {
    pub bytes: Vec<u8>,
    pub pieces: Vec<Piece>,
}

impl Sample {
    /// Two segments of two commits and one, in as few bytes as that takes.
    pub fn small() -> Sample {
        Sample::default().header().commit(2, b"ab").commit(3, b"cde").header().commit(1, b"f")
    }

    pub fn next(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.next.end)
    }

    pub fn header(self) -> Sample {
        let next = self.next();
        self.with(header(), next)
    }

    pub fn commit(self, entries: u16, records: &[u8]) -> Sample {
        let next = self.next();
        self.with(commit(next, 0, entries, records), next + u64::from(entries))
    }

    fn with(mut self, bytes: Vec<u8>, next: u64) -> Sample {
        let at = self.bytes.len()..self.bytes.len() + bytes.len();
        self.pieces.push(Piece { at, next: self.next()..next });
        self.bytes.extend(bytes);
        self
    }

    /// The piece that byte `at` belongs to.
    pub fn piece(&self, at: usize) -> &Piece {
        self.pieces.iter().find(|piece| piece.at.contains(&at)).unwrap()
    }

    /// The offset after the last commit that is whole in the first `bytes` bytes, and whether they end on a boundary.
    pub fn cut(&self, bytes: usize) -> (u64, bool) {
        let whole = self.pieces.iter().take_while(|piece| piece.at.end <= bytes).last();
        (whole.map_or(0, |piece| piece.next.end), whole.map_or(0, |piece| piece.at.end) == bytes)
    }
}
