//! Whose a file is that is made beside another one, or takes its place: the owner's of that one, also when the superuser makes it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Gid, Uid, fchown};
use rustix::io::Errno;

/// Gives `file`, which is called `name` in a warning, the owner, the group and the mode of the file that `model` is of. Where
/// this user may not give files away it stays this user's; it is reported if the owner of the other one cannot read it then.
///
/// # Errors
/// As the file system says, but for a missing permission to change owner or mode.
pub(crate) fn give_owner(file: &File, model: &Metadata, name: &Path) -> io::Result<()> {
    let found = file.metadata()?;
    let (uid, gid, mode) = (model.uid(), model.gid(), model.mode() & 0o7777);
    if (found.uid(), found.gid()) != (uid, gid) {
        // A member of the group may at least give it to that.
        let given = fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .or_else(|_| fchown(file, None, Some(Gid::from_raw(gid))));
        match given {
            // Some file systems know no owners.
            Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // After the owner, whose change takes bits away.
    if file.metadata()?.mode() & 0o7777 != mode {
        match file.set_permissions(model.permissions()) {
            // It is another user's.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            set => set?,
        }
    }
    let now = file.metadata()?;
    let mode = now.mode() & 0o7777;
    let may_read = now.uid() == uid || mode & 0o004 != 0 || (now.gid() == gid && mode & 0o040 != 0);
    if !may_read {
        log::warn!(
            "{}: it belongs to user {}, who may not give it to user {uid}, and with mode {mode:o} that one cannot read it: run this \
             as user {uid}, or give it to that user (chown {uid}:{gid})",
            name.display(),
            now.uid()
        );
    }
    Ok(())
}
