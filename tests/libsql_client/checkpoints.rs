//! Databases that SQLite checkpoints as it does by default, pushed to the service's own libSQL endpoint.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use logmirror::format::LogFormat;

use crate::fake::Fault;
use crate::sqlite::{dump, rows, run_and_die};
use crate::support::process::{Mirror, Service, arg, mirror, until};
use crate::support::sqlite::{Sqlite, run};
use crate::{Stage, beside, litter, set_aside};

fn url(service: &Service) -> String {
    format!("libsql+{}", service.url("app"))
}

fn service(data: &Path) -> Service {
    let service = Service::start(data);
    service.call(service.client("app").create(LogFormat::Wal, None)).unwrap();
    service
}

/// What a replica of the log holds.
fn held(service: &Service) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    let restored = Mirror::command(&["restore", &service.url("app"), arg(&out), "--json"]).ended();
    assert_eq!(restored.code, Some(0), "{restored:?}");
    dump(&out)
}

fn compared(lines: &[serde_json::Value]) -> usize {
    lines.iter().filter(|line| line["event"] == "compared").count()
}

#[test]
fn a_database_that_checkpoints_by_itself_is_followed_through_restarts_and_checkpoints_of_each_mode() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = service(data.path());
    let path = dir.path().join("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)"]);
    let follower = Mirror::start(arg(&path), url(&service), &["--follow"]);
    follower.wait_for("its start", |line| line["event"] == "started");
    for round in 0..10 {
        for _ in 0..500 {
            app.rows("INSERT INTO t (x) VALUES (randomblob(300))");
        }
        match round % 5 {
            0 => drop(app.rows("PRAGMA wal_checkpoint(TRUNCATE)")),
            1 => app.reopen(),
            2 => drop(app.rows("PRAGMA wal_checkpoint(RESTART)")),
            3 => drop(app.rows("UPDATE t SET x = 'changed' WHERE id % 10 = 0")),
            _ => drop(app.rows("VACUUM")),
        }
    }
    until("the log holds all of it", || (held(&service) == dump(&path)).then_some(()));
    let lines = follower.lines();
    assert!(compared(&lines) <= 2, "{} comparisons", compared(&lines));
    assert!(lines.iter().all(|line| line["event"] != "failed" && line["event"] != "error"), "{lines:?}");
    assert_eq!(follower.terminate().code, Some(0));
    // What was committed while it did not run is found when it runs again.
    app.rows("DELETE FROM t WHERE id % 3 = 0");
    app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    app.rows("INSERT INTO t (x) VALUES ('after')");
    let again = mirror(arg(&path), url(&service), &[]);
    assert_eq!((again.code, compared(&again.lines)), (Some(0), 1), "{again:?}");
    assert_eq!(held(&service), dump(&path));
}

#[test]
fn an_application_that_opens_writes_and_closes_is_followed_and_so_it_is_after_the_mirror_was_killed() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = service(data.path());
    let path = dir.path().join("app.db");
    run(&path, "PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, x)").unwrap();
    let mut follower = Mirror::start(arg(&path), url(&service), &["--follow"]);
    follower.wait_for("its start", |line| line["event"] == "started");
    for number in 0..40 {
        run(&path, &format!("INSERT INTO t (x) VALUES (hex(zeroblob({})))", 100 * number)).unwrap();
        if number % 10 == 5 {
            follower.kill();
            run(&path, "INSERT INTO t (x) VALUES ('nobody looks')").unwrap();
            follower = Mirror::start(arg(&path), url(&service), &["--follow"]);
        }
        if number % 8 == 7 {
            until("the log holds all of it", || (held(&service) == dump(&path)).then_some(()));
        }
    }
    until("the log holds all of it", || (held(&service) == dump(&path)).then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_mirror_that_is_run_now_and_then_sends_what_differs_and_nothing_twice() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = service(data.path());
    let path = dir.path().join("app.db");
    run(&path, "PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, x)").unwrap();
    run(&path, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO t SELECT i, hex(i) FROM n")
        .unwrap();
    for number in 0..5 {
        run(&path, &format!("UPDATE t SET x = {number} WHERE id = {}", number * 900 + 1)).unwrap();
        let done = mirror(arg(&path), url(&service), &[]);
        assert_eq!(done.code, Some(0), "{done:?}");
        assert_eq!(held(&service), dump(&path));
        let (again, bytes) = (mirror(arg(&path), url(&service), &[]), done.last("done")["bytes"].as_u64().unwrap());
        assert_eq!(again.last("done")["bytes"], 0, "{again:?}");
        assert!(number == 0 || bytes <= 3 * 4120, "{bytes} bytes for one row");
    }
}

#[test]
fn a_mirror_that_is_killed_again_and_again_while_the_application_writes_loses_and_doubles_nothing() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut service = service(data.path());
    let path = dir.path().join("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF", "PRAGMA wal_autocheckpoint = 15"]);
    app.run(&["CREATE TABLE t (id INTEGER PRIMARY KEY, x)"]);
    let (written, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                app.rows("INSERT INTO t (x) VALUES (randomblob(2000))");
                app.rows("UPDATE t SET x = x || 'more' WHERE id = (SELECT max(id) / 2 FROM t)");
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0..12 {
            let flags: &[&str] = if round % 3 == 1 { &["--follow", "--batch", "3"] } else { &["--follow"] };
            let follower = Mirror::start(arg(&path), url(&service), flags);
            let some_more = written.load(Ordering::Relaxed) + 10 + 13 * round % 40;
            until("more was written", || (written.load(Ordering::Relaxed) > some_more).then_some(()));
            if round == 5 {
                service.kill();
                service.restart();
            }
            let ended = follower.kill();
            assert!(!ended.errors.contains("error:"), "round {round}: {}", ended.errors);
        }
        over.store(true, Ordering::Relaxed);
        writing.join().unwrap();
    });
    let last = mirror(arg(&path), url(&service), &[]);
    assert_eq!(last.code, Some(0), "{last:?}");
    assert_eq!(held(&service), dump(&path));
    assert_eq!(mirror(arg(&path), url(&service), &[]).last("done")["bytes"], 0, "nothing is sent twice");
}

#[test]
fn a_push_goes_on_when_the_service_rolls_the_log_over() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = service(data.path());
    let path = dir.path().join("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)"]);
    let follow = || Some(Mirror::start(arg(&path), url(&service), &["--follow"]));
    let mut follower = follow();
    for round in 0..8 {
        for _ in 0..20 {
            app.rows("INSERT INTO t (x) VALUES (randomblob(300))");
        }
        until("the log holds all of it", || (held(&service) == dump(&path)).then_some(()));
        if round % 3 == 2 {
            follower.take().unwrap().kill();
            app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
        }
        service.call(service.client("app").checkpoint(false)).unwrap();
        if round % 3 == 2 {
            app.rows("UPDATE t SET x = 1 WHERE id = 5");
            follower = follow();
        }
    }
    until("the log holds all of it", || (held(&service) == dump(&path)).then_some(()));
    let status = service.call(service.client("app").status()).unwrap();
    assert_eq!(status.generation.unwrap().0, 9);
    assert_eq!(follower.unwrap().terminate().code, Some(0));
}

#[test]
fn a_commit_that_does_not_count_yet_is_not_pushed() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = service(data.path());
    let path = dir.path().join("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES ('counts')"]);
    let before = dump(&path);
    // SQLite syncs the WAL between the frames of a commit and their place in the wal-index.
    let index = File::options().read(true).write(true).open(dir.path().join("app.db-shm")).unwrap();
    let (mut headers, mut after) = ([0; 96], [0; 96]);
    index.read_exact_at(&mut headers, 0).unwrap();
    app.rows("INSERT INTO t VALUES ('may fail')");
    index.read_exact_at(&mut after, 0).unwrap();
    index.write_all_at(&headers, 0).unwrap();
    let pushed = mirror(arg(&path), url(&service), &[]);
    assert_eq!((pushed.code, held(&service)), (Some(0), before), "{pushed:?}");
    index.write_all_at(&after, 0).unwrap();
    let pushed = mirror(arg(&path), url(&service), &[]);
    assert_eq!((pushed.code, held(&service)), (Some(0), dump(&path)), "{pushed:?}");
}

#[test]
fn a_file_that_is_put_in_the_place_of_a_replica_under_its_wal_is_set_aside() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = service(data.path());
    let [path, other, replica] = ["app.db", "other.db", "replica.db"].map(|name| dir.path().join(name));
    for (file, rows) in [(&path, 2000), (&other, 3000)] {
        let rows = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) INSERT INTO t (x) SELECT hex(randomblob(30)) FROM n"
        );
        run(file, &format!("PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, x); {rows}")).unwrap();
    }
    let push = || assert_eq!(mirror(arg(&path), url(&service), &[]).code, Some(0));
    push();
    assert_eq!(Mirror::command(&["checkpoint", &service.url("app"), "--json"]).ended().code, Some(0));
    run(&path, "INSERT INTO t (x) VALUES ('in the next generation')").unwrap();
    push();
    let put = |what: &str| {
        let copy = dir.path().join(what);
        std::fs::copy(&other, &copy).unwrap();
        std::fs::rename(&copy, &replica).unwrap();
    };
    let pulled = || mirror(url(&service), arg(&replica), &[]);
    assert_eq!(pulled().code, Some(0));
    put("while it is closed");
    let again = pulled();
    assert_eq!((again.code, dump(&replica)), (Some(0), dump(&path)), "{again:?}");
    let follower = Mirror::start(url(&service), arg(&replica), &["--follow"]);
    follower.wait_for("its start", |line| line["event"] == "started");
    put("while it is followed");
    run(&path, "INSERT INTO t (x) VALUES ('more')").unwrap();
    push();
    // Until then whoever opens it finds the other file with that WAL.
    until("the file to be set aside", || (set_aside(&replica).len() == 2).then_some(()));
    until("the replica to be made again", || (dump(&replica) == dump(&path)).then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_server_that_takes_nothing_while_it_goes_into_its_next_generation_is_asked_again() {
    let stage = Stage::new();
    let path = stage.path("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)"]);
    let follower = Mirror::start(arg(&path), stage.fake.url(), &["--follow"]);
    follower.wait_for("its start", |line| line["event"] == "started");
    // From here on it holds the locks.
    app.rows("INSERT INTO t VALUES (1)");
    until("the first rows", || (stage.fake.frames() == 3).then_some(()));
    let answer = serde_json::json!({"status": "conflict", "generation": 1, "max_frame_no": 3}).to_string();
    stage.fake.fault("POST sync", Fault::Answer(200, answer));
    app.rows("INSERT INTO t VALUES (2)");
    until("the next row", || (stage.fake.frames() > 3).then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_push_to_a_server_that_gives_out_no_frames_goes_on_when_its_wal_is_truncated_also_after_a_restart() {
    let stage = Stage::new();
    stage.fake.store().first_of_its_kind = true;
    let path = stage.path("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    let truncate = |app: &mut Sqlite| {
        until("its WAL is empty", || {
            app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
            (std::fs::metadata(beside(&path, "-wal")).unwrap().len() == 0).then_some(())
        });
    };
    let is_held = || {
        stage.fake.store().first_of_its_kind = false;
        let replica = stage.path("replica.db");
        stage.pull(&replica).unwrap();
        stage.fake.store().first_of_its_kind = true;
        (dump(&replica) == dump(&path)).then_some(())
    };
    let follower = Mirror::start(arg(&path), stage.fake.url(), &["--follow"]);
    until("the first rows", || (stage.fake.frames() == 3).then_some(()));
    app.rows("INSERT INTO t VALUES (2)");
    until("the second row", || (stage.fake.frames() == 4).then_some(()));
    truncate(&mut app);
    stage.fake.seen();
    until("the server is checked while nothing is sent", || {
        stage.fake.store().seen.iter().any(|seen| seen.call.starts_with("GET sync")).then_some(())
    });
    app.rows("INSERT INTO t VALUES (3)");
    until("the third row", || (stage.fake.frames() > 4).then_some(()));
    // Such a server cannot be asked whether it took what was sent last.
    follower.wait_durable(u64::from(stage.fake.frames()) + 1);
    assert_eq!(follower.terminate().code, Some(0));
    assert_eq!(is_held(), Some(()));
    // What was committed while it did not run is in no WAL.
    app.rows("INSERT INTO t VALUES (4)");
    truncate(&mut app);
    let follower = Mirror::start(arg(&path), stage.fake.url(), &["--follow"]);
    follower.wait_for("that it has pushed", |line| line["event"] == "progress" && line["bytes"].as_u64() > Some(0));
    assert_eq!(follower.terminate().code, Some(0));
    assert_eq!(is_held(), Some(()));
}

#[test]
fn an_answer_that_is_not_believed_leaves_the_wal_of_a_closed_database_where_it_is() {
    for answer in [
        r#"{"status":"ok","generation":1,"max_frame_no":99}"#,
        r#"{"status":"conflict","generation":1,"max_frame_no":3}"#,
    ] {
        let stage = Stage::new();
        let (path, replica) = (stage.path("app.db"), stage.path("replica.db"));
        let mut app = Sqlite::open(&path);
        app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)"]);
        let follower = Mirror::start(arg(&path), stage.fake.url(), &["--follow"]);
        app.rows("INSERT INTO t VALUES (1)");
        until("the first rows", || (stage.fake.frames() == 3).then_some(()));
        for _ in 0..40 {
            stage.fake.fault("POST sync", Fault::Answer(200, answer.to_owned()));
        }
        app.rows("INSERT INTO t VALUES (2)");
        // A wait in which there is time to close it.
        follower.wait_for("that it waits", |line| line["after_ms"].as_u64() > Some(800));
        app.close();
        assert!(beside(&path, "-wal").exists(), "{answer}: it was checkpointed away");
        stage.fake.store().faults.clear();
        until("the next row", || (stage.fake.frames() == 4).then_some(()));
        assert_eq!(follower.terminate().code, Some(0));
        stage.pull(&replica).unwrap();
        assert_eq!(dump(&replica), dump(&path), "{answer}");
    }
}

#[test]
fn a_push_that_follows_ends_at_a_server_that_keeps_losing_what_it_takes() {
    let stage = Stage::new();
    let path = stage.path("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)"]);
    let follower = Mirror::start(arg(&path), stage.fake.url(), &["--follow"]);
    app.rows("INSERT INTO t VALUES (1)");
    until("the first rows", || (stage.fake.frames() == 3).then_some(()));
    // Frame 3 of the server is not frame 3 of the WAL any more.
    app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    app.rows("INSERT INTO t VALUES (2)");
    until("the second row", || (stage.fake.frames() == 4).then_some(()));
    let lower = r#"{"status":"ok","generation":1,"max_frame_no":4}"#;
    for _ in 0..4 {
        stage.fake.fault("POST sync", Fault::Answer(200, lower.into()));
    }
    app.rows("INSERT INTO t VALUES (3)");
    let ended = follower.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error().contains("loses"), "{ended:?}");
}

#[test]
fn a_replica_of_a_service_goes_on_after_its_last_reader_closed_it() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = service(data.path());
    let [path, replica] = ["app.db", "replica.db"].map(|name| dir.path().join(name));
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)"]);
    for round in 0..6 {
        for _ in 0..[3, 1, 0][round % 3] {
            app.rows("INSERT INTO t VALUES (randomblob(300))");
        }
        assert_eq!(mirror(arg(&path), url(&service), &[]).code, Some(0));
        for _ in 0..2 {
            let pulled = mirror(url(&service), arg(&replica), &[]);
            assert_eq!((pulled.code, dump(&replica)), (Some(0), dump(&path)), "round {round}: {pulled:?}");
            assert_eq!(run(&replica, "PRAGMA integrity_check").unwrap(), "ok\n");
        }
    }
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.contains("aside")), "it was never made again");
}

#[test]
fn a_replica_of_a_log_without_a_base_takes_the_first_one() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(&dir.path().join("data"));
    let [app, replica, followed] = ["app.db", "replica.db", "followed.db"].map(|name| dir.path().join(name));
    assert_eq!(mirror(url(&service), arg(&replica), &[]).code, Some(0));
    let follower = Mirror::start(url(&service), arg(&followed), &["--follow"]);
    follower.wait_durable(1);
    run(&app, &format!("PRAGMA journal_mode=WAL; {}", rows(5))).unwrap();
    let ended = mirror(arg(&app), service.url("app"), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = mirror(url(&service), arg(&replica), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(dump(&replica), dump(&app));
    // A connection to the file that is set aside would keep it.
    let bytes = |path| std::fs::metadata(path).map(|found| found.len()).ok();
    let is_done = || bytes(&followed) == bytes(&app) && litter(&followed).is_empty();
    until("the follower has it, and nothing else", || is_done().then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
    assert_eq!(dump(&followed), dump(&app));
    for replica in [&replica, &followed] {
        assert_eq!(litter(replica), Vec::<String>::new());
    }
}

#[test]
fn a_replica_of_a_later_generation_than_the_servers_is_made_again_with_adopt() {
    let dir = tempfile::tempdir().unwrap();
    let [former, service] = ["former", "data"].map(|name| service(&dir.path().join(name)));
    let [app, other, replica] = ["app.db", "other.db", "replica.db"].map(|name| dir.path().join(name));
    run_and_die(&app, &rows(5));
    assert_eq!(mirror(arg(&app), url(&former), &[]).code, Some(0));
    former.call(former.client("app").checkpoint(false)).unwrap();
    assert_eq!(mirror(url(&former), arg(&replica), &[]).code, Some(0));
    run_and_die(&other, &rows(2));
    assert_eq!(mirror(arg(&other), url(&service), &[]).code, Some(0));
    let before = dump(&replica);
    let ended = mirror(url(&service), arg(&replica), &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error().contains("--adopt"), "{ended:?}");
    assert_eq!(dump(&replica), before);
    let follower = Mirror::start(url(&service), arg(&replica), &["--follow"]);
    follower.wait_for("that it waits", |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|text| text.contains("--adopt"))
    });
    assert_eq!(follower.terminate().code, Some(0));
    let ended = mirror(url(&service), arg(&replica), &["--adopt"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(dump(&replica), dump(&other));
    assert_eq!(set_aside(&replica).iter().map(|path| dump(path)).collect::<Vec<_>>(), [before]);
}

#[test]
fn a_push_to_a_server_that_has_no_such_log_any_more_is_never_done() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut service = service(data.path());
    for is_restarted in [false, true] {
        let path = dir.path().join(format!("{is_restarted}.db"));
        let empty = Service::start(&dir.path().join(format!("{is_restarted}")));
        let mut app = Sqlite::open(&path);
        app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
        if is_restarted {
            app.reopen();
            app.rows("INSERT INTO t VALUES (2)");
        }
        let name = format!("log-{is_restarted}");
        service.call(service.client(&name).create(LogFormat::Wal, None)).unwrap();
        let to = |service: &Service| format!("libsql+{}", service.url(&name));
        assert_eq!(mirror(arg(&path), to(&service), &[]).code, Some(0));
        let ended = mirror(arg(&path), to(&empty), &[]);
        assert_eq!(ended.code, Some(3), "{is_restarted}: {ended:?}");
        assert!(ended.error().contains("there is no log"), "{is_restarted}: {ended:?}");
        assert_eq!(mirror(arg(&path), to(&service), &[]).code, Some(0));
    }
    // One that follows notices it while its application is idle.
    let path = dir.path().join("followed.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    let follower = Mirror::start(arg(&path), url(&service), &["--follow"]);
    follower.wait_durable(1 + u64::from(crate::frames(&path)));
    service.kill();
    std::fs::remove_dir_all(data.path()).unwrap();
    service.restart();
    follower.wait_for("that it has no such log", |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|text| text.contains("there is no log"))
    });
    assert_eq!(follower.terminate().code, Some(0));
}
