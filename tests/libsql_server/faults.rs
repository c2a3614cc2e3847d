//! A disk that fails under a push: nothing is claimed that is not durable.

use std::sync::Arc;

use logmirror::repo::{Loss, MemRepo};

use super::{Pushed, Rig, pushed, retold, sender, short};
use crate::support::failing::{Failing, Trouble};
use crate::support::service::Service;

#[test]
fn a_push_is_answered_only_when_it_is_durable() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let rig = Rig::on(repo);
    let log = short();
    assert_eq!(rig.push(&log, 1..3), Pushed::Ok(2));
    plan.set("logs/app", Trouble::SyncHangs);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| rig.try_push(&log, 3..6));
        plan.wait_hanging(1);
        // On its way to the disk it is neither pulled nor answered.
        let pulled = rig.pull("1/3/9");
        assert_eq!((pulled.status, &pulled.json()["max_frame_no"]), (400, &2.into()));
        assert!(!answer.is_finished());
        plan.clear();
        assert_eq!(pushed(&answer.join().unwrap()), Pushed::Ok(5));
    });
    assert_eq!(rig.pull("1/3/9").status, 200);
}

#[test]
fn a_failing_sync_is_told_as_unavailable_and_claims_nothing() {
    for trouble in [Trouble::SyncFails, Trouble::DiskFull, Trouble::ReadOnly] {
        let disk = MemRepo::default();
        let (repo, plan) = Failing::new(Arc::new(disk.clone()));
        let rig = Rig::on(repo);
        let log = short();
        assert_eq!(rig.push(&log, 1..3), Pushed::Ok(2));
        plan.set("logs/app", trouble);
        if trouble != Trouble::ReadOnly {
            // Of the second transaction only a part: that needs no disk.
            assert_eq!(rig.push(&log, 3..5), Pushed::Ok(4));
            let answer = rig.try_push(&log, 5..8);
            assert_eq!(answer.status, 503, "{trouble:?}: {}", answer.text());
            assert!(answer.json().get("max_frame_no").is_none());
            // Nor is it when it is tried again, as clients do.
            assert_eq!(rig.try_push(&log, 3..8).status, 503);
        }
        // What is durable is still served.
        assert_eq!(rig.pull("1/1/129").body.len(), 2 * super::FRAME);
        assert_eq!(rig.pull("1/3/129").status, 400);
        plan.clear();
        drop(rig);
        let lost = disk.after_power_loss(Loss::All);
        let rig = Rig { service: Service::start(Arc::new(lost)) };
        assert_eq!(rig.push(&log, 5..8), Pushed::Ok(2));
        assert_eq!(rig.push(&retold(&log, sender(8)), 1..8), Pushed::Ok(7));
        rig.holds(&log);
    }
}

#[test]
fn an_answered_push_survives_power_loss() {
    let disk = MemRepo::default();
    let rig = Rig::on(Arc::new(disk.clone()));
    let log = short();
    for (start, end) in [(1, 2), (2, 3), (3, 6), (6, 8)] {
        assert_eq!(rig.push(&log, start..end), Pushed::Ok(end - 1));
        let last = rig.last();
        let after = Rig { service: Service::start(Arc::new(disk.after_power_loss(Loss::All))) };
        assert!(after.last() >= last, "{} of {last}", after.last());
    }
}
