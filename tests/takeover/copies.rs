//! A copy of a database, and the log that the original feeds.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::process::{Mirror, arg, mirror, until};
use crate::support::sqlite::Sqlite;
use crate::{database, done, is_refused, restored, scene, source_of, write};

fn rows_in(url: &str, count: usize) {
    until("the rows arrive", || (restored(url)?.len() == count).then_some(()));
}

/// A closed database and a copy of it.
fn copied(dir: &Path) -> [PathBuf; 2] {
    let [app, copy] = ["app.db", "copy.db"].map(|name| dir.join(name));
    database(&app);
    fs::copy(&app, &copy).unwrap();
    [app, copy]
}

#[test]
fn a_copy_takes_a_log_that_is_fed_now_only_with_adopt_and_both_mirrors_say_so() {
    let (_data, dir, service) = scene();
    let ([app, copy], url) = (copied(dir.path()), service.url("app"));
    let original = Mirror::start(arg(&app), &url, &["--follow"]);
    rows_in(&url, 1);
    let (ours, theirs) = (source_of(&service, "app"), arg(&copy));
    for flags in [&[][..], &["--follow"], &["--no-hold"]] {
        is_refused(&mirror(theirs, &url, flags), 1, &["is fed from", &ours, theirs, "--adopt"]);
    }
    write(&app, &["INSERT INTO t VALUES ('second')"]);
    rows_in(&url, 2);
    assert_eq!(source_of(&service, "app"), ours);
    // Equal pages, or a generation of its own.
    let taken = Mirror::start(theirs, &url, &["--follow", "--adopt"]);
    until("it is taken over", || source_of(&service, "app").ends_with("copy.db").then_some(()));
    write(&app, &["INSERT INTO t VALUES ('lost')"]);
    let ended = original.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for word in ["was taken over", theirs, &ours, "--adopt"] {
        assert!(ended.error().contains(word), "{word}: {}", ended.error());
    }
    assert!(!ended.error().contains("promote"), "{}", ended.error());
    let ended = taken.terminate();
    let line = ended.errors.lines().find(|line| line.contains("taken over")).unwrap_or_default();
    assert!(line.contains(&ours) && line.contains(theirs), "{}", ended.errors);
    // What the message says works.
    done(&["mirror", arg(&app), &url, "--adopt"]);
    assert_eq!(source_of(&service, "app"), ours);
    rows_in(&url, 3);
}

#[test]
fn a_log_whose_mirror_follows_is_still_fed_when_its_stream_broke_off_and_not_when_a_copy_ended() {
    let (_data, dir, service) = scene();
    let ([app, copy], url) = (copied(dir.path()), service.url("app"));
    let original = Mirror::start(arg(&app), &url, &["--follow"]);
    rows_in(&url, 1);
    original.kill();
    is_refused(&mirror(arg(&copy), &url, &[]), 1, &["is fed from", "--adopt"]);
    // A lone copy has ended for good.
    let other = service.url("other");
    done(&["mirror", arg(&app), &other]);
    let said = done(&["mirror", arg(&copy), &other]);
    assert!(said.contains("taken over"), "{said}");
}

#[test]
fn a_database_in_use_and_its_copy_do_not_take_turns() {
    let (_data, dir, service) = scene();
    let (app, url) = (dir.path().join("app.db"), service.url("app"));
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    let original = Mirror::start(arg(&app), &url, &["--follow"]);
    rows_in(&url, 1);
    let copy = dir.path().join("copy.db");
    for suffix in ["", "-wal"] {
        fs::copy(format!("{}{suffix}", arg(&app)), format!("{}{suffix}", arg(&copy))).unwrap();
    }
    is_refused(&mirror(arg(&copy), &url, &["--follow"]), 1, &["is fed from"]);
    sqlite.rows("INSERT INTO t VALUES (2)");
    rows_in(&url, 2);
    assert_eq!(original.terminate().code, Some(0));
}
