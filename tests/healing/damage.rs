//! Files that are missing, rotten, or a copy of a log that was being written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use logmirror::repo::FsRepo;
use serde_json::Value;

use crate::kept::{kept, run};
use crate::support::assert_bytes;
use crate::support::frames::FrameLog;
use crate::support::log::{commits, header};
use crate::support::process::arg;
use crate::support::service::Service;

pub const SEGMENTS: [&str; 3] =
    ["00000000000000000000.stdb.log", "00000000000000000003.stdb.log", "00000000000000000006.stdb.log"];

/// The segment from commit `first` on.
pub fn segment(first: u64) -> Vec<u8> {
    [header(), commits(first, 3, 50, 0)].concat()
}

/// A service with the logs `app`, of three segments, and `other`.
pub fn start(data: &Path) -> Service {
    let service = Service::start(Arc::new(FsRepo::open(data).unwrap()));
    for log in ["app", "other"] {
        service.create(log);
        assert_eq!(service.append(log, "", &[segment(0), segment(3), segment(6)].concat()).status, 200);
    }
    service
}

pub fn again(data: &Path) -> Service {
    Service::start(Arc::new(FsRepo::open(data).unwrap()))
}

pub fn file(data: &Path, at: usize) -> PathBuf {
    data.join("logs/app/0000000001").join(SEGMENTS[at])
}

#[test]
fn segments_that_are_missing_at_the_start_are_pruned_and_not_empty() {
    let data = tempfile::tempdir().unwrap();
    drop(start(data.path()));
    fs::remove_file(file(data.path(), 0)).unwrap();
    let service = again(data.path());
    let status = service.status("app");
    assert_eq!(
        (&status["first"], &status["durable"], &status["state"]),
        (&3.into(), &9.into(), &"ok".into()),
        "{status}"
    );
    assert!(status["warning"].as_str().unwrap().contains("0 to 3"), "{status}");
    for query in ["from=0", "from=2", "from=0&to=2", "from=0&to=3", "from=0&to=9", "from=0&follow=true"] {
        let answer = service.get(&format!("/logs/app/commits?{query}"));
        assert_eq!(answer.refusal(), (410, "pruned".to_owned()), "{query}: {}", answer.text());
        assert_eq!(answer.json()["first"], 3, "{query}");
    }
    assert_bytes(&service.get("/logs/app/commits?from=3").body, &[segment(3), segment(6)].concat(), "the rest");
    assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).json()["durable"], 10);
    // The same request that created it still finds it.
    assert_eq!(service.put("/logs/app", r#"{"format":"commitlog"}"#).status, 200);
}

#[test]
fn a_segment_that_is_missing_in_the_middle_is_damage_after_a_sound_prefix() {
    let data = tempfile::tempdir().unwrap();
    drop(start(data.path()));
    fs::remove_file(file(data.path(), 1)).unwrap();
    let service = again(data.path());
    let status = service.status("app");
    assert_eq!((&status["state"], &status["durable"]), (&"damaged".into(), &3.into()), "{status}");
    assert_bytes(&service.get("/logs/app/commits?from=0&to=3").body, &segment(0), "the sound prefix");
    assert_eq!(service.get("/logs/app/commits?from=3").refusal(), (500, "corrupt-log".to_owned()));
}

#[test]
fn a_segment_that_is_removed_under_the_service_shows_at_once_and_is_waited_for() {
    let data = tempfile::tempdir().unwrap();
    let service = start(data.path());
    let kept = fs::read(file(data.path(), 1)).unwrap();
    for by_reading in [false, true] {
        fs::remove_file(file(data.path(), 1)).unwrap();
        if by_reading {
            let answer = service.get("/logs/app/commits?from=3&to=6");
            assert_eq!(answer.refusal(), (503, "failed".to_owned()), "{}", answer.text());
            assert!(answer.text().contains(SEGMENTS[1]), "{}", answer.text());
        }
        let status = service.status("app");
        assert_eq!(status["state"], "failed", "{status}");
        assert!(status["error"].as_str().unwrap().contains(SEGMENTS[1]), "{status}");
        assert!(service.get("/health").text().contains(SEGMENTS[1]));
        assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).refusal(), (503, "failed".to_owned()));
        // What is there is served.
        assert_bytes(&service.get("/logs/app/commits?from=6").body, &segment(6), "what is there");
        assert_eq!(service.append("other", "", &commits(9, 1, 50, 0)).status, 200);
        fs::write(file(data.path(), 1), &kept).unwrap();
        service.wait_state("app", "ok");
    }
    assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).json()["durable"], 10);
}

#[test]
fn one_damaged_commit_costs_what_is_after_it_and_no_other_log() {
    let data = tempfile::tempdir().unwrap();
    drop(start(data.path()));
    let mut rotten = fs::read(file(data.path(), 2)).unwrap();
    let at = header().len() + commits(6, 1, 50, 0).len();
    rotten[at + 30] ^= 1;
    fs::write(file(data.path(), 2), &rotten).unwrap();
    let _no_index = fs::remove_file(file(data.path(), 2).with_extension("ofs"));
    let service = again(data.path());
    let status = service.status("app");
    assert_eq!((&status["state"], &status["durable"]), (&"damaged".into(), &7.into()), "{status}");
    let damage = &status["damage"];
    assert_eq!((&damage["segment"], &damage["offset"]), (&SEGMENTS[2].into(), &7.into()), "{status}");
    assert_eq!(damage["byte"], at, "{status}");
    let sound = [segment(0), segment(3), header(), commits(6, 1, 50, 0)].concat();
    assert_bytes(&service.get("/logs/app/commits?from=0&to=7").body, &sound, "the sound prefix");
    assert_eq!(service.get("/logs/app/commits?from=7").refusal(), (500, "corrupt-log".to_owned()));
    assert_eq!(service.append("app", "", &commits(7, 1, 50, 0)).refusal(), (500, "corrupt-log".to_owned()));
    assert_eq!(service.append("other", "", &commits(9, 1, 50, 0)).status, 200);
    assert_eq!((service.get("/livez").status, service.get("/readyz").status), (200, 200));
    let health = service.get("/health");
    assert_eq!(health.status, 200, "{}", health.text());
    assert!(health.text().contains("log app is damaged") && !health.text().contains("other"), "{}", health.text());
    assert_eq!(fs::read(file(data.path(), 2)).unwrap(), rotten, "nothing was changed");
}

#[test]
fn a_service_without_any_usable_log_is_not_healthy_and_lives() {
    let data = tempfile::tempdir().unwrap();
    drop(start(data.path()));
    for log in ["app", "other"] {
        fs::write(data.path().join("logs").join(log).join("log.json"), "{").unwrap();
    }
    let service = again(data.path());
    assert_eq!(
        (service.get("/health").status, service.get("/livez").status, service.get("/readyz").status),
        (503, 200, 200)
    );
}

#[test]
fn a_copy_made_while_the_service_ran_says_so_and_goes_on_after_the_loss_is_accepted() {
    let data = tempfile::tempdir().unwrap();
    let tag = |service: &Service| service.get("/logs/app/segments/6").header("etag").unwrap().to_owned();
    let before = tag(&start(data.path()));
    // The copy of the last segment is older than that of the mark, once at a commit's end and once inside a commit.
    for cut in [0, 10] {
        let whole = fs::read(file(data.path(), 2)).unwrap();
        let keep = header().len() + commits(6, 1, 50, 0).len();
        fs::write(file(data.path(), 2), &whole[..keep + cut]).unwrap();
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"damaged".into(), &7.into()), "{status}");
        let error = status["error"].as_str().unwrap();
        assert!(error.contains("a copy made while the service ran"), "{error}");
        let command = error.split('`').nth(1).unwrap().to_owned();
        assert!(command.starts_with("logmirror repair ") && command.ends_with("logs/app --accept-loss"), "{command}");
        let sound = [segment(0), segment(3), header(), commits(6, 1, 50, 0)].concat();
        assert_bytes(&service.get("/logs/app/commits?from=0&to=7").body, &sound, "the sound prefix");
        let args: Vec<&str> = command.split(' ').skip(1).collect();
        let repair = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap();
        assert_eq!(repair(&args).status.code(), Some(3), "the service runs");
        drop(service);
        assert_eq!(repair(&args[..2]).status.code(), Some(1), "not accepted");
        assert_eq!(fs::read(file(data.path(), 2)).unwrap(), whole[..keep + cut], "nothing was changed");
        let done = repair(&args);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let mut records = fs::read_dir(data.path().join("logs/app/aside")).unwrap();
        let aside = records.next().unwrap().unwrap().path();
        let record: Value = serde_json::from_slice(&fs::read(aside.join("loss.json")).unwrap()).unwrap();
        assert_eq!((&record["from"], &record["to"]), (&7.into(), &9.into()), "{record}");
        assert_eq!(aside.join(SEGMENTS[2]).exists(), cut > 0);
        fs::remove_dir_all(aside).unwrap();
        let service = again(data.path());
        assert_eq!(service.status("app")["state"], "ok");
        assert_bytes(&service.stream("app"), &sound, "what was sound");
        assert_eq!(service.append("app", "", &commits(7, 2, 50, 0)).json()["durable"], 9);
        assert_ne!(tag(&service), before, "other commits may have these offsets now");
    }
    assert_eq!(fs::read_dir(data.path().join("logs")).unwrap().count(), 2);
}

/// Damage before the last entry of an index: the service opens the log without reading it.
#[test]
fn repair_finds_all_the_damage_of_commits_that_verify_finds_and_keeps_what_it_takes_out() {
    let frames = (0..40).fold(FrameLog::new(4096, false), |log, at| log.commit(&[at % 9 + 1], 9));
    let stream = [header(), commits(0, 60, 4000, 0)].concat();
    for (format, bytes, end) in [("commitlog", stream, 60), ("wal", frames.stream(&[]), 41)] {
        let data = tempfile::tempdir().unwrap();
        let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
        assert_eq!(service.put("/logs/app", &format!("{{\"format\":\"{format}\"}}")).status, 201);
        assert_eq!(service.append("app", if format == "wal" { "?from=1" } else { "" }, &bytes).json()["durable"], end);
        drop(service);
        let log = data.path().join("logs/app");
        let generation = log.join("0000000001");
        let name = if format == "wal" { "00000000000000000001.wal" } else { SEGMENTS[0] };
        let mut rotten = fs::read(generation.join(name)).unwrap();
        rotten[50_000..50_020].fill(0);
        fs::write(generation.join(name), &rotten).unwrap();
        let service = again(data.path());
        assert_eq!(service.status("app")["state"], "ok", "{format}: nobody read it");
        drop(service);
        let sound = frames_before(format, 50_000);
        let (code, said) = run(&["verify", arg(&generation)]);
        assert!(code == Some(1) && said.contains(&format!("offset {sound}")), "{format}: {said}");
        let (code, said) = run(&["repair", arg(&log)]);
        assert_eq!(code, Some(1), "{format}: {said}");
        assert!(said.contains(&format!("offsets {sound} to {end} would be missing")), "{format}: {said}");
        assert_eq!(fs::read(generation.join(name)).unwrap(), rotten, "{format}: nothing was changed");
        let (code, said) = run(&["repair", arg(&log), "--accept-loss"]);
        assert_eq!(code, Some(0), "{format}: {said}");
        assert!(kept(data.path()).iter().any(|(_, kept)| *kept == rotten), "{format}: {said}");
        assert_eq!(run(&["verify", arg(&generation)]).0, Some(0), "{format}");
        assert_eq!(run(&["repair", arg(&log)]).0, Some(0), "{format}");
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"ok".into(), &sound.into()), "{format}: {status}");
        assert_bytes(&service.stream("app"), &rotten[..service.stream("app").len()], "what was sound");
    }
}

#[test]
fn damage_of_commits_that_a_running_service_meets_is_in_the_status_and_gone_when_the_file_is_put_back() {
    let frames = (0..40).fold(FrameLog::new(4096, false), |log, at| log.commit(&[at % 9 + 1], 9));
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
    assert_eq!(service.append("app", "?from=1", &frames.stream(&[])).json()["durable"], 41);
    let segment = data.path().join("logs/app/0000000001/00000000000000000001.wal");
    let whole = fs::read(&segment).unwrap();
    let mut rotten = whole.clone();
    rotten[50_000..50_020].fill(0);
    fs::write(&segment, &rotten).unwrap();
    assert_eq!(service.status("app")["state"], "ok", "nobody read it");
    let answer = service.call("POST", "/logs/app/checkpoint", "", b"");
    assert_eq!(answer.refusal(), (500, "corrupt-log".to_owned()), "{}", answer.text());
    let sound = frames_before("wal", 50_000);
    let is_damaged = |service: &Service| {
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"damaged".into(), &sound.into()), "{status}");
        assert_eq!(status["damage"]["offset"], sound, "{status}");
        let error = status["error"].as_str().unwrap();
        assert!(error.contains(&format!("offset {sound}")), "{status}");
        let answer = service.append("app", "?from=41", &[]);
        assert_eq!(answer.refusal(), (500, "corrupt-log".to_owned()), "{}", answer.text());
    };
    is_damaged(&service);
    assert!(service.get("/health").text().contains("log app is damaged"));
    fs::write(&segment, &whole).unwrap();
    // A new name in the directory has it opened again at once.
    fs::write(segment.with_file_name("other"), "").unwrap();
    service.wait_state("app", "ok");
    assert_eq!(service.status("app")["durable"], 41);
    assert_eq!(service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
}

/// The offset of the commit at a byte of the logs above.
fn frames_before(format: &str, byte: u64) -> u64 {
    match format {
        "wal" => (byte - 32) / (24 + 4096) + 1,
        _ => (byte - header().len() as u64) / commits(0, 1, 4000, 0).len() as u64,
    }
}
