//! Roll-overs of a running service: on demand, by policy, and what its clients see of them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use logmirror::format::{database, name};
use logmirror::repo::{Loss, MemRepo, Repo};
use support::commitlog::{get, put};
use support::frames::FrameLog;
use support::process::until;
use support::service::Service;

fn history(salt: u32, base: Vec<u8>) -> FrameLog {
    let mut log = FrameLog::new(4096, false);
    log.header.salts = [salt, 9];
    log.chain = log.header.seed();
    FrameLog { base, ..log }.commit(&[1, 2, 3], 3).commit(&[2, 1], 3).commit(&[4, 3, 1], 4)
}

fn first() -> FrameLog {
    history(1, database::empty(4096))
}

fn service_with(policy: &str) -> (MemRepo, Service) {
    let disk = MemRepo::default();
    let service = Service::start(Arc::new(disk.clone()));
    let made = service.put("/logs/app", &format!(r#"{{"format":"wal"{policy}}}"#));
    assert_eq!(made.status, 201, "{}", made.text());
    (disk, service)
}

fn roll(service: &Service, query: &str) -> support::service::Answer {
    service.call("POST", &format!("/logs/app/checkpoint{query}"), "", b"")
}

fn append(service: &Service, log: &FrameLog) {
    let answer = service.append("app", "", &log.stream(&[]));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn wait_generation(service: &Service, wanted: u64) {
    until("the roll-over", || (service.status("app")["generation"] == wanted).then_some(()));
}

#[test]
fn a_dry_run_changes_nothing_and_a_commitlog_has_no_checkpoint() {
    let (disk, service) = service_with("");
    append(&service, &first());
    let dir = disk.dir("logs").unwrap().dir("app").unwrap();
    let before = dir.list().unwrap();
    let answer = roll(&service, "?dry_run=true").json();
    assert_eq!((&answer["frames"], &answer["done"], &answer["next"]), (&8.into(), &false.into(), &2.into()));
    assert_eq!((dir.list().unwrap(), &service.status("app")["generation"]), (before, &1.into()));
    service.create("clog");
    for query in ["", "?dry_run=true"] {
        let refused = service.call("POST", &format!("/logs/clog/checkpoint{query}"), "", b"");
        assert_eq!(refused.refusal(), (409, "format".into()));
    }
}

#[test]
fn those_who_write_and_follow_are_told_and_the_ended_generation_is_still_read() {
    let (disk, service) = service_with("");
    let log = first();
    append(&service, &log);
    let mut follower = service.connect();
    let path = "/logs/app/commits?follow=true";
    follower.send(support::service::request("GET", path, "").as_bytes());
    assert_eq!(follower.head().status, 200);
    assert_eq!(follower.read_stream(32 + 8 * 4120).len(), 32 + 8 * 4120);
    let mut writer = service.begin_append("app", "");
    // The whole log again, so that it is under way, and a header's worth of the next frame.
    writer.send_chunk(&log.stream(&[]));
    let rolled = roll(&service, "").json();
    assert_eq!((&rolled["done"], &rolled["base_bytes"]), (&true.into(), &(4 * 4096).into()));
    assert_eq!(follower.next_chunk().unwrap(), None, "the stream ends");
    writer.send_chunk(b"");
    let refused = writer.answer();
    assert_eq!(refused.refusal(), (409, "ended".into()));
    assert_eq!((&refused.json()["generation"], &refused.json()["next"]), (&2.into(), &serde_json::Value::Null));
    assert!(refused.text().contains("generation 1 of this log has ended"), "{}", refused.text());
    let unused = service.call("PUT", "/logs/app/generations/2", "", &log.base);
    assert!(!unused.text().contains("has ended"), "{}", unused.text());
    let check = |service: &Service| {
        assert_eq!(service.status("app")["generation"], 2);
        assert_eq!(service.get("/logs/app?generation=1").json()["durable"], 9);
        assert_eq!(service.get("/logs/app/commits?generation=1").body, log.stream(&[]));
        assert_eq!(service.get("/logs/app/segments?generation=1").json()[0]["end"], 9);
        assert_eq!(service.get("/logs/app/base?generation=1").body, log.base);
        assert_eq!(service.get("/logs/app/base").body, log.state(8));
        assert_eq!(service.get("/logs/app/sync/1/1/9").body, log.frames.concat());
        assert_eq!(service.get("/logs/app/commits?generation=3").refusal().0, 404);
    };
    check(&service);
    service.stop();
    check(&Service::start(Arc::new(disk.after_power_loss(Loss::All))));
}

#[test]
fn a_policy_rolls_by_frames_bytes_or_seconds_and_keeps_so_many_generations() {
    for limit in [r#""frames":8"#, r#""bytes":30000"#, r#""seconds":1"#] {
        let (_, service) = service_with(&format!(r#","checkpoint":{{"policy":"roll",{limit},"keep":2}}"#));
        let mut log = first();
        for generation in 1..=3 {
            append(&service, &log);
            wait_generation(&service, generation + 1);
            log = history(1 + generation as u32, log.state(8));
        }
        until("the deletion", || (service.get("/logs/app/commits?generation=2").status == 410).then_some(()));
        let gone = service.get("/logs/app/commits?generation=1");
        assert_eq!(gone.refusal(), (410, "pruned".into()), "{limit}");
        assert_eq!(service.get("/logs/app/commits?generation=3").status, 200, "{limit}");
        assert_eq!(service.get("/logs/app/base").body, log.base, "{limit}");
    }
}

#[test]
fn a_policy_that_is_changed_survives_a_restart() {
    let (disk, service) = service_with("");
    append(&service, &first());
    let policy = r#"{"policy":"roll","frames":9,"keep":3}"#;
    assert_eq!(service.put("/logs/app/checkpoint", policy).status, 200);
    assert_eq!(service.put("/logs/app/checkpoint", r#"{"policy":"roll"}"#).refusal().0, 400);
    service.stop();
    let service = Service::start(Arc::new(disk.after_power_loss(Loss::All)));
    let wanted: serde_json::Value = serde_json::from_str(policy).unwrap();
    assert_eq!(service.status("app")["checkpoint"], wanted);
    assert_eq!(service.put("/logs/app/checkpoint", r#"{"policy":"roll","frames":8}"#).status, 200);
    wait_generation(&service, 2);
}

#[test]
fn a_policy_of_seconds_counts_through_restarts() {
    let (disk, mut service) = service_with(r#","checkpoint":{"policy":"roll","seconds":4,"keep":2}"#);
    append(&service, &first());
    // Each of these processes is younger than that when it ends.
    for _ in 0..30 {
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1500) {
            if service.status("app")["generation"] == 2 {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        service.stop();
        service = Service::start(Arc::new(disk.after_power_loss(Loss::All)));
    }
    panic!("a generation that has had frames for 45 s was not rolled over after 4");
}

#[test]
fn generations_are_started_ahead_never_back() {
    let (_, service) = service_with("");
    let log = first();
    assert_eq!(service.call("PUT", "/logs/app/generations/1", "", &log.state(8)).status, 201, "unused");
    assert_eq!(service.get("/logs/app/base").body, log.state(8));
    append(&service, &log);
    for (generation, status) in [(0, 409), (1, 409), (5, 201), (4, 409), (5, 201)] {
        let answer = service.call("PUT", &format!("/logs/app/generations/{generation}"), "", &log.state(5));
        assert_eq!(answer.status, status, "{generation}: {}", answer.text());
    }
    assert_eq!(service.status("app")["generation"], 5);
    assert_eq!(service.get("/logs/app/commits?generation=3").status, 410, "it never was");
    assert_eq!(service.get("/logs/app/commits?generation=1").status, 200);
}

#[test]
fn failing_checkpoints_are_told_tried_again_and_leave_the_log_open() {
    let (disk, service) = service_with("");
    let log = first();
    append(&service, &log);
    let files = disk.dir("logs").unwrap().dir("app").unwrap().dir("0000000001").unwrap();
    let base = get(&*files, name::BASE);
    files.open_write(name::BASE).unwrap().truncate(100).unwrap();
    assert_eq!(service.put("/logs/app/checkpoint", r#"{"policy":"roll","frames":3}"#).status, 200);
    let failures = || service.status("app")["checkpoint_failing"]["failures"].as_u64().filter(|failures| *failures > 2);
    until("failures", failures);
    // The frames are as sound as they were, and more are taken.
    assert_eq!(service.status("app")["state"], "damaged");
    assert_eq!(service.status("app")["damage"]["segment"], name::BASE);
    assert_eq!(service.status("app")["checkpoint_failing"]["alarm"], false);
    assert!(service.get("/metrics").text().contains("checkpoints_failed"));
    until("a moment without a try", || (service.append("app", "", &log.stream(&[])).status == 200).then_some(()));
    put(&*files, name::BASE, &base);
    wait_generation(&service, 2);
    assert_eq!(service.status("app")["state"], "ok");
    until("the end of it", || service.status("app")["checkpoint_failing"].is_null().then_some(()));
    assert_eq!(service.get("/logs/app/base").body, log.state(8));
}
