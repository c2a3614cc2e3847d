//! The mirror record: what it proves, and what happens without it.

use std::fs;

use crate::support::process::{Mirror, Service, arg, mirror};
use crate::support::{copy_of, segments, specimen};
use crate::{
    COMMIT_BYTES, SEGMENT_ENTRIES, directory, grow, is_done, is_refused, put, segment_name, untouched, whole_up_to,
};

const RECORD: &str = ".logmirror";

/// A mirror of `whole` up to `next` whose record says that only `durable` is.
fn with_record_of(durable: u64, next: u64) -> tempfile::TempDir {
    let (source, copy) = (directory(&whole_up_to(durable)), tempfile::tempdir().unwrap());
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), durable);
    grow(copy.path(), &whole_up_to(next));
    copy
}

#[test]
fn every_directory_sink_has_a_record_of_one_sector_that_names_its_source() {
    let (source, copy) = (specimen("whole"), tempfile::tempdir().unwrap());
    is_done(&mirror(arg(&source), arg(copy.path()), &[]), 360);
    let record = fs::read(copy.path().join(RECORD)).unwrap();
    assert_eq!(record.len(), 512);
    let source = fs::canonicalize(source).unwrap();
    assert!(String::from_utf8_lossy(&record).contains(arg(&source)));
    assert_eq!(record[32..40], 360_u64.to_le_bytes());
}

#[test]
fn whole_commits_after_the_records_end_are_ours_if_the_source_holds_them() {
    for durable in [111, 120, 300] {
        let copy = with_record_of(durable, 330);
        is_done(&mirror(arg(&specimen("whole")), arg(copy.path()), &[]), 360);
        assert!(segments(copy.path()) == whole_up_to(360));
    }
}

#[test]
fn whole_commits_after_the_records_end_that_differ_stop_the_mirror() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    is_done(&mirror(arg(&specimen("whole")), service.url("x"), &[]), 360);
    for changed in [300, 327] {
        let copy = with_record_of(240, 330);
        // A commit in the middle is another one, and those after it are as they were.
        let path = copy.path().join(segment_name(222));
        let mut bytes = fs::read(&path).unwrap();
        let at = (10 + (changed - 222) / 3 * 218) as usize;
        let other = crate::support::commitlog::commit(
            logmirror::format::commitlog::Version::V1,
            changed,
            0,
            3,
            &[b'x'; 218 - 26],
        );
        assert_eq!(other.len(), 218);
        bytes[at..at + 218].copy_from_slice(&other);
        fs::write(&path, bytes).unwrap();
        for source in [arg(&specimen("whole")), &service.url("x")] {
            let ended = untouched(copy.path(), || mirror(source, arg(copy.path()), &[]));
            is_refused(&ended, 1, &format!("fork: the commit at offset {changed}"));
        }
    }
}

#[test]
fn whole_commits_that_the_source_has_not_got_to_are_waited_for_and_nothing_changes() {
    let (source, copy) = (directory(&whole_up_to(270)), with_record_of(240, 330));
    let ended = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &[]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let (follower, copied) =
        (Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]), copy.path().to_owned());
    untouched(&copied, || {
        follower.wait_for("an attempt", |line| line["event"] == "started");
        grow(source.path(), &whole_up_to(300));
    });
    grow(source.path(), &whole_up_to(360));
    follower.wait_durable(360);
    assert_eq!(follower.terminate().code, Some(0));
    assert!(segments(copy.path()) == whole_up_to(360));
}

#[test]
fn a_copy_without_a_record_is_adopted_only_if_nothing_speaks_against_it() {
    let whole = specimen("whole");
    // A sound copy is.
    let copy = directory(&whole_up_to(240));
    is_done(&mirror(arg(&whole), arg(copy.path()), &[]), 360);
    assert!(copy.path().join(RECORD).exists());
    // One that is longer than the source, or ends in zeros or in half a commit, is not.
    let short = directory(&whole_up_to(240));
    let longer = copy_of("whole");
    let ended = untouched(longer.path(), || mirror(arg(short.path()), arg(longer.path()), &["--adopt"]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for tail in [vec![0; 100], vec![7; 100]] {
        let mut files = whole_up_to(240);
        files.get_mut(&segment_name(222)).unwrap().extend(&tail);
        let copy = directory(&files);
        for flags in [&[][..], &["--trim"]] {
            is_refused(&untouched(copy.path(), || mirror(arg(&whole), arg(copy.path()), flags)), 1, "--adopt");
        }
        is_done(&mirror(arg(&whole), arg(copy.path()), &["--adopt"]), 360);
        assert!(segments(copy.path()) == whole_up_to(360));
    }
}

#[test]
fn a_mirror_that_lost_durable_commits_is_refused_until_it_is_adopted() {
    let whole = specimen("whole");
    let copy = tempfile::tempdir().unwrap();
    is_done(&mirror(arg(&whole), arg(copy.path()), &[]), 360);
    fs::remove_file(copy.path().join(segment_name(333))).unwrap();
    let ended = untouched(copy.path(), || mirror(arg(&whole), arg(copy.path()), &[]));
    is_refused(&ended, 1, "was durable up to offset 360, but it ends at 333");
    is_done(&mirror(arg(&whole), arg(copy.path()), &["--adopt"]), 360);
    assert!(segments(copy.path()) == whole_up_to(360));
}

#[test]
fn an_empty_source_fixes_nothing_and_may_start_anywhere() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, root, url) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), service.url("x"));
    let copy = root.path().join("copy");
    let to_url = Mirror::start(arg(source.path()), &url, &["--follow"]);
    let to_dir = Mirror::start(arg(source.path()), arg(&copy), &["--follow"]);
    for follower in [&to_url, &to_dir] {
        follower.wait_for("an attempt", |line| line["event"] == "started");
    }
    assert!(service.status(&service.client("x")).unwrap().is_none() && !copy.exists());
    // As a database that was restored from a snapshot starts: later than at 0.
    let mut later = whole_up_to(360);
    later.remove(&segment_name(0));
    put(source.path(), &later);
    for follower in [to_url, to_dir] {
        follower.wait_durable(360);
        assert_eq!(follower.terminate().code, Some(0));
    }
    assert!(segments(&copy) == later && segments(&service.segments_of("x")) == later);
    assert_eq!(service.status(&service.client("x")).unwrap().unwrap().first.unwrap().0, SEGMENT_ENTRIES);
}

#[test]
fn a_mirror_that_lost_durable_commits_is_no_source_of_a_whole_copy() {
    let whole = segments(&specimen("whole"));
    let source = directory(&whole);
    for cut in [0, 10, 10 + 2 * COMMIT_BYTES] {
        let (lossy, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        is_done(&mirror(arg(source.path()), arg(lossy.path()), &[]), 360);
        let last = lossy.path().join(segment_name(3 * SEGMENT_ENTRIES));
        fs::File::options().write(true).open(&last).unwrap().set_len(cut).unwrap();
        for flags in [&[][..], &["--trim"]] {
            let ended = mirror(arg(lossy.path()), arg(copy.path()), flags);
            is_refused(&ended, 1, "but was durable up to 360");
        }
    }
}
