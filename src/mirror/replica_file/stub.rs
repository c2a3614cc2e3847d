//! Stands in for the file that is written beside its readers.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::format::database::DatabaseHeader;
use crate::sqlite::DatabaseError;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateMark {
    ino: u64,
    len: u64,
    mtime: i64,
    nanos: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    No,
    Maybe,
}

#[derive(Debug)]
pub(super) struct ReadReplicaFile {
    path: PathBuf,
    file: File,
    page_size: u32,
    pages: u32,
    pending: Vec<(u32, u32, Vec<u8>)>,
}

impl ReadReplicaFile {
    pub(super) fn replace(path: &Path, draft: &Path) -> Result<ReadReplicaFile, DatabaseError> {
        fs::rename(draft, path).map_err(|error| DatabaseError::io("making", path, error))?;
        let opened = ReadReplicaFile::open(path)?;
        opened.ok_or_else(|| DatabaseError::io("making", path, io::ErrorKind::NotFound.into()))
    }

    pub(super) fn open(path: &Path) -> Result<Option<ReadReplicaFile>, DatabaseError> {
        let failed = |error| DatabaseError::io("opening", path, error);
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let mut head = [0; 100];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let page_size = DatabaseHeader::decode(&head).map_err(|error| failed(io::Error::other(error)))?.page_size;
        let pages = (file.metadata().map_err(failed)?.len() / u64::from(page_size)) as u32;
        Ok(Some(ReadReplicaFile { path: path.to_owned(), file, page_size, pages, pending: Vec::new() }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn mark(&self) -> Result<StateMark, DatabaseError> {
        let found = self.file.metadata().map_err(|error| DatabaseError::io("reading", &self.path, error))?;
        Ok(StateMark { ino: found.ino(), len: found.len(), mtime: found.mtime(), nanos: found.mtime_nsec() })
    }

    pub(super) fn touched_since(&self, mark: &StateMark) -> Touched {
        if self.mark().is_ok_and(|now| now == *mark) { Touched::No } else { Touched::Maybe }
    }

    pub(super) fn check(&self) -> Result<(), DatabaseError> {
        Ok(())
    }

    pub(super) fn append<'a>(
        &mut self,
        frames: impl IntoIterator<Item = (u32, u32, &'a [u8])>,
    ) -> Result<(), DatabaseError> {
        self.pending.extend(frames.into_iter().map(|(page, size, content)| (page, size, content.to_vec())));
        Ok(())
    }

    pub(super) fn commit(&mut self) -> Result<(), DatabaseError> {
        let mut write = || -> io::Result<()> {
            for (page, size, content) in self.pending.drain(..) {
                self.file.write_all_at(&content, u64::from(page - 1) * u64::from(self.page_size))?;
                if size > 0 {
                    self.pages = size;
                    self.file.set_len(u64::from(size) * u64::from(self.page_size))?;
                }
            }
            self.file.sync_all()
        };
        write().map_err(|error| DatabaseError::io("writing", &self.path, error))
    }

    pub(super) fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        Ok(())
    }

    pub(super) fn close(self) -> Result<StateMark, DatabaseError> {
        self.mark()
    }

    pub(super) fn wal_bytes(&self) -> u64 {
        0
    }

    pub(super) fn pages(&self) -> Result<u32, DatabaseError> {
        Ok(self.pages)
    }

    pub(super) fn page_size(&self) -> u32 {
        self.page_size
    }

    pub(super) fn read_page(&self, page: u32, content: &mut [u8]) -> Result<bool, DatabaseError> {
        let at = u64::from(page - 1) * u64::from(self.page_size);
        let read = crate::repo::read_at(&self.file, content, at);
        Ok(read.map_err(|error| DatabaseError::io("reading", &self.path, error))? == content.len())
    }
}
