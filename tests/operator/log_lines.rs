//! What happened is in the log and counted.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::support::process::{Service, until};
use crate::support::service::{Answer, PATIENCE, Wire, request};
use crate::support::{plant, segments, specimen, stream_of};

const TOKEN: &str = "s3cret-Token";

fn call(service: &Service, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let address: SocketAddr = service.address().parse().unwrap();
    let mut wire = Wire::connect(address);
    wire.send(request(method, path, &format!("{headers}content-length: {}\r\n", body.len())).as_bytes());
    wire.send(body);
    if method == "HEAD" { wire.head() } else { wire.answer() }
}

/// The lines about requests with this path.
fn about<'a>(said: &'a str, path: &str) -> Vec<&'a str> {
    let lines = said.lines().filter(|line| line.contains("logmirror::request"));
    lines.filter(|line| line.split(' ').any(|word| word == format!("path={path}"))).collect()
}

#[test]
fn each_request_is_one_line_with_its_numbers() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let stream = stream_of("whole");
    assert_eq!(call(&service, "PUT", "/logs/app", "", br#"{"format":"commitlog"}"#).status, 201);
    assert_eq!(call(&service, "POST", "/logs/app/commits?from=0", "", &stream).status, 200);
    assert_eq!(call(&service, "POST", "/logs/app/commits?from=0", "", &stream).status, 200);
    assert_eq!(call(&service, "GET", "/logs/app/commits", "", b"").body, stream);
    assert_eq!(call(&service, "PUT", "/logs/gap", "", br#"{"format":"commitlog"}"#).status, 201);
    let later: Vec<u8> = segments(&specimen("whole")).into_values().skip(1).flatten().collect();
    assert_eq!(call(&service, "POST", "/logs/gap/commits", "", &later).status, 409);
    assert_eq!(
        call(&service, "POST", "/logs/app/commits?acks=stream", "", b"not a commitlog at all, by its length").status,
        200
    );
    assert_eq!(call(&service, "GET", "/nowhere", "", b"").status, 404);
    assert_eq!(call(&service, "GET", "/logs/app/segments/0", "if-match: \"other\"\r\n", b"").status, 412);
    assert_eq!(call(&service, "HEAD", "/logs/app", "", b"").status, 200);
    assert_eq!(call(&service, "GET", "/health", "", b"").status, 200);
    let metrics = call(&service, "GET", "/metrics", "", b"").text();
    let (_, said) = service.terminate();

    let only = |path: &str| {
        let lines = about(&said, path);
        assert_eq!(lines.len(), 1, "{path}: {said}");
        lines[0]
    };
    let holds = |line: &str, parts: &[&str]| {
        for part in parts {
            assert!(line.contains(part), "{part} in {line}");
        }
    };
    let bytes = stream.len();
    let created = about(&said, "/logs/app");
    holds(created[0], &["INFO", "method=PUT", "status=201", "in=22", "peer=127.0.0.1:", "who=-", "ms="]);
    holds(created[1], &["method=HEAD", "status=200", "out=0"]);
    let appended = about(&said, "/logs/app/commits?from=0");
    assert_eq!(appended.len(), 2, "{said}");
    holds(appended[0], &["method=POST", "status=200", &format!("in={bytes} ")]);
    holds(only("/logs/app/commits"), &["method=GET", "status=200", "in=0", &format!("out={bytes} ")]);
    holds(only("/logs/gap/commits"), &["status=409", "error=gap", "reason=\"", "offset 111"]);
    holds(only("/logs/app/commits?acks=stream"), &["status=200", "error=corrupt"]);
    holds(only("/nowhere"), &["status=404", "error=not-found"]);
    holds(only("/logs/app/segments/0"), &["status=412", "error=invalid", "If-Match"]);
    assert!(!said.contains("aborted"), "{said}");
    assert!(about(&said, "/health").is_empty() && about(&said, "/metrics").is_empty(), "{said}");
    // Creates and skips have a line of their own.
    assert!(said.contains("log app created: a commitlog, first offset 0, id "), "{said}");
    assert!(said.contains("log app: 120 commits were sent that it holds: skipped"), "{said}");

    for line in [
        r#"logmirror_requests_total{route="/logs/{log}",method="PUT",status="201"} 2"#,
        r#"logmirror_requests_total{route="/logs/{log}/commits",method="POST",status="409"} 1"#,
        r#"logmirror_requests_total{route="other",method="GET",status="404"} 1"#,
        r#"logmirror_refusals_total{code="gap"} 1"#,
        r#"logmirror_refusals_total{code="corrupt"} 1"#,
        r#"logmirror_refusals_total{code="not-found"} 1"#,
        r#"logmirror_skipped_commits_total{log="app"} 120"#,
        "logmirror_logs_created_total 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
}

#[test]
fn a_log_in_json_has_an_object_a_line_with_the_same_numbers() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start_with(data.path(), &["--log-format", "json"]);
    assert_eq!(call(&service, "GET", "/logs/none", "", b"").status, 404);
    let (_, said) = service.terminate();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found = lines.iter().find(|line| line["target"] == "logmirror::request").unwrap();
    assert_eq!(
        (&found["level"], &found["method"], &found["path"]),
        (&"info".into(), &"GET".into(), &"/logs/none".into())
    );
    assert_eq!((&found["status"], &found["error"], &found["in"]), (&404.into(), &"not-found".into(), &0.into()));
    assert!(found["ms"].is_number() && found["time"].as_str().unwrap().ends_with('Z'), "{found}");
    assert!(lines.iter().any(|line| line["message"] == "shutting down"), "{said}");
}

#[test]
fn no_secret_is_in_the_log_at_any_level() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start_with(data.path(), &["--token", TOKEN, "--log-level", "trace"]);
    let with = format!("authorization: Bearer {TOKEN}\r\n");
    assert_eq!(call(&service, "GET", &format!("/logs?token={TOKEN}"), &with, b"").status, 200);
    assert_eq!(call(&service, "GET", &format!("/logs?authToken={TOKEN}&from=1"), "", b"").status, 401);
    assert_eq!(call(&service, "GET", "/logs", &format!("authorization: Basic {TOKEN}\r\n"), b"").status, 401);
    let (_, said) = service.terminate();
    assert!(!said.contains(TOKEN), "{said}");
    let [admitted] = about(&said, "/logs?…")[..] else { panic!("{said}") };
    assert!(admitted.contains("who=token") && admitted.contains("status=200"), "{admitted}");
    let [refused] = about(&said, "/logs?from=1&…")[..] else { panic!("{said}") };
    assert!(refused.contains("who=-") && refused.contains("error=unauthorized"), "{refused}");
}

#[test]
fn statements_of_users_are_logged_at_debug_only() {
    for (level, wanted) in [("info", false), ("debug", true)] {
        let data = tempfile::tempdir().unwrap();
        let service = Service::start_with(data.path(), &["--log-level", level]);
        assert_eq!(call(&service, "PUT", "/logs/app", "", br#"{"format":"wal"}"#).status, 201);
        for sql in ["SELECT 'pa55word' FROM missing", "INSERT INTO missing VALUES ('pa55word')", "SELECT 'pa55word"] {
            let body = format!(r#"{{"requests":[{{"type":"execute","stmt":{{"sql":"{sql}"}}}}]}}"#);
            assert_eq!(call(&service, "POST", "/logs/app/v2/pipeline", "", body.as_bytes()).status, 200);
        }
        let (_, said) = service.terminate();
        assert_eq!(said.contains("pa55word"), wanted, "{level}: {said}");
        assert_eq!(about(&said, "/logs/app/v2/pipeline").len(), 3, "{said}");
    }
}

#[test]
fn a_follower_has_a_line_when_it_ends_and_one_at_debug_when_it_starts() {
    let data = tempfile::tempdir().unwrap();
    plant(data.path(), "app", "whole");
    let service = Service::start_with(data.path(), &["--log-level", "debug"]);
    let mut wire = Wire::connect(service.address().parse().unwrap());
    wire.send(request("GET", "/logs/app/commits?follow=true", "").as_bytes());
    assert_eq!(wire.head().status, 200);
    let stream = stream_of("whole");
    wire.read_stream(stream.len());
    drop(wire);
    let requests = || call(&service, "GET", "/metrics", "", b"").text();
    let ended = r#"logmirror_requests_total{route="/logs/{log}/commits",method="GET",status="200"} 1"#;
    until("the follower's entry to end", || requests().lines().any(|line| line == ended).then_some(()));
    let (_, said) = service.terminate();
    let lines = about(&said, "/logs/app/commits?follow=true");
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("DEBUG") && lines[0].contains("began=true"), "{said}");
    assert!(lines[1].contains("INFO") && lines[1].contains(&format!("out={} ", stream.len())), "{said}");
    assert!(lines[1].contains("aborted=true"), "{said}");
}

#[test]
fn clients_that_wait_for_a_busy_service_are_reported_once() {
    let data = tempfile::tempdir().unwrap();
    plant(data.path(), "app", "whole");
    let service = Service::start_with(data.path(), &["--connections-max", "1"]);
    let connect = || Wire::connect(service.address().parse().unwrap());
    let mut follower = connect();
    follower.send(request("GET", "/logs/app/commits?follow=true", "").as_bytes());
    assert_eq!(follower.head().status, 200);
    let mut waiting = connect();
    waiting.send(request("GET", "/livez", "").as_bytes());
    waiting.stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert!(waiting.stream.peek(&mut [0]).is_err(), "the only place is taken");
    drop(follower);
    waiting.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(waiting.answer().status, 200);
    let (_, said) = service.terminate();
    assert_eq!(said.matches("all 1 connections are busy").count(), 1, "{said}");
}

#[test]
fn a_flag_for_the_log_wins_over_the_environment() {
    let missing = ["verify", "/nowhere/at/all"];
    assert_eq!(crate::run_with(&[&missing[..], &["--log-level", "loud"]].concat(), &[]).code, Some(2));
    let wrong = crate::run_with(&missing, &[("LOGMIRROR_LOG", "loud")]);
    assert!(wrong.code == Some(2) && wrong.errors.contains("LOGMIRROR_LOG"), "{wrong:?}");
    assert_eq!(
        crate::run_with(&[&missing[..], &["--log-level", "warn"]].concat(), &[("LOGMIRROR_LOG", "loud")]).code,
        Some(3)
    );
    assert_eq!(crate::run_with(&missing, &[("LOGMIRROR_LOG", "warn,logmirror::request=info")]).code, Some(3));
}
