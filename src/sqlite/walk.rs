//! The walk over a `-wal` file that may be growing: how far it is sound, and what stands behind that.

use std::fs::File;
use std::io;

use super::source::read_at;
use crate::format::FormatError;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader, WalStart};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Offset};

/// A frame and where it starts in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number; the first is 1.
    pub frame: Offset,
    /// The byte it starts at.
    pub at: BytePos,
}

/// What stands behind the last commit frame of a WAL. SQLite ignores it in every case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Whole,
    /// What is expected there: frames of a transaction that is under way or was given up, frames of an earlier log, a torn
    /// write, or zeros.
    Leftover {
        /// How much.
        bytes: u64,
    },
    /// A sound commit frame stands behind one that is not sound, so transactions are lost: through damage to the file, or
    /// because a power failure came before they were synced.
    Damaged {
        /// The first frame that is not sound.
        invalid: Place,
        /// The first sound commit frame behind it.
        sound: Place,
    },
    /// The header is damaged, and so nothing of the WAL counts.
    Header(FormatError),
}

/// What a walk found.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// Where the committed part ends: how a log would go on.
    pub(super) end: Option<WalStart>,
    /// Frames of the committed part.
    pub(super) frames: u64,
    /// Sound frames, those behind the last commit included.
    pub(super) valid_frames: u64,
    pub(super) transactions: u64,
    /// Pages of the database after the last commit.
    pub(super) db_pages: u32,
    pub(super) verdict: Verdict,
}

impl Walk {
    pub(super) fn none(verdict: Verdict) -> Walk {
        Walk { end: None, frames: 0, valid_frames: 0, transactions: 0, db_pages: 0, verdict }
    }

    /// Bytes of the committed part, its header included.
    pub(super) fn bytes(&self) -> u64 {
        self.end.map_or(0, |end| byte_of(&end.header, self.frames))
    }
}

/// Where the frame with this index (from 0) starts.
fn byte_of(header: &WalHeader, index: u64) -> u64 {
    HEADER_LEN as u64 + index * header.frame_len()
}

/// Walks over the first `bytes` bytes of a WAL.
///
/// Frames up to the last commit never change while the log is not started anew; those behind it may, while we look. So
/// a frame that does not fit is believed only when it still does not after another look.
pub(super) fn walk(file: &File, bytes: u64) -> io::Result<Walk> {
    let mut head = [0; HEADER_LEN];
    if read_at(file, &mut head, 0)? < HEADER_LEN || head == [0; HEADER_LEN] {
        return Ok(Walk::none(if bytes == 0 { Verdict::Whole } else { Verdict::Leftover { bytes } }));
    }
    let header = match WalHeader::decode(&head) {
        Ok(header) => header,
        Err(error) => return Ok(Walk::none(Verdict::Header(error))),
    };
    let mut walk = Walk { end: Some(WalStart::first(header)), ..Walk::none(Verdict::Whole) };
    let frames = bytes.saturating_sub(HEADER_LEN as u64) / header.frame_len();
    let mut walker = Walker { file, header, frames, chain: header.seed(), block: Vec::new() };
    let mut doubted = None;
    loop {
        while walker.step(&mut walk)? {}
        if let Some(sound) = walker.sound_commit_behind(walk.valid_frames)? {
            if doubted.replace(walk.valid_frames) != Some(walk.valid_frames) {
                // Somebody may have been writing here when it was first looked at.
                continue;
            }
            walk.verdict = Verdict::Damaged { invalid: walker.place(walk.valid_frames), sound };
            return Ok(walk);
        }
        let left = bytes.saturating_sub(walk.bytes());
        walk.verdict = if left == 0 { Verdict::Whole } else { Verdict::Leftover { bytes: left } };
        return Ok(walk);
    }
}

struct Walker<'a> {
    file: &'a File,
    header: WalHeader,
    /// How many there is room for.
    frames: u64,
    /// The checksum up to the last sound frame.
    chain: Chain,
    block: Vec<u8>,
}

impl Walker<'_> {
    /// Takes a block of frames in; whether all of them were sound and more may follow.
    fn step(&mut self, walk: &mut Walk) -> io::Result<bool> {
        let frame_len = self.header.frame_len() as usize;
        let left = self.frames - walk.valid_frames;
        let wanted = left.min((READ_BLOCK / frame_len).max(1) as u64) as usize;
        let mut block = std::mem::take(&mut self.block);
        block.resize(wanted * frame_len, 0);
        let read = read_at(self.file, &mut block, byte_of(&self.header, walk.valid_frames))?;
        let mut sound = 0;
        for frame in block[..read].chunks_exact(frame_len) {
            let Some((claim, chain)) = self.sound(frame, self.chain) else {
                break;
            };
            sound += 1;
            self.chain = chain;
            walk.valid_frames += 1;
            if claim.size != 0 {
                walk.frames = walk.valid_frames;
                walk.transactions += 1;
                walk.db_pages = claim.size;
                walk.end = Some(WalStart { header: self.header, chain });
            }
        }
        self.block = block;
        Ok(sound == wanted && wanted > 0)
    }

    /// What a frame says and the checksum up to it, if it continues `chain`.
    fn sound(&self, frame: &[u8], chain: Chain) -> Option<(FrameHeader, Chain)> {
        let (head, page) = frame.split_first_chunk::<FRAME_HEADER_LEN>()?;
        let claim = FrameHeader::decode(head);
        let (_, after) = self.header.frame(chain, claim.page, claim.size, page);
        let sound = claim.page > 0 && claim.salts == self.header.salts && claim.chain == after;
        sound.then_some((claim, after))
    }

    /// The first commit frame behind the frame `invalid` (an index) that continues what its predecessor says.
    ///
    /// Frames of a transaction that was given up look like that too, but for the commit.
    fn sound_commit_behind(&self, invalid: u64) -> io::Result<Option<Place>> {
        let mut frame = vec![0; self.header.frame_len() as usize];
        let mut previous = None;
        for index in invalid..self.frames {
            let mut head = [0; FRAME_HEADER_LEN];
            if read_at(self.file, &mut head, byte_of(&self.header, index))? < FRAME_HEADER_LEN {
                break;
            }
            let claim = FrameHeader::decode(&head);
            let commits = claim.size != 0 && claim.salts == self.header.salts;
            if let Some(chain) = previous.replace(claim.chain)
                && commits
                && read_at(self.file, &mut frame, byte_of(&self.header, index))? == frame.len()
                && self.sound(&frame, chain).is_some()
            {
                return Ok(Some(self.place(index)));
            }
        }
        Ok(None)
    }

    fn place(&self, index: u64) -> Place {
        Place { frame: Offset(index + 1), at: BytePos(byte_of(&self.header, index)) }
    }
}
