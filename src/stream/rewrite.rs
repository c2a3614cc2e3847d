//! Makes durable what a log holds when it is opened, also what an earlier sync failed to write.
//!
//! Linux marks pages clean when their write-back fails. From then on the page cache shows bytes that the disk may not have,
//! and every further sync succeeds without writing them; the process that received the error may have ended meanwhile. So at
//! each opening the bytes that are not known to be durable are read back and written again in place, which makes their
//! pages dirty, and only then synced. They were verified just before, on the way to the end of the log.
//!
//! Known to be durable is what lies before the durable mark (`floor`). Without a mark it is what lies before the last entry
//! of the open segment's offset index, since our writer adds entries only for durable commits, and all segments before
//! the open one, since a segment is synced before the next one is created. That is as good as the word of the one who wrote
//! them: where it was another program, a mark or a record gives the guarantee, from its first opening on.

use std::io::{self, IoSlice};

use super::recover::{SegmentInfo, Survey};
use crate::format::{LogFormat, name};
use crate::limits::READ_BLOCK;
use crate::offset::Offset;
use crate::repo::{Repo, RepoFile};
use crate::segment::{SegmentReader, SegmentWriter};

/// After Ok all that `found` describes, with `head` for its open segment, survives power loss if the names of its files
/// do. Writes again at most what lies after the last index entry before `floor`.
///
/// # Errors
/// As the repo says. What could not be synced is written again by the next opening.
pub(super) fn make_durable(
    repo: &dyn Repo,
    format: LogFormat,
    (found, head): (&Survey, Option<&SegmentWriter>),
    floor: Option<Offset>,
    commit_bytes_max: u64,
) -> io::Result<()> {
    for segment in found.segments.iter().filter(|segment| floor.is_none_or(|floor| floor < segment.end)) {
        let file_name = name::segment(format, segment.start);
        match floor {
            Some(floor) => {
                let from = durable_start(repo, segment, floor, commit_bytes_max)?;
                let file = repo.open_write(&file_name)?;
                write_again(&*file, from, file.bytes()?)?;
                file.sync()?;
            }
            // It was synced as it was rotated out, unless it was copied here.
            None => {
                if let Err(error) = repo.open(&file_name)?.sync() {
                    let file = repo.open_write(&file_name)?;
                    write_again(&*file, 0, file.bytes()?)?;
                    return Err(error);
                }
            }
        }
    }
    let Some(head) = head else {
        return Ok(());
    };
    if floor.is_none_or(|floor| floor < found.next) {
        let from = found.indexed.0.filter(|_| head.start() < found.next).map_or(0, |entry| entry.value.0);
        write_again(&**head.file(), from, head.end().0)?;
    }
    head.file().sync()
}

/// A byte of a sealed segment before which all is durable.
fn durable_start(repo: &dyn Repo, segment: &SegmentInfo, floor: Offset, commit_bytes_max: u64) -> io::Result<u64> {
    let Some(last) = floor.0.checked_sub(1).map(Offset).filter(|last| segment.start <= *last && !segment.compressed)
    else {
        return Ok(0);
    };
    let mut reader = SegmentReader::open(repo, segment.start)?;
    let end = crate::offset::BytePos(segment.bytes);
    let entry = reader.indexed(last, end, segment.framing, commit_bytes_max)?;
    Ok(entry.map_or(0, |entry| entry.value.0))
}

/// Reads the bytes from `from` up to `end` and writes them where they are.
fn write_again(file: &dyn RepoFile, from: u64, end: u64) -> io::Result<()> {
    let mut block = vec![0; (end.saturating_sub(from) as usize).min(READ_BLOCK)];
    let mut at = from;
    while at < end {
        let want = block.len().min((end - at) as usize);
        let count = file.read_at(&mut block[..want], at)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment was cut while it was being opened"));
        }
        file.write_at(&mut [IoSlice::new(&block[..count])], at)?;
        at += count as u64;
    }
    Ok(())
}
