//! A mirror goes on where its sink ends, wherever that is, and moves nothing twice.

use std::fs;

use logmirror::format::commitlog::Version;
use logmirror::mirror::{Mirror, Place, Progress, run};

use crate::support::commitlog::{commit, header, records};
use crate::support::live_writer::compress;
use crate::support::process::{Service, arg, mirror};
use crate::support::wire::Wire;
use crate::support::{copy_of, segments, specimen};
use crate::{
    COMMIT_BYTES, COMMITS, ENTRIES, SEGMENT_ENTRIES, Segments, directory, is_done, segment_name, untouched, whole_up_to,
};

fn copy(service: &Service, source: &str, sink: &str) -> Progress {
    service.call(run(&Mirror::new(Place::parse(source), Place::parse(sink)), |_| {})).unwrap()
}

#[test]
fn a_copy_is_finished_from_every_commit_on() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, whole, full) = (specimen("whole"), whole_up_to(360), service.url("full"));
    copy(&service, arg(&source), &full);
    for held in 0..=COMMITS {
        let (part, log) = (whole_up_to(held * ENTRIES), format!("log-{held}"));
        let (dir, pulled) = (directory(&part), directory(&part));
        copy(&service, arg(dir.path()), &service.url(&log));
        if held > 0 {
            assert!(segments(&service.segments_of(&log)) == part, "{held} commits in a log");
        }
        let pushed = copy(&service, arg(&source), &service.url(&log));
        let copied = copy(&service, arg(&source), arg(dir.path()));
        let fetched = copy(&service, &full, arg(pulled.path()));
        for (progress, dir) in
            [(pushed, &service.segments_of(&log)), (copied, &dir.path().into()), (fetched, &pulled.path().into())]
        {
            assert_eq!(progress.commits, COMMITS - held);
            assert_eq!(progress.bytes, (COMMITS - held) * COMMIT_BYTES);
            assert!(segments(dir) == whole, "from {held} commits on in {}", dir.display());
        }
    }
}

#[test]
fn a_mirror_that_is_up_to_date_sends_no_log_bytes() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let wire = Wire::to(service.address());
    let (source, url, copy) = (specimen("whole"), wire.url("x"), copy_of("whole"));
    is_done(&mirror(arg(&source), &url, &[]), 120, 360);
    assert!(wire.sent() > 120 * COMMIT_BYTES);
    let heads = 1000;
    is_done(&mirror(arg(&source), &url, &[]), 0, 360);
    assert!(wire.sent() < heads, "only heads of requests");
    is_done(&mirror(&url, arg(copy.path()), &[]), 0, 360);
    is_done(&mirror(arg(&source), arg(copy.path()), &[]), 0, 360);
    assert!(segments(copy.path()) == whole_up_to(360));
}

/// `whole` without its first segment.
fn pruned() -> Segments {
    let mut pruned = whole_up_to(360);
    pruned.remove(&segment_name(0));
    pruned
}

#[test]
fn a_source_that_was_pruned_is_mirrored_from_where_it_starts() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, copies) = (directory(&pruned()), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let [url, relayed] = [service.url("x"), service.url("relayed")];
    let ways = [
        (arg(source.path()), url.as_str()),
        (&url, &relayed),
        (&relayed, arg(copies[0].path())),
        (arg(source.path()), arg(copies[1].path())),
    ];
    for (from, to) in ways {
        is_done(&mirror(from, to, &[]), 83, 360);
        is_done(&mirror(from, to, &[]), 0, 360);
    }
    for log in ["x", "relayed"] {
        assert_eq!(service.status(&service.client(log)).unwrap().unwrap().first.unwrap().0, SEGMENT_ENTRIES);
        assert!(segments(&service.segments_of(log)) == pruned());
    }
    assert!(copies.iter().all(|copy| segments(copy.path()) == pruned()));
}

#[test]
fn a_source_without_a_commit_in_common_goes_on_only_where_the_record_names_it_or_an_operator_says_so() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, held) = (directory(&whole_up_to(SEGMENT_ENTRIES)), tempfile::tempdir().unwrap());
    let [url, from] = [service.url("x"), service.url("from")];
    for sink in [&url, &from] {
        is_done(&mirror(arg(source.path()), sink, &[]), 37, 111);
    }
    is_done(&mirror(arg(source.path()), arg(held.path()), &[]), 37, 111);
    // One that is pruned right up to there, and is or is not the one before.
    let other = directory(&pruned());
    for (from, sink) in [(&other, &url), (&other, &arg(held.path()).to_owned())] {
        let refused = untouched(held.path(), || mirror(arg(from.path()), sink, &[]));
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.error().contains("ends at offset 111, where the source starts"), "{refused:?}");
        assert!(refused.error().contains("--adopt"), "{refused:?}");
    }
    std::fs::remove_file(source.path().join(segment_name(0))).unwrap();
    for (name, bytes) in pruned() {
        std::fs::write(source.path().join(name), bytes).unwrap();
    }
    is_done(&mirror(arg(source.path()), arg(held.path()), &[]), 83, 360);
    is_done(&mirror(arg(source.path()), &url, &["--adopt"]), 83, 360);
    let adopted = directory(&whole_up_to(SEGMENT_ENTRIES));
    is_done(&mirror(arg(other.path()), arg(adopted.path()), &["--adopt"]), 83, 360);
    assert!(segments(adopted.path()) == whole_up_to(360));
    for dir in [held.path(), &service.segments_of("x")] {
        assert!(segments(dir) == whole_up_to(360));
    }
}

/// A log of the old format: 2 segments, of 5 and 4 commits of 2 entries.
fn old() -> Segments {
    let segment = |start: u64, commits: u64| {
        let offsets = (0..commits).map(|at| start + at * 2);
        let bytes = offsets.flat_map(|first| commit(Version::V0, first, 0, 2, &records(first, 100)));
        (segment_name(start), header(Version::V0).into_iter().chain(bytes).collect())
    };
    [segment(0, 5), segment(10, 4)].into()
}

#[test]
fn a_log_of_version_0_is_mirrored_and_resumed_every_way() {
    const OLD_COMMIT_BYTES: usize = 14 + 100 + 4;
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, full) = (directory(&old()), service.url("full"));
    is_done(&mirror(arg(source.path()), &full, &[]), 9, 18);
    for held in 0..=9_usize {
        let mut part = old();
        let (first, second) = (held.min(5), held.saturating_sub(5));
        part.get_mut(&segment_name(0)).unwrap().truncate(10 + first * OLD_COMMIT_BYTES);
        part.get_mut(&segment_name(10)).unwrap().truncate(10 + second * OLD_COMMIT_BYTES);
        part.retain(|_, bytes| bytes.len() > 10);
        let (dir, log) = (directory(&part), format!("log-{held}"));
        copy(&service, arg(dir.path()), &service.url(&log));
        let rest = 9 - held as u64;
        is_done(&mirror(&full, service.url(&log), &[]), rest, 18);
        is_done(&mirror(&full, arg(dir.path()), &[]), rest, 18);
        for dir in [dir.path(), &service.segments_of(&log)] {
            assert!(segments(dir) == old(), "from {held} commits on in {}", dir.display());
        }
    }
}

#[test]
fn a_source_that_sealed_its_segments_meanwhile_is_resumed_inside_one() {
    let (source, copy) = (copy_of("whole"), directory(&whole_up_to(150)));
    for start in [0, 111, 222] {
        compress(source.path(), &segment_name(start));
    }
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 70, 360);
    assert!(segments(copy.path()) == whole_up_to(360));
}

#[test]
fn an_empty_source_makes_no_log_that_would_start_elsewhere() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, copy, url) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), service.url("x"));
    is_done(&mirror(arg(source.path()), &url, &["--allow-empty"]), 0, 0);
    is_done(&mirror(arg(source.path()), arg(copy.path()), &["--allow-empty"]), 0, 0);
    assert!(service.status(&service.client("x")).unwrap().is_none() && segments(copy.path()).is_empty());
    for (name, bytes) in pruned() {
        fs::write(source.path().join(name), bytes).unwrap();
    }
    is_done(&mirror(arg(source.path()), &url, &[]), 83, 360);
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 83, 360);
}

/// What a writer that was killed while it opened a segment may leave of it.
fn beginnings() -> [Vec<u8>; 5] {
    let segment = &whole_up_to(360)[&segment_name(SEGMENT_ENTRIES)];
    [0, 4, 10, 15, 10 + COMMIT_BYTES as usize - 1].map(|cut| segment[..cut].to_vec())
}

#[test]
fn a_service_that_was_killed_while_it_opened_a_segment_goes_on() {
    let data = tempfile::tempdir().unwrap();
    let mut service = Service::start(data.path());
    let (first, source) = (directory(&whole_up_to(SEGMENT_ENTRIES)), specimen("whole"));
    let logs: Vec<String> = (0..beginnings().len()).map(|at| format!("log-{at}")).collect();
    for log in &logs {
        copy(&service, arg(first.path()), &service.url(log));
    }
    service.kill();
    for (log, beginning) in logs.iter().zip(beginnings()) {
        fs::write(service.segments_of(log).join(segment_name(SEGMENT_ENTRIES)), beginning).unwrap();
    }
    service.restart();
    for log in &logs {
        is_done(&mirror(arg(&source), service.url(log), &[]), 83, 360);
        assert!(segments(&service.segments_of(log)) == whole_up_to(360), "{log}");
    }
}

#[test]
fn a_copy_that_was_killed_while_it_opened_a_segment_goes_on() {
    for beginning in beginnings() {
        let (source, copy) = (directory(&whole_up_to(SEGMENT_ENTRIES)), tempfile::tempdir().unwrap());
        is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 37, 111);
        fs::write(copy.path().join(segment_name(SEGMENT_ENTRIES)), &beginning).unwrap();
        is_done(&mirror(arg(&specimen("whole")), arg(copy.path()), &[]), 83, 360);
        assert!(segments(copy.path()) == whole_up_to(360), "{} bytes", beginning.len());
    }
}
