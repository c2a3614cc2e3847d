use super::*;
use crate::repo::{Faults, Loss, MemRepo};
use crate::segment::base::{BaseReader, store};

const LOSSES: [Loss; 6] = [
    Loss::All,
    Loss::Nothing,
    Loss::Prefix { seed: 1 },
    Loss::Prefix { seed: 2 },
    Loss::Torn { seed: 1 },
    Loss::Torn { seed: 2 },
];
const SEGMENT: &str = "00000000000000000001.wal";

fn content(generation: u64) -> Vec<u8> {
    format!("base {generation} ").repeat(1000).into_bytes()
}

fn write(repo: &dyn Repo, name: &str, bytes: &[u8]) -> io::Result<()> {
    let file = repo.create(name)?;
    file.write_at(&mut [io::IoSlice::new(bytes)], 0)?;
    file.sync()
}

fn record(generation: u64) -> MirrorRecord {
    MirrorRecord::new("http://host/logs/app", LogFormat::Wal, Generation(generation))
}

/// A mirror in its first generation, with frames.
fn flat() -> MemRepo {
    let repo = MemRepo::default();
    RecordFile::open(&repo, record(1)).unwrap();
    store(Arc::new(repo.clone()), &content(1)).unwrap();
    for (name, bytes) in [(SEGMENT, "frames"), ("00000000000000000001.ofs", "index"), ("kept.txt", "another's")] {
        write(&repo, name, bytes.as_bytes()).unwrap();
    }
    repo.sync_dir().unwrap();
    repo
}

/// Takes a whole step, as a mirror does.
fn step(repo: &MemRepo, next: u64) -> io::Result<()> {
    store(begin_step(repo, Generation(next))?, &content(next))?;
    end_step(repo, record(next))?;
    remove_before_current(repo).map(drop)
}

/// The generation that is found, once all of it was checked.
fn held(repo: &MemRepo) -> u64 {
    let found: Arc<dyn Repo> = match current(repo).unwrap() {
        Some((_, found)) => found,
        None => Arc::new(repo.clone()),
    };
    let generation = recorded_generation(&*found).unwrap().unwrap();
    let base = BaseReader::open(&*found).unwrap().unwrap();
    assert_eq!(base.check_all(|_| ()).unwrap().1, []);
    let mut bytes = vec![0; base.bytes() as usize];
    base.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == content(generation.0), "the base is that of generation {generation}");
    // Of the first one the frames are a part of it.
    assert_eq!(generation.0 == 1, found.open(SEGMENT).is_ok());
    generation.0
}

fn names(repo: &MemRepo) -> Vec<String> {
    let mut names = repo.list().unwrap();
    names.sort_unstable();
    names
}

#[test]
fn what_was_set_aside_in_a_generation_outlives_it() {
    let repo = flat();
    step(&repo, 2).unwrap();
    let second = current(&repo).unwrap().unwrap().1;
    write(&*second, "base.db.aside-1", b"another log's").unwrap();
    step(&repo, 3).unwrap();
    assert_eq!(names(&repo), ["generation-0000000002.aside", "generation-0000000003", "kept.txt"]);
    let mut bytes = [0; 13];
    let kept = repo.dir("generation-0000000002.aside").unwrap().open("base.db.aside-1").unwrap();
    assert_eq!((kept.read_at(&mut bytes, 0).unwrap(), &bytes), (13, b"another log's"));
    assert_eq!(held(&repo), 3);
    step(&repo, 4).unwrap();
    assert_eq!(names(&repo), ["generation-0000000002.aside", "generation-0000000004", "kept.txt"]);
}

#[test]
fn a_step_leaves_the_old_generation_or_the_new_one_whole_whatever_a_crash_leaves() {
    let second = flat();
    step(&second, 2).unwrap();
    assert_eq!(names(&second), ["generation-0000000002", "kept.txt"]);
    for (prepared, old, next) in [(flat(), 1, 2), (second, 2, 5)] {
        let (mut at, mut seen) = (0, [false; 2]);
        loop {
            let repo = prepared.after_power_loss(Loss::Nothing);
            repo.set_faults(Faults { power_loss_at: Some(at), ..Faults::default() });
            let stepped = step(&repo, next);
            for loss in LOSSES {
                let found = repo.after_power_loss(loss);
                let generation = held(&found);
                assert!(generation == old || generation == next, "step {at}, {loss:?}: {generation}");
                assert!(generation == next || stepped.is_err(), "step {at}, {loss:?}: acknowledged, and gone");
                seen[usize::from(generation == next)] = true;
                // A reader changes nothing, and the next writer ends what was interrupted, or takes the step again.
                assert_eq!(held(&found), generation);
                if generation == old {
                    step(&found, next).unwrap();
                } else {
                    remove_before_current(&found).unwrap();
                }
                assert_eq!(held(&found), next);
                assert_eq!(names(&found), [dir_name(Generation(next)), "kept.txt".to_owned()], "step {at}, {loss:?}");
            }
            if stepped.is_ok() {
                break;
            }
            at += 1;
        }
        assert!(at > 15 && seen == [true, true], "{at} steps, {seen:?}");
    }
}

#[test]
fn a_step_whose_sync_failed_removes_nothing_of_the_old_generation_that_a_power_failure_would_need() {
    for nth in 0..12 {
        let repo = flat();
        repo.set_faults(Faults { fail_nth: Some((crate::repo::Op::SyncDir, nth)), ..Faults::default() });
        let stepped = step(&repo, 2);
        // Another process may go on after that, and lose power at any moment.
        let _ = remove_before_current(&repo);
        for loss in LOSSES {
            let generation = held(&repo.after_power_loss(loss));
            assert!(generation == 2 || stepped.is_err(), "sync {nth}, {loss:?}");
        }
    }
}

#[test]
fn files_that_only_look_like_a_generation_are_none() {
    let repo = flat();
    write(&repo, "generation-0000000009", b"a file").unwrap();
    write(&repo, "generation-9", b"a file").unwrap();
    assert_eq!(held(&repo), 1);
    step(&repo, 2).unwrap();
    assert_eq!(held(&repo), 2);
    assert_eq!(names(&repo).len(), 4);
}
