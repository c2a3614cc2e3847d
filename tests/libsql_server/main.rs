//! What a libSQL sync server promises and the published clients cannot provoke: senders that are damaged, confused or in a
//! hurry, against a service in this process.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod encryption;
mod faults;
mod large;
mod pulls;
mod pushes;
mod senders;
mod splits;
mod staging;

use std::ops::Range;
use std::sync::Arc;

use logmirror::format::wal::{FRAME_HEADER_LEN, HEADER_LEN, WalHeader};
use logmirror::repo::{MemRepo, Repo};
use support::assert_bytes;
use support::frames::{FrameLog, head};
use support::service::{Answer, Service};

/// Bytes of a frame.
const FRAME: usize = 4120;

/// A service with the log `app`.
struct Rig {
    service: Service,
}

/// What a push was answered with.
#[derive(Debug, PartialEq, Eq)]
enum Pushed {
    Ok(u64),
    Conflict(u64),
}

impl Rig {
    fn new() -> Rig {
        Rig::on(Arc::new(MemRepo::default()))
    }

    fn on(data: Arc<dyn Repo>) -> Rig {
        Rig::of(Service::start(data))
    }

    fn of(service: Service) -> Rig {
        create(&service, "app");
        Rig { service }
    }

    fn post(&self, range: &str, body: &[u8]) -> Answer {
        self.service.call("POST", &format!("/logs/app/sync/{range}"), "", body)
    }

    /// Sends frames of a log, the end exclusive.
    fn try_push(&self, log: &FrameLog, frames: Range<u64>) -> Answer {
        push_to(&self.service, "app", log, frames)
    }

    #[track_caller]
    fn push(&self, log: &FrameLog, frames: Range<u64>) -> Pushed {
        pushed(&self.try_push(log, frames))
    }

    /// Sends all frames of a log.
    #[track_caller]
    fn push_all(&self, log: &FrameLog) -> Pushed {
        self.push(log, 1..log.frames.len() as u64 + 1)
    }

    fn pull(&self, range: &str) -> Answer {
        self.service.get(&format!("/logs/app/sync/{range}"))
    }

    /// The number of durable frames.
    fn last(&self) -> u64 {
        self.service.status("app")["durable"].as_u64().unwrap() - 1
    }

    /// Fails unless the log holds exactly these frames, as one WAL whose checksums are right.
    #[track_caller]
    fn holds(&self, log: &FrameLog) {
        holds(&self.service, "app", log);
    }
}

fn create(service: &Service, log: &str) {
    let answer = service.put(&format!("/logs/{log}"), r#"{"format":"wal"}"#);
    assert_eq!(answer.status, 201, "{}", answer.text());
}

fn push_to(service: &Service, name: &str, log: &FrameLog, frames: Range<u64>) -> Answer {
    let body = log.frames[frames.start as usize - 1..frames.end as usize - 1].concat();
    service.call("POST", &format!("/logs/{name}/sync/1/{}/{}", frames.start, frames.end), "", &body)
}

#[track_caller]
fn pushed(answer: &Answer) -> Pushed {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    assert!(json["generation"].is_u64(), "{json}");
    let last = json["max_frame_no"].as_u64().unwrap();
    match json["status"].as_str().unwrap() {
        "ok" => Pushed::Ok(last),
        "conflict" => Pushed::Conflict(last),
        other => panic!("{other}"),
    }
}

#[track_caller]
fn holds(service: &Service, name: &str, log: &FrameLog) {
    let answer = service.get(&format!("/logs/{name}/sync/1/1/1000000"));
    if log.frames.is_empty() {
        assert_eq!(answer.status, 400, "{}", answer.text());
        return;
    }
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_bytes(&identity(&answer.body), &identity(&log.frames.concat()), "the frames");
    let stream = service.stream(name);
    let header = WalHeader::decode(stream[..HEADER_LEN].try_into().unwrap()).unwrap();
    assert_bytes(&stream, &retold(log, FrameLog { header, ..sender(0) }).stream(&[]), "the WAL");
}

/// What makes frames the same frames: all but salts and checksums.
fn identity(frames: &[u8]) -> Vec<u8> {
    frames.chunks(FRAME).flat_map(|frame| [&frame[..8], &frame[FRAME_HEADER_LEN..]].concat()).collect()
}

/// A sender with salts of its own and no frames yet.
fn sender(salt: u32) -> FrameLog {
    sender_like(0, false, salt)
}

fn sender_like(sequence: u32, big_endian: bool, salt: u32) -> FrameLog {
    let header = WalHeader { sequence, salts: [salt, !salt], big_endian, page_size: 4096 };
    FrameLog { header, chain: header.seed(), ..FrameLog::new(4096, big_endian) }
}

/// The frames of one log as another sender has them.
fn retold(log: &FrameLog, teller: FrameLog) -> FrameLog {
    let (header, mut chain) = (teller.header, teller.header.seed());
    let retell = |frame: &Vec<u8>| {
        let content = &frame[FRAME_HEADER_LEN..];
        let (start, after) = header.frame(chain, head(frame).page, head(frame).size, content);
        chain = after;
        [&start[..], content].concat()
    };
    let frames = log.frames.iter().map(retell).collect();
    FrameLog { frames, chain, ..teller }
}

/// Frames 1 to 7 in three transactions.
fn short() -> FrameLog {
    sender(1).commit(&[1, 2], 2).commit(&[1, 3, 4], 4).commit(&[2, 1], 4)
}
