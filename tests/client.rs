//! The client: what it sends and gets from a service, and what it makes of whatever else may answer.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, channel::mpsc, stream};
use logmirror::api::{AckLine, AppendOutcome, LastCommit, LogState};
use logmirror::blame::{Blame, Blamed};
use logmirror::client::{Client, ClientError};
use logmirror::format::LogFormat;
use logmirror::offset::{Generation, Offset};
use logmirror::repo::MemRepo;
use support::log::{Sample, commits, header};
use support::service::Service;
use support::{assert_bytes, specimen, stream_of};
use tokio::runtime::Runtime;

fn start() -> Service {
    Service::start(Arc::new(MemRepo::default()))
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// The URL of a log where everybody gets the same answer, and then the end of the connection.
fn answering(answer: impl Into<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, answer) = (listener.local_addr().unwrap(), answer.into());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            // The client may have heard enough.
            let _ = stream.write_all(&answer);
        }
    });
    format!("http://{address}/logs/app")
}

/// What a status says that is asked for before a base.
const STATUS: &str = r#"{"log":"app","format":"wal","id":"","generation":1,"epoch":0,"first":1,"next":1,"durable":1,"segments":0,"bytes":0,"last_commit":null,"state":"ok","error":null}"#;

/// The URL of a log where everybody gets the start of an answer, and then nothing more; but the status of a generation whole, where
/// there are answers at all.
fn silent_after(start: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let (mut stream, mut head, mut byte) = (stream.unwrap(), Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                head.push(byte[0]);
            }
            if !start.is_empty() && head.starts_with(b"GET /logs/app?generation=") {
                let (fields, length) = ("HTTP/1.1 200 OK\r\nconnection: close", STATUS.len());
                let _ = stream.write_all(format!("{fields}\r\ncontent-length: {length}\r\n\r\n{STATUS}").as_bytes());
                continue;
            }
            let _ = stream.write_all(start.as_bytes());
            open.push(stream);
        }
    });
    format!("http://{address}/logs/app")
}

fn status_of(answer: &str) -> ClientError {
    runtime().block_on(Client::new(&answering(answer)).unwrap().status()).unwrap_err()
}

#[test]
fn only_the_url_of_a_log_is_taken() {
    for url in ["", "app", "/logs/app", "ftp://host/logs/app", "http://host", "http://host/", "file:///logs", "http://"]
    {
        let error = Client::new(url).unwrap_err();
        assert!(matches!(&error, ClientError::Url { url: named, .. } if named == url), "{url}: {error}");
        assert!(!error.is_transient());
    }
    for url in ["http://host/logs/app", "https://host:7171/logs/app", "http://host/logs/app/", "http://[::1]:1/x/app"] {
        assert_eq!(Client::new(url).unwrap().url().as_str(), url.trim_end_matches('/'));
    }
}

#[test]
fn a_refusal_comes_with_all_that_the_service_says() {
    let service = start();
    let (client, runtime) = (service.client("app"), &service.runtime);
    assert!(runtime.block_on(client.find()).unwrap().is_none());
    let ClientError::Refused { status: 404, body } = runtime.block_on(client.status()).unwrap_err() else { panic!() };
    assert_eq!(body.error, "not-found");
    runtime.block_on(client.create(LogFormat::Commitlog, Some(Offset(0)))).unwrap();
    let sample = Sample::small();
    runtime.block_on(client.append(None, sample.bytes)).unwrap();
    let refused = |body: Vec<u8>| runtime.block_on(client.append(None, body)).unwrap_err();
    let gap = refused(commits(9, 1, 5, 0));
    assert!(!gap.is_transient());
    assert_eq!(
        gap.to_string(),
        "the log goes on with offset 6, but offset 9 was sent (gap, status 409)",
        "what is wrong, once, with its code"
    );
    let ClientError::Refused { status: 409, body } = gap else { panic!() };
    assert_eq!(body.next, Some(Offset(6)));
    let ClientError::Refused { status: 409, body } = refused(commits(5, 1, 5, 0)) else { panic!() };
    assert_eq!((body.error.as_str(), body.at, body.next), ("fork", Some(Offset(5)), Some(Offset(6))));
    let ClientError::Refused { status: 422, body } = refused(commits(6, 1, 5, 0)[..30].to_vec()) else { panic!() };
    assert_eq!((body.error.as_str(), body.offset), ("truncated", Some(Offset(6))));
    let ahead = runtime.block_on(client.read(Offset(7), None, false)).unwrap_err();
    assert!(matches!(ahead, ClientError::Refused { status: 409, body } if body.next == Some(Offset(6))));
    let other_first = runtime.block_on(client.create(LogFormat::Commitlog, Some(Offset(5)))).unwrap_err();
    assert!(matches!(other_first, ClientError::Refused { status: 409, body } if body.error == "format"));
}

#[test]
fn what_is_no_logmirror_service_is_said_to_be_none() {
    let page = "<html><body>Welcome to nginx!</body></html>";
    let answers = [
        (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len()), "expected value"),
        (
            format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{page}", page.len()),
            "is this the URL of a log?",
        ),
        (
            format!("HTTP/1.1 403 Forbidden\r\nserver: nginx\r\ncontent-length: {}\r\n\r\n{page}", page.len()),
            "403 (nginx)",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned(), "missing field"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(), "404"),
    ];
    for (answer, text) in answers {
        let error = status_of(&answer);
        assert!(matches!(error, ClientError::Protocol(_) | ClientError::Intermediary { .. }), "{answer}: {error}");
        assert!(error.to_string().contains(text), "{answer}: {error}");
        assert!(!error.to_string().contains("Welcome"), "what a proxy says is never printed: {error}");
        assert!(!error.is_transient());
    }
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n[{}", " ".repeat(17 << 20));
    assert!(status_of(&endless).to_string().contains("an answer of more than 16777216 bytes"));
}

#[test]
fn what_may_go_away_by_itself_is_transient() {
    let json = r#"{"error":"failed","message":"the disk"}"#;
    let unavailable = format!("HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n{json}", json.len());
    let error = status_of(&unavailable);
    assert!(
        error.is_transient() && matches!(&error, ClientError::Refused { status: 503, body } if body.error == "failed")
    );
    // A proxy whose service is being restarted says so in its own words.
    for status in ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"] {
        let error = status_of(&format!("HTTP/1.1 {status}\r\ncontent-length: 9\r\n\r\n<html>oh!"));
        assert!(error.is_transient(), "{error}");
        assert!(error.to_string().contains(&status[..3]) && !error.to_string().contains("<html>"), "{error}");
    }
    // Broken off, and not there at all.
    let broken = status_of("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"log\"");
    assert!(broken.is_transient() && matches!(broken, ClientError::Transport(_)), "{broken}");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let absent = runtime().block_on(Client::new(&format!("http://{nobody}/logs/app")).unwrap().status()).unwrap_err();
    assert!(absent.is_transient(), "{absent}");
    assert!(absent.to_string().contains("connection refused"), "the cause must be named: {absent}");
    // Of the service or of a proxy: too many requests, or none in time.
    for status in ["408 Request Timeout", "429 Too Many Requests"] {
        for body in [r#"{"error":"busy","message":"later"}"#, "<html>oh!"] {
            let length = body.len();
            let error = status_of(&format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"));
            assert!(error.is_transient() && error.blame() == Blame::Transient, "{error}");
        }
    }
}

/// Whether a call fails, and not for good, within ten minutes.
async fn is_given_up<T>(call: impl Future<Output = Result<T, ClientError>>) -> bool {
    let ended = tokio::time::timeout(Duration::from_secs(600), call).await;
    matches!(ended, Ok(Err(error)) if error.is_transient())
}

#[test]
fn a_service_that_falls_silent_is_given_up() {
    // The clock goes on as soon as nothing else can happen.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mute = Client::new(&silent_after("")).unwrap();
        assert!(is_given_up(mute.status()).await, "status");
        assert!(is_given_up(mute.find()).await, "find");
        assert!(is_given_up(mute.create(LogFormat::Commitlog, None)).await, "create");
        assert!(is_given_up(mute.segments(false)).await, "segments");
        assert!(is_given_up(mute.base(Generation(1))).await, "base");
        assert!(is_given_up(mute.read(Offset(0), None, false)).await, "a read that ends");
        tokio::time::resume();
        let half =
            Client::new(&silent_after("HTTP/1.1 200 OK\r\nlog-format-version: 1\r\ncontent-length: 1000\r\n\r\nhalf"))
                .unwrap();
        let base = half.base(Generation(1)).await.unwrap();
        let segment = half.segment(Offset(0)).await.unwrap();
        let read = half.read(Offset(0), None, false).await.unwrap();
        let follow = half.read(Offset(0), None, true).await.unwrap();
        tokio::time::pause();
        assert!(is_given_up(base.try_collect::<Vec<_>>()).await, "half a base");
        assert!(is_given_up(segment.try_collect::<Vec<_>>()).await, "half a segment");
        assert!(is_given_up(read.try_collect::<Vec<_>>()).await, "half a read");
        assert!(!is_given_up(follow.try_collect::<Vec<_>>()).await, "a follower may be sent nothing for long");
    });
}

#[test]
fn a_log_goes_in_and_comes_out_byte_for_byte() {
    let service = start();
    let (client, whole) = (service.client("app"), stream_of("whole"));
    service.runtime.block_on(async {
        let created = client.create(LogFormat::Commitlog, Some(Offset(0))).await.unwrap();
        assert_eq!((created.durable, created.last_commit, created.state), (Some(Offset(0)), None, LogState::Ok));
        assert_eq!(client.create(LogFormat::Commitlog, Some(Offset(0))).await.unwrap().id, created.id);
        let outcome = client.append(None, whole[..9000].to_vec()).await.unwrap_err();
        let ClientError::Refused { status: 422, body } = outcome else { panic!("{outcome}") };
        let next = body.next.unwrap();
        // From where the service says; the source has it from there on.
        let at = service.stream("app").len();
        let outcome = client.append(Some(next), whole[at..].to_vec()).await.unwrap();
        assert_eq!((outcome.next, outcome.durable), (Offset(360), Offset(360)));
        let status = client.find().await.unwrap().unwrap();
        let checksum = u32::from_le_bytes(whole[whole.len() - 4..].try_into().unwrap());
        let last = LastCommit { offset: Offset(357), entries: 3, checksum: checksum.into() };
        assert_eq!((status.last_commit, status.segments), (Some(last), Some(4)));
        let read = client.read(Offset(0), None, false).await.unwrap();
        let bytes =
            read.try_fold(vec![], |all, bytes| async move { Ok([all, bytes.to_vec()].concat()) }).await.unwrap();
        assert_bytes(&bytes, &whole, "all of it");
        let part = client.read(Offset(111), Some(Offset(222)), false).await.unwrap();
        let part = part.try_fold(vec![], |all, bytes| async move { Ok([all, bytes.to_vec()].concat()) }).await.unwrap();
        let segments = support::segments(&specimen("whole"));
        assert_bytes(&part, &segments["00000000000000000111.stdb.log"], "a part");
        for (segment, file) in client.segments(true).await.unwrap().iter().zip(segments.values()) {
            assert_eq!((segment.bytes, segment.sha256.is_some()), (file.len() as u64, segment.sealed));
            let bytes = client.segment(segment.start).await.unwrap();
            let bytes = bytes.try_fold(vec![], |all, bytes| async move { Ok([all, bytes.to_vec()].concat()) });
            assert_bytes(&bytes.await.unwrap(), file, segment.start);
        }
        assert!(client.segments(false).await.unwrap().iter().all(|segment| segment.sha256.is_none()));
    });
}

#[test]
fn a_live_append_and_a_follower_move_together() {
    let service = start();
    let client = service.client("app");
    service.runtime.block_on(async {
        client.create(LogFormat::Commitlog, Some(Offset(0))).await.unwrap();
        let mut follower = client.read(Offset(0), None, true).await.unwrap();
        let (mut body, chunks) = mpsc::channel(1);
        let mut acks = client.append_live(Offset(0), chunks).await.unwrap();
        assert!(matches!(acks.next().await.unwrap(), Some(AckLine::Durable { durable: Offset(0) })));
        body.try_send(Ok(Bytes::from(header()))).unwrap();
        let (mut sent, mut read) = (header(), Vec::new());
        for offset in 0..20 {
            let chunk = commits(offset, 1, 100, 0);
            sent.extend_from_slice(&chunk);
            futures::SinkExt::send(&mut body, Ok(Bytes::from(chunk))).await.unwrap();
            let line = acks.next().await.unwrap();
            assert!(matches!(line, Some(AckLine::Durable { durable }) if durable.0 == offset + 1), "{line:?}");
            while read.len() < sent.len() {
                read.extend_from_slice(&follower.next().await.unwrap().unwrap());
            }
            assert_bytes(&read, &sent, offset);
        }
        drop(body);
        let wanted = AppendOutcome { next: Offset(20), durable: Offset(20), appended: 20, skipped: 0 };
        assert!(matches!(acks.next().await.unwrap(), Some(AckLine::Outcome(outcome)) if outcome == wanted));
        assert!(acks.next().await.unwrap().is_none());
    });
}

#[test]
fn a_live_append_that_fails_says_so_in_its_last_line() {
    let service = start();
    let client = service.client("app");
    service.runtime.block_on(async {
        let absent = client.append_live(Offset(0), stream::empty()).await.unwrap_err();
        assert!(matches!(absent, ClientError::Refused { status: 404, .. }), "{absent}");
        client.create(LogFormat::Commitlog, Some(Offset(0))).await.unwrap();
        // The body stays open, and yet the error comes.
        let body = stream::iter([Ok(Bytes::from([header(), commits(7, 1, 9, 0)].concat()))]).chain(stream::pending());
        let mut acks = client.append_live(Offset(0), body).await.unwrap();
        assert!(matches!(acks.next().await.unwrap(), Some(AckLine::Durable { .. })));
        let last = acks.next().await.unwrap();
        assert!(matches!(&last, Some(AckLine::Error(body)) if body.error == "gap"), "{last:?}");
        assert!(acks.next().await.unwrap().is_none());
    });
}

#[test]
fn lines_that_are_no_acknowledgements_are_not_taken_for_any() {
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    let lines = |answer: String| {
        runtime().block_on(async {
            let client = Client::new(&answering(answer)).unwrap();
            let mut acks = client.append_live(Offset(0), stream::pending()).await.unwrap();
            let mut good = 0;
            loop {
                match acks.next().await {
                    Ok(Some(_)) => good += 1,
                    Ok(None) => return (good, String::new()),
                    Err(error) => return (good, error.to_string()),
                }
            }
        })
    };
    let (good, error) = lines(format!("{head}{{\"durable\":1}}\n<html>\n"));
    assert!(good == 1 && error.contains("not an ack line"), "{error}");
    let (good, error) = lines(format!("{head}{{\"durable\":1}}\n{{\"durable\":\"2\"}}\n"));
    assert!(good == 1 && error.contains("not an ack line"), "{error}");
    let (good, error) = lines(format!("{head}{}", "x".repeat(1 << 20)));
    assert!(good == 0 && error.contains("an ack line without end"), "{error}");
    // A line cut in the middle is no line; the caller sees an answer that ended without an outcome.
    assert_eq!(lines(format!("{head}{{\"durable\":1}}\n{{\"dura")), (1, String::new()));
}
