//! A segment file that fits nowhere in a log: it is named, and `repair` takes it out without touching what is sound.

use std::fs;
use std::path::Path;

use crate::damage::{again, file, segment, start};
use crate::kept::{kept, run};
use crate::support::assert_bytes;
use crate::support::log::{commits, header};
use crate::support::process::arg;

fn repair(data: &Path, flags: &[&str]) -> (Option<i32>, String) {
    run(&[&["repair", arg(&data.join("logs/app"))], flags].concat())
}

fn whole() -> Vec<u8> {
    [segment(0), segment(3), segment(6)].concat()
}

fn strays() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("00000000000000000004.stdb.log", Vec::new()),
        ("00000000000000000004.stdb.log", header()),
        ("00000000000000000005.stdb.log", [header(), commits(5, 4, 50, 7)].concat()),
        ("00000000000000000001.stdb.log", vec![7; 5000]),
        ("00000000000000000008.stdb.log", vec![0; 4096]),
        ("00000000000000000008.stdb.log", [header(), commits(8, 3, 50, 7)].concat()),
        ("00000000000000000012.stdb.log", [header(), commits(12, 3, 50, 0)].concat()),
        ("00000000000000000003.wal", vec![7; 4096]),
        ("00000000000000000006.wal", Vec::new()),
    ]
}

#[test]
fn a_file_that_is_no_segment_of_the_log_is_set_aside_by_repair_and_nothing_is_lost() {
    for (name, bytes) in strays() {
        let data = tempfile::tempdir().unwrap();
        drop(start(data.path()));
        let stray = file(data.path(), 0).with_file_name(name);
        fs::write(&stray, &bytes).unwrap();
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!(status["state"], "damaged", "{name}: {status}");
        drop(service);
        let (code, said) = repair(data.path(), &[]);
        assert!(code == Some(1) && said.contains(name) && said.contains("whole without"), "{name}: {said}");
        assert!(kept(data.path()).is_empty() && fs::read(&stray).unwrap() == bytes, "{name}: changed");
        let (code, said) = repair(data.path(), &["--accept-loss"]);
        assert!(code == Some(0) && said.contains(name) && said.contains("nothing is missing"), "{name}: {said}");
        let all = kept(data.path());
        assert!(all.iter().any(|(dir, found)| dir.ends_with("strays") && *found == bytes), "{name}");
        assert_eq!(repair(data.path(), &[]).0, Some(0), "{name}: nothing to repair");
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"ok".into(), &9.into()), "{name}: {status}");
        assert_bytes(&service.stream("app"), &whole(), "the log");
        assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).json()["durable"], 10, "{name}");
    }
}

#[test]
fn a_stray_file_does_not_widen_a_loss() {
    // A file that starts right where the damage is would continue the log.
    let apart = |(name, _): &(&str, Vec<u8>)| !name.ends_with("8.stdb.log");
    for (name, bytes) in strays().into_iter().filter(apart) {
        let data = tempfile::tempdir().unwrap();
        drop(start(data.path()));
        fs::write(file(data.path(), 0).with_file_name(name), &bytes).unwrap();
        let last = file(data.path(), 2);
        let mut damaged = fs::read(&last).unwrap();
        let at = damaged.len() - 5;
        damaged[at] ^= 1;
        fs::write(&last, &damaged).unwrap();
        let (code, said) = repair(data.path(), &["--accept-loss"]);
        assert!(code == Some(0) && said.contains("goes on with 8"), "{name}: {said}");
        // More than one in a second.
        fs::write(file(data.path(), 0).with_file_name("00000000000000000001.stdb.log"), b"again").unwrap();
        assert_eq!(repair(data.path(), &["--accept-loss"]).0, Some(0), "{name}");
        let all = kept(data.path());
        assert!(
            all.iter().any(|(_, found)| *found == bytes) && all.iter().any(|(_, found)| *found == damaged),
            "{name}"
        );
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"ok".into(), &8.into()), "{name}: {status}");
        let sound = whole();
        assert_bytes(&service.stream("app"), &sound[..sound.len() - commits(8, 1, 50, 0).len()], "what is sound");
    }
}

#[test]
fn a_file_inside_the_log_is_named_as_what_is_to_be_moved() {
    let data = tempfile::tempdir().unwrap();
    drop(start(data.path()));
    let stray = file(data.path(), 0).with_file_name("00000000000000000004.stdb.log");
    fs::write(&stray, header()).unwrap();
    let error = again(data.path()).status("app")["error"].as_str().unwrap().to_owned();
    assert!(error.contains(arg(&stray)) && error.contains("move it away"), "{error}");
    assert!(!error.contains("put it back"), "{error}");
    fs::remove_file(&stray).unwrap();
    assert_eq!(again(data.path()).status("app")["state"], "ok");
}
