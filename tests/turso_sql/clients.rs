//! What clients and mappers of objects send, and take for granted.

use serde_json::{Value, json};

use super::{Rig, error, execute, execute_with, plain, result};

#[test]
fn qualified_names_are_found_in_every_statement_however_they_are_spelled() {
    let rig = Rig::new();
    rig.results(&json!([
        execute("CREATE TABLE `User`(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, n INT)"),
        execute("CREATE TABLE Post(id INTEGER PRIMARY KEY, `userId` INT)"),
        execute("INSERT INTO User VALUES (1, 'a', 1), (2, 'b', 1), (3, 'c', 1)"),
        execute("INSERT INTO Post VALUES (1, 2)"),
    ]));
    for (sql, rows) in [
        (
            "UPDATE `main`.`User` SET `name` = 'x' WHERE (`main`.`User`.`id` = 1 AND 1=1) RETURNING `id` AS `id`, `name` AS `name`",
            json!([["1", "x"]]),
        ),
        ("UPDATE main.User SET n = main.User.n + 1 WHERE main.User.id = 1 RETURNING main.User.n", json!([["2"]])),
        ("UPDATE User SET n = User.n + 1 WHERE User.id = 1 RETURNING User.n", json!([["3"]])),
        ("UPDATE OR IGNORE \"User\" AS U SET n = U.n + 1 WHERE U.id = 1 RETURNING n", json!([["4"]])),
        (
            "UPDATE main.User SET name = 'y' WHERE main.User.id IN (SELECT main.Post.userId FROM main.Post WHERE main.Post.userId = main.User.id) RETURNING id",
            json!([["2"]]),
        ),
        (
            "INSERT INTO main.User(id, name) VALUES (1, 'z') ON CONFLICT(id) DO UPDATE SET name = 'z' WHERE main.User.id = 1 RETURNING main.User.name",
            json!([["z"]]),
        ),
        ("DELETE FROM `main`.`User` WHERE (`main`.`User`.`id` = 2 AND 1=1) RETURNING main.User.id", json!([["2"]])),
        ("DELETE FROM User WHERE User.id = 3 RETURNING User.id", json!([["3"]])),
        ("SELECT `main`.`User`.`id`, `main`.`User`.`name` FROM `main`.`User`", json!([["1", "z"]])),
    ] {
        assert_eq!(rig.rows(sql), rows, "{sql}");
    }
    let described = rig.results(&json!([{"type": "describe", "sql": "UPDATE User SET n = 1 WHERE User.id = ?"}]));
    assert_eq!(result(&described[0])["params"], json!([{"name": null}]));
}

#[test]
fn an_infinity_comes_back_as_one_and_is_never_stored_as_null() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(v REAL)");
    // JSON has no word for it: a number that is too large is one.
    for (sent, found) in
        [("1e999", "1e999"), ("-1e400", "-1e999"), ("\"Infinity\"", "1e999"), ("\"-Infinity\"", "-1e999")]
    {
        let insert = format!(
            r#"{{"type":"execute","stmt":{{"sql":"INSERT INTO t VALUES (?)","args":[{{"type":"float","value":{sent}}}]}}}}"#
        );
        let ask = execute("SELECT v FROM t WHERE typeof(v) = 'real' AND abs(v) > 1e308");
        let body = format!(r#"{{"requests":[{},{insert},{ask}]}}"#, execute("DELETE FROM t"));
        let answer = rig.post("v2/pipeline", body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let wanted = format!(r#""rows":[[{{"type":"float","value":{found}}}]]"#);
        assert!(answer.text().contains(&wanted), "{sent}: {}", answer.text());
    }
    let lines = rig.post("v3/cursor", br#"{"batch":{"steps":[{"stmt":{"sql":"SELECT -9e999"}}]}}"#);
    assert!(lines.text().contains(r#"{"type":"row","row":[{"type":"float","value":-1e999}]}"#), "{}", lines.text());
    // Readers of JSON that have no such number get it as a text.
    assert_eq!(rig.rows("SELECT CAST(-9e999 AS TEXT), CAST(9e999 AS TEXT)"), json!([["-Inf", "Inf"]]));
    let null = json!([{"type": "float", "value": null}]);
    assert!(error(&rig.results(&json!([execute_with("INSERT INTO t VALUES (?)", &null)]))[0]).contains("1e999"));
    assert_eq!(rig.rows("SELECT count(*) FROM t WHERE v IS NULL"), json!([["0"]]));
}

#[test]
fn a_push_with_an_infinity_that_was_lost_on_the_way_is_refused_as_a_whole() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(id INTEGER PRIMARY KEY, v REAL)");
    let durable = rig.durable();
    let int = |n: u32| json!({"type": "integer", "value": n.to_string()});
    let step = |sql: &str, args: Value| json!({"stmt": {"sql": sql, "args": args, "want_rows": false}});
    let push = |float: Value| {
        let steps = json!([
            step("BEGIN IMMEDIATE", json!([])),
            step(
                "CREATE TABLE IF NOT EXISTS turso_sync_last_change_id(client_id TEXT PRIMARY KEY, pull_gen INTEGER, change_id INTEGER)",
                json!([])
            ),
            step("INSERT INTO t VALUES (?, ?)", json!([int(1), {"type": "float", "value": 1.5}])),
            step("INSERT INTO t VALUES (?, ?)", json!([int(2), {"type": "float", "value": float}])),
            step("COMMIT", json!([])),
        ]);
        let body = json!({"baton": null, "requests": [{"type": "batch", "batch": {"steps": steps}}]});
        rig.post("v2/pipeline", body.to_string().as_bytes())
    };
    let refused = push(Value::Null);
    assert_eq!(refused.refusal(), (400, "invalid".to_owned()));
    for part in ["infinity", "argument 2 of step 3", "INSERT INTO t", "turso_cdc"] {
        assert!(refused.text().contains(part), "{part}: {}", refused.text());
    }
    assert_eq!(rig.durable(), durable);
    assert_eq!(push(json!(2.5)).status, 200);
    assert_eq!(rig.rows("SELECT * FROM t"), json!([["1", 1.5], ["2", 2.5]]));
}

#[test]
fn clients_that_ask_for_a_version_of_the_protocol_are_answered() {
    let rig = Rig::new();
    for version in ["v2", "v3"] {
        assert_eq!(rig.service.get(&format!("/logs/app/{version}")).status, 200);
        assert_eq!(rig.service.get(&format!("/logs/nix/{version}")).status, 404);
        let asked = rig.service.call("OPTIONS", &format!("/logs/app/{version}"), "", b"");
        assert_eq!(asked.status, 204);
    }
    assert_eq!(rig.service.get("/logs/app/v3-protobuf").status, 404);
}

#[test]
fn a_client_that_resolves_its_paths_is_told_of_the_slash_that_its_url_lacks() {
    let rig = Rig::new();
    let call = |path: &str| rig.service.call("POST", path, "", br#"{"requests":[]}"#);
    for path in ["/logs/v2/pipeline", "/logs/v3/pipeline", "/logs/v3/cursor"] {
        let refused = call(path);
        assert_eq!(refused.refusal(), (404, "not-found".to_owned()));
        assert!(refused.text().contains("slash at the end of its URL: /logs/NAME/"), "{}", refused.text());
    }
    assert!(!call("/v2/elsewhere").text().contains("slash"));
    assert_eq!(call("/logs/app//v2/pipeline").status, 200);
}

#[test]
fn a_compressed_body_is_refused_in_so_many_words() {
    let rig = Rig::new();
    for path in ["v2/pipeline", "v3/pipeline", "v3/cursor", "pull-updates"] {
        let refused =
            rig.service.call("POST", &format!("/logs/app/{path}"), "content-encoding: gzip\r\n", &[0x1f, 0x8b]);
        assert_eq!(refused.refusal(), (415, "invalid".to_owned()));
        assert!(refused.text().contains("Content-Encoding"), "{}", refused.text());
    }
    let body = json!({"requests": [execute("SELECT 1")]}).to_string();
    let answer = rig.service.call("POST", "/logs/app/v2/pipeline", "content-encoding: identity\r\n", body.as_bytes());
    assert_eq!(answer.status, 200);
}

#[test]
fn a_declared_type_is_the_one_that_was_declared() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a DECIMAL(10,2), b VARCHAR(20), c, d BIG INT, e BLOB)");
    let types = |sql: &str| -> Value {
        let cols = rig.run(sql)["cols"].clone();
        cols.as_array().unwrap().iter().map(|col| col["decltype"].clone()).collect()
    };
    assert_eq!(types("SELECT *, a + 1 FROM t"), json!(["DECIMAL(10,2)", "VARCHAR(20)", null, "BIG INT", "BLOB", null]));
    // Nothing is made up where the engine does not know.
    assert_eq!(types("WITH x AS (SELECT 1 AS a) SELECT * FROM x"), json!([null]));
    assert_eq!(types("SELECT x.a FROM (SELECT a FROM t) AS x"), json!([null]));
}

#[test]
fn a_skipped_step_is_neither_ok_nor_an_error_and_none_is_named_before_it_ran() {
    let rig = Rig::new();
    let step = |condition: Value| json!({"stmt": {"sql": "SELECT 1"}, "condition": condition});
    let never = json!({"type": "error", "step": 0});
    let steps = json!([
        {"stmt": {"sql": "SELECT 1"}}, step(never),
        step(json!({"type": "error", "step": 1})), step(json!({"type": "ok", "step": 1})),
        step(json!({"type": "not", "cond": {"type": "error", "step": 1}})),
    ]);
    let result = rig.batch(&steps);
    let ran: Vec<bool> = result["step_results"].as_array().unwrap().iter().map(|step| !step.is_null()).collect();
    assert_eq!(ran, [true, false, false, false, true]);
    assert_eq!(result["step_errors"], json!([null, null, null, null, null]));
    let lines = rig.post("v3/cursor", json!({"batch": {"steps": steps}}).to_string().as_bytes()).text();
    assert_eq!(lines.matches("step_begin").count(), 2, "{lines}");
    for named in [1, 2, 99] {
        for condition in
            [json!({"type": "ok", "step": named}), json!({"type": "not", "cond": {"type": "error", "step": named}})]
        {
            let steps = json!([{"stmt": {"sql": "SELECT 1"}}, step(condition)]);
            let requests = json!([{"type": "batch", "batch": {"steps": steps}}]);
            let refused = rig.try_call(&Value::Null, &requests);
            assert_eq!(refused.refusal(), (400, "invalid".to_owned()));
            assert!(refused.text().contains(&format!("names step {named}")), "{}", refused.text());
            let refused = rig.post("v3/cursor", json!({"batch": {"steps": steps}}).to_string().as_bytes());
            assert_eq!(refused.status, 400);
        }
    }
}

#[test]
fn a_named_argument_comes_before_one_by_place() {
    let rig = Rig::new();
    let text = |text: &str| json!({"type": "text", "value": text});
    let stmt = json!({"sql": "SELECT ?1, :b", "args": [text("1"), text("2")], "named_args": [{"name": "b", "value": text("B")}]});
    let results = rig.results(&json!([{"type": "execute", "stmt": stmt}]));
    assert_eq!(plain(&result(&results[0])["rows"]), json!([["1", "B"]]));
}

#[test]
fn a_name_with_its_sign_comes_before_one_without_in_any_order() {
    let rig = Rig::new();
    let named = |name: &str, text: &str| json!({"name": name, "value": {"type": "text", "value": text}});
    for names in [[named("a", "any"), named("$a", "dollar")], [named("$a", "dollar"), named("a", "any")]] {
        let stmt = json!({"sql": "SELECT :a, $a", "named_args": names});
        let results = rig.results(&json!([{"type": "execute", "stmt": stmt}]));
        assert_eq!(plain(&result(&results[0])["rows"]), json!([["any", "dollar"]]));
    }
}

#[test]
fn a_parameter_without_an_argument_is_refused_and_nothing_runs() {
    let rig = Rig::new();
    rig.run("CREATE TABLE t(a, b)");
    for (sql, args, missing) in [
        ("INSERT INTO t VALUES (?, ?)", json!([{"type": "null"}]), "parameter 2"),
        ("INSERT INTO t VALUES (?1, :b)", json!([{"type": "null"}]), ":b"),
        ("INSERT INTO t VALUES (?2, 0)", json!([{"type": "null"}]), "?2"),
    ] {
        let refused = error(&rig.results(&json!([execute_with(sql, &args)]))[0]);
        assert!(refused.contains("no argument") && refused.contains(missing), "{sql}: {refused}");
        let body = json!({"batch": {"steps": [{"stmt": {"sql": sql, "args": args}}]}});
        assert!(rig.post("v3/cursor", body.to_string().as_bytes()).text().contains("no argument"), "{sql}");
    }
    assert_eq!(rig.rows("SELECT count(*) FROM t"), json!([["0"]]));
    // What only explains needs none, and a number that is left out has no parameter.
    rig.run("EXPLAIN INSERT INTO t VALUES (?, ?)");
    let two = json!([{"type": "null"}, {"type": "text", "value": "b"}]);
    assert_eq!(plain(&result(&rig.results(&json!([execute_with("SELECT ?2", &two)]))[0])["rows"]), json!([["b"]]));
}

#[test]
fn a_call_that_goes_on_after_its_close_is_refused_and_nothing_of_it_runs() {
    let rig = Rig::new();
    let stored = json!({"type": "store_sql", "sql_id": 1, "sql": "SELECT 1"});
    for after in [execute("SELECT 1"), stored, json!({"type": "get_autocommit"}), json!({"type": "close"})] {
        let requests = json!([execute("CREATE TABLE t(a)"), {"type": "close"}, after]);
        let refused = rig.try_call(&Value::Null, &requests);
        assert_eq!(refused.refusal(), (400, "invalid".to_owned()));
        assert!(refused.text().contains("close") && refused.text().contains("last"), "{}", refused.text());
    }
    assert!(rig.error("SELECT * FROM t").contains("no such table"));
}

#[test]
fn an_expression_as_deep_as_the_limit_runs_and_a_deeper_one_names_it() {
    let rig = Rig::new();
    rig.run(&format!("SELECT 1{}", "+1".repeat(99)));
    assert!(rig.error(&format!("SELECT 1{}", "+1".repeat(100))).contains("maximum depth 100"));
}
