//! The files of a replica at a path P, and which of them may be removed.
//!
//! ```text
//! P-draft, P-draft-wal      what the application reads and writes
//! P-synced, P-synced-wal    what the remote has
//! P-info                    how far both are
//! P-pushed.N                what the draft was when push N was made, as a WAL on top of P-synced
//! P-draft.part, P-synced.part    a replica in the making, of no use to anybody until it is whole
//! P-whole.part              the remote's state where it was fetched whole, likewise
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::error::ReplicaError;
use crate::repo::{FsRepo, Repo, RepoFile};
use crate::sqlite::lock::alone as lock;
use crate::sync::metadata::{self, INFO};

/// The files of one replica, by name.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) dir: Arc<dyn Repo>,
    base: String,
}

/// Keeps other processes out of files for as long as it lives.
#[derive(Debug)]
pub(super) struct Held(Vec<Arc<dyn RepoFile>>);

impl Held {
    /// Out of these too.
    pub(super) fn and(mut self, mut other: Held) -> Held {
        self.0.append(&mut other.0);
        self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for file in self.0.iter().filter_map(|file| file.plain()) {
            lock::release(file);
        }
    }
}

impl Files {
    /// Of the replica `base` in a directory.
    pub(super) fn new(dir: Arc<dyn Repo>, base: &str) -> Files {
        Files { dir, base: base.to_owned() }
    }

    /// Of the replica at a path.
    ///
    /// # Errors
    /// When there is no such directory, or the path has no name in it.
    pub(super) fn at(path: &Path) -> Result<Files, ReplicaError> {
        let place = path.display().to_string();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| ReplicaError::io("opening", &place)(io::ErrorKind::InvalidFilename.into()))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = FsRepo::open(dir).map_err(ReplicaError::io("opening", &dir.display().to_string()))?;
        Ok(Files::new(Arc::new(dir), name))
    }

    /// The name of the replica, for messages.
    pub(super) fn name(&self) -> &str {
        &self.base
    }

    /// Where a file is, for programs that know no directories of other kinds.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.dir.place()).join(name)
    }

    pub(super) fn draft(&self) -> String {
        format!("{}-draft", self.base)
    }

    /// What SQLite keeps beside a draft that an application took out of WAL mode.
    pub(super) fn journal(&self) -> String {
        format!("{}-draft-journal", self.base)
    }

    pub(super) fn synced(&self) -> String {
        format!("{}-synced", self.base)
    }

    /// What was fetched whole.
    pub(super) fn whole(&self) -> String {
        format!("{}-whole.part", self.base)
    }

    pub(super) fn info(&self) -> String {
        format!("{}{INFO}", self.base)
    }

    /// What the draft was at a push.
    pub(super) fn pushed(&self, change_id: i64) -> String {
        format!("{}-pushed.{change_id}", self.base)
    }

    pub(super) fn is_there(&self, name: &str) -> Result<bool, ReplicaError> {
        match self.dir.open(name) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ReplicaError::io("opening", name)(error)),
        }
    }

    /// Removes a file if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), ReplicaError> {
        match self.dir.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ReplicaError::io("removing", name)(error)),
            _ => Ok(()),
        }
    }

    /// Keeps other processes out of a file: this program, SQLite and Turso. Nothing is locked where files are none of the
    /// system's.
    pub(super) fn hold(&self, name: &str) -> Result<Held, ReplicaError> {
        let file = self.dir.open_write(name).map_err(ReplicaError::io("opening", name))?;
        let locked = |file: &File| lock::take(file).map_err(ReplicaError::io("locking", name));
        match file.plain() {
            Some(plain) if !locked(plain)? => {
                Err(ReplicaError::Busy { file: name.to_owned(), pid: lock::holder(plain) })
            }
            _ => Ok(Held(vec![file])),
        }
    }

    /// Whether there is a rollback journal beside the draft that undoes a transaction that did not end: what its pages say
    /// is not what was committed.
    pub(super) fn has_hot_journal(&self) -> Result<bool, ReplicaError> {
        let name = self.journal();
        let mut first = [0];
        match self.dir.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.and_then(|file| file.read_at(&mut first, 0)).map_err(ReplicaError::io("reading", &name))?,
        };
        // One whose transaction ended is gone, cut, or starts with zeros.
        Ok(first != [0])
    }

    /// The pushes that have left a file.
    fn pushes(&self) -> Result<Vec<i64>, ReplicaError> {
        let start = format!("{}-pushed.", self.base);
        let names = self.dir.list().map_err(ReplicaError::io("listing", &self.dir.place()))?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(&start)?.parse().ok()).collect())
    }

    /// Removes what pushes left, but for these.
    pub(super) fn forget_pushed(&self, but: &[i64]) -> Result<(), ReplicaError> {
        let others = self.pushes()?.into_iter().filter(|number| !but.contains(number));
        others.map(|number| self.pushed(number)).try_for_each(|name| self.remove(&name))
    }

    /// A name that starts with `stamped` and that nothing was set aside under: others may have been in the same second.
    fn free_aside(&self, stamped: &str) -> Result<String, ReplicaError> {
        let names = self.dir.list().map_err(ReplicaError::io("listing", &self.dir.place()))?;
        let is_free = |aside: &String| !names.iter().any(|name| name.starts_with(&format!("{aside}-")));
        let first = std::iter::once(stamped.to_owned());
        let mut asides = first.chain((2_u64..).map(|nth| format!("{stamped}.{nth}")));
        asides
            .find(is_free)
            .ok_or_else(|| ReplicaError::io("setting aside", stamped)(io::ErrorKind::AlreadyExists.into()))
    }

    /// Gives all files of the replica other names, so that nothing in them is lost. The name they start with now.
    pub(super) fn set_aside(&self) -> Result<Option<String>, ReplicaError> {
        let aside = self.free_aside(&format!("{}.set-aside.{}", self.base, metadata::stamp(SystemTime::now())))?;
        let mut moved = false;
        // The info goes first: without it the others are only leftovers, and never taken for a replica.
        let endings = [INFO, "-draft-journal", "-draft-wal", "-draft", "-synced-wal", "-synced"].map(str::to_owned);
        for ending in endings.into_iter().chain(self.pushes()?.into_iter().map(|number| format!("-pushed.{number}"))) {
            let (from, to) = (format!("{}{ending}", self.base), format!("{aside}{ending}"));
            if self.is_there(&from)? {
                self.dir.rename(&from, &to).map_err(ReplicaError::io("setting aside", &from))?;
                self.dir.sync_dir().map_err(ReplicaError::io("setting aside", &from))?;
                moved = true;
            }
        }
        Ok(moved.then_some(aside))
    }

    /// A file that has something of the application's, or may have, where there is no info; none where a crash has left
    /// parts of a replica in the making.
    pub(super) fn used(&self) -> Result<Option<String>, ReplicaError> {
        if self.is_there(&self.draft())? {
            return Ok((!self.is_pristine()?).then(|| self.draft()));
        }
        for beside in [format!("{}-wal", self.draft()), self.journal()] {
            if self.is_there(&beside)? {
                return Ok(Some(beside));
            }
        }
        Ok(self.pushes()?.first().map(|number| self.pushed(*number)))
    }

    /// Whether `P-draft` is there and nothing but a copy of `P-synced` that nobody has used: then it is what a crash left of
    /// a replica in the making, or nothing is lost with it.
    fn is_pristine(&self) -> Result<bool, ReplicaError> {
        for beside in [format!("{}-wal", self.draft()), format!("{}-wal", self.synced()), self.journal()] {
            if self.is_there(&beside)? {
                return Ok(false);
            }
        }
        let (Ok(draft), Ok(synced)) = (self.dir.open(&self.draft()), self.dir.open(&self.synced())) else {
            return Ok(false);
        };
        let io = |name: String| move |error| ReplicaError::io("reading", &name)(error);
        let bytes = draft.bytes().map_err(io(self.draft()))?;
        if bytes != synced.bytes().map_err(io(self.synced()))? {
            return Ok(false);
        }
        let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = 0;
        while at < bytes {
            let (one, other) = (draft.read_at(&mut ours, at), synced.read_at(&mut theirs, at));
            let (one, other) = (one.map_err(io(self.draft()))?, other.map_err(io(self.synced()))?);
            if one == 0 || ours[..one] != theirs[..other] {
                return Ok(false);
            }
            at += one as u64;
        }
        Ok(true)
    }
}
