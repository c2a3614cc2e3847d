//! Transactions that the engine ends by itself: what was sent as the rest of one is not stored alone.

use std::time::Duration;

use logmirror::http::Timeouts;
use serde_json::{Value, json};

use super::{Rig, error, execute, result};

/// A statement of a transaction that is larger than the engine takes here.
const TOO_LARGE: &str = "INSERT INTO t(b) SELECT zeroblob(3000) FROM generate_series(1, 3000)";

fn rig() -> Rig {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    rig
}

fn insert(value: &str) -> Value {
    execute(&format!("INSERT INTO t(b) VALUES ('{value}')"))
}

#[track_caller]
fn is_refused(outcome: &Value) {
    assert!(error(outcome).starts_with("not run: the transaction"), "{outcome}");
    assert_eq!(outcome["error"]["code"], "SQLITE_ABORT_ROLLBACK");
}

#[track_caller]
fn is_not_committed(outcome: &Value) {
    let error = error(outcome);
    assert!(error.starts_with("not committed") && error.contains("nothing of it was stored"), "{error}");
}

#[track_caller]
fn stored(rig: &Rig) -> Value {
    rig.rows("SELECT b FROM t ORDER BY a")
}

#[test]
fn of_a_transaction_that_grew_too_large_nothing_is_stored_whatever_was_sent_with_it() {
    let rig = rig();
    // The engine undoes the one alone, and with one of the others all of them.
    let one_by_one = "INSERT INTO t(b) VALUES (zeroblob(3000));".repeat(3000);
    for too_large in [execute(TOO_LARGE), json!({"type": "sequence", "sql": one_by_one})] {
        let results = rig.results(&json!([
            execute("BEGIN"),
            insert("before"),
            too_large,
            insert("after"),
            execute("SELECT 1"),
            {"type": "sequence", "sql": "INSERT INTO t(b) VALUES ('x'); INSERT INTO t(b) VALUES ('y')"},
            {"type": "get_autocommit"},
            execute("COMMIT"),
            {"type": "get_autocommit"},
            insert("next"),
        ]));
        assert!(error(&results[2]).contains("larger than the SQL engine takes"), "{results:?}");
        results[3..6].iter().for_each(is_refused);
        assert_eq!(results[6]["response"]["is_autocommit"], false, "it is still to be ended");
        is_not_committed(&results[7]);
        assert_eq!(results[8]["response"]["is_autocommit"], true);
        result(&results[9]);
        assert_eq!(stored(&rig), json!([["next"]]));
        rig.run("DELETE FROM t");
    }
}

#[test]
fn a_transaction_that_is_too_large_when_it_is_committed_is_not_stored_either() {
    let rig = rig();
    let answer = rig.try_call(
        &Value::Null,
        &json!([
            execute("BEGIN"),
            execute("INSERT INTO t(b) VALUES (zeroblob(1500000))"),
            execute("COMMIT"),
            insert("next")
        ]),
    );
    assert_eq!(answer.refusal(), (413, "too-large".to_owned()), "{}", answer.text());
    assert_eq!(stored(&rig), json!([]));
}

#[test]
fn a_transaction_that_was_lost_is_so_in_the_calls_after_it_until_its_client_ends_it() {
    let rig = rig();
    for (end, ends_well) in [("ROLLBACK", true), ("BEGIN", true), ("COMMIT", false), ("END", false)] {
        let mut stream = rig.stream();
        stream.call(&json!([execute("BEGIN IMMEDIATE"), insert("before"), execute(TOO_LARGE)]));
        // It holds up nobody meanwhile.
        rig.run("INSERT INTO t(b) VALUES ('other')");
        for sql in [
            "SELECT 1",
            "INSERT INTO t(b) VALUES ('after')",
            "SAVEPOINT s",
            "RELEASE s",
            "ROLLBACK TO s",
            "PRAGMA user_version",
        ] {
            is_refused(&stream.call(&json!([execute(sql)]))[0]);
        }
        let ended = stream.call(&json!([execute(end)]));
        if ends_well {
            drop(result(&ended[0]))
        } else {
            is_not_committed(&ended[0])
        }
        stream.run("INSERT INTO t(b) VALUES ('next')");
        if end == "BEGIN" {
            assert_eq!(stored(&rig), json!([["other"]]));
            stream.run("COMMIT");
        }
        assert_eq!(stored(&rig), json!([["other"], ["next"]]), "{end}");
        rig.run("DELETE FROM t");
    }
}

#[test]
fn the_savepoint_that_began_a_lost_transaction_ends_it_and_no_other_does() {
    let rig = rig();
    let results = rig.results(&json!([
        execute("SAVEPOINT \"Outer\""),
        execute("SAVEPOINT inner"),
        execute(TOO_LARGE),
        execute("RELEASE inner"),
        insert("after"),
        execute("RELEASE OUTER"),
        insert("next"),
        execute("BEGIN"),
        execute("SAVEPOINT outer"),
        execute(TOO_LARGE),
        execute("RELEASE outer"),
        insert("after"),
        execute("ROLLBACK"),
        insert("last"),
    ]));
    results[3..5].iter().for_each(is_refused);
    is_not_committed(&results[5]);
    results[10..12].iter().for_each(is_refused);
    result(&results[12]);
    assert_eq!(stored(&rig), json!([["next"], ["last"]]));
}

#[test]
fn conditions_take_a_lost_transaction_for_one_that_is_open() {
    let rig = rig();
    let open = json!({"type": "not", "cond": {"type": "is_autocommit"}});
    let batch = rig.batch(&json!([
        {"stmt": {"sql": "BEGIN"}},
        {"stmt": {"sql": TOO_LARGE}},
        {"stmt": {"sql": "INSERT INTO t(b) VALUES ('after')"}, "condition": open},
        {"stmt": {"sql": "INSERT INTO t(b) VALUES ('alone')"}, "condition": {"type": "is_autocommit"}},
        {"stmt": {"sql": "ROLLBACK"}, "condition": open},
        {"stmt": {"sql": "INSERT INTO t(b) VALUES ('next')"}, "condition": {"type": "is_autocommit"}},
    ]));
    let failed: Vec<bool> = batch["step_errors"].as_array().unwrap().iter().map(|error| !error.is_null()).collect();
    assert_eq!(failed, [false, true, true, false, false, false], "{batch}");
    assert_eq!(batch["step_results"][3], Value::Null);
    assert_eq!(stored(&rig), json!([["next"]]));
}

#[test]
fn a_cursor_refuses_the_rest_of_a_lost_transaction_and_so_does_what_follows_on_its_stream() {
    let rig = rig();
    let steps = ["BEGIN", TOO_LARGE, "INSERT INTO t(b) VALUES ('after')"].map(|sql| json!({"stmt": {"sql": sql}}));
    let answer = rig.post("v3/cursor", json!({"batch": {"steps": steps}}).to_string().as_bytes());
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let errors: Vec<&Value> = lines.iter().filter(|line| line["type"] == "step_error").collect();
    assert_eq!((&errors[0]["step"], &errors[1]["step"]), (&json!(1), &json!(2)), "{lines:?}");
    assert_eq!(errors[1]["error"]["code"], "SQLITE_ABORT_ROLLBACK");
    let (_, results) = rig.call(&lines[0]["baton"], &json!([insert("after"), execute("COMMIT"), insert("next")]));
    is_refused(&results[0]);
    is_not_committed(&results[1]);
    assert_eq!(stored(&rig), json!([["next"]]));
}

#[test]
fn a_statement_that_takes_too_long_is_undone_alone_and_its_transaction_goes_on() {
    let rig = Rig::with_timeouts(|timeouts| Timeouts { statement: Duration::from_millis(300), ..timeouts });
    rig.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let results =
        rig.results(&json!([execute("BEGIN"), insert("before"), execute(endless), insert("after"), execute("COMMIT")]));
    assert!(error(&results[2]).contains("interrupted"), "{results:?}");
    assert_eq!(stored(&rig), json!([["before"], ["after"]]), "{results:?}");
}

#[test]
fn where_sql_itself_ends_a_transaction_statements_after_it_run_as_in_sqlite() {
    let rig = rig();
    rig.run("INSERT INTO t VALUES (1, 'first')");
    rig.run("CREATE TRIGGER r BEFORE INSERT ON t WHEN NEW.b = 'no' BEGIN SELECT RAISE(ROLLBACK, 'no'); END");
    for ends in ["INSERT OR ROLLBACK INTO t VALUES (1, 'second')", "INSERT INTO t(b) VALUES ('no')"] {
        let results = rig.results(&json!([
            execute("BEGIN"),
            insert("before"),
            execute(ends),
            {"type": "get_autocommit"},
            insert("after"),
            execute("COMMIT"),
        ]));
        assert_eq!(results[3]["response"]["is_autocommit"], true, "{results:?}");
        result(&results[4]);
        assert!(error(&results[5]).contains("no transaction is active"));
        assert_eq!(stored(&rig), json!([["first"], ["after"]]), "{ends}");
        rig.run("DELETE FROM t WHERE a > 1");
    }
}
