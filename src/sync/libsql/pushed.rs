//! The frames of one push, and whether they go on from our history.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::sequence::Sequences;
use super::stage::Stages;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, PAGE_MAX, SUMMED_HEAD_LEN, WalHeader, WalStart};
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::mirror::{Error, Log};
use crate::offset::Offset;
use crate::sqlite::wal_append::Rechain;

/// Bytes of a frame.
pub(super) const FRAME_LEN: usize = FRAME_HEADER_LEN + LIBSQL_PAGE_SIZE as usize;

/// Bytes of a frame that its checksum sums up.
const SUMMED_LEN: u64 = SUMMED_HEAD_LEN as u64 + LIBSQL_PAGE_SIZE as u64;

/// A sender's checksum at some frame, and the order of the words that it sums up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) chain: Chain,
    pub(super) big_endian: bool,
}

impl Sum {
    /// Whether the checksums of frames behind it are right.
    fn proves(self, frames: &[u8]) -> bool {
        let mut chain = self.chain;
        frames.chunks(FRAME_LEN).all(|frame| {
            chain = summed(chain, frame, self.big_endian);
            chain == header_of(frame).chain
        })
    }

    /// The sum after so many of these frames, as the last of them says.
    pub(super) fn told_by(self, frames: &[u8], count: usize) -> Sum {
        let last = count.checked_sub(1).and_then(|last| frames.get(last * FRAME_LEN..));
        Sum { chain: last.map_or(self.chain, |last| header_of(last).chain), ..self }
    }
}

/// Frames as a replica sent them: whole, and all with the same salts. Their checksums are not checked yet.
#[derive(Debug)]
pub(super) struct Pushed {
    /// Number of the first.
    pub(super) start: Offset,
    /// The number after the last.
    pub(super) end: Offset,
    /// What tells the sender's log from others.
    pub(super) salts: [u32; 2],
    pub(super) body: BytesMut,
}

fn header_of(frame: &[u8]) -> FrameHeader {
    FrameHeader::decode(frame.first_chunk().unwrap_or(&[0; FRAME_HEADER_LEN]))
}

/// The checksum of the last of these frames.
pub(super) fn last_chain(frames: &[u8]) -> Option<Chain> {
    Some(header_of(frames.get(frames.len().checked_sub(FRAME_LEN)?..)?).chain)
}

impl Pushed {
    /// Reads what was sent as frames `start..end`.
    ///
    /// # Errors
    /// When the body has not that many frames, their salts differ, or a page number or a size is none that databases have.
    pub(super) fn parse(start: Offset, end: Offset, body: BytesMut) -> Result<Pushed, Error> {
        let wanted = (end.0 - start.0).checked_mul(FRAME_LEN as u64);
        if wanted != Some(body.len() as u64) {
            return Err(Error::Invalid(format!(
                "{} bytes are not {} frames of {FRAME_LEN} bytes each: frames {start} to {end} (exclusive) were announced",
                body.len(),
                end.0 - start.0,
            )));
        }
        let salts = header_of(&body).salts;
        for (at, header) in body.chunks(FRAME_LEN).map(header_of).enumerate() {
            let number = start.0 + at as u64;
            if !header.is_possible() {
                let (page, size) = (header.page, header.size);
                return Err(Error::Invalid(format!(
                    "frame {number} is for page {page} of {size}, and pages are numbered from 1 to {PAGE_MAX}"
                )));
            }
            if header.salts != salts {
                return Err(Error::Invalid(format!("frame {number} has other salts than frame {start} of this push")));
            }
        }
        Ok(Pushed { start, end, salts, body })
    }

    /// Whether the checksums of the frames from the `from`th on are right, and go on from `before` the first or from what
    /// the frame before them says.
    pub(super) fn follows(&self, before: Sum, from: usize) -> bool {
        unchecked() || before.told_by(&self.body, from).proves(&self.body[from * FRAME_LEN..])
    }

    /// The sender's checksum before its first frame, and how many checkpoints its database then has had, if its history is
    /// ours; which is to be [believed](Sequences::believe). Blocks where [`sum_like`](Self::sum_like) does
    /// not know it, or our log does not end there.
    ///
    /// The log's header is not sent, but its salts are in the frames; how many checkpoints the sender's database has had
    /// is guessed. Its checksum before the push follows from ours there, since both sum up the same frames.
    pub(super) fn sum_before(&self, log: &Log, stages: &mut Stages) -> Result<Option<(Sum, u32)>, Error> {
        if unchecked() {
            return Ok(Some((Sum { chain: Chain::default(), big_endian: true }, 0)));
        }
        let before = self.start.0 - 1;
        let ours = match before {
            0 => None,
            before => match log.chain_at(Offset(before))? {
                None => return Ok(None),
                ours => ours,
            },
        };
        if let Some(found) = self.sum_like(log, &stages.sequences, ours) {
            return Ok(Some(found));
        }
        // Sums of words in the other order have nothing to do with ours.
        let big_endian = !is_big_endian(ours);
        if !self.second_follows_first(big_endian) {
            return Ok(None);
        }
        let origin = match ours {
            Some(_) => Some(stages.other_order.after(log, before, big_endian)?),
            None => None,
        };
        Ok(self.sum_fitting(log, &stages.sequences, big_endian, |header| match origin {
            Some(origin) => origin.plus(header.seed().carried(before * SUMMED_LEN)),
            None => header.seed(),
        }))
    }

    /// The sender's checksum before its first frame as told from ours there, `ours`; `None` when they have nothing to do
    /// with each other, or sum up words of different orders.
    pub(super) fn sum_like(&self, log: &Log, sequences: &Sequences, ours: Option<WalStart>) -> Option<(Sum, u32)> {
        let big_endian = is_big_endian(ours);
        self.second_follows_first(big_endian).then_some(())?;
        let before = self.start.0 - 1;
        self.sum_fitting(log, sequences, big_endian, |header| {
            ours.map_or_else(|| header.seed(), |ours| header.chain_like(before, ours))
        })
    }

    /// The sum of the header that the first frame fits, as `sum_of` has it before that frame, and the number of checkpoints
    /// in that header.
    fn sum_fitting(
        &self,
        log: &Log,
        sequences: &Sequences,
        big_endian: bool,
        sum_of: impl Fn(&WalHeader) -> Chain,
    ) -> Option<(Sum, u32)> {
        let first = self.body.get(..FRAME_LEN)?;
        // Replicas made by logmirror count their generations there.
        let own = log.generation().0.saturating_sub(1) as u32;
        let mut sums = sequences.candidates(self.salts, own).map(|sequence| {
            (sum_of(&WalHeader { big_endian, page_size: LIBSQL_PAGE_SIZE, sequence, salts: self.salts }), sequence)
        });
        let fits = |(chain, _): &(Chain, u32)| summed(*chain, first, big_endian) == header_of(first).chain;
        let (chain, sequence) = sums.find(fits)?;
        Some((Sum { chain, big_endian }, sequence))
    }

    /// Whether the checksums within the push are sums of words in this order, as far as its second frame tells. It spares
    /// most senders of other histories a reading of ours.
    fn second_follows_first(&self, big_endian: bool) -> bool {
        let second = self.body.get(FRAME_LEN..2 * FRAME_LEN);
        second.is_none_or(|second| {
            let first = header_of(&self.body).chain;
            summed(first, second, big_endian) == header_of(second).chain
        })
    }

    /// Whether the frames of `range`, which must be part of the push, are those of the log. Blocks.
    pub(super) fn equals(&self, log: &Log, range: &Range<Offset>) -> Result<bool, Error> {
        if range.is_empty() {
            return Ok(true);
        }
        let start = (range.start.0 - self.start.0) as usize * FRAME_LEN;
        let wanted = range.end.0.saturating_sub(range.start.0) as usize * FRAME_LEN;
        let (mut at, mut same) = (start, true);
        log.read_frames(range, |ours| {
            let theirs = self.body.get(at..at + ours.len()).unwrap_or(&[]);
            same &= theirs.len() == ours.len();
            let (mut ours, mut theirs, mut pos) = (ours, theirs, at % FRAME_LEN);
            while same && !ours.is_empty() {
                // Bytes 8..24, salts and checksum, are each log's own.
                let (len, counts) = match pos {
                    0..8 => (8 - pos, true),
                    8..FRAME_HEADER_LEN => (FRAME_HEADER_LEN - pos, false),
                    _ => (FRAME_LEN - pos, true),
                };
                let len = len.min(ours.len());
                same &= !counts || ours[..len] == theirs[..len];
                (ours, theirs, pos) = (&ours[len..], &theirs[len..], (pos + len) % FRAME_LEN);
                at += len;
            }
            same
        })?;
        // A frame that was not there to compare is no equal one.
        Ok(same && at == start + wanted)
    }
}

/// The order of words that a log sums up which goes on so; ours are little-endian when they are new.
pub(super) fn is_big_endian(ours: Option<WalStart>) -> bool {
    ours.is_some_and(|ours| ours.header.big_endian)
}

/// Whether senders' checksums are not looked at, to show in a test what they are for.
fn unchecked() -> bool {
    cfg!(feature = "unsafe-no-chain-check") && std::env::var_os("LOGMIRROR_TEST_NO_CHAIN_CHECK").is_some()
}

fn summed(chain: Chain, frame: &[u8], big_endian: bool) -> Chain {
    frame.split_first_chunk().map_or(chain, |(head, page)| chain.over_frame(head, page, big_endian))
}

/// The sum of our first frames as words of the order that our own checksums do not have, without a header before them. It
/// is kept and goes on from push to push, so that a sender with that order costs what it sends and not the whole log each
/// time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OtherOrder {
    frames: u64,
    chain: Chain,
}

impl OtherOrder {
    /// The sum of frames 1 to `count`. Blocks for those that were not summed up before, or for all when more were.
    fn after(&mut self, log: &Log, count: u64, big_endian: bool) -> Result<Chain, Error> {
        if self.frames > count {
            *self = OtherOrder::default();
        }
        let (mut chain, mut frame) = (self.chain, Vec::with_capacity(FRAME_LEN));
        log.read_frames(&(Offset(self.frames + 1)..Offset(count + 1)), |mut bytes| {
            while !bytes.is_empty() {
                let (piece, rest) = bytes.split_at(bytes.len().min(FRAME_LEN - frame.len()));
                frame.extend_from_slice(piece);
                bytes = rest;
                if frame.len() == FRAME_LEN {
                    chain = summed(chain, &frame, big_endian);
                    frame.clear();
                }
            }
            true
        })?;
        *self = OtherOrder { frames: count, chain };
        Ok(chain)
    }
}

/// Frames as our log takes them: with its salts, and its checksums from `start` on.
///
/// `theirs` is the sender's checksum before the first, if it sums up words of our order.
pub(super) fn chained(start: WalStart, theirs: Option<Chain>, mut pieces: Vec<BytesMut>) -> Vec<Bytes> {
    let mut ours = theirs.map_or_else(|| Rechain::new(start), |theirs| Rechain::from_checksums(start, theirs));
    for frame in pieces.iter_mut().flat_map(|piece| piece.chunks_exact_mut(FRAME_LEN)) {
        if let Some((head, page)) = frame.split_first_chunk_mut() {
            *head = ours.frame(&FrameHeader::decode(head), page).encode();
        }
    }
    pieces.into_iter().map(BytesMut::freeze).collect()
}
