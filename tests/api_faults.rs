//! Disks that fail under a running service, and damage that it finds when it starts: one log is out of use and says
//! why, nothing acknowledged is lost, and the others never notice.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use logmirror::mirror::{Registry, Settings};
use logmirror::repo::{FsRepo, Loss, MemRepo, Repo};
use logmirror::stream::{AppendError, Options, StreamWriter};
use support::failing::{Failing, Plan, Trouble};
use support::log::{commits, header};
use support::service::{Answer, Service, Setup, request};
use support::{assert_bytes, expectations, files, plant};

const ACKNOWLEDGED: u64 = 3;

fn start_stream() -> Vec<u8> {
    [header(), commits(0, ACKNOWLEDGED, 50, 0)].concat()
}

/// A service with the logs `victim` and `other`, both on the same writer thread, and commits acknowledged in both.
fn start() -> (MemRepo, Arc<Plan>, Service) {
    let disk = MemRepo::default();
    let (repo, plan) = Failing::new(Arc::new(disk.clone()));
    let mut setup = Setup::default();
    setup.settings.writer_threads = 1;
    let service = Service::start_with(repo, setup);
    for log in ["victim", "other"] {
        service.create(log);
        assert_eq!(service.append(log, "", &start_stream()).status, 200);
    }
    (disk, plan, service)
}

#[track_caller]
fn is_poisoned(answer: &Answer, cause: &str) {
    assert_eq!(answer.refusal(), (503, "failed".to_owned()), "{}", answer.text());
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(answer.json()["next"], ACKNOWLEDGED);
    assert!(answer.text().contains(cause), "{cause} is not in {}", answer.text());
}

fn other_goes_on(service: &Service) {
    let durable = service.status("other")["durable"].as_u64().unwrap();
    let answer = service.append("other", "", &commits(durable, 1, 50, 0));
    assert_eq!((answer.status, &answer.json()["durable"]), (200, &(durable + 1).into()), "{}", answer.text());
    assert_eq!(service.status("other")["state"], "ok");
    assert_eq!(service.get("/logs/other/commits?from=3").status, 200);
}

/// What was acknowledged is there, whole, and the log takes appends again.
fn recovers(service: &Service, log: &str) {
    let status = service.status(log);
    assert_eq!(status["state"], "ok", "{status}");
    let durable = status["durable"].as_u64().unwrap();
    assert!(durable >= ACKNOWLEDGED, "{status}");
    assert_bytes(&service.stream(log)[..start_stream().len()], &start_stream(), log);
    let answer = service.append(log, "", &commits(durable, 2, 50, 9));
    assert_eq!(answer.json()["durable"], durable + 2, "{}", answer.text());
}

#[test]
fn a_log_whose_disk_fails_has_failed_and_heals_without_a_restart_and_with_one() {
    let rotation = [header(), commits(3, 5, 50, 0)].concat();
    let cases = [
        (Trouble::DiskFull, commits(3, 5, 50, 0), "write failed: no storage space"),
        (Trouble::SyncFails, commits(3, 5, 50, 0), "sync failed: injected: SyncFails"),
        (Trouble::ReadOnly, commits(3, 5, 50, 0), "write failed: read-only filesystem or storage medium"),
        (Trouble::DiskFull, rotation.clone(), "create a segment failed: no storage space"),
        (Trouble::SyncFails, rotation.clone(), "sync failed: injected: SyncFails"),
        (Trouble::SyncDirFails, rotation.clone(), "sync the directory failed: injected: SyncDirFails"),
        (Trouble::ReadOnly, rotation, "create a segment failed: read-only filesystem or storage medium"),
    ];
    for (trouble, body, cause) in cases {
        let (disk, plan, service) = start();
        plan.set("logs/victim", trouble);
        is_poisoned(&service.append("victim", "", &body), cause);
        let status = service.status("victim");
        if status["state"] != "ok" {
            assert_eq!((&status["state"], &status["durable"]), (&"failed".into(), &ACKNOWLEDGED.into()), "{status}");
        }
        assert!(service.get("/metrics").text().contains(r#"failures_total{log="victim"}"#));
        // What is durable is still served.
        assert_bytes(&service.stream("victim")[..start_stream().len()], &start_stream(), "victim");
        other_goes_on(&service);
        // One bad log is no bad service.
        assert_eq!(service.get("/health").status, 200);
        plan.clear();
        service.wait_state("victim", "ok");
        recovers(&service, "victim");
        plan.set("logs/victim", trouble);
        assert_eq!(
            service
                .append(
                    "victim",
                    "",
                    &[header(), commits(service.status("victim")["durable"].as_u64().unwrap(), 5, 50, 0)].concat()
                )
                .status,
            503,
            "{trouble:?}"
        );
        drop(service);
        for loss in [Loss::All, Loss::Nothing, Loss::Torn { seed: 1 }, Loss::Torn { seed: 2 }] {
            let service = Service::start(Arc::new(disk.after_power_loss(loss)));
            recovers(&service, "victim");
            recovers(&service, "other");
            assert_eq!(service.get("/health").status, 200);
        }
    }
}

#[test]
fn everybody_who_waits_for_a_sync_that_fails_is_told() {
    let (disk, plan, service) = start();
    let mut follower = service.connect();
    follower.send(request("GET", "/logs/victim/commits?follow=true&from=3", "").as_bytes());
    assert_eq!(follower.head().status, 200);
    let mut live = service.begin_append("victim", "?acks=stream&from=3");
    assert_eq!(live.head().status, 200);
    live.next_json();
    plan.set("logs/victim", Trouble::SyncHangs);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| service.append("victim", "", &commits(3, 2, 50, 0)));
        plan.wait_hanging(1);
        // These wait for a second sync, behind the one that hangs.
        live.send_chunk(&commits(3, 3, 50, 0));
        let again = scope.spawn(|| service.append_chunked("victim", "", &commits(3, 2, 50, 0), 33));
        // Others are synced meanwhile.
        other_goes_on(&service);
        plan.set("logs/victim", Trouble::SyncFails);
        is_poisoned(&first.join().unwrap(), "SyncFails");
        is_poisoned(&again.join().unwrap(), "SyncFails");
    });
    let last = live.next_json().unwrap();
    assert_eq!((&last["error"], &last["next"]), (&"failed".into(), &ACKNOWLEDGED.into()), "{last}");
    assert_eq!(live.next_json(), None);
    // Followers stay, and go on when the log does.
    plan.clear();
    service.wait_state("victim", "ok");
    let durable = service.status("victim")["durable"].as_u64().unwrap();
    assert_eq!(service.append("victim", "", &commits(durable, 1, 50, 0)).status, 200);
    let sent =
        [commits(3, 5, 50, 0)[..commits(3, durable - 3, 50, 0).len()].to_vec(), commits(durable, 1, 50, 0)].concat();
    assert_bytes(&follower.read_stream(sent.len()), &sent, "follower");
    drop(service);
    recovers(&Service::start(Arc::new(disk.after_power_loss(Loss::All))), "victim");
}

/// The kernel tells of a failed write-back once: a sync beside the one that hears of it may succeed, and proves nothing.
#[test]
fn a_sync_beside_one_that_fails_makes_nothing_durable() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let log = repo.create_dir("log").unwrap();
    let mut writer = StreamWriter::open(log, Options::default()).unwrap();
    writer.append(start_stream()).unwrap();
    plan.set("log", Trouble::OneSyncHangsAndFails);
    let fails = writer.begin_sync().unwrap().unwrap();
    writer.append(commits(3, 2, 50, 0)).unwrap();
    let beside = writer.begin_sync().unwrap().unwrap();
    let (fails, beside) = std::thread::scope(|scope| {
        let fails = scope.spawn(|| fails.run());
        plan.wait_hanging(1);
        let beside = scope.spawn(|| beside.run());
        plan.clear();
        (fails.join().unwrap(), beside.join().unwrap())
    });
    assert!(matches!(writer.finish_sync(beside), Err(AppendError::Poisoned { .. })));
    assert!(matches!(writer.finish_sync(fails), Err(AppendError::Poisoned { .. })));
    assert_eq!(writer.durable().0, 0);
}

#[test]
fn a_service_on_a_disk_that_cannot_be_written_says_so_and_loses_nothing() {
    let (disk, _, service) = start();
    drop(service);
    let disk = disk.after_power_loss(Loss::Nothing);
    for trouble in [Trouble::ReadOnly, Trouble::DiskFull, Trouble::ReadFails] {
        let (repo, plan) = Failing::new(Arc::new(disk.after_power_loss(Loss::Nothing)));
        plan.set("logs/victim", trouble);
        let service = Service::start(repo);
        let status = service.status("victim");
        if status["state"] == "ok" {
            // Nothing had to be written to open it.
            assert_eq!((trouble, &status["durable"]), (Trouble::DiskFull, &ACKNOWLEDGED.into()));
        } else {
            assert_eq!(status["state"], "failed", "{status}");
            assert!(status["error"].as_str().unwrap().starts_with("cannot open the log: "), "{status}");
            if trouble != Trouble::ReadFails {
                // What can be read is served.
                assert_eq!((&status["durable"], &status["segments"]), (&ACKNOWLEDGED.into(), &1.into()), "{status}");
                assert_bytes(&service.stream("victim"), &start_stream(), "victim");
                assert_eq!(service.get("/logs/victim/segments/0").status, 200);
            } else {
                // What is not known is not given out as nothing.
                for path in ["commits", "commits?from=3", "commits?follow=true", "segments", "segments/0"] {
                    let answer = service.get(&format!("/logs/victim/{path}"));
                    assert_eq!(answer.refusal(), (503, "failed".to_owned()), "{trouble:?} {path}: {}", answer.text());
                }
                for position in ["first", "next", "durable", "segments", "bytes", "epoch", "last_commit"] {
                    assert!(status[position].is_null(), "{position}: {status}");
                }
            }
            assert_eq!(service.append("victim", "", &commits(3, 1, 50, 0)).refusal().1, "failed");
            assert!(service.get("/health").text().contains("victim"));
        }
        other_goes_on(&service);
        plan.clear();
        service.wait_state("victim", "ok");
        recovers(&service, "victim");
    }
    recovers(&Service::start(Arc::new(disk)), "victim");
}

#[test]
fn a_log_cannot_be_created_on_a_disk_that_fails_and_can_when_it_works_again() {
    for trouble in [Trouble::DiskFull, Trouble::ReadOnly, Trouble::SyncFails, Trouble::SyncDirFails] {
        let (disk, plan, service) = start();
        plan.set("logs", trouble);
        let answer = service.put("/logs/new", r#"{"format":"commitlog"}"#);
        assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "{trouble:?}: {}", answer.text());
        assert_eq!(service.get("/logs/new").refusal().0, 404, "{trouble:?}");
        plan.clear();
        service.create("new");
        assert_eq!(service.append("new", "", &start_stream()).status, 200);
        drop(service);
        recovers(&Service::start(Arc::new(disk.after_power_loss(Loss::All))), "new");
    }
}

#[test]
fn a_log_whose_directory_is_removed_under_the_service_says_so_at_once() {
    let data = tempfile::tempdir().unwrap();
    let repo = || Arc::new(FsRepo::open(data.path()).unwrap());
    let service = Service::start(repo());
    for log in ["victim", "idle", "other"] {
        service.create(log);
        service.append(log, "", &start_stream());
    }
    drop(service);
    let service = Service::start(repo());
    service.append("victim", "", &commits(3, 1, 50, 0));
    fs::remove_dir_all(data.path().join("logs/victim")).unwrap();
    fs::remove_dir_all(data.path().join("logs/idle")).unwrap();
    for log in ["victim", "idle"] {
        let status = service.status(log);
        assert_eq!(status["state"], "failed", "{status}");
        assert!(status["error"].as_str().unwrap().contains(&format!("logs/{log}")), "{status}");
    }
    let open = service.append("victim", "", &commits(4, 1, 50, 0));
    assert_eq!((open.refusal(), &open.json()["next"]), ((503, "failed".to_owned()), &4.into()), "{}", open.text());
    is_poisoned(&service.append("idle", "", &commits(3, 1, 50, 0)), "logs/idle");
    assert_eq!(service.get("/health").text().lines().count(), 2);
    for path in ["commits", "segments/0"] {
        let answer = service.get(&format!("/logs/victim/{path}"));
        assert_eq!(answer.status, 503, "{path}: {}", answer.text());
    }
    other_goes_on(&service);
}

fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>)> {
    files(dir).into_iter().collect()
}

#[test]
fn every_specimen_found_at_the_start_gets_its_verdict_and_harms_no_other() {
    let data = tempfile::tempdir().unwrap();
    let expectations = expectations();
    let places: Vec<_> = expectations.iter().map(|expect| plant(data.path(), &expect.name, &expect.name)).collect();
    let before: Vec<_> = places.iter().map(|place| snapshot(place)).collect();
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    let whole = support::stream_of("whole");
    for expect in &expectations {
        let (log, status) = (&expect.name, service.status(&expect.name));
        if let Some(error) = &expect.error {
            assert_eq!(status["state"], "damaged", "{log}: {status}");
            assert!(status["error"].as_str().unwrap().contains(error.as_str()), "{log}: {status}");
            // What is sound is served, and where it ends the reason is given.
            let durable = status["durable"].as_u64().unwrap();
            let sound = service.get(&format!("/logs/{log}/commits?from=0&to={durable}"));
            if durable > 0 {
                assert_eq!(sound.status, 200, "{log}: {}", sound.text());
                assert_bytes(&sound.body, &whole[..sound.body.len()], log);
                assert!(!sound.body.is_empty(), "{log}");
            }
            for follow in [false, true] {
                let answer = service.get(&format!("/logs/{log}/commits?from={durable}&follow={follow}"));
                assert_eq!(answer.refusal(), (500, "corrupt-log".to_owned()), "{log}: {}", answer.text());
            }
            assert_eq!(service.append(log, "", &whole).refusal(), (500, "corrupt-log".to_owned()), "{log}");
        } else {
            assert_eq!((&status["state"], &status["durable"]), (&"ok".into(), &expect.next.into()), "{log}: {status}");
            let stream = service.stream(log);
            assert_bytes(&stream, &whole[..stream.len()], log);
            // Sent again from the start, the rest is taken and the log is whole.
            let answer = service.append_chunked(log, "", &whole, 5000);
            assert_eq!(answer.status, 200, "{log}: {}", answer.text());
            assert_bytes(&service.stream(log), &whole, log);
        }
    }
    let health = service.get("/health");
    let named = |log: &str| health.text().contains(&format!("log {log} is damaged"));
    for expect in &expectations {
        assert_eq!(named(&expect.name), expect.error.is_some(), "{}: {}", expect.name, health.text());
    }
    drop(service);
    for ((expect, place), before) in expectations.iter().zip(&places).zip(before) {
        if expect.error.is_some() {
            assert_eq!(snapshot(place), before, "{} was changed", expect.name);
        }
    }
}

#[test]
fn a_log_that_cannot_be_understood_is_kept_and_said_to_be_damaged() {
    let data = tempfile::tempdir().unwrap();
    for log in ["no-json", "lost-json", "no-generation", "interrupted", "fine"] {
        plant(data.path(), log, "whole");
    }
    let log = |name: &str| data.path().join("logs").join(name);
    fs::write(log("no-json").join("log.json"), "{\"format\":").unwrap();
    fs::remove_dir_all(log("no-generation").join("0000000001")).unwrap();
    // A creation that was interrupted leaves an empty generation at most.
    fs::remove_dir_all(log("interrupted")).unwrap();
    fs::create_dir_all(log("interrupted").join("0000000001")).unwrap();
    let description = fs::read(log("lost-json").join("log.json")).unwrap();
    fs::remove_file(log("lost-json").join("log.json")).unwrap();
    fs::write(log("a-file"), "").unwrap();
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    for name in ["no-json", "lost-json", "no-generation"] {
        let status = service.status(name);
        assert_eq!(status["state"], "damaged", "{status}");
        assert!(status["error"].is_string());
        assert!(service.get("/health").text().contains(name));
        let answer = service.append(name, "", &start_stream());
        assert_eq!(answer.refusal(), (500, "corrupt-log".to_owned()), "{}", answer.text());
        // Nobody gets an empty log in its place.
        assert_eq!(service.get(&format!("/logs/{name}/commits")).refusal().1, "corrupt-log");
        let created = service.put(&format!("/logs/{name}"), r#"{"format":"commitlog"}"#);
        assert_eq!(created.refusal(), (500, "corrupt-log".to_owned()), "{}", created.text());
    }
    assert_eq!(fs::read_to_string(log("no-json").join("log.json")).unwrap(), "{\"format\":");
    // Its creation was not finished, so it was never there.
    assert_eq!(service.get("/logs/interrupted").status, 404);
    assert_eq!(service.status("fine")["durable"], 360);
    // A log whose files are put there while the service runs is not created over either; and it is found when it is whole.
    assert!(service.status("lost-json")["error"].as_str().unwrap().contains("log.json is missing"));
    plant(data.path(), "late", "whole");
    fs::remove_file(log("late").join("log.json")).unwrap();
    let before = snapshot(&log("late").join("0000000001"));
    let created = service.put("/logs/late", r#"{"format":"commitlog"}"#);
    assert_eq!(created.refusal(), (500, "corrupt-log".to_owned()), "{}", created.text());
    assert_eq!(service.status("late")["state"], "damaged");
    assert_eq!(snapshot(&log("late").join("0000000001")), before);
    assert!(!log("late").join("log.json").exists());
    fs::write(log("lost-json").join("log.json"), description).unwrap();
    service.wait_state("lost-json", "ok");
    assert_eq!(service.status("lost-json")["durable"], 360);
}

#[test]
fn a_second_service_on_the_same_data_is_refused_and_the_first_goes_on() {
    let data = tempfile::tempdir().unwrap();
    let repo = || Arc::new(FsRepo::open(data.path()).unwrap());
    let service = Service::start(repo());
    service.create("other");
    service.append("other", "", &start_stream());
    let error = Registry::open(repo(), Settings::default()).unwrap_err();
    assert!(error.to_string().ends_with("is in use by another process"), "{error}");
    assert!(error.to_string().contains(data.path().to_str().unwrap()), "{error}");
    other_goes_on(&service);
    service.stop();
    recovers(&Service::start(repo()), "other");
}

/// The log's files are closed between two commits of the append, and opened again for the second one.
#[test]
fn a_live_append_learns_of_a_failure_after_the_files_of_its_log_were_closed_meanwhile() {
    let (_disk, plan, service) = start();
    let mut live = service.begin_append("victim", "?acks=stream");
    assert_eq!(live.head().status, 200);
    let mut acknowledged = |commit: Vec<u8>, durable: u64| {
        live.send_chunk(&commit);
        while live.next_json().unwrap() != serde_json::json!({ "durable": durable }) {}
    };
    acknowledged(commits(3, 1, 50, 1), 4);
    plan.set("logs/victim", Trouble::OutOfFiles);
    assert_eq!(service.get("/logs/victim/commits").status, 503, "idle logs close theirs meanwhile");
    plan.clear();
    acknowledged(commits(4, 1, 50, 1), 5);

    plan.set("logs/victim", Trouble::DiskFull);
    live.send_chunk(&commits(5, 3, 50, 1));
    service.wait_state("victim", "failed");
    plan.clear();
    service.wait_state("victim", "ok");
    let other = service.append("victim", "?from=5", &commits(5, 3, 50, 2));
    assert_eq!(other.status, 200, "{}", other.text());
    let line = live.next_json().unwrap();
    assert_eq!(line["error"], "failed", "{line}");
    assert!(service.stream("victim").ends_with(&commits(5, 3, 50, 2)));
}
