//! The logs of a data directory without a service around them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use logmirror::api::CreateLog;
use logmirror::format::LogFormat;
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::mirror::{Registry, Settings};
use logmirror::offset::Offset;
use logmirror::repo::{Loss, MemRepo, Repo};
use logmirror::stream::survey;
use support::log::{commits, header};

fn files_of(disk: &MemRepo, log: &str) -> Arc<dyn Repo> {
    disk.dir("logs").unwrap().dir(log).unwrap().dir("0000000001").unwrap()
}

#[test]
fn a_registry_that_is_dropped_makes_durable_what_it_took_and_lets_go_of_its_logs() {
    let disk = MemRepo::default();
    let registry = Registry::open(Arc::new(disk.clone()), Settings::default()).unwrap();
    let wanted = CreateLog { format: LogFormat::Commitlog, first: None, checkpoint: None, foreign_keys: None };
    let (log, new) = registry.create("app", wanted).unwrap();
    assert!(new);
    let stream = [header(), commits(0, 5, 100, 0)].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut append = runtime.block_on(registry.append(&log, None)).unwrap();
    assert!(runtime.block_on(append.push(stream.into())));
    drop((append, registry));

    // Its writer thread ends on its own time; the lock on the log is free when it has.
    let deadline = Instant::now() + Duration::from_secs(30);
    while files_of(&disk, "app").lock().is_err() || !durable(&disk) {
        assert!(Instant::now() < deadline, "the log is still held, or lost");
        std::thread::yield_now();
    }
}

/// Whether all five commits would survive a power loss now.
fn durable(disk: &MemRepo) -> bool {
    let found = disk.after_power_loss(Loss::All);
    survey(&*files_of(&found, "app"), COMMIT_BYTES_MAX, None).is_ok_and(|found| found.next == Offset(5))
}
