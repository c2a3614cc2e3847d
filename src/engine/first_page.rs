//! What page 1 of a database must say for the engine to run on it. The engine itself looks at the one in the base, and only
//! when it opens that; the newest may be in a frame.

use crate::format::database::{DatabaseHeader, HEADER_LEN, HeaderError, LARGEST_ROOT_AT, SCHEMA_COOKIE_AT, word};
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::mirror::{Error, SeenBase};
use crate::sqlite::btree::{PAGE_LEN, Page};

/// What the engine may do with a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permitted {
    /// Whether it may write to it.
    pub(super) writes: bool,
    /// The number of the schema, which is another after each change of that.
    pub(super) schema: u32,
}

/// Refuses a base whose pages the engine does not take, before anything of it is read.
///
/// # Errors
/// [`Error::Format`].
pub(super) fn check_base(log_name: &str, base: &SeenBase) -> Result<(), Error> {
    match base.page_size() {
        Some(bytes) if bytes != LIBSQL_PAGE_SIZE => Err(wrong_size(log_name, bytes)),
        _ => Ok(()),
    }
}

/// What the engine may do with a log's database, as its newest page 1 says, which `find` reads if there is one.
///
/// # Errors
/// [`Error::Format`] when that is nothing; otherwise when one of the two pages cannot be read.
pub(super) fn permitted(
    log_name: &str,
    base: &SeenBase,
    find: impl FnOnce(&mut Page) -> Result<bool, Error>,
) -> Result<Permitted, Error> {
    let mut page = [0; PAGE_LEN];
    if !find(&mut page)? {
        return Ok(Permitted { writes: true, schema: 0 });
    }
    let mut head = [0; HEADER_LEN];
    let count = base.read_at(&mut head, 0)?;
    let reserved = DatabaseHeader::decode(&head[..count]).ok().map(|header| header.reserved);
    let permitted = of_page(log_name, &page, reserved)?;
    // By the base the engine decides whether it writes.
    Ok(Permitted { writes: permitted.writes && word(&head[..count], LARGEST_ROOT_AT) == 0, ..permitted })
}

/// The same, of a page 1 and the bytes at the end of each page that the base reserves, where it says so.
///
/// # Errors
/// [`Error::Format`].
fn of_page(log_name: &str, page: &[u8], reserved: Option<u8>) -> Result<Permitted, Error> {
    let refused = |why: String| Err(Error::Format(format!("SQL cannot be run on log {log_name:?}: {why}")));
    let header = match DatabaseHeader::decode(page) {
        Ok(header) => header,
        Err(HeaderError::PageSize { found }) => return Err(wrong_size(log_name, found)),
        Err(error) => {
            return refused(format!(
                "page 1 of its database is not that of one that can be read, as where it is encrypted: {error}"
            ));
        }
    };
    if header.page_size != LIBSQL_PAGE_SIZE {
        return Err(wrong_size(log_name, header.page_size));
    }
    if header.encoding > 1 {
        return refused(
            "its database is in UTF-16, and the SQL engine reads UTF-8: read it with SQLite, in a copy that `logmirror restore` \
             makes, or make it again with PRAGMA encoding = 'UTF-8'"
                .to_owned(),
        );
    }
    if let Some(before) = reserved.filter(|before| *before != header.reserved) {
        let after = header.reserved;
        return refused(format!(
            "its database reserves {after} bytes of each page, and the base of its generation reserved {before}: roll it over \
             (`logmirror checkpoint URL`)"
        ));
    }
    Ok(Permitted { writes: word(page, LARGEST_ROOT_AT) == 0, schema: word(page, SCHEMA_COOKIE_AT) })
}

/// Why a database is not written.
pub(super) fn read_only(log_name: &str) -> Error {
    Error::Format(format!(
        "the database of log {log_name:?} has PRAGMA auto_vacuum, and the SQL engine does not maintain the pointer maps of that: \
         it is read only here; write it with SQLite or a libSQL client, or run PRAGMA auto_vacuum = NONE and VACUUM in its source, and \
         roll the log over"
    ))
}

fn wrong_size(log_name: &str, bytes: u32) -> Error {
    Error::Format(format!(
        "log {log_name:?} has pages of {bytes} bytes, and SQL is run on pages of {LIBSQL_PAGE_SIZE}: nothing was run; make the \
         database again with PRAGMA page_size = {LIBSQL_PAGE_SIZE} and VACUUM, or read it with SQLite, in a copy that \
         `logmirror restore` makes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::database::empty;

    fn code(page: &[u8], reserved: Option<u8>) -> Result<bool, &'static str> {
        of_page("app", page, reserved).map(|permitted| permitted.writes).map_err(|error| error.code())
    }

    #[test]
    fn what_the_engine_would_read_or_write_wrongly_is_refused() {
        let plain = empty(4096);
        let with = |at: usize, value: u8| {
            let mut page = plain.clone();
            page[at] = value;
            page
        };
        assert_eq!(code(&plain, Some(0)), Ok(true));
        assert_eq!(code(&plain, None), Ok(true));
        assert_eq!(code(&with(55, 3), Some(0)), Ok(false));
        assert_eq!(code(&with(20, 8), Some(8)), Ok(true));
        for page in [empty(512), empty(8192), empty(65_536), with(59, 2), with(59, 3), with(20, 8), with(0, 0)] {
            assert_eq!(code(&page, Some(0)), Err("format"));
        }
    }
}
