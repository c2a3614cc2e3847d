//! `logmirror mirror` with a libSQL sync server, as a process.

use std::process::Command;

use crate::Stage;
use crate::fake::Fault;
use crate::sqlite::{self, dump, rows};
use crate::support::process::{Mirror, arg, mirror, until};
use crate::{beside, frames, info};

#[test]
fn it_pushes_and_pulls_and_says_how_far() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    let total = u64::from(frames(&db));
    let ended = mirror(arg(&db), stage.fake.url(), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let [started, done] = &ended.lines[..] else { panic!("{ended:?}") };
    assert_eq!((started["from"].as_u64(), started["source_bytes"].as_u64()), (Some(1), Some(total * 4120)));
    assert_eq!(
        (done["event"].as_str(), done["next"].as_u64(), done["durable"].as_u64()),
        (Some("done"), Some(total + 1), Some(total + 1))
    );
    assert_eq!((done["commits"].as_u64(), done["bytes"].as_u64()), (Some(11), Some(total * 4120)));
    let ended = mirror(stage.fake.url(), arg(&replica), &["--batch=3"]);
    assert_eq!((ended.code, ended.last("done")["next"].as_u64()), (Some(0), Some(total + 1)), "{ended:?}");
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn it_follows_both_ways_while_both_databases_are_in_use() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(3)), stage.path("replica.db"));
    let push = Mirror::start(arg(&db), stage.fake.url(), &["--follow"]);
    let pull = Mirror::start(stage.fake.url(), arg(&replica), &["--follow"]);
    let caught_up = || {
        push.wait_durable(u64::from(frames(&db)) + 1);
        pull.wait_durable(u64::from(frames(&db)) + 1);
    };
    caught_up();
    for round in 4..7 {
        // Opened and closed: without the locks of the mirrors, SQLite would remove either WAL.
        sqlite::run(&db, &format!("PRAGMA wal_autocheckpoint=0; {}", rows(round))).unwrap();
        caught_up();
        let query = "SELECT count(*) FROM t WHERE a = 3";
        let read = until("the replica to be free", || sqlite::run(&replica, query).ok());
        assert_eq!(
            read,
            format!(
                "{}
",
                round - 3
            )
        );
        assert!(beside(&db, "-wal").exists() && beside(&replica, "-wal").exists());
    }
    stage.fake.fault("GET sync", Fault::Reset);
    pull.wait_for("an attempt that failed", |line| line["event"] == "retrying");
    stage.fake.fault("POST", Fault::Reset);
    sqlite::run(&db, &rows(1)).unwrap();
    push.wait_for("an attempt that failed", |line| line["event"] == "retrying");
    caught_up();
    assert_eq!(push.interrupt().code, Some(0));
    assert_eq!(pull.terminate().code, Some(0));
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn a_wrong_token_is_refused_and_changes_nothing() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(3)), stage.path("replica.db"));
    stage.fake.store().token = Some("Bearer right".into());
    for (source, sink) in [(arg(&db), stage.fake.url().as_str()), (&stage.fake.url(), arg(&replica))] {
        let ended = mirror(source, sink, &["--token", "wrong"]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.error().contains("the server answers 401, \"who are you?\""), "{ended:?}");
    }
    assert!(!replica.exists() && !beside(&db, "-info").exists());
    let ended = mirror(arg(&db), stage.fake.url(), &["--token", "right"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let run = |token: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
        command.args(["mirror", &stage.fake.url(), arg(&replica)]).env("LOGMIRROR_TOKEN", token);
        command.output().unwrap().status.code()
    };
    assert_eq!([run("wrong"), run("right")], [Some(2), Some(0)]);
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn exit_codes_tell_data_from_usage_from_network() {
    let stage = Stage::new();
    let db = stage.database(&rows(3));
    let code = |source: &str, sink: &str, flags: &[&str]| mirror(source, sink, flags).code;
    let url = stage.fake.url();
    assert_eq!(code(&url, &url, &[]), Some(2));
    assert_eq!(code("http://127.0.0.1:1/logs/a", &url, &[]), Some(2));
    assert_eq!(code(arg(&db), "libsql+ftp://x/", &[]), Some(2));
    assert_eq!(code(arg(&db), "libsql://user@host/", &[]), Some(2));
    assert_eq!(code(arg(&db), &url, &["--trim"]), Some(2));
    assert_eq!(code(arg(&db), &url, &["--batch=0"]), Some(2));
    assert_eq!(code(arg(&db), &url, &["--token", "a\nb"]), Some(2));
    assert_eq!(code(arg(&stage.path("none.db")), &url, &[]), Some(2));
    stage.fake.fault("POST", Fault::Answer(200, r#"{"status":"conflict","generation":1,"max_frame_no":3}"#.into()));
    assert_eq!(code(arg(&db), &url, &[]), Some(1));
}

#[test]
fn at_debug_level_it_says_what_is_pushed_and_confirmed() {
    let stage = Stage::new();
    let db = stage.database(&rows(3));
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
        command.args(["mirror", arg(&db), &stage.fake.url(), "--batch=4"]).env("LOGMIRROR_LOG", "debug");
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let text = run();
    assert_eq!(frames(&db), 5);
    for line in [
        "app.db-info is not used: there is none",
        "pushing frames 1..=4 of generation 1",
        "the server confirmed frame 4 of generation 1",
        "pushing frames 5..=5 of generation 1",
        "the server confirmed frame 5 of generation 1",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    std::fs::write(beside(&db, "-info"), r#"{"hash":1,"version":0,"durable_frame_num":5,"generation":1}"#).unwrap();
    let text = run();
    assert!(text.contains("app.db-info is not used: its hash is 1, that of its content"), "{text}");
    assert_eq!(info(&db), (1, 5));
}

#[test]
fn a_push_that_follows_waits_for_a_database_that_is_being_restored() {
    for half in [false, true] {
        let stage = Stage::new();
        let db = stage.path("app.db");
        sqlite::run(&db, &format!("PRAGMA journal_mode=WAL; {}", rows(100))).unwrap();
        let whole = std::fs::read(&db).unwrap();
        stage.push(&db).unwrap();
        let before = stage.fake.frames();
        std::fs::write(&db, &whole[..if half { whole.len() / 8192 * 4096 } else { 0 }]).unwrap();
        let follower = Mirror::start(arg(&db), stage.fake.url(), &["--follow"]);
        follower.wait_for("an attempt that failed", |line| line["event"] == "retrying");
        assert_eq!(stage.fake.frames(), before, "no page is taken for removed");
        std::fs::write(&db, &whole).unwrap();
        sqlite::run_and_die(&db, &rows(1));
        until("the next row", || (stage.fake.frames() > before).then_some(()));
        assert_eq!(follower.terminate().code, Some(0));
    }
}

#[test]
fn a_refusal_that_is_not_the_servers_ends_no_follower_and_the_servers_own_does() {
    let own = r#"{"error":"unauthorized","message":"no"}"#;
    for pulls in [false, true] {
        let stage = Stage::new();
        let db = stage.database(&rows(3));
        stage.push(&db).unwrap();
        let replica = stage.path("replica.db");
        let (source, sink) = match pulls {
            true => (stage.fake.url(), arg(&replica).to_owned()),
            false => (arg(&db).to_owned(), stage.fake.url()),
        };
        let method = if pulls { "GET" } else { "POST" };
        let follower = Mirror::start(&source, &sink, &["--follow"]);
        follower.wait_durable(u64::from(frames(&db)) + 1);
        stage.fake.fault(method, Fault::Answer(401, "oops".into()));
        if !pulls {
            sqlite::run_and_die(&db, &rows(1));
        }
        follower.wait_for("that it waits", |line| {
            line["event"] == "retrying" && line["error"].as_str().is_some_and(|text| text.contains("401, \"oops\""))
        });
        follower.wait_durable(u64::from(frames(&db)) + 1);
        stage.fake.fault(method, Fault::Answer(401, own.into()));
        if !pulls {
            sqlite::run_and_die(&db, &rows(1));
        }
        assert_eq!(follower.ended().code, Some(2), "{pulls}");
    }
}
