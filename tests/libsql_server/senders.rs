//! Senders of every kind, and many at once.

use std::sync::Barrier;

use super::{Pushed, Rig, pushed, retold, sender, sender_like, short};
use crate::support::frames::FrameLog;

#[test]
fn words_of_either_order_go_into_one_log() {
    for native in [None, Some(false), Some(true)] {
        let rig = Rig::new();
        let mut log = short();
        if let Some(big_endian) = native {
            // Our own words have the order of whoever began the log.
            let ours = retold(&log, sender_like(9, big_endian, 9));
            assert_eq!(rig.service.append("app", "", &ours.stream(&[])).status, 200);
        }
        for round in 0_u64..6 {
            let teller = retold(&log, sender_like(0, round % 2 == 0, 100 + round as u32 / 2));
            let from = if round == 0 && native.is_none() { 1 } else { log.frames.len() as u64 + 1 };
            let teller = teller.commit(&[1, 2 + round as u32], 9).commit(&[2], 9);
            let next = from.max(2);
            if from == 1 {
                assert_eq!(rig.push(&teller, 1..next), Pushed::Ok(1));
            }
            // One frame at a time tells nothing of the order by itself.
            assert_eq!(rig.push(&teller, next..next + 1), Pushed::Ok(next), "{native:?} {round}");
            assert_eq!(
                rig.push(&teller, next + 1..teller.frames.len() as u64 + 1),
                Pushed::Ok(teller.frames.len() as u64)
            );
            log = teller;
            // Backwards too.
            assert_eq!(rig.push(&retold(&log, sender_like(1, round % 2 == 0, 55)), 2..4), Pushed::Ok(3));
        }
        rig.holds(&log);
        let other = sender_like(0, true, 500).commit(&[8, 8], 8).commit(&[1, 3, 4], 4).commit(&[2, 1], 4);
        assert_eq!(rig.push(&other, 3..8), Pushed::Conflict(log.frames.len() as u64));
        assert_eq!(rig.push(&other, 7..8), Pushed::Conflict(log.frames.len() as u64));
    }
}

#[test]
fn senders_may_have_had_63_checkpoints() {
    let rig = Rig::new();
    let mut log = sender_like(63, false, 1);
    for sequence in 0..64 {
        log = retold(&log, sender_like(sequence, sequence % 7 == 0, sequence)).commit(&[1], 1);
        let last = log.frames.len() as u64;
        // One whose database was checkpointed has to show what it made of a frame that is known.
        if sequence > 0 {
            assert_eq!(rig.push(&log, last..last + 1), Pushed::Ok(last - 2));
        }
        assert_eq!(rig.push(&log, last.max(2) - 1..last + 1), Pushed::Ok(last));
    }
    rig.holds(&log);
    let late = retold(&log, sender_like(64, false, 5)).commit(&[1], 1);
    assert_eq!(rig.push(&late, 65..66), Pushed::Conflict(64));
}

#[test]
fn a_sender_is_asked_only_once_how_often_its_database_was_checkpointed() {
    let rig = Rig::new();
    let mut log = retold(&short(), sender_like(5, false, 5));
    // Where no frame is known, its first push has to come twice.
    assert_eq!(rig.push(&log, 1..3), Pushed::Ok(0));
    assert_eq!(rig.last(), 0);
    assert_eq!(rig.push(&log, 1..3), Pushed::Ok(2));
    assert_eq!(rig.push(&log, 3..8), Pushed::Ok(7));
    for _ in 0..3 {
        log = log.commit(&[1], 4);
        let last = log.frames.len() as u64;
        assert_eq!(rig.push(&log, last..last + 1), Pushed::Ok(last));
    }
    rig.holds(&log);
    // What would fit another number is not what that sender made.
    let other = retold(&log, sender_like(6, false, 5)).commit(&[2], 4);
    assert_eq!(rig.push(&other, 11..12), Pushed::Conflict(10));
    assert_eq!(rig.push(&log.commit(&[2], 4), 11..12), Pushed::Ok(11));
}

fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(count);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|n| {
                let (work, barrier) = (&work, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    work(n)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Sends it all in batches of two, as a client does.
fn send(rig: &Rig, log: &FrameLog) -> Pushed {
    let last = log.frames.len() as u64;
    for start in (1..=last).step_by(2) {
        let end = (start + 2).min(last + 1);
        match pushed(&rig.try_push(log, start..end)) {
            Pushed::Ok(held) if held == end - 1 => {}
            other => return other,
        }
    }
    Pushed::Ok(last)
}

#[test]
fn the_same_content_from_many_at_once_is_stored_once() {
    for _ in 0..10 {
        let rig = Rig::new();
        let log = short();
        let outcomes = at_once(8, |n| send(&rig, &retold(&log, sender(n as u32))));
        assert!(outcomes.iter().all(|outcome| *outcome == Pushed::Ok(7)), "{outcomes:?}");
        rig.holds(&log);
    }
}

#[test]
fn of_different_content_from_many_at_once_one_wins() {
    for _ in 0..10 {
        let rig = Rig::new();
        let log_of = |n: usize| sender(n as u32).commit(&[1, 2, 3, 4 + n as u32, 2], 12).commit(&[n as u32 + 1], 12);
        let outcomes = at_once(8, |n| send(&rig, &log_of(n)));
        let won: Vec<_> = (0..8).filter(|n| outcomes[*n] == Pushed::Ok(6)).collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        rig.holds(&log_of(won[0]));
        for n in (0..8).filter(|n| *n != won[0]) {
            assert_eq!(rig.push_all(&log_of(n)), Pushed::Conflict(6));
        }
    }
}
