//! Foreign keys: checked as libSQL does it, and not for rows that a replica pushes.

use serde_json::{Value, json};

use super::{Rig, error, execute, result};

const FAILED: &str = "FOREIGN KEY constraint failed";

/// Has a table of parents, one of children of them, and one parent with two children.
fn family(rig: &Rig) {
    rig.results(&json!([
        execute("CREATE TABLE parent(id INTEGER PRIMARY KEY)"),
        execute("CREATE TABLE child(id INTEGER PRIMARY KEY, of INTEGER REFERENCES parent(id) ON DELETE CASCADE)"),
        execute("INSERT INTO parent VALUES (1)"),
        execute("INSERT INTO child VALUES (1, 1), (2, 1)"),
    ]));
}

/// A push as the clients of the sync protocol send it.
fn push(statements: &[&str]) -> Value {
    let inside = json!({"type": "not", "cond": {"type": "is_autocommit"}});
    let step = |sql: &str| json!({"condition": inside, "stmt": {"sql": sql, "want_rows": false}});
    let table = "CREATE TABLE IF NOT EXISTS turso_sync_last_change_id (client_id TEXT PRIMARY KEY, pull_gen INTEGER, change_id INTEGER)";
    let mut steps = vec![json!({"stmt": {"sql": "BEGIN IMMEDIATE"}}), step(table)];
    steps.extend(statements.iter().map(|sql| step(sql)));
    steps.push(step(
        "INSERT INTO turso_sync_last_change_id VALUES ('a', 1, 1) ON CONFLICT(client_id) DO UPDATE SET pull_gen = 1",
    ));
    steps.push(step("COMMIT"));
    json!([{"type": "batch", "batch": {"steps": steps}}])
}

#[track_caller]
fn pushed(outcome: &Value) {
    let errors = result(outcome)["step_errors"].clone();
    assert!(errors.as_array().unwrap().iter().all(Value::is_null), "{errors}");
}

#[test]
fn a_log_that_is_created_checks_foreign_keys_and_cascades() {
    let rig = Rig::new();
    family(&rig);
    assert_eq!(rig.rows("PRAGMA foreign_keys"), json!([["1"]]));
    assert!(rig.error("INSERT INTO child VALUES (3, 7)").contains(FAILED));
    // On every kind of stream.
    let body = json!({"requests": [execute("INSERT INTO child VALUES (3, 7)")]}).to_string();
    for _ in 0..3 {
        assert!(rig.post("v2/pipeline", body.as_bytes()).text().contains(FAILED));
    }
    let body = json!({"batch": {"steps": [{"stmt": {"sql": "INSERT INTO child VALUES (3, 7)"}}]}}).to_string();
    assert!(rig.post("v3/cursor", body.as_bytes()).text().contains(FAILED));
    rig.run("DELETE FROM parent WHERE id = 1");
    assert_eq!(rig.rows("SELECT count(*) FROM child"), json!([["0"]]));
}

#[test]
fn a_put_says_whether_a_log_checks_foreign_keys() {
    let rig = Rig::new();
    let put = |body: &str| rig.service.put("/logs/app", body);
    assert_eq!(put(r#"{"format":"wal","foreign_keys":false}"#).status, 200);
    assert_eq!(rig.rows("PRAGMA foreign_keys"), json!([["0"]]));
    family(&rig);
    rig.run("INSERT INTO child VALUES (3, 7)");
    // What says nothing of it changes nothing.
    assert_eq!(put(r#"{"format":"wal"}"#).status, 200);
    assert_eq!(rig.rows("PRAGMA foreign_keys"), json!([["0"]]));
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    assert_eq!(rig.rows("PRAGMA foreign_keys"), json!([["0"]]));
    assert_eq!(put(r#"{"format":"wal","foreign_keys":true}"#).status, 200);
    assert!(rig.error("INSERT INTO child VALUES (4, 7)").contains(FAILED));
    let refused = rig.service.put("/logs/other", r#"{"format":"commitlog","foreign_keys":true}"#);
    assert_eq!(refused.refusal(), (400, "invalid".to_owned()));
}

#[test]
fn a_push_is_not_refused_for_an_orphan_and_others_are_still_checked() {
    let rig = Rig::new();
    family(&rig);
    for round in 0..3 {
        let orphan = format!("INSERT INTO child VALUES ({}, 7)", 10 + round);
        let body = json!({"baton": null, "requests": push(&[&orphan])}).to_string();
        let answer = rig.post("v2/pipeline", body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        pushed(&answer.json()["results"][0]);
        let body = json!({"requests": [execute(&orphan.replace("(1", "(2"))]}).to_string();
        assert!(rig.post("v2/pipeline", body.as_bytes()).text().contains(FAILED));
    }
    // Nor does it cascade: the client pushes what it removed.
    let body = json!({"requests": push(&["DELETE FROM parent WHERE id = 1"])}).to_string();
    pushed(&rig.post("v2/pipeline", body.as_bytes()).json()["results"][0]);
    assert_eq!(rig.rows("SELECT count(*) FROM child"), json!([["5"]]));
}

#[test]
fn a_stream_checks_again_after_its_push_and_keeps_what_its_client_says() {
    let rig = Rig::new();
    family(&rig);
    let mut stream = rig.stream();
    stream.run("SELECT 1");
    pushed(&stream.call(&push(&["INSERT INTO child VALUES (10, 7)"]))[0]);
    assert!(error(&stream.call(&json!([execute("INSERT INTO child VALUES (11, 7)")]))[0]).contains(FAILED));
    // A transaction over several calls is one push.
    stream.call(&json!([execute("SELECT pull_gen FROM turso_sync_last_change_id"), execute("BEGIN IMMEDIATE")]));
    stream.run("INSERT INTO child VALUES (12, 7)");
    stream.run("COMMIT");
    assert!(error(&stream.call(&json!([execute("INSERT INTO child VALUES (13, 7)")]))[0]).contains(FAILED));
    stream.run("PRAGMA foreign_keys = OFF");
    pushed(&stream.call(&push(&[]))[0]);
    stream.run("INSERT INTO child VALUES (14, 7)");
}
