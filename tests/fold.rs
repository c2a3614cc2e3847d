//! Folding a generation into a database: right for every commit, honest about damage, whole after a power failure.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use logmirror::checkpoint::{FoldError, Folded, fold, into_next};
use logmirror::format::name;
use logmirror::offset::{Generation, Offset};
use logmirror::repo::{Faults, FsRepo, Loss, MemRepo, Op, Repo, replace};
use logmirror::segment::frames::{BASE, FrameError, segment_name};
use support::commitlog::{Draw, get, put, seed, write};
use support::frames::FrameLog;
use support::watched::Watched;

/// Grows, writes pages over and over, shrinks, grows again over what was cut, and has transactions of many frames.
fn eventful(page_size: u32, big_endian: bool) -> FrameLog {
    FrameLog::new(page_size, big_endian)
        .with_base(6)
        .commit(&[1, 3], 6)
        .commit(&[1, 7, 8, 9, 10, 2, 11, 11], 11)
        .commit(&[2], 11)
        .commit(&[1, 4], 5)
        .commit(&[6, 7, 1], 7)
        .commit(&[5, 5, 5, 3], 7)
        .commit(&[8, 9, 10, 11, 12, 1], 12)
        .commit(&[12], 12)
}

fn folded(repo: &MemRepo, to: Option<u64>) -> Result<(Folded, Vec<u8>), FoldError> {
    let out = MemRepo::default();
    let folded = fold(repo, to.map(Offset), Arc::new(out.clone()), "out.db")?;
    assert_eq!(out.list().unwrap(), ["out.db"]);
    Ok((folded, get(&out, "out.db")))
}

fn stored(log: &FrameLog, cuts: &[u64]) -> MemRepo {
    let repo = MemRepo::default();
    log.store(&repo, cuts);
    repo
}

#[test]
fn every_commit_of_every_page_size_folds_to_what_it_was() {
    for page_size in (9..=16).map(|bits| 1 << bits) {
        let log = eventful(page_size, page_size.trailing_zeros() % 2 == 1);
        let commits = log.commits();
        for cuts in [&[][..], &commits[..1], &commits[2..5], &commits[..commits.len() - 1]] {
            let repo = stored(&log, cuts);
            for commit in &commits {
                let (found, bytes) = folded(&repo, Some(*commit)).unwrap();
                assert!(bytes == log.state(*commit), "page size {page_size}, cuts {cuts:?}, frame {commit}");
                let wanted =
                    Folded { frame: Offset(*commit), page_size: Some(page_size), bytes: bytes.len() as u64, torn: 0 };
                assert_eq!(found, wanted);
            }
            assert!(folded(&repo, None).unwrap().1 == log.state(*commits.last().unwrap()));
            assert!(folded(&repo, Some(0)).unwrap().1 == log.base);
        }
    }
}

#[test]
fn a_frame_that_ends_no_transaction_is_refused_with_its_neighbours() {
    let log = eventful(512, false);
    let commits = log.commits();
    let repo = stored(&log, &commits[1..3]);
    for frame in (1..=log.frames.len() as u64).filter(|frame| !commits.contains(frame)) {
        let before = commits.iter().rfind(|commit| **commit < frame).copied().unwrap_or(0);
        let after = commits.iter().find(|commit| **commit > frame).copied();
        match folded(&repo, Some(frame)) {
            Err(FoldError::NotACommit { frame: found, before: b, after: a }) => {
                assert_eq!((found.0, b.0, a.map(|a| a.0)), (frame, before, after));
            }
            other => panic!("frame {frame}: {other:?}"),
        }
    }
    let error = folded(&repo, Some(4)).unwrap_err();
    assert_eq!(error.to_string(), "no transaction ends with frame 4; 2 and 10 are the nearest commits");
    let error = folded(&repo, Some(1000)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no transaction ends with frame 1000; {} is the last commit", log.frames.len())
    );
}

#[test]
fn a_generation_without_frames_is_its_base() {
    assert_eq!(folded(&MemRepo::default(), None).unwrap().1, b"");
    let log = FrameLog::new(1024, false);
    assert_eq!(folded(&stored(&log, &[]), None).unwrap().1, b"");
    let log = log.with_base(3);
    assert!(folded(&stored(&log, &[]), None).unwrap().1 == log.base);
    let repo = MemRepo::default();
    put(&repo, BASE, &log.base);
    let (folded, bytes) = folded(&repo, None).unwrap();
    assert!(bytes == log.base && folded.page_size.is_none() && folded.frame == Offset(0));
}

#[test]
fn damage_is_named_by_segment_frame_and_byte() {
    let log = eventful(512, true);
    let commits = log.commits();
    let cuts = &commits[1..6];
    let files = log.files(cuts);
    let mut draw = Draw(seed());
    for frame in 1..=log.frames.len() as u64 {
        let start = cuts.iter().rfind(|cut| **cut < frame).map_or(1, |cut| cut + 1);
        let at = 32 + (frame - start) * 536;
        let repo = stored(&log, cuts);
        let flipped = at + draw.below(536);
        let byte = files[&segment_name(Offset(start))][flipped as usize];
        write(&repo, &segment_name(Offset(start)), Some(flipped), &[byte ^ 1 << draw.below(8)]);
        let last = commits.iter().rfind(|commit| **commit < frame).copied().unwrap_or(0);
        // Up to the commit before, all is well.
        assert!(folded(&repo, Some(last)).unwrap().1 == log.state(last));
        let error = folded(&repo, None);
        if frame == log.frames.len() as u64 {
            // The last frame of all could be what a crash left.
            assert_eq!(error.unwrap().0.torn, 536);
            continue;
        }
        match error {
            Err(FoldError::Damaged {
                error: FrameError::Corrupt { segment, frame: found, at: place, .. },
                last: l,
            }) => {
                // A flip in the stored checksum may show in the frame after it, but never in one before.
                assert_eq!((segment.0, found.0, place.0, l.0), (start, frame, at, last), "byte {flipped}");
            }
            other => panic!("frame {frame}, byte {flipped}: {other:?}"),
        }
        if let Some(commit) = commits.iter().find(|commit| **commit >= frame) {
            assert!(folded(&repo, Some(*commit)).unwrap_err().is_data());
        }
    }
}

#[test]
fn frames_that_no_commit_ends_behind_a_damaged_one_are_torn() {
    let mut log = eventful(512, false);
    let last = log.frames.len() as u64;
    log.push(&[1, 2, 3], 0);
    let (name, at) = (segment_name(Offset(1)), 32 + last * 536 + 100);
    let repo = stored(&log, &[]);
    let byte = get(&repo, &name)[at as usize];
    write(&repo, &name, Some(at), &[byte ^ 4]);
    let (found, database) = folded(&repo, None).unwrap();
    assert_eq!((found.frame.0, found.torn), (last, 3 * 536));
    assert!(database == log.state(last));
}

#[test]
fn missing_segments_cut_ones_and_foreign_ones_are_named() {
    let log = eventful(512, false);
    let commits = log.commits();
    let cuts = [commits[1], commits[3]];
    let (second, third) = (segment_name(Offset(cuts[0] + 1)), segment_name(Offset(cuts[1] + 1)));

    let repo = stored(&log, &cuts);
    repo.remove(&second).unwrap();
    let error = folded(&repo, None).unwrap_err();
    assert!(matches!(error, FoldError::Gap { expected: Offset(11), found: Offset(14), last: Offset(10) }), "{error}");
    assert!(folded(&repo, Some(10)).unwrap().1 == log.state(10));
    assert!(matches!(folded(&repo, Some(11)), Err(FoldError::Gap { .. })));

    // In the middle of the log a cut is damage, at its end it is what a crash leaves.
    for bytes in [0, 31, 32 + 536, 32 + 2 * 536 + 100] {
        let repo = stored(&log, &cuts);
        repo.open_write(&second).unwrap().truncate(bytes).unwrap();
        let error = folded(&repo, None).unwrap_err();
        assert!(matches!(error, FoldError::Damaged { .. } | FoldError::Gap { .. }), "cut to {bytes}: {error}");
        let repo = stored(&log, &cuts);
        repo.open_write(&third).unwrap().truncate(bytes).unwrap();
        let (found, database) = folded(&repo, None).unwrap();
        assert_eq!(found.frame.0, cuts[1], "cut to {bytes}");
        assert_eq!(found.torn, if bytes == 0 || bytes == 31 { bytes } else { bytes - 32 });
        assert!(database == log.state(cuts[1]));
    }

    let mut other = log.clone();
    other.header.salts[0] ^= 1;
    let repo = stored(&log, &cuts);
    put(&repo, &third, &other.segments(&cuts)[&third]);
    let error = folded(&repo, None).unwrap_err();
    assert!(error.to_string().contains("restarted") && error.to_string().contains("segment 14, byte 0"), "{error}");
}

#[test]
fn what_rots_while_it_is_folded_is_not_copied() {
    let log = eventful(512, false);
    for at in [32 + 2 * 536 + 30, 32 + 2 * 536 + 3, 32 + 2 * 536 + 20] {
        let (repo, out) = (stored(&log, &[10]), MemRepo::default());
        let (source, rotting) = (Watched::new(repo.clone()), repo.clone());
        // Page 1 of frame 3 is the newest of frame 10. All frames are verified before the base is opened.
        source.before_open(BASE, move || {
            let name = segment_name(Offset(1));
            let byte = get(&rotting, &name)[at];
            write(&rotting, &name, Some(at as u64), &[byte ^ 2]);
        });
        let error = fold(&source, Some(Offset(10)), Arc::new(out.clone()), "out.db").unwrap_err();
        assert!(error.is_data() && error.to_string().contains("frame 3 (segment 1, byte 1104)"), "{error}");
        assert!(out.list().unwrap().is_empty());
    }
}

#[test]
fn with_a_durable_mark_what_was_durable_is_never_called_torn() {
    let log = eventful(512, false);
    let commits = log.commits();
    let mark = |durable: u64| {
        let mut bytes = durable.to_le_bytes().to_vec();
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    };
    let (last, before) = (commits[7], commits[6]);
    let name = segment_name(Offset(1));
    let file_len = 32 + (last - 1) * 536;
    for (cut, damaged) in [(file_len + 535, "frame 27 is cut"), (file_len, "durable up to frame 27")] {
        let repo = stored(&log, &[]);
        repo.open_write(&name).unwrap().truncate(cut).unwrap();
        assert_eq!(folded(&repo, None).unwrap().0.frame.0, before);
        put(&repo, "durable", &mark(before + 1));
        assert_eq!(folded(&repo, None).unwrap().0.frame.0, before);
        put(&repo, "durable", &mark(last + 1));
        let error = folded(&repo, None).unwrap_err();
        assert!(error.is_data() && error.to_string().contains(damaged), "{error}");
        assert_eq!(folded(&repo, Some(before)).unwrap().0.frame.0, before);
    }
}

#[test]
fn a_base_that_is_not_that_of_the_log_is_refused() {
    let log = eventful(1024, false);
    let cut = FrameLog { base: log.base[..5 * 1024].to_vec(), ..log.clone() };
    let error = folded(&stored(&cut, &[]), Some(2)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "page 6 of 6 is neither in the base nor in the log: the base is cut, or of another generation"
    );
    // The header does not say how long it is, so SQLite would fill up the last page with zeros.
    let ragged = FrameLog { base: log.base[..5 * 1024 + 7].to_vec(), ..log.clone() };
    let filled = FrameLog { base: [&ragged.base[..], &[0; 1024 - 7]].concat(), ..log.clone() };
    assert!(folded(&stored(&ragged, &[]), Some(2)).unwrap() == folded(&stored(&filled, &[]), Some(2)).unwrap());
    let other = FrameLog { base: FrameLog::new(512, false).with_base(12).base, ..log };
    let error = folded(&stored(&other, &[]), None).unwrap_err();
    assert!(matches!(error, FoldError::PageSize { database: 512, log: 1024 }), "{error}");
}

#[test]
fn a_full_disk_or_a_failing_step_leaves_what_was_there() {
    let log = eventful(512, false);
    let wanted = log.state(*log.commits().last().unwrap());
    for (op, count) in [(Op::Create, 1), (Op::Write, 2), (Op::Truncate, 1), (Op::Sync, 1), (Op::Rename, 1)] {
        for nth in 0..count {
            let repo = stored(&log, &[10]);
            repo.set_faults(Faults { fail_nth: Some((op, nth)), ..Faults::default() });
            let error = fold(&repo, None, Arc::new(repo.clone()), "out.db").unwrap_err();
            assert!(!error.is_data() && !error.is_usage(), "{op:?} {nth}: {error}");
            assert!(!repo.list().unwrap().contains(&"out.db".to_owned()), "{op:?} {nth}");
            fold(&repo, None, Arc::new(repo.clone()), "out.db").unwrap();
            assert!(get(&repo, "out.db") == wanted);
        }
    }
    let full = stored(&log, &[]);
    let used: u64 = full.list().unwrap().iter().map(|name| full.open(name).unwrap().bytes().unwrap()).sum();
    full.set_faults(Faults { bytes_max: Some(used + 3000), ..Faults::default() });
    fold(&full, None, Arc::new(full.clone()), "out.db").unwrap_err();
    let draft_gone: Vec<String> = full.list().unwrap().into_iter().filter(|name| name.contains("out.db")).collect();
    assert!(draft_gone.is_empty(), "{draft_gone:?}");
}

const FIRST: &str = "0000000001";
const META: &str = "log.json";

/// As a service rolls over: folds into the next generation's base, makes that the current one, and only then removes the
/// segments and the base of the old one. Repeated from any state, it goes on.
fn roll(log: &MemRepo) -> Result<(), Box<dyn std::error::Error>> {
    if get(log, META) == b"1" {
        into_next(log, Generation(1))?;
        replace(log, META, b"2")?;
    }
    let old = log.dir(FIRST)?;
    for name in old.list()? {
        old.remove(&name)?;
    }
    old.sync_dir()?;
    Ok(())
}

/// A log with one generation, all durable.
fn rollable(log: &FrameLog, cuts: &[u64]) -> MemRepo {
    let repo = MemRepo::default();
    let first = repo.create_dir(FIRST).unwrap();
    log.store(&*first, cuts);
    put(&repo, META, b"1");
    repo.open(META).unwrap().sync().unwrap();
    repo.sync_dir().unwrap();
    repo
}

/// The database that a reader of the log gets, from whichever generation is the current one.
fn read(repo: &MemRepo) -> Vec<u8> {
    let generation = String::from_utf8(get(repo, META)).unwrap().parse().unwrap();
    let dir = repo.dir(&name::generation(Generation(generation))).unwrap();
    let out = MemRepo::default();
    fold(&*dir, None, Arc::new(out.clone()), "out.db").unwrap();
    get(&out, "out.db")
}

#[test]
fn power_loss_at_every_step_of_a_fold_loses_nothing_and_folds_again() {
    let seed = seed();
    let mut draw = Draw(seed);
    // So many pages that the draft takes several writes.
    let all: Vec<u32> = (1..=1200).collect();
    let odd: Vec<u32> = all.iter().copied().filter(|page| page % 2 == 1).collect();
    let log = FrameLog::new(512, false).with_base(900).commit(&all, 1200).commit(&odd, 1200).commit(&[1, 2], 1100);
    let cuts = log.commits()[..2].to_vec();
    let wanted = log.state(*log.commits().last().unwrap());
    let start = rollable(&log, &cuts);

    let whole = start.after_power_loss(Loss::Nothing);
    roll(&whole).unwrap();
    let steps = whole.steps();
    let mut cases = 0;
    for step in 0..=steps {
        let repo = start.after_power_loss(Loss::Nothing);
        repo.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
        let ended = roll(&repo).is_ok();
        assert_eq!(ended, step == steps);
        let mut patterns = vec![Loss::All, Loss::Nothing];
        patterns.extend((0..4).map(|_| Loss::Prefix { seed: draw.below(u64::MAX) }));
        patterns.extend((0..6).map(|_| Loss::Torn { seed: draw.below(u64::MAX) }));
        for pattern in patterns {
            let what = format!("seed {seed}, power lost at step {step} of {steps}, {pattern:?}");
            let found = repo.after_power_loss(pattern);
            assert!(read(&found) == wanted, "{what}: what is there is not the database");
            roll(&found).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(get(&found, META), b"2", "{what}");
            // The power may go once more, and take all that is not synced.
            let again = found.after_power_loss(Loss::All);
            assert!(read(&again) == wanted, "{what}, and again");
            assert!(get(&*again.dir("0000000002").unwrap(), BASE) == wanted, "{what}: the new base");
            assert!(again.dir(FIRST).unwrap().list().unwrap().is_empty(), "{what}: the old generation");
            let mut names = again.dir("0000000002").unwrap().list().unwrap();
            names.sort_unstable();
            assert_eq!(names, [BASE, "base.sums"], "{what}");
            cases += 1;
        }
    }
    println!("{steps} steps, {cases} power losses (step, pattern)");
    assert!(cases > 200, "{cases}");
}

#[test]
fn power_loss_while_a_fold_replaces_its_own_base_leaves_the_old_one_or_the_new_one() {
    let mut draw = Draw(seed());
    let log = eventful(512, false);
    let wanted = log.state(*log.commits().last().unwrap());
    let start = stored(&log, &log.commits()[2..4]);
    let in_place = |repo: &MemRepo| fold(repo, None, Arc::new(repo.clone()), BASE);
    let whole = start.after_power_loss(Loss::Nothing);
    in_place(&whole).unwrap();
    for step in 0..whole.steps() {
        let repo = start.after_power_loss(Loss::Nothing);
        repo.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
        in_place(&repo).unwrap_err();
        for nth in 0..12 {
            let pattern = [Loss::All, Loss::Nothing].get(nth).copied();
            let found = repo.after_power_loss(pattern.unwrap_or(Loss::Torn { seed: draw.below(u64::MAX) }));
            let base = get(&found, BASE);
            assert!(base == log.base || base == wanted, "step {step}");
            in_place(&found).unwrap();
            assert!(get(&found.after_power_loss(Loss::All), BASE) == wanted, "step {step}");
        }
    }
}

#[test]
fn the_next_base_is_durable_when_its_fold_is_done() {
    let log = eventful(512, false);
    let repo = rollable(&log, &[]);
    into_next(&repo, Generation(1)).unwrap();
    let next = repo.after_power_loss(Loss::All).dir("0000000002").unwrap();
    assert!(get(&*next, BASE) == log.state(27));
}

#[test]
fn a_generation_that_has_begun_keeps_its_base() {
    let log = eventful(512, false);
    let repo = rollable(&log, &[]);
    into_next(&repo, Generation(1)).unwrap();
    into_next(&repo, Generation(1)).unwrap();
    let next = repo.dir("0000000002").unwrap();
    put(&*next, &segment_name(Offset(1)), b"");
    let before = get(&*next, BASE);
    let error = into_next(&repo, Generation(1)).unwrap_err();
    assert!(matches!(error, FoldError::Begun { generation: Generation(2) }), "{error}");
    assert!(get(&*next, BASE) == before);
}

#[test]
fn a_directory_folds_as_memory_does() {
    let log = eventful(4096, false);
    let dir = tempfile::tempdir().unwrap();
    let repo = FsRepo::open(dir.path()).unwrap();
    log.store(&repo, &log.commits()[1..4]);
    let files: BTreeMap<String, Vec<u8>> = support::files(dir.path());
    for commit in log.commits() {
        fold(&repo, Some(Offset(commit)), Arc::new(repo.clone()), "out.db").unwrap();
        assert!(get(&repo, "out.db") == log.state(commit), "frame {commit}");
    }
    repo.remove("out.db").unwrap();
    assert!(support::files(dir.path()) == files, "the source is as it was");
}
