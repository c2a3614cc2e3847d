//! The first base of a database in use: nobody waits for the service with the locks of the database in hand.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::support::process::{Mirror, Service, arg, mirror, until};
use super::support::sqlite::Sqlite;
use super::{caught_up, is_done, stands};

#[test]
fn checkpoints_go_on_while_a_service_takes_nothing_of_the_first_base() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&[
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = OFF",
        "CREATE TABLE t (x)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) INSERT INTO t SELECT randomblob(3500) FROM n",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "INSERT INTO t VALUES ('in the WAL')",
    ]);
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    // The next generation's base is a draft while it is received.
    until("the base to be received", || {
        let files = fs::read_dir(data.path().join("logs/app")).ok()?;
        let found = files.flatten().any(|file| file.file_name().to_string_lossy().ends_with(".draft"));
        found.then_some(())
    });
    let process = Pid::from_raw(i32::try_from(service.id()).unwrap()).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    until("a checkpoint", || {
        let said = sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)");
        std::thread::sleep(Duration::from_millis(10));
        (said[0][0] == json!(0)).then_some(())
    });
    sqlite.rows("INSERT INTO t VALUES ('while it was stopped')");
    sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    kill_process(process, Signal::CONT).unwrap();
    caught_up(&service, &app);
    assert_eq!(stands(&service, "app").0, 1);
    let ended = follower.interrupt();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    is_done(&mirror(arg(&app), service.url("app"), &[]), 0);
}

#[test]
fn the_second_of_two_mirrors_of_a_database_to_a_log_waits_for_the_first() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    let first = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    caught_up(&service, &app);
    let before = stands(&service, "app").1;
    let second = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    second.wait_for("the second to wait", |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|error| error.contains("another mirror"))
    });
    for _ in 0..20 {
        sqlite.rows("INSERT INTO t VALUES (randomblob(100))");
    }
    caught_up(&service, &app);
    assert_eq!(stands(&service, "app").1, before + 20, "each frame is there once");
    // When the first has ended, in whatever way, the second goes on.
    first.kill();
    sqlite.rows("INSERT INTO t VALUES ('for the second')");
    caught_up(&service, &app);
    let ended = second.interrupt();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.lines.iter().all(|line| line["event"] != "compared"), "{ended:?}");
    assert_eq!(stands(&service, "app").1, before + 21);
}

#[test]
fn mirrors_of_a_database_to_two_logs_of_a_service_both_run() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    let names = ["app", "other"];
    let mirrors = names.map(|log| Mirror::start(arg(&app), service.url(log), &["--follow"]));
    for round in 0..3 {
        sqlite.rows(&format!("INSERT INTO t VALUES ({round})"));
        for log in names {
            until("both logs to hold it", || (held(&service, log) == round + 2).then_some(()));
        }
    }
    for mirror in mirrors {
        let ended = mirror.interrupt();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.lines.iter().all(|line| line["event"] != "retrying"), "{ended:?}");
    }
}

/// Rows that a log holds; 0 while it cannot be restored.
fn held(service: &Service, log: &str) -> i64 {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    if Mirror::command(&["restore", &service.url(log), arg(&out), "--json"]).ended().code != Some(0) {
        return 0;
    }
    let db = rusqlite::Connection::open(&out).unwrap();
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap_or(0)
}

#[test]
fn a_mirror_keeps_others_off_a_log_that_was_made_again_since_it_started() {
    let data = tempfile::tempdir().unwrap();
    let mut service = Service::start(data.path());
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    let first = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    until("the log to hold it", || (held(&service, "app") == 1).then_some(()));
    service.kill();
    fs::remove_dir_all(data.path().join("logs")).unwrap();
    service.restart();
    until("the log to be made again", || (held(&service, "app") == 1).then_some(()));
    let second = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    second.wait_for("the second to wait", |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|error| error.contains("another mirror"))
    });
    assert_eq!(first.interrupt().code, Some(0));
    sqlite.rows("INSERT INTO t VALUES (2)");
    until("the second to go on", || (held(&service, "app") == 2).then_some(()));
    assert_eq!(second.interrupt().code, Some(0));
}

#[test]
fn a_base_is_sent_with_its_digest() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    sqlite.close();
    let (address, sent) = recorded(service.address().to_owned());
    is_done(&mirror(arg(&app), format!("http://{address}/logs/app"), &[]), 0);
    let sent = String::from_utf8_lossy(&sent.lock().unwrap()).to_ascii_lowercase();
    let request = sent.split("put /logs/app/generations/1").nth(1).expect("the base was sent");
    let head = request.split("\r\n\r\n").next().unwrap();
    assert!(head.contains("repr-digest: sha-256=:"), "{head}");
}

#[test]
fn a_database_that_is_replaced_by_one_with_other_pages_while_its_base_is_sent_is_followed() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let dir = tempfile::tempdir().unwrap();
    let [app, other] = ["app.db", "other.db"].map(|name| dir.path().join(name));
    for (path, page_size) in [(&app, 1024), (&other, 4096)] {
        let mut sqlite = Sqlite::open(path);
        sqlite.run(&[
            &format!("PRAGMA page_size = {page_size}"),
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE t (x)",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) INSERT INTO t SELECT randomblob(3500) FROM n",
        ]);
        sqlite.close();
    }
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    until("the base to be received", || {
        let files = fs::read_dir(data.path().join("logs/app")).ok()?;
        let found = files.flatten().any(|file| file.file_name().to_string_lossy().ends_with(".draft"));
        found.then_some(())
    });
    let process = Pid::from_raw(i32::try_from(service.id()).unwrap()).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    fs::rename(&other, &app).unwrap();
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["INSERT INTO t VALUES ('with pages of 4096 bytes')"]);
    kill_process(process, Signal::CONT).unwrap();
    caught_up(&service, &app);
    let ended = follower.interrupt();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(stands(&service, "app").0, 2, "the pages of another size have a generation of their own");
}

/// A proxy before a service, and what was sent through it.
fn recorded(service: String) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, sent) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
    let all = sent.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(&service).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let all = all.clone();
            std::thread::spawn(move || {
                let mut piece = [0; 16 << 10];
                while let Ok(count @ 1..) = from.read(&mut piece) {
                    all.lock().unwrap().extend_from_slice(&piece[..count]);
                    if to.write_all(&piece[..count]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Write);
            });
            let (mut from, mut to) = (server, client);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    (address, sent)
}

#[test]
fn comparing_the_pages_of_a_database_with_a_rollback_journal_is_reported_once() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open_within(&app, 30);
    sqlite.run(&["CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    for n in 0..5 {
        sqlite.rows(&format!("INSERT INTO t VALUES ({n})"));
        caught_up(&service, &app);
    }
    let ended = follower.interrupt();
    let told = ended.lines.iter().filter(|line| line["event"] == "compared").count();
    assert_eq!(told, 1, "{ended:?}");
}
