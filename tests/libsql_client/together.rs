//! Two pushes of one database at the same time.

use std::sync::Arc;

use logmirror::format::LogFormat;
use tokio::sync::Notify;

use crate::Stage;
use crate::fake::Fault;
use crate::sqlite::{dump, rows};
use crate::support::process::{Mirror, Service, arg, mirror, until};
use crate::support::sqlite::{Sqlite, run};

fn held(service: &Service) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    let restored = Mirror::command(&["restore", &service.url("app"), arg(&out), "--json"]).ended();
    assert_eq!(restored.code, Some(0), "{restored:?}");
    dump(&out)
}

#[test]
fn the_second_of_two_first_pushes_of_a_database_waits_for_the_first() {
    let stage = Stage::new();
    let (db, replica, release) = (stage.path("app.db"), stage.path("replica.db"), Arc::new(Notify::new()));
    // Its pages are in no WAL.
    run(&db, &format!("PRAGMA journal_mode=WAL; {}", rows(100))).unwrap();
    stage.fake.fault("GET info", Fault::Held(release.clone()));
    let first = Mirror::start(arg(&db), stage.fake.url(), &[]);
    until("the first one asks", || (!stage.fake.store().seen.is_empty()).then_some(()));
    let second = Mirror::start(arg(&db), stage.fake.url(), &[]);
    second.wait_for("that it waits, or has pushed", |line| line["event"] == "retrying" || line["event"] == "done");
    release.notify_one();
    for push in [first, second] {
        let ended = push.ended();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    stage.pull(&replica).unwrap();
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn pushes_of_one_database_that_start_together_send_each_frame_once() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let url = format!("libsql+{}", service.url("app"));
    let path = dir.path().join("app.db");
    run(&path, "PRAGMA journal_mode=WAL; CREATE TABLE t(a, b)").unwrap();
    run(&path, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO t SELECT i, hex(zeroblob(900)) FROM n")
        .unwrap();
    let mut app = Sqlite::open(&path);
    app.rows("INSERT INTO t VALUES (1, 'in the WAL')");
    for round in 0..3 {
        let log = service.client("app");
        if round == 0 {
            service.call(log.create(LogFormat::Wal, None)).unwrap();
        }
        let pushes: Vec<_> = (0..3).map(|_| Mirror::start(arg(&path), &url, &[])).collect();
        for push in pushes {
            let ended = push.ended();
            assert_eq!(ended.code, Some(0), "round {round}: {ended:?}");
        }
        assert_eq!(held(&service), dump(&path), "round {round}");
        app.rows("INSERT INTO t VALUES (2, 'more')");
    }
    assert_eq!(mirror(arg(&path), &url, &[]).code, Some(0));
    // Sent once, whoever sent it.
    let next = service.call(service.client("app").status()).unwrap().durable;
    assert_eq!(mirror(arg(&path), &url, &[]).last("done")["bytes"], 0);
    assert_eq!(service.call(service.client("app").status()).unwrap().durable, next);
}

#[test]
fn a_follower_that_starts_while_another_mirror_pushes_goes_on_when_that_one_ends() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    service.call(service.client("app").create(LogFormat::Wal, None)).unwrap();
    let url = format!("libsql+{}", service.url("app"));
    let path = dir.path().join("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    app.rows("INSERT INTO t VALUES (2)");
    let first = Mirror::start(arg(&path), &url, &["--follow"]);
    first.wait_for("its start", |line| line["event"] == "started");
    until("it has pushed all", || (held(&service) == dump(&path)).then_some(()));
    let second = Mirror::start(arg(&path), &url, &["--follow"]);
    let waits = second.wait_for("that it waits", |line| line["event"] == "retrying");
    assert!(waits["error"].as_str().unwrap().contains("another mirror"), "{waits}");
    app.rows("INSERT INTO t VALUES (3)");
    until("the first one goes on", || (held(&service) == dump(&path)).then_some(()));
    first.kill();
    app.rows("INSERT INTO t VALUES (4)");
    until("the second one goes on", || (held(&service) == dump(&path)).then_some(()));
    assert_eq!(second.terminate().code, Some(0));
    // Alone that is not worth waiting for without end, but it is said what it is.
    let first = Mirror::start(arg(&path), &url, &["--follow"]);
    first.wait_for("its start", |line| line["event"] == "started");
    let ended = mirror(arg(&path), &url, &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.error().contains("another mirror"), "{ended:?}");
    // Another server is another matter.
    service.call(service.client("other").create(LogFormat::Wal, None)).unwrap();
    let ended = mirror(arg(&path), format!("libsql+{}", service.url("other")), &["--create=never"]);
    assert!(ended.code == Some(0) || !ended.errors.contains("another mirror"), "{ended:?}");
}
