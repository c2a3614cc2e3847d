//! What is sound again after damage, which tells damage from the end of what was written.

use std::io;
use std::ops::Range;

use super::{Chain, FRAME_HEADER_LEN, FrameHeader, WalHeader};
use crate::limits::READ_BLOCK;

/// Frames after damage that are sound again, up to the first that ends a transaction: each continues the checksum stored in
/// the frame before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoundRun {
    /// Frames of the file before the first of them.
    pub before: u64,
    /// How many they are; at least 1.
    pub frames: u64,
    /// The checksum after the last.
    pub chain: Chain,
}

impl WalHeader {
    /// Finds the first sound run among the frames `range` of a file, counted from 0, the first of which is not sound. Frames
    /// that were written but not committed may be sound too, so a run without a commit frame is none.
    ///
    /// `read` fills a buffer from a byte of the file on; fewer bytes than asked for only at the end.
    ///
    /// # Errors
    /// That of `read`.
    pub fn sound_run(
        &self,
        range: Range<u64>,
        mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<Option<SoundRun>> {
        let frame_len = self.frame_len() as usize;
        let in_block = (READ_BLOCK / frame_len).max(1) as u64;
        let mut block = vec![0; in_block as usize * frame_len];
        let (mut next, mut run, mut stored) = (range.start, 0, None);
        while next < range.end {
            let wanted = (range.end - next).min(in_block) as usize * frame_len;
            let count = read(&mut block[..wanted], self.byte_after(next))?;
            for frame in block[..count].chunks_exact(frame_len) {
                let Some((head, page)) = frame.split_first_chunk::<FRAME_HEADER_LEN>() else { continue };
                let sound = stored.and_then(|before| self.check(before, head, page).ok());
                (next, run) = (next + 1, if sound.is_some() { run + 1 } else { 0 });
                if let Some(FrameHeader { chain, .. }) = sound.filter(|claim| claim.size != 0) {
                    return Ok(Some(SoundRun { before: next - run, frames: run, chain }));
                }
                stored = Some(FrameHeader::decode(head).chain);
            }
            if count < wanted {
                break;
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HEADER_LEN, WalStart};
    use super::*;

    const HEADER: WalHeader = WalHeader { big_endian: true, page_size: 512, sequence: 0, salts: [1, 2] };

    /// The first run after frame `damaged` of a file whose frames have these commit sizes and wrong bytes.
    fn run(sizes: &[u32], damaged: &[(u64, usize)], range: Range<u64>) -> Option<(u64, u64)> {
        let mut bytes = HEADER.encode().to_vec();
        let mut chains = vec![WalStart::first(HEADER).chain];
        for (nth, size) in sizes.iter().enumerate() {
            let page = [nth as u8; 512];
            let (head, chain) = HEADER.frame(chains[nth], 1, *size, &page);
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(&page);
            chains.push(chain);
        }
        for (frame, at) in damaged {
            bytes[HEADER.byte_after(*frame) as usize + at] ^= 1;
        }
        assert_eq!(bytes.len(), HEADER_LEN + sizes.len() * 536);
        let read = |buf: &mut [u8], at: u64| {
            let left = bytes.get(at as usize..).unwrap_or(&[]);
            let count = left.len().min(buf.len());
            buf[..count].copy_from_slice(&left[..count]);
            Ok(count)
        };
        let found = HEADER.sound_run(range, read).expect("read")?;
        assert_eq!(found.chain, chains[(found.before + found.frames) as usize]);
        Some((found.before, found.frames))
    }

    #[test]
    fn a_run_goes_from_the_first_frame_that_continues_its_predecessor_to_a_commit() {
        let sizes = [1, 0, 0, 0, 9, 0, 9];
        assert_eq!(run(&sizes, &[(1, 100)], 1..7), Some((2, 3)));
        // Without its stored checksum the frame after it continues nothing.
        assert_eq!(run(&sizes, &[(1, 20)], 1..7), Some((3, 2)));
        assert_eq!(run(&sizes, &[(1, 100), (3, 100)], 1..7), Some((4, 1)));
        assert_eq!(run(&sizes, &[(1, 100), (4, 0)], 1..u64::MAX), Some((5, 2)));
    }

    #[test]
    fn frames_that_no_commit_ends_are_no_run_nor_are_those_after_the_range() {
        assert_eq!(run(&[1, 0, 0, 0], &[(1, 100)], 1..u64::MAX), None);
        assert_eq!(run(&[1, 0, 0, 9], &[(1, 100)], 1..3), None);
        assert_eq!(run(&[1, 0, 0, 9], &[(1, 100), (3, 8)], 1..4), None);
        assert_eq!(run(&[1, 9], &[(1, 100)], 1..2), None);
        assert_eq!(run(&[1], &[], 1..1), None);
    }
}
