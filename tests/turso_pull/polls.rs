//! Pulls that wait for news.

use std::time::{Duration, Instant};

use logmirror::sync::turso::proto::PullUpdatesRequest;
use prost::Message;

use super::support::service::{PATIENCE, Wire, request};
use super::{PULL, Pulled, Rig, between, short};

/// Longer than any test may take.
const LONG: u32 = 10 * 60 * 1000;

fn waiting(from: &str, milliseconds: u32) -> PullUpdatesRequest {
    PullUpdatesRequest { long_poll_timeout_ms: milliseconds, ..between(from, "") }
}

/// Sends a request whose answer is to be waited for.
fn begin(rig: &Rig, pull: &PullUpdatesRequest) -> Wire {
    let mut wire = rig.service.connect();
    let body = pull.encode_to_vec();
    wire.send(request("POST", PULL, &format!("content-length: {}\r\n", body.len())).as_bytes());
    wire.send(&body);
    wire
}

/// Waits until so many requests wait: each holds a watch of the log.
fn until_waiting(rig: &Rig, count: usize) {
    let log = rig.service.registry.get("app").unwrap();
    let since = Instant::now();
    while log.watchers() < count {
        assert!(since.elapsed() < PATIENCE, "{} of {count} wait", log.watchers());
        std::thread::yield_now();
    }
}

#[test]
fn a_pull_with_nothing_new_waits_for_a_commit() {
    let rig = Rig::new();
    rig.append(&short(), 0..5);
    let mut wire = begin(&rig, &waiting(&rig.revision(1, 5), LONG));
    until_waiting(&rig, 1);
    rig.append(&short(), 5..7);
    let pulled = Pulled::of(&wire.answer());
    assert_eq!((pulled.revision.clone(), pulled.ids()), (rig.revision(1, 7), vec![0, 1]));
}

#[test]
fn a_wait_ends_with_its_time() {
    let rig = Rig::holding(&short());
    let newest = rig.revision(1, 7);
    let since = Instant::now();
    let pulled = rig.pull(&waiting(&newest, 300));
    assert!(since.elapsed() >= Duration::from_millis(300));
    assert_eq!((pulled.revision, pulled.pages), (newest, vec![]));
}

#[test]
fn a_wait_ends_with_its_generation() {
    let rig = Rig::holding(&short());
    let mut wire = begin(&rig, &waiting(&rig.revision(1, 7), LONG));
    until_waiting(&rig, 1);
    rig.roll();
    let pulled = Pulled::of(&wire.answer());
    assert!(pulled.revision.starts_with("2:0:"), "{}", pulled.revision);
    assert_eq!(pulled.pages, []);
    // And the new one is waited for as the old one was.
    let mut wire = begin(&rig, &waiting(&pulled.revision, LONG));
    until_waiting(&rig, 1);
    rig.append(&short(), 0..2);
    assert_eq!(Pulled::of(&wire.answer()).ids(), [0, 1]);
}

#[test]
fn a_wait_ends_at_shutdown() {
    let mut rig = Rig::holding(&short());
    let newest = rig.revision(1, 7);
    let mut wire = begin(&rig, &waiting(&newest, LONG));
    until_waiting(&rig, 1);
    let since = Instant::now();
    rig.service.begin_stop();
    let pulled = Pulled::of(&wire.answer());
    assert_eq!((pulled.revision, pulled.pages), (newest, vec![]));
    rig.service.stop();
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[test]
fn only_who_has_the_newest_and_pins_nothing_waits() {
    let rig = Rig::holding(&short());
    let newest = rig.revision(1, 7);
    let since = Instant::now();
    rig.pull(&waiting(&rig.revision(1, 5), LONG));
    rig.pull(&waiting("", LONG));
    rig.pull(&PullUpdatesRequest { server_revision: newest.clone(), ..waiting(&newest, LONG) });
    assert!(since.elapsed() < PATIENCE);
}

#[test]
fn many_who_wait_hold_nobody_up_and_all_are_woken() {
    let rig = Rig::new();
    rig.append(&short(), 0..5);
    let newest = rig.revision(1, 5);
    let mut wires: Vec<Wire> = (0..600).map(|_| begin(&rig, &waiting(&newest, LONG))).collect();
    until_waiting(&rig, 600);
    assert_eq!(rig.bootstrap().size, 4);
    rig.append(&short(), 5..7);
    let wanted = rig.between(&newest, "");
    for wire in &mut wires {
        assert_eq!(Pulled::of(&wire.answer()), wanted);
    }
}

#[test]
fn a_client_that_leaves_is_not_waited_for() {
    let rig = Rig::holding(&short());
    let wire = begin(&rig, &waiting(&rig.revision(1, 7), LONG));
    until_waiting(&rig, 1);
    drop(wire);
    let log = rig.service.registry.get("app").unwrap();
    let since = Instant::now();
    while log.watchers() > 0 {
        assert!(since.elapsed() < PATIENCE, "it is still waited for");
        std::thread::yield_now();
    }
}
