//! The checkpointer's scheduler: what a notice leads to, how failures are spaced, and when it ends. Time stands still
//! unless a test moves it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmirror::checkpoint::{Checkpointer, GivenUp, Notifier, Outcome};
use logmirror::limits::{CHECKPOINT_FAILURES_MAX, CHECKPOINT_RETRY_FIRST, CHECKPOINT_RETRY_LAST};
use logmirror::offset::Offset;
use tokio::sync::oneshot;
use tokio::time::{Instant, advance, timeout};

type Answer = Result<Outcome, &'static str>;

/// Jobs that run until the test ends them.
#[derive(Clone, Default)]
struct Jobs(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    running: HashMap<String, oneshot::Sender<Answer>>,
    /// Runs started, by log.
    runs: HashMap<String, usize>,
    most_at_once: usize,
}

impl Jobs {
    async fn job(self, log: String) -> Answer {
        let (end, ended) = oneshot::channel();
        {
            let mut seen = self.0.lock().unwrap();
            *seen.runs.entry(log.clone()).or_default() += 1;
            assert!(seen.running.insert(log, end).is_none(), "two runs of one log at once");
            seen.most_at_once = seen.most_at_once.max(seen.running.len());
        }
        ended.await.unwrap_or_else(|_| panic!("the test gave it up"))
    }

    fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.lock().unwrap().running.keys().cloned().collect();
        names.sort();
        names
    }

    fn runs(&self, log: &str) -> usize {
        self.0.lock().unwrap().runs.get(log).copied().unwrap_or(0)
    }

    async fn end(&self, log: &str, with: Answer) {
        let end = self.0.lock().unwrap().running.remove(log).unwrap();
        end.send(with).unwrap();
        settle().await;
    }

    /// The job's task panics.
    async fn drop(&self, log: &str) {
        drop(self.0.lock().unwrap().running.remove(log).unwrap());
        settle().await;
    }
}

const DONE: Answer = Ok(Outcome::Folded(Offset(7)));

fn start(limit: usize) -> (Jobs, Checkpointer, Notifier) {
    let jobs = Jobs::default();
    let for_jobs = jobs.clone();
    let limit = NonZeroUsize::new(limit).unwrap();
    let (checkpointer, notifier) = Checkpointer::start(limit, move |log| for_jobs.clone().job(log));
    (jobs, checkpointer, notifier)
}

/// Lets all tasks run until none of them can go on.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

async fn notify(notifier: &Notifier, logs: &[&str]) {
    for log in logs {
        assert!(notifier.notify(log));
        settle().await;
    }
}

/// It does not end, however long one waits.
async fn goes_on(checkpointer: &mut std::pin::Pin<Box<impl Future<Output = Vec<GivenUp>>>>) {
    settle().await;
    assert!(timeout(Duration::from_millis(1), checkpointer).await.is_err(), "it ended too soon");
}

#[tokio::test(start_paused = true)]
async fn one_notice_is_one_run() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["a"]).await;
    assert_eq!(jobs.running(), ["a"]);
    jobs.end("a", DONE).await;
    advance(Duration::from_secs(3600)).await;
    settle().await;
    assert_eq!((jobs.runs("a"), jobs.running()), (1, vec![]));
    let status = checkpointer.status();
    assert_eq!((status.running, status.scheduled, status.succeeded, status.failed), (0, 0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn two_notices_are_one_run_and_one_pending() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["a", "a"]).await;
    assert_eq!((checkpointer.status().running, checkpointer.status().scheduled), (1, 1));
    jobs.end("a", DONE).await;
    assert_eq!((jobs.runs("a"), checkpointer.status().running, checkpointer.status().scheduled), (2, 1, 0));
    jobs.end("a", DONE).await;
    assert_eq!((jobs.runs("a"), jobs.running()), (2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn many_notices_during_a_run_lead_to_exactly_one_more() {
    let (jobs, _checkpointer, notifier) = start(2);
    notify(&notifier, &["a"]).await;
    for _ in 0..100 {
        assert!(notifier.notify("a"));
    }
    settle().await;
    jobs.end("a", DONE).await;
    assert_eq!(jobs.running(), ["a"]);
    jobs.end("a", DONE).await;
    assert_eq!((jobs.runs("a"), jobs.running()), (2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn many_notices_before_a_run_are_one() {
    let (jobs, checkpointer, notifier) = start(1);
    notify(&notifier, &["a", "b", "b", "b"]).await;
    assert_eq!((checkpointer.status().running, checkpointer.status().scheduled), (1, 1));
    jobs.end("a", DONE).await;
    jobs.end("b", DONE).await;
    assert_eq!((jobs.runs("a"), jobs.runs("b"), jobs.running()), (1, 1, vec![]));
}

#[tokio::test(start_paused = true)]
async fn different_logs_run_at_once_up_to_the_limit_and_in_order() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["c", "b", "a", "z"]).await;
    assert_eq!(jobs.running(), ["b", "c"]);
    assert_eq!(checkpointer.status().scheduled, 2);
    jobs.end("b", DONE).await;
    assert_eq!(jobs.running(), ["a", "c"], "first come, first served");
    jobs.end("c", Err("no")).await;
    assert_eq!(jobs.running(), ["a", "z"], "one that failed does not keep its place");
    assert_eq!(jobs.0.lock().unwrap().most_at_once, 2);
}

#[tokio::test(start_paused = true)]
async fn a_failing_run_is_scheduled_again_after_a_while() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["a"]).await;
    jobs.end("a", Err("disk on fire")).await;
    assert_eq!(jobs.running(), [""; 0], "not at once");
    let status = checkpointer.status();
    assert_eq!((status.running, status.scheduled, status.failed), (0, 1, 1));
    let failing = &status.failing[0];
    assert_eq!((failing.log.as_str(), failing.failures, failing.alarm), ("a", 1, false));
    assert_eq!((failing.error.as_str(), failing.retry_in), ("disk on fire", Some(CHECKPOINT_RETRY_FIRST)));

    // A notice does not make it hot.
    notify(&notifier, &["a"]).await;
    assert_eq!(jobs.running(), [""; 0]);
    advance(CHECKPOINT_RETRY_FIRST).await;
    settle().await;
    assert_eq!(jobs.running(), ["a"]);
    jobs.end("a", Ok(Outcome::Nothing)).await;
    assert_eq!((jobs.runs("a"), checkpointer.status().failing), (2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn failures_are_spaced_further_and_further_then_raise_an_alarm_and_success_ends_it() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["a"]).await;
    let mut before = Duration::ZERO;
    for nth in 1..CHECKPOINT_FAILURES_MAX + 4 {
        jobs.end("a", Err("still no")).await;
        let failing = checkpointer.status().failing.remove(0);
        assert_eq!((failing.failures, failing.alarm), (nth, nth >= CHECKPOINT_FAILURES_MAX));
        let wait = failing.retry_in.unwrap();
        assert!(wait >= before && wait <= CHECKPOINT_RETRY_LAST, "{before:?}, then {wait:?}");
        assert!(!failing.alarm || wait == CHECKPOINT_RETRY_LAST);
        // Not a moment sooner, whatever it is told, and others are not held up.
        notify(&notifier, &["a", "b"]).await;
        jobs.end("b", DONE).await;
        advance(wait - Duration::from_millis(1)).await;
        settle().await;
        assert_eq!(jobs.running(), [""; 0], "failure {nth}");
        advance(Duration::from_millis(1)).await;
        settle().await;
        assert_eq!(jobs.running(), ["a"], "failure {nth}");
        let failing = &checkpointer.status().failing[0];
        assert_eq!((failing.failures, failing.retry_in), (nth, None));
        before = wait;
    }
    jobs.end("a", Ok(Outcome::NotOpen)).await;
    assert_eq!(checkpointer.status().failing, []);
    assert_eq!(checkpointer.status().failed, u64::from(CHECKPOINT_FAILURES_MAX) + 3);
    notify(&notifier, &["a"]).await;
    jobs.end("a", Err("again")).await;
    assert_eq!(checkpointer.status().failing[0].failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_with_a_notice_waiting_is_one_entry() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["a", "a"]).await;
    jobs.end("a", Err("no")).await;
    assert_eq!((checkpointer.status().running, checkpointer.status().scheduled), (0, 1));
    advance(CHECKPOINT_RETRY_FIRST).await;
    settle().await;
    jobs.end("a", DONE).await;
    assert_eq!((jobs.runs("a"), jobs.running()), (2, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_panicking_job_is_a_failed_job() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["a", "b"]).await;
    jobs.drop("a").await;
    let status = checkpointer.status();
    assert_eq!((status.running, status.failing[0].failures), (1, 1));
    assert_eq!(status.failing[0].error, "panicked: the test gave it up");
    jobs.end("b", DONE).await;
    advance(CHECKPOINT_RETRY_FIRST).await;
    settle().await;
    jobs.end("a", DONE).await;
    assert_eq!(checkpointer.status().failing, []);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_panics_before_it_is_one_is_a_failed_job() {
    let job = |log: String| -> std::future::Ready<Answer> { panic!("no job for {log}") };
    let (checkpointer, notifier) = Checkpointer::start(NonZeroUsize::MIN, job);
    notify(&notifier, &["a"]).await;
    assert_eq!(checkpointer.status().failing[0].error, "panicked: no job for a");
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_told_to_and_when_nobody_can_tell_it_anything() {
    let (_, checkpointer, notifier) = start(2);
    notifier.shut_down();
    assert_eq!(checkpointer.ended().await, []);
    assert!(!notifier.notify("a"), "nobody takes it");
    let (_, checkpointer, notifier) = start(2);
    drop(notifier);
    assert_eq!(checkpointer.ended().await, []);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_end_while_something_runs_or_is_scheduled() {
    for by_closing in [false, true] {
        let (jobs, checkpointer, notifier) = start(1);
        notify(&notifier, &["a", "a", "b"]).await;
        let mut ended = Box::pin(checkpointer.ended());
        if by_closing {
            drop(notifier);
        } else {
            notifier.shut_down();
        }
        goes_on(&mut ended).await;
        jobs.end("a", DONE).await;
        goes_on(&mut ended).await;
        jobs.end("b", DONE).await;
        goes_on(&mut ended).await;
        jobs.end("a", DONE).await;
        assert_eq!(ended.await, []);
        assert_eq!((jobs.runs("a"), jobs.runs("b")), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_notice_queued_behind_the_shutdown_is_run_and_does_not_block_the_end() {
    let (jobs, checkpointer, notifier) = start(2);
    // All of it lies in the inbox before the task first looks.
    assert!(notifier.notify("a"));
    notifier.shut_down();
    assert!(notifier.notify("b"));
    notifier.shut_down();
    assert!(notifier.notify("a") && notifier.notify("c"));
    settle().await;
    assert!(!notifier.notify("a"), "now it takes no more");
    assert_eq!(jobs.running(), ["a", "b"]);
    for log in ["a", "b", "c"] {
        jobs.end(log, DONE).await;
    }
    assert_eq!(timeout(Duration::from_secs(1), checkpointer.ended()).await.unwrap(), []);
    assert_eq!((jobs.runs("a"), jobs.runs("b"), jobs.runs("c")), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_no_backoff_and_names_what_it_gives_up() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["a", "b"]).await;
    for log in ["a", "b"] {
        jobs.end(log, Err("no")).await;
    }
    let before = Instant::now();
    notifier.shut_down();
    settle().await;
    assert_eq!(jobs.running(), ["a", "b"], "at once");
    jobs.end("a", DONE).await;
    jobs.end("b", Err("never")).await;
    let given_up = checkpointer.ended().await;
    assert_eq!(given_up, [GivenUp { log: "b".into(), error: "never".into() }]);
    assert_eq!((before.elapsed(), jobs.runs("b")), (Duration::ZERO, 2));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_during_shutdown_with_a_notice_waiting_is_tried_once_more() {
    let (jobs, checkpointer, notifier) = start(2);
    notify(&notifier, &["a", "a"]).await;
    notifier.shut_down();
    settle().await;
    jobs.end("a", Err("no")).await;
    jobs.end("a", DONE).await;
    assert_eq!(checkpointer.ended().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_flood_of_notices_no_log_is_lost_and_none_runs_twice_at_once() {
    let jobs = Arc::new(Mutex::new((HashMap::<String, u64>::new(), HashMap::<String, u64>::new())));
    let notes = Arc::new(Mutex::new(HashMap::<String, u64>::new()));
    let (for_jobs, for_notes) = (jobs.clone(), notes.clone());
    let (checkpointer, notifier) = Checkpointer::start(NonZeroUsize::new(3).unwrap(), move |log: String| {
        let (jobs, notes) = (for_jobs.clone(), for_notes.clone());
        async move {
            assert_eq!(jobs.lock().unwrap().0.insert(log.clone(), 1), None, "two runs of {log}");
            let seen = notes.lock().unwrap()[&log];
            tokio::task::yield_now().await;
            let mut jobs = jobs.lock().unwrap();
            jobs.1.insert(log.clone(), seen);
            jobs.0.remove(&log);
            Ok::<_, String>(Outcome::Nothing)
        }
    });
    let notifying = (0..4).map(|thread| {
        let (notifier, notes) = (notifier.clone(), notes.clone());
        std::thread::spawn(move || {
            for nth in 0..5000 {
                let log = format!("log-{}", (nth * 7 + thread) % 23);
                *notes.lock().unwrap().entry(log.clone()).or_default() += 1;
                assert!(notifier.notify(&log));
            }
        })
    });
    for thread in notifying.collect::<Vec<_>>() {
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    }
    notifier.shut_down();
    assert_eq!(checkpointer.ended().await, []);
    // The last run of each log began after its last notice.
    assert_eq!(jobs.lock().unwrap().1, *notes.lock().unwrap());
}
