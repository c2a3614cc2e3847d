//! The files of a log as the engine's IO layer. Each call is done when it returns, on the caller's thread.

use std::io;
use std::sync::Arc;

use turso_core::io::FileSyncType;
use turso_core::{
    Buffer, Clock, Completion, CompletionError, File, IO, LimboError, MonotonicInstant, OpenFlags, WallClockInstant,
};

use super::page_reads;
use super::unusable::Unusable;
use super::wal::{FRAME_LEN, Wal};
use crate::format::database;
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN};
use crate::mirror::SeenBase;

/// The name of the database; that of its WAL follows from it.
pub(super) const DATABASE: &str = "logmirror.db";
const WAL: &str = "logmirror.db-wal";

/// Bytes of a page.
const PAGE_LEN: u64 = (FRAME_LEN - FRAME_HEADER_LEN) as u64;

/// The two files of a log, and those of the machine for what the engine sorts.
pub(super) struct LogIo {
    base: Arc<SeenBase>,
    wal: Arc<Wal>,
    unusable: Arc<Unusable>,
    machine: Arc<dyn IO>,
}

impl LogIo {
    /// `machine` is for temporary files.
    pub(super) fn new(base: Arc<SeenBase>, wal: Arc<Wal>, unusable: Arc<Unusable>, machine: Arc<dyn IO>) -> LogIo {
        LogIo { base, wal, unusable, machine }
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
            DATABASE => Ok(Arc::new(Base(self.base.clone(), self.unusable.clone()))),
            WAL => Ok(Arc::new(WalFile(self.wal.clone(), self.unusable.clone()))),
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
struct Base(Arc<SeenBase>, Arc<Unusable>);

impl File for Base {
    fn lock_file(&self, _exclusive: bool) -> turso_core::Result<()> {
        Ok(())
    }

    fn unlock_file(&self) -> turso_core::Result<()> {
        Ok(())
    }

    fn pread(&self, pos: u64, c: Completion) -> turso_core::Result<Completion> {
        let buf = c.as_read().buf().as_mut_slice();
        let last = (pos + buf.len() as u64).saturating_sub(1);
        let (first, last) = (pos / PAGE_LEN + 1, last / PAGE_LEN + 1);
        self.1.check(first, last)?;
        page_reads::note(first, last);
        let read = self.0.read_at(buf, pos);
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

/// The WAL, whose first page never says that the database has a rollback journal. A sync of it means nothing: a commit counts
/// once the log holds it.
struct WalFile(Arc<Wal>, Arc<Unusable>);

impl WalFile {
    /// Which page is at `pos`, as the header of its frame says.
    fn page(&self, pos: u64) -> io::Result<u32> {
        let mut head = [0; FRAME_HEADER_LEN];
        let count = self.0.read(&mut head, pos - FRAME_HEADER_LEN as u64)?;
        if count < head.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(FrameHeader::decode(&head).page) }
    }
}

/// Whether these bytes of a WAL are the page of one frame. So the engine reads what it works with; whole frames it reads to
/// check their checksums, which are of the bytes that were stored.
fn is_page(pos: u64, len: usize) -> bool {
    let in_frames = pos.checked_sub(HEADER_LEN as u64);
    len as u64 == PAGE_LEN && in_frames.is_some_and(|at| at % FRAME_LEN as u64 == FRAME_HEADER_LEN as u64)
}

impl File for WalFile {
    fn lock_file(&self, _exclusive: bool) -> turso_core::Result<()> {
        Ok(())
    }

    fn unlock_file(&self) -> turso_core::Result<()> {
        Ok(())
    }

    fn pread(&self, pos: u64, c: Completion) -> turso_core::Result<Completion> {
        let buf = c.as_read().buf().as_mut_slice();
        let read = self.0.read(buf, pos).map_err(failed("read"))?;
        // What else the page may be is of no interest.
        let is_of_interest = || self.1.has_any() || page_reads::is_recording() || buf.starts_with(database::MAGIC);
        if is_page(pos, buf.len()) && is_of_interest() {
            let page = self.page(pos).map_err(failed("read"))?;
            self.1.check(page.into(), page.into())?;
            page_reads::note(page.into(), page.into());
            if page == 1 {
                database::state_wal(buf);
            }
        }
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
