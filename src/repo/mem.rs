//! [`MemRepo`]: a directory in memory that forgets what was not synced and fails when told to.
//!
//! A file has what readers see (the page cache), what the disk holds, and which bytes of the former are still to be
//! written to the latter (dirty). A sync that succeeds writes the dirty bytes, no others. A sync that **fails** does what
//! Linux does: it marks them clean without having written them. Reads still show them, a later sync has nothing to write
//! and succeeds, and a power loss may take them. Only another write of the same bytes makes them dirty again. The same holds
//! for the length of a file and, until a name in it changes again, for the names in a directory. All of that belongs to the disk, not to a handle or a
//! process, and so outlasts both.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Repo, RepoFile, RepoLock, RepoMap};

/// Bytes a disk writes whole or not at all.
const SECTOR: usize = 512;

const POWER_LOST: &str = "power lost";

/// A kind of call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A file or directory is created.
    Create,
    /// A file is written.
    Write,
    /// A file is cut or extended.
    Truncate,
    /// A file is synced.
    Sync,
    /// A file is renamed.
    Rename,
    /// A file is removed.
    Remove,
    /// A directory is synced.
    SyncDir,
    /// A file is mapped, and grown for it.
    Map,
    /// Bytes are stored to a map.
    Store,
}

/// What goes wrong, and when. Steps are counted over all calls that change something, from 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The power goes at this step: the call and every later one fails.
    pub power_loss_at: Option<u64>,
    /// The nth call (from 0) of this kind fails, once.
    pub fail_nth: Option<(Op, u64)>,
    /// After the call that [`fail_nth`](Faults::fail_nth) failed, every call that would change something fails as well,
    /// until the faults are set again: the process that got the error ended before it could act on it.
    pub process_ends: bool,
    /// All files together may hold this many bytes.
    pub bytes_max: Option<u64>,
}

/// What a power failure does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is gone.
    All,
    /// None of it is.
    Nothing,
    /// Content is kept up to some byte, names up to some call.
    Prefix {
        /// Decides where.
        seed: u64,
    },
    /// Any sector may be there or not, and the length may run ahead of the content.
    Torn {
        /// Decides which.
        seed: u64,
    },
}

type NodeId = usize;
type Names = BTreeMap<String, NodeId>;

#[derive(Clone, Debug)]
enum Node {
    File(Content),
    Dir { now: Names, synced: Names, unsynced: Vec<NameChange>, dirty: bool, locked: Arc<AtomicBool> },
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
struct Content {
    /// What reads show.
    now: Vec<u8>,
    /// What is on the disk.
    synced: Vec<u8>,
    /// The bytes of `now` that the next sync writes: start and end of ranges, which neither overlap nor touch.
    dirty: BTreeMap<usize, usize>,
    /// Whether the next sync gives the file on the disk the length of `now`.
    resized: bool,
}

impl Content {
    fn of(bytes: Vec<u8>) -> Content {
        Content { synced: bytes.clone(), now: bytes, ..Content::default() }
    }

    fn write(&mut self, bytes: &[u8], at: usize) {
        let (from, end) = (at.min(self.now.len()), at + bytes.len());
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[at..end].copy_from_slice(bytes);
        self.soil(from, end);
    }

    fn resize(&mut self, bytes: usize) {
        let before = self.now.len();
        self.now.resize(bytes, 0);
        self.resized = true;
        self.dirty = self.dirty.iter().filter(|(from, _)| **from < bytes).map(|(f, e)| (*f, *e.min(&bytes))).collect();
        self.soil(before, bytes);
    }

    /// Marks bytes as dirty.
    fn soil(&mut self, mut from: usize, mut end: usize) {
        if from >= end {
            return;
        }
        while let Some((start, stop)) = self.dirty.range(..=end).next_back().map(|(start, stop)| (*start, *stop))
            && stop >= from
        {
            self.dirty.remove(&start);
            (from, end) = (from.min(start), end.max(stop));
        }
        self.dirty.insert(from, end);
    }

    fn sync(&mut self) {
        if self.resized {
            self.synced.resize(self.now.len(), 0);
        }
        for (from, end) in &self.dirty {
            if self.synced.len() < *end {
                self.synced.resize(*end, 0);
            }
            self.synced[*from..*end].copy_from_slice(&self.now[*from..*end]);
        }
        self.clean();
    }

    /// Forgets what was to be written.
    fn clean(&mut self) {
        self.dirty.clear();
        self.resized = false;
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Put(String, NodeId),
    Remove(String),
    Rename(String, String),
}

#[derive(Debug, Default)]
struct Disk {
    nodes: Vec<Node>,
    steps: u64,
    /// Calls seen of the kind that is to fail.
    seen: u64,
    faults: Faults,
    /// Why every call fails.
    off: Option<&'static str>,
}

/// A directory in memory, with faults. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct MemRepo {
    disk: Arc<Mutex<Disk>>,
    dir: NodeId,
    path: String,
}

impl Default for MemRepo {
    fn default() -> Self {
        MemRepo::new(Faults::default())
    }
}

fn empty_dir() -> Node {
    let (now, synced) = Default::default();
    Node::Dir { now, synced, unsynced: Vec::new(), dirty: false, locked: Arc::default() }
}

impl MemRepo {
    /// An empty directory on a disk with these faults.
    #[must_use]
    pub fn new(faults: Faults) -> Self {
        let disk = Disk { nodes: vec![empty_dir()], faults, ..Disk::default() };
        MemRepo { disk: Arc::new(Mutex::new(disk)), dir: 0, path: "memory".into() }
    }

    /// Sets the faults from here on; steps and calls are counted from 0 again. A process that ended is started again:
    /// what it wrote is there, synced or not.
    pub fn set_faults(&self, faults: Faults) {
        let mut disk = self.disk();
        (disk.faults, disk.steps, disk.seen) = (faults, 0, 0);
        disk.off = disk.off.filter(|why| *why == POWER_LOST);
    }

    /// How many calls changed something since the faults were set.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.disk().steps
    }

    /// How many calls there were of the kind that is to fail, since the faults were set.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.disk().seen
    }

    /// The disk as it is found after the power went now (or earlier, at its chosen step) and came back, without faults.
    #[must_use]
    pub fn after_power_loss(&self, loss: Loss) -> MemRepo {
        let disk = self.disk();
        let mut dice = Dice::new(loss);
        let nodes = disk.nodes.iter().map(|node| node.after(loss, &mut dice)).collect();
        let disk = Disk { nodes, ..Disk::default() };
        MemRepo { disk: Arc::new(Mutex::new(disk)), dir: self.dir, path: self.path.clone() }
    }

    /// A copy of the disk as it is, page cache and all, without locks.
    #[must_use]
    pub fn fork(&self) -> MemRepo {
        let disk = self.disk();
        let nodes = disk.nodes.iter().cloned().map(Node::unlocked).collect();
        let disk = Disk { nodes, faults: disk.faults, off: disk.off, steps: disk.steps, seen: disk.seen };
        MemRepo { disk: Arc::new(Mutex::new(disk)), dir: self.dir, path: self.path.clone() }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node_of(&self, name: &str) -> io::Result<NodeId> {
        self.disk().names(self.dir)?.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn add(&self, name: &str, node: Node) -> io::Result<NodeId> {
        let mut disk = self.disk();
        disk.step(Op::Create)?;
        if disk.names(self.dir)?.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.nodes.push(node);
        let id = disk.nodes.len() - 1;
        disk.change(self.dir, NameChange::Put(name.to_owned(), id))?;
        Ok(id)
    }

    fn file(&self, id: NodeId, writable: bool) -> MemFile {
        MemFile { disk: self.disk.clone(), id, writable }
    }

    fn handle(&self, id: NodeId) -> Arc<MemFile> {
        Arc::new(self.file(id, true))
    }
}

impl Disk {
    /// Counts a call and fails it if its time has come.
    fn step(&mut self, op: Op) -> io::Result<()> {
        let step = self.steps;
        self.steps += 1;
        if self.faults.power_loss_at.is_some_and(|at| step >= at) {
            self.off = Some(POWER_LOST);
        }
        if let Some(why) = self.off {
            return Err(io::Error::other(why));
        }
        if let Some((failing, nth)) = self.faults.fail_nth
            && failing == op
        {
            self.seen += 1;
            if self.seen == nth + 1 {
                self.off = self.faults.process_ends.then_some("the process ended");
                return Err(io::Error::other(format!("injected failure of {op:?} {nth}")));
            }
        }
        Ok(())
    }

    fn names(&self, dir: NodeId) -> io::Result<&Names> {
        match &self.nodes[dir] {
            Node::Dir { now, .. } => Ok(now),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn change(&mut self, dir: NodeId, change: NameChange) -> io::Result<()> {
        let Node::Dir { now, unsynced, dirty, .. } = &mut self.nodes[dir] else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        apply(now, &change);
        unsynced.push(change);
        *dirty = true;
        Ok(())
    }

    fn content(&mut self, file: NodeId) -> io::Result<&mut Content> {
        match &mut self.nodes[file] {
            Node::File(content) => Ok(content),
            Node::Dir { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Bytes that may still be written, if there is a limit.
    fn room(&self) -> u64 {
        let used = |node: &Node| if let Node::File(content) = node { content.now.len() as u64 } else { 0 };
        let all: u64 = self.nodes.iter().map(used).sum();
        self.faults.bytes_max.map_or(u64::MAX, |max| max.saturating_sub(all))
    }

    fn resize(&mut self, file: NodeId, bytes: u64) -> io::Result<()> {
        let room = self.room();
        let content = self.content(file)?;
        if bytes.saturating_sub(content.now.len() as u64) > room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        content.resize(bytes as usize);
        Ok(())
    }
}

fn apply(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Put(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
    }
}

impl Node {
    fn unlocked(mut self) -> Node {
        if let Node::Dir { locked, .. } = &mut self {
            *locked = Arc::default();
        }
        self
    }

    fn after(&self, loss: Loss, dice: &mut Dice) -> Node {
        match self {
            Node::File(Content { now, synced, .. }) => Node::File(Content::of(dice.content(loss, now, synced))),
            Node::Dir { synced, unsynced, .. } => {
                let kept = match loss {
                    Loss::All => 0,
                    Loss::Nothing => unsynced.len(),
                    Loss::Prefix { .. } | Loss::Torn { .. } => dice.up_to(unsynced.len()),
                };
                let mut names = synced.clone();
                unsynced[..kept].iter().for_each(|change| apply(&mut names, change));
                let unsynced = Vec::new();
                Node::Dir { now: names.clone(), synced: names, unsynced, dirty: false, locked: Arc::default() }
            }
        }
    }
}

/// A small seeded generator (xorshift), so that a failing pattern can be had again.
struct Dice(u64);

impl Dice {
    fn new(loss: Loss) -> Self {
        match loss {
            Loss::All | Loss::Nothing => Dice(1),
            Loss::Prefix { seed } | Loss::Torn { seed } => Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        }
    }

    fn up_to(&mut self, max: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % (max as u64 + 1)) as usize
    }

    fn content(&mut self, loss: Loss, now: &[u8], synced: &[u8]) -> Vec<u8> {
        if now == synced {
            return now.to_vec();
        }
        match loss {
            Loss::All => synced.to_vec(),
            Loss::Nothing => now.to_vec(),
            Loss::Prefix { .. } => {
                let same = now.iter().zip(synced).take_while(|(a, b)| a == b).count();
                let kept = same + self.up_to(now.len() - same);
                let mut found = now[..kept].to_vec();
                found.extend_from_slice(synced.get(kept..).unwrap_or_default());
                found
            }
            Loss::Torn { .. } => {
                let (short, long) = (now.len().min(synced.len()), now.len().max(synced.len()));
                let mut found = vec![0; short + self.up_to(long - short)];
                for (at, sector) in found.chunks_mut(SECTOR).enumerate() {
                    let kept = if self.up_to(1) == 0 { now } else { synced };
                    let from = kept.get(at * SECTOR..).unwrap_or_default();
                    let count = from.len().min(sector.len());
                    sector[..count].copy_from_slice(&from[..count]);
                }
                found
            }
        }
    }
}

impl Repo for MemRepo {
    fn place(&self) -> String {
        self.path.clone()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk().names(self.dir)?.keys().cloned().collect())
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        let disk = self.disk();
        Ok(disk.faults.bytes_max.map(|_| disk.room()))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        let id = self.node_of(name)?;
        Ok(Arc::new(self.file(id, false)))
    }

    fn open_write(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        Ok(self.handle(self.node_of(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
        let id = self.add(name, Node::File(Content::default()))?;
        Ok(self.handle(id))
    }

    fn map(&self, name: &str, bytes: u64) -> io::Result<Box<dyn RepoMap>> {
        let id = match self.node_of(name) {
            Ok(id) => id,
            Err(_) => self.add(name, Node::File(Content::default()))?,
        };
        let mut disk = self.disk();
        disk.step(Op::Map)?;
        let bytes = bytes.max(disk.content(id)?.now.len() as u64);
        disk.resize(id, bytes)?;
        Ok(Box::new(MemMap { file: self.file(id, true), bytes }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.node_of(from)?;
        let mut disk = self.disk();
        disk.step(Op::Rename)?;
        disk.change(self.dir, NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.node_of(name)?;
        let mut disk = self.disk();
        disk.step(Op::Remove)?;
        disk.change(self.dir, NameChange::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.disk();
        let before = disk.off;
        let done = disk.step(Op::SyncDir);
        let off = before.is_some() || disk.off == Some(POWER_LOST);
        if let (Node::Dir { synced, unsynced, dirty, .. }, false) = (&mut disk.nodes[self.dir], off) {
            if done.is_ok() && *dirty {
                unsynced.drain(..).for_each(|change| apply(synced, &change));
            }
            *dirty = false;
        }
        done
    }

    fn lock(&self) -> io::Result<RepoLock> {
        let disk = self.disk();
        let Node::Dir { locked, .. } = &disk.nodes[self.dir] else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        if locked.swap(true, Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(RepoLock::new(Unlock(locked.clone())))
    }

    fn dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        let dir = self.node_of(name)?;
        self.disk().names(dir)?;
        Ok(Arc::new(MemRepo { disk: self.disk.clone(), dir, path: format!("{}/{name}", self.path) }))
    }

    fn create_dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
        self.add(name, empty_dir())?;
        self.dir(name)
    }
}

#[derive(Debug)]
struct Unlock(Arc<AtomicBool>);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct MemFile {
    disk: Arc<Mutex<Disk>>,
    id: NodeId,
    writable: bool,
}

impl MemFile {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, disk: &mut Disk, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = at as usize;
        let grown = at.saturating_add(bytes.len());
        let room = disk.room();
        let content = disk.content(self.id)?;
        let fits = (content.now.len() as u64).saturating_add(room).min(grown as u64) as usize;
        let count = fits.saturating_sub(at).min(bytes.len());
        if count > 0 {
            content.write(&bytes[..count], at);
        }
        if count < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn change(&self, op: Op) -> io::Result<MutexGuard<'_, Disk>> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut disk = self.disk();
        disk.step(op)?;
        Ok(disk)
    }
}

impl RepoFile for MemFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.disk().content(self.id)?.now.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut disk = self.disk();
        let now = &disk.content(self.id)?.now;
        let from = now.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
        let count = from.len().min(buf.len());
        buf[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
        let mut disk = self.disk();
        let step = disk.steps;
        let done = disk.step(Op::Write);
        // What is being written as the power goes may be on the disk, in part or whole.
        if !self.writable || (done.is_err() && disk.faults.power_loss_at != Some(step)) {
            return done.and(Err(io::ErrorKind::PermissionDenied.into()));
        }
        for slice in slices {
            self.put(&mut disk, slice, at)?;
            at += slice.len() as u64;
        }
        done
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.change(Op::Truncate)?.resize(self.id, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk();
        let before = disk.off;
        let done = disk.step(Op::Sync);
        let lost_power = disk.off == Some(POWER_LOST);
        let content = disk.content(self.id)?;
        match &done {
            Ok(()) => content.sync(),
            // What was dirty is clean and not on the disk, and the next sync has nothing left to fail on.
            Err(_) if before.is_none() && !lost_power => content.clean(),
            Err(_) => {}
        }
        done
    }
}

#[derive(Debug)]
struct MemMap {
    file: MemFile,
    bytes: u64,
}

impl RepoMap for MemMap {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, buf: &mut [u8], at: u64) {
        let count = self.file.read_at(buf, at).unwrap_or(0);
        buf[count..].fill(0);
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) {
        if let Ok(mut disk) = self.file.change(Op::Store)
            && at + bytes.len() as u64 <= self.bytes
        {
            // Space was reserved when it was mapped; a file cut since takes nothing, as a map would not.
            let _ = self.file.put(&mut disk, bytes, at);
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}
