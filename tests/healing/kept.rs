//! What lies after the durable mark and is not ours is never cut in silence.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::damage::{SEGMENTS, again, file, segment, start};
use crate::support::assert_bytes;
use crate::support::log::{commit, commits, header};
use crate::support::process::arg;

const NEXT: &str = "00000000000000000010.stdb.log";

/// A stopped service whose log `app` ends at offset 10 with epoch 4. Returns what it holds.
fn stopped(data: &Path) -> Vec<u8> {
    let service = start(data);
    let last = commit(9, 4, 1, b"the last");
    assert_eq!(service.append("app", "", &last).json()["durable"], 10);
    [segment(0), segment(3), segment(6), last].concat()
}

pub fn run(args: &[&str]) -> (Option<i32>, String) {
    let ended = Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stdout).unwrap() + &String::from_utf8(ended.stderr).unwrap())
}

/// The content of the files that were kept aside, with the name of their directory.
pub fn kept(data: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(all) = fs::read_dir(data.join("logs/app/aside")) else {
        return Vec::new();
    };
    let dirs = all.map(|dir| dir.unwrap().path());
    let files = dirs.flat_map(|dir| fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()));
    files
        .map(|file| (file.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned(), fs::read(file).unwrap()))
        .collect()
}

#[test]
fn whole_commits_that_do_not_continue_the_log_are_kept_aside_and_reported() {
    let new = |first: u64, count: u64| -> Vec<u8> {
        (first..first + count).flat_map(|at| commit(at, 4, 1, b"of another")).collect()
    };
    let other = "other-commits";
    let damage = "commits-after-damage";
    let cases: [(&str, Vec<u8>, &str, u64); 9] = [
        (NEXT, segment(3), other, 3),
        (NEXT, [header(), new(5, 4)].concat(), other, 4),
        (NEXT, [header(), new(25, 2)].concat(), other, 2),
        (NEXT, [header(), commit(10, 3, 1, b"a falling epoch")].concat(), other, 1),
        (SEGMENTS[2], new(12, 3), other, 3),
        (SEGMENTS[2], commit(10, 3, 1, b"a falling epoch"), other, 1),
        (SEGMENTS[2], new(9, 2), other, 2),
        (SEGMENTS[2], [vec![7; 77], new(10, 3)].concat(), damage, 3),
        (SEGMENTS[2], [vec![0; 4096], new(10, 1)].concat(), damage, 1),
    ];
    for (at, (name, bytes, reason, count)) in cases.into_iter().enumerate() {
        let data = tempfile::tempdir().unwrap();
        let whole = stopped(data.path());
        let path = file(data.path(), 0).with_file_name(name);
        let before = fs::read(&path).unwrap_or_default();
        fs::write(&path, [&before[..], &bytes].concat()).unwrap();
        let generation = path.parent().unwrap().to_owned();
        let says = format!("cuts {} bytes with {count} whole commits", bytes.len());
        for args in [&["verify", arg(&generation)][..], &["repair", arg(&data.path().join("logs/app"))]] {
            let (_, said) = run(args);
            assert!(said.contains(&says) && said.contains("goes on with offset 10"), "case {at}: {said}");
        }
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"ok".into(), &10.into()), "case {at}: {status}");
        let all = kept(data.path());
        assert_eq!(all.len(), 1, "case {at}");
        assert!(all[0].0.ends_with(reason) && all[0].1 == bytes, "case {at}: {}", all[0].0);
        assert!(status["warning"].as_str().unwrap().contains(&all[0].0), "case {at}: {status}");
        assert_bytes(&service.stream("app"), &whole, "the log");
        let metrics = service.get("/metrics").text();
        assert!(metrics.contains("logmirror_kept_aside_total{log=\"app\"} 1"), "case {at}");
        assert_eq!(service.append("app", "", &commit(10, 4, 1, b"goes on")).json()["durable"], 11, "case {at}");
        drop(service);
        // A restart still says so, until somebody has taken it away.
        let service = again(data.path());
        assert!(service.status("app")["warning"].is_string(), "case {at}");
        fs::remove_dir_all(data.path().join("logs/app/aside").join(&all[0].0)).unwrap();
        assert!(service.status("app")["warning"].is_null(), "case {at}");
        // It goes on in the segment that was there.
        let head = if name == NEXT { header() } else { Vec::new() };
        assert_bytes(&service.stream("app"), &[whole, head, commit(10, 4, 1, b"goes on")].concat(), "the log");
    }
}

#[test]
fn commits_that_continue_the_log_are_kept_and_incomplete_ones_are_cut() {
    let data = tempfile::tempdir().unwrap();
    let whole = stopped(data.path());
    let after = [commit(10, 4, 1, b"after the mark"), commit(11, 4, 1, b"incomplete")].concat();
    let path = file(data.path(), 2);
    let torn = after.len() - 3;
    fs::write(&path, [&fs::read(&path).unwrap(), &after[..torn]].concat()).unwrap();
    let (_, said) = run(&["repair", arg(&data.path().join("logs/app"))]);
    assert!(said.contains("incomplete bytes off its end and goes on with offset 11"), "{said}");
    let service = again(data.path());
    let status = service.status("app");
    assert_eq!((&status["state"], &status["durable"]), (&"ok".into(), &11.into()), "{status}");
    assert!(status["warning"].is_null() && kept(data.path()).is_empty(), "{status}");
    assert_bytes(&service.stream("app"), &[whole, commit(10, 4, 1, b"after the mark")].concat(), "the log");
}

#[test]
fn one_state_has_one_verdict_where_the_first_segments_are_removed_under_the_service() {
    let data = tempfile::tempdir().unwrap();
    let service = start(data.path());
    let first = fs::read(file(data.path(), 0)).unwrap();
    fs::remove_file(file(data.path(), 0)).unwrap();
    let status = service.status("app");
    assert_eq!(status["state"], "failed", "{status}");
    let error = status["error"].as_str().unwrap();
    assert!(error.contains(arg(&file(data.path(), 0))) && error.contains("put it back"), "{status}");
    service.wait_state("app", "ok");
    let running = service.status("app");
    assert!(running["warning"].as_str().unwrap().contains("offsets 0 to 3 are missing"), "{running}");
    assert_eq!(service.get("/health").status, 200);
    drop(service);
    let (code, said) = run(&["repair", arg(&data.path().join("logs/app"))]);
    assert!(code == Some(0) && said.contains("offsets 0 to 3 are missing"), "{said}");
    let service = again(data.path());
    let restarted = service.status("app");
    for field in ["state", "warning", "first", "durable"] {
        assert_eq!(restarted[field], running[field], "{restarted}");
    }
    assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).json()["durable"], 10);
    // And it is whole again as soon as they are back, also beside a sender.
    let _live = service.begin_append("app", "?acks=stream");
    fs::write(file(data.path(), 0), first).unwrap();
    assert_eq!(service.status("app")["state"], "failed");
    service.wait_state("app", "ok");
    let whole = service.status("app");
    assert_eq!((&whole["first"], &whole["durable"]), (&0.into(), &10.into()), "{whole}");
    assert!(whole["warning"].is_null() && whole["missing"].is_null(), "{whole}");
}

#[test]
fn a_hole_in_the_middle_stays_damage_with_the_file_named_until_it_is_put_back() {
    let data = tempfile::tempdir().unwrap();
    let service = start(data.path());
    let middle = fs::read(file(data.path(), 1)).unwrap();
    fs::remove_file(file(data.path(), 1)).unwrap();
    service.wait_state("app", "damaged");
    let running = service.status("app");
    let error = running["error"].as_str().unwrap();
    assert!(error.contains("expected offset 3, found 6") && error.contains(arg(&file(data.path(), 1))), "{running}");
    fs::write(file(data.path(), 1), &middle).unwrap();
    service.wait_state("app", "ok");
    assert_bytes(&service.stream("app"), &[segment(0), segment(3), segment(6)].concat(), "the log");
    assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).json()["durable"], 10);
}
