//! What clients announce costs nothing before it is there: a length that is never sent keeps no memory from others.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use logmirror::repo::MemRepo;
use support::log::{commits, header};
use support::service::{Service, Wire};

/// Much less than a client that lacks memory is made to wait.
const PROMPT: Duration = Duration::from_secs(5);

fn start() -> Service {
    let service = Service::start(Arc::new(MemRepo::default()));
    for (log, format) in [("app", "commitlog"), ("db", "wal"), ("other", "wal")] {
        assert_eq!(service.put(&format!("/logs/{log}"), &format!(r#"{{"format":"{format}"}}"#)).status, 201);
    }
    service
}

/// Connections on which a body of so many bytes is announced, and a little of it sent.
fn announced(service: &Service, count: usize, path: &str, bytes: usize) -> Vec<Wire> {
    let announce = |_| {
        let mut wire = service.connect();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {bytes}\r\n\r\n{{");
        wire.send(head.as_bytes());
        wire
    };
    let wires = (0..count).map(announce).collect();
    // A request that came after them on a connection of its own: by its answer they have been read.
    service.status("app");
    wires
}

#[track_caller]
fn others_are_served_promptly(service: &Service) {
    let since = Instant::now();
    let durable = service.status("app")["durable"].as_u64().unwrap();
    let stream = [header(), commits(durable, 1, 9, 0)].concat();
    let appended = service.append("app", "", &stream);
    assert_eq!(appended.status, 200, "{}", appended.text());
    #[cfg(feature = "turso")]
    {
        let select = br#"{"requests":[{"type":"execute","stmt":{"sql":"SELECT 1"}}]}"#;
        let selected = service.call("POST", "/logs/other/v2/pipeline", "", select);
        assert_eq!(selected.status, 200, "{}", selected.text());
    }
    assert!(since.elapsed() < PROMPT, "others waited {:?}", since.elapsed());
}

#[test]
fn pushes_of_frames_that_are_only_announced_take_no_memory_from_others() {
    let service = start();
    let frames = (16 << 20) / 4120;
    let wires = announced(&service, 12, &format!("/logs/db/sync/1/1/{}", frames + 1), frames * 4120);
    others_are_served_promptly(&service);
    drop(wires);
}

#[cfg(feature = "turso")]
#[test]
fn sql_that_is_only_announced_takes_no_memory_from_others() {
    let service = start();
    let wires = announced(&service, 12, "/logs/db/v2/pipeline", 64 << 20);
    others_are_served_promptly(&service);
    drop(wires);
}

#[cfg(feature = "turso")]
#[test]
fn pulls_that_are_only_announced_take_no_memory_from_others() {
    let service = start();
    let mut wires = announced(&service, 20, "/logs/db/pull-updates", 2 << 20);
    for wire in &mut wires {
        // So much that memory is reserved for it.
        wire.send(&[0; 128 << 10]);
    }
    others_are_served_promptly(&service);
    drop(wires);
}

#[cfg(feature = "turso")]
#[test]
fn bodies_that_need_more_memory_than_there_is_come_in_one_after_the_other() {
    let service = start();
    let body = |bytes: usize| {
        let call = br#"{"requests":[{"type":"execute","stmt":{"sql":"SELECT 1"}}]}"#;
        [vec![b' '; bytes - call.len()], call.to_vec()].concat()
    };
    let large = body(60 << 20);
    std::thread::scope(|scope| {
        let calls: Vec<_> =
            (0..5).map(|_| scope.spawn(|| service.call("POST", "/logs/db/v2/pipeline", "", &large))).collect();
        for call in calls {
            let answer = call.join().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
}
