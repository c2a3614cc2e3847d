//! Answers that are not what the service sent.

use std::fs;

use crate::proxy::{Change, body_at};
use crate::scene::{From, Scene};
use crate::sqlite::dump;
use crate::support::commitlog::{Draw, seed};
use crate::support::sqlite::run;

const ALL: [From; 3] = [From::Nothing, From::Old, From::Whole];

/// Bits flipped in the head and in the body of each answer.
fn flips() -> usize {
    std::env::var("LOGMIRROR_TEST_FLIPS").ok().map_or(12, |text| text.parse().unwrap())
}

#[test]
fn a_flipped_bit_in_any_answer_never_reaches_a_replica() {
    let (scene, mut random) = (Scene::new(), Draw(seed()));
    for from in ALL {
        for (nth, answer) in scene.answers(from).into_iter().enumerate() {
            let (head, all) = (body_at(&answer) * 8, answer.len() * 8);
            for _ in 0..flips() {
                for bit in [random.below(head as u64) as usize, head + random.below((all - head) as u64) as usize] {
                    // Well or not, it is right.
                    let _ = scene.must_stay_right(from, (nth, 1, Change::Flip(bit)), true);
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_of_a_frame_is_asked_for_again_and_reported_when_it_stays() {
    let scene = Scene::new();
    for from in [From::Nothing, From::Old] {
        for (nth, answer) in scene.answers(from).into_iter().enumerate() {
            let body = body_at(&answer);
            if answer.len() - body < 4120 || !answer.starts_with(b"HTTP/1.1 200") {
                continue;
            }
            let flip = Change::Flip((body + 3000) * 8);
            scene.must_stay_right(from, (nth, 1, flip.clone()), true).unwrap();
            let error = scene.must_stay_right(from, (nth, 2, flip), true).unwrap_err().to_string();
            assert!(
                error.contains("again on a new connection")
                    || error.contains("is not the server's")
                    || error.contains("asked twice"),
                "{error}"
            );
        }
    }
}

#[test]
fn answers_of_another_log_are_never_mixed_in() {
    let scene = Scene::new();
    for from in ALL {
        for nth in 0..scene.answers(from).len() {
            // A single one is asked for again, unless others were believed because of it.
            let _ = scene.must_stay_right(from, (nth, 1, Change::OtherLog), true);
            // Nor is a server that insists; where nothing says which log was meant, two answers of one are those of that log.
            if from != From::Nothing || nth > 0 {
                let _ = scene.must_stay_right(from, (nth, 2, Change::OtherLog), true);
            }
        }
    }
}

#[test]
fn a_pull_after_all_answers_became_those_of_another_log_stores_nothing() {
    let scene = Scene::new();
    for from in [From::Old, From::Whole] {
        let error = scene.must_stay_right(from, (0, 99, Change::OtherLog), true).unwrap_err().to_string();
        // Where the bases are equal the frames tell.
        let wanted = if from == From::Old { "is not the server's" } else { "another log" };
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn repeated_answers_leave_a_state_of_the_log() {
    let scene = Scene::new();
    for from in ALL {
        for nth in 1..scene.answers(from).len() {
            for count in [1, 2] {
                let _ = scene.must_stay_right(from, (nth, count, Change::Repeat), false);
            }
        }
    }
}

#[test]
fn answers_that_are_cut_leave_a_state_of_the_log() {
    let (scene, mut random) = (Scene::new(), Draw(seed()));
    for from in ALL {
        for (nth, answer) in scene.answers(from).into_iter().enumerate() {
            let body = answer.len() - body_at(&answer);
            for left in
                [0, body / 2, body.saturating_sub(1), random.below(body as u64) as usize, body / 4120 / 2 * 4120]
            {
                let _ = scene.must_stay_right(from, (nth, 1, Change::Cut(left)), true);
            }
        }
    }
}

#[test]
fn a_server_that_says_nothing_of_its_log_is_taken_as_it_is() {
    let scene = Scene::new();
    for from in ALL {
        for nth in 0..scene.answers(from).len() {
            for count in [1, 2, 99] {
                scene.must_stay_right(from, (nth, count, Change::Strip), true).unwrap();
            }
        }
    }
}

#[test]
fn frames_of_other_servers_are_checked_as_far_as_they_say_what_they_follow() {
    let (scene, mut random) = (Scene::new(), Draw(seed()));
    scene.proxy.be_foreign();
    let mut checked = 0;
    for from in [From::Nothing, From::Old] {
        for (nth, answer) in scene.answers(from).into_iter().enumerate() {
            let body = body_at(&answer);
            if answer.len() - body <= 4120 || !answer.windows(5).any(|bytes| bytes == b"\r\n\r\n\0") {
                continue;
            }
            checked += 1;
            for _ in 0..flips() {
                // In a page: a frame with other salts would be another sender's.
                let frame = random.below((answer.len() - body) as u64 / 4120) as usize;
                let byte = body + frame * 4120 + 24 + random.below(4096) as usize;
                scene.must_stay_right(from, (nth, 1, Change::Flip(byte * 8 + 3)), true).unwrap();
            }
        }
    }
    assert_eq!(checked, 3, "the frames of two generations, and of one");
}

#[test]
fn a_generation_that_starts_from_another_database_is_not_gone_on_with_as_if_it_followed() {
    let scene = Scene::new();
    assert_eq!(scene.answers(From::Old).len(), 5, "one that follows is not downloaded");
    let other = scene.path("other.db");
    run(&other, "PRAGMA journal_mode=WAL; CREATE TABLE t(a, b); INSERT INTO t VALUES('another', 1);").unwrap();
    let url = format!("{}/generations/3", scene.service.url("a"));
    let put = reqwest::Client::new().put(url).body(fs::read(&other).unwrap()).send();
    assert!(scene.service.call(put).unwrap().status().is_success());
    for from in ALL {
        scene.proxy.plan(None);
        let replica = scene.replica(from);
        scene.pull(&replica, "a").unwrap();
        assert_eq!(dump(&replica), dump(&other), "{from:?}");
        // Also where an answer is missing on the way.
        for nth in 0..scene.proxy.answers().len() {
            let replica = scene.replica(from);
            scene.proxy.plan(Some((nth, 1, Change::Drop)));
            scene.pull(&replica, "a").unwrap();
            assert_eq!(dump(&replica), dump(&other), "{from:?}, without answer {nth}");
        }
    }
}
