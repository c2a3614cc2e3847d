//! `logmirror replica` by the real binary, with a service in another process and SQLite as the application.
#![cfg(feature = "turso")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use logmirror::format::LogFormat;
use logmirror::token::Token;
use serde_json::{Value, json};
use support::files_named;
use support::process::{Ended, Mirror, Service, arg, free_address, mirror, until};
use support::sqlite::{self, Sqlite};
use tempfile::TempDir;
use turso_core::{Database, OpenFlags, OpenOptions, PlatformIO, SqliteDialect};

const TABLE: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT UNIQUE);";
const ALL: &str = "SELECT a, b FROM t ORDER BY a";

/// A service with the log `app`, and a directory for replicas of it.
struct Scene {
    service: Service,
    dir: TempDir,
}

/// The processes of [`Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    sqlite::process();
}

/// `logmirror restore`.
#[track_caller]
fn restore(source: &str, out: &Path) {
    let mut restore = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    assert!(restore.args(["restore", source, arg(out), "--force"]).output().unwrap().status.success());
}

/// `logmirror replica --json`.
fn start(path: &Path, url: &str, flags: &[&str]) -> Mirror {
    Mirror::command(&[&["replica", arg(path), url, "--json"], flags].concat())
}

/// The same without `--json`: code, standard output, standard error.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOGMIRROR_")) {
        command.env_remove(name);
    }
    let output = command.arg("replica").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Its only line.
#[track_caller]
fn only(ended: &Ended) -> &Value {
    let [line] = &ended.lines[..] else { panic!("{ended:?}") };
    line
}

/// Its only line, of a run that went well.
#[track_caller]
fn done(ended: &Ended) -> &Value {
    assert_eq!((ended.code, unusual(&ended.errors).as_str()), (Some(0), ""), "{ended:?}");
    only(ended)
}

/// What stands on standard error but the steps of a replica.
fn unusual(errors: &str) -> String {
    let lines = errors.lines().filter(|line| !line.contains(" INFO  logmirror::replica"));
    lines.map(|line| format!("{line}\n")).collect()
}

fn fields(line: &Value) -> Vec<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

impl Scene {
    fn new() -> Scene {
        Scene::with(&[])
    }

    fn with(flags: &[&str]) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start_with(&dir.path().join("data"), flags);
        Scene { service, dir }.with_log()
    }

    fn with_log(self) -> Scene {
        let client = self.service.client("app");
        let client = client.with_token(&Token::new("right").unwrap());
        self.service.call(client.create(LogFormat::Wal, None)).unwrap();
        self
    }

    fn url(&self) -> String {
        self.service.url("app")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the command on a replica to its end.
    fn replica(&self, name: &str, flags: &[&str]) -> Ended {
        start(&self.path(name), &self.url(), flags).ended()
    }

    /// The same, which must go well.
    #[track_caller]
    fn sync(&self, name: &str) -> Value {
        done(&self.replica(name, &[])).clone()
    }

    fn draft(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}-draft"))
    }

    /// What the application does, or asks.
    #[track_caller]
    fn sql(&self, name: &str, sql: &str) -> String {
        sqlite::run(&self.draft(name), sql).unwrap()
    }

    /// The rows of `t` on the remote.
    #[track_caller]
    fn remote(&self) -> String {
        let out = self.path("remote.db");
        restore(&self.url(), &out);
        sqlite::run(&out, ALL).unwrap()
    }

    /// Files that are not of the service.
    fn files(&self) -> Vec<String> {
        files_named(self.dir.path())
    }
}

#[test]
fn changes_made_by_sqlite_go_to_the_remote_and_come_home() {
    let scene = Scene::new();
    let made = scene.sync("one");
    assert_eq!((&made["action"], &made["made"], &made["changes_pushed"]), (&json!("sync"), &json!(true), &json!(0)));
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'x'), (2, 'y')"));
    let line = scene.sync("one");
    assert_eq!((&line["made"], &line["changes_pushed"], &line["conflicts"]), (&json!(false), &json!(3), &json!([])));
    assert_eq!(fields(&line), ["action", "changes_pushed", "conflicts", "frames_pulled", "made", "requests"]);
    assert_eq!(scene.remote(), "1|x\n2|y\n");
    scene.sync("two");
    assert_eq!(scene.sql("two", ALL), "1|x\n2|y\n");
    scene.sql("two", "UPDATE t SET b = 'two' WHERE a = 2; INSERT INTO t VALUES (3, 'z')");
    scene.sql("one", "DELETE FROM t WHERE a = 1");
    for name in ["two", "one", "two"] {
        assert_eq!(scene.sync(name)["conflicts"], json!([]));
    }
    for rows in [scene.remote(), scene.sql("one", ALL), scene.sql("two", ALL)] {
        assert_eq!(rows, "2|two\n3|z\n");
    }
    assert_eq!(scene.sync("one")["requests"], 1, "there is nothing to do");
}

#[test]
fn changes_made_by_turso_go_to_the_remote_and_come_home() {
    let scene = Scene::new();
    scene.sync("one");
    let io = Arc::new(PlatformIO::new().unwrap());
    let options = OpenOptions::new(Arc::new(SqliteDialect)).flags(OpenFlags::Create);
    let database = Database::open(io, arg(&scene.draft("one")), options).unwrap();
    let app = database.connect().unwrap();
    app.execute(TABLE).unwrap();
    app.execute("INSERT INTO t VALUES (1, 'x')").unwrap();
    let busy = scene.replica("one", &[]);
    assert_eq!(busy.code, Some(3), "{busy:?}");
    assert!(only(&busy)["message"].as_str().unwrap().contains("one-draft is in use by another process"), "{busy:?}");
    app.close().unwrap();
    drop((app, database));
    assert_eq!(scene.sync("one")["changes_pushed"], 2);
    assert_eq!((scene.remote().as_str(), scene.sql("one", ALL).as_str()), ("1|x\n", "1|x\n"));
}

#[test]
fn a_pull_sends_nothing_and_a_push_leaves_the_draft_as_it_is() {
    let scene = Scene::new();
    scene.sync("one");
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'one')"));
    scene.sync("one");
    assert_eq!(done(&scene.replica("two", &["pull", "--batch=1"]))["made"], true);
    scene.sql("one", "INSERT INTO t VALUES (2, 'one2')");
    scene.sql("two", "INSERT INTO t VALUES (3, 'two')");
    let pushed = scene.replica("one", &["push"]);
    assert_eq!((&done(&pushed)["action"], &done(&pushed)["changes_pushed"]), (&json!("push"), &json!(1)));
    let pulled = scene.replica("two", &["pull", "--batch=1"]);
    assert_eq!((&done(&pulled)["action"], &done(&pulled)["changes_pushed"]), (&json!("pull"), &json!(0)));
    assert!(done(&pulled)["frames_pulled"].as_u64() > Some(0), "{pulled:?}");
    assert_eq!(scene.sql("two", ALL), "1|one\n2|one2\n3|two\n");
    assert_eq!(scene.remote(), "1|one\n2|one2\n");
    done(&scene.replica("two", &["push"]));
    done(&scene.replica("one", &["push"]));
    assert_eq!(scene.remote(), "1|one\n2|one2\n3|two\n");
    assert_eq!(scene.sql("one", ALL), "1|one\n2|one2\n");
}

#[test]
fn status_sends_nothing_and_makes_nothing() {
    let mut scene = Scene::new();
    let url = scene.url();
    let absent = scene.replica("one", &["status"]);
    assert_eq!(absent.code, Some(1), "{absent:?}");
    let text = format!("there is no replica at {}: a pull, push or sync makes one", scene.path("one").display());
    assert_eq!(only(&absent), &json!({"event": "error", "action": "status", "error": "data", "message": text}));
    assert_eq!(absent.errors, format!("error: {text}\n"));
    assert_eq!(scene.files(), [""; 0]);
    assert_eq!(scene.replica("one", &["status", "--rebuild"]).code, Some(2));

    done(&scene.replica("one", &["--client-name", "laptop"]));
    scene.sql("one", TABLE);
    scene.sync("one");
    scene.service.kill();
    let stands = scene.replica("one", &["status"]);
    let line = done(&stands);
    assert!(line["client_unique_id"].as_str().unwrap().starts_with("laptop-"), "{line}");
    assert_eq!((&line["action"], &line["generation"]), (&json!("status"), &json!(1)));
    assert_eq!((&line["may_have_changes"], &line["push_in_doubt"]), (&json!(false), &json!(false)));
    assert!(line["frame"].as_u64() > Some(0) && line["frame"] == line["draft_frame"], "{line}");
    scene.sql("one", "INSERT INTO t VALUES (1, 'x')");
    assert_eq!(done(&scene.replica("one", &["status"]))["may_have_changes"], true);
    let (code, out, errors) = run(&[arg(&scene.path("one")), &url, "status"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(out.contains("client_unique_id laptop-") && out.contains("\nmay_have_changes true\n"), "{out}");
}

#[test]
fn a_log_that_is_not_there_leaves_nothing_and_the_next_run_makes_the_replica() {
    let scene = Scene::new();
    for flags in [&[][..], &["pull"], &["push"], &["--start-offline"], &["--rebuild"]] {
        let ended = start(&scene.path("one"), &scene.service.url("apq"), flags).ended();
        assert!(ended.code != Some(0) && only(&ended)["message"].as_str().unwrap().contains("apq"), "{ended:?}");
        assert_eq!(scene.files(), [""; 0], "{flags:?}");
    }
    assert_eq!(scene.sync("one")["made"], true);
}

#[test]
fn a_missing_info_is_refused_by_every_action_and_the_draft_keeps_its_rows() {
    let scene = Scene::new();
    scene.sync("one");
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'pushed')"));
    scene.sync("one");
    scene.sql("one", "INSERT INTO t VALUES (2, 'only here')");
    fs::remove_file(scene.path("one-info")).unwrap();
    let before = scene.files();
    for action in ["sync", "pull", "push", "status"] {
        let ended = scene.replica("one", &[action, "--every=1h"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let error = only(&ended)["message"].as_str().unwrap();
        assert!(error.starts_with("one-info is missing, though one-draft") && error.contains("--rebuild"), "{error}");
    }
    assert_eq!((scene.files(), scene.sql("one", ALL)), (before, "1|pushed\n2|only here\n".to_owned()));
    let ended = scene.replica("one", &["--rebuild"]);
    assert!(ended.code == Some(0) && ended.errors.contains("set aside as one.set-aside."), "{ended:?}");
    let files = scene.files();
    let aside = files.iter().find(|name| name.starts_with("one.set-aside.") && name.ends_with("-draft")).unwrap();
    assert_eq!(sqlite::run(&scene.path(aside), ALL).unwrap(), "1|pushed\n2|only here\n");
}

#[test]
fn each_step_is_logged_by_its_module_and_with_its_numbers() {
    let scene = Scene::new();
    let steps = |flags: &[&str], wanted: &[&str]| {
        let ended = scene.replica("one", flags);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        for wanted in wanted {
            assert!(ended.errors.contains(wanted), "{wanted:?} is not in {}", ended.errors);
        }
    };
    steps(&[], &["INFO  logmirror::replica::bootstrap] one: made of generation 1 of the remote, up to frame 0"]);
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'x')"));
    steps(
        &["--log-level=debug"],
        &[
            "DEBUG logmirror::replica::store] one: open at frame 0 of generation 1; the draft is at frame 0, after 0 pulls",
            "DEBUG logmirror::replica::push] one: push 1 begins",
            "INFO  logmirror::replica::push] one: push 1 made: 2 changes, 0 conflicts",
            " new frames of the remote, which is at frame ",
            "INFO  logmirror::replica::rebase] one: bringing frame ",
            " into the draft, with 0 local changes on top, 0 of them in conflict",
        ],
    );
    steps(&["--log-level=debug"], &["DEBUG logmirror::replica::pull] one: 0 new frames of the remote"]);
}

#[test]
fn a_replica_starts_without_the_network_if_asked() {
    let mut scene = Scene::new();
    scene.service.kill();
    assert_eq!(scene.replica("one", &[]).code, Some(3));
    assert!(!scene.draft("one").exists());
    let ended = scene.replica("one", &["--start-offline"]);
    assert_eq!((ended.code, &only(&ended)["made"]), (Some(0), &json!(true)), "{ended:?}");
    assert!(ended.errors.contains("made empty, since the remote cannot be reached"), "{ended:?}");
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'x')"));
    let ended = scene.replica("one", &["--start-offline"]);
    assert_eq!((ended.code, scene.sql("one", ALL).as_str()), (Some(3), "1|x\n"), "{ended:?}");
    scene.service.restart();
    assert_eq!(scene.sync("one")["changes_pushed"], 2);
    assert_eq!(scene.remote(), "1|x\n");
}

#[test]
fn conflicts_are_told_and_the_exit_code_is_0() {
    let scene = Scene::new();
    scene.sync("one");
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'first')"));
    for name in ["one", "two", "three"] {
        scene.sync(name);
    }
    scene.sql("one", "INSERT INTO t VALUES (2, 'same')");
    scene.sql("two", "INSERT INTO t VALUES (3, 'same'), (4, 'fine')");
    scene.sql("three", "INSERT INTO t VALUES (5, 'same')");
    scene.sync("one");
    let line = scene.sync("two");
    assert_eq!((&line["changes_pushed"], line["conflicts"].as_array().unwrap().len()), (&json!(1), 1), "{line}");
    let conflict = &line["conflicts"][0];
    assert_eq!(fields(conflict), ["doing", "during", "error", "key", "table"]);
    assert_eq!(
        (&conflict["during"], &conflict["table"], &conflict["doing"]),
        (&json!("push"), &json!("t"), &json!("insert"))
    );
    assert_eq!(conflict["key"], json!([["a", {"type": "integer", "value": "3"}]]));
    assert!(conflict["error"].as_str().unwrap().contains("UNIQUE"), "{conflict}");
    // The same for people, and of a pull.
    let (code, out, errors) = run(&[arg(&scene.path("three")), &scene.url(), "pull"]);
    assert_eq!((code, unusual(&errors).as_str()), (Some(0), ""), "{out}");
    let [summary, conflict] = out.lines().collect::<Vec<_>>()[..] else { panic!("{out}") };
    assert!(summary.starts_with("0 changes pushed, ") && summary.contains(" frames pulled, 1 conflicts, "), "{out}");
    assert!(conflict.starts_with("conflict: insert into t (a = 5), on top of what was pulled: UNIQUE "), "{out}");
    for name in ["one", "two", "three"] {
        assert_eq!(scene.sync(name)["conflicts"], json!([]), "told once");
        assert_eq!(scene.sql(name, ALL), "1|first\n2|same\n4|fine\n");
    }
}

#[test]
fn the_token_comes_by_flag_or_url_and_a_wrong_one_is_a_matter_of_usage() {
    let scene = Scene::with(&["--token", "right"]);
    for (url, flags) in [(scene.url(), vec![]), (scene.url(), vec!["--token", "wrong"])] {
        let ended = start(&scene.path("one"), &url, &flags).ended();
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(only(&ended)["message"].as_str().unwrap().contains("the server answers 401"), "{ended:?}");
        // One that goes on does not go on with a wrong token.
        assert_eq!(start(&scene.path("one"), &url, &[&flags[..], &["--every=1h"]].concat()).ended().code, Some(2));
    }
    assert!(
        !scene.files().iter().any(|name| name.ends_with("-draft") || name.ends_with("-info")),
        "{:?}",
        scene.files()
    );
    let by_flag = scene.replica("one", &["--token", "right"]);
    assert_eq!(done(&by_flag)["made"], true);
    let by_url = start(&scene.path("one"), &scene.url().replace("://", "://:right@"), &["--token", "wrong"]).ended();
    assert_eq!(done(&by_url)["made"], false);
    let by_url =
        start(&scene.path("one"), &format!("libsql+{}", scene.url().replace("://", "://:right@")), &[]).ended();
    assert_eq!(done(&by_url)["made"], false);
    let (code, _, errors) = run(&[arg(&scene.path("one")), &scene.url().replace("://", "://me:s3cret@")]);
    assert!(code == Some(2) && !errors.contains("s3cret"), "{errors}");
}

#[test]
fn exit_codes_tell_usage_from_network_and_draft_in_use() {
    let scene = Scene::new();
    let (path, nobody) = (scene.path("one"), format!("http://{}/logs/app", free_address()));
    let ended = start(&path, &nobody, &[]).ended();
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!(fields(only(&ended)), ["action", "error", "event", "message"]);
    assert_eq!(ended.errors, format!("error: {}\n", only(&ended)["message"].as_str().unwrap()));
    assert_eq!(start(&scene.path("no/such/directory"), &scene.url(), &[]).ended().code, Some(3));
    let url = scene.url();
    for args in [
        &[arg(&path)][..],
        &[arg(&path), "app.db"],
        &[arg(&path), "ftp://host/logs/app"],
        &[arg(&path), &url, "mirror"],
        &[arg(&path), &url, "--every=0s"],
        &[arg(&path), &url, "--every=soon"],
        &[arg(&path), &url, "--batch=0"],
    ] {
        assert_eq!(run(args).0, Some(2), "{args:?}");
    }
    scene.sync("one");
    let mut app = Sqlite::open(&scene.draft("one"));
    app.run(&["SELECT count(*) FROM sqlite_schema"]);
    let ended = scene.replica("one", &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(only(&ended)["message"].as_str().unwrap().contains("one-draft is in use by another process"), "{ended:?}");
    app.close();
    scene.sync("one");
}

#[test]
fn a_run_that_is_interrupted_says_so() {
    let scene = Scene::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/logs/app", silent.local_addr().unwrap());
    let running = start(&scene.path("one"), &url, &[]);
    let _connection = silent.accept().unwrap();
    let ended = running.terminate();
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(only(&ended)["message"].as_str().unwrap().starts_with("interrupted"), "{ended:?}");
}

#[test]
fn a_damaged_info_is_refused_and_rebuild_sets_the_files_aside() {
    let scene = Scene::new();
    scene.sync("one");
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'pushed')"));
    scene.sync("one");
    scene.sql("one", "INSERT INTO t VALUES (2, 'only here')");
    let info = scene.path("one-info");
    let mut content = fs::read(&info).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&info, &content).unwrap();
    let before = scene.files();
    for action in ["sync", "pull", "push", "status"] {
        let ended = scene.replica("one", &[action, "--every=1h"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let error = only(&ended)["message"].as_str().unwrap();
        assert!(error.starts_with("one-info cannot be used: ") && error.contains("--rebuild"), "{error}");
    }
    assert_eq!((scene.files(), fs::read(&info).unwrap()), (before, content));
    // It is rebuilt once, though there are more rounds.
    let running = start(&scene.path("one"), &scene.url(), &["--rebuild", "--every=1ms"]);
    running.wait_for("a round", |line| line["made"] == true);
    running.wait_for("another one", |line| line["made"] == false);
    let ended = running.terminate();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.errors.contains("are set aside as one.set-aside."), "{ended:?}");
    assert_eq!(scene.sql("one", ALL), "1|pushed\n");
    let aside: Vec<_> = scene.files().into_iter().filter(|name| name.starts_with("one.set-aside.")).collect();
    let drafts: Vec<_> = aside.iter().filter(|name| name.ends_with("-draft")).collect();
    assert!(drafts.len() == 1 && aside.iter().filter(|name| name.ends_with("-info")).count() == 1, "{aside:?}");
    assert_eq!(sqlite::run(&scene.path(drafts[0]), ALL).unwrap(), "1|pushed\n2|only here\n");
}

#[test]
fn what_a_program_that_died_had_not_committed_is_not_pushed() {
    let scene = Scene::new();
    scene.sync("one");
    let rows =
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3000) SELECT n, 'row ' || n FROM c";
    scene.sql("one", &format!("{TABLE} INSERT INTO t {rows}"));
    scene.sync("one");
    let before = scene.remote();
    // It fills more pages than it keeps in memory in a transaction, and dies in it.
    let mut app = Sqlite::open(&scene.draft("one"));
    app.run(&["PRAGMA journal_mode = DELETE", "PRAGMA cache_size = 2", "PRAGMA cache_spill = 2", "BEGIN"]);
    app.run(&["UPDATE t SET b = b || ' uncommitted'"]);
    app.kill();
    let ended = scene.replica("one", &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let error = only(&ended)["message"].as_str().unwrap();
    assert!(error.starts_with("one-draft-journal undoes a transaction that did not end: open one-draft"), "{error}");
    assert_eq!(scene.sql("one", ALL), before);
    assert_eq!(scene.sync("one")["changes_pushed"], 0);
    assert_eq!(scene.remote(), before);
}

#[test]
fn between_two_rounds_the_draft_is_free_and_sigterm_ends_it_well() {
    let scene = Scene::new();
    let waiting = start(&scene.path("one"), &scene.url(), &["--every=1h"]);
    waiting.wait_for("a round", |line| line["made"] == true);
    // At once, without waiting for any lock.
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'x')"));
    let ended = waiting.terminate();
    assert_eq!((ended.code, unusual(&ended.errors).as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(ended.lines.len(), 1);

    let every = start(&scene.path("one"), &scene.url(), &["--every=20ms"]);
    every.wait_for("the changes to be pushed", |line| line["changes_pushed"] == 2);
    assert_eq!(scene.remote(), "1|x\n");
    for value in 2..5 {
        let insert = format!("INSERT INTO t VALUES ({value}, 'row {value}')");
        until("the draft to be free", || sqlite::run(&scene.draft("one"), &insert).ok());
        until("the row to be on the remote", || scene.remote().contains(&format!("row {value}")).then_some(()));
    }
    until("all changes to be told", || {
        let pushed: u64 = every.lines().iter().filter_map(|line| line["changes_pushed"].as_u64()).sum();
        (pushed == 5).then_some(())
    });
    let ended = every.interrupt();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn what_may_pass_is_told_and_tried_again() {
    let mut scene = Scene::new();
    scene.sync("one");
    let mut app = Sqlite::open(&scene.draft("one"));
    app.run(&[TABLE, "INSERT INTO t VALUES (1, 'x')"]);
    let every = start(&scene.path("one"), &scene.url(), &["--every=20ms"]);
    let failed = |what: &str| {
        let line = every.wait_for(what, |line| line["error"].as_str().is_some_and(|error| error.contains(what)));
        assert_eq!(fields(&line), ["action", "after_ms", "error"]);
        assert_eq!(line["after_ms"], 20);
    };
    failed("one-draft is in use by another process");
    app.close();
    every.wait_for("the changes to be pushed", |line| line["changes_pushed"] == 2);
    scene.service.kill();
    failed("error sending request");
    until("the draft to be free", || sqlite::run(&scene.draft("one"), "INSERT INTO t VALUES (2, 'y')").ok());
    scene.service.restart();
    every.wait_for("a change made meanwhile to be pushed", |line| line["changes_pushed"] == 1);
    assert_eq!(scene.remote(), "1|x\n2|y\n");
    assert_eq!(every.terminate().code, Some(0));
}

#[test]
fn replicas_and_mirrors_of_one_remote_are_a_cascade() {
    let scene = Scene::new();
    scene.sync("one");
    scene.sql("one", &format!("{TABLE} INSERT INTO t VALUES (1, 'x')"));
    scene.sync("one");
    // Into a directory beside the replica, and on to another service while both go on.
    let beside = scene.path("copy");
    let copied = mirror(scene.url(), arg(&beside), &[]);
    assert_eq!(copied.code, Some(0), "{copied:?}");
    let other = Scene::new();
    let relay = Mirror::start(scene.url(), other.url(), &["--follow"]);
    let frames =
        |scene: &Scene| scene.service.status(&scene.service.client("app")).unwrap().unwrap().durable.unwrap().0;
    relay.wait_durable(frames(&scene));
    assert_eq!(done(&other.replica("reader", &["pull"]))["made"], true);
    assert_eq!(other.sql("reader", ALL), "1|x\n");
    scene.sql("one", "INSERT INTO t VALUES (2, 'y')");
    scene.sync("one");
    relay.wait_durable(frames(&scene));
    done(&other.replica("reader", &["pull"]));
    assert_eq!(mirror(scene.url(), arg(&beside), &[]).code, Some(0));
    let out = scene.path("copy.db");
    restore(arg(&beside), &out);
    for rows in [sqlite::run(&out, ALL).unwrap(), other.sql("reader", ALL), scene.sql("one", ALL), other.remote()] {
        assert_eq!(rows, "1|x\n2|y\n");
    }
    assert_eq!(relay.terminate().code, Some(0));
}
