//! Segments as files, and everything around the logs: lists, health, metrics, names, and what is not there.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use logmirror::repo::{FsRepo, MemRepo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::log::{Sample, commits, header};
use support::service::{Answer, Service};
use support::{assert_bytes, segments, specimen};
use tempfile::TempDir;

/// A service with `whole` in the logs `app` and `packed`; the second has its sealed segments compressed.
fn start() -> (TempDir, Service) {
    let data = tempfile::tempdir().unwrap();
    support::plant(data.path(), "app", "whole");
    support::plant(data.path(), "packed", "sealed");
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    (data, service)
}

const STARTS: [u64; 4] = [0, 111, 222, 333];

fn file(start: u64) -> Vec<u8> {
    segments(&specimen("whole")).remove(&format!("{start:020}.stdb.log")).unwrap()
}

fn get(service: &Service, log: &str, start: u64, headers: &str) -> Answer {
    service.call("GET", &format!("/logs/{log}/segments/{start}"), headers, b"")
}

#[test]
fn the_list_of_segments_says_what_each_holds() {
    let (_data, service) = start();
    for log in ["app", "packed"] {
        let list = service.get(&format!("/logs/{log}/segments")).json();
        let wanted = |start: u64| {
            let bytes = file(start).len();
            json!({"start": start, "end": (start + 111).min(360), "bytes": bytes, "sealed": start < 333, "sha256": null})
        };
        assert_eq!(list, Value::from(STARTS.map(wanted).to_vec()), "{log}");
        assert_eq!(service.get(&format!("/logs/{log}/segments?sha256=false")).json(), list);
        assert_eq!(service.get(&format!("/logs/{log}/segments?generation=1")).json(), list);
    }
}

#[test]
fn digests_are_those_of_the_bytes_and_only_of_sealed_segments() {
    let (data, service) = start();
    for log in ["app", "packed"] {
        let digest = |start: u64| {
            let hex = Sha256::digest(file(start)).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            if start < 333 { Value::from(hex) } else { Value::Null }
        };
        let found = || service.get(&format!("/logs/{log}/segments?sha256=true")).json();
        let digests: Vec<_> = found().as_array().unwrap().iter().map(|segment| segment["sha256"].clone()).collect();
        assert_eq!(digests, STARTS.map(digest), "{log}");
        // They are remembered: the files are not read again.
        std::fs::remove_dir_all(data.path().join("logs").join(log)).unwrap();
        assert_eq!(found()[2]["sha256"], digest(222), "{log}");
    }
}

#[test]
fn a_segment_is_the_file_with_all_its_headers() {
    let (_data, service) = start();
    for log in ["app", "packed"] {
        for start in STARTS {
            let answer = get(&service, log, start, "");
            assert_eq!(answer.status, 200);
            assert_bytes(&answer.body, &file(start), format_args!("{log} {start}"));
            assert_eq!(answer.header("content-length"), Some(&*file(start).len().to_string()));
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
            assert_eq!(answer.header("accept-ranges"), Some("bytes"));
            let immutable = answer.header("cache-control").unwrap().contains("immutable");
            assert_eq!(immutable, start < 333, "{log} {start}");
            let head = service.call("HEAD", &format!("/logs/{log}/segments/{start}"), "", b"");
            for name in ["content-length", "content-type", "accept-ranges", "cache-control", "etag"] {
                assert_eq!(head.header(name), answer.header(name), "{name} of HEAD {start}");
            }
        }
    }
    for path in ["/logs/app/segments/1", "/logs/app/segments/360", "/logs/app/segments/0?generation=2"] {
        assert_eq!(service.get(path).refusal(), (404, "not-found".to_owned()), "{path}");
    }
    for path in ["/logs/app/segments/x", "/logs/app/segments/-1", "/logs/app/segments/0?generation=x"] {
        assert_eq!(service.get(path).refusal(), (400, "invalid".to_owned()), "{path}");
    }
}

#[test]
fn a_range_gives_those_bytes() {
    let (_data, service) = start();
    let whole = file(111);
    let len = whole.len();
    let cases = [
        ("bytes=0-0", Some(0..1)),
        ("bytes=0-9", Some(0..10)),
        ("bytes=10-", Some(10..len)),
        ("bytes=0-", Some(0..len)),
        ("bytes=-1", Some(len - 1..len)),
        ("bytes=-100000", Some(0..len)),
        ("bytes=5000-6000", Some(5000..6001)),
        ("bytes=8075-8075", Some(8075..8076)),
        ("bytes=8000-99999", Some(8000..len)),
        // Several ranges, another unit and nonsense are ignored, as they may be: the whole file is right.
        ("bytes=0-0,2-3", None),
        ("lines=1-2", None),
        ("bytes=b-a", None),
        ("bytes=3-2", None),
    ];
    for log in ["app", "packed"] {
        for (range, wanted) in &cases {
            let answer = get(&service, log, 111, &format!("range: {range}\r\n"));
            let (status, bytes) = wanted.as_ref().map_or((200, 0..len), |bytes| (206, bytes.clone()));
            assert_eq!(answer.status, status, "{range}: {}", answer.text());
            assert_bytes(&answer.body, &whole[bytes.clone()], range);
            let content_range = wanted.as_ref().map(|_| format!("bytes {}-{}/{len}", bytes.start, bytes.end - 1));
            assert_eq!(answer.header("content-range"), content_range.as_deref(), "{range}");
        }
        for range in ["bytes=8076-", "bytes=99999-100000", "bytes=-0"] {
            let answer = get(&service, log, 111, &format!("range: {range}\r\n"));
            assert_eq!(answer.refusal(), (416, "invalid".to_owned()), "{range}");
            assert_eq!(answer.header("content-range"), Some(&*format!("bytes */{len}")), "{range}");
        }
    }
}

#[test]
fn a_client_that_has_the_bytes_is_told_so() {
    let (_data, service) = start();
    let answer = get(&service, "app", 0, "");
    let etag = answer.header("etag").unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    for known in [etag.to_owned(), "*".to_owned(), format!("W/{etag}"), format!("\"other\", {etag}")] {
        let answer = get(&service, "app", 0, &format!("if-none-match: {known}\r\n"));
        assert_eq!((answer.status, answer.header("etag"), answer.body.len()), (304, Some(etag), 0), "{known}");
        assert!(answer.header("cache-control").unwrap().contains("immutable"));
    }
    assert_eq!(get(&service, "app", 0, "if-none-match: \"other\"\r\n").status, 200);
    // A range of the file that the client has a part of; the whole file if it is another.
    let range = |validator: &str| get(&service, "app", 0, &format!("if-range: {validator}\r\nrange: bytes=0-9\r\n"));
    assert_eq!((range(etag).status, range(etag).body.len()), (206, 10));
    for other in ["\"other\"", "*", &format!("W/{etag}"), "Fri, 20 Nov 2026 11:00:00 GMT"] {
        assert_eq!((range(other).status, range(other).body.len()), (200, file(0).len()), "{other}");
    }
}

#[test]
fn the_etag_of_the_open_segment_changes_with_its_bytes_and_stays_when_it_does_not() {
    let service = Service::start(Arc::new(MemRepo::default()));
    service.create("app");
    let etag = || get(&service, "app", 0, "").header("etag").unwrap().to_owned();
    service.append("app", "", &[header(), commits(0, 1, 9, 0)].concat());
    let one = etag();
    assert_eq!(etag(), one);
    service.append("app", "", &commits(1, 1, 9, 0));
    let two = etag();
    assert_ne!(two, one);
    assert_eq!(get(&service, "app", 0, &format!("if-none-match: {one}\r\n")).status, 200);
    // Sealed, it has the same bytes and is the same thing.
    service.append("app", "", &[header(), commits(2, 1, 9, 0)].concat());
    assert_eq!(etag(), two);
    assert!(get(&service, "app", 0, "").header("cache-control").unwrap().contains("immutable"));
}

#[test]
fn a_log_is_created_once() {
    let service = Service::start(Arc::new(MemRepo::default()));
    let create = |body: &str| service.put("/logs/app", body);
    let new = create(r#"{"format":"commitlog","first":7}"#);
    assert_eq!((new.status, &new.json()["first"], &new.json()["durable"]), (201, &7.into(), &7.into()));
    let again = create(r#"{"format":"commitlog","first":7}"#);
    assert_eq!((again.status, &again.json()["id"]), (200, &new.json()["id"]));
    assert_eq!(create(r#"{"format":"commitlog"}"#).refusal(), (409, "format".to_owned()));
    for body in ["", "{}", "[]", r#"{"format":"wahl"}"#, r#"{"format":"commitlog","frist":1}"#, "<html>"] {
        assert_eq!(create(body).refusal(), (400, "invalid".to_owned()), "{body}");
    }
    assert_eq!(create(r#"{"format":"wal"}"#).refusal(), (409, "format".to_owned()));
    assert_eq!(create(r#"{"format":"wal","first":7}"#).refusal(), (400, "invalid".to_owned()));
    assert_eq!(create(r#"{"format":"commitlog","first":-1}"#).refusal().0, 400);
    assert_eq!(create(&" ".repeat(100_000)).refusal(), (413, "too-large".to_owned()));
}

#[test]
fn names_are_checked_before_anything_else() {
    let service = Service::start(Arc::new(MemRepo::default()));
    let long = "a".repeat(64);
    for name in ["a", "0", "a.b", "a-b_c.d", "log.json", &long] {
        assert_eq!(service.put(&format!("/logs/{name}"), r#"{"format":"commitlog"}"#).status, 201, "{name}");
        assert_eq!(service.status(name)["log"], *name);
    }
    let over = "a".repeat(65);
    for name in ["A", ".", "..", ".hidden", "-a", "_a", "a%20b", "a%2fb", "..%2fx", "%c3%a4", "a%00", "%ff", &over] {
        for (method, path) in
            [("PUT", ""), ("GET", ""), ("GET", "/commits"), ("GET", "/segments"), ("POST", "/commits")]
        {
            let answer = service.call(method, &format!("/logs/{name}{path}"), "", br#"{"format":"commitlog"}"#);
            assert_eq!(answer.refusal(), (400, "invalid".to_owned()), "{method} {name}{path}");
        }
    }
    let names = service.get("/logs").json();
    let names: Vec<_> = names.as_array().unwrap().iter().map(|log| log["log"].as_str().unwrap()).collect();
    assert_eq!(names, ["0", "a", "a-b_c.d", "a.b", &long, "log.json"]);
}

#[test]
fn what_is_not_there_is_said_in_json() {
    let (_data, service) = start();
    for path in ["/", "/nothing", "/logs/app/nothing", "/logs/app/commits/1", "/logs/none"] {
        assert_eq!(service.get(path).refusal(), (404, "not-found".to_owned()), "{path}");
    }
    let wrong = [
        ("DELETE", "/logs/app", "GET,HEAD,PUT"),
        ("POST", "/logs/app", "GET,HEAD,PUT"),
        ("POST", "/logs", "GET,HEAD"),
        ("PUT", "/logs/app/commits", "POST,GET,HEAD"),
        ("PATCH", "/logs/app/segments", "GET,HEAD"),
        ("DELETE", "/logs/app/segments/0", "GET,HEAD"),
        ("POST", "/health", "GET,HEAD"),
    ];
    for (method, path, allowed) in wrong {
        let answer = service.call(method, path, "", b"");
        assert_eq!(answer.refusal(), (405, "invalid".to_owned()), "{method} {path}");
        assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
    }
}

#[test]
fn status_health_and_metrics_agree() {
    let (_data, service) = start();
    service.create("empty");
    let mut status = service.status("app");
    let last = &support::stream_of("whole");
    let checksum = u32::from_le_bytes(last[last.len() - 4..].try_into().unwrap());
    let wanted = json!({
        "log": "app", "format": "commitlog", "id": "specimen-app", "generation": 1, "epoch": 0, "first": 0,
        "next": 360, "durable": 360, "segments": 4, "bytes": last.len(),
        "last_commit": {"offset": 357, "entries": 3, "checksum": checksum}, "state": "ok", "error": null,
    });
    assert_eq!(service.get("/logs").json()[0], status);
    let instance = status.as_object_mut().unwrap().remove("service").unwrap();
    assert_eq!(instance, service.status("empty")["service"], "another one in each process");
    assert_eq!(status, wanted);
    let empty = service.status("empty");
    assert_eq!((&empty["segments"], &empty["bytes"], &empty["last_commit"]), (&0.into(), &0.into(), &Value::Null));
    let health = service.get("/health");
    assert_eq!((health.status, &*health.text()), (200, "ok\n"));
    let metrics = service.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = metrics.text();
    for line in [
        r#"logmirror_durable_offset{log="app"} 360"#,
        r#"logmirror_durable_offset{log="empty"} 0"#,
        r#"logmirror_segments{log="app"} 4"#,
        &format!(r#"logmirror_log_size_bytes{{log="app"}} {}"#, last.len()),
        r#"logmirror_usable{log="app"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    // And they follow.
    service.append("empty", "", &Sample::small().bytes);
    assert_eq!(service.get("/logs").json()[1]["durable"], 6);
}
