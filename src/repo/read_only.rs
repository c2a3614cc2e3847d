//! [`ReadOnlyRepo`]: a directory that another process owns.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{FsRepo, Repo, RepoFile, RepoLock, RepoMap};

/// A directory of which files are opened for reading. Nothing in it is ever changed.
#[derive(Debug)]
pub(crate) struct ReadOnlyRepo(FsRepo);

impl ReadOnlyRepo {
    /// # Errors
    /// When there is no such directory.
    pub(crate) fn open(path: PathBuf) -> io::Result<ReadOnlyRepo> {
        FsRepo::open(path).map(ReadOnlyRepo)
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "another process owns this directory: it is only read here"))
}

impl Repo for ReadOnlyRepo {
    fn place(&self) -> String {
        self.0.place()
    }

    fn path(&self) -> Option<&Path> {
        Some(self.0.path())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.0.open(name)
    }

    fn open_write(&self, _name: &str) -> io::Result<Arc<dyn RepoFile>> {
        refused()
    }

    fn create(&self, _name: &str) -> io::Result<Arc<dyn RepoFile>> {
        refused()
    }

    fn map(&self, _name: &str, _bytes: u64) -> io::Result<Box<dyn RepoMap>> {
        refused()
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self) -> io::Result<()> {
        refused()
    }

    fn lock(&self) -> io::Result<RepoLock> {
        refused()
    }

    fn dir(&self, _name: &str) -> io::Result<Arc<dyn Repo>> {
        refused()
    }

    fn create_dir(&self, _name: &str) -> io::Result<Arc<dyn Repo>> {
        refused()
    }
}
