//! [`WalScan`]: how far a `-wal` file that may be growing is sound, kept from one look to the next; and what is after that.
//!
//! Frames up to the last commit frame never change while SQLite does not restart the log. Frames after it may be overwritten
//! in place by the transaction that they belong to. So a scan goes on from the last commit, and what it found there holds as
//! long as the header of the file is the same: whether it still is must be checked after the frames were read.

use std::fs::File;
use std::io;

use crate::format::FormatError;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader, WalStart};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Offset};
use crate::repo::read_at;

/// A frame and where it starts in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number; the first is 1.
    pub frame: Offset,
    /// The byte it starts at.
    pub at: BytePos,
}

/// What is after the last commit frame of a WAL. SQLite ignores it in every case.
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
    /// A sound commit frame comes after one that is not sound, so transactions are lost: through damage to the file, or
    /// because a power failure came before they were synced.
    Damaged {
        /// The first frame that is not sound.
        invalid: Place,
        /// The first sound commit frame after it.
        sound: Place,
    },
    /// The header is damaged, and so nothing of the WAL counts.
    Header(FormatError),
}

impl Verdict {
    pub(super) fn of_rest(bytes: u64) -> Verdict {
        if bytes == 0 { Verdict::Whole } else { Verdict::Leftover { bytes } }
    }
}

/// The header of a WAL; none where the file is too short for one, or has zeros there.
///
/// # Errors
/// When the file cannot be read. A damaged header is part of the answer.
pub(crate) fn read_header(file: &File) -> io::Result<Option<Result<WalHeader, FormatError>>> {
    let mut head = [0; HEADER_LEN];
    let absent = read_at(file, &mut head, 0)? < HEADER_LEN || head == [0; HEADER_LEN];
    Ok((!absent).then(|| WalHeader::decode(&head)))
}

/// Scans the first `bytes` bytes of a WAL, and calls `visit` with what each sound frame says: from the start, or from where
/// `known` ends if the file still holds all of that. There is no scan where there is no sound header.
///
/// Frames after the last commit may be visited more than once: [`Visit::GoOn`] is given before each of these times.
pub(super) fn scan(
    file: &File,
    bytes: u64,
    known: Option<WalScan>,
    mut visit: impl FnMut(Visit<'_>),
) -> io::Result<(Option<WalScan>, Verdict)> {
    match read_header(file)? {
        None => Ok((None, Verdict::of_rest(bytes))),
        Some(Err(error)) => Ok((None, Verdict::Header(error))),
        Some(Ok(header)) => {
            let known = known.filter(|known| known.end.header == header && known.bytes() <= bytes);
            let held = match known {
                Some(known) if known.is_in(file)? => Some(known),
                _ => None,
            };
            let mut scan = held.unwrap_or_else(|| {
                visit(Visit::Start(header));
                WalScan::new(header)
            });
            let verdict = scan.advance_and_judge(file, bytes, visit)?;
            Ok((Some(scan), verdict))
        }
    }
}

/// What a scan reports on its way.
pub(super) enum Visit<'a> {
    /// It starts with the first frame of a log with this header: what was known counts no more.
    Start(WalHeader),
    /// It goes on from the last commit.
    GoOn,
    /// A sound frame.
    Frame(&'a FrameHeader),
}

/// The committed part of a WAL, as far as it was scanned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalScan {
    /// The header, and the checksum after the last commit frame.
    end: WalStart,
    frames: u64,
    /// Sound frames after the last commit, when last scanned.
    uncommitted: u64,
    transactions: u64,
    db_pages: u32,
}

impl WalScan {
    /// Of a log with this header, before its first frame.
    pub(crate) fn new(header: WalHeader) -> WalScan {
        WalScan::after(WalStart::first(header), 0)
    }

    /// Goes on after a commit frame that was verified before: so many frames up to it, with that header and checksum.
    /// Transactions are counted from there, and the database's size is known from the next commit on.
    pub(crate) fn after(end: WalStart, frames: u64) -> WalScan {
        WalScan { end, frames, uncommitted: 0, transactions: 0, db_pages: 0 }
    }

    /// The header, and the checksum that the frame after the committed part continues.
    pub(crate) fn end(&self) -> WalStart {
        self.end
    }

    /// Frames of the committed part.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Sound frames, those after the last commit included.
    pub(crate) fn valid_frames(&self) -> u64 {
        self.frames + self.uncommitted
    }

    /// Transactions of the committed part.
    pub(crate) fn transactions(&self) -> u64 {
        self.transactions
    }

    /// Pages of the database after the last commit.
    pub(crate) fn db_pages(&self) -> u32 {
        self.db_pages
    }

    /// Bytes of the committed part, its header included.
    pub(crate) fn bytes(&self) -> u64 {
        self.end.header.byte_after(self.frames)
    }

    /// Whole frames that a file of so many bytes has room for.
    pub(crate) fn room(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(HEADER_LEN as u64) / self.end.header.frame_len()
    }

    /// Takes in the frames after the committed part, up to frame `last` of the file or the first that is not sound, and calls
    /// `visit` with what each says and all its bytes. Costs a read of these frames and of no other.
    ///
    /// After Ok the committed part ends with the last commit frame among them; frames after it were visited and will be
    /// again, perhaps with other content. After Err it ends with the last commit frame that was visited.
    ///
    /// # Errors
    /// When the file cannot be read, and those of `visit`.
    pub(crate) fn advance(
        &mut self,
        file: &File,
        last: u64,
        mut visit: impl FnMut(&FrameHeader, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let WalStart { header, mut chain } = self.end;
        let frame_len = header.frame_len() as usize;
        let mut scanned = self.frames;
        let mut block = Vec::new();
        self.uncommitted = 0;
        while scanned < last {
            let wanted = (last - scanned).min((READ_BLOCK / frame_len).max(1) as u64) as usize;
            block.resize(wanted * frame_len, 0);
            let count = read_at(file, &mut block, header.byte_after(scanned))?;
            let before = scanned;
            for frame in block[..count].chunks_exact(frame_len) {
                let Some((head, page)) = frame.split_first_chunk::<FRAME_HEADER_LEN>() else { break };
                let Ok(claim) = header.check(chain, head, page) else { break };
                visit(&claim, frame)?;
                (chain, scanned) = (claim.chain, scanned + 1);
                self.uncommitted += 1;
                if claim.size != 0 {
                    self.commit(scanned, chain, claim.size);
                }
            }
            if scanned - before < wanted as u64 {
                break;
            }
        }
        Ok(())
    }

    /// Whether a file with the same header still has the last commit frame, with the checksum that runs on from all before it.
    fn is_in(&self, file: &File) -> io::Result<bool> {
        let Some(before) = self.frames.checked_sub(1) else {
            return Ok(true);
        };
        let mut head = [0; FRAME_HEADER_LEN];
        let read = read_at(file, &mut head, self.end.header.byte_after(before))?;
        let last = FrameHeader::decode(&head);
        Ok(read == head.len() && last.salts == self.end.header.salts && last.chain == self.end.chain)
    }

    fn commit(&mut self, frames: u64, chain: Chain, db_pages: u32) {
        (self.frames, self.end.chain, self.db_pages) = (frames, chain, db_pages);
        (self.uncommitted, self.transactions) = (0, self.transactions + 1);
    }

    /// Takes in the frames among the first `bytes` bytes, and decides what is after them. A frame that is not sound is believed
    /// to be so only when it still is not after a second read: another process may have been writing it.
    fn advance_and_judge(&mut self, file: &File, bytes: u64, mut visit: impl FnMut(Visit<'_>)) -> io::Result<Verdict> {
        let (header, room) = (self.end.header, self.room(bytes));
        let mut doubted: Option<u64> = None;
        loop {
            visit(Visit::GoOn);
            self.advance(file, room, |claim, _| {
                visit(Visit::Frame(claim));
                Ok(())
            })?;
            let invalid = self.valid_frames();
            match header.sound_run(invalid..room, |buf, at| read_at(file, buf, at))? {
                None => return Ok(Verdict::of_rest(bytes.saturating_sub(self.bytes()))),
                Some(run) if doubted.replace(invalid).is_some_and(|before| invalid <= before) => {
                    let place = |before| Place { frame: Offset(before + 1), at: BytePos(header.byte_after(before)) };
                    let sound = place(run.before + run.frames - 1);
                    return Ok(Verdict::Damaged { invalid: place(invalid), sound });
                }
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const HEADER: WalHeader = WalHeader { big_endian: false, page_size: 512, sequence: 0, salts: [1, 2] };

    /// Frames with these commit sizes, from the start of the log.
    fn frames(sizes: &[u32]) -> (Vec<u8>, Chain) {
        let (mut bytes, mut chain) = (HEADER.encode().to_vec(), HEADER.seed());
        for (nth, size) in sizes.iter().enumerate() {
            let page = [nth as u8; 512];
            let (head, after) = HEADER.frame(chain, nth as u32 + 1, *size, &page);
            chain = after;
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(&page);
        }
        (bytes, chain)
    }

    #[test]
    fn a_later_scan_visits_only_what_is_after_the_last_commit() {
        let file = tempfile::tempfile().expect("a file");
        let (bytes, _) = frames(&[0, 2, 0]);
        file.write_all_at(&bytes, 0).expect("written");
        let mut scan = WalScan::new(HEADER);
        let visit = |scan: &mut WalScan, last| {
            let mut pages = Vec::new();
            let advanced = scan.advance(&file, last, |claim, frame| {
                assert_eq!(frame.len(), 536);
                pages.push(claim.page);
                Ok(())
            });
            advanced.expect("read");
            (pages, scan.frames(), scan.valid_frames(), scan.transactions(), scan.db_pages())
        };
        assert_eq!(visit(&mut scan, 1), (vec![1], 0, 1, 0, 0));
        assert_eq!(visit(&mut scan, 9), (vec![1, 2, 3], 2, 3, 1, 2));
        let (bytes, chain) = frames(&[0, 2, 0, 4, 5]);
        file.write_all_at(&bytes, 0).expect("written");
        assert_eq!(visit(&mut scan, 5), (vec![3, 4, 5], 5, 5, 3, 5));
        assert_eq!((scan.end(), scan.bytes()), (WalStart { header: HEADER, chain }, bytes.len() as u64));
        // What was scanned is not read again, so its damage does not show.
        file.write_all_at(&[9], 100).expect("written");
        assert_eq!(visit(&mut scan, 5), (vec![], 5, 5, 3, 5));
    }

    #[test]
    fn a_visitor_that_fails_ends_the_scan_at_the_last_commit_it_took() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&frames(&[1, 0, 3, 0, 5]).0, 0).expect("written");
        let mut scan = WalScan::new(HEADER);
        let full =
            |claim: &FrameHeader, _: &[u8]| if claim.page < 5 { Ok(()) } else { Err(io::ErrorKind::Other.into()) };
        scan.advance(&file, 5, full).expect_err("it fails");
        assert_eq!((scan.frames(), scan.transactions()), (3, 2));
        let mut rest = WalScan::after(scan.end(), scan.frames());
        rest.advance(&file, 5, |_, _| Ok(())).expect("read");
        assert_eq!((rest.frames(), rest.transactions(), rest.db_pages()), (5, 1, 5));
    }
}
