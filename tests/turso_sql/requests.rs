//! Each kind of request, and each kind of value.

use serde_json::{Value, json};

use super::{Rig, error, execute, execute_with, plain, result};

#[test]
fn a_statement_is_answered_with_columns_rows_and_counts() {
    let rig = Rig::new();
    let created = rig.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c)");
    assert_eq!((&created["cols"], &created["rows"]), (&json!([]), &json!([])));
    assert_eq!((&created["affected_row_count"], &created["last_insert_rowid"]), (&json!(0), &Value::Null));
    let inserted = rig.run("INSERT INTO t(b) VALUES ('x'), ('y')");
    assert_eq!((&inserted["affected_row_count"], &inserted["last_insert_rowid"]), (&json!(2), &json!("2")));
    let selected = rig.run("SELECT a, b, c, a + 1 AS d FROM t ORDER BY a");
    assert_eq!(
        selected["cols"],
        json!([
            {"name": "a", "decltype": "INTEGER"}, {"name": "b", "decltype": "TEXT"},
            {"name": "c", "decltype": null}, {"name": "d", "decltype": null}
        ])
    );
    assert_eq!(plain(&selected["rows"]), json!([["1", "x", null, "2"], ["2", "y", null, "3"]]));
    assert_eq!((&selected["affected_row_count"], &selected["replication_index"]), (&json!(0), &Value::Null));
    assert_eq!(rig.run("UPDATE t SET b = 'z'")["affected_row_count"], 2);
    assert_eq!(rig.run("DELETE FROM t WHERE a = 1")["affected_row_count"], 1);
    let returned = rig.run("INSERT INTO t(b) VALUES ('r') RETURNING a, b");
    assert_eq!((plain(&returned["rows"]), &returned["affected_row_count"]), (json!([["3", "r"]]), &json!(1)));
}

#[test]
fn every_kind_of_value_goes_in_and_comes_out() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(v)");
    for (given, got) in [
        (json!({"type": "null"}), json!({"type": "null"})),
        (
            json!({"type": "integer", "value": "-9223372036854775808"}),
            json!({"type": "integer", "value": "-9223372036854775808"}),
        ),
        (json!({"type": "float", "value": 1.5}), json!({"type": "float", "value": 1.5})),
        (
            json!({"type": "float", "value": -1.1140367018743801e242}),
            json!({"type": "float", "value": -1.1140367018743801e242}),
        ),
        (json!({"type": "float", "value": 1}), json!({"type": "float", "value": 1.0})),
        (json!({"type": "text", "value": "ä\u{0}'\""}), json!({"type": "text", "value": "ä\u{0}'\""})),
        (json!({"type": "blob", "base64": "//4"}), json!({"type": "blob", "base64": "//4"})),
        (json!({"type": "blob", "base64": "//4="}), json!({"type": "blob", "base64": "//4"})),
        (json!({"type": "blob", "base64": ""}), json!({"type": "blob", "base64": ""})),
    ] {
        let results = rig.results(&json!([
            execute("DELETE FROM t"),
            execute_with("INSERT INTO t VALUES (?)", &json!([given])),
            execute("SELECT v FROM t"),
        ]));
        assert_eq!(result(&results[2])["rows"], json!([[got]]), "{given}");
    }
}

#[test]
fn arguments_are_bound_by_place_and_by_name() {
    let rig = Rig::new();
    let named = |sql: &str, args: Value, names: &[(&str, &str)]| {
        let names: Vec<Value> =
            names.iter().map(|(name, text)| json!({"name": name, "value": {"type": "text", "value": text}})).collect();
        rig.results(&json!([{"type": "execute", "stmt": {"sql": sql, "args": args, "named_args": names}}])).remove(0)
    };
    let one = json!([{"type": "text", "value": "1"}, {"type": "text", "value": "2"}]);
    let rows = |outcome: Value| plain(&result(&outcome)["rows"]);
    assert_eq!(rows(named("SELECT ?, ?", one.clone(), &[])), json!([["1", "2"]]));
    assert_eq!(rows(named("SELECT ?2, ?1", one.clone(), &[])), json!([["2", "1"]]));
    for names in [[("a", "A"), ("b", "B"), ("c", "C")], [(":a", "A"), ("@b", "B"), ("$c", "C")]] {
        assert_eq!(rows(named("SELECT :a, @b, $c, :a", json!([]), &names)), json!([["A", "B", "C", "A"]]));
    }
    assert_eq!(rows(named("SELECT :a, @a", json!([]), &[("a", "A")])), json!([["A", "A"]]));
    assert!(error(&named("SELECT :a", json!([]), &[("b", "B")])).contains("named"));
    assert!(error(&named("SELECT ?", one, &[])).contains("parameters"));
}

#[test]
fn rows_come_only_when_they_are_wanted() {
    let rig = Rig::new();
    let ask = |wanted: Value| {
        result(&rig.results(&json!([{"type": "execute", "stmt": {"sql": "SELECT 1 AS a", "want_rows": wanted}}]))[0])
    };
    for wanted in [json!(true), json!(null)] {
        assert_eq!(
            (ask(wanted.clone())["cols"][0]["name"].as_str(), plain(&ask(wanted)["rows"])),
            (Some("a"), json!([["1"]]))
        );
    }
    let unwanted = ask(json!(false));
    assert_eq!((&unwanted["cols"], &unwanted["rows"]), (&json!([{"name": "a", "decltype": null}]), &json!([])));
}

#[test]
fn a_sequence_runs_all_statements_until_one_fails() {
    let rig = Rig::new();
    let sequence = |sql: &str| rig.results(&json!([{"type": "sequence", "sql": sql}])).remove(0);
    let done = sequence("CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES (1); /* ; */ INSERT INTO t VALUES (2);");
    assert_eq!(done, json!({"type": "ok", "response": {"type": "sequence"}}));
    assert_eq!(sequence(" -- nothing"), done);
    let failed = sequence("INSERT INTO t VALUES (3); INSERT INTO t VALUES (3); INSERT INTO t VALUES (4)");
    assert_eq!(error(&failed), "UNIQUE constraint failed: t.a");
    assert_eq!(rig.rows("SELECT a FROM t"), json!([["1"], ["2"], ["3"]]));
    assert!(error(&sequence("INSERT INTO t VALUES (5); nix; SELECT 1")).contains("nix"));
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["4"]]));
}

#[test]
fn a_statement_is_described_and_does_not_run() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a INTEGER, b TEXT)");
    let describe = |sql: &str| result(&rig.results(&json!([{"type": "describe", "sql": sql}]))[0]);
    let insert = describe("INSERT INTO t VALUES (:a, ?) RETURNING b");
    assert_eq!(insert["params"], json!([{"name": ":a"}, {"name": null}]));
    assert_eq!(insert["cols"], json!([{"name": "b", "decltype": "TEXT"}]));
    assert_eq!((&insert["is_readonly"], &insert["is_explain"]), (&json!(false), &json!(false)));
    let select = describe("SELECT a FROM t");
    assert_eq!((&select["is_readonly"], &select["params"]), (&json!(true), &json!([])));
    assert_eq!(describe("EXPLAIN DELETE FROM t")["is_explain"], true);
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["0"]]));
    let results = rig.results(&json!([{"type": "describe", "sql": "SELECT * FROM nix"}]));
    assert!(error(&results[0]).contains("no such table: nix"));
}

#[test]
fn stored_sql_belongs_to_its_stream() {
    let rig = Rig::new();
    let mut stream = rig.stream();
    stream.call(&json!([{"type": "store_sql", "sql_id": 7, "sql": "SELECT ?1 + 1"}]));
    let by_id = json!([{"type": "execute", "stmt": {"sql": null, "sql_id": 7, "args": [{"type": "integer", "value": "41"}]}},
        {"type": "describe", "sql_id": 7}, {"type": "sequence", "sql_id": 7}]);
    let results = stream.call(&by_id);
    assert_eq!(plain(&result(&results[0])["rows"]), json!([["42"]]));
    assert_eq!((&results[1]["type"], &results[2]["type"]), (&json!("ok"), &json!("ok")));
    assert!(error(&rig.results(&by_id)[0]).contains("stored"));
    let results =
        stream.call(&json!([{"type": "close_sql", "sql_id": 7}, by_id[0], {"type": "close_sql", "sql_id": 7}]));
    assert_eq!(results[0], json!({"type": "ok", "response": {"type": "close_sql"}}));
    assert!(error(&results[1]).contains("stored"));
    assert_eq!(results[2]["type"], "ok");
    // One that writes is known for it when it runs.
    stream.call(&json!([{"type": "store_sql", "sql_id": 1, "sql": "CREATE TABLE s(a)"}]));
    stream.call(&json!([execute("SELECT 1"), {"type": "execute", "stmt": {"sql_id": 1}}]));
    assert_eq!(rig.rows("SELECT count(*) FROM s"), json!([["0"]]));
}

#[test]
fn autocommit_is_told_and_close_ends_a_stream() {
    let rig = Rig::new();
    let (baton, results) = rig.call(
        &Value::Null,
        &json!([{"type": "get_autocommit"}, execute("BEGIN"), {"type": "get_autocommit"}, {"type": "close"}]),
    );
    assert_eq!(results[0]["response"], json!({"type": "get_autocommit", "is_autocommit": true}));
    assert_eq!(results[2]["response"]["is_autocommit"], false);
    assert_eq!(results[3], json!({"type": "ok", "response": {"type": "close"}}));
    assert_eq!(baton, Value::Null);
}

#[test]
fn a_failed_statement_is_a_result_and_the_next_ones_run() {
    let rig = Rig::new();
    let results = rig.results(&json!([
        execute("SELECT * FROM nix"), execute("CREATE TABLE t(a NOT NULL UNIQUE)"), {"type": "dance", "with": [1]},
        execute("INSERT INTO t VALUES (NULL)"), execute("nonsense"), execute("INSERT INTO t VALUES (1)"),
        execute(""), execute("SELECT 1; SELECT 2"), {"type": "execute", "stmt": {"sql": null}}, execute("SELECT a FROM t"),
    ]));
    assert!(error(&results[0]).contains("no such table: nix"));
    assert!(error(&results[2]).contains("dance"));
    assert_eq!(results[3]["error"], json!({"message": "NOT NULL constraint failed: t.a", "code": "SQLITE_CONSTRAINT"}));
    assert!(error(&results[4]).contains("nonsense"));
    assert!(error(&results[6]).contains("no statement") && error(&results[7]).contains("more than one"));
    assert!(error(&results[8]).contains("missing"));
    assert_eq!(plain(&result(&results[9])["rows"]), json!([["1"]]));
}

#[test]
fn a_function_that_writes_finds_its_turn_behind_a_view() {
    let rig = Rig::new();
    rig.run("CREATE SEQUENCE s");
    rig.run("CREATE VIEW v AS SELECT nextval('s') AS n");
    let before = rig.durable();
    let mut stream = rig.stream();
    assert_eq!(stream.rows("SELECT n FROM v"), json!([["1"]]));
    assert_eq!(rig.rows("SELECT nextval('s')"), json!([["2"]]));
    assert!(rig.durable() > before);
}

#[test]
fn rows_beyond_what_an_answer_takes_are_an_error_that_names_the_cursor() {
    let rig = Rig::new();
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)";
    let results =
        rig.results(&json!([execute(&format!("{numbers} SELECT zeroblob(1000000) FROM n")), execute("SELECT 1"),]));
    assert!(error(&results[0]).contains("/v3/cursor"));
    assert_eq!(results[1]["type"], "ok");
}
