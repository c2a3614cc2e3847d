//! Databases that SQLite opens and the engine does not, or not quite: what can be run is run, the rest is refused before
//! anything runs, for good, and by its name.

use std::fs;
use std::path::Path;

use logmirror::format::database;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::support::frames::FrameLog;
use super::support::service::Answer;
use super::{Rig, error, execute, plain, result};

const ROUTES: [&str; 3] = ["v2/pipeline", "v3/pipeline", "v3/cursor"];

/// A database with the table `plain`, made by SQLite.
struct Made {
    dir: tempfile::TempDir,
}

impl Made {
    fn new(before: &str, after: &str) -> Made {
        let made = Made { dir: tempfile::tempdir().unwrap() };
        made.run(before.to_owned() + "; CREATE TABLE plain(a INTEGER PRIMARY KEY, b); CREATE INDEX by_b ON plain(b)");
        made.run("INSERT INTO plain VALUES (1, 'one')");
        made.run(after);
        made
    }

    fn run(&self, sql: impl AsRef<str>) {
        let db = Connection::open(self.path()).unwrap();
        db.execute_batch(sql.as_ref()).unwrap();
        db.close().unwrap();
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("app.db")
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }
}

impl Rig {
    fn started_from(base: &[u8]) -> Rig {
        let rig = Rig::new();
        rig.start_generation(1, base);
        rig
    }

    #[track_caller]
    fn start_generation(&self, generation: u64, base: &[u8]) {
        let answer = self.service.call("PUT", &format!("/logs/app/generations/{generation}"), "", base);
        assert_eq!(answer.status, 201, "{}", answer.text());
    }

    /// Appends the frames after `held`.
    #[track_caller]
    fn append(&self, log: &FrameLog, held: usize) {
        let header: &[u8] = if held == 0 { &log.header.encode() } else { &[] };
        let body = [header, &log.frames[held..].concat()].concat();
        let answer = self.service.append("app", &format!("?from={}", held + 1), &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    fn ask(&self, route: &str, sql: &str) -> Answer {
        let steps = json!({"steps": [{"stmt": {"sql": sql}}]});
        let body = match route {
            "v3/cursor" => json!({"baton": null, "batch": steps}),
            _ => json!({"baton": null, "requests": [{"type": "batch", "batch": steps}]}),
        };
        self.post(route, body.to_string().as_bytes())
    }

    /// Fails unless every route refuses every statement as one that can never run, in these words.
    #[track_caller]
    fn refuses_all(&self, words: &[&str]) {
        for route in ROUTES {
            for sql in ["SELECT * FROM plain", "INSERT INTO plain(b) VALUES ('two')", "BEGIN IMMEDIATE"] {
                let answer = self.ask(route, sql);
                assert_eq!(answer.refusal(), (409, "format".to_owned()), "{route}: {sql}: {}", answer.text());
                let message = answer.json()["message"].as_str().unwrap().to_owned();
                words.iter().for_each(|word| assert!(message.contains(word), "{word:?} is not in {message:?}"));
            }
        }
    }

    fn restored(&self, to: &Path) -> Connection {
        let wanted = logmirror::checkpoint::Wanted {
            to: None,
            generation: None,
            out: to.to_owned(),
            overwrite: false,
            plain: false,
        };
        let client = self.service.client("app");
        self.service.runtime.block_on(logmirror::checkpoint::restore_url(&client, &wanted)).unwrap();
        Connection::open(to).unwrap()
    }
}

#[test]
fn pages_of_another_size_are_refused_on_every_route_before_anything_runs() {
    for bytes in [512, 1024, 2048, 8192, 65_536] {
        let setup = format!("PRAGMA page_size = {bytes}");
        let base = Made::new(&setup, "").bytes();
        let rig = Rig::started_from(&base);
        rig.refuses_all(&["app", &format!("pages of {bytes} bytes")]);
        assert_eq!(rig.durable(), 0, "nothing of it was stored");
        assert!(rig.service.get("/logs/app/base").body == base);
        if bytes == 8192 {
            // With frames too, and after a roll-over.
            let log = FrameLog { base, ..FrameLog::new(bytes, false) };
            let log = log.becomes(&Made::new(&setup, "INSERT INTO plain VALUES (7, 'seven')").bytes());
            rig.append(&log, 0);
            rig.refuses_all(&["8192"]);
            assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
            rig.refuses_all(&["8192"]);
        }
    }
}

#[test]
fn a_log_that_gets_pages_of_another_size_later_is_refused_from_then_on() {
    let rig = Rig::started_from(&Made::new("", "").bytes());
    let mut stream = rig.stream();
    assert_eq!(stream.rows("SELECT count(*) FROM plain"), json!([["1"]]));
    rig.run("INSERT INTO plain(b) VALUES ('two')");
    rig.start_generation(2, &Made::new("PRAGMA page_size = 8192", "").bytes());
    let on_stream = rig.try_call(&stream.baton, &json!([execute("SELECT count(*) FROM plain")]));
    assert_ne!(on_stream.status, 200, "{}", on_stream.text());
    rig.refuses_all(&["8192"]);
    rig.start_generation(3, &Made::new("", "").bytes());
    assert_eq!(rig.rows("SELECT count(*) FROM plain"), json!([["1"]]));
}

#[test]
fn a_rollback_journal_in_base_and_frames_is_a_wal_to_sql_and_stays_in_the_log() {
    let made = Made::new("PRAGMA journal_mode = DELETE", "");
    let base = made.bytes();
    assert_eq!(base[18..20], [1, 1]);
    made.run("CREATE TABLE later(x); INSERT INTO plain(b) VALUES ('in a frame')");
    let log = FrameLog { base: base.clone(), ..FrameLog::new(4096, false) }.becomes(&made.bytes());
    assert_eq!(log.pages()[0], 1);
    // An engine that opens on the frames, and one that takes them in.
    for is_open_before in [false, true] {
        let rig = Rig::started_from(&base);
        if is_open_before {
            assert_eq!(rig.rows("PRAGMA journal_mode"), json!([["wal"]]));
            assert_eq!(rig.rows("SELECT b FROM plain"), json!([["one"]]));
        }
        rig.append(&log, 0);
        assert_eq!(rig.rows("SELECT b FROM plain"), json!([["one"], ["in a frame"]]));
        assert_eq!(rig.rows("PRAGMA journal_mode"), json!([["wal"]]));
        rig.run("CREATE TABLE more(x)");
        rig.run("INSERT INTO plain(b) SELECT 'by SQL ' || value FROM generate_series(1, 500)");
        assert!(rig.service.get("/logs/app/base").body == base, "the base is as it was");
        let stream = rig.service.get("/logs/app/commits?from=1").body;
        assert!(stream.starts_with(&log.stream(&[])), "the frames are as they were");
        let out = tempfile::tempdir().unwrap();
        let db = rig.restored(&out.path().join("restored.db"));
        let count: u32 = db.query_row("SELECT count(*) FROM plain, later WHERE 0", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 0);
        let text: String = db.query_row("SELECT group_concat(b) FROM plain WHERE a < 4", [], |row| row.get(0)).unwrap();
        assert_eq!(text, "one,in a frame,by SQL 1");
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
}

/// What SQLite would say with a collation that a program registered.
fn with_collation(sql: &str) -> String {
    format!(
        "{sql}; PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'NOCASE', 'german') WHERE name GLOB 'odd*'"
    )
}

#[test]
fn what_the_engine_lacks_is_refused_for_good_with_the_name_of_the_object() {
    let deep = format!("CREATE TABLE odd(x CHECK (x{}))", " + x".repeat(400));
    let index = with_collation("CREATE INDEX odd_index ON plain(b COLLATE NOCASE)");
    for (what, sql, words) in [
        ("a collation of an index", index.as_str(), &["index \"odd_index\"", "german"][..]),
        ("a deep expression", &deep, &["table \"odd\"", "depth"]),
        ("a module", "CREATE VIRTUAL TABLE odd USING fts5(body)", &["table \"odd\"", "module fts5"]),
        ("a module in small letters", "create virtual table odd using fts5(body)", &["table \"odd\"", "module fts5"]),
        ("another module", "CREATE VIRTUAL TABLE odd USING rtree(id, a, b)", &["table \"odd\"", "module rtree"]),
    ] {
        println!("{what}");
        let rig = Rig::started_from(&Made::new("", sql).bytes());
        rig.refuses_all(words);
        assert_eq!(rig.durable(), 0);
    }
    let rig = Rig::started_from(&Made::new("PRAGMA encoding = 'UTF-16le'", "").bytes());
    rig.refuses_all(&["UTF-16"]);
}

#[test]
fn tables_beside_one_that_the_engine_lacks_a_part_of_are_read_and_written_and_that_one_stays_as_it_is() {
    let stored = "CREATE TABLE odd(id INTEGER PRIMARY KEY, x TEXT UNIQUE, y AS (x || '!') STORED, z CHECK (z > 0) REFERENCES plain(a));
        CREATE INDEX odd_z ON odd(z); INSERT INTO odd(x, z) VALUES ('a', 1), ('b', 1);
        CREATE TABLE side(x); CREATE TRIGGER of_side AFTER INSERT ON side WHEN new.x = 'odd' BEGIN INSERT INTO odd(x) VALUES (new.x); END;
        CREATE VIEW odd_view AS SELECT x FROM odd; CREATE TABLE child(x REFERENCES odd(x))";
    let collated = with_collation(
        "CREATE TABLE odd(id INTEGER PRIMARY KEY, x TEXT COLLATE NOCASE UNIQUE, z, UNIQUE (z COLLATE NOCASE, x), CHECK (x <> ''));
        CREATE INDEX odd_z ON odd(z); INSERT INTO odd(x, z) VALUES ('a', 1), ('b', 2);
        CREATE TABLE side(x); CREATE TRIGGER of_side AFTER INSERT ON side WHEN new.x = 'odd' BEGIN INSERT INTO odd(x) VALUES (new.x); END;
        CREATE VIEW odd_view AS SELECT x FROM odd; CREATE TABLE child(x REFERENCES odd(x))",
    );
    for (sql, why) in [(stored, "tored generated"), (&collated, "german")] {
        let made = Made::new("", sql);
        // In the base, and in frames, whose pages are read another way.
        for is_in_frames in [false, true] {
            let rig = Rig::new();
            if is_in_frames {
                let log = FrameLog { base: database::empty(4096), ..FrameLog::new(4096, false) };
                rig.append(&log.becomes(&made.bytes()), 0);
            } else {
                rig.start_generation(1, &made.bytes());
            }
            rig.run("INSERT INTO plain(b) VALUES ('two')");
            rig.run("CREATE TABLE new(x UNIQUE)");
            rig.run("INSERT INTO new VALUES (1)");
            rig.run("INSERT INTO side VALUES ('even')");
            assert_eq!(rig.rows("SELECT b FROM plain ORDER BY b"), json!([["one"], ["two"]]));
            let durable = rig.durable();
            for sql in [
                "SELECT * FROM odd",
                "SELECT count(*) FROM odd",
                "SELECT z FROM odd WHERE z > 0",
                "SELECT x FROM odd WHERE x = 'a'",
                "SELECT * FROM odd_view",
                "SELECT b FROM plain WHERE EXISTS (SELECT 1 FROM odd)",
                "INSERT INTO odd(x, z) VALUES ('c', 1)",
                "INSERT INTO side VALUES ('odd')",
                "UPDATE odd SET z = 7",
                "DELETE FROM odd",
                "DELETE FROM odd WHERE id = 1",
                "DROP TABLE odd",
                "DROP INDEX odd_z",
                "CREATE INDEX odd_more ON odd(id)",
                "ALTER TABLE odd ADD COLUMN more",
                "ALTER TABLE odd RENAME TO even",
                " ; alter table plain RENAME COLUMN b TO c",
                "PRAGMA integrity_check",
                "CREATE TABLE copy AS SELECT id FROM odd",
            ] {
                let message = rig.error(sql);
                assert!(message.contains("table \"odd\" cannot be used") && message.contains(why), "{sql}: {message}");
                // With a transaction open nothing of that remains.
                let script = [execute("BEGIN"), execute("INSERT INTO new VALUES (2)"), execute(sql), execute("COMMIT")];
                let results = rig.results(&json!(script));
                assert_eq!(results[2]["type"], "error", "{sql}");
                if results[3]["type"] == "ok" {
                    // What was refused before it ran has ended no transaction.
                    rig.run("DELETE FROM new WHERE x = 2");
                }
                assert_eq!(rig.rows("SELECT x FROM new"), json!([["1"]]), "{sql}");
            }
            let keys = [execute("PRAGMA foreign_keys = ON"), execute("INSERT INTO child VALUES ('a')")];
            assert!(error(&rig.results(&json!(keys))[1]).contains("cannot be used"));
            assert!(rig.durable() >= durable);
            let out = tempfile::tempdir().unwrap();
            let db = rig.restored(&out.path().join("restored.db"));
            let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
            assert_eq!(number("SELECT count(*) FROM plain"), 2);
            assert_eq!(number("SELECT count(*) FROM side"), 1);
            assert_eq!(number("SELECT count(*) FROM child"), 0);
            // The table, its two indexes of constraints or one, and that of its own.
            let entries = "SELECT count(*) FROM sqlite_schema WHERE tbl_name = 'odd'";
            assert_eq!(number(entries), if why == "german" { 4 } else { 3 });
            if why != "german" {
                let text = "SELECT group_concat(id || x || y || z) FROM odd";
                let text: String = db.query_row(text, [], |row| row.get(0)).unwrap();
                assert_eq!(text, "1aa!1,2bb!1");
                let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
                assert_eq!(check, "ok");
            }
        }
    }
}

#[test]
fn no_table_is_made_here_that_could_not_be_used_then() {
    let rig = Rig::new();
    for (sql, why) in [
        ("CREATE TABLE odd(x TEXT COLLATE german)", "german"),
        ("CREATE TABLE odd(x, UNIQUE (x COLLATE german))", ""),
        ("CREATE TABLE odd(x, y AS (x + 1) STORED)", "tored"),
        ("CREATE VIRTUAL TABLE odd USING fts5(x)", ""),
    ] {
        assert!(rig.error(sql).contains(why), "{sql}");
        assert_eq!(rig.rows("SELECT count(*) FROM sqlite_schema"), json!([["0"]]), "{sql}");
    }
}

#[test]
fn what_the_engine_lacks_is_refused_when_it_comes_in_frames_and_goes_when_it_is_gone() {
    let made = Made::new("", "");
    let rig = Rig::started_from(&made.bytes());
    assert_eq!(rig.rows("SELECT count(*) FROM plain"), json!([["1"]]));
    let mut log = FrameLog { base: made.bytes(), ..FrameLog::new(4096, false) };
    let mut comes = |sql: &str| {
        let held = log.frames.len();
        made.run(sql);
        log = log.clone().becomes(&made.bytes());
        rig.append(&log, held);
    };
    comes("CREATE VIRTUAL TABLE odd USING fts5(body)");
    rig.refuses_all(&["odd", "fts5"]);
    comes("DROP TABLE odd");
    assert_eq!(rig.rows("SELECT count(*) FROM plain"), json!([["1"]]));
    comes("CREATE TABLE odd(x, y AS (x + 1) STORED); INSERT INTO odd(x) VALUES (1)");
    assert!(rig.error("SELECT * FROM odd").contains("table \"odd\" cannot be used"));
    assert_eq!(rig.rows("SELECT count(*) FROM plain"), json!([["1"]]));
    // Its root becomes that of another.
    comes("DROP TABLE odd; CREATE TABLE even(x); INSERT INTO even VALUES (2)");
    assert_eq!(rig.rows("SELECT x FROM even"), json!([["2"]]));
    // Onto the base of a new log, which says nothing of an encoding.
    let rig = Rig::new();
    assert_eq!(rig.rows("SELECT count(*) FROM sqlite_schema"), json!([["0"]]));
    let utf_16 = Made::new("PRAGMA encoding = 'UTF-16be'", "").bytes();
    rig.append(&FrameLog { base: database::empty(4096), ..FrameLog::new(4096, false) }.becomes(&utf_16), 0);
    rig.refuses_all(&["UTF-16"]);
}

#[test]
fn a_database_with_auto_vacuum_is_read_and_says_why_it_is_not_written() {
    let fills = "CREATE TABLE filled(x); INSERT INTO filled VALUES (zeroblob(30000)); DELETE FROM plain WHERE a > 1";
    let plain_base = Made::new("", fills).bytes();
    for mode in ["FULL", "INCREMENTAL"] {
        let made = Made::new(&format!("PRAGMA auto_vacuum = {mode}"), fills);
        let in_base = Rig::started_from(&made.bytes());
        let in_frames = Rig::started_from(&plain_base);
        assert_eq!(in_frames.rows("SELECT b FROM plain"), json!([["one"]]));
        let log = FrameLog { base: plain_base.clone(), ..FrameLog::new(4096, false) }.becomes(&made.bytes());
        in_frames.append(&log, 0);
        for rig in [in_base, in_frames] {
            let durable = rig.durable();
            assert_eq!(rig.rows("SELECT b FROM plain"), json!([["one"]]));
            let results = rig.results(&json!([execute("BEGIN"), execute("SELECT b FROM plain"), execute("COMMIT")]));
            assert_eq!(plain(&result(&results[1])["rows"]), json!([["one"]]));
            for route in ROUTES {
                let answer = rig.ask(route, "INSERT INTO plain(b) VALUES ('two')");
                assert_eq!(answer.refusal(), (409, "format".to_owned()), "{mode}: {}", answer.text());
                assert!(answer.text().contains("auto_vacuum"), "{}", answer.text());
            }
            // What is not seen beforehand is not stored either.
            let hidden = json!([
                {"type": "store_sql", "sql_id": 1, "sql": "INSERT INTO plain(b) VALUES ('two')"},
                {"type": "execute", "stmt": {"sql_id": 1}},
            ]);
            let answer = rig.try_call(&Value::Null, &hidden);
            let failed = answer.status != 200 || answer.json()["results"][1]["type"] == "error";
            assert!(failed, "{mode}: {}", answer.text());
            assert_eq!(rig.durable(), durable);
            assert_eq!(rig.rows("SELECT b FROM plain"), json!([["one"]]));
        }
    }
}
