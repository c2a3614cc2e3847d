//! What a mirror that follows says of its distance to the source, and how often.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::process::{Mirror, PATIENCE, Service, arg, free_address, mirror};
use crate::support::{copy_of, specimen};
use crate::{append, commit, run_in};

#[test]
fn the_distance_to_the_source_is_known_while_the_service_is_down() {
    let data = tempfile::tempdir().unwrap();
    let mut service = Service::start(data.path());
    let source = copy_of("whole");
    let push = Mirror::start(arg(source.path()), service.url("x"), &["--follow"]);
    push.wait_for("to follow", |line| line["state"] == "following" && line["behind"] == 0 && line["durable"] == 360);
    service.kill();
    for at in 0..4 {
        append(source.path(), &commit(360 + 5 * at));
    }
    let bytes = 4 * commit(360).len() as u64;
    let line = push.wait_for("its distance", |line| line["state"] == "waiting" && line["behind"] == 20);
    assert_eq!((&line["behind_bytes"], &line["source_next"]), (&bytes.into(), &380.into()), "{line}");
    assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{line}");
    let older =
        push.wait_for("its age to grow", |line| line["behind"] == 20 && line["behind_seconds"].as_f64() > Some(2.0));
    assert!(older["source_bytes"].as_u64() > Some(bytes), "{older}");
    service.restart();
    push.wait_for("to follow again", |line| {
        line["state"] == "following" && line["behind"] == 0 && line["behind_seconds"] == 0.0 && line["durable"] == 380
    });
    assert_eq!(push.interrupt().code, Some(0));
}

#[test]
fn a_follower_that_rests_says_so_at_least_every_ten_seconds() {
    let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let follower = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    let start = Instant::now();
    let line = follower.wait_for("a heartbeat", |line| line["event"] == "heartbeat");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(
        (&line["state"], &line["behind"], &line["bytes_per_second"]),
        (&"following".into(), &0.into(), &0.into())
    );
    assert_eq!(line["reason"], serde_json::Value::Null);
    // And what is to be moved grows with the source.
    let before = line["source_bytes"].as_u64().unwrap();
    append(source.path(), &commit(360));
    let line = follower.wait_durable(365);
    let line = match line["source_bytes"].as_u64() > Some(before) {
        true => line,
        false => follower.wait_for("more bytes", |line| line["source_bytes"].as_u64() > Some(before)),
    };
    assert_eq!(line["source_bytes"].as_u64(), Some(before + commit(360).len() as u64), "{line}");
    assert_eq!(follower.interrupt().code, Some(0));
}

#[test]
fn lines_of_text_carry_the_time_and_say_that_it_follows() {
    let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_logmirror"))
        .args(["mirror", arg(source.path()), arg(copy.path()), "--follow"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = child.stderr.take().unwrap();
    // One that never says so is ended, and with it the wait for what it says.
    let (said, waiting) = std::sync::mpsc::channel::<()>();
    let pid = Pid::from_child(&child);
    let watchdog = std::thread::spawn(move || {
        if let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(PATIENCE) {
            let _is_gone_already = kill_process(pid, Signal::KILL);
        }
    });
    let (mut text, mut piece) = (String::new(), [0; 1000]);
    while !text.contains("following:") {
        let count = errors.read(&mut piece).unwrap();
        assert!(count > 0, "it ended: {text}");
        text.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    errors.read_to_string(&mut text).unwrap();
    drop(said);
    watchdog.join().unwrap();
    assert!(child.wait().unwrap().success());
    for line in text.lines() {
        assert!(line.starts_with("20") && line[..20].ends_with('Z'), "{line:?}");
    }
    assert!(text.contains("0 offsets, 0 B, 0.0 s behind the source"), "{text}");
}

#[test]
fn quiet_prints_errors_only_and_a_usage_error_comes_without_a_line_before() {
    let copy = tempfile::tempdir().unwrap();
    let whole = run_in(copy.path(), &["mirror", arg(&specimen("whole")), "copy", "--quiet"]);
    assert_eq!(whole, (Some(0), String::new(), String::new()));
    let (code, out, errors) = run_in(copy.path(), &["mirror", arg(&specimen("bit-flip")), "other", "--quiet"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{errors}");
    for place in ["ftp://host/logs/x", "http://"] {
        let (code, out, errors) = run_in(copy.path(), &["mirror", arg(&specimen("whole")), place]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{errors}");
        assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{errors}");
    }
}

#[test]
fn nothing_is_claimed_of_a_sink_that_was_not_reached() {
    let source = copy_of("whole");
    let push = Mirror::start(arg(source.path()), format!("http://{}/logs/x", free_address()), &["--follow"]);
    let line = push.wait_for("a heartbeat", |line| line["event"] == "heartbeat");
    assert_eq!(
        (&line["durable"], &line["next"], &line["state"]),
        (&Value::Null, &Value::Null, &"waiting".into()),
        "{line}"
    );
    push.interrupt();
}

#[test]
fn an_attempt_is_announced_again_only_after_one_that_wrote() {
    let (source, dir) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let (link, target) = (dir.path().join("link"), dir.path().join("target"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_logmirror"))
        .args(["mirror", arg(source.path()), arg(&link), "--follow"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = child.stderr.take().unwrap();
    let (say, said) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(errors).lines() {
            let _nobody_reads_on = say.send(line.unwrap());
        }
    });
    let mut lines = Vec::new();
    let mut wait_for = |words: &str| {
        while let Ok(line) = said.recv_timeout(PATIENCE) {
            lines.push(line);
            if lines.last().is_some_and(|line| line.contains(words)) {
                return true;
            }
        }
        false
    };
    let waited = wait_for("which does not exist");
    std::fs::create_dir(&target).unwrap();
    let followed = wait_for("following:");
    let _is_gone_already = kill_process(Pid::from_child(&child), Signal::TERM);
    child.wait().unwrap();
    reader.join().unwrap();
    assert!(waited && followed, "{lines:?}");
    let announced = lines.iter().filter(|line| line.contains("mirroring from offset 0")).count();
    assert_eq!(announced, 1, "{lines:?}");
    assert!(lines.iter().all(|line| !line.contains("durable up to offset 0")), "{lines:?}");
}

#[test]
fn preallocated_space_is_not_to_be_moved() {
    let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let last = source.path().join("00000000000000000333.stdb.log");
    let bytes: u64 = std::fs::read_dir(source.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".log"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    std::fs::File::options().append(true).open(last).unwrap().set_len(64 << 20).unwrap();
    let ended = mirror(arg(source.path()), arg(copy.path()), &[]);
    assert_eq!(ended.last("done")["source_bytes"].as_u64(), Some(bytes), "{ended:?}");
}
