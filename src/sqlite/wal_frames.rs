//! Frames of a `-wal` file, in the file and in bytes: where they are and what their headers say. Nothing is verified here.

use std::io;

use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN};
use crate::repo::RepoFile;

/// Bytes of a frame.
#[must_use]
pub const fn frame_len(page_size: u32) -> usize {
    FRAME_HEADER_LEN + page_size as usize
}

/// Where frame `number`, from 1, starts in a WAL.
#[must_use]
pub fn frame_at(page_size: u32, number: u64) -> u64 {
    HEADER_LEN as u64 + number.saturating_sub(1) * frame_len(page_size) as u64
}

/// The whole frames in `bytes`, each as its header and its page.
pub fn frames_of(bytes: &[u8], page_size: u32) -> impl DoubleEndedIterator<Item = (FrameHeader, &[u8])> {
    bytes.chunks_exact(frame_len(page_size)).filter_map(|frame| {
        let (head, page) = frame.split_first_chunk::<FRAME_HEADER_LEN>()?;
        Some((FrameHeader::decode(head), page))
    })
}

/// How many of the frames in `bytes` belong to whole transactions: those up to the last commit frame.
#[must_use]
pub fn committed_frames(bytes: &[u8], page_size: u32) -> usize {
    let count = bytes.len() / frame_len(page_size);
    let open = frames_of(bytes, page_size).rev().take_while(|(head, _)| head.size == 0).count();
    count - open
}

/// The headers of the frames after `after` up to `last`, all of which must be there.
///
/// # Errors
/// `UnexpectedEof` when they are not; otherwise as the file system says.
pub fn heads(wal: &dyn RepoFile, page_size: u32, after: u64, last: u64) -> io::Result<Vec<FrameHeader>> {
    let there = wal.bytes()?.saturating_sub(HEADER_LEN as u64) / frame_len(page_size) as u64;
    let missing = |number: u64| {
        io::Error::new(io::ErrorKind::UnexpectedEof, format!("frame {number} is missing, the WAL has {there}"))
    };
    if last > after && there < last {
        return Err(missing(last));
    }
    let mut head = [0; FRAME_HEADER_LEN];
    let mut found = Vec::with_capacity(usize::try_from(last.saturating_sub(after)).unwrap_or(0));
    for number in after + 1..=last {
        if wal.read_at(&mut head, frame_at(page_size, number))? < head.len() {
            return Err(missing(number));
        }
        found.push(FrameHeader::decode(&head));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_up_to_the_last_commit_frame_are_committed() {
        let frame = |size: &u8| {
            let mut frame = vec![0; frame_len(512)];
            (frame[3], frame[7]) = (1, *size);
            frame
        };
        for (sizes, committed) in [(&[][..], 0), (&[0, 0], 0), (&[1], 1), (&[0, 2, 0], 2), (&[1, 0, 0, 3], 4)] {
            let mut bytes: Vec<u8> = sizes.iter().flat_map(frame).collect();
            assert_eq!(committed_frames(&bytes, 512), committed, "{sizes:?}");
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 1]);
            assert_eq!(committed_frames(&bytes, 512), committed, "{sizes:?} and the start of another");
        }
    }
}
