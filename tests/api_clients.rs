//! Clients that dawdle, vanish, come in crowds or never read, and a service that shuts down under them: others are
//! served on, memory stays bounded, and what was acknowledged is kept.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use logmirror::limits::BUDGET_WAIT;
use logmirror::repo::{FsRepo, MemRepo};
use serde_json::json;
use support::assert_bytes;
use support::log::{commit, commits, header};
use support::service::{Service, Setup, Wire, request};

/// A timeout short enough to wait for, and far longer than anything here takes.
const SHORT: Duration = Duration::from_millis(400);
/// A pause between two bytes of a slow client.
const PAUSE: Duration = Duration::from_millis(20);

fn start(change: impl FnOnce(&mut Setup)) -> Service {
    let mut setup = Setup::default();
    change(&mut setup);
    let service = Service::start_with(Arc::new(MemRepo::default()), setup);
    service.create("app");
    assert_eq!(service.append("app", "", &[header(), commits(0, 3, 9, 0)].concat()).status, 200);
    service
}

#[test]
fn what_a_log_does_not_have_and_what_is_too_large_are_the_clients_faults() {
    let service = start(|_| {});
    assert_eq!(service.get("/logs/app/base").refusal(), (409, "format".into()));
    let large = service.call("PUT", "/logs/large", "", &vec![b' '; 3 << 20]);
    assert_eq!(large.refusal(), (413, "too-large".into()));
}

#[test]
fn who_sends_a_large_body_that_nobody_wants_reads_the_answer_and_goes_on() {
    let service = start(|_| {});
    let body = vec![b' '; 8 << 20];
    for (method, path, status) in [
        ("PUT", "/logs/large", 413),
        ("PUT", "/logs/app/checkpoint", 413),
        ("PUT", "/logs/app/source", 413),
        ("POST", "/logs/app/promote", 409),
        ("POST", "/logs/app/checkpoint", 409),
        ("PUT", "/logs/app/generations/1", 409),
        ("POST", "/logs/none/commits", 404),
        ("POST", "/logs/app/commits?from=x", 400),
        ("POST", "/nothing/there", 404),
        ("DELETE", "/logs/app", 405),
        ("GET", "/health", 200),
        ("GET", "/logs/app", 200),
        ("GET", "/logs/app/base", 409),
    ] {
        let mut wire = service.connect();
        wire.send(request(method, path, &format!("content-length: {}\r\n", body.len())).as_bytes());
        wire.send(&body);
        assert_eq!(wire.answer().status, status, "{method} {path}");
        wire.send(request("GET", "/health", "").as_bytes());
        assert_eq!(wire.answer().status, 200, "after {method} {path}");
    }
}

fn others_are_served(service: &Service) {
    let durable = service.status("app")["durable"].as_u64().unwrap();
    let answer = service.append("app", "", &commits(durable, 1, 9, 0));
    assert_eq!((answer.status, &answer.json()["durable"]), (200, &(durable + 1).into()), "{}", answer.text());
    assert_eq!(service.get(&format!("/logs/app/commits?from={durable}")).body, commits(durable, 1, 9, 0));
}

/// Sends bytes with pauses until the other side is gone or has answered, at most for ten seconds.
fn trickle(mut stream: TcpStream, bytes: impl IntoIterator<Item = u8>, done: &AtomicBool) {
    for byte in bytes {
        if done.load(Ordering::Relaxed) || stream.write_all(&[byte]).is_err() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

#[test]
fn a_head_that_comes_a_byte_at_a_time_is_cut_off_and_others_are_served() {
    let service = start(|setup| setup.timeouts.header = SHORT);
    let mut wire = service.connect();
    let sender = wire.stream.try_clone().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| trickle(sender, "GET /health HTTP/1.1\r\nx: ".bytes().chain([b'y'; 480]), &done));
        others_are_served(&service);
        let since = Instant::now();
        wire.wait_closed();
        assert!(since.elapsed() < SHORT * 5, "{:?}", since.elapsed());
        done.store(true, Ordering::Relaxed);
        others_are_served(&service);
    });
}

#[test]
fn a_commit_that_comes_a_byte_at_a_time_is_cut_off_and_others_append_meanwhile() {
    let service = start(|setup| setup.timeouts.commit = SHORT);
    let mut wire = service.begin_append("app", "");
    let sender = wire.stream.try_clone().unwrap();
    wire.send_chunk(&commits(3, 1, 9, 0));
    service.wait_durable("app", 4);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let slow = commit(4, 0, 1, &[7; 500]).into_iter().flat_map(|byte| [b'1', b'\r', b'\n', byte, b'\r', b'\n']);
        scope.spawn(|| trickle(sender, slow, &done));
        others_are_served(&service);
        let answer = wire.answer();
        done.store(true, Ordering::Relaxed);
        assert_eq!(answer.refusal(), (422, "truncated".to_owned()), "{}", answer.text());
        assert_eq!((&answer.json()["next"], &answer.json()["offset"]), (&5.into(), &4.into()), "{}", answer.text());
        assert!(answer.text().contains("--commit-timeout"), "{}", answer.text());
    });
}

#[test]
fn a_sender_of_whole_commits_may_take_its_time() {
    let service = start(|setup| (setup.timeouts.commit, setup.timeouts.idle) = (SHORT, SHORT));
    let mut wire = service.begin_append("app", "");
    let since = Instant::now();
    let mut offset = 3;
    while since.elapsed() < SHORT * 3 {
        wire.send_chunk(&commits(offset, 1, 9, 0));
        offset += 1;
        std::thread::sleep(SHORT / 8);
    }
    wire.send_chunk(b"");
    let answer = wire.answer();
    assert_eq!((answer.status, &answer.json()["durable"]), (200, &offset.into()), "{}", answer.text());
}

#[test]
fn an_append_that_idles_between_commits_ends_well() {
    let service = start(|setup| setup.timeouts.idle = SHORT);
    let mut wire = service.begin_append("app", "");
    wire.send_chunk(&commits(3, 2, 9, 0));
    let answer = wire.answer();
    assert_eq!(answer.text(), r#"{"next":5,"durable":5,"appended":2,"skipped":0}"#);
}

#[test]
fn a_small_body_that_never_comes_is_not_waited_for() {
    let service = start(|setup| setup.timeouts.header = SHORT);
    let mut wire = service.connect();
    wire.send(request("PUT", "/logs/new", "content-length: 30\r\n").as_bytes());
    wire.send(b"{\"format\":");
    let answer = wire.answer();
    assert_eq!(answer.refusal(), (400, "invalid".to_owned()), "{}", answer.text());
    wire.wait_closed();
}

#[test]
fn connections_over_the_limit_wait_for_a_place() {
    let service = start(|setup| setup.connections_max = 2);
    let (mut one, mut two) = (service.connect(), service.connect());
    for wire in [&mut one, &mut two] {
        wire.send(request("GET", "/health", "").as_bytes());
        assert_eq!(wire.answer().status, 200);
    }
    let mut three = service.connect();
    three.send(request("GET", "/health", "").as_bytes());
    three.stream.set_read_timeout(Some(SHORT / 4)).unwrap();
    assert_eq!(three.stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    three.stream.set_read_timeout(Some(support::service::PATIENCE)).unwrap();
    drop(one);
    assert_eq!(three.answer().status, 200);
    two.send(request("GET", "/health", "").as_bytes());
    assert_eq!(two.answer().status, 200);
}

#[test]
fn a_client_that_vanishes_inside_a_commit_gives_its_memory_back() {
    let service = start(|setup| setup.settings.memory_max = 4 << 20);
    let big = commit(3, 0, 1, &vec![7; 1_000_000]);
    for _ in 0..10 {
        let mut wire = service.begin_append("app", "");
        wire.send_chunk(&big[..900_000]);
        wire.stream.shutdown(Shutdown::Both).unwrap();
    }
    let since = Instant::now();
    assert_eq!(service.append("app", "", &big).json()["durable"], 4);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[test]
fn senders_that_hold_the_whole_memory_budget_are_cut_off_for_the_next() {
    let service = start(|setup| (setup.settings.memory_max, setup.timeouts.commit) = (4 << 20, SHORT));
    let big = commit(3, 0, 1, &vec![7; 1_000_000]);
    let mut holders: Vec<Wire> = (0..4).map(|_| service.begin_append("app", "")).collect();
    for wire in &mut holders {
        // Two of them fill the half of the budget that senders have; the others wait for it already.
        wire.send_chunk(&big[..900_000]);
    }
    assert_eq!(service.append("app", "", &big).json()["durable"], 4);
    for wire in &mut holders {
        assert_eq!(wire.answer().refusal(), (422, "truncated".to_owned()));
    }
}

#[test]
fn senders_whose_commits_exceed_the_memory_budget_together_all_get_through() {
    let service = start(|setup| setup.settings.memory_max = 4 << 20);
    let since = Instant::now();
    std::thread::scope(|scope| {
        for sender in 0..12 {
            let service = &service;
            scope.spawn(move || {
                let log = format!("log-{sender}");
                service.create(&log);
                let stream = [header(), commits(0, 4, 1_000_000, 0)].concat();
                let answer = service.append_chunked(&log, "", &stream, 60_000);
                assert_eq!((answer.status, &answer.json()["durable"]), (200, &4.into()), "{}", answer.text());
            });
        }
    });
    assert!(since.elapsed() < BUDGET_WAIT, "{:?}", since.elapsed());
}

#[test]
fn the_smallest_memory_budget_moves_a_log_of_any_size() {
    let service = start(|setup| (setup.settings.memory_max, setup.settings.commit_bytes_max) = (64 << 10, 16 << 10));
    let rest: Vec<u8> = commits(3, 300, 10_000, 0);
    let since = Instant::now();
    assert_eq!(service.append("app", "", &rest).json()["durable"], 303);
    assert_bytes(&service.get("/logs/app/commits?from=3").body, &rest, "app");
    assert!(since.elapsed() < BUDGET_WAIT, "{:?}", since.elapsed());
}

#[test]
fn a_shutdown_ends_what_is_endless_and_keeps_what_was_acknowledged() {
    let data = tempfile::tempdir().unwrap();
    let repo = || Arc::new(FsRepo::open(data.path()).unwrap());
    let mut service = Service::start(repo());
    let acked: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
    let mut idle = service.connect();
    idle.send(request("GET", "/health", "").as_bytes());
    assert_eq!(idle.answer().status, 200);
    let mut half_a_head = service.connect();
    half_a_head.send(b"GET /hea");
    let mut silent = service.connect();
    std::thread::scope(|scope| {
        let mut followers = Vec::new();
        for (log, acked) in acked.iter().enumerate() {
            let name = format!("log-{log}");
            service.create(&name);
            let mut follower = service.connect();
            follower.send(request("GET", &format!("/logs/{name}/commits?follow=true"), "").as_bytes());
            assert_eq!(follower.head().status, 200);
            followers.push(scope.spawn(move || {
                let mut bytes = Vec::new();
                while let Some(piece) = follower.next_chunk().unwrap() {
                    bytes.extend(piece);
                }
                bytes
            }));
            let mut wire = service.begin_append(&name, "?acks=stream");
            let mut sender = wire.stream.try_clone().unwrap();
            scope.spawn(move || {
                let (mut text, mut offset) = (Vec::new(), 0);
                support::service::chunk(&header(), &mut text);
                while sender.write_all(&text).is_ok() {
                    text.clear();
                    support::service::chunk(&commits(offset, 1, 1000, 0), &mut text);
                    offset += 1;
                }
            });
            scope.spawn(move || {
                assert_eq!(wire.head().status, 200);
                let mut last = json!(null);
                while let Some(line) = wire.next_json() {
                    acked.store(line["durable"].as_u64().unwrap_or_default(), Ordering::Relaxed);
                    last = line;
                }
                assert_eq!(last["error"], "unavailable", "{last}");
                acked.store(last["next"].as_u64().unwrap(), Ordering::Relaxed);
                // No more is taken, so the sender ends too.
                wire.stream.shutdown(Shutdown::Both).unwrap();
            });
        }
        for log in 0..4 {
            service.wait_durable(&format!("log-{log}"), 50);
        }
        let since = Instant::now();
        service.begin_stop();
        let followed: Vec<Vec<u8>> = followers.into_iter().map(|follower| follower.join().unwrap()).collect();
        for waiting in [&mut idle, &mut half_a_head, &mut silent] {
            assert_eq!(waiting.wait_closed(), b"");
        }
        service.stop();
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
        let service = Service::start(repo());
        for (log, followed) in followed.iter().enumerate() {
            let stream = service.stream(&format!("log-{log}"));
            assert_bytes(followed, &stream[..followed.len()], log);
        }
    });
    let service = Service::start(repo());
    for (log, acked) in acked.iter().enumerate() {
        let durable = service.status(&format!("log-{log}"))["durable"].as_u64().unwrap();
        let acked = acked.load(Ordering::Relaxed);
        assert!(durable >= acked && acked >= 50, "log-{log}: {durable} after {acked} were acknowledged");
    }
}

#[test]
fn who_does_not_end_by_itself_is_cut_off_at_shutdown() {
    let mut setup = Setup::default();
    setup.timeouts.drain = SHORT;
    let (data, service, bytes) = Service::start_with_much(setup);
    let mut reader = service.connect();
    reader.send(request("GET", "/logs/much/commits", "").as_bytes());
    assert_eq!(reader.head().status, 200);
    let took = service.stop();
    assert!(took < SHORT * 8, "{took:?}");
    let mut read = 0;
    while let Ok(Some(piece)) = reader.next_chunk() {
        read += piece.len() as u64;
    }
    assert!(read < bytes, "it was served to the end");
    // The data directory is free again at once, whoever may still hold a connection.
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    assert_eq!(service.status("much")["durable"], 256);
}
