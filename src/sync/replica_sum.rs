//! The sum of a replica's pages, kept up frame by frame: it shows that a file which lost its WAL is still what was written, because
//! another program only put the WAL into it.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use super::{FRAME_LEN, PAGE_LEN};
use crate::format::database::{VERSIONS, WAL_VERSIONS};
use crate::limits::{LIBSQL_PAGE_SIZE, READ_BLOCK};
use crate::mirror::StateSum;
use crate::repo::read_at;
use crate::sqlite::DatabaseError;
use crate::sqlite::read_replica::ReadReplicaFile;
use crate::sqlite::wal_frames::frames_of;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct ReplicaSum {
    key: u64,
    sum: StateSum,
    /// Pages of the database after the last commit.
    pages: u32,
    /// What the pages of a transaction add whose end was not taken yet.
    open: HashMap<u32, u64>,
}

impl ReplicaSum {
    /// Of all pages that readers of a file see.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn of(file: &ReadReplicaFile, key: u64) -> Result<ReplicaSum, DatabaseError> {
        let mut sum = ReplicaSum::known(key, 0, file.pages()?);
        for page in 1..=sum.pages {
            let added = sum.read(file, page)?;
            sum.sum.add(added);
        }
        Ok(sum)
    }

    /// Of a database file without a WAL.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn of_database(file: &File, key: u64) -> io::Result<ReplicaSum> {
        let mut sum =
            ReplicaSum::known(key, 0, u32::try_from(file.metadata()?.len() / PAGE_LEN as u64).unwrap_or(u32::MAX));
        let (mut block, mut page) = (vec![0; READ_BLOCK / PAGE_LEN * PAGE_LEN], 0);
        while page < sum.pages {
            let read = read_at(file, &mut block, u64::from(page) * PAGE_LEN as u64)?;
            for content in block[..read].chunks_exact(PAGE_LEN) {
                page += 1;
                let added = sum.of_page(page, content);
                sum.sum.add(added);
            }
            if read < PAGE_LEN {
                break;
            }
        }
        Ok(sum)
    }

    /// One that was computed before.
    pub(super) fn known(key: u64, number: u64, pages: u32) -> ReplicaSum {
        let sum = StateSum::new(key, LIBSQL_PAGE_SIZE).with(number);
        ReplicaSum { key, sum, pages, open: HashMap::new() }
    }

    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn number(&self) -> u64 {
        self.sum.number()
    }

    /// Takes frames that follow, before they are appended to the file.
    ///
    /// # Errors
    /// When the pages that they replace cannot be read.
    pub(super) fn apply(&mut self, frames: &[u8], file: &ReadReplicaFile) -> Result<(), DatabaseError> {
        debug_assert_eq!(frames.len() % FRAME_LEN, 0);
        // Pages of transactions in these frames, which the file does not have yet.
        let mut done = HashMap::new();
        for (head, page) in frames_of(frames, LIBSQL_PAGE_SIZE) {
            let added = self.of_page(head.page, page);
            self.open.insert(head.page, added);
            if head.size == 0 {
                continue;
            }
            let (before, open) = (self.pages, std::mem::take(&mut self.open));
            // A page that a transaction adds may be in none of its frames: SQLite leaves out what is free.
            let gone_or_new = before.min(head.size) + 1..=before.max(head.size);
            let others: Vec<u32> = gone_or_new.filter(|page| !open.contains_key(page)).collect();
            for page in open.keys().copied().chain(others) {
                let written = open.get(&page).copied();
                let held = match (done.get(&page), written) {
                    (Some(held), _) => *held,
                    // Nothing was there.
                    (None, Some(written)) if page > before => written,
                    (None, _) => self.read(file, page)?,
                };
                if page <= before {
                    self.sum.remove(held);
                }
                let after = written.unwrap_or(held);
                if page <= head.size {
                    self.sum.add(after);
                }
                done.insert(page, after);
            }
            self.pages = head.size;
        }
        Ok(())
    }

    /// Forgets the beginning of a transaction whose end did not come.
    pub(super) fn forget_open(&mut self) {
        self.open.clear();
    }

    /// What a page of the file adds; one that is not there is zeros.
    fn read(&self, file: &ReadReplicaFile, page: u32) -> Result<u64, DatabaseError> {
        let mut content = [0; PAGE_LEN];
        file.read_page(page, &mut content)?;
        Ok(self.of_page(page, &content))
    }

    /// What a page with this content adds. Page 1 counts as that of a database in WAL mode, which the file is.
    fn of_page(&self, page: u32, content: &[u8]) -> u64 {
        let mut first = [0; PAGE_LEN];
        if page != 1 || content.len() != PAGE_LEN {
            return self.sum.of_page(page, content);
        }
        first.copy_from_slice(content);
        first[VERSIONS].copy_from_slice(&WAL_VERSIONS);
        self.sum.of_page(page, &first)
    }
}
