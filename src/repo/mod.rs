//! Where the files of a log are. Owns: the [`Repo`] trait and its implementations. Knows no format.
//!
//! Everything that touches a disk goes through this trait, so a test can lose power, run out of space or fail any call
//! by handing in a [`MemRepo`] instead of an [`FsRepo`].

mod durable;
mod fs;
mod map;
mod mem;
mod owner;
#[cfg(feature = "turso")]
mod read_only;

pub use durable::{persist_names, replace};
pub use fs::{FsRepo, open_regular};
pub(crate) use fs::{is_out_of_files, opened, read_at, temporary_dir};
pub use mem::{Faults, Loss, MemRepo, Op};
pub(crate) use owner::give_owner;
#[cfg(feature = "turso")]
pub(crate) use read_only::ReadOnlyRepo;

use std::fmt;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// One directory: the files of a log, or the directories above them.
///
/// The contract is that of a POSIX file system at its most forgetful, and callers must hold to it: content survives a
/// power failure only after [`RepoFile::sync`], and a created, renamed or removed name only after [`Repo::sync_dir`].
///
/// ```
/// use logmirror::repo::{Faults, Loss, MemRepo, Repo};
/// use std::io::IoSlice;
///
/// let disk = MemRepo::new(Faults::default());
/// let file = disk.create("a")?;
/// file.write_at(&mut [IoSlice::new(b"kept")], 0)?;
/// file.sync()?;
/// disk.sync_dir()?;
/// file.write_at(&mut [IoSlice::new(b", and lost")], 4)?;
///
/// let found = disk.after_power_loss(Loss::All);
/// assert_eq!(found.open("a")?.bytes()?, 4);
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Repo: fmt::Debug + Send + Sync {
    /// Where this is, for messages.
    fn place(&self) -> String;

    /// Its path, where other processes can open it by that.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// The names in this directory, in no order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// When a name was last created, renamed or removed here, or this was moved here itself; `None` where that cannot be told. As coarse as the kernel's
    /// clock tick.
    ///
    /// # Errors
    /// When the directory cannot be asked.
    fn changed(&self) -> io::Result<Option<SystemTime>> {
        Ok(None)
    }

    /// Bytes that may still be written where this is; `None` where that cannot be told.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Opens a file for reading. It may be synced too.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name; otherwise as the file system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// As [`open`](Repo::open).
    fn open_write(&self, name: &str) -> io::Result<Arc<dyn RepoFile>>;

    /// Creates an empty file for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken; nothing is changed then.
    fn create(&self, name: &str) -> io::Result<Arc<dyn RepoFile>>;

    /// Maps a file into memory, created or grown to at least `bytes` with its space reserved, so that a store to the
    /// map cannot run out of space. New bytes are zero.
    ///
    /// # Errors
    /// When there is no space or the file cannot be mapped.
    fn map(&self, name: &str, bytes: u64) -> io::Result<Box<dyn RepoMap>>;

    /// Renames a file, replacing what has the new name.
    ///
    /// # Errors
    /// As the file system says; either name is then as it was.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file, or an empty directory.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// After Ok, every name created, renamed or removed here before survives a power failure.
    ///
    /// # Errors
    /// When the directory cannot be synced or is gone. Nothing is known then, and a further sync could succeed without having
    /// written those names: see [`persist_names`].
    fn sync_dir(&self) -> io::Result<()>;

    /// Whether `file`, which was opened by that name, still has it in this directory: another one may have been put in its
    /// place. Where that cannot be told it has.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn is_named(&self, name: &str, file: &dyn RepoFile) -> io::Result<bool> {
        let _ = (name, file);
        Ok(true)
    }

    /// Makes the caller the one writer of this directory until the lock is dropped or its process ends.
    ///
    /// # Errors
    /// `WouldBlock` when another writer holds it.
    fn lock(&self) -> io::Result<RepoLock>;

    /// Opens a directory in this one.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn dir(&self, name: &str) -> io::Result<Arc<dyn Repo>>;

    /// Creates a directory in this one.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken.
    fn create_dir(&self, name: &str) -> io::Result<Arc<dyn Repo>>;
}

/// An open file of a [`Repo`]. It stays readable when its name is removed or given to another file.
pub trait RepoFile: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// When the file cannot be asked.
    fn bytes(&self) -> io::Result<u64>;

    /// Reads into `buf` from `at`; fewer bytes than asked for only at the end of the file.
    ///
    /// # Errors
    /// When the read fails.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Like [`read_at`](RepoFile::read_at), but never waits for a disk: `None` when it would have to.
    ///
    /// # Errors
    /// When the read fails.
    fn read_cached(&self, buf: &mut [u8], at: u64) -> io::Result<Option<usize>> {
        self.read_at(buf, at).map(Some)
    }

    /// Writes all of `slices`, one after the other, from `at`.
    ///
    /// # Errors
    /// Any part of the bytes may have been written then.
    fn write_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()>;

    /// Cuts or extends the file to `bytes`.
    ///
    /// # Errors
    /// When the file system refuses.
    fn truncate(&self, bytes: u64) -> io::Result<()>;

    /// After Ok, everything written before survives power loss, if the file's name does.
    ///
    /// # Errors
    /// Nothing is known then: the kernel reports lost writes once and marks their pages clean, so a further sync could succeed
    /// without having written them, in this process or another, until the same bytes are written again.
    /// Fails too when the file has no name left, because then nothing written to it can be found again.
    fn sync(&self) -> io::Result<()>;

    /// Says that what stands before byte `end` will not be read soon: what is synced of it need not stay in memory.
    fn forget(&self, _end: u64) {}

    /// The file of the operating system behind it, if there is one, so that the kernel can copy from one to another.
    /// Its cursor is nobody else's.
    fn plain(&self) -> Option<&std::fs::File> {
        None
    }
}

/// A file mapped into memory. Stores reach the disk some time later, or at [`sync`](RepoMap::sync).
pub trait RepoMap: fmt::Debug + Send {
    /// Bytes mapped.
    fn bytes(&self) -> u64;

    /// Copies bytes out of the map; bytes behind its end read as zero.
    fn read_at(&self, buf: &mut [u8], at: u64);

    /// Copies bytes into the map; what does not fit is dropped.
    fn write_at(&mut self, bytes: &[u8], at: u64);

    /// After Ok, what was stored before survives power loss.
    ///
    /// # Errors
    /// Nothing is known then.
    fn sync(&self) -> io::Result<()>;
}

/// Held by the one writer of a directory; dropping it lets the next one in.
#[derive(Debug)]
pub struct RepoLock {
    _held: Box<dyn fmt::Debug + Send + Sync>,
}

impl RepoLock {
    fn new(held: impl fmt::Debug + Send + Sync + 'static) -> Self {
        RepoLock { _held: Box::new(held) }
    }
}

/// Reads a whole small file; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is longer than `bytes_max`.
pub fn read_small(repo: &dyn Repo, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match repo.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let bytes = file.bytes()?;
    if bytes > bytes_max {
        let text = format!("{}/{name} has {bytes} bytes, more than the {bytes_max} it may have", repo.place());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut content = vec![0; bytes as usize];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    Ok(Some(content))
}
