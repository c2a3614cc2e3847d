//! Replacing a small file so that a crash leaves the old content or the new, never a mixture or nothing.

use std::io::{self, IoSlice};

use super::Repo;

/// Replaces the content of `name`. After Ok the new content survives power loss; after Err the old or the new does.
///
/// Three steps, each needed: the file is synced before the rename, or the name could point at an empty file; the rename
/// is atomic, so a reader sees one content whole; the directory is synced, or the rename itself could be forgotten.
///
/// # Errors
/// As the repo says.
pub fn replace(repo: &dyn Repo, name: &str, content: &[u8]) -> io::Result<()> {
    let draft = format!("{name}.tmp");
    match repo.remove(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let file = repo.create(&draft)?;
        file.write_at(&mut [IoSlice::new(content)], 0)?;
        file.sync()?;
        repo.rename(&draft, name)
    })();
    if written.is_err() {
        // What cannot be removed now is removed by the next attempt.
        let _ = repo.remove(&draft);
    }
    written?;
    repo.sync_dir()
}

/// The name that [`persist_names`] creates and removes.
const SCRATCH: &str = ".sync.tmp";

/// Makes the names in a directory durable, also those of before: of some an earlier [`Repo::sync_dir`] may have failed, and
/// then a further one can succeed without having written them. So the directory is changed first. After Ok, every name
/// in it survives power loss; in a directory that takes no new name (full, or read-only), only if no sync of it failed before.
///
/// # Errors
/// As the repo says; nothing is known then.
pub fn persist_names(repo: &dyn Repo) -> io::Result<()> {
    use io::ErrorKind::{AlreadyExists, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match repo.create(SCRATCH) {
        Err(error) => match error.kind() {
            AlreadyExists => repo.remove(SCRATCH)?,
            PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull => {}
            _ => return Err(error),
        },
        Ok(_) => repo.remove(SCRATCH)?,
    }
    repo.sync_dir()
}
