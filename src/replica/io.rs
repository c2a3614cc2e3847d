//! The files of a replica as the engine's IO layer. Each call is done when it returns, on the caller's thread.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use turso_core::io::FileSyncType;
use turso_core::{
    Buffer, Clock, Completion, CompletionError, Database, File, IO, LimboError, MonotonicInstant, OpenFlags,
    WallClockInstant,
};

use crate::repo::{Repo, RepoFile};

/// A database and its WAL in a directory. After a write or sync that failed nothing is written any more: what is on the
/// disk is not known until they are opened anew.
pub(super) struct RepoIo {
    dir: Arc<dyn Repo>,
    database: String,
    failed: Arc<AtomicBool>,
    /// For temporary files.
    machine: Arc<dyn IO>,
}

impl RepoIo {
    /// For the database of that name.
    pub(super) fn new(dir: Arc<dyn Repo>, database: &str) -> turso_core::Result<RepoIo> {
        let machine = Database::io_for_path(database)?;
        Ok(RepoIo { dir, database: database.to_owned(), failed: Arc::default(), machine })
    }

    fn is_ours(&self, path: &str) -> bool {
        path.strip_prefix(&self.database).is_some_and(|ending| ending.is_empty() || ending == "-wal")
    }

    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn RepoFile>> {
        match self.dir.open_write(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                let file = self.dir.create(name)?;
                // The engine syncs files only: a commit in one whose name is forgotten would be lost with it.
                self.dir.sync_dir()?;
                Ok(file)
            }
            file => file,
        }
    }
}

impl Clock for RepoIo {
    fn current_time_monotonic(&self) -> MonotonicInstant {
        self.machine.current_time_monotonic()
    }

    fn current_time_wall_clock(&self) -> WallClockInstant {
        self.machine.current_time_wall_clock()
    }
}

impl IO for RepoIo {
    fn open_file(&self, path: &str, flags: OpenFlags, direct: bool) -> turso_core::Result<Arc<dyn File>> {
        if !self.is_ours(path) {
            return self.machine.open_file(path, flags, direct);
        }
        let file = self.open(path, flags.contains(OpenFlags::Create)).map_err(failed("open"))?;
        Ok(Arc::new(RepoIoFile { file, failed: self.failed.clone() }))
    }

    fn remove_file(&self, path: &str) -> turso_core::Result<()> {
        if !self.is_ours(path) {
            return self.machine.remove_file(path);
        }
        self.dir.remove(path).map_err(failed("remove"))
    }

    fn file_id(&self, path: &str) -> turso_core::Result<turso_core::io::FileId> {
        Ok(turso_core::io::FileId::from_path_hash(path))
    }

    fn step(&self) -> turso_core::Result<()> {
        self.machine.step()
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> LimboError {
    move |error| {
        log::error!("the engine cannot {what}: {error}");
        CompletionError::IOError(error.kind(), what).into()
    }
}

fn done(c: Completion, bytes: usize) -> turso_core::Result<Completion> {
    let bytes = i32::try_from(bytes).map_err(|_| failed("take so much at once")(io::ErrorKind::FileTooLarge.into()))?;
    c.complete(bytes);
    Ok(c)
}

struct RepoIoFile {
    file: Arc<dyn RepoFile>,
    failed: Arc<AtomicBool>,
}

impl RepoIoFile {
    fn change(&self, what: &'static str, change: impl FnOnce() -> io::Result<()>) -> turso_core::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            let error = io::Error::other("a write or sync failed before: open the replica anew");
            return Err(failed(what)(error));
        }
        change().map_err(|error| {
            self.failed.store(true, Ordering::Release);
            failed(what)(error)
        })
    }
}

impl File for RepoIoFile {
    fn lock_file(&self, _exclusive: bool) -> turso_core::Result<()> {
        Ok(())
    }

    fn unlock_file(&self) -> turso_core::Result<()> {
        Ok(())
    }

    fn pread(&self, pos: u64, c: Completion) -> turso_core::Result<Completion> {
        let read = self.file.read_at(c.as_read().buf().as_mut_slice(), pos).map_err(failed("read"))?;
        done(c, read)
    }

    fn pwrite(&self, pos: u64, buffer: Arc<Buffer>, c: Completion) -> turso_core::Result<Completion> {
        let bytes = buffer.as_slice();
        self.change("write", || self.file.write_at(&mut [IoSlice::new(bytes)], pos))?;
        done(c, bytes.len())
    }

    fn pwritev(&self, pos: u64, buffers: Vec<Arc<Buffer>>, c: Completion) -> turso_core::Result<Completion> {
        let mut slices: Vec<IoSlice<'_>> = buffers.iter().map(|buffer| IoSlice::new(buffer.as_slice())).collect();
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        self.change("write", || self.file.write_at(&mut slices, pos))?;
        done(c, bytes)
    }

    fn sync(&self, c: Completion, _sync_type: FileSyncType) -> turso_core::Result<Completion> {
        self.change("sync", || self.file.sync())?;
        done(c, 0)
    }

    fn size(&self) -> turso_core::Result<u64> {
        self.file.bytes().map_err(failed("ask for the length"))
    }

    fn truncate(&self, len: u64, c: Completion) -> turso_core::Result<Completion> {
        self.change("truncate", || self.file.truncate(len))?;
        done(c, 0)
    }
}
