//! Calls fail one by one: the log is poisoned, nothing acknowledged is lost, and reopening goes on.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::error::Error;
use std::fs;
use std::sync::{Arc, Mutex};

use logmirror::format::commitlog::Version;
use logmirror::format::{LogFormat, name};
use logmirror::offset::Offset;
use logmirror::repo::{Faults, FsRepo, Loss, MemRepo, Op, Repo};
use logmirror::stream::{AppendError, OpenError, Options, StreamWriter};
use support::commitlog::{Source, get, marked, open, read_from, trim};

/// More calls of any one kind than a run makes.
const CALLS: u64 = 64;

fn source() -> Source {
    let mut source = Source::new(0);
    source.segment(Version::V1).commits(&[5000, 300, 300]);
    source.segment(Version::V1).commits(&[4000, 4000, 4000]);
    source.segment(Version::V1).commits(&[10, 20, 30, 9000]);
    source
}

/// Appends all of the source with a sync after every third chunk. After an error, every call errs alike.
fn run(repo: &MemRepo, options: Options, source: &Source, acked: &Mutex<u64>) -> Result<(), Box<dyn Error>> {
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options)?;
    let append = |writer: &mut StreamWriter| -> Result<(), AppendError> {
        for (at, chunk) in source.stream.chunks(1000).enumerate() {
            writer.append(chunk.to_vec())?;
            if at % 3 == 0 {
                *acked.lock().unwrap() = writer.sync()?.0;
            }
        }
        *acked.lock().unwrap() = writer.finish()?.0;
        Ok(())
    };
    let Err(error) = append(&mut writer) else {
        return Ok(());
    };
    let AppendError::Poisoned { cause } = &error else { panic!("{error}") };
    let later = [
        writer.append(source.stream.clone()).map(drop),
        writer.flush(),
        writer.sync().map(drop),
        writer.begin_sync().map(drop),
        writer.finish().map(drop),
    ];
    for result in later {
        let Err(AppendError::Poisoned { cause: again }) = &result else { panic!("{result:?} after {error}") };
        assert_eq!(again, cause, "the first cause is kept");
    }
    writer.restart();
    assert!(matches!(writer.append(vec![]), Err(AppendError::Poisoned { .. })), "a restart is no cure");
    assert!(*acked.lock().unwrap() <= writer.durable().0);
    Err(error.into())
}

/// Fails call after call of a kind, more than there are; returns how many runs failed.
fn fail_each(op: Op, options: Options) -> usize {
    let source = source();
    let mut failed = 0;
    for nth in 0..CALLS {
        let repo = MemRepo::new(Faults { fail_nth: Some((op, nth)), ..Faults::default() });
        let acked = Mutex::default();
        let result = run(&repo, options, &source, &acked);
        let acked = acked.into_inner().unwrap();
        failed += usize::from(result.is_err());
        assert!(nth + 1 < CALLS || result.is_ok(), "more calls than thought of");
        for loss in [Loss::All, Loss::Nothing] {
            goes_on(&repo.after_power_loss(loss), options, &source, acked, &format!("{op:?} {nth} {loss:?}"));
        }
        repo.set_faults(Faults::default());
        goes_on(&repo, options, &source, acked, &format!("{op:?} {nth}, same process"));
    }
    println!("{failed} calls of {op:?} failed");
    failed
}

fn goes_on(repo: &MemRepo, options: Options, source: &Source, acked: u64, what: &str) {
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), options).unwrap_or_else(|e| panic!("{what}: {e}"));
    let next = writer.next().0;
    assert!(next >= acked, "{what}: {acked} acknowledged, {next} found");
    source.assert_holds(repo, next, what);
    writer.append(source.rest(next).to_vec()).unwrap();
    assert_eq!(writer.finish().unwrap().0, source.next, "{what}");
    drop(writer);
    source.assert_is(repo, what);
}

#[test]
fn a_failed_write_poisons_and_loses_nothing_acknowledged() {
    assert!(fail_each(Op::Write, trim()) >= 8);
    assert!(fail_each(Op::Write, marked()) >= 8);
}

#[test]
fn a_failed_sync_poisons_and_loses_nothing_acknowledged() {
    assert!(fail_each(Op::Sync, trim()) >= 10);
    assert!(fail_each(Op::Sync, marked()) >= 10);
}

#[test]
fn a_segment_that_cannot_be_created_poisons_and_loses_nothing_acknowledged() {
    assert!(fail_each(Op::Create, trim()) >= 3);
}

#[test]
fn a_failed_directory_sync_poisons_and_loses_nothing_acknowledged() {
    assert_eq!(fail_each(Op::SyncDir, trim()), 3, "one per segment");
}

#[test]
fn an_index_that_cannot_be_mapped_or_sealed_harms_nothing() {
    assert_eq!(fail_each(Op::Map, trim()), 0);
    assert_eq!(fail_each(Op::Truncate, trim()), 0);
    assert_eq!(fail_each(Op::Store, trim()), 0);
}

#[test]
fn an_index_that_cannot_grow_stops_and_the_log_goes_on() {
    let mut source = Source::new(0);
    source.segment(Version::V1).commits(&[4090; 4200]);
    let repo = MemRepo::new(Faults { fail_nth: Some((Op::Map, 1)), ..Faults::default() });
    let mut writer = open(&repo).unwrap();
    writer.append(source.stream.clone()).unwrap();
    assert_eq!(writer.finish().unwrap().0, source.next);
    drop(writer);
    source.assert_is(&repo, "without room for the index");
    assert_eq!(get(&repo, &name::index(LogFormat::Commitlog, Offset(0))).len(), 64 << 10, "it did not grow");
    // The next opening notes what is missing, growing the index now.
    assert_eq!(open(&repo).unwrap().next().0, source.next);
    assert!(get(&repo, &name::index(LogFormat::Commitlog, Offset(0))).len() > 64 << 10);
}

#[test]
fn on_a_full_disk_what_was_acknowledged_stays_and_space_lets_it_go_on() {
    let source = source();
    let needed = source.stream.len() as u64 + 3 * (64 << 10);
    for bytes_max in (0..needed).step_by(997) {
        let repo = MemRepo::new(Faults { bytes_max: Some(bytes_max), ..Faults::default() });
        let acked = Mutex::default();
        let result = run(&repo, trim(), &source, &acked);
        let full = source.stream.len() as u64 > bytes_max;
        if full {
            let error = result.expect_err("the disk is full").to_string();
            assert!(error.contains(&std::io::Error::from(std::io::ErrorKind::StorageFull).to_string()), "{error}");
        }
        let acked = acked.into_inner().unwrap();
        goes_on(&repo.after_power_loss(Loss::All), trim(), &source, acked, &format!("{bytes_max} bytes"));
        repo.set_faults(Faults::default());
        goes_on(&repo, trim(), &source, acked, &format!("{bytes_max} bytes, same process"));
    }
}

#[test]
fn what_cannot_be_acknowledged_is_not() {
    let source = source();
    let repo = MemRepo::default();
    let mut writer = open(&repo).unwrap();
    writer.append(source.stream.clone()).unwrap();
    let (first, second) = (writer.begin_sync().unwrap().unwrap(), writer.begin_sync().unwrap().unwrap());
    repo.set_faults(Faults { fail_nth: Some((Op::Sync, 0)), ..Faults::default() });
    let before = writer.durable();
    let (first, second) = (first.run(), second.run());
    // The first sync failed, so what the second says is worth nothing, in whichever order they come back.
    assert!(writer.finish_sync(second).is_err());
    assert!(writer.finish_sync(first).is_err());
    assert_eq!(writer.durable(), before);
}

#[test]
fn a_sync_that_ends_after_a_failed_write_acknowledges_nothing() {
    let source = source();
    let repo = MemRepo::default();
    let mut writer = open(&repo).unwrap();
    writer.append(source.stream[..source.commits[1].to].to_vec()).unwrap();
    let job = writer.begin_sync().unwrap().unwrap();
    repo.set_faults(Faults { fail_nth: Some((Op::Write, 0)), ..Faults::default() });
    assert!(writer.append(source.stream[source.commits[1].to..].to_vec()).is_err());
    let before = writer.durable();
    assert!(matches!(writer.finish_sync(job.run()), Err(AppendError::Poisoned { .. })));
    assert_eq!(writer.durable(), before);
}

#[test]
fn a_second_writer_is_locked_out_until_the_first_is_gone() {
    fn locked_out(repo: &(impl Repo + Clone + 'static)) {
        let first = open(repo).unwrap();
        let refused = open(repo).unwrap_err();
        assert!(matches!(&refused, OpenError::Locked { place } if *place == repo.place()), "{refused}");
        assert!(matches!(open(repo), Err(OpenError::Locked { .. })), "a refused writer takes no lock away");
        drop(first);
        open(repo).unwrap();
    }
    locked_out(&MemRepo::default());
    let dir = tempfile::tempdir().unwrap();
    locked_out(&FsRepo::open(dir.path()).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a lock leaves nothing behind");
}

#[test]
fn a_writer_that_cannot_open_gives_its_lock_back() {
    let repo = MemRepo::default();
    Source::of(&[100; 3]).store(&repo);
    support::commitlog::write(&repo, &name::segment(LogFormat::Commitlog, Offset(0)), None, &[7; 30]);
    assert!(matches!(open(&repo), Err(OpenError::Torn(_))));
    assert_eq!(StreamWriter::open(Arc::new(repo), trim()).unwrap().next(), Offset(9));
}

#[test]
fn readers_need_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let repo = FsRepo::open(dir.path()).unwrap();
    let source = source();
    let mut writer = open(&repo).unwrap();
    writer.append(source.stream.clone()).unwrap();
    assert_eq!(read_from(&repo, 0), (source.stream.clone(), Ok(source.next)));
}

#[test]
fn a_removed_segment_is_noticed_at_sync() {
    let dir = tempfile::tempdir().unwrap();
    let repo = FsRepo::open(dir.path()).unwrap();
    let source = source();
    let mut writer = open(&repo).unwrap();
    writer.append(source.stream[..source.commits[1].to].to_vec()).unwrap();
    assert_eq!(writer.sync().unwrap().0, 6);
    writer.append(source.stream[source.commits[1].to..source.commits[2].to].to_vec()).unwrap();
    fs::remove_file(dir.path().join(name::segment(LogFormat::Commitlog, Offset(0)))).unwrap();
    let error = writer.sync().unwrap_err();
    assert!(matches!(error, AppendError::Poisoned { .. }), "{error}");
    assert_eq!(writer.durable().0, 6);
}

#[test]
fn one_poisoned_log_never_harms_another() {
    let disk = MemRepo::default();
    let (one, two) = (disk.create_dir("one").unwrap(), disk.create_dir("two").unwrap());
    let source = source();
    let mut first = StreamWriter::open(one, Options::default()).unwrap();
    let mut second = StreamWriter::open(two.clone(), Options::default()).unwrap();
    disk.set_faults(Faults { fail_nth: Some((Op::Write, 0)), ..Faults::default() });
    assert!(first.append(source.stream.clone()).is_err());
    second.append(source.stream.clone()).unwrap();
    assert_eq!(second.finish().unwrap().0, source.next);
    source.assert_is(&*two, "the other log");
}
