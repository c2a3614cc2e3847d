//! A sync fails, which leaves bytes in the page cache that the disk has not; the log is opened again, by the same process or
//! by the next one; and then the power is lost.

use std::sync::Arc;

use logmirror::format::LogFormat;
use logmirror::offset::Offset;
use logmirror::repo::{Faults, Loss, MemRepo, Op};
use logmirror::stream::{Options, StreamWriter};

use super::support::commitlog::{Draw, Source, marked, seed, trim};
use super::support::frames::FrameLog;
use super::{Acked, recovers, rotate_and_trim, rotating};

/// More syncs than a run makes.
const CALLS: u64 = 200;

fn fails(op: Op, nth: u64, process_ends: bool) -> Faults {
    Faults { fail_nth: Some((op, nth)), process_ends, ..Faults::default() }
}

/// The patterns of loss to try. Without a durable mark the shape of a tail must tell, and then only prefixes can be promised.
fn patterns(options: Options, draw: &mut Draw) -> Vec<Loss> {
    let mut patterns = vec![Loss::All, Loss::Nothing, Loss::Prefix { seed: draw.below(u64::MAX) }];
    if options.durable_mark {
        patterns.extend((0..2).map(|_| Loss::Torn { seed: draw.below(u64::MAX) }));
    }
    patterns
}

/// Opens the log and appends `count` commits more, or all there are; notes what is acknowledged.
fn go_on(repo: &MemRepo, options: Options, source: &Source, count: usize, acked: &mut u64) -> Result<(), String> {
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options).map_err(|error| error.to_string())?;
    let next = writer.next().0;
    assert_eq!(writer.durable().0, next);
    assert!(next >= *acked, "{acked} acknowledged, {next} found");
    source.assert_holds(repo, next, "after the failed sync");
    *acked = next;
    let first = source.commits.iter().position(|commit| commit.first == next).unwrap_or(source.commits.len());
    let Some(last) = source.commits[first..].iter().take(count).next_back() else {
        return Ok(());
    };
    let sent = last.to - (source.stream.len() - source.rest(next).len());
    writer.append(source.rest(next)[..sent].to_vec()).map_err(|error| error.to_string())?;
    *acked = writer.sync().map_err(|error| error.to_string())?.0;
    Ok(())
}

/// Fails every sync of a kind, in both ways, and loses power after it at once, after the next opening, after more commits,
/// and after another failed sync in the next opening. Returns the number of power losses.
fn fail_every_sync(op: Op, options: Options, start: &MemRepo) -> usize {
    let source = rotating();
    let seed = seed();
    let mut draw = Draw(seed);
    let (mut cases, mut failed) = (0, 0);
    for (nth, process_ends) in (0..CALLS).flat_map(|nth| [(nth, false), (nth, true)]) {
        let repo = start.after_power_loss(Loss::Nothing);
        repo.set_faults(fails(op, nth, process_ends));
        let mut acked = Acked::default();
        // It ends well where the sync was that of an index, which is a hint.
        let done = rotate_and_trim(&repo, options, &source, &mut acked);
        if repo.calls() <= nth {
            done.unwrap();
            assert!(failed >= 12, "{op:?}: only {failed} calls failed");
            println!("{op:?}: {failed} failed syncs, {cases} power losses");
            return cases;
        }
        failed += 1;
        repo.set_faults(Faults::default());
        let what = format!("seed {seed}, {op:?} {nth} failed, the process ended: {process_ends}");
        let mut lose = |repo: &MemRepo, acked: u64, when: &str| {
            for pattern in patterns(options, &mut draw) {
                let what = format!("{what}, power lost {when}, {pattern:?}");
                recovers(&repo.after_power_loss(pattern), options, &source, acked, &what);
                cases += 1;
            }
        };
        lose(&repo, acked.0, "at once");
        for more in [0, 1, 6] {
            let again = repo.fork();
            let mut acked = acked.0;
            go_on(&again, options, &source, more, &mut acked).unwrap_or_else(|error| panic!("{what}: {error}"));
            lose(&again, acked, &format!("after {more} commits more"));
        }
        // The opening that is to mend it fails in turn.
        for again in [Op::Sync, Op::SyncDir] {
            for second in 0..4 {
                let repo = repo.fork();
                let mut acked = acked.0;
                repo.set_faults(fails(again, second, process_ends));
                if go_on(&repo, options, &source, 2, &mut acked).is_ok() {
                    break;
                }
                repo.set_faults(Faults::default());
                let when = format!("after {again:?} {second} of the next opening failed too");
                lose(&repo, acked, &when);
                go_on(&repo, options, &source, 1, &mut acked).unwrap_or_else(|error| panic!("{what}: {error}"));
                lose(&repo, acked, &when);
            }
        }
    }
    panic!("more calls of {op:?} than thought of");
}

#[test]
fn after_every_failed_sync_of_a_file_what_is_acknowledged_survives_power_loss() {
    let cases = fail_every_sync(Op::Sync, marked(), &MemRepo::default());
    assert!(cases > 1000, "{cases}");
}

#[test]
fn after_every_failed_sync_of_a_directory_what_is_acknowledged_survives_power_loss() {
    let cases = fail_every_sync(Op::SyncDir, marked(), &MemRepo::default());
    assert!(cases > 500, "{cases}");
}

#[test]
fn after_every_failed_sync_beside_large_commits_what_is_acknowledged_survives_power_loss() {
    let cases = fail_every_sync(Op::Sync, Options { commit_held_max: 800, ..marked() }, &MemRepo::default());
    assert!(cases > 1000, "{cases}");
}

#[test]
fn without_a_durable_mark_a_failed_sync_loses_nothing_acknowledged_either() {
    let cases = fail_every_sync(Op::Sync, trim(), &MemRepo::default());
    assert!(cases > 500, "{cases}");
}

#[test]
fn bytes_of_a_failed_sync_are_written_again_before_they_are_acknowledged() {
    for (options, process_ends) in [(marked(), false), (marked(), true), (trim(), false), (trim(), true)] {
        let source = Source::of(&[3000; 20]);
        let repo = MemRepo::default();
        let mut writer = StreamWriter::open(Arc::new(repo.clone()), options).unwrap();
        writer.append(source.stream[..source.commits[5].to].to_vec()).unwrap();
        assert_eq!(writer.sync().unwrap(), Offset(source.commits[5].end));
        writer.append(source.stream[source.commits[5].to..source.commits[9].to].to_vec()).unwrap();
        repo.set_faults(fails(Op::Sync, 0, process_ends));
        writer.sync().unwrap_err();
        drop(writer);
        repo.set_faults(Faults::default());
        let writer = StreamWriter::open(Arc::new(repo.clone()), options).unwrap();
        let acknowledged = writer.durable();
        assert_eq!(acknowledged, Offset(source.commits[9].end), "the page cache shows it all");
        let found = repo.after_power_loss(Loss::All);
        let reopened = StreamWriter::open(Arc::new(found), options).unwrap();
        assert_eq!(reopened.next(), acknowledged, "the process ended: {process_ends}");
    }
}

#[test]
fn frames_of_a_failed_sync_are_written_again_too() {
    let log = (0..40).fold(FrameLog::new(1024, false), |log, at| log.commit(&[1, 2 + at % 7, 9], 9));
    let stream = log.stream(&[]);
    // Segments of about ten commits; the fault is in the first, the last, or a rotation between them.
    let options = Options { format: LogFormat::Wal, first: Some(Offset(1)), segment_bytes_max: 32_000, ..marked() };
    let run = |repo: &MemRepo| -> Result<Offset, String> {
        let mut writer = StreamWriter::open(Arc::new(repo.clone()), options).map_err(|error| error.to_string())?;
        writer.restart_from_header();
        for chunk in stream.chunks(9000) {
            writer.append(chunk.to_vec()).and_then(|_| writer.sync()).map_err(|error| error.to_string())?;
        }
        Ok(writer.durable())
    };
    let (mut failed, end) = (0, Offset(log.frames.len() as u64 + 1));
    for (nth, process_ends) in (0..CALLS).flat_map(|nth| [(nth, false), (nth, true)]) {
        let repo = MemRepo::default();
        repo.set_faults(fails(Op::Sync, nth, process_ends));
        let done = run(&repo);
        if repo.calls() <= nth {
            assert_eq!(done, Ok(end));
            break;
        }
        failed += 1;
        repo.set_faults(Faults::default());
        let acknowledged = StreamWriter::open(Arc::new(repo.clone()), options).unwrap().durable();
        let found = repo.after_power_loss(Loss::All);
        assert_eq!(StreamWriter::open(Arc::new(found.clone()), options).unwrap().next(), acknowledged, "sync {nth}");
        assert_eq!(run(&found), Ok(end), "sync {nth}");
        assert_eq!(run(&repo), Ok(end), "sync {nth}");
        let held = StreamWriter::open(Arc::new(repo.after_power_loss(Loss::All)), options).unwrap().next();
        assert_eq!(held, end, "sync {nth}");
    }
    assert!(failed > 30, "{failed}");
}

#[test]
fn a_cut_whose_sync_failed_is_cut_again() {
    let source = Source::of(&[3000; 6]);
    let repo = MemRepo::default();
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), marked()).unwrap();
    writer.append(source.stream.clone()).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let segment = logmirror::format::name::segment(LogFormat::Commitlog, Offset(0));
    super::support::commitlog::write(&repo, &segment, None, &[7; 2000]);
    let repo = repo.after_power_loss(Loss::Nothing);
    repo.set_faults(fails(Op::Sync, 0, true));
    StreamWriter::open(Arc::new(repo.clone()), marked()).unwrap_err();
    repo.set_faults(Faults::default());
    assert_eq!(StreamWriter::open(Arc::new(repo.clone()), marked()).unwrap().next().0, source.next);
    source.assert_is(&repo.after_power_loss(Loss::All), "after power loss");
}
