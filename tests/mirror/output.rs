//! What a mirror says: lines of JSON for scripts, lines of text for people, exit codes for both.

use std::process::Command;

use serde_json::Value;

use crate::support::process::{Mirror, Service, arg, mirror};
use crate::support::{copy_of, specimen};
use crate::{COMMIT_BYTES, COMMITS};

fn fields(line: &Value) -> Vec<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Fields of a line that says how far it came.
const FAR: [&str; 9] =
    ["bytes", "bytes_per_second", "commits", "durable", "event", "lag", "next", "seconds", "source_bytes"];

#[test]
fn lines_of_json_say_how_it_starts_moves_and_ends() {
    let (whole, copy) = (specimen("whole"), tempfile::tempdir().unwrap());
    let ended = mirror(arg(&whole), arg(copy.path()), &[]);
    assert_eq!(ended.code, Some(0));
    let [started, done] = &ended.lines[..] else { panic!("{ended:?}") };
    assert_eq!(fields(started), ["event", "from", "source_bytes"]);
    assert_eq!((started["event"].as_str(), started["from"].as_u64()), (Some("started"), Some(0)));
    let source_bytes = COMMITS * COMMIT_BYTES + 4 * 10;
    assert_eq!(started["source_bytes"].as_u64(), Some(source_bytes));
    assert_eq!((fields(done), done["event"].as_str()), (FAR.into(), Some("done")));
    let number = |name: &str| done[name].as_u64().unwrap();
    assert_eq!([number("commits"), number("bytes")], [COMMITS, COMMITS * COMMIT_BYTES]);
    assert_eq!([number("next"), number("durable"), number("lag")], [360, 360, 0]);
    assert!(number("bytes_per_second") > 0 && number("source_bytes") == source_bytes);
    assert!(done["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(ended.errors, "");
}

#[test]
fn a_mirror_that_fails_says_where_it_stands_and_why() {
    let copy = tempfile::tempdir().unwrap();
    let ended = mirror(arg(&specimen("bit-flip")), arg(copy.path()), &[]);
    let [_started, failed, error] = &ended.lines[..] else { panic!("{ended:?}") };
    assert_eq!((fields(failed), failed["event"].as_str()), (FAR.into(), Some("failed")));
    assert_eq!(failed["durable"].as_u64(), Some(354));
    assert_eq!(fields(error), ["error", "event", "message"]);
    assert_eq!(ended.errors, format!("error: {}\n", ended.error()));
    // Also one that never got to move anything.
    let ended = mirror(arg(tempfile::tempdir().unwrap().path()), arg(copy_of("whole").path()), &["--allow-empty"]);
    assert_eq!((ended.code, ended.last("failed")["durable"].as_u64()), (Some(1), Some(360)), "{ended:?}");
}

#[test]
fn a_mirror_that_follows_says_how_far_it_came_also_when_nothing_moves_any_more() {
    let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    let line = mirror.wait_for("progress", |line| line["event"] == "progress" && line["durable"] == 360);
    let of_following =
        ["behind", "behind_bytes", "behind_seconds", "reason", "source_next", "state", "unfinished_bytes"];
    let mut expected = [&FAR[..], &of_following].concat();
    expected.sort_unstable();
    assert_eq!(fields(&line), expected);
    let ended = mirror.interrupt();
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.last("interrupted")["durable"].as_u64(), Some(360));
}

#[test]
fn an_attempt_that_failed_is_a_line_too() {
    let data = tempfile::tempdir().unwrap();
    let mut service = Service::start(data.path());
    let push = Mirror::start(arg(&specimen("whole")), service.url("x"), &["--follow"]);
    push.wait_durable(360);
    service.kill();
    let line = push.wait_for("an attempt that failed", |line| line["event"] == "retrying");
    assert_eq!(fields(&line), ["after_ms", "error", "event"]);
    service.restart();
    push.wait_for("another attempt", |line| line["event"] == "started" && line["from"] == 360);
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn without_json_people_read_it_on_standard_error() {
    let (whole, copy) = (specimen("whole"), tempfile::tempdir().unwrap());
    let (code, out, errors) = run(&["mirror", arg(&whole), arg(copy.path())]);
    assert_eq!((code, out.as_str()), (Some(0), ""));
    let lines: Vec<&str> = errors.lines().collect();
    assert!(lines[0].ends_with("Z mirroring from offset 0"), "{errors}");
    assert!(lines[1].contains("Z done: ") && lines[1].contains("in 120 commits"), "{errors}");
    assert!(lines[1].contains("durable up to offset 360"), "{errors}");
    let (code, out, errors) = run(&["mirror", arg(&specimen("gap")), arg(tempfile::tempdir().unwrap().path())]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("\nerror: source: expected offset 111, found 222"), "{errors}");
}

#[test]
fn flags_that_make_no_sense_are_a_matter_of_usage() {
    for args in
        [&["mirror", "a"][..], &["mirror", "a", "b", "--nonsense"], &["mirror", "a", "b", "--commit-bytes-max=x"]]
    {
        let (code, out, errors) = run(args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{errors}");
        assert!(errors.contains("Usage") || errors.contains("--help"), "{errors}");
    }
}
