//! The frames of one push, and whether they go on from our history.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::stage::Stage;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, WalHeader, WalStart};
use crate::limits::{LIBSQL_PAGE_SIZE, SEQUENCES_TRIED};
use crate::mirror::{Error, Log};
use crate::offset::Offset;

/// Bytes of a frame.
const FRAME_LEN: usize = FRAME_HEADER_LEN + LIBSQL_PAGE_SIZE as usize;

/// Bytes of a frame that its checksum sums up.
const SUMMED_LEN: u64 = 8 + LIBSQL_PAGE_SIZE as u64;

/// Frames as a replica sent them: whole, and all with the same salts. Their checksums are not checked yet.
#[derive(Debug)]
pub(super) struct Pushed {
    /// Number of the first.
    pub(super) start: Offset,
    /// The number after the last.
    pub(super) end: Offset,
    body: Bytes,
    first: FrameHeader,
    last: FrameHeader,
    big_endian: std::cell::Cell<bool>,
}

fn header_of(frame: &[u8]) -> FrameHeader {
    FrameHeader::decode(frame.first_chunk().unwrap_or(&[0; FRAME_HEADER_LEN]))
}

impl Pushed {
    /// Reads what was sent as frames `start..end`.
    ///
    /// # Errors
    /// When the body has not that many frames, their salts differ, or a page number is 0.
    pub(super) fn parse(start: Offset, end: Offset, body: Bytes) -> Result<Pushed, Error> {
        let wanted = (end.0 - start.0).checked_mul(FRAME_LEN as u64);
        if wanted != Some(body.len() as u64) {
            return Err(Error::Invalid(format!(
                "{} bytes are not {} frames of {FRAME_LEN} bytes each: frames {start} to {end} (exclusive) were announced",
                body.len(),
                end.0 - start.0,
            )));
        }
        let mut headers = body.chunks(FRAME_LEN).map(header_of);
        let first = headers.next().ok_or_else(|| Error::Invalid("a push without frames".into()))?;
        let mut last = first;
        for (at, header) in std::iter::once(first).chain(headers).enumerate() {
            let number = start.0 + at as u64;
            if header.page == 0 {
                return Err(Error::Invalid(format!("frame {number} is for page 0, and pages are numbered from 1")));
            }
            if header.salts != first.salts {
                return Err(Error::Invalid(format!("frame {number} has other salts than frame {start} of this push")));
            }
            last = header;
        }
        Ok(Pushed { start, end, body, first, last, big_endian: false.into() })
    }

    /// What tells the sender's log from others.
    pub(super) fn salts(&self) -> [u32; 2] {
        self.first.salts
    }

    /// Whether the checksums of a push that [`follows`](Self::follows) are sums of words in this order.
    pub(super) fn sums(&self, big_endian: bool) -> bool {
        !unchecked() && self.big_endian.get() == big_endian
    }

    /// The sender's checksum after the last frame.
    pub(super) fn last_chain(&self) -> (Chain, bool) {
        (self.last.chain, self.big_endian.get())
    }

    /// Each frame, header and page.
    pub(super) fn frames(&self) -> impl Iterator<Item = Bytes> {
        (0..self.body.len() / FRAME_LEN).map(|at| self.body.slice(at * FRAME_LEN..(at + 1) * FRAME_LEN))
    }

    /// Whether the sender's checksums prove that its frames are undamaged and that what it holds before them is what we
    /// hold, staged frames included.
    ///
    /// The log's header is not sent, but its salts are in the frames; how many checkpoints the sender's database has had
    /// is guessed. Its checksum before the push follows from ours there, since both sum up the same frames.
    pub(super) fn follows(
        &self,
        log: &Log,
        stage: Option<&Stage>,
        other_order: &mut OtherOrder,
    ) -> Result<bool, Error> {
        if unchecked() {
            return Ok(true);
        }
        let staged = stage.filter(|stage| stage.end() == self.start).and_then(Stage::chain);
        let before = match staged {
            Some(known) => Some(known),
            // Where a push starts within what is staged it is the same frames again; their checksums are in them.
            None if stage.is_some_and(|stage| self.start > stage.base()) => return Ok(self.goes_on_within(stage)),
            None => self.chain_before(log, other_order)?,
        };
        let Some((mut chain, big_endian)) = before else {
            return Ok(false);
        };
        self.big_endian.set(big_endian);
        for frame in self.body.chunks(FRAME_LEN) {
            chain = summed(chain, frame, big_endian);
            if chain != header_of(frame).chain {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rest of a push that starts within the stage: its frames there were compared already.
    fn goes_on_within(&self, stage: Option<&Stage>) -> bool {
        let Some((stage, (mut chain, big_endian))) = stage.and_then(|stage| Some((stage, stage.chain()?))) else {
            return false;
        };
        self.big_endian.set(big_endian);
        let held = (stage.end().0 - self.start.0) as usize;
        self.body.chunks(FRAME_LEN).skip(held).all(|frame| {
            chain = summed(chain, frame, big_endian);
            chain == header_of(frame).chain
        })
    }

    /// The sender's checksum before its first frame, if its history is ours.
    fn chain_before(&self, log: &Log, other_order: &mut OtherOrder) -> Result<Option<(Chain, bool)>, Error> {
        let Some(first) = self.body.get(..FRAME_LEN) else {
            return Ok(None);
        };
        let fits = |chain: Chain, big_endian| summed(chain, first, big_endian) == self.first.chain;
        let before = self.start.0 - 1;
        let ours = match before {
            0 => None,
            before => match log.chain_at(Offset(before))? {
                None => return Ok(None),
                ours => ours,
            },
        };
        let header = |sequence, big_endian| {
            let (page_size, salts) = (LIBSQL_PAGE_SIZE, self.first.salts);
            WalHeader { big_endian, page_size, sequence, salts }
        };
        // Replicas made by logmirror count their generations there.
        let own = log.generation().0.saturating_sub(1) as u32;
        for big_endian in [false, true] {
            if !self.second_follows_first(big_endian) {
                continue;
            }
            // Sums of words in the other order have nothing to do with ours.
            let theirs = match ours {
                Some(ours) if ours.header.big_endian != big_endian => Some(other_order.after(log, before, big_endian)?),
                _ => None,
            };
            for sequence in (0..SEQUENCES_TRIED).chain(Some(own)) {
                let header = header(sequence, big_endian);
                let chain = match (ours, theirs) {
                    (None, _) => header.seed(),
                    (Some(ours), None) => header.chain_like(before, ours),
                    (Some(_), Some(origin)) => origin.plus(header.seed().carried(before * SUMMED_LEN)),
                };
                if fits(chain, big_endian) {
                    return Ok(Some((chain, big_endian)));
                }
            }
        }
        Ok(None)
    }

    /// Whether the checksums within the push are sums of words in this order, as far as its second frame tells. It spares
    /// most senders of other histories a reading of ours.
    fn second_follows_first(&self, big_endian: bool) -> bool {
        let second = self.body.get(FRAME_LEN..2 * FRAME_LEN);
        second.is_none_or(|second| summed(self.first.chain, second, big_endian) == header_of(second).chain)
    }

    /// Whether the frames of `range`, which must be part of the push, are those of the log. Blocks.
    pub(super) fn equals(&self, log: &Log, range: &Range<Offset>) -> Result<bool, Error> {
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

/// Whether senders' checksums are not looked at, to show in a test what they are for.
fn unchecked() -> bool {
    cfg!(feature = "unsafe-no-chain-check") && std::env::var_os("LOGMIRROR_TEST_NO_CHAIN_CHECK").is_some()
}

fn summed(chain: Chain, frame: &[u8], big_endian: bool) -> Chain {
    let (head, page) = frame.split_at(FRAME_HEADER_LEN.min(frame.len()));
    chain.over(&head[..8.min(head.len())], big_endian).over(page, big_endian)
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

/// Frames as our log takes them: with its salts and its checksums from `start` on, behind `head` if it has none yet.
///
/// `verified` says that the frames' own checksums were found right, and are sums of words in our order. Ours then follow
/// from them but for the first, without another look at the pages; whoever stores them sums them up all the same.
pub(super) fn chained(start: WalStart, head: Option<WalHeader>, frames: &[Bytes], verified: bool) -> Bytes {
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let mut stream = BytesMut::with_capacity(crate::format::wal::HEADER_LEN + bytes);
    if let Some(header) = head {
        stream.put_slice(&header.encode());
    }
    let (mut chain, mut apart) = (start.chain, None::<Chain>);
    for frame in frames {
        let theirs = header_of(frame);
        let content = frame.get(FRAME_HEADER_LEN..).unwrap_or(&[]);
        let head = match apart.map(|apart| apart.carried(SUMMED_LEN)) {
            Some(carried) => {
                chain = theirs.chain.plus(carried);
                apart = Some(carried);
                FrameHeader { salts: start.header.salts, chain, ..theirs }.encode()
            }
            None => {
                let (head, after) = start.header.frame(chain, theirs.page, theirs.size, content);
                chain = after;
                apart = verified.then(|| chain.minus(theirs.chain));
                head
            }
        };
        stream.put_slice(&head);
        stream.put_slice(content);
    }
    stream.freeze()
}
