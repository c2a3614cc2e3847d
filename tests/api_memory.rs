//! Memory stays bounded whatever clients do. Each test here measures this process, so they run one after the other.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logmirror::repo::MemRepo;
use support::log::{commit, commits, header};
use support::resident_bytes;
use support::service::{Service, Setup, Wire, request};

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What may come and go without any meaning: buffers of sockets, stacks of threads.
const NOISE: u64 = 32 << 20;

#[track_caller]
fn grew_little(before: u64) {
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < NOISE, "memory grew by {grown} bytes");
}

/// A segment header and the head of a commit that says it has `len` bytes of records: 32 bytes.
fn claim(len: u32) -> Vec<u8> {
    let mut bytes = [header(), commit(3, 0, 1, b"")].concat();
    bytes.truncate(32);
    bytes[28..].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn start(setup: Setup) -> Service {
    let service = Service::start_with(Arc::new(MemRepo::default()), setup);
    service.create("app");
    service.append("app", "", &[header(), commits(0, 3, 9, 0)].concat());
    service
}

fn others_are_served(service: &Service) {
    let durable = service.status("app")["durable"].as_u64().unwrap();
    assert_eq!(service.append("app", "", &commits(durable, 1, 9, 0)).json()["durable"], durable + 1);
}

#[test]
fn a_length_of_4_gib_in_32_bytes_is_too_large_and_takes_no_memory() {
    let _alone = alone();
    let service = start(Setup::default());
    let before = resident_bytes();
    let mut wires: Vec<_> = (0..50).map(|_| service.begin_append("app", "")).collect();
    for wire in &mut wires {
        wire.send_chunk(&claim(0xffff_fff0));
    }
    for wire in &mut wires {
        let answer = wire.answer();
        assert_eq!((answer.refusal(), &answer.json()["next"]), ((413, "too-large".to_owned()), &3.into()));
        assert!(answer.text().contains("4294967280 is over the limit of 1048576"), "{}", answer.text());
    }
    grew_little(before);
}

#[test]
fn a_length_within_the_cap_takes_no_memory_before_its_bytes_come() {
    let _alone = alone();
    let mut setup = Setup::default();
    (setup.settings.memory_max, setup.settings.commit_bytes_max) = (1 << 30, 256 << 20);
    let service = start(setup);
    let before = resident_bytes();
    let mut wires: Vec<_> = (0..50).map(|_| service.begin_append("app", "?acks=stream")).collect();
    for wire in &mut wires {
        assert_eq!(wire.head().status, 200);
        wire.send_chunk(&claim(200 << 20));
    }
    others_are_served(&service);
    grew_little(before);
    for wire in &mut wires {
        wire.send_chunk(b"");
        let lines: Vec<_> = std::iter::from_fn(|| wire.next_json()).collect();
        assert_eq!(lines.last().unwrap()["error"], "truncated");
    }
    grew_little(before);
}

#[test]
fn a_thousand_idle_connections_hinder_nobody_and_are_closed() {
    let _alone = alone();
    support::raise_open_files_limit();
    let mut setup = Setup::default();
    setup.timeouts.header = Duration::from_secs(2);
    let service = start(setup);
    let before = resident_bytes();
    let mut crowd: Vec<Wire> = (0..1000).map(|_| service.connect()).collect();
    for half in crowd.iter_mut().step_by(2) {
        half.send(b"GET /hea");
    }
    others_are_served(&service);
    grew_little(before);
    for wire in &mut crowd {
        wire.wait_closed();
    }
    others_are_served(&service);
}

#[test]
fn readers_that_never_read_are_cut_off_and_cost_little() {
    const READERS: usize = 16;
    let _alone = alone();
    let mut setup = Setup::default();
    setup.timeouts.stall = Duration::from_millis(400);
    (setup.settings.memory_max, setup.connections_max) = (4 << 20, READERS);
    let (_data, service, bytes) = Service::start_with_much(setup);
    let before = resident_bytes();
    let mut readers: Vec<Wire> = (0..READERS).map(|_| service.connect()).collect();
    for (at, reader) in readers.iter_mut().enumerate() {
        let follow = if at % 2 == 0 { "?follow=true" } else { "" };
        reader.send(request("GET", &format!("/logs/much/commits{follow}"), "").as_bytes());
    }
    // All places are taken: whoever gets one and keeps it proves that a reader was cut off. An idle connection would be
    // closed for the next one, so each asks at once for what has no end.
    let mut others: Vec<Wire> = (0..READERS).map(|_| service.connect()).collect();
    for other in &mut others {
        other.send(request("GET", "/logs/much/commits?follow=true&from=256", "").as_bytes());
    }
    for other in &mut others {
        assert_eq!(other.head().status, 200);
    }
    drop(others);
    grew_little(before);
    for reader in &mut readers {
        assert_eq!(reader.head().status, 200);
        let mut read = 0;
        while let Ok(Some(piece)) = reader.next_chunk() {
            read += piece.len() as u64;
        }
        assert!(read < bytes, "it was served to the end");
    }
    assert_eq!(service.stream("much").len() as u64, bytes);
}
