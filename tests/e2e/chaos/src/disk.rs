//! A small file system of its own that can be made full and read-only.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::statvfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// A tmpfs; unmounted when dropped.
pub struct Disk {
    path: PathBuf,
    bytes: u64,
}

impl Disk {
    /// Mounts one with room for `bytes` at `path`, which is created. It takes as much memory as is stored in it.
    pub fn mount(path: &Path, bytes: u64) -> Result<Disk> {
        fs::create_dir_all(path)?;
        let size = size(bytes)?;
        mount("none", path, "tmpfs", MountFlags::empty(), Some(&*size))
            .with_context(|| format!("mount {}", path.display()))?;
        Ok(Disk { path: path.to_owned(), bytes })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves room for about `spare` bytes more than it holds.
    pub fn fill(&self, spare: u64) -> Result<()> {
        loop {
            let now = statvfs(&self.path)?;
            let used = (now.f_blocks - now.f_bfree) * now.f_frsize;
            match mount_remount(&self.path, MountFlags::empty(), &*size(used + spare.max(4096))?) {
                // It grew meanwhile.
                Err(Errno::INVAL) => {}
                done => return done.with_context(|| format!("shrink {}", self.path.display())),
            }
        }
    }

    /// Gives all the room back.
    pub fn free(&self) -> Result<()> {
        mount_remount(&self.path, MountFlags::empty(), &*size(self.bytes)?)
            .with_context(|| format!("enlarge {}", self.path.display()))
    }

    /// Makes it read-only; false where it cannot be, because a file is open for writing.
    pub fn make_read_only(&self) -> Result<bool> {
        match mount_remount(&self.path, MountFlags::RDONLY, "") {
            Err(Errno::BUSY) => Ok(false),
            done => done.map(|()| true).with_context(|| format!("make {} read-only", self.path.display())),
        }
    }

    /// Makes it writable again.
    pub fn make_writable(&self) -> Result<()> {
        mount_remount(&self.path, MountFlags::empty(), "")
            .with_context(|| format!("make {} writable", self.path.display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

fn size(bytes: u64) -> Result<CString> {
    Ok(CString::new(format!("size={bytes}"))?)
}
