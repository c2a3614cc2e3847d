//! Power is lost at every step that changes something, and what comes back is whole.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod failed_sync;
mod random;

use std::error::Error;
use std::io::IoSlice;
use std::sync::Arc;

use logmirror::format::commitlog::Version;
use logmirror::format::{LogFormat, name};
use logmirror::offset::Offset;
use logmirror::repo::{Faults, Loss, MemRepo, Repo};
use logmirror::stream::{OpenError, Options, StreamWriter};
use support::commitlog::{Draw, Source, get, marked, put, read_from, seed, trim, write};

/// What a run of a scenario got to.
#[derive(Default)]
struct Acked(u64);

/// A scenario: appends `source` to the log in `repo` and notes what is acknowledged.
type Scenario = fn(&MemRepo, Options, &Source, &mut Acked) -> Result<(), Box<dyn Error>>;

/// Six segments, the first of version 0, with commits from 18 bytes to several sectors.
fn rotating() -> Source {
    let mut source = Source::new(0);
    source.segment(Version::V0).commits(&[0, 700, 13]);
    source.segment(Version::V1).epoch(1).commits(&[9000, 40, 40, 2100]);
    source.segment(Version::V1).commits(&[600, 4096, 1]);
    source.segment(Version::V1).epoch(2).commits(&[5000, 30, 1200, 700, 700, 3000]);
    source.segment(Version::V1).commits(&[100]);
    source.segment(Version::V1).epoch(7).commits(&[4500, 20, 900, 900]);
    source
}

/// Rotations with syncs inside and outside of segments, overlapping ones too; a crash of the process that leaves half a
/// commit behind; a second run that trims it.
fn rotate_and_trim(repo: &MemRepo, options: Options, source: &Source, acked: &mut Acked) -> Result<(), Box<dyn Error>> {
    let torn = source.commits[12];
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options)?;
    let mut sent = 0;
    for (at, chunk) in source.stream[..torn.from].chunks(1700).enumerate() {
        sent += chunk.len();
        if at % 4 == 1 {
            // The sync is under way while the next chunk, with a rotation in it perhaps, is appended.
            let job = writer.begin_sync()?;
            writer.append(chunk.to_vec())?;
            if let Some(job) = job {
                acked.0 = writer.finish_sync(job.run())?.0;
            }
        } else {
            writer.append(chunk.to_vec())?;
        }
        if at % 5 == 2 {
            acked.0 = writer.sync()?.0;
        }
    }
    assert_eq!(sent, torn.from);
    drop(writer);
    let open_segment = name::segment(
        LogFormat::Commitlog,
        Offset(source.segments.iter().rfind(|(_, from)| *from <= torn.from).unwrap().0),
    );
    let file = repo.open_write(&open_segment)?;
    let half = &source.stream[torn.from..torn.from + (torn.to - torn.from) / 2];
    file.write_at(&mut [IoSlice::new(half)], file.bytes()?)?;

    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options)?;
    assert_eq!(writer.next().0, torn.first);
    acked.0 = writer.durable().0;
    for chunk in source.rest(torn.first).chunks(2500) {
        writer.append(chunk.to_vec())?;
    }
    acked.0 = writer.finish()?.0;
    Ok(())
}

const GROWN: usize = 4090;

/// Enough commits of one index entry each that the index outgrows its first mapping, which holds 4,096.
fn growing() -> Source {
    let mut source = Source::new(0);
    source.segment(Version::V1).epoch(3).commits(&[4090; GROWN + 12]);
    source.segment(Version::V1).commits(&[300; 5]);
    source
}

/// The log is there up to a few commits before its index must grow. It grows, and then the segment is sealed.
fn grow(repo: &MemRepo, options: Options, source: &Source, acked: &mut Acked) -> Result<(), Box<dyn Error>> {
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options)?;
    acked.0 = writer.durable().0;
    let (from, grown) = (source.commits[GROWN].from, source.commits[GROWN + 11].to);
    for (at, chunk) in source.stream[from..grown].chunks(9000).enumerate() {
        writer.append(chunk.to_vec())?;
        if at % 3 == 1 {
            acked.0 = writer.sync()?.0;
        }
    }
    writer.append(source.stream[grown..].to_vec())?;
    acked.0 = writer.finish()?.0;
    Ok(())
}

/// A disk on which the commits before number `count` are durable.
fn prepared(options: Options, source: &Source, count: usize) -> MemRepo {
    let repo = MemRepo::default();
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options).unwrap();
    for chunk in source.stream[..source.commits[count].from].chunks(1 << 20) {
        writer.append(chunk.to_vec()).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    repo.after_power_loss(Loss::Nothing)
}

/// Loses power at every step of the scenario with every pattern; returns how many cases that were.
fn at_every_step(
    scenario: Scenario,
    options: Options,
    source: &Source,
    start: &MemRepo,
    prefixes: u64,
    torn: u64,
) -> usize {
    let seed = seed();
    let mut draw = Draw(seed);
    let whole = start.after_power_loss(Loss::Nothing);
    let mut acked = Acked::default();
    scenario(&whole, options, source, &mut acked).unwrap();
    let steps = whole.steps();
    assert_eq!(acked.0, source.next);
    source.assert_is(&whole, "with the power on");
    let mut cases = 0;
    for step in 0..steps {
        let repo = start.after_power_loss(Loss::Nothing);
        repo.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
        let mut acked = Acked::default();
        // At the very last steps nothing but hints is written any more, and the scenario may end well.
        let _ = scenario(&repo, options, source, &mut acked);
        let mut patterns = vec![Loss::All, Loss::Nothing];
        patterns.extend((0..prefixes).map(|_| Loss::Prefix { seed: draw.below(u64::MAX) }));
        patterns.extend((0..torn).map(|_| Loss::Torn { seed: draw.below(u64::MAX) }));
        for pattern in patterns {
            let what = format!("seed {seed}, power lost at step {step} of {steps}, {pattern:?}");
            recovers(&repo.after_power_loss(pattern), options, source, acked.0, &what);
            cases += 1;
        }
    }
    println!(
        "{}: {steps} steps, {cases} power losses (step, pattern)",
        std::thread::current().name().unwrap_or_default()
    );
    cases
}

/// What came back is whole, holds all that was acknowledged, and goes on to the end.
fn recovers(found: &MemRepo, options: Options, source: &Source, acked: u64, what: &str) {
    let opened = StreamWriter::open(Arc::new(found.clone()), options);
    let mut writer = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
    let next = writer.next().0;
    assert!(next >= acked, "{what}: {acked} was acknowledged, but the log ends at {next}");
    source.assert_holds(found, next, what);
    // What opening found is durable: the power may go once more, and take all that is not synced.
    let again = found.after_power_loss(Loss::All);
    source.assert_holds(&again, next, what);
    writer.append(source.rest(next).to_vec()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(writer.finish().unwrap().0, source.next, "{what}");
    drop(writer);
    source.assert_is(found, what);
    let middle = source.commits[source.commits.len() - 5].first;
    assert_eq!(read_from(found, middle).1, Ok(source.next), "{what}");
}

#[test]
fn power_loss_at_every_step_of_rotation_and_trim_keeps_what_was_acknowledged() {
    let cases = at_every_step(rotate_and_trim, marked(), &rotating(), &MemRepo::default(), 3, 5);
    assert!(cases > 500, "{cases}");
}

#[test]
fn power_loss_at_every_step_of_large_commits_keeps_what_was_acknowledged() {
    // Most of its commits are kept in files without a name until they are whole, and copied then.
    let held = |options| Options { commit_held_max: 800, ..options };
    let cases = at_every_step(rotate_and_trim, held(marked()), &rotating(), &MemRepo::default(), 3, 5);
    assert!(cases > 500, "{cases}");
    let cases = at_every_step(rotate_and_trim, held(trim()), &rotating(), &MemRepo::default(), 3, 0);
    assert!(cases > 200, "{cases}");
}

#[test]
fn power_loss_at_every_step_of_index_growth_keeps_what_was_acknowledged() {
    let source = growing();
    let start = prepared(marked(), &source, GROWN);
    let cases = at_every_step(grow, marked(), &source, &start, 1, 2);
    assert!(cases > 150, "{cases}");
    let whole = start.after_power_loss(Loss::Nothing);
    grow(&whole, marked(), &source, &mut Acked::default()).unwrap();
    let index = get(&whole, &name::index(LogFormat::Commitlog, Offset(0)));
    assert!(index.len() > 64 << 10, "the index did not grow: {} bytes", index.len());
}

#[test]
fn without_a_durable_mark_power_loss_that_leaves_prefixes_keeps_what_was_acknowledged() {
    let cases = at_every_step(rotate_and_trim, trim(), &rotating(), &MemRepo::default(), 3, 0);
    assert!(cases > 200, "{cases}");
}

#[test]
fn an_index_entry_behind_a_lost_sector_does_not_hide_the_hole() {
    for options in [marked(), trim()] {
        let source = Source::of(&[3000; 40]);
        let repo = MemRepo::default();
        let mut writer = StreamWriter::open(Arc::new(repo.clone()), options).unwrap();
        writer.append(source.stream[..source.commits[10].from].to_vec()).unwrap();
        let acked = writer.sync().unwrap().0;
        writer.append(source.stream[source.commits[10].from..].to_vec()).unwrap();
        drop(writer);
        // The kernel wrote out all of both files but one sector of the log.
        write(
            &repo,
            &name::segment(LogFormat::Commitlog, Offset(0)),
            Some(source.commits[20].from as u64 + 512),
            &[0; 512],
        );
        match StreamWriter::open(Arc::new(repo.clone()), options) {
            Ok(writer) => {
                assert!(options.durable_mark);
                assert_eq!((acked, writer.next().0), (30, source.commits[20].first));
            }
            Err(error) => {
                assert!(matches!(error, OpenError::Damaged(_)) && !options.durable_mark, "{error}");
            }
        }
    }
}

#[test]
fn a_mark_that_power_loss_left_empty_is_not_believed() {
    let source = Source::of(&[100; 5]);
    let repo = MemRepo::default();
    source.store(&repo);
    for content in [&[][..], &[0; 12], &[0; 11]] {
        put(&repo, "durable", content);
        let writer = StreamWriter::open(Arc::new(repo.clone()), marked()).unwrap();
        assert_eq!(writer.next().0, source.next);
    }
}

#[test]
fn a_mark_that_power_loss_cannot_have_left_is_damage() {
    let source = Source::of(&[100; 5]);
    let repo = MemRepo::default();
    source.store(&repo);
    let expected = Options { durable_mark_expected: true, ..marked() };
    for (content, options) in [
        (Some(&[7; 12][..]), marked()),
        (Some(&[0; 25]), marked()),
        (Some(&[7; 24]), marked()),
        (Some(&[]), expected),
        (Some(&[0; 12]), expected),
        (None, expected),
    ] {
        match content {
            Some(content) => put(&repo, "durable", content),
            None => repo.remove("durable").unwrap(),
        }
        let error = StreamWriter::open(Arc::new(repo.clone()), options).unwrap_err();
        assert!(matches!(error, OpenError::Mark { .. }), "{content:?}: {error}");
    }
}

#[test]
fn power_loss_at_every_step_of_the_creation_of_a_mark_leaves_none_or_a_whole_one() {
    let source = Source::of(&[100; 5]);
    for step in 0.. {
        let repo = MemRepo::default();
        source.store(&repo);
        repo.sync_dir().unwrap();
        repo.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
        let opened = StreamWriter::open(Arc::new(repo.clone()), marked()).is_ok();
        for loss in (0..8).map(|seed| Loss::Torn { seed }).chain([Loss::All, Loss::Nothing]) {
            let found = repo.after_power_loss(loss);
            let content = found.list().unwrap().contains(&"durable".to_owned()).then(|| get(&found, "durable"));
            assert!(content.is_none_or(|content| content.len() == 24 && content != [0; 24]), "step {step}, {loss:?}");
        }
        if opened {
            break;
        }
    }
}
