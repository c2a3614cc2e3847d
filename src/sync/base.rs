//! Whether a database is a base plus the frames of a log, and nothing else.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use super::PAGE_LEN;
use super::local::LocalLog;
use crate::format::database::{self, MAGIC, VERSIONS, WAL_VERSIONS};
use crate::repo::read_at;
use crate::sqlite::DatabaseError;

/// The first page of a database file that is neither what the base has there nor in any frame of the log. A page after the end of the
/// file counts as one of zeros, unless a frame ended the database before it. None: whoever has the base and all frames of the log,
/// which must be those that follow the base, has everything, whether or not they were checkpointed into the file.
///
/// A database in which nothing was ever stored is as good as an empty one, on either side. A base that is not in WAL mode is
/// the same in a replica, which is.
pub(super) fn stranger(
    path: &Path,
    database: &File,
    base: Option<&File>,
    log: &LocalLog,
) -> Result<Option<u32>, DatabaseError> {
    let io_of_base = |error| DatabaseError::io("reading the base of", path, error);
    let pages = pages_of(database).map_err(|error| DatabaseError::io("reading", path, error))?;
    let (mut frames, mut smallest) = (HashMap::<u32, Vec<u32>>::new(), u32::MAX);
    for (number, head) in (1..).zip(log.heads()) {
        let head = head?;
        frames.entry(head.page).or_default().push(number);
        if head.size > 0 {
            smallest = smallest.min(head.size);
        }
    }
    let pages_of_base = base.map_or(Ok(0), pages_of).map_err(io_of_base)?.min(smallest);
    let (mut ours, mut theirs) = ([0; PAGE_LEN], [0; PAGE_LEN]);
    for page in 1..=pages.max(pages_of_base) {
        read_page(database, page, &mut ours).map_err(|error| DatabaseError::io("reading", path, error))?;
        theirs.fill(0);
        if let Some(base) = base {
            read_page(base, page, &mut theirs).map_err(io_of_base)?;
        }
        let blank = page == 1 && pages == 1 && database::is_blank(&ours);
        if ours == theirs || (blank && (theirs == [0; PAGE_LEN] || database::is_blank(&theirs))) {
            continue;
        }
        let mut found = false;
        for frame in frames.get(&page).into_iter().flatten().rev() {
            log.page(*frame, &mut theirs)?;
            found = ours == theirs;
            if found {
                break;
            }
        }
        if !found {
            return Ok(Some(page));
        }
    }
    Ok(None)
}

/// Whether nothing was ever stored in a database file.
pub(super) fn is_blank(file: &File) -> io::Result<bool> {
    let mut page = [0; PAGE_LEN];
    read_page(file, 1, &mut page)?;
    Ok(pages_of(file)? <= 1 && database::is_blank(&page))
}

/// Pages of a file, a started one included. SQLite numbers no more than fit.
pub(super) fn pages_of(file: &File) -> io::Result<u32> {
    let pages = file.metadata()?.len().div_ceil(PAGE_LEN as u64);
    u32::try_from(pages).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "more pages than SQLite can number"))
}

/// A page of a database file, in WAL mode; zeros after its end.
pub(super) fn read_page(file: &File, page: u32, buf: &mut [u8; PAGE_LEN]) -> io::Result<()> {
    let bytes = read_at(file, buf, u64::from(page - 1) * PAGE_LEN as u64)?;
    buf[bytes..].fill(0);
    if page == 1 && buf.starts_with(MAGIC) {
        buf[VERSIONS].copy_from_slice(&WAL_VERSIONS);
    }
    Ok(())
}
