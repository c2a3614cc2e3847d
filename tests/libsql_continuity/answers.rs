//! Answers that are not what the service sent.

use std::fs;
use std::path::Path;

use logmirror::sync::metadata;

use crate::beside;
use crate::proxy::{Change, body_at};
use crate::scene::{From, Scene};
use crate::sqlite::{dump, run_and_die};
use crate::support::commitlog::{Draw, seed};
use crate::support::sqlite::{Sqlite, run};

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
            // Of a frame that the replica holds two answers are no proof yet that the histories have parted.
            let error = scene.must_stay_right(from, (nth, 4, flip), true).unwrap_err().to_string();
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
fn an_export_ends_at_the_first_byte_that_is_too_much() {
    let scene = Scene::new();
    let mut exports = 0;
    for (nth, answer) in scene.answers(From::Nothing).into_iter().enumerate() {
        if !answer[body_at(&answer)..].starts_with(b"SQLite format 3") {
            continue;
        }
        exports += 1;
        let longer = Change::Lengthen(4096);
        scene.must_stay_right(From::Nothing, (nth, 1, longer.clone()), true).unwrap();
        let error = scene.must_stay_right(From::Nothing, (nth, 4, longer), true).unwrap_err().to_string();
        assert!(error.contains("an export of more than the "), "{error}");
    }
    assert_eq!(exports, 1);
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
            scene.must_stay_right(from, (nth, 1, Change::Strip), true).unwrap();
        }
    }
    scene.must_stay_right(From::Nothing, (0, 99, Change::Strip), true).unwrap();
}

/// Answers that say nothing of their log, in the place of one that did.
fn silent() -> [Change; 5] {
    [Change::Strip, Change::StripOther, Change::StripFlip(3001 * 8 + 2), Change::NoContent, Change::StripBody]
}

#[test]
fn a_server_that_said_of_which_log_it_is_must_keep_saying_so() {
    let scene = Scene::new();
    for from in ALL {
        for nth in 0..scene.answers(from).len() {
            for change in silent() {
                let _ = scene.must_stay_right(from, (nth, 2, change), true);
            }
        }
    }
    // The base of the second generation, of which the answer before said that there is one.
    for change in silent() {
        scene.must_stay_right(From::Nothing, (1, 2, change), true).unwrap_err();
    }
    // The record of a replica says it too, until it is set aside.
    for from in [From::Old, From::Whole] {
        let error = scene.must_stay_right(from, (0, 99, Change::Strip), true).unwrap_err().to_string();
        assert!(error.contains("--adopt"), "{error}");
        let replica = scene.replica(from);
        scene.proxy.plan(Some((0, 99, Change::Strip)));
        scene.pull_with_adopt(&replica, "a").unwrap();
        assert_eq!(dump(&replica), scene.last);
    }
}

#[test]
fn a_base_that_says_nothing_of_its_log_is_not_believed_where_the_generation_of_a_replica_was_deleted() {
    let scene = Scene::new();
    scene.keep_one_generation();
    let answers = scene.answers(From::Old);
    assert!(answers[0].starts_with(b"HTTP/1.1 410"));
    for nth in 0..answers.len() {
        for change in silent() {
            for count in [1, 2] {
                let _ = scene.must_stay_right(From::Old, (nth, count, change.clone()), true);
            }
        }
    }
}

#[test]
fn a_base_of_which_nothing_was_said_is_compared_with_the_one_that_later_answers_name() {
    let scene = Scene::new();
    // Of the second generation all pages are in its frames.
    scene.keep_one_generation();
    scene.roll("b");
    for change in [Change::StripOther, Change::StripFlip(3001 * 8 + 2), Change::StripBody] {
        let _ = scene.must_stay_right(From::Nothing, (0, 2, change), true);
    }
}

#[test]
fn frames_of_other_servers_are_checked_as_far_as_they_say_what_they_follow() {
    let (scene, mut random) = (Scene::new(), Draw(seed()));
    scene.proxy.be_foreign();
    // As one that was made from such a server.
    let info = beside(&scene.path("old.db"), "-info");
    let position = metadata::decode(&fs::read(&info).unwrap()).unwrap();
    fs::write(&info, metadata::encode(position)).unwrap();
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
    start_third_generation(&scene, &other);
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

/// Ends the second generation of the log `a`; the next one starts from another database.
fn start_third_generation(scene: &Scene, base: &Path) {
    let url = format!("{}/generations/3", scene.service.url("a"));
    let put = reqwest::Client::new().put(url).body(fs::read(base).unwrap()).send();
    assert!(scene.service.call(put).unwrap().status().is_success());
}

#[test]
fn frames_that_a_read_keeps_in_the_wal_do_not_vouch_for_the_base_of_the_next_generation() {
    let scene = Scene::new();
    // It differs in pages only that the second generation wrote.
    let before = scene.path("before.db");
    let export = async { reqwest::get(format!("{}/export/2", scene.service.url("a"))).await?.bytes().await };
    fs::write(&before, scene.service.call(export).unwrap()).unwrap();
    let replica = scene.replica(From::Whole);
    let mut reader = Sqlite::open(&replica);
    reader.rows("BEGIN");
    reader.rows("SELECT count(*) FROM t");
    start_third_generation(&scene, &before);
    scene.pull(&replica, "a").unwrap();
    assert_eq!(dump(&replica), dump(&before));
    reader.rows("COMMIT");
    scene.pull(&replica, "a").unwrap();
    assert_eq!(dump(&replica), dump(&before));
}

#[test]
fn a_generation_of_which_no_base_was_named_before_is_compared_once_it_is() {
    let scene = Scene::new();
    let other = scene.path("other.db");
    run(&other, "PRAGMA journal_mode=WAL; CREATE TABLE t(a, b); INSERT INTO t VALUES('another', 1);").unwrap();
    start_third_generation(&scene, &other);
    for from in [From::Old, From::Whole] {
        let replica = scene.replica(from);
        scene.proxy.plan(None);
        scene.proxy.name_the_next_base(false);
        scene.pull(&replica, "a").unwrap();
        assert_eq!(dump(&replica), dump(&other), "{from:?}");
    }
    // Also where it ended right after it went into the generation.
    let replica = scene.replica(From::Whole);
    scene.proxy.plan(Some((2, 99, Change::Drop)));
    scene.pull(&replica, "a").unwrap_err();
    let position = metadata::decode(&fs::read(beside(&replica, "-info")).unwrap()).unwrap();
    assert_eq!((position.generation, position.frame), (3, 0));
    scene.proxy.plan(None);
    scene.proxy.name_the_next_base(true);
    scene.pull(&replica, "a").unwrap();
    assert_eq!(dump(&replica), dump(&other));
}

#[test]
fn a_base_that_is_not_in_wal_mode_is_not_downloaded_for_each_generation() {
    let scene = Scene::new();
    let [other, writer] = ["other.db", "writer.db"].map(|name| scene.path(name));
    run(&other, "CREATE TABLE t(a, b); INSERT INTO t VALUES('another', 1);").unwrap();
    start_third_generation(&scene, &other);
    let replica = scene.replica(From::Nothing);
    for file in [&replica, &writer] {
        scene.pull(file, "a").unwrap();
    }
    // The first page stays as it is.
    run_and_die(&writer, "UPDATE t SET b = 2;");
    scene.push(&writer, "a");
    scene.roll("a");
    scene.proxy.plan(None);
    scene.pull(&replica, "a").unwrap();
    assert_eq!(dump(&replica), dump(&writer));
    assert!(!scene.proxy.answers().iter().any(|answer| answer.windows(15).any(|bytes| bytes == b"SQLite format 3")));
}
