//! What readers get: ranges of a log, and logs that grow while they are read.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use logmirror::repo::{FsRepo, MemRepo};
use support::assert_bytes;
use support::failing::{Failing, Trouble};
use support::log::{Sample, commits, header};
use support::service::{PATIENCE, Service, Wire, request};
use tempfile::TempDir;

/// A commit of `whole` and the bytes of its segment before it, if it is the first there.
struct Placed {
    offsets: Range<u64>,
    bytes: Vec<u8>,
}

/// The commits of a log of version 1, found by nothing but their lengths. The first of a segment has its header with it.
fn placed(segments: impl IntoIterator<Item = Vec<u8>>) -> Vec<Placed> {
    let mut all = Vec::new();
    for bytes in segments {
        let (mut start, mut at) = (0, 10);
        while at < bytes.len() {
            let first = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let entries = u16::from_le_bytes(bytes[at + 16..at + 18].try_into().unwrap());
            let end = at + 26 + u32::from_le_bytes(bytes[at + 18..at + 22].try_into().unwrap()) as usize;
            all.push(Placed { offsets: first..first + u64::from(entries), bytes: bytes[start..end].to_vec() });
            (start, at) = (end, end);
        }
    }
    all
}

/// What `from` and `to` must give.
fn range(commits: &[Placed], from: u64, to: u64) -> Vec<u8> {
    let wanted = commits.iter().filter(|commit| commit.offsets.end > from && commit.offsets.end <= to);
    wanted.flat_map(|commit| commit.bytes.clone()).collect()
}

fn whole() -> Vec<Placed> {
    placed(support::segments(&support::specimen("whole")).into_values())
}

/// A service with `whole` in the log `app`, pushed over HTTP.
fn with_whole() -> (TempDir, Service) {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    service.create("app");
    let answer = service.append_chunked("app", "", &support::stream_of("whole"), 4096);
    assert_eq!((answer.status, &answer.json()["next"]), (200, &360.into()));
    (data, service)
}

/// One connection for many requests.
fn get(wire: &mut Wire, path: &str) -> (u16, Vec<u8>) {
    wire.send(request("GET", path, "").as_bytes());
    let answer = wire.answer();
    (answer.status, answer.body)
}

fn empty() -> Service {
    let service = Service::start(Arc::new(MemRepo::default()));
    service.create("app");
    service
}

fn follow(service: &Service, query: &str) -> Wire {
    let mut wire = service.connect();
    wire.send(request("GET", &format!("/logs/app/commits?follow=true{query}"), "").as_bytes());
    assert_eq!(wire.head().status, 200);
    wire
}

#[test]
fn files_are_those_of_the_source_byte_for_byte() {
    let (data, service) = with_whole();
    drop(service);
    let mirrored = support::segments(&data.path().join("logs/app/0000000001"));
    assert_eq!(mirrored, support::segments(&support::specimen("whole")));
}

/// From a commit's first offset and from any inside it; with the header exactly when the commit is its segment's first.
#[test]
fn every_from_gives_the_bytes_of_the_segment_files_from_that_commit_on() {
    let data = tempfile::tempdir().unwrap();
    support::plant(data.path(), "whole", "whole");
    support::plant(data.path(), "sealed", "sealed");
    support::plant(data.path(), "no-index", "no-index");
    support::plant(data.path(), "wrong-index", "wrong-index");
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    let mut wire = service.connect();
    let commits = whole();
    for log in ["whole", "sealed", "no-index", "wrong-index"] {
        for from in 0..=360 {
            let (status, body) = get(&mut wire, &format!("/logs/{log}/commits?from={from}"));
            assert_eq!(status, 200);
            assert_bytes(&body, &range(&commits, from, 360), format_args!("{log} from {from}"));
        }
    }
}

#[test]
fn every_to_ends_before_the_commit_that_holds_it() {
    let (_data, service) = with_whole();
    let mut wire = service.connect();
    let commits = whole();
    for from in [0, 1, 110, 111, 112, 221, 222, 359, 360] {
        for to in (from..=362).chain([u64::MAX]) {
            let (status, body) = get(&mut wire, &format!("/logs/app/commits?from={from}&to={to}"));
            assert_eq!(status, 200);
            // The commit that holds `from` comes whole, unless the range ends inside it.
            assert_bytes(&body, &range(&commits, from, to), format_args!("from {from} to {to}"));
        }
    }
    let whole = service.stream("app");
    assert_bytes(&whole, &support::stream_of("whole"), "without from and to");
    assert_bytes(&get(&mut wire, "/logs/app/commits?generation=1").1, &whole, "generation 1");
}

#[test]
fn ranges_that_are_not_there_are_refused_with_numbers() {
    let (_data, service) = with_whole();
    assert_eq!(service.put("/logs/later", r#"{"format":"commitlog","first":100}"#).status, 201);
    let cases = [
        ("app", "from=361", 409, "ahead"),
        ("app", "from=18446744073709551615", 409, "ahead"),
        ("app", "from=9&to=8", 400, "invalid"),
        ("app", "from=-1", 400, "invalid"),
        ("app", "from=18446744073709551616", 400, "invalid"),
        ("app", "from=1e3", 400, "invalid"),
        ("app", "from=", 400, "invalid"),
        ("app", "from=0&from=1", 400, "invalid"),
        ("app", "to=ten", 400, "invalid"),
        ("app", "follow=maybe", 400, "invalid"),
        ("app", "form=0", 400, "invalid"),
        ("app", "generation=2", 404, "not-found"),
        ("app", "generation=-2", 400, "invalid"),
        ("later", "from=99", 410, "pruned"),
        ("later", "from=101", 409, "ahead"),
        ("other", "from=0", 404, "not-found"),
        ("not%20a%20name", "from=0", 400, "invalid"),
        ("..%2f..%2fetc", "from=0", 400, "invalid"),
        ("%ff", "from=0", 400, "invalid"),
    ];
    for (log, query, status, code) in cases {
        let answer = service.get(&format!("/logs/{log}/commits?{query}"));
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{log} {query}: {}", answer.text());
        match code {
            "ahead" => assert_eq!(answer.json()["next"], if log == "app" { 360 } else { 100 }),
            "pruned" => assert_eq!(answer.json()["first"], 100),
            _ => assert!(!answer.json()["message"].as_str().unwrap().is_empty()),
        }
    }
}

#[test]
fn a_log_that_starts_later_reads_and_takes_from_its_first_offset() {
    let service = empty();
    service.put("/logs/later", r#"{"format":"commitlog","first":100}"#);
    assert_eq!(service.stream("later"), b"");
    let early = service.append("later", "", &[header(), commits(0, 1, 9, 0)].concat());
    assert_eq!(early.refusal(), (410, "pruned".to_owned()), "{}", early.text());
    assert_eq!((&early.json()["first"], &early.json()["next"]), (&100.into(), &100.into()));
    assert_eq!(service.append("later", "", &[header(), commits(101, 1, 9, 0)].concat()).refusal().1, "gap");
    let stream = [header(), commits(100, 3, 9, 0)].concat();
    assert_eq!(service.append("later", "", &stream).json()["next"], 103);
    assert_bytes(&service.stream("later"), &stream, "later");
    assert_eq!(service.get("/logs/later/segments/100").body, stream);
}

#[test]
fn a_follower_gets_what_becomes_durable_across_rotations() {
    let service = empty();
    let mut wire = follow(&service, "");
    let mut again = follow(&service, "&from=0");
    let stream = support::stream_of("whole");
    let (mut read, mut later) = (0, None);
    for end in (3000..stream.len()).step_by(3000).chain([stream.len()]) {
        // Cut anywhere: what is whole is durable, and read at once.
        let answer = service.append("app", "", &stream[..end]);
        assert!(answer.status == 200 || answer.refusal().1 == "truncated", "{}", answer.text());
        let durable = service.stream("app").len();
        assert_bytes(&wire.read_stream(durable - read), &stream[read..durable], "piece");
        read = durable;
        later.get_or_insert_with(|| (follow(&service, &format!("&from={}", answer.json()["next"])), durable));
    }
    assert_eq!(read, stream.len());
    assert_bytes(&again.read_stream(read), &stream, "from the start");
    let (mut later, at) = later.unwrap();
    assert_bytes(&later.read_stream(read - at), &stream[at..], "from the middle");
    service.stop();
    for follower in [&mut wire, &mut again, &mut later] {
        assert_eq!(follower.next_chunk().unwrap(), None);
    }
}

#[test]
fn a_follower_with_an_end_ends_there() {
    let service = empty();
    let sample = Sample::small();
    let mut to_five = follow(&service, "&to=5");
    let mut to_four = follow(&service, "&to=4");
    service.append("app", "", &sample.bytes);
    assert_bytes(&to_five.read_stream(sample.pieces[2].at.end), &sample.bytes[..sample.pieces[2].at.end], "to 5");
    assert_eq!(to_five.next_chunk().unwrap(), None);
    assert_bytes(&to_four.read_stream(sample.pieces[1].at.end), &sample.bytes[..sample.pieces[1].at.end], "to 4");
    assert_eq!(to_four.next_chunk().unwrap(), None);
}

#[test]
fn nobody_reads_past_what_is_durable() {
    let (disk, plan) = Failing::new(Arc::new(MemRepo::default()));
    let service = Service::start(disk);
    service.create("app");
    let start = [header(), commits(0, 3, 9, 0)].concat();
    service.append("app", "", &start);
    let mut follower = follow(&service, "");
    assert_bytes(&follower.read_stream(start.len()), &start, "durable so far");
    plan.set("logs/app", Trouble::SyncHangs);
    let (more, rest) = (commits(3, 2, 9, 0), commits(5, 1, 9, 0));
    let known = |bytes: &[u8], next: u64, durable: u64| {
        // The rest is in the file, but nobody may know.
        let status = service.status("app");
        assert_eq!((&status["next"], &status["durable"]), (&next.into(), &durable.into()));
        assert_eq!(status["bytes"], bytes.len());
        assert_bytes(&service.stream("app"), bytes, "range");
        let ahead = service.get(&format!("/logs/app/commits?from={}", durable + 1));
        assert_eq!((ahead.refusal().1, &ahead.json()["next"]), ("ahead".to_owned(), &durable.into()));
        assert_bytes(&service.get("/logs/app/segments/0").body, bytes, "segment");
        assert_eq!(service.get("/logs/app/segments").json()[0]["end"], durable);
    };
    let nothing_comes = |follower: &mut Wire| {
        follower.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert_eq!(follower.next_chunk().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        follower.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| service.append("app", "?from=3", &more));
        plan.wait_hanging(1);
        known(&start, 5, 3);
        nothing_comes(&mut follower);
        // More is written while the first sync is under way, which does not cover it.
        let second = scope.spawn(|| service.append("app", "?from=5", &rest));
        while service.status("app")["next"] != 6 {}
        plan.let_one_pass();
        assert_eq!(first.join().unwrap().json()["durable"], 5);
        plan.wait_hanging(1);
        known(&[&start[..], &more].concat(), 6, 5);
        assert_bytes(&follower.read_stream(more.len()), &more, "durable since");
        nothing_comes(&mut follower);
        assert!(!second.is_finished());
        plan.clear();
        assert_eq!(second.join().unwrap().json()["durable"], 6);
    });
    assert_bytes(&follower.read_stream(rest.len()), &rest, "durable later");
}
