//! A copy that lost its beginning, or ends in a commit twice, is not whole, and every command says so.

use std::fs;
use std::path::Path;

use crate::support::process::{Mirror, Service, arg, mirror};
use crate::support::{copy_of, segments, specimen};
use crate::{
    COMMIT_BYTES, SEGMENT_ENTRIES, directory, grow, is_done, is_refused, run, segment_name, untouched, whole_up_to,
};

const LAST_SEGMENT: u64 = 333;

/// Removes the first segment and its index.
fn lose_beginning(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_name().to_str().unwrap().starts_with("00000000000000000000.") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn repeat_last_commit(dir: &Path) {
    let path = dir.join(segment_name(LAST_SEGMENT));
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes[bytes.len() - COMMIT_BYTES as usize..].to_vec();
    bytes.extend(last);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_mirror_that_lost_its_first_segments_goes_on_and_never_counts_as_whole() {
    let (source, copy) = (directory(&whole_up_to(300)), tempfile::tempdir().unwrap());
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 300);
    lose_beginning(copy.path());
    grow(source.path(), &whole_up_to(360));
    let (code, plan, errors) = {
        let args = ["mirror", arg(source.path()), arg(copy.path()), "--dry-run"];
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), out.stderr)
    };
    assert!(code == Some(0) && plan.contains("offsets 0 to 111 are missing"), "{plan} {errors:?}");
    // What it lost stays known, however often it goes on.
    for _ in 0..2 {
        let ended = mirror(arg(source.path()), arg(copy.path()), &[]);
        is_refused(&ended, 1, "offsets 0 to 111 are missing");
        assert!(ended.errors.contains("mirror into a new directory"), "{ended:?}");
        assert_eq!(ended.last("failed")["missing"], serde_json::json!([0, SEGMENT_ENTRIES]), "{ended:?}");
        assert_eq!(
            (&ended.last("failed")["durable"], &ended.last("warning")["missing"][1]),
            (&360.into(), &111.into())
        );
    }
    let (code, verified, _) = run("verify", copy.path());
    assert!(code == Some(1) && verified.contains("offsets 0 to 111 are missing"), "{verified}");
    let (code, status, _) = run("status", copy.path());
    assert!(code == Some(1) && status.contains("offsets 0 to 111"), "{status}");
    // What is copied from it lacks them too.
    let second = tempfile::tempdir().unwrap();
    let ended = mirror(arg(copy.path()), arg(second.path()), &[]);
    is_done(&ended, 360);
    assert!(ended.last("warning")["text"].as_str().unwrap().contains("offsets 0 to 111 are missing"), "{ended:?}");
    let first = segment_name(0);
    fs::copy(source.path().join(&first), copy.path().join(&first)).unwrap();
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 360);
    assert_eq!(run("verify", copy.path()).0, Some(0));
    assert!(segments(copy.path()) == whole_up_to(360));
}

#[test]
fn a_follower_says_that_the_first_segments_of_its_copy_are_gone() {
    let (source, copy) = (directory(&whole_up_to(300)), tempfile::tempdir().unwrap());
    let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    follower.wait_durable(300);
    lose_beginning(copy.path());
    let warning = follower.wait_for("a warning", |line| line["event"] == "warning");
    assert_eq!(warning["missing"], serde_json::json!([0, 111]));
    grow(source.path(), &whole_up_to(360));
    let line = follower.wait_durable(360);
    assert_eq!(line["missing"], serde_json::json!([0, 111]), "{line}");
    follower.terminate();
}

#[test]
fn a_source_that_was_pruned_makes_a_whole_copy() {
    let source = copy_of("whole");
    lose_beginning(source.path());
    let copy = tempfile::tempdir().unwrap();
    let ended = mirror(arg(source.path()), arg(copy.path()), &[]);
    is_done(&ended, 360);
    assert!(ended.lines.iter().all(|line| line["event"] != "warning"), "{ended:?}");
    assert_eq!(run("verify", copy.path()).0, Some(0));
}

#[test]
fn a_service_that_lost_the_beginning_of_a_log_is_not_verified_as_whole_and_mirrors_warn() {
    let data = tempfile::tempdir().unwrap();
    let mut service = Service::start(data.path());
    is_done(&mirror(arg(&specimen("whole")), service.url("a"), &[]), 360);
    service.kill();
    lose_beginning(&service.segments_of("a"));
    service.restart();
    let (code, verified, _) = run("verify", Path::new(&service.url("a")));
    assert!(code == Some(1) && verified.contains("offsets 0 to 111 are missing"), "{verified}");
    let copy = tempfile::tempdir().unwrap();
    for (from, to, code) in [
        (service.url("a"), arg(copy.path()).to_owned(), 0),
        // As where the sink is a directory.
        (arg(&specimen("whole")).to_owned(), service.url("a"), 1),
    ] {
        let ended = mirror(from, to, &[]);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        let text = ended.last("warning")["text"].as_str().unwrap();
        assert!(text.contains("/logs/a: offsets 0 to 111 are missing"), "{ended:?}");
    }
}

#[test]
fn a_mirror_whose_last_commit_is_there_twice_is_refused_and_not_whole() {
    let copy = tempfile::tempdir().unwrap();
    is_done(&mirror(arg(&specimen("whole")), arg(copy.path()), &[]), 360);
    repeat_last_commit(copy.path());
    let (code, verified, _) = run("verify", copy.path());
    assert!(code == Some(1) && verified.contains("another process wrote them"), "{verified}");
    let ended = untouched(copy.path(), || mirror(arg(&specimen("whole")), arg(copy.path()), &[]));
    is_refused(&ended, 1, "another process wrote that");
    // And one that went on after it, as earlier versions did.
    let mut bytes = segments(copy.path())[&segment_name(111)].clone();
    let second = bytes[10 + COMMIT_BYTES as usize..][..COMMIT_BYTES as usize].to_vec();
    bytes.splice(10 + COMMIT_BYTES as usize..10 + COMMIT_BYTES as usize, second);
    fs::write(copy.path().join(segment_name(111)), bytes).unwrap();
    let (code, verified, _) = run("verify", copy.path());
    assert!(code == Some(1) && verified.contains("the commit at offset 114 is there twice"), "{verified}");
}

#[test]
fn a_commit_that_is_there_twice_in_an_original_is_passed_over_and_noted() {
    let source = copy_of("whole");
    repeat_last_commit(source.path());
    let (code, verified, _) = run("verify", source.path());
    assert!(code == Some(0) && verified.contains("twice in a row"), "{verified}");
    let copy = tempfile::tempdir().unwrap();
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 360);
    assert!(segments(copy.path()) == whole_up_to(360));
}
