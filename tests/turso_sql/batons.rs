//! Batons: which of them go on, with what, and what the others are told.

use std::time::{Duration, Instant};

use logmirror::limits::SQL_STREAMS_PER_LOG_MAX;
use serde_json::{Value, json};

use super::support::service::PATIENCE;
use super::{Rig, Stream, execute, execute_with, plain, result};

/// Short, for tests in which something expires.
const SHORT: Duration = Duration::from_millis(100);

/// Why a call is refused, which is a 404.
#[track_caller]
fn refused(stream: &Stream<'_>, requests: &Value) -> String {
    let answer = stream.rig.try_call(&stream.baton, requests);
    assert_eq!(answer.refusal(), (404, "not-found".to_owned()), "{}", answer.text());
    answer.json()["message"].as_str().unwrap().to_owned()
}

/// Waits until a stream that holds the write lock has expired: then another one gets it.
fn outlast(rig: &Rig, stream: &mut Stream<'_>) {
    stream.run("BEGIN IMMEDIATE");
    rig.run("CREATE TABLE outlasted(a)");
    rig.run("DROP TABLE outlasted");
}

#[test]
fn sixty_streams_at_once_each_go_on_under_their_batons() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    std::thread::scope(|scope| {
        for client in 0..60_i64 {
            let rig = &rig;
            scope.spawn(move || {
                let mut stream = rig.stream();
                for round in 0..4_i64 {
                    let number = json!([{"type": "integer", "value": (client * 10 + round).to_string()}]);
                    stream.call(&json!([execute_with("INSERT INTO t VALUES (?)", &number)]));
                    stream.run("SELECT 1");
                }
            });
        }
    });
    assert_eq!(rig.rows("SELECT count(*), count(DISTINCT a) FROM t"), json!([["240", "240"]]));
}

#[test]
fn a_stream_in_which_nothing_is_open_goes_on_though_more_came_than_are_kept() {
    let rig = Rig::with_idle(Duration::from_secs(600));
    rig.run("CREATE TABLE t(a)");
    let mut streams: Vec<_> = (0..SQL_STREAMS_PER_LOG_MAX + 40).map(|_| rig.stream()).collect();
    for stream in &mut streams {
        stream.run("INSERT INTO t VALUES (1)");
    }
    let mut settings = rig.stream();
    settings.run("PRAGMA query_only = 1");
    for stream in &mut streams {
        stream.run("SELECT count(*) FROM t");
    }
    // Those with something of their own stay.
    assert_eq!(settings.rows("PRAGMA query_only"), json!([["1"]]));
}

#[test]
fn a_stream_that_goes_on_with_another_connection_does_not_invent_counts() {
    let rig = Rig::with_idle(Duration::from_secs(600));
    rig.run("CREATE TABLE t(a)");
    let mut counted = rig.stream();
    counted.run("INSERT INTO t VALUES (1), (2)");
    let mut more: Vec<_> = (0..SQL_STREAMS_PER_LOG_MAX).map(|_| rig.stream()).collect();
    for stream in &mut more {
        stream.run("INSERT INTO t VALUES (3)");
    }
    assert!(refused(&counted, &json!([execute("SELECT changes()")])).contains("last_insert_rowid"));
    // What asks for nothing of it goes on, and so does what counts again.
    counted.run("SELECT 1");
    let results = counted.call(&json!([execute("INSERT INTO t VALUES (4)"), execute("SELECT changes()")]));
    assert_eq!(plain(&result(&results[1])["rows"]), json!([["1"]]));
    assert_eq!(counted.rows("SELECT changes()"), json!([["1"]]));
}

#[test]
fn the_baton_of_a_stream_that_expired_with_nothing_open_goes_on() {
    let rig = Rig::with_idle(SHORT);
    let (mut asked, mut cursor, mut last) = (rig.stream(), rig.stream(), rig.stream());
    asked.run("SELECT 1");
    cursor.run("SELECT 1");
    outlast(&rig, &mut last);
    asked.run("SELECT 1");
    let body = json!({"baton": cursor.baton, "batch": {"steps": [{"stmt": {"sql": "SELECT 7"}}]}}).to_string();
    let answer = rig.post("v3/cursor", body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("step_end"), "{}", answer.text());
    // It is good for one call still, and goes on only on its log.
    assert!(refused(&cursor, &json!([])).contains("used before"));
    assert_eq!(rig.service.put("/logs/other", r#"{"format":"wal"}"#).status, 201);
    let mut other = rig.stream();
    other.run("SELECT 1");
    outlast(&rig, &mut rig.stream());
    let elsewhere = json!({"baton": other.baton, "requests": []}).to_string();
    assert_eq!(rig.service.call("POST", "/logs/other/v3/pipeline", "", elsewhere.as_bytes()).status, 404);
    other.run("SELECT 1");
}

#[test]
fn a_stream_that_expired_with_something_of_its_own_says_what_is_lost() {
    let rig = Rig::with_idle(SHORT);
    rig.run("CREATE TABLE t(a)");
    let requests = [
        (json!([{"type": "store_sql", "sql_id": 1, "sql": "SELECT 7"}]), "stored SQL"),
        (json!([execute("PRAGMA query_only = 1")]), "settings"),
        (json!([execute("CREATE TEMP TABLE x(a)")]), "temporary tables"),
        (json!([execute("BEGIN"), execute("SELECT * FROM t")]), "rolled back"),
        (json!([execute("BEGIN"), execute("INSERT INTO t VALUES (1)")]), "rolled back"),
    ];
    for (requests, says) in requests {
        let mut stream = rig.stream();
        stream.call(&requests);
        outlast(&rig, &mut rig.stream());
        let deadline = Instant::now() + PATIENCE;
        // The one before may have expired first.
        let text = loop {
            let answer = rig.try_call(&stream.baton, &json!([]));
            if answer.status == 404 {
                break answer.text();
            }
            stream.baton = answer.json()["baton"].clone();
            assert!(Instant::now() < deadline, "{requests} never expires");
            outlast(&rig, &mut rig.stream());
        };
        assert!(text.contains(says), "{requests}: {text}");
    }
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["0"]]));
}

#[test]
fn a_call_that_failed_as_a_whole_may_be_sent_again_where_nothing_was_open() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let mut counted = rig.stream();
    counted.run("INSERT INTO t VALUES (1)");
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    // Its connection has ended with the generation, and with it what it counted.
    let deadline = Instant::now() + PATIENCE;
    while rig.try_call(&counted.baton, &json!([{"type": "get_autocommit"}])).status == 503 {
        assert!(Instant::now() < deadline, "it never goes on");
    }
}
