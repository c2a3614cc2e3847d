//! Transactions that come in several pushes.

use std::sync::Arc;

use logmirror::limits::STAGED_SENDERS_MAX;
use logmirror::repo::{FsRepo, MemRepo};

use super::{Pushed, Rig, create, push_to, pushed, retold, sender, short};
use crate::support::service::Service;

#[test]
fn frames_without_their_commit_are_staged_and_not_pulled() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push(&log, 1..2), Pushed::Ok(1));
    assert_eq!((rig.last(), rig.pull("1/1/9").status), (0, 400));
    assert_eq!(rig.push(&log, 2..5), Pushed::Ok(4));
    assert_eq!((rig.last(), rig.pull("1/3/9").status), (2, 400));
    assert_eq!(rig.pull("1/3/9").json()["max_frame_no"], 2);
    assert_eq!(rig.push(&log, 5..7), Pushed::Ok(6));
    assert_eq!(rig.last(), 5);
    assert_eq!(rig.push(&log, 7..8), Pushed::Ok(7));
    rig.holds(&log);
}

#[test]
fn what_is_staged_may_be_sent_again_in_any_pieces() {
    let rig = Rig::new();
    let log = sender(1).commit(&[1], 1).commit(&[1, 2, 3, 4, 5, 6], 6);
    assert_eq!(rig.push(&log, 1..5), Pushed::Ok(4));
    for (start, end) in [(1, 3), (2, 4), (3, 5), (4, 5), (1, 5)] {
        assert_eq!(rig.push(&log, start..end), Pushed::Ok(end - 1));
    }
    // A gap behind the stage asks for what follows it.
    assert_eq!(rig.push(&log, 6..8), Pushed::Ok(4));
    assert_eq!(rig.push(&log, 3..7), Pushed::Ok(6));
    assert_eq!(rig.push(&log, 6..8), Pushed::Ok(7));
    rig.holds(&log);
}

#[test]
fn a_restart_forgets_what_is_staged_and_asks_for_it() {
    let disk = MemRepo::default();
    let rig = Rig::on(Arc::new(disk.clone()));
    let log = short();
    assert_eq!(rig.push(&log, 1..5), Pushed::Ok(4));
    let Rig { service } = rig;
    service.stop();
    let rig = Rig { service: Service::start(Arc::new(disk)) };
    assert_eq!(rig.push(&log, 5..8), Pushed::Ok(2));
    assert_eq!(rig.push(&log, 3..8), Pushed::Ok(7));
    rig.holds(&log);
}

#[test]
fn a_sender_may_begin_its_transaction_anew() {
    let rig = Rig::new();
    let first = sender(1).commit(&[1], 1).commit(&[1, 2, 3, 4], 4);
    let anew = sender(1).commit(&[1], 1).commit(&[1, 5, 6, 7], 7);
    assert_eq!(rig.push(&first, 1..4), Pushed::Ok(3));
    assert_eq!(rig.push(&anew, 2..5), Pushed::Ok(4));
    assert_eq!(rig.push(&anew, 5..6), Pushed::Ok(5));
    rig.holds(&anew);
}

#[test]
fn two_copies_of_one_replica_do_not_mix() {
    let rig = Rig::new();
    let one = sender(1).commit(&[1], 1).commit(&[1, 2, 3, 4], 4);
    let two = sender(1).commit(&[1], 1).commit(&[1, 5, 6, 7], 7);
    assert_eq!(rig.push(&one, 1..4), Pushed::Ok(3));
    assert_eq!(rig.push(&two, 1..4), Pushed::Ok(3));
    // Frame 4 goes on from the other one's frame 3.
    assert_eq!(rig.push(&one, 4..6), Pushed::Conflict(1));
    assert_eq!(rig.push(&one, 2..6), Pushed::Ok(5));
    assert_eq!(rig.push(&two, 4..6), Pushed::Conflict(5));
    rig.holds(&one);
}

#[test]
fn too_many_senders_forget_those_silent_for_longest() {
    let rig = Rig::new();
    let log_of = |n: usize| sender(n as u32).commit(&[1, 2 + n as u32], 99);
    for n in 0..=STAGED_SENDERS_MAX {
        assert_eq!(rig.push(&log_of(n), 1..2), Pushed::Ok(1));
    }
    assert_eq!(rig.push(&log_of(0), 2..3), Pushed::Ok(0));
    assert_eq!(rig.push(&log_of(1), 2..3), Pushed::Ok(2));
    rig.holds(&log_of(1));
    assert_eq!(rig.push(&log_of(STAGED_SENDERS_MAX), 2..3), Pushed::Conflict(2));
}

#[test]
fn a_stage_whose_log_went_on_conflicts() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push(&log, 1..3), Pushed::Ok(2));
    let (slow, slower) = (retold(&log, sender(2)), retold(&log, sender(3)));
    let other = sender(4).commit(&[1, 2], 2).commit(&[1, 2, 3, 4], 4);
    assert_eq!(rig.push(&slow, 3..4), Pushed::Ok(3));
    assert_eq!(rig.push(&slower, 3..5), Pushed::Ok(4));
    assert_eq!(rig.push(&other, 3..5), Pushed::Ok(4));
    assert_eq!(rig.push(&other, 5..7), Pushed::Ok(6));
    for (log, from) in [(&slow, 4), (&slower, 5), (&slow, 3)] {
        assert_eq!(rig.push(log, from..8), Pushed::Conflict(6));
    }
    // One that is the same up to there goes on.
    let same = retold(&other, sender(5)).commit(&[1], 4);
    assert_eq!(rig.push(&same, 5..8), Pushed::Ok(7));
    rig.holds(&same);
}

#[test]
fn a_stage_longer_than_what_others_committed_is_asked_for_again_and_conflicts() {
    let rig = Rig::new();
    let log = sender(1).commit(&[1, 2, 3, 4, 5], 5);
    let other = sender(2).commit(&[1, 2], 2);
    assert_eq!(rig.push(&log, 1..5), Pushed::Ok(4));
    assert_eq!(rig.push(&other, 1..3), Pushed::Ok(2));
    assert_eq!(rig.push(&log, 5..6), Pushed::Ok(2));
    assert_eq!(rig.push(&log, 3..6), Pushed::Conflict(2));
    rig.holds(&other);
}

#[test]
fn damage_behind_a_stage_conflicts() {
    let rig = Rig::new();
    let log = sender(1).commit(&[1, 2, 3, 4, 5], 5);
    for (staged, from) in [(1..4, 4), (1..4, 3), (1..4, 1)] {
        assert_eq!(rig.push(&log, staged), Pushed::Ok(3));
        let mut damaged = log.clone();
        damaged.frames[4][4000] ^= 4;
        assert_eq!(rig.push(&damaged, from..6), Pushed::Conflict(0), "from {from}");
        assert_eq!(rig.last(), 0);
    }
    assert_eq!(rig.push_all(&log), Pushed::Ok(5));
}

#[test]
fn a_long_upload_whose_batches_end_within_transactions_holds_no_memory() {
    // The senders' part of the budget is 15 MiB here, and this is 31.
    let rig = Rig::new();
    let mut log = sender(1);
    for round in 0..1500 {
        log = log.commit(&[1, 2, 3, 4, 5 + round], 2000);
    }
    for start in (1..7500).step_by(128) {
        let end = (start + 128).min(7501);
        assert_eq!(rig.push(&log, start..end), Pushed::Ok(end - 1));
    }
    rig.holds(&log);
}

#[test]
fn senders_that_fell_silent_do_not_keep_the_memory_of_others() {
    let rig = Rig::new();
    let pages: Vec<u32> = (1..=129).collect();
    for n in 0..29 {
        assert_eq!(rig.push(&sender(n).commit(&pages, 200 + n), 1..129), Pushed::Ok(128));
    }
    // The last bits are hard to get, and got.
    for n in 29..33 {
        assert_eq!(rig.push(&sender(n).commit(&pages, 200 + n), 1..129), Pushed::Ok(128));
    }
    let log = short();
    assert_eq!(rig.push_all(&log), Pushed::Ok(7));
}

/// What this process has in memory, in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn half_transactions_of_many_logs_stay_within_the_memory_budget() {
    let data = tempfile::tempdir().unwrap();
    let rig = Rig::on(Arc::new(FsRepo::open(data.path()).unwrap()));
    let pages: Vec<u32> = (1..=251).collect();
    let log = sender(1).commit(&pages, 300);
    let before = resident();
    for n in 0..250 {
        let name = format!("log-{n}");
        create(&rig.service, &name);
        assert_eq!(pushed(&push_to(&rig.service, &name, &log, 1..251)), Pushed::Ok(250));
    }
    // 250 MB were sent, the budget is 32 MiB, and other tests have services too.
    let grown = resident().saturating_sub(before);
    assert!(grown < 120, "{grown} MiB");
    // What is not in memory is not lost.
    assert_eq!(pushed(&push_to(&rig.service, "log-249", &log, 251..252)), Pushed::Ok(251));
    assert_eq!(rig.service.status("log-249")["durable"], 252);
}
