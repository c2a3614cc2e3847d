//! The mirror record: what it proves, and what happens without it.

use std::fs;
use std::path::Path;

use logmirror::format::commitlog::Version;

use crate::support::commitlog::commit;
use crate::support::process::{Mirror, Service, arg, mirror};
use crate::support::{copy_of, segments, specimen};
use crate::{
    COMMIT_BYTES, ENTRIES, SEGMENT_ENTRIES, directory, grow, is_done, is_refused, put, segment_name, untouched,
    whole_up_to,
};

const RECORD: &str = ".logmirror";

/// A mirror of `whole` up to `next` whose record says that only `durable` is.
pub(crate) fn with_record_of(durable: u64, next: u64) -> tempfile::TempDir {
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
        change(copy.path(), changed);
        for source in [arg(&specimen("whole")), &service.url("x")] {
            let ended = untouched(copy.path(), || mirror(source, arg(copy.path()), &[]));
            is_refused(&ended, 1, &format!("the commit at offset {changed}"));
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

/// A mirror of `source` that was durable up to 360 and lost its end: its last segment is cut to `len` bytes, or removed.
fn short_of(source: &Path, len: Option<u64>) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    is_done(&mirror(arg(source), arg(copy.path()), &[]), 360);
    lose(copy.path(), len);
    copy
}

fn lose(dir: &Path, len: Option<u64>) {
    let last = dir.join(segment_name(333));
    match len {
        Some(len) => fs::File::options().write(true).open(&last).unwrap().set_len(len).unwrap(),
        None => fs::remove_file(&last).unwrap(),
    }
}

/// Lengths of a last segment that lost its end: between commits, inside one, empty, and none.
const LOST: [Option<u64>; 5] = [Some(10 + 2 * COMMIT_BYTES), Some(10 + 2 * COMMIT_BYTES + 50), Some(10), Some(0), None];

#[test]
fn commits_that_a_mirror_lost_at_its_end_are_fetched_again_and_that_is_reported() {
    let source = directory(&whole_up_to(360));
    for len in LOST {
        let next = if len > Some(10) { 339 } else { 333 };
        let copy = short_of(source.path(), len);
        let dry = untouched(copy.path(), || run_dry(source.path(), copy.path()));
        assert!(dry.contains(&format!("durable up to offset 360, but ends at {next}")), "{dry}");
        let ended = mirror(arg(source.path()), arg(copy.path()), &[]);
        is_done(&ended, 360);
        let found = ended.last("refetched");
        assert_eq!(
            (&found["from"], &found["to"], &found["offsets"]),
            (&next.into(), &360.into(), &(360 - next).into())
        );
        assert!(ended.errors.contains(&format!("offsets {next} to 360 are fetched again")), "{ended:?}");
        assert!(segments(copy.path()) == whole_up_to(360), "{len:?}");
        let again = mirror(arg(source.path()), arg(copy.path()), &[]);
        assert!(!again.lines.iter().any(|line| line["event"] == "refetched"), "{again:?}");
    }
}

fn run_dry(source: &Path, copy: &Path) -> String {
    let args = ["mirror", arg(source), arg(copy), "--dry-run"];
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap();
    String::from_utf8([out.stdout, out.stderr].concat()).unwrap()
}

#[test]
fn commits_that_a_mirror_lost_while_it_is_followed_are_fetched_again() {
    for len in [Some(10 + 2 * COMMIT_BYTES), None] {
        let (source, copy) = (directory(&whole_up_to(345)), tempfile::tempdir().unwrap());
        let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
        follower.wait_durable(345);
        // Away and back, so that no writer has the file open that is cut.
        let away = source.path().with_extension("away");
        fs::rename(source.path(), &away).unwrap();
        follower.wait_for("a wait", |line| line["event"] == "retrying");
        lose(copy.path(), len);
        fs::rename(&away, source.path()).unwrap();
        grow(source.path(), &whole_up_to(360));
        follower.wait_durable(360);
        assert_eq!(follower.terminate().last("refetched")["to"], 345);
        assert!(segments(copy.path()) == whole_up_to(360));
    }
}

#[test]
fn commits_that_a_mirror_lost_are_waited_for_while_the_source_lacks_them_too() {
    let source = directory(&whole_up_to(360));
    let copy = short_of(source.path(), None);
    // The source lost more than that, or holds something else.
    let longer = directory(&whole_up_to(360));
    lose(source.path(), Some(10 + 2 * COMMIT_BYTES));
    let ended = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &[]));
    is_refused(&ended, 1, "its mirror record says that it was durable up to offset 360, but it ends at 333");
    let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    untouched(copy.path(), || follower.wait_for("a wait", |line| line["event"] == "retrying"));
    grow(source.path(), &segments(longer.path()));
    follower.wait_durable(360);
    assert_eq!(follower.terminate().code, Some(0));
    assert!(segments(copy.path()) == whole_up_to(360));
    for (changed, words) in [(357, "the source holds another commit at offset 357"), (330, "fork: ")] {
        lose(copy.path(), None);
        let before = fs::read(source.path().join(segment_name(changed - changed % SEGMENT_ENTRIES))).unwrap();
        change(source.path(), changed);
        let ended = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &["--follow"]));
        is_refused(&ended, 1, words);
        fs::write(source.path().join(segment_name(changed - changed % SEGMENT_ENTRIES)), before).unwrap();
        is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 360);
    }
    // A mirror of another source is no mirror of this one.
    let copy = short_of(longer.path(), None);
    let ended = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &[]));
    is_refused(&ended, 1, "was durable up to offset 360, but it ends at 333");
    is_done(&mirror(arg(source.path()), arg(copy.path()), &["--adopt"]), 360);
}

#[test]
fn a_segment_that_is_missing_in_the_middle_is_named_and_waited_for() {
    let source = directory(&whole_up_to(360));
    let copy = tempfile::tempdir().unwrap();
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 360);
    let (segment, away) = (copy.path().join(segment_name(111)), copy.path().join("away"));
    fs::rename(&segment, &away).unwrap();
    let ended = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &[]));
    is_refused(&ended, 1, &format!("{}: offsets 111 to 222 are missing", copy.path().display()));
    is_refused(&ended, 1, &segment_name(111));
    let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    follower.wait_for("a wait", |line| line["event"] == "retrying");
    fs::rename(&away, &segment).unwrap();
    follower.wait_for("the rest", |line| line["state"] == "following");
    // And while it follows.
    fs::rename(&segment, &away).unwrap();
    let reason = |line: &serde_json::Value| line["reason"].as_str().is_some_and(|text| text.contains("missing"));
    follower.wait_for("a wait that says why", reason);
    fs::rename(&away, &segment).unwrap();
    follower.wait_for("the rest again", |line| line["state"] == "following");
    assert_eq!(follower.terminate().code, Some(0));
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

/// Makes the commit at `offset` another one of the same length.
pub(crate) fn change(dir: &Path, offset: u64) {
    let start = offset - offset % SEGMENT_ENTRIES;
    let path = dir.join(segment_name(start));
    let mut bytes = fs::read(&path).unwrap();
    let at = (10 + (offset - start) / ENTRIES * COMMIT_BYTES) as usize;
    let body = [b'x'; COMMIT_BYTES as usize - 26];
    let other = commit(Version::V1, offset, 0, ENTRIES as u16, &body);
    bytes[at..at + other.len()].copy_from_slice(&other);
    fs::write(&path, bytes).unwrap();
}

/// `whole` without the segments before the one that starts at `first`.
pub(crate) fn pruned_to(first: u64) -> tempfile::TempDir {
    let mut files = whole_up_to(360);
    files.retain(|name, _| *name >= segment_name(first));
    directory(&files)
}

#[test]
fn commits_after_the_records_end_that_the_source_does_not_hold_any_more_are_not_ours() {
    let source = pruned_to(333);
    for durable in [240, 330] {
        let copy = with_record_of(durable, 333);
        let ended = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &[]));
        is_refused(&ended, 1, &format!("its mirror record ends at offset {durable}"));
        is_refused(&ended, 1, "--adopt");
        is_done(&mirror(arg(source.path()), arg(copy.path()), &["--adopt"]), 360);
    }
    // Where the record ends with the directory, there is nothing to compare, and it names another source.
    let copy = with_record_of(333, 333);
    is_refused(
        &untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &[])),
        1,
        "names another source",
    );
    is_done(&mirror(arg(source.path()), arg(copy.path()), &["--adopt"]), 360);
    assert!(segments(copy.path()) == whole_up_to(360));
    // What was pruned does not matter where the source holds all from the record's end on.
    let (source, copy) = (pruned_to(222), with_record_of(240, 330));
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 360);
}

#[test]
fn the_last_durable_commit_is_compared_with_the_record_whenever_a_mirror_is_opened() {
    let source = pruned_to(333);
    for (durable, next) in [(333, 333), (240, 330)] {
        let copy = with_record_of(durable, next);
        change(copy.path(), durable - 3);
        let ended = untouched(copy.path(), || mirror(arg(source.path()), arg(copy.path()), &[]));
        is_refused(&ended, 1, &format!("the commit at offset {} was durable, but another one is there", durable - 3));
    }
}

#[test]
fn a_mirror_that_lost_all_its_segments_is_filled_again_and_that_is_reported() {
    let whole = specimen("whole");
    let copy = tempfile::tempdir().unwrap();
    is_done(&mirror(arg(&whole), arg(copy.path()), &[]), 360);
    for file in segments(copy.path()).keys() {
        fs::remove_file(copy.path().join(file)).unwrap();
    }
    let ended = mirror(arg(&whole), arg(copy.path()), &[]);
    is_done(&ended, 360);
    assert_eq!(ended.last("emptied")["durable"], 360);
    assert!(ended.errors.contains("durable up to offset 360, but it holds no segment"), "{ended:?}");
    let again = mirror(arg(&whole), arg(copy.path()), &[]);
    assert!(!again.lines.iter().any(|line| line["event"] == "emptied"), "{again:?}");
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
