//! What is served, and what must not be.

use std::sync::Arc;

use logmirror::repo::FsRepo;

use super::{FRAME, Pushed, Rig, identity, sender, short};
use crate::support::assert_bytes;
use crate::support::service::Service;

#[test]
fn a_pull_has_the_frames_asked_for_and_no_more() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push_all(&log), Pushed::Ok(7));
    for start in 1..8_usize {
        for end in start + 1..12 {
            let answer = rig.pull(&format!("1/{start}/{end}"));
            let wanted = &log.frames[start - 1..(end - 1).min(7)];
            assert_eq!(answer.status, 200);
            assert_eq!(answer.body.len(), wanted.len() * FRAME);
            assert_bytes(&identity(&answer.body), &identity(&wanted.concat()), format!("{start}..{end}"));
        }
    }
    for start in [8, 9, 100, u64::from(u32::MAX), u64::MAX - 1] {
        let answer = rig.pull(&format!("1/{start}/{}", start + 1));
        assert_eq!(answer.status, 400, "{start}");
        let wanted = serde_json::json!({"status": "checkpoint_needed", "generation": 1, "max_frame_no": 7});
        assert_eq!(answer.json(), wanted);
    }
}

#[test]
fn an_empty_log_has_a_generation_and_an_empty_database() {
    let rig = Rig::new();
    assert_eq!(rig.service.get("/logs/app/info").json(), serde_json::json!({"current_generation": 1}));
    let export = rig.service.get("/logs/app/export/1");
    assert_eq!((export.status, export.body), (200, logmirror::format::database::empty(4096)));
    assert_eq!(rig.pull("1/1/129").status, 400);
    let probe = rig.pull("0/0/0");
    assert_eq!((probe.status, probe.body.len()), (200, 0));
}

#[test]
fn trouble_with_a_pull_is_never_taken_for_its_end() {
    let rig = Rig::new();
    assert_eq!(rig.push_all(&short()), Pushed::Ok(7));
    for (path, wanted) in [
        ("app/sync/1/0/3", 404),
        ("app/sync/1/3/3", 404),
        ("app/sync/1/4/3", 404),
        ("app/sync/2/1/3", 404),
        ("app/sync/0/1/3", 404),
        ("app/sync/x/1/3", 404),
        ("app/sync/1/-1/3", 404),
        ("app/sync/1/1/99999999999999999999", 404),
        ("none/sync/1/1/3", 404),
        ("none/sync/0/0/0", 404),
        ("UPPER/sync/1/1/3", 404),
        ("app/sync/1/1", 404),
    ] {
        let answer = rig.service.get(&format!("/logs/{path}"));
        assert_eq!(answer.status, wanted, "{path}: {}", answer.text());
    }
}

#[test]
fn a_roll_over_keeps_the_old_frames_and_exports_the_new_base() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push_all(&log), Pushed::Ok(7));
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    assert_eq!(rig.service.get("/logs/app/info").json()["current_generation"], 2);
    let old = rig.pull("1/1/129");
    assert_bytes(&identity(&old.body), &identity(&log.frames.concat()), "generation 1");
    let end = rig.pull("1/8/136");
    assert_eq!((end.status, &end.json()["generation"]), (400, &2.into()));
    assert_eq!(rig.pull("2/1/129").status, 400);
    assert_eq!(rig.service.get("/logs/app/export/1").status, 404);
    assert_eq!(rig.service.get("/logs/app/export/3").status, 404);
    let export = rig.service.get("/logs/app/export/2");
    assert_bytes(&export.body, &log.state(7), "the base of generation 2");
    // The next generation's frames count from 1 again, and chain from nothing.
    let next = sender(9).commit(&[1, 4], 4);
    assert_eq!(super::pushed(&rig.post("2/1/3", &next.frames.concat())), Pushed::Ok(2));
    assert_bytes(&identity(&rig.pull("2/1/9").body), &identity(&next.frames.concat()), "generation 2");
}

/// The data of a service that was rolled over and stopped.
fn rolled() -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    let rig = Rig::on(Arc::new(FsRepo::open(data.path()).unwrap()));
    assert_eq!(rig.push_all(&short()), Pushed::Ok(7));
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    rig.service.stop();
    data
}

fn restarted(data: &tempfile::TempDir) -> Rig {
    Rig { service: Service::start(Arc::new(FsRepo::open(data.path()).unwrap())) }
}

#[test]
fn a_generation_that_was_deleted_is_gone_and_not_at_its_end() {
    let data = rolled();
    std::fs::remove_dir_all(data.path().join("logs/app/0000000001")).unwrap();
    let rig = restarted(&data);
    for range in ["1/1/129", "1/8/136"] {
        assert_eq!(rig.pull(range).refusal(), (410, "pruned".into()));
    }
}

#[test]
fn a_generation_that_is_damaged_is_not_at_its_end() {
    let data = rolled();
    let segment = data.path().join("logs/app/0000000001/00000000000000000001.wal");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[32 + 2 * FRAME + 500] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let rig = restarted(&data);
    for range in ["1/1/129", "1/3/129", "1/8/136"] {
        assert_eq!(rig.pull(range).status, 503, "{range}: {}", rig.pull(range).text());
    }
    assert_eq!(rig.pull("2/1/129").status, 400);
}

#[test]
fn a_log_that_is_damaged_serves_nothing() {
    let data = tempfile::tempdir().unwrap();
    let rig = Rig::on(Arc::new(FsRepo::open(data.path()).unwrap()));
    assert_eq!(rig.push_all(&short()), Pushed::Ok(7));
    rig.service.stop();
    let segment = data.path().join("logs/app/0000000001/00000000000000000001.wal");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let rig = restarted(&data);
    for range in ["1/1/129", "1/8/136", "0/0/0"] {
        assert_eq!(rig.pull(range).status, 503, "{range}");
    }
    assert_eq!(rig.try_push(&short(), 1..8).status, 500);
}
