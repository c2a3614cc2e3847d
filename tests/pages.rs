//! The page index of a WAL segment: what it finds is what a scan finds, and a wrong file is never believed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use logmirror::format::wal::{Chain, WalStart};
use logmirror::offset::Offset;
use logmirror::repo::{MemRepo, Repo};
use logmirror::segment::frames::{FrameError, Frames, segment_name, start_of};
use logmirror::segment::pages::{OpenPages, PageIndex, index_name};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use support::commitlog::{get, put, seed, write};
use support::frames::{FrameLog, head};
use support::watched::Watched;

/// Runs a property with the seed of this run.
fn holds<S: Strategy>(cases: u32, strategy: S, property: impl Fn(S::Value) -> TestCaseResult) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    if let Err(error) = TestRunner::new_with_rng(config, rng).run(&strategy, property) {
        panic!("{error}");
    }
}

/// A log of any pages, and behind which of its commits it is cut into segments.
fn any_log() -> impl Strategy<Value = (FrameLog, Vec<u64>)> {
    let page = prop_oneof![4 => 1..12_u32, 1 => 1..=u32::MAX];
    (any::<bool>(), vec(vec(page, 1..9), 1..12), vec(any::<Index>(), 0..4)).prop_map(|(big_endian, commits, cuts)| {
        let log = FrameLog::new(512, big_endian);
        let log = commits.iter().fold(log, |log, pages| log.commit(pages, 9));
        let commits = log.commits();
        let mut cuts: Vec<u64> = cuts.iter().map(|cut| commits[cut.index(commits.len())]).collect();
        cuts.retain(|cut| *cut < log.frames.len() as u64);
        cuts.sort_unstable();
        cuts.dedup();
        (log, cuts)
    })
}

/// First and last frame of each segment.
fn segments(log: &FrameLog, cuts: &[u64]) -> Vec<(u64, u64)> {
    let starts = [1].into_iter().chain(cuts.iter().map(|cut| cut + 1));
    starts.zip(cuts.iter().copied().chain([log.frames.len() as u64])).collect()
}

fn stored(log: &FrameLog, cuts: &[u64]) -> MemRepo {
    let repo = MemRepo::default();
    log.store(&repo, cuts);
    repo
}

/// The newest frame of `page` from `start` up to `at`, one after the other.
fn scan(log: &FrameLog, (start, end): (u64, u64), page: u32, at: u64) -> Option<Offset> {
    let mut frames = (start..=end.min(at)).rev();
    frames.find(|frame| head(&log.frames[*frame as usize - 1]).page == page).map(Offset)
}

#[test]
fn a_lookup_finds_what_a_scan_finds() {
    holds(300, any_log(), |(log, cuts)| {
        let repo = stored(&log, &cuts);
        for segment in segments(&log, &cuts) {
            let start = Offset(segment.0);
            let from = start_of(&repo, start, Offset(1)).unwrap();
            let built = PageIndex::build(&repo, start, from).unwrap();
            built.store(&repo).unwrap();
            let loaded = PageIndex::load(&repo, start).unwrap().expect("it was just stored");
            prop_assert_eq!(&loaded, &built);
            prop_assert_eq!(loaded.frames(), segment.1 + 1 - segment.0);

            let file = repo.open(&segment_name(start)).unwrap();
            let mut open = OpenPages::new(start);
            let pages = log.pages();
            for number in segment.0..=segment.1 {
                open.push(pages[number as usize - 1]);
                // While the segment grows, what is there is found.
                let page = pages[number as usize - 1];
                prop_assert_eq!(open.newest(page, Offset(u64::MAX)), Some(Offset(number)));
            }
            for page in pages.iter().copied().chain([0, 1, 13, u32::MAX]) {
                for at in (0..log.frames.len() as u64 + 2).chain([u64::from(u32::MAX) + 7, u64::MAX]) {
                    let wanted = scan(&log, segment, page, at);
                    prop_assert_eq!(loaded.newest(page, Offset(at)), wanted, "page {} at {}", page, at);
                    prop_assert_eq!(open.newest(page, Offset(at)), wanted, "page {} at {}, open", page, at);
                    prop_assert_eq!(loaded.locate(&*file, page, Offset(at)).unwrap(), wanted);
                }
            }
            let last = log.frames[segment.1 as usize - 1].as_slice();
            prop_assert_eq!(open.seal(log.header, head(last).chain), built);
        }
        Ok(())
    });
}

#[test]
fn a_damaged_index_is_not_used_and_is_built_again() {
    let change = (any::<Index>(), 1..=u8::MAX, any::<bool>(), any::<Index>());
    holds(400, (any_log(), change), |((log, cuts), (at, with, cut, length))| {
        let repo = stored(&log, &cuts);
        let (start, _) = *segments(&log, &cuts).last().unwrap();
        let start = Offset(start);
        let from = start_of(&repo, start, Offset(1)).unwrap();
        let index = PageIndex::open(&repo, start, from).unwrap();
        index.store(&repo).unwrap();
        let mut bytes = get(&repo, &index_name(start));
        if cut {
            bytes.truncate(length.index(bytes.len()));
        } else {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        put(&repo, &index_name(start), &bytes);
        prop_assert_eq!(PageIndex::load(&repo, start).unwrap(), None);
        prop_assert_eq!(PageIndex::open(&repo, start, from).unwrap(), index);
        Ok(())
    });
}

#[test]
fn no_bytes_make_an_index_or_a_segment_panic() {
    let near = vec((any::<Index>(), any::<u8>()), 0..6);
    let bytes = prop_oneof![vec(any::<u8>(), 0..200), vec(0..2_u8, 0..200)];
    holds(600, (any_log(), near, bytes, any::<bool>()), |((log, cuts), flips, bytes, whole)| {
        let repo = stored(&log, &cuts);
        let start = Offset(1);
        let index = PageIndex::build(&repo, start, WalStart::first(log.header)).unwrap();
        index.store(&repo).unwrap();
        for name in [index_name(start), segment_name(start)] {
            let mut content = if whole { bytes.clone() } else { get(&repo, &name) };
            for (at, with) in flips.iter().filter(|_| !content.is_empty()).cloned().collect::<Vec<_>>() {
                let at = at.index(content.len());
                content[at] ^= with;
            }
            put(&repo, &name, &content);
            if let Ok(Some(index)) = PageIndex::load(&repo, start) {
                let file = repo.open(&segment_name(start)).unwrap();
                let _ = (index.newest(1, Offset(9)), index.locate(&*file, 1, Offset(9)));
            }
            let _ = PageIndex::open(&repo, start, WalStart::first(log.header));
            if let Ok(mut frames) = Frames::open(&repo, start, None) {
                while let Ok(Some(_)) = frames.next() {}
                let _ = frames.sound_behind();
            }
            let _ = start_of(&repo, Offset(u64::MAX), Offset(1));
        }
        Ok(())
    });
}

#[test]
fn an_index_of_other_frames_is_not_believed() {
    // The same pages in the same places but for one, which is now written twice.
    let log = FrameLog::new(1024, false).commit(&[1, 2, 3], 3).commit(&[2, 1], 3);
    let other = FrameLog::new(1024, false).commit(&[1, 2, 3], 3).commit(&[2, 2], 3);
    let (repo, start) = (stored(&log, &[]), Offset(1));
    PageIndex::build(&repo, start, WalStart::first(log.header)).unwrap().store(&repo).unwrap();
    put(&repo, &segment_name(start), &get(&stored(&other, &[]), &segment_name(start)));
    assert_eq!(PageIndex::load(&repo, start).unwrap(), None);
    let built = PageIndex::open(&repo, start, WalStart::first(log.header)).unwrap();
    assert_eq!(built.newest(2, Offset(5)), Some(Offset(5)));
}

#[test]
fn what_the_index_says_is_checked_against_the_frame() {
    let log = FrameLog::new(1024, false).commit(&[1, 2, 3], 3);
    let (repo, start) = (stored(&log, &[]), Offset(1));
    let index = PageIndex::build(&repo, start, WalStart::first(log.header)).unwrap();
    let file = repo.open(&segment_name(start)).unwrap();
    let watched = Watched::new(repo.clone());
    let counted = watched.open(&segment_name(start)).unwrap();
    assert_eq!(index.locate(&*counted, 2, Offset(3)).unwrap(), Some(Offset(2)));
    assert_eq!(watched.bytes_read(), 24, "one frame header and no more");
    write(&repo, &segment_name(start), Some(32 + 1048 + 3), &[9]);
    let error = index.locate(&*file, 2, Offset(3)).unwrap_err();
    assert_eq!(error.to_string(), "frame 2 should hold page 2, but holds page 9 (segment 1)");
    repo.open_write(&segment_name(start)).unwrap().truncate(40).unwrap();
    let error = index.locate(&*file, 2, Offset(3)).unwrap_err();
    assert!(error.to_string().contains("holds nothing"), "{error}");
}

#[test]
fn only_a_sound_segment_gets_an_index() {
    let log = FrameLog::new(512, false).commit(&[1, 2, 3], 3).commit(&[1, 2, 3], 3);
    let repo = stored(&log, &[3]);
    let from = start_of(&repo, Offset(4), Offset(1)).unwrap();
    assert!(PageIndex::build(&repo, Offset(4), from).is_ok());
    let wrong = WalStart { chain: Chain::default(), ..from };
    let error = PageIndex::build(&repo, Offset(4), wrong).unwrap_err();
    assert!(matches!(error, FrameError::Corrupt { segment: Offset(4), frame: Offset(4), .. }), "{error}");
    repo.open_write(&segment_name(Offset(4))).unwrap().truncate(32 + 536 + 5).unwrap();
    let error = PageIndex::open(&repo, Offset(4), from).unwrap_err();
    assert_eq!(error.to_string(), "frame 5 is cut after 5 bytes (segment 4, byte 568)");
    repo.remove(&segment_name(Offset(1))).unwrap();
    let error = start_of(&repo, Offset(4), Offset(1)).unwrap_err();
    assert!(error.to_string().contains("frame 3 before it is missing"), "{error}");
}

#[test]
fn a_large_segment_is_looked_up_without_a_scan() {
    // Half a million frames: a scan for each lookup would take minutes.
    let mut open = OpenPages::new(Offset(1));
    (0..500_000_u32).for_each(|frame| open.push(frame % 1000 + 1));
    let sealed = open.clone().seal(FrameLog::new(512, false).header, Chain::default());
    for at in (1..=500_000).step_by(5) {
        let page = at as u32 % 1000 + 1;
        let newest = |pages: Option<Offset>| pages.map_or(0, |frame| frame.0);
        let wanted = if at < 1001 && u64::from(page) > at { 0 } else { at - (at + 1000 - u64::from(page)) % 1000 };
        assert_eq!(newest(sealed.newest(page, Offset(at))), wanted, "{at}");
        assert_eq!(newest(open.newest(page, Offset(at))), wanted, "{at}");
    }
}
