//! WAL logs through the engine: what is taken and what is not, where segments end, what a crash leaves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use logmirror::format::wal::HEADER_LEN;
use logmirror::format::{FormatError, LogFormat, ScanError};
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::Offset;
use logmirror::repo::{Faults, Loss, MemRepo, Repo};
use logmirror::stream::{
    AppendError, OnTrailing, OpenError, Options, Read, ReadError, StreamReader, StreamWriter, survey,
};
use logmirror::verify::verify;
use support::commitlog::{Draw, get, put, seed};
use support::frames::FrameLog;

/// Some transactions of one to nine frames, on pages of 512 bytes.
fn log() -> FrameLog {
    let mut log = FrameLog::new(512, false);
    for (at, frames) in [1, 3, 1, 9, 2, 1, 1, 5, 1, 7, 2, 2].into_iter().enumerate() {
        let pages: Vec<u32> = (0..frames).map(|page| page * 3 % 11 + 1).collect();
        log = log.commit(&pages, 11 + at as u32 % 3);
    }
    log
}

fn options() -> Options {
    Options {
        on_trailing: OnTrailing::Trim,
        format: LogFormat::Wal,
        segment_bytes_max: 4000,
        durable_mark: true,
        ..Options::default()
    }
}

/// The log as one WAL, with the header in front only.
fn wal(log: &FrameLog) -> Vec<u8> {
    log.stream(&[])
}

fn write(repo: &MemRepo, options: Options, stream: &[u8], chunk: usize) -> Result<Offset, AppendError> {
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options).unwrap();
    for chunk in stream.chunks(chunk) {
        writer.append(chunk.to_vec())?;
    }
    writer.finish()
}

/// The segments of a repo.
fn segments(repo: &MemRepo) -> BTreeMap<String, Vec<u8>> {
    let names = repo.list().unwrap().into_iter().filter(|name| name.ends_with(".wal"));
    names.map(|name| (name.clone(), get(repo, &name))).collect()
}

/// Where segments of at least so many bytes end: at the first commit from there on.
fn cuts(log: &FrameLog, bytes_max: u64) -> Vec<u64> {
    let (mut cuts, mut start) = (Vec::new(), 0);
    for commit in log.commits() {
        let bytes = HEADER_LEN as u64 + (commit - start) * log.header.frame_len();
        if bytes >= bytes_max && commit < log.frames.len() as u64 {
            cuts.push(commit);
            start = commit;
        }
    }
    cuts
}

fn read(repo: &MemRepo, from: u64) -> Result<Vec<u8>, ReadError> {
    let mut reader = StreamReader::open(Arc::new(repo.clone()), Offset(from), COMMIT_BYTES_MAX)?;
    let mut bytes = Vec::new();
    while let Read::Batch(batch) = reader.read()? {
        bytes.extend(batch.slices().flatten());
    }
    Ok(bytes)
}

#[test]
fn segments_end_at_the_same_commits_however_the_stream_is_cut() {
    let log = log();
    let cuts = cuts(&log, 4000);
    assert!(cuts.len() >= 3, "{cuts:?}");
    for chunk in [1, 7, 24, 100, 535, 536, 537, 1000, 4096, 100_000] {
        let repo = MemRepo::default();
        assert_eq!(write(&repo, options(), &wal(&log), chunk).unwrap().0, log.frames.len() as u64 + 1);
        assert_eq!(segments(&repo), log.segments(&cuts), "chunks of {chunk}");
    }
    // A source with segments of its own has them kept.
    let theirs = [log.commits()[2], log.commits()[7]];
    let (repo, whole) = (MemRepo::default(), Options { segment_bytes_max: u64::MAX, ..options() });
    write(&repo, whole, &log.stream(&theirs), 333).unwrap();
    assert_eq!(segments(&repo), log.segments(&theirs));
}

#[test]
fn a_range_from_any_frame_is_the_stream_from_its_commit_on() {
    let log = log();
    let (repo, cuts) = (MemRepo::default(), cuts(&log, 4000));
    write(&repo, options(), &wal(&log), 1000).unwrap();
    let commits = log.commits();
    for frame in 1..=log.frames.len() as u64 {
        let before = commits.iter().rfind(|commit| **commit < frame).copied().unwrap_or(0);
        let rest = FrameLog { frames: log.frames.clone(), ..log.clone() };
        let mut wanted = Vec::new();
        for (at, bytes) in rest.frames.iter().enumerate().skip(before as usize) {
            if at == 0 || cuts.contains(&(at as u64)) {
                wanted.extend(log.header.encode());
            }
            wanted.extend(bytes);
        }
        assert_eq!(read(&repo, frame).unwrap(), wanted, "from frame {frame}");
    }
    let report = verify(Arc::new(repo), &logmirror::verify::Options::default()).unwrap();
    assert_eq!((report.commits, report.entries, report.error), (12, log.frames.len() as u64, None));
}

#[test]
fn of_a_wal_with_a_flipped_bit_only_whole_commits_before_it_are_stored() {
    let log = log();
    let stream = wal(&log);
    let frame_len = log.header.frame_len() as usize;
    for at in 0..stream.len() {
        let (repo, mut damaged) = (MemRepo::default(), stream.clone());
        damaged[at] ^= 1 << (at % 8);
        write(&repo, options(), &damaged, 3000).unwrap_err();
        let hit = at.saturating_sub(HEADER_LEN) / frame_len;
        let sound = log.commits().into_iter().rfind(|commit| *commit <= hit as u64).unwrap_or(0);
        let found = survey(&repo, COMMIT_BYTES_MAX, None).unwrap();
        assert!(found.next.0 <= sound + 1 || sound == 0 && found.next.0 <= 1, "byte {at}: up to {}", found.next);
        if at >= HEADER_LEN {
            assert_eq!(found.next.0.max(1), sound + 1, "byte {at}");
            let stored = segments(&repo).into_values().flatten().count();
            let bytes = sound as usize * frame_len;
            assert!(stored == 0 && sound == 0 || (stored - bytes).is_multiple_of(HEADER_LEN), "byte {at}: {stored}");
        }
    }
}

#[test]
fn a_wal_cut_anywhere_keeps_its_whole_commits() {
    let log = log();
    let (stream, frame_len) = (wal(&log), log.header.frame_len() as usize);
    for cut in 0..stream.len() {
        let repo = MemRepo::default();
        let ended = write(&repo, options(), &stream[..cut], 777);
        let frames = cut.saturating_sub(HEADER_LEN) / frame_len;
        let whole = log.commits().into_iter().rfind(|commit| *commit <= frames as u64).unwrap_or(0);
        let on_boundary = cut == 0 || cut == HEADER_LEN + whole as usize * frame_len;
        match ended {
            Ok(durable) => assert!(on_boundary && durable.0.max(1) == whole + 1, "cut at {cut}"),
            Err(AppendError::Stream(ScanError::Truncated { .. })) => assert!(!on_boundary, "cut at {cut}"),
            Err(error) => panic!("cut at {cut}: {error}"),
        }
        assert_eq!(survey(&repo, COMMIT_BYTES_MAX, None).unwrap().next.0.max(1), whole + 1, "cut at {cut}");
    }
}

#[test]
fn what_is_held_is_skipped_and_another_history_is_a_fork() {
    let log = log();
    let stream = wal(&log);
    let repo = MemRepo::default();
    write(&repo, options(), &stream, 1000).unwrap();
    let before = segments(&repo);
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options()).unwrap();
    // A stream from the start brings its header and says so by that; the writer itself goes on from its end.
    writer.restart_from_header();
    let done = writer.append(stream.clone()).unwrap();
    assert_eq!((done.commits, done.skipped), (0, 12));
    // Other salts: another log altogether.
    let mut other = FrameLog::new(512, false);
    other.header.salts[0] += 1;
    other.chain = other.header.seed();
    let other = other.commit(&[1, 2], 2);
    writer.restart_from_header();
    assert!(matches!(writer.append(wal(&other)), Err(AppendError::Fork { at: Offset(1) })));
    // The same salts and another page: the checksums differ from there on.
    let longer = log.clone().commit(&[1], 11);
    let fork = FrameLog { frames: longer.frames[..12].to_vec(), ..FrameLog::parse(&wal(&longer), Vec::new()) };
    writer.restart_from_header();
    let mut forked = FrameLog { frames: Vec::new(), chain: log.header.seed(), ..fork }.commit(&[2], 11);
    forked = forked.commit(&[3], 11);
    assert!(matches!(writer.append(wal(&forked)), Err(AppendError::Fork { at: Offset(1) })));
    // In the middle of a stream other salts are a restart of the source.
    let repo = MemRepo::default();
    let error = write(&repo, options(), &[wal(&log), wal(&other)].concat(), 5000).unwrap_err();
    let AppendError::Stream(ScanError::Corrupt { error, .. }) = error else { panic!("{error}") };
    assert!(matches!(error, FormatError::Restarted { .. }), "{error}");
    assert_eq!(segments(&repo), before);
}

#[test]
fn a_torn_end_is_trimmed_and_damage_is_not() {
    let log = log();
    let stream = wal(&log);
    let frame_len = log.header.frame_len() as usize;
    let plain = Options { durable_mark: false, segment_bytes_max: u64::MAX, ..options() };
    let name = log.segments(&[]).into_keys().next().unwrap();
    let commits = log.commits();
    let last = commits[commits.len() - 2];
    // The first bytes of a page number are zeros, which tear nothing.
    for cut in 1..frame_len * 2 - 3 {
        let repo = MemRepo::default();
        put(&repo, &name, &stream[..stream.len() - cut]);
        let error = StreamWriter::open(Arc::new(repo.clone()), Options { on_trailing: OnTrailing::Error, ..plain });
        assert!(matches!(error, Err(OpenError::Torn(_))), "{cut} bytes are missing");
        let writer = StreamWriter::open(Arc::new(repo.clone()), plain).unwrap();
        assert_eq!(writer.next().0, last + 1);
        drop(writer);
        assert_eq!(write(&repo, plain, &log_from(&log, last), 999).unwrap().0, log.frames.len() as u64 + 1);
        assert_eq!(segments(&repo), log.segments(&[]), "{cut} bytes were missing");
    }
    // A flip anywhere before the last commit has sound commits behind it.
    for frame in 0..commits[commits.len() - 2] as usize {
        let (repo, mut damaged) = (MemRepo::default(), stream.clone());
        damaged[HEADER_LEN + frame * frame_len + 100] ^= 1;
        put(&repo, &name, &damaged);
        let opened = StreamWriter::open(Arc::new(repo.clone()), plain);
        assert!(matches!(opened, Err(OpenError::Damaged(_))), "frame {}: {opened:?}", frame + 1);
        assert_eq!(get(&repo, &name), damaged, "nothing is changed");
    }
}

/// The frames behind a commit.
fn log_from(log: &FrameLog, commit: u64) -> Vec<u8> {
    log.frames[commit as usize..].concat()
}

#[test]
fn power_loss_at_every_step_of_a_wal_keeps_what_was_acknowledged() {
    let log = log();
    let stream = wal(&log);
    let run = |repo: &MemRepo, acked: &mut u64| -> Result<(), Box<dyn std::error::Error>> {
        let mut writer = StreamWriter::open(Arc::new(repo.clone()), options())?;
        for (at, chunk) in stream.chunks(1900).enumerate() {
            if at % 3 == 1 {
                let job = writer.begin_sync()?;
                writer.append(chunk.to_vec())?;
                if let Some(job) = job {
                    *acked = writer.finish_sync(job.run())?.0;
                }
            } else {
                writer.append(chunk.to_vec())?;
            }
            if at % 4 == 2 {
                *acked = writer.sync()?.0;
            }
        }
        *acked = writer.finish()?.0;
        Ok(())
    };
    let whole = MemRepo::default();
    run(&whole, &mut 0).unwrap();
    let (steps, wanted) = (whole.steps(), log.segments(&cuts(&log, 4000)));
    assert_eq!(segments(&whole), wanted);
    let (seed, mut cases) = (seed(), 0);
    let mut draw = Draw(seed);
    for step in 0..steps {
        let (repo, mut acked) = (MemRepo::default(), 0);
        repo.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
        // At the very last steps only hints are written any more, and the run may end well.
        let _ = run(&repo, &mut acked);
        let mut patterns = vec![Loss::All, Loss::Nothing];
        patterns.extend((0..3).map(|_| Loss::Prefix { seed: draw.below(u64::MAX) }));
        patterns.extend((0..5).map(|_| Loss::Torn { seed: draw.below(u64::MAX) }));
        for pattern in patterns {
            let what = format!("seed {seed}, power lost at step {step} of {steps}, {pattern:?}");
            let found = repo.after_power_loss(pattern);
            let opened = StreamWriter::open(Arc::new(found.clone()), options());
            let mut writer = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
            let next = writer.next().0.max(1);
            assert!(next >= acked, "{what}: {acked} was acknowledged, but the log ends at {next}");
            assert!(next == 1 || log.commits().contains(&(next - 1)), "{what}: {next} is no boundary");
            let rest = if next == 1 { stream.clone() } else { log_from(&log, next - 1) };
            if next == 1 {
                writer.restart_from_header();
            }
            writer.append(rest).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(writer.finish().unwrap().0, log.frames.len() as u64 + 1, "{what}");
            drop(writer);
            assert_eq!(segments(&found), wanted, "{what}");
            cases += 1;
        }
    }
    println!("wal: {steps} steps, {cases} power losses (step, pattern)");
    assert!(cases > 300, "{cases}");
}

#[test]
fn a_header_that_no_frame_followed_gives_way_to_another_and_one_with_frames_does_not() {
    let (left, mut other) = (log(), FrameLog::new(512, true));
    other.header.salts = [1, 2];
    other.chain = other.header.seed();
    let other = other.commit(&[1, 2], 2).commit(&[2], 2);
    let options = Options { segment_bytes_max: 1 << 20, ..options() };
    let name = "00000000000000000001.wal";
    for torn in [0, 100] {
        let repo = MemRepo::default();
        // As a crash leaves it.
        put(&repo, name, &wal(&left)[..HEADER_LEN + torn]);
        assert_eq!(write(&repo, options, &wal(&other), 70).unwrap(), Offset(4));
        assert_eq!(segments(&repo)[name], wal(&other));
        let refused = write(&repo, options, &wal(&left), 70).unwrap_err();
        assert!(
            matches!(refused, AppendError::Stream(ScanError::Corrupt { error: FormatError::Restarted { .. }, .. })),
            "{refused:?}"
        );
    }
}
