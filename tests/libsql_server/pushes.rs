//! One push after the other.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::{FRAME, Pushed, Rig, create, push_to, pushed, retold, sender, short};
use crate::support::frames::FrameLog;
use crate::support::log::{commits, header};
use crate::support::service::request;

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let log = short();
    let all = log.frames.concat();
    let short_by_one = &all[..all.len() - 1];
    let other_salts = [&log.frames[0][..], &retold(&log, sender(2)).frames[1]].concat();
    let mut page_0 = log.frames[0].clone();
    page_0[..4].fill(0);
    for (range, body) in [
        ("1/1/8", short_by_one),
        ("1/1/7", &all[..]),
        ("1/1/9", &all),
        ("1/1/2", &[]),
        ("1/1/1", &all),
        ("1/8/1", &all),
        ("1/0/7", &all),
        ("1/0/0", &[]),
        ("1/1/18446744073709551615", &all),
        ("1/18446744073709551614/18446744073709551615", &log.frames[0]),
        ("1/1/3", &other_salts),
        ("1/1/2", &page_0),
        ("x/1/8", &all),
        ("1/-1/8", &all),
        ("1/1/99999999999999999999", &all),
    ] {
        let answer = rig.post(range, body);
        let far = range.starts_with("1/18446744073709551614");
        // A gap, however wide, is no mistake of form.
        let wanted = if far { 200 } else { 400 };
        assert_eq!(answer.status, wanted, "{range}: {}", answer.text());
    }
    assert_eq!(rig.last(), 0);
    assert_eq!(rig.push_all(&log), Pushed::Ok(7));
    rig.holds(&log);
}

#[test]
fn a_push_without_a_length_is_refused_and_one_that_is_too_long_before_it_comes() {
    let rig = Rig::new();
    let mut wire = rig.service.connect();
    wire.send(request("POST", "/logs/app/sync/1/1/2", "transfer-encoding: chunked\r\n").as_bytes());
    wire.send_chunk(&short().frames[0]);
    wire.send_chunk(b"");
    assert_eq!(wire.answer().refusal(), (400, "invalid".into()));
    let mut wire = rig.service.connect();
    let length = format!("content-length: {}\r\n", (16 << 20) + 1);
    wire.send(request("POST", "/logs/app/sync/1/1/4073", &length).as_bytes());
    assert_eq!(wire.answer().refusal(), (413, "too-large".into()));
}

#[test]
fn a_transaction_over_the_cap_is_refused() {
    let rig = Rig::new();
    // The service takes commits of up to 1 MiB.
    let pages: Vec<u32> = (1..=300).collect();
    let log = sender(1).commit(&[1], 1).commit(&pages, 300);
    assert_eq!(rig.push(&log, 1..129), Pushed::Ok(128));
    assert_eq!(rig.push(&log, 129..250), Pushed::Ok(249));
    assert_eq!(rig.try_push(&log, 250..302).refusal(), (413, "too-large".into()));
    assert_eq!(rig.last(), 1);
}

#[test]
fn logs_that_libsql_cannot_sync_are_refused() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(push_to(&rig.service, "none", &log, 1..3).refusal(), (404, "not-found".into()));
    rig.service.create("commits");
    assert_eq!(rig.service.append("commits", "", &[header(), commits(0, 2, 9, 0)].concat()).status, 200);
    create(&rig.service, "small");
    let small = FrameLog::new(1024, false).commit(&[1, 2], 2);
    assert_eq!(rig.service.append("small", "", &small.stream(&[])).status, 200);
    for name in ["commits", "small"] {
        assert_eq!(push_to(&rig.service, name, &log, 1..3).refusal(), (409, "format".into()));
        for call in ["info", "export/1", "sync/1/1/2", "sync/0/0/0"] {
            assert_eq!(rig.service.get(&format!("/logs/{name}/{call}")).status, 409, "{name} {call}");
        }
    }
}

#[test]
fn a_push_to_another_generation_conflicts() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push_all(&log), Pushed::Ok(7));
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    for generation in [0, 1, 3, u64::from(u32::MAX)] {
        let answer = rig.post(&format!("{generation}/1/8"), &log.frames.concat());
        assert!(matches!(pushed(&answer), Pushed::Conflict(_)), "{generation}");
        // Another than its own would be taken over by the client.
        assert_eq!(answer.json()["generation"], generation);
    }
    assert_eq!(rig.last(), 0);
}

#[test]
fn known_frames_are_taken_again_whoever_sends_them() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push_all(&log), Pushed::Ok(7));
    for teller in [log.clone(), retold(&log, sender(77))] {
        for (start, end) in (1..8).flat_map(|start| (start + 1..9).map(move |end| (start, end))) {
            // Its own end, also where the log goes further.
            assert_eq!(rig.push(&teller, start..end), Pushed::Ok(end - 1), "{start}..{end}");
        }
    }
    rig.holds(&log);
}

#[test]
fn a_push_over_the_end_keeps_what_is_known_and_adds_the_rest() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push(&log, 1..6), Pushed::Ok(5));
    assert_eq!(rig.push(&retold(&log, sender(2)), 3..8), Pushed::Ok(7));
    rig.holds(&log);
}

#[test]
fn a_gap_asks_for_what_is_missing_and_stores_nothing() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push(&log, 3..6), Pushed::Ok(0));
    assert_eq!(rig.push(&log, 1..3), Pushed::Ok(2));
    assert_eq!(rig.push(&log, 6..8), Pushed::Ok(2));
    assert_eq!(rig.last(), 2);
    assert_eq!(rig.push(&log, 3..8), Pushed::Ok(7));
    rig.holds(&log);
}

#[test]
fn other_content_at_a_known_number_conflicts() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push_all(&log), Pushed::Ok(7));
    let other = sender(2).commit(&[1, 2], 2).commit(&[1, 3, 5], 5).commit(&[2, 1], 5);
    assert_eq!(rig.push(&other, 3..6), Pushed::Conflict(7));
    assert_eq!(rig.push(&other, 1..8), Pushed::Conflict(7));
    // What is the same in both is no conflict yet.
    assert_eq!(rig.push(&other, 1..5), Pushed::Ok(4));
    let longer = other.commit(&[1], 5);
    assert_eq!(rig.push(&longer, 5..9), Pushed::Conflict(7));
    rig.holds(&log);
}

#[test]
fn another_history_conflicts_though_its_numbers_fit() {
    let rig = Rig::new();
    let log = short();
    assert_eq!(rig.push_all(&log), Pushed::Ok(7));
    let other = sender(2).commit(&[1, 2], 2).commit(&[1, 3, 9], 9).commit(&[2, 1], 9).commit(&[1, 2, 3], 9);
    assert_eq!(rig.push(&other, 8..11), Pushed::Conflict(7));
    // The last frames agree, those before do not.
    let mut late = sender(3).commit(&[2, 2], 2).commit(&[1, 3, 4], 4).commit(&[2, 1], 4);
    assert_eq!(rig.push(&late, 3..8), Pushed::Conflict(7));
    late = late.commit(&[4], 4);
    assert_eq!(rig.push(&late, 8..9), Pushed::Conflict(7));
    rig.holds(&log);
}

#[test]
fn a_baton_comes_back() {
    let rig = Rig::new();
    let log = short();
    let answer = rig.post("1/1/3/a-baton%20of", &log.frames[..2].concat());
    assert_eq!((pushed(&answer), &answer.json()["baton"]), (Pushed::Ok(2), &"a-baton of".into()));
    assert!(rig.try_push(&log, 3..6).json().get("baton").is_none());
    assert_eq!(rig.post("1/1/9/b", &log.frames[0]).status, 400);
    assert_eq!(rig.post("1/x/9/b", &log.frames[0]).status, 400);
}

#[test]
fn a_flip_that_another_header_would_explain_is_not_stored() {
    // Bits of frame 6. With each of them wrong, that frame's checksum is right if the sender's database had been
    // checkpointed some number of times that it was not.
    for bit in [22525, 22909, 23290, 23291, 24061, 25597, 27899, 29435, 31741, 32504, 32507] {
        let rig = Rig::new();
        let log = short();
        assert_eq!(rig.push(&log, 1..6), Pushed::Ok(5));
        let mut body = log.frames[5..].concat();
        body[bit / 8] ^= 1 << (bit % 8);
        for _ in 0..2 {
            // A sender that is known is believed nothing else, and one that is not is asked for a frame that is.
            assert_eq!(pushed(&rig.post("1/6/8", &body)), Pushed::Conflict(5), "{bit}");
        }
        let stranger = retold(&log, sender(9));
        let mut body = stranger.frames[5..].concat();
        body[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(pushed(&rig.post("1/6/8", &body)), Pushed::Ok(4), "{bit}");
        assert_eq!(rig.last(), 5);
        assert_eq!(rig.push(&stranger, 5..8), Pushed::Ok(7));
        rig.holds(&log);
    }
}

#[test]
fn a_damaged_push_is_never_stored() {
    let fresh = || {
        let rig = Rig::new();
        assert_eq!(rig.push(&short(), 1..6), Pushed::Ok(5));
        rig
    };
    let (rig, strangers) = (RefCell::new(fresh()), Cell::new(1));
    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    let cases = (0..5 * FRAME * 8, prop::sample::select(vec![1_u64, 3, 5, 6]), any::<bool>());
    let tried = TestRunner::new(config).run(&cases, |(bit, start, known)| {
        // One that has stored something is of no use for the cases that are tried to find the least that fails.
        if rig.borrow().last() != 5 {
            rig.replace(fresh());
        }
        let rig = rig.borrow();
        strangers.set(strangers.get() + 1);
        let log = if known { short() } else { retold(&short(), sender(strangers.get())) };
        let mut body = log.frames[start as usize - 1..].concat();
        let bit = bit % (body.len() * 8);
        body[bit / 8] ^= 1 << (bit % 8);
        let answer = rig.post(&format!("1/{start}/8"), &body);
        let asked_again = !known && start == 6 && answer.status == 200 && pushed(&answer) == Pushed::Ok(4);
        if answer.status != 400 && !asked_again {
            prop_assert_eq!(pushed(&answer), Pushed::Conflict(5));
        }
        prop_assert_eq!(rig.last(), 5);
        Ok(())
    });
    tried.unwrap();
}
