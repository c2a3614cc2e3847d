//! A mirror with `--follow` ends only for damaged or differing data and for usage: all else is waited for, with a reason.

use std::fs;
use std::path::Path;

use logmirror::format::LogFormat;
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, Repo};

use crate::support::frames::FrameLog;
use crate::support::process::{Mirror, Service, arg, free_address, mirror};
use crate::support::{copy_of, segments, specimen};
use crate::{append, commit, last_segment, put};

/// Waits until it says that it waits, for a reason with these words.
fn waits_for(mirror: &Mirror, words: &str) {
    mirror.wait_for(words, |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|error| error.contains(words))
    });
}

fn goes_on_to(mirror: Mirror, offset: u64) {
    mirror.wait_durable(offset);
    let ended = mirror.interrupt();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_source_that_is_not_there_yet_is_waited_for() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = dir.path().join("not/yet/clog");
    let follower = Mirror::start(arg(&source), arg(copy.path()), &["--follow"]);
    waits_for(&follower, "No such file");
    fs::create_dir_all(&source).unwrap();
    follower.wait_for("its start", |line| line["event"] == "started");
    put("whole", &source);
    goes_on_to(follower, 360);
    assert_eq!(mirror(arg(&dir.path().join("missing")), arg(copy.path()), &[]).code, Some(2));
}

#[test]
fn a_database_that_is_not_there_yet_is_waited_for() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let (database, wal) = (dir.path().join("app.db"), dir.path().join("app.db-wal"));
    let followers = [(&database, "No such file"), (&wal, "not found")].map(|(source, reason)| {
        let log = source.file_name().unwrap().to_str().unwrap();
        let follower = Mirror::start(arg(source), service.url(log), &["--follow"]);
        waits_for(&follower, reason);
        follower
    });
    let log = FrameLog::new(4096, false).commit(&[1, 2, 3], 3).commit(&[2], 3).with_base(3);
    fs::write(&wal, log.stream(&[])).unwrap();
    fs::write(dir.path().join("draft"), &log.base).unwrap();
    fs::rename(dir.path().join("draft"), &database).unwrap();
    for follower in followers {
        goes_on_to(follower, 5);
    }
}

#[test]
fn a_log_that_is_not_there_yet_is_waited_for() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let follower = Mirror::start(service.url("x"), arg(copy.path()), &["--follow"]);
    waits_for(&follower, "there is no log");
    service.call(service.client("x").create(LogFormat::Commitlog, Some(Offset(0)))).unwrap();
    assert_eq!(mirror(arg(&specimen("whole")), service.url("x"), &[]).code, Some(0));
    goes_on_to(follower, 360);
}

type Trouble = (&'static str, &'static str, fn(&Path), fn(&Path));

fn beside(dir: &Path) -> std::path::PathBuf {
    dir.with_extension("away")
}

/// What may happen to a source directory for a moment, with the words of the reason, and how it ends.
const TROUBLES: [Trouble; 5] = [
    ("gone", "No such file", |dir| fs::rename(dir, beside(dir)).unwrap(), |dir| fs::rename(beside(dir), dir).unwrap()),
    (
        "a file in its place",
        "ot a directory",
        |dir| {
            fs::rename(dir, beside(dir)).unwrap();
            fs::write(dir, "for a moment").unwrap();
        },
        |dir| {
            fs::remove_file(dir).unwrap();
            fs::rename(beside(dir), dir).unwrap();
        },
    ),
    (
        "its last segment away",
        "",
        |dir| fs::rename(last_segment(dir), beside(dir)).unwrap(),
        |dir| fs::rename(beside(dir), last_segment(dir)).unwrap(),
    ),
    (
        "its last segment a link to nowhere",
        "",
        |dir| {
            fs::rename(last_segment(dir), beside(dir)).unwrap();
            std::os::unix::fs::symlink("nowhere", last_segment(dir)).unwrap();
        },
        |dir| fs::rename(beside(dir), last_segment(dir)).unwrap(),
    ),
    (
        "its last segment unreadable",
        "",
        |dir| {
            fs::rename(last_segment(dir), beside(dir)).unwrap();
            fs::create_dir(last_segment(dir)).unwrap();
        },
        |dir| {
            fs::remove_dir(last_segment(dir)).unwrap();
            fs::rename(beside(dir), last_segment(dir)).unwrap();
        },
    ),
];

#[test]
fn a_source_that_cannot_be_read_for_a_while_is_waited_for() {
    for (what, words, starts, ends) in TROUBLES {
        let (above, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = above.path().join("source");
        put("whole", &source);
        let follower = Mirror::start(arg(&source), arg(copy.path()), &["--follow"]);
        follower.wait_durable(360);
        let before = segments(copy.path());
        starts(&source);
        waits_for(&follower, words);
        assert!(segments(copy.path()) == before, "{what}");
        ends(&source);
        append(&source, &commit(360));
        goes_on_to(follower, 365);
        // And at a start.
        starts(&source);
        let follower = Mirror::start(arg(&source), arg(copy.path()), &["--follow"]);
        waits_for(&follower, words);
        ends(&source);
        append(&source, &commit(365));
        goes_on_to(follower, 370);
    }
}

#[test]
fn a_sink_that_cannot_be_written_for_a_while_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (above, source) = (dir.path().join("above"), specimen("whole"));
    fs::write(&above, "where a directory should be").unwrap();
    let follower = Mirror::start(arg(&source), arg(&above.join("copy")), &["--follow"]);
    waits_for(&follower, "ot a directory");
    fs::remove_file(&above).unwrap();
    goes_on_to(follower, 360);
    // In use by another one, which ends.
    let copy = copy_of("whole");
    let lock = FsRepo::open(copy.path()).unwrap().lock().unwrap();
    let source = copy_of("whole");
    append(source.path(), &commit(360));
    let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    waits_for(&follower, "in use");
    drop(lock);
    goes_on_to(follower, 365);
}

#[test]
fn segments_that_are_still_being_brought_back_are_waited_for() {
    let whole = segments(&specimen("whole"));
    for (held, missing, reason) in [
        (0, &[111][..], "holds the offsets from 111 on, up to where segment 222 starts"),
        (111, &[0, 111, 222], "the sink ends at offset 111, but the source starts at 333"),
    ] {
        let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let put = |start: &u64| {
            let name = format!("{start:020}.stdb.log");
            fs::write(source.path().join(&name), &whole[&name]).unwrap();
        };
        for start in (0..held).step_by(111) {
            put(&start);
        }
        if held > 0 {
            assert_eq!(mirror(arg(source.path()), arg(copy.path()), &[]).code, Some(0));
            fs::remove_file(source.path().join(format!("{:020}.stdb.log", 0))).unwrap();
        }
        [0, 111, 222, 333].iter().filter(|start| !missing.contains(start)).for_each(put);
        let once = mirror(arg(source.path()), arg(copy.path()), &[]);
        assert_eq!(once.code, Some(1), "{once:?}");
        assert!(once.error().contains(reason), "{once:?}");
        let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
        waits_for(&follower, reason);
        missing.iter().rev().for_each(put);
        goes_on_to(follower, 360);
        assert!(segments(copy.path()) == whole);
    }
}

#[test]
fn damage_and_usage_end_a_follower() {
    let copy = tempfile::tempdir().unwrap();
    let ended = mirror(arg(&specimen("bit-flip")), arg(copy.path()), &["--follow"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let ended = mirror(format!("http://{}", free_address()), arg(copy.path()), &["--follow"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[test]
fn a_libsql_server_or_database_that_is_not_there_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, url) = (dir.path().join("replica.db"), format!("libsql+http://{}/", free_address()));
    for [source, sink] in [[arg(&dir.path().join("app.db")), &url], [&url, arg(&replica)]] {
        let follower = Mirror::start(source, sink, &["--follow"]);
        for _ in 0..3 {
            waits_for(&follower, "");
        }
        let ended = follower.interrupt();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}
