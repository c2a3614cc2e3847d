//! Which pieces of which segments are checked on their own.

use std::io;

use super::Options;
use crate::format::Framing;
use crate::offset::{BytePos, Epoch, Offset};
use crate::repo::Repo;
use crate::segment::{Entry, SegmentReader};

/// A part of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Which segment, counted from 0.
    pub(super) segment: usize,
    /// The commit it starts with; `None` to start with the segment's header.
    pub(super) from: Option<(Entry, Framing)>,
    /// The commit the next piece starts with.
    pub(super) to: Option<Entry>,
    /// Term of the commit before it, as far as known.
    pub(super) epoch: Epoch,
}

impl Piece {
    /// All of a segment.
    pub(super) fn whole(segment: usize) -> Piece {
        Piece { segment, from: None, to: None, epoch: Epoch(0) }
    }
}

/// All pieces, in the order of the log.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) pieces: Vec<Piece>,
    /// Bytes of all segments.
    pub(super) bytes: u64,
}

/// Cuts large segments at index entries that hold. A segment that cannot be opened is one piece: its check tells why.
pub(super) fn plan(repo: &dyn Repo, starts: &[Offset], options: &Options<'_>) -> Plan {
    let mut plan = Plan::default();
    for (segment, start) in starts.iter().enumerate() {
        let mut piece = Piece::whole(segment);
        if let Ok(cuts) = cuts(repo, *start, options) {
            plan.bytes += cuts.bytes;
            let first = Entry { key: *start, value: BytePos(cuts.framing.header_len() as u64) };
            for (from, to) in std::iter::once(first).chain(cuts.at.iter().copied()).zip(&cuts.at) {
                plan.pieces.push(Piece { from: Some((from, cuts.framing)), to: Some(*to), ..piece });
            }
            piece.from = cuts.at.last().map(|last| (*last, cuts.framing));
        }
        plan.pieces.push(piece);
    }
    plan
}

/// A segment to be cut.
struct Cuts {
    bytes: u64,
    framing: Framing,
    /// The commits to cut at; none when it is small, or cannot be cut.
    at: Vec<Entry>,
}

fn cuts(repo: &dyn Repo, start: Offset, options: &Options<'_>) -> io::Result<Cuts> {
    let mut reader = SegmentReader::open(repo, start)?;
    let bytes = reader.len()?;
    let mut cuts = Cuts { bytes, framing: Framing::of(reader.format()), at: Vec::new() };
    let count = bytes / options.piece_bytes;
    if count < 2 {
        return Ok(cuts);
    }
    let Ok(Some(header)) = reader.header()? else {
        return Ok(cuts);
    };
    cuts.framing = header;
    let mut indexed = |at| reader.indexed(at, BytePos(u64::MAX), header, options.commit_bytes_max);
    let Some(last) = indexed(Offset(u64::MAX))? else {
        return Ok(cuts);
    };
    // Entries are found by offset; evenly spaced offsets give pieces of about the same length.
    let offsets = u128::from(last.key.0.saturating_sub(start.0));
    for piece in 1..count {
        let at = start.0 + (offsets * u128::from(piece) / u128::from(count)) as u64;
        let behind = |cut: &Entry| cuts.at.last().is_none_or(|last| cut.key > last.key && cut.value > last.value);
        let cut = indexed(Offset(at))?.filter(behind);
        cuts.at.extend(cut);
    }
    Ok(cuts)
}
