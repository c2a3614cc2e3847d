//! `/v3/cursor`.

use std::time::{Duration, Instant};

use logmirror::http::Timeouts;
use serde_json::{Value, json};

use super::support::service::{PATIENCE, Wire};
use super::{Rig, execute, execute_with, plain};

/// The lines that a cursor is answered with.
#[track_caller]
fn lines(rig: &Rig, baton: &Value, steps: &Value) -> Vec<Value> {
    let body = json!({"baton": baton, "batch": {"steps": steps}}).to_string();
    let answer = rig.post("v3/cursor", body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn begin(rig: &Rig, sql: &str) -> Wire {
    begin_on(rig, &Value::Null, sql)
}

fn begin_on(rig: &Rig, baton: &Value, sql: &str) -> Wire {
    let body = json!({"baton": baton, "batch": {"steps": [{"stmt": {"sql": sql}}]}}).to_string();
    let mut wire = rig.service.connect();
    let head = format!("POST /logs/app/v3/cursor HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    wire.send(head.as_bytes());
    wire.send(body.as_bytes());
    wire
}

#[test]
fn each_step_is_told_by_its_lines() {
    let rig = Rig::new();
    let lines = lines(
        &rig,
        &Value::Null,
        &json!([
            {"stmt": {"sql": "CREATE TABLE t(a INTEGER PRIMARY KEY, b)"}},
            {"stmt": {"sql": "INSERT INTO t(b) VALUES (?), ('y')", "args": [{"type": "text", "value": "x"}]}},
            {"stmt": {"sql": "SELECT a, b FROM t"}},
            {"stmt": {"sql": "SELECT * FROM nix"}},
            {"stmt": {"sql": "SELECT 1"}, "condition": {"type": "ok", "step": 3}},
            {"stmt": {"sql": "PRAGMA wal_checkpoint"}},
            {"stmt": {"sql": "SELECT a FROM t", "want_rows": false}, "condition": {"type": "error", "step": 3}},
        ]),
    );
    assert!(lines[0]["baton"].is_string() && lines[0]["base_url"].is_null());
    let kinds: Vec<&str> = lines[1..].iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "step_begin",
            "step_end",
            "step_begin",
            "step_end",
            "step_begin",
            "row",
            "row",
            "step_end",
            "step_error",
            "step_error",
            "step_begin",
            "step_end"
        ]
    );
    assert_eq!(lines[4], json!({"type": "step_end", "affected_row_count": 2, "last_insert_rowid": "2"}));
    assert_eq!(lines[5]["cols"], json!([{"name": "a", "decltype": "INTEGER"}, {"name": "b", "decltype": null}]));
    assert_eq!(plain(&json!([lines[6]["row"], lines[7]["row"]])), json!([["1", "x"], ["2", "y"]]));
    assert_eq!((&lines[9]["step"], &lines[10]["step"]), (&json!(3), &json!(5)));
    assert!(lines[9]["error"]["message"].as_str().unwrap().contains("no such table: nix"));
    assert!(lines[10]["error"]["message"].as_str().unwrap().contains("not allowed"));
    assert_eq!((&lines[11]["step"], &lines[11]["cols"]), (&json!(6), &json!([{"name": "a", "decltype": "INTEGER"}])));
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["2"]]));
}

#[test]
fn the_stream_of_a_cursor_goes_on_in_a_pipeline_and_back() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let mut stream = rig.stream();
    stream.call(&json!([{"type": "sequence", "sql": "BEGIN IMMEDIATE"}]));
    let inserted = lines(&rig, &stream.baton, &json!([{"stmt": {"sql": "INSERT INTO t VALUES (1)"}}]));
    stream.baton = inserted[0]["baton"].clone();
    let selected = lines(&rig, &stream.baton, &json!([{"stmt": {"sql": "SELECT a FROM t"}}]));
    assert_eq!(plain(&json!([selected[2]["row"]])), json!([["1"]]));
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["0"]]));
    stream.baton = selected[0]["baton"].clone();
    stream.call(&json!([{"type": "sequence", "sql": "COMMIT"}]));
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["1"]]));
    let closed = rig.call(&stream.baton, &json!([{"type": "close"}]));
    assert_eq!(closed.0, Value::Null);
}

#[test]
fn rows_come_while_they_are_found_and_without_a_cap() {
    let rig = Rig::new();
    // Without end: whoever takes it whole never answers.
    let mut wire = begin(&rig, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n");
    assert_eq!(wire.head().status, 200);
    assert!(wire.read_stream(1 << 20).starts_with(b"{\"baton\":\""));
    drop(wire);
    // More than an answer of a pipeline may have.
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30)";
    let rows =
        lines(&rig, &Value::Null, &json!([{"stmt": {"sql": format!("{numbers} SELECT zeroblob(1000000) FROM n")}}]));
    assert_eq!(rows.len(), 33);
    // Nobody is held up by a reader.
    let mut slow = begin(&rig, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n");
    assert_eq!(slow.head().status, 200);
    rig.run("CREATE TABLE t(a)");
}

#[test]
fn a_reader_that_is_slow_while_others_wait_to_write_is_given_up() {
    let rig = Rig::with_idle(Duration::from_millis(300));
    rig.run("CREATE TABLE t(a)");
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)";
    let mut slow = begin(&rig, &format!("INSERT INTO t {numbers} SELECT zeroblob(10000) FROM n RETURNING a"));
    assert_eq!(slow.head().status, 200);
    rig.run("INSERT INTO t VALUES (1)");
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["1"]]));
}

#[test]
fn a_reader_that_takes_nothing_loses_its_cursor_also_where_it_holds_up_nobody() {
    let rig = Rig::with_timeouts(|timeouts| Timeouts { statement: Duration::from_secs(1), ..timeouts });
    let mut stream = rig.stream();
    stream.run("BEGIN");
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT zeroblob(30000) FROM n";
    let mut slow = begin_on(&rig, &stream.baton, endless);
    assert_eq!(slow.head().status, 200);
    let deadline = Instant::now() + PATIENCE / 2;
    // Until then another call has the stream.
    while rig.try_call(&stream.baton, &json!([])).status == 400 {
        assert!(Instant::now() < deadline, "it keeps its stream");
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = rig.try_call(&stream.baton, &json!([])).text();
    assert!(refused.contains("its last call failed"), "{refused}");
    // And sees in the answer that it is not whole.
    while !matches!(slow.next_chunk(), Err(_) | Ok(None)) {}
    assert!(slow.wait_closed().is_empty());
}

#[test]
fn a_cursor_with_a_baton_that_is_none_is_refused() {
    let rig = Rig::new();
    let body = json!({"baton": "nix", "batch": {"steps": []}}).to_string();
    assert_eq!(rig.post("v3/cursor", body.as_bytes()).refusal(), (404, "not-found".to_owned()));
    assert_eq!(lines(&rig, &Value::Null, &json!([])).len(), 1);
    rig.results(&json!([execute("SELECT 1")]));
}

#[test]
fn a_line_is_one_for_readers_with_unicodes_idea_of_lines_too() {
    let rig = Rig::new();
    let text = "a\u{85}\u{2028}ü\u{2029}\r\n\u{b}\u{c}\u{1c}\u{1d}\u{1e}😀\u{2027}";
    rig.results(&json!([
        execute("CREATE TABLE t(v)"),
        execute_with("INSERT INTO t VALUES (?)", &json!([{"type": "text", "value": text}])),
    ]));
    let body = json!({"batch": {"steps": [{"stmt": {"sql": "SELECT v FROM t"}}]}}).to_string();
    let answer = rig.post("v3/cursor", body.as_bytes()).text();
    let ends = ['\u{85}', '\u{2028}', '\u{2029}', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}'];
    assert!(!answer.contains(ends), "{answer:?}");
    let lines: Vec<Value> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["row"][0]["value"] == text), "{answer}");
    assert_eq!(rig.rows("SELECT v FROM t"), json!([[text]]));
}
