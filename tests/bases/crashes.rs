//! Power is lost at every step that gives a log its base: the one before is there, or the new one, whole.

use std::sync::Arc;

use logmirror::api::CreateLog;
use logmirror::format::{LogFormat, database};
use logmirror::mirror::{Registry, Settings, State};
use logmirror::offset::Generation;
use logmirror::repo::{Faults, Loss, MemRepo, Repo};
use logmirror::segment::base::{BaseBuilder, BaseReader, recover, store};

use crate::support::commitlog::get;

const LOSSES: [Loss; 8] = [
    Loss::All,
    Loss::Nothing,
    Loss::Prefix { seed: 1 },
    Loss::Prefix { seed: 2 },
    Loss::Prefix { seed: 3 },
    Loss::Torn { seed: 1 },
    Loss::Torn { seed: 2 },
    Loss::Torn { seed: 3 },
];

fn new_base() -> Vec<u8> {
    // Of the same length as the one that a log is created with, so that only the content tells them apart.
    let mut base = database::empty(4096);
    base[200..300].fill(7);
    base
}

/// The base in `repo`, every block of which is right.
fn held(repo: &MemRepo) -> Vec<u8> {
    let reader = BaseReader::open(repo).unwrap().unwrap();
    assert_eq!(reader.check_all(|_| ()).unwrap().1, [], "{:?}", repo.list());
    assert!(reader.id().is_some(), "{:?}", repo.list());
    get(repo, "base.db")
}

#[test]
fn a_base_that_is_replaced_is_the_old_one_or_the_new_one_whatever_a_crash_leaves() {
    let (old, new) = (database::empty(4096), new_base());
    let prepared = MemRepo::default();
    store(Arc::new(prepared.clone()), &old).unwrap();
    let (mut step, mut seen) = (0, [false; 2]);
    loop {
        let repo = prepared.after_power_loss(Loss::Nothing);
        repo.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
        let replaced = store(Arc::new(repo.clone()), &new);
        for loss in LOSSES {
            let found = repo.after_power_loss(loss);
            recover(&found).unwrap();
            let base = held(&found);
            assert!(base == new || base == old, "step {step}, {loss:?}");
            assert!(base == new || replaced.is_err(), "step {step}, {loss:?}: acknowledged, and gone");
            seen[usize::from(base == new)] = true;
            // What is found is left so, and can be replaced.
            recover(&found).unwrap();
            assert!(held(&found) == base);
            store(Arc::new(found.clone()), &new).unwrap();
            assert!(held(&found) == new);
        }
        if replaced.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step > 8 && seen == [true, true], "{step} steps, {seen:?}");
}

#[test]
fn a_log_is_sound_with_the_base_of_before_or_the_new_one_whatever_a_crash_leaves() {
    let (old, new) = (database::empty(4096), new_base());
    let settings = Settings { writer_threads: 1, ..Settings::default() };
    let open = |repo: &MemRepo| Registry::open(Arc::new(repo.clone()), settings).unwrap();
    let prepared = MemRepo::default();
    let wal = CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None };
    let registry = open(&prepared);
    registry.create("app", wal).unwrap();
    registry.stop();
    drop(registry);
    for generation in [1, 2] {
        let (mut step, mut seen) = (0, [false; 2]);
        loop {
            let repo = prepared.after_power_loss(Loss::Nothing);
            let registry = open(&repo);
            repo.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
            let log = registry.get("app").unwrap();
            let started = registry.draft_generation(&log, Some(Generation(generation))).and_then(|draft| {
                let mut base = BaseBuilder::create(draft.dir().clone())?;
                base.write(new.clone())?;
                base.publish(true)?;
                registry.start_generation(&log, &draft, |_, _| Ok(None))
            });
            registry.stop();
            for loss in LOSSES {
                let found = repo.after_power_loss(loss);
                let registry = open(&found);
                let log = registry.get("app").unwrap();
                assert_eq!(log.view().state, State::Ok, "generation {generation}, step {step}, {loss:?}");
                let dir = found.dir("logs").unwrap().dir("app").unwrap();
                let base = log.base().unwrap();
                let mut content = vec![0; 5000];
                let count = base.read_at(&mut content, 0).unwrap();
                content.truncate(count);
                assert!(content == new || content == old, "generation {generation}, step {step}, {loss:?}");
                assert!(content == new || started.is_err(), "generation {generation}, step {step}, {loss:?}");
                seen[usize::from(content == new)] = true;
                let described: serde_json::Value = serde_json::from_slice(&get(&*dir, "log.json")).unwrap();
                let id = base.id().unwrap();
                assert_eq!(described["base"]["sha256"], id.sha256.to_string(), "step {step}, {loss:?}");
                registry.stop();
            }
            if started.is_ok() {
                break;
            }
            step += 1;
        }
        assert!(step > 8 && seen == [true, true], "{step} steps, {seen:?}");
    }
}
