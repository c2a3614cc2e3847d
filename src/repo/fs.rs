//! [`FsRepo`]: a directory of the file system.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::map::FileMap;
use super::{Repo, RepoFile, RepoLock, RepoMap};

/// What one writev may take (`IOV_MAX` on Linux).
const SLICES_PER_WRITE: usize = 1024;

/// The most one write takes. The page cache takes a larger one in larger pieces, which are cheaper to write and to sync: pushes
/// of half a MiB were 7 % faster than in pieces of 128 KiB, in the median of 22 runs each, and streams no slower.
const BYTES_PER_WRITE: usize = 1 << 20;

/// A directory of the file system.
#[derive(Clone, Debug)]
pub struct FsRepo {
    dir: PathBuf,
}

impl FsRepo {
    /// The directory at `dir`, which must exist.
    ///
    /// # Errors
    /// When it is not a directory that can be read.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        if !fs::metadata(&dir)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a directory", dir.display())));
        }
        Ok(FsRepo { dir })
    }

    /// The directory at `dir`, made with those above it if need be. After Ok they all survive power loss.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        let missing: Vec<&Path> = dir.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
        fs::create_dir_all(&dir)?;
        for made in missing {
            let above = made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(above)?.sync_all()?;
        }
        FsRepo::open(dir)
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    fn file(&self, name: &str, open: Open, options: &mut OpenOptions) -> io::Result<Arc<dyn RepoFile>> {
        Ok(Arc::new(FsFile { file: self.regular(name, open, options)? }))
    }

    /// Opens a file; an error names it.
    fn regular(&self, name: &str, open: Open, options: &mut OpenOptions) -> io::Result<File> {
        let path = self.dir.join(name);
        open(&path, options).map_err(|error| {
            if is_out_of_files(&error) {
                // The fault is not with this file, and the code says so.
                return error;
            }
            let kind = error.kind();
            let dangles = kind == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_ok();
            let why = match kind {
                _ if dangles => "it is a symbolic link to nothing".to_owned(),
                io::ErrorKind::PermissionDenied => format!("{error}: this user may not read or write it"),
                _ => error.to_string(),
            };
            io::Error::new(kind, format!("{}: {why}", path.display()))
        })
    }
}

/// Where large files are put for a while: `TMPDIR`, else a directory that is on a disk where there is one. `/tmp` may be in
/// memory.
pub(crate) fn temporary_dir() -> PathBuf {
    let on_disk = || Some(PathBuf::from("/var/tmp")).filter(|dir| dir.is_dir());
    let chosen = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    chosen.or_else(on_disk).unwrap_or_else(std::env::temp_dir)
}

/// Whether the process, or the system, can open no more files just now.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

type Open = fn(&Path, &mut OpenOptions) -> io::Result<File>;

/// Opens a regular file as `options` says. Never blocks: a FIFO without a writer, or a device, is refused.
///
/// # Errors
/// `NotFound` as it is, also for a symbolic link to nothing; `IsADirectory` for a directory, `InvalidData` for whatever else is no
/// regular file; otherwise as the file system says.
pub fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    open_with(path, options, OFlags::NONBLOCK)
}

/// The same for a file that is to be written, which must not be a symbolic link: that would change a file elsewhere.
///
/// # Errors
/// `InvalidInput` for a symbolic link.
fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    open_with(path, options, OFlags::NONBLOCK | OFlags::NOFOLLOW).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => {
            let text = "it is a symbolic link, and writing it would change another file: replace it by a copy";
            io::Error::new(io::ErrorKind::InvalidInput, text)
        }
        _ => error,
    })
}

fn open_with(path: &Path, options: &mut OpenOptions, flags: OFlags) -> io::Result<File> {
    let opened = options.custom_flags(flags.bits() as i32).open(path);
    let found = opened.and_then(|file| file.metadata().map(|found| (file, found.file_type())));
    match found {
        Ok((file, kind)) if kind.is_file() => Ok(file),
        Ok((_, kind)) => Err(irregular(kind)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        // A socket cannot even be opened.
        Err(error) => match fs::metadata(path) {
            Ok(found) if !found.is_file() => Err(irregular(found.file_type())),
            _ => Err(error),
        },
    }
}

fn irregular(kind: fs::FileType) -> io::Error {
    let what = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() || kind.is_char_device() => "a device",
        _ => "no file",
    };
    // A directory may be put in a file's place for a while; a FIFO or a device never is by chance.
    let error = if kind.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::InvalidData };
    io::Error::new(error, format!("it is {what}, not a regular file"))
}

impl Repo for FsRepo {
    fn place(&self) -> String {
        self.dir.display().to_string()
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    fn changed(&self) -> io::Result<Option<SystemTime>> {
        // Not when it was modified: a copy takes that time over from its original, and would pass for it.
        let found = fs::metadata(&self.dir)?;
        let (seconds, nanoseconds) = (u64::try_from(found.ctime()), u32::try_from(found.ctime_nsec()));
        Ok(seconds.ok().zip(nanoseconds.ok()).map(|(s, ns)| SystemTime::UNIX_EPOCH + Duration::new(s, ns)))
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        let found = rustix::fs::statvfs(&self.dir)?;
        Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.file(name, open_regular, OpenOptions::new().read(true))
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.file(name, open_own, OpenOptions::new().read(true).write(true))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.file(name, open_own, OpenOptions::new().read(true).write(true).create_new(true))
    }

    fn map(&self, name: &str, bytes: u64) -> io::Result<Box<dyn RepoMap>> {
        let file =
            self.regular(name, open_own, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
        let bytes = bytes.max(file.metadata()?.len());
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // A file system without fallocate: zeros written out reserve the space as well.
            Err(Errno::OPNOTSUPP) => {
                let from = file.metadata()?.len();
                file.write_all_at(&vec![0; (bytes - from) as usize], from)?;
            }
            done => done?,
        }
        Ok(Box::new(FileMap::new(&file)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir(&path),
            removed => removed,
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn is_named(&self, name: &str, file: &dyn RepoFile) -> io::Result<bool> {
        let Some(file) = file.plain() else { return Ok(true) };
        let found = match fs::symlink_metadata(self.dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        let ours = file.metadata()?;
        Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino()))
    }

    /// The lock is on the directory itself (`flock`), so it leaves no file behind in a directory that must stay
    /// byte-identical to its source, and it goes with the process however that ends.
    fn lock(&self) -> io::Result<RepoLock> {
        let dir = File::open(&self.dir)?;
        match dir.try_lock() {
            Ok(()) => Ok(RepoLock::new(dir)),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        Ok(Arc::new(FsRepo::open(self.dir.join(name))?))
    }

    fn create_dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        fs::create_dir(self.dir.join(name))?;
        self.dir(name)
    }
}

/// Reads into `buf` from byte `at`; fewer bytes than asked for only at the end of the file.
pub(crate) fn read_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A file that was opened without a [`FsRepo`].
pub(crate) fn opened(file: File) -> impl RepoFile + 'static {
    FsFile { file }
}

#[derive(Debug)]
struct FsFile {
    file: File,
}

impl RepoFile for FsFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        read_at(&self.file, buf, at)
    }

    fn read_cached(&self, buf: &mut [u8], at: u64) -> io::Result<Option<usize>> {
        match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buf)], at, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok(Some(count)),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, mut slices: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0);
        while let Some(first) = slices.first() {
            let mut bytes = 0;
            let fits = |slice: &&IoSlice<'_>| {
                bytes += slice.len();
                bytes <= BYTES_PER_WRITE
            };
            let written = match slices.iter().take(SLICES_PER_WRITE).take_while(fits).count() {
                0 => rustix::io::pwrite(&self.file, &first[..BYTES_PER_WRITE], at),
                count => rustix::io::pwritev(&self.file, &slices[..count], at),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        if let Err(error) = self.file.sync_data() {
            // What the page cache still shows may not be on the disk. Who reads it next had better see what is; nothing
            // relies on it.
            let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
            return Err(error);
        }
        if self.file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the file was removed while it was being written"));
        }
        Ok(())
    }

    fn forget(&self, end: u64) {
        // Advice: a file system that does not take it changes nothing.
        let _ = rustix::fs::fadvise(&self.file, 0, std::num::NonZeroU64::new(end), Advice::DontNeed);
    }

    fn plain(&self) -> Option<&File> {
        Some(&self.file)
    }
}
