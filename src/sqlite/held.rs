//! [`HeldDatabase`]: a database file and the frames of its WAL that count, held still enough to be read.

use std::collections::HashMap;
use std::path::Path;

use super::error::DatabaseError;
use super::follow::WalPosition;
use super::page_sums::PageSums;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, PAGE_MAX, WalHeader};
use crate::limits::READ_BLOCK;

/// What both a [`Snapshot`](super::Snapshot) and a [`Follower`](super::Follower) can read.
pub trait HeldDatabase {
    /// The database.
    fn path(&self) -> &Path;

    /// The header of the WAL; none when there is no frame in it.
    ///
    /// # Errors
    /// When it cannot be read, or is not the one that is held.
    fn wal_header(&self) -> Result<Option<WalHeader>, DatabaseError>;

    /// Frames of the WAL up to its last commit.
    fn wal_frames(&self) -> u64;

    /// The last commit as the connections that have the database open count it, with the checksum that the next frame
    /// continues: also where the checksums of frames before do not fit. None where no connection says so.
    fn counted(&self) -> Option<WalPosition>;

    /// The page that these connections find in a frame; 0 where they find none.
    ///
    /// # Errors
    /// When they cannot be asked.
    fn counted_page(&self, frame: u64) -> Result<u32, DatabaseError>;

    /// Bytes of a page; none for a database without any.
    fn bytes_of_page(&self) -> Option<u32>;

    /// Asked again and again while much is read: an error when it is time to let go, because a writer has waited for long.
    ///
    /// # Errors
    /// [`DatabaseError::Writing`].
    fn give_way(&self) -> Result<(), DatabaseError> {
        Ok(())
    }

    /// Pages of the database after the last commit.
    ///
    /// # Errors
    /// When the file cannot be asked.
    fn page_count(&self) -> Result<u32, DatabaseError>;

    /// Reads the WAL from a byte on; fewer bytes than asked for only at its end.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read_frames(&self, at: u64, buf: &mut [u8]) -> Result<usize, DatabaseError>;

    /// Reads the database file from a byte on; fewer bytes than asked for only at its end.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read_database(&self, at: u64, buf: &mut [u8]) -> Result<usize, DatabaseError>;
}

/// Why what is held cannot be read on.
pub(super) fn broken(path: &Path, what: &'static str) -> DatabaseError {
    DatabaseError::Changed { path: path.to_owned(), what }
}

/// Reads the frames of a WAL after `at` up to frame `to`, and gives each to `take`, verified: the header of the WAL, what the
/// frame says, its bytes, and the checksum before it. The position moves past each; `take` answers false to stop.
///
/// # Errors
/// [`DatabaseError::Changed`] when a frame is not what it should be.
pub fn each_frame(
    held: &(impl HeldDatabase + ?Sized),
    at: &mut WalPosition,
    to: u64,
    mut take: impl FnMut(&WalHeader, &FrameHeader, &[u8], Chain) -> bool,
) -> Result<(), DatabaseError> {
    if at.frames >= to {
        return Ok(());
    }
    let header = held.wal_header()?.filter(|header| header.salts == at.salts);
    let header = header.ok_or_else(|| broken(held.path(), "the header of the WAL is not the one that was held"))?;
    let frame_len = header.frame_len() as usize;
    let mut block = vec![0; (READ_BLOCK / frame_len).max(1) * frame_len];
    while at.frames < to {
        let wanted = usize::try_from(to - at.frames).unwrap_or(usize::MAX).min(block.len() / frame_len) * frame_len;
        let from = header.byte_after(at.frames);
        if held.read_frames(from, &mut block[..wanted])? < wanted {
            return Err(broken(held.path(), "the WAL was cut"));
        }
        for frame in block[..wanted].chunks_exact(frame_len) {
            let (head, page) = frame.split_first_chunk().ok_or_else(|| broken(held.path(), "the WAL was cut"))?;
            let before = if at.frames == 0 { header.seed() } else { at.chain };
            let claim = header
                .check(before, head, page)
                .map_err(|_| broken(held.path(), "a frame of the WAL is damaged or was written over"))?;
            let more = take(&header, &claim, frame, before);
            (at.frames, at.chain) = (at.frames + 1, claim.chain);
            if !more {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Gives `take` each frame of a WAL up to its last commit that is not verified, from the one after `before` on: its number and
/// what it says. Such frames count because the connections that have the database open say so. Returns that commit; none where
/// nobody says so.
///
/// # Errors
/// [`DatabaseError::Changed`] when a frame is of another WAL, or of another page than they say.
pub(crate) fn each_counted_frame(
    held: &(impl HeldDatabase + ?Sized),
    before: u64,
    mut take: impl FnMut(u64, &FrameHeader),
) -> Result<Option<WalPosition>, DatabaseError> {
    let header = held.wal_header()?;
    let Some((end, header)) = held.counted().zip(header).filter(|(end, header)| end.salts == header.salts) else {
        return Ok(None);
    };
    for number in before + 1..=end.frames {
        let mut head = [0; FRAME_HEADER_LEN];
        if held.read_frames(header.byte_after(number - 1), &mut head)? < head.len() {
            return Err(broken(held.path(), "the WAL was cut"));
        }
        let claim = FrameHeader::decode(&head);
        // Where it has no checksum yet, SQLite leaves out the salts too.
        let is_of_this_wal = claim.salts == end.salts || claim.salts == [0, 0];
        if !is_of_this_wal || claim.page == 0 || claim.page != held.counted_page(number)? {
            return Err(broken(held.path(), "a frame of the WAL that counts is damaged or was written over"));
        }
        take(number, &claim);
    }
    Ok(Some(end))
}

/// Whether the WAL holds this position: the same salts, and after that frame that checksum, or one that the next frame continues.
///
/// # Errors
/// When it cannot be read.
pub fn holds(held: &(impl HeldDatabase + ?Sized), position: &WalPosition) -> Result<bool, DatabaseError> {
    if position.frames > held.wal_frames() {
        return Ok(false);
    }
    let Some(header) = held.wal_header()?.filter(|header| header.salts == position.salts) else {
        return Ok(false);
    };
    let Some(before) = position.frames.checked_sub(1) else {
        return Ok(true);
    };
    let mut head = [0; FRAME_HEADER_LEN];
    let read = held.read_frames(header.byte_after(before), &mut head)?;
    let last = FrameHeader::decode(&head);
    let is_last = read == head.len() && last.salts == position.salts && last.chain == position.chain;
    if is_last || held.counted() == Some(*position) {
        return Ok(true);
    }
    // The checksum that was counted after it need not be the one in it.
    let mut frame = vec![0; header.frame_len() as usize];
    let read = held.read_frames(header.byte_after(position.frames), &mut frame)?;
    let next = frame[..read].split_first_chunk().filter(|_| read == frame.len());
    Ok(next.is_some_and(|(head, page)| header.check(position.chain, head, page).is_ok()))
}

/// Whether all frames after a position that the WAL holds are proven.
///
/// # Errors
/// When they cannot be read.
pub fn is_proven_after(held: &(impl HeldDatabase + ?Sized), position: &WalPosition) -> Result<bool, DatabaseError> {
    match each_frame(held, &mut position.clone(), held.wal_frames(), |_, _, _, _| true) {
        Ok(()) => Ok(true),
        Err(DatabaseError::Changed { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What [`each_difference`] found besides pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Differences {
    /// The position in the WAL up to which frames were counted; none when there are no frames.
    pub position: Option<WalPosition>,
    /// The number of pages.
    pub pages: u32,
    /// The first frame whose checksum does not fit, but which connections count.
    pub unproven: Option<u64>,
}

/// Gives `take` each page that differs from what `sums` say, with its content and its sum, ascending.
///
/// While frames are copied into the database file meanwhile, pages that are in frames after that position may be newer.
///
/// # Errors
/// When what is held cannot be read.
pub fn each_difference<E: From<DatabaseError>>(
    held: &(impl HeldDatabase + ?Sized),
    sums: &PageSums,
    mut take: impl FnMut(u32, &[u8], u64) -> Result<(), E>,
) -> Result<Differences, E> {
    let Some(page_size) = held.bytes_of_page() else {
        return Ok(Differences { position: None, pages: 0, unproven: None });
    };
    let (mut newest, mut position, mut unproven) = (HashMap::new(), None, None);
    if let Some(header) = held.wal_header()? {
        let mut at = WalPosition { salts: header.salts, frames: 0, chain: Chain::default() };
        let mut number = 0;
        let proven = each_frame(held, &mut at, held.wal_frames(), |_, claim, _, _| {
            newest.insert(claim.page, number);
            number += 1;
            true
        });
        if let Err(error) = proven {
            // From the one that does not fit on.
            unproven = Some(at.frames + 1);
            let counted = each_counted_frame(held, at.frames, |number, claim| {
                newest.insert(claim.page, number - 1);
            })?;
            at = counted.ok_or(error)?;
        }
        position = Some(at);
    }
    let (pages, page_bytes) = (held.page_count()?.min(PAGE_MAX), u64::from(page_size));
    let mut block = vec![0; (READ_BLOCK / page_size as usize).max(1) * page_size as usize];
    let mut first = 1;
    while first <= pages {
        let count = (block.len() / page_size as usize).min((pages - first) as usize + 1);
        let part = &mut block[..count * page_size as usize];
        held.give_way()?;
        let read = held.read_database(u64::from(first - 1) * page_bytes, part)?;
        part[read..].fill(0);
        for (content, page) in part.chunks_exact_mut(page_size as usize).zip(first..) {
            if let Some(frame) = newest.get(&page) {
                let at = HEADER_LEN as u64 + frame * (FRAME_HEADER_LEN as u64 + page_bytes) + FRAME_HEADER_LEN as u64;
                if held.read_frames(at, content)? < content.len() {
                    return Err(broken(held.path(), "the WAL was cut").into());
                }
            }
            let sum = sums.sum_of(content);
            if sums.get(page) != Some(sum) {
                take(page, content, sum)?;
            }
        }
        first += count as u32;
    }
    Ok(Differences { position, pages, unproven })
}
