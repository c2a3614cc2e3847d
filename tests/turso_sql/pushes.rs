//! The calls of the published sync clients, one after the other.

use serde_json::{Value, json};

use super::{Rig, plain};

const BOOKKEEPING: &str = "SELECT pull_gen, change_id FROM turso_sync_last_change_id WHERE client_id = ?";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS turso_sync_last_change_id \
    (client_id TEXT PRIMARY KEY, pull_gen INTEGER, change_id INTEGER)";
const UPSERT: &str = "INSERT INTO turso_sync_last_change_id(client_id, pull_gen, change_id) VALUES (?, ?, ?) \
    ON CONFLICT(client_id) DO UPDATE SET pull_gen=excluded.pull_gen, change_id=excluded.change_id";

fn text(text: &str) -> Value {
    json!({"type": "text", "value": text})
}

fn integer(integer: i64) -> Value {
    json!({"type": "integer", "value": integer.to_string()})
}

/// What a client first asks: how far it got.
fn position(rig: &Rig, client: &str) -> Value {
    rig.batch(&json!([{"stmt": {"sql": BOOKKEEPING, "args": [text(client)], "named_args": [], "want_rows": true}}]))
}

/// A push as clients put it.
fn push(rig: &Rig, changes: &[(&str, Value)], position: Option<(&str, i64)>) -> Value {
    let step = |sql: &str, args: Value| {
        json!({"stmt": {"sql": sql, "sql_id": null, "args": args, "named_args": [], "want_rows": false,
            "replication_index": null}, "condition": {"type": "not", "cond": {"type": "is_autocommit"}}})
    };
    let mut steps = vec![json!({"stmt": {"sql": "BEGIN IMMEDIATE", "want_rows": false}}), step(TABLE, json!([]))];
    steps.extend(changes.iter().map(|(sql, args)| step(sql, args.clone())));
    if let Some((client, change)) = position {
        steps.push(step(UPSERT, json!([text(client), integer(0), integer(change)])));
    }
    steps.push(step("COMMIT", json!([])));
    rig.batch(&json!(steps))
}

fn errors(batch: &Value) -> Vec<String> {
    let errors = batch["step_errors"].as_array().unwrap().iter().filter(|error| !error.is_null());
    errors.map(|error| error["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_client_that_never_pushed_hears_of_no_such_table_and_then_pushes() {
    let rig = Rig::new();
    let asked = position(&rig, "one");
    assert_eq!(asked["step_results"], json!([null]));
    assert!(asked["step_errors"][0]["message"].as_str().unwrap().contains("no such table"));

    let done = push(
        &rig,
        &[
            ("CREATE TABLE IF NOT EXISTS \"t\" (\"a\" INTEGER PRIMARY KEY, \"b\" TEXT)", json!([])),
            (
                "INSERT INTO \"t\"(\"a\", \"b\") VALUES (?,?) ON CONFLICT(\"a\") DO UPDATE SET \"b\" = excluded.\"b\"",
                json!([integer(1), text("x")]),
            ),
            (
                "INSERT INTO \"t\"(\"a\", \"b\") VALUES (?,?) ON CONFLICT(\"a\") DO UPDATE SET \"b\" = excluded.\"b\"",
                json!([integer(1), text("y")]),
            ),
            ("INSERT INTO \"t\"(\"a\", \"b\") VALUES (?,?)", json!([integer(2), text("z")])),
            ("UPDATE \"t\" SET \"b\" = ? WHERE \"a\" IS ?", json!([text("w"), integer(2)])),
            ("CREATE INDEX IF NOT EXISTS i ON t(b)", json!([])),
            ("ALTER TABLE t ADD COLUMN c", json!([])),
            ("DELETE FROM \"t\" WHERE \"rowid\" = ?", json!([integer(9)])),
        ],
        Some(("one", 8)),
    );
    assert_eq!(errors(&done), Vec::<String>::new());
    assert_eq!(done["step_results"][3]["rows"], json!([]));
    assert_eq!(rig.rows("SELECT * FROM t"), json!([["1", "y", null], ["2", "w", null]]));

    let asked = position(&rig, "one");
    assert_eq!(asked["step_results"][0]["rows"], json!([[integer(0), integer(8)]]));
    assert_eq!(position(&rig, "two")["step_results"][0]["rows"], json!([]));
}

#[test]
fn a_column_that_is_there_already_ends_neither_the_transaction_nor_the_push() {
    let rig = Rig::new();
    let add = "ALTER TABLE t ADD COLUMN b";
    push(
        &rig,
        &[("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY)", json!([])), (add, json!([]))],
        Some(("one", 2)),
    );
    let done = push(
        &rig,
        &[
            ("INSERT INTO t(a) VALUES (?)", json!([integer(1)])),
            (add, json!([])),
            ("INSERT INTO t(a, b) VALUES (?,?)", json!([integer(2), text("x")])),
        ],
        Some(("two", 3)),
    );
    assert_eq!(errors(&done), ["duplicate column name: b"]);
    assert_eq!(rig.rows("SELECT a, b FROM t"), json!([["1", null], ["2", "x"]]));
    assert_eq!(plain(&position(&rig, "two")["step_results"][0]["rows"]), json!([["0", "3"]]));
}

#[test]
fn an_idle_push_does_not_move_the_log() {
    let rig = Rig::new();
    push(&rig, &[("CREATE TABLE IF NOT EXISTS t (a)", json!([]))], Some(("one", 1)));
    let before = rig.durable();
    for _ in 0..3 {
        position(&rig, "one");
        assert_eq!(errors(&push(&rig, &[], None)), Vec::<String>::new());
    }
    assert_eq!(rig.durable(), before);
}

#[test]
fn what_was_pushed_is_in_the_log_before_the_answer() {
    let rig = Rig::new();
    push(&rig, &[("CREATE TABLE IF NOT EXISTS t (a)", json!([]))], Some(("one", 1)));
    for change in 2..5 {
        let before = rig.durable();
        push(&rig, &[("INSERT INTO t VALUES (?)", json!([integer(change)]))], Some(("one", change)));
        assert!(rig.durable() > before);
    }
}

#[test]
fn clients_that_push_at_once_wait_for_each_other() {
    let rig = Rig::new();
    push(&rig, &[("CREATE TABLE IF NOT EXISTS t (client, n)", json!([]))], Some(("first", 1)));
    std::thread::scope(|scope| {
        for client in 0..6 {
            let rig = &rig;
            scope.spawn(move || {
                let name = format!("client-{client}");
                for n in 1..=8 {
                    position(rig, &name);
                    let done = push(
                        rig,
                        &[("INSERT INTO t VALUES (?, ?)", json!([text(&name), integer(n)]))],
                        Some((&name, n)),
                    );
                    assert_eq!(errors(&done), Vec::<String>::new());
                }
            });
        }
    });
    assert_eq!(rig.rows("SELECT count(*), count(DISTINCT client) FROM t"), json!([["48", "6"]]));
    assert_eq!(rig.rows("SELECT count(*) FROM turso_sync_last_change_id WHERE change_id = 8"), json!([["6"]]));
}

#[test]
fn a_push_of_everything_ever_written_offline_is_taken() {
    let rig = Rig::new();
    let row = ("INSERT INTO t VALUES (?)", json!([text(&"x".repeat(400))]));
    let mut changes = vec![("CREATE TABLE IF NOT EXISTS t (a)", json!([]))];
    changes.resize(1_500, row);
    assert_eq!(errors(&push(&rig, &changes, Some(("one", 1_500)))), Vec::<String>::new());
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["1499"]]));
}
