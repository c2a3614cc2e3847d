//! [`LogPages`]: the pages of a log's database as of its last durable frame, read without an engine: where that cannot open the
//! database, it is found out so why.

use std::io;
use std::sync::Arc;

use super::wal::FRAME_LEN;
use crate::format::wal::FRAME_HEADER_LEN;
use crate::mirror::{Error, Log, SeenBase};
use crate::offset::Offset;
use crate::sqlite::btree::{self, PAGE_LEN, Page, Pages, Taken, Tree, TreeError};
use crate::sqlite::record::{Stored, values};

/// The pages of a database.
pub(super) struct LogPages {
    log: Arc<Log>,
    base: Arc<SeenBase>,
    last: Offset,
    count: u32,
}

/// A row of `sqlite_schema`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SchemaRow {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) table: String,
    pub(super) root: i64,
    pub(super) sql: Option<String>,
}

impl LogPages {
    /// Of a log as of the frame `last`, which ends a transaction; 0 for its base. Blocks for small reads.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) fn open(log: &Arc<Log>, base: Arc<SeenBase>, last: u64) -> Result<LogPages, Error> {
        let last = Offset(last);
        let size = match last {
            Offset(0) => None,
            last => log.frame_head(last)?.map(|head| head.size),
        };
        let count = size.unwrap_or_else(|| u32::try_from(base.bytes() / PAGE_LEN as u64).unwrap_or(u32::MAX));
        Ok(LogPages { log: log.clone(), base, last, count })
    }

    /// Its base.
    pub(super) fn base(&self) -> &SeenBase {
        &self.base
    }

    /// The newest content of a page; false when there is none. Blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn find(&self, number: u32, page: &mut Page) -> Result<bool, Error> {
        let Some(frame) = self.log.page_at(number, self.last)? else {
            let at = u64::from(number.saturating_sub(1)) * PAGE_LEN as u64;
            return Ok(self.base.read_at(page, at)? == PAGE_LEN);
        };
        let mut bytes = Vec::with_capacity(FRAME_LEN);
        self.log.read_frames(&(frame..Offset(frame.0 + 1)), |piece| {
            bytes.extend_from_slice(piece);
            true
        })?;
        match bytes.get(FRAME_HEADER_LEN..).and_then(|content| content.first_chunk()) {
            Some(content) => *page = *content,
            None => return Ok(false),
        }
        Ok(true)
    }

    /// The schema, row by row, until `take` answers false. Blocks.
    ///
    /// # Errors
    /// When it cannot be read, or is malformed.
    pub(super) fn schema(&self, mut take: impl FnMut(SchemaRow) -> bool) -> Result<(), TreeError> {
        let (mut page, mut record, mut taken) = ([0; PAGE_LEN], Vec::new(), Taken::default());
        for number in Tree::of(self, 1)?.leaves {
            self.read(number, &mut page)?;
            for cell in btree::cells(number, &page)? {
                btree::record(self, &cell, &mut record, &mut taken)?;
                if !values(&record).and_then(|values| SchemaRow::of(&values)).is_none_or(&mut take) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl SchemaRow {
    /// None for what no SQLite writes.
    fn of(values: &[Stored<'_>]) -> Option<SchemaRow> {
        let text = |at: usize| match values.get(at) {
            Some(Stored::Text(text)) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        };
        let root = match values.get(3) {
            Some(Stored::Integer(root)) => *root,
            _ => 0,
        };
        Some(SchemaRow { kind: text(0)?, name: text(1)?, table: text(2)?, root, sql: text(4) })
    }
}

impl Pages for LogPages {
    fn count(&self) -> u32 {
        self.count
    }

    fn read(&self, number: u32, page: &mut Page) -> Result<(), TreeError> {
        match self.find(number, page) {
            Ok(true) => Ok(()),
            Ok(false) => Err(TreeError::Malformed { page: number, what: "it is not there" }),
            Err(error) => Err(TreeError::Io(io::Error::other(error))),
        }
    }
}
