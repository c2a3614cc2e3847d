//! Bodies that make no sense, are too large, or mean harm.

use std::io::Write;
use std::time::{Duration, Instant};

use logmirror::limits::SQL_BODY_BYTES_MAX;
use serde_json::{Value, json};

use super::support::service::PATIENCE;
use super::{Rig, execute};

/// How long bodies are held.
const HELD: Duration = Duration::from_secs(4);

#[test]
fn bodies_that_cannot_be_read_are_told_why() {
    let rig = Rig::new();
    let deep = |depth: usize| {
        let cond = r#"{"type":"not","cond":"#.repeat(depth) + r#"{"type":"is_autocommit"}"# + &"}".repeat(depth);
        let step = format!(r#"{{"condition":{cond},"stmt":{{"sql":"SELECT 1"}}}}"#);
        format!(r#"{{"requests":[{{"type":"batch","batch":{{"steps":[{step}]}}}}]}}"#)
    };
    let bodies = [
        String::new(),
        "{".into(),
        "[]".into(),
        "null".into(),
        r#"{"baton":null}"#.into(),
        r#"{"baton":7,"requests":[]}"#.into(),
        r#"{"requests":[7]}"#.into(),
        r#"{"requests":[{"type":"execute"}]}"#.into(),
        r#"{"requests":[{"type":"execute","stmt":{"sql":7}}]}"#.into(),
        r#"{"requests":[{"type":"execute","stmt":{"sql":"SELECT ?","args":[7]}}]}"#.into(),
        r#"{"requests":[{"type":"batch","batch":{"steps":[{"stmt":{"sql":""},"condition":{"type":"maybe"}}]}}]}"#
            .into(),
        r#"{"requests":[]} more"#.into(),
        deep(1_000),
        deep(100_000),
        format!("{}{}", "[".repeat(1_000), "]".repeat(1_000)),
        format!(r#"{{"requests":[],"batch":{{"steps":[]}},"unread":{}"]"{}}}"#, "[".repeat(1_000), "]".repeat(1_000)),
    ];
    for body in bodies {
        for path in ["v2/pipeline", "v3/pipeline", "v3/cursor"] {
            let answer = rig.post(path, body.as_bytes());
            let start: String = body.chars().take(100).collect();
            assert_eq!(answer.refusal(), (400, "invalid".to_owned()), "{path} {start}: {}", answer.text());
            assert!(answer.json()["message"].as_str().unwrap().contains("cannot be read"));
        }
    }
    assert_eq!(rig.post("v2/pipeline", b"{\"requests\":[],\"\xff\":1}").status, 400);
    assert_eq!(rig.post("v2/pipeline", deep(40).as_bytes()).status, 200);
    rig.run("SELECT 1");
}

#[test]
fn bodies_whose_ends_are_not_sent_keep_nobody_from_what_is_sent_whole() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let begun = |announced: usize| {
        let mut wire = rig.service.connect();
        let head = format!("POST /logs/app/v3/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: {announced}\r\n\r\n");
        wire.send(head.as_bytes());
        wire
    };
    let _announced: Vec<_> = (0..8).map(|_| begun(SQL_BODY_BYTES_MAX)).collect();
    let sent = [b' '].repeat(20 << 20);
    std::thread::scope(|scope| {
        for _ in 0..10 {
            let (mut wire, sent) = (begun(sent.len() + 1), &sent);
            scope.spawn(move || {
                wire.stream.set_write_timeout(Some(HELD)).unwrap();
                // It ends here where the service takes no more for now.
                let _is_taken = wire.stream.write_all(sent);
                std::thread::sleep(HELD);
            });
        }
        let since = Instant::now();
        while since.elapsed() < HELD {
            let call = Instant::now();
            rig.run("INSERT INTO t VALUES (1)");
            rig.run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT zeroblob(100000) FROM n");
            assert!(call.elapsed() < PATIENCE / 3, "{:?}", call.elapsed());
        }
    });
}

#[test]
fn a_body_beyond_the_cap_is_refused_before_it_is_read() {
    let rig = Rig::new();
    let mut wire = rig.service.connect();
    wire.send(b"POST /logs/app/v2/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: 200000000\r\n\r\n{\"requests\"");
    let since = Instant::now();
    assert_eq!(wire.answer().refusal(), (413, "too-large".to_owned()));
    assert!(since.elapsed() < PATIENCE / 3);
}

#[test]
fn a_body_in_chunks_is_taken_up_to_the_cap() {
    let rig = Rig::new();
    let chunked = || {
        let mut wire = rig.service.connect();
        wire.send(b"POST /logs/app/v2/pipeline HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
        wire
    };
    let mut wire = chunked();
    for piece in json!({"requests": [execute("SELECT 'in pieces'")]}).to_string().as_bytes().chunks(7) {
        wire.send_chunk(piece);
    }
    wire.send_chunk(b"");
    assert_eq!(wire.answer().json()["results"][0]["response"]["result"]["rows"][0][0]["value"], "in pieces");
    let mut wire = chunked();
    let piece = vec![b' '; 1 << 20];
    for _ in 0..SQL_BODY_BYTES_MAX >> 20 {
        wire.send_chunk(&piece);
    }
    wire.send_chunk(b"  ");
    assert_eq!(wire.answer().refusal(), (413, "too-large".to_owned()));
}

#[test]
fn sql_that_nests_without_end_does_not_end_the_service() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let nested = |open: &str, inner: &str, close: &str, depth: usize| {
        format!("SELECT * FROM {}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    for depth in [90, 190, 100_000] {
        let texts = [
            nested("(SELECT * FROM ", "t", ")", depth),
            format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth)),
            format!("SELECT {}1{}", "abs(".repeat(depth), ")".repeat(depth)),
            format!("SELECT {}1{}", "(SELECT ".repeat(depth), ")".repeat(depth)),
            format!("SELECT {}1", "NOT ".repeat(depth)),
            format!("SELECT 1{}", "+1".repeat(depth)),
            format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(depth)),
            format!("CREATE TABLE x{depth}(a CHECK ({}1{}))", "(".repeat(depth), ")".repeat(depth)),
        ];
        for sql in texts {
            rig.results(&json!([execute(&sql), {"type": "sequence", "sql": sql}, {"type": "describe", "sql": sql}]));
        }
    }
    rig.run("CREATE VIEW v0 AS SELECT a FROM t");
    for view in 1..300 {
        rig.results(&json!([execute(&format!("CREATE VIEW v{view} AS SELECT a FROM v{}", view - 1))]));
    }
    rig.results(&json!([execute("SELECT * FROM v299")]));
    rig.run("SELECT 1");
}

#[test]
fn what_this_service_does_not_have_is_said() {
    let rig = Rig::new();
    let body = json!({"baton": null, "requests": [execute("SELECT 1")]}).to_string();
    let call = |path: &str, headers: &str| rig.service.call("POST", path, headers, body.as_bytes());
    assert_eq!(call("/logs/nix/v2/pipeline", "").refusal(), (404, "not-found".to_owned()));
    assert_eq!(call("/logs/app/v2/pipeline", "x-turso-encryption-key: k\r\n").refusal(), (400, "invalid".to_owned()));
    assert_eq!(call("/logs/app/v2/cursor", "").status, 404);
    assert_eq!(rig.service.get("/logs/app/v2/pipeline").status, 405);
    rig.service.create("clog");
    assert_eq!(call("/logs/clog/v2/pipeline", "").refusal(), (409, "format".to_owned()));
    assert_eq!(call("/logs/clog/v3/cursor", "").status, 400, "its body is none");
    assert_eq!(rig.rows("SELECT 1"), json!([["1"]]));
    assert_eq!(rig.call(&Value::Null, &json!([])).1, Vec::<Value>::new());
}
