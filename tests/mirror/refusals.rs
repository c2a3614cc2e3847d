//! What a mirror refuses to do, with which exit code, and that nothing is touched then.

use std::fs;
use std::path::Path;

use logmirror::format::LogFormat;
use logmirror::format::commitlog::Version;
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, Repo};

use crate::support::commitlog::{commit, header};
use crate::support::process::{Ended, Mirror, Service, arg, free_address, mirror};
use crate::support::wire::Wire;
use crate::support::{copy_of, expectations, segments, specimen};
use crate::{Segments, directory, is_done, segment_name, untouched, whole_up_to};

fn is_refused(ended: &Ended, code: i32, error: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(ended.error().contains(error), "{error:?} in {ended:?}");
    assert!(ended.errors.contains(ended.error()), "{ended:?}");
}

/// `whole` up to offset 357, and then something else.
fn forked(last: &[u8]) -> Segments {
    let mut forked = whole_up_to(357);
    forked.get_mut(&segment_name(333)).unwrap().extend_from_slice(last);
    forked
}

/// Other content, other entries, another boundary.
fn forks() -> [Segments; 3] {
    let mut moved = whole_up_to(354);
    moved.get_mut(&segment_name(333)).unwrap().extend(commit(Version::V1, 354, 0, 4, b"moved"));
    let last = |entries| commit(Version::V1, 357, 0, entries, &[b'x'; 192]);
    [forked(&last(3)), forked(&last(2)), moved]
}

#[test]
fn a_fork_is_found_before_a_byte_of_the_log_is_sent() {
    let (data, source) = (tempfile::tempdir().unwrap(), specimen("whole"));
    let service = Service::start(data.path());
    let wire = Wire::to(service.address());
    for (at, fork) in forks().into_iter().enumerate() {
        let (sink, log) = (directory(&fork), format!("log-{at}"));
        let is_fork = |ended: &Ended| is_refused(ended, 1, "the commit at offset 35");
        is_fork(&mirror(arg(&source), arg(sink.path()), &[]));
        assert!(segments(sink.path()) == fork);

        assert_eq!(mirror(arg(sink.path()), service.url(&log), &[]).code, Some(0));
        wire.sent();
        is_fork(&mirror(arg(&source), wire.url(&log), &["--follow"]));
        assert!(wire.sent() < 1000, "only heads of requests");
        assert!(segments(&service.segments_of(&log)) == fork);

        let whole = copy_of("whole");
        let ended = mirror(service.url(&log), arg(whole.path()), &[]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.error().starts_with("fork: "), "{ended:?}");
        assert!(segments(whole.path()) == whole_up_to(360));
    }
}

#[test]
fn commits_that_the_source_has_no_more_are_a_gap() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (mut pruned, held) = (whole_up_to(360), whole_up_to(108));
    pruned.remove(&segment_name(0));
    let (source, sink) = (directory(&pruned), directory(&held));
    let [full, url] = [service.url("full"), service.url("x")];
    assert_eq!(mirror(arg(source.path()), &full, &[]).code, Some(0));
    assert_eq!(mirror(arg(sink.path()), &url, &[]).code, Some(0));
    for source in [arg(source.path()), &full] {
        for sink in [arg(sink.path()), &url] {
            is_refused(&mirror(source, sink, &[]), 1, "gap: the sink ends at offset 108, but the source starts at 111");
        }
    }
    assert!(segments(sink.path()) == held && segments(&service.segments_of("x")) == held);
}

#[test]
fn a_log_that_starts_elsewhere_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    // In the middle of a commit, in the middle of a segment, and before the source.
    for (first, error) in [(5, "offset 5"), (30, "offset 30"), (0, "gap: ")] {
        let log = format!("log-{first}");
        service.call(service.client(&log).create(LogFormat::Commitlog, Some(Offset(first)))).unwrap();
        let mut source = whole_up_to(360);
        if first == 0 {
            source.remove(&segment_name(0));
        }
        let ended = mirror(arg(directory(&source).path()), service.url(&log), &[]);
        is_refused(&ended, 1, error);
        assert!(segments(&service.segments_of(&log)).is_empty());
    }
}

#[test]
fn a_torn_end_that_is_not_known_to_be_ours_is_set_aside_on_request_and_damage_is_never_cut() {
    let whole = specimen("whole");
    for expect in expectations().into_iter().filter(|expect| !expect.is_sound()) {
        let sink = copy_of(&expect.name);
        let error = match expect.name.as_str() {
            "gap" => "offsets 111 to 222 are missing",
            _ => expect.error.as_deref().unwrap_or("--adopt takes it over"),
        };
        is_refused(&untouched(sink.path(), || mirror(arg(&whole), arg(sink.path()), &[])), 1, error);
        if expect.error.is_some() {
            is_refused(
                &untouched(sink.path(), || mirror(arg(&whole), arg(sink.path()), &["--trim", "--adopt"])),
                1,
                error,
            );
        } else {
            is_refused(&untouched(sink.path(), || mirror(arg(&whole), arg(sink.path()), &["--trim"])), 1, error);
            let before = segments(sink.path());
            let ended = mirror(arg(&whole), arg(sink.path()), &["--adopt"]);
            is_done(&ended, 120 - expect.commits, 360);
            assert!(segments(sink.path()) == whole_up_to(360), "{}", expect.name);
            let cut = ended.last("cut");
            assert_eq!(cut["bytes"].as_u64(), expect.trailing, "{}", expect.name);
            let aside = fs::read(sink.path().join(cut["aside"].as_str().unwrap())).unwrap();
            assert!(before[cut["file"].as_str().unwrap()].ends_with(&aside), "{}", expect.name);
            assert_eq!(Some(aside.len() as u64), expect.trailing, "{}", expect.name);
        }
    }
}

#[test]
fn a_sink_that_another_writer_has_is_left_to_it() {
    let sink = copy_of("torn-payload");
    let _lock = FsRepo::open(sink.path()).unwrap().lock().unwrap();
    let ended = untouched(sink.path(), || mirror(arg(&specimen("whole")), arg(sink.path()), &["--adopt"]));
    is_refused(&ended, 3, "is in use by another writer");
}

#[test]
fn a_log_that_is_damaged_in_the_service_is_not_taken_for_one_that_was_reset() {
    let data = tempfile::tempdir().unwrap();
    let mut service = Service::start(data.path());
    let (url, copy) = (service.url("x"), copy_of("whole"));
    is_done(&mirror(arg(&specimen("whole")), &url, &[]), 120, 360);
    service.kill();
    let last = service.segments_of("x").join(segment_name(333));
    fs::write(&last, fs::read(specimen("bit-flip").join(segment_name(333))).unwrap()).unwrap();
    service.restart();
    let url = service.url("x");
    for follow in [&[][..], &["--follow"]] {
        is_refused(&mirror(&url, arg(copy.path()), follow), 1, "this log is damaged on disk: checksum mismatch");
    }
    let damaged = "this log is damaged on disk: checksum mismatch";
    is_refused(&mirror(arg(copy.path()), &url, &[]), 1, damaged);
    // What a pusher holds is sound: it waits until the log is repaired.
    let push = Mirror::start(arg(copy.path()), &url, &["--follow"]);
    push.wait_for("to wait", |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|error| error.contains(damaged))
    });
    assert_eq!(push.interrupt().code, Some(0));
}

#[test]
fn a_service_that_cannot_be_reached_is_given_up_after_some_attempts() {
    let (url, whole) = (format!("http://{}/logs/x", free_address()), specimen("whole"));
    let copy = tempfile::tempdir().unwrap();
    let push = Mirror::start(arg(&whole), &url, &[]);
    let pull = Mirror::start(&url, arg(copy.path()), &[]);
    for ended in [push.ended(), pull.ended()] {
        is_refused(&ended, 3, "Connection refused");
        let waits = ended.lines.iter().filter(|line| line["event"] == "retrying");
        let waits: Vec<u64> = waits.map(|line| line["after_ms"].as_u64().unwrap()).collect();
        assert_eq!(waits.len(), 6, "{ended:?}");
        assert!(waits[5] > 4 * waits[0], "{waits:?}");
    }
}

#[test]
fn a_copy_that_is_interrupted_does_not_pass_for_done() {
    let url = format!("http://{}/logs/x", free_address());
    for (flags, code) in [(&[][..], 3), (&["--follow"], 0)] {
        let push = Mirror::start(arg(&specimen("whole")), &url, flags);
        push.wait_for("an attempt that failed", |line| line["event"] == "retrying");
        let ended = push.terminate();
        ended.last("interrupted");
        assert_eq!(ended.code, Some(code), "{ended:?}");
    }
}

#[test]
fn a_service_that_is_away_for_a_while_is_waited_for() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut service = Service::start(data.path());
    let url = service.url("x");
    service.call(service.client("x").create(LogFormat::Commitlog, Some(Offset(0)))).unwrap();
    service.kill();
    let push = Mirror::start(arg(&specimen("whole")), &url, &["--follow"]);
    let pull = Mirror::start(&url, arg(copy.path()), &["--follow"]);
    for mirror in [&push, &pull] {
        mirror.wait_for("an attempt that failed", |line| line["event"] == "retrying");
    }
    service.restart();
    for mirror in [push, pull] {
        mirror.wait_durable(360);
        assert_eq!(mirror.interrupt().code, Some(0));
    }
}

#[test]
fn places_that_make_no_sense_are_a_matter_of_usage() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let (whole, host) = (specimen("whole"), service.address().to_owned());
    let urls = [
        (format!("http://{host}"), "lacks the log"),
        (format!("ftp://{host}/logs/x"), "must start with http"),
        ("http://".to_owned(), "is not the URL of a log"),
        (format!("http://{host}/logs/NOT-A-NAME"), "cannot be the name of a log"),
    ];
    for (url, error) in urls {
        is_refused(&mirror(arg(&whole), &url, &[]), 2, error);
        is_refused(&mirror(&url, arg(copy.path()), &[]), 2, error);
    }
}

#[test]
fn places_that_are_not_there_or_cannot_be_read_are_named_with_the_cause() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let (missing, file) = (dir.path().join("missing"), dir.path().join("file"));
    fs::write(&file, "no directory").unwrap();
    let unreadable = dir.path().join("unreadable");
    fs::create_dir_all(unreadable.join(segment_name(0))).unwrap();
    let copy = dir.path().join("copy");
    let cases: [(&Path, &Path, i32, &str); 3] = [
        (&missing, &copy, 2, "does not exist, but"),
        (&file, &copy, 1, "neither a directory with segments nor a SQLite database"),
        (&unreadable, &copy, 3, "it is a directory, not a regular file"),
    ];
    for (source, sink, code, error) in cases {
        is_refused(&mirror(arg(source), arg(sink), &[]), code, error);
    }
    is_refused(&mirror(arg(&specimen("whole")), arg(&file), &[]), 2, "this is a file, and DST is a directory");
    is_refused(&mirror(service.url("none"), arg(&copy), &[]), 3, "there is no log \"none\"");
    is_refused(&mirror(format!("http://{}/elsewhere", service.address()), arg(&copy), &[]), 2, "there is nothing at");
}

#[test]
fn a_commit_over_the_limit_is_refused_wherever_it_comes_from() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let big =
        [header(Version::V1), commit(Version::V1, 0, 0, 1, &[1]), commit(Version::V1, 1, 0, 1, &[2; 5000])].concat();
    let (source, copy) = (directory(&[(segment_name(0), big)].into()), tempfile::tempdir().unwrap());
    let url = service.url("x");
    let limit = ["--commit-bytes-max", "4096"];
    is_done(&mirror(arg(source.path()), &url, &[]), 2, 2);
    for source in [arg(source.path()), &url] {
        is_refused(&mirror(source, arg(copy.path()), &limit), 1, "commit length 5000 is over the limit of 4096 bytes");
    }
    is_done(&mirror(&url, arg(copy.path()), &[]), 1, 2);
}

#[test]
fn what_comes_before_a_falling_epoch_is_kept() {
    let commits: Vec<u8> = [(0, 5), (1, 5), (2, 4)]
        .iter()
        .flat_map(|&(at, epoch)| commit(Version::V1, at, epoch, 1, b"records"))
        .collect();
    let stream = [header(Version::V1), commits].concat();
    let source = directory(&Segments::from([(segment_name(0), stream)]));
    let sink = tempfile::tempdir().unwrap();
    is_refused(&mirror(arg(source.path()), arg(sink.path()), &[]), 1, "epoch");
    let kept = FsRepo::open(sink.path()).unwrap().open(&segment_name(0)).unwrap().bytes().unwrap();
    let two = commit(Version::V1, 0, 5, 1, b"records").len() as u64 * 2;
    assert_eq!(kept, two + header(Version::V1).len() as u64);
}
