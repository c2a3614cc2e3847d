//! Bootstraps and increments are the database, byte for byte.

use std::sync::Arc;

use logmirror::repo::MemRepo;
use logmirror::sync::turso::proto::PullUpdatesRequest;
use roaring::RoaringBitmap;

use super::support::assert_bytes;
use super::support::commitlog::{Draw, seed};
use super::support::frames::FrameLog;
use super::{PAGE, Rig, between, fresh, real, selector, short};

/// Compares pulls between commits of a log, which `rig` holds, with its states.
fn check_increments(rig: &Rig, log: &FrameLog, rounds: usize) {
    let mut draw = Draw(seed());
    let frames: Vec<u64> = [0].into_iter().chain(log.commits()).collect();
    let base = rig.pull(&between("", "")).revision;
    assert!(base.starts_with(&format!("1:{}:", log.frames.len())), "{base}");
    let revision = |frame: u64| if frame == 0 { base_revision(rig) } else { rig.revision(1, frame) };
    let neighbours = (1..frames.len()).map(|at| (at - 1, at)).collect::<Vec<_>>();
    let drawn = (0..rounds).map(|_| {
        let to = 1 + draw.below(frames.len() as u64 - 1) as usize;
        (draw.below(to as u64) as usize, to)
    });
    for (from, to) in neighbours.into_iter().chain(drawn) {
        let (from, to) = (frames[from], frames[to]);
        let pulled = rig.between(&revision(from), &revision(to));
        assert_eq!(pulled.revision, revision(to));
        assert_bytes(&pulled.applied(&log.state(from)), &log.state(to), format!("frames {from} to {to}"));
    }
}

/// The revision of the base, as a client got it that came before the first frame.
fn base_revision(rig: &Rig) -> String {
    let data = rig.service.get("/logs/app/base").body;
    let other = Rig::new();
    other.start(1, &data);
    other.bootstrap().revision
}

#[test]
fn a_bootstrap_is_the_database_byte_for_byte() {
    let log = real();
    let rig = Rig::holding(&log);
    let last = log.frames.len() as u64;
    let pulled = rig.bootstrap();
    assert_eq!(pulled.revision, rig.revision(1, last));
    assert_bytes(&pulled.applied(&[]), &log.state(last), "the newest state");
    for frame in log.commits().into_iter().step_by(9) {
        let pulled = rig.between("", &rig.revision(1, frame));
        assert_bytes(&pulled.applied(&[]), &rig.restored(1, frame), format!("frame {frame}"));
    }
}

#[test]
fn an_increment_makes_the_later_state_of_the_earlier_one() {
    let log = real();
    check_increments(&Rig::holding(&log), &log, 200);
    // In segments long enough that pages are found by their indexes, and in one that is open.
    for frames in [300, 100_000] {
        check_increments(&Rig::with_segments(Arc::new(MemRepo::default()), frames).filled(&log), &log, 100);
    }
}

#[test]
fn a_larger_database_is_found_in_one_pass_over_the_indexes() {
    let mut draw = Draw(seed());
    let mut log = fresh();
    let mut written = 1;
    for nth in 0..30 {
        let size = if nth == 20 { 500 } else { (written + draw.below(60)).min(900) } as u32;
        let mut pages: Vec<u32> = (0..1 + draw.below(70)).map(|_| 1 + draw.below(size.into()) as u32).collect();
        pages.extend(written as u32 + 1..=size);
        written = written.max(size.into());
        log = log.commit(&pages, size);
    }
    let last = log.frames.len() as u64;
    let state = log.state(last);
    for frames in [40, 300, 100_000] {
        let rig = Rig::with_segments(Arc::new(MemRepo::default()), frames).filled(&log);
        let pulled = rig.bootstrap();
        assert!(pulled.size > 256, "{}", pulled.size);
        assert_bytes(&pulled.applied(&[]), &state, format!("segments of {frames} frames"));
        check_increments(&rig, &log, 30);
        // Many pages of many, and few.
        for step in [2, 9] {
            let wanted: RoaringBitmap = (0..2000).step_by(step).collect();
            let pulled = rig.pull(&PullUpdatesRequest { server_pages_selector: selector(&wanted), ..between("", "") });
            assert_eq!(pulled.ids(), (0..pulled.size).step_by(step).collect::<Vec<_>>());
            for (page, content) in &pulled.pages {
                assert_bytes(content, &state[*page as usize * PAGE..][..PAGE], format!("page {page}"));
            }
        }
        rig.roll();
        assert_bytes(&rig.bootstrap().applied(&[]), &state, "out of the base");
        assert_eq!(rig.between(&rig.revision(1, last), "").pages, []);
    }
}

#[test]
fn an_increment_is_right_for_any_sizes_that_transactions_say() {
    let mut draw = Draw(seed());
    for _ in 0..4 {
        let mut log = fresh();
        // Behind page `written` nothing was ever there.
        let mut written = 1;
        for _ in 0..40 {
            let size = 1 + draw.below((written + 6).min(60)) as u32;
            let mut pages: Vec<u32> = (0..1 + draw.below(6)).map(|_| 1 + draw.below(size.into()) as u32).collect();
            pages.extend(written as u32 + 1..=size);
            written = written.max(size.into());
            log = log.commit(&pages, size);
        }
        check_increments(&Rig::holding(&log), &log, 60);
    }
}

#[test]
fn the_same_revision_twice_is_a_header_and_nothing_else() {
    let rig = Rig::holding(&short());
    let newest = rig.revision(1, 7);
    for to in ["", &newest] {
        let answer = rig.ask(&between(&newest, to));
        // Length; revision, size, raw encoding, protocol.
        assert_eq!(answer.body, [&[28, 10, 20][..], newest.as_bytes(), &[16, 4, 26, 0, 64, 1]].concat());
    }
}

#[test]
fn a_new_log_is_a_database_of_one_page_and_its_revision_goes_on() {
    let rig = Rig::new();
    let first = rig.bootstrap();
    assert_eq!((first.size, first.ids()), (1, vec![0]));
    assert_bytes(&first.applied(&[]), &fresh().base, "the base");
    assert_eq!(rig.between(&first.revision, "").pages, []);
    let log = short();
    rig.append(&log, 0..7);
    let second = rig.between(&first.revision, "");
    assert_eq!((second.revision.clone(), second.size, second.ids()), (rig.revision(1, 7), 4, vec![0, 1, 2, 3]));
    assert_bytes(&second.applied(&first.applied(&[])), &log.state(7), "frame 7");
    assert_eq!(rig.between("", &first.revision).applied(&[]), fresh().base);
}

#[test]
fn selected_pages_come_if_the_database_has_them_and_no_others() {
    let log = real();
    let rig = Rig::holding(&log);
    let last = log.frames.len() as u64;
    let state = log.state(last);
    let size = (state.len() / PAGE) as u32;
    let mut odd: RoaringBitmap = (0..size + 9).filter(|page| page % 2 == 1).collect();
    odd.insert(u32::MAX);
    let mut chunk = RoaringBitmap::new();
    chunk.insert_range(size - 3..size + 29);
    for wanted in [odd, chunk, RoaringBitmap::from([0]), RoaringBitmap::from([size]), RoaringBitmap::new()] {
        for to in [String::new(), rig.revision(1, last)] {
            let request = PullUpdatesRequest { server_pages_selector: selector(&wanted), ..between("", &to) };
            let pulled = rig.pull(&request);
            let ids: Vec<u64> = wanted.iter().filter(|page| *page < size).map(u64::from).collect();
            assert_eq!(pulled.ids(), ids);
            for (page, content) in &pulled.pages {
                assert_bytes(content, &state[*page as usize * PAGE..][..PAGE], format!("page {page}"));
            }
        }
    }
}

#[test]
fn of_selected_pages_an_increment_has_those_that_changed() {
    let rig = Rig::holding(&short());
    let wanted = RoaringBitmap::from([1, 2, 7]);
    let request =
        |from| PullUpdatesRequest { server_pages_selector: selector(&wanted), ..between(&rig.revision(1, from), "") };
    assert_eq!(rig.pull(&request(2)).ids(), [1, 2]);
    assert_eq!(rig.pull(&request(5)).ids(), [1]);
}

#[test]
fn what_may_be_ignored_is_ignored() {
    let rig = Rig::holding(&short());
    let plain = rig.bootstrap();
    let request = PullUpdatesRequest {
        client_pages: vec![1, 2, 3].into(),
        long_poll_timeout_ms: 9_000,
        ..PullUpdatesRequest::default()
    };
    assert_eq!(rig.pull(&request), plain);
}

#[test]
fn the_page_with_the_locks_is_zeros() {
    let lock = 262_145_u32;
    let dir = tempfile::tempdir().unwrap();
    Rig::in_dir(dir.path()).service.stop();
    // A base that ends before that page, with a hole that takes no space; as of an earlier version, without checksums.
    let log = dir.path().join("logs/app");
    let file = std::fs::OpenOptions::new().write(true).open(log.join("0000000001/base.db")).unwrap();
    file.set_len(u64::from(lock - 1) * PAGE as u64).unwrap();
    std::fs::remove_file(log.join("0000000001/base.sums")).unwrap();
    let mut described: serde_json::Value =
        serde_json::from_slice(&std::fs::read(log.join("log.json")).unwrap()).unwrap();
    described.as_object_mut().unwrap().remove("base").unwrap();
    std::fs::write(log.join("log.json"), described.to_string()).unwrap();
    let rig = Rig::in_dir(dir.path());
    let log = FrameLog { base: Vec::new(), ..fresh() }.commit(&[lock + 1, 1], lock + 1);
    rig.append(&log, 0..2);
    let wanted: RoaringBitmap = (lock - 3..lock + 40).collect();
    let pulled = rig.pull(&PullUpdatesRequest { server_pages_selector: selector(&wanted), ..between("", "") });
    assert_eq!(pulled.ids(), (u64::from(lock) - 3..u64::from(lock) + 1).collect::<Vec<_>>());
    assert_eq!(pulled.size, u64::from(lock) + 1);
    let content = |page: u32| pulled.pages.iter().find(|(id, _)| *id == u64::from(page)).unwrap().1.clone();
    assert_eq!(content(lock - 1), vec![0; PAGE]);
    assert_eq!(content(lock), &log.frames[0][24..]);
}
