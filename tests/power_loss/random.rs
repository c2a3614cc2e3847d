//! A log under a random sequence of appends, syncs, failures, ends of the process and power losses.

use std::sync::Arc;

use logmirror::repo::{Faults, Loss, MemRepo, Op};
use logmirror::stream::{Options, StreamWriter};

use super::rotating;
use super::support::commitlog::{Draw, Source, marked, seed, trim};

const RUNS: u64 = 250;
const STEPS: u64 = 60;

#[derive(Default)]
struct Count {
    failed: u64,
    opened: u64,
    lost: u64,
    lost_after_failure: u64,
}

/// A long log: the segments of [`rotating`] and more like them.
fn long() -> Source {
    let mut source = rotating();
    for round in 0..6 {
        let version = source.version;
        source.segment(version).commits(&[700, 4096, 20, 3000 + round, 900, 40, 2000]);
    }
    source
}

/// One log from its beginning: what it holds is a prefix of the source at any time, with all that was acknowledged in it.
fn run(seed: u64, options: Options, source: &Source, count: &mut Count) {
    let mut draw = Draw(seed);
    let mut repo = MemRepo::default();
    let (mut acked, mut sent) = (0, 0);
    let mut writer: Option<StreamWriter> = None;
    let (mut failing, mut failed_since_loss) = (false, false);
    for step in 0..STEPS {
        let what = format!("LOGMIRROR_TEST_SEED={seed}, step {step}, marked: {}", options.durable_mark);
        let Some(open) = &mut writer else {
            match StreamWriter::open(Arc::new(repo.clone()), options) {
                Ok(opened) => {
                    let next = opened.next().0;
                    assert!(next >= acked, "{what}: {acked} acknowledged, {next} found");
                    source.assert_holds(&repo, next, &what);
                    acked = opened.durable().0;
                    sent = source.stream.len() - source.rest(next).len();
                    writer = Some(opened);
                    count.opened += 1;
                }
                Err(error) => {
                    assert!(failing, "{what}: {error}");
                    (count.failed, failed_since_loss) = (count.failed + 1, true);
                    (failing, repo) = restart(repo, &mut draw);
                }
            }
            continue;
        };
        let what_next = draw.below(12);
        let mut append = |open: &mut StreamWriter| {
            let end = (sent + 1 + draw.below(6000) as usize).min(source.stream.len());
            let chunk = source.stream[sent..end].to_vec();
            sent = end;
            open.append(chunk)
        };
        let done = match what_next {
            0..5 => append(open).map(|_| ()),
            5..7 => open.sync().map(|durable| acked = durable.0),
            7 => open.begin_sync().and_then(|job| {
                append(open)?;
                job.map_or(Ok(()), |job| open.finish_sync(job.run()).map(|durable| acked = durable.0))
            }),
            8..10 => {
                let op = [Op::Sync, Op::Sync, Op::SyncDir, Op::Write, Op::Create][draw.below(5) as usize];
                let process_ends = draw.below(2) == 0;
                repo.set_faults(Faults { fail_nth: Some((op, draw.below(3))), process_ends, ..Faults::default() });
                failing = true;
                Ok(())
            }
            10 => {
                // It ends, cleanly or not: that makes no difference to what is on the disk.
                writer = None;
                (failing, repo) = restart(repo, &mut draw);
                continue;
            }
            _ => {
                let seed = draw.below(u64::MAX);
                let torn = options.durable_mark && draw.below(2) == 0;
                let loss = match draw.below(3) {
                    0 => Loss::All,
                    _ if torn => Loss::Torn { seed },
                    _ => Loss::Prefix { seed },
                };
                (writer, failing) = (None, false);
                repo = repo.after_power_loss(loss);
                count.lost += 1;
                count.lost_after_failure += u64::from(std::mem::take(&mut failed_since_loss));
                continue;
            }
        };
        if let Err(error) = done {
            assert!(failing, "{what}: {error}");
            (count.failed, failed_since_loss) = (count.failed + 1, true);
            writer = None;
            (failing, repo) = restart(repo, &mut draw);
        }
    }
}

/// The next process, or the same one again: sometimes its first syncs fail too.
fn restart(repo: MemRepo, draw: &mut Draw) -> (bool, MemRepo) {
    let failing = draw.below(4) == 0;
    let op = [Op::Sync, Op::SyncDir][draw.below(2) as usize];
    let fail_nth = failing.then(|| (op, draw.below(4)));
    repo.set_faults(Faults { fail_nth, process_ends: draw.below(2) == 0, ..Faults::default() });
    (failing, repo)
}

#[test]
fn whatever_fails_and_ends_nothing_acknowledged_is_ever_missing() {
    let (first, source) = (seed(), long());
    for options in [marked(), trim()] {
        let mut count = Count::default();
        let mut draw = Draw(first);
        run(first, options, &source, &mut count);
        for _ in 0..RUNS {
            run(draw.below(u64::MAX), options, &source, &mut count);
        }
        let Count { failed, opened, lost, lost_after_failure } = count;
        println!(
            "{RUNS} runs: {opened} openings, {failed} failures, {lost} power losses, {lost_after_failure} after one"
        );
        assert!(
            lost_after_failure > RUNS / 10 && failed > RUNS,
            "{failed} failures, {lost_after_failure} losses after one"
        );
    }
}
