//! The digest of a base travels with it, and is compared where it arrives.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::frames::FrameLog;
use crate::support::service::Service;
use crate::{GENERATION, base_of, flip, log_of, said, serve, service_with, sha256};

fn repr_digest(bytes: &[u8]) -> String {
    format!("sha-256=:{}:", BASE64_STANDARD.encode(Sha256::digest(bytes)))
}

#[test]
fn a_base_is_answered_with_the_digest_that_sha256sum_prints() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    for (method, path) in [("GET", "base"), ("HEAD", "base"), ("GET", "export/1"), ("GET", "base?generation=1")] {
        let answer = service.call(method, &format!("/logs/app/{path}"), "", b"");
        assert_eq!(answer.status, 200, "{method} {path}");
        assert_eq!(answer.header("repr-digest"), Some(&repr_digest(&log.base)[..]), "{method} {path}");
    }
    assert_eq!(service.status("app")["base"]["sha256"], sha256(&log.base));
    let described = fs::read(data.path().join("logs/app/log.json")).unwrap();
    let described: Value = serde_json::from_slice(&described).unwrap();
    assert_eq!(described["base"]["sha256"], sha256(&log.base));
    assert_eq!(described["base"]["bytes"], log.base.len());
    // Rolled over, the next base has its own.
    assert_eq!(service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    let answer = service.get("/logs/app/base");
    assert!(answer.body == log.state(2));
    assert_eq!(answer.header("repr-digest"), Some(&repr_digest(&log.state(2))[..]));
    let old = service.get("/logs/app/base?generation=1");
    assert_eq!(old.header("repr-digest"), Some(&repr_digest(&log.base)[..]));
}

#[test]
fn a_base_with_another_digest_than_its_sender_says_is_refused_before_it_is_visible() {
    let data = tempfile::tempdir().unwrap();
    let (log, wrong) = (log_of(4096, 5), format!("repr-digest: {}\r\n", repr_digest(b"another")));
    let service = serve(data.path());
    assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
    let unset = service.get("/logs/app/base").body;
    let (half, rest) = log.base.split_at(9000);
    let total = log.base.len();
    let in_parts = |headers: &str| {
        let first = service.call("PUT", "/logs/app/generations/1?upload=u&at=0", headers, half);
        assert_eq!(first.status, 202, "{}", first.text());
        service.call("PUT", &format!("/logs/app/generations/1?upload=u&at=9000&total={total}"), headers, rest)
    };
    let at_once = |headers: &str| service.call("PUT", "/logs/app/generations/1", headers, &log.base);
    for refused in [at_once(&wrong), in_parts(&wrong)] {
        assert_eq!(refused.refusal(), (422, "corrupt".to_owned()), "{}", refused.text());
        assert!(refused.text().contains(&sha256(&log.base)) && refused.text().contains(&sha256(b"another")));
        assert!(service.get("/logs/app/base").body == unset);
        assert_eq!(service.status("app")["state"], "ok");
    }
    assert_eq!(at_once("repr-digest: sha-256=:AAAA:\r\n").refusal(), (400, "invalid".to_owned()));
    let right = in_parts(&format!("repr-digest: {}\r\n", repr_digest(&log.base)));
    assert_eq!(right.status, 201, "{}", right.text());
    assert!(service.get("/logs/app/base").body == log.base);
    // What is not known is passed over.
    let other = service.call("PUT", "/logs/app/generations/2", "repr-digest: sha-512=:AAAA:\r\n", &log.base);
    assert_eq!(other.status, 201, "{}", other.text());
}

/// What becomes of a base on its way.
#[derive(Clone, Copy, Debug)]
pub enum OnTheWay {
    /// One bit changes.
    Changed,
    /// It is sent by a service that knows no digests.
    WithoutDigest,
    /// Nothing in the answer says which base it was, and one bit changes.
    ChangedWithoutDigest,
    /// It is empty.
    Empty,
    /// That of the generation before comes, as from a cache that ignores the query; the fields of the answer too.
    OfOtherGeneration,
    /// So do the commits, without a field that says of which generation they are.
    CommitsOfOtherGeneration,
    /// The checksums of the pages say that there are so many pages less, and so they are; with or without the field that proves
    /// how many.
    FewerPages { less: u32, proven: bool },
}

/// Something in front of a service that passes everything on, and a base as `what` says. Its address.
pub fn in_front_of(service: &Service, what: OnTheWay) -> String {
    async fn pass_on(State((to, what)): State<(Arc<str>, OnTheWay)>, request: Request) -> Response {
        let mut path = request.uri().path_and_query().unwrap().as_str().to_owned();
        let older = match what {
            OnTheWay::OfOtherGeneration => "/base",
            OnTheWay::CommitsOfOtherGeneration => "/commits",
            _ => "//",
        };
        if path.contains(older) {
            path = path.replace("generation=2", "generation=1").replace("&to=5", "");
        }
        let answer = reqwest::get(format!("{to}{path}")).await.unwrap();
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            let skipped = match what {
                OnTheWay::WithoutDigest | OnTheWay::ChangedWithoutDigest => name == "repr-digest",
                OnTheWay::Empty => path.contains("/base") && ["repr-digest", "content-length"].contains(&name.as_str()),
                OnTheWay::CommitsOfOtherGeneration => name == "log-generation",
                OnTheWay::FewerPages { proven, .. } => {
                    path.contains("/page-sums") && (name == "content-length" || (!proven && name == "log-page-sums"))
                }
                OnTheWay::Changed | OnTheWay::OfOtherGeneration => false,
            };
            if !skipped && name != "transfer-encoding" && name != "connection" {
                response = response.header(name, value);
            }
        }
        let Ok(body) = answer.bytes().await else {
            return Response::builder().status(StatusCode::BAD_GATEWAY).body(Body::empty()).unwrap();
        };
        let mut body = body.to_vec();
        match what {
            OnTheWay::FewerPages { less, .. } if path.contains("/page-sums") => {
                let pages = u32::from_le_bytes(*body[12..].first_chunk().unwrap());
                let fewer = pages.saturating_sub(less);
                body[12..16].copy_from_slice(&fewer.to_le_bytes());
                body.truncate(16 + 8 * fewer as usize);
            }
            _ if !path.contains("/base") => {}
            OnTheWay::Changed | OnTheWay::ChangedWithoutDigest => body[6000] ^= 4,
            OnTheWay::Empty => body.clear(),
            _ => {}
        }
        response.body(body.into()).unwrap()
    }
    let to: Arc<str> = service.url("").into();
    let router = Router::new().fallback(pass_on).with_state((to, what));
    let listener = service.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    service.runtime.spawn(async { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}/logs/app")
}

#[test]
fn a_base_that_changed_on_its_way_is_not_taken() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let url = in_front_of(&service, OnTheWay::Changed);
    let (out, copy) = (data.path().join("out.db"), data.path().join("copy"));
    let (code, text) = said(&["restore", &url, out.to_str().unwrap()]);
    assert!(code == 1 && text.contains(&sha256(&log.base)), "{code}: {text}");
    let (code, text) = said(&["mirror", &url, copy.to_str().unwrap()]);
    assert!(code != 0 && text.contains(&sha256(&log.base)), "{code}: {text}");
    let (code, text) = said(&["verify", &url]);
    assert!(code == 1 && text.contains(&sha256(&log.base)), "{code}: {text}");
    assert!(!out.exists() && !copy.join("base.db").exists());
}

#[test]
fn what_is_not_of_the_generation_that_was_asked_for_is_not_taken() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5).commit(&[2], 5);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    assert_eq!(service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    let base = service.get("/logs/app/base").body;
    let next = FrameLog { base: base.clone(), ..FrameLog::new(4096, false).commit(&[4, 3], 5).commit(&[5], 5) };
    assert_eq!(service.append("app", "?from=1", &next.stream(&[])).status, 200);
    let ways = [
        (OnTheWay::ChangedWithoutDigest, sha256(&base)),
        (OnTheWay::Empty, "is empty".to_owned()),
        (OnTheWay::OfOtherGeneration, "is of generation 1".to_owned()),
        (OnTheWay::CommitsOfOtherGeneration, "of a log whose base has the SHA-256".to_owned()),
    ];
    for (nth, (what, says)) in ways.into_iter().enumerate() {
        let url = in_front_of(&service, what);
        let (out, copy) = (data.path().join(format!("{nth}.db")), data.path().join(format!("copy-{nth}")));
        let (code, text) = said(&["restore", &url, out.to_str().unwrap()]);
        assert!(code == 1 && text.contains(&says), "{what:?}: {code}: {text}");
        assert!(text.contains("asking again on a new connection"), "{what:?}: {text}");
        let (code, text) = said(&["mirror", &url, copy.to_str().unwrap()]);
        assert!(code == 3 && text.contains(&says) && !text.contains("panicked"), "{what:?}: {code}: {text}");
        assert!(text.contains("asking again on a new connection"), "{what:?}: {text}");
        let (code, text) = said(&["verify", &url]);
        assert!(code == 1 && text.contains(&says), "{what:?}: {code}: {text}");
        assert!(!out.exists(), "{what:?}");
        assert!(!copy.join("00000000000000000001.wal").exists(), "{what:?}: nothing of the wrong frames is kept");
    }
}

#[test]
fn frames_with_pages_of_another_size_than_those_of_the_base_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let (log, other) = (log_of(4096, 5), log_of(1024, 5).stream(&[]));
    let service = service_with(data.path(), &log.base, &[]);
    let in_parts = || {
        let (half, rest) = other.split_at(900);
        assert_eq!(service.append("app", "?from=1&upload=u&at=0", half).status, 202);
        service.append("app", &format!("?from=1&upload=u&at=900&total={}", other.len()), rest)
    };
    let answers = [
        service.append("app", "?from=1", &other),
        service.append("app", "", &other),
        service.append_chunked("app", "?from=1", &other, 700),
        in_parts(),
    ];
    for answer in answers {
        assert_eq!(answer.refusal(), (409, "format".to_owned()), "{}", answer.text());
        assert!(answer.text().contains("1024") && answer.text().contains("4096"), "{}", answer.text());
    }
    assert_eq!(service.append("app", "?from=1", &log.stream(&[])).status, 200);
    let out = data.path().join("out.db");
    assert_eq!(said(&["restore", &service.url("/logs/app"), out.to_str().unwrap()]).0, 0);
    assert!(fs::read(&out).unwrap() == log.state(2));
    // The base that a log is created with has no content, and no size that matters.
    assert_eq!(service.put("/logs/b", r#"{"format":"wal"}"#).status, 201);
    let small = FrameLog::new(1024, false).commit(&[1, 2, 3], 3).commit(&[2, 4], 4);
    assert_eq!(service.append("b", "?from=1", &small.stream(&[])).status, 200);
    let restored = |name: &str| {
        let out = data.path().join(name);
        let (code, text) = said(&["restore", &service.url("/logs/b"), out.to_str().unwrap()]);
        assert_eq!(code, 0, "{text}");
        fs::read(&out).unwrap()
    };
    assert!(restored("b.db") == small.state(5));
    let rolled = service.call("POST", "/logs/b/checkpoint", "", b"");
    assert_eq!(rolled.status, 200, "{}", rolled.text());
    assert!(restored("rolled.db") == small.state(5));
}

#[test]
fn a_base_of_a_service_that_knows_no_digests_is_taken_as_unproven() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let url = in_front_of(&service, OnTheWay::WithoutDigest);
    let (out, copy) = (data.path().join("out.db"), data.path().join("copy"));
    let (code, text) = said(&["restore", &url, out.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    assert!(fs::read(&out).unwrap() == log.state(2));
    let (code, text) = said(&["mirror", &url, copy.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    assert!(fs::read(copy.join("base.db")).unwrap() == log.base);
    assert!(logmirror::segment::base::BaseReader::open(&repo(&copy)).unwrap().unwrap().is_unproven());
    assert_eq!(said(&["verify", copy.to_str().unwrap()]).0, 0);
}

fn repo(path: &Path) -> logmirror::repo::FsRepo {
    logmirror::repo::FsRepo::open(path).unwrap()
}

#[test]
fn a_mirror_has_the_checksums_of_its_base_and_hands_them_on() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = log_of(4096, 5);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let (url, copy) = (service.url("/logs/app"), data.path().join("copy"));
    assert_eq!(said(&["mirror", &url, copy.to_str().unwrap()]).0, 0);
    let sums = fs::read(data.path().join(GENERATION).join("base.sums")).unwrap();
    assert!(fs::read(copy.join("base.sums")).unwrap() == sums);
    // On into another directory, and into another service.
    let again = data.path().join("again");
    assert_eq!(said(&["mirror", copy.to_str().unwrap(), again.to_str().unwrap()]).0, 0);
    assert!(fs::read(again.join("base.sums")).unwrap() == sums);
    let second = serve(other.path());
    let (code, text) = said(&["mirror", copy.to_str().unwrap(), &second.url("/logs/app")]);
    assert_eq!(code, 0, "{text}");
    assert!(fs::read(other.path().join(GENERATION).join("base.sums")).unwrap() == sums);
    // What rots in the copy is not handed on.
    flip(&copy.join("base.db"), 5000);
    let (code, text) = said(&["mirror", copy.to_str().unwrap(), &second.url("/logs/app2")]);
    assert!(code == 1 && text.contains("block 1, at byte 4096"), "{code}: {text}");
    let (code, text) = said(&["verify", copy.to_str().unwrap()]);
    assert!(code == 1 && text.contains("block 1, at byte 4096"), "{code}: {text}");
    assert!(fs::read(base_of(other.path())).unwrap() == log.base);
}

#[test]
fn a_mirror_of_a_log_without_a_base_takes_the_first_one_that_the_log_is_given() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    let service = serve(data.path());
    for frames in [false, true] {
        let (name, copy) = (format!("log-{frames}"), data.path().join(format!("copy-{frames}")));
        assert_eq!(service.put(&format!("/logs/{name}"), r#"{"format":"wal"}"#).status, 201);
        let url = service.url(&format!("/logs/{name}"));
        let args = ["mirror", &url, copy.to_str().unwrap()];
        assert_eq!(said(&args).0, 0);
        let put = service.call("PUT", &format!("/logs/{name}/generations/1"), "", &log.base);
        assert_eq!(put.status, 201, "{}", put.text());
        if frames {
            assert_eq!(service.append(&name, "?from=1", &log.stream(&[])).status, 200);
        }
        let (code, text) = said(&args);
        assert_eq!(code, 0, "{text}");
        assert!(fs::read(copy.join("base.db")).unwrap() == log.base, "frames: {frames}");
        assert_eq!(said(&["verify", copy.to_str().unwrap()]).0, 0);
    }
}

#[test]
fn a_request_without_a_body_starts_no_generation() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let mut wire = service.connect();
    wire.send(b"PUT /logs/app/generations/2 HTTP/1.1\r\nhost: x\r\n\r\n");
    let answer = wire.answer();
    assert_eq!(answer.refusal(), (400, "invalid".to_owned()), "{}", answer.text());
    assert!(answer.text().contains("content-length"), "{}", answer.text());
    assert_eq!(service.status("app")["generation"], 1);
    // A database without a page is one, and is sent as an empty body.
    assert_eq!(service.call("PUT", "/logs/app/generations/2", "", b"").status, 201);
    // In parts the last one says how long it is. Clients leave the length of an empty body out.
    let mut wire = service.connect();
    wire.send(b"PUT /logs/app/generations/3?upload=a&at=0&total=0 HTTP/1.1\r\nhost: x\r\n\r\n");
    let answer = wire.answer();
    assert_eq!(answer.status, 201, "{}", answer.text());
}
