//! Roll-overs, new bases, and clients of other histories.

use super::support::assert_bytes;
use super::support::frames::{FrameLog, content, head};
use super::{PAGE, Rig, between, fresh, real, short};

/// A log that goes on from a base, with salts of its own.
fn next(base: Vec<u8>, salt: u32) -> FrameLog {
    let mut log = FrameLog { base, ..FrameLog::new(4096, false) };
    log.header.salts = [salt, 9];
    log.chain = log.header.seed();
    log
}

fn refusal(rig: &Rig, from: &str, to: &str) -> (u16, String) {
    let answer = rig.ask(&between(from, to));
    (answer.status, answer.text())
}

#[test]
fn a_client_goes_on_over_a_roll_over_with_what_changed_and_no_more() {
    let log = real();
    let rig = Rig::holding(&log);
    let last = log.frames.len() as u64;
    rig.roll();
    let end = rig.between(&rig.revision(1, last), "");
    assert_eq!(end.pages, [], "nothing changed by that");
    assert!(end.revision.starts_with("2:0:"), "{}", end.revision);
    let second = next(log.state(last), 2).commit(&[2, 5], (log.state(last).len() / PAGE) as u32).commit(&[3], 40);
    rig.append(&second, 0..3);
    let newest = rig.revision(2, 3);
    for frame in log.commits() {
        let pulled = rig.between(&rig.revision(1, frame), "");
        assert_eq!(pulled.revision, newest);
        assert_bytes(&pulled.applied(&log.state(frame)), &second.state(3), format!("from frame {frame}"));
    }
    assert_eq!(rig.between(&rig.revision(1, last), "").ids(), [1, 2, 4]);
    assert_eq!(rig.between(&end.revision, "").ids(), [1, 2, 4]);
    assert_bytes(&rig.bootstrap().applied(&[]), &second.state(3), "a bootstrap");
    // Back and forth, pinned.
    let pulled = rig.between(&rig.revision(1, 2.max(log.commits()[0])), &rig.revision(2, 2));
    assert_bytes(&pulled.applied(&log.state(log.commits()[0])), &second.state(2), "pinned in the second");
    let (status, text) = refusal(&rig, &newest, &rig.revision(1, last));
    assert!(status == 400 && text.contains("ahead"), "{text}");
}

#[test]
fn a_client_goes_on_over_a_roll_over_that_was_before_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let log = real();
    let rig = Rig::in_dir(data.path()).filled(&log);
    let (last, size) = (log.frames.len() as u64, (log.state(log.frames.len() as u64).len() / PAGE) as u32);
    rig.roll();
    let second = next(log.state(last), 2).commit(&[2, 5], size).commit(&[3], size);
    rig.append(&second, 0..3);
    rig.service.stop();
    let rig = Rig::in_dir(data.path());
    assert_eq!(rig.between(&rig.revision(1, last), "").ids(), [1, 2, 4]);
    for frame in log.commits().into_iter().step_by(7) {
        let pulled = rig.between(&rig.revision(1, frame), "");
        assert_bytes(&pulled.applied(&log.state(frame)), &second.state(3), format!("from frame {frame}"));
    }
    // Over two at once.
    rig.roll();
    assert_eq!(rig.between(&rig.revision(2, 3), "").pages, []);
}

#[test]
fn a_base_that_is_not_where_the_generation_before_ended_is_sent_as_far_as_it_differs() {
    let log = short();
    let rig = Rig::holding(&log);
    // Page 3 is another, 4 is gone, and nothing of that is in any frame.
    let mut base = log.state(7);
    base[2 * PAGE..3 * PAGE].copy_from_slice(&content(4096, 3, 99));
    base.truncate(3 * PAGE);
    rig.start(5, &base);
    let pulled = rig.between(&rig.revision(1, 7), "");
    assert_eq!((pulled.ids(), pulled.size), (vec![2], 3));
    assert_bytes(&pulled.applied(&log.state(7)), &base, "the new base");
    let second = next(base.clone(), 4).commit(&[4, 5], 5);
    rig.append(&second, 0..2);
    for frame in log.commits() {
        let pulled = rig.between(&rig.revision(1, frame), "");
        assert_bytes(&pulled.applied(&log.state(frame)), &second.state(2), format!("from frame {frame}"));
    }
    // A third one, larger, with the second in between.
    let larger = [&second.state(2)[..], &content(4096, 6, 1), &content(4096, 7, 1)].concat();
    rig.start(6, &larger);
    for (generation, frame, had) in [(1, 5, log.state(5)), (5, 2, second.state(2))] {
        let pulled = rig.between(&rig.revision(generation, frame), "");
        assert_bytes(&pulled.applied(&had), &larger, format!("from generation {generation}"));
    }
    assert_eq!(rig.between(&rig.revision(5, 2), "").ids(), [5, 6]);
}

#[test]
fn a_revision_of_another_history_is_refused() {
    let rig = Rig::holding(&short());
    let theirs = rig.revision(1, 7);
    let base = rig.between("", "").revision;
    // Wiped and begun anew: as long, with other content, and with the same under other salts.
    for other in [fresh().commit(&[2, 1], 2).commit(&[3, 4, 1], 4).commit(&[2, 1], 4), {
        let other = next(fresh().base, 5);
        other.commit(&[1, 2], 2).commit(&[1, 3, 4], 4).commit(&[2, 1], 4)
    }] {
        let wiped = Rig::holding(&other);
        for (from, to) in [(&*theirs, ""), ("", &*theirs), (&*theirs, &*theirs)] {
            let (status, text) = refusal(&wiped, from, to);
            assert!(status == 400 && text.contains("another history"), "{status} {text}");
        }
    }
    // Restored to an earlier state: what the client has is ahead of it.
    let restored = Rig::new();
    restored.append(&short(), 0..5);
    let (status, text) = refusal(&restored, &base, "");
    assert!(status == 400 && text.contains("ahead"), "{status} {text}");
    // What both have is no trouble.
    assert_eq!(restored.between(&rig.revision(1, 2), "").ids(), [0, 2, 3]);
}

#[test]
fn a_base_that_is_put_before_the_first_frame_is_another_history_and_stays() {
    let rig = Rig::new();
    let empty = rig.bootstrap().revision;
    rig.start(1, &short().state(7));
    let (status, text) = refusal(&rig, &empty, "");
    assert!(status == 400 && text.contains("another history"), "{status} {text}");
    let first = rig.bootstrap();
    assert_eq!(first.size, 4);
    assert_bytes(&first.applied(&[]), &short().state(7), "the base");
    let mut other = short().state(7);
    other[PAGE + 9] ^= 1;
    let refused = rig.service.call("PUT", "/logs/app/generations/1", "", &other);
    assert_eq!(refused.refusal(), (409, "fork".into()));
    assert_eq!(rig.between(&first.revision, "").pages, []);
}

#[test]
fn a_revision_of_a_deleted_generation_is_gone() {
    let data = tempfile::tempdir().unwrap();
    let rig = Rig::in_dir(data.path());
    rig.append(&short(), 0..7);
    let theirs = rig.revision(1, 7);
    rig.roll();
    rig.service.stop();
    std::fs::remove_dir_all(data.path().join("logs/app/0000000001")).unwrap();
    let rig = Rig::in_dir(data.path());
    for (from, to) in [(&*theirs, ""), ("", &*theirs)] {
        let answer = rig.ask(&between(from, to));
        assert_eq!(answer.refusal(), (410, "pruned".into()));
    }
    assert_bytes(&rig.bootstrap().applied(&[]), &short().state(7), "generation 2");
}

#[test]
fn revisions_survive_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let log = real();
    let rig = Rig::in_dir(data.path());
    rig.start(1, &log.base);
    rig.append(&log, 0..log.frames.len());
    let middle = rig.revision(1, log.commits()[20]);
    let newest = rig.bootstrap().revision;
    rig.service.stop();
    let rig = Rig::in_dir(data.path());
    assert_eq!(rig.between(&newest, "").pages, []);
    let pulled = rig.between(&middle, &newest);
    assert_bytes(&pulled.applied(&log.state(log.commits()[20])), &log.state(log.frames.len() as u64), "an increment");
}

#[test]
fn frames_that_end_no_transaction_are_no_revisions() {
    let log = real();
    let rig = Rig::holding(&log);
    for frame in (1..=40).filter(|frame| head(&log.frames[*frame as usize - 1]).size == 0) {
        let (status, text) = refusal(&rig, &rig.revision(1, frame), "");
        assert!(status == 400 && text.contains("transaction"), "{status} {text}");
    }
}
