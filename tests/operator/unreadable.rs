//! Databases that this user may not read.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::process::{arg, until};
use crate::support::sqlite::connect;

/// A user without any right of its own.
const NOBODY: u32 = 65_534;

/// A mirror that does not outlive the test.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _is_gone_already = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program as a user who may read only what all may: root loses its rights, and anybody else has none.
fn as_nobody(dir: &Path, args: &[&str]) -> Command {
    let program = dir.join("logmirror");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_logmirror"), &program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(program);
    if rustix::process::getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOGMIRROR_")) {
        command.env_remove(name);
    }
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A directory that all may write, with a database that nobody may read, and one below a directory that nobody may enter.
fn kept_from_all() -> (tempfile::TempDir, [PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let paths = [dir.path().join("app.db"), closed.join("app.db")];
    for path in &paths {
        connect(path).execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    }
    fs::set_permissions(&paths[0], Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
    (dir, paths)
}

#[test]
fn a_database_that_may_not_be_read_is_no_damaged_one_but_a_matter_of_permission() {
    let (dir, paths) = kept_from_all();
    for path in &paths {
        let sink = dir.path().join("copy");
        let output = as_nobody(dir.path(), &["mirror", arg(path), arg(&sink)]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{}: {errors}", path.display());
        assert!(errors.contains("ermission denied") && errors.contains(arg(path)), "{errors}");
        assert!(!errors.contains("damaged") && !errors.contains("not a directory"), "{errors}");
        assert!(!sink.exists());

        // Once it may be read, it is.
        let said = dir.path().join("said");
        let mut command = as_nobody(dir.path(), &["mirror", arg(path), arg(&sink), "--follow"]);
        let follower = Follower(command.stderr(File::create(&said).unwrap()).spawn().unwrap());
        let line = until("it to wait", || {
            let said = fs::read_to_string(&said).unwrap();
            said.lines().find(|line| line.contains("waiting") && line.contains("application")).map(str::to_owned)
        });
        assert!(line.contains("ermission denied") && line.contains(arg(path)), "{line}");
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        until("the copy", || sink.join("base.db").exists().then_some(()));
        drop(follower);
        fs::remove_dir_all(&sink).unwrap();
    }
}
