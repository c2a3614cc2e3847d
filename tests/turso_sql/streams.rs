//! Streams: who sees what, batons, and what happens to what is left open.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Rig, error, execute, plain, result};

/// Short, for tests in which something expires.
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_transaction_lives_on_under_the_baton_and_nobody_else_sees_it() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let before = rig.durable();
    let mut stream = rig.stream();
    stream.run("BEGIN");
    stream.run("INSERT INTO t VALUES (1)");
    assert_eq!(stream.rows("SELECT count(*) FROM t"), json!([["1"]]));
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["0"]]));
    assert_eq!(rig.durable(), before);
    stream.run("COMMIT");
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["1"]]));
    assert!(rig.durable() > before);
}

#[test]
fn what_a_connection_remembers_is_the_streams_own() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let mut stream = rig.stream();
    stream.run("INSERT INTO t VALUES (1), (2), (3)");
    assert_eq!(stream.rows("SELECT last_insert_rowid(), changes()"), json!([["3", "3"]]));
    assert_eq!(rig.rows("SELECT last_insert_rowid()"), json!([["0"]]));
    stream.run("PRAGMA foreign_keys = OFF");
    assert_eq!(stream.rows("PRAGMA foreign_keys"), json!([["0"]]));
    assert_eq!(rig.rows("PRAGMA foreign_keys"), json!([["1"]]));
}

#[test]
fn a_stray_begin_is_rolled_back_when_its_stream_expires_and_who_waits_gets_the_turn() {
    let rig = Rig::with_idle(SHORT);
    rig.run("CREATE TABLE t(a)");
    let mut stray = rig.stream();
    stray.call(&json!([execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES ('stray')")]));
    // Nobody else is in its transaction; who wants to write waits until it is over.
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["0"]]));
    let open = rig.batch(&json!([
        {"stmt": {"sql": "BEGIN IMMEDIATE"}}, {"stmt": {"sql": "INSERT INTO t VALUES ('mine')"}}, {"stmt": {"sql": "COMMIT"}},
    ]));
    assert_eq!(open["step_errors"], json!([null, null, null]));
    assert_eq!(rig.rows("SELECT a FROM t"), json!([["mine"]]));
    let late = rig.try_call(&stray.baton, &json!([execute("COMMIT")]));
    assert_eq!(late.refusal(), (404, "not-found".to_owned()));
    assert!(late.json()["message"].as_str().unwrap().contains("rolled back"), "{}", late.text());
}

#[test]
fn closing_rolls_back_and_gives_up_the_turn() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let mut stream = rig.stream();
    stream.call(&json!([execute("BEGIN"), execute("INSERT INTO t VALUES (1)")]));
    let (baton, _) = rig.call(&stream.baton, &json!([{"type": "close"}]));
    assert_eq!(baton, Value::Null);
    let closed = rig.try_call(&stream.baton, &json!([]));
    assert_eq!(closed.refusal(), (404, "not-found".to_owned()));
    assert!(closed.text().contains("was closed"), "{}", closed.text());
    rig.run("INSERT INTO t VALUES (2)");
    assert_eq!(rig.rows("SELECT a FROM t"), json!([["2"]]));
}

#[test]
fn a_baton_is_good_for_one_call_on_its_log() {
    let rig = Rig::new();
    assert_eq!(rig.service.put("/logs/other", r#"{"format":"wal"}"#).status, 201);
    let (first, _) = rig.call(&Value::Null, &json!([execute("SELECT 1")]));
    let elsewhere = json!({"baton": first, "requests": []}).to_string();
    assert_eq!(rig.service.call("POST", "/logs/other/v2/pipeline", "", elsewhere.as_bytes()).status, 404);
    let (second, _) = rig.call(&first, &json!([execute("SELECT 1")]));
    // One that was never given out was not used before.
    let guessed = |at: usize| {
        let text = second.as_str().unwrap();
        let digit = if text[at..].starts_with('0') { "1" } else { "0" };
        json!(format!("{}{digit}{}", &text[..at], &text[at + 1..]))
    };
    let last = second.as_str().unwrap().len() - 1;
    let unknown = "no stream of this log";
    for (baton, says) in [
        (&first, "used before"),
        (&guessed(0), unknown),
        (&guessed(last), unknown),
        (&json!("nix"), unknown),
        (&json!(""), unknown),
    ] {
        let refused = rig.try_call(baton, &json!([execute("SELECT 1")]));
        assert_eq!(refused.refusal(), (404, "not-found".to_owned()), "{}", refused.text());
        assert!(refused.text().contains(says), "{}", refused.text());
    }
    rig.call(&second, &json!([execute("SELECT 1")]));
}

#[test]
fn the_second_of_two_calls_on_one_stream_is_refused() {
    let rig = Rig::new();
    let mut stream = rig.stream();
    stream.run("SELECT 1");
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    let body = json!({"baton": stream.baton, "batch": {"steps": [{"stmt": {"sql": endless}}]}}).to_string();
    let mut wire = rig.service.connect();
    let head = format!("POST /logs/app/v3/cursor HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    wire.send(head.as_bytes());
    wire.send(body.as_bytes());
    assert_eq!(wire.head().status, 200);
    let refused = rig.try_call(&stream.baton, &json!([execute("SELECT 1")]));
    assert_eq!(refused.refusal(), (400, "invalid".to_owned()));
    assert!(refused.json()["message"].as_str().unwrap().contains("another call"), "{}", refused.text());
}

#[test]
fn too_many_open_streams_are_told_to_come_back() {
    let rig = Rig::new();
    let mut held = Vec::new();
    let refused = loop {
        let answer = rig.try_call(&Value::Null, &json!([{"type": "store_sql", "sql_id": 1, "sql": "SELECT 1"}]));
        if answer.status != 200 {
            break answer;
        }
        held.push(answer.json()["baton"].clone());
    };
    assert_eq!(
        (refused.refusal(), held.len()),
        ((503, "unavailable".to_owned()), logmirror::limits::SQL_STREAMS_PER_LOG_MAX)
    );
    rig.call(&held[0], &json!([{"type": "close"}]));
    rig.run("SELECT 1");
}

#[test]
fn logs_that_open_as_many_streams_as_they_may_leave_some_to_others() {
    let rig = Rig::with_idle(Duration::from_secs(600));
    let open = |log: &str| {
        let requests = json!([{"type": "store_sql", "sql_id": 1, "sql": "SELECT 1"}]);
        let body = json!({"baton": Value::Null, "requests": requests}).to_string();
        let head = "content-type: application/json\r\n";
        rig.service.call("POST", &format!("/logs/{log}/v3/pipeline"), head, body.as_bytes()).status
    };
    let mut counts = Vec::new();
    for number in 0..6 {
        let log = format!("many-{number}");
        assert_eq!(rig.service.put(&format!("/logs/{log}"), r#"{"format":"wal"}"#).status, 201);
        counts.push((0..300).take_while(|_| open(&log) == 200).count());
    }
    assert_eq!(counts, [256, 256, 256, 128, 64, 32]);
    rig.run("SELECT 1");
}

#[test]
fn stored_sql_has_a_cap() {
    let rig = Rig::new();
    let results =
        rig.results(&json!([{"type": "store_sql", "sql_id": 1, "sql": "x".repeat(2 << 20)}, execute("SELECT 1")]));
    assert!(error(&results[0]).contains("at most"));
    assert_eq!(results[1]["type"], "ok");
}

#[test]
fn a_call_on_a_new_stream_does_not_notice_that_the_database_was_opened_anew() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let mut old = rig.stream();
    old.run("SELECT 1");
    let rolled = rig.service.call("POST", "/logs/app/checkpoint", "", b"");
    assert_eq!(rolled.status, 200, "{}", rolled.text());
    for n in 0..3 {
        rig.run("INSERT INTO t VALUES (1)");
        assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([[(n + 1).to_string()]]));
    }
    // One that was there before, with nothing open, sees what all see.
    assert_eq!(old.rows("SELECT count(*) FROM t"), json!([["3"]]));
}

#[test]
fn a_stream_goes_on_when_the_generation_ends_and_one_with_an_open_transaction_is_told_what_became_of_it() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let (mut counted, mut counting, mut open) = (rig.stream(), rig.stream(), rig.stream());
    counted.run("INSERT INTO t VALUES (1)");
    counting.run("INSERT INTO t VALUES (2)");
    open.call(&json!([execute("BEGIN"), execute("INSERT INTO t VALUES (3)")]));
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    let refused = rig.try_call(&open.baton, &json!([execute("COMMIT")]));
    assert_eq!(refused.refusal(), (503, "unavailable".to_owned()));
    for part in
        ["generation 1 of the log has ended", "an open transaction, is not kept", "begin again, without a baton"]
    {
        assert!(refused.text().contains(part), "{}", refused.text());
    }
    // The others have another connection, and invent no counts.
    counted.run("SELECT 1");
    let refused = rig.try_call(&counted.baton, &json!([execute("SELECT changes()")]));
    assert_eq!(refused.refusal(), (404, "not-found".to_owned()), "{}", refused.text());
    counting.run("INSERT INTO t VALUES (4), (5)");
    assert_eq!(counting.rows("SELECT changes()"), json!([["2"]]));
    assert_eq!(rig.rows("SELECT a FROM t"), json!([["1"], ["2"], ["4"], ["5"]]));
}

#[test]
fn a_call_runs_to_its_end_though_its_client_is_gone() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let mut holder = rig.stream();
    holder.run("BEGIN IMMEDIATE");
    let (begun, refused) = loop {
        let (baton, _) = rig.call(&Value::Null, &json!([execute("SELECT 1")]));
        let body = json!({"baton": baton, "requests": [execute("INSERT INTO t VALUES (1)")]}).to_string();
        let mut wire = rig.service.connect();
        let head = format!("POST /logs/app/v3/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        wire.send(head.as_bytes());
        wire.send(body.as_bytes());
        // It waits for its turn. If it was not there yet, this call took its baton, and it never runs.
        let answer = rig.try_call(&baton, &json!([execute("SELECT 1")]));
        if answer.status != 200 {
            break (wire, answer);
        }
    };
    assert!(refused.json()["message"].as_str().unwrap().contains("another call"), "{}", refused.text());
    drop(begun);
    holder.run("COMMIT");
    let deadline = std::time::Instant::now() + super::support::service::PATIENCE;
    while rig.rows("SELECT count(*) FROM t") != json!([["1"]]) {
        assert!(std::time::Instant::now() < deadline, "it never ran");
    }
}

#[test]
fn a_v2_call_leaves_a_stream_behind_only_if_something_is_open_in_it() {
    let rig = Rig::new();
    let baton = |requests: Value| {
        let answer = rig.post("v2/pipeline", json!({"baton": null, "requests": requests}).to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["baton"].clone()
    };
    assert_eq!(baton(json!([execute("CREATE TABLE t(a)")])), Value::Null);
    assert_eq!(baton(json!([execute("SELECT * FROM t")])), Value::Null);
    assert_ne!(baton(json!([{"type": "store_sql", "sql_id": 1, "sql": "SELECT 7"}])), Value::Null);
    let open = baton(json!([execute("BEGIN"), execute("INSERT INTO t VALUES (1)")]));
    assert_eq!(rig.call(&open, &json!([execute("COMMIT"), {"type": "close"}])).0, Value::Null);
    assert_eq!(rig.rows("SELECT a FROM t"), json!([["1"]]));
}

#[test]
fn a_begin_that_wrote_nothing_holds_up_nobody_and_one_that_wants_to_does() {
    let rig = Rig::with_idle(std::time::Duration::from_secs(600));
    rig.run("CREATE TABLE t(a)");
    let (mut idle, mut reading) = (rig.stream(), rig.stream());
    idle.run("BEGIN");
    reading.call(&json!([execute("BEGIN DEFERRED"), execute("SELECT count(*) FROM t")]));
    rig.run("INSERT INTO t VALUES (1)");
    // A snapshot stays what it was, and cannot be written on; one that was not read yet can.
    assert_eq!(reading.rows("SELECT count(*) FROM t"), json!([["0"]]));
    error(&reading.call(&json!([execute("INSERT INTO t VALUES (2)")]))[0]);
    reading.run("ROLLBACK");
    idle.call(&json!([execute("INSERT INTO t VALUES (3)"), execute("COMMIT")]));
    assert_eq!(rig.rows("SELECT a FROM t"), json!([["1"], ["3"]]));
    // It has the turn until somebody else has waited for it for a while.
    let mut locks = rig.stream();
    locks.call(&json!([execute("BEGIN IMMEDIATE"), execute("SELECT count(*) FROM t")]));
    let begun = std::time::Instant::now();
    rig.run("INSERT INTO t VALUES (4)");
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1), "it did not wait");
    assert_eq!(rig.try_call(&locks.baton, &json!([execute("COMMIT")])).status, 404);
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["3"]]));
}

#[test]
fn a_transaction_that_only_reads_waits_for_no_writer_and_ends_none() {
    let rig = Rig::with_idle(Duration::from_secs(600));
    rig.results(&json!([execute("CREATE TABLE t(a)"), execute("INSERT INTO t VALUES (1)")]));
    let mut writer = rig.stream();
    writer.call(&json!([execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES (2)")]));
    let mut reader = rig.stream();
    reader.run("BEGIN");
    assert_eq!(reader.rows("SELECT a FROM t"), json!([["1"]]));
    reader.run("COMMIT");
    let whole = json!([execute("BEGIN DEFERRED"), execute("SELECT a FROM t"), execute("COMMIT")]);
    assert_eq!(plain(&result(&reader.call(&whole)[1])["rows"]), json!([["1"]]));
    reader.call(&json!([execute("BEGIN"), execute("SELECT a FROM t"), execute("ROLLBACK")]));
    // Had one of them waited, it would have outlasted the writer, which would be rolled back.
    writer.run("COMMIT");
    assert_eq!(rig.rows("SELECT a FROM t"), json!([["1"], ["2"]]));
    // One that is found to write when it runs begins again, in its turn.
    let store = json!({"type": "store_sql", "sql_id": 1, "sql": "INSERT INTO t VALUES (3)"});
    let stored = json!({"type": "execute", "stmt": {"sql_id": 1}});
    let results = rig.results(&json!([store, execute("BEGIN"), execute("SELECT a FROM t"), stored, execute("COMMIT")]));
    assert!(results.iter().all(|outcome| outcome["type"] == "ok"), "{results:?}");
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["3"]]));
}

#[test]
fn stored_sql_holds_up_others_only_if_it_wants_to() {
    let rig = Rig::new();
    rig.results(&json!([execute("CREATE TABLE t(a)"), execute("INSERT INTO t VALUES (1)")]));
    let by_id = |id: i32| json!({"type": "execute", "stmt": {"sql_id": id}});
    let store = |id: i32, sql: &str| json!({"type": "store_sql", "sql_id": id, "sql": sql});
    // As clients begin to read that store every text.
    let mut reader = rig.stream();
    let steps = json!([{"stmt": {"sql": "BEGIN TRANSACTION READONLY"}},
        {"condition": {"type": "ok", "step": 0}, "stmt": {"sql_id": 0}}]);
    let read = json!({"type": "batch", "batch": {"steps": steps}});
    reader.call(&json!([store(0, "SELECT count(*) FROM t"), read]));
    for row in 2..4 {
        rig.run(&format!("INSERT INTO t VALUES ({row})"));
        assert_eq!(plain(&result(&reader.call(&json!([by_id(0)]))[0])["rows"]), json!([["1"]]), "its snapshot");
    }
    reader.run("COMMIT");
    // One that wants to keeps others from writing, whatever becomes of the text, until it commits.
    for stored in ["BEGIN IMMEDIATE", "SELECT 1; BEGIN EXCLUSIVE"] {
        let mut holder = rig.stream();
        let begin = if stored.starts_with('B') { by_id(1) } else { json!({"type": "sequence", "sql_id": 1}) };
        holder.call(
            &json!([store(1, stored), begin, {"type": "close_sql", "sql_id": 1}, execute("SELECT count(*) FROM t")]),
        );
        std::thread::scope(|scope| {
            let other = scope.spawn(|| rig.run("INSERT INTO t SELECT count(*) FROM t WHERE a = 'held'"));
            holder.call(&json!([execute("INSERT INTO t VALUES ('held')"), execute("COMMIT")]));
            other.join().unwrap();
        });
    }
    assert_eq!(
        rig.rows("SELECT a FROM t WHERE a <> 'held' ORDER BY rowid"),
        json!([["1"], ["2"], ["3"], ["1"], ["2"]])
    );
}

#[test]
fn statements_that_take_long_hold_up_no_others() {
    let rig = Rig::new();
    let slow =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000000) SELECT count(*) FROM n";
    let body = json!({"requests": [execute(slow)]}).to_string();
    let head = format!("POST /logs/app/v2/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let many = std::thread::available_parallelism().unwrap().get() + 3;
    let wires: Vec<_> = std::iter::repeat_with(|| rig.service.connect()).take(many).collect();
    for wire in &wires {
        let mut stream = &wire.stream;
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
    }
    // By the last of these the others have begun.
    for _ in 0..50 {
        assert_eq!(rig.rows("SELECT 7"), json!([["7"]]));
    }
    for wire in wires {
        wire.stream.set_nonblocking(true).unwrap();
        assert!(wire.stream.peek(&mut [0]).is_err(), "it did not take long");
    }
}
