//! Large commits over HTTP: a slow sender holds nobody up, damage at the end stores nothing, and memory is not what limits them.

use std::sync::Arc;

use logmirror::limits::UNSYNCED_MAX;
use logmirror::repo::{FsRepo, MemRepo, Repo};

use serde_json::json;

use crate::support::failing::{Failing, Trouble};
use crate::support::log::{commit, commits, header};
use crate::support::service::{Service, Setup};

/// More than a service with [`BUDGET`] holds of a commit.
const LARGE: usize = 600_000;
const BUDGET: u64 = 2 << 20;

fn setup() -> Setup {
    let mut setup = Setup::default();
    (setup.settings.memory_max, setup.settings.commit_bytes_max) = (BUDGET, u64::MAX);
    setup
}

fn start(data: Arc<dyn Repo>) -> Service {
    let service = Service::start_with(data, setup());
    service.create("app");
    service.append("app", "", &[header(), commits(0, 3, 9, 0)].concat());
    service
}

#[test]
fn a_slow_sender_of_a_large_commit_holds_nobody_up() {
    let service = start(Arc::new(MemRepo::default()));
    let large = commit(3, 0, 1, &[7; LARGE]);
    let mut slow = service.begin_append("app", "?from=3");
    slow.send_chunk(&large[..LARGE - 10]);
    assert_eq!(service.append("app", "?from=3", &commits(3, 1, 9, 0)).json()["durable"], 4);
    slow.send_chunk(&large[LARGE - 10..]);
    slow.send_chunk(b"");
    assert_eq!(slow.answer().refusal(), (409, "fork".into()));
    // The same commit from two senders is there once.
    let large = commit(4, 0, 1, &[7; LARGE]);
    for (appended, skipped) in [(1, 0), (0, 1)] {
        let answer = service.append_chunked("app", "?from=4", &large, 5000).json();
        assert_eq!((&answer["appended"], &answer["skipped"]), (&appended.into(), &skipped.into()), "{answer}");
    }
    assert_eq!(service.status("app")["durable"], 5);
}

#[test]
fn a_large_commit_that_is_damaged_at_its_end_stores_nothing() {
    let service = start(Arc::new(MemRepo::default()));
    let before = service.stream("app");
    let large = commit(3, 0, 1, &[7; LARGE]);
    for at in [large.len() - 1, large.len() - 300, 400_000] {
        let mut damaged = large.clone();
        damaged[at] ^= 4;
        assert_eq!(service.append_chunked("app", "?from=3", &damaged, 9000).refusal(), (422, "corrupt".into()), "{at}");
        assert_eq!(service.stream("app"), before);
    }
    for bytes in [large.len() - 1, 400_000] {
        let cut = service.append_chunked("app", "?from=3", &large[..bytes], 9000);
        assert_eq!(cut.refusal(), (422, "truncated".into()), "{bytes}");
        assert_eq!(service.stream("app"), before);
    }
    assert_eq!(service.append_chunked("app", "?from=3", &large, 9000).json()["durable"], 4);
    assert_eq!(service.stream("app"), [before, large].concat());
}

#[test]
fn many_senders_of_large_commits_do_not_use_up_the_memory_budget() {
    const SENDERS: usize = 24;
    let data = tempfile::tempdir().unwrap();
    let service = Service::start_with(Arc::new(FsRepo::open(data.path()).unwrap()), setup());
    let large = [header(), commit(0, 0, 1, &[7; LARGE])].concat();
    let mut senders: Vec<_> = (0..SENDERS)
        .map(|n| {
            service.create(&format!("app{n}"));
            service.begin_append(&format!("app{n}"), "?from=0")
        })
        .collect();
    // All of them are in the middle of their commit at once, with seven times the budget.
    for from in (0..large.len()).step_by(50_000) {
        for sender in &mut senders {
            sender.send_chunk(&large[from..large.len().min(from + 50_000)]);
        }
    }
    for sender in &mut senders {
        sender.send_chunk(b"");
        let answer = sender.answer();
        assert_eq!((answer.status, &answer.json()["durable"]), (200, &1.into()), "{}", answer.text());
    }
    let metrics = service.get("/metrics").text();
    assert!(metrics.contains("logmirror_large_commits_total{log=\"app7\"} 1"), "{metrics}");
}

#[test]
fn without_space_for_a_large_commit_the_log_goes_on_and_the_commit_may_be_sent_again() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let service = start(repo);
    let large = commit(3, 0, 1, &[7; LARGE]);
    plan.set("logs/app/0000000001", Trouble::DiskFull);
    let refused = service.append_chunked("app", "?from=3", &large, 9000);
    assert_eq!(refused.refusal(), (503, "unavailable".into()));
    assert!(refused.text().contains("cannot keep a commit that is not whole yet"), "{}", refused.text());
    assert_eq!(service.status("app")["state"], "ok", "nothing of the log was touched");
    plan.clear();
    assert_eq!(service.append_chunked("app", "?from=3", &large, 9000).json()["durable"], 4);
}

#[test]
fn while_a_large_commit_is_copied_other_logs_go_on_and_other_senders_of_its_log_wait() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let mut setup = setup();
    // One thread owns all logs.
    setup.settings.writer_threads = 1;
    let service = Service::start_with(repo, setup);
    service.create("app");
    service.create("other");
    plan.set("logs/app/0000000001", Trouble::SyncHangs);
    // It is synced once on the way.
    let large = [header(), commit(0, 0, 1, &vec![7; UNSYNCED_MAX as usize + LARGE])].concat();
    let mut sender = service.begin_append("app", "?from=0&acks=stream");
    assert_eq!((sender.head().status, sender.next_json()), (200, Some(json!({"durable": 0}))));
    for part in large.chunks(1 << 20) {
        sender.send_chunk(part);
    }
    sender.send_chunk(b"");
    plan.wait_hanging(1);
    assert_eq!(service.append("other", "?from=0", &[header(), commits(0, 3, 9, 0)].concat()).json()["durable"], 3);
    assert_eq!(service.status("app")["next"], 0, "nothing of it is visible");
    let mut next = service.begin_append("app", "?from=0");
    next.send_chunk(&large[..10]);
    next.send_chunk(&large[10..]);
    next.send_chunk(b"");
    assert_eq!(sender.next_json(), Some(json!({"durable": 0})), "it says that work goes on");
    plan.clear();
    let last = std::iter::from_fn(|| sender.next_json()).last().unwrap();
    for (answer, appended) in [(last, 1), (next.answer().json(), 0)] {
        assert_eq!((&answer["durable"], &answer["appended"]), (&1.into(), &appended.into()), "{answer}");
    }
}

#[test]
fn an_upload_of_a_large_commit_in_parts_is_one_commit() {
    let service = start(Arc::new(MemRepo::default()));
    let large = commit(3, 0, 1, &[7; LARGE]);
    let mut at = 0;
    for part in large.chunks(70_000) {
        let total = if at + part.len() == large.len() { format!("&total={}", large.len()) } else { String::new() };
        let answer = service.append("app", &format!("?from=3&upload=a&at={at}{total}"), part);
        at += part.len();
        assert_eq!(answer.status, if at == large.len() { 200 } else { 202 }, "{}", answer.text());
    }
    assert_eq!(service.status("app")["durable"], 4);
    assert!(service.stream("app").ends_with(&large));
}
