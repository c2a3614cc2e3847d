//! The files of a log as the engine's IO layer. Each call is done when it returns, on the caller's thread.

use std::io;
use std::sync::Arc;

use turso_core::io::FileSyncType;
use turso_core::{
    Buffer, Clock, Completion, CompletionError, File, IO, LimboError, MonotonicInstant, OpenFlags, WallClockInstant,
};

use super::wal::Wal;
use crate::mirror::SeenBase;

/// The name of the database; that of its WAL follows from it.
pub(super) const DATABASE: &str = "logmirror.db";
const WAL: &str = "logmirror.db-wal";

/// The two files of a log, and those of the machine for what the engine sorts.
pub(super) struct LogIo {
    base: Arc<SeenBase>,
    wal: Arc<Wal>,
    machine: Arc<dyn IO>,
}

impl LogIo {
    /// `machine` is for temporary files.
    pub(super) fn new(base: Arc<SeenBase>, wal: Arc<Wal>, machine: Arc<dyn IO>) -> LogIo {
        LogIo { base, wal, machine }
    }
}

impl Clock for LogIo {
    fn current_time_monotonic(&self) -> MonotonicInstant {
        self.machine.current_time_monotonic()
    }

    fn current_time_wall_clock(&self) -> WallClockInstant {
        self.machine.current_time_wall_clock()
    }
}

impl IO for LogIo {
    fn open_file(&self, path: &str, flags: OpenFlags, direct: bool) -> turso_core::Result<Arc<dyn File>> {
        match path {
            DATABASE => Ok(Arc::new(Base(self.base.clone()))),
            WAL => Ok(Arc::new(WalFile(self.wal.clone()))),
            _ => self.machine.open_file(path, flags, direct),
        }
    }

    fn remove_file(&self, path: &str) -> turso_core::Result<()> {
        match path {
            DATABASE | WAL => Err(refused("remove")),
            _ => self.machine.remove_file(path),
        }
    }

    fn file_id(&self, path: &str) -> turso_core::Result<turso_core::io::FileId> {
        Ok(turso_core::io::FileId::from_path_hash(path))
    }

    fn step(&self) -> turso_core::Result<()> {
        self.machine.step()
    }
}

fn refused(what: &'static str) -> LimboError {
    CompletionError::IOError(io::ErrorKind::PermissionDenied, what).into()
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> LimboError {
    move |error| {
        log::error!("the engine cannot {what}: {error}");
        CompletionError::IOError(error.kind(), what).into()
    }
}

fn done(c: Completion, bytes: usize) -> turso_core::Result<Completion> {
    c.complete(i32::try_from(bytes).map_err(|_| refused("so much at once"))?);
    Ok(c)
}

/// The database at the start of the generation, as SQLite sees it: the engine believes the size in the header. It is never
/// written: nothing is ever checkpointed by the engine.
struct Base(Arc<SeenBase>);

impl File for Base {
    fn lock_file(&self, _exclusive: bool) -> turso_core::Result<()> {
        Ok(())
    }

    fn unlock_file(&self) -> turso_core::Result<()> {
        Ok(())
    }

    fn pread(&self, pos: u64, c: Completion) -> turso_core::Result<Completion> {
        let read = self.0.read_at(c.as_read().buf().as_mut_slice(), pos);
        let read = read.map_err(|error| failed("read")(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        done(c, read)
    }

    fn pwrite(&self, _pos: u64, _buffer: Arc<Buffer>, _c: Completion) -> turso_core::Result<Completion> {
        Err(refused("write the base"))
    }

    fn sync(&self, c: Completion, _sync_type: FileSyncType) -> turso_core::Result<Completion> {
        done(c, 0)
    }

    fn size(&self) -> turso_core::Result<u64> {
        Ok(self.0.bytes())
    }

    fn truncate(&self, _len: u64, _c: Completion) -> turso_core::Result<Completion> {
        Err(refused("truncate the base"))
    }
}

/// The WAL. A sync of it means nothing: a commit counts once the log holds it.
struct WalFile(Arc<Wal>);

impl File for WalFile {
    fn lock_file(&self, _exclusive: bool) -> turso_core::Result<()> {
        Ok(())
    }

    fn unlock_file(&self) -> turso_core::Result<()> {
        Ok(())
    }

    fn pread(&self, pos: u64, c: Completion) -> turso_core::Result<Completion> {
        let read = self.0.read(c.as_read().buf().as_mut_slice(), pos).map_err(failed("read"))?;
        done(c, read)
    }

    fn pwrite(&self, pos: u64, buffer: Arc<Buffer>, c: Completion) -> turso_core::Result<Completion> {
        let written = self.0.write(std::iter::once(buffer.as_slice()), pos).map_err(failed("write"))?;
        done(c, written)
    }

    fn pwritev(&self, pos: u64, buffers: Vec<Arc<Buffer>>, c: Completion) -> turso_core::Result<Completion> {
        let slices = buffers.iter().map(|buffer| buffer.as_slice());
        let written = self.0.write(slices, pos).map_err(failed("write"))?;
        done(c, written)
    }

    fn sync(&self, c: Completion, _sync_type: FileSyncType) -> turso_core::Result<Completion> {
        done(c, 0)
    }

    fn size(&self) -> turso_core::Result<u64> {
        Ok(self.0.bytes())
    }

    fn truncate(&self, len: u64, c: Completion) -> turso_core::Result<Completion> {
        self.0.truncate(len).map_err(failed("truncate"))?;
        done(c, 0)
    }
}
