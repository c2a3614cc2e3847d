//! A WAL log has one kind of writer: the mirror that feeds it, or its clients. Against the real program.
#![cfg(feature = "turso")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use logmirror::api::LogSource;
use logmirror::client::ClientError;
use logmirror::format::LogFormat;
use logmirror::offset::{Generation, Offset};
use rusqlite::Connection;
use serde_json::{Value, json};
use support::frames::FrameLog;
use support::process::{Ended, Mirror, Service, arg, mirror};
use support::service::{Answer, Wire, request};
use tempfile::TempDir;

struct Rig {
    _dir: TempDir,
    app: PathBuf,
    service: Service,
}

impl Rig {
    /// A database of one row, and a service.
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let (app, data) = (dir.path().join("app.db"), dir.path().join("data"));
        sqlite(&app, "PRAGMA journal_mode = WAL; CREATE TABLE t (n); INSERT INTO t VALUES (1)");
        Rig { service: Service::start(&data), app, _dir: dir }
    }

    /// With a log as a mirror leaves it that was killed before its base was there.
    fn awaiting_a_base() -> Rig {
        let rig = Rig::new();
        let client = rig.client();
        rig.service.call(client.create(LogFormat::Wal, None)).unwrap();
        let source = LogSource {
            identity: "host:/srv/app.db".into(),
            generation: Generation(1),
            offset: Offset(1),
            salts: [0, 0],
            frames: 0,
            checksum: "0".into(),
            log_checksum: "0".into(),
            awaits_base: true,
        };
        rig.service.call(client.set_source(&source, false)).unwrap();
        rig
    }

    /// One that a mirror has copied.
    fn mirrored(flags: &[&str]) -> Rig {
        let rig = Rig::new();
        copied(&mirror(arg(&rig.app), rig.url(), flags));
        rig
    }

    fn url(&self) -> String {
        self.service.url("app")
    }

    fn call(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut wire = Wire::connect(self.service.address().parse().unwrap());
        let head = format!("content-length: {}\r\ncontent-type: application/json\r\nconnection: close\r\n", body.len());
        wire.send(&[request(method, path, &head).as_bytes(), body].concat());
        wire.answer()
    }

    fn sql(&self, statements: &[&str]) -> Answer {
        let requests: Vec<_> =
            statements.iter().map(|sql| json!({"type": "execute", "stmt": {"sql": sql, "want_rows": true}})).collect();
        self.call("POST", "/logs/app/v2/pipeline", json!({ "requests": requests }).to_string().as_bytes())
    }

    /// The rows of the table, as SQL over HTTP gives them.
    #[track_caller]
    fn rows(&self) -> Vec<i64> {
        let answer = self.sql(&["SELECT n FROM t ORDER BY n"]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let rows = json["results"][0]["response"]["result"]["rows"].as_array().unwrap().clone();
        rows.iter().map(|row| row[0]["value"].as_str().unwrap().parse().unwrap()).collect()
    }

    #[track_caller]
    fn insert(&self, n: i64) {
        let answer = self.sql(&[&format!("INSERT INTO t VALUES ({n})")]);
        assert!(answer.status == 200 && !answer.text().contains("error"), "{}", answer.text());
    }

    fn status(&self) -> Value {
        self.call("GET", "/logs/app", b"").json()
    }

    fn client(&self) -> logmirror::client::Client {
        self.service.client("app")
    }
}

fn command(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap()
}

#[track_caller]
fn copied(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[track_caller]
fn refused(ended: &Ended, said: &str) {
    assert!(ended.code != Some(0) && ended.error().contains(said), "{ended:?}");
}

fn sqlite(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[track_caller]
fn assert_mirrored(answer: &Answer, rig: &Rig) {
    let (status, code) = answer.refusal();
    assert_eq!((status, &*code), (409, "mirrored"), "{}", answer.text());
    let said = answer.text();
    assert!(
        said.contains(arg(&rig.app)) && said.contains("promote"),
        "it says what it follows, and what to do: {said}"
    );
}

#[test]
fn what_a_mirror_feeds_answers_reads_and_refuses_what_clients_write() {
    let rig = Rig::mirrored(&[]);
    let before = rig.status();
    for statements in [
        &["INSERT INTO t VALUES (2)"][..],
        &["SELECT 1", "DELETE FROM t"],
        &["BEGIN IMMEDIATE"],
        &["BEGIN", "UPDATE t SET n = 3", "COMMIT"],
        &["CREATE TABLE other (x)"],
        &["PRAGMA user_version = 7"],
    ] {
        assert_mirrored(&rig.sql(statements), &rig);
    }
    let cursor = json!({"batch": {"steps": [{"stmt": {"sql": "INSERT INTO t VALUES (2)"}}]}});
    assert_mirrored(&rig.call("POST", "/logs/app/v3/cursor", cursor.to_string().as_bytes()), &rig);
    // Frames as libSQL sends them, from where the log ends.
    let next = before["next"].as_u64().unwrap();
    let frames = FrameLog::new(4096, false).commit(&[2], 2);
    let push = format!("/logs/app/sync/1/{next}/{}", next + 1);
    assert_mirrored(&rig.call("POST", &push, &frames.frames.concat()), &rig);
    // Reads, in transactions too.
    assert_eq!(rig.rows(), [1]);
    let answer = rig.sql(&["BEGIN", "SELECT n FROM t", "COMMIT"]);
    assert!(answer.status == 200 && !answer.text().contains("error"), "{}", answer.text());
    assert_eq!(rig.status()["next"], before["next"]);
    // And the mirror goes on.
    sqlite(&rig.app, "INSERT INTO t VALUES (2)");
    copied(&mirror(arg(&rig.app), rig.url(), &[]));
    assert_eq!(rig.rows(), [1, 2]);
}

#[test]
fn a_transaction_that_was_open_when_a_mirror_took_over_is_refused_whole() {
    let rig = Rig::new();
    rig.service.call(rig.client().create(LogFormat::Wal, None)).unwrap();
    let begin = json!({"requests": [
        {"type": "execute", "stmt": {"sql": "BEGIN"}},
        {"type": "execute", "stmt": {"sql": "CREATE TABLE lost (x)"}},
    ]});
    let begun = rig.call("POST", "/logs/app/v3/pipeline", begin.to_string().as_bytes());
    assert_eq!(begun.status, 200, "{}", begun.text());
    copied(&mirror(arg(&rig.app), rig.url(), &[]));
    let commit = json!({"baton": begun.json()["baton"], "requests": [{"type": "execute", "stmt": {"sql": "COMMIT"}}]});
    let answer = rig.call("POST", "/logs/app/v3/pipeline", commit.to_string().as_bytes());
    assert!(answer.status >= 400, "{}", answer.text());
    assert_eq!(rig.rows(), [1]);
    assert!(rig.sql(&["SELECT * FROM lost"]).text().contains("no such table"), "nothing of it was kept");
}

#[test]
fn what_was_released_is_written_by_its_clients_and_by_no_mirror() {
    let mut rig = Rig::mirrored(&["--release"]);
    rig.insert(10);
    assert_eq!(rig.rows(), [1, 10]);
    // The application goes on, or checkpoints, or another mirror is started: all the same, also after a restart.
    for (n, sql) in [(2, "INSERT INTO t VALUES (2)"), (3, "INSERT INTO t VALUES (3); PRAGMA wal_checkpoint(TRUNCATE)")]
    {
        sqlite(&rig.app, sql);
        refused(&mirror(arg(&rig.app), rig.url(), &[]), "--adopt");
        rig.insert(10 + n);
        rig.service.kill();
        rig.service.restart();
    }
    assert_eq!(rig.rows(), [1, 10, 12, 13]);
    let status = rig.status();
    assert_eq!((&status["source"], &status["generation"]), (&Value::Null, &json!(1)));
    assert!(status["promoted_from"].as_str().unwrap().ends_with(arg(&rig.app)), "{status}");
    // Raw commits are what mirrors send.
    let answer = rig.call("POST", &format!("/logs/app/commits?from={}", status["next"]), b"");
    assert_eq!(answer.refusal(), (409, "promoted".to_owned()));
    let answer = rig.call("PUT", "/logs/app/generations/2", b"");
    assert_eq!(answer.refusal(), (409, "promoted".to_owned()));
    // Taken back, what the clients wrote is in the generation before.
    copied(&mirror(arg(&rig.app), rig.url(), &["--adopt"]));
    assert_eq!(rig.rows(), [1, 2, 3]);
    assert_mirrored(&rig.sql(&["INSERT INTO t VALUES (5)"]), &rig);
    let status = rig.status();
    assert_eq!((&status["promoted_from"], &status["generation"]), (&Value::Null, &json!(2)));
    let old = rig.app.with_file_name("old.db");
    let restored = command(&["restore", &rig.url(), arg(&old), "--generation", "1"]);
    assert!(restored.status.success(), "{restored:?}");
    let kept: i64 = Connection::open(&old).unwrap().query_row("SELECT sum(n) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 1 + 10 + 12 + 13);
}

#[test]
fn promotion_ends_the_mirror_that_follows_and_loses_nothing_it_stored() {
    let rig = Rig::new();
    let follower = Mirror::start(arg(&rig.app), rig.url(), &["--follow"]);
    sqlite(&rig.app, "INSERT INTO t VALUES (2)");
    support::process::until("the row is there", || {
        let answer = rig.sql(&["SELECT n FROM t ORDER BY n"]);
        (answer.status == 200 && answer.text().contains("\"2\"")).then_some(())
    });
    let promoted = command(&["promote", &rig.url()]);
    let said = String::from_utf8_lossy(&promoted.stdout).into_owned();
    assert!(promoted.status.success() && said.contains("clients write it from offset"), "{promoted:?}");
    rig.insert(10);
    sqlite(&rig.app, "INSERT INTO t VALUES (3)");
    refused(&follower.ended(), "handed over to its clients");
    assert_eq!(rig.rows(), [1, 2, 10]);
    // Nothing happens the second time.
    let again = command(&["promote", &rig.url()]);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(rig.rows(), [1, 2, 10]);
}

#[test]
fn a_log_that_is_fed_from_one_source_takes_commits_and_bases_of_no_other() {
    let rig = Rig::mirrored(&[]);
    let status = rig.status();
    let next = status["next"].as_u64().unwrap();
    let append = format!("/logs/app/commits?from={next}");
    assert_mirrored(&rig.call("POST", &append, b""), &rig);
    assert_mirrored(&rig.call("PUT", "/logs/app/generations/2", b""), &rig);
    assert_mirrored(&rig.call("POST", &format!("{append}&upload=a&at=0&total=0"), b""), &rig);
    assert_mirrored(&rig.call("PUT", "/logs/app/generations/2?upload=b&at=0&total=0", b""), &rig);
    assert_eq!(rig.status()["next"], status["next"]);
    // A copy of the database elsewhere is another source, unless its pages prove that it is the same database.
    let copy = rig.app.with_file_name("copy.db");
    sqlite(&rig.app, &format!("PRAGMA wal_checkpoint(TRUNCATE); VACUUM INTO '{}'", arg(&copy)));
    sqlite(&copy, "INSERT INTO t VALUES (9)");
    refused(&mirror(arg(&copy), rig.url(), &[]), "--adopt");
    assert_eq!(rig.rows(), [1]);
}

#[test]
fn a_source_takes_a_log_over_only_where_that_ends() {
    let rig = Rig::new();
    let client = rig.client();
    rig.service.call(client.create(LogFormat::Wal, None)).unwrap();
    let answer = rig.sql(&["CREATE TABLE t (n)"]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let next = rig.status()["next"].as_u64().unwrap();
    let source = |offset, generation| LogSource {
        identity: "host:/srv/app.db".into(),
        generation: Generation(generation),
        offset: Offset(offset),
        salts: [0, 0],
        frames: 0,
        checksum: format!("{:016x}", 0),
        log_checksum: format!("{:016x}", 0),
        awaits_base: false,
    };
    let code = |offset, generation| match rig.service.call(client.set_source(&source(offset, generation), false)) {
        Err(ClientError::Refused { status: 409, body }) => body.error,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(next - 1, 1), "gap");
    assert_eq!(code(next + 1, 1), "gap");
    assert_eq!(code(next, 2), "ended");
    rig.insert(1);
    let next = rig.status()["next"].as_u64().unwrap();
    rig.service.call(client.set_source(&source(next, 1), false)).unwrap();
    assert_eq!(rig.sql(&["INSERT INTO t VALUES (2)"]).refusal(), (409, "mirrored".to_owned()));
    // A roll-over changes nothing of that.
    assert!(command(&["checkpoint", &rig.url()]).status.success());
    assert_eq!(rig.sql(&["INSERT INTO t VALUES (2)"]).refusal(), (409, "mirrored".to_owned()));
    assert_eq!(rig.rows(), [1]);
}

#[test]
fn what_cannot_be_released_is_refused_before_anything_is_copied() {
    let rig = Rig::new();
    let dir = rig.app.with_file_name("copy");
    for (sink, said) in [(arg(&dir), "is a path"), ("libsql+http://127.0.0.1:1/app", "always written by its clients")] {
        let ended = command(&["mirror", arg(&rig.app), sink, "--release"]);
        let error = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.code() == Some(2) && error.contains(said), "{ended:?}");
    }
    assert!(!dir.exists());
    let commitlog = rig.service.url("plain");
    copied(&mirror("segments/commitlog/whole", &commitlog, &[]));
    let promoted = command(&["promote", &commitlog]);
    assert!(
        !promoted.status.success() && String::from_utf8_lossy(&promoted.stderr).contains("commitlog"),
        "{promoted:?}"
    );
}

#[test]
fn adoption_takes_a_log_back_while_the_application_goes_on_in_the_same_wal() {
    let rig = Rig::new();
    let open = || {
        let app = Connection::open(&rig.app).unwrap();
        // Its WAL stays when it is closed.
        app.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
        app
    };
    let app = open();
    app.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    copied(&mirror(arg(&rig.app), rig.url(), &[]));
    app.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    app.close().unwrap();
    copied(&mirror(arg(&rig.app), rig.url(), &["--release"]));
    rig.insert(10);
    let app = open();
    app.execute_batch("INSERT INTO t VALUES (4)").unwrap();
    refused(&mirror(arg(&rig.app), rig.url(), &[]), "--adopt");
    copied(&mirror(arg(&rig.app), rig.url(), &["--adopt"]));
    assert_eq!(rig.rows(), [1, 2, 3, 4]);
    let status = rig.status();
    assert_eq!((&status["generation"], &status["promoted_from"]), (&json!(2), &Value::Null));
    app.execute_batch("INSERT INTO t VALUES (5)").unwrap();
    copied(&mirror(arg(&rig.app), rig.url(), &[]));
    assert_eq!(rig.rows(), [1, 2, 3, 4, 5]);
}

#[test]
fn a_log_whose_base_has_not_come_yet_holds_no_database_for_anybody() {
    let mut rig = Rig::awaiting_a_base();
    for restarted in [false, true] {
        if restarted {
            rig.service.kill();
            rig.service.restart();
        }
        let said = |answer: &Answer| {
            assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{}", answer.text());
            assert!(answer.text().contains("host:/srv/app.db"), "{}", answer.text());
            assert!(answer.text().contains("logmirror promote URL"), "{}", answer.text());
        };
        said(&rig.call("GET", "/logs/app/base", b""));
        said(&rig.call("GET", "/logs/app/export/1", b""));
        said(&rig.call("POST", "/logs/app/pull-updates", b""));
        said(&rig.call("GET", "/logs/app/page-sums?key=1", b""));
        said(&rig.sql(&["SELECT 1"]));
        let out = rig.app.with_file_name("out.db");
        let restored = command(&["restore", &rig.url(), arg(&out)]);
        assert!(!restored.status.success() && !out.exists(), "{restored:?}");
        assert!(!command(&["verify", &rig.url()]).status.success());
        assert!(rig.status()["warning"].as_str().unwrap().contains("host:/srv/app.db"));
    }
    // The mirror that brings it, or another one.
    copied(&mirror(arg(&rig.app), rig.url(), &[]));
    assert_eq!(rig.rows(), [1]);
    assert_eq!(rig.status()["warning"], Value::Null);
    assert!(command(&["verify", &rig.url()]).status.success());
}

#[test]
fn a_log_whose_base_never_comes_is_handed_over_empty_and_takes_writers_of_every_kind() {
    for restarted in [false, true] {
        let mut rig = Rig::awaiting_a_base();
        let promoted = command(&["promote", &rig.url()]);
        assert!(promoted.status.success(), "{promoted:?}");
        if restarted {
            rig.service.kill();
            rig.service.restart();
        }
        let status = rig.status();
        let of_writers = [&status["source"], &status["promoted_from"], &status["warning"]];
        assert_eq!(of_writers, [&Value::Null; 3], "{status}");
        let out = rig.app.with_file_name("out.db");
        assert!(command(&["restore", &rig.url(), arg(&out)]).status.success());
        assert!(command(&["verify", &rig.url()]).status.success());
        if restarted {
            // Clients.
            assert_eq!(rig.sql(&["CREATE TABLE t (n)", "INSERT INTO t VALUES (7)"]).status, 200);
            assert_eq!(rig.rows(), [7]);
            refused(&mirror(arg(&rig.app), rig.url(), &[]), "--adopt");
            assert_eq!(rig.rows(), [7]);
        } else {
            // A mirror of another database than the one that was awaited.
            copied(&mirror(arg(&rig.app), rig.url(), &[]));
            assert_eq!(rig.rows(), [1]);
        }
    }
}

#[test]
fn an_empty_database_is_no_base_that_has_not_come() {
    let mut rig = Rig::new();
    let empty = rig.app.with_file_name("empty.db");
    std::fs::write(&empty, b"").unwrap();
    copied(&mirror(arg(&empty), rig.url(), &[]));
    for _ in 0..2 {
        assert_eq!(rig.sql(&["SELECT 1"]).status, 200);
        assert!(rig.status()["source"]["awaits_base"].is_null());
        rig.service.kill();
        rig.service.restart();
    }
}

#[test]
fn what_no_source_is_called_is_refused() {
    let rig = Rig::mirrored(&[]);
    for identity in [String::new(), "a\nb".to_owned(), "a\0b".to_owned(), "x".repeat(10_000)] {
        let mut source = rig.status()["source"].clone();
        source["identity"] = identity.into();
        let answer = rig.call("PUT", "/logs/app/source", source.to_string().as_bytes());
        assert_eq!(answer.refusal(), (400, "invalid".to_owned()));
    }
}

#[test]
fn what_does_not_fit_is_not_taken_from_the_clients_by_adoption() {
    let rig = Rig::mirrored(&["--release"]);
    rig.insert(10);
    let other = rig.service.url("other");
    rig.service.call(rig.service.client("other").create(LogFormat::Wal, None)).unwrap();
    let body = json!({"requests": [{"type": "execute", "stmt": {"sql": "CREATE TABLE other (x)"}}]}).to_string();
    assert_eq!(rig.call("POST", "/logs/other/v2/pipeline", body.as_bytes()).status, 200);
    let ended = mirror(&other, rig.url(), &["--adopt"]);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    rig.insert(11);
    assert_eq!(rig.rows(), [1, 10, 11]);
}

#[test]
fn a_copy_of_a_log_is_rolled_over_with_its_source_and_not_by_request() {
    let rig = Rig::mirrored(&[]);
    sqlite(&rig.app, "INSERT INTO t VALUES (2)");
    copied(&mirror(arg(&rig.app), rig.url(), &[]));
    let copy = rig.service.url("copy");
    copied(&mirror(rig.url(), &copy, &[]));
    let rolled = command(&["checkpoint", &copy]);
    let said = String::from_utf8_lossy(&rolled.stderr).into_owned();
    assert!(!rolled.status.success() && said.contains(&rig.url()), "{rolled:?}");
    assert!(command(&["checkpoint", &rig.url()]).status.success());
    copied(&mirror(rig.url(), &copy, &[]));
    assert_eq!(rig.call("GET", "/logs/copy", b"").json()["generation"], 2);
}

#[test]
fn an_empty_file_in_the_place_of_a_mirrored_database_is_refused() {
    let rig = Rig::mirrored(&[]);
    for ending in ["", "-wal", "-shm"] {
        let _absent = std::fs::remove_file(rig.app.with_file_name(format!("app.db{ending}")));
    }
    std::fs::write(&rig.app, b"").unwrap();
    refused(&mirror(arg(&rig.app), rig.url(), &[]), "is its disk mounted?");
    assert_eq!((rig.rows(), &rig.status()["generation"]), (vec![1], &json!(1)));
    copied(&mirror(arg(&rig.app), rig.url(), &["--adopt"]));
    assert_eq!(rig.status()["generation"], 2);
}
