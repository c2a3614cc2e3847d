//! A database that is emptied or overwritten while it is followed is waited for, and said to be that.

use std::fs;
use std::path::Path;

use crate::support::process::{Mirror, arg, until};
use crate::support::sqlite::{connect, rows};
use crate::{database, restored, scene, status, write};

fn beside(path: &Path, suffix: &str) -> String {
    format!("{}{suffix}", arg(path))
}

fn emptied(app: &Path) {
    ["-wal", "-shm"].iter().for_each(|suffix| drop(fs::remove_file(beside(app, suffix))));
    fs::write(app, "").unwrap();
}

fn emptied_alone(app: &Path) {
    fs::File::options().write(true).open(app).unwrap().set_len(0).unwrap();
}

fn overwritten(app: &Path) {
    let bytes = fs::metadata(app).unwrap().len() as usize;
    let garbage: Vec<u8> = (0..bytes).map(|at| (at * 31 + at / 251) as u8 | 1).collect();
    use std::os::unix::fs::FileExt;
    fs::File::options().write(true).open(app).unwrap().write_all_at(&garbage, 0).unwrap();
}

#[test]
fn a_database_that_is_emptied_or_overwritten_is_waited_for_and_named_and_gone_on_with() {
    let (_data, dir, service) = scene();
    type Case = (&'static str, fn(&Path), &'static str, &'static str);
    let cases: [Case; 5] = [
        ("wal-emptied", emptied, "WAL", "is empty"),
        ("wal-kept", emptied_alone, "WAL", "is empty"),
        ("journal-emptied", emptied, "DELETE", "is empty"),
        ("wal-overwritten", overwritten, "WAL", "is not a SQLite database"),
        ("journal-overwritten", overwritten, "DELETE", "is not a SQLite database"),
    ];
    for (name, harm, mode, reason) in cases {
        let (app, url) = (dir.path().join(format!("{name}.db")), service.url(name));
        database(&app);
        rows(&connect(&app), &format!("PRAGMA journal_mode = {mode}")).unwrap();
        let follower = Mirror::start(arg(&app), &url, &["--follow"]);
        until("it is copied", || (restored(&url)?.len() == 1).then_some(()));
        write(&app, &["INSERT INTO t VALUES ('second')"]);
        until("it is followed", || (restored(&url)?.len() == 2).then_some(()));
        let kept = dir.path().join("kept.db");
        let _ = fs::remove_file(&kept);
        rows(&connect(&app), &format!("VACUUM INTO '{}'", arg(&kept))).unwrap();
        // In one step: it may see nothing of what is in between.
        let durable = follower.stopped(|| {
            harm(&app);
            status(&service, name).durable
        });
        let waits = |line: &serde_json::Value| {
            let error = line["error"].as_str().unwrap_or_default();
            line["event"] == "retrying" && error.contains(reason) && error.contains(arg(&app))
        };
        follower.wait_for(&format!("{name} to be waited for"), waits);
        let progress = follower.wait_for("the state", |line| line["state"] == "waiting");
        assert!(progress["reason"].as_str().is_some_and(|text| text.contains(reason)), "{name}: {progress}");
        assert_eq!(status(&service, name).durable, durable, "{name}: nothing of it is sent");
        // Put back as it was.
        ["-wal", "-shm"].iter().for_each(|suffix| drop(fs::remove_file(beside(&app, suffix))));
        fs::rename(&kept, &app).unwrap();
        write(&app, &["INSERT INTO t VALUES ('third')"]);
        until("it goes on", || (restored(&url)?.len() == 3).then_some(()));
        assert_eq!(follower.terminate().code, Some(0), "{name}");
    }
}

#[test]
fn a_file_that_is_no_database_is_waited_for_as_that() {
    let (_data, dir, service) = scene();
    let app = dir.path().join("app.db");
    fs::write(&app, vec![7; 40_000]).unwrap();
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    let line = follower.wait_for("a wait", |line| line["event"] == "retrying");
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("is not a SQLite database"), "{error}");
    fs::remove_file(&app).unwrap();
    database(&app);
    until("it is copied", || (restored(&service.url("app"))?.len() == 1).then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn an_empty_database_is_followed_from_its_first_table_on() {
    let (_data, dir, service) = scene();
    let app = dir.path().join("app.db");
    fs::write(&app, "").unwrap();
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    follower.wait_for("it follows", |line| line["state"] == "following");
    database(&app);
    until("it is copied", || (restored(&service.url("app"))?.len() == 1).then_some(()));
    let ended = follower.terminate();
    assert!(!ended.lines.iter().any(|line| line["event"] == "retrying"), "{ended:?}");
}
