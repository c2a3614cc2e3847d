//! What the metadata file of a pushed database says beside how far the server confirmed: which position of the database's WAL
//! stands for that frame of the server. SQLite starts its WAL anew after a checkpoint, and the server's frames count on.
//!
//! ```text
//! {"hash":…,"version":0,"durable_frame_num":112,"generation":1,"pushed":{…},"pushed_hash":…}
//! ```
//!
//! Before frames are sent, `ahead` says what they are, for a window of requests at once: those that a server took although its
//! answer was lost are known as ours.
//!
//! `ends` says where earlier pushes of the generation ended: a server whose data was put back from a copy may end there.
//!
//! libSQL's own client passes over keys that it does not know. `pushed_hash` is the CRC-32 of the frame number, as a
//! little-endian u32, and of `pushed` as it is written.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use super::metadata;
use super::{FRAME_LEN, Position};
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, SUMMED_HEAD_LEN, WalHeader, WalStart};
use crate::limits::ENDS_NOTED_MAX;
use crate::sqlite::WalPosition;
use crate::sqlite::wal_append::new_header;
use crate::sqlite::wal_frames::committed_frames;
use crate::sync::PAGE_LEN;

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
    /// The frames after it that are sent next, and may not have been confirmed: each run right after the one before.
    pub(super) ahead: Vec<Sending>,
    /// While the last frame that was confirmed is inside a transaction, where the one before ended: a server need not keep a part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole: Option<WholeEnd>,
    /// Where earlier pushes ended: the frame, and its digest; the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ends: Vec<(u32, String)>,
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

/// A run of frames on their way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sending {
    /// The number after the last.
    pub(super) end: u32,
    pub(super) digest: String,
    /// That of the last of them.
    pub(super) last: String,
    /// The checksum after them.
    checksum: u64,
    /// Whether they end inside a transaction, of which all of them are then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_open: bool,
}

impl Sending {
    /// Of these frames, which end before `end`: whole transactions, or a part of one.
    fn of(end: u32, frames: &[u8]) -> Sending {
        let last = frames.len().checked_sub(FRAME_LEN).and_then(|at| frames.get(at..)).unwrap_or_default();
        let is_open = last.get(4..8).is_none_or(|size| size == [0; 4]);
        Sending { end, digest: digest_of(frames), last: digest_of(last), checksum: checksum_of(last), is_open }
    }

    /// Of frames that are sent from number `start` on, so many at once. Each run ends where a server may end that was cut off: with
    /// a request, or with the last transaction that is whole in one.
    pub(super) fn runs_of(start: u32, frames: &[u8], batch: u32) -> Vec<Sending> {
        let (mut runs, mut end) = (Vec::new(), start);
        for request in frames.chunks((batch.max(1) as usize).saturating_mul(FRAME_LEN)) {
            let (whole, rest) = request.split_at(committed_frames(request, PAGE_LEN as u32) * FRAME_LEN);
            for run in [whole, rest].into_iter().filter(|run| !run.is_empty()) {
                end = end.saturating_add((run.len() / FRAME_LEN) as u32);
                runs.push(Sending::of(end, run));
            }
        }
        runs
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
            ahead: Vec::new(),
            whole: None,
            ends: Vec::new(),
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
        Some((frame, PushMark { last, checksum, wal, ahead: Vec::new(), whole: None, ..self.clone() }))
    }

    /// The same mark, inside a transaction that follows frame `frame` with the mark `before`.
    pub(super) fn within(self, (frame, before): (u32, &PushMark)) -> PushMark {
        let PushMark { last, checksum, wal, .. } = before.clone();
        PushMark { whole: Some(WholeEnd { frame, last, checksum, wal }), ..self }
    }

    /// The same mark after the last frame `frame`, and what was noted before it: at the last frame `before`, with that mark.
    pub(super) fn after_noted(self, frame: u32, (before, noted): (u32, PushMark)) -> PushMark {
        // A server that is put back ends with a whole transaction.
        let before = noted.whole.map_or((before, noted.last), |whole| (whole.frame, whole.last));
        let now = (frame, self.last.clone());
        let mut ends = noted.ends;
        ends.retain(|end| *end != before && *end != now);
        ends.extend(Some(before).filter(|before| before.0 > 0 && *before != now));
        ends.drain(..ends.len().saturating_sub(ENDS_NOTED_MAX));
        PushMark { ends, ..self }
    }

    /// Whether the push that this is after frame `frame` of, or an earlier one that is noted, ended with this frame.
    pub(super) fn has_ended_at(&self, frame: u32, found: (u32, &str)) -> bool {
        let mut ends = self.ends.iter().map(|(end, last)| (*end, last.as_str()));
        (frame, self.last.as_str()) == found || ends.any(|end| end == found)
    }

    /// The position in the WAL after the last frame that was confirmed.
    pub(super) fn wal(&self) -> Option<WalPosition> {
        let WalMark { salts, frames, checksum } = self.wal?;
        Some(WalPosition { salts, frames, chain: Chain::from_number(checksum) })
    }

    pub(super) fn set_wal(&mut self, wal: Option<WalPosition>) {
        self.wal = wal.map(|at| WalMark { salts: at.salts, frames: at.frames, checksum: at.chain.number() });
    }

    /// Frames up to `frame` were confirmed, and before those up to `before`: the runs that are not after it are.
    pub(super) fn confirm(&mut self, mut before: u32, frame: u32) {
        let count = self.ahead.iter().take_while(|run| run.end <= frame.saturating_add(1)).count();
        for run in self.ahead.drain(..count).collect::<Vec<_>>() {
            let last = std::mem::replace(&mut self.last, run.last);
            let ended = WholeEnd { frame: before, last, checksum: self.checksum, wal: self.wal };
            let known = self.whole.take();
            self.whole = run.is_open.then(|| known.unwrap_or(ended));
            let end = run.end.saturating_sub(1);
            self.wal = self.wal_after(end.saturating_sub(before), run.checksum);
            (self.checksum, before) = (run.checksum, end);
        }
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

/// The digest of what is the same of frames on every replica. It recognises frames of ours, and is no proof against anybody.
pub(super) fn digest_of(frames: &[u8]) -> String {
    let mut digest = XxHash3_128::new();
    for frame in frames.chunks(FRAME_LEN) {
        digest.write(frame.get(..8).unwrap_or_default());
        digest.write(frame.get(FRAME_HEADER_LEN..).unwrap_or_default());
    }
    format!("{:032x}", digest.finish_128())
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

/// Whether the content of a metadata file has a mark, which may be damaged.
pub(super) fn is_in(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Named {
        pushed: IgnoredAny,
    }
    serde_json::from_slice::<Named>(content).is_ok_and(|Named { pushed: IgnoredAny }| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{METADATA_BYTES_MAX, RUNS_NOTED_MAX};

    #[test]
    fn a_mark_is_read_as_it_was_written_and_libsql_reads_the_rest() {
        let header = WalHeader { big_endian: false, page_size: 4096, sequence: 3, salts: [u32::MAX, 0] };
        let wal = WalPosition { salts: [7, 8], frames: 900, chain: Chain::from_number(u64::MAX) };
        let position = Position { generation: 2, frame: 77 };
        for wal in [None, Some(wal)] {
            for runs in [0, 1, RUNS_NOTED_MAX] {
                let start = WalStart { header, chain: Chain::from_number(5) };
                let run = Sending {
                    end: u32::MAX,
                    digest: "a".repeat(32),
                    last: "c".repeat(32),
                    checksum: u64::MAX,
                    is_open: true,
                };
                let mark = PushMark { ahead: vec![run; runs], ..PushMark::new("ef".into(), start, wal) };
                let mut mark = mark.within((u32::MAX, &PushMark::new("d".repeat(32), start, wal)));
                mark.ends = vec![(u32::MAX, "b".repeat(32)); runs.min(1) * ENDS_NOTED_MAX];
                let content = encode(position, &mark);
                assert!(content.len() as u64 <= METADATA_BYTES_MAX);
                assert_eq!(metadata::decode(&content).ok(), Some(position));
                assert_eq!(decode(position, &content), Some(mark.clone()));
                assert_eq!((mark.ours(), mark.wal()), (start, wal));
                assert_eq!(decode(Position { frame: 78, ..position }, &content), None, "it is of that frame");
                let changed = String::from_utf8(content).unwrap_or_default().replace("\"ef\"", "\"ee\"");
                assert_eq!(decode(position, changed.as_bytes()), None);
                assert!(is_in(changed.as_bytes()));
            }
        }
        assert_eq!(decode(position, &metadata::encode(position)), None);
        assert!(!is_in(&metadata::encode(position)));
    }

    /// Frames with these commit sizes.
    fn frames(header: WalHeader, sizes: &[u32]) -> (Vec<u8>, Chain) {
        let (mut bytes, mut chain) = (Vec::new(), header.seed());
        for (nth, size) in sizes.iter().enumerate() {
            let page = [nth as u8; PAGE_LEN];
            let (head, after) = header.frame(chain, nth as u32 + 1, *size, &page);
            chain = after;
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(&page);
        }
        (bytes, chain)
    }

    #[test]
    fn runs_end_with_each_request_and_with_the_last_commit_in_it() {
        let header = WalHeader { big_endian: false, page_size: 4096, sequence: 3, salts: [1, 2] };
        let (bytes, _) = frames(header, &[0, 2, 3, 0, 0, 0, 0, 4, 5, 6]);
        let ends = |batch| Sending::runs_of(11, &bytes, batch).iter().map(|run| run.end).collect::<Vec<_>>();
        assert_eq!(ends(4), [14, 15, 19, 21]);
        assert_eq!(ends(3), [14, 17, 20, 21]);
        assert_eq!(ends(100), [21]);
        assert_eq!(Sending::runs_of(11, &[], 4), []);
    }

    #[test]
    fn runs_that_are_confirmed_one_by_one_or_at_once_leave_the_same_mark() {
        let header = WalHeader { big_endian: false, page_size: 4096, sequence: 3, salts: [1, 2] };
        let theirs = WalHeader { salts: [7, 8], ..header };
        let sizes = [1, 0, 2, 3, 0, 0, 4];
        let (bytes, chain) = frames(header, &sizes);
        let (_, in_wal) = frames(theirs, &sizes);
        let wal = WalPosition { salts: theirs.salts, frames: 0, chain: theirs.seed() };
        let ahead = Sending::runs_of(1, &bytes, 2);
        let start = PushMark { ahead, ..PushMark::new(String::new(), WalStart::first(header), Some(wal)) };
        let (mut one, mut other, mut at) = (start.clone(), start, 0);
        one.confirm(0, 7);
        for run in other.ahead.clone() {
            other.confirm(at, run.end - 1);
            at = run.end - 1;
        }
        assert_eq!(one, other);
        assert_eq!((one.ahead.len(), one.ours().chain), (0, chain));
        assert_eq!(one.wal(), Some(WalPosition { frames: 7, chain: in_wal, ..wal }));
        assert_eq!(one.last, digest_of(&bytes[6 * FRAME_LEN..]));
    }
}
