//! What the metadata file of a pushed database says beside how far the server confirmed: which position of the database's WAL
//! stands for that frame of the server. SQLite starts its WAL anew after a checkpoint, and the server's frames count on.
//!
//! ```text
//! {"hash":…,"version":0,"durable_frame_num":112,"generation":1,"pushed":{…},"pushed_hash":…}
//! ```
//!
//! libSQL's own client passes over keys that it does not know. `pushed_hash` is the CRC-32 of the frame number, as a
//! little-endian u32, and of `pushed` as it is written.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::metadata;
use super::{FRAME_LEN, Position};
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, SUMMED_HEAD_LEN, WalHeader, WalStart};
use crate::sqlite::WalPosition;
use crate::sqlite::wal_append::new_header;
use crate::sync::PAGE_LEN;

/// Bytes of a digest that are kept.
const DIGEST_LEN: usize = 16;

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PushMark {
    /// The digest of the last frame that the server confirmed; empty before the first.
    pub(super) last: String,
    /// What the checksums of pushed frames go on from: the header that they are those of, and the one after that frame.
    salts: [u32; 2],
    sequence: u32,
    big_endian: bool,
    checksum: u64,
    /// The position in the WAL that stands for it; none where the next frames are found by comparing pages.
    wal: Option<WalMark>,
    /// Frames that were sent, and may not have been confirmed.
    pub(super) sending: Option<Sending>,
    /// While the last frame that was confirmed is inside a transaction, where the one before ended: a server need not keep a part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole: Option<WholeEnd>,
}

/// The end of a whole transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct WholeEnd {
    /// Its last frame, the digest of that, the checksum after it, and the position in the WAL that stands for it.
    frame: u32,
    last: String,
    checksum: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wal: Option<WalMark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct WalMark {
    salts: [u32; 2],
    frames: u64,
    checksum: u64,
}

/// Frames on their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sending {
    /// The number after the last.
    pub(super) end: u32,
    pub(super) digest: String,
    /// That of the last of them.
    last: String,
    /// The checksum after them.
    checksum: u64,
    /// Whether they end inside a transaction, and the end of the last one among them then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_open: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole: Option<WholeEnd>,
}

impl Sending {
    /// Of these frames, which end before `end`.
    pub(super) fn of(end: u32, frames: &[u8]) -> Sending {
        let last = frames.len().checked_sub(FRAME_LEN).and_then(|at| frames.get(at..)).unwrap_or_default();
        let is_commit = |frame: &&[u8]| frame.get(4..8).is_some_and(|size| size != [0; 4]);
        let is_open = !is_commit(&last);
        let ended = frames.rchunks_exact(FRAME_LEN).zip(1..).find(|(frame, _)| is_open && is_commit(frame));
        let whole = ended.map(|(frame, back)| WholeEnd {
            frame: end.saturating_sub(back),
            last: digest_of(frame),
            checksum: checksum_of(frame),
            wal: None,
        });
        let (digest, checksum) = (digest_of(frames), checksum_of(last));
        Sending { end, digest, last: digest_of(last), checksum, is_open, whole }
    }
}

/// The checksum that a frame carries.
fn checksum_of(frame: &[u8]) -> u64 {
    frame.first_chunk().map(FrameHeader::decode).map_or(0, |head| head.chain.number())
}

impl PushMark {
    pub(super) fn new(last: String, ours: WalStart, wal: Option<WalPosition>) -> PushMark {
        let WalStart { header: WalHeader { big_endian, sequence, salts, .. }, chain } = ours;
        let mut mark = PushMark {
            last,
            salts,
            sequence,
            big_endian,
            checksum: chain.number(),
            wal: None,
            sending: None,
            whole: None,
        };
        mark.set_wal(wal);
        mark
    }

    /// What the next frame goes on from.
    pub(super) fn ours(&self) -> WalStart {
        let PushMark { salts, sequence, big_endian, checksum, .. } = *self;
        let header = WalHeader { big_endian, page_size: PAGE_LEN as u32, sequence, salts };
        WalStart { header, chain: Chain::from_number(checksum) }
    }

    /// The same with checksums that go on from a header of our own: a server knows the sums of a sender at once whose database was
    /// never checkpointed, as its header says. `frame` is the one that was confirmed last.
    pub(super) fn under_own_header(self, frame: u32) -> PushMark {
        let ours = self.ours();
        let header = WalHeader { big_endian: ours.header.big_endian, ..new_header(PAGE_LEN as u32, 0) };
        let like = |frame: u32, checksum| {
            header.chain_like(frame.into(), WalStart { chain: Chain::from_number(checksum), ..ours })
        };
        let start = WalStart { header, chain: like(frame, self.checksum) };
        let whole = self.whole.clone();
        let whole = whole.map(|whole| WholeEnd { checksum: like(whole.frame, whole.checksum).number(), ..whole });
        PushMark { whole, ..PushMark::new(self.last.clone(), start, self.wal()) }
    }

    /// The last frame of the last whole transaction and the mark after that, if the last frame that was confirmed is inside another.
    pub(super) fn before_part(&self) -> Option<(u32, PushMark)> {
        let WholeEnd { frame, last, checksum, wal } = self.whole.clone()?;
        Some((frame, PushMark { last, checksum, wal, sending: None, whole: None, ..self.clone() }))
    }

    /// The same mark, inside a transaction that follows frame `frame` with the mark `before`.
    pub(super) fn within(self, (frame, before): (u32, &PushMark)) -> PushMark {
        let PushMark { last, checksum, wal, .. } = before.clone();
        PushMark { whole: Some(WholeEnd { frame, last, checksum, wal }), ..self }
    }

    /// The position in the WAL after the last frame that was confirmed.
    pub(super) fn wal(&self) -> Option<WalPosition> {
        let WalMark { salts, frames, checksum } = self.wal?;
        Some(WalPosition { salts, frames, chain: Chain::from_number(checksum) })
    }

    pub(super) fn set_wal(&mut self, wal: Option<WalPosition>) {
        self.wal = wal.map(|at| WalMark { salts: at.salts, frames: at.frames, checksum: at.chain.number() });
    }

    /// So many frames more were confirmed: those that were being sent.
    pub(super) fn confirm(&mut self, frames: u32, sent: &Sending) {
        let first = sent.end.saturating_sub(frames);
        let before = WholeEnd {
            frame: first.saturating_sub(1),
            last: std::mem::take(&mut self.last),
            checksum: self.checksum,
            wal: self.wal,
        };
        let ended = sent.whole.clone().map(|whole| WholeEnd {
            wal: self.wal_after((whole.frame + 1).saturating_sub(first), whole.checksum),
            ..whole
        });
        let known = self.whole.take();
        self.whole = sent.is_open.then(|| ended.or(known).unwrap_or(before));
        self.wal = self.wal_after(frames, sent.checksum);
        (self.last, self.checksum, self.sending) = (sent.last.clone(), sent.checksum, None);
    }

    /// The position in the WAL after so many frames more, which have the checksum `checksum` on the server.
    fn wal_after(&self, frames: u32, checksum: u64) -> Option<WalMark> {
        let wal = self.wal?;
        // The same frames followed on both sides: what the sums differ by was carried along.
        let number = Chain::from_number;
        let apart = number(self.checksum).minus(number(wal.checksum));
        let apart = apart.carried(u64::from(frames) * (SUMMED_HEAD_LEN + PAGE_LEN) as u64);
        let checksum = number(checksum).minus(apart).number();
        Some(WalMark { frames: wal.frames + u64::from(frames), checksum, ..wal })
    }
}

/// The digest of what is the same of frames on every replica.
pub(super) fn digest_of(frames: &[u8]) -> String {
    let mut digest = Sha256::new();
    for frame in frames.chunks(FRAME_LEN) {
        digest.update(frame.get(..8).unwrap_or_default());
        digest.update(frame.get(FRAME_HEADER_LEN..).unwrap_or_default());
    }
    digest.finalize()[..DIGEST_LEN].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Deserialize)]
struct Beside {
    pushed: PushMark,
    pushed_hash: u32,
}

fn hash(position: Position, pushed: &[u8]) -> u32 {
    crc32fast::hash(&[&position.frame.to_le_bytes()[..], pushed].concat())
}

/// The content of a metadata file with a mark.
pub(super) fn encode(position: Position, mark: &PushMark) -> Vec<u8> {
    let mut content = metadata::encode(position);
    if let (Ok(pushed), Some(b'}')) = (serde_json::to_vec(mark), content.pop()) {
        content.extend_from_slice(b",\"pushed\":");
        content.extend_from_slice(&pushed);
        content.extend_from_slice(format!(",\"pushed_hash\":{}", hash(position, &pushed)).as_bytes());
    }
    content.push(b'}');
    content
}

/// The mark in the content of a metadata file that says `position`, if there is one that can be believed.
pub(super) fn decode(position: Position, content: &[u8]) -> Option<PushMark> {
    let Beside { pushed, pushed_hash } = serde_json::from_slice(content).ok()?;
    let written = serde_json::to_vec(&pushed).ok()?;
    (hash(position, &written) == pushed_hash).then_some(pushed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_libsql_reads_the_rest() {
        let header = WalHeader { big_endian: false, page_size: 4096, sequence: 3, salts: [u32::MAX, 0] };
        let wal = WalPosition { salts: [7, 8], frames: 900, chain: Chain::from_number(u64::MAX) };
        let position = Position { generation: 2, frame: 77 };
        for wal in [None, Some(wal)] {
            let page = [0; FRAME_LEN];
            let commit = [[0; 4], [1; 4]].concat().into_iter().chain([0; FRAME_LEN - 8]).collect::<Vec<u8>>();
            for sending in [None, Some(Sending::of(80, &page)), Some(Sending::of(80, &[&commit[..], &page].concat()))] {
                let start = WalStart { header, chain: Chain::from_number(5) };
                let mark = PushMark { sending, ..PushMark::new("ef".into(), start, wal) };
                let content = encode(position, &mark);
                assert_eq!(metadata::decode(&content).ok(), Some(position));
                assert_eq!(decode(position, &content), Some(mark.clone()));
                assert_eq!((mark.ours(), mark.wal()), (start, wal));
                assert_eq!(decode(Position { frame: 78, ..position }, &content), None, "it is of that frame");
                let changed = String::from_utf8(content).unwrap_or_default().replace("\"ef\"", "\"ee\"");
                assert_eq!(decode(position, changed.as_bytes()), None);
            }
        }
        assert_eq!(decode(position, &metadata::encode(position)), None);
    }
}
