//! A `log.json` that is lost or makes no sense, and a generation that is gone: what was found, where, and what to do.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::damage::{again, file, segment, start};
use crate::support::assert_bytes;
use crate::support::log::commits;
use crate::support::process::arg;

fn repair(data: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let dir = data.join("logs/app");
    let args = [&["repair", arg(&dir)], flags].concat();
    let ended = Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stdout).unwrap() + &String::from_utf8(ended.stderr).unwrap())
}

#[test]
fn a_description_that_is_lost_is_written_again_from_the_files() {
    let cases: [(Option<&[u8]>, &str); 4] = [
        (None, "is missing"),
        (Some(b""), "is empty"),
        (Some(b"{\"format\":"), "is damaged, or of another version"),
        (Some(br#"{"format":"tape","id":"x","generation":1,"first":0}"#), "is damaged, or of another version"),
    ];
    for (content, what) in cases {
        let data = tempfile::tempdir().unwrap();
        let service = start(data.path());
        let id = service.status("app")["id"].clone();
        drop(service);
        let json = data.path().join("logs/app/log.json");
        match content {
            Some(content) => fs::write(&json, content).unwrap(),
            None => fs::remove_file(&json).unwrap(),
        }
        let service = again(data.path());
        let status = service.status("app");
        let error = status["error"].as_str().unwrap();
        for part in [what, arg(&data.path().join("logs/app")), "from a backup", "logmirror repair", "move "] {
            assert!(error.contains(part), "{part}: {error}");
        }
        drop(service);
        let (code, said) = repair(data.path(), &[]);
        assert!(code == Some(1) && said.contains(what) && said.contains("can be written again"), "{said}");
        assert_eq!(fs::read(&json).ok().as_deref(), content, "nothing was changed");
        let (code, said) = repair(data.path(), &["--accept-loss"]);
        assert!(code == Some(0) && said.contains("was written again") && said.contains("new id"), "{said}");
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"ok".into(), &9.into()), "{status}");
        assert_ne!(status["id"], id);
        assert_bytes(&service.stream("app"), &[segment(0), segment(3), segment(6)].concat(), "the log");
        assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).json()["durable"], 10);
        drop(service);
        assert_eq!(repair(data.path(), &[]).0, Some(0));
    }
}

#[test]
fn nothing_is_guessed_of_a_log_whose_description_is_lost() {
    let data = tempfile::tempdir().unwrap();
    drop(start(data.path()));
    let dir = data.path().join("logs/app");
    fs::remove_file(dir.join("log.json")).unwrap();
    fs::remove_file(file(data.path(), 0)).unwrap();
    let (code, said) = repair(data.path(), &["--accept-loss"]);
    assert_eq!(code, Some(2), "{said}");
    for part in ["its first segment starts at offset 3", "move ", "into a new log", arg(&dir)] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!dir.join("log.json").exists());
}

#[test]
fn a_generation_that_is_gone_is_named_with_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    drop(start(data.path()));
    let generation = data.path().join("logs/app/0000000001");
    fs::remove_dir_all(&generation).unwrap();
    let service = again(data.path());
    let status = service.status("app");
    assert_eq!(status["state"], "damaged", "{status}");
    let error = status["error"].as_str().unwrap().to_owned();
    drop(service);
    for said in [error, repair(data.path(), &["--accept-loss"]).1] {
        for part in [arg(&generation), "is missing", "from a backup", "move "] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
