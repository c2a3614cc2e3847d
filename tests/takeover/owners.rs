//! Files that are made beside a file of another user, or in its place, are that user's.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use crate::support::process::{Mirror, arg, until};
use crate::support::sqlite::{connect, rows};
use crate::{database, done, scene, write};

const OTHER: u32 = 1234;

/// Owner, group and mode of each file whose name starts like that.
fn files(dir: &Path, start: &str) -> BTreeMap<String, (u32, u32, u32)> {
    let found = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let of = |entry: fs::DirEntry| {
        let meta = entry.metadata().unwrap();
        (entry.file_name().into_string().unwrap(), (meta.uid(), meta.gid(), meta.mode() & 0o7777))
    };
    found.map(of).filter(|(name, _)| name.starts_with(start)).collect()
}

fn give(path: &Path, mode: u32) -> bool {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chown(path, Some(OTHER), Some(OTHER)).is_ok()
}

#[test]
fn what_is_made_beside_a_replica_file_or_in_its_place_has_its_owner_and_mode() {
    let (_data, dir, service) = scene();
    let ([app, rep], url) = (["app.db", "rep.db"].map(|name| dir.path().join(name)), service.url("app"));
    database(&app);
    done(&["mirror", arg(&app), &url]);
    done(&["mirror", &url, arg(&rep)]);
    if !give(&rep, 0o640) {
        return eprintln!("only the superuser gives files away: not tested");
    }
    let follower = Mirror::start(&url, arg(&rep), &["--follow"]);
    write(&app, &["INSERT INTO t VALUES ('second')"]);
    done(&["mirror", arg(&app), &url]);
    until("it is followed", || (rows(&connect(&rep), "SELECT * FROM t").ok()?.len() == 2).then_some(()));
    let found = files(dir.path(), "rep.db");
    assert!(found.len() >= 4, "{found:?}");
    assert!(found.values().all(|file| *file == (OTHER, OTHER, 0o640)), "{found:?}");
    assert_eq!(follower.terminate().code, Some(0));
    // Another page size: the file is made again.
    write(&app, &["PRAGMA journal_mode = DELETE", "PRAGMA page_size = 8192", "VACUUM"]);
    done(&["mirror", arg(&app), &url]);
    done(&["mirror", &url, arg(&rep)]);
    assert_eq!(rows(&connect(&rep), "PRAGMA page_size").unwrap()[0][0], 8192);
    let found = files(dir.path(), "rep.db");
    assert!(found.values().all(|file| *file == (OTHER, OTHER, 0o640)), "{found:?}");
}

#[test]
fn a_file_that_is_restored_over_keeps_its_owner_and_mode_and_a_new_one_has_the_usual() {
    let (_data, dir, service) = scene();
    let ([app, copy], url) = (["app.db", "copy"].map(|name| dir.path().join(name)), service.url("app"));
    database(&app);
    done(&["mirror", arg(&app), &url]);
    done(&["mirror", &url, arg(&copy)]);
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    let usual = files(dir.path(), "plain")["plain"];
    for (number, source) in [url.as_str(), arg(&copy)].into_iter().enumerate() {
        let name = format!("out-{number}.db");
        let out = dir.path().join(&name);
        done(&["restore", source, arg(&out)]);
        assert_eq!(files(dir.path(), &name)[&name], usual);
        let given = give(&out, 0o600);
        done(&["restore", source, arg(&out), "--force"]);
        let (uid, gid, mode) = files(dir.path(), &name)[&name];
        assert_eq!(mode, 0o600, "{source}");
        assert!(!given || (uid, gid) == (OTHER, OTHER), "{source}");
    }
}
