//! Whole commits after the end of a mirror that do not continue it are another writer's: they are never cut without being asked.

use std::fs;

use logmirror::format::commitlog::Version;

use crate::support::commitlog::{commit, header};
use crate::support::process::{Mirror, arg, mirror};
use crate::support::{segments, specimen};
use crate::{Segments, directory, is_done, is_refused, run, segment_name, untouched, whole_up_to};

const OTHER: &str = "comes a whole commit that does not continue it";

/// A mirror of `held` to whose last segment another process appended `other`.
fn written(held: &Segments, other: &[u8]) -> (tempfile::TempDir, Vec<u8>) {
    let (source, copy) = (directory(held), tempfile::tempdir().unwrap());
    assert_eq!(mirror(arg(source.path()), arg(copy.path()), &[]).code, Some(0));
    let path = copy.path().join(held.keys().next_back().unwrap());
    let bytes = [&fs::read(&path).unwrap(), other].concat();
    fs::write(&path, &bytes).unwrap();
    (copy, bytes)
}

#[test]
fn whole_commits_that_do_not_continue_a_mirror_stop_it_and_stay() {
    let at = |first, epoch| commit(Version::V1, first, epoch, 3, b"another writer's");
    let log = |commits: u64| {
        let bytes = (0..commits).flat_map(|i| at(i * 3, 2));
        Segments::from([(segment_name(0), header(Version::V1).into_iter().chain(bytes).collect())])
    };
    let whole = (whole_up_to(240), whole_up_to(360), 360);
    let ways = [
        // Offsets that were taken, by another commit; a gap; and an epoch that falls.
        (whole.clone(), at(237, 0)),
        (whole.clone(), at(30, 0)),
        (whole.clone(), [at(270, 0), at(273, 0)].concat()),
        ((log(4), log(9), 27), [at(12, 1), at(15, 1)].concat()),
    ];
    for ((held, all, end), other) in ways {
        let source = directory(&all);
        let (copy, _) = written(&held, &other);
        for flags in [&[][..], &["--trim"], &["--dry-run"], &["--follow"]] {
            let ended = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), flags));
            is_refused(&ended, 1, OTHER);
        }
        let (code, said, _) = untouched(copy.path(), || run("status", copy.path()));
        assert!(code == Some(1) && said.contains("that do not continue the log: another process wrote them"), "{said}");
        let (code, said, _) = untouched(copy.path(), || run("verify", copy.path()));
        assert!(code == Some(1) && said.contains("do not continue the log: another process wrote them"), "{said}");
        // Where that is asked for, they are kept.
        let ended = mirror(arg(source.path()), arg(copy.path()), &["--adopt"]);
        is_done(&ended, end);
        let cut = ended.last("cut");
        assert_eq!((cut["bytes"].as_u64(), &cut["whole_commits"]), (Some(other.len() as u64), &true.into()));
        assert!(fs::read(copy.path().join(cut["aside"].as_str().unwrap())).unwrap() == other);
        assert!(segments(copy.path()) == all);
    }
}

#[test]
fn an_idle_mirror_whose_directory_another_process_writes_stops() {
    let (source, copy) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    follower.wait_durable(240);
    let path = copy.path().join(segment_name(222));
    let other = commit(Version::V1, 240, 0, 3, b"a database was started here");
    fs::write(&path, [fs::read(&path).unwrap(), other].concat()).unwrap();
    is_refused(&untouched(copy.path(), || follower.ended()), 1, "written by another process since");
}

#[test]
fn a_directory_that_holds_something_else_is_no_sink() {
    let (root, whole) = (tempfile::tempdir().unwrap(), specimen("whole"));
    let replica = root.path().join("replicas/1");
    crate::put(&replica.join("clog"), &whole_up_to(240));
    fs::write(root.path().join("metadata.toml"), "").unwrap();
    for (sink, holds) in [(root.path(), "metadata.toml, replicas"), (&replica, "but clog")] {
        for flags in [&[][..], &["--follow"], &["--dry-run"]] {
            let ended = untouched(sink, || mirror(arg(&whole), arg(sink), flags));
            is_refused(&ended, 2, holds);
            is_refused(&ended, 2, "did you mean ");
            is_refused(&ended, 2, "replicas/1/clog?");
        }
    }
    // A new file system is none.
    let disk = tempfile::tempdir().unwrap();
    fs::create_dir(disk.path().join("lost+found")).unwrap();
    is_done(&mirror(arg(&whole), arg(disk.path()), &[]), 360);
    fs::write(replica.join("notes"), "").unwrap();
    is_done(&mirror(arg(&whole), arg(&replica), &["--adopt"]), 360);
}
