//! [`Failing`]: a repo whose directories can be made to fail one by one.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use logmirror::repo::{Repo, RepoFile, RepoLock, RepoMap};

use super::service::PATIENCE;

/// The number of the error "too many open files".
const EMFILE: i32 = 24;

/// What goes wrong in a directory and those below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No write finds space; half of its bytes may get there.
    DiskFull,
    /// Files cannot be synced.
    SyncFails,
    /// Directories cannot be synced.
    SyncDirFails,
    /// Nothing can be changed.
    ReadOnly,
    /// Files cannot be read.
    ReadFails,
    /// No file can be opened for reading: the process has as many as it may.
    OutOfFiles,
    /// Syncs of files do not return while this lasts.
    SyncHangs,
    /// The next sync of a file hangs while this lasts, and fails then; all others work.
    OneSyncHangsAndFails,
}

/// Says which directories are in trouble. Shared by all handles of a repo.
#[derive(Debug, Default)]
pub struct Plan {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    troubles: BTreeMap<String, Trouble>,
    hanging: usize,
    /// Syncs that may go on.
    passes: usize,
    /// The one sync of [`Trouble::OneSyncHangsAndFails`] was picked.
    picked: bool,
}

impl Plan {
    /// Lets the directory at `path` (as in `logs/app`) and all below it fail from here on.
    pub fn set(&self, path: &str, trouble: Trouble) {
        self.state().troubles.insert(path.to_owned(), trouble);
        self.changed.notify_all();
    }

    /// Lets everything work again.
    pub fn clear(&self) {
        let mut state = self.state();
        (state.troubles, state.picked) = Default::default();
        drop(state);
        self.changed.notify_all();
    }

    /// Lets one of the syncs that hang go on.
    pub fn let_one_pass(&self) {
        self.state().passes += 1;
        self.changed.notify_all();
    }

    /// Waits until this many syncs hang.
    pub fn wait_hanging(&self, count: usize) {
        let waited = self.changed.wait_timeout_while(self.state(), PATIENCE, |state| state.hanging < count).unwrap();
        assert!(!waited.1.timed_out(), "no sync came");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn trouble(state: &State, path: &str) -> Option<Trouble> {
        let is_in = |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        state.troubles.iter().find(|(dir, _)| is_in(dir)).map(|(_, trouble)| *trouble)
    }

    fn check(&self, path: &str, fails: &[Trouble]) -> io::Result<()> {
        match Plan::trouble(&self.state(), path).filter(|trouble| fails.contains(trouble)) {
            Some(Trouble::DiskFull) => Err(io::ErrorKind::StorageFull.into()),
            Some(Trouble::OutOfFiles) => Err(io::Error::from_raw_os_error(EMFILE)),
            Some(Trouble::ReadOnly) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Some(trouble) => Err(io::Error::other(format!("injected: {trouble:?}"))),
            None => Ok(()),
        }
    }

    fn hang(&self, path: &str) -> io::Result<()> {
        let mut state = self.state();
        let trouble = Plan::trouble(&state, path);
        let one = trouble == Some(Trouble::OneSyncHangsAndFails) && !state.picked;
        if trouble == Some(Trouble::SyncHangs) || one {
            state.picked |= one;
            state.hanging += 1;
            self.changed.notify_all();
            let hangs = |state: &mut State| Plan::trouble(state, path) == trouble && state.passes == 0;
            // Not for ever, so that a test that fails meanwhile comes to its end.
            state = self.changed.wait_timeout_while(state, PATIENCE / 2, hangs).unwrap().0;
            state.hanging -= 1;
            state.passes = state.passes.saturating_sub(1);
        }
        if one { Err(io::Error::other("injected: the one sync that fails")) } else { Ok(()) }
    }
}

const CHANGE: &[Trouble] = &[Trouble::ReadOnly];
const GROW: &[Trouble] = &[Trouble::ReadOnly, Trouble::DiskFull];

/// A repo that does what another does, until told to fail.
#[derive(Debug)]
pub struct Failing {
    inner: Arc<dyn Repo>,
    path: String,
    plan: Arc<Plan>,
}

impl Failing {
    pub fn new(inner: Arc<dyn Repo>) -> (Arc<Failing>, Arc<Plan>) {
        let plan = Arc::<Plan>::default();
        (Arc::new(Failing { inner, path: String::new(), plan: plan.clone() }), plan)
    }

    fn check(&self, fails: &[Trouble]) -> io::Result<()> {
        self.plan.check(&self.path, fails)
    }

    fn below(&self, name: &str, inner: Arc<dyn Repo>) -> Arc<dyn Repo> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) };
        Arc::new(Failing { inner, path, plan: self.plan.clone() })
    }

    fn file(&self, inner: Arc<dyn RepoFile>) -> Arc<dyn RepoFile> {
        Arc::new(FailingFile { inner, path: self.path.clone(), plan: self.plan.clone() })
    }
}

impl Repo for Failing {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.check(&[Trouble::ReadFails])?;
        self.inner.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.check(&[Trouble::OutOfFiles])?;
        Ok(self.file(self.inner.open(name)?))
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.check(CHANGE)?;
        Ok(self.file(self.inner.open_write(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.check(CHANGE)?;
        Ok(self.file(self.inner.create(name)?))
    }

    fn map(&self, name: &str, bytes: u64) -> io::Result<Box<dyn RepoMap>> {
        self.check(GROW)?;
        self.inner.map(name, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check(CHANGE)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check(CHANGE)?;
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.check(&[Trouble::SyncDirFails])?;
        self.inner.sync_dir()
    }

    fn lock(&self) -> io::Result<RepoLock> {
        self.inner.lock()
    }

    fn dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        Ok(self.below(name, self.inner.dir(name)?))
    }

    fn create_dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        self.check(GROW)?;
        Ok(self.below(name, self.inner.create_dir(name)?))
    }
}

#[derive(Debug)]
struct FailingFile {
    inner: Arc<dyn RepoFile>,
    path: String,
    plan: Arc<Plan>,
}

impl RepoFile for FailingFile {
    fn bytes(&self) -> io::Result<u64> {
        self.inner.bytes()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.plan.check(&self.path, &[Trouble::ReadFails])?;
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        if let Err(full) = self.plan.check(&self.path, GROW) {
            if full.kind() == io::ErrorKind::StorageFull {
                let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                self.inner.write_at(&mut [IoSlice::new(&all[..all.len() / 2])], at)?;
            }
            return Err(full);
        }
        self.inner.write_at(slices, at)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.plan.check(&self.path, CHANGE)?;
        self.inner.truncate(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.plan.hang(&self.path)?;
        self.plan.check(&self.path, &[Trouble::SyncFails])?;
        self.inner.sync()
    }
}
