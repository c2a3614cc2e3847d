//! A source whose history changes under its mirror. Another commit at an offset that both hold is a fork and ends the
//! mirror; a source that merely ends earlier, or shows nothing, proves nothing and is waited for. Nothing is touched.

use std::fs::{self, OpenOptions};
use std::path::Path;

use logmirror::format::commitlog::{SegmentHeader, Version, encode_commit};
use logmirror::format::{LogFormat, name};
use logmirror::offset::{Epoch, Offset};

use crate::support::process::{Ended, Mirror, Service, arg, mirror};
use crate::support::{copy_of, files, segments};

const LAST_SEGMENT: u64 = 333;

fn clear(dir: &Path) {
    for name in files(dir).keys() {
        fs::remove_file(dir.join(name)).unwrap();
    }
}

/// Another log in the same place: one segment with `commits` commits.
fn rewrite(dir: &Path, commits: u64) {
    clear(dir);
    let mut bytes = SegmentHeader { version: Version::V1 }.encode().to_vec();
    for first in 0..commits {
        encode_commit(Version::V1, Offset(first), Epoch(1), 1, b"another history", &mut bytes);
    }
    fs::write(dir.join(name::segment(LogFormat::Commitlog, Offset(0))), bytes).unwrap();
}

/// Cuts `bytes` off the end of the log.
fn shorten(dir: &Path, bytes: u64) {
    let last = OpenOptions::new()
        .write(true)
        .open(dir.join(name::segment(LogFormat::Commitlog, Offset(LAST_SEGMENT))))
        .unwrap();
    last.set_len(last.metadata().unwrap().len() - bytes).unwrap();
}

fn is_fork(ended: &Ended, case: &str) {
    assert_eq!(ended.code, Some(1), "{case}: {ended:?}");
    assert!(ended.error().starts_with("fork: "), "{case}: {}", ended.error());
    assert!(ended.errors.contains(ended.error()), "{case}: {}", ended.errors);
}

/// It ends before the sink: an error for a mirror that does not follow, but no fork.
fn ends_earlier(ended: &Ended, case: &str) {
    // A directory without segments is a matter of usage.
    let (code, error) = match case.starts_with("emptied") {
        true => (2, "holds no segments"),
        false => (1, "the source ends at offset "),
    };
    assert_eq!(ended.code, Some(code), "{case}: {ended:?}");
    assert!(ended.error().contains(error) && !ended.error().contains("fork"), "{case}: {}", ended.error());
}

/// It follows, says what it waits for, and calls it no fork.
fn waits(mirror: &Mirror, case: &str) {
    let line = mirror.wait_for("a reason to wait", |line| line["event"] == "retrying");
    let reason = line["error"].as_str().unwrap();
    assert!(!reason.contains("fork"), "{case}: {reason}");
    assert!(reason.contains("ends at offset") || reason.contains("does not hold the commit"), "{case}: {reason}");
}

/// Brings the source back, and one commit more, for which the mirror must go on by itself.
fn goes_on(mirror: Mirror, source: &Path, case: &str) {
    clear(source);
    for (name, bytes) in files(copy_of("whole").path()) {
        fs::write(source.join(name), bytes).unwrap();
    }
    let mut bytes = fs::read(source.join(name::segment(LogFormat::Commitlog, Offset(LAST_SEGMENT)))).unwrap();
    encode_commit(Version::V1, Offset(360), Epoch(9), 5, &[7; 300], &mut bytes);
    fs::write(source.join(name::segment(LogFormat::Commitlog, Offset(LAST_SEGMENT))), bytes).unwrap();
    mirror.wait_durable(365);
    assert_eq!(mirror.interrupt().code, Some(0), "{case}");
}

type Change = (&'static str, fn(&Path));

/// What proves a fork.
const FORKS: [Change; 3] = [
    ("a longer history", |dir| rewrite(dir, 1000)),
    ("a history as long", |dir| rewrite(dir, 358)),
    ("a shorter history", |dir| rewrite(dir, 10)),
];

/// What proves nothing. The source is `whole`, 120 commits with 360 entries.
const LOSSES: [Change; 7] = [
    ("emptied", clear),
    ("the last commit lost", |dir| shorten(dir, LAST_COMMIT)),
    ("the last commit torn", |dir| shorten(dir, 7)),
    ("two commits lost", |dir| shorten(dir, 2 * LAST_COMMIT)),
    ("the last segment emptied", |dir| {
        fs::write(dir.join(name::segment(LogFormat::Commitlog, Offset(LAST_SEGMENT))), b"").unwrap()
    }),
    ("the last segment cut to its header", |dir| shorten(dir, 9 * LAST_COMMIT)),
    ("the last segment lost", |dir| {
        fs::remove_file(dir.join(name::segment(LogFormat::Commitlog, Offset(LAST_SEGMENT)))).unwrap()
    }),
];

/// Each commit of `whole` is as long as the others.
const LAST_COMMIT: u64 = (1972 - 10) / 9;

#[test]
fn another_history_under_a_mirror_that_follows_ends_it_as_a_fork() {
    for (case, change) in FORKS {
        let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
        let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
        mirror.wait_durable(360);
        let before = segments(copy.path());
        change(source.path());
        is_fork(&mirror.ended(), case);
        assert_eq!(segments(copy.path()), before, "{case}");
    }
}

#[test]
fn a_source_that_loses_its_end_while_it_is_followed_is_waited_for() {
    for (case, change) in LOSSES {
        let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
        let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
        mirror.wait_durable(360);
        let before = segments(copy.path());
        change(source.path());
        waits(&mirror, case);
        assert_eq!(segments(copy.path()), before, "{case}");
        goes_on(mirror, source.path(), case);
    }
}

#[test]
fn a_source_that_changed_is_compared_at_the_next_start_of_a_directory() {
    for flags in [&[][..], &["--follow"]] {
        for (case, change) in FORKS {
            let (source, copy) = (copy_of("whole"), copy_of("whole"));
            change(source.path());
            is_fork(&mirror(arg(source.path()), arg(copy.path()), flags), &format!("{case} {flags:?}"));
            assert_eq!(segments(copy.path()), segments(copy_of("whole").path()), "{case}");
        }
    }
    for (case, change) in LOSSES {
        let (source, copy) = (copy_of("whole"), copy_of("whole"));
        change(source.path());
        ends_earlier(&mirror(arg(source.path()), arg(copy.path()), &[]), case);
        assert_eq!(segments(copy.path()), segments(copy_of("whole").path()), "{case}");
        let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
        waits(&follower, case);
        goes_on(follower, source.path(), case);
    }
}

#[test]
fn a_source_that_changed_is_compared_at_the_next_start_of_a_log() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    for (at, (case, change)) in FORKS.into_iter().chain(LOSSES).enumerate() {
        let (source, changed) = (copy_of("whole"), copy_of("whole"));
        change(changed.path());
        let url = service.url(&format!("log-{at}"));
        let is_expected = if at < FORKS.len() { is_fork } else { ends_earlier };
        assert_eq!(mirror(arg(source.path()), &url, &[]).code, Some(0), "{case}");
        is_expected(&mirror(arg(changed.path()), &url, &[]), case);
        // And the other way round: the service as a source that is behind, or elsewhere.
        let behind = service.url(&format!("behind-{at}"));
        let copied = mirror(arg(changed.path()), &behind, &["--trim"]);
        if copied.code == Some(0) {
            let copy = copy_of("whole");
            is_expected(&mirror(&behind, arg(copy.path()), &[]), case);
            if at >= FORKS.len() {
                let follower = Mirror::start(&behind, arg(copy.path()), &["--follow"]);
                waits(&follower, case);
                assert_eq!(follower.interrupt().code, Some(0), "{case}");
            }
        }
    }
}
