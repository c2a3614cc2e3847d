//! Databases and replicas that are given by another name than their own: SQLite has the WAL beside the name it opened.

use std::fs;
use std::os::unix::fs::symlink;

use crate::sqlite::{dump, rows};
use crate::support::process::{Mirror, arg, mirror, until};
use crate::support::sqlite::Sqlite;
use crate::{Stage, beside};

/// An application that has the database open, with all that it wrote in the WAL, in a directory of its own.
fn app(stage: &Stage) -> (Sqlite, std::path::PathBuf) {
    let dir = stage.path("real");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE t (x)"]);
    app.rows("INSERT INTO t VALUES (1)");
    (app, path)
}

#[test]
fn a_database_that_is_given_by_a_symbolic_link_is_pushed_with_what_is_in_its_wal() {
    let stage = Stage::new();
    let (mut app, path) = app(&stage);
    let (link, replica) = (stage.path("app.db"), stage.path("replica.db"));
    symlink(&path, &link).unwrap();
    let ended = mirror(arg(&link), stage.fake.url(), &[]);
    assert_eq!((ended.code, stage.fake.frames()), (Some(0), 3), "{ended:?}");
    let follower = Mirror::start(arg(&link), stage.fake.url(), &["--follow"]);
    app.rows("INSERT INTO t VALUES (2)");
    until("the next row", || (stage.fake.frames() == 4).then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
    assert!(!beside(&link, "-info").exists());
    stage.pull(&replica).unwrap();
    assert_eq!(dump(&replica), dump(&path));
}

#[test]
fn a_database_whose_wal_is_beside_another_of_its_names_is_not_pushed() {
    let stage = Stage::new();
    let (_app, path) = app(&stage);
    let link = stage.path("app.db");
    fs::hard_link(&path, &link).unwrap();
    let ended = mirror(arg(&link), stage.fake.url(), &[]);
    assert_eq!((ended.code, stage.fake.frames()), (Some(3), 0), "{ended:?}");
    assert!(ended.error().contains("has 2 names"), "{ended:?}");
}

#[test]
fn a_replica_is_not_made_through_a_symbolic_link() {
    let stage = Stage::new();
    let db = stage.database(&rows(3));
    stage.push(&db).unwrap();
    let (file, link) = (stage.path("file.db"), stage.path("link.db"));
    symlink(&file, &link).unwrap();
    for there in [false, true] {
        if there {
            stage.pull(&file).unwrap();
        }
        for flags in [&[][..], &["--follow"], &["--adopt"], &["--dry-run"]] {
            let ended = mirror(stage.fake.url(), arg(&link), flags);
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(ended.error().contains("symbolic link"), "{ended:?}");
        }
        assert!(link.is_symlink() && file.exists() == there);
    }
    assert_eq!(dump(&file), dump(&db));
}
