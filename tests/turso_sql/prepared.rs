//! Statements that were prepared before: they come out as if each had been prepared anew.

use std::sync::Arc;

use bytes::Bytes;
use logmirror::api::CreateLog;
use logmirror::engine::{Engines, Session};
use logmirror::format::LogFormat;
use logmirror::mirror::{Registry, Settings};
use logmirror::repo::MemRepo;
use logmirror::sync::turso::sql::Sql;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::block_in_place;

/// The service without HTTP, with two logs.
struct Bench {
    runtime: Runtime,
    engines: Arc<Engines>,
    sql: Arc<Sql>,
    /// Another service on the same logs: what it commits this one takes in as the frames of a stranger.
    elsewhere: Arc<Sql>,
}

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// On the connection that the last call had.
    Again,
    /// On another one.
    Beside,
    /// By the other service.
    Elsewhere,
}

const LOGS: [&str; 2] = ["app", "twin"];

impl Bench {
    fn new() -> Bench {
        let registry = Arc::new(Registry::open(Arc::new(MemRepo::default()), Settings::default()).unwrap());
        for log in LOGS {
            registry
                .create(log, CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None })
                .unwrap();
        }
        let elsewhere = Arc::new(Sql::new(Arc::new(Engines::new(registry.clone()))).unwrap());
        let engines = Arc::new(Engines::new(registry));
        let sql = Arc::new(Sql::new(engines.clone()).unwrap());
        Bench { runtime: Runtime::new().unwrap(), engines, sql, elsewhere }
    }

    /// The answer to requests on a stream of their own, which is closed.
    fn call(&self, log: &str, requests: &Value) -> Value {
        self.call_of(&self.sql, log, requests)
    }

    fn call_of(&self, sql: &Arc<Sql>, log: &str, requests: &Value) -> Value {
        let answer = |body: &Value| {
            let body = (Bytes::from(body.to_string()), sql.share(log));
            let answer = self.runtime.block_on(sql.pipeline(log, body, false)).unwrap();
            serde_json::from_slice::<Value>(&answer).unwrap()
        };
        let answered = answer(&json!({"baton": null, "requests": requests}));
        if answered["baton"] != Value::Null {
            let close = json!([{"type": "get_autocommit"}, {"type": "close"}]);
            let closed = answer(&json!({"baton": answered["baton"], "requests": close}));
            assert_eq!(closed["results"][0]["response"]["is_autocommit"], false, "it was kept for a reason");
        }
        answered["results"].clone()
    }

    /// The connection that the next call would have had; it has another meanwhile.
    fn hold(&self, log: &str) -> Session {
        self.engines.session(log, false).unwrap()
    }

    /// Gives it back.
    fn release(&self, session: Session) {
        session.spare();
        self.runtime.block_on(async { block_in_place(|| drop(session)) });
    }

    /// Whether the next call would have to prepare this.
    fn prepares(&self, log: &str, sql: &str) -> bool {
        let session = self.hold(log);
        let mut asked = false;
        session.prepare(sql, |_| std::mem::replace(&mut asked, true)).unwrap();
        self.release(session);
        asked
    }
}

fn batch(statements: &[&str]) -> Value {
    let steps: Vec<Value> = statements.iter().map(|sql| json!({"stmt": {"sql": sql, "want_rows": true}})).collect();
    json!({"type": "batch", "batch": {"steps": steps}})
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b TEXT)";

#[test]
fn what_sync_clients_send_with_every_push_is_prepared_once() {
    let bench = Bench::new();
    let push = ["BEGIN IMMEDIATE", TABLE, "INSERT INTO t(b) VALUES ('x')", "SELECT * FROM t", "COMMIT"];
    // The first makes the table, and in the transaction in which it does that nothing is kept.
    for _ in 0..2 {
        bench.call("app", &json!([batch(&push)]));
    }
    for sql in &push[1..] {
        assert!(!bench.prepares("app", sql), "{sql}");
    }
    // Of another database nothing is known by that, and nothing when the schema has changed.
    assert!(bench.prepares("twin", "SELECT 1"));
    bench.call("app", &json!([batch(&["CREATE INDEX i ON t(b)"])]));
    for sql in &push[1..] {
        assert!(bench.prepares("app", sql), "{sql}");
    }
}

#[test]
fn what_was_prepared_in_a_transaction_that_was_rolled_back_is_forgotten() {
    let bench = Bench::new();
    bench.call("app", &json!([batch(&[TABLE, "INSERT INTO t VALUES (1, 'x')"])]));
    let select = "SELECT * FROM n";
    // The engine's sign for the schema takes the same value in both transactions.
    let rolled_back =
        ["BEGIN", "CREATE TABLE n (old)", select, "INSERT OR ROLLBACK INTO t VALUES (1, 'taken')", "SELECT 1"];
    let results = bench.call("app", &json!([batch(&rolled_back)]));
    assert_eq!(results[0]["response"]["result"]["step_errors"][3]["code"], "SQLITE_CONSTRAINT", "{results}");
    let made = bench.call("app", &json!([batch(&["CREATE TABLE n (new, newer)", select])]));
    let cols = &made[0]["response"]["result"]["step_results"][1]["cols"];
    assert_eq!(cols.as_array().map(Vec::len), Some(2), "{made}");
    let results = bench.call("app", &json!([batch(&["INSERT INTO n VALUES (1, 2)", select])]));
    let rows = &results[0]["response"]["result"]["step_results"][1]["rows"];
    assert_eq!(rows[0].as_array().map(Vec::len), Some(2), "{results}");
}

#[test]
fn what_others_append_changes_what_was_prepared_before() {
    let bench = Bench::new();
    let select = "SELECT * FROM t";
    for _ in 0..2 {
        bench.call("app", &json!([batch(&[TABLE, "INSERT INTO t(b) VALUES ('x')", select])]));
    }
    assert!(!bench.prepares("app", select));
    let column = json!([batch(&["ALTER TABLE t ADD COLUMN c DEFAULT 7"])]);
    let altered = bench.call_of(&bench.elsewhere, "app", &column);
    assert_eq!(altered[0]["response"]["result"]["step_errors"], json!([null]), "{altered}");
    let results = bench.call("app", &json!([batch(&[select])]));
    let result = &results[0]["response"]["result"]["step_results"][0];
    for row in [&result["cols"], &result["rows"][0]] {
        assert_eq!(row.as_array().map(Vec::len), Some(3), "{results}");
    }
}

#[test]
fn what_one_call_bound_the_next_does_not_see() {
    let bench = Bench::new();
    let call = |args: Value| {
        let stmt = json!({"sql": "SELECT ?1, ?2", "args": args, "want_rows": true});
        let results = bench.call("app", &json!([{"type": "execute", "stmt": stmt}]));
        results[0]["response"]["result"]["rows"][0].clone()
    };
    let (one, two) = (json!({"type": "integer", "value": "1"}), json!({"type": "text", "value": "two"}));
    assert_eq!(call(json!([one, two])), json!([one, two]));
    assert!(!bench.prepares("app", "SELECT ?1, ?2"));
    // Were it seen, this would have its second argument.
    assert_eq!(call(json!([two])), Value::Null);
}

/// What a call is made of: the first ones may change the schema, the others do not.
const STATEMENTS: [&str; 30] = [
    TABLE,
    "CREATE TABLE IF NOT EXISTS t (b TEXT, a INTEGER PRIMARY KEY, c)",
    "CREATE TABLE IF NOT EXISTS u (a INTEGER PRIMARY KEY, b TEXT UNIQUE)",
    "CREATE TABLE u (a)",
    "DROP TABLE t",
    "DROP TABLE IF EXISTS u",
    "ALTER TABLE t ADD COLUMN d DEFAULT 7",
    "ALTER TABLE t DROP COLUMN b",
    "ALTER TABLE t RENAME COLUMN b TO c",
    "ALTER TABLE u RENAME TO t",
    "CREATE UNIQUE INDEX IF NOT EXISTS i ON t(b)",
    "CREATE INDEX i ON u(b)",
    "DROP INDEX IF EXISTS i",
    "CREATE VIEW v AS SELECT * FROM t",
    "DROP VIEW IF EXISTS v",
    "CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO u(b) VALUES (new.b); END",
    "DROP TRIGGER IF EXISTS g",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "COMMIT",
    "ROLLBACK",
    "INSERT INTO t(a, b) VALUES (1, 'x') ON CONFLICT(a) DO UPDATE SET b = excluded.b || b",
    "INSERT OR ROLLBACK INTO t(b) VALUES ('x')",
    "INSERT INTO u(b) VALUES (random() % 1) RETURNING *",
    "UPDATE t SET b = b || 'y'",
    "DELETE FROM t WHERE a > 1 RETURNING *",
    "SELECT * FROM t ORDER BY 1",
    "SELECT * FROM u ORDER BY 1",
    "SELECT * FROM v ORDER BY 1",
    "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name",
];

/// How many of them may change the schema.
const SCHEMA: usize = 17;

/// An answer without what differs from one time to the next, or with the connection: an upsert that only updates leaves the
/// rowid of the last insert as it was.
fn timeless(mut answer: Value, statements: &[&str]) -> Value {
    let steps = answer["response"]["result"]["step_results"].as_array_mut();
    for (step, sql) in steps.into_iter().flatten().zip(statements) {
        let Some(step) = step.as_object_mut() else { continue };
        step.remove("query_duration_ms");
        if sql.contains("ON CONFLICT") {
            step.remove("last_insert_rowid");
        }
    }
    answer
}

/// Of the statements above, those that do not change the schema come more often: what is kept must be used.
fn statements() -> impl Strategy<Value = Vec<&'static str>> {
    vec(prop_oneof![1 => 0..SCHEMA, 2 => SCHEMA..STATEMENTS.len()].prop_map(|number| STATEMENTS[number]), 1..6)
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![3 => Just(How::Again), 1 => Just(How::Beside), 1 => Just(How::Elsewhere)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// One log is called as sync clients do; on its twin no two calls have a connection in common.
    #[test]
    fn it_makes_no_difference_whether_a_statement_was_prepared_before(
        calls in vec((how(), statements()), 1..40),
    ) {
        let bench = Bench::new();
        LOGS.iter().for_each(|log| drop(bench.call(log, &json!([batch(&[TABLE])]))));
        for (how, statements) in calls {
            let held = (how == How::Beside).then(|| bench.hold("app"));
            let sql = if how == How::Elsewhere { &bench.elsewhere } else { &bench.sql };
            let again = bench.call_of(sql, "app", &json!([batch(&statements)]));
            held.into_iter().for_each(|held| bench.release(held));
            let anew = bench.call_of(sql, "twin", &json!([batch(&statements), {"type": "get_autocommit"}]));
            let [again, anew] = [again, anew].map(|results| timeless(results[0].clone(), &statements));
            prop_assert_eq!(again, anew, "{:?}", statements);
        }
    }
}
