//! Batches: conditions, and what an error in the middle does.

use serde_json::{Value, json};

use super::{Rig, plain};

fn step(sql: &str, condition: Value) -> Value {
    json!({"stmt": {"sql": sql}, "condition": condition})
}

/// Which steps gave a result, gave an error, or were skipped.
fn fates(batch: &Value) -> String {
    let steps = batch["step_results"].as_array().unwrap().iter().zip(batch["step_errors"].as_array().unwrap());
    let fate = |(result, error): (&Value, &Value)| match (result.is_null(), error.is_null()) {
        (false, true) => 'o',
        (true, false) => 'e',
        (true, true) => '-',
        (false, false) => '?',
    };
    steps.map(fate).collect()
}

#[test]
fn steps_run_under_their_conditions() {
    let rig = Rig::new();
    let of = |kind: &str, step: u32| json!({"type": kind, "step": step});
    let not = |cond: Value| json!({"type": "not", "cond": cond});
    let many = |kind: &str, conds: Value| json!({"type": kind, "conds": conds});
    let batch = rig.batch(&json!([
        step("SELECT 1", Value::Null),
        {"stmt": {"sql": "nonsense"}},
        step("SELECT 2", of("error", 0)),
        step("SELECT 3", of("ok", 0)),
        step("SELECT 4", of("error", 1)),
        step("SELECT 5", of("ok", 2)),
        step("SELECT 6", of("error", 2)),
        step("SELECT 7", not(of("ok", 2))),
        step("SELECT 8", many("and", json!([]))),
        step("SELECT 9", many("or", json!([]))),
        step("SELECT 10", many("and", json!([of("ok", 0), of("error", 1)]))),
        step("SELECT 11", many("and", json!([of("ok", 0), of("ok", 1)]))),
        step("SELECT 12", many("or", json!([of("ok", 1), not(of("error", 0))]))),
        step("SELECT 13", json!({"type": "is_autocommit"})),
        step("SELECT 14", not(json!({"type": "is_autocommit"}))),
    ]));
    assert_eq!(fates(&batch), "oe-oo--oo-o-oo-");
    assert_eq!(batch["replication_index"], Value::Null);
    assert_eq!(plain(&batch["step_results"][12]["rows"]), json!([["12"]]));
    assert!(batch["step_errors"][1]["message"].as_str().unwrap().contains("nonsense"));
}

#[test]
fn an_error_does_not_end_the_transaction() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a UNIQUE)");
    let open = json!({"type": "not", "cond": {"type": "is_autocommit"}});
    let batch = rig.batch(&json!([
        step("BEGIN", Value::Null),
        step("INSERT INTO t VALUES (1)", open.clone()),
        step("INSERT INTO t VALUES (1)", open.clone()),
        step("ALTER TABLE t ADD COLUMN a", open.clone()),
        step("INSERT INTO nix VALUES (1)", open.clone()),
        step("INSERT INTO t VALUES (2)", open.clone()),
        step("COMMIT", open.clone()),
        step("SELECT 1", open),
    ]));
    assert_eq!(fates(&batch), "ooeeeoo-");
    assert_eq!(rig.rows("SELECT a FROM t"), json!([["1"], ["2"]]));
}

#[test]
fn the_usual_pattern_of_commit_or_roll_back_works() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a UNIQUE)");
    for (second, fate, rows) in
        [("INSERT INTO t VALUES (1)", "ooe-o", json!([])), ("SELECT 1", "oooo-", json!([["1"]]))]
    {
        let batch = rig.batch(&json!([
            step("BEGIN", Value::Null),
            step("INSERT INTO t VALUES (1)", json!({"type": "ok", "step": 0})),
            step(second, json!({"type": "ok", "step": 1})),
            step("COMMIT", json!({"type": "ok", "step": 2})),
            step("ROLLBACK", json!({"type": "not", "cond": {"type": "ok", "step": 3}})),
        ]));
        assert_eq!(fates(&batch), fate);
        assert_eq!(rig.rows("SELECT a FROM t"), rows);
    }
}

#[test]
fn a_step_that_writes_and_returns_too_many_rows_says_that_it_has_run() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a)");
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)";
    let batch = rig.batch(&json!([
        step("BEGIN IMMEDIATE", Value::Null),
        step("INSERT INTO t VALUES (1)", Value::Null),
        step(&format!("INSERT INTO t {numbers} SELECT i FROM n RETURNING zeroblob(1000000)"), Value::Null),
        step("COMMIT", Value::Null),
    ]));
    assert_eq!(fates(&batch), "ooeo");
    assert!(batch["step_errors"][2]["message"].as_str().unwrap().contains("has run"));
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["41"]]));
}
