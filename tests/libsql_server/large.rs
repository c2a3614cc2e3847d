//! Transactions that are larger than what a service holds of one in memory.

use std::sync::Arc;

use logmirror::repo::{MemRepo, Repo};

use super::{Pushed, Rig, sender, sender_like};
use crate::support::failing::{Failing, Trouble};
use crate::support::frames::FrameLog;
use crate::support::service::{Service, Setup};

/// In a service with so little memory seven frames of a transaction are held, and the last three of them when it is larger.
const MEMORY: u64 = 512 << 10;
const HELD: u64 = 7;

fn rig_on(data: Arc<dyn Repo>) -> Rig {
    let mut setup = Setup::default();
    (setup.settings.memory_max, setup.settings.commit_bytes_max) = (MEMORY, u64::MAX);
    Rig::of(Service::start_with(data, setup))
}

fn rig() -> Rig {
    rig_on(Arc::new(MemRepo::default()))
}

/// A transaction of two frames, one of 60, and one of one.
fn large(sender: FrameLog) -> FrameLog {
    let pages: Vec<u32> = (1..=60).collect();
    sender.commit(&[1, 2], 2).commit(&pages, 60).commit(&[1], 60)
}

#[track_caller]
fn push_in_pieces(rig: &Rig, log: &FrameLog, from: u64, frames: u64) {
    let end = log.frames.len() as u64 + 1;
    for start in (from..end).step_by(frames as usize) {
        let stop = (start + frames).min(end);
        assert_eq!(rig.push(log, start..stop), Pushed::Ok(stop - 1));
    }
}

#[test]
fn a_transaction_larger_than_memory_is_one_in_the_log_whatever_the_pieces_and_the_order_of_words() {
    for big_endian in [false, true] {
        for frames in [1, 3, HELD + 1, 25] {
            let log = large(sender_like(0, big_endian, 9));
            let rig = rig();
            push_in_pieces(&rig, &log, 1, frames);
            assert_eq!(rig.last(), 63, "{big_endian}, {frames}");
            rig.holds(&log);
        }
    }
}

#[test]
fn a_large_first_transaction_makes_the_log_with_its_header() {
    let pages: Vec<u32> = (1..=60).collect();
    let log = sender(1).commit(&pages, 60).commit(&[3, 4], 60);
    let rig = rig();
    push_in_pieces(&rig, &log, 1, 4);
    assert_eq!(rig.last(), 62);
    rig.holds(&log);
}

#[test]
fn the_last_frames_of_a_large_transaction_may_be_sent_again_and_earlier_ones_begin_it_anew() {
    let (rig, log) = (rig(), large(sender(1)));
    assert_eq!(rig.push(&log, 1..3), Pushed::Ok(2));
    for (start, end) in [(3, 13), (13, 23), (22, 24), (21, 33)] {
        assert_eq!(rig.push(&log, start..end), Pushed::Ok(end - 1), "{start}..{end}");
    }
    assert_eq!(rig.last(), 2, "nothing is visible before all is");
    // Frames that are in a file are not compared: it begins anew, from the first that is not in the log.
    assert_eq!(rig.push(&log, 10..20), Pushed::Ok(2));
    push_in_pieces(&rig, &log, 3, 10);
    rig.holds(&log);
}

#[test]
fn damage_inside_a_large_transaction_conflicts_and_stores_nothing() {
    for at in [5, 40, 61] {
        let (rig, log) = (rig(), large(sender(1)));
        let mut damaged = log.clone();
        damaged.frames[at][2000] ^= 1;
        let mut answers = Vec::new();
        for start in (1..64).step_by(6) {
            let answer = rig.push(&damaged, start..(start + 6).min(64));
            answers.push(answer);
            if matches!(answers.last(), Some(Pushed::Conflict(_))) {
                break;
            }
        }
        assert!(matches!(answers.last(), Some(Pushed::Conflict(0 | 2))), "{at}: {answers:?}");
        assert!(rig.last() <= 2, "{at}");
        push_in_pieces(&rig, &log, 1, 6);
        rig.holds(&log);
    }
}

#[test]
fn without_memory_the_start_of_a_transaction_behind_a_whole_one_is_kept_in_a_file() {
    for big_endian in [false, true] {
        let rig = rig();
        // What is set aside for one body, a quarter, stays.
        let incoming = MEMORY / 2 - MEMORY / 4;
        let _all = rig.service.runtime.block_on(rig.service.registry.reserve(incoming)).unwrap();
        let log = large(sender_like(0, big_endian, 9)).commit(&[2, 3, 4], 60).commit(&[5], 60);
        for (start, end) in [(1, 6), (6, 65), (65, 67), (67, 68)] {
            assert_eq!(rig.push(&log, start..end), Pushed::Ok(end - 1), "{big_endian}, {start}");
        }
        rig.holds(&log);
    }
}

#[test]
fn without_space_for_a_large_transaction_it_is_sent_again_later() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let (rig, log) = (rig_on(repo), large(sender(1)));
    assert_eq!(rig.push(&log, 1..7), Pushed::Ok(6));
    plan.set("logs/app/0000000001", Trouble::DiskFull);
    let refused = rig.try_push(&log, 7..17);
    assert_eq!(refused.refusal(), (503, "unavailable".into()));
    plan.clear();
    // What was staged is forgotten with it.
    assert_eq!(rig.push(&log, 7..17), Pushed::Ok(2));
    push_in_pieces(&rig, &log, 3, 10);
    rig.holds(&log);
}
