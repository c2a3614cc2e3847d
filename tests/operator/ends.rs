//! A source that ends otherwise than its copy, and two writers of one copy.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::log::{commits, header};
use crate::support::process::{Mirror, Service, arg};

const SEGMENT: &str = "00000000000000000000.stdb.log";

fn source(dir: &Path, count: u64, seed: u8) -> PathBuf {
    let source = dir.join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join(SEGMENT), [header(), commits(0, count, 50, seed)].concat()).unwrap();
    let _none = fs::remove_file(source.join(SEGMENT).with_extension("ofs"));
    source
}

fn copied(source: &Path, sink: &str) {
    let ended = Mirror::start(arg(source), sink, &[]).ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_source_that_was_reset_to_less_than_its_copy_is_a_fork_at_once() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let before = source(dir.path(), 9, 0);
    let sinks = [dir.path().join("copy").display().to_string(), service.url("copy")];
    sinks.iter().for_each(|sink| copied(&before, sink));
    let reset = source(dir.path(), 3, 1);
    let served = service.url("reset");
    copied(&reset, &served);
    for from in [arg(&reset), &served] {
        for sink in &sinks {
            let ended = Mirror::start(from, sink, &["--follow"]).ended();
            assert_eq!(ended.code, Some(1), "{ended:?}");
            assert!(ended.error().contains("the commit at offset 2"), "{ended:?}");
            for part in [from, sink, "keep both"] {
                assert!(ended.error().contains(part), "{part}: {ended:?}");
            }
        }
    }
}

#[test]
fn a_source_that_lost_its_end_is_waited_for_and_not_called_level() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    copied(&source(dir.path(), 9, 0), arg(&copy));
    let short = source(dir.path(), 3, 0);
    let follower = Mirror::start(arg(&short), arg(&copy), &["--follow"]);
    let line =
        follower.wait_for("where the source ends", |line| line["state"] == "waiting" && line["source_next"] == 3);
    assert_eq!((&line["behind"], &line["behind_bytes"]), (&Value::Null, &Value::Null), "{line}");
    assert!(line["reason"].as_str().unwrap().contains("ends at offset 3, before the sink, which ends at 9"), "{line}");
    source(dir.path(), 12, 0);
    follower.wait_durable(12);
    assert_eq!(follower.interrupt().code, Some(0));
}

#[test]
fn bytes_at_the_end_of_a_source_that_are_no_commit_are_part_of_the_distance() {
    let dir = tempfile::tempdir().unwrap();
    let (source, copy) = (source(dir.path(), 3, 0), dir.path().join("copy"));
    let mut file = OpenOptions::new().append(true).open(source.join(SEGMENT)).unwrap();
    file.write_all(&commits(3, 1, 50, 0)[..30]).unwrap();
    let follower = Mirror::start(arg(&source), arg(&copy), &["--follow"]);
    let line = follower.wait_for("them", |line| line["behind"] == 0 && line["unfinished_bytes"] == 30);
    assert_eq!((&line["durable"], &line["behind_bytes"]), (&3.into(), &30.into()), "{line}");
    file.write_all(&commits(3, 1, 50, 0)[30..]).unwrap();
    let line = follower.wait_for("none", |line| line["source_next"] == 4 && line["behind"] == 0);
    assert_eq!(line["behind_bytes"], 0, "{line}");
    // Space that was set aside is no loss.
    file.write_all(&[0; 64]).unwrap();
    let line = follower.wait_for("a look", |line| line["event"] == "heartbeat" && line["source_next"] == 4);
    assert_eq!((&line["behind_bytes"], &line["unfinished_bytes"]), (&0.into(), &0.into()), "{line}");
    assert_eq!(follower.interrupt().code, Some(0));
}

#[test]
fn a_follower_that_another_writer_keeps_out_waits_longer_and_longer() {
    let dir = tempfile::tempdir().unwrap();
    let (source, copy) = (source(dir.path(), 3, 0), dir.path().join("copy"));
    let first = Mirror::start(arg(&source), arg(&copy), &["--follow"]);
    first.wait_durable(3);
    let second = Mirror::start(arg(&source), arg(&copy), &["--follow"]);
    let mut file = OpenOptions::new().append(true).open(source.join(SEGMENT)).unwrap();
    let since = Instant::now();
    let mut next = 3;
    while since.elapsed() < Duration::from_secs(6) {
        file.write_all(&commits(next, 1, 50, 0)).unwrap();
        next += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    first.wait_durable(next);
    assert_eq!(first.interrupt().code, Some(0));
    let ended = second.interrupt();
    let attempts = ended.lines.iter().filter(|line| line["event"] == "started").count();
    assert!(attempts <= 15, "{attempts} attempts in 6 s: {ended:?}");
}
