//! How requests come in and answers go out: bodies with and without a length, connections, tokens, browsers.

use std::sync::Arc;

use logmirror::repo::{FsRepo, MemRepo};
use logmirror::sync::turso::proto::PullUpdatesRequest;
use logmirror::token::Token;
use prost::Message;
use roaring::RoaringBitmap;

use super::support::frames::{FrameLog, head};
use super::support::service::{Answer, Service, Setup, request};
use super::{PULL, Pulled, Rig, between, real, selector, short};

#[test]
fn a_body_may_come_with_a_length_in_chunks_or_not_at_all() {
    let rig = Rig::holding(&short());
    let wanted = rig.bootstrap();
    let mut wire = rig.service.connect();
    let mut answers = Vec::new();
    for fields in ["", "content-length: 0\r\n", "content-length: 0\r\nexpect: 100-continue\r\n"] {
        wire.send(request("POST", PULL, fields).as_bytes());
        answers.push(Pulled::of(&wire.answer()));
    }
    wire.send(request("POST", PULL, "transfer-encoding: chunked\r\n").as_bytes());
    wire.send_chunk(b"");
    answers.push(Pulled::of(&wire.answer()));
    assert!(answers.iter().all(|answer| *answer == wanted));
    // And one byte at a time, on the same connection still.
    wire.send(request("POST", PULL, "transfer-encoding: chunked\r\n").as_bytes());
    for byte in between(&rig.revision(1, 5), "").encode_to_vec() {
        wire.send_chunk(&[byte]);
    }
    wire.send_chunk(b"");
    assert_eq!(Pulled::of(&wire.answer()).ids(), [0, 1]);
}

#[test]
fn what_clients_say_they_accept_changes_nothing() {
    let rig = Rig::holding(&short());
    let fields = "accept-encoding: application/protobuf\r\ncontent-type: text/plain\r\naccept: nothing/at-all\r\n";
    let answer = rig.service.call("POST", PULL, fields, b"");
    assert_eq!(Pulled::of(&answer), rig.bootstrap());
    assert_eq!(answer.header("content-type"), Some("application/protobuf"));
    assert_eq!(answer.header("content-encoding"), None);
}

#[test]
fn an_answer_of_many_blocks_has_the_length_that_it_says() {
    let log = real();
    let rig = Rig::holding(&log);
    let answer = rig.post(b"");
    assert!(answer.body.len() > logmirror::limits::READ_BLOCK * 5 / 4, "{}", answer.body.len());
    assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()));
    Pulled::of(&answer);
}

#[test]
fn little_memory_makes_small_blocks_and_the_same_answer() {
    let log = real();
    let wanted = Rig::holding(&log).bootstrap();
    let mut setup = Setup::default();
    (setup.settings.memory_max, setup.settings.commit_bytes_max) = (2 << 20, 512 << 10);
    let service = Service::start_with(Arc::new(MemRepo::default()), setup);
    let rig = Rig { service };
    assert_eq!(rig.service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
    rig.start(1, &log.base);
    rig.append(&log, 0..log.frames.len());
    assert_eq!(rig.bootstrap(), wanted);
}

#[test]
fn logs_that_cannot_be_synced_are_refused() {
    let rig = Rig::new();
    rig.service.create("commits");
    for (log, wanted) in [("commits", 409), ("none", 404), ("UPPER", 400)] {
        let answer = rig.service.call("POST", &format!("/logs/{log}/pull-updates"), "", b"");
        assert_eq!(answer.status, wanted, "{}", answer.text());
    }
    let small = FrameLog::new(512, false).with_base(3).commit(&[1, 2], 3);
    let based = Rig::new();
    let answer = based.service.call("PUT", "/logs/app/generations/1", "", &small.base);
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(based.post(b"").refusal(), (409, "format".into()));
    rig.append(&small, 0..2);
    assert_eq!(rig.post(b"").refusal(), (409, "format".into()));
}

#[test]
fn a_damaged_log_says_so() {
    let data = tempfile::tempdir().unwrap();
    let rig = Rig::in_dir(data.path());
    rig.append(&short(), 0..7);
    rig.service.stop();
    let segment = data.path().join("logs/app/0000000001/00000000000000000001.wal");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let rig = Rig::on(Arc::new(FsRepo::open(data.path()).unwrap()));
    assert_eq!(rig.post(b"").refusal(), (500, "corrupt-log".into()));
}

#[test]
fn a_frame_that_is_not_what_the_index_says_is_not_sent() {
    let data = tempfile::tempdir().unwrap();
    let log = real();
    let repo = Arc::new(FsRepo::open(data.path()).unwrap());
    // One open segment, whose pages are known once they were asked for.
    let rig = Rig::with_segments(repo, 100_000).filled(&log);
    let newest = log.frames.last().unwrap();
    let pages = selector(&RoaringBitmap::from([head(newest).page - 1]));
    let request = PullUpdatesRequest { server_pages_selector: pages, ..PullUpdatesRequest::default() };
    let wanted = rig.pull(&request);
    let segment = data.path().join("logs/app/0000000001/00000000000000000001.wal");
    let sound = std::fs::read(&segment).unwrap();
    let last = 32 + (log.frames.len() - 1) * 4120;
    // Page number and salts.
    for at in [3, 8, 12] {
        let mut bytes = sound.clone();
        bytes[last + at] ^= 0x40;
        std::fs::write(&segment, bytes).unwrap();
        assert_eq!(rig.ask(&request).refusal(), (500, "corrupt-log".into()), "byte {at}");
    }
    std::fs::write(&segment, sound).unwrap();
    assert_eq!(rig.pull(&request), wanted);
}

fn guarded() -> Rig {
    let token = Token::new("secret").unwrap();
    let service =
        Service::start_as(Arc::new(MemRepo::default()), Setup::default(), |server| server.with_token(Some(token)));
    let rig = Rig { service };
    let created = rig.service.call("PUT", "/logs/app", "authorization: Bearer secret\r\n", br#"{"format":"wal"}"#);
    assert_eq!(created.status, 201);
    rig
}

#[track_caller]
fn open_to_browsers(answer: &Answer) {
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{}", answer.text());
    assert_eq!(answer.header("access-control-expose-headers"), Some("*"));
}

#[test]
fn a_token_is_asked_for_and_taken() {
    let rig = guarded();
    for fields in ["", "authorization: Bearer other\r\n", "authorization: Basic secret\r\n"] {
        let answer = rig.service.call("POST", PULL, fields, b"");
        assert_eq!(answer.refusal(), (401, "unauthorized".into()));
        open_to_browsers(&answer);
    }
    let answer = rig.service.call("POST", PULL, "authorization: Bearer secret\r\n", b"");
    assert_eq!(Pulled::of(&answer).size, 1);
}

#[test]
fn browsers_may_ask_without_a_token_and_call_from_anywhere() {
    let rig = guarded();
    for call in ["pull-updates", "v2/pipeline", "v3/pipeline", "v3/cursor"] {
        let fields = "origin: https://example.org\r\naccess-control-request-method: POST\r\n\
                      access-control-request-headers: authorization,content-type\r\n";
        let answer = rig.service.call("OPTIONS", &format!("/logs/app/{call}"), fields, b"");
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{call}");
        open_to_browsers(&answer);
        assert_eq!(answer.header("access-control-allow-methods"), Some("GET, POST, OPTIONS"));
        assert_eq!(answer.header("access-control-allow-headers"), Some("authorization,content-type"));
    }
    let answer = rig.service.call("OPTIONS", PULL, "", b"");
    assert_eq!((answer.status, answer.header("access-control-allow-headers")), (204, Some("*")));
    for (body, wanted) in [(&b""[..], 200), (b"x", 400)] {
        let answer = rig.service.call("POST", PULL, "authorization: Bearer secret\r\n", body);
        assert_eq!(answer.status, wanted);
        open_to_browsers(&answer);
    }
    // Nobody else is let in by that.
    for path in ["/logs", "/logs/app", "/logs/app/commits"] {
        let answer = rig.service.call("OPTIONS", path, "", b"");
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (405, None), "{path}");
    }
}

#[test]
fn clients_that_want_encrypted_pages_are_refused() {
    let rig = Rig::holding(&short());
    for fields in ["x-turso-encryption-key: c2VjcmV0\r\n", "X-Turso-Encryption-Cipher: aes256gcm\r\n"] {
        let answer = rig.service.call("POST", PULL, fields, &PullUpdatesRequest::default().encode_to_vec());
        assert_eq!(answer.refusal(), (400, "invalid".into()));
        assert!(answer.text().contains("encrypted"), "{}", answer.text());
        open_to_browsers(&answer);
    }
}

#[test]
fn other_methods_are_not_taken() {
    let rig = Rig::new();
    for method in ["GET", "PUT", "DELETE"] {
        assert_eq!(rig.service.call(method, PULL, "", b"").status, 405, "{method}");
    }
}

#[test]
fn many_pull_at_once_and_get_the_same() {
    let log = real();
    let rig = Rig::holding(&log);
    let (from, wanted) = (rig.revision(1, log.commits()[3]), rig.bootstrap());
    let increment = rig.between(&from, "");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..8 {
                    assert_eq!(rig.bootstrap(), wanted);
                    assert_eq!(rig.between(&from, ""), increment);
                }
            });
        }
    });
}
