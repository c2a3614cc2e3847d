//! What cannot have been meant is refused with what was probably meant, before anything changes.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::process::{Mirror, Service, arg, mirror};
use crate::support::{copy_of, files, specimen};
use crate::{append, commit, put, run_in};

fn is_refused(found: &(Option<i32>, String, String), words: &str, what: &str) {
    let (code, _, errors) = found;
    assert_eq!(*code, Some(2), "{what}: {errors}");
    assert!(errors.contains(words), "{what}: {words:?} is not in {errors:?}");
    assert!(!errors.contains("failed:"), "{what}: {errors}");
}

#[test]
fn a_directory_above_the_log_is_refused_with_the_path_that_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    put("whole", &at("stdb/replicas/1/clog"));
    fs::create_dir_all(at("stdb/control-db")).unwrap();
    for generation in ["0000000001", "0000000002"] {
        put("whole", &at("srv/logs/app").join(generation));
    }
    fs::write(at("srv/logs/app/log.json"), "{}").unwrap();
    let clog = ["stdb", "stdb/replicas", "stdb/replicas/1"].map(|path| (path, "stdb/replicas/1/clog?"));
    let logs = ["srv", "srv/logs", "srv/logs/app"].map(|path| (path, "srv/logs/app/0000000002?"));
    let copy = at("copy");
    for (given, meant) in clog.into_iter().chain(logs) {
        let given = at(given);
        for follow in [&[][..], &["--follow"], &["--allow-empty"]] {
            let args = [&["mirror", arg(&given), arg(&copy)], follow].concat();
            is_refused(&run_in(dir.path(), &args), meant, "mirror");
        }
        for command in ["verify", "status", "inspect"] {
            is_refused(&run_in(dir.path(), &[command, arg(&given)]), meant, command);
        }
    }
    // Several are named.
    put("whole", &at("stdb/replicas/2/clog"));
    is_refused(&run_in(dir.path(), &["verify", arg(&at("stdb"))]), "did you mean one of ", "verify");
    assert!(!copy.exists());
}

#[test]
fn an_empty_source_is_refused_unless_that_is_meant_and_waited_for_by_a_follower() {
    let (source, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let copy = dir.path().join("copy");
    let refused = run_in(dir.path(), &["mirror", arg(source.path()), arg(&copy)]);
    is_refused(&refused, "--allow-empty", "mirror");
    assert!(!copy.exists());
    let ended = mirror(arg(source.path()), arg(&copy), &["--allow-empty"]);
    assert_eq!((ended.code, ended.last("done")["commits"].as_u64()), (Some(0), Some(0)), "{ended:?}");
    for command in ["verify", "status", "inspect"] {
        is_refused(&run_in(dir.path(), &[command, arg(source.path())]), "holds no segments", command);
    }
    let follower = Mirror::start(arg(source.path()), arg(&copy), &["--follow"]);
    follower.wait_for("its start", |line| line["event"] == "started");
    put("whole", source.path());
    follower.wait_durable(360);
    assert_eq!(follower.interrupt().code, Some(0));
}

#[test]
fn a_url_without_its_scheme_is_refused_with_the_url_that_was_meant() {
    let (dir, whole) = (tempfile::tempdir().unwrap(), specimen("whole"));
    let places = [
        ("db1:7171/logs/app", "http://db1:7171/logs/app"),
        ("localhost/logs/x", "http://localhost/logs/x"),
        ("127.0.0.1:7171", "http://127.0.0.1:7171/logs/NAME"),
        ("http:/db1/logs/x", "http://db1/logs/x"),
    ];
    for (place, meant) in places {
        for follow in [&[][..], &["--follow"]] {
            let to = [&["mirror", arg(&whole), place], follow].concat();
            let from = [&["mirror", place, "copy"], follow].concat();
            is_refused(&run_in(dir.path(), &to), meant, place);
            is_refused(&run_in(dir.path(), &from), meant, place);
        }
        for command in ["verify", "status", "inspect"] {
            is_refused(&run_in(dir.path(), &[command, place]), meant, command);
        }
    }
    assert_eq!(files(dir.path()).len(), 0, "nothing was made");
    // A path that exists is a path, and one that is written as one.
    put("whole", &dir.path().join("host/logs/app"));
    assert_eq!(run_in(dir.path(), &["mirror", "host/logs/app", "./db1:7171/logs/app"]).0, Some(0));
}

#[test]
fn create_never_leaves_a_typing_error_without_effect() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let (copy, whole) = (dir.path().join("copy"), specimen("whole"));
    for flags in [&["--create=never"][..], &["--create=never", "--follow"]] {
        for sink in [arg(&copy), &service.url("x")] {
            let ended = mirror(arg(&whole), sink, flags);
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(ended.error().contains("does not exist"), "{ended:?}");
        }
    }
    assert!(!copy.exists() && service.status(&service.client("x")).unwrap().is_none());
    for sink in [arg(&copy), &service.url("x")] {
        for flags in ["--create=auto", "--create=never"] {
            assert_eq!(mirror(arg(&whole), sink, &[flags]).code, Some(0));
        }
    }
}

fn plan(source: &str, sink: &str) -> Value {
    let ended = mirror(source, sink, &["--dry-run"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.last("plan").clone()
}

#[test]
fn a_dry_run_says_what_would_be_done_and_changes_nothing() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let (copy, source, url) = (dir.path().join("copy"), copy_of("whole"), service.url("x"));
    let source = source.path();
    for sink in [arg(&copy), &url] {
        let found = plan(arg(source), sink);
        assert!(found["creates"].as_str().is_some_and(|place| sink.contains(place)), "{found}");
        assert_eq!((&found["from"], &found["to"]), (&0.into(), &360.into()), "{found}");
    }
    assert!(!copy.exists() && service.status(&service.client("x")).unwrap().is_none());
    for sink in [arg(&copy), &url] {
        assert_eq!(mirror(arg(source), sink, &[]).code, Some(0));
        let found = plan(arg(source), sink);
        assert_eq!(found["creates"], Value::Null, "{found}");
        assert_eq!(
            (&found["compares"], &found["from"], &found["to"]),
            (&357.into(), &360.into(), &360.into()),
            "{found}"
        );
    }
    append(source, &commit(360));
    let before = (files(&copy), files(source));
    for sink in [arg(&copy), &url] {
        let found = plan(arg(source), sink);
        assert_eq!((&found["from"], &found["to"]), (&360.into(), &365.into()), "{found}");
        assert_eq!(found["source_bytes"], commit(360).len(), "{found}");
    }
    // Another history in the sink, which is no mirror.
    fs::remove_file(copy.join(".logmirror")).unwrap();
    let mut forked = fs::read(crate::last_segment(&copy)).unwrap();
    forked.truncate(forked.len() - 218);
    forked.extend(commit(357));
    fs::write(crate::last_segment(&copy), &forked).unwrap();
    let ended = mirror(arg(source), arg(&copy), &["--dry-run"]);
    assert!(ended.code == Some(1) && ended.error().contains("the commit at offset 357"), "{ended:?}");
    assert!(fs::read(crate::last_segment(&copy)).unwrap() == forked && files(source) == before.1);
    let (code, text, errors) = run_in(Path::new("."), &["mirror", arg(source), &url, "--dry-run"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(text.contains("send      offsets 360..365"), "{text}");
}
