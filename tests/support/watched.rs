//! A repo that counts the bytes read through it and lets a test act at a chosen moment.
#![allow(dead_code, clippy::unwrap_used, reason = "tests, and each file uses its part of this")]

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use logmirror::repo::{Repo, RepoFile, RepoLock, RepoMap};

type Act = Box<dyn FnOnce() + Send>;

/// Another repo, watched. Clones watch the same.
#[derive(Clone)]
pub struct Watched<R> {
    inner: R,
    read: Arc<AtomicU64>,
    /// What to do before the next listing.
    before_list: Arc<Mutex<Option<Act>>>,
    /// What to do before a file of that name is opened.
    before_open: Arc<Mutex<Option<(String, Act)>>>,
}

impl<R> Watched<R> {
    pub fn new(inner: R) -> Self {
        Watched { inner, read: Arc::default(), before_list: Arc::default(), before_open: Arc::default() }
    }

    /// Bytes read since this was asked last.
    pub fn bytes_read(&self) -> u64 {
        self.read.swap(0, Ordering::SeqCst)
    }

    /// Does something right before the next listing of the directory.
    pub fn before_list(&self, act: impl FnOnce() + Send + 'static) {
        *self.before_list.lock().unwrap() = Some(Box::new(act));
    }

    /// Does something right before a file of that name is opened next.
    pub fn before_open(&self, name: &str, act: impl FnOnce() + Send + 'static) {
        *self.before_open.lock().unwrap() = Some((name.to_owned(), Box::new(act)));
    }

    /// Whether what was to be done was done.
    pub fn acted(&self) -> bool {
        self.before_list.lock().unwrap().is_none()
    }

    fn file(&self, inner: Arc<dyn RepoFile>) -> Arc<dyn RepoFile> {
        Arc::new(WatchedFile { inner, read: self.read.clone() })
    }
}

impl<R: fmt::Debug> fmt::Debug for Watched<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[derive(Debug)]
struct WatchedFile {
    inner: Arc<dyn RepoFile>,
    read: Arc<AtomicU64>,
}

impl<R: Repo> Repo for Watched<R> {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let act = self.before_list.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
        self.inner.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        let act = self.before_open.lock().unwrap().take_if(|(awaited, _)| awaited == name);
        if let Some((_, act)) = act {
            act();
        }
        self.inner.open(name).map(|file| self.file(file))
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.inner.open_write(name).map(|file| self.file(file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.inner.create(name).map(|file| self.file(file))
    }

    fn map(&self, name: &str, bytes: u64) -> io::Result<Box<dyn RepoMap>> {
        self.inner.map(name, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }

    fn lock(&self) -> io::Result<RepoLock> {
        self.inner.lock()
    }

    fn dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        self.inner.dir(name)
    }

    fn create_dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        self.inner.create_dir(name)
    }
}

impl RepoFile for WatchedFile {
    fn bytes(&self) -> io::Result<u64> {
        self.inner.bytes()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let count = self.inner.read_at(buf, at)?;
        self.read.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        self.inner.write_at(slices, at)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.inner.truncate(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}
