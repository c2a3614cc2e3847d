//! Another process writes the directory of a mirror: the mirror stops, and changes nothing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use logmirror::format::Framing;
use logmirror::format::commitlog::Version;
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, Repo};
use logmirror::segment::SegmentWriter;

use crate::support::commitlog::{commit, header};
use crate::support::process::{Mirror, arg, mirror};
use crate::support::{segments, specimen};
use crate::{COMMIT_BYTES, SEGMENT_ENTRIES, directory, grow, is_refused, segment_name, untouched, whole_up_to};

fn append(dir: &Path, file: &str, bytes: &[u8]) {
    OpenOptions::new().append(true).open(dir.join(file)).unwrap().write_all(bytes).unwrap();
}

/// What a database that was started on the mirror writes there.
fn write_as_another(dir: &Path, way: usize) {
    let other = commit(Version::V1, 240, 0, 3, b"the database that took over");
    match way {
        0 => append(dir, &segment_name(222), &other),
        // The beginning of a commit, as from a buffered writer.
        1 => append(dir, &segment_name(222), &other[..20]),
        // After a rotation.
        2 => fs::write(dir.join(segment_name(240)), [header(Version::V1), other].concat()).unwrap(),
        // Another file of the same name and length, whose last commit differs.
        _ => {
            let path = dir.join(segment_name(222));
            let mut copy = fs::read(&path).unwrap();
            let other = commit(Version::V1, 237, 0, 3, &[b'x'; COMMIT_BYTES as usize - 26]);
            let at = copy.len() - COMMIT_BYTES as usize;
            copy.splice(at.., other);
            fs::write(dir.join("copy"), copy).unwrap();
            fs::rename(dir.join("copy"), path).unwrap();
        }
    }
}

#[test]
fn a_follower_whose_directory_another_process_writes_stops_and_changes_nothing() {
    for way in 0..4 {
        let (source, copy) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
        let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
        follower.wait_durable(240);
        write_as_another(copy.path(), way);
        let ended = untouched(copy.path(), || {
            grow(source.path(), &whole_up_to(300));
            follower.ended()
        });
        if way == 3 {
            // It may be a copy that was brought back, so what it holds is compared first.
            is_refused(&ended, 1, "the commit at offset 237");
            continue;
        }
        is_refused(&ended, 1, "written by another process since");
        is_refused(&ended, 1, &format!("{}/", copy.path().display()));
        // The same command again finds out from the content.
        if matches!(way, 0 | 2) {
            let again = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &["--follow"]));
            is_refused(&again, 1, "the commit at offset 240");
        }
    }
}

#[test]
fn a_segment_that_exists_and_holds_commits_is_never_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let repo: Arc<dyn Repo> = Arc::new(FsRepo::open(dir.path()).unwrap());
    let create = || SegmentWriter::create(&repo, Offset(0), Framing::Commitlog(Version::V1), &header(Version::V1));
    let path = dir.path().join(segment_name(0));
    for content in
        [whole_up_to(111)[&segment_name(0)].clone(), b"no log at all".to_vec(), header(Version::V1)[..4].to_vec()]
    {
        fs::write(&path, &content).unwrap();
        let error = create().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    for content in [vec![], header(Version::V1), header(Version::V0)] {
        fs::write(&path, &content).unwrap();
        drop(create().unwrap());
        assert_eq!(fs::read(&path).unwrap(), header(Version::V1));
    }
}

#[test]
fn a_segment_that_cannot_be_looked_at_is_waited_for_and_not_taken_for_ours() {
    let (source, copy) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    follower.wait_durable(240);
    let (path, away) = (copy.path().join(segment_name(222)), copy.path().join("away"));
    let before = fs::read(&path).unwrap();
    fs::rename(&path, &away).unwrap();
    fs::create_dir(&path).unwrap();
    grow(source.path(), &whole_up_to(300));
    follower.wait_for("a wait", |line| line["event"] == "retrying");
    assert!(fs::read(&away).unwrap() == before);
    fs::remove_dir(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    follower.wait_durable(300);
    assert_eq!(follower.terminate().code, Some(0));
    assert!(crate::support::segments(copy.path()) == whole_up_to(300));
}

#[test]
fn a_segment_that_has_another_name_is_not_written() {
    let whole = segments(&specimen("whole"));
    let head = segment_name(3 * SEGMENT_ENTRIES);
    let links: [fn(&Path, &Path); 2] =
        [|from, to| fs::hard_link(from, to).unwrap(), |from, to| std::os::unix::fs::symlink(from, to).unwrap()];
    for link in links {
        let (source, sink, other) = (directory(&whole), directory(&whole_up_to(354)), directory(&whole_up_to(354)));
        fs::remove_file(sink.path().join(&head)).unwrap();
        link(&other.path().join(&head), &sink.path().join(&head));
        let ended = untouched(other.path(), || mirror(arg(source.path()), arg(sink.path()), &[]));
        is_refused(&ended, 1, "writing it would change that too");
    }
}

#[test]
fn a_record_that_is_a_link_is_not_written() {
    let (source, sink, other) =
        (directory(&segments(&specimen("whole"))), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(other.path().join("precious"), "precious").unwrap();
    for name in [".logmirror", "00000000000000000000.stdb.ofs"] {
        std::os::unix::fs::symlink(other.path().join("precious"), sink.path().join(name)).unwrap();
        untouched(other.path(), || mirror(arg(source.path()), arg(sink.path()), &[]));
        let _ = fs::remove_dir_all(sink.path());
        fs::create_dir(sink.path()).unwrap();
    }
}
