//! Live appends with acknowledgements, and appends that meet: each offset has one winner.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::{Arc, Barrier};
use std::time::Instant;

use logmirror::limits::DRAIN_WAIT;
use logmirror::repo::{Loss, MemRepo};
use serde_json::{Value, json};
use support::assert_bytes;
use support::log::{Sample, commit, commits, header};
use support::service::{Service, Setup, Wire};

fn start() -> Service {
    let service = Service::start(Arc::new(MemRepo::default()));
    service.create("app");
    service
}

/// A live append, its first line read.
fn live(service: &Service, query: &str) -> (Wire, Value) {
    let mut wire = service.begin_append("app", query);
    let head = wire.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/x-ndjson")));
    let first = wire.next_json().unwrap();
    (wire, first)
}

/// Ends the body and returns the lines that are left.
fn finish(mut wire: Wire) -> Vec<Value> {
    wire.send_chunk(b"");
    std::iter::from_fn(|| wire.next_json()).collect()
}

#[test]
fn acks_come_back_while_the_body_is_open() {
    let service = start();
    let (mut wire, first) = live(&service, "?acks=stream");
    assert_eq!(first, json!({"durable": 0}));
    wire.send_chunk(&header());
    for offset in 0..20 {
        wire.send_chunk(&commits(offset, 1, 10, 0));
        assert_eq!(wire.next_json().unwrap(), json!({"durable": offset + 1}));
        assert_eq!(service.status("app")["durable"], offset + 1);
    }
    assert_eq!(finish(wire), [json!({"next": 20, "durable": 20, "appended": 20, "skipped": 0})]);
}

#[test]
fn what_was_acked_survives_power_loss() {
    let disk = MemRepo::default();
    let service = Service::start(Arc::new(disk.clone()));
    service.create("app");
    let (mut wire, _) = live(&service, "?acks=stream");
    wire.send_chunk(&header());
    for offset in 0..20 {
        wire.send_chunk(&commits(offset, 1, 100, 0));
        let durable = wire.next_json().unwrap()["durable"].as_u64().unwrap();
        let found = Service::start(Arc::new(disk.after_power_loss(Loss::All)));
        assert!(found.status("app")["durable"].as_u64().unwrap() >= durable);
    }
}

#[test]
fn the_error_of_a_live_append_is_its_last_line_and_comes_at_once() {
    let service = start();
    let (mut wire, _) = live(&service, "?acks=stream");
    wire.send_chunk(&[header(), commits(0, 3, 10, 0)].concat());
    while wire.next_json().unwrap() != json!({"durable": 3}) {}
    let since = Instant::now();
    wire.send_chunk(&commits(7, 1, 10, 0));
    let last = wire.next_json().unwrap();
    assert_eq!((&last["error"], &last["next"]), (&"gap".into(), &3.into()), "{last}");
    assert_eq!(wire.next_json(), None);
    assert!(since.elapsed() < DRAIN_WAIT, "took {:?}", since.elapsed());
}

#[test]
fn a_live_append_that_ends_inside_a_commit_ends_with_truncated() {
    let service = start();
    let (mut wire, _) = live(&service, "?acks=stream&from=0");
    let sample = Sample::small();
    wire.send_chunk(&sample.bytes[..sample.bytes.len() - 1]);
    let last = finish(wire).pop().unwrap();
    assert_eq!((&last["error"], &last["next"], &last["offset"]), (&"truncated".into(), &5.into(), &5.into()));
}

#[test]
fn a_live_append_that_cannot_start_is_refused_by_its_status() {
    let service = start();
    let mut wire = service.begin_append("app", "?acks=stream&from=x");
    assert_eq!(wire.answer().refusal(), (400, "invalid".to_owned()));
    let mut wire = service.begin_append("other", "?acks=stream");
    assert_eq!(wire.answer().refusal(), (404, "not-found".to_owned()));
}

/// What somebody else made durable is no acknowledgement of what this append sent.
#[test]
fn a_live_append_is_not_acked_for_the_commits_of_another() {
    let service = start();
    let (mut loser, _) = live(&service, "?acks=stream&from=0");
    let theirs = [header(), commits(0, 3, 10, 1)].concat();
    loser.send_chunk(&theirs[..20]);
    let ours = [header(), commits(0, 3, 10, 0)].concat();
    assert_eq!(service.append("app", "", &ours).status, 200);
    loser.send_chunk(&theirs[20..]);
    let lines = finish(loser);
    let codes: Vec<_> = lines.iter().map(|line| (line["error"].as_str(), line["at"].as_u64())).collect();
    assert_eq!(codes, [(Some("fork"), Some(0))], "{lines:?}");
    assert_bytes(&service.stream("app"), &ours, "app");
}

#[test]
fn a_live_append_is_acked_for_commits_that_were_there_already() {
    let service = start();
    let stream = [header(), commits(0, 3, 10, 0)].concat();
    service.append("app", "", &stream);
    let (mut wire, first) = live(&service, "?acks=stream&from=0");
    assert_eq!(first, json!({"durable": 0}));
    wire.send_chunk(&stream);
    while wire.next_json().unwrap() != json!({"durable": 3}) {}
    wire.send_chunk(&commits(3, 1, 10, 0));
    while wire.next_json().unwrap() != json!({"durable": 4}) {}
    // Nothing moved in the log, and the sender heard all the same that what it sent is safe. So does a second one.
    let mut other = service.begin_append("app", "?acks=stream&from=3");
    other.head();
    other.send_chunk(&commits(3, 1, 10, 0));
    let mut durable = other.next_json().unwrap();
    while durable != json!({"durable": 4}) {
        durable = other.next_json().unwrap();
    }
    assert_eq!(finish(wire), [json!({"next": 4, "durable": 4, "appended": 1, "skipped": 3})]);
    assert_eq!(finish(other).pop().unwrap(), json!({"next": 4, "durable": 4, "appended": 0, "skipped": 1}));
}

#[test]
fn commits_that_are_there_are_skipped_and_counted() {
    let service = start();
    let stream = Sample::small().bytes;
    let outcome = |answer: support::service::Answer| answer.json();
    let first = outcome(service.append("app", "", &stream));
    assert_eq!(first, json!({"next": 6, "durable": 6, "appended": 3, "skipped": 0}));
    let again = outcome(service.append("app", "", &stream));
    assert_eq!(again, json!({"next": 6, "durable": 6, "appended": 0, "skipped": 3}));
    let more = [stream.clone(), commits(6, 2, 5, 0)].concat();
    let longer = outcome(service.append_chunked("app", "", &more, 3));
    assert_eq!(longer, json!({"next": 8, "durable": 8, "appended": 2, "skipped": 3}));
    assert_bytes(&service.stream("app"), &more, "app");
}

#[test]
fn an_append_goes_on_from_any_commit_that_is_there() {
    let service = start();
    let sample = Sample::small();
    for piece in sample.pieces.iter().filter(|piece| piece.next.start < piece.next.end) {
        service.append("app", "", &sample.bytes);
        let from = format!("?from={}", piece.next.start);
        let rest = &sample.bytes[piece.at.start..];
        let answer = service.append("app", &from, rest);
        assert_eq!((answer.status, &answer.json()["next"]), (200, &6.into()), "{}", answer.text());
    }
    // From the end on, without a header and with one.
    assert_eq!(service.append("app", "?from=6", &commits(6, 1, 5, 0)).status, 200);
    assert_eq!(service.append("app", "?from=7", &[header(), commits(7, 1, 5, 0)].concat()).status, 200);
    assert_eq!(service.append("app", "?from=18446744073709551615", &commits(9, 1, 5, 0)).refusal().1, "gap");
    let starts: Vec<_> = service.get("/logs/app/segments").json().as_array().unwrap().iter().map(start_of).collect();
    assert_eq!(starts, [0, 5, 7]);
}

fn start_of(segment: &Value) -> u64 {
    segment["start"].as_u64().unwrap()
}

/// A header belongs to the stream it came in: whoever appends next goes on with the open segment.
#[test]
fn a_header_without_commits_opens_no_segment_for_others() {
    let service = start();
    let stream = [header(), commits(0, 3, 10, 0)].concat();
    service.append("app", "", &stream);
    let header_alone = service.append("app", "", &header());
    assert_eq!((header_alone.status, &header_alone.json()["next"]), (200, &3.into()));
    let header_and_gap = service.append("app", "", &[header(), commits(9, 1, 10, 0)].concat());
    assert_eq!(header_and_gap.refusal().1, "gap");
    let (mut open, _) = live(&service, "?acks=stream");
    open.send_chunk(&header());
    assert_eq!(service.append("app", "?from=3", &commits(3, 1, 10, 0)).status, 200);
    assert_eq!(service.status("app")["segments"], 1);
    // While the stream that brought the header, in a chunk of its own, gets its segment.
    open.send_chunk(&commits(4, 1, 10, 0));
    while open.next_json().unwrap() != json!({"durable": 5}) {}
    let segments = service.get("/logs/app/segments").json();
    assert_eq!(segments.as_array().unwrap().iter().map(start_of).collect::<Vec<_>>(), [0, 4]);
}

#[test]
fn of_two_that_append_at_once_exactly_one_wins_each_offset() {
    const OFFSETS: u64 = 200;
    let service = start();
    service.append("app", "", &[header(), commits(0, 1, 4, 0)].concat());
    let gate = Barrier::new(2);
    let won = |id: u8| {
        gate.wait();
        let (mut next, mut won) = (1, Vec::new());
        while next < OFFSETS {
            let answer = service.append("app", "", &commit(next, 0, 1, &[id]));
            match answer.status {
                200 => won.push(next),
                _ => assert!(["fork", "gap"].contains(&&*answer.refusal().1), "{}", answer.text()),
            }
            next = answer.json()["next"].as_u64().unwrap();
        }
        won
    };
    let (a, b) = std::thread::scope(|scope| {
        let (a, b) = (scope.spawn(|| won(1)), scope.spawn(|| won(2)));
        (a.join().unwrap(), b.join().unwrap())
    });
    let winner = |offset: u64| match (a.contains(&offset), b.contains(&offset)) {
        (true, false) => 1,
        (false, true) => 2,
        both => panic!("offset {offset} was won by {both:?}"),
    };
    let end = service.status("app")["durable"].as_u64().unwrap();
    let wanted: Vec<u8> = (1..end).flat_map(|offset| commit(offset, 0, 1, &[winner(offset)])).collect();
    assert_bytes(&service.stream("app"), &[header(), commits(0, 1, 4, 0), wanted].concat(), "app");
}

#[test]
fn two_that_append_the_same_at_once_both_succeed_and_store_it_once() {
    let service = start();
    let stream = [header(), commits(0, 500, 50, 0)].concat();
    let gate = Barrier::new(2);
    let append = |size| {
        gate.wait();
        service.append_chunked("app", "", &stream, size).json()
    };
    let (a, b) = std::thread::scope(|scope| {
        let (a, b) = (scope.spawn(|| append(64)), scope.spawn(|| append(777)));
        (a.join().unwrap(), b.join().unwrap())
    });
    let sum = |key: &str| a[key].as_u64().unwrap() + b[key].as_u64().unwrap();
    assert_eq!((sum("appended"), sum("skipped")), (500, 500), "{a} {b}");
    assert_bytes(&service.stream("app"), &stream, "app");
}

#[test]
fn an_endless_body_flows_through_a_small_memory_budget() {
    let mut setup = Setup::default();
    setup.settings.memory_max = 4 << 20;
    let service = Service::start_with(Arc::new(MemRepo::default()), setup);
    service.create("app");
    let (mut wire, _) = live(&service, "?acks=stream&from=0");
    wire.send_chunk(&header());
    for part in 0..24 {
        wire.send_chunk(&commits(part * 8, 8, 128 << 10, 0));
    }
    let last = finish(wire).pop().unwrap();
    assert_eq!(last, json!({"next": 192, "durable": 192, "appended": 192, "skipped": 0}));
}

#[test]
fn a_commit_in_chunks_of_one_byte_takes_no_more_of_the_budget_than_one_in_one_piece() {
    let mut setup = Setup::default();
    (setup.settings.memory_max, setup.settings.commit_bytes_max) = (4 << 20, 64 << 10);
    let service = Service::start_with(Arc::new(MemRepo::default()), setup);
    service.create("app");
    let stream = [header(), commits(0, 2, 60 << 10, 0)].concat();
    let answer = service.append_chunked("app", "", &stream, 1);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_bytes(&service.stream("app"), &stream, "app");
}
