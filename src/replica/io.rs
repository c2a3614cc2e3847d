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
/// disk is not known until they are opened again.
pub(super) struct RepoIo {
    dir: Arc<dyn Repo>,
    database: String,
    latch: Latch,
    /// For temporary files.
    machine: Arc<dyn IO>,
}

/// Closed once a write or sync of a database has failed: nothing is written to it from then on, until it is opened again.
#[derive(Clone, Debug, Default)]
pub(super) struct Latch(Arc<AtomicBool>);

impl Latch {
    pub(super) fn close(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl RepoIo {
    /// For the database of that name.
    pub(super) fn new(dir: Arc<dyn Repo>, database: &str) -> turso_core::Result<RepoIo> {
        let machine = Database::io_for_path(database)?;
        Ok(RepoIo { dir, database: database.to_owned(), latch: Latch::default(), machine })
    }

    /// That of the database and its WAL.
    pub(super) fn latch(&self) -> Latch {
        self.latch.clone()
    }

    fn is_ours(&self, path: &str) -> bool {
        path.strip_prefix(&self.database).is_some_and(|ending| ending.is_empty() || ending == "-wal")
    }

    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn RepoFile>> {
        match self.dir.open_write(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                let file = self.dir.create(name)?;
                // The engine syncs files only: a commit in one whose name is forgotten would be lost with it.
                if let Err(error) = self.dir.sync_dir() {
                    // A further sync of the directory could succeed without the name, unless it is created again.
                    self.latch.close();
                    let _ = self.dir.remove(name);
                    return Err(error);
                }
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
        Ok(Arc::new(RepoIoFile { file, latch: self.latch() }))
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
    latch: Latch,
}

impl RepoIoFile {
    fn change(&self, what: &'static str, change: impl FnOnce() -> io::Result<()>) -> turso_core::Result<()> {
        if self.latch.is_closed() {
            // The engine shows nothing of an error but its kind and these words.
            let error = CompletionError::IOError(io::ErrorKind::Other, "after a failed write: open the replica again");
            return Err(error.into());
        }
        change().map_err(|error| {
            self.latch.close();
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
