//! Whether the frames of a server that says nothing of its log follow each other, as far as they say so themselves: two frames
//! with the same salts are of one WAL, and the checksum in the second goes on from that in the first. Where salts differ, or are
//! zero, nothing is known. What this cannot know is where a WAL starts: a few headers are tried.

use super::FRAME_LEN;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, WalHeader};
use crate::limits::LIBSQL_PAGE_SIZE;

/// How many checkpoints a WAL may have seen whose header is tried: clients of this protocol make none.
const SEQUENCES: u32 = 16;

/// The last frame of a server that was received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Links {
    last: Option<(u32, u32, FrameHeader)>,
}

impl Links {
    /// Takes frames of a generation that are numbered from `start`. The first one that does not follow the one before it, if any:
    /// nothing was taken then.
    pub(super) fn take(&mut self, generation: u32, start: u32, frames: &[u8]) -> Option<u32> {
        let mut before = self.last.filter(|(of, frame, _)| (*of, frame.saturating_add(1)) == (generation, start));
        for (number, frame) in (start..).zip(frames.chunks_exact(FRAME_LEN)) {
            let (head, page) = frame.split_first_chunk::<FRAME_HEADER_LEN>()?;
            let claim = FrameHeader::decode(head);
            let of_one_wal = before.filter(|(_, _, last)| last.salts == claim.salts);
            let is_known = claim.salts != [0, 0];
            let follows = |from: Chain, big_endian| from.over_frame(head, page, big_endian) == claim.chain;
            let is_right = match of_one_wal {
                _ if !is_known => true,
                Some((_, _, last)) => [false, true].into_iter().any(|order| follows(last.chain, order)),
                None if number == 1 => seeds(claim.salts).any(|(seed, order)| follows(seed, order)),
                None => true,
            };
            if !is_right {
                return Some(number);
            }
            before = Some((generation, number, claim));
        }
        self.last = before;
        None
    }

    /// Takes frames although they do not follow each other.
    pub(super) fn take_anyway(&mut self, generation: u32, start: u32, frames: &[u8]) {
        let count = (frames.len() / FRAME_LEN) as u32;
        let last = frames.len().checked_sub(FRAME_LEN).and_then(|at| frames.get(at..)?.first_chunk());
        self.last =
            last.map(|head| (generation, start.saturating_add(count).saturating_sub(1), FrameHeader::decode(head)));
    }
}

/// The checksums that a WAL with these salts may start from, with its order of bytes.
fn seeds(salts: [u32; 2]) -> impl Iterator<Item = (Chain, bool)> {
    let headers = (0..SEQUENCES).flat_map(|sequence| [(sequence, false), (sequence, true)]);
    headers.map(move |(sequence, big_endian)| {
        (WalHeader { big_endian, page_size: LIBSQL_PAGE_SIZE, sequence, salts }.seed(), big_endian)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::wal_append::new_header;

    /// Frames of one WAL.
    fn frames(sequence: u32, count: u32) -> Vec<u8> {
        let header = new_header(LIBSQL_PAGE_SIZE, sequence);
        let (mut chain, mut frames) = (header.seed(), Vec::new());
        for page in 1..=count {
            let content = vec![page as u8; LIBSQL_PAGE_SIZE as usize];
            let (head, after) = header.frame(chain, page, page, &content);
            chain = after;
            frames.extend_from_slice(&[&head[..], &content].concat());
        }
        frames
    }

    #[test]
    fn every_flipped_bit_that_matters_breaks_a_link() {
        let frames = frames(1, 3);
        assert_eq!(Links::default().take(1, 1, &frames), None);
        for bit in (0..frames.len() * 8).step_by(7) {
            let mut flipped = frames.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Salts that differ are those of another sender.
            if !(8..16).contains(&(bit / 8 % FRAME_LEN)) {
                assert!(Links::default().take(1, 1, &flipped).is_some(), "bit {bit}");
            }
        }
    }

    #[test]
    fn frames_of_other_senders_and_without_checksums_are_taken() {
        let (one, other) = (frames(0, 2), frames(0, 4));
        let mut links = Links::default();
        assert_eq!(links.take(1, 1, &one), None);
        assert_eq!(links.take(1, 3, &other[2 * FRAME_LEN..3 * FRAME_LEN]), None, "of another WAL");
        assert_eq!(links.take(1, 4, &other[3 * FRAME_LEN..]), None, "across two answers");
        let mut broken = links;
        assert_eq!(broken.take(1, 5, &other[3 * FRAME_LEN..]), Some(5));
        broken.take_anyway(1, 5, &other[3 * FRAME_LEN..]);
        let mut zeros = one.clone();
        zeros.chunks_mut(FRAME_LEN).for_each(|frame| frame[8..24].fill(0));
        assert_eq!(links.take(2, 1, &zeros), None);
    }
}
