//! [`Mortal`]: a directory whose process dies at a chosen step, and whose machine may lose power with it.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use logmirror::repo::{FsRepo, Repo, RepoFile, RepoLock, RepoMap};

use crate::support::commitlog::Draw;

/// What a file has that a power failure would take: for each write its place, and what was there before.
type Unsynced = Vec<(u64, Vec<u8>, u64)>;

#[derive(Debug, Default)]
struct Life {
    /// Steps until the end; a step changes or syncs a file or a directory.
    left: u64,
    unsynced: BTreeMap<String, Unsynced>,
}

/// A directory that takes so many steps, and fails from then on. Of the write at which it ends half is done.
#[derive(Clone, Debug)]
pub struct Mortal {
    inner: FsRepo,
    life: Arc<Mutex<Life>>,
}

impl Mortal {
    pub fn new(dir: &std::path::Path, steps: u64) -> Mortal {
        let life = Life { left: steps, ..Life::default() };
        Mortal { inner: FsRepo::open(dir).unwrap(), life: Arc::new(Mutex::new(life)) }
    }

    /// Takes away writes that were not synced: all, or some, of each file but the wal-index.
    pub fn lose_power(&self, draw: &mut Draw, all: bool) {
        let unsynced = std::mem::take(&mut self.life.lock().unwrap().unsynced);
        for (name, writes) in unsynced.into_iter().filter(|(name, _)| !name.ends_with("-shm")) {
            let file = self.inner.open_write(&name).unwrap();
            for (at, before, bytes) in writes.into_iter().rev() {
                if all || draw.below(2) == 0 {
                    file.write_at(&mut [IoSlice::new(&before)], at).unwrap();
                    if file.bytes().unwrap() > bytes && all {
                        file.truncate(bytes).unwrap();
                    }
                }
            }
        }
    }

    /// Whether this step is still taken; `None` for the one at which it ends.
    fn step(&self) -> io::Result<Option<()>> {
        let mut life = self.life.lock().unwrap();
        match life.left {
            0 => Err(io::Error::other("injected: dead")),
            1 => {
                life.left = 0;
                Ok(None)
            }
            _ => {
                life.left -= 1;
                Ok(Some(()))
            }
        }
    }

    fn whole_step(&self) -> io::Result<()> {
        self.step()?.ok_or_else(|| io::Error::other("injected: dies"))
    }

    fn file(&self, name: &str, inner: Arc<dyn RepoFile>) -> Arc<dyn RepoFile> {
        Arc::new(MortalFile { inner, name: name.to_owned(), dir: self.clone() })
    }
}

impl Repo for Mortal {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        Ok(self.file(name, self.inner.open(name)?))
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        Ok(self.file(name, self.inner.open_write(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        self.whole_step()?;
        Ok(self.file(name, self.inner.create(name)?))
    }

    fn map(&self, _: &str, _: u64) -> io::Result<Box<dyn RepoMap>> {
        unreachable!("nothing is mapped")
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.whole_step()?;
        let mut life = self.life.lock().unwrap();
        if let Some(unsynced) = life.unsynced.remove(from) {
            life.unsynced.insert(to.to_owned(), unsynced);
        }
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.whole_step()?;
        self.life.lock().unwrap().unsynced.remove(name);
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.whole_step()?;
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

#[derive(Debug)]
struct MortalFile {
    inner: Arc<dyn RepoFile>,
    name: String,
    dir: Mortal,
}

impl MortalFile {
    fn note(&self, at: u64, len: usize) -> io::Result<()> {
        let mut before = vec![0; len];
        self.inner.read_at(&mut before, at)?;
        let bytes = self.inner.bytes()?;
        let mut life = self.dir.life.lock().unwrap();
        life.unsynced.entry(self.name.clone()).or_default().push((at, before, bytes));
        Ok(())
    }
}

impl RepoFile for MortalFile {
    fn bytes(&self) -> io::Result<u64> {
        self.inner.bytes()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let step = self.dir.step()?;
        self.note(at, all.len())?;
        match step {
            Some(()) => self.inner.write_at(&mut [IoSlice::new(&all)], at),
            None => {
                self.inner.write_at(&mut [IoSlice::new(&all[..all.len() / 2])], at)?;
                Err(io::Error::other("injected: dies while it writes"))
            }
        }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.dir.whole_step()?;
        let now = self.inner.bytes()?;
        if bytes < now {
            self.note(bytes, (now - bytes) as usize)?;
        }
        self.inner.truncate(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.dir.whole_step()?;
        self.dir.life.lock().unwrap().unsynced.remove(&self.name);
        self.inner.sync()
    }

    fn plain(&self) -> Option<&std::fs::File> {
        self.inner.plain()
    }
}
