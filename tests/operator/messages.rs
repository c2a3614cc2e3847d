//! What went wrong, where, and what to do about it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::process::{Service, arg, free_address};
use crate::support::{copy_of, specimen};
use crate::{Ended, run, run_under};

/// A command failed with this exit code and a message that has all of these parts, and says the same as JSON.
#[track_caller]
fn fails(args: &[&str], code: i32, parts: &[&str]) -> Ended {
    let ended = run(args);
    assert_eq!(ended.code, Some(code), "{args:?}: {ended:?}");
    for part in parts {
        assert!(ended.errors.contains(part), "{part:?}: {args:?}: {ended:?}");
    }
    if args[0] != "serve" {
        let as_json = run(&[args, &["--json"]].concat());
        assert_eq!(as_json.code, Some(code), "{as_json:?}");
        let line = as_json.json();
        assert_eq!(line["event"], "error", "{as_json:?}");
        assert!(line["error"].is_string(), "{as_json:?}");
        let message = line["message"].as_str().unwrap();
        for part in parts {
            assert!(message.contains(part), "{part:?}: {args:?}: {as_json:?}");
        }
    }
    ended
}

#[test]
fn a_file_that_is_no_database_is_named_with_what_it_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garb.db");
    fs::write(&garbage, [0x5a; 8192]).unwrap();
    let parts = ["garb.db: neither a directory with segments nor a SQLite database", "encrypted", "damaged"];
    for command in ["verify", "status", "inspect"] {
        fails(&[command, arg(&garbage)], 1, &parts);
    }
    fails(&["mirror", arg(&garbage), arg(&dir.path().join("sink"))], 1, &parts);
    assert!(!dir.path().join("sink").exists());
    let segment = specimen("whole").join("00000000000000000000.stdb.log");
    fails(&["verify", arg(&segment)], 1, &["one segment of a log: give the directory", arg(&specimen("whole"))]);
}

#[test]
fn a_place_that_cannot_be_meant_is_usage_and_says_what_may_be() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let segment = specimen("whole").join("00000000000000000000.stdb.log");
    let sink = dir.path().join("sink");
    fails(
        &["mirror", arg(&segment), arg(&sink)],
        2,
        &["one segment of a log: give the directory", arg(&specimen("whole"))],
    );
    let service = Service::start(data.path());
    let url = format!("http://{}/app", service.address());
    for args in [["mirror", arg(&specimen("whole")), &url], ["mirror", &url, arg(&sink)]] {
        fails(&args, 2, &["/app", "a log is at /logs/NAME"]);
        // Nobody should wait for it.
        fails(&[&args[..], &["--follow"]].concat(), 2, &["/app", "a log is at /logs/NAME"]);
    }
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    fails(
        &["mirror", arg(&specimen("whole")), arg(&link)],
        3,
        &[arg(&link), "a link to nowhere, which does not exist"],
    );
}

#[test]
fn a_missing_or_wrong_token_is_told_apart_with_how_to_give_it() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start_with(data.path(), &["--token", "right"]);
    let url = service.url("app");
    let how = ["--token-file", "LOGMIRROR_TOKEN"];
    for command in ["status", "verify", "checkpoint"] {
        fails(&[command, &url], 2, &[&how[..], &["none was sent"]].concat());
        let wrong =
            fails(&[command, &url, "--token", "wr0ng"], 2, &[&how[..], &["not the one of this service"]].concat());
        assert!(!wrong.errors.contains("wr0ng"), "{wrong:?}");
    }
    fails(&["mirror", arg(&specimen("whole")), &url], 2, &[&how[..], &["none was sent"]].concat());
}

#[test]
fn a_refused_connection_asks_whether_the_service_runs() {
    let address = free_address();
    let url = format!("http://{address}/logs/app");
    let question = format!("is `logmirror serve` running, and listening on {address}?");
    for command in ["status", "verify", "checkpoint"] {
        fails(&[command, &url], 3, &["connection refused", &question, &url]);
    }
}

#[test]
fn http_and_https_taken_for_one_another_are_named() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let url = format!("https://{}/logs/app", service.address());
    fails(&["status", &url], 3, &["does not speak TLS", "http://"]);

    // What a TLS server answers to a request in plain HTTP is an alert.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/logs/app", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 64];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(&[0x15, 3, 3, 0, 2, 2, 70]);
        }
    });
    fails(&["status", &url], 3, &["does not answer in HTTP", "https://"]);
    server.join().unwrap();
}

#[test]
fn a_sink_that_is_a_file_is_refused_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy");
    fs::write(&file, "precious").unwrap();
    fails(&["mirror", arg(&specimen("whole")), arg(&file)], 2, &["copy: this is a file, and DST is a directory"]);
    let below = file.join("clog");
    fails(&["mirror", arg(&specimen("whole")), arg(&below)], 2, &["is a file, so there can be no directory below it"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[test]
fn a_url_without_a_log_is_refused_with_the_form_that_it_should_have() {
    for url in ["http://127.0.0.1:1", "http://127.0.0.1:1/", "http://127.0.0.1:1/logs", "http://127.0.0.1:1/logs/"] {
        for command in ["status", "verify", "checkpoint"] {
            fails(&[command, url], 2, &["is not the URL of a log", "http://HOST/logs/NAME"]);
        }
        fails(&["mirror", arg(&specimen("whole")), url], 2, &["is not the URL of a log", "http://HOST/logs/NAME"]);
    }
}

#[test]
fn a_wrong_setting_is_named_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (config, data) = (dir.path().join("logmirror.toml"), dir.path().join("data"));
    for (text, parts) in [
        ("commit-timeout = 'soon'", &["logmirror.toml, line 1: commit-timeout: "][..]),
        ("\nmemory-max = 'much'", &["logmirror.toml, line 2: memory-max: "]),
        ("listn = '127.0.0.1:7171'", &["logmirror.toml, line 1: listn: unknown field `listn`: is `listen` meant?"]),
        ("sql_workers = 2", &["line 1: sql_workers: unknown field `sql_workers`: is `sql-workers` meant?"]),
        ("SQL-worker = 2", &["line 1: SQL-worker: unknown field `SQL-worker`: is `sql-workers` meant?"]),
        ("nonsense = 2", &["unknown field `nonsense`, expected one of `data`"]),
        ("sql-workers = 1000000", &["sql-workers in ", "logmirror.toml: 1000000 processes are too many: 256 at most"]),
        ("connections-max = 0", &["connections-max in ", "logmirror.toml must be at least 1"]),
        ("listen = 'localhost'", &["listen in ", "logmirror.toml: \"localhost\" has no port", "localhost:7171"]),
    ] {
        fs::write(&config, text).unwrap();
        fails(&["serve", "--data", arg(&data), "--config", arg(&config)], 2, parts);
    }
    fails(&["serve", "--data", arg(&data), "--listen", ":7171"], 2, &["--listen: ", "127.0.0.1:7171", "0.0.0.0:7171"]);
    fails(&["serve", "--data", arg(&data), "--connections-max", "0"], 2, &["--connections-max must be at least 1"]);
    fails(
        &["serve", "--data", arg(&data), "--statement-timeout", "0"],
        2,
        &["--statement-timeout must be at least 1 s"],
    );
    fails(
        &["serve", "--data", arg(&data), "--sql-memory-max", "64MiB"],
        2,
        &["--sql-memory-max must be at least 512 MiB"],
    );
    fails(
        &["serve", "--data", arg(&data), "--sql-memory-max", "1000TiB"],
        2,
        &["--sql-memory-max: 1048576000 MiB are more than this machine has"],
    );
    fails(&["serve", "--data", arg(&data), "--config", "/nowhere.toml"], 2, &["/nowhere.toml: "]);
}

#[test]
fn a_limit_of_the_system_that_is_too_low_is_named_with_what_raises_it() {
    let data = tempfile::tempdir().unwrap();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data", arg(data.path())];
    for (limit, args, parts) in [
        (
            "-n 12",
            &["--sql-workers", "0"][..],
            &["this process may have 12 files open (ulimit -n)", "needs 20 at least", "LimitNOFILE="][..],
        ),
        ("-n 64", &["--sql-workers", "8"], &["this process may have 64 files open (ulimit -n)", "needs 84 at least"]),
        ("-v 400000", &[], &["no further thread, process or memory", "ulimit -v: 409600000"]),
    ] {
        let ended = run_under(limit, &[&serve, args].concat());
        assert_eq!(ended.code, Some(3), "{limit}: {ended:?}");
        for part in parts {
            assert!(ended.errors.contains(part), "{part:?}: {limit}: {ended:?}");
        }
    }
}

#[test]
fn a_port_alone_listens_on_this_machine() {
    let data = tempfile::tempdir().unwrap();
    let service = free_address();
    let port = service.rsplit_once(':').unwrap().1;
    // The last flag counts for nobody else: the harness gives one, so this goes by the environment and a taken port.
    let _taken = TcpListener::bind(&service).unwrap();
    fails(
        &["serve", "--data", arg(data.path()), "--listen", port],
        3,
        &[&format!("127.0.0.1:{port}: another process listens")],
    );
}

#[test]
fn an_address_or_a_data_directory_in_use_is_said_to_be() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let args = ["serve", "--listen", service.address(), "--data", arg(other.path())];
    fails(&args, 3, &[service.address(), "another process listens there already", "--listen"]);
    let args = ["serve", "--listen", "127.0.0.1:0", "--data", arg(data.path())];
    fails(&args, 3, &[arg(data.path()), "in use by another process", "--data"]);
    let file = other.path().join("file");
    fs::write(&file, "").unwrap();
    fails(&["serve", "--listen", "127.0.0.1:0", "--data", arg(&file)], 3, &["this is no directory", "--data"]);
}

#[test]
fn another_format_than_that_of_the_log_is_said_with_both() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    service.call(service.client("wal").create(logmirror::format::LogFormat::Wal, None)).unwrap();
    let url = service.url("wal");
    fails(&["mirror", arg(&specimen("whole")), &url], 1, &[&url, "holds a wal, and the source is a commitlog"]);
    // And the reverse, into a directory and into a service.
    let (copy, url) = (copy_of("whole"), service.url("commits"));
    service.call(service.client("commits").create(logmirror::format::LogFormat::Commitlog, None)).unwrap();
    for sink in [arg(copy.path()), &url] {
        let parts = [sink, "holds a commitlog, and the source is a wal"];
        fails(&["mirror", &service.url("wal"), sink], 1, &parts);
    }
}

#[test]
fn a_segment_without_permission_is_named() {
    let dir = copy_of("whole");
    let segment = dir.path().join("00000000000000000111.stdb.log");
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(&segment, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let Some(output) = as_another_user(&["verify", arg(dir.path())]) else {
        eprintln!("skipped: the program cannot be run as another user from here");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("00000000000000000111.stdb.log: Permission denied"), "{said}");
    assert!(said.contains("this user may not read or write it"), "{said}");
    assert_eq!(output.status.code(), Some(3), "{said}");
}

/// Runs the program as a user who may not read everything: ourselves, or nobody if we are root. None where nobody cannot reach
/// the program.
fn as_another_user(args: &[&str]) -> Option<std::process::Output> {
    let program = Path::new(env!("CARGO_BIN_EXE_logmirror"));
    let mut command = Command::new(program);
    command.args(args);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command.output().ok()
}

#[test]
fn a_wrong_flag_is_json_where_json_was_asked_for() {
    let ended = run(&["verify", "--json", "--fix", "somewhere"]);
    assert_eq!(ended.code, Some(2));
    let line = ended.json();
    assert_eq!((&line["event"], &line["error"]), (&"error".into(), &"usage".into()), "{ended:?}");
    assert!(line["message"].as_str().unwrap().contains("--fix"), "{ended:?}");
    assert!(run(&["verify", "--fix", "somewhere"]).out.is_empty());
}

#[test]
fn a_service_is_not_started_in_a_directory_that_holds_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let (data, spacetime) = (dir.path().join("data"), dir.path().join("spacetime"));
    let log = data.join("logs/app");
    let clog = spacetime.join("replicas/7/clog");
    for place in [log.join("0000000001"), clog.clone()] {
        fs::create_dir_all(&place).unwrap();
        for (name, bytes) in crate::support::files(&specimen("whole")) {
            fs::write(place.join(name), bytes).unwrap();
        }
    }
    // Where SpacetimeDB keeps its own log files.
    fs::create_dir(spacetime.join("logs")).unwrap();
    fs::write(log.join("log.json"), "{}").unwrap();
    let copy = dir.path().join("copy");
    assert_eq!(run(&["mirror", arg(&clog), arg(&copy)]).code, Some(0));
    let all = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let meant = format!("did you mean --data {}?", arg(&data.canonicalize().unwrap()));
    let log_of = format!("logmirror mirror {} http://", arg(&clog));
    let cases = [
        (data.join("logs"), "the directory of the logs of a service", &*meant),
        (log.clone(), "one log of a service", &meant),
        (log.join("0000000001"), "one generation of a log", &meant),
        (spacetime.clone(), "a data directory of SpacetimeDB", &log_of),
        (spacetime.join("replicas/7"), "a replica directory of SpacetimeDB", &log_of),
        (clog.clone(), "the segments of one log", &log_of),
        (copy, "the segments of one log", "http://HOST/logs/NAME"),
    ];
    for (place, what, hint) in cases {
        let before = all(&place);
        fails(&["serve", "--data", arg(&place), "--listen", "127.0.0.1:0"], 2, &[what, hint]);
        assert_eq!(all(&place), before, "{what}");
    }
    // What is a data directory already stays one, whatever else is there.
    fs::rename(spacetime.join("replicas"), data.join("replicas")).unwrap();
    fs::write(log.join("log.json"), r#"{"format":"commitlog","id":"x","generation":1,"first":0}"#).unwrap();
    let service = Service::start(&data);
    assert_eq!(run(&["status", &service.url("app")]).code, Some(0));
}
