//! A source whose history changes under its mirror: reset, or cut short. It is told as a fork, and nothing is touched.

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

type Change = (&'static str, fn(&Path));

/// What happens to the source `whole`, 120 commits with 360 entries.
const CHANGES: [Change; 7] = [
    ("emptied", clear),
    ("a shorter history", |dir| rewrite(dir, 10)),
    ("a longer history", |dir| rewrite(dir, 1000)),
    ("the last commit lost", |dir| shorten(dir, LAST_COMMIT)),
    ("the last commit torn", |dir| shorten(dir, 7)),
    ("two commits lost", |dir| shorten(dir, 2 * LAST_COMMIT)),
    ("the last segment lost", |dir| {
        fs::remove_file(dir.join(name::segment(LogFormat::Commitlog, Offset(LAST_SEGMENT)))).unwrap()
    }),
];

/// Each commit of `whole` is as long as the others.
const LAST_COMMIT: u64 = (1972 - 10) / 9;

#[test]
fn a_source_that_changes_its_history_while_it_is_followed_ends_the_mirror_as_a_fork() {
    for (case, change) in CHANGES {
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
fn a_source_that_changed_its_history_is_a_fork_at_the_next_start_of_a_directory() {
    for (case, change) in CHANGES {
        for flags in [&[][..], &["--follow"]] {
            let (source, copy) = (copy_of("whole"), copy_of("whole"));
            change(source.path());
            is_fork(&mirror(arg(source.path()), arg(copy.path()), flags), &format!("{case} {flags:?}"));
            assert_eq!(segments(copy.path()), segments(copy_of("whole").path()), "{case}");
        }
    }
}

#[test]
fn a_source_that_changed_its_history_is_a_fork_at_the_next_start_of_a_log() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    for (at, (case, change)) in CHANGES.into_iter().enumerate() {
        let (source, changed) = (copy_of("whole"), copy_of("whole"));
        change(changed.path());
        let url = service.url(&format!("log-{at}"));
        assert_eq!(mirror(arg(source.path()), &url, &[]).code, Some(0), "{case}");
        for flags in [&[][..], &["--follow"]] {
            is_fork(&mirror(arg(changed.path()), &url, flags), &format!("{case} {flags:?}"));
        }
        // And the other way round: the service as a source that is behind, or elsewhere.
        let behind = service.url(&format!("behind-{at}"));
        if mirror(arg(changed.path()), &behind, &["--trim"]).last("done")["next"].as_u64() > Some(0) {
            for flags in [&[][..], &["--follow"]] {
                let copy = copy_of("whole");
                is_fork(&mirror(&behind, arg(copy.path()), flags), &format!("{case} from a log {flags:?}"));
            }
        }
    }
}
